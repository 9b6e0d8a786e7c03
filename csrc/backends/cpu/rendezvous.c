/* rendezvous.c - ranks of one process meet, add up, part.
 *
 *   arrive (deadline) -> each rank adds up ITS share of the elements, rank 0 + rank 1 + ..., and writes it to all ->
 * leave
 *
 * Shares do not overlap, so nobody copies or locks while adding. The deadline is for arriving only: whoever has
 * arrived is inside this file and will finish, and must be waited for, as it writes into the others' memory. */
#include "backends/collectives.h"
#include "backends/cpu/pool.h"
#include "base/alloc.h"
#include "base/clock.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { MOST_RANKS = 64 };

struct fs_comm {
    int size;
    double deadline;
    pthread_mutex_t lock; /* of all that follows; `turn` is also read without it, while spinning */
    pthread_cond_t turned;
    _Atomic unsigned turn; /* grows when the last rank arrives, and when the last one is done adding */
    int waiting;           /* ranks that stand at this turn */
    _Atomic int broken;
    fs_error error;
    int here[MOST_RANKS]; /* which ranks have arrived */
    fs_view x[MOST_RANKS];
};

fs_status fs_rendezvous_open(fs_comm **out, int size, double deadline_seconds) {
    fs_comm *c;
    *out = NULL;
    if (size < 1 || size > MOST_RANKS)
        return fs_fail(FS_CONFIG, "a tensor group of %d ranks cannot be made; it takes 1 to %d", size, MOST_RANKS);
    FS_TRY(fs_alloc(&c, 1, sizeof *c));
    c->size = size;
    c->deadline = deadline_seconds;
    pthread_mutex_init(&c->lock, NULL);
    fs_cond_init(&c->turned);
    *out = c;
    return FS_OK;
}

void fs_rendezvous_close(fs_comm *c) {
    if (!c) return;
    pthread_cond_destroy(&c->turned);
    pthread_mutex_destroy(&c->lock);
    fs_free(c);
}

/* Under the lock: the last failure of this thread breaks the group. */
static void break_group(fs_comm *c, fs_status st) {
    fs_error_take(&c->error, st);
    atomic_store(&c->broken, 1);
    pthread_cond_broadcast(&c->turned);
}

static fs_status name_missing(const fs_comm *c) {
    char missing[256] = "";
    int n = 0;
    for (int r = 0; r < c->size; r++) {
        if (c->here[r]) continue;
        size_t used = strlen(missing);
        snprintf(missing + used, sizeof missing - used, "%s%d", n++ ? ", " : "", r);
    }
    return fs_fail(
        FS_DEVICE,
        "rank%s %s of a tensor group of %d did not reach a sum within %g seconds; see why its device stopped, or "
        "raise FIRESTEEL_COLLECTIVE_SECONDS",
        n > 1 ? "s" : "", missing, c->size, c->deadline);
}

static fs_status same_shapes(const fs_comm *c) {
    for (int r = 1; r < c->size; r++)
        if (c->x[r].rows != c->x[0].rows || c->x[r].cols != c->x[0].cols)
            return fs_fail(
                FS_DEVICE,
                "rank %d of a tensor group brought [%lld, %lld] to a sum, rank 0 [%lld, %lld]; all must be alike", r,
                (long long)c->x[r].rows, (long long)c->x[r].cols, (long long)c->x[0].rows, (long long)c->x[0].cols);
    return FS_OK;
}

static void next_turn(fs_comm *c) {
    c->waiting = 0;
    atomic_fetch_add(&c->turn, 1);
    pthread_cond_broadcast(&c->turned);
}

static void spin_past(fs_comm *c, unsigned turn) {
    for (int i = 0; i < FS_SPINS && atomic_load(&c->turn) == turn && !atomic_load(&c->broken); i++) fs_pause();
}

static fs_status arrive(fs_comm *c, int rank, fs_view x) {
    fs_status st = FS_OK;
    pthread_mutex_lock(&c->lock);
    if (atomic_load(&c->broken)) FS_GO(fs_error_raise(&c->error));
    if (c->here[rank])
        FS_GO(fs_fail(FS_DEVICE, "rank %d of a tensor group is in two sums at once; each rank has one thread", rank));
    unsigned turn = atomic_load(&c->turn);
    c->x[rank] = x;
    c->here[rank] = 1;
    if (++c->waiting == c->size) {
        st = same_shapes(c);
        if (st != FS_OK) {
            break_group(c, st);
            FS_GO(fs_error_raise(&c->error));
        }
        next_turn(c);
        goto done;
    }
    pthread_mutex_unlock(&c->lock);
    spin_past(c, turn);
    pthread_mutex_lock(&c->lock);
    struct timespec until = fs_deadline(c->deadline);
    while (atomic_load(&c->turn) == turn && !atomic_load(&c->broken))
        if (pthread_cond_timedwait(&c->turned, &c->lock, &until) == ETIMEDOUT && atomic_load(&c->turn) == turn &&
            !atomic_load(&c->broken))
            break_group(c, name_missing(c));
    if (atomic_load(&c->turn) == turn) st = fs_error_raise(&c->error);
done:
    pthread_mutex_unlock(&c->lock);
    return st;
}

static void leave(fs_comm *c, int rank) {
    pthread_mutex_lock(&c->lock);
    unsigned turn = atomic_load(&c->turn);
    c->here[rank] = 0;
    int last = ++c->waiting == c->size;
    if (last) next_turn(c);
    pthread_mutex_unlock(&c->lock);
    if (last) return;
    spin_past(c, turn);
    pthread_mutex_lock(&c->lock);
    while (atomic_load(&c->turn) == turn) pthread_cond_wait(&c->turned, &c->lock);
    pthread_mutex_unlock(&c->lock);
}

/* Columns of a row are cut at multiples of 16, so ranks do not write into one cache line. */
static void add_share(fs_comm *c, int rank) {
    int64_t rows = c->x[0].rows, blocks = (c->x[0].cols + 15) / 16;
    int64_t first = rows * blocks * rank / c->size, last = rows * blocks * (rank + 1) / c->size;
    for (int64_t i = first; i < last; i++) {
        int64_t row = i / blocks, col = i % blocks * 16, n = c->x[0].cols - col < 16 ? c->x[0].cols - col : 16;
        float sum[16];
        memcpy(sum, fs_f32(c->x[0], row) + col, (size_t)n * sizeof *sum);
        for (int r = 1; r < c->size; r++) {
            const float *x = fs_f32(c->x[r], row) + col;
            for (int64_t k = 0; k < n; k++) sum[k] += x[k];
        }
        for (int r = 0; r < c->size; r++) memcpy(fs_f32(c->x[r], row) + col, sum, (size_t)n * sizeof *sum);
    }
}

fs_status fs_rendezvous_sum(fs_comm *c, int rank, fs_view x) {
    if (rank < 0 || rank >= c->size) return fs_fail(FS_DEVICE, "rank %d is not in a tensor group of %d", rank, c->size);
    FS_TRY(arrive(c, rank, x));
    add_share(c, rank);
    leave(c, rank);
    return FS_OK;
}
