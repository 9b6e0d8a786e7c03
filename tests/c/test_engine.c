/* The engine over the CPU backend, on a tiny random BERT: the same bits on every path, and what callers see. */
#include "engine_kit.h"

#include "backends/cpu/cpu.h"
#include "backends/cpu/pool.h"

#include <math.h>
#include <poll.h>
#include <time.h>

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
                        .stages = { { 0, 1, 1, { 0 }, 0 }, { 1, 2, 1, { 1 }, 0 }, { 2, 3, 1, { 0 }, 0 } } };
    const setup one = { .devices = { "cpu" },
                        .device_count = 1,
                        .stage_count = 3,
                        .threads = 2,
                        .stages = { { 0, 1, 1, { 0 }, 0 }, { 1, 2, 1, { 0 }, 0 }, { 2, 3, 1, { 0 }, 0 } } };
    check_modes(&two, "cut over two devices");
    check_modes(&one, "cut on one device");
    end();
}

/* Waits begin late, and delayed work runs only when it is waited for: what is free too early is used again before. */
static fs_status late_wait(fs_event *event) {
    nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
    return fs_cpu_backend.event_wait(event);
}

static void a_slot_is_free_when_its_carry_has_left(void) {
    static const char *const slots[] = { "1", "2" };
    static request q;
    start();
    for (int n = 0; n < 2; n++) {
        const setup two = { .devices = { "cpu:0", "cpu:1" },
                            .device_count = 2,
                            .stage_count = 2,
                            .stages = { { 0, 1, 1, { 0 }, 0 }, { 1, 3, 1, { 1 }, 0 } },
                            .knobs = { "FIRESTEEL_TEST_DELAY", "1", "FIRESTEEL_TEST_POISON", "1", "FIRESTEEL_SLOTS",
                                       slots[n], "FIRESTEEL_BATCH_TOKENS", "40" } };
        fs_engine *e = opened(&model, &two);
        fs_backend late = fs_cpu_backend;
        late.event_wait = late_wait;
        pthread_mutex_lock(&e->lock); /* an idle driver looks at it too */
        e->replicas[0].stages[1].parts[0].driver->device->backend = &late;
        pthread_mutex_unlock(&e->lock);
        make_rows(&q, 5, ROWS);
        run(e, &q, &MEAN);
        check_same(&q, &reference_rows, &MEAN, slots[n]);
        fs_engine_close(e);
    }
    end();
}

/* Several replicas, and combinations that the planner makes. */
static void placed_by_the_planner(void) {
    static const char *const ways[] = { NULL, "replicate", "replicate=2,split=2", "split=3", "split=1,replicate" };
    start();
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        setup s = { .devices = { "cpu:0", "cpu:1", "cpu:2", "cpu:3" }, .device_count = 4, .parallel = ways[i] };
        if (ways[i] && !strcmp(ways[i], "split=3")) s.device_count = 3;
        check_modes(&s, ways[i] ? ways[i] : "auto");
    }
    /* by hand: a replica of two stages, one that lies on a device of the first */
    const setup by_hand = { .devices = { "cpu:0", "cpu:1" },
                            .device_count = 2,
                            .stage_count = 3,
                            .stages = { { 0, 2, 1, { 0 }, 0 }, { 2, 3, 1, { 1 }, 0 }, { 0, 3, 1, { 1 }, 0 } } };
    check_modes(&by_hand, "two replicas by hand");
    end();
}

/* On a CPU replicas compute with one copy of the weights, charged to the device that loaded it. */
static void weights_are_loaded_once(void) {
    fs_device_stats stats[4];
    start();
    const setup s = { .devices = { "cpu:0", "cpu:1", "cpu:2", "cpu:3" },
                      .device_count = 4,
                      .parallel = "replicate=2,tensor=2" };
    fs_engine *e = opened(&model, &s);
    for (int d = 0; d < 4; d++) CHECK_OK(fs_engine_device_stats(e, d, &stats[d]));
    for (int d = 0; d < 2; d++) CHECK(stats[d].used[FS_WEIGHTS] > 0);
    for (int d = 2; d < 4; d++) CHECK_INT(stats[d].used[FS_WEIGHTS], 0);
    for (int r = 0; r < 2; r++) {
        const fs_part *lender = &e->replicas[0].stages[0].parts[r], *other = &e->replicas[1].stages[0].parts[r];
        CHECK(lender->weights == &lender->shard && other->weights == &lender->shard);
    }
    CHECK(strstr(fs_engine_numerics(e), "tensor 2"));
    CHECK_TEXT(fs_engine_parallel(e), "replicate=2,tensor=2");
    CHECK_INT(fs_engine_stats_read(e).replicas, 2);
    fs_engine_close(e);
    end();
}

