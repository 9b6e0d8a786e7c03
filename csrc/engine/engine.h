/* engine.h - the waist: rows in, numbers out. Replicas and their scheduler, in one process.
 *
 *   submit ->  inbox  -> scheduler thread -> batches -> driver thread of stage 0 -> ... -> last stage's driver
 *                              ^                                                                |
 *                              '---------------- rows done, slot free -------------------------'
 *
 * A job is a set of rows with one task; its rows may travel in several batches, mixed with rows of other jobs of the
 * same task. Results are written straight into the job's `out`. A job that finishes is announced on the engine's
 * eventfd.
 *
 * Thread-safe throughout. Lock order: engine, then job; no lock is held while a device works. After a fork the child's
 * engine answers FS_DEVICE to everything but close, which then only forgets it. */
#ifndef FS_ENGINE_ENGINE_H
#define FS_ENGINE_ENGINE_H

#include "placement/plan.h"

typedef struct fs_engine fs_engine;
typedef struct fs_job fs_job;

/* Zeroed is valid: all of the host's CPU, fp32. */
typedef struct {
    const char *const *devices; /* "cpu", "cpu:1", "auto"; NULL: "auto" */
    int device_count;
    const char *dtype;    /* NULL: "auto" */
    const char *cpu_path; /* NULL: the best there is */
    int threads;          /* over all CPU devices; 0: FIRESTEEL_THREADS, else the host's share */
    size_t max_memory;    /* bytes a device; 0: what it has */
    const char *parallel;        /* parallel.h; NULL: "auto" */
    const fs_stage_plan *stages; /* hand-written placement, a replica after the other; NULL: planned */
    int stage_count;
} fs_engine_options;

/* options.c: whether any machine could open an engine with these options, without asking this one: a Spark driver may have
 * other devices than its executors. FS_CONFIG with the sentence of fs_engine_open. c NULL: any model; else only its keys
 * are read. Not looked at: stages, max_memory; and numbers of "auto" and "cuda" devices, which each machine knows itself. */
fs_status fs_engine_check(const fs_engine_options *options, const fs_checkpoint *c);
/* Checks the checkpoint, opens the devices, loads the weights, starts the threads. */
fs_status fs_engine_open(fs_engine **out, const fs_checkpoint *c, const fs_engine_options *options);
/* Fails what is unfinished with FS_CANCELLED, ends the threads, frees all. NULL is fine. */
void fs_engine_close(fs_engine *e);

/* Rows one after the other: token ids or features, as the model's settings say. */
typedef struct {
    const int32_t *ids;     /* [T] id | type << FS_ID_BITS */
    const float *features;  /* [T, width] */
    int64_t width;          /* of the features */
    const int64_t *offsets; /* [rows + 1], from 0 */
} fs_tokens;

/* Everything pointed at must live until the job is finished or cancelled. */
typedef struct {
    fs_task task;
    fs_tokens source, targets; /* targets: a decoder's input, one for each row; zeroed where the model has no decoder */
    int64_t rows;
    float *out; /* embed: [rows, width]; hidden states: [T, D], of the targets where there are some */
    int64_t out_floats; /* room in out, checked */
} fs_request;

/* A row that was not computed; its part of `out` is untouched. */
typedef struct {
    int64_t row;
    fs_row_code code;
    char text[240];
} fs_row_error;

/* Checks the rows and queues them. Wrong offsets or parameters: FS_REQUEST. A wrong row (an id outside the vocabulary,
 * too many tokens, none at all for embed or beside targets) is a row error of the job, the others are computed. Blocks while the inbox is
 * full. */
fs_status fs_engine_submit(fs_engine *e, const fs_request *r, fs_job **out);
/* FS_OK and *done = 0 when the time (seconds, < 0: no limit) ran out. A failed job returns its failure, each time. */
fs_status fs_job_wait(fs_job *j, double seconds, int *done);
/* A finished job's row errors, ordered by row; borrowed from the job. */
int64_t fs_job_errors(fs_job *j, const fs_row_error **out);
int64_t fs_job_duplicates(const fs_job *j); /* of a finished job: rows that were copied from an equal row */
/* When it returns, nothing of the job is touched any more; wait then answers FS_CANCELLED unless it had finished. */
void fs_job_cancel(fs_job *j);
/* As cancel, without waiting: the job finishes once its rows that are on a device have landed. */
void fs_job_stop(fs_job *j);
void fs_job_free(fs_job *j); /* cancels; NULL is fine; before or after fs_engine_close */

int fs_engine_fd(const fs_engine *e); /* eventfd: readable when a job has finished since it was last read */
const fs_settings *fs_engine_settings(const fs_engine *e);
const fs_plan *fs_engine_plan(const fs_engine *e);
/* "replicate=2,split=2", and why; both "" where the plan was written by hand. */
const char *fs_engine_parallel(const fs_engine *e);
const char *fs_engine_plan_reason(const fs_engine *e);
/* "cpu avx2 fp32": rows of two engines with the same id have the same bits. */
const char *fs_engine_numerics(const fs_engine *e);
int fs_engine_device_count(const fs_engine *e);

typedef struct {
    int64_t rows, duplicate_rows; /* finished; of these copied from an equal row */
    int64_t tokens, batches; /* computed */
    int64_t batch_tokens; /* that a batch has room for */
    int64_t failed_rows; /* with an error of their own, or of a job that failed or was cancelled */
    int64_t queued_rows; /* submitted, not yet in a batch */
    int64_t passes, streamed_bytes; /* over streamed layers, and what was brought for them */
    int replicas, failed_replicas; /* at work; taken out, because a device failed */
    double open_seconds; /* of fs_engine_open */
} fs_engine_stats;
fs_engine_stats fs_engine_stats_read(fs_engine *e);

typedef struct {
    char name[32], numerics[96];
    size_t limit, peak, used[FS_CHARGE_COUNT];
    int threads;
    double busy_seconds;
} fs_device_stats;
fs_status fs_engine_device_stats(fs_engine *e, int device, fs_device_stats *out);

#endif
