/* job.c - a request becomes a job: checked, its good rows sorted, queued; then waited for, cancelled, freed.
 *
 * submit does the costly part (checks, hashes, sorting, memory) on the caller's thread before it takes the lock.
 * A job holds a reference to its engine, so it may be freed after fs_engine_close. */
#include "base/alloc.h"
#include "base/hash.h"
#include "engine/internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FS_MOST_ROWS ((int64_t)1 << 40) /* keeps products of sizes within 64 bits */

static fs_status not_ours(const fs_engine *e) {
    return fs_fail(FS_DEVICE,
                   "this engine belongs to process %d and this is process %d, forked from it; open an engine here",
                   (int)e->pid, (int)getpid());
}

/* The same task always gives the same bytes, so that tasks can be compared with memcmp. */
static fs_task plain_task(const fs_task *task) {
    fs_task plain;
    memset(&plain, 0, sizeof plain);
    plain.kind = task->kind;
    if (task->kind != FS_TASK_EMBED) return plain;
    plain.pooling_count = task->pooling_count;
    memcpy(plain.pooling, task->pooling, (size_t)task->pooling_count * sizeof *plain.pooling);
    plain.normalize = task->normalize;
    plain.dimensions = task->dimensions;
    return plain;
}

/* One side of a request: `input` says what the model takes, `what` is "rows" or "targets". */
static fs_status check_tokens(const fs_settings *set, const fs_tokens *t, int64_t rows, fs_input input,
                              const char *what) {
    if (!t->offsets || t->offsets[0] != 0) return fs_fail(FS_REQUEST, "offsets of %s must start with 0", what);
    for (int64_t i = 0; i < rows; i++)
        if (t->offsets[i + 1] < t->offsets[i])
            return fs_fail(FS_REQUEST, "offsets of %s fall from %lld to %lld at row %lld; they must never fall", what,
                           (long long)t->offsets[i], (long long)t->offsets[i + 1], (long long)i);
    const int64_t T = t->offsets[rows];
    if (input == FS_IDS && t->features)
        return fs_fail(FS_REQUEST, "%s are features where the model takes token ids, int32 [tokens]", what);
    if (input == FS_FEATURES && t->ids)
        return fs_fail(FS_REQUEST, "%s are token ids where the model takes features, float32 [tokens, %lld]", what,
                       (long long)set->D);
    if (t->features && t->width != set->D)
        return fs_fail(FS_REQUEST, "%s are features of width %lld; the model takes width %lld", what,
                       (long long)t->width, (long long)set->D);
    if (T > FS_MOST_ROWS || (T > 0 && !t->ids && !t->features))
        return fs_fail(FS_REQUEST, "offsets of %s end at %lld tokens where there are none", what, (long long)T);
    return FS_OK;
}

static fs_status check_request(const fs_engine *e, const fs_request *r) {
    const fs_settings *set = &e->set;
    FS_TRY(fs_task_check(&r->task, set));
    if (r->rows < 0 || r->rows > FS_MOST_ROWS)
        return fs_fail(FS_REQUEST, "a request has %lld rows; it may have 0 to %lld", (long long)r->rows,
                       (long long)FS_MOST_ROWS);
    FS_TRY(check_tokens(set, &r->source, r->rows, set->rows, "rows"));
    if (set->targets == FS_NOTHING && r->targets.offsets)
        return fs_fail(FS_REQUEST, "targets were given to a model without a decoder; leave them out");
    if (set->targets != FS_NOTHING && !r->targets.offsets)
        return fs_fail(FS_REQUEST, "the model has a decoder, whose input is missing; give targets, one for each row");
    if (set->targets != FS_NOTHING) FS_TRY(check_tokens(set, &r->targets, r->rows, set->targets, "targets"));
    const fs_tokens *counted = set->targets == FS_NOTHING ? &r->source : &r->targets;
    int64_t width = fs_task_width(&r->task, set);
    int64_t out_rows = fs_task_by_row(&r->task) ? r->rows : counted->offsets[r->rows];
    if (out_rows > 0 && (!r->out || r->out_floats / width < out_rows))
        return fs_fail(FS_REQUEST, "out has room for %lld floats; the result has %lld rows of %lld",
                       (long long)r->out_floats, (long long)out_rows, (long long)width);
    return FS_OK;
}

static fs_status add_error(fs_job *j, int64_t row) {
    if (j->error_count == j->error_room) {
        int64_t room = j->error_room ? 2 * j->error_room : 4;
        FS_TRY(fs_realloc(&j->errors, (size_t)room, sizeof *j->errors));
        j->error_room = room;
    }
    j->errors[j->error_count++] = (fs_row_error){ .row = row };
    return FS_OK;
}

