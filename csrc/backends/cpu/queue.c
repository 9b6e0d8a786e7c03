/* queue.c - queues and events of the CPU; what they promise stands in cpu.h.
 *
 * Delayed, a queue is a list:   first -> call -> wait(other queue, number) -> call -> last
 *
 * Whoever drains takes one call off it under the queue's lock, runs it without any lock but the device's, and
 * announces it. No thread holds two of a queue's, an event's and a device's lock, so there is no order to keep. A
 * queue lives for as long as somebody may ask about its calls: its owner, events recorded on it, waits for it. */
#include "backends/cpu/cpu.h"
#include "base/alloc.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum { ARG_BYTES = 256 };

typedef struct call call;
struct call {
    call *next;
    fs_cpu_run run;  /* NULL: a wait */
    fs_queue *other; /* a wait's: run this one's calls up to `number` first */
    int64_t number;
    _Alignas(16) char args[ARG_BYTES];
};

struct fs_queue {
    fs_cpu_device *device; /* only to run calls; events may outlive it */
    int delay;
    _Atomic int owners;

    pthread_mutex_t lock; /* of all that follows */
    pthread_cond_t turned;
    call *first, *last;
    _Atomic int64_t enqueued; /* atomic for the undelayed queue, which takes the lock for failures and waits only */
    int64_t done;             /* delayed: calls that have run */
    int running;              /* delayed: some thread runs call done + 1 */
    _Atomic int failed;
    int64_t failed_at;
    fs_error error;
};

struct fs_event {
    pthread_mutex_t lock;
    fs_queue *queue; /* NULL: never recorded */
    int64_t number;
};

fs_status fs_cpu_queue_new(fs_device *d, fs_queue **out) {
    fs_queue *q;
    *out = NULL;
    FS_TRY(fs_alloc(&q, 1, sizeof *q));
    q->device = fs_cpu(d);
    q->delay = q->device->delay;
    atomic_store(&q->owners, 1);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->turned, NULL);
    *out = q;
    return FS_OK;
}

static void queue_release(fs_queue *q) {
    if (!q || atomic_fetch_sub(&q->owners, 1) > 1) return;
    pthread_cond_destroy(&q->turned);
    pthread_mutex_destroy(&q->lock);
    fs_free(q);
}

static fs_queue *queue_retain(fs_queue *q) {
    if (q) atomic_fetch_add(&q->owners, 1);
    return q;
}

/* The thread's last failure becomes q's, unless q has one. */
static void keep_failure(fs_queue *q, int64_t number, fs_status st) {
    pthread_mutex_lock(&q->lock);
    if (!atomic_load(&q->failed)) {
        fs_error_take(&q->error, st);
        q->failed_at = number;
        atomic_store(&q->failed, 1);
    }
    pthread_mutex_unlock(&q->lock);
}

/* What has failed in q up to call `number`. */
static fs_status outcome(fs_queue *q, int64_t number) {
    fs_status st = FS_OK;
    if (!atomic_load(&q->failed)) return FS_OK;
    pthread_mutex_lock(&q->lock);
    if (q->failed_at <= number) st = fs_error_raise(&q->error);
    pthread_mutex_unlock(&q->lock);
    return st;
}

static fs_status run_now(fs_queue *q, fs_cpu_run run, const void *args) {
    pthread_mutex_lock(&q->device->running);
    fs_status st = run(q->device, args);
    pthread_mutex_unlock(&q->device->running);
    return st;
}

static void drain(fs_queue *q, int64_t number);

static void perform(fs_queue *q, call *c, int64_t number) {
    fs_status st = FS_OK;
    if (atomic_load(&q->failed)) return;
    if (c->run) {
        st = run_now(q, c->run, c->args);
    } else {
        drain(c->other, c->number);
        st = outcome(c->other, c->number);
    }
    if (st != FS_OK) keep_failure(q, number, st);
}

