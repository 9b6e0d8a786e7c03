#include "models/checkpoint.h"

#include "base/alloc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

fs_status fs_file_open(const char *path, int *fd, int64_t *bytes) {
    struct stat st;
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (*fd < 0)
        return fs_fail(FS_CHECKPOINT, "%.300s cannot be opened (%s); check that the file is there and may be read",
                       path, strerror(errno));
    if (fstat(*fd, &st) == 0 && S_ISREG(st.st_mode)) {
        *bytes = (int64_t)st.st_size;
        return FS_OK;
    }
    close(*fd);
    *fd = -1;
    return fs_fail(FS_CHECKPOINT, "%.300s is not a regular file; weights are read from *.safetensors files", path);
}

/* Elements of the shape; -1 when a dimension is negative or the product does not fit. */
static int64_t elements(const fs_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        if (t->shape[i] < 0 || __builtin_mul_overflow(n, t->shape[i], &n)) return -1;
    return n;
}

static fs_status check_tensor(const fs_checkpoint *c, const fs_tensor *t, const int64_t *file_bytes) {
    int64_t end, n, bytes;
    if (t->rank < 0 || t->rank > FS_MAX_RANK)
        return fs_fail(FS_CHECKPOINT, "%.200s: tensor %.120s has %d dimensions where at most %d are read", c->name,
                       t->name, t->rank, FS_MAX_RANK);
    if (t->file < 0 || t->file >= c->file_count)
        return fs_fail(FS_CHECKPOINT, "%.200s: tensor %.120s lies in file %d of %d", c->name, t->name, t->file,
                       c->file_count);
    const char *file = c->files[t->file];
    if (t->offset < 0 || t->bytes < 0 || __builtin_add_overflow(t->offset, t->bytes, &end))
        return fs_fail(FS_CHECKPOINT,
                       "%.300s: tensor %.120s says it has %lld bytes at byte %lld, which no file can hold", file,
                       t->name, (long long)t->bytes, (long long)t->offset);
    if (end > file_bytes[t->file])
        return fs_fail(FS_CHECKPOINT,
                       "%.300s: tensor %.120s ends at byte %lld of %lld; the file is cut short, fetch it again", file,
                       t->name, (long long)end, (long long)file_bytes[t->file]);
    n = elements(t);
    if (n < 0)
        return fs_fail(FS_CHECKPOINT, "%.300s: tensor %.120s has a shape whose size is negative or beyond 2^63", file,
                       t->name);
    if ((unsigned)t->dtype >= FS_DTYPE_COUNT) return FS_OK; /* somebody else's type: only its place was checked */
    if (__builtin_mul_overflow(n, (int64_t)fs_dtype_bytes(t->dtype), &bytes) || bytes != t->bytes)
        return fs_fail(FS_CHECKPOINT, "%.300s: tensor %.120s has %lld elements of %.20s in %lld bytes", file, t->name,
                       (long long)n, t->dtype_text, (long long)t->bytes);
    return FS_OK;
}

static int by_name(const void *a, const void *b) {
    const fs_tensor *x = *(const fs_tensor *const *)a, *y = *(const fs_tensor *const *)b;
    int order = strcmp(x->name, y->name);
    return order ? order : (x > y) - (x < y);
}

static int by_place(const void *a, const void *b) {
    const fs_tensor *x = *(const fs_tensor *const *)a, *y = *(const fs_tensor *const *)b;
    if (x->file != y->file) return x->file < y->file ? -1 : 1;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first */
}

static fs_status check_overlaps(const fs_checkpoint *c, const fs_tensor **sorted) {
    const fs_tensor *last = NULL; /* the last one with bytes; those before it end before it begins */
    qsort(sorted, (size_t)c->tensor_count, sizeof *sorted, by_place);
    for (int i = 0; i < c->tensor_count; i++) {
        const fs_tensor *t = sorted[i];
        if (t->bytes == 0) continue;
        if (last && last->file == t->file && t->offset < last->offset + last->bytes)
            return fs_fail(
                FS_CHECKPOINT,
                "%.300s: tensors %.120s (bytes %lld to %lld) and %.120s (from byte %lld) overlap; the file is "
                "damaged, fetch it again",
                c->files[t->file], last->name, (long long)last->offset, (long long)(last->offset + last->bytes),
                t->name, (long long)t->offset);
        last = t;
    }
    return FS_OK;
}

