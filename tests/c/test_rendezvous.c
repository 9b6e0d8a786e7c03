/* backends/cpu/rendezvous: sums over ranks have the same bits everywhere and always; a rank that stays away is
 * named. */
#define _GNU_SOURCE
#include "backends/collectives.h"
#include "backends/ops.h"
#include "test.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { MOST_RANKS = 4, ROUNDS = 30 };

typedef struct {
    fs_comm *comm;
    int rank, rounds, late_us;
    fs_view x;
    fs_status status;
    fs_error error;
} member;

static float *numbers(int rank, int64_t rows, int64_t stride) {
    float *x;
    uint32_t state = 12345u + 77u * (uint32_t)rank;
    CHECK_OK(fs_alloc(&x, (size_t)(rows * stride), sizeof *x));
    for (int64_t i = 0; i < rows * stride; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = ((float)(state >> 8) / 8388608.0f - 1.0f) * (float)(1 << state % 12);
    }
    return x;
}

static void *join(void *arg) {
    member *m = arg;
    if (m->late_us) usleep((useconds_t)m->late_us);
    for (int r = 0; r < m->rounds && m->status == FS_OK; r++) {
        m->status = fs_rendezvous_sum(m->comm, m->rank, m->x);
        if (m->status != FS_OK) fs_error_take(&m->error, m->status);
    }
    return NULL;
}

static void run_all(member *members, int n) {
    pthread_t threads[MOST_RANKS];
    for (int r = 0; r < n; r++) pthread_create(&threads[r], NULL, join, &members[r]);
    for (int r = 0; r < n; r++) pthread_join(threads[r], NULL);
}

typedef struct {
    int ranks;
    int64_t rows, cols, stride;
} shape;

static void sums_have_one_set_of_bits(void) {
    static const shape shapes[] = { { 1, 3, 5, 5 },    { 2, 1, 1, 1 },   { 2, 7, 48, 48 }, { 3, 5, 33, 40 },
                                    { 4, 64, 17, 17 }, { 4, 1, 16, 16 }, { 2, 0, 48, 48 } };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        shape s = shapes[i];
        for (int again = 0; again < 5; again++) {
            member m[MOST_RANKS] = { 0 };
            float *x[MOST_RANKS], *before[MOST_RANKS];
            fs_comm *c;
            CHECK_OK(fs_rendezvous_open(&c, s.ranks, 20));
            for (int r = 0; r < s.ranks; r++) {
                x[r] = numbers(r, s.rows, s.stride);
                before[r] = numbers(r, s.rows, s.stride);
                fs_view v = { .at = x[r], .dtype = FS_F32, .rows = s.rows, .cols = s.cols, .stride = s.stride };
                m[r] = (member){ .comm = c, .rank = r, .rounds = 1, .x = v, .late_us = (r * 7 + again) % 3 * 300 };
            }
            run_all(m, s.ranks);
            for (int r = 0; r < s.ranks; r++) CHECK_INT(m[r].status, FS_OK);
            for (int64_t k = 0; k < s.rows * s.stride; k++) {
                float sum = before[0][k];
                for (int r = 1; r < s.ranks; r++) sum += before[r][k];
                for (int r = 0; r < s.ranks; r++) {
                    float wanted = k % s.stride < s.cols ? sum : before[r][k]; /* between rows nothing changes */
                    if (memcmp(&x[r][k], &wanted, 4))
                        TEST_FAIL("rank %d of %d, element %d: %a, not %a", r, s.ranks, (int)k, (double)x[r][k],
                                  (double)wanted);
                }
            }
            for (int r = 0; r < s.ranks; r++) {
                fs_free(x[r]);
                fs_free(before[r]);
            }
            fs_rendezvous_close(c);
        }
    }
    fs_rendezvous_close(NULL);
}

static void rounds_follow_each_other(void) {
    enum { RANKS = 3 };
    member m[RANKS];
    float x[RANKS][40];
    fs_comm *c;
    CHECK_OK(fs_rendezvous_open(&c, RANKS, 20));
    for (int r = 0; r < RANKS; r++) {
        for (int k = 0; k < 40; k++) x[r][k] = 0x1p-60f * (float)(k + 1);
        fs_view v = { .at = x[r], .dtype = FS_F32, .rows = 2, .cols = 20, .stride = 20 };
        m[r] = (member){ .comm = c, .rank = r, .rounds = ROUNDS, .x = v };
    }
    run_all(m, RANKS);
    float thrice = 0x1p-60f;
    for (int round = 0; round < ROUNDS; round++) thrice = thrice + thrice + thrice;
    for (int r = 0; r < RANKS; r++) {
        CHECK_INT(m[r].status, FS_OK);
        CHECK(x[r][0] == thrice);
        CHECK(!memcmp(x[r], x[0], sizeof x[0]));
    }
    fs_rendezvous_close(c);
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void a_missing_rank_is_named(void) {
    member m[3];
    float x[3][8] = { { 1 }, { 2 }, { 3 } };
    fs_comm *c;
    fs_view v[3];
    CHECK_OK(fs_rendezvous_open(&c, 3, 0.2));
    for (int r = 0; r < 3; r++) {
        v[r] = (fs_view){ .at = x[r], .dtype = FS_F32, .rows = 1, .cols = 8, .stride = 8 };
        m[r] = (member){ .comm = c, .rank = r == 1 ? 2 : r, .rounds = 1, .x = v[r] };
    }
    double start = seconds();
    run_all(m, 2); /* ranks 0 and 2 */
    double took = seconds() - start;
    CHECK(took >= 0.15 && took < 15);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(m[i].status, FS_DEVICE);
        CHECK_TEXT(m[i].error.text, "rank 1 of a tensor group of 3 did not reach a sum within 0.2 seconds; see why its "
                                    "device stopped, or raise "
                                    "FIRESTEEL_COLLECTIVE_SECONDS");
    }
    /* broken from then on: the late one, and everybody after, fails at once */
    start = seconds();
    CHECK_FAILS(fs_rendezvous_sum(c, 1, v[1]), FS_DEVICE, "rank 1 of a tensor group of 3");
    CHECK_FAILS(fs_rendezvous_sum(c, 0, v[0]), FS_DEVICE, "rank 1 of a tensor group of 3");
    CHECK(seconds() - start < 0.15);
    for (int r = 0; r < 3; r++) CHECK(x[r][0] == (float)(r + 1));
    fs_rendezvous_close(c);

    CHECK_OK(fs_rendezvous_open(&c, 3, 0.05));
    CHECK_FAILS(fs_rendezvous_sum(c, 0, v[0]), FS_DEVICE, "ranks 1, 2 of a tensor group of 3");
    fs_rendezvous_close(c);
}

