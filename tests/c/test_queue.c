/* backends/cpu/queue: order, events over queues and threads, failures; at once and delayed. */
#define _GNU_SOURCE
#include "backends/cpu/cpu.h"
#include "test.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

/* Calls write their number here, in the order in which they run. */
typedef struct {
    _Atomic int n;
    _Atomic int order[4096];
} journal;

typedef struct {
    journal *to;
    int number;
    fs_status fails;
} step;

static fs_status write_down(fs_cpu_device *d, const void *args) {
    const step *s = args;
    (void)d;
    s->to->order[s->to->n++] = s->number;
    return s->fails ? fs_fail(s->fails, "call %d failed", s->number) : FS_OK;
}

static void put(fs_queue *q, journal *j, int number) {
    step s = { .to = j, .number = number };
    CHECK_OK(fs_cpu_enqueue(q, write_down, &s, sizeof s));
}

static void put_failing(fs_queue *q, journal *j, int number) {
    step s = { .to = j, .number = number, .fails = FS_DEVICE };
    CHECK_OK(fs_cpu_enqueue(q, write_down, &s, sizeof s));
}

static const fs_backend *const cpu = &fs_cpu_backend;

static fs_device *open_device(int delay) {
    fs_device *d;
    setenv("FIRESTEEL_TEST_DELAY", delay ? "1" : "0", 1);
    CHECK_OK(cpu->open(&d, &(fs_device_options){ .threads = 1 }));
    unsetenv("FIRESTEEL_TEST_DELAY");
    return d;
}

static fs_queue *new_queue(fs_device *d) {
    fs_queue *q;
    CHECK_OK(cpu->queue_new(d, &q));
    return q;
}

static fs_event *new_event(fs_device *d) {
    fs_event *e;
    CHECK_OK(cpu->event_new(d, &e));
    return e;
}

static void calls_run_in_order(void) {
    for (int delay = 0; delay < 2; delay++) {
        journal j = { 0 };
        fs_device *d = open_device(delay);
        fs_queue *q = new_queue(d);
        fs_event *first = new_event(d), *second = new_event(d), *never = new_event(d);
        CHECK_OK(cpu->event_wait(never));
        for (int i = 0; i < 10; i++) put(q, &j, i);
        CHECK_OK(cpu->event_record(first, q));
        for (int i = 10; i < 20; i++) put(q, &j, i);
        CHECK_OK(cpu->event_record(second, q));
        put(q, &j, 20);
        CHECK_INT(j.n, delay ? 0 : 21);
        CHECK_OK(cpu->event_wait(first));
        CHECK_INT(j.n, delay ? 10 : 21);
        CHECK_OK(cpu->event_wait(first));
        CHECK_OK(cpu->event_wait(second));
        CHECK_INT(j.n, delay ? 20 : 21);
        CHECK_OK(cpu->event_record(first, q)); /* again: it moves */
        CHECK_OK(cpu->event_wait(first));
        for (int i = 0; i < 21; i++) CHECK_INT(j.order[i], i);
        put(q, &j, 21);
        cpu->queue_free(q); /* runs what is left */
        CHECK_INT(j.n, 22);
        CHECK_OK(cpu->event_wait(first)); /* an event may outlive its queue */
        cpu->event_free(first);
        cpu->event_free(second);
        cpu->event_free(never);
        cpu->event_free(NULL);
        cpu->queue_free(NULL);
        cpu->close(d);
    }
}

static void arguments_are_copied(void) {
    for (int delay = 0; delay < 2; delay++) {
        journal j = { 0 };
        fs_device *d = open_device(delay);
        fs_queue *q = new_queue(d);
        step s = { .to = &j, .number = 5 };
        CHECK_OK(fs_cpu_enqueue(q, write_down, &s, sizeof s));
        s.number = 6;
        char large[257] = { 0 };
        CHECK_FAILS(fs_cpu_enqueue(q, write_down, large, sizeof large), FS_DEVICE, "257 bytes of arguments");
        cpu->queue_free(q);
        CHECK_INT(j.n, 1);
        CHECK_INT(j.order[0], 5);
        cpu->close(d);
    }
}

