#define _GNU_SOURCE
/* backends/cpu/pool: every chunk once, whoever runs it; forks; what a run costs. */
#include "backends/cpu/pool.h"
#include "test.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_CHUNKS = 1000 };

typedef struct {
    fs_pool *pool;
    _Atomic int ran[MOST_CHUNKS];
    _Atomic int strange; /* a thread number that is none */
    int work;            /* pauses a chunk */
} tally;

static void one(void *context, int64_t chunk, int thread) {
    tally *t = context;
    atomic_fetch_add(&t->ran[chunk], 1);
    if (thread < 0 || thread >= fs_pool_threads(t->pool)) atomic_fetch_add(&t->strange, 1);
    for (int i = 0; i < t->work; i++) fs_pause();
}

static int wrong(tally *t, int64_t chunks) {
    int bad = t->strange;
    for (int64_t c = 0; c < MOST_CHUNKS; c++) {
        bad += t->ran[c] != (c < chunks);
        t->ran[c] = 0;
    }
    return bad;
}

static int run_and_count(fs_pool *pool, tally *t, int64_t chunks) {
    t->pool = pool;
    fs_pool_run(pool, one, t, chunks);
    return wrong(t, chunks);
}

static void every_chunk_runs_once(void) {
    static const int threads[] = { 0, 1, 2, 3, 4, 16 }; /* 16: more than this host has */
    static const int64_t chunks[] = { 0, 1, 2, 3, 7, 64, MOST_CHUNKS };
    tally t = { 0 };
    for (size_t n = 0; n < sizeof threads / sizeof *threads; n++) {
        fs_pool *pool;
        CHECK_OK(fs_pool_open(&pool, threads[n], 0, 64));
        CHECK_INT(fs_pool_threads(pool), threads[n] ? threads[n] : 1);
        for (int again = 0; again < 20; again++)
            for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++)
                CHECK_INT(run_and_count(pool, &t, chunks[c]), 0);
        fs_pool_close(pool);
    }
    fs_pool_close(NULL);
}

/* Short jobs one after the other: the next begins while helpers still look at the last. */
static void jobs_follow_closely(void) {
    fs_pool *pool;
    tally t = { 0 };
    CHECK_OK(fs_pool_open(&pool, 4, 0, 64));
    t.pool = pool;
    for (int job = 0; job < 5000; job++) {
        int64_t chunks = 1 + job % 9;
        fs_pool_run(pool, one, &t, chunks);
        for (int64_t c = 0; c < chunks; c++)
            if (atomic_exchange(&t.ran[c], 0) != 1) TEST_FAIL("job %d: chunk %d did not run once", job, (int)c);
    }
    fs_pool_close(pool);
}

static void parked_helpers_come_back(void) {
    fs_pool *pool;
    tally t = { .work = 2000 };
    struct timespec nap = { .tv_nsec = 3000000 };
    CHECK_OK(fs_pool_open(&pool, 3, 0, 64));
    for (int i = 0; i < 20; i++) {
        CHECK_INT(run_and_count(pool, &t, 12), 0);
        nanosleep(&nap, NULL); /* long after the last spin */
    }
    fs_pool_close(pool);
}

/* Chunks that wait for each other: only two threads can run both. */
typedef struct {
    _Atomic int begun, met;
} meeting;

static void meet(void *context, int64_t chunk, int thread) {
    meeting *m = context;
    time_t start = time(NULL);
    (void)chunk, (void)thread;
    atomic_fetch_add(&m->begun, 1);
    while (atomic_load(&m->begun) < 2 && time(NULL) - start < 20) usleep(100);
    if (atomic_load(&m->begun) == 2) atomic_fetch_add(&m->met, 1);
}

static int helper_comes(fs_pool *pool) {
    meeting m = { 0 };
    fs_pool_run(pool, meet, &m, 2);
    return m.met == 2;
}

static void helpers_take_part(void) {
    fs_pool *pool;
    CHECK_OK(fs_pool_open(&pool, 2, 0, 64));
    for (int i = 0; i < 20; i++) CHECK(helper_comes(pool));
    fs_pool_close(pool);
}

typedef struct {
    fs_pool *pool;
    int number;
    atomic_int stop, ended;
    int64_t took;
} guest;

