#include "py/py.h"

#include "base/alloc.h"

#include <string.h>

/* Borrowed UTF-8 of a str; the object is kept alive in `keep`. */
static const char *text_of(PyObject *object, const char *what, PyObject *keep) {
    if (!PyUnicode_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be str, not %R", what, (PyObject *)Py_TYPE(object));
        return NULL;
    }
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(object, &length);
    if (!text || PyList_Append(keep, object) < 0) return NULL;
    if ((size_t)length != strlen(text)) {
        PyErr_Format(PyExc_ValueError, "%s holds a NUL character: %R", what, object);
        return NULL;
    }
    return text;
}

static void *new_array(size_t count, size_t size) {
    void *at;
    if (fs_alloc(&at, count, size) != FS_OK) return PyErr_NoMemory();
    return at;
}

/* Borrowed bytes of a path as the file system has it, kept alive in `keep`: not every name there is UTF-8. */
static const char *path_of(PyObject *object, const char *what, PyObject *keep) {
    PyObject *bytes;
    if (!PyUnicode_Check(object)) return text_of(object, what, keep);
    if (!PyUnicode_FSConverter(object, &bytes)) return NULL;
    const char *path = PyList_Append(keep, bytes) == 0 ? PyBytes_AsString(bytes) : NULL;
    Py_DECREF(bytes);
    return path;
}

typedef const char *item_of(PyObject *object, const char *what, PyObject *keep);

static int items_from(const char ***out, int *count, PyObject *sequence, const char *what, PyObject *keep,
                      item_of *read) {
    Py_ssize_t n = PyUnicode_Check(sequence) ? -1 : PySequence_Size(sequence);
    if (n < 0 || n > INT32_MAX) {
        PyErr_Format(PyExc_TypeError, "%s must be a sequence of str", what);
        return -1;
    }
    const char **texts = new_array((size_t)n, sizeof *texts);
    if (!texts) return -1;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        texts[i] = item ? read(item, what, keep) : NULL;
        Py_XDECREF(item);
        if (!texts[i]) {
            fs_free(texts);
            return -1;
        }
    }
    *out = texts;
    *count = (int)n;
    return 0;
}

int fs_py_strings_from(const char ***out, int *count, PyObject *sequence, const char *what, PyObject *keep) {
    return items_from(out, count, sequence, what, keep, text_of);
}

int fs_py_paths_from(const char ***out, int *count, PyObject *sequence, const char *what, PyObject *keep) {
    return items_from(out, count, sequence, what, keep, path_of);
}

/* Lists and objects travel as JSON text: C only has to know that they are there, and to quote them. */
static int json_from(fs_config_key *key, PyObject *value, PyObject *keep) {
    PyObject *json = PyImport_ImportModule("json");
    PyObject *text = json ? PyObject_CallMethod(json, "dumps", "O", value) : NULL;
    key->kind = FS_JSON;
    key->text = text ? text_of(text, "config", keep) : NULL;
    Py_XDECREF(text);
    Py_XDECREF(json);
    return key->text ? 0 : -1;
}

static int key_from(fs_config_key *key, PyObject *name, PyObject *value, PyObject *keep) {
    key->key = text_of(name, "a config key", keep);
    if (!key->key) return -1;
    if (value == Py_None) {
        key->kind = FS_NULL;
    } else if (PyBool_Check(value)) {
        key->kind = FS_BOOL;
        key->i = value == Py_True;
    } else if (PyLong_Check(value)) {
        int overflow = 0;
        key->kind = FS_INT;
        key->i = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow) key->i = overflow > 0 ? INT64_MAX : INT64_MIN; /* out of every range, and told as such */
        key->f = (double)key->i;
    } else if (PyFloat_Check(value)) {
        key->kind = FS_FLOAT;
        key->f = PyFloat_AsDouble(value);
    } else if (PyUnicode_Check(value)) {
        key->kind = FS_TEXT;
        key->text = text_of(value, key->key, keep);
        return key->text ? 0 : -1;
    } else {
        return json_from(key, value, keep);
    }
    return PyErr_Occurred() ? -1 : 0;
}