static void copies_read_when_they_run(void) {
    for (int delay = 0; delay < 2; delay++) {
        fs_device *d = open_device(delay), *other = open_device(delay);
        fs_queue *q = new_queue(d);
        fs_event *e = new_event(d);
        fs_memory from, middle, to;
        CHECK_OK(cpu->alloc_pinned(d, FS_STAGING, 64, &from));
        CHECK_OK(cpu->alloc(d, FS_WORKSPACE, 64, &middle));
        CHECK_OK(cpu->alloc(other, FS_WORKSPACE, 64, &to));
        memset(from.at, 1, 64);
        memset(to.at, 9, 64);
        CHECK_OK(cpu->upload(q, middle.at, from.at, 64));
        CHECK_OK(cpu->upload(q, middle.at, from.at, 0));
        CHECK_OK(cpu->peer_copy(q, other, to.at, d, middle.at, 64));
        memset(from.at, 2, 64); /* too early: only the delayed mode shows it */
        CHECK_OK(cpu->event_record(e, q));
        CHECK_OK(cpu->event_wait(e));
        CHECK_INT(((char *)to.at)[63], delay ? 2 : 1);
        CHECK_OK(cpu->download(q, from.at, to.at, 63));
        CHECK_OK(cpu->event_record(e, q));
        CHECK_OK(cpu->event_wait(e));
        CHECK_INT(((char *)from.at)[62], delay ? 2 : 1);
        CHECK_INT(((char *)from.at)[63], 2);
        cpu->release(d, &from);
        cpu->release(d, &middle);
        cpu->release(other, &to);
        cpu->event_free(e);
        cpu->queue_free(q);
        cpu->close(d);
        cpu->close(other);
    }
}

/* a: 1 2 | b waits: 3 4 | a waits: 5     Waiting for the end of a runs all of it, in this order. */
static void events_order_queues_of_devices(void) {
    for (int delay = 0; delay < 2; delay++) {
        journal j = { 0 };
        fs_device *da = open_device(delay), *db = open_device(delay);
        fs_queue *a = new_queue(da), *b = new_queue(db);
        fs_event *to_b = new_event(da), *to_a = new_event(db), *end = new_event(da);
        CHECK_OK(cpu->queue_wait(a, to_b)); /* never recorded: no wait */
        put(a, &j, 1);
        put(a, &j, 2);
        CHECK_OK(cpu->event_record(to_b, a));
        CHECK_OK(cpu->queue_wait(b, to_b));
        put(b, &j, 3);
        put(b, &j, 4);
        CHECK_OK(cpu->event_record(to_a, b));
        CHECK_OK(cpu->queue_wait(a, to_a));
        put(b, &j, 6); /* behind the event: nobody waits for it */
        CHECK_OK(cpu->event_record(to_a, b)); /* moved: the wait above keeps what it took */
        put(a, &j, 5);
        CHECK_OK(cpu->event_record(end, a));
        CHECK_OK(cpu->queue_wait(a, end)); /* on itself: always fulfilled */
        CHECK_OK(cpu->event_wait(end));
        if (delay) {
            CHECK_INT(j.n, 5);
            for (int i = 0; i < 5; i++) CHECK_INT(j.order[i], i + 1);
        } else {
            CHECK_INT(j.n, 6);
        }
        cpu->queue_free(b); /* a wait for it may still stand in a */
        cpu->queue_free(a);
        cpu->event_free(to_a);
        cpu->event_free(to_b);
        cpu->event_free(end);
        cpu->close(da);
        cpu->close(db);
    }
}

