/* The engine over the CPU backend, on tiny random BERTs: same bits on every path, and every way out. */
#include "tiny_bert.h"

#include "backends/cpu/cpu.h"
#include "engine/internal.h"
#include "random.h"
#include "test.h"

#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>

enum { ROWS = 32, D = 36, P = 24 };
static const tiny_shape SHAPE = { .L = 3, .D = D, .H = 2, .F = 52, .V = 60, .P = P, .prefix = "", .files = 1 };

static const fs_task MEAN = { .kind = FS_TASK_EMBED, .pooling_count = 1, .pooling = { FS_POOL_MEAN }, .normalize = 1 };
static const fs_task BOTH = { .kind = FS_TASK_EMBED, .pooling_count = 2, .pooling = { FS_POOL_CLS, FS_POOL_MEAN } };
static const fs_task HIDDEN = { .kind = FS_TASK_HIDDEN_STATES };

/* ---- what every test needs ---- */

typedef struct {
    int32_t ids[ROWS * P + 64];
    int64_t offsets[ROWS + 1], rows;
    float out[ROWS * P * D];
    int64_t out_floats;
} request;

static int64_t width_of(const fs_task *task) { return task->kind == FS_TASK_EMBED ? task->pooling_count * D : D; }

static void add_row(request *q, const int32_t *ids, int64_t tokens) {
    memcpy(q->ids + q->offsets[q->rows], ids, (size_t)tokens * sizeof *ids);
    q->offsets[q->rows + 1] = q->offsets[q->rows] + tokens;
    q->rows++;
}

static void make_rows(request *q, uint64_t seed, int64_t rows) {
    memset(q, 0, sizeof *q);
    while (q->rows < rows) {
        int32_t ids[P];
        int64_t tokens = random_between(&seed, 1, P);
        for (int64_t t = 0; t < tokens; t++) ids[t] = (int32_t)random_between(&seed, 0, SHAPE.V - 1);
        add_row(q, ids, tokens);
    }
}

static fs_request as_request(request *q, const fs_task *task) {
    q->out_floats = task->kind == FS_TASK_EMBED ? q->rows * width_of(task) : q->offsets[q->rows] * D;
    for (int64_t i = 0; i < q->out_floats; i++) q->out[i] = 99.0f;
    return (fs_request){
        .task = *task, .ids = q->ids, .offsets = q->offsets, .rows = q->rows, .out = q->out, .out_floats = q->out_floats
    };
}

static fs_job *submit(fs_engine *e, request *q, const fs_task *task) {
    fs_request r = as_request(q, task);
    fs_job *j = NULL;
    CHECK_OK(fs_engine_submit(e, &r, &j));
    return j;
}

static void run(fs_engine *e, request *q, const fs_task *task) {
    int done = 0;
    fs_job *j = submit(e, q, task);
    CHECK_OK(fs_job_wait(j, -1, &done));
    CHECK_INT(done, 1);
    fs_job_free(j);
}

/* The part of q->out that is row i's. */
static const float *result(const request *q, const fs_task *task, int64_t i, int64_t *floats) {
    int per_token = task->kind == FS_TASK_HIDDEN_STATES;
    *floats = per_token ? (q->offsets[i + 1] - q->offsets[i]) * D : width_of(task);
    return q->out + (per_token ? q->offsets[i] * D : i * width_of(task));
}

static void check_same(const request *a, const request *b, const fs_task *task, const char *what) {
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
    const char *devices[3];
    int device_count, threads, stage_count;
    fs_stage_plan stages[8];
    const char *knobs[8]; /* name, value, name, value, ... */
} setup;

