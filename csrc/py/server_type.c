/* server_type.c - firesteel._core.Server: manager/server.h for the manager's Python, which answers what is asked in JSON. */
#include "manager/server.h"

#include "base/alloc.h"
#include "py/py.h"

#include <math.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD
    fs_server *server; /* NULL once closed */
    PyObject *engines; /* {model: Engine} */
} server_object;

static fs_server *server_of(PyObject *object) {
    server_object *self = (server_object *)object;
    if (!self->server)
        fs_py_raise(PyType_GetModuleState(Py_TYPE(object)), fs_fail(FS_REQUEST, "this server was closed"));
    return self->server;
}

static int server_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "listening", "build", "store_bytes", NULL };
    server_object *self = (server_object *)object;
    const char *build;
    int listening;
    Py_ssize_t store_bytes = 0;
    fs_status st;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "is|n", names, &listening, &build, &store_bytes)) return -1;
    if (self->server || store_bytes < 0) {
        PyErr_SetString(PyExc_ValueError, "a server is opened once, and store_bytes is 0 or more");
        return -1;
    }
    self->engines = PyDict_New();
    if (!self->engines) return -1;
    const fs_server_options options = { .build = build, .store_bytes = (size_t)store_bytes };
    Py_BEGIN_ALLOW_THREADS
    st = fs_server_open(&self->server, listening, &options);
    Py_END_ALLOW_THREADS
    if (st == FS_OK) return 0;
    fs_py_raise(PyType_GetModuleState(Py_TYPE(object)), st);
    return -1;
}

static void let_engines_go(server_object *self) {
    PyObject *key, *value;
    Py_ssize_t at = 0;
    while (self->engines && PyDict_Next(self->engines, &at, &key, &value)) ((fs_py_engine *)value)->served--;
    Py_CLEAR(self->engines);
}

PyDoc_STRVAR(close_doc,
             "close()\n--\n\nHangs up on all workers and lets go of all engines. Not while another thread is "
             "in take(). A second call does nothing.");

static PyObject *server_close(PyObject *object, PyObject *Py_UNUSED(none)) {
    server_object *self = (server_object *)object;
    fs_server *server = self->server;
    self->server = NULL;
    Py_BEGIN_ALLOW_THREADS
    fs_server_close(server);
    Py_END_ALLOW_THREADS
    let_engines_go(self);
    Py_RETURN_NONE;
}

