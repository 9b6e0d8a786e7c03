/* The engine when things go wrong or end early: cancel, close, a fork, a full inbox, failing ops, ranks and memory. */
#include "engine_kit.h"
#include "gate.h"

#include "backends/cpu/cpu.h"

#include <sys/wait.h>

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

static void wrong_options(void) {
    fs_engine *e;
    start();
    const setup two = { .devices = { "cpu:0", "cpu:1" }, .device_count = 2, .parallel = "split=3" };
    CHECK_FAILS(open_as(&e, &model, &two), FS_CONFIG, "places the model on 3 devices and devices names 2");
    CHECK(e == NULL);
    const setup both = { .parallel = "replicate", .stage_count = 1, .stages = { { 0, 3, 1, { 0 }, 0 } } };
    CHECK_FAILS(open_as(&e, &model, &both), FS_CONFIG, "beside a plan written by hand");
    const setup twice = { .stage_count = 1, .stages = { { 0, 2, 1, { 0 }, 0 } } };
    CHECK_FAILS(open_as(&e, &model, &twice), FS_CONFIG, "the model has 3");
    const setup slots = { .knobs = { "FIRESTEEL_SLOTS", "9" } };
    CHECK_FAILS(open_as(&e, &model, &slots), FS_CONFIG, "FIRESTEEL_SLOTS is '9'");
    const setup tokens = { .knobs = { "FIRESTEEL_BATCH_TOKENS", "many" } };
    CHECK_FAILS(open_as(&e, &model, &tokens), FS_CONFIG, "FIRESTEEL_BATCH_TOKENS is 'many'");
    const setup readers = { .knobs = { "FIRESTEEL_LOAD_THREADS", "65" } };
    CHECK_FAILS(open_as(&e, &model, &readers), FS_CONFIG, "FIRESTEEL_LOAD_THREADS is '65'");
    const fs_engine_options narrow = { .max_memory = 1 << 20 };
    CHECK_FAILS(fs_engine_open(&e, &model.c, &narrow), FS_NO_MEMORY, "MB are missing");
    end();
}

/* A job whose rows all follow a row that flies is over when that lands, though the scheduler, its window full of others'
 * rows, has not looked at it yet; it may be freed at once. */
static void a_follower_is_freed_behind_a_full_window(void) {
    enum { OTHERS = FS_WINDOW / ROWS + 8 };
    static request leader, follower, others[OTHERS];
    fs_job *jobs[OTHERS];
    int done;
    start();
    const setup s = { .threads = 1, .knobs = { "FIRESTEEL_BATCH_TOKENS", "40" } };
    fs_engine *e = opened(&model, &s);
    gate_put(e);
    make_rows(&leader, 5, 1);
    make_rows(&follower, 5, 1);
    fs_job *a = submit(e, &leader, &MEAN);
    gate_await();
    for (int i = 0; i < OTHERS; i++) {
        make_rows(&others[i], 100 + (uint64_t)i, ROWS);
        jobs[i] = submit(e, &others[i], &MEAN);
    }
    fs_job *b = submit(e, &follower, &MEAN);
    nap(0.05); /* the scheduler admits all of them */
    gate_let_one_pass();
    CHECK_OK(fs_job_wait(b, -1, &done));
    fs_job_free(b);
    gate_set(0);
    for (int i = 0; i < OTHERS; i++) {
        CHECK_OK(fs_job_wait(jobs[i], -1, &done));
        fs_job_free(jobs[i]);
    }
    check_same(&follower, &leader, &MEAN, "the follower");
    fs_job_free(a);
    fs_engine_close(e);
    end();
}

