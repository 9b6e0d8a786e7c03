/* requests.c - rows: out of a worker's segment, through the store and an engine, and back.
 *
 *     segment --copy--> rows --check--> known? --yes--> results --copy--> segment
 *                                         '--no--> engine --'   '--> store */
#include "base/alloc.h"
#include "manager/server_inside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void asked_free(fs_asked *a) {
    if (!a) return;
    fs_job_free(a->job);
    fs_free(a->rows);
    fs_free(a->results);
    fs_free(a->computed);
    fs_free(a->fewer);
    fs_free(a->fewer_results);
    fs_free(a);
}

static size_t held_bytes(const fs_asked *a) {
    const fs_submit *q = &a->submit;
    uint64_t bytes = sizeof *a + fs_side_bytes(q->count, q->tokens, q->width);
    return (size_t)(bytes + (q->target_tokens < 0 ? 0 : fs_side_bytes(q->count, q->target_tokens, q->target_width)));
}

/* -- from the segment ---------------------------------------------------------------------------------------------- */

static int sane(const fs_submit *q) {
    const int64_t most = 1 << 28;
    return q->count >= 0 && q->count <= FS_SUBMIT_ROWS && q->tokens >= 0 && q->tokens <= most && q->width >= 0 &&
           q->width <= 1 << 20 && q->target_tokens >= -1 && q->target_tokens <= most && q->target_width >= 0 &&
           q->target_width <= 1 << 20 && q->result_floats >= 0 && q->result_floats <= most && q->pooling_count >= 0 &&
           q->pooling_count <= FS_POOL_COUNT;
}

static int inside(fs_connection *c, const fs_place *place, uint64_t bytes) {
    const fs_segment *s = fs_connection_segment(c, place->segment);
    return s && place->at % 8 == 0 && place->at <= s->bytes && bytes <= s->bytes - place->at;
}

/* One side of the copy; the offsets are checked here, everything else by the engine. */
static int read_side(fs_tokens *out, char **at, int64_t count, int64_t tokens, int64_t width) {
    out->offsets = (const int64_t *)(void *)*at;
    const void *content = *at + ((size_t)count + 1) * sizeof(int64_t);
    if (width) out->features = content, out->width = width;
    else out->ids = content;
    *at += fs_side_bytes(count, tokens, width);
    for (int64_t i = 0; i < count; i++)
        if (out->offsets[i] < 0 || out->offsets[i] > out->offsets[i + 1]) return 0;
    return out->offsets[0] == 0 && out->offsets[count] == tokens;
}

static fs_task task_of(const fs_submit *q) {
    fs_task task;
    memset(&task, 0, sizeof task); /* it is compared as bytes */
    task.kind = (fs_task_kind)q->task;
    task.pooling_count = q->pooling_count;
    for (int i = 0; i < q->pooling_count; i++) task.pooling[i] = (fs_pooling)q->pooling[i];
    task.normalize = q->normalize;
    task.dimensions = q->dimensions;
    return task;
}

void fs_asked_submit(fs_server *s, fs_connection *c, uint64_t id, const fs_submit *q) {
    fs_asked *a = NULL;
    uint64_t bytes = 0;
    if (sane(q)) {
        bytes = fs_side_bytes(q->count, q->tokens, q->width);
        if (q->target_tokens >= 0) bytes += fs_side_bytes(q->count, q->target_tokens, q->target_width);
    }
    if (!bytes || !inside(c, &q->rows, bytes) || !inside(c, &q->results, (uint64_t)q->result_floats * sizeof(float))) {
        fs_connection_refuse(s, c, "a job of %lld rows does not lie in the memory it names", (long long)q->count);
        return;
    }
    if (fs_alloc(&a, 1, sizeof *a) != FS_OK || fs_alloc(&a->rows, 1, (size_t)bytes) != FS_OK) {
        if (a) fs_free(a);
        fs_connection_refuse(s, c, "%s", fs_error_text());
        return;
    }
    memcpy(a->rows, fs_connection_segment(c, q->rows.segment)->at + q->rows.at, (size_t)bytes);
    a->connection = c, a->id = id, a->submit = *q, a->task = task_of(q);
    char *at = a->rows;
    int good = read_side(&a->source, &at, q->count, q->tokens, q->width);
    if (good && q->target_tokens >= 0) good = read_side(&a->targets, &at, q->count, q->target_tokens, q->target_width);
    if (!good) {
        asked_free(a);
        fs_connection_refuse(s, c, "a job's offsets do not run from 0 to its tokens");
        return;
    }
    TAILQ_INSERT_TAIL(&c->waiting, a, link);
    c->jobs++, c->rows += q->count, c->held_bytes += held_bytes(a);
    s->last_row_ns = fs_now_ns();
}

