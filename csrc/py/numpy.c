/* numpy.c - the only file that includes NumPy's headers. Built against any NumPy, runs on 1.23 and later. */
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#define NPY_TARGET_VERSION    NPY_1_23_API_VERSION
#include "py/py.h"

#include <numpy/arrayobject.h>

int fs_py_numpy_import(void) {
    import_array1(-1);
    return 0;
}

static int read_array(PyObject *object, int type, const char *type_name, const char *what, int writeable, void **data,
                      Py_ssize_t *count) {
    PyArrayObject *array = (PyArrayObject *)object;
    if (!PyArray_Check(object) || PyArray_TYPE(array) != type || !PyArray_IS_C_CONTIGUOUS(array) ||
        !PyArray_ISALIGNED(array) || PyArray_ISBYTESWAPPED(array)) {
        PyErr_Format(PyExc_TypeError, "%s must be a C-contiguous NumPy array of %s", what, type_name);
        return -1;
    }
    if (writeable && !PyArray_ISWRITEABLE(array)) {
        PyErr_Format(PyExc_TypeError, "%s is read-only; results are written into it", what);
        return -1;
    }
    *data = PyArray_DATA(array);
    *count = PyArray_SIZE(array);
    return 0;
}

int fs_py_int32_array(PyObject *array, const char *what, const int32_t **data, Py_ssize_t *count) {
    return read_array(array, NPY_INT32, "int32", what, 0, (void **)data, count);
}

int fs_py_int64_array(PyObject *array, const char *what, const int64_t **data, Py_ssize_t *count) {
    return read_array(array, NPY_INT64, "int64", what, 0, (void **)data, count);
}

int fs_py_tokens(PyObject *object, const char *what, fs_tokens *out, Py_ssize_t *count) {
    PyArrayObject *array = (PyArrayObject *)object;
    if (PyArray_Check(object) && PyArray_NDIM(array) == 1) return fs_py_int32_array(object, what, &out->ids, count);
    if (!PyArray_Check(object) || PyArray_NDIM(array) != 2) {
        PyErr_Format(PyExc_TypeError,
                     "%s must be an array of token ids, int32 [tokens], or of features, float32 "
                     "[tokens, width]",
                     what);
        return -1;
    }
    if (read_array(object, NPY_FLOAT32, "float32", what, 0, (void **)&out->features, count) < 0) return -1;
    *count = PyArray_DIM(array, 0);
    out->width = PyArray_DIM(array, 1);
    return 0;
}

PyObject *fs_py_float_array(float *data, Py_ssize_t rows, Py_ssize_t width, PyObject *owner) {
    npy_intp shape[] = { rows, width };
    PyObject *array = PyArray_SimpleNewFromData(2, shape, NPY_FLOAT32, data);
    if (!array) {
        Py_DECREF(owner);
        return NULL;
    }
    if (PyArray_SetBaseObject((PyArrayObject *)array, owner) < 0) Py_CLEAR(array); /* owner is gone in any case */
    return array;
}

int fs_py_float_out(PyObject *array, const char *what, float **data, Py_ssize_t *count) {
    return read_array(array, NPY_FLOAT32, "float32", what, 1, (void **)data, count);
}