/* Keys of config.json and, behind each list or object, its members: not those of very long ones (labels), nor too deep. */
enum { MOST_MEMBERS = 4096, MOST_DEPTH = 3 };

typedef struct {
    fs_config_key *keys;
    size_t count, room;
    PyObject *keep;
} key_list;

static int add_key(key_list *l, PyObject *name, PyObject *value, const char *inside, int depth);

/* [(name, member)] of an object or list; NULL with an exception, or Py_None for what is neither. */
static PyObject *members_of(PyObject *value) {
    if (PyDict_Check(value)) return PyDict_Items(value);
    if (!PyList_Check(value)) return Py_NewRef(Py_None);
    PyObject *numbered = PyObject_CallFunctionObjArgs((PyObject *)&PyEnum_Type, value, NULL);
    PyObject *pairs = numbered ? PySequence_List(numbered) : NULL;
    Py_XDECREF(numbered);
    return pairs;
}

static int add_members(key_list *l, PyObject *value, const char *inside, int depth) {
    PyObject *pairs = members_of(value);
    if (!pairs) return -1;
    const Py_ssize_t n = pairs != Py_None && depth < MOST_DEPTH ? PyList_Size(pairs) : 0;
    int st = 0;
    for (Py_ssize_t i = 0; st == 0 && n <= MOST_MEMBERS && i < n; i++) {
        PyObject *name, *member, *whole = NULL;
        if (PyArg_ParseTuple(PyList_GetItem(pairs, i), "OO", &name, &member))
            whole = PyUnicode_FromFormat("%s.%S", inside, name);
        st = whole ? add_key(l, whole, member, inside, depth) : -1;
        Py_XDECREF(whole);
    }
    Py_DECREF(pairs);
    return st;
}

static int add_key(key_list *l, PyObject *name, PyObject *value, const char *inside, int depth) {
    if (l->count == l->room) {
        l->room = l->room ? 2 * l->room : 64;
        if (fs_realloc(&l->keys, l->room, sizeof *l->keys) != FS_OK) {
            PyErr_NoMemory();
            return -1;
        }
    }
    fs_config_key *key = &l->keys[l->count];
    *key = (fs_config_key){ .inside = inside };
    if (key_from(key, name, value, l->keep) < 0) return -1;
    inside = key->key; /* the list may move */
    l->count++;
    return add_members(l, value, inside, depth + 1);
}

static int keys_from(fs_checkpoint *c, PyObject *config, PyObject *keep) {
    if (!PyDict_Check(config)) {
        PyErr_Format(PyExc_TypeError, "config must be a dict, not %R", (PyObject *)Py_TYPE(config));
        return -1;
    }
    PyObject *items = PyDict_Items(config);
    if (!items) return -1;
    key_list l = { .keep = keep };
    int st = 0;
    for (Py_ssize_t i = 0; st == 0 && i < PyList_Size(items); i++) {
        PyObject *name, *value;
        st = PyArg_ParseTuple(PyList_GetItem(items, i), "OO", &name, &value) ? add_key(&l, name, value, NULL, 0) : -1;
    }
    Py_DECREF(items);
    c->keys = l.keys;
    c->key_count = (int)l.count;
    return st;
}

