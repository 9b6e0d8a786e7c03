/* batch.c - a batch's way through the stages, and its results' way to the jobs.
 *
 *   start -> [stage 0: a slot, work for each rank] -> enqueued -> [stage 1 ...] -> all parts waited for -> land
 *
 * A slot is held by each rank until its step is done, by each rank of the next stage until the carry has been copied,
 * and by the batch itself until it has moved on (to the next stage, or its results to the jobs). A batch that failed in
 * one stage is not given to the next.
 *
 * NO ROOM. A step that the device has no memory for is no failure of its rows: the first half of them goes again, then
 * the rest. A row that alone finds no room gets a row error, and nobody else does:
 *
 *     rows  |- - - - - - - -|  no room     |- - - -|. . . .   no room     |- -|. .|. . . .  ...
 *           count                          count   later                  count  later */
#include "engine/internal.h"

#include <stdio.h>
#include <string.h>

fs_work fs_works_take(fs_works *w) {
    fs_work item = w->items[w->head];
    w->head = (w->head + 1) % w->room;
    w->count--;
    return item;
}

void fs_works_add(fs_works *w, fs_work item) { w->items[(w->head + w->count++) % w->room] = item; }

fs_replica *fs_replica_with_room(fs_engine *e) {
    fs_replica *best = NULL;
    for (int i = 0; i < e->replica_count; i++) {
        fs_replica *r = &e->replicas[i];
        if (!r->broken && !STAILQ_EMPTY(&r->free) && r->stages[0].free_count > (best ? best->stages[0].free_count : 0))
            best = r;
    }
    return best;
}

/* Into a slot of the stage and to its drivers, all at one moment: see internal.h. */
static void dispatch(fs_batch *b, fs_stage *stage) {
    int ranks = stage->plan->ranks;
    fs_slot *slot = stage->free[--stage->free_count];
    b->slots[stage->index] = slot;
    slot->holds = ranks + 1;
    b->open += ranks;
    if (stage->index > 0) {
        fs_slot *before = b->slots[stage->index - 1];
        before->holds += ranks;
        fs_slot_release(stage - 1, before);
    }
    for (int r = 0; r < ranks; r++) {
        fs_part *part = &stage->parts[r];
        fs_works_add(&part->driver->fifo, (fs_work){ .batch = b, .part = part, .slot = slot });
        fs_driver_call(part->driver);
    }
}

static void move_to(fs_batch *b, fs_stage *stage) {
    if (stage->free_count > 0) dispatch(b, stage);
    else STAILQ_INSERT_TAIL(&stage->waiting, b, link);
}

void fs_batch_start(fs_replica *r, fs_batch *b) {
    b->open = 1;
    b->error.status = FS_OK;
    b->broken = 0;
    r->stages[0].engine->open_batches++;
    dispatch(b, &r->stages[0]);
}

void fs_slot_release(fs_stage *stage, fs_slot *slot) {
    if (--slot->holds > 0) return;
    stage->free[stage->free_count++] = slot;
    fs_batch *next = STAILQ_FIRST(&stage->waiting);
    if (next) {
        STAILQ_REMOVE_HEAD(&stage->waiting, link);
        dispatch(next, stage);
    } else if (stage->index == 0) {
        pthread_cond_signal(&stage->engine->work);
    }
}

void fs_batch_failed(fs_batch *b, const fs_error *error, int broken) {
    if (b->error.status == FS_OK) b->error = *error;
    b->broken |= broken;
}

void fs_batch_enqueued(fs_batch *b, fs_part *part) {
    fs_stage *stage = part->stage;
    if (part->rank != 0) return;
    if (!stage->last && b->error.status == FS_OK) {
        move_to(b, stage + 1);
        return;
    }
    b->open--; /* no stage to come */
    if (!stage->last) fs_slot_release(stage, b->slots[stage->index]);
}

static void copy_row(const fs_batch *b, const fs_row *r, int64_t at, int64_t first_token) {
    const fs_request *q = &r->job->request;
    int per_token = q->task.kind == FS_TASK_HIDDEN_STATES;
    const int64_t *offsets = q->targets.offsets ? q->targets.offsets : q->source.offsets;
    int64_t rows = per_token ? offsets[r->index + 1] - offsets[r->index] : 1;
    const float *from = b->results + (per_token ? first_token : at) * b->result_stride;
    float *to = q->out + (per_token ? offsets[r->index] : r->index) * b->width;
    for (int64_t i = 0; i < rows; i++)
        memcpy(to + i * b->width, from + i * b->result_stride, (size_t)b->width * sizeof *to);
}

/* Closes the rings, so that they can be walked without the lock: from here on all of their rows fly. */
static void close_rings(fs_engine *e, fs_batch *b) {
    for (int64_t i = 0; i < b->count; i++) {
        fs_row *leader = b->rows[i];
        fs_rows_forget(e, leader);
        for (fs_row *r = leader->next; r != leader; r = r->next) {
            r->state = FS_FLYING;
            r->job->flying++;
        }
    }
}