static void a_failure_stays_and_skips(void) {
    for (int delay = 0; delay < 2; delay++) {
        journal j = { 0 };
        fs_device *d = open_device(delay);
        fs_queue *q = new_queue(d), *behind = new_queue(d), *beside = new_queue(d);
        fs_event *before = new_event(d), *at = new_event(d), *after = new_event(d), *inherited = new_event(d);
        put(q, &j, 1);
        CHECK_OK(cpu->event_record(before, q));
        put_failing(q, &j, 2);
        CHECK_OK(cpu->event_record(at, q));
        put_failing(q, &j, 3); /* skipped */
        CHECK_OK(cpu->event_record(after, q));
        CHECK_OK(cpu->queue_wait(beside, before));
        put(beside, &j, 10);
        CHECK_OK(cpu->queue_wait(behind, after));
        put(behind, &j, 11); /* skipped */
        CHECK_OK(cpu->event_record(inherited, behind));
        CHECK_OK(cpu->event_wait(before));
        for (int again = 0; again < 2; again++) {
            CHECK_FAILS(cpu->event_wait(at), FS_DEVICE, "call 2 failed");
            CHECK_FAILS(cpu->event_wait(after), FS_DEVICE, "call 2 failed");
            CHECK_FAILS(cpu->event_wait(inherited), FS_DEVICE, "call 2 failed");
        }
        CHECK_OK(cpu->event_wait(before));
        put(q, &j, 4); /* skipped: it stays */
        CHECK_OK(cpu->event_record(at, q));
        CHECK_FAILS(cpu->event_wait(at), FS_DEVICE, "call 2 failed");
        CHECK_OK(cpu->event_record(at, beside));
        CHECK_OK(cpu->event_wait(at));
        CHECK_INT(j.n, 3);
        for (int i = 0; i < 3; i++) CHECK(j.order[i] == 1 || j.order[i] == 2 || j.order[i] == 10);
        cpu->event_free(before);
        cpu->event_free(at);
        cpu->event_free(after);
        cpu->event_free(inherited);
        cpu->queue_free(q);
        cpu->queue_free(behind);
        cpu->queue_free(beside);
        cpu->close(d);
    }
}

static void keeping_a_call_can_fail(void) {
    journal j = { 0 };
    step s = { .to = &j };
    fs_queue *none;
    fs_event *no_event;
    fs_device *d = open_device(1);
    fs_alloc_fail_at(1);
    CHECK_FAILS(cpu->queue_new(d, &none), FS_NO_MEMORY, "refused");
    fs_alloc_fail_at(1);
    CHECK_FAILS(cpu->event_new(d, &no_event), FS_NO_MEMORY, "refused");
    fs_queue *q = new_queue(d);
    fs_event *e = new_event(d);
    put(q, &j, 1);
    CHECK_OK(cpu->event_record(e, q));
    fs_alloc_fail_at(1);
    CHECK_FAILS(fs_cpu_enqueue(q, write_down, &s, sizeof s), FS_NO_MEMORY, "refused");
    fs_alloc_fail_at(1);
    CHECK_FAILS(cpu->queue_wait(q, e), FS_NO_MEMORY, "refused");
    CHECK_OK(cpu->event_wait(e));
    CHECK_INT(j.n, 1);
    cpu->event_free(e);
    cpu->queue_free(q);
    cpu->close(d);
}

/* Stages as the engine runs them: a driver thread each, batches handed over under a lock, one slot's event waited for
 * by several threads at once. Each batch's number must grow by one in every stage. */
enum { STAGES = 3, BATCHES = 60, SLOTS = 2 };

typedef struct {
    fs_device *device[STAGES];
    fs_queue *queue[STAGES];
    fs_event *ready[STAGES][SLOTS];
    _Atomic int value[SLOTS];
    pthread_mutex_t lock;
    pthread_cond_t moved;
    int enqueued[STAGES], finished;
    int delay;
} pipeline;

typedef struct {
    pipeline *p;
    int stage;
} driver;

typedef struct {
    _Atomic int *value;
    int expected;
} grow_args;

static fs_status grow(fs_cpu_device *d, const void *args) {
    const grow_args *a = args;
    (void)d;
    int was = atomic_load_explicit(a->value, memory_order_relaxed);
    atomic_store_explicit(a->value, was + 1, memory_order_relaxed);
    return was == a->expected ? FS_OK : fs_fail(FS_DEVICE, "found %d, not %d", was, a->expected);
}