typedef struct {
    fs_engine *engine;
    uint64_t seed;
    request q;
} caller;

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
static fs_status failing(fs_step *s, fs_view y, fs_view x, const fs_norm *norm) {
    if (atomic_fetch_sub(&calls_until_failure, 1) == 1) {
        if (failure == FS_DEVICE) return fs_cpu_enqueue(s->queue, fail_when_run, "", 1);
        return fs_fail(failure, "no room for this step");
    }
    return gate.original.layer_norm(s, y, x, norm);
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
                    .stages = { { 0, stages > 1 ? 1 : 3, 1, { 0 } }, { 1, 2, 1, { 1 }, 0 }, { 2, 3, 1, { 0 }, 0 } },
                    .knobs = { "FIRESTEEL_BATCH_TOKENS", "40", "FIRESTEEL_TEST_DELAY", delay ? "1" : "0" }
                };
                fs_engine *e = opened(&model, &s);
                gate.original = e->replicas[0].stages[0].ops;
                for (int k = 0; k < stages; k++) e->replicas[0].stages[k].ops.layer_norm = failing;

                failure = FS_NO_MEMORY; /* of one step: its rows go again, in halves */
                atomic_store(&calls_until_failure, at);
                make_rows(&q, 5, ROWS);
                run(e, &q, &MEAN);
                CHECK(atomic_load(&calls_until_failure) <= 0);
                check_same(&q, &reference_rows, &MEAN, "a step that found no room");

                failure = FS_DEVICE; /* of the device: it does not */
                atomic_store(&calls_until_failure, at);
                fs_job *j = submit(e, &q, &MEAN);
                CHECK_FAILS(fs_job_wait(j, -1, &done), FS_DEVICE, "fell off the bus");
                CHECK(strstr(fs_error_text(), "cpu:"));
                fs_request r = as_request(&q, &MEAN);
                fs_job *next = NULL;
                nap(0.001);
                CHECK_FAILS(fs_engine_submit(e, &r, &next), FS_DEVICE, "fell off the bus");
                CHECK(strstr(fs_error_text(), "the engine's only replica"));
                fs_job_free(j);
                CHECK_INT(fs_engine_stats_read(e).queued_rows, 0);
                fs_engine_close(e);
            }
    end();
}

/* A replica whose device fails is taken out: rows on their way there fail, those elsewhere and all later ones do not. */
static void a_failed_replica_is_taken_out(void) {
    static request held, q, later[5];
    int done;
    start();
    for (int delay = 0; delay < 2; delay++) {
        const setup s = { .devices = { "cpu:0", "cpu:1" },
                          .device_count = 2,
                          .parallel = "replicate",
                          .knobs = { "FIRESTEEL_BATCH_TOKENS", "600", "FIRESTEEL_TEST_DELAY", delay ? "1" : "0" } };
        fs_engine *e = opened(&model, &s);
        gate_put(e); /* replica 0 */
        e->replicas[1].stages[0].ops.layer_norm = failing;
        failure = FS_DEVICE;
        atomic_store(&calls_until_failure, 1);
        make_rows(&held, 5, 4); /* one batch */
        fs_job *a = submit(e, &held, &MEAN);
        gate_await();
        make_rows(&q, 6, 4);
        fs_job *b = submit(e, &q, &MEAN); /* replica 0 has fewer free slots than replica 1 */
        CHECK_FAILS(fs_job_wait(b, -1, &done), FS_DEVICE, "fell off the bus");
        CHECK(strstr(fs_error_text(), "cpu:1"));
        gate_set(0);
        CHECK_OK(fs_job_wait(a, -1, &done));
        check_same(&held, &reference_rows, &MEAN, "rows of the other replica");
        fs_job_free(a);
        fs_job_free(b);

        fs_job *more[5]; /* more batches than the replica that is left has slots */
        gate_set(1);
        for (int i = 0; i < 5; i++) {
            make_rows(&later[i], 5 + (uint64_t)i, ROWS);
            more[i] = submit(e, &later[i], &MEAN);
        }
        gate_await();
        nap(0.02);
        gate_set(0);
        for (int i = 0; i < 5; i++) {
            CHECK_OK(fs_job_wait(more[i], -1, &done));
            fs_job_free(more[i]);
        }
        check_same(&later[0], &reference_rows, &MEAN, "rows of the replica that is left");
        CHECK_INT(fs_engine_stats_read(e).replicas, 1);
        CHECK_INT(fs_engine_stats_read(e).failed_replicas, 1);

        e->replicas[0].stages[0].ops.layer_norm = failing;
        atomic_store(&calls_until_failure, 1);
        fs_job *c = submit(e, &q, &MEAN), *next;
        CHECK_FAILS(fs_job_wait(c, -1, &done), FS_DEVICE, "cpu:0");
        nap(0.001);
        const fs_request r = as_request(&q, &MEAN);
        CHECK_FAILS(fs_engine_submit(e, &r, &next), FS_DEVICE, "the engine's last replica");
        CHECK_INT(fs_engine_stats_read(e).queued_rows, 0);
        fs_job_free(c);
        fs_engine_close(e);
    }
    end();
}

/* A device with room for 3 rows of 20 tokens in all. */
static fs_status narrow(fs_step *s, fs_view y, fs_view x, const fs_norm *norm) {
    if (s->rows->B > 3 || s->rows->T > 20)
        return fs_fail(FS_NO_MEMORY, "no room for %lld rows of %lld tokens", (long long)s->rows->B,
                       (long long)s->rows->T);
    return gate.original.layer_norm(s, y, x, norm);
}

