/* segment.h - memory that two processes share: an anonymous file whose size nobody can change any more.
 *
 * The worker makes it, seals its size (else a worker that made it shorter would kill the manager with SIGBUS) and sends the
 * descriptor; the manager believes only what it has verified itself. Its pages are there from the start, so that nobody finds
 * out in the middle of a row that there is no memory. */
#ifndef FS_MANAGER_SEGMENT_H
#define FS_MANAGER_SEGMENT_H

#include "base/status.h"

#include <stdint.h>

#define FS_SEGMENT_BYTES ((uint64_t)1 << 36) /* of one, at most */

typedef struct {
    char *at;
    size_t bytes;
    int fd; /* the maker's; -1 where it was received */
} fs_segment;

/* Sealed, zeroed, rounded up to whole pages. FS_NO_MEMORY. */
fs_status fs_segment_make(fs_segment *out, size_t bytes);
/* Maps what came with a packet; `fd` stays the caller's. FS_REQUEST: not sealed, or not of that size. */
fs_status fs_segment_map(fs_segment *out, int fd, uint64_t bytes);
void fs_segment_close(fs_segment *s); /* a zeroed one is fine */

#endif
