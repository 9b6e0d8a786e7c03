#include "py/py.h"

#include <string.h>

static const struct {
    fs_status status;
    const char *qualified, *name, *meaning;
} rows[] = {
#define X(code, exception, meaning) { code, "firesteel." #exception, #exception, meaning },
#include "base/codes.def"
#undef X
};

/* Every sentence of ours comes by here, made in C or in Python, and leaves as text that any messenger takes. */
static int error_init(PyObject *self, PyObject *args, PyObject *kwargs) {
    const Py_ssize_t count = PyTuple_Size(args);
    PyObject *plain = PyTuple_New(count);
    for (Py_ssize_t i = 0; plain && i < count; i++) {
        PyObject *item = PyTuple_GetItem(args, i);
        item = PyUnicode_Check(item) ? fs_py_plain(item) : Py_NewRef(item);
        if (!item || PyTuple_SetItem(plain, i, item) < 0) Py_CLEAR(plain);
    }
    const initproc init = (initproc)PyType_GetSlot((PyTypeObject *)PyExc_Exception, Py_tp_init);
    const int st = plain ? init(self, plain, kwargs) : -1;
    Py_XDECREF(plain);
    return st;
}

static PyType_Slot error_slots[] = {
    { Py_tp_doc, (void *)"Base of all of firesteel's own errors." },
    { Py_tp_init, error_init },
    { 0, NULL },
};

static PyType_Spec error_spec = {
    .name = "firesteel.Error",
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = error_slots,
};

int fs_py_errors_add(PyObject *module, fs_py_state *state) {
    state->Error = PyType_FromModuleAndSpec(module, &error_spec, PyExc_Exception);
    if (!state->Error || PyModule_AddObjectRef(module, "Error", state->Error) < 0) return -1;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        PyObject **slot = &state->exceptions[rows[i].status];
        for (size_t k = 0; k < i && !*slot; k++) /* two codes may share an exception */
            if (!strcmp(rows[k].name, rows[i].name)) *slot = Py_NewRef(state->exceptions[rows[k].status]);
        if (*slot) continue;
        *slot = PyErr_NewExceptionWithDoc(rows[i].qualified, rows[i].meaning, state->Error, NULL);
        if (!*slot || PyModule_AddObjectRef(module, rows[i].name, *slot) < 0) return -1;
    }
    return 0;
}

PyObject *fs_py_raise(fs_py_state *state, fs_status status) {
    PyObject *type = status > FS_OK && status < FS_STATUS_COUNT ? state->exceptions[status] : state->Error;
    PyObject *text = fs_py_text(fs_error_text());
    if (text) PyErr_SetObject(type, text);
    Py_XDECREF(text);
    return NULL;
}