/* The first token whose id is outside the vocabulary, or whose type the model has not; or `tokens`. A loop without exits
 * inside: compilers make it wide. */
static int64_t first_foreign(const int32_t *ids, int64_t tokens, int64_t V, int64_t types) {
    uint32_t worst = 0;
    for (int64_t t = 0; t < tokens; t++) worst = (uint32_t)ids[t] > worst ? (uint32_t)ids[t] : worst;
    if (worst < V) return tokens;
    int64_t t = 0;
    while (t < tokens && (ids[t] & ((1 << FS_ID_BITS) - 1)) < V && (uint32_t)ids[t] >> FS_ID_BITS < types) t++;
    return t;
}

static int64_t tokens_of(const fs_tokens *t, int64_t row) { return t->offsets[row + 1] - t->offsets[row]; }

static fs_status row_error(fs_job *j, int64_t row, fs_row_code code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static fs_status row_error(fs_job *j, int64_t row, fs_row_code code, const char *format, ...) {
    va_list args;
    FS_TRY(add_error(j, row));
    fs_row_error *error = &j->errors[j->error_count - 1];
    error->code = code;
    va_start(args, format);
    vsnprintf(error->text, sizeof error->text, format, args);
    va_end(args);
    return FS_OK;
}

static fs_status too_long(fs_job *j, int64_t i, int64_t tokens, int64_t targets) {
    const fs_settings *set = &j->engine->set;
    char both[64] = "";
    if (!set->any_length)
        return row_error(j, i, FS_ROW_TOO_LONG, "the row has %lld tokens; the model takes %lld, so truncate it",
                         (long long)tokens, (long long)set->P);
    if (targets) snprintf(both, sizeof both, ", %lld of them targets", (long long)targets);
    return row_error(j, i, FS_ROW_TOO_LONG,
                     "the row has %lld tokens%s; a batch has room for %lld, so shorten it or raise "
                     "FIRESTEEL_BATCH_TOKENS",
                     (long long)(tokens + targets), both, (long long)set->P);
}

/* *good: every id of the row is in the vocabulary; else it has got an error. */
static fs_status check_ids(fs_job *j, int64_t i, const fs_tokens *t, const char *what, int *good) {
    const int64_t tokens = tokens_of(t, i), V = j->engine->set.V;
    const int32_t *ids = t->ids + t->offsets[i];
    *good = 1;
    if (t->features) return FS_OK;
    const int64_t types = j->engine->set.types > 1 ? j->engine->set.types : 1;
    const int64_t foreign = first_foreign(ids, tokens, V, types);
    if (foreign == tokens) return FS_OK;
    *good = 0;
    return row_error(j, i, FS_ROW_SCHEMA,
                     "the row has token id %d at %s %lld; the vocabulary has 0 to %lld, so check the tokenizer",
                     (int)ids[foreign], what, (long long)foreign, (long long)V - 1);
}

static uint64_t hash_of(const fs_tokens *t, int64_t row, uint64_t seed) {
    size_t bytes;
    const void *content = fs_tokens_row(t, row, &bytes);
    return fs_hash(content, bytes, seed);
}

static fs_status check_row(fs_job *j, int64_t i, uint64_t seed) {
    const fs_settings *set = &j->engine->set;
    const fs_request *r = &j->request;
    const int decodes = r->targets.offsets != NULL;
    int64_t tokens = tokens_of(&r->source, i), targets = decodes ? tokens_of(&r->targets, i) : 0;
    int good;
    if ((decodes ? targets : tokens) == 0 && r->task.kind == FS_TASK_HIDDEN_STATES) return FS_OK; /* nothing to do */
    if (tokens == 0)
        return row_error(j, i, FS_ROW_SCHEMA, "the row has no tokens; %s",
                         decodes ? "its targets need at least one to attend to" : "an embedding needs at least one");
    if (tokens > set->P || targets > set->P - tokens) return too_long(j, i, tokens, targets);
    FS_TRY(check_ids(j, i, &r->source, "token", &good));
    if (good && decodes) FS_TRY(check_ids(j, i, &r->targets, "target", &good));
    if (!good) return FS_OK;
    fs_row *row = &j->rows[j->row_count++];
    *row = (fs_row){ .job = j, .next = row, .prev = row, .index = i };
    row->tokens = (int32_t)(tokens + targets);
    row->target_tokens = (int32_t)targets;
    row->hash = hash_of(&r->source, i, seed);
    if (decodes) row->hash = hash_of(&r->targets, i, row->hash);
    return FS_OK;
}

/* Wrong rows get an error, rows without tokens have nothing to compute; the others become j->rows. */
static fs_status check_rows(fs_job *j) {
    const fs_request *r = &j->request;
    const uint64_t seed = fs_hash(&r->task, sizeof r->task, 0);
    for (int64_t i = 0; i < r->rows; i++) FS_TRY(check_row(j, i, seed));
    return FS_OK;
}

/* By length, longest first; rows of equal length keep their order. A counting sort: two passes. */
static fs_status sort_rows(fs_job *j) {
    fs_status st = FS_OK;
    fs_row *sorted = NULL;
    int64_t *place = NULL, longest = 0, at = 0;
    int sorted_already = 1;
    for (int64_t i = 0; i < j->row_count; i++) {
        if (j->rows[i].tokens > longest) longest = j->rows[i].tokens;
        if (i && j->rows[i].tokens > j->rows[i - 1].tokens) sorted_already = 0;
    }
    if (sorted_already) return FS_OK;
    FS_GO(fs_alloc(&place, (size_t)longest + 1, sizeof *place));
    FS_GO(fs_alloc(&sorted, (size_t)j->row_count, sizeof *sorted));
    for (int64_t i = 0; i < j->row_count; i++) place[j->rows[i].tokens]++;
    for (int64_t t = longest; t > 0; t--) {
        int64_t count = place[t];
        place[t] = at;
        at += count;
    }
    for (int64_t i = 0; i < j->row_count; i++) {
        fs_row *to = &sorted[place[j->rows[i].tokens]++];
        *to = j->rows[i];
        to->next = to->prev = to;
    }
    fs_row *unsorted = j->rows;
    j->rows = sorted;
    sorted = unsorted;
done:
    fs_free(sorted);
    fs_free(place);
    return st;
}

static void job_release(fs_job *j) {
    if (!j) return;
    fs_engine *e = j->engine;
    pthread_cond_destroy(&j->done);
    fs_free(j->rows);
    fs_free(j->errors);
    fs_free(j);
    fs_engine_unref(e);
}

static fs_status job_new(fs_job **out, fs_engine *e, const fs_request *r) {
    fs_status st = FS_OK;
    fs_job *j;
    FS_TRY(fs_alloc(&j, 1, sizeof *j));
    j->engine = e;
    atomic_fetch_add(&e->refs, 1);
    fs_cond_init(&j->done);
    j->request = *r;
    j->request.task = plain_task(&r->task);
    j->width = fs_task_width(&r->task, &e->set);
    FS_GO(fs_alloc(&j->rows, (size_t)r->rows, sizeof *j->rows));
    FS_GO(check_rows(j));
    FS_GO(sort_rows(j));
    j->left = j->row_count;
    *out = j;
    j = NULL;
done:
    job_release(j);
    return st;
}

static int32_t number_of_task(fs_engine *e, const fs_task *task) {
    fs_job *other;
    TAILQ_FOREACH_REVERSE(other, &e->live, fs_job_list, live_link)
    if (!memcmp(&other->request.task, task, sizeof *task)) return other->task;
    e->last_task = e->last_task == INT32_MAX ? 0 : e->last_task + 1;
    return e->last_task;
}

static int inbox_full(const fs_engine *e) {
    return e->live_jobs >= FS_INBOX_JOBS || e->stats.queued_rows > FS_INBOX_ROWS;
}

static void enter(fs_engine *e, fs_job *j) {
    j->task = number_of_task(e, &j->request.task);
    j->arrival = e->arrivals++;
    j->queued = j->row_count > 0;
    TAILQ_INSERT_TAIL(&e->live, j, live_link);
    e->live_jobs++;
    e->stats.failed_rows += j->error_count;
    e->stats.queued_rows += j->row_count;
    e->stats.rows += j->request.rows - j->error_count - j->row_count; /* nothing to compute */
    fs_job_settle(j);
    if (!j->queued) return;
    TAILQ_INSERT_TAIL(&e->inbox, j, inbox_link);
    TAILQ_INSERT_TAIL(&e->queue, j, queue_link);
}

fs_status fs_engine_submit(fs_engine *e, const fs_request *r, fs_job **out) {
    fs_status st = FS_OK;
    fs_job *j;
    *out = NULL;
    if (e->pid != getpid()) return not_ours(e);
    FS_TRY(check_request(e, r));
    FS_TRY(job_new(&j, e, r));
    pthread_mutex_lock(&e->lock);
    e->visitors++;
    while (!e->stopping && e->broken.status == FS_OK && inbox_full(e)) pthread_cond_wait(&e->room, &e->lock);
    if (e->stopping) st = fs_fail(FS_CANCELLED, "the engine was closed while the request waited for room in its inbox");
    else if (e->broken.status != FS_OK) st = fs_error_raise(&e->broken);
    else enter(e, j);
    e->visitors--;
    if (e->stopping) pthread_cond_broadcast(&e->other);
    else pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->lock);
    if (st == FS_OK) *out = j;
    else job_release(j);
    return st;
}