static fs_status open_as(fs_engine **e, const tiny_bert *m, const setup *s) {
    fs_engine_options o = { .threads = s->threads, .stage_count = s->stage_count };
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

static fs_engine *opened(const tiny_bert *m, const setup *s) {
    fs_engine *e = NULL;
    CHECK_OK(open_as(&e, m, s));
    return e;
}

static tiny_bert model;
static request reference_rows, reference_hidden; /* each row alone: mean embedding, hidden states */

/* Rows one at a time through one thread: what all other ways are compared with. */
static void one_by_one(fs_engine *e, request *q, const fs_task *task) {
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

static void start(void) {
    tiny_open(&model, &SHAPE);
    const setup s = { .threads = 1 };
    fs_engine *e = opened(&model, &s);
    make_rows(&reference_rows, 5, ROWS);
    make_rows(&reference_hidden, 5, ROWS);
    one_by_one(e, &reference_rows, &MEAN);
    one_by_one(e, &reference_hidden, &HIDDEN);
    fs_engine_close(e);
}

static void end(void) { tiny_close(&model); }

/* The reference rows in one request, and in another order. */
static void check_engine(const setup *s, const char *what) {
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

/* ---- same bits ---- */

static void any_batch_any_threads(void) {
    static const char *const budgets[] = { "1", "17", "64", "2048" };
    start();
    for (int threads = 1; threads <= 4; threads *= 2)
        for (int b = 0; b < 4; b++) {
            char what[64];
            const setup s = { .threads = threads, .knobs = { "FIRESTEEL_BATCH_TOKENS", budgets[b] } };
            snprintf(what, sizeof what, "%d threads, %s tokens a batch", threads, budgets[b]);
            check_engine(&s, what);
        }
    end();
}

static const char *const MODES[][5] = {
    { "plain", "0", "0" }, { "delayed", "1", "0" }, { "poisoned", "0", "1" }, { "delayed and poisoned", "1", "1" }
};

static void check_modes(const setup *base, const char *what) {
    static const char *const slots[] = { "1", "2", "3" };
    for (int m = 0; m < 4; m++)
        for (int n = 0; n < 3; n++) {
            char text[128];
            setup s = *base;
            const char *knobs[8] = { "FIRESTEEL_TEST_DELAY", MODES[m][1], "FIRESTEEL_TEST_POISON",  MODES[m][2],
                                     "FIRESTEEL_SLOTS",      slots[n],    "FIRESTEEL_BATCH_TOKENS", "48" };
            memcpy(s.knobs, knobs, sizeof knobs);
            snprintf(text, sizeof text, "%s, %s, %s slots", what, MODES[m][0], slots[n]);
            check_engine(&s, text);
        }
}

static void slots_and_modes(void) {
    start();
    const setup s = { .threads = 1 };
    check_modes(&s, "one device");
    end();
}

static void cut_after_every_layer(void) {
    start();
    const setup two = { .devices = { "cpu:0", "cpu:1" },
                        .device_count = 2,
                        .stage_count = 3,
                        .stages = { { 0, 1, 1, { 0 } }, { 1, 2, 1, { 1 } }, { 2, 3, 1, { 0 } } } };
    const setup one = { .devices = { "cpu" },
                        .device_count = 1,
                        .stage_count = 3,
                        .threads = 2,
                        .stages = { { 0, 1, 1, { 0 } }, { 1, 2, 1, { 0 } }, { 2, 3, 1, { 0 } } } };
    check_modes(&two, "cut over two devices");
    check_modes(&one, "cut on one device");
    end();
}

static void tensor_shards(void) {
    static request q, first;
    start();
    const setup plans[] = {
        { .devices = { "cpu:0", "cpu:1" }, .device_count = 2, .stage_count = 1, .stages = { { 0, 3, 2, { 0, 1 } } } },
        { .devices = { "cpu:0", "cpu:1" },
          .device_count = 2,
          .stage_count = 3,
          .stages = { { 0, 1, 2, { 0, 1 } }, { 1, 2, 2, { 1, 0 } }, { 2, 3, 2, { 0, 1 } } } },
        { .devices = { "cpu:0", "cpu:1" },
          .device_count = 2,
          .stage_count = 3,
          .stages = { { 0, 1, 1, { 1 } }, { 1, 2, 2, { 0, 1 } }, { 2, 3, 1, { 0 } } } },
    };
    for (int p = 0; p < 3; p++)
        for (int again = 0; again < 6; again++) {
            setup s = plans[p];
            const char *knobs[8] = { "FIRESTEEL_TEST_DELAY", again / 2 % 2 ? "1" : "0", "FIRESTEEL_TEST_POISON",
                                     again / 3 ? "1" : "0",  "FIRESTEEL_BATCH_TOKENS",  again % 2 ? "50" : "300" };
            memcpy(s.knobs, knobs, sizeof knobs);
            fs_engine *e = opened(&model, &s);
            CHECK(strstr(fs_engine_numerics(e), "tensor 2"));
            make_rows(&q, 5, ROWS);
            run(e, &q, &HIDDEN);
            fs_engine_close(e);
            if (again) {
                check_same(&q, &first, &HIDDEN, "a tensor group, run again");
                continue;
            }
            first = q;
            for (int64_t t = 0; t < q.offsets[ROWS]; t++) {
                double off = 0, norm = 0;
                for (int64_t k = t * D; k < (t + 1) * D; k++) {
                    off += pow(q.out[k] - reference_hidden.out[k], 2);
                    norm += pow(reference_hidden.out[k], 2);
                }
                if (!(sqrt(off / norm) < 1e-5))
                    TEST_FAIL("plan %d, token %lld is off by %g", p, (long long)t, sqrt(off / norm));
            }
        }
    end();
}

static void duplicates_are_computed_once(void) {
    static request q, other, both;
    start();
    const setup s = { .threads = 1, .knobs = { "FIRESTEEL_BATCH_TOKENS", "40" } };
    const fs_task tasks[] = { MEAN, HIDDEN };
    for (int k = 0; k < 2; k++) {
        fs_engine *e = opened(&model, &s);
        const request *expected = k ? &reference_hidden : &reference_rows;
        memset(&q, 0, sizeof q);
        for (int64_t i = 0; i < ROWS; i++) {
            int64_t from = i * i % 5;
            add_row(&q, expected->ids + expected->offsets[from], expected->offsets[from + 1] - expected->offsets[from]);
        }
        run(e, &q, &tasks[k]);
        int64_t distinct_tokens = 0, floats;
        for (int64_t i = 0; i < ROWS; i++) {
            int64_t from = i * i % 5;
            const float *x = result(expected, &tasks[k], from, &floats);
            CHECK(!memcmp(x, result(&q, &tasks[k], i, &floats), (size_t)floats * sizeof *x));
        }
        for (int64_t from = 0; from < 5; from++) /* squares modulo 5 are 0, 1, 4 */
            if (from != 2 && from != 3) distinct_tokens += expected->offsets[from + 1] - expected->offsets[from];
        fs_engine_stats stats = fs_engine_stats_read(e);
        CHECK_INT(stats.rows, ROWS);
        CHECK_INT(stats.duplicate_rows, ROWS - 3);
        CHECK_INT(stats.tokens, distinct_tokens);
        CHECK_INT(stats.queued_rows, 0);
        /* the same ids for another task are no duplicates */
        make_rows(&other, 5, 4);
        make_rows(&both, 5, 4);
        fs_job *a = submit(e, &other, &MEAN), *b = submit(e, &both, &BOTH);
        int done;
        CHECK_OK(fs_job_wait(a, -1, &done));
        CHECK_OK(fs_job_wait(b, -1, &done));
        check_same(&other, &reference_rows, &MEAN, "beside another task");
        fs_job_free(a);
        fs_job_free(b);
        fs_engine_close(e);
    }
    end();
}

/* ---- a gate in front of the first op, to catch the engine at work ---- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t turned;
    int held, inside;
    fs_ops original;
} gate = { .lock = PTHREAD_MUTEX_INITIALIZER, .turned = PTHREAD_COND_INITIALIZER };

static fs_status gated(fs_step *s, fs_view y, const fs_gather *tables, int n, const fs_weight *gamma,
                       const fs_weight *beta, float eps) {
    pthread_mutex_lock(&gate.lock);
    gate.inside++;
    pthread_cond_broadcast(&gate.turned);
    while (gate.held) pthread_cond_wait(&gate.turned, &gate.lock);
    gate.inside--;
    pthread_mutex_unlock(&gate.lock);
    return gate.original.gather_norm(s, y, tables, n, gamma, beta, eps);
}

static void gate_set(int held) {
    pthread_mutex_lock(&gate.lock);
    gate.held = held;
    pthread_cond_broadcast(&gate.turned);
    pthread_mutex_unlock(&gate.lock);
}

static void gate_put(fs_engine *e) {
    gate.original = e->replicas[0].stages[0].ops;
    e->replicas[0].stages[0].ops.gather_norm = gated;
    gate_set(1);
}

static void gate_await(void) {
    pthread_mutex_lock(&gate.lock);
    while (!gate.inside) pthread_cond_wait(&gate.turned, &gate.lock);
    pthread_mutex_unlock(&gate.lock);
}

static void nap(double seconds) {
    struct timespec t = { .tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9) };
    nanosleep(&t, NULL);
}

static void *open_gate_later(void *none) {
    nap(0.03);
    gate_set(0);
    return none;
}

static void cancel_in_mid_run(void) {
    static request q, same, rest, after;
    pthread_t opener;
    int done;
    start();
    const setup s = { .threads = 1, .knobs = { "FIRESTEEL_BATCH_TOKENS", "40" } };
    fs_engine *e = opened(&model, &s);
    gate_put(e);
    make_rows(&q, 5, ROWS);
    make_rows(&same, 5, ROWS); /* follows q's rows: must lead when q goes */
    make_rows(&rest, 5, ROWS);
    fs_job *a = submit(e, &q, &MEAN);
    gate_await();
    fs_job *b = submit(e, &same, &MEAN), *c = submit(e, &rest, &MEAN);
    nap(0.01); /* the scheduler admits them */
    CHECK_OK(fs_job_wait(a, 0.01, &done));
    CHECK_INT(done, 0);
    pthread_create(&opener, NULL, open_gate_later, NULL);
    fs_job_cancel(a);
    after = q; /* from here on q's memory is the caller's again */
    memset(q.ids, 0xff, sizeof q.ids);
    CHECK_FAILS(fs_job_wait(a, -1, &done), FS_CANCELLED, "cancelled");
    CHECK_FAILS(fs_job_wait(a, -1, &done), FS_CANCELLED, "cancelled");
    fs_job_cancel(c);
    CHECK_OK(fs_job_wait(b, -1, &done));
    check_same(&same, &reference_rows, &MEAN, "after its leader was cancelled");
    CHECK(!memcmp(after.out, q.out, sizeof q.out));
    pthread_join(opener, NULL);
    fs_job_cancel(b); /* finished: nothing happens */
    CHECK_OK(fs_job_wait(b, 0, &done));
    fs_job_free(a);
    fs_job_free(b);
    fs_job_free(c);
    CHECK_INT(fs_engine_stats_read(e).queued_rows, 0);
    run(e, &same, &MEAN);
    check_same(&same, &reference_rows, &MEAN, "after a cancel");
    fs_engine_close(e);
    end();
}

static void close_with_running_jobs(void) {
    static request q[3];
    pthread_t opener;
    fs_job *jobs[3];
    int done;
    start();
    const setup s = { .threads = 2, .knobs = { "FIRESTEEL_BATCH_TOKENS", "40" } };
    fs_engine *e = opened(&model, &s);
    gate_put(e);
    for (int i = 0; i < 3; i++) {
        make_rows(&q[i], 5 + (uint64_t)(i / 2), ROWS);
        jobs[i] = submit(e, &q[i], &MEAN);
    }
    gate_await();
    pthread_create(&opener, NULL, open_gate_later, NULL);
    fs_engine_close(e);
    pthread_join(opener, NULL);
    for (int i = 0; i < 3; i++) {
        CHECK_FAILS(fs_job_wait(jobs[i], -1, &done), FS_CANCELLED, "closed");
        CHECK_INT(done, 1);
        fs_job_free(jobs[i]); /* after close: allowed in fact */
    }
    end();
}

/* ---- requests ---- */

static void wrong_rows(void) {
    static request q;
    static int32_t many[64];
    start();
    const setup s = { .threads = 1 };
    fs_engine *e = opened(&model, &s);
    int32_t foreign[] = { 1, 60, 2 }, negative[] = { -1 };
    memset(&q, 0, sizeof q);
    add_row(&q, reference_rows.ids, reference_rows.offsets[1]);
    add_row(&q, foreign, 3);
    add_row(&q, many, P + 1);
    add_row(&q, many, 0);
    add_row(&q, negative, 1);
    add_row(&q, reference_rows.ids, reference_rows.offsets[1]);
    fs_job *j = submit(e, &q, &MEAN);
    int done;
    CHECK_OK(fs_job_wait(j, -1, &done));
    const fs_row_error *errors;
    CHECK_INT(fs_job_errors(j, &errors), 4);
    const struct {
        int64_t row;
        fs_row_code code;
        const char *part;
    } expected[] = { { 1, FS_ROW_SCHEMA, "token id 60 at token 1; the vocabulary has 0 to 59" },
                     { 2, FS_ROW_TOO_LONG, "25 tokens; the model takes 24" },
                     { 3, FS_ROW_SCHEMA, "no tokens" },
                     { 4, FS_ROW_SCHEMA, "token id -1" } };
    for (int i = 0; i < 4; i++) {
        CHECK_INT(errors[i].row, expected[i].row);
        CHECK_INT(errors[i].code, expected[i].code);
        if (!strstr(errors[i].text, expected[i].part)) TEST_FAIL("'%s' lacks '%s'", errors[i].text, expected[i].part);
        CHECK(q.out[errors[i].row * D] == 99.0f);
    }
    CHECK(!memcmp(q.out, reference_rows.out, (size_t)D * sizeof(float)));
    CHECK(!memcmp(q.out + 5 * D, reference_rows.out, (size_t)D * sizeof(float)));
    fs_job_free(j);

    memset(&q, 0, sizeof q); /* for hidden states a row of no tokens is legal */
    add_row(&q, many, 0);
    add_row(&q, reference_hidden.ids, reference_hidden.offsets[1]);
    add_row(&q, many, 0);
    run(e, &q, &HIDDEN);
    CHECK(!memcmp(q.out, reference_hidden.out, (size_t)(q.offsets[3] * D) * sizeof(float)));
    memset(&q, 0, sizeof q);
    run(e, &q, &MEAN);
    CHECK_INT(fs_engine_stats_read(e).failed_rows, 4);
    fs_engine_close(e);
    end();
}

static void wrong_requests(void) {
    static request q;
    start();
    const setup s = { .threads = 1 };
    fs_engine *e = opened(&model, &s);
    fs_job *j = (fs_job *)&q;
    const int64_t falling[] = { 0, 3, 2 }, late[] = { 1, 2 };
    make_rows(&q, 5, 2);
    const fs_request good = as_request(&q, &MEAN);
    fs_request r = good;
    r.out_floats--;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "room for 71 floats; the result has 2 rows of 36");
    CHECK(j == NULL);
    r = good;
    r.offsets = falling;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "fall from 3 to 2 at row 1");
    r.offsets = late;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "start with 0");
    r = good;
    r.rows = -1;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "-1 rows");
    r = good;
    r.ids = NULL;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "token ids");
    r = good;
    r.task.pooling_count = 0;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "pooling");
    r = good;
    r.task = HIDDEN;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "room for");
    fs_engine_close(e);
    end();
}