static int tensor_from(fs_tensor *t, PyObject *item, PyObject *keep) {
    PyObject *name, *dtype, *shape;
    long long offset, bytes;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a tensor must be a tuple (name, dtype, shape, file, offset, bytes)");
        return -1;
    }
    if (!PyArg_ParseTuple(item, "OOOiLL", &name, &dtype, &shape, &t->file, &offset, &bytes)) return -1;
    t->name = text_of(name, "a tensor's name", keep);
    t->dtype_text = t->name ? text_of(dtype, "a tensor's dtype", keep) : NULL;
    if (!t->dtype_text) return -1;
    t->dtype = fs_dtype_from_file(t->dtype_text);
    t->offset = offset;
    t->bytes = bytes;
    Py_ssize_t rank = PySequence_Size(shape);
    if (rank < 0) return -1;
    t->rank = rank > INT32_MAX ? INT32_MAX : (int)rank; /* fs_checkpoint_check refuses more than FS_MAX_RANK */
    for (int i = 0; i < t->rank && i < FS_MAX_RANK; i++) {
        PyObject *size = PySequence_GetItem(shape, i);
        t->shape[i] = size ? PyLong_AsLongLong(size) : -1;
        Py_XDECREF(size);
        if (PyErr_Occurred()) return -1;
    }
    return 0;
}

static int tensors_from(fs_checkpoint *c, PyObject *sequence, PyObject *keep) {
    Py_ssize_t n = PySequence_Size(sequence);
    if (n < 0) return -1;
    fs_tensor *tensors = new_array((size_t)n, sizeof *tensors);
    int st = tensors ? 0 : -1;
    for (Py_ssize_t i = 0; st == 0 && i < n; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        st = item ? tensor_from(&tensors[i], item, keep) : -1;
        if (st == 0) st = PyList_Append(keep, item);
        Py_XDECREF(item);
    }
    c->tensors = tensors;
    c->tensor_count = (int)n;
    return st;
}

/* ("dense", activation) or ("norm", eps) or ("unit",) a module. */
static int chain_step_from(fs_chain_step *to, PyObject *item) {
    const char *kind = NULL;
    PyObject *value = NULL;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a module of the chain is a tuple: (kind, its activation or eps)");
        return -1;
    }
    if (!PyArg_ParseTuple(item, "s|O", &kind, &value)) return -1;
    if (!strcmp(kind, "dense")) {
        to->kind = FS_CHAIN_DENSE;
        to->activation = value ? PyUnicode_AsUTF8AndSize(value, NULL) : NULL;
        return value && !to->activation ? -1 : 0;
    }
    if (!strcmp(kind, "norm")) {
        to->kind = FS_CHAIN_NORM;
        to->eps = value ? (float)PyFloat_AsDouble(value) : 1e-5f;
        return PyErr_Occurred() ? -1 : 0;
    }
    to->kind = FS_CHAIN_UNIT;
    if (!strcmp(kind, "unit")) return 0;
    PyErr_Format(PyExc_ValueError, "a module of the chain is '%s'; there are dense, norm and unit", kind);
    return -1;
}

static int chain_from(fs_checkpoint *c, PyObject *sequence, PyObject *keep) {
    Py_ssize_t n = PySequence_Size(sequence);
    if (n < 0) return -1;
    fs_chain_step *steps = new_array((size_t)n, sizeof *steps);
    int st = steps ? 0 : -1;
    for (Py_ssize_t i = 0; st == 0 && i < n; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        st = item ? chain_step_from(&steps[i], item) : -1;
        if (st == 0) st = PyList_Append(keep, item);
        Py_XDECREF(item);
    }
    c->chain = steps;
    c->chain_count = (int)n;
    return st;
}

int fs_py_checkpoint_from(fs_py_checkpoint *out, PyObject *config, PyObject *tensors, PyObject *files, PyObject *chain,
                          const char *name) {
    memset(out, 0, sizeof *out);
    out->checkpoint.name = name;
    out->keep = PyList_New(0);
    const char **paths = NULL;
    if (!out->keep || keys_from(&out->checkpoint, config, out->keep) < 0 ||
        (tensors && tensors_from(&out->checkpoint, tensors, out->keep) < 0) ||
        (chain && chain_from(&out->checkpoint, chain, out->keep) < 0) ||
        (files && fs_py_paths_from(&paths, &out->checkpoint.file_count, files, "files", out->keep) < 0)) {
        fs_py_checkpoint_clear(out);
        return -1;
    }
    out->checkpoint.files = paths;
    return 0;
}