static void tensor_shards(void) {
    static request q, first;
    start();
    const setup plans[] = {
        { .devices = { "cpu:0", "cpu:1" },
          .device_count = 2,
          .stage_count = 1,
          .stages = { { 0, 3, 2, { 0, 1 }, 0 } } },
        { .devices = { "cpu:0", "cpu:1" },
          .device_count = 2,
          .stage_count = 3,
          .stages = { { 0, 1, 2, { 0, 1 }, 0 }, { 1, 2, 2, { 1, 0 }, 0 }, { 2, 3, 2, { 0, 1 }, 0 } } },
        { .devices = { "cpu:0", "cpu:1" },
          .device_count = 2,
          .stage_count = 3,
          .stages = { { 0, 1, 1, { 1 }, 0 }, { 1, 2, 2, { 0, 1 }, 0 }, { 2, 3, 1, { 0 }, 0 } } },
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
        { .threads = 2, .knobs = { "FIRESTEEL_BATCH_TOKENS", "40", "FIRESTEEL_LOAD_THREADS", "3" } },
        { .devices = { "cpu:0", "cpu:1" },
          .device_count = 2,
          .stage_count = 2,
          .stages = { { 0, 2, 1, { 0 }, 0 }, { 2, 3, 1, { 1 }, 0 } },
          .knobs = { "FIRESTEEL_BATCH_TOKENS", "40" } },
        { .devices = { "cpu:0", "cpu:1" },
          .device_count = 2,
          .stage_count = 2,
          .stages = { { 0, 2, 1, { 0 }, 0 }, { 2, 3, 1, { 1 }, 0 } },
          .knobs = { "FIRESTEEL_BATCH_TOKENS", "40", "FIRESTEEL_TEST_DELAY", "1", "FIRESTEEL_TEST_POISON", "1" } },
        { .devices = { "cpu:0", "cpu:1", "cpu:2", "cpu:3" },
          .device_count = 4,
          .parallel = "replicate=2,split=2",
          .knobs = { "FIRESTEEL_BATCH_TOKENS", "40" } },
    };
    for (int s = 0; s < 4; s++) {
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
    r.source.offsets = falling;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "fall from 3 to 2 at row 1");
    r.source.offsets = late;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "start with 0");
    r = good;
    r.rows = -1;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "-1 rows");
    r = good;
    r.source.ids = NULL;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "tokens where there are none");
    r = good;
    r.targets = r.source;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "without a decoder");
    r = good;
    r.source.features = q.out;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "rows are features where the model takes token ids");
    r = good;
    r.task.pooling_count = 0;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "pooling");
    r = good;
    r.task = HIDDEN;
    CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "room for");
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

/* Two chunks that wait for each other: a device of one thread cannot do them alone. */
static struct {
    fs_ops original;
    atomic_int begun, met, calls, reads;
} meeting;

static void meet(void *none, int64_t chunk, int thread) {
    (void)none, (void)chunk, (void)thread;
    int64_t until = fs_now_ns() + 20 * INT64_C(1000000000);
    atomic_fetch_add(&meeting.begun, 1);
    while (atomic_load(&meeting.begun) % 2 && fs_now_ns() < until) fs_pause();
    if (fs_now_ns() < until) atomic_fetch_add(&meeting.met, 1);
}

static fs_status met(fs_step *s, fs_view y, const fs_gather *tables, int n, const fs_norm *norm) {
    atomic_fetch_add(&meeting.calls, 1);
    fs_pool_run(fs_cpu(s->device)->pool, meet, NULL, 2);
    return meeting.original.gather_norm(s, y, tables, n, norm);
}