static void *helps(void *guest_) {
    guest *g = guest_;
    while (!atomic_load(&g->stop)) g->took += fs_pool_help(g->pool, g->number, &g->stop);
    atomic_store(&g->ended, 1);
    return NULL;
}

/* With one thread of its own, a pool still has as many as there are guests. */
static void guests_take_part(void) {
    pthread_t threads[2];
    guest guests[2];
    tally t = { .work = 200 };
    fs_pool *pool;
    CHECK_OK(fs_pool_open(&pool, 1, 2, 64));
    CHECK_INT(fs_pool_threads(pool), 3);
    for (int i = 0; i < 20; i++) CHECK_INT(run_and_count(pool, &t, 50), 0); /* nobody comes */
    for (int i = 0; i < 2; i++) {
        guests[i] = (guest){ .pool = pool, .number = i };
        pthread_create(&threads[i], NULL, helps, &guests[i]);
    }
    for (int i = 0; i < 20; i++) CHECK(helper_comes(pool));
    for (int i = 0; i < 2000; i++) CHECK_INT(run_and_count(pool, &t, 1 + i % 50), 0);
    for (int i = 0; i < 2; i++) atomic_store(&guests[i].stop, 1);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    CHECK(guests[0].took + guests[1].took > 0);
    CHECK_INT(run_and_count(pool, &t, 50), 0);
    fs_pool_close(pool);
}

/* Long before the job is done: whoever is called has work of his own. */
static void a_guest_leaves_when_called(void) {
    pthread_t thread;
    tally t = { .work = 20000 };
    fs_pool *pool;
    CHECK_OK(fs_pool_open(&pool, 1, 1, 64));
    guest g = { .pool = pool };
    pthread_create(&thread, NULL, helps, &g);
    for (int i = 0; i < 10; i++) {
        if (i == 3) atomic_store(&g.stop, 1);
        CHECK_INT(run_and_count(pool, &t, 100), 0);
        if (i == 3) CHECK(atomic_load(&g.ended));
    }
    pthread_join(thread, NULL);
    fs_pool_close(pool);
}

static void scratch_is_private(void) {
    fs_pool *pool;
    CHECK_OK(fs_pool_open(&pool, 3, 0, 100));
    for (int t = 0; t < 3; t++) {
        CHECK_INT((uintptr_t)fs_pool_scratch(pool, t) % 64, 0);
        memset(fs_pool_scratch(pool, t), t, 100);
    }
    for (int t = 0; t < 3; t++) CHECK_INT(((char *)fs_pool_scratch(pool, t))[99], t);
    fs_pool_close(pool);
}

static void opening_can_fail(void) {
    fs_pool *pool;
    for (int n = 1;; n++) {
        fs_alloc_fail_at(n);
        fs_status st = fs_pool_open(&pool, 2, 0, 64);
        fs_alloc_fail_at(0);
        if (st == FS_OK) {
            CHECK(n > 2);
            break;
        }
        CHECK_INT(st, FS_NO_MEMORY);
        CHECK(pool == NULL);
    }
    fs_pool_close(pool);
}

static void busy_time_is_counted(void) {
    fs_pool *pool;
    tally t = { .work = 20000 };
    CHECK_OK(fs_pool_open(&pool, 2, 0, 64));
    CHECK_INT(fs_pool_busy_ns(pool), 0);
    CHECK_INT(run_and_count(pool, &t, 4), 0);
    int64_t some = fs_pool_busy_ns(pool);
    CHECK(some > 0);
    CHECK_INT(run_and_count(pool, &t, 1), 0);
    CHECK(fs_pool_busy_ns(pool) > some);
    fs_pool_close(pool);
}

static void signals_reach_the_caller_only(void) {
    fs_pool *pool;
    tally t = { 0 };
    sigset_t before, after;
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    CHECK_OK(fs_pool_open(&pool, 2, 0, 64));
    CHECK_INT(run_and_count(pool, &t, 8), 0);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    for (int s = 1; s < 32; s++) CHECK_INT(sigismember(&after, s), sigismember(&before, s));
    fs_pool_close(pool);
}

static int exit_of(pid_t child) {
    int status = -1;
    waitpid(child, &status, 0);
    return status;
}

