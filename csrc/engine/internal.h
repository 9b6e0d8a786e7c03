/* internal.h - the engine's inside: what there is, who runs what, and the one lock.
 *
 *   engine -- replica -- stage -- part (one rank of the stage: a shard of weights on one device)
 *      |                   '----- slot (one batch in flight; each part has its memory for it)
 *      '---- driver (one a device: its thread enqueues and waits for all parts of the device)
 *
 *   job.c       checks of a request, a job's life           any thread
 *   rows.c      waiting rows, equal rows, withdrawal        under the lock
 *   scheduler.c rows -> batches                             scheduler thread
 *   batch.c     a batch's way through slots, its results    under the lock; copies results outside of it
 *   driver.c    in which order steps are enqueued, waiting  driver threads
 *   step.c      a batch's step in a stage                   driver threads
 *   stream.c    layers that are brought for each pass       a thread a part that has such
 *   stage.c     memory of parts and slots                   open and close
 *
 * engine->lock guards all that changes here, except what a comment gives to one thread. It is never held while a device
 * works, while results are copied or while anything is allocated. After open only submit
 * allocates.
 *
 * Order, and why nothing can wait in a circle: a batch enters the queues (fifo) of all drivers of a stage at one moment
 * under the lock, only when a slot is free and the stage before has been enqueued. Each driver enqueues in the order of
 * its fifo and waits in that same order. So the ranks of every tensor group meet in one order, and what a driver
 * waits for was always dispatched earlier than what it has not enqueued yet. */
#ifndef FS_ENGINE_INTERNAL_H
#define FS_ENGINE_INTERNAL_H

#include "base/clock.h"
#include "base/thread.h"
#include "engine/engine.h"
#include "engine/schedule.h"
#include "engine/stream.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>
#include <sys/types.h>

#define FS_WINDOW     1024         /* rows the scheduler looks at */
#define FS_INBOX_ROWS (1 << 20) /* submit blocks while more are queued */
#define FS_INBOX_JOBS 4096
#define FS_BUCKETS    (1 << 16)

typedef struct fs_row fs_row;
typedef struct fs_slot fs_slot;
typedef struct fs_stage fs_stage;
typedef struct fs_replica fs_replica;
typedef struct fs_driver fs_driver;

/* A row's life; only the function in brackets may take the step.
 *
 *   NEW -[admit]-> WAITING -[list]-> LISTED -[batch]-> FLYING -[land]-> GONE
 *         '------> FOLLOWING ------------------[land]----^       any but FLYING -[withdraw]-> GONE
 *                      '--[withdraw, when its leader goes]--> WAITING
 *
 * A WAITING, LISTED or FLYING row leads: it is in the hash table, and rows equal to it follow in its ring. */
typedef enum { FS_NEW, FS_WAITING, FS_LISTED, FS_FOLLOWING, FS_FLYING, FS_GONE } fs_row_state;

struct fs_row {
    fs_job *job;
    fs_row *next, *prev; /* ring of equal rows; alone: itself */
    fs_row *bucket;      /* next leader of the hash bucket */
    uint64_t hash;
    int64_t index; /* in the request */
    int32_t tokens, target_tokens; /* tokens: of both */
    fs_row_state state;
};

struct fs_job {
    fs_engine *engine;
    fs_request request; /* memory of the caller, borrowed until finished */
    int32_t task;       /* equal tasks of unfinished jobs have equal numbers */
    int64_t width;      /* floats of an output row */
    fs_row *rows;       /* the rows to compute, longest first */
    int64_t row_count, admitted, taken; /* taken <= admitted: rows[taken] is the next to list */
    int64_t left, flying;
    fs_row_error *errors;
    int64_t error_count, error_room, duplicates;
    fs_error error;      /* why it failed; FS_OK: it did not */
    atomic_int finished; /* set under the lock, last; nothing of the request is touched from then on */
    pthread_cond_t done;
    int64_t arrival;
    int queued; /* in the engine's queue */
    TAILQ_ENTRY(fs_job) live_link, inbox_link, queue_link;
};
TAILQ_HEAD(fs_job_list, fs_job);

/* Host or device addresses of what differs from batch to batch: offsets [B + 1], ids, positions and types [T], features
 * [T, D] where a row is made of them, at places that depend on the limits only. */
typedef struct {
    int32_t *offsets, *ids, *positions, *types;
    float *features; /* NULL: ids, or not the first stage */
} fs_block_side;

/* Whole numbers of both sides come first, then features, of which only those of the batch are uploaded. */
typedef struct {
    fs_block_side source, targets; /* targets: NULL where the model has none */
    size_t number_bytes;
} fs_block;

