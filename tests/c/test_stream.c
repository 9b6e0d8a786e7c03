/* test_stream.c - streamed layers: the same bits as held ones, and what failures of files, steps and memory do. */
#include "engine_kit.h"

#include <sys/stat.h>
#include <unistd.h>

#define SMALL_BATCHES "FIRESTEEL_BATCH_TOKENS", "40"

/* The model has three layers; a window of three holds them all. */
static void windows_keep_the_bits(void) {
    const setup ways[] = {
        { .stage_count = 1, .stages = { { 0, 3, 1, { 0 }, 1 } }, .knobs = { SMALL_BATCHES } },
        { .stage_count = 1, .stages = { { 0, 3, 1, { 0 }, 2 } }, .knobs = { SMALL_BATCHES } },
        { .stage_count = 1, .stages = { { 0, 3, 1, { 0 }, 3 } }, .knobs = { SMALL_BATCHES } },
        { .stage_count = 1,
          .stages = { { 0, 3, 1, { 0 }, 1 } },
          .knobs = { SMALL_BATCHES, "FIRESTEEL_TEST_DELAY", "1" } },
        { .stage_count = 1,
          .stages = { { 0, 3, 1, { 0 }, 2 } },
          .knobs = { SMALL_BATCHES, "FIRESTEEL_TEST_POISON", "1" } },
        { .stage_count = 1, .stages = { { 0, 3, 1, { 0 }, 1 } }, .knobs = { "FIRESTEEL_PASS_TOKENS", "1" } },
        { .devices = { "cpu:0", "cpu:1" },
          .device_count = 2,
          .stage_count = 2,
          .stages = { { 0, 2, 1, { 0 }, 1 }, { 2, 3, 1, { 1 }, 0 } },
          .knobs = { SMALL_BATCHES, "FIRESTEEL_TEST_DELAY", "1" } },
        { .devices = { "cpu:0", "cpu:1" },
          .device_count = 2,
          .stage_count = 2,
          .stages = { { 0, 1, 2, { 0, 1 }, 0 }, { 1, 3, 1, { 1 }, 1 } },
          .knobs = { SMALL_BATCHES } },
    };
    start();
    for (int i = 0; i < 7; i++) check_engine(&ways[i], "streamed");
    fs_engine *e = opened(&model, &ways[7]); /* the group orders sums in a way of its own: it need only work */
    static request q;
    make_rows(&q, 5, ROWS);
    run(e, &q, &MEAN);
    fs_engine_close(e);
    end();
}

static void layers_come_once_a_pass(void) {
    static request q;
    const setup s = { .stage_count = 1, .stages = { { 0, 3, 1, { 0 }, 2 } }, .knobs = { SMALL_BATCHES } };
    start();
    fs_engine *e = opened(&model, &s);
    const fs_part *part = &e->replicas[0].stages[0].parts[0];
    int64_t layer = (int64_t)fs_stream_layer_bytes(part->stream, 0);
    CHECK_INT(fs_stage_slots(&e->set, e->replicas[0].stages[0].plan, &e->capacity), FS_MAX_SLOTS);
    CHECK_INT(part->shard.plan.streamed, 3);
    for (int i = 0; i < 5; i++) {
        make_rows(&q, 5, ROWS);
        run(e, &q, &MEAN);
    }
    fs_engine_stats stats = fs_engine_stats_read(e);
    CHECK(stats.passes >= 5 && stats.passes < stats.batches);
    CHECK_INT(stats.streamed_bytes, stats.passes * 3 * layer);
    CHECK_INT(fs_budget_used(&e->drivers[0].device->budget, FS_WEIGHTS),
              fs_shard_bytes(&e->set, &part->shard.plan, e->drivers[0].device) + 2 * layer);
    fs_engine_close(e);
    end();
}

/* Whoever writes to the file while it is read again gets no wrong numbers out of it, and later ones are right. */
static void a_file_that_changes(void) {
    static request q;
    int done;
    start();
    for (int window = 1; window <= 2; window++) {
        const setup s = { .stage_count = 1, .stages = { { 0, 3, 1, { 0 }, window } }, .knobs = { SMALL_BATCHES } };
        fs_engine *e = opened(&model, &s);
        int64_t bytes = model.file_bytes[0];
        char *content = NULL;
        CHECK_OK(fs_alloc(&content, (size_t)bytes, 1));
        CHECK_INT(pread(model.fds[0], content, (size_t)bytes, 0), bytes);
        make_rows(&q, 5, ROWS);
        run(e, &q, &MEAN);
        CHECK_INT(ftruncate(model.fds[0], bytes / 2), 0);
        for (int again = 0; again < 3; again++) {
            fs_job *j = submit(e, &q, &MEAN);
            CHECK_FAILS(fs_job_wait(j, -1, &done), FS_CHECKPOINT, "the file now ends at");
            fs_job_free(j);
        }
        CHECK_INT(pwrite(model.fds[0], content, (size_t)bytes, 0), bytes);
        make_rows(&q, 5, ROWS);
        run(e, &q, &MEAN);
        check_same(&q, &reference_rows, &MEAN, "the file is whole again");
        fs_free(content);
        fs_engine_close(e);
    }
    end();
}

