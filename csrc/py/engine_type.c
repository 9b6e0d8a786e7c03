/* engine_type.c - firesteel._core.Engine: engine.h with Python's manners. */
#include "py/py.h"

#include "base/alloc.h"

#include <time.h>

int fs_py_engine_enter(fs_py_state *state, fs_py_engine *self) {
    if (!self->engine || self->closing) {
        fs_py_raise(state, fs_fail(FS_REQUEST, "this engine was closed; open another firesteel.Engine"));
        return -1;
    }
    self->users++;
    return 0;
}

void fs_py_engine_leave(fs_py_engine *self) { self->users--; }

/* Everything __init__ borrows from Python while the engine opens. */
typedef struct {
    fs_py_checkpoint checkpoint;
    fs_engine_options options;
    const char **devices;
    fs_stage_plan *stages;
    PyObject *name;
} open_arguments;

static void arguments_clear(open_arguments *a) {
    fs_py_checkpoint_clear(&a->checkpoint);
    fs_free(a->devices);
    fs_free(a->stages);
    Py_XDECREF(a->name);
}

static int arguments_read(open_arguments *a, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "config",     "tensors",  "files", "name",     "devices", "dtype", "threads",
                             "max_memory", "cpu_path", "plan",  "parallel", "chain",   NULL };
    PyObject *config = NULL, *tensors = NULL, *files = NULL, *devices = NULL, *plan = Py_None, *named = NULL;
    PyObject *chain = NULL;
    const char *name = "", *dtype = "auto", *cpu_path = NULL, *parallel = NULL;
    long long max_memory = 0;
    int threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOUOsiLzOzO", names, &config, &tensors, &files, &named, &devices,
                                     &dtype, &threads, &max_memory, &cpu_path, &plan, &parallel, &chain))
        return -1;
    if (!config || !tensors || !files) {
        PyErr_SetString(PyExc_TypeError, "Engine needs config=, tensors= and files=");
        return -1;
    }
    if (threads < 0 || max_memory < 0) {
        PyErr_Format(PyExc_ValueError, "threads is %d and max_memory is %lld; neither can be negative", threads,
                     max_memory);
        return -1;
    }
    if (named && (!(a->name = fs_py_plain(named)) || !(name = PyUnicode_AsUTF8AndSize(a->name, NULL)))) return -1;
    if (fs_py_checkpoint_from(&a->checkpoint, config, tensors, files, chain, name) < 0) return -1;
    if (devices &&
        fs_py_strings_from(&a->devices, &a->options.device_count, devices, "devices", a->checkpoint.keep) < 0)
        return -1;
    if (plan != Py_None && fs_py_stages_from(&a->stages, &a->options.stage_count, plan) < 0) return -1;
    a->options.devices = a->devices;
    a->options.stages = a->stages;
    a->options.parallel = parallel;
    a->options.dtype = dtype;
    a->options.cpu_path = cpu_path;
    a->options.threads = threads;
    a->options.max_memory = (size_t)max_memory;
    return 0;
}

static int engine_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    fs_py_engine *self = (fs_py_engine *)object;
    fs_py_state *state = PyType_GetModuleState(Py_TYPE(object));
    open_arguments a = { 0 };
    fs_engine *engine = NULL;
    fs_status st;
    if (self->engine) {
        PyErr_SetString(PyExc_RuntimeError, "this engine is open already");
        return -1;
    }
    if (arguments_read(&a, args, kwargs) < 0) {
        arguments_clear(&a);
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    st = fs_engine_open(&engine, &a.checkpoint.checkpoint, &a.options);
    Py_END_ALLOW_THREADS
    arguments_clear(&a);
    if (st != FS_OK) {
        fs_py_raise(state, st);
        return -1;
    }
    self->engine = engine;
    return 0;
}

/* Ends the engine once no call is inside it; calls that wait for a job look every 50 ms. */
static void engine_shut(fs_py_engine *self) {
    fs_engine *engine = self->engine;
    if (!engine || self->closing) return;
    self->closing = 1;
    while (self->users > 0) {
        Py_BEGIN_ALLOW_THREADS
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
        Py_END_ALLOW_THREADS
    }
    self->engine = NULL;
    Py_BEGIN_ALLOW_THREADS
    fs_engine_close(engine);
    Py_END_ALLOW_THREADS
}

PyDoc_STRVAR(close_doc, "close()\n--\n\nFails what is unfinished, ends the threads, gives all memory back. "
                        "A second call does nothing. RequestError while a Server serves it.");

static PyObject *engine_close(PyObject *object, PyObject *Py_UNUSED(none)) {
    if (((fs_py_engine *)object)->served)
        return fs_py_raise(PyType_GetModuleState(Py_TYPE(object)),
                           fs_fail(FS_REQUEST, "this engine is served by a Server; retire its model there first"));
    engine_shut((fs_py_engine *)object);
    Py_RETURN_NONE;
}

static void engine_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    engine_shut((fs_py_engine *)object);
    PyObject_Free(object);
    Py_DECREF((PyObject *)type);
}