static void wrong_options(void) {
    fs_engine *e;
    start();
    const setup two = { .devices = { "cpu:0", "cpu:1" }, .device_count = 2 };
    CHECK_FAILS(open_as(&e, &model, &two), FS_CONFIG, "2 devices");
    CHECK(e == NULL);
    const setup twice = { .stage_count = 1, .stages = { { 0, 2, 1, { 0 } } } };
    CHECK_FAILS(open_as(&e, &model, &twice), FS_CONFIG, "the model has 3");
    const setup slots = { .knobs = { "FIRESTEEL_SLOTS", "0" } };
    CHECK_FAILS(open_as(&e, &model, &slots), FS_CONFIG, "FIRESTEEL_SLOTS is '0'");
    const setup tokens = { .knobs = { "FIRESTEEL_BATCH_TOKENS", "many" } };
    CHECK_FAILS(open_as(&e, &model, &tokens), FS_CONFIG, "FIRESTEEL_BATCH_TOKENS is 'many'");
    const fs_engine_options narrow = { .max_memory = 1 << 20 };
    CHECK_FAILS(fs_engine_open(&e, &model.c, &narrow), FS_NO_MEMORY, "MB are missing");
    end();
}

/* ---- many callers ---- */

typedef struct {
    fs_engine *engine;
    uint64_t seed;
    request q;
} caller;