static void misuse_is_refused(void) {
    float x[3][8] = { { 1 } };
    fs_comm *c;
    member m[2];
    CHECK_FAILS(fs_rendezvous_open(&c, 0, 1), FS_CONFIG, "a tensor group of 0 ranks");
    CHECK_FAILS(fs_rendezvous_open(&c, 65, 1), FS_CONFIG, "a tensor group of 65 ranks");
    fs_alloc_fail_at(1);
    CHECK_FAILS(fs_rendezvous_open(&c, 2, 1), FS_NO_MEMORY, "refused");
    CHECK_OK(fs_rendezvous_open(&c, 2, 5));
    fs_view v = { .at = x[0], .dtype = FS_F32, .rows = 1, .cols = 8, .stride = 8 };
    CHECK_FAILS(fs_rendezvous_sum(c, 2, v), FS_DEVICE, "rank 2 is not in a tensor group of 2");
    m[0] = (member){ .comm = c, .rank = 0, .rounds = 1, .x = v };
    m[1] = (member){ .comm = c, .rank = 1, .rounds = 1, .x = { .at = x[1], .rows = 2, .cols = 8, .stride = 8 } };
    run_all(m, 2);
    for (int r = 0; r < 2; r++) {
        CHECK_INT(m[r].status, FS_DEVICE);
        CHECK_TEXT(m[r].error.text,
                   "rank 1 of a tensor group brought [2, 8] to a sum, rank 0 [1, 8]; all must be alike");
    }
    fs_rendezvous_close(c);
}

/* As an op meets it: queues of two devices, a driver each, at once and delayed. */
typedef struct {
    fs_device *device;
    fs_queue *queue;
    fs_step step;
    fs_view x;
    fs_status status;
} rank_driver;

static void *reduce(void *arg) {
    rank_driver *d = arg;
    fs_event *e;
    d->status = d->device->backend->event_new(d->device, &e);
    if (d->status == FS_OK) d->status = d->step.ops->all_reduce(&d->step, d->x);
    if (d->status == FS_OK) d->status = d->device->backend->event_record(e, d->queue);
    if (d->status == FS_OK) d->status = d->device->backend->event_wait(e);
    d->device->backend->event_free(e);
    return NULL;
}

static void the_op_sums_over_devices(void) {
    const fs_backend *cpu = &fs_cpu_backend;
    for (int delay = 0; delay < 2; delay++) {
        rank_driver d[2];
        fs_device *ranks[2], *stranger;
        pthread_t threads[2];
        float x[2][8] = { { 1, 2, 3 }, { 10, 20, 30 } };
        fs_comm *c = NULL;
        setenv("FIRESTEEL_TEST_DELAY", delay ? "1" : "0", 1);
        for (int r = 0; r < 2; r++)
            CHECK_OK(cpu->open(&ranks[r], &(fs_device_options){ .index = r, .of = 2, .threads = 1 }));
        unsetenv("FIRESTEEL_TEST_DELAY");
        CHECK_OK(cpu->comm_open(&c, ranks, 2, 10));
        for (int r = 0; r < 2; r++) {
            d[r] = (rank_driver){ .device = ranks[r] };
            CHECK_OK(cpu->queue_new(ranks[r], &d[r].queue));
            d[r].x = (fs_view){ .at = x[r], .dtype = FS_F32, .rows = 1, .cols = 8, .stride = 8 };
            d[r].step =
                (fs_step){ .device = ranks[r], .queue = d[r].queue, .ops = cpu->ops, .comm = c, .rank = r, .ranks = 2 };
            pthread_create(&threads[r], NULL, reduce, &d[r]);
        }
        for (int r = 0; r < 2; r++) pthread_join(threads[r], NULL);
        for (int r = 0; r < 2; r++) {
            CHECK_INT(d[r].status, FS_OK);
            for (int k = 0; k < 3; k++) CHECK(x[r][k] == (float)(11 * (k + 1)));
            cpu->queue_free(d[r].queue);
        }
        cpu->comm_close(c);
        CHECK_OK(fs_measure_backend.open(&stranger, &(fs_device_options){ 0 }));
        CHECK_FAILS(cpu->comm_open(&c, (fs_device *[]){ ranks[0], stranger }, 2, 10), FS_CONFIG, "rank 1");
        fs_measure_backend.close(stranger);
        for (int r = 0; r < 2; r++) cpu->close(ranks[r]);
    }
}

TESTS({ "sums_have_one_set_of_bits", sums_have_one_set_of_bits },
      { "rounds_follow_each_other", rounds_follow_each_other }, { "a_missing_rank_is_named", a_missing_rank_is_named },
      { "misuse_is_refused", misuse_is_refused }, { "the_op_sums_over_devices", the_op_sums_over_devices })
