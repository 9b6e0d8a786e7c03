/* backend.h - one kind of device: its memory, its queues, its weights, its ops.
 *
 * THE STEP CONTRACT. An op (ops.h) only enqueues. It never allocates, waits, reads device memory on the host or branches
 * on row data. What differs from row to row (ids, positions, offsets) lies in one block per slot at a fixed device address,
 * written by one upload from pinned memory; sizes given by the host (rows of a view, B, longest) are upper bounds that hold
 * for the whole batch. Work of one queue runs in order; across queues only events order it. A failure of enqueued work
 * is kept by its queue and comes out of the next event_wait on it.
 *
 * Owner of a device: the engine. Threads: one driver thread enqueues on a device; events may be waited for and
 * budgets read from any thread. Loading (weight_*) is for one thread at a time per weight, for several per device.
 *
 * What is left empty (NULL) in a backend's op table, fallback.c composes. */
#ifndef FS_BACKENDS_BACKEND_H
#define FS_BACKENDS_BACKEND_H

#include "base/arena.h"
#include "base/budget.h"
#include "base/status.h"
#include "base/view.h"

#include <stdatomic.h>

typedef struct fs_backend fs_backend;
typedef struct fs_ops fs_ops;
typedef struct fs_queue fs_queue; /* each backend defines its own */
typedef struct fs_event fs_event;
typedef struct fs_comm fs_comm; /* collectives.h */

/* How to open a device; zeroed means all of the host's share of device 0 of the backend. */
typedef struct {
    int index, of;        /* part `index` of the host cut into `of` (CPU); the ordinal (others). of = 0 means 1 */
    int threads;          /* CPU: threads of this device; 0: its part of the host's cores */
    size_t max_memory;    /* bytes; 0: what the device has */
    const char *path;     /* kernel path by name; NULL or "": the best there is */
    int outline; /* only what is known without opening it: name, limit, computes, weight_bytes; close it like others */
} fs_device_options;

/* The head of every backend's device struct. */
typedef struct {
    const fs_backend *backend;
    char name[32]; /* "cpu:0" */
    char numerics[96]; /* what decides the bits here, but for the type: "cpu avx2" */
    fs_budget budget;
} fs_device;

typedef struct {
    void *at;
    size_t bytes;
    fs_charge charge;
} fs_memory;

/* A weight as this device (shard) holds it. MATRIX: right side of matmul, [N, K] packed as the backend likes. TABLE: rows
 * that gather_norm reads, [N, K]. VECTOR: biases and norm weights, [1, K]. */
typedef enum { FS_MATRIX, FS_TABLE, FS_VECTOR } fs_weight_kind;

/* How a weight's numbers are stored: as they are, in `dtype`. Quantised schemes come with their kernels. */
typedef enum { FS_SCHEME_PLAIN } fs_scheme;

typedef struct {
    fs_weight_kind kind;
    fs_dtype dtype; /* of the computation */
    int64_t N, K;
    fs_scheme scheme;
    int32_t group; /* numbers along K that share a scale; 0 where the scheme has none */
} fs_weight_desc;

typedef struct {
    fs_weight_desc desc;
    void *at; /* inside the layer's slab; storage is private to the backend */
} fs_weight;

struct fs_backend {
    const char *name;
    const fs_ops *ops;
    /* The largest step is run once over this table behind loading and before the first batch, by the thread that will
     * enqueue and on the queue and memory of a real one: here an op makes what it needs and may not make later. It may
     * allocate and wait; what it leaves in the memory is nobody's. NULL: nothing is to be made. */
    const fs_ops *prepare;
    int enough_tokens; /* a batch of so many runs about as fast, token for token, as a larger one */
    int one_memory; /* the host's: what one device holds, any other can compute with, once it was loaded */

    /* Devices there are, found without opening one. */
    int (*count)(void);
    fs_status (*open)(fs_device **out, const fs_device_options *options);
    /* FS_CONFIG, as open would say it, for options that no device of this kind takes on any machine. NULL in backends that
     * users cannot name. */
    fs_status (*check)(const fs_device_options *options);
    void (*close)(fs_device *d); /* NULL is fine; all of its memory and queues were released before */
    /* Can products be computed in this type (their sums are fp32 in any case)? fp32 always can. d NULL: on any device of
     * this kind. */
    int (*computes)(const fs_device *d, fs_dtype dtype);

