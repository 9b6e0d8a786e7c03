/* alloc.h - host heap, every call of it in one place.
 *
 * Tests make the n-th allocation fail (fs_alloc_fail_at) and expect the call under test to return FS_NO_MEMORY with
 * nothing left behind (fs_alloc_live). Sizes may come from a file, so products are checked. Thread-safe. */
#ifndef FS_BASE_ALLOC_H
#define FS_BASE_ALLOC_H

#include "base/status.h"

#include <stdint.h>

/* *out = count * size zeroed bytes; *out is NULL on failure. Zero bytes give a valid pointer. */
fs_status fs_alloc(void *out, size_t count, size_t size);
/* Grows or shrinks *inout to count * size bytes, new bytes not zeroed; on failure *inout stays as it was. */
fs_status fs_realloc(void *inout, size_t count, size_t size);
/* As fs_alloc, at a multiple of 64 bytes, not zeroed. Released by fs_free like the rest. */
fs_status fs_alloc_aligned(void *out, size_t bytes);
fs_status fs_strdup(char **out, const char *text);
void fs_free(void *at); /* NULL is fine */

/* For tests: the n-th allocation from now (1 is the next) fails, once; 0 switches it off. */
void fs_alloc_fail_at(int64_t n);
/* For tests: blocks allocated and not yet released. */
int64_t fs_alloc_live(void);

#endif