void fs_py_checkpoint_clear(fs_py_checkpoint *c) {
    fs_free((void *)c->checkpoint.keys);
    fs_free((void *)c->checkpoint.tensors);
    fs_free((void *)c->checkpoint.chain);
    fs_free((void *)c->checkpoint.files);
    Py_XDECREF(c->keep);
    memset(c, 0, sizeof *c);
}

static int stage_from(fs_stage_plan *stage, PyObject *item) {
    PyObject *devices;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a stage must be a tuple (first layer, last layer, (device, ...)), with a "
                                         "window of layers behind it or not");
        return -1;
    }
    stage->window = 0;
    if (!PyArg_ParseTuple(item, "iiO|i", &stage->first_layer, &stage->last_layer, &devices, &stage->window)) return -1;
    Py_ssize_t ranks = PySequence_Size(devices);
    if (ranks < 0) return -1;
    if (ranks < 1 || ranks > FS_MAX_GROUP) {
        PyErr_Format(PyExc_ValueError, "a stage has %zd devices; it takes 1 to %d", ranks, FS_MAX_GROUP);
        return -1;
    }
    stage->ranks = (int)ranks;
    for (int r = 0; r < stage->ranks; r++) {
        PyObject *device = PySequence_GetItem(devices, r);
        stage->devices[r] = device ? (int)PyLong_AsLong(device) : -1;
        Py_XDECREF(device);
        if (PyErr_Occurred()) return -1;
    }
    return 0;
}

int fs_py_stages_from(fs_stage_plan **out, int *count, PyObject *sequence) {
    Py_ssize_t n = PySequence_Size(sequence);
    if (n < 0 || n > 10000) {
        PyErr_SetString(PyExc_TypeError, "plan must be a sequence of at most 10000 stages");
        return -1;
    }
    fs_stage_plan *stages = new_array((size_t)n, sizeof *stages);
    int st = stages ? 0 : -1;
    for (Py_ssize_t i = 0; st == 0 && i < n; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        st = item ? stage_from(&stages[i], item) : -1;
        Py_XDECREF(item);
    }
    if (st < 0) {
        fs_free(stages);
        return -1;
    }
    *out = stages;
    *count = (int)n;
    return 0;
}

static int pooling_from(fs_task *task, const char *name) {
    static const char *const names[] = {
#define X(id, name, meaning) name,
        FS_POOLINGS(X)
#undef X
    };
    for (int p = 0; p < FS_POOL_COUNT; p++)
        if (!strcmp(names[p], name)) {
            if (task->pooling_count == FS_POOL_COUNT) break;
            task->pooling[task->pooling_count++] = (fs_pooling)p;
            return 0;
        }
    PyErr_Format(PyExc_ValueError, "pooling '%s' is not one of cls, mean, max, mean_sqrt_len, weightedmean, lasttoken",
                 name);
    return -1;
}

int fs_py_task_from(fs_task *out, const char *task, PyObject *pooling, int normalize, long long dimensions) {
    *out = (fs_task){ .normalize = normalize != 0, .dimensions = dimensions };
    if (!strcmp(task, "embed")) {
        out->kind = FS_TASK_EMBED;
    } else if (!strcmp(task, "hidden_states")) {
        out->kind = FS_TASK_HIDDEN_STATES;
        return 0;
    } else if (!strcmp(task, "classify")) {
        out->kind = FS_TASK_CLASSIFY;
        return 0;
    } else {
        PyErr_Format(PyExc_ValueError, "task '%s' is not one of embed, classify, hidden_states", task);
        return -1;
    }
    const char **names = NULL;
    int count = 0, st = 0;
    PyObject *keep = PyList_New(0);
    if (!keep || !pooling || fs_py_strings_from(&names, &count, pooling, "pooling", keep) < 0) st = -1;
    for (int i = 0; st == 0 && i < count; i++) st = pooling_from(out, names[i]);
    fs_free(names);
    Py_XDECREF(keep);
    if (st < 0 && !PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "task 'embed' needs pooling=");
    return st;
}
