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

int fs_py_errors_add(PyObject *module, fs_py_state *state) {
    state->Error = PyErr_NewExceptionWithDoc("firesteel.Error", "Base of all of firesteel's own errors.", NULL, NULL);
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
    /* The sentence may quote a file or a row that is not UTF-8. */
    PyObject *text = PyUnicode_DecodeUTF8(fs_error_text(), (Py_ssize_t)strlen(fs_error_text()), "replace");
    if (text) PyErr_SetObject(type, text);
    Py_XDECREF(text);
    return NULL;
}
