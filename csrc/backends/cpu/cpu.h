/* cpu.h - the inside of the CPU backend: a device is a set of cores with its own pool and one kernel table.
 *
 *   driver thread --op--> queue --run--> ops_*.c cut the work into chunks --pool--> kernels (one table per path)
 *
 * A queue runs what is enqueued at once, on the thread that enqueues (it is chunk-claimer 0 of the pool): for a CPU that
 * is the quickest lawful way to keep the step contract. With FIRESTEEL_TEST_DELAY it keeps copies of the calls instead and
 * runs them when an event behind them is waited for, which finds every missing wait. */
#ifndef FS_CPU_CPU_H
#define FS_CPU_CPU_H

#include "backends/backend.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/pool.h"
#include "backends/ops.h"

typedef struct {
    fs_device head;
    const fs_kernels *kernels;
    fs_pool *pool;
    int delay, poison; /* test modes */
} fs_cpu_device;

/* An enqueued call: args were copied, `run` gets the copy. */
typedef fs_status (*fs_cpu_run)(fs_cpu_device *d, const void *args);
/* Runs or keeps the call (at most 256 bytes of args). A failure is kept by the queue for the next event_wait. */
fs_status fs_cpu_enqueue(fs_queue *q, fs_cpu_run run, const void *args, size_t bytes);

static inline fs_cpu_device *fs_cpu(fs_device *d) { return (fs_cpu_device *)d; }

/* device.c and ops_*.c fill one table each */
extern const fs_ops fs_cpu_ops;

/* weights.c */
size_t fs_cpu_weight_bytes(fs_device *d, const fs_weight_desc *desc);
fs_status fs_cpu_weight_begin(fs_device *d, fs_weight *w, const fs_weight_desc *desc, void *slab_at);
fs_status fs_cpu_weight_fill(fs_device *d, fs_weight *w, int64_t row, int64_t rows, const void *from,
                             size_t stride_bytes, fs_dtype from_dtype);
fs_status fs_cpu_weight_end(fs_device *d, fs_weight *w);

#endif
