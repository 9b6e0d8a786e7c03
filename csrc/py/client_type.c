/* client_type.c - firesteel._core.Client: manager/client.h for a worker's Python. */
#include "manager/client.h"

#include "base/alloc.h"
#include "manager/packet.h"
#include "py/py.h"

#include <fcntl.h>

typedef struct {
    PyObject_HEAD
    fs_client *client;
} client_object;

/* NULL and an exception where __init__ has not run. */
static fs_client *client_of(PyObject *object) {
    fs_client *client = ((client_object *)object)->client;
    if (!client) PyErr_SetString(PyExc_ValueError, "this client was never made: call Client(build, patience)");
    return client;
}

static PyObject *raise_as(PyObject *object, fs_status st) {
    return fs_py_raise(PyType_GetModuleState(Py_TYPE(object)), st);
}

static int client_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "build", "patience", NULL };
    client_object *self = (client_object *)object;
    const char *build;
    double patience;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sd", names, &build, &patience)) return -1;
    if (self->client || !(patience > 0)) {
        PyErr_SetString(PyExc_ValueError, "a client is made once, and patience is more than 0 seconds");
        return -1;
    }
    fs_status st = fs_client_new(&self->client, build, patience);
    if (st != FS_OK) raise_as(object, st);
    return st == FS_OK ? 0 : -1;
}

static void client_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    fs_client *client = ((client_object *)object)->client;
    Py_BEGIN_ALLOW_THREADS
    fs_client_free(client);
    Py_END_ALLOW_THREADS
    PyObject_Free(object);
    Py_DECREF((PyObject *)type);
}

PyDoc_STRVAR(connect_doc,
             "connect(fd)\n--\n\nSays hello over a connected socket, of which a copy is kept. ManagerError with "
             "the manager's\nsentence where it refuses. Jobs of an earlier connection have failed; arrays of "
             "empty() stay.");

static PyObject *client_connect(PyObject *object, PyObject *args) {
    fs_client *client = client_of(object);
    int fd;
    fs_status st;
    if (!client || !PyArg_ParseTuple(args, "i", &fd)) return NULL;
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0) return PyErr_SetFromErrno(PyExc_OSError);
    Py_BEGIN_ALLOW_THREADS
    st = fs_client_connect(client, own);
    Py_END_ALLOW_THREADS
    if (st != FS_OK) return raise_as(object, st);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(disconnect_doc, "disconnect()\n--\n\nHangs up; jobs that are not done fail with ManagerError.");