/* A part's memory for one slot. Used by the part's driver while a batch is in the slot. */
typedef struct {
    fs_memory arena_memory, block_memory, pinned_memory, out_memory; /* out: pinned; rank 0 of the last stage only */
    fs_arena arena;
    fs_block device_block, host_block;
    /* numbers and carry are here; results can leave; the whole step */
    fs_event *arrived, *computed, *done;
    fs_carry carry;          /* what the next stage copies; valid once the step is enqueued */
} fs_space;

typedef struct {
    fs_stage *stage;
    int rank;
    fs_driver *driver;
    fs_shard shard;          /* its own weights; empty where another part lends them */
    const fs_shard *weights; /* what it computes with, once all drivers have loaded */
    fs_stream *stream;        /* of the layers that the shard does not hold; or NULL */
    fs_memory scratch_memory; /* with a stream: for the batches of a pass in turn */
    /* of steps; of what comes and of what goes: all one where the memory is the host's */
    fs_queue *queue, *in, *out;
    fs_space spaces[FS_MAX_SLOTS];
} fs_part;

struct fs_slot {
    int index;
    int holds; /* parts not waited for + copies not waited for + 1 until the batch has moved on */
};

typedef struct fs_batch {
    fs_replica *replica;
    fs_task task;
    int64_t count, tokens, longest;           /* of the rows; tokens without those of targets */
    int64_t target_tokens, longest_target;
    int64_t later;          /* rows behind those that wait for their turn, after the device had no room for all */
    int64_t width;          /* floats of a result row */
    fs_row **rows;          /* [count + later] leaders */
    fs_slot **slots;        /* [stages] where it is or was */
    int open;               /* parts not waited for + 1 while stages are to come */
    fs_error error;         /* the first failure */
    int broken;             /* the failure is the device's */
    const float *results;   /* in the last slot's pinned memory */
    int64_t result_stride;
    STAILQ_ENTRY(fs_batch) link;
} fs_batch;
STAILQ_HEAD(fs_batch_list, fs_batch);

struct fs_stage {
    fs_engine *engine;
    fs_replica *replica;
    const fs_stage_plan *plan;
    int index, last; /* last: no stage follows */
    fs_ops ops;
    fs_comm *comm; /* NULL in a group of one */
    fs_part parts[FS_MAX_GROUP];
    fs_slot slots[FS_MAX_SLOTS];
    fs_slot *free[FS_MAX_SLOTS]; /* a stack: the slot used last is the one in the caches */
    int free_count;
    struct fs_batch_list waiting; /* for a free slot; in order */
};

struct fs_replica {
    const fs_replica_plan *plan;
    fs_stage *stages; /* [plan->stage_count] */
    int stage_count;
    int streams; /* one of its stages streams layers */
    int broken;  /* one of its devices failed: it gets no more batches */
    fs_batch *batches;
    int batch_count;
    struct fs_batch_list free;
};

typedef struct {
    fs_batch *batch;
    fs_part *part;
    fs_slot *slot;
} fs_work;

/* One batch's step while it is enqueued. */
typedef struct {
    fs_work work;
    fs_step step;
    fs_rows rows, targets;
    fs_carry carry;
    fs_arena scratch;
    fs_status status;
    fs_error error; /* where status is not FS_OK */
} fs_run;

typedef struct {
    fs_part *part;
    int count;
    fs_run runs[FS_MAX_SLOTS];
    int64_t waited_ns;      /* for layers to come */
    int64_t streamed_bytes; /* of layers that came */
} fs_pass;

/* Ring of fixed room. */
typedef struct {
    fs_work *items;
    int room, head, count;
} fs_works;

struct fs_driver {
    fs_engine *engine;
    fs_device *device;
    int threads;
    pthread_t thread;
    int started;
    const fs_checkpoint *loading; /* during open */
    int loaded;                   /* the driver has loaded its shards, or failed: error */
    fs_error error;
    pthread_cond_t wake;
    fs_works fifo;   /* dispatched, to be enqueued */
    fs_works flight; /* enqueued, to be waited for; the driver's own */
    int ahead;       /* the driver's own: enqueue before waiting */
    int working;     /* it enqueues: on a CPU, it computes */
    atomic_int called; /* there is something for it: to end its help of others */
    int helped;        /* the device that it helped last: the first one it looks at */
    int64_t busy_ns;
};

