/* engine_kit.h - what tests of the engine share: a tiny model, rows, the bits they must give, ways to open an engine.
 *
 *   start();  fs_engine *e = opened(&model, &(setup){ .threads = 1 });  run(e, &q, &MEAN);  check_same(...);  end(); */
#ifndef FS_TEST_ENGINE_KIT_H
#define FS_TEST_ENGINE_KIT_H

#include "tiny_bert.h"

#include "engine/internal.h"
#include "random.h"
#include "test.h"

#include <pthread.h>

enum { ROWS = 32, D = 36, P = 24 };
static const tiny_shape SHAPE = { .L = 3, .D = D, .H = 2, .F = 52, .V = 60, .P = P, .prefix = "", .files = 1 };

static const fs_task MEAN = { .kind = FS_TASK_EMBED, .pooling_count = 1, .pooling = { FS_POOL_MEAN }, .normalize = 1 };
static const fs_task BOTH = { .kind = FS_TASK_EMBED, .pooling_count = 2, .pooling = { FS_POOL_CLS, FS_POOL_MEAN } };
static const fs_task HIDDEN = { .kind = FS_TASK_HIDDEN_STATES };

typedef struct {
    int32_t ids[ROWS * P + 64];
    int64_t offsets[ROWS + 1], rows;
    float out[ROWS * P * D];
    int64_t out_floats;
} request;

static inline int64_t width_of(const fs_task *task) {
    return task->kind == FS_TASK_EMBED ? task->pooling_count * D : D;
}

static inline void add_row(request *q, const int32_t *ids, int64_t tokens) {
    memcpy(q->ids + q->offsets[q->rows], ids, (size_t)tokens * sizeof *ids);
    q->offsets[q->rows + 1] = q->offsets[q->rows] + tokens;
    q->rows++;
}

static inline void make_rows(request *q, uint64_t seed, int64_t rows) {
    memset(q, 0, sizeof *q);
    while (q->rows < rows) {
        int32_t ids[P];
        int64_t tokens = random_between(&seed, 1, P);
        for (int64_t t = 0; t < tokens; t++) ids[t] = (int32_t)random_between(&seed, 0, SHAPE.V - 1);
        add_row(q, ids, tokens);
    }
}

static inline fs_request as_request(request *q, const fs_task *task) {
    q->out_floats = task->kind == FS_TASK_EMBED ? q->rows * width_of(task) : q->offsets[q->rows] * D;
    for (int64_t i = 0; i < q->out_floats; i++) q->out[i] = 99.0f;
    return (fs_request){ .task = *task,
                         .source = { .ids = q->ids, .offsets = q->offsets },
                         .rows = q->rows,
                         .out = q->out,
                         .out_floats = q->out_floats };
}

static inline fs_job *submit(fs_engine *e, request *q, const fs_task *task) {
    fs_request r = as_request(q, task);
    fs_job *j = NULL;
    CHECK_OK(fs_engine_submit(e, &r, &j));
    return j;
}

static inline void run(fs_engine *e, request *q, const fs_task *task) {
    int done = 0;
    fs_job *j = submit(e, q, task);
    CHECK_OK(fs_job_wait(j, -1, &done));
    CHECK_INT(done, 1);
    fs_job_free(j);
}

/* The part of q->out that is row i's. */
static inline const float *result(const request *q, const fs_task *task, int64_t i, int64_t *floats) {
    int per_token = task->kind == FS_TASK_HIDDEN_STATES;
    *floats = per_token ? (q->offsets[i + 1] - q->offsets[i]) * D : width_of(task);
    return q->out + (per_token ? q->offsets[i] * D : i * width_of(task));
}

static inline void check_same(const request *a, const request *b, const fs_task *task, const char *what) {
    for (int64_t i = 0; i < a->rows; i++) {
        int64_t floats;
        const float *x = result(a, task, i, &floats), *y = result(b, task, i, &floats);
        if (!memcmp(x, y, (size_t)floats * sizeof *x)) continue;
        int64_t k = 0;
        while (x[k] == y[k] && k + 1 < floats) k++;
        TEST_FAIL("%s: row %lld differs at %lld: %.9g and %.9g", what, (long long)i, (long long)k, x[k], y[k]);
        return;
    }
}

typedef struct {
    const char *devices[4];
    int device_count, threads, stage_count;
    fs_stage_plan stages[8];
    const char *parallel;
    const char *knobs[8]; /* name, value, name, value, ... */
} setup;

static inline fs_status open_as(fs_engine **e, const tiny_bert *m, const setup *s) {
    fs_engine_options o = { .threads = s->threads, .stage_count = s->stage_count, .parallel = s->parallel };
    if (s->device_count) {
        o.devices = s->devices;
        o.device_count = s->device_count;
    }
    if (s->stage_count) o.stages = s->stages;
    for (int i = 0; i < 8 && s->knobs[i]; i += 2) setenv(s->knobs[i], s->knobs[i + 1], 1);
    fs_status st = fs_engine_open(e, &m->c, &o);
    for (int i = 0; i < 8 && s->knobs[i]; i += 2) unsetenv(s->knobs[i]);
    return st;
}

static inline fs_engine *opened(const tiny_bert *m, const setup *s) {
    fs_engine *e = NULL;
    CHECK_OK(open_as(&e, m, s));
    return e;
}

static tiny_bert model;
static request reference_rows, reference_hidden; /* each row alone: mean embedding, hidden states */

/* Rows one at a time through one thread: what all other ways are compared with. */
static inline void one_by_one(fs_engine *e, request *q, const fs_task *task) {
    static request one;
    as_request(q, task);
    for (int64_t i = 0; i < q->rows; i++) {
        int64_t floats;
        float *to = (float *)result(q, task, i, &floats);
        memset(&one, 0, sizeof one);
        add_row(&one, q->ids + q->offsets[i], q->offsets[i + 1] - q->offsets[i]);
        run(e, &one, task);
        memcpy(to, one.out, (size_t)floats * sizeof *to);
    }
}

static inline void start(void) {
    tiny_open(&model, &SHAPE);
    const setup s = { .threads = 1 };
    fs_engine *e = opened(&model, &s);
    make_rows(&reference_rows, 5, ROWS);
    make_rows(&reference_hidden, 5, ROWS);
    one_by_one(e, &reference_rows, &MEAN);
    one_by_one(e, &reference_hidden, &HIDDEN);
    fs_engine_close(e);
}

static inline void end(void) { tiny_close(&model); }

/* The reference rows in one request, and in another order. */
static inline void check_engine(const setup *s, const char *what) {
    static request q, turned;
    fs_engine *e = opened(&model, s);
    make_rows(&q, 5, ROWS);
    run(e, &q, &MEAN);
    check_same(&q, &reference_rows, &MEAN, what);
    run(e, &q, &HIDDEN);
    check_same(&q, &reference_hidden, &HIDDEN, what);
    memset(&turned, 0, sizeof turned);
    for (int64_t i = 0; i < ROWS; i++) {
        int64_t from = (i * 21 + 11) % ROWS;
        add_row(&turned, q.ids + q.offsets[from], q.offsets[from + 1] - q.offsets[from]);
    }
    run(e, &turned, &MEAN);
    for (int64_t i = 0; i < ROWS; i++)
        memcpy(q.out + (i * 21 + 11) % ROWS * D, turned.out + i * D, (size_t)D * sizeof(float));
    check_same(&q, &reference_rows, &MEAN, what);
    fs_engine_close(e);
}

#endif
