/* shared.h - pieces of shared memory, out of segments of some megabytes; the first one that fits, joined again when given back.
 *
 *     segment  | piece | free | piece | piece |    free      |
 *
 * One thread at a time. */
#ifndef FS_MANAGER_SHARED_H
#define FS_MANAGER_SHARED_H

#include "manager/segment.h"

#include <sys/queue.h>

typedef struct fs_piece {
    size_t at, bytes;
    int used;
    TAILQ_ENTRY(fs_piece) link; /* in the order of the segment */
} fs_piece;

typedef struct fs_shared_segment {
    uint64_t id;
    fs_segment memory;
    int announced; /* to the manager that is connected */
    int abandoned; /* a manager that was given up may still write to it: no new pieces */
    TAILQ_HEAD(fs_piece_list, fs_piece) pieces;
    TAILQ_ENTRY(fs_shared_segment) link;
} fs_shared_segment;

typedef struct {
    TAILQ_HEAD(, fs_shared_segment) segments;
    uint64_t last_id;
} fs_shared;

void fs_shared_open(fs_shared *p);
void fs_shared_close(fs_shared *p); /* pieces included */
fs_status fs_shared_take(fs_shared *p, size_t bytes, void **out);
/* Nothing of its segment is used any more: it is *empty, which the caller may hand to fs_shared_drop. */
void fs_shared_give(fs_shared *p, void *at, fs_shared_segment **empty);
void fs_shared_drop(fs_shared *p, fs_shared_segment *segment);
int fs_shared_is_empty(const fs_shared_segment *s);
/* Pieces in use stay, their segments get no new ones; others are dropped. */
void fs_shared_abandon(fs_shared *p);
void fs_shared_unannounce(fs_shared *p);
fs_shared_segment *fs_shared_find(fs_shared *p, const void *at,
                                  size_t bytes); /* the segment of bytes in use; NULL: none */

#endif
