/* plan.c - what is told before there is a device: firesteel._core.plan, a survey (placement/survey.h) as a dict, and
 * firesteel._core.check_options. */
#include "py/py.h"

#include "base/alloc.h"
#include "placement/survey.h"

static PyObject *stage_dict(const fs_stage_plan *stage) {
    PyObject *devices = PyList_New(stage->ranks);
    for (int r = 0; devices && r < stage->ranks; r++)
        if (PyList_SetItem(devices, r, PyLong_FromLong(stage->devices[r])) < 0) Py_CLEAR(devices);
    if (!devices) return NULL;
    return Py_BuildValue("{s:i,s:i,s:N,s:i}", "first_layer", stage->first_layer, "last_layer", stage->last_layer,
                         "devices", devices, "window", stage->window);
}

PyObject *fs_py_replicas(const fs_plan *plan) {
    PyObject *replicas = PyList_New(plan->replica_count);
    for (int i = 0; replicas && i < plan->replica_count; i++) {
        const fs_replica_plan *r = &plan->replicas[i];
        PyObject *stages = PyList_New(r->stage_count);
        for (int k = 0; stages && k < r->stage_count; k++) {
            PyObject *stage = stage_dict(&r->stages[k]);
            if (!stage || PyList_SetItem(stages, k, stage) < 0) Py_CLEAR(stages);
        }
        if (!stages || PyList_SetItem(replicas, i, stages) < 0) Py_CLEAR(replicas);
    }
    return replicas;
}

static PyObject *devices_list(const fs_survey *s) {
    PyObject *list = PyList_New(s->device_count);
    for (int d = 0; list && d < s->device_count; d++) {
        const fs_need *n = &s->needs[d];
        PyObject *item = Py_BuildValue("{s:s,s:n,s:n,s:n,s:n}", "name", s->devices[d]->name, "limit",
                                       (Py_ssize_t)s->devices[d]->budget.limit, "weights", (Py_ssize_t)n->weights,
                                       "workspace", (Py_ssize_t)n->workspace, "staging", (Py_ssize_t)n->staging);
        if (!item || PyList_SetItem(list, d, item) < 0) Py_CLEAR(list);
    }
    return list;
}

static PyObject *costs_list(const fs_survey *s) {
    PyObject *list = PyList_New(s->plan.stage_count);
    for (int i = 0; list && i < s->plan.stage_count; i++)
        if (PyList_SetItem(list, i, PyFloat_FromDouble(s->stage_cost[i])) < 0) Py_CLEAR(list);
    return list;
}

static PyObject *survey_dict(const fs_survey *s) {
    char parallel[FS_PARALLEL_TEXT];
    PyObject *devices = devices_list(s), *costs = devices ? costs_list(s) : NULL;
    PyObject *replicas = costs ? fs_py_replicas(&s->plan) : NULL, *result = NULL;
    if (replicas)
        result = Py_BuildValue("{s:s,s:s,s:O,s:s,s:i,s:i,s:L,s:n,s:L,s:i,s:O,s:O,s:O}", "parallel",
                               fs_parallel_text(&s->choice.parallel, parallel), "why", s->choice.why, "fits",
                               s->choice.fits ? Py_True : Py_False, "dtype", fs_dtype_name(s->set.dtype), "layers",
                               (int)s->set.L, "heads", (int)s->set.H, "inner_width", (long long)s->set.F, "weights",
                               (Py_ssize_t)s->whole, "batch_tokens", (long long)s->capacity.batch_tokens, "slots",
                               s->capacity.slots, "devices", devices, "replicas", replicas, "stage_costs", costs);
    Py_XDECREF(replicas);
    Py_XDECREF(costs);
    Py_XDECREF(devices);
    return result;
}

static size_t *sizes_from(PyObject *sequence, int *count) {
    Py_ssize_t n = PySequence_Size(sequence);
    size_t *sizes;
    if (n < 0) return NULL;
    if (n > FS_DEVICES_MAX) {
        PyErr_Format(PyExc_ValueError, "memory has %zd sizes; at most %d belong there", n, FS_DEVICES_MAX);
        return NULL;
    }
    if (fs_alloc(&sizes, (size_t)n, sizeof *sizes) != FS_OK) return (size_t *)PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        long long bytes = item ? PyLong_AsLongLong(item) : -1;
        Py_XDECREF(item);
        if (bytes < 0 && !PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "memory has %lld bytes", bytes);
        if (PyErr_Occurred()) {
            fs_free(sizes);
            return NULL;
        }
        sizes[i] = (size_t)bytes;
    }
    *count = (int)n;
    return sizes;
}