static PyObject *client_disconnect(PyObject *object, PyObject *Py_UNUSED(none)) {
    fs_client *client = client_of(object);
    if (!client) return NULL;
    Py_BEGIN_ALLOW_THREADS
    fs_client_disconnect(client);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyDoc_STRVAR(ask_doc,
             "ask(body, fds=())\n--\n\nSends bytes and copies of descriptors, and waits for the manager's bytes. "
             "ManagerError where it dies.");

static PyObject *client_ask(PyObject *object, PyObject *args) {
    fs_client *client = client_of(object);
    const char *body;
    Py_ssize_t bytes, fd_count = 0;
    PyObject *sequence = NULL;
    int fds[FS_PACKET_FDS];
    char *answer = NULL;
    size_t answer_bytes = 0;
    fs_status st;
    if (!client || !PyArg_ParseTuple(args, "y#|O", &body, &bytes, &sequence)) return NULL;
    if (sequence && (fd_count = PySequence_Size(sequence)) < 0) return NULL;
    if (fd_count > FS_PACKET_FDS) {
        PyErr_Format(PyExc_ValueError, "an ask brings %zd files; at most %d go", fd_count, FS_PACKET_FDS);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < fd_count; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        fds[i] = item ? (int)PyLong_AsLong(item) : -1;
        Py_XDECREF(item);
        if (PyErr_Occurred()) return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    st = fs_client_ask(client, body, (size_t)bytes, fds, (int)fd_count, &answer, &answer_bytes);
    Py_END_ALLOW_THREADS
    if (st != FS_OK) return raise_as(object, st);
    PyObject *result = PyBytes_FromStringAndSize(answer, (Py_ssize_t)answer_bytes);
    fs_free(answer);
    return result;
}

/* -- arrays ------------------------------------------------------------------------------------------------------- */

/* A capsule of such memory; its context is the client, which its memory keeps alive. */
static void give_memory_back(PyObject *capsule) {
    fs_client_give(PyCapsule_GetContext(capsule), PyCapsule_GetPointer(capsule, "firesteel.memory"));
}

PyDoc_STRVAR(empty_doc,
             "empty(rows, width)\n--\n\nfloat32 [rows, width] in memory that the manager can write to: what submit "
             "takes as `out`.\nOutOfMemory where there is none, RequestError for more than 64 GiB.");

static PyObject *client_empty(PyObject *object, PyObject *args) {
    fs_client *client = client_of(object);
    Py_ssize_t rows, width;
    void *at;
    fs_status st;
    if (!client || !PyArg_ParseTuple(args, "nn", &rows, &width)) return NULL;
    if (rows < 0 || width < 1 || rows > PY_SSIZE_T_MAX / 4 / width) {
        PyErr_Format(PyExc_ValueError, "an array of [%zd, %zd] cannot be", rows, width);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    st = fs_client_take(client, (size_t)(rows * width) * sizeof(float), &at);
    Py_END_ALLOW_THREADS
    if (st != FS_OK) return raise_as(object, st);
    PyObject *capsule = PyCapsule_New(at, "firesteel.memory", NULL);
    if (!capsule) {
        fs_client_give(client, at);
        return NULL;
    }
    PyCapsule_SetContext(capsule, client);
    PyCapsule_SetDestructor(capsule, give_memory_back);
    return fs_py_float_array(at, rows, width, capsule);
}

/* -- jobs --------------------------------------------------------------------------------------------------------- */

static fs_status job_wait(void *job, double seconds, int *done) { return fs_client_job_wait(job, seconds, done); }
static int64_t job_errors(void *job, const fs_row_error **out) { return fs_client_job_errors(job, out); }
static void job_cancel(void *job) { fs_client_job_cancel(job); }
static void job_free(void *job) { fs_client_job_free(job); }
static int64_t job_hits(const void *job) { return fs_client_job_hits(job); }

static int64_t job_duplicates(const void *job) { return fs_client_job_duplicates(job); }

static const fs_py_job_kind remote = { job_wait, job_errors, job_cancel, job_free, job_hits, job_duplicates };

PyDoc_STRVAR(submit_doc,
             "submit(model, rows, offsets, out, *, task, ...)\n--\n\nAs Engine.submit, of the manager's `model` (a "
             "number). `out` is an array of empty(), or a slice of one;\nrows are copied before it returns.");

static PyObject *client_submit(PyObject *object, PyObject *args, PyObject *kwargs) {
    fs_client *client = client_of(object);
    PyObject *keep, *rest;
    fs_request request;
    fs_client_job *job = NULL;
    fs_status st;
    if (!client) return NULL;
    PyObject *first = PyTuple_Size(args) > 0 ? PyTuple_GetItem(args, 0) : NULL;
    if (!first || !PyLong_Check(first)) {
        PyErr_SetString(PyExc_TypeError, "submit's first argument is the number of a model");
        return NULL;
    }
    unsigned long long model = PyLong_AsUnsignedLongLong(first);
    if (PyErr_Occurred() || !(rest = PyTuple_GetSlice(args, 1, PyTuple_Size(args)))) return NULL;
    int good = fs_py_request_from(&request, &keep, rest, kwargs);
    Py_DECREF(rest);
    if (good < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    st = fs_client_submit(client, model, &request, &job);
    Py_END_ALLOW_THREADS
    PyObject *result = st == FS_OK ? fs_py_job_new(PyType_GetModuleState(Py_TYPE(object)), &remote, job, NULL, keep)
                                   : raise_as(object, st);
    Py_DECREF(keep);
    return result;
}

static PyObject *client_manager_pid(PyObject *object, void *Py_UNUSED(closure)) {
    fs_client *client = client_of(object);
    return client ? PyLong_FromLong(fs_client_manager_pid(client)) : NULL;
}

static PyMethodDef methods[] = {
    { "connect", client_connect, METH_VARARGS, connect_doc },
    { "disconnect", client_disconnect, METH_NOARGS, disconnect_doc },
    { "ask", client_ask, METH_VARARGS, ask_doc },
    { "empty", client_empty, METH_VARARGS, empty_doc },
    { "submit", (PyCFunction)(void (*)(void))client_submit, METH_VARARGS | METH_KEYWORDS, submit_doc },
    { 0 },
};

static PyGetSetDef getters[] = {
    { "manager_pid", client_manager_pid, NULL, "Of the manager that is connected; 0: none is.", NULL },
    { 0 },
};

PyDoc_STRVAR(client_doc,
             "Client(build, patience)\n--\n\n"
             "A worker's end of a manager's connection. A manager that says nothing for `patience` seconds is\n"
             "given up. Threads may share a client; a process forked from this one may not use it.");

static PyType_Slot slots[] = {
    { Py_tp_doc, (void *)client_doc }, { Py_tp_init, client_init }, { Py_tp_dealloc, client_dealloc },
    { Py_tp_methods, methods },        { Py_tp_getset, getters },   { 0, NULL },
};

PyType_Spec fs_py_client_spec = {
    .name = "firesteel._core.Client",
    .basicsize = sizeof(client_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};