static void *call_often(void *arg) {
    caller *c = arg;
    for (int round = 0; round < 25; round++) {
        int hidden = round % 3 == 0, cancel = random_between(&c->seed, 0, 4) == 0;
        const fs_task *task = hidden ? &HIDDEN : &MEAN;
        const request *expected = hidden ? &reference_hidden : &reference_rows;
        int64_t from[8], floats, n = random_between(&c->seed, 0, 8);
        memset(&c->q, 0, sizeof c->q);
        for (int64_t i = 0; i < n; i++) {
            from[i] = random_between(&c->seed, 0, ROWS - 1);
            int64_t at = expected->offsets[from[i]];
            add_row(&c->q, expected->ids + at, expected->offsets[from[i] + 1] - at);
        }
        int done;
        fs_job *j = submit(c->engine, &c->q, task);
        if (cancel) {
            fs_job_free(j);
            continue;
        }
        CHECK_OK(fs_job_wait(j, -1, &done));
        for (int64_t i = 0; i < n; i++) {
            const float *x = result(expected, task, from[i], &floats);
            if (memcmp(x, result(&c->q, task, i, &floats), (size_t)floats * sizeof *x))
                TEST_FAIL("row %lld differs", (long long)i);
        }
        fs_job_free(j);
    }
    return NULL;
}

