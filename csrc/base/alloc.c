#include "base/alloc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static _Atomic int64_t fail_at;
static _Atomic int64_t live;

static int fails_now(void) {
    if (atomic_load_explicit(&fail_at, memory_order_relaxed) <= 0) return 0;
    return atomic_fetch_sub(&fail_at, 1) == 1;
}

static fs_status out_of_memory(size_t count, size_t size) {
    return fs_fail(FS_NO_MEMORY, "the host refused %zu x %zu bytes of memory; free some or raise the container's limit",
                   count, size);
}

static int overflows(size_t count, size_t size) { return size != 0 && count > (SIZE_MAX / 2) / size; }

fs_status fs_alloc(void *out, size_t count, size_t size) {
    void *at = NULL;
    if (!overflows(count, size) && !fails_now()) at = calloc(count ? count : 1, size ? size : 1);
    *(void **)out = at;
    if (!at) return out_of_memory(count, size);
    atomic_fetch_add_explicit(&live, 1, memory_order_relaxed);
    return FS_OK;
}

fs_status fs_realloc(void *inout, size_t count, size_t size) {
    void **slot = inout, *at = NULL;
    size_t bytes = count * size; /* used only when it did not overflow */
    if (!overflows(count, size) && !fails_now()) at = realloc(*slot, bytes ? bytes : 1);
    if (!at) return out_of_memory(count, size);
    if (!*slot) atomic_fetch_add_explicit(&live, 1, memory_order_relaxed);
    *slot = at;
    return FS_OK;
}

fs_status fs_alloc_aligned(void *out, size_t bytes) {
    void *at = NULL;
    if (bytes <= SIZE_MAX / 2 && !fails_now()) at = aligned_alloc(64, bytes ? (bytes + 63) & ~(size_t)63 : 64);
    *(void **)out = at;
    if (!at) return out_of_memory(1, bytes);
    atomic_fetch_add_explicit(&live, 1, memory_order_relaxed);
    return FS_OK;
}

fs_status fs_strdup(char **out, const char *text) {
    size_t bytes = strlen(text) + 1;
    FS_TRY(fs_alloc(out, bytes, 1));
    memcpy(*out, text, bytes);
    return FS_OK;
}

void fs_free(void *at) {
    if (!at) return;
    atomic_fetch_sub_explicit(&live, 1, memory_order_relaxed);
    free(at);
}

void fs_alloc_fail_at(int64_t n) { atomic_store(&fail_at, n); }

int64_t fs_alloc_live(void) { return atomic_load(&live); }
