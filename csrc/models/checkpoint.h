/* checkpoint.h - a model folder as Python read it: config keys and a tensor table. JSON never reaches C.
 *
 * Everything here comes from files that somebody else wrote. fs_checkpoint_check compares each number with the files
 * themselves; after it, offsets and sizes can be trusted, shapes still have to be compared with the weight tables
 * (load.h).
 * Owner: whoever built it (py/, tests); the strings and arrays are borrowed for the life of a call. */
#ifndef FS_MODELS_CHECKPOINT_H
#define FS_MODELS_CHECKPOINT_H

#include "base/status.h"
#include "base/view.h"

#define FS_MAX_RANK 8

/* One key of config.json. Lists and objects keep their JSON text, and their members follow as keys of their own:
 * "rope_parameters.rope_theta", "layer_types.3". What is not in a key table may only be said to be harmless as a whole. */
typedef struct {
    const char *key;
    const char *inside; /* of a member: the key of what it is in */
    enum { FS_NULL, FS_BOOL, FS_INT, FS_FLOAT, FS_TEXT, FS_JSON } kind;
    int64_t i; /* FS_BOOL, FS_INT */
    double f;  /* FS_INT, FS_FLOAT */
    const char *text; /* FS_TEXT, FS_JSON */
} fs_config_key;

typedef struct {
    const char *name;
    fs_dtype dtype; /* FS_DTYPE_COUNT: one we do not know; fine for tensors nobody uses */
    const char *dtype_text;
    int rank;
    int64_t shape[FS_MAX_RANK];
    int file;            /* index into files */
    int64_t offset, bytes; /* in that file */
} fs_tensor;

/* A module behind pooling; its tensors are "modules.I.weight" and "modules.I.bias", I its place in the chain. */
typedef struct {
    enum { FS_CHAIN_DENSE, FS_CHAIN_NORM, FS_CHAIN_UNIT } kind;
    const char *activation; /* of FS_CHAIN_DENSE: a name in FS_ACTIVATIONS */
    float eps;              /* of FS_CHAIN_NORM */
} fs_chain_step;

typedef struct {
    const char *name; /* for sentences: the folder */
    const fs_config_key *keys;
    int key_count;
    const fs_tensor *tensors;
    int tensor_count;
    const char *const *files;
    int file_count;
    const fs_chain_step *chain;
    int chain_count;
} fs_checkpoint;

/* Opens each file and checks every tensor against its size: range, overlap, shape x dtype = bytes, duplicate names. */
fs_status fs_checkpoint_check(const fs_checkpoint *c);
/* A copy of names, files and tensors, but of no keys and no chain: what reading weights later needs. Freed with fs_checkpoint_free. */
fs_status fs_checkpoint_copy(fs_checkpoint **out, const fs_checkpoint *c);
void fs_checkpoint_free(fs_checkpoint *c); /* one of fs_checkpoint_copy; NULL is fine */
/* NULL when the key is not there. */
const fs_config_key *fs_checkpoint_key(const fs_checkpoint *c, const char *key);
/* A regular file, opened for reading; *bytes is its size now. Nothing waits: a pipe or a socket is refused. */
fs_status fs_file_open(const char *path, int *fd, int64_t *bytes);

/* Tensors by name, for many lookups in one checkpoint. */
typedef struct {
    const fs_tensor **sorted; /* owned; pointers into the checkpoint's tensors */
    int count;
} fs_tensor_names;
fs_status fs_tensor_names_open(fs_tensor_names *out, const fs_checkpoint *c);
void fs_tensor_names_close(fs_tensor_names *n);                                        /* a zeroed one is fine */
const fs_tensor *fs_tensor_find(const fs_tensor_names *n, const char *name); /* NULL when it is not there */

#endif