static void many_callers(void) {
    static caller callers[8];
    pthread_t threads[8];
    start();
    const setup setups[] = {
        { .threads = 2, .knobs = { "FIRESTEEL_BATCH_TOKENS", "40" } },
        { .devices = { "cpu:0", "cpu:1" },
          .device_count = 2,
          .stage_count = 2,
          .stages = { { 0, 2, 1, { 0 } }, { 2, 3, 1, { 1 } } },
          .knobs = { "FIRESTEEL_BATCH_TOKENS", "40" } },
        { .devices = { "cpu:0", "cpu:1" },
          .device_count = 2,
          .stage_count = 2,
          .stages = { { 0, 2, 1, { 0 } }, { 2, 3, 1, { 1 } } },
          .knobs = { "FIRESTEEL_BATCH_TOKENS", "40", "FIRESTEEL_TEST_DELAY", "1", "FIRESTEEL_TEST_POISON", "1" } },
    };
    for (int s = 0; s < 3; s++) {
        fs_engine *e = opened(&model, &setups[s]);
        for (int i = 0; i < 8; i++) {
            callers[i].engine = e;
            callers[i].seed = (uint64_t)i * 1000;
            pthread_create(&threads[i], NULL, call_often, &callers[i]);
        }
        for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);
        CHECK_INT(fs_engine_stats_read(e).queued_rows, 0);
        fs_engine_close(e);
    }
    end();
}