static void an_idle_device_helps_the_other(void) {
    static request q;
    start();
    const setup s = { .devices = { "cpu:0", "cpu:1" }, .device_count = 2, .parallel = "split", .threads = 1 };
    fs_engine *e = opened(&model, &s);
    memset(&meeting, 0, sizeof meeting);
    meeting.original = e->replicas[0].stages[0].ops;
    e->replicas[0].stages[0].ops.gather_norm = met;
    for (int i = 0; i < 5; i++) {
        make_rows(&q, 5, ROWS);
        run(e, &q, &MEAN);
        check_same(&q, &reference_rows, &MEAN, "with the other device's help");
    }
    CHECK(meeting.calls >= 5);
    CHECK_INT(meeting.met, 2 * meeting.calls);
    fs_engine_close(e);
    end();
}

/* The first device reads, as one that streams layers does, until the second's chunks have met: the third has to. */
static fs_status read_or_meet(fs_step *s, fs_view y, const fs_gather *tables, int n, const fs_norm *norm) {
    int64_t until = fs_now_ns() + 20 * INT64_C(1000000000);
    if (!strcmp(s->device->name, "cpu:0")) {
        atomic_store(&meeting.reads, 1);
        while (atomic_load(&meeting.met) < 2 && fs_now_ns() < until) fs_pause();
    }
    if (!strcmp(s->device->name, "cpu:1")) {
        while (!atomic_load(&meeting.reads) && fs_now_ns() < until) fs_pause();
        return met(s, y, tables, n, norm);
    }
    return meeting.original.gather_norm(s, y, tables, n, norm);
}

static void one_that_reads_is_passed_by(void) {
    static request q;
    start();
    const setup s = { .devices = { "cpu:0", "cpu:1", "cpu:2" },
                      .device_count = 3,
                      .parallel = "replicate",
                      .threads = 1,
                      .knobs = { "FIRESTEEL_BATCH_TOKENS", "64" } };
    fs_engine *e = opened(&model, &s);
    memset(&meeting, 0, sizeof meeting);
    meeting.original = e->replicas[0].stages[0].ops;
    for (int r = 0; r < e->replica_count; r++) e->replicas[r].stages[0].ops.gather_norm = read_or_meet;
    make_rows(&q, 5, ROWS);
    run(e, &q, &MEAN);
    check_same(&q, &reference_rows, &MEAN, "beside a device that reads");
    CHECK(meeting.reads && meeting.calls >= 1);
    CHECK_INT(meeting.met, 2 * meeting.calls);
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
    CHECK(strstr(fs_engine_numerics(e), device.numerics) == fs_engine_numerics(e));
    CHECK(strstr(fs_engine_numerics(e), " fp32"));
    CHECK_INT(device.threads, 2);
    CHECK(device.busy_seconds > 0);
    for (int c = 0; c < FS_CHARGE_COUNT; c++) CHECK((device.used[c] > 0) == (c != FS_HOST));
    CHECK(device.peak >= device.used[FS_WEIGHTS] && device.peak <= device.limit);
    CHECK_FAILS(fs_engine_device_stats(e, 1, &device), FS_REQUEST, "device 1 of 1");
    CHECK_INT(fs_engine_settings(e)->D, D);
    CHECK_INT(fs_engine_plan(e)->stage_count, 1);
    fs_engine_close(e);
    fs_engine_close(NULL);
    fs_job_free(NULL);
    end();
}

TESTS({ "any_batch_any_threads", any_batch_any_threads }, { "slots_and_modes", slots_and_modes },
      { "cut_after_every_layer", cut_after_every_layer }, { "placed_by_the_planner", placed_by_the_planner },
      { "a_slot_is_free_when_its_carry_has_left", a_slot_is_free_when_its_carry_has_left },
      { "weights_are_loaded_once", weights_are_loaded_once }, { "tensor_shards", tensor_shards },
      { "duplicates_are_computed_once", duplicates_are_computed_once }, { "many_callers", many_callers },
      { "wrong_rows", wrong_rows }, { "wrong_requests", wrong_requests },
      { "the_eventfd_announces", the_eventfd_announces },
      { "an_idle_device_helps_the_other", an_idle_device_helps_the_other },
      { "one_that_reads_is_passed_by", one_that_reads_is_passed_by }, { "figures", figures })
