#include "base/arena.h"

fs_arena fs_arena_over(void *base, size_t size) { return (fs_arena){ .base = base, .size = size }; }

fs_status fs_arena_push(fs_arena *a, size_t bytes, void **out) {
    size_t take = (bytes + 63) & ~(size_t)63;
    if (take < bytes || take > a->size - a->used)
        return fs_fail(FS_NO_MEMORY,
                       "a step needs %zu bytes of workspace where %zu of %zu are left; lower the token budget "
                       "(FIRESTEEL_BATCH_TOKENS)",
                       bytes, a->size - a->used, a->size);
    *out = a->base + a->used;
    a->used += take;
    if (a->used > a->peak) a->peak = a->used;
    return FS_OK;
}

fs_status fs_arena_view(fs_arena *a, fs_dtype dtype, int64_t rows, int64_t cols, fs_view *out) {
    void *at = NULL;
    FS_TRY(fs_arena_push(a, (size_t)rows * (size_t)cols * fs_dtype_bytes(dtype), &at));
    *out = (fs_view){ .at = at, .dtype = dtype, .rows = rows, .cols = cols, .stride = cols };
    return FS_OK;
}