static void *submit_one_more(void *arg) {
    caller *c = arg;
    fs_request r = as_request(&c->q, &MEAN);
    fs_job *j = NULL;
    fs_status st = fs_engine_submit(c->engine, &r, &j);
    c->seed = (uint64_t)st;
    fs_job_free(j);
    return NULL;
}

static void a_full_inbox_blocks(void) {
    static request q;
    static fs_job *jobs[FS_INBOX_JOBS];
    static caller more[2];
    pthread_t threads[2], opener;
    start();
    const setup s = { .threads = 1 };
    fs_engine *e = opened(&model, &s);
    gate_put(e);
    make_rows(&q, 5, 1);
    for (int i = 0; i < FS_INBOX_JOBS; i++) jobs[i] = submit(e, &q, &MEAN);
    for (int i = 0; i < 2; i++) {
        more[i].engine = e;
        make_rows(&more[i].q, 6, 1);
        more[i].seed = 77;
        pthread_create(&threads[i], NULL, submit_one_more, &more[i]);
    }
    nap(0.02);
    CHECK_INT(fs_engine_stats_read(e).queued_rows <= FS_INBOX_JOBS, 1);
    pthread_create(&opener, NULL, open_gate_later, NULL);
    fs_engine_close(e); /* wakes those that wait for room */
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        CHECK_INT(more[i].seed, FS_CANCELLED);
    }
    pthread_join(opener, NULL);
    for (int i = 0; i < FS_INBOX_JOBS; i++) fs_job_free(jobs[i]);

    e = opened(&model, &s);
    gate_put(e);
    for (int i = 0; i < FS_INBOX_JOBS; i++) jobs[i] = submit(e, &q, &MEAN);
    more[0].engine = e;
    pthread_create(&threads[0], NULL, submit_one_more, &more[0]);
    gate_set(0);
    pthread_join(threads[0], NULL);
    CHECK_INT(more[0].seed, FS_OK);
    for (int i = 0; i < FS_INBOX_JOBS; i++) fs_job_free(jobs[i]);
    fs_engine_close(e);
    end();
}

static void the_eventfd_announces(void) {
    static request q;
    start();
    const setup s = { .threads = 1 };
    fs_engine *e = opened(&model, &s);
    struct pollfd p = { .fd = fs_engine_fd(e), .events = POLLIN };
    uint64_t count;
    int done;
    CHECK_INT(poll(&p, 1, 0), 0);
    make_rows(&q, 5, 3);
    fs_job *j = submit(e, &q, &MEAN);
    CHECK_INT(poll(&p, 1, 10000), 1);
    CHECK_OK(fs_job_wait(j, 0, &done));
    CHECK_INT(done, 1);
    CHECK_INT(read(p.fd, &count, sizeof count), sizeof count);
    CHECK_INT(count, 1);
    CHECK_INT(poll(&p, 1, 0), 0);
    fs_job_free(j);
    fs_engine_close(e);
    end();
}