static void copy_results(const fs_batch *b) {
    int64_t first_token = 0;
    for (int64_t i = 0; i < b->count; i++) {
        const fs_row *leader = b->rows[i], *r = leader;
        do copy_row(b, r, i, first_token);
        while ((r = r->next) != leader);
        first_token += leader->target_tokens ? leader->target_tokens : leader->tokens;
    }
}

/* The row is over, its job may be: nothing of either is touched after that but what the lock keeps alive. */
static void land(fs_engine *e, const fs_batch *b, fs_row *r, int duplicate, int no_room) {
    fs_job *j = r->job;
    r->state = FS_GONE;
    j->flying--;
    j->left--;
    if (no_room) {
        if (j->error.status == FS_OK) fs_job_row_too_big(j, r, &b->error);
    } else if (b->error.status != FS_OK) {
        fs_job_fail(j, &b->error);
    } else if (j->error.status == FS_OK) {
        e->stats.rows++;
        e->stats.duplicate_rows += duplicate;
        j->duplicates += duplicate;
    }
    fs_job_settle(j);
}

/* The first half of the rows goes again; the others wait behind it. */
static void halve(fs_batch *b) {
    int64_t half = b->count / 2;
    b->later += b->count - half;
    b->count = half;
}

/* What waited behind the rows that are over. */
static void advance(fs_batch *b) {
    memmove(b->rows, b->rows + b->count, (size_t)b->later * sizeof *b->rows);
    b->count = b->later;
    b->later = 0;
}

/* Once more from the first stage, with the rows that are now the batch's. */
static void start_again(fs_batch *b) {
    fs_rows_count(b);
    b->open = 1;
    b->error.status = FS_OK;
    move_to(b, &b->replica->stages[0]);
}

static void land_all(fs_engine *e, fs_batch *b, int no_room) {
    for (int64_t i = 0; i < b->count; i++) {
        fs_row *leader = b->rows[i], *r = leader->next, *next;
        for (; r != leader; r = next) {
            next = r->next;
            land(e, b, r, 1, no_room);
        }
        land(e, b, leader, 0, no_room);
    }
}

/* No replica is left. */
static void break_engine(fs_engine *e, const fs_error *error) {
    e->broken = *error;
    size_t used = strlen(e->broken.text);
    snprintf(e->broken.text + used, sizeof e->broken.text - used,
             "; it held the engine's %s replica, open another engine", e->replica_count > 1 ? "last" : "only");
    fs_job *j, *next;
    for (j = TAILQ_FIRST(&e->live); j; j = next) {
        next = TAILQ_NEXT(j, live_link);
        fs_job_fail(j, error);
    }
    pthread_cond_broadcast(&e->room);
}

/* A device's queue keeps its failure, so nothing that comes after can succeed there: the replica gets no more batches,
 * and those that are on their way fail like this one. */
static void take_out(fs_engine *e, fs_replica *r, const fs_error *error) {
    if (r->broken) return;
    r->broken = 1;
    e->stats.replicas--;
    e->stats.failed_replicas++;
    if (e->stats.replicas == 0) break_engine(e, error);
}

/* Results, or the failure, to the jobs; without room, an error to the one row. Of a batch that broke its device, the rows
 * that waited behind fail as well. */
static void land_rows(fs_engine *e, fs_batch *b, int no_room) {
    if (b->broken) b->count += b->later, b->later = 0;
    close_rings(e, b);
    if (b->error.status == FS_OK) {
        pthread_mutex_unlock(&e->lock);
        copy_results(b);
        pthread_mutex_lock(&e->lock);
    }
    land_all(e, b, no_room);
    if (b->broken) take_out(e, b->replica, &b->error);
}

void fs_batch_part_done(fs_batch *b, fs_part *part, fs_slot *slot) {
    fs_engine *e = part->stage->engine;
    fs_replica *replica = b->replica;
    fs_slot_release(part->stage, slot);
    if (--b->open > 0) return;
    int no_room = b->error.status == FS_NO_MEMORY && !b->broken;
    if (no_room && b->count > 1) {
        halve(b);
    } else {
        land_rows(e, b, no_room);
        advance(b);
    }
    fs_stage *last = &replica->stages[replica->stage_count - 1];
    if (b->slots[last->index]) fs_slot_release(last, b->slots[last->index]);
    memset(b->slots, 0, (size_t)replica->stage_count * sizeof *b->slots);
    if (b->count > 0) {
        start_again(b);
        return;
    }
    STAILQ_INSERT_HEAD(&replica->free, b, link);
    pthread_cond_signal(&e->work);
    if (--e->open_batches == 0 && e->stopping)
        for (int i = 0; i < e->device_count; i++) fs_driver_call(&e->drivers[i]);
}
