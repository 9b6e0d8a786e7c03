/* info.c - module functions that tell what there is, without opening it, and the golden trace. */
#include "py/py.h"

#include "backends/cpu/kernels.h"
#include "base/alloc.h"
#include "base/host.h"
#include "base/knobs.h"

/* Appends `item` (stolen; NULL passes a failure on) to `list`. */
static int append(PyObject *list, PyObject *item) {
    int st = item ? PyList_Append(list, item) : -1;
    Py_XDECREF(item);
    return st;
}

static PyObject *names_list(const char *const *names) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && names[i]; i++)
        if (append(list, PyUnicode_FromString(names[i])) < 0) Py_CLEAR(list);
    return list;
}

PyDoc_STRVAR(architectures_doc, "architectures()\n--\n\n[{'model_type', 'architectures'}] that checkpoints may have.");

static PyObject *architectures(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && fs_archs[i]; i++)
        if (append(list, Py_BuildValue("{s:s,s:N}", "model_type", fs_archs[i]->model_type, "architectures",
                                       names_list(fs_archs[i]->names))) < 0)
            Py_CLEAR(list);
    return list;
}

PyDoc_STRVAR(devices_doc, "devices()\n--\n\n[{'backend', 'count'}] of what could be opened; nothing is opened.");

static PyObject *devices(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && fs_backends[i]; i++) {
        if (fs_backends[i] == &fs_measure_backend) continue; /* computes nothing */
        if (append(list,
                   Py_BuildValue("{s:s,s:i}", "backend", fs_backends[i]->name, "count", fs_backends[i]->count())) < 0)
            Py_CLEAR(list);
    }
    return list;
}

/* [(name, None or why it cannot run here)], best first */
static PyObject *kernel_paths(void) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && fs_cpu_paths[i]; i++)
        if (append(list, Py_BuildValue("(sz)", fs_cpu_paths[i]->name, fs_cpu_path_missing(fs_cpu_paths[i]))) < 0)
            Py_CLEAR(list);
    return list;
}

PyDoc_STRVAR(host_doc,
             "host()\n--\n\nWhat this process may use: cores, affinity, quota (CPUs, 0: none), memory in bytes\n"
             "(total, available, cgroup_limit, address_limit; 0: none), and `paths`, the CPU kernel paths\n"
             "best first as (name, None or why it cannot run here).");

static PyObject *host(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    fs_host h = fs_host_read();
    PyObject *paths = kernel_paths();
    if (!paths) return NULL;
    return Py_BuildValue("{s:i,s:i,s:d,s:n,s:n,s:n,s:n,s:N}", "cores", h.cores, "affinity", h.affinity, "quota",
                         h.quota, "total", (Py_ssize_t)h.total, "available", (Py_ssize_t)h.available, "cgroup_limit",
                         (Py_ssize_t)h.cgroup_limit, "address_limit", (Py_ssize_t)h.address_limit, "paths", paths);
}

PyDoc_STRVAR(knobs_doc, "knobs()\n--\n\n[{'name', 'default', 'meaning'}]: FIRESTEEL_<name> in the environment.");

static PyObject *knobs(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < FS_KNOB_COUNT; i++)
        if (append(list, Py_BuildValue("{s:s,s:s,s:s}", "name", fs_knobs[i].name, "default", fs_knobs[i].preset,
                                       "meaning", fs_knobs[i].meaning)) < 0)
            Py_CLEAR(list);
    return list;
}

PyDoc_STRVAR(row_codes_doc,
             "row_codes()\n--\n\n[{'code', 'meaning'}]: faults of one row, which may become a null cell.");

static PyObject *row_codes(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    static const char *const rows[][2] = {
#define X(name, meaning) { #name, meaning },
#include "base/row_codes.def"
#undef X
    };
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < sizeof rows / sizeof *rows; i++)
        if (append(list, Py_BuildValue("{s:s,s:s}", "code", rows[i][0], "meaning", rows[i][1])) < 0) Py_CLEAR(list);
    return list;
}

static int64_t *lengths_from(PyObject *sequence, Py_ssize_t *count) {
    *count = PySequence_Size(sequence);
    if (*count < 0) return NULL;
    int64_t *lengths;
    if (fs_alloc(&lengths, (size_t)*count, sizeof *lengths) != FS_OK) return (int64_t *)PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < *count; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        lengths[i] = item ? PyLong_AsLongLong(item) : -1;
        Py_XDECREF(item);
        if (PyErr_Occurred()) {
            fs_free(lengths);
            return NULL;
        }
    }
    return lengths;
}

PyDoc_STRVAR(trace_doc, "trace(config, lengths)\n--\n\n"
                        "The ops that one batch of rows of these lengths (tokens) runs when it is embedded with mean\n"
                        "pooling, a line each, from the measure backend: no weights are read. Raises ConfigError.");

static PyObject *trace(PyObject *module, PyObject *args) {
    PyObject *config, *sequence, *result = NULL;
    Py_ssize_t count;
    fs_py_checkpoint c;
    fs_settings settings;
    fs_task task = { .kind = FS_TASK_EMBED, .pooling_count = 1, .pooling = { FS_POOL_MEAN }, .normalize = 1 };
    char *text = NULL;
    if (!PyArg_ParseTuple(args, "OO", &config, &sequence)) return NULL;
    int64_t *lengths = lengths_from(sequence, &count);
    if (!lengths) return NULL;
    if (fs_py_checkpoint_from(&c, config, NULL, NULL, "config") == 0) {
        fs_status st = fs_settings_read(&settings, &c.checkpoint, "fp32");
        if (st == FS_OK) st = fs_plan_trace(&text, &settings, &task, lengths, count);
        result = st == FS_OK ? PyUnicode_FromString(text) : fs_py_raise(fs_py_state_of(module), st);
        fs_py_checkpoint_clear(&c);
    }
    fs_free(text);
    fs_free(lengths);
    return result;
}

PyMethodDef fs_py_functions[] = {
    { "architectures", architectures, METH_NOARGS, architectures_doc },
    { "devices", devices, METH_NOARGS, devices_doc },
    { "host", host, METH_NOARGS, host_doc },
    { "knobs", knobs, METH_NOARGS, knobs_doc },
    { "row_codes", row_codes, METH_NOARGS, row_codes_doc },
    { "trace", trace, METH_VARARGS, trace_doc },
    { 0 },
};
