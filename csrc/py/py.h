/* py.h - the CPython module firesteel._core: the only folder that knows Python.
 *
 * Thin and checked: arguments become C structs (arguments.c), the call runs with the GIL let go, a status becomes an
 * exception with its sentence (errors.c). Importing opens no device, thread, file or socket. NumPy's headers stay in
 * numpy.c. Stable ABI (cp310-abi3): heap types, state in the module. */
#ifndef FS_PY_PY_H
#define FS_PY_PY_H

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "base/status.h"
#include "engine/engine.h"

/* X(slot): what the module keeps alive; makes the struct, the visit and the clear. */
#define FS_PY_STATE(X) X(Error) X(EngineType) X(JobType) X(ServerType) X(ClientType)

typedef struct {
#define X(slot) PyObject *slot;
    FS_PY_STATE(X)
#undef X
    PyObject *exceptions[FS_STATUS_COUNT]; /* by status */
} fs_py_state;

fs_py_state *fs_py_state_of(PyObject *module);

/* errors.c: makes the exception classes; raises the thread's last failure as the exception of its status; always NULL. */
int fs_py_errors_add(PyObject *module, fs_py_state *state);
PyObject *fs_py_raise(fs_py_state *state, fs_status status);

/* text.c: a str as one line of valid UTF-8; what is neither becomes escapes, caf\xe9. The same of C's bytes. */
PyObject *fs_py_plain(PyObject *text);
PyObject *fs_py_text(const char *bytes);
extern const char fs_py_plain_text_doc[];
PyObject *fs_py_plain_text(PyObject *module, PyObject *text);

/* engine_type.c, job_type.c */
typedef struct {
    PyObject_HEAD
    fs_engine *engine;  /* NULL once closed */
    Py_ssize_t users;   /* calls inside it with the GIL let go; changed under the GIL only */
    int closing;
    int served; /* by a Server, which uses it until it is retired */
} fs_py_engine;
extern PyType_Spec fs_py_engine_spec, fs_py_job_spec, fs_py_server_spec, fs_py_client_spec;

/* Whose job it is, and how it is waited for. */
typedef struct {
    fs_status (*wait)(void *job, double seconds, int *done);
    int64_t (*errors)(void *job, const fs_row_error **out);
    void (*cancel)(void *job);
    void (*free)(void *job);
    int64_t (*hits)(const void *job); /* NULL: none */
    int64_t (*duplicates)(const void *job);
} fs_py_job_kind;
/* The job is the object's. engine: the one it runs in, or NULL; keep: what must live as long. */
PyObject *fs_py_job_new(fs_py_state *state, const fs_py_job_kind *kind, void *job, fs_py_engine *engine,
                        PyObject *keep);
/* submit's arguments as a request, which borrows from them; *keep: a tuple of all arrays. */
int fs_py_request_from(fs_request *out, PyObject **keep, PyObject *args, PyObject *kwargs);
/* Raises when the engine is closed; else the engine may be used until fs_py_engine_leave. */
int fs_py_engine_enter(fs_py_state *state, fs_py_engine *self);
void fs_py_engine_leave(fs_py_engine *self);

/* arguments.c: Python's config and tensor table as C structs. Borrowed strings stay alive through `keep`. */
typedef struct {
    fs_checkpoint checkpoint;
    PyObject *keep;
} fs_py_checkpoint;
int fs_py_checkpoint_from(fs_py_checkpoint *out, PyObject *config, PyObject *tensors, PyObject *files, PyObject *chain,
                          const char *name);
void fs_py_checkpoint_clear(fs_py_checkpoint *c);
/* A sequence of paths, str, as the file system has them; otherwise as fs_py_strings_from. */
int fs_py_paths_from(const char ***out, int *count, PyObject *sequence, const char *what, PyObject *keep);
/* A sequence of str as an array of borrowed strings (fs_free it); keep: a list the objects are appended to. */
int fs_py_strings_from(const char ***out, int *count, PyObject *sequence, const char *what, PyObject *keep);
/* [(first, last, (device, ...)), ...] */
int fs_py_stages_from(fs_stage_plan **out, int *count, PyObject *sequence);
int fs_py_task_from(fs_task *out, const char *task, PyObject *pooling, int normalize, long long dimensions);

/* numpy.c: data of a C-contiguous, aligned array of the given type; raises TypeError naming `what`. */
int fs_py_numpy_import(void);
int fs_py_int32_array(PyObject *array, const char *what, const int32_t **data, Py_ssize_t *count);
int fs_py_int64_array(PyObject *array, const char *what, const int64_t **data, Py_ssize_t *count);
/* int32 [T], token ids, or float32 [T, width], features; the offsets of *out are left alone. */
int fs_py_tokens(PyObject *array, const char *what, fs_tokens *out, Py_ssize_t *count);
int fs_py_float_out(PyObject *array, const char *what, float **data, Py_ssize_t *count); /* must be writeable */
/* A float32 array [rows, width] over memory that `owner` (stolen) keeps. */
PyObject *fs_py_float_array(float *data, Py_ssize_t rows, Py_ssize_t width, PyObject *owner);

/* plan.c: what is told before there is a device. [[{'first_layer', 'last_layer', 'devices'}]], the stages of each replica. */
PyObject *fs_py_replicas(const fs_plan *plan);
extern const char fs_py_plan_doc[];
PyObject *fs_py_plan(PyObject *module, PyObject *args, PyObject *kwargs);
extern const char fs_py_check_options_doc[];
PyObject *fs_py_check_options(PyObject *module, PyObject *args, PyObject *kwargs);

/* info.c */
extern PyMethodDef fs_py_functions[];

#endif
