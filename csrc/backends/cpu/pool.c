/* pool.c - how a chunk finds its thread.
 *
 * `open` holds the running job's number and how many of its chunks nobody has claimed:
 *
 *        63           32 31            0
 *       +---------------+---------------+      claim = compare-and-swap open -> open - 1,
 *       |  job number   |   unclaimed   |      chunk = chunks - unclaimed
 *       +---------------+---------------+
 *
 * A claim that succeeds proves that run, context and chunks, read before it, were this job's: they change only while
 * nothing is unclaimed, and every job has a number of its own. `done` counts chunks that have run; a helper adds to it
 * once, when it finds nothing more to claim, so a job cannot end and the next not begin with a helper's sum still to
 * come.
 *
 * Parking, both sides the same: the sleeper announces itself and looks again, the waker changes the futex word and
 * looks for sleepers, all sequentially consistent, so one of the two sees the other. */
#define _GNU_SOURCE
#include "backends/cpu/pool.h"
#include "base/alloc.h"
#include "base/clock.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Kernels keep little on the stack; with RLIMIT_AS set (Spark can) the default of 8 MB each would be a waste. */
enum { STACK_BYTES = 1 << 20, LINE = 64 };

typedef struct {
    _Alignas(LINE) _Atomic int64_t busy_ns;
    fs_pool *pool;
    pthread_t id;
    int thread;
} claimer;

struct fs_pool {
    claimer *claimers; /* [threads + guests]; 0 is the caller */
    char *scratch;     /* [threads + guests][scratch_bytes], pages untouched until used */
    size_t scratch_bytes;
    int threads, guests, started; /* helpers 1 ... started run */
    pid_t pid;            /* of the process whose helpers they are; 0: none yet */

    _Alignas(LINE) _Atomic uint64_t open;
    _Atomic(fs_chunk) run;
    _Atomic(void *) context;
    _Atomic uint32_t chunks;

    _Alignas(LINE) _Atomic uint32_t done; /* futex word of the caller */
    _Atomic int caller_parked;

    _Alignas(LINE) _Atomic uint32_t posted; /* jobs so far; futex word of the helpers */
    _Atomic int parked, stop;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int threads) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
}

static void count_busy(claimer *me, int64_t since) {
    int64_t busy = atomic_load_explicit(&me->busy_ns, memory_order_relaxed);
    atomic_store_explicit(&me->busy_ns, busy + fs_now_ns() - since, memory_order_relaxed);
}

static int unclaimed(fs_pool *p) { return (uint32_t)atomic_load_explicit(&p->open, memory_order_relaxed) != 0; }

/* Claims and runs chunks until there are none, or *stop (NULL: never); returns how many it ran. */
static uint32_t claim_and_run(claimer *me, const atomic_int *stop) {
    fs_pool *p = me->pool;
    uint32_t ran = 0, chunks = 0;
    int64_t start = 0;
    while (!stop || !atomic_load_explicit(stop, memory_order_relaxed)) {
        uint64_t open = atomic_load_explicit(&p->open, memory_order_acquire);
        if ((uint32_t)open == 0) break;
        fs_chunk run = atomic_load_explicit(&p->run, memory_order_relaxed);
        void *context = atomic_load_explicit(&p->context, memory_order_relaxed);
        uint32_t all = atomic_load_explicit(&p->chunks, memory_order_relaxed);
        if (!atomic_compare_exchange_weak(&p->open, &open, open - 1)) continue;
        if (ran++ == 0) start = fs_now_ns();
        chunks = all;
        run(context, (int64_t)(all - (uint32_t)open), me->thread);
    }
    if (!ran) return 0;
    count_busy(me, start);
    if (atomic_fetch_add(&p->done, ran) + ran == chunks && atomic_load(&p->caller_parked)) futex_wake(&p->done, 1);
    return ran;
}

static void *helper(void *arg) {
    claimer *me = arg;
    fs_pool *p = me->pool;
    char name[16];
    snprintf(name, sizeof name, "fs-cpu.%d", me->thread);
    prctl(PR_SET_NAME, name);
    while (!atomic_load(&p->stop)) {
        uint32_t seen = atomic_load(&p->posted);
        if (claim_and_run(me, NULL)) continue;
        int spins = 0;
        while (spins < FS_SPINS && !unclaimed(p) && !atomic_load_explicit(&p->stop, memory_order_relaxed)) {
            fs_pause();
            spins++;
        }
        if (spins < FS_SPINS) continue;
        atomic_fetch_add(&p->parked, 1);
        if (atomic_load(&p->posted) == seen && !atomic_load(&p->stop)) futex_wait(&p->posted, seen);
        atomic_fetch_sub(&p->parked, 1);
    }
    return NULL;
}