/* Delayed: returns when calls 1 ... number have run, by this thread or another. */
static void drain(fs_queue *q, int64_t number) {
    pthread_mutex_lock(&q->lock);
    while (q->done < number) {
        if (q->running) {
            pthread_cond_wait(&q->turned, &q->lock);
            continue;
        }
        call *c = q->first;
        int64_t mine = q->done + 1;
        q->first = c->next;
        if (!q->first) q->last = NULL;
        q->running = 1;
        pthread_mutex_unlock(&q->lock);
        perform(q, c, mine);
        queue_release(c->other);
        fs_free(c);
        pthread_mutex_lock(&q->lock);
        q->done = mine;
        q->running = 0;
        pthread_cond_broadcast(&q->turned);
    }
    pthread_mutex_unlock(&q->lock);
}

static void append(fs_queue *q, call *c) {
    pthread_mutex_lock(&q->lock);
    if (q->last) q->last->next = c;
    else q->first = c;
    q->last = c;
    atomic_fetch_add(&q->enqueued, 1);
    pthread_mutex_unlock(&q->lock);
}

fs_status fs_cpu_enqueue(fs_queue *q, fs_cpu_run run, const void *args, size_t bytes) {
    if (bytes > ARG_BYTES)
        return fs_fail(FS_DEVICE, "%s: a call has %zu bytes of arguments, a queue keeps %d", q->device->head.name,
                       bytes, ARG_BYTES);
    if (q->delay) {
        call *c;
        FS_TRY(fs_alloc(&c, 1, sizeof *c));
        c->run = run;
        memcpy(c->args, args, bytes);
        append(q, c);
        return FS_OK;
    }
    int64_t number = atomic_fetch_add(&q->enqueued, 1) + 1;
    if (atomic_load_explicit(&q->failed, memory_order_relaxed)) return FS_OK;
    fs_status st = run_now(q, run, args);
    if (st != FS_OK) keep_failure(q, number, st);
    return FS_OK;
}

void fs_cpu_queue_free(fs_queue *q) {
    if (!q) return;
    if (q->delay) drain(q, atomic_load(&q->enqueued));
    queue_release(q);
}

fs_status fs_cpu_event_new(fs_device *d, fs_event **out) {
    (void)d;
    *out = NULL;
    FS_TRY(fs_alloc(out, 1, sizeof **out));
    pthread_mutex_init(&(*out)->lock, NULL);
    return FS_OK;
}

void fs_cpu_event_free(fs_event *e) {
    if (!e) return;
    queue_release(e->queue);
    pthread_mutex_destroy(&e->lock);
    fs_free(e);
}

fs_status fs_cpu_event_record(fs_event *e, fs_queue *q) {
    pthread_mutex_lock(&e->lock);
    fs_queue *before = e->queue;
    e->queue = queue_retain(q);
    e->number = atomic_load(&q->enqueued);
    pthread_mutex_unlock(&e->lock);
    queue_release(before);
    return FS_OK;
}

/* What the event holds now; the caller releases the queue. */
static fs_queue *held(fs_event *e, int64_t *number) {
    pthread_mutex_lock(&e->lock);
    fs_queue *q = queue_retain(e->queue);
    *number = e->number;
    pthread_mutex_unlock(&e->lock);
    return q;
}

fs_status fs_cpu_queue_wait(fs_queue *q, fs_event *e) {
    fs_status st = FS_OK;
    int64_t number;
    call *c;
    fs_queue *other = held(e, &number);
    if (!other) return FS_OK;
    if (!q->delay) {
        fs_status inherited = outcome(other, number);
        if (inherited != FS_OK) keep_failure(q, atomic_fetch_add(&q->enqueued, 1) + 1, inherited);
        goto done;
    }
    FS_GO(fs_alloc(&c, 1, sizeof *c));
    c->other = other;
    c->number = number;
    other = NULL;
    append(q, c);
done:
    queue_release(other);
    return st;
}

fs_status fs_cpu_event_wait(fs_event *e) {
    int64_t number;
    fs_queue *q = held(e, &number);
    if (!q) return FS_OK;
    if (q->delay) drain(q, number);
    fs_status st = outcome(q, number);
    queue_release(q);
    return st;
}