static void figures(void) {
    static request q;
    start();
    const setup s = { .threads = 2 };
    fs_engine *e = opened(&model, &s);
    make_rows(&q, 5, ROWS);
    run(e, &q, &MEAN);
    fs_engine_stats stats = fs_engine_stats_read(e);
    fs_device_stats device;
    CHECK_INT(stats.rows, ROWS);
    CHECK_INT(stats.tokens, q.offsets[ROWS]);
    CHECK(stats.batches >= 1 && stats.open_seconds > 0);
    CHECK_INT(fs_engine_device_count(e), 1);
    CHECK_OK(fs_engine_device_stats(e, 0, &device));
    CHECK_TEXT(device.name, "cpu:0");
    CHECK_TEXT(device.numerics, fs_engine_numerics(e));
    CHECK_INT(device.threads, 2);
    CHECK(device.busy_seconds > 0);
    for (int c = 0; c < FS_CHARGE_COUNT; c++) CHECK(device.used[c] > 0);
    CHECK(device.peak >= device.used[FS_WEIGHTS] && device.peak <= device.limit);
    CHECK_FAILS(fs_engine_device_stats(e, 1, &device), FS_REQUEST, "device 1 of 1");
    CHECK_INT(fs_engine_settings(e)->D, D);
    CHECK_INT(fs_engine_plan(e)->stage_count, 1);
    fs_engine_close(e);
    fs_engine_close(NULL);
    fs_job_free(NULL);
    end();
}

/* ---- what goes wrong below ---- */

static void a_fork_is_told(void) {
    static request q;
    start();
    const setup s = { .threads = 2 };
    fs_engine *e = opened(&model, &s);
    make_rows(&q, 5, ROWS);
    fs_job *j = submit(e, &q, &MEAN), *other;
    int failures = fs_test_failures;
    pid_t child = fork();
    if (child == 0) {
        fs_request r = as_request(&q, &MEAN);
        int done;
        alarm(20);
        CHECK_FAILS(fs_engine_submit(e, &r, &other), FS_DEVICE, "forked from it");
        CHECK_FAILS(fs_job_wait(j, -1, &done), FS_DEVICE, "forked from it");
        fs_job_cancel(j);
        fs_job_free(j);
        fs_engine_close(e);
        _exit(fs_test_failures > failures);
    }
    int status = -1, done;
    waitpid(child, &status, 0);
    CHECK_INT(status, 0);
    CHECK_OK(fs_job_wait(j, -1, &done));
    check_same(&q, &reference_rows, &MEAN, "after a fork");
    fs_job_free(j);
    fs_engine_close(e);
    end();
}

static _Atomic int calls_until_failure;
static fs_status failure;

static fs_status fail_when_run(fs_cpu_device *d, const void *none) {
    (void)d;
    (void)none;
    return fs_fail(FS_DEVICE, "the device fell off the bus");
}

/* Fails when enqueued, or, for FS_DEVICE, when it runs. */
static fs_status failing(fs_step *s, fs_view y, fs_view x, const fs_weight *gamma, const fs_weight *beta, float eps) {
    if (atomic_fetch_sub(&calls_until_failure, 1) == 1) {
        if (failure == FS_DEVICE) return fs_cpu_enqueue(s->queue, fail_when_run, "", 1);
        return fs_fail(failure, "no room for this step");
    }
    return gate.original.layer_norm(s, y, x, gamma, beta, eps);
}

static void failing_ops(void) {
    static request q;
    int done;
    start();
    for (int delay = 0; delay < 2; delay++)
        for (int stages = 1; stages <= 3; stages += 2)
            for (int at = 1; at <= 6; at++) {
                const setup s = {
                    .devices = { "cpu:0", "cpu:1" },
                    .device_count = stages > 1 ? 2 : 1,
                    .stage_count = stages,
                    .stages = { { 0, stages > 1 ? 1 : 3, 1, { 0 } }, { 1, 2, 1, { 1 } }, { 2, 3, 1, { 0 } } },
                    .knobs = { "FIRESTEEL_BATCH_TOKENS", "40", "FIRESTEEL_TEST_DELAY", delay ? "1" : "0" }
                };
                fs_engine *e = opened(&model, &s);
                gate.original = e->replicas[0].stages[0].ops;
                for (int k = 0; k < stages; k++) e->replicas[0].stages[k].ops.layer_norm = failing;

                failure = FS_NO_MEMORY; /* of one step: the engine goes on */
                atomic_store(&calls_until_failure, at);
                make_rows(&q, 5, ROWS);
                fs_job *j = submit(e, &q, &MEAN);
                CHECK_FAILS(fs_job_wait(j, -1, &done), FS_NO_MEMORY, "no room for this step");
                fs_job_free(j);
                run(e, &q, &MEAN);
                check_same(&q, &reference_rows, &MEAN, "after a step that failed");

                failure = FS_DEVICE; /* of the device: it does not */
                atomic_store(&calls_until_failure, at);
                j = submit(e, &q, &MEAN);
                CHECK_FAILS(fs_job_wait(j, -1, &done), FS_DEVICE, "fell off the bus");
                CHECK(strstr(fs_error_text(), "cpu:"));
                fs_request r = as_request(&q, &MEAN);
                fs_job *next = NULL;
                nap(0.001);
                CHECK_FAILS(fs_engine_submit(e, &r, &next), FS_DEVICE, "fell off the bus");
                fs_job_free(j);
                CHECK_INT(fs_engine_stats_read(e).queued_rows, 0);
                fs_engine_close(e);
            }
    end();
}