static void server_dealloc(PyObject *object) {
    server_object *self = (server_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    fs_server_close(self->server);
    let_engines_go(self);
    PyObject_Free(object);
    Py_DECREF((PyObject *)type);
}

/* The descriptors become Python's. */
static PyObject *as_tuple(fs_ask *a) {
    PyObject *fds = PyList_New(a->fd_count), *result = NULL;
    for (int i = 0; fds && i < a->fd_count; i++) {
        PyObject *fd = PyLong_FromLong(a->fds[i]);
        if (!fd || PyList_SetItem(fds, i, fd) < 0) Py_CLEAR(fds);
    }
    if (fds)
        result = Py_BuildValue("(KKy#N)", (unsigned long long)a->connection, (unsigned long long)a->serial, a->body,
                               (Py_ssize_t)a->bytes, fds);
    if (result) a->fd_count = 0;
    return result;
}

PyDoc_STRVAR(take_doc,
             "take(timeout)\n--\n\nThe oldest ask of a worker: (connection, serial, bytes, [descriptors]), which\n"
             "are the caller's to close; None where none came within `timeout` seconds.");

static PyObject *server_take(PyObject *object, PyObject *args) {
    fs_server *server = server_of(object);
    double timeout;
    fs_ask *ask = NULL;
    if (!server || !PyArg_ParseTuple(args, "d", &timeout)) return NULL;
    if (isnan(timeout)) {
        PyErr_SetString(PyExc_ValueError, "timeout is not a number; it takes seconds");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    fs_server_take(server, timeout, &ask);
    Py_END_ALLOW_THREADS
    if (!ask) Py_RETURN_NONE;
    PyObject *result = as_tuple(ask);
    fs_ask_free(ask);
    return result;
}

PyDoc_STRVAR(answer_doc,
             "answer(connection, serial, body)\n--\n\nSends bytes back to who asked; nothing where it has gone. "
             "RequestError: more than a packet has room for.");

static PyObject *server_answer(PyObject *object, PyObject *args) {
    fs_server *server = server_of(object);
    unsigned long long connection, serial;
    const char *body;
    Py_ssize_t bytes;
    fs_status st;
    if (!server || !PyArg_ParseTuple(args, "KKy#", &connection, &serial, &body, &bytes)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    st = fs_server_answer(server, connection, serial, body, (size_t)bytes);
    Py_END_ALLOW_THREADS
    if (st != FS_OK) return fs_py_raise(PyType_GetModuleState(Py_TYPE(object)), st);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(serve_doc,
             "serve(model, engine)\n--\n\nWorkers' rows for `model` (a number) go to the Engine, until retire(model).");

static PyObject *server_serve(PyObject *object, PyObject *args) {
    server_object *self = (server_object *)object;
    fs_py_state *state = PyType_GetModuleState(Py_TYPE(object));
    fs_server *server = server_of(object);
    unsigned long long model;
    PyObject *engine_object;
    if (!server || !PyArg_ParseTuple(args, "KO!", &model, (PyTypeObject *)state->EngineType, &engine_object))
        return NULL;
    fs_py_engine *engine = (fs_py_engine *)engine_object;
    if (fs_py_engine_enter(state, engine) < 0) return NULL;
    fs_status st = fs_server_serve(server, model, engine->engine);
    fs_py_engine_leave(engine);
    if (st != FS_OK) return fs_py_raise(state, st);
    PyObject *key = PyLong_FromUnsignedLongLong(model);
    engine->served++;
    if (!key || PyDict_SetItem(self->engines, key, engine_object) < 0) {
        fs_server_retire(server, model);
        engine->served--;
        Py_XDECREF(key);
        return NULL;
    }
    Py_DECREF(key);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(retire_doc,
             "retire(model)\n--\n\nThe model's rows fail from now on; when it returns its engine may be closed.");

static PyObject *server_retire(PyObject *object, PyObject *args) {
    server_object *self = (server_object *)object;
    fs_server *server = server_of(object);
    unsigned long long model;
    if (!server || !PyArg_ParseTuple(args, "K", &model)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    fs_server_retire(server, model);
    Py_END_ALLOW_THREADS
    PyObject *key = PyLong_FromUnsignedLongLong(model);
    PyObject *engine = key ? PyDict_GetItemWithError(self->engines, key) : NULL;
    if (engine) {
        ((fs_py_engine *)engine)->served--;
        PyDict_DelItem(self->engines, key);
    }
    Py_XDECREF(key);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(use_doc,
             "use(model)\n--\n\n(rows of the model that are waiting or being computed, seconds since one was done)");

static PyObject *server_use(PyObject *object, PyObject *args) {
    fs_server *server = server_of(object);
    unsigned long long model;
    if (!server || !PyArg_ParseTuple(args, "K", &model)) return NULL;
    double idle_seconds;
    int64_t rows = fs_server_use_of(server, model, &idle_seconds);
    return Py_BuildValue("(Ld)", (long long)rows, idle_seconds);
}

PyDoc_STRVAR(clients_doc,
             "clients()\n--\n\nWorkers that are connected: connection, pid, uid, jobs and rows not done yet, "
             "waiting_rows (of these not given to an engine), done_rows, hits, duplicates.");

static PyObject *server_clients(PyObject *object, PyObject *Py_UNUSED(none)) {
    enum { ROOM = 4096 };
    fs_server *server = server_of(object);
    fs_client_info *all = NULL;
    if (!server) return NULL;
    if (fs_alloc(&all, ROOM, sizeof *all) != FS_OK) return PyErr_NoMemory();
    int n = fs_server_clients(server, all, ROOM);
    if (n > ROOM) n = ROOM;
    PyObject *list = PyList_New(n);
    for (int i = 0; list && i < n; i++) {
        const fs_client_info *c = &all[i];
        PyObject *item =
            Py_BuildValue("{s:K,s:i,s:i,s:L,s:L,s:L,s:L,s:L,s:L}", "connection", (unsigned long long)c->connection,
                          "pid", c->pid, "uid", c->uid, "jobs", (long long)c->jobs, "rows", (long long)c->rows,
                          "waiting_rows", (long long)c->waiting_rows, "done_rows", (long long)c->done_rows, "hits",
                          (long long)c->hits, "duplicates", (long long)c->duplicates);
        if (!item || PyList_SetItem(list, i, item) < 0) Py_CLEAR(list);
    }
    fs_free(all);
    return list;
}

PyDoc_STRVAR(stats_doc,
             "stats()\n--\n\nrows, hits (of these known from before), duplicates (copied from an equal row) and "
             "jobs done, connections refused, waiting_rows (not given to an engine), running_rows, store_bytes,"
             " idle_seconds since rows were last seen.");

static PyObject *server_stats(PyObject *object, PyObject *Py_UNUSED(none)) {
    fs_server *server = server_of(object);
    if (!server) return NULL;
    fs_server_stats s = fs_server_stats_read(server);
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:n,s:d}", "rows", (long long)s.rows, "hits", (long long)s.hits,
                         "duplicates", (long long)s.duplicates, "jobs", (long long)s.jobs, "refused",
                         (long long)s.refused, "waiting_rows", (long long)s.waiting_rows, "running_rows",
                         (long long)s.running_rows, "store_bytes", (Py_ssize_t)s.store_bytes, "idle_seconds",
                         s.idle_seconds);
}

static PyMethodDef methods[] = {
    { "take", server_take, METH_VARARGS, take_doc },
    { "answer", server_answer, METH_VARARGS, answer_doc },
    { "serve", server_serve, METH_VARARGS, serve_doc },
    { "retire", server_retire, METH_VARARGS, retire_doc },
    { "use", server_use, METH_VARARGS, use_doc },
    { "clients", server_clients, METH_NOARGS, clients_doc },
    { "stats", server_stats, METH_NOARGS, stats_doc },
    { "close", server_close, METH_NOARGS, close_doc },
    { 0 },
};

PyDoc_STRVAR(
    server_doc,
    "Server(listening, build, store_bytes=0)\n--\n\n"
    "The manager's end of its workers' connections: a thread between them and engines. `listening` is the\n"
    "descriptor of a unix socket of packets that listens; workers of another `build` are refused; store_bytes of\n"
    "results are kept for rows that come again.");

static PyType_Slot slots[] = {
    { Py_tp_doc, (void *)server_doc },
    { Py_tp_init, server_init },
    { Py_tp_dealloc, server_dealloc },
    { Py_tp_methods, methods },
    { 0, NULL },
};

PyType_Spec fs_py_server_spec = {
    .name = "firesteel._core.Server",
    .basicsize = sizeof(server_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};
