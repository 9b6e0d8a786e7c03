/* driver.c - a device's thread: enqueues the steps of its parts (step.c), waits for them, in one order.
 *
 *   fifo --enqueue--> flight --wait--> results land
 *
 * An event cannot be asked whether it is done, so the driver learns which kind of device it has. Where the last wait
 * blocked, work runs behind the host's back: then what is in the fifo is enqueued before the next wait, so that the
 * device never runs dry. Where it did not (a CPU runs a step while it is enqueued), waiting first costs nothing and
 * hands out results a batch earlier.
 *
 * A driver with nothing to do takes part in what another computes, where the backend can: the larger stage of a split
 * sets the pace, and beside a decoder layer an encoder layer's core stood still for 41 % of the time. Two such devices
 * could reach 0.85x of one that has both cores; with help they are as fast (benchmarks/examples.py). */
#include "engine/internal.h"

#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#define FS_BLOCKED_NS 50000 /* a wait this long has blocked */

#define FS_MOMENT 1e-3  /* seconds */

enum { FS_GATHER_TRIES = 20 };

/* "cpu:1: ..." unless the sentence names the device already. */
static void name_device(fs_error *error, const fs_device *device) {
    if (strstr(error->text, device->name)) return;
    char text[sizeof error->text];
    memcpy(text, error->text, sizeof text);
    snprintf(error->text, sizeof error->text, "%s: %.900s", device->name, text);
}

static fs_status wait_for(fs_driver *d, fs_event *event, fs_error *error) {
    fs_status st = d->device->backend->event_wait(event);
    if (st == FS_OK) return st;
    fs_error_take(error, st);
    name_device(error, d->device);
    return st;
}

static void wait_a_moment(fs_driver *d) {
    const struct timespec until = fs_deadline(FS_MOMENT);
    pthread_cond_timedwait(&d->wake, &d->engine->lock, &until);
}

/* A stage that streams layers goes over as many batches at once as it has slots: rows that wait are given a moment to
 * become batches. Nobody has to come: they may be withdrawn, or go to another replica. */
static void gather_pass(fs_driver *d, const fs_stage *stage) {
    fs_engine *e = d->engine;
    for (int tries = 0; tries < FS_GATHER_TRIES; tries++) {
        if (stage->index > 0 || stage->free_count == 0 || e->stopping) return;
        if (e->listed == 0 && TAILQ_EMPTY(&e->inbox) && TAILQ_EMPTY(&e->queue)) return;
        wait_a_moment(d);
    }
}

/* The oldest work, and where its part streams layers all that follows for the same part: one pass. */
static int take_pass(fs_driver *d, fs_pass *pass) {
    fs_part *part = d->fifo.items[d->fifo.head].part;
    pass->part = part;
    pass->count = 0;
    if (part->stream) gather_pass(d, part->stage);
    do pass->runs[pass->count++].work = fs_works_take(&d->fifo);
    while (part->stream && pass->count < FS_MAX_SLOTS && d->fifo.count > 0 && d->fifo.items[d->fifo.head].part == part);
    return pass->count;
}

/* Those who sleep look at what they could do, for us if not for themselves. */
static void call_idle(fs_driver *d) {
    fs_engine *e = d->engine;
    if (!d->device->backend->help) return;
    for (int i = 0; i < e->device_count; i++)
        if (!e->drivers[i].working) pthread_cond_signal(&e->drivers[i].wake);
}

/* Nothing is here to do: takes part in what another device computes. 0: in vain, nobody computes. */
static int help(fs_driver *d) {
    fs_engine *e = d->engine;
    const fs_backend *b = d->device->backend;
    int working = 0;
    for (int i = 0; b->help && i < e->device_count; i++) {
        fs_driver *other = &e->drivers[(d->helped + i) % e->device_count];
        if (!other->working) continue;
        working++;
        atomic_store(&d->called, 0);
        pthread_mutex_unlock(&e->lock);
        int64_t took = b->help(d->device, other->device, &d->called);
        pthread_mutex_lock(&e->lock);
        d->busy_ns += took;
        if (took == 0 && !atomic_load(&d->called)) continue; /* it waits for others, or reads */
        d->helped = (int)(other - e->drivers);
        return 1;
    }
    if (working) wait_a_moment(d);
    return working;
}

static void enqueue_next(fs_driver *d) {
    fs_engine *e = d->engine;
    fs_pass pass;
    take_pass(d, &pass);
    d->working = 1;
    call_idle(d);
    pthread_mutex_unlock(&e->lock);
    int64_t start = fs_now_ns();
    fs_pass_enqueue(&pass);
    int64_t took = fs_now_ns() - start - pass.waited_ns;
    pthread_mutex_lock(&e->lock);
    d->working = 0;
    d->busy_ns += took;
    e->stats.streamed_bytes += pass.streamed_bytes;
    e->stats.passes += pass.streamed_bytes > 0;
    for (int i = 0; i < pass.count; i++) {
        fs_run *r = &pass.runs[i];
        if (r->status != FS_OK) {
            name_device(&r->error, d->device);
            fs_batch_failed(r->work.batch, &r->error, r->status == FS_DEVICE);
        }
        fs_batch_enqueued(r->work.batch, pass.part);
        fs_works_add(&d->flight, r->work);
    }
}

static void wait_for_oldest(fs_driver *d) {
    fs_engine *e = d->engine;
    fs_work w = fs_works_take(&d->flight);
    fs_space *space = &w.part->spaces[w.slot->index];
    fs_stage *stage = w.part->stage;
    fs_error error;
    pthread_mutex_unlock(&e->lock);
    int64_t start = fs_now_ns();
    if (stage->index > 0) {
        d->device->backend->event_wait(space->arrived); /* a failure up to here comes out of `done` as well */
        pthread_mutex_lock(&e->lock);
        fs_slot_release(stage - 1, w.batch->slots[stage->index - 1]);
        pthread_mutex_unlock(&e->lock);
    }
    fs_status st = wait_for(d, space->done, &error);
    int64_t took = fs_now_ns() - start;
    d->ahead = took > FS_BLOCKED_NS;
    pthread_mutex_lock(&e->lock);
    d->busy_ns += took;
    if (st != FS_OK) fs_batch_failed(w.batch, &error, st == FS_DEVICE);
    fs_batch_part_done(w.batch, w.part, w.slot);
}

static void load(fs_driver *d) {
    fs_engine *e = d->engine;
    fs_status st = fs_driver_load(d);
    if (st != FS_OK) fs_error_take(&d->error, st);
    pthread_mutex_lock(&e->lock);
    d->loaded = 1;
    pthread_cond_broadcast(&e->other);
    pthread_mutex_unlock(&e->lock);
}

void fs_driver_call(fs_driver *d) {
    atomic_store(&d->called, 1);
    pthread_cond_signal(&d->wake);
}

void *fs_driver_main(void *driver) {
    fs_driver *d = driver;
    fs_engine *e = d->engine;
    char name[16];
    snprintf(name, sizeof name, "fs-%.12s", d->device->name);
    prctl(PR_SET_NAME, name);
    load(d);
    pthread_mutex_lock(&e->lock);
    for (;;) {
        if (d->fifo.count > 0 && (d->flight.count == 0 || d->ahead)) enqueue_next(d);
        else if (d->flight.count > 0) wait_for_oldest(d);
        else if (e->stopping && e->open_batches == 0) break;
        else if (!help(d)) pthread_cond_wait(&d->wake, &e->lock);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}