    /* Device memory, charged to d->budget. Contents are undefined (NaN when FIRESTEEL_TEST_POISON is set). */
    fs_status (*alloc)(fs_device *d, fs_charge charge, size_t bytes, fs_memory *out);
    /* Host memory that copies can run from and to while the host works; charged as STAGING, or as HOST. */
    fs_status (*alloc_pinned)(fs_device *d, fs_charge charge, size_t bytes, fs_memory *out);
    void (*release)(fs_device *d, fs_memory *m); /* either kind; a zeroed one is fine; *m is zeroed */

    /* Takes part, in d's thread, in what `other` computes, another device of the same engine, until *stop is set or there has
     * been nothing to do for a moment; the nanoseconds it has worked. NULL: devices of this kind work alone. */
    int64_t (*help)(fs_device *d, fs_device *other, const atomic_int *stop);

    fs_status (*queue_new)(fs_device *d, fs_queue **out);
    void (*queue_free)(fs_queue *q); /* NULL is fine; waits for what is enqueued */
    fs_status (*event_new)(fs_device *d, fs_event **out);
    void (*event_free)(fs_event *e); /* NULL is fine */
    /* The event stands for all that is in q so far. Recording again moves it. */
    fs_status (*event_record)(fs_event *e, fs_queue *q);
    /* Later work of q runs after e; the queues may be of two devices of one backend. Only enqueues. */
    fs_status (*queue_wait)(fs_queue *q, fs_event *e);
    /* Blocks the host; returns what has failed in e's queue up to e. */
    fs_status (*event_wait)(fs_event *e);

    /* Enqueued copies of whole bytes; host sides must be pinned. */
    fs_status (*upload)(fs_queue *q, void *device_to, const void *pinned_from, size_t bytes);
    fs_status (*download)(fs_queue *q, void *pinned_to, const void *device_from, size_t bytes);
    /* Enqueued on q, a queue of device `to_device`; `from` belongs to `from_device`, another device of this backend. */
    fs_status (*peer_copy)(fs_queue *q, fs_device *to_device, void *to, fs_device *from_device, const void *from,
                           size_t bytes);
    /* Enqueued: fills with NaN when FIRESTEEL_TEST_POISON is set, else nothing. For recycled arena memory. */
    fs_status (*poison)(fs_queue *q, void *at, size_t bytes);

    /* Weights. bytes: what begin will need inside a slab, a multiple of 64. Filling takes logical rows [row, row + rows)
     * of the shard's own [N, K], `from` in host memory, each row `stride_bytes` apart, of a float dtype; packing and
     * converting happen here, pieces are at most 64 MB, any order, no row twice. end: the weight can be used. */
    size_t (*weight_bytes)(fs_device *d, const fs_weight_desc *desc);
    fs_status (*weight_begin)(fs_device *d, fs_weight *w, const fs_weight_desc *desc, void *slab_at);
    fs_status (*weight_fill)(fs_device *d, fs_weight *w, int64_t row, int64_t rows, const void *from,
                             size_t stride_bytes, fs_dtype from_dtype);
    fs_status (*weight_end)(fs_device *d, fs_weight *w);

    /* Collectives over `size` devices of this backend, rank = index; see collectives.h. */
    fs_status (*comm_open)(fs_comm **out, fs_device *const ranks[], int size, double deadline_seconds);
    void (*comm_close)(fs_comm *c); /* NULL is fine */
};

/* registry.c */
extern const fs_backend *const fs_backends[]; /* ends with NULL */
/* FS_CONFIG lists the known names. */
fs_status fs_backend_find(const char *name, const fs_backend **out);

extern const fs_backend fs_cpu_backend, fs_cuda_backend, fs_measure_backend;

/* measure/measure.c: what a device of the measure backend has counted so far. */
typedef struct {
    int64_t ops, multiply_adds, read_bytes, written_bytes;
} fs_measured;
fs_measured fs_measure_read(fs_device *d);
/* The ops enqueued so far, a line each: "matmul [7,48]x[48,144] bias"; lives until the device is closed. */
const char *fs_measure_trace(fs_device *d);

#endif