PyDoc_STRVAR(
    submit_doc,
    "submit(rows, offsets, out, *, task, targets=None, target_offsets=None, pooling=(), normalize=False, "
    "dimensions=0)\n"
    "--\n\n"
    "Queues rows and returns a Job at once.\n\n"
    "rows: int32 [T], token ids of the rows one after the other, or float32 [T, width], their features; which of\n"
    "them is settings['rows']. offsets: int64 [rows + 1] from 0 to T. targets, target_offsets: the same for a model\n"
    "with a decoder (settings['targets']), one target for each row. out: float32, written in place: [rows, width]\n"
    "for task 'embed', [T, D] for 'hidden_states', T of the targets where there are some. None of these arrays may\n"
    "change until the job has finished. Wrong rows become Job.errors; wrong arguments raise RequestError, arrays of\n"
    "another type TypeError, offsets that do not fit ValueError.");

static fs_status job_wait(void *job, double seconds, int *done) { return fs_job_wait(job, seconds, done); }
static int64_t job_errors(void *job, const fs_row_error **out) { return fs_job_errors(job, out); }
static void job_cancel(void *job) { fs_job_cancel(job); }
static void job_free(void *job) { fs_job_free(job); }

static int64_t job_duplicates(const void *job) { return fs_job_duplicates(job); }

static const fs_py_job_kind local = { job_wait, job_errors, job_cancel, job_free, NULL, job_duplicates };

static PyObject *engine_submit(PyObject *object, PyObject *args, PyObject *kwargs) {
    fs_py_engine *self = (fs_py_engine *)object;
    fs_py_state *state = PyType_GetModuleState(Py_TYPE(object));
    PyObject *keep, *result;
    fs_request request;
    fs_job *job = NULL;
    fs_status st;
    if (fs_py_request_from(&request, &keep, args, kwargs) < 0) return NULL;
    if (fs_py_engine_enter(state, self) < 0) {
        Py_DECREF(keep);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    st = fs_engine_submit(self->engine, &request, &job);
    Py_END_ALLOW_THREADS
    fs_py_engine_leave(self);
    result = st == FS_OK ? fs_py_job_new(state, &local, job, self, keep) : fs_py_raise(state, st);
    Py_DECREF(keep);
    return result;
}

PyDoc_STRVAR(fileno_doc, "fileno()\n--\n\nAn eventfd that is readable when a job has finished since it was last read.");

static PyObject *engine_fileno(PyObject *object, PyObject *Py_UNUSED(none)) {
    fs_py_engine *self = (fs_py_engine *)object;
    fs_py_state *state = PyType_GetModuleState(Py_TYPE(object));
    if (fs_py_engine_enter(state, self) < 0) return NULL;
    int fd = fs_engine_fd(self->engine);
    fs_py_engine_leave(self);
    return PyLong_FromLong(fd);
}

static PyObject *device_stats(fs_py_state *state, fs_engine *engine, int device) {
    fs_device_stats d;
    fs_status st = fs_engine_device_stats(engine, device, &d);
    if (st != FS_OK) return fs_py_raise(state, st);
    return Py_BuildValue("{s:s,s:s,s:i,s:d,s:n,s:n,s:n,s:n,s:n,s:n}", "name", d.name, "numerics", d.numerics, "threads",
                         d.threads, "busy_seconds", d.busy_seconds, "limit", (Py_ssize_t)d.limit, "peak",
                         (Py_ssize_t)d.peak, "weights", (Py_ssize_t)d.used[FS_WEIGHTS], "workspace",
                         (Py_ssize_t)d.used[FS_WORKSPACE], "staging", (Py_ssize_t)d.used[FS_STAGING], "host",
                         (Py_ssize_t)d.used[FS_HOST]);
}

PyDoc_STRVAR(stats_doc, "stats()\n--\n\nCounts since the engine opened: rows, duplicate_rows, tokens, batches, "
                        "batch_tokens (room of one), failed_rows, queued_rows,\npasses over streamed layers, "
                        "streamed_bytes, open_seconds, replicas at work and failed_replicas, and for each of\n"
                        "`devices` its bytes by use and the seconds its threads were busy.");

static PyObject *engine_stats(PyObject *object, PyObject *Py_UNUSED(none)) {
    fs_py_engine *self = (fs_py_engine *)object;
    fs_py_state *state = PyType_GetModuleState(Py_TYPE(object));
    if (fs_py_engine_enter(state, self) < 0) return NULL;
    fs_engine_stats s = fs_engine_stats_read(self->engine);
    int count = fs_engine_device_count(self->engine);
    PyObject *devices = PyList_New(count);
    for (int i = 0; devices && i < count; i++) {
        PyObject *item = device_stats(state, self->engine, i);
        if (!item || PyList_SetItem(devices, i, item) < 0) Py_CLEAR(devices);
    }
    fs_py_engine_leave(self);
    if (!devices) return NULL;
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:i,s:i,s:d,s:N}", "rows", (long long)s.rows,
                         "duplicate_rows", (long long)s.duplicate_rows, "tokens", (long long)s.tokens, "batches",
                         (long long)s.batches, "batch_tokens", (long long)s.batch_tokens, "failed_rows",
                         (long long)s.failed_rows, "queued_rows", (long long)s.queued_rows, "passes",
                         (long long)s.passes, "streamed_bytes", (long long)s.streamed_bytes, "replicas", s.replicas,
                         "failed_replicas", s.failed_replicas, "open_seconds", s.open_seconds, "devices", devices);
}

