/* driver.c - a device's thread: enqueues the steps of its parts, waits for them, in one order.
 *
 *   fifo --enqueue--> flight --wait--> results land
 *
 * An event cannot be asked whether it is done, so the driver learns which kind of device it has. Where the last wait
 * blocked, work runs behind the host's back: then what is in the fifo is enqueued before the next wait, so that the
 * device never runs dry. Where it did not (a CPU runs a step while it is enqueued), waiting first costs nothing and
 * hands out results a batch earlier. */
#include "engine/internal.h"

#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#define FS_BLOCKED_NS 50000 /* a wait this long has blocked */

/* What differs from batch to batch, into pinned memory. Only the first stage reads ids. */
static void fill_block(const fs_block *to, const fs_batch *b, int with_ids) {
    int32_t t = 0;
    for (int64_t i = 0; i < b->count; i++) {
        const fs_row *r = b->rows[i];
        const fs_request *q = &r->job->request;
        to->offsets[i] = t;
        if (with_ids) memcpy(to->ids + t, q->ids + q->offsets[r->index], (size_t)r->tokens * sizeof *to->ids);
        for (int32_t p = 0; p < r->tokens; p++) to->positions[t + p] = p;
        t += r->tokens;
    }
    to->offsets[b->count] = t;
}

/* The carry of the stage before, copied into this slot's arena. Rank 0 of a group holds what all of its ranks hold. */
static fs_status fetch_carry(fs_step *s, fs_part *part, fs_space *space, fs_batch *b, fs_carry *carry) {
    const fs_part *from = &part->stage[-1].parts[0];
    const fs_space *from_space = &from->spaces[b->slots[part->stage->index - 1]->index];
    const fs_view *x = &from_space->carry.x;
    const fs_backend *backend = s->device->backend;
    FS_TRY(fs_arena_view(s->arena, x->dtype, x->rows, x->stride, &carry->x));
    carry->x.cols = x->cols;
    FS_TRY(backend->queue_wait(s->queue, from_space->done));
    FS_TRY(backend->peer_copy(s->queue, s->device, carry->x.at, from->driver->device, x->at,
                              (size_t)(x->rows * x->stride) * fs_dtype_bytes(x->dtype)));
    return backend->event_record(space->copied, s->queue);
}

static fs_status finish_task(fs_step *s, fs_part *part, fs_space *space, fs_batch *b, const fs_carry *carry) {
    const fs_settings *set = &part->stage->engine->set;
    fs_view out;
    FS_TRY(fs_task_finish(s, set, &b->task, carry, &out));
    if (part->rank != 0) return FS_OK;
    b->results = space->out_memory.at;
    b->result_stride = out.stride;
    size_t floats = (size_t)((out.rows - 1) * out.stride + out.cols);
    return s->device->backend->download(s->queue, space->out_memory.at, out.at, floats * sizeof(float));
}

static fs_status enqueue_step(fs_part *part, fs_space *space, fs_batch *b) {
    fs_stage *stage = part->stage;
    fs_device *device = part->driver->device;
    const fs_backend *backend = device->backend;
    const fs_settings *set = &stage->engine->set;
    const fs_block *block = &space->device_block;
    fs_rows rows = { .ids = block->ids,
                     .positions = block->positions,
                     .offsets = block->offsets,
                     .T = b->tokens,
                     .B = b->count,
                     .longest = b->longest };
    fs_step s = { .device = device,
                  .queue = part->queue,
                  .ops = &stage->ops,
                  .arena = &space->arena,
                  .rows = &rows,
                  .comm = stage->comm,
                  .rank = part->rank,
                  .ranks = stage->plan->ranks };
    fs_carry carry = { 0 };

    fs_arena_reset(&space->arena, 0);
    FS_TRY(backend->poison(part->queue, space->arena.base, space->arena.size));
    fill_block(&space->host_block, b, stage->index == 0);
    FS_TRY(backend->upload(part->queue, space->block_memory.at, space->pinned_memory.at, space->pinned_memory.bytes));
    if (stage->index == 0) FS_TRY(set->arch->begin(&s, set, part->shard.ends, &carry));
    else FS_TRY(fetch_carry(&s, part, space, b, &carry));
    for (int l = 0; l < stage->plan->last_layer - stage->plan->first_layer; l++)
        FS_TRY(set->arch->run_layer(&s, set, part->shard.layers[l], &carry));
    if (stage->last) FS_TRY(finish_task(&s, part, space, b, &carry));
    space->carry = carry;
    return FS_OK;
}

/* "cpu:1: ..." unless the sentence names the device already. */
static void name_device(fs_error *error, const fs_device *device) {
    if (strstr(error->text, device->name)) return;
    char text[sizeof error->text];
    memcpy(text, error->text, sizeof text);
    snprintf(error->text, sizeof error->text, "%s: %.900s", device->name, text);
}

/* Without the lock. Both events are recorded whatever happened: they are waited for. */
static fs_status enqueue(fs_driver *d, const fs_work *w, fs_error *error) {
    const fs_backend *backend = d->device->backend;
    fs_space *space = &w->part->spaces[w->slot->index];
    fs_status st = enqueue_step(w->part, space, w->batch), recorded;
    if (st != FS_OK) fs_error_take(error, st);
    if (st != FS_OK && w->part->stage->index > 0) backend->event_record(space->copied, w->part->queue);
    recorded = backend->event_record(space->done, w->part->queue);
    if (st == FS_OK && recorded != FS_OK) {
        st = recorded;
        fs_error_take(error, st);
    }
    if (st != FS_OK) name_device(error, d->device);
    return st;
}

static fs_status wait_for(fs_driver *d, fs_event *event, fs_error *error) {
    fs_status st = d->device->backend->event_wait(event);
    if (st == FS_OK) return st;
    fs_error_take(error, st);
    name_device(error, d->device);
    return st;
}

static void enqueue_next(fs_driver *d) {
    fs_engine *e = d->engine;
    fs_work w = fs_works_take(&d->fifo);
    fs_error error;
    pthread_mutex_unlock(&e->lock);
    int64_t start = fs_now_ns();
    fs_status st = enqueue(d, &w, &error);
    int64_t end = fs_now_ns();
    pthread_mutex_lock(&e->lock);
    d->busy_ns += end - start;
    if (st != FS_OK) fs_batch_failed(w.batch, &error, st == FS_DEVICE);
    fs_batch_enqueued(w.batch, w.part);
    fs_works_add(&d->flight, w);
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
        d->device->backend->event_wait(space->copied); /* a failure up to here comes out of `done` as well */
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
        else pthread_cond_wait(&d->wake, &e->lock);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}