static fs_ops original;
static _Atomic int calls_until_failure;

static fs_status failing(fs_step *s, fs_view y, fs_view x, const fs_norm *norm) {
    if (atomic_fetch_sub(&calls_until_failure, 1) == 1) return fs_fail(FS_NO_MEMORY, "no room for this step");
    return original.layer_norm(s, y, x, norm);
}

/* One batch of a pass finds no room: the others go on, its rows go again in halves. */
static void a_step_without_room(void) {
    static request q;
    start();
    for (int window = 1; window <= 2; window++)
        for (int at = 1; at <= 9; at++) {
            const setup s = { .stage_count = 1, .stages = { { 0, 3, 1, { 0 }, window } }, .knobs = { SMALL_BATCHES } };
            fs_engine *e = opened(&model, &s);
            original = e->replicas[0].stages[0].ops;
            e->replicas[0].stages[0].ops.layer_norm = failing;
            atomic_store(&calls_until_failure, at);
            make_rows(&q, 5, ROWS);
            run(e, &q, &MEAN);
            CHECK(atomic_load(&calls_until_failure) <= 0);
            check_same(&q, &reference_rows, &MEAN, "a step that found no room");
            fs_engine_close(e);
        }
    end();
}

static fs_status open_and_run(const setup *s, request *q) {
    fs_engine *e = NULL;
    fs_job *j = NULL;
    fs_status st = open_as(&e, &model, s);
    int done;
    fs_request r = as_request(q, &MEAN);
    if (st == FS_OK) st = fs_engine_submit(e, &r, &j);
    if (st == FS_OK) st = fs_job_wait(j, -1, &done);
    fs_job_free(j);
    fs_engine_close(e);
    return st;
}

static void every_allocation_can_fail(void) {
    static request q;
    const setup s = { .stage_count = 1, .stages = { { 0, 3, 1, { 0 }, 2 } }, .knobs = { SMALL_BATCHES } };
    start();
    make_rows(&q, 5, 5);
    int64_t live = fs_alloc_live();
    for (int n = 1; n < 3000; n++) {
        fs_alloc_fail_at(n);
        fs_status st = open_and_run(&s, &q);
        fs_alloc_fail_at(0);
        CHECK_INT(fs_alloc_live(), live);
        if (st == FS_OK) {
            CHECK(n > 50);
            break;
        }
        if (st != FS_NO_MEMORY) TEST_FAIL("allocation %d: status %d, %s", n, (int)st, fs_error_text());
    }
    end();
}

/* Jobs come and go while layers come: nothing hangs, nothing is left. */
static void closed_and_cancelled_in_mid_pass(void) {
    static request q[8];
    start();
    for (int round = 0; round < 20; round++) {
        const setup s = { .devices = { "cpu:0", "cpu:1", "cpu:2" },
                          .device_count = 3,
                          .stage_count = 2,
                          .stages = { { 0, 1, 2, { 0, 1 }, 0 }, { 1, 3, 1, { 2 }, 1 } },
                          .knobs = { SMALL_BATCHES } };
        const setup one = { .stage_count = 1,
                            .stages = { { 0, 3, 1, { 0 }, 1 + round % 2 } },
                            .knobs = { SMALL_BATCHES } };
        fs_engine *e = opened(&model, round % 4 == 3 ? &s : &one);
        fs_job *jobs[8];
        for (int i = 0; i < 8; i++) {
            make_rows(&q[i], (uint64_t)(100 * round + i), ROWS);
            jobs[i] = submit(e, &q[i], &MEAN);
            if (i % 3 == 2) fs_job_cancel(jobs[i - 1]);
        }
        if (round % 2) fs_engine_close(e);
        for (int i = 0; i < 8; i++) fs_job_free(jobs[i]);
        if (round % 2 == 0) fs_engine_close(e);
    }
    end();
}

static void windows_that_cannot_be(void) {
    start();
    fs_engine *e = NULL;
    const setup negative = { .stage_count = 1, .stages = { { 0, 3, 1, { 0 }, -1 } } };
    CHECK_FAILS(open_as(&e, &model, &negative), FS_CONFIG, "stage 0 holds -1 layers at a time");
    const setup group = {
        .devices = { "cpu:0", "cpu:1" }, .device_count = 2, .stage_count = 1, .stages = { { 0, 3, 2, { 0, 1 }, 1 } }
    };
    CHECK_FAILS(open_as(&e, &model, &group), FS_CONFIG, "split the layers over devices (split=2)");
    end();
}

TESTS({ "windows_keep_the_bits", windows_keep_the_bits }, { "layers_come_once_a_pass", layers_come_once_a_pass },
      { "a_file_that_changes", a_file_that_changes }, { "a_step_without_room", a_step_without_room },
      { "every_allocation_can_fail", every_allocation_can_fail },
      { "closed_and_cancelled_in_mid_pass", closed_and_cancelled_in_mid_pass },
      { "windows_that_cannot_be", windows_that_cannot_be })
