/* info.c - module functions that tell what there is, without opening it (but for gpus(), gpu_ids(), cublaslt(), nccl()),
 * and the golden trace. */
#include "py/py.h"

#include "backends/backend.h"
#include "backends/cpu/kernels.h"
#include "backends/cuda/cublaslt_api.h"
#include "backends/cuda/images.h"
#include "backends/cuda/nccl_api.h"
#include "backends/devices.h"
#include "base/alloc.h"
#include "base/host.h"
#include "base/knobs.h"
#include "models/weights.h"

#include <stdio.h>

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

PyDoc_STRVAR(
    architectures_doc,
    "architectures()\n--\n\n[{'model_type', 'architectures', 'base', 'head'}] that checkpoints may have: patterns of\n"
    "class names, what stands before the tensors' names where a class with a head has saved them, and the weights\n"
    "of that head's layers, in their order.");

static PyObject *head_list(const fs_head_row *row) {
    PyObject *list = PyList_New(0);
    for (; list && row && row->weight; row++)
        if (append(list, PyUnicode_FromString(row->weight)) < 0) Py_CLEAR(list);
    return list;
}

static PyObject *architectures(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && fs_archs[i]; i++)
        if (append(list, Py_BuildValue("{s:s,s:N,s:s,s:N}", "model_type", fs_archs[i]->model_type, "architectures",
                                       names_list(fs_archs[i]->names), "base", fs_archs[i]->base, "head",
                                       head_list(fs_archs[i]->head))) < 0)
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

/* What the driver says of one GPU. */
typedef struct {
    char name[128], image[32], problem[1024]; /* image: the kernels that fit it; problem: why an engine cannot use it */
    int handle, major, minor;
    size_t total, available;
} gpu;

/* Memory is told to those who hold the GPU's context only. */
static void read_memory(const fs_cu_api *cu, gpu *g) {
    fs_cu_context context;
    if (cu->context_retain(&context, g->handle)) return;
    if (cu->context_set(context) || cu->memory_info(&g->available, &g->total)) g->available = g->total = 0;
    cu->context_set(NULL);
    cu->context_release(g->handle);
}

/* Opened as an engine would, and closed again: what fails then is the sentence that an engine would raise. */
static void try_to_open(gpu *g, int ordinal) {
    fs_device *device;
    const fs_device_options options = { .index = ordinal };
    if (fs_cuda_backend.open(&device, &options) != FS_OK)
        snprintf(g->problem, sizeof g->problem, "%s", fs_error_text());
    fs_cuda_backend.close(device);
}

static fs_status read_gpu(const fs_cu_api *cu, gpu *g, int ordinal) {
    char named[32];
    snprintf(named, sizeof named, "cuda:%d", ordinal);
    FS_TRY(fs_cu_check(cu, cu->device_get(&g->handle, ordinal), named, "finding it"));
    FS_TRY(fs_cu_check(cu, cu->device_name(g->name, (int)sizeof g->name, g->handle), named, "asking for its name"));
    FS_TRY(
        fs_cu_check(cu, cu->device_attribute(&g->major, FS_CU_MAJOR, g->handle), named, "asking for its generation"));
    FS_TRY(
        fs_cu_check(cu, cu->device_attribute(&g->minor, FS_CU_MINOR, g->handle), named, "asking for its generation"));
    const fs_cuda_image *image = fs_cuda_image_for(g->major, g->minor);
    if (image) snprintf(g->image, sizeof g->image, "%s%d", image->ptx ? "PTX of compute_" : "sm_", image->arch);
    read_memory(cu, g);
    try_to_open(g, ordinal);
    return FS_OK;
}

static fs_status read_gpus(gpu **out, int *count, int *version) {
    const fs_cu_api *cu;
    FS_TRY(fs_cu_open(&cu));
    FS_TRY(fs_cu_check(cu, cu->driver_version(version), "cuda", "asking for the driver's version"));
    FS_TRY(fs_cu_check(cu, cu->device_count(count), "cuda", "counting the GPUs"));
    FS_TRY(fs_alloc(out, (size_t)*count, sizeof **out));
    for (int i = 0; i < *count; i++) FS_TRY(read_gpu(cu, &(*out)[i], i));
    return FS_OK;
}