struct fs_engine {
    pid_t pid;
    atomic_int refs; /* the opener's and one a job */
    fs_settings set;
    fs_plan plan;
    char parallel[FS_PARALLEL_TEXT], why[900]; /* as the planner says; "" where the plan was written by hand */
    char numerics[160];
    fs_limits limits; /* max_tokens: the scheduler's own */
    fs_capacity capacity;
    int fd;

    fs_driver *drivers;
    int device_count;
    int load_threads; /* that read weights, over all devices */
    fs_replica *replicas;
    int replica_count;
    pthread_t scheduler;
    int scheduler_started;

    pthread_mutex_t lock;
    pthread_cond_t work;  /* for the scheduler: rows, a free slot, stopping */
    pthread_cond_t room;  /* for submit: the inbox has room */
    pthread_cond_t other; /* for open and close: a driver has loaded, a submitter has left */
    int stopping;
    int visitors;    /* threads inside submit */
    fs_error broken; /* the engine cannot go on */
    int32_t last_task;
    int64_t arrivals, live_jobs;
    int open_batches; /* started and not landed */
    struct fs_job_list live;  /* unfinished, by arrival */
    struct fs_job_list inbox; /* of these: with rows not admitted */
    struct fs_job_list queue; /* of these: with rows not listed */
    fs_row **buckets;
    fs_pending_row *pending; /* the window: [listed] */
    fs_row **listed_rows;    /* the same rows */
    int64_t listed;
    int64_t *picked; /* the scheduler's own */
    fs_engine_stats stats;
};

/* engine.c */
void fs_engine_unref(fs_engine *e);

/* stage.c */
/* The index-th replica of the plan; those before it are open. */
fs_status fs_replica_open(fs_engine *e, int index, double deadline_seconds);
void fs_replica_close(fs_replica *r); /* one that failed to open half-way is fine */
/* Loads the shards of all parts on the driver's device that nobody lends them, and lets the device prepare. */
fs_status fs_driver_load(fs_driver *d);

/* job.c; all under the lock */
/* The job fails with `error` unless it has finished; it finishes at once or when its last flying row has landed. */
void fs_job_fail(fs_job *j, const fs_error *error);
/* Row r of j finds no room on the device: a row error, unless there is no memory even for that. */
void fs_job_row_too_big(fs_job *j, const fs_row *r, const fs_error *why);
/* A row has landed, or the job was failed: finishes it if that was the last. */
void fs_job_settle(fs_job *j);

/* rows.c */
/* Row `row`, as the bytes that it is made of. */
static inline const void *fs_tokens_row(const fs_tokens *t, int64_t row, size_t *bytes) {
    const int64_t first = t->offsets[row], tokens = t->offsets[row + 1] - first;
    *bytes = (size_t)tokens * (t->features ? (size_t)t->width * sizeof *t->features : sizeof *t->ids);
    return t->features ? (const void *)(t->features + first * t->width) : (const void *)(t->ids + first);
}
/* All under the lock. */
void fs_rows_admit(fs_engine *e, int64_t most);     /* NEW rows of the first job of the inbox */
void fs_rows_list(fs_engine *e);                    /* fills the window */
void fs_rows_take(fs_engine *e, fs_batch *b);       /* window -> batch, by fs_schedule */
void fs_rows_count(fs_batch *b);                    /* the batch's tokens and longest, from its rows */
void fs_rows_withdraw(fs_job *j);                   /* all that are not flying */
void fs_rows_forget(fs_engine *e, fs_row *leader);  /* out of the hash table: nobody can follow from now on */

/* batch.c */
fs_replica *fs_replica_with_room(fs_engine *e);
void fs_batch_start(fs_replica *r, fs_batch *b);                    /* under the lock */
void fs_batch_enqueued(fs_batch *b, fs_part *part);                 /* rank 0 of a stage; under the lock */
void fs_batch_failed(fs_batch *b, const fs_error *error, int broken); /* under the lock */
void fs_slot_release(fs_stage *stage, fs_slot *slot);               /* under the lock */
void fs_batch_part_done(fs_batch *b, fs_part *part,
                        fs_slot *slot); /* under the lock, which it may let go for a while */
fs_work fs_works_take(fs_works *w);
void fs_works_add(fs_works *w, fs_work item);

/* step.c, on the part's driver and without the lock: enqueues the works of the pass, each run's status is set. */
void fs_pass_enqueue(fs_pass *p);
/* fs_backend.prepare: the part's share of the largest step, in the memory of its first slot; waits for it. */
fs_status fs_part_prepare(fs_part *p);

/* scheduler.c, driver.c */
void *fs_scheduler_main(void *engine);
void *fs_driver_main(void *driver);
void fs_driver_call(fs_driver *d); /* under the lock: there is something for it */

#endif