#if defined(__SANITIZE_THREAD__) /* takes the child's threads for the parent's, whose ids they get */
static void a_forked_child_has_helpers_of_its_own(void) {}
#else
static void a_forked_child_has_helpers_of_its_own(void) {
    static tally t;
    fs_pool *used, *fresh;
    CHECK_OK(fs_pool_open(&used, 3, 0, 64));
    CHECK_OK(fs_pool_open(&fresh, 3, 0, 64));
    CHECK_INT(run_and_count(used, &t, 50), 0);
    for (int nap = 0; nap < 2; nap++) {
        if (nap) nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL); /* fork over parked helpers as well */
        pid_t child = fork();
        if (child == 0) {
            int bad = 0;
            alarm(60);
            for (int i = 0; i < 20; i++) bad += run_and_count(used, &t, 50) + run_and_count(fresh, &t, 50);
            bad += !helper_comes(used) + !helper_comes(fresh);
            fs_pool_close(used);
            fs_pool_close(fresh);
            _exit(bad != 0);
        }
        CHECK_INT(run_and_count(used, &t, 50), 0);
        CHECK_INT(exit_of(child), 0);
    }
    pid_t child = fork(); /* closing what the parent has used, without a run */
    if (child == 0) {
        alarm(60);
        fs_pool_close(used);
        _exit(0);
    }
    CHECK_INT(exit_of(child), 0);
    fs_pool_close(used);
    fs_pool_close(fresh);
}
#endif

/* RLIMIT_NPROC does not bind root, so the child becomes nobody where it may. */
static void threads_refused_are_done_without(void) {
    pid_t child = fork();
    if (child == 0) {
        static tally t;
        fs_pool *pool;
        struct rlimit none = { 0 };
        alarm(60);
        if (getuid() == 0 && setuid(65534) != 0) _exit(0);
        setrlimit(RLIMIT_NPROC, &none);
        if (fs_pool_open(&pool, 4, 0, 64) != FS_OK) _exit(1);
        int bad = run_and_count(pool, &t, 50) + run_and_count(pool, &t, 3);
        fs_pool_close(pool);
        _exit(bad != 0);
    }
    CHECK_INT(exit_of(child), 0);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void nothing(void *context, int64_t chunk, int thread) { (void)context, (void)chunk, (void)thread; }

static int later(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* A MiniLM forward of one row hands over some 30 times in 3 ms; the bound is generous, the figure is printed. */
static void handing_over_is_cheap(void) {
    static int64_t took[4001];
    enum { RUNS = sizeof took / sizeof *took };
    for (int threads = 1; threads <= 2; threads++) {
        fs_pool *pool;
        CHECK_OK(fs_pool_open(&pool, threads, 0, 64));
        fs_pool_run(pool, nothing, NULL, 4);
        for (int i = 0; i < RUNS; i++) {
            int64_t start = now_ns();
            fs_pool_run(pool, nothing, NULL, 4);
            took[i] = now_ns() - start;
        }
        qsort(took, RUNS, sizeof *took, later);
        printf("       an empty run of 4 chunks, %d thread%s: median %d ns, 90 %% below %d ns\n", threads,
               threads > 1 ? "s" : "", (int)took[RUNS / 2], (int)took[RUNS * 9 / 10]);
        CHECK(took[RUNS / 2] < 200000);
        fs_pool_close(pool);
    }
}

TESTS({ "every_chunk_runs_once", every_chunk_runs_once }, { "jobs_follow_closely", jobs_follow_closely },
      { "parked_helpers_come_back", parked_helpers_come_back }, { "helpers_take_part", helpers_take_part },
      { "guests_take_part", guests_take_part }, { "a_guest_leaves_when_called", a_guest_leaves_when_called },
      { "scratch_is_private", scratch_is_private }, { "opening_can_fail", opening_can_fail },
      { "busy_time_is_counted", busy_time_is_counted },
      { "signals_reach_the_caller_only", signals_reach_the_caller_only },
      { "a_forked_child_has_helpers_of_its_own", a_forked_child_has_helpers_of_its_own },
      { "threads_refused_are_done_without", threads_refused_are_done_without },
      { "handing_over_is_cheap", handing_over_is_cheap })