static void wait_until(pipeline *p, const int *counter, int least) {
    pthread_mutex_lock(&p->lock);
    while (*counter < least) pthread_cond_wait(&p->moved, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static void announce(pipeline *p, int *counter) {
    pthread_mutex_lock(&p->lock);
    ++*counter;
    pthread_cond_broadcast(&p->moved);
    pthread_mutex_unlock(&p->lock);
}

static void *drive(void *arg) {
    driver *me = arg;
    pipeline *p = me->p;
    for (int batch = 0; batch < BATCHES; batch++) {
        int slot = batch % SLOTS, s = me->stage;
        if (s == 0) wait_until(p, &p->finished, batch - SLOTS + 1);
        else wait_until(p, &p->enqueued[s - 1], batch + 1);
        if (s > 0) CHECK_OK(cpu->queue_wait(p->queue[s], p->ready[s - 1][slot]));
        grow_args a = { &p->value[slot], (batch / SLOTS) * STAGES + s };
        CHECK_OK(fs_cpu_enqueue(p->queue[s], grow, &a, sizeof a));
        CHECK_OK(cpu->event_record(p->ready[s][slot], p->queue[s]));
        announce(p, &p->enqueued[s]);
        if (s == STAGES - 1) {
            CHECK_OK(cpu->event_wait(p->ready[s][slot]));
            announce(p, &p->finished);
        } else if (batch % 3 == s) {
            CHECK_OK(cpu->event_wait(p->ready[s][slot])); /* drains beside the last stage's driver */
        }
    }
    return NULL;
}

static void stages_in_threads(void) {
    for (int delay = 0; delay < 2; delay++) {
        pipeline p = { .delay = delay };
        pthread_t threads[STAGES];
        driver drivers[STAGES];
        pthread_mutex_init(&p.lock, NULL);
        pthread_cond_init(&p.moved, NULL);
        for (int s = 0; s < STAGES; s++) {
            p.device[s] = open_device(delay);
            p.queue[s] = new_queue(p.device[s]);
            for (int slot = 0; slot < SLOTS; slot++) p.ready[s][slot] = new_event(p.device[s]);
        }
        for (int s = 0; s < STAGES; s++) {
            drivers[s] = (driver){ &p, s };
            pthread_create(&threads[s], NULL, drive, &drivers[s]);
        }
        for (int s = 0; s < STAGES; s++) pthread_join(threads[s], NULL);
        for (int slot = 0; slot < SLOTS; slot++) CHECK_INT(p.value[slot], BATCHES / SLOTS * STAGES);
        for (int s = 0; s < STAGES; s++) {
            for (int slot = 0; slot < SLOTS; slot++) cpu->event_free(p.ready[s][slot]);
            cpu->queue_free(p.queue[s]);
        }
        for (int s = 0; s < STAGES; s++) cpu->close(p.device[s]);
        pthread_mutex_destroy(&p.lock);
        pthread_cond_destroy(&p.moved);
    }
}

/* Two queues that wait for each other in turns, drained from both ends at once: no deadlock, each call once. */
enum { TURNS = 100 };

static void *wait_for(void *e) {
    CHECK_OK(cpu->event_wait(e));
    return NULL;
}

static void crossing_queues_drain_from_both_ends(void) {
    journal j[2] = { { 0 } };
    fs_device *d[2] = { open_device(1), open_device(1) };
    fs_queue *q[2] = { new_queue(d[0]), new_queue(d[1]) };
    fs_event *turn = new_event(d[0]), *end[2] = { new_event(d[0]), new_event(d[1]) };
    for (int i = 0; i < TURNS; i++) {
        put(q[i % 2], &j[i % 2], i);
        CHECK_OK(cpu->event_record(turn, q[i % 2]));
        CHECK_OK(cpu->queue_wait(q[1 - i % 2], turn));
    }
    pthread_t threads[4];
    for (int i = 0; i < 2; i++) CHECK_OK(cpu->event_record(end[i], q[i]));
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, wait_for, end[i % 2]);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < TURNS; i++) CHECK_INT(j[i % 2].order[i / 2], i);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(j[i].n, TURNS / 2);
        cpu->queue_free(q[i]);
        cpu->event_free(end[i]);
        cpu->close(d[i]);
    }
    cpu->event_free(turn);
}

TESTS({ "calls_run_in_order", calls_run_in_order }, { "arguments_are_copied", arguments_are_copied },
      { "copies_read_when_they_run", copies_read_when_they_run },
      { "events_order_queues_of_devices", events_order_queues_of_devices },
      { "a_failure_stays_and_skips", a_failure_stays_and_skips },
      { "keeping_a_call_can_fail", keeping_a_call_can_fail }, { "stages_in_threads", stages_in_threads },
      { "crossing_queues_drain_from_both_ends", crossing_queues_drain_from_both_ends })
