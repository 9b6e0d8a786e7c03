/* job_type.c - firesteel._core.Job: rows that were submitted, to an engine or to a manager. Keeps the engine and the
 * arrays alive while C uses them. */
#include "py/py.h"

#include <math.h>

#define SIGNAL_SECONDS 0.05 /* how often a waiting call looks for Ctrl-C and for close() from another thread */

typedef struct {
    PyObject_HEAD
    const fs_py_job_kind *kind;
    void *job;
    fs_py_engine *engine; /* NULL: a manager's */
    PyObject *keep;
} job_object;

PyObject *fs_py_job_new(fs_py_state *state, const fs_py_job_kind *kind, void *job, fs_py_engine *engine,
                        PyObject *keep) {
    job_object *self = PyObject_New(job_object, (PyTypeObject *)state->JobType);
    if (!self) {
        kind->free(job);
        return NULL;
    }
    self->kind = kind;
    self->job = job;
    self->engine = (fs_py_engine *)Py_XNewRef((PyObject *)engine);
    self->keep = Py_NewRef(keep);
    return (PyObject *)self;
}

static void job_dealloc(PyObject *object) {
    job_object *self = (job_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_BEGIN_ALLOW_THREADS
    self->kind->free(self->job);
    Py_END_ALLOW_THREADS
    Py_XDECREF((PyObject *)self->engine);
    Py_XDECREF(self->keep);
    PyObject_Free(object);
    Py_DECREF((PyObject *)type);
}

/* One slice of waiting: < 0 raised, 0 not finished, 1 finished. */
static int wait_slice(job_object *self, fs_py_state *state, double seconds) {
    int done = 0;
    fs_status st;
    if (self->engine && fs_py_engine_enter(state, self->engine) < 0) return -1;
    Py_BEGIN_ALLOW_THREADS
    st = self->kind->wait(self->job, seconds, &done);
    Py_END_ALLOW_THREADS
    if (self->engine) fs_py_engine_leave(self->engine);
    if (st != FS_OK) {
        fs_py_raise(state, st);
        return -1;
    }
    return done;
}

PyDoc_STRVAR(wait_doc,
             "wait(timeout=-1.0)\n--\n\n"
             "True when the job has finished, False when `timeout` seconds (< 0: no limit) ran out before.\n\n"
             "Raises what failed the job: DeviceError, OutOfMemory, ManagerError, or RequestError after a cancel.\n"
             "Lets other threads run; Ctrl-C interrupts it.");

static PyObject *job_wait(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "timeout", NULL };
    job_object *self = (job_object *)object;
    fs_py_state *state = PyType_GetModuleState(Py_TYPE(object));
    double timeout = -1.0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|d", names, &timeout)) return NULL;
    if (isnan(timeout)) {
        PyErr_SetString(PyExc_ValueError,
                        "timeout is not a number; it takes seconds, or a negative number for no limit");
        return NULL;
    }
    for (;;) {
        double slice = timeout < 0 || timeout > SIGNAL_SECONDS ? SIGNAL_SECONDS : timeout;
        int done = wait_slice(self, state, slice);
        if (done < 0 || PyErr_CheckSignals() < 0) return NULL;
        if (done) Py_RETURN_TRUE;
        if (timeout >= 0 && (timeout -= slice) <= 0) Py_RETURN_FALSE;
    }
}

PyDoc_STRVAR(cancel_doc, "cancel()\n--\n\nTakes the job's rows back. When it returns nothing writes to `out` any more; "
                         "wait() then raises RequestError, unless the job had finished.");

static PyObject *job_cancel(PyObject *object, PyObject *Py_UNUSED(none)) {
    job_object *self = (job_object *)object;
    Py_BEGIN_ALLOW_THREADS
    self->kind->cancel(self->job);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *job_errors(PyObject *object, void *Py_UNUSED(closure)) {
    const fs_row_error *errors;
    job_object *self = (job_object *)object;
    int64_t n = self->kind->errors(self->job, &errors);
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (int64_t i = 0; list && i < n; i++) {
        PyObject *item = Py_BuildValue("(LsN)", (long long)errors[i].row, fs_row_code_name(errors[i].code),
                                       fs_py_text(errors[i].text));
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) < 0) Py_CLEAR(list);
    }
    return list;
}

static PyObject *job_hits(PyObject *object, void *Py_UNUSED(closure)) {
    job_object *self = (job_object *)object;
    return PyLong_FromLongLong(self->kind->hits ? (long long)self->kind->hits(self->job) : 0);
}

static PyObject *job_duplicates(PyObject *object, void *Py_UNUSED(closure)) {
    job_object *self = (job_object *)object;
    return PyLong_FromLongLong((long long)self->kind->duplicates(self->job));
}

static PyMethodDef methods[] = {
    { "wait", (PyCFunction)(void (*)(void))job_wait, METH_VARARGS | METH_KEYWORDS, wait_doc },
    { "cancel", job_cancel, METH_NOARGS, cancel_doc },
    { 0 },
};

static PyGetSetDef getters[] = {
    { "errors", job_errors, NULL,
      "[(row, code, sentence)] of the rows that were not computed, once the job is finished.", NULL },
    { "hits", job_hits, NULL, "Rows that a manager knew from before and did not compute, once the job is finished.",
      NULL },
    { "duplicates", job_duplicates, NULL, "Rows that were copied from an equal row, once the job is finished.", NULL },
    { 0 },
};

static PyType_Slot slots[] = {
    { Py_tp_doc, (void *)"Rows on their way through an engine; made by Engine.submit or Client.submit." },
    { Py_tp_dealloc, job_dealloc },
    { Py_tp_methods, methods },
    { Py_tp_getset, getters },
    { 0, NULL },
};

PyType_Spec fs_py_job_spec = {
    .name = "firesteel._core.Job",
    .basicsize = sizeof(job_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slots,
};