/* -- to the engine ------------------------------------------------------------------------------------------------- */

static size_t token_bytes(const fs_tokens *t) { return t->features ? (size_t)t->width * 4 : 4; }

static const char *token_at(const fs_tokens *t, int64_t row) {
    const char *first = t->features ? (const char *)t->features : (const char *)t->ids;
    return first + (size_t)t->offsets[row] * token_bytes(t);
}

static size_t row_bytes(const fs_tokens *t, int64_t row) {
    return (size_t)(t->offsets[row + 1] - t->offsets[row]) * token_bytes(t);
}

static fs_store_key key_of(const fs_asked *a, int64_t row) {
    fs_store_key k = { .model = a->submit.model, .task = &a->task, .source = token_at(&a->source, row), .targets = "" };
    k.source_bytes = row_bytes(&a->source, row);
    if (a->targets.offsets) k.targets = token_at(&a->targets, row), k.target_bytes = row_bytes(&a->targets, row);
    return k;
}

/* Where a row's result is among the results of rows with such offsets, in floats. */
static int64_t result_at(const fs_asked *a, const int64_t *offsets, int64_t row, int64_t width) {
    return (fs_task_by_row(&a->task) ? row : offsets[row]) * width;
}

static const int64_t *counted(const fs_asked *a) { return a->targets.offsets ? a->targets.offsets : a->source.offsets; }

static int64_t width_of(const fs_asked *a) { return fs_task_width(&a->task, fs_engine_settings(a->model->engine)); }

/* Rows whose results are known get them; the others are listed. */
static fs_status look_up(fs_server *s, fs_asked *a) {
    const int64_t width = width_of(a), *offsets = counted(a);
    FS_TRY(fs_alloc(&a->computed, (size_t)a->submit.count, sizeof *a->computed));
    for (int64_t i = 0; i < a->submit.count; i++) {
        const fs_store_key key = key_of(a, i);
        const int64_t at = result_at(a, offsets, i, width), there = result_at(a, offsets, i + 1, width) - at;
        int64_t floats;
        const float *known = there > 0 ? fs_store_find(s->store, &key, &floats) : NULL;
        if (known && floats == there) {
            memcpy(a->results + at, known, (size_t)floats * sizeof *known);
            a->hits++;
        } else {
            a->computed[a->computed_count++] = i;
        }
    }
    return FS_OK;
}

/* The rows that were not known, one after the other. */
static void pack_side(fs_tokens *out, char **at, const fs_tokens *from, const int64_t *rows, int64_t count) {
    int64_t *offsets = (int64_t *)(void *)*at;
    char *content = *at + ((size_t)count + 1) * sizeof *offsets;
    *out = (fs_tokens){ .offsets = offsets, .width = from->width };
    if (from->features) out->features = (const float *)(const void *)content;
    else out->ids = (const int32_t *)(const void *)content;
    offsets[0] = 0;
    for (int64_t i = 0; i < count; i++) {
        const size_t bytes = row_bytes(from, rows[i]);
        memcpy(content, token_at(from, rows[i]), bytes);
        content += bytes;
        offsets[i + 1] = offsets[i] + (int64_t)(bytes / token_bytes(from));
    }
    *at = (char *)offsets + fs_side_bytes(count, offsets[count], from->features ? from->width : 0);
}

static fs_status pack(fs_asked *a, fs_request *r) {
    const int64_t width = width_of(a);
    char *at;
    FS_TRY(fs_alloc(&a->fewer, 1, held_bytes(a)));
    at = a->fewer;
    pack_side(&r->source, &at, &a->source, a->computed, a->computed_count);
    if (a->targets.offsets) pack_side(&r->targets, &at, &a->targets, a->computed, a->computed_count);
    const int64_t *offsets = r->targets.offsets ? r->targets.offsets : r->source.offsets;
    r->rows = a->computed_count;
    r->out_floats = result_at(a, offsets, r->rows, width);
    FS_TRY(fs_alloc(&a->fewer_results, (size_t)r->out_floats, sizeof(float)));
    r->out = a->fewer_results;
    return FS_OK;
}

static void crash_on_demand(const fs_server *s, const fs_asked *a) {
    if (s->crash < 0 || !a->source.ids) return;
    for (int64_t t = 0; t < a->submit.tokens; t++)
        if (a->source.ids[t] == s->crash) abort();
}