void fs_job_settle(fs_job *j) {
    fs_engine *e = j->engine;
    if (atomic_load(&j->finished) || j->flying > 0) return;
    if (j->left > 0 && j->error.status == FS_OK) return;
    TAILQ_REMOVE(&e->live, j, live_link);
    e->live_jobs--;
    if (j->queued) { /* all of it followed rows that flew, and the window had no room to look at it */
        TAILQ_REMOVE(&e->queue, j, queue_link);
        j->queued = 0;
    }
    atomic_store(&j->finished, 1);
    pthread_cond_broadcast(&j->done);
    pthread_cond_broadcast(&e->room);
    uint64_t one = 1;
    if (write(e->fd, &one, sizeof one) < 0) return; /* the count is at its end: readable in any case */
}

void fs_job_fail(fs_job *j, const fs_error *error) {
    if (atomic_load(&j->finished) || j->error.status != FS_OK) return;
    j->error = *error;
    j->engine->stats.failed_rows += j->left;
    fs_rows_withdraw(j);
    fs_job_settle(j);
}

/* Under the lock: waits until finished, or the time is over. */
static void await(fs_job *j, double seconds) {
    struct timespec until = fs_deadline(seconds);
    while (!atomic_load(&j->finished)) {
        if (seconds < 0) pthread_cond_wait(&j->done, &j->engine->lock);
        else if (pthread_cond_timedwait(&j->done, &j->engine->lock, &until) == ETIMEDOUT) return;
    }
}

