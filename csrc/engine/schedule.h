/* schedule.h - which rows go into the next batch. Pure: no clock, device or memory; the same queue, the same batch.
 *
 * Jobs are served in turn of arrival, so results come back roughly in order; inside a job rows are taken by
 * length, longest first, so that the work of a batch is even. Only rows of the same task share a batch. */
#ifndef FS_ENGINE_SCHEDULE_H
#define FS_ENGINE_SCHEDULE_H

#include <stdint.h>

typedef struct {
    int64_t tokens;
    int32_t task; /* rows of equal task may share a batch */
} fs_pending_row;

typedef struct {
    int64_t max_tokens, max_rows;
} fs_limits;

/* rows[0 ... n): waiting rows in serving order. Writes the indices of the rows of the next batch into picked (room for
 * max_rows), ascending, and returns how many: rows[0] always, then each following row of its task that still fits. */
int64_t fs_schedule(const fs_pending_row *rows, int64_t n, const fs_limits *limits, int64_t *picked);

#endif
