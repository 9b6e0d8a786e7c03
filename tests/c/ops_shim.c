/* ops_shim.c - any backend's ops behind plain entry points, for tests/test_ops.py (ctypes).
 *
 * Built by that test into a shared library with csrc/base and csrc/backends. A shim is one device with one queue; every
 * call waits for what it has enqueued. Functions return an fs_status; the sentence is shim_error(). The path
 * "avx512-tiles" is that of AVX-512 with its tiles compiled over AVX2's registers, and exists only here. */
#include "backends/backend.h"
#include "backends/collectives.h"
#include "backends/cpu/cpu.h"
#include "backends/cuda/plans.h"
#include "backends/ops.h"
#include "base/alloc.h"

#include <string.h>

#if defined(__x86_64__)
#define FS_SIMD_PAIR
extern const fs_kernels fs_kernels_avx512_tiles;
#include "backends/cpu/path_avx512.c"
#endif

#define SHIM __attribute__((visibility("default")))

typedef struct {
    fs_device *device;
    fs_event *event;
    fs_ops ops;
    fs_rows rows;
    fs_memory arena_memory;
    fs_arena arena;
    fs_step step;
} shim;

enum { ARENA_BYTES = 1 << 20 };

SHIM const char *shim_error(void) { return fs_error_text(); }
SHIM int shim_op_count(void) { return (int)(sizeof(fs_ops) / sizeof(void (*)(void))); }

/* The i-th path of the CPU backend: its name, and why it cannot run here or NULL. */
SHIM const char *shim_path(int i, const char **missing) {
    if (!fs_cpu_paths[i]) return NULL;
    *missing = fs_cpu_path_missing(fs_cpu_paths[i]);
    return fs_cpu_paths[i]->name;
}
SHIM int shim_path_find(const char *name) {
    const fs_kernels *found;
    return (int)fs_cpu_path_find(name, &found);
}

static const fs_backend *backend(const shim *s) { return s->device->backend; }

SHIM void shim_close(shim *s) {
    if (!s) return;
    if (s->device) {
        backend(s)->event_free(s->event);
        backend(s)->queue_free(s->step.queue);
        backend(s)->release(s->device, &s->arena_memory);
        backend(s)->close(s->device);
    }
    fs_free(s);
}

/* index: which part of the host, or which GPU. */
SHIM int shim_open(shim **out, const char *name, const char *path, int threads, int index) {
    fs_status st = FS_OK;
    shim *s = NULL;
    const fs_backend *b;
    int tiles = path && !strcmp(path, "avx512-tiles");
    fs_device_options options = { .threads = threads, .path = tiles ? "avx2" : path, .index = index, .of = index + 1 };
    FS_GO(fs_backend_find(name, &b));
    FS_GO(fs_alloc(&s, 1, sizeof *s));
    FS_GO(b->open(&s->device, &options));
#if defined(__x86_64__)
    if (tiles) fs_cpu(s->device)->kernels = &fs_kernels_avx512_tiles;
#endif
    FS_GO(b->queue_new(s->device, &s->step.queue));
    FS_GO(b->event_new(s->device, &s->event));
    FS_GO(b->alloc(s->device, FS_WORKSPACE, ARENA_BYTES, &s->arena_memory));
    s->arena = fs_arena_over(s->arena_memory.at, ARENA_BYTES);
    s->step.arena = &s->arena;
    s->ops = fs_ops_complete(b->ops);
    s->step.device = s->device, s->step.ops = &s->ops, s->step.rows = &s->rows, s->step.ranks = 1;
    *out = s, s = NULL;
done:
    shim_close(s);
    return st;
}

static int waited(shim *s, fs_status st) {
    if (st == FS_OK) st = backend(s)->event_record(s->event, s->step.queue);
    if (st == FS_OK) st = backend(s)->event_wait(s->event);
    return st;
}

SHIM int shim_alloc(shim *s, size_t bytes, fs_memory *out) {
    return backend(s)->alloc(s->device, FS_WORKSPACE, bytes, out);
}
SHIM void shim_release(shim *s, fs_memory *m) { backend(s)->release(s->device, m); }

/* The measure backend's memory is addresses only. */
static int has_memory(const shim *s) { return backend(s) != &fs_measure_backend; }

SHIM int shim_upload(shim *s, void *to, const void *from, size_t bytes) {
    fs_memory pinned = { 0 };
    fs_status st = FS_OK;
    FS_GO(backend(s)->alloc_pinned(s->device, FS_STAGING, bytes, &pinned));
    if (has_memory(s)) memcpy(pinned.at, from, bytes);
    st = waited(s, backend(s)->upload(s->step.queue, to, pinned.at, bytes));
done:
    backend(s)->release(s->device, &pinned);
    return st;
}

SHIM int shim_download(shim *s, void *to, const void *from, size_t bytes) {
    fs_memory pinned = { 0 };
    fs_status st = FS_OK;
    FS_GO(backend(s)->alloc_pinned(s->device, FS_STAGING, bytes, &pinned));
    FS_GO(waited(s, backend(s)->download(s->step.queue, pinned.at, from, bytes)));
    if (has_memory(s)) memcpy(to, pinned.at, bytes);
done:
    backend(s)->release(s->device, &pinned);
    return st;
}