static fs_status start(fs_server *s, fs_asked *a) {
    crash_on_demand(s, a);
    if (!a->model) return fs_fail(FS_MANAGER, "the model is not open in the manager; it was released meanwhile");
    fs_request r = { .task = a->task, .source = a->source, .targets = a->targets, .rows = a->submit.count };
    FS_TRY(fs_task_check(&a->task, fs_engine_settings(a->model->engine)));
    r.out_floats = a->submit.result_floats;
    if (r.out_floats < result_at(a, counted(a), r.rows, width_of(a)))
        return fs_fail(FS_REQUEST, "out has room for %lld floats; the results have %lld", (long long)r.out_floats,
                       (long long)result_at(a, counted(a), r.rows, width_of(a)));
    FS_TRY(fs_alloc(&a->results, (size_t)r.out_floats, sizeof *a->results));
    r.out = a->results;
    FS_TRY(look_up(s, a));
    if (a->hits > 0) FS_TRY(pack(a, &r));
    return r.rows == 0 && a->hits > 0 ? FS_OK : fs_engine_submit(a->model->engine, &r, &a->job);
}

/* -- back ---------------------------------------------------------------------------------------------------------- */

static void send_faults(fs_server *s, fs_asked *a, const fs_row_error *errors, int64_t count) {
    enum { AT_ONCE = (FS_PACKET_BYTES - sizeof(fs_packet_head)) / sizeof(fs_fault) };
    fs_fault some[32];
    _Static_assert(sizeof some / sizeof *some <= AT_ONCE, "they go into one packet");
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++) {
        fs_fault *f = &some[n++];
        memset(f, 0, sizeof *f);
        f->row = a->hits > 0 ? a->computed[errors[i].row] : errors[i].row;
        f->code = errors[i].code;
        snprintf(f->text, sizeof f->text, "%.*s", (int)sizeof f->text - 1, errors[i].text);
        if (n < (int64_t)(sizeof some / sizeof *some) && i + 1 < count) continue;
        fs_connection_send(s, a->connection, FS_PACKET_FAULTS, a->id, some, (size_t)n * sizeof *some);
        n = 0;
    }
}

/* Results of the engine to where they belong, and into the store. */
static void take_results(fs_server *s, fs_asked *a, const fs_row_error *errors, int64_t error_count) {
    const int64_t width = width_of(a), *offsets = counted(a);
    int64_t error = 0, from = 0;
    for (int64_t i = 0; i < a->computed_count; i++) {
        const int64_t row = a->computed[i], at = result_at(a, offsets, row, width);
        const int64_t floats = result_at(a, offsets, row + 1, width) - at;
        const int64_t named = a->hits > 0 ? i : row; /* as the engine counts */
        while (error < error_count && errors[error].row < named) error++;
        const int faulty = error < error_count && errors[error].row == named;
        if (a->hits > 0 && !faulty) memcpy(a->results + at, a->fewer_results + from, (size_t)floats * sizeof(float));
        from += floats;
        if (faulty || floats == 0) continue;
        const fs_store_key key = key_of(a, row);
        fs_store_put(s->store, &key, a->results + at, floats);
    }
}

static void leave(fs_asked *a) {
    fs_connection *c = a->connection;
    if (c) c->jobs--, c->rows -= a->submit.count, c->held_bytes -= held_bytes(a);
}

/* The end of a job that nothing uses any more: results, faults, DONE. */
static void finish(fs_server *s, fs_asked *a, fs_status st) {
    fs_connection *c = a->connection;
    fs_done done = { .status = st, .hits = (uint32_t)a->hits };
    const fs_row_error *errors = NULL;
    int64_t count = 0;
    if (st != FS_OK) snprintf(done.text, sizeof done.text, "%s", fs_error_text());
    if (st == FS_OK && a->job) {
        count = fs_job_errors(a->job, &errors);
        done.duplicates = (uint32_t)fs_job_duplicates(a->job);
    }
    if (st == FS_OK && a->results) take_results(s, a, errors, count);
    if (c) {
        fs_segment *to = fs_connection_segment(c, a->submit.results.segment);
        if (st == FS_OK && to && a->results)
            memcpy(to->at + a->submit.results.at, a->results, (size_t)a->submit.result_floats * sizeof(float));
        send_faults(s, a, errors, count);
        fs_connection_send(s, c, FS_PACKET_DONE, a->id, &done, sizeof done);
        c->done_rows += a->submit.count, c->hits += a->hits, c->duplicates += done.duplicates;
    }
    s->stats.rows += a->submit.count, s->stats.hits += a->hits, s->stats.jobs++;
    s->stats.duplicates += done.duplicates;
    s->last_row_ns = fs_now_ns();
    if (a->model) a->model->last_row_ns = s->last_row_ns;
    leave(a);
    asked_free(a);
}