/* Starts the helpers of this process. What a fork left of the parent's is forgotten: they do not exist here. */
static void start(fs_pool *p, pid_t pid) {
    sigset_t all, before;
    pthread_attr_t attributes;
    p->pid = pid;
    p->started = 0;
    atomic_store(&p->open, (atomic_load(&p->open) >> 32) << 32);
    atomic_store(&p->parked, 0);
    atomic_store(&p->caller_parked, 0);
    if (pthread_attr_init(&attributes) != 0) return;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (p->started < p->threads - 1) {
        claimer *next = &p->claimers[p->started + 1];
        if (pthread_create(&next->id, &attributes, helper, next) != 0) break;
        p->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

fs_status fs_pool_open(fs_pool **out, int threads, int guests, size_t scratch_bytes) {
    fs_status st = FS_OK;
    fs_pool *p = NULL;
    *out = NULL;
    FS_GO(fs_alloc_aligned(&p, sizeof *p));
    memset(p, 0, sizeof *p);
    p->threads = threads > 1 ? threads : 1;
    p->guests = guests;
    const int claimers = fs_pool_threads(p);
    p->scratch_bytes = (scratch_bytes + LINE - 1) & ~(size_t)(LINE - 1);
    FS_GO(fs_alloc_aligned(&p->claimers, (size_t)claimers * sizeof *p->claimers));
    memset(p->claimers, 0, (size_t)claimers * sizeof *p->claimers);
    for (int t = 0; t < claimers; t++) {
        p->claimers[t].pool = p;
        p->claimers[t].thread = t;
    }
    FS_GO(fs_alloc_aligned(&p->scratch, (size_t)claimers * p->scratch_bytes));
    *out = p;
    p = NULL;
done:
    fs_pool_close(p);
    return st;
}

void fs_pool_close(fs_pool *p) {
    if (!p) return;
    if (p->started && p->pid == getpid()) {
        atomic_store(&p->stop, 1);
        atomic_fetch_add(&p->posted, 1);
        futex_wake(&p->posted, p->started);
        for (int t = 1; t <= p->started; t++) pthread_join(p->claimers[t].id, NULL);
    }
    fs_free(p->scratch);
    fs_free(p->claimers);
    fs_free(p);
}

static void run_alone(fs_pool *p, fs_chunk run, void *context, int64_t chunks) {
    int64_t start = fs_now_ns();
    for (int64_t c = 0; c < chunks; c++) run(context, c, 0);
    count_busy(&p->claimers[0], start);
}

void fs_pool_run(fs_pool *p, fs_chunk run, void *context, int64_t chunks) {
    if (chunks <= 0) return;
    if (p->threads > 1 && chunks > 1) {
        pid_t pid = getpid();
        if (p->pid != pid) start(p, pid);
    }
    if (chunks == 1 || chunks > UINT32_MAX || (p->started == 0 && p->guests == 0)) {
        run_alone(p, run, context, chunks);
        return;
    }
    uint64_t job = (atomic_load_explicit(&p->open, memory_order_relaxed) >> 32) + 1;
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    atomic_store_explicit(&p->run, run, memory_order_relaxed);
    atomic_store_explicit(&p->context, context, memory_order_relaxed);
    atomic_store_explicit(&p->chunks, (uint32_t)chunks, memory_order_relaxed);
    atomic_store(&p->open, job << 32 | (uint64_t)chunks);
    atomic_fetch_add(&p->posted, 1);
    if (atomic_load(&p->parked)) futex_wake(&p->posted, chunks - 1 < p->started ? (int)chunks - 1 : p->started);

    claim_and_run(&p->claimers[0], NULL);
    uint32_t done;
    for (int spins = 0; (done = atomic_load_explicit(&p->done, memory_order_acquire)) != (uint32_t)chunks; spins++) {
        if (spins < FS_SPINS) {
            fs_pause();
            continue;
        }
        atomic_store(&p->caller_parked, 1);
        if ((done = atomic_load(&p->done)) != (uint32_t)chunks) futex_wait(&p->done, done);
        atomic_store(&p->caller_parked, 0);
    }
}

int64_t fs_pool_help(fs_pool *p, int guest, const atomic_int *stop) {
    claimer *me = &p->claimers[p->threads + guest];
    const int64_t before = atomic_load_explicit(&me->busy_ns, memory_order_relaxed);
    for (int spins = 0; spins < FS_SPINS && !atomic_load_explicit(stop, memory_order_relaxed); spins++) {
        if (claim_and_run(me, stop)) spins = 0;
        else fs_pause();
    }
    return atomic_load_explicit(&me->busy_ns, memory_order_relaxed) - before;
}

int fs_pool_threads(const fs_pool *p) { return p->threads + p->guests; }

void *fs_pool_scratch(fs_pool *p, int thread) { return p->scratch + (size_t)thread * p->scratch_bytes; }

int64_t fs_pool_busy_ns(const fs_pool *p) {
    int64_t sum = 0;
    for (int t = 0; t < fs_pool_threads(p); t++)
        sum += atomic_load_explicit(&p->claimers[t].busy_ns, memory_order_relaxed);
    return sum;
}
