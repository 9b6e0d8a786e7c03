#include "engine/schedule.h"

int64_t fs_schedule(const fs_pending_row *rows, int64_t n, const fs_limits *limits, int64_t *picked) {
    if (n == 0) return 0;
    int64_t count = 0, tokens = rows[0].tokens;
    picked[count++] = 0;
    /* A row that does not fit is passed over: shorter ones behind it may, and it leads a batch when its turn comes. */
    for (int64_t i = 1; i < n && count < limits->max_rows && tokens < limits->max_tokens; i++) {
        if (rows[i].task != rows[0].task || rows[i].tokens > limits->max_tokens - tokens) continue;
        tokens += rows[i].tokens;
        picked[count++] = i;
    }
    return count;
}