static PyObject *survey(PyObject *module, const fs_checkpoint *c, const fs_survey_options *options) {
    fs_survey s;
    fs_status st = fs_survey_open(&s, c, options);
    PyObject *result = st == FS_OK ? survey_dict(&s) : fs_py_raise(fs_py_state_of(module), st);
    fs_survey_close(&s);
    return result;
}

const char fs_py_plan_doc[] = PyDoc_STR(
    "plan(*, config, tensors=(), devices=('auto',), memory=(), dtype='auto', parallel=None, cpu_path=None,\n"
    "     name='config', chain=())\n"
    "--\n\n"
    "Where a model would go, from its config alone: no device is opened, no weight read. memory: bytes of all\n"
    "devices or of each, 0 for what the host has. name: the model's folder, which sentences name. Raises ConfigError "
    "for options that no model could take; a\n"
    "model that does not fit is told in 'fits' and 'why'.");

PyObject *fs_py_plan(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "config",   "tensors",  "devices", "memory", "dtype",
                             "parallel", "cpu_path", "name",    "chain",  NULL };
    PyObject *config = NULL, *tensors = NULL, *chain = NULL, *devices = NULL, *memory = NULL, *result = NULL;
    const char *name = "config";
    fs_survey_options o = { 0 };
    fs_py_checkpoint c;
    const char **listed = NULL;
    size_t *sizes = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOOzzzsO", names, &config, &tensors, &devices, &memory, &o.dtype,
                                     &o.parallel, &o.cpu_path, &name, &chain))
        return NULL;
    if (!config) {
        PyErr_SetString(PyExc_TypeError, "plan needs config=");
        return NULL;
    }
    if (fs_py_checkpoint_from(&c, config, tensors, NULL, chain, name) < 0) return NULL;
    int ready = !devices || fs_py_strings_from(&listed, &o.device_count, devices, "devices", c.keep) == 0;
    if (ready && memory) ready = (sizes = sizes_from(memory, &o.memory_count)) != NULL;
    o.devices = listed;
    o.memory = sizes;
    if (ready) result = survey(module, &c.checkpoint, &o);
    fs_free(sizes);
    fs_free(listed);
    fs_py_checkpoint_clear(&c);
    return result;
}

const char fs_py_check_options_doc[] = PyDoc_STR(
    "check_options(*, devices=('auto',), parallel=None, dtype='auto', cpu_path=None, threads=0, config=None,\n"
    "              name='config')\n"
    "--\n\n"
    "Raises the ConfigError that Engine would raise for these options on any machine; asks none what it has, so\n"
    "'auto' and 'cuda' devices may be as many as `parallel` needs. config: of the model, for numbers that it cannot\n"
    "be cut into; None: any model. name: the model's folder, which sentences name. ValueError where threads is "
    "negative.");

PyObject *fs_py_check_options(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "devices", "parallel", "dtype", "cpu_path", "threads", "config", "name", NULL };
    PyObject *devices = NULL, *config = Py_None, *none = NULL;
    const char *name = "config";
    fs_engine_options o = { 0 };
    fs_py_checkpoint c = { 0 };
    const char **listed = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OzzziOs", names, &devices, &o.parallel, &o.dtype, &o.cpu_path,
                                     &o.threads, &config, &name))
        return NULL;
    if (o.threads < 0) {
        PyErr_Format(PyExc_ValueError, "threads is %d, which cannot be negative", o.threads);
        return NULL;
    }
    PyObject *keep = PyList_New(0);
    int ready = keep && (!devices || fs_py_strings_from(&listed, &o.device_count, devices, "devices", keep) == 0);
    if (ready && config != Py_None) ready = fs_py_checkpoint_from(&c, config, NULL, NULL, NULL, name) == 0;
    o.devices = listed;
    if (ready) {
        fs_status st = fs_engine_check(&o, config == Py_None ? NULL : &c.checkpoint);
        none = st == FS_OK ? Py_NewRef(Py_None) : fs_py_raise(fs_py_state_of(module), st);
    }
    fs_py_checkpoint_clear(&c);
    fs_free(listed);
    Py_XDECREF(keep);
    return none;
}