/* -- whose turn it is ---------------------------------------------------------------------------------------------- */

static int has_room(const fs_model *m, const fs_asked *a) {
    if (m->fed_rows == 0) return 1;
    return m->fed_rows + a->submit.count <= FS_FED_ROWS &&
           m->fed_bytes + (size_t)a->submit.result_floats * sizeof(float) <= FS_FED_BYTES;
}

/* The connection's oldest job whose engine has room; one of another model may go before one that waits. */
static fs_asked *next_of(fs_server *s, fs_connection *c) {
    fs_asked *a;
    TAILQ_FOREACH(a, &c->waiting, link) {
        a->model = fs_server_model(s, a->submit.model);
        if (!a->model || has_room(a->model, a)) return a;
    }
    return NULL;
}

static void start_or_fail(fs_server *s, fs_connection *c, fs_asked *a) {
    TAILQ_REMOVE(&c->waiting, a, link);
    fs_status st = start(s, a);
    if (st != FS_OK || !a->job) {
        finish(s, a, st);
        return;
    }
    TAILQ_INSERT_TAIL(&a->model->running, a, link);
    a->model->fed_rows += a->submit.count;
    a->model->fed_bytes += (size_t)a->submit.result_floats * sizeof(float);
}

/* One job of each connection in turn, until no engine has room for what waits. */
void fs_server_feed(fs_server *s) {
    int idle = 0, connections = 0;
    fs_connection *c;
    TAILQ_FOREACH(c, &s->connections, link) connections++;
    while (idle < connections) {
        c = TAILQ_FIRST(&s->connections);
        fs_asked *a = c->gone ? NULL : next_of(s, c);
        if (a) start_or_fail(s, c, a);
        idle = a ? 0 : idle + 1;
        TAILQ_REMOVE(&s->connections, c, link);
        TAILQ_INSERT_TAIL(&s->connections, c, link);
    }
    TAILQ_FOREACH(c, &s->connections, link) fs_connection_watch(s, c);
}

static void take_back(fs_model *m, fs_asked *a) {
    TAILQ_REMOVE(&m->running, a, link);
    m->fed_rows -= a->submit.count;
    m->fed_bytes -= (size_t)a->submit.result_floats * sizeof(float);
}

void fs_model_collect(fs_server *s, fs_model *m) {
    for (fs_asked *a = TAILQ_FIRST(&m->running), *next; a; a = next) {
        int done;
        next = TAILQ_NEXT(a, link);
        fs_status st = fs_job_wait(a->job, 0, &done);
        if (!done) continue;
        take_back(m, a);
        finish(s, a, st);
    }
}

void fs_model_abandon(fs_server *s, fs_model *m) {
    fs_asked *a;
    TAILQ_FOREACH(a, &m->running, link) fs_job_stop(a->job);
    while ((a = TAILQ_FIRST(&m->running))) {
        int done;
        fs_status st = fs_job_wait(a->job, -1, &done);
        if (st == FS_CANCELLED) st = fs_fail(FS_MANAGER, "the model was released while its rows were computed");
        take_back(m, a);
        finish(s, a, st);
    }
}

static void drop_running(fs_asked *a) {
    leave(a);
    a->connection = NULL;
    fs_job_stop(a->job);
}

static void send_cancelled(fs_server *s, fs_connection *c, uint64_t id) {
    fs_done done = { .status = FS_CANCELLED, .text = "the request was cancelled before it finished" };
    fs_connection_send(s, c, FS_PACKET_DONE, id, &done, sizeof done);
}

/* One that is not there has said DONE already. */
void fs_asked_cancel(fs_server *s, fs_connection *c, uint64_t id) {
    fs_asked *a;
    fs_model *m;
    TAILQ_FOREACH(a, &c->waiting, link) {
        if (a->id != id) continue;
        TAILQ_REMOVE(&c->waiting, a, link);
        leave(a);
        asked_free(a);
        send_cancelled(s, c, id);
        return;
    }
    TAILQ_FOREACH(m, &s->models, link)
    TAILQ_FOREACH(a, &m->running, link)
    if (a->connection == c && a->id == id) {
        drop_running(a);
        send_cancelled(s, c, id);
        return;
    }
}

void fs_asked_forget(fs_server *s, fs_connection *c) {
    fs_asked *a;
    fs_model *m;
    while ((a = TAILQ_FIRST(&c->waiting))) {
        TAILQ_REMOVE(&c->waiting, a, link);
        leave(a);
        asked_free(a);
    }
    TAILQ_FOREACH(m, &s->models, link)
    TAILQ_FOREACH(a, &m->running, link)
    if (a->connection == c) drop_running(a);
}
