/* store.h - results of rows computed lately, for rows that come again: Spark evaluates a column twice under a filter on
 * it, and replays partitions that were lost. Bounded by bytes; what was used longest ago goes first. A row is found by all
 * of what decides its bits: model, task and content, compared in full. One thread at a time. */
#ifndef FS_MANAGER_STORE_H
#define FS_MANAGER_STORE_H

#include "engine/engine.h"

typedef struct fs_store fs_store;

typedef struct {
    uint64_t model; /* equal numbers, equal weights, types and placement of tensor groups */
    const fs_task *task;
    const void *source, *targets; /* the row's ids or features */
    size_t source_bytes, target_bytes;
} fs_store_key;

fs_status fs_store_open(fs_store **out, size_t most_bytes); /* 0: nothing is kept */
void fs_store_close(fs_store *s); /* NULL is fine */
/* [*floats], valid until the next put; NULL: not known. */
const float *fs_store_find(fs_store *s, const fs_store_key *key, int64_t *floats);
/* Keeps a copy. Where there is no memory for it, or it is more than a 16th of all, it is not kept. */
void fs_store_put(fs_store *s, const fs_store_key *key, const float *result, int64_t floats);
size_t fs_store_bytes(const fs_store *s);

#endif
