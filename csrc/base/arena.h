/* arena.h - a range of device addresses handed out from one end.
 *
 * Pure arithmetic: the range may be memory of any device, or no memory at all (the measure backend plans with it).
 * One owner, no locks. A slot of a stage has one; it is reset only after that slot's completion event. `peak` is what
 * plan and stats report as workspace. */
#ifndef FS_BASE_ARENA_H
#define FS_BASE_ARENA_H

#include "base/status.h"
#include "base/view.h"

typedef struct {
    char *base;
    size_t size, used, peak;
} fs_arena;

fs_arena fs_arena_over(void *base, size_t size);
static inline size_t fs_arena_mark(const fs_arena *a) { return a->used; }
static inline void fs_arena_reset(fs_arena *a, size_t mark) { a->used = mark; }
/* bytes at a multiple of 64; FS_NO_MEMORY when the range is used up (a planning error: the sentence says by how much). */
fs_status fs_arena_push(fs_arena *a, size_t bytes, void **out);
fs_status fs_arena_view(fs_arena *a, fs_dtype dtype, int64_t rows, int64_t cols, fs_view *out);

#endif
