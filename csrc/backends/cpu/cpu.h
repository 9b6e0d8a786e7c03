/* cpu.h - the inside of the CPU backend: a device is a set of cores with its own pool and one kernel table.
 *
 *   driver thread --op--> queue --run--> ops_*.c cut the work into chunks --pool--> kernels (one table per path)
 *
 * A queue runs what is enqueued at once, on the thread that enqueues (it is chunk-claimer 0 of the pool): for a CPU
 * that is the quickest lawful way to keep the step contract. With FIRESTEEL_TEST_DELAY it keeps copies of the calls
 * instead and runs them when an event behind them is waited for, which finds every missing wait.
 *
 * EVENTS. The calls of a queue are numbered 1, 2, 3 ... An event holds (queue, number of its last call) from the
 * moment of event_record; one never recorded stands for nothing, and waiting for it is no wait. queue_wait takes what
 * the event holds then; recording the event anew changes nothing for it. At once: an event's calls have run when it is
 * recorded, so neither kind of wait ever blocks. Delayed: event_wait runs the calls of the event's queue up to it,
 * whoever calls it; several threads may, and each call is run by one of them. A queue_wait is then a call that runs
 * the other queue's calls up to the event. Each wait points to an earlier record, so the calls have no cycle and some
 * thread can always go on. Ranks of a collective meet while their calls run: each must be waited for by a thread of
 * its own.
 *
 * FAILURES. The first call of a queue that fails is remembered with its number and sentence; later calls are skipped.
 * Every event_wait on an event at or behind it returns it, as does the queue itself for as long as it lives: a CPU call
 * neither allocates nor meets bad rows, so what fails here (a collective, above all) leaves nothing to go on with. A
 * queue that waits for an event behind a failure inherits the failure. */
#ifndef FS_CPU_CPU_H
#define FS_CPU_CPU_H

#include "backends/backend.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/pool.h"
#include "backends/ops.h"

#include <pthread.h>

typedef struct fs_cpu_block fs_cpu_block; /* device.c: one piece of memory */

typedef struct {
    fs_device head;
    const fs_kernels *kernels;
    fs_pool *pool;
    int index;               /* which part of the host */
    int delay, poison;       /* test modes */
    pthread_mutex_t running; /* held while a call runs: the pool has one caller at a time */
    pthread_mutex_t lock;    /* of blocks */
    fs_cpu_block *blocks;
} fs_cpu_device;

/* An enqueued call: args were copied, `run` gets the copy. */
typedef fs_status (*fs_cpu_run)(fs_cpu_device *d, const void *args);
/* Runs or keeps the call (at most 256 bytes of args). A failure is kept by the queue for the next event_wait. */
fs_status fs_cpu_enqueue(fs_queue *q, fs_cpu_run run, const void *args, size_t bytes);

static inline fs_cpu_device *fs_cpu(fs_device *d) { return (fs_cpu_device *)d; }

/* device.c and ops_*.c fill one table each */
extern const fs_ops fs_cpu_ops;

/* queue.c, as backend.h says */
fs_status fs_cpu_queue_new(fs_device *d, fs_queue **out);
void fs_cpu_queue_free(fs_queue *q);
fs_status fs_cpu_event_new(fs_device *d, fs_event **out);
void fs_cpu_event_free(fs_event *e);
fs_status fs_cpu_event_record(fs_event *e, fs_queue *q);
fs_status fs_cpu_queue_wait(fs_queue *q, fs_event *e);
fs_status fs_cpu_event_wait(fs_event *e);

/* weights.c */
size_t fs_cpu_weight_bytes(fs_device *d, const fs_weight_desc *desc);
fs_status fs_cpu_weight_begin(fs_device *d, fs_weight *w, const fs_weight_desc *desc, void *slab_at);
fs_status fs_cpu_weight_fill(fs_device *d, fs_weight *w, int64_t row, int64_t rows, const void *from,
                             size_t stride_bytes, fs_dtype from_dtype);
fs_status fs_cpu_weight_end(fs_device *d, fs_weight *w);

#endif
