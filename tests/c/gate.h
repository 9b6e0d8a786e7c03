/* gate.h - a gate in front of the first op, to catch the engine at work.
 *
 *   gate_put(e);  ... submit ...;  gate_await();  what is to happen while rows are computed;  gate_set(0); */
#ifndef FS_TEST_GATE_H
#define FS_TEST_GATE_H

#include "engine_kit.h"

#include <time.h>

static struct {
    pthread_mutex_t lock;
    pthread_cond_t turned;
    int held, inside, passes; /* held: only so many may pass */
    fs_ops original;
} gate = { .lock = PTHREAD_MUTEX_INITIALIZER, .turned = PTHREAD_COND_INITIALIZER };

static inline fs_status gated(fs_step *s, fs_view y, const fs_gather *tables, int n, const fs_norm *norm) {
    pthread_mutex_lock(&gate.lock);
    gate.inside++;
    pthread_cond_broadcast(&gate.turned);
    while (gate.held && !gate.passes) pthread_cond_wait(&gate.turned, &gate.lock);
    if (gate.held) gate.passes--;
    gate.inside--;
    pthread_mutex_unlock(&gate.lock);
    return gate.original.gather_norm(s, y, tables, n, norm);
}

static inline void gate_set(int held) {
    pthread_mutex_lock(&gate.lock);
    gate.held = held;
    pthread_cond_broadcast(&gate.turned);
    pthread_mutex_unlock(&gate.lock);
}

static inline void gate_let_one_pass(void) {
    pthread_mutex_lock(&gate.lock);
    gate.passes++;
    pthread_cond_broadcast(&gate.turned);
    pthread_mutex_unlock(&gate.lock);
}

static inline void gate_put(fs_engine *e) {
    gate.original = e->replicas[0].stages[0].ops;
    e->replicas[0].stages[0].ops.gather_norm = gated;
    gate_set(1);
}

static inline void gate_await(void) {
    pthread_mutex_lock(&gate.lock);
    while (!gate.inside) pthread_cond_wait(&gate.turned, &gate.lock);
    pthread_mutex_unlock(&gate.lock);
}

static inline void nap(double seconds) {
    struct timespec t = { .tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9) };
    nanosleep(&t, NULL);
}

#endif