/* Fills in pieces of `piece` rows, the last piece first. */
SHIM int shim_weight(shim *s, const fs_weight_desc *desc, const char *data, size_t stride, fs_dtype dtype,
                     int64_t piece, fs_weight *out, fs_memory *memory) {
    FS_TRY(backend(s)->alloc(s->device, FS_WEIGHTS, backend(s)->weight_bytes(s->device, desc), memory));
    FS_TRY(backend(s)->weight_begin(s->device, out, desc, memory->at));
    for (int64_t end = desc->N; end > 0; end -= piece) {
        int64_t row = end > piece ? end - piece : 0;
        FS_TRY(backend(s)->weight_fill(s->device, out, row, end - row, data + (size_t)row * stride, stride, dtype));
    }
    return backend(s)->weight_end(s->device, out);
}

SHIM size_t shim_weight_bytes(shim *s, const fs_weight_desc *desc) { return backend(s)->weight_bytes(s->device, desc); }

/* For what fill refuses. */
SHIM int shim_fill(shim *s, fs_weight *w, int64_t row, int64_t rows, const void *from, size_t stride, fs_dtype dtype) {
    return backend(s)->weight_fill(s->device, w, row, rows, from, stride, dtype);
}

SHIM void shim_rows(shim *s, const int32_t *offsets, int64_t T, int64_t B, int64_t longest) {
    s->rows = (fs_rows){ .offsets = offsets, .T = T, .B = B, .longest = longest };
}

SHIM const char *shim_trace(shim *s) { return has_memory(s) ? "" : fs_measure_trace(s->device); }

SHIM int shim_comm(shim *const ranks[], int size, double seconds, fs_comm **out) {
    fs_device *devices[8] = { 0 };
    for (int i = 0; i < size; i++) devices[i] = ranks[i]->device;
    FS_TRY(backend(ranks[0])->comm_open(out, devices, size, seconds));
    for (int i = 0; i < size; i++) ranks[i]->step.comm = *out, ranks[i]->step.rank = i, ranks[i]->step.ranks = size;
    return FS_OK;
}
SHIM int shim_computes(shim *s, int dtype) { return backend(s)->computes(s->device, (fs_dtype)dtype); }
SHIM void shim_comm_close(shim *s, fs_comm *c) { backend(s)->comm_close(c); }

SHIM int shim_gather(shim *s, fs_view y, const fs_gather *tables, int n) {
    return waited(s, s->ops.gather(&s->step, y, tables, n));
}
SHIM int shim_layer_norm(shim *s, fs_view y, fs_view x, const fs_norm *norm) {
    return waited(s, s->ops.layer_norm(&s->step, y, x, norm));
}
SHIM int shim_gather_norm(shim *s, fs_view y, const fs_gather *tables, int n, const fs_norm *norm) {
    return waited(s, s->ops.gather_norm(&s->step, y, tables, n, norm));
}
SHIM int shim_matmul(shim *s, fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e) {
    return waited(s, s->ops.matmul(&s->step, y, x, w, e));
}
/* What an engine does with a form before its first step; nothing where the backend has nothing to make. */
SHIM int shim_prepare_matmul(shim *s, fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e) {
    if (!backend(s)->prepare) return FS_OK;
    return waited(s, backend(s)->prepare->matmul(&s->step, y, x, w, e));
}
SHIM const char *shim_numerics(shim *s) { return s->device->numerics; }

/* cuBLASLt's plan of a form, for views of any float type. */
SHIM int shim_plan_make(shim *s, const fs_cuda_form *form, const fs_cuda_operands *o, int *usable) {
    return waited(s, fs_cuda_plan_make(s->step.queue, form, o, usable));
}
SHIM int shim_plan_run(shim *s, const fs_cuda_form *form, const fs_cuda_operands *o) {
    return waited(s, fs_cuda_plan_run(s->step.queue, fs_cuda_plan_find(s->step.queue->device, form), o));
}

SHIM int shim_attention(shim *s, fs_view y, fs_view q, fs_view k, fs_view v, int heads, const fs_mask *mask) {
    return waited(s, s->ops.attention(&s->step, y, q, k, v, heads, mask));
}
SHIM int shim_pool(shim *s, fs_view y, fs_view x, int kind) {
    return waited(s, s->ops.pool(&s->step, y, x, (fs_pooling)kind));
}
SHIM int shim_l2_normalize(shim *s, fs_view x) { return waited(s, s->ops.l2_normalize(&s->step, x)); }
SHIM int shim_add(shim *s, fs_view y, fs_view x, const fs_epilogue *e) {
    return waited(s, s->ops.add(&s->step, y, x, e));
}
SHIM int shim_all_reduce(shim *s, fs_view x) { return waited(s, s->ops.all_reduce(&s->step, x)); }