/* sorted: by name, as fs_tensor_names keeps them. */
static fs_status check_duplicates(const fs_checkpoint *c, const fs_tensor **sorted) {
    for (int i = 1; i < c->tensor_count; i++)
        if (!strcmp(sorted[i - 1]->name, sorted[i]->name))
            return fs_fail(FS_CHECKPOINT,
                           "%.200s holds two tensors named %.120s, in %.200s and %.200s; remove one file", c->name,
                           sorted[i]->name, c->files[sorted[i - 1]->file], c->files[sorted[i]->file]);
    return FS_OK;
}

fs_status fs_checkpoint_check(const fs_checkpoint *c) {
    fs_status st = FS_OK;
    int64_t *file_bytes = NULL;
    fs_tensor_names names = { 0 };
    if (c->file_count < 1 || c->tensor_count < 1)
        return fs_fail(FS_CHECKPOINT, "%.300s holds no tensors; a checkpoint has config.json and *.safetensors files",
                       c->name);
    FS_GO(fs_alloc(&file_bytes, (size_t)c->file_count, sizeof *file_bytes));
    for (int i = 0; i < c->file_count; i++) {
        int fd;
        FS_GO(fs_file_open(c->files[i], &fd, &file_bytes[i]));
        close(fd);
    }
    for (int i = 0; i < c->tensor_count; i++) FS_GO(check_tensor(c, &c->tensors[i], file_bytes));
    FS_GO(fs_tensor_names_open(&names, c));
    FS_GO(check_duplicates(c, names.sorted));
    FS_GO(check_overlaps(c, names.sorted));
done:
    fs_tensor_names_close(&names);
    fs_free(file_bytes);
    return st;
}

fs_status fs_checkpoint_copy(fs_checkpoint **out, const fs_checkpoint *c) {
    fs_status st = FS_OK;
    fs_checkpoint *copy = NULL;
    fs_tensor *tensors = NULL;
    char **files = NULL;
    *out = NULL;
    FS_TRY(fs_alloc(&copy, 1, sizeof *copy));
    FS_GO(fs_strdup((char **)&copy->name, c->name));
    FS_GO(fs_alloc(&files, (size_t)c->file_count, sizeof *files));
    copy->files = (const char *const *)files;
    for (; copy->file_count < c->file_count; copy->file_count++)
        FS_GO(fs_strdup(&files[copy->file_count], c->files[copy->file_count]));
    FS_GO(fs_alloc(&tensors, (size_t)c->tensor_count, sizeof *tensors));
    copy->tensors = tensors;
    for (; copy->tensor_count < c->tensor_count; copy->tensor_count++) {
        fs_tensor *t = &tensors[copy->tensor_count];
        *t = c->tensors[copy->tensor_count];
        t->dtype_text = fs_dtype_name(t->dtype);
        FS_GO(fs_strdup((char **)&t->name, t->name));
    }
    *out = copy;
    copy = NULL;
done:
    fs_checkpoint_free(copy);
    return st;
}

void fs_checkpoint_free(fs_checkpoint *c) {
    if (!c) return;
    for (int i = 0; i < c->tensor_count; i++) fs_free((void *)c->tensors[i].name);
    for (int i = 0; i < c->file_count; i++) fs_free((void *)c->files[i]);
    fs_free((void *)c->tensors);
    fs_free((void *)c->files);
    fs_free((void *)c->name);
    fs_free(c);
}

const fs_config_key *fs_checkpoint_key(const fs_checkpoint *c, const char *key) {
    for (int i = 0; i < c->key_count; i++)
        if (!strcmp(c->keys[i].key, key)) return &c->keys[i];
    return NULL;
}

fs_status fs_tensor_names_open(fs_tensor_names *out, const fs_checkpoint *c) {
    *out = (fs_tensor_names){ 0 };
    FS_TRY(fs_alloc(&out->sorted, (size_t)c->tensor_count, sizeof *out->sorted));
    out->count = c->tensor_count;
    for (int i = 0; i < c->tensor_count; i++) out->sorted[i] = &c->tensors[i];
    qsort(out->sorted, (size_t)out->count, sizeof *out->sorted, by_name);
    return FS_OK;
}

void fs_tensor_names_close(fs_tensor_names *n) {
    fs_free(n->sorted);
    *n = (fs_tensor_names){ 0 };
}

const fs_tensor *fs_tensor_find(const fs_tensor_names *n, const char *name) {
    int low = 0, high = n->count;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(n->sorted[middle]->name, name);
        if (order == 0) return n->sorted[middle];
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return NULL;
}