static PyObject *gpu_list(const gpu *g, int count) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < count; i++, g++)
        if (append(list, Py_BuildValue("{s:N,s:(ii),s:n,s:n,s:z,s:N}", "name", fs_py_text(g->name), "capability",
                                       g->major, g->minor, "total", (Py_ssize_t)g->total, "free",
                                       (Py_ssize_t)g->available, "image", *g->image ? g->image : NULL, "problem",
                                       *g->problem ? fs_py_text(g->problem) : Py_NewRef(Py_None))) < 0)
            Py_CLEAR(list);
    return list;
}

PyDoc_STRVAR(
    gpus_doc,
    "gpus()\n--\n\nOpens the CUDA driver, and each GPU for a moment: {'cuda': what the driver supports, 12090 for\n"
    "12.9, 'gpus': [{'name', 'capability', 'total', 'free', 'image': the kernels this build has for it or None,\n"
    "'problem': None or why an engine cannot use it}]}. Raises DeviceError where there is no driver.");

static PyObject *gpus(PyObject *module, PyObject *Py_UNUSED(none)) {
    gpu *found = NULL;
    int count = 0, version = 0;
    fs_status st;
    Py_BEGIN_ALLOW_THREADS
    st = read_gpus(&found, &count, &version);
    Py_END_ALLOW_THREADS
    PyObject *list = st == FS_OK ? gpu_list(found, count) : fs_py_raise(fs_py_state_of(module), st);
    fs_free(found);
    return list ? Py_BuildValue("{s:i,s:N}", "cuda", version, "gpus", list) : NULL;
}

/* "GPU-01234567-89ab-...", as nvidia-smi -L writes it. */
enum { UUID_BYTES = 16, ID_ROOM = 64 };

static void write_id(char out[ID_ROOM], const unsigned char uuid[UUID_BYTES]) {
    int n = snprintf(out, ID_ROOM, "GPU");
    for (int i = 0; i < UUID_BYTES; i++) {
        const char *dash = i == 0 || i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "";
        n += snprintf(out + n, (size_t)(ID_ROOM - n), "%s%02x", dash, uuid[i]);
    }
}

/* Of the devices that are GPUs; *count is 0 where they are CPUs. */
static fs_status read_ids(char out[][ID_ROOM], fs_device_choice *choices, int *count, const char *const *names, int n) {
    const fs_cu_api *cu;
    FS_TRY(fs_devices_resolve(names, n, &(fs_device_options){ 0 }, choices, count));
    if (choices[0].backend != &fs_cuda_backend) *count = 0;
    if (*count) FS_TRY(fs_cu_open(&cu));
    for (int i = 0; i < *count; i++) {
        unsigned char uuid[UUID_BYTES] = { 0 };
        int handle;
        char named[32];
        snprintf(named, sizeof named, "cuda:%d", choices[i].options.index);
        FS_TRY(fs_cu_check(cu, cu->device_get(&handle, choices[i].options.index), named, "finding it"));
        FS_TRY(fs_cu_check(cu, cu->device_uuid(uuid, handle), named, "asking for its UUID"));
        write_id(out[i], uuid);
    }
    return FS_OK;
}

PyDoc_STRVAR(
    gpu_ids_doc,
    "gpu_ids(devices)\n--\n\n[('cuda:0', 'GPU-...')]: of the GPUs that an engine with these devices (words, as for\n"
    "Engine) would open, the names that it has for them and the UUIDs that every process has for them. Empty\n"
    "where they are CPUs. Opens the CUDA driver, and no GPU. Raises ConfigError and DeviceError as Engine would.");