fs_status fs_job_wait(fs_job *j, double seconds, int *done) {
    fs_engine *e = j->engine;
    *done = 0;
    if (e->pid != getpid()) return not_ours(e);
    pthread_mutex_lock(&e->lock);
    await(j, seconds);
    *done = atomic_load(&j->finished);
    fs_status st = *done ? j->error.status : FS_OK;
    if (st != FS_OK) fs_error_raise(&j->error);
    pthread_mutex_unlock(&e->lock);
    return st;
}

void fs_job_row_too_big(fs_job *j, const fs_row *r, const fs_error *why) {
    fs_status st = add_error(j, r->index);
    if (st != FS_OK) {
        fs_error error;
        fs_error_take(&error, st);
        fs_job_fail(j, &error);
        return;
    }
    fs_row_error *error = &j->errors[j->error_count - 1];
    while (error > j->errors && error[-1].row > r->index) { /* they are told in the order of the rows */
        *error = error[-1];
        error--;
    }
    *error = (fs_row_error){ .row = r->index, .code = FS_ROW_ROW_TOO_BIG };
    snprintf(error->text, sizeof error->text, "the row with its %d tokens does not fit alone: %.120s", (int)r->tokens,
             why->text);
    j->engine->stats.failed_rows++;
}

int64_t fs_job_errors(fs_job *j, const fs_row_error **out) {
    *out = j->errors;
    return j->error_count;
}

int64_t fs_job_duplicates(const fs_job *j) { return j->duplicates; }

static void cancel(fs_job *j, int wait) {
    fs_engine *e = j->engine;
    if (e->pid != getpid()) return;
    pthread_mutex_lock(&e->lock);
    if (!atomic_load(&j->finished)) {
        fs_error error = { .status = FS_CANCELLED, .text = "the request was cancelled before it finished" };
        fs_job_fail(j, &error);
        if (wait) await(j, -1);
    }
    pthread_mutex_unlock(&e->lock);
}

void fs_job_cancel(fs_job *j) { cancel(j, 1); }

void fs_job_stop(fs_job *j) { cancel(j, 0); }

void fs_job_free(fs_job *j) {
    if (!j || j->engine->pid != getpid()) return; /* a fork's copy is left alone: its lock may be held forever */
    fs_job_cancel(j);
    job_release(j);
}
