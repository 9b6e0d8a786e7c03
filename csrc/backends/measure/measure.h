/* measure.h - the backend that computes nothing: it counts what ops would do and writes down which ones there were.
 *
 * The planner takes its figures from here, tests their golden traces. Addresses are numbers from a counter, charged to
 * the budget like memory, with nothing behind them: no op may read or write through one, and none does. Sizes are the
 * host's, hence upper bounds: sequences are taken to be as long as fs_rows says at most.
 *
 * What is counted: multiply-adds of matmul and attention; bytes of every tensor, weight and index an op takes (read)
 * and makes (written), each once. Copies and waits are no ops. Threads: one enqueues; figures may be read from any. */
#ifndef FS_MEASURE_MEASURE_H
#define FS_MEASURE_MEASURE_H

#include "backends/backend.h"
#include "backends/ops.h"

#include <pthread.h>

/* The trace so far. A reader keeps the text it was given when a longer one replaces it: old ones live on in the
 * chain. */
typedef struct fs_trace_text fs_trace_text;
struct fs_trace_text {
    fs_trace_text *older;
    size_t used, room;
    char text[];
};

typedef struct {
    fs_device head;
    pthread_mutex_t lock; /* of all that follows */
    char *next;           /* address to give out */
    fs_measured counted;
    fs_trace_text *trace;
} fs_measure_device;

extern const fs_ops fs_measure_ops; /* ops.c */

/* Adds an op's figures and its line. */
fs_status fs_measure_op(fs_device *d, fs_measured figures, const char *line);

#endif