static fs_status stay_away(fs_step *s, fs_view y, fs_view x, const fs_weight *gamma, const fs_weight *beta, float eps) {
    if (s->rank == 1) return fs_fail(FS_NO_MEMORY, "rank 1 has no room for this step");
    return gate.original.layer_norm(s, y, x, gamma, beta, eps);
}

/* One rank's step fails; the other waits for it in a sum, for as long as it may. */
static void a_rank_that_stays_away(void) {
    static request q;
    int done;
    start();
    const setup s = { .devices = { "cpu:0", "cpu:1" },
                      .device_count = 2,
                      .stage_count = 1,
                      .stages = { { 0, 3, 2, { 0, 1 } } },
                      .knobs = { "FIRESTEEL_COLLECTIVE_SECONDS", "1" } };
    fs_engine *e = opened(&model, &s);
    gate.original = e->replicas[0].stages[0].ops;
    e->replicas[0].stages[0].ops.layer_norm = stay_away;
    make_rows(&q, 5, ROWS);
    fs_job *j = submit(e, &q, &MEAN), *next;
    CHECK_FAILS(fs_job_wait(j, 30, &done), FS_NO_MEMORY, "rank 1 has no room");
    fs_job_free(j);
    const fs_request r = as_request(&q, &MEAN);
    CHECK_FAILS(fs_engine_submit(e, &r, &next), FS_NO_MEMORY, "rank 1 has no room"); /* the first cause, for good */
    fs_engine_close(e);
    end();
}

static fs_status open_submit_wait(const setup *s, request *q) {
    fs_status st = FS_OK;
    fs_engine *e = NULL;
    fs_job *j = NULL;
    int done;
    FS_GO(open_as(&e, &model, s));
    const fs_request r = as_request(q, &MEAN);
    FS_GO(fs_engine_submit(e, &r, &j));
    FS_GO(fs_job_wait(j, -1, &done));
done:
    fs_job_free(j);
    fs_engine_close(e);
    return st;
}

static void every_allocation_can_fail(void) {
    static request q;
    start();
    const setup setups[] = {
        { .threads = 1, .knobs = { "FIRESTEEL_BATCH_TOKENS", "40" } },
        { .devices = { "cpu:0", "cpu:1" },
          .device_count = 2,
          .stage_count = 2,
          .stages = { { 0, 1, 1, { 1 } }, { 1, 3, 2, { 0, 1 } } },
          .knobs = { "FIRESTEEL_BATCH_TOKENS", "40", "FIRESTEEL_COLLECTIVE_SECONDS", "1" } },
    };
    make_rows(&q, 5, 5);
    q.ids[0] = -1; /* a row error, too */
    for (int s = 0; s < 2; s++) {
        int64_t live = fs_alloc_live();
        for (int n = 1; n < 3000; n++) {
            fs_alloc_fail_at(n);
            fs_status st = open_submit_wait(&setups[s], &q);
            fs_alloc_fail_at(0);
            CHECK_INT(fs_alloc_live(), live);
            if (st == FS_OK) {
                CHECK(n > 50);
                break;
            }
            if (st != FS_NO_MEMORY)
                TEST_FAIL("allocation %d of setup %d: status %d, %s", n, s, (int)st, fs_error_text());
        }
    }
    end();
}

TESTS({ "any_batch_any_threads", any_batch_any_threads }, { "slots_and_modes", slots_and_modes },
      { "cut_after_every_layer", cut_after_every_layer }, { "tensor_shards", tensor_shards },
      { "duplicates_are_computed_once", duplicates_are_computed_once }, { "cancel_in_mid_run", cancel_in_mid_run },
      { "close_with_running_jobs", close_with_running_jobs }, { "wrong_rows", wrong_rows },
      { "wrong_requests", wrong_requests }, { "wrong_options", wrong_options }, { "many_callers", many_callers },
      { "a_full_inbox_blocks", a_full_inbox_blocks }, { "the_eventfd_announces", the_eventfd_announces },
      { "figures", figures }, { "a_fork_is_told", a_fork_is_told }, { "failing_ops", failing_ops },
      { "a_rank_that_stays_away", a_rank_that_stays_away }, { "every_allocation_can_fail", every_allocation_can_fail })
