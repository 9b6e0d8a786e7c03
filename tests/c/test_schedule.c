/* Properties of the pure scheduling policy, over thousands of random queues. */
#include "engine/schedule.h"
#include "random.h"
#include "test.h"

enum { MOST = 200, ROUNDS = 20000 };

typedef struct {
    fs_pending_row rows[MOST];
    int64_t n;
    fs_limits limits;
} queue;

static queue random_queue(uint64_t *random) {
    queue q = { .n = random_between(random, 0, MOST) };
    q.limits.max_tokens = random_between(random, 1, 512);
    q.limits.max_rows = random_between(random, 1, 64);
    int64_t longest = random_between(random, 1, 300), tasks = random_between(random, 1, 3);
    for (int64_t i = 0; i < q.n; i++) {
        q.rows[i].tokens = random_between(random, 1, longest);
        q.rows[i].task = (int32_t)random_between(random, 1, tasks);
    }
    return q;
}

static void a_batch_keeps_its_limits(void) {
    uint64_t random = 1;
    for (int round = 0; round < ROUNDS; round++) {
        queue q = random_queue(&random);
        int64_t picked[64], again[64], tokens = 0;
        int64_t n = fs_schedule(q.rows, q.n, &q.limits, picked);
        CHECK_INT(n > 0, q.n > 0);
        CHECK(n <= q.limits.max_rows);
        for (int64_t i = 0; i < n; i++) {
            CHECK(picked[i] >= 0 && picked[i] < q.n);
            CHECK(i == 0 ? picked[i] == 0 : picked[i] > picked[i - 1]);
            CHECK_INT(q.rows[picked[i]].task, q.rows[0].task);
            tokens += q.rows[picked[i]].tokens;
        }
        CHECK(n <= 1 || tokens <= q.limits.max_tokens);
        CHECK_INT(fs_schedule(q.rows, q.n, &q.limits, again), n);
        CHECK(!memcmp(picked, again, (size_t)n * sizeof *picked));
    }
}

/* No row that was left behind would have fitted beside those taken. */
static void a_batch_is_full(void) {
    uint64_t random = 2;
    for (int round = 0; round < ROUNDS; round++) {
        queue q = random_queue(&random);
        int64_t picked[64], tokens = 0, at = 0;
        int64_t n = fs_schedule(q.rows, q.n, &q.limits, picked);
        for (int64_t i = 0; i < n; i++) tokens += q.rows[picked[i]].tokens;
        if (n == q.limits.max_rows) continue;
        for (int64_t i = 0; i < q.n; i++) {
            if (at < n && picked[at] == i) {
                at++;
                continue;
            }
            CHECK(q.rows[i].task != q.rows[0].task || tokens + q.rows[i].tokens > q.limits.max_tokens);
        }
    }
}

/* Batch after batch until nothing waits: each row once, and none passed over for longer than rows stand before it. */
static void every_row_is_served_once(void) {
    uint64_t random = 3;
    for (int round = 0; round < ROUNDS / 20; round++) {
        queue q = random_queue(&random);
        int64_t name[MOST], served[MOST] = { 0 }, batches = 0, first = -1, total = q.n;
        for (int64_t i = 0; i < q.n; i++) name[i] = i;
        while (q.n > 0) {
            int64_t picked[64], kept = 0, at = 0;
            int64_t n = fs_schedule(q.rows, q.n, &q.limits, picked);
            CHECK(name[0] > first); /* the head of the queue always goes */
            first = name[0];
            for (int64_t i = 0; i < q.n; i++) {
                if (at < n && picked[at] == i) {
                    served[name[i]]++;
                    at++;
                    continue;
                }
                q.rows[kept] = q.rows[i];
                name[kept++] = name[i];
            }
            q.n = kept;
            batches++;
        }
        CHECK(batches <= total);
        for (int64_t i = 0; i < total; i++) CHECK_INT(served[i], 1);
    }
}

static void a_long_row_goes_alone(void) {
    const fs_pending_row rows[] = { { 100, 1 }, { 1, 1 }, { 1, 1 } };
    const fs_limits limits = { .max_tokens = 10, .max_rows = 8 };
    int64_t picked[8];
    CHECK_INT(fs_schedule(rows, 3, &limits, picked), 1);
    CHECK_INT(fs_schedule(rows + 1, 2, &limits, picked), 2);
}

TESTS({ "a_batch_keeps_its_limits", a_batch_keeps_its_limits }, { "a_batch_is_full", a_batch_is_full },
      { "every_row_is_served_once", every_row_is_served_once }, { "a_long_row_goes_alone", a_long_row_goes_alone })