static PyObject *engine_settings(PyObject *object, void *Py_UNUSED(closure)) {
    fs_py_engine *self = (fs_py_engine *)object;
    fs_py_state *state = PyType_GetModuleState(Py_TYPE(object));
    if (fs_py_engine_enter(state, self) < 0) return NULL;
    const fs_settings *s = fs_engine_settings(self->engine);
    static const char *const inputs[] = { [FS_IDS] = "ids", [FS_FEATURES] = "features" };
    PyObject *result = Py_BuildValue(
        "{s:s,s:s,s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:d,s:s,s:z,s:O,s:L,s:L,s:L}", "model_type", s->arch->model_type, "dtype",
        fs_dtype_name(s->dtype), "layers", (long long)s->L, "width", (long long)s->D, "heads", (long long)s->H,
        "head_width", (long long)s->E, "inner_width", (long long)s->F, "vocabulary", (long long)s->V, "positions",
        (long long)s->P, "eps", (double)s->eps, "rows", inputs[s->rows], "targets", inputs[s->targets], "any_length",
        s->any_length ? Py_True : Py_False, "token_types", (long long)(s->types > 1 ? s->types : 1), "labels",
        (long long)(s->head.count ? s->head.steps[s->head.count - 1].N : 0), "vector_width",
        (long long)(s->chain.count ? s->chain.steps[s->chain.count - 1].N : 0));
    fs_py_engine_leave(self);
    return result;
}

static PyObject *engine_placement(PyObject *object, void *Py_UNUSED(closure)) {
    fs_py_engine *self = (fs_py_engine *)object;
    fs_py_state *state = PyType_GetModuleState(Py_TYPE(object));
    if (fs_py_engine_enter(state, self) < 0) return NULL;
    int device_count = fs_engine_device_count(self->engine);
    PyObject *devices = PyList_New(device_count);
    for (int i = 0; devices && i < device_count; i++) {
        PyObject *item = device_stats(state, self->engine, i);
        if (!item || PyList_SetItem(devices, i, item) < 0) Py_CLEAR(devices);
    }
    PyObject *replicas = devices ? fs_py_replicas(fs_engine_plan(self->engine)) : NULL;
    PyObject *result = NULL;
    if (replicas)
        result = Py_BuildValue("{s:s,s:s,s:O,s:O}", "parallel", fs_engine_parallel(self->engine), "why",
                               fs_engine_plan_reason(self->engine), "devices", devices, "replicas", replicas);
    fs_py_engine_leave(self);
    Py_XDECREF(replicas);
    Py_XDECREF(devices);
    return result;
}

static PyObject *engine_numerics(PyObject *object, void *Py_UNUSED(closure)) {
    fs_py_engine *self = (fs_py_engine *)object;
    fs_py_state *state = PyType_GetModuleState(Py_TYPE(object));
    if (fs_py_engine_enter(state, self) < 0) return NULL;
    PyObject *text = PyUnicode_FromString(fs_engine_numerics(self->engine));
    fs_py_engine_leave(self);
    return text;
}

static PyMethodDef methods[] = {
    { "submit", (PyCFunction)(void (*)(void))engine_submit, METH_VARARGS | METH_KEYWORDS, submit_doc },
    { "fileno", engine_fileno, METH_NOARGS, fileno_doc },
    { "stats", engine_stats, METH_NOARGS, stats_doc },
    { "close", engine_close, METH_NOARGS, close_doc },
    { 0 },
};

static PyGetSetDef getters[] = {
    { "settings", engine_settings, NULL,
      "What config.json said: layers, width, heads, vocabulary, ...; `rows` and `targets` are 'ids', 'features' or "
      "None.",
      NULL },
    { "placement", engine_placement, NULL,
      "Which layers sit on which devices: parallel, why, devices (as in stats) and replicas.", NULL },
    { "numerics", engine_numerics, NULL, "Engines with the same id give the same row the same bits.", NULL },
    { 0 },
};

PyDoc_STRVAR(engine_doc,
             "Engine(*, config, tensors, files, name='', devices=('cpu',), dtype='auto', threads=0, max_memory=0,\n"
             "       cpu_path=None, plan=None, parallel=None, chain=())\n--\n\n"
             "A model on its devices. Loads with the GIL let go; raises CheckpointError, ConfigError, DeviceError or\n"
             "OutOfMemory with one sentence. See _core.pyi for the types of the arguments.");

static PyType_Slot slots[] = {
    { Py_tp_doc, (void *)engine_doc }, { Py_tp_init, engine_init }, { Py_tp_dealloc, engine_dealloc },
    { Py_tp_methods, methods },        { Py_tp_getset, getters },   { 0, NULL },
};

PyType_Spec fs_py_engine_spec = {
    .name = "firesteel._core.Engine",
    .basicsize = sizeof(fs_py_engine),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};
