/* rows.c - waiting rows: who computes, who follows, who is next. All under the engine's lock; nothing here allocates.
 *
 *   inbox --admit--> (hash table: leaders, rings of followers) --list--> window --fs_schedule--> batch
 *
 * The inbox and the queue are lists of jobs by arrival, with a cursor in each job; the window is an array of rows. */
#include "base/hash.h"
#include "engine/internal.h"

#include <string.h>

static int equal_tokens(const fs_tokens *a, int64_t row_a, const fs_tokens *b, int64_t row_b) {
    size_t bytes, other;
    const void *x, *y;
    if (!a->offsets) return 1; /* neither has targets: jobs of one engine are alike */
    x = fs_tokens_row(a, row_a, &bytes);
    y = fs_tokens_row(b, row_b, &other);
    return bytes == other && !memcmp(x, y, bytes);
}

static int equal(const fs_row *a, const fs_row *b) {
    const fs_request *x = &a->job->request, *y = &b->job->request;
    return a->hash == b->hash && a->job->task == b->job->task &&
           equal_tokens(&x->source, a->index, &y->source, b->index) &&
           equal_tokens(&x->targets, a->index, &y->targets, b->index);
}

static fs_row **bucket_of(fs_engine *e, const fs_row *r) { return &e->buckets[r->hash % FS_BUCKETS]; }

static void lead(fs_engine *e, fs_row *r) {
    fs_row **bucket = bucket_of(e, r);
    r->state = FS_WAITING;
    r->bucket = *bucket;
    *bucket = r;
    e->stats.queued_rows++;
}

static void follow(fs_row *leader, fs_row *r) {
    r->state = FS_FOLLOWING;
    r->prev = leader;
    r->next = leader->next;
    leader->next->prev = r;
    leader->next = r;
}

static void leave_ring(fs_row *r) {
    r->prev->next = r->next;
    r->next->prev = r->prev;
    r->next = r->prev = r;
}

void fs_rows_forget(fs_engine *e, fs_row *leader) {
    fs_row **at = bucket_of(e, leader);
    while (*at != leader) at = &(*at)->bucket;
    *at = leader->bucket;
}

static void admit(fs_engine *e, fs_row *r) {
    fs_row *leader = *bucket_of(e, r);
    e->stats.queued_rows--; /* lead() counts it again */
    while (leader && !equal(leader, r)) leader = leader->bucket;
    if (leader) follow(leader, r);
    else lead(e, r);
}

void fs_rows_admit(fs_engine *e, int64_t most) {
    fs_job *j = TAILQ_FIRST(&e->inbox);
    for (; most > 0 && j->admitted < j->row_count; most--) admit(e, &j->rows[j->admitted++]);
    if (j->admitted == j->row_count) TAILQ_REMOVE(&e->inbox, j, inbox_link);
}

void fs_rows_list(fs_engine *e) {
    fs_job *j, *next;
    for (j = TAILQ_FIRST(&e->queue); j && e->listed < FS_WINDOW; j = next) {
        next = TAILQ_NEXT(j, queue_link);
        for (; j->taken < j->admitted && e->listed < FS_WINDOW; j->taken++) {
            fs_row *r = &j->rows[j->taken];
            if (r->state != FS_WAITING) continue;
            r->state = FS_LISTED;
            e->listed_rows[e->listed] = r;
            e->pending[e->listed++] = (fs_pending_row){ .tokens = r->tokens, .task = j->task };
        }
        if (j->taken < j->row_count) return; /* the window is full, or the rest and all jobs behind are not admitted */
        TAILQ_REMOVE(&e->queue, j, queue_link);
        j->queued = 0;
    }
}

/* Drops the window's rows that are not LISTED any more. */
static void close_gaps(fs_engine *e) {
    int64_t kept = 0;
    for (int64_t i = 0; i < e->listed; i++) {
        if (e->listed_rows[i]->state != FS_LISTED) continue;
        e->listed_rows[kept] = e->listed_rows[i];
        e->pending[kept++] = e->pending[i];
    }
    e->listed = kept;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

void fs_rows_count(fs_batch *b) {
    b->tokens = b->longest = b->target_tokens = b->longest_target = 0;
    for (int64_t i = 0; i < b->count; i++) {
        const int64_t targets = b->rows[i]->target_tokens, tokens = b->rows[i]->tokens - targets;
        b->tokens += tokens;
        b->target_tokens += targets;
        b->longest = larger(b->longest, tokens);
        b->longest_target = larger(b->longest_target, targets);
    }
}

void fs_rows_take(fs_engine *e, fs_batch *b) {
    int64_t n = fs_schedule(e->pending, e->listed, &e->limits, e->picked);
    b->count = n;
    for (int64_t i = 0; i < n; i++) {
        fs_row *r = e->listed_rows[e->picked[i]];
        r->state = FS_FLYING;
        r->job->flying++;
        b->rows[i] = r;
    }
    fs_rows_count(b);
    b->task = b->rows[0]->job->request.task;
    b->width = b->rows[0]->job->width;
    e->stats.queued_rows -= n;
    e->stats.batches++;
    e->stats.tokens += b->tokens + b->target_tokens;
    close_gaps(e);
    if (e->stats.queued_rows <= FS_INBOX_ROWS) pthread_cond_broadcast(&e->room);
}

/* The row of another job that follows now leads; its job's cursor may be past it, so it goes back to the start. */
static void promote(fs_engine *e, fs_row *r) {
    fs_job *j = r->job, *behind;
    lead(e, r);
    j->taken = 0;
    if (j->queued) return;
    j->queued = 1;
    TAILQ_FOREACH(behind, &e->queue, queue_link) {
        if (behind->arrival < j->arrival) continue;
        TAILQ_INSERT_BEFORE(behind, j, queue_link);
        return;
    }
    TAILQ_INSERT_TAIL(&e->queue, j, queue_link);
}

void fs_rows_withdraw(fs_job *j) {
    fs_engine *e = j->engine;
    if (j->admitted < j->row_count) TAILQ_REMOVE(&e->inbox, j, inbox_link);
    if (j->queued) TAILQ_REMOVE(&e->queue, j, queue_link);
    j->queued = 0;
    /* Followers first, so that none of this job is promoted. */
    for (int64_t i = 0; i < j->row_count; i++) {
        fs_row *r = &j->rows[i];
        if (r->state == FS_FOLLOWING) leave_ring(r);
        if (r->state == FS_NEW) e->stats.queued_rows--;
        if (r->state == FS_FOLLOWING || r->state == FS_NEW) r->state = FS_GONE;
    }
    for (int64_t i = 0; i < j->row_count; i++) {
        fs_row *r = &j->rows[i], *heir = r->next;
        if (r->state != FS_WAITING && r->state != FS_LISTED) continue;
        fs_rows_forget(e, r);
        r->state = FS_GONE;
        e->stats.queued_rows--;
        if (heir == r) continue;
        leave_ring(r);
        promote(e, heir);
    }
    j->admitted = j->taken = j->row_count;
    close_gaps(e);
    pthread_cond_signal(&e->work); /* promoted rows */
    pthread_cond_broadcast(&e->room);
}
