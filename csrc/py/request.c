/* request.c - the arguments of submit(), of an engine and of a client. */
#include "py/py.h"

#include <string.h>

/* Tokens and their offsets, which must end where the tokens do. */
static int side_from(fs_tokens *out, int64_t *rows, PyObject *tokens, PyObject *offsets, const char *what,
                     const char *offsets_name) {
    Py_ssize_t count, offset_count;
    if (fs_py_tokens(tokens, what, out, &count) < 0 ||
        fs_py_int64_array(offsets, offsets_name, &out->offsets, &offset_count) < 0)
        return -1;
    if (offset_count < 1 || out->offsets[0] != 0 || out->offsets[offset_count - 1] != count) {
        PyErr_Format(PyExc_ValueError, "%s must run from 0 to the %zd tokens, with one more entry than rows",
                     offsets_name, count);
        return -1;
    }
    *rows = offset_count - 1;
    return 0;
}

static int targets_from(fs_request *request, PyObject *targets, PyObject *offsets) {
    int64_t rows;
    if (targets == Py_None && offsets == Py_None) return 0;
    if (side_from(&request->targets, &rows, targets, offsets, "targets", "target_offsets") < 0) return -1;
    if (rows == request->rows) return 0;
    PyErr_Format(PyExc_ValueError, "there are %lld targets and %lld rows; each row has one", (long long)rows,
                 (long long)request->rows);
    return -1;
}

int fs_py_request_from(fs_request *out, PyObject **keep, PyObject *args, PyObject *kwargs) {
    static char *names[] = { "rows",           "offsets", "out",       "task",       "targets",
                             "target_offsets", "pooling", "normalize", "dimensions", NULL };
    PyObject *rows, *offsets, *array, *targets = Py_None, *target_offsets = Py_None, *pooling = NULL;
    const char *task = NULL;
    int normalize = 0;
    long long dimensions = 0;
    Py_ssize_t out_count;
    memset(out, 0, sizeof *out);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$sOOOpL", names, &rows, &offsets, &array, &task, &targets,
                                     &target_offsets, &pooling, &normalize, &dimensions))
        return -1;
    if (!task) {
        PyErr_SetString(PyExc_TypeError, "submit needs task='embed', task='classify' or task='hidden_states'");
        return -1;
    }
    if (side_from(&out->source, &out->rows, rows, offsets, "rows", "offsets") < 0 ||
        targets_from(out, targets, target_offsets) < 0 || fs_py_float_out(array, "out", &out->out, &out_count) < 0 ||
        fs_py_task_from(&out->task, task, pooling, normalize, dimensions) < 0)
        return -1;
    out->out_floats = out_count;
    *keep = PyTuple_Pack(5, rows, offsets, array, targets, target_offsets);
    return *keep ? 0 : -1;
}