static PyObject *gpu_ids(PyObject *module, PyObject *devices) {
    char ids[FS_DEVICES_MAX][ID_ROOM];
    fs_device_choice choices[FS_DEVICES_MAX];
    const char **names = NULL;
    int n = 0, count = 0;
    fs_status st;
    PyObject *list = NULL, *keep = PyList_New(0);
    if (!keep || fs_py_strings_from(&names, &n, devices, "devices", keep) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    st = read_ids(ids, choices, &count, names, n);
    Py_END_ALLOW_THREADS
    list = st == FS_OK ? PyList_New(0) : fs_py_raise(fs_py_state_of(module), st);
    for (int i = 0; list && i < count; i++) {
        PyObject *name = PyUnicode_FromFormat("cuda:%d", choices[i].options.index);
        if (append(list, name ? Py_BuildValue("(Ns)", name, ids[i]) : NULL) < 0) Py_CLEAR(list);
    }
done:
    fs_free(names);
    Py_XDECREF(keep);
    return list;
}

PyDoc_STRVAR(cublaslt_doc,
             "cublaslt()\n--\n\nOpens cuBLASLt, which GPUs use for products where it is there: {'version': 120901 for\n"
             "12.9.1, 'file': where it was found}. Raises DeviceError where it is not found, or kept out by\n"
             "FIRESTEEL_LIBCUBLASLT=off.");

static PyObject *cublaslt(PyObject *module, PyObject *Py_UNUSED(none)) {
    const fs_lt_api *api;
    fs_status st = fs_lt_find(&api);
    if (st != FS_OK) return fs_py_raise(fs_py_state_of(module), st);
    return Py_BuildValue("{s:n,s:N}", "version", (Py_ssize_t)api->version(), "file", fs_py_text(api->file));
}

PyDoc_STRVAR(nccl_doc,
             "nccl()\n--\n\nOpens NCCL, which tensor groups of GPUs need: its version, 22705 for 2.27.5. Raises\n"
             "DeviceError where it is not found.");

static PyObject *nccl(PyObject *module, PyObject *Py_UNUSED(none)) {
    const fs_nccl_api *api;
    int version = 0;
    fs_status st = fs_nccl_open(&api);
    if (st == FS_OK && api->version(&version)) version = 0;
    return st == FS_OK ? PyLong_FromLong(version) : fs_py_raise(fs_py_state_of(module), st);
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

PyDoc_STRVAR(weights_doc,
             "weights(config, name='config')\n--\n\n"
             "[(tensor's name, its shape)] that a model of this config has, a head's excepted, in the order\n"
             "of the weight tables. name: the model's folder, which sentences name. Raises ConfigError.");

/* A tensor that several rows or layers read is listed once, with the first of them. */
static int add_weight(PyObject *list, PyObject *seen, const fs_settings *set, int layer, const fs_weight_row *row) {
    char name[FS_NAME_BYTES];
    long long N = fs_dim_of(set, row->N), K = fs_dim_of(set, row->K);
    fs_weight_name(name, set, layer, row->name);
    if (row->kind == FS_VECTOR) K *= row->parts ? row->parts : 1;
    else N *= row->parts ? row->parts : 1;
    PyObject *shape = row->kind == FS_VECTOR       ? Py_BuildValue("(L)", K)
                      : row->flags & FS_TRANSPOSED ? Py_BuildValue("(LL)", K, N)
                                                   : Py_BuildValue("(LL)", N, K);
    PyObject *key = PyUnicode_FromString(name);
    int known = key && shape ? PyDict_Contains(seen, key) : -1;
    if (known == 0 && (PyDict_SetItem(seen, key, shape) < 0 || append(list, Py_BuildValue("(OO)", key, shape)) < 0))
        known = -1;
    Py_XDECREF(key);
    Py_XDECREF(shape);
    return known < 0 ? -1 : 0;
}

static PyObject *weights(PyObject *module, PyObject *args) {
    PyObject *config, *list = NULL, *seen = NULL;
    const char *name = "config";
    fs_py_checkpoint c;
    fs_settings set;
    if (!PyArg_ParseTuple(args, "O|s", &config, &name)) return NULL;
    if (fs_py_checkpoint_from(&c, config, NULL, NULL, NULL, name) < 0) return NULL;
    fs_status st = fs_settings_read(&set, &c.checkpoint, "fp32");
    fs_py_checkpoint_clear(&c);
    if (st != FS_OK) return fs_py_raise(fs_py_state_of(module), st);
    list = PyList_New(0), seen = PyDict_New();
    int ok = list && seen;
    for (int layer = FS_OUTSIDE; ok && layer < set.L; layer++)
        for (const fs_weight_row *row = fs_weight_table(&set, layer); ok && row->name; row++)
            if (fs_weight_there(&set, row)) ok = add_weight(list, seen, &set, layer, row) == 0;
    Py_XDECREF(seen);
    if (!ok) Py_CLEAR(list);
    return list;
}

PyDoc_STRVAR(trace_doc, "trace(config, lengths, targets=None, name='config')\n--\n\n"
                        "The ops that one batch of rows of these lengths (tokens) runs, a line each, from the measure\n"
                        "backend: no weights are read. Rows are embedded with mean pooling; a model with a decoder\n"
                        "gives hidden states of targets of the lengths `targets`, by default those of the rows. name:\n"
                        "the model's folder, which sentences name. Raises ConfigError, and ValueError where there are\n"
                        "not as many targets as rows.");

static PyObject *trace_of(PyObject *module, PyObject *config, const char *name, const int64_t *lengths,
                          const int64_t *targets, Py_ssize_t count) {
    fs_py_checkpoint c;
    fs_settings settings;
    fs_task task = { .kind = FS_TASK_EMBED, .pooling_count = 1, .pooling = { FS_POOL_MEAN }, .normalize = 1 };
    char *text = NULL;
    if (fs_py_checkpoint_from(&c, config, NULL, NULL, NULL, name) < 0) return NULL;
    fs_status st = fs_settings_read(&settings, &c.checkpoint, "fp32");
    if (st == FS_OK && settings.targets != FS_NOTHING) task = (fs_task){ .kind = FS_TASK_HIDDEN_STATES };
    if (st == FS_OK) st = fs_plan_trace(&text, &settings, &task, lengths, targets, count);
    PyObject *result = st == FS_OK ? PyUnicode_FromString(text) : fs_py_raise(fs_py_state_of(module), st);
    fs_py_checkpoint_clear(&c);
    fs_free(text);
    return result;
}

static PyObject *trace(PyObject *module, PyObject *args) {
    PyObject *config, *sequence, *targets = Py_None, *result = NULL;
    Py_ssize_t count, target_count;
    int64_t *lengths, *target_lengths;
    const char *name = "config";
    if (!PyArg_ParseTuple(args, "OO|Os", &config, &sequence, &targets, &name)) return NULL;
    if (!(lengths = lengths_from(sequence, &count))) return NULL;
    target_lengths = lengths_from(targets == Py_None ? sequence : targets, &target_count);
    if (target_lengths && target_count == count)
        result = trace_of(module, config, name, lengths, target_lengths, count);
    else if (target_lengths)
        PyErr_Format(PyExc_ValueError, "there are %zd targets and %zd rows; each row has one", target_count, count);
    fs_free(target_lengths);
    fs_free(lengths);
    return result;
}

PyMethodDef fs_py_functions[] = {
    { "architectures", architectures, METH_NOARGS, architectures_doc },
    { "check_options", (PyCFunction)(void (*)(void))fs_py_check_options, METH_VARARGS | METH_KEYWORDS,
      fs_py_check_options_doc },
    { "cublaslt", cublaslt, METH_NOARGS, cublaslt_doc },
    { "devices", devices, METH_NOARGS, devices_doc },
    { "gpu_ids", gpu_ids, METH_O, gpu_ids_doc },
    { "gpus", gpus, METH_NOARGS, gpus_doc },
    { "host", host, METH_NOARGS, host_doc },
    { "knobs", knobs, METH_NOARGS, knobs_doc },
    { "nccl", nccl, METH_NOARGS, nccl_doc },
    { "plan", (PyCFunction)(void (*)(void))fs_py_plan, METH_VARARGS | METH_KEYWORDS, fs_py_plan_doc },
    { "plain_text", fs_py_plain_text, METH_O, fs_py_plain_text_doc },
    { "row_codes", row_codes, METH_NOARGS, row_codes_doc },
    { "trace", trace, METH_VARARGS, trace_doc },
    { "weights", weights, METH_VARARGS, weights_doc },
    { 0 },
};