/* Batches are halved until they fit; a row that never does fails alone, as do those equal to it in other jobs. */
static void a_row_without_room_fails_alone(void) {
    static request q, same;
    int done;
    start();
    for (int stages = 1; stages <= 3; stages += 2) {
        const setup s = { .devices = { "cpu:0", "cpu:1" },
                          .device_count = stages > 1 ? 2 : 1,
                          .stage_count = stages,
                          .stages = {
                              { 0, stages > 1 ? 1 : 3, 1, { 0 } }, { 1, 2, 1, { 1 }, 0 }, { 2, 3, 1, { 0 }, 0 } } };
        fs_engine *e = opened(&model, &s);
        gate.original = e->replicas[0].stages[0].ops;
        e->replicas[0].stages[stages - 1].ops.layer_norm = narrow;
        make_rows(&q, 5, ROWS);
        make_rows(&same, 5, ROWS);
        fs_job *jobs[] = { submit(e, &q, &MEAN), submit(e, &same, &MEAN) };
        for (int j = 0; j < 2; j++) {
            request *r = j ? &same : &q;
            const fs_row_error *errors;
            int64_t i = 0, n;
            CHECK_OK(fs_job_wait(jobs[j], -1, &done));
            n = fs_job_errors(jobs[j], &errors);
            for (int64_t row = 0; row < ROWS; row++) {
                int64_t tokens = r->offsets[row + 1] - r->offsets[row];
                if (tokens <= 20) {
                    CHECK(!memcmp(r->out + row * D, reference_rows.out + row * D, D * sizeof(float)));
                    continue;
                }
                CHECK(i < n && errors[i].row == row && errors[i].code == FS_ROW_ROW_TOO_BIG);
                if (i < n)
                    CHECK(strstr(errors[i].text, "does not fit alone") && strstr(errors[i].text, "no room for 1"));
                CHECK(r->out[row * D] == 99.0f);
                i++;
            }
            CHECK_INT(i, n);
            CHECK(n > 0 && n < ROWS);
        }
        fs_engine_stats stats = fs_engine_stats_read(e);
        const fs_row_error *errors;
        int64_t bad = 2 * fs_job_errors(jobs[0], &errors);
        CHECK_INT(stats.failed_rows, bad);
        CHECK_INT(stats.rows, 2 * ROWS - bad);
        CHECK_INT(stats.queued_rows, 0);
        for (int j = 0; j < 2; j++) fs_job_free(jobs[j]);
        fs_engine_close(e);
    }
    end();
}

static fs_status stay_away(fs_step *s, fs_view y, fs_view x, const fs_norm *norm) {
    if (s->rank == 1) return fs_fail(FS_NO_MEMORY, "rank 1 has no room for this step");
    return gate.original.layer_norm(s, y, x, norm);
}

/* One rank's step fails; the other waits for it in a sum, for as long as it may. */
static void a_rank_that_stays_away(void) {
    static request q;
    int done;
    start();
    const setup s = { .devices = { "cpu:0", "cpu:1" },
                      .device_count = 2,
                      .stage_count = 1,
                      .stages = { { 0, 3, 2, { 0, 1 }, 0 } },
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
          .stages = { { 0, 1, 1, { 1 }, 0 }, { 1, 3, 2, { 0, 1 }, 0 } },
          .knobs = { "FIRESTEEL_BATCH_TOKENS", "40", "FIRESTEEL_COLLECTIVE_SECONDS", "1" } },
        { .devices = { "cpu:0", "cpu:1", "cpu:2", "cpu:3" },
          .device_count = 4,
          .parallel = "replicate=2,split=2",
          .knobs = { "FIRESTEEL_BATCH_TOKENS", "40" } },
    };
    make_rows(&q, 5, 5);
    q.ids[0] = -1; /* a row error, too */
    for (int s = 0; s < 3; s++) {
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

TESTS({ "cancel_in_mid_run", cancel_in_mid_run }, { "close_with_running_jobs", close_with_running_jobs },
      { "wrong_options", wrong_options },
      { "a_follower_is_freed_behind_a_full_window", a_follower_is_freed_behind_a_full_window },
      { "a_full_inbox_blocks", a_full_inbox_blocks }, { "a_fork_is_told", a_fork_is_told },
      { "failing_ops", failing_ops }, { "a_failed_replica_is_taken_out", a_failed_replica_is_taken_out },
      { "a_row_without_room_fails_alone", a_row_without_room_fails_alone },
      { "a_rank_that_stays_away", a_rank_that_stays_away }, { "every_allocation_can_fail", every_allocation_can_fail })
