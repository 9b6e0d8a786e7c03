/* plain_device.h - a backend that keeps weights as plain fp32 rows, so that tests of loading can look at them. */
#ifndef PLAIN_DEVICE_H
#define PLAIN_DEVICE_H

#include "tiny_bert.h"

#include "backends/backend.h"
#include "base/half.h"
#include "test.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

static atomic_int_fast64_t plain_filled; /* rows */

/* What tests ask of it. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t came;
    pthread_t caller;
    int wanted; /* threads that must have begun a weight before any goes on */
    int begun, elsewhere; /* weights; of these, not by the caller, whose signals must be blocked */
    const fs_weight *order[TINY_TENSORS];
    int shaken; /* fills take their time, each another */
    int64_t fails; /* fills of weights with so many rows */
} plain = { .lock = PTHREAD_MUTEX_INITIALIZER, .came = PTHREAD_COND_INITIALIZER };

static inline void plain_reset(void) {
    plain.caller = pthread_self();
    plain.wanted = plain.begun = plain.elsewhere = plain.shaken = 0;
    plain.fails = 0;
}

static inline void note_begin(const fs_weight *w) {
    struct timespec end;
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 20;
    pthread_mutex_lock(&plain.lock);
    if (plain.begun < TINY_TENSORS) plain.order[plain.begun] = w;
    plain.begun++;
    if (!pthread_equal(pthread_self(), plain.caller)) {
        plain.elsewhere++;
        CHECK(sigismember(&blocked, SIGINT) == 1 && sigismember(&blocked, SIGTERM) == 1);
    }
    pthread_cond_broadcast(&plain.came);
    while (plain.begun < plain.wanted)
        if (pthread_cond_timedwait(&plain.came, &plain.lock, &end)) {
            TEST_FAIL("of %d threads %d have come", plain.wanted, plain.begun);
            break;
        }
    pthread_mutex_unlock(&plain.lock);
}

static inline fs_status plain_alloc(fs_device *d, fs_charge charge, size_t bytes, fs_memory *out) {
    FS_TRY(fs_budget_take(&d->budget, charge, bytes));
    fs_status st = fs_alloc_aligned(&out->at, bytes);
    if (st != FS_OK) fs_budget_give(&d->budget, charge, bytes);
    else *out = (fs_memory){ out->at, bytes, charge };
    return st;
}

static inline void plain_release(fs_device *d, fs_memory *m) {
    if (!m->at) return;
    fs_free(m->at);
    fs_budget_give(&d->budget, m->charge, m->bytes);
    *m = (fs_memory){ 0 };
}

static inline size_t plain_bytes(fs_device *d, const fs_weight_desc *desc) {
    (void)d;
    return ((size_t)(desc->N * desc->K) * sizeof(float) + 63) & ~(size_t)63;
}

static inline fs_status plain_begin(fs_device *d, fs_weight *w, const fs_weight_desc *desc, void *at) {
    (void)d;
    *w = (fs_weight){ *desc, at };
    note_begin(w);
    for (int64_t i = 0; i < desc->N * desc->K; i++) ((float *)at)[i] = 999;
    return FS_OK;
}

static inline fs_status plain_fill(fs_device *d, fs_weight *w, int64_t row, int64_t rows, const void *from,
                                   size_t stride, fs_dtype dtype) {
    (void)d;
    CHECK(row >= 0 && rows > 0 && row + rows <= w->desc.N);
    for (int64_t r = 0; r < rows; r++)
        fs_to_f32((float *)w->at + (row + r) * w->desc.K, (const char *)from + (size_t)r * stride, dtype, w->desc.K);
    int64_t filled = atomic_fetch_add(&plain_filled, rows);
    if (plain.shaken) nanosleep(&(struct timespec){ .tv_nsec = (long)(fs_hash(&filled, 8, 7) % 100000) }, NULL);
    if (w->desc.N == plain.fails)
        return fs_fail(FS_DEVICE, "the weight that begins with %g is refused", (double)*(float *)w->at);
    return FS_OK;
}

static inline fs_status plain_end(fs_device *d, fs_weight *w) {
    (void)d;
    for (int64_t i = 0; i < w->desc.N * w->desc.K; i++) CHECK(((float *)w->at)[i] != 999);
    return FS_OK;
}

static const fs_backend plain_backend = { .name = "plain",
                                          .alloc = plain_alloc,
                                          .release = plain_release,
                                          .weight_bytes = plain_bytes,
                                          .weight_begin = plain_begin,
                                          .weight_fill = plain_fill,
                                          .weight_end = plain_end };

static inline void plain_open(fs_device *d, size_t limit) {
    plain_reset();
    *d = (fs_device){ .backend = &plain_backend, .name = "plain:0" };
    fs_budget_init(&d->budget, d->name, limit);
}

#endif
