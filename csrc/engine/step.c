/* step.c - what is enqueued for a batch in a stage: what differs in it, its first tensors, layers, its results.
 *
 * A pass is one batch, or, where layers are streamed (stream.h), all that are there: each layer then goes over all
 * of them, so that it is brought once. They share the part's scratch, for its queue runs in order; what lasts lies in
 * each batch's own slot. A batch that fails is left out of what follows, the others go on.
 *
 * Copies have queues of their own, so that they run beside the steps of other batches:
 *
 *     in     |numbers, carry|arrived |numbers, carry|arrived          arrived: the slot before may be used again
 *     queue                  |first tensors, layers, task|computed |first ...
 *     out                                                 |results|done       without results `done` is in `queue`
 *
 * Nothing else orders them: a slot gets its next batch when the host has seen `done`. Where scratch is shared, results
 * leave in `queue`, before the next batch's come. */
#include "engine/internal.h"

#include <string.h>

/* Ids, types and positions of a row's tokens. Whether a token has a type other than 0. */
static int fill_ids(const fs_block_side *to, int32_t t, const int32_t *ids, int64_t tokens, const fs_settings *set) {
    const int32_t first = (int32_t)set->first_position, skipped = (int32_t)set->skipped_id;
    int32_t position = first, seen = 0;
    for (int64_t i = 0; i < tokens; i++) seen |= ids[i];
    const int typed = seen >> FS_ID_BITS != 0;
    for (int64_t i = 0; i < tokens; i++) {
        const int32_t id = ids[i] & ((1 << FS_ID_BITS) - 1);
        to->ids[t + i] = id;
        to->positions[t + i] = id == skipped ? first - 1 : position++;
        to->types[t + i] = ids[i] >> FS_ID_BITS;
    }
    return typed;
}

/* One row behind the t tokens of those before it. Only the first stage reads ids and features. */
static int fill_row(const fs_block_side *to, int64_t i, int32_t t, const fs_tokens *from, const fs_row *r, int first) {
    const int64_t tokens = from->offsets[r->index + 1] - from->offsets[r->index];
    size_t bytes;
    const void *content = fs_tokens_row(from, r->index, &bytes);
    to->offsets[i] = t;
    to->offsets[i + 1] = t + (int32_t)tokens;
    if (!first) return 0;
    if (!from->features) return fill_ids(to, t, content, tokens, &r->job->engine->set);
    memcpy(to->features + t * from->width, content, bytes);
    return 0;
}

/* What differs from batch to batch, into pinned memory. Whether the source's tokens have types. */
static int fill_block(const fs_block *to, const fs_batch *b, int first) {
    int32_t t = 0, targets = 0, typed = 0;
    for (int64_t i = 0; i < b->count; i++) {
        const fs_row *r = b->rows[i];
        const fs_request *q = &r->job->request;
        typed |= fill_row(&to->source, i, t, &q->source, r, first);
        if (q->targets.offsets) fill_row(&to->targets, i, targets, &q->targets, r, first);
        t += r->tokens - r->target_tokens;
        targets += r->target_tokens;
    }
    return typed;
}

static fs_status upload_features(fs_part *part, const fs_block_side *to, const fs_block_side *from, int64_t tokens) {
    const size_t row = (size_t)part->stage->engine->set.D * sizeof *from->features;
    if (!from->features) return FS_OK;
    return part->driver->device->backend->upload(part->in, to->features, from->features, (size_t)tokens * row);
}

/* *typed: whether tokens have types. Each part asks for itself: a batch is in several stages and ranks at once. */
static fs_status upload_block(fs_part *part, fs_space *space, const fs_batch *b, int *typed) {
    const fs_block *to = &space->device_block, *from = &space->host_block;
    *typed = fill_block(from, b, part->stage->index == 0);
    FS_TRY(part->driver->device->backend->upload(part->in, space->block_memory.at, space->pinned_memory.at,
                                                 from->number_bytes));
    FS_TRY(upload_features(part, &to->source, &from->source, b->tokens));
    return upload_features(part, &to->targets, &from->targets, b->target_tokens);
}

static fs_rows rows_of(const fs_block_side *side, int64_t T, int64_t B, int64_t longest) {
    return (fs_rows){ side->ids, side->positions, side->offsets, T, B, longest, side->features, NULL };
}

static fs_status fetch_view(fs_part *part, const fs_view *to, const fs_part *from_part, const fs_view *from) {
    fs_device *device = part->driver->device;
    if (!from->at) return FS_OK;
    return device->backend->peer_copy(part->in, device, to->at, from_part->driver->device, from->at,
                                      (size_t)(from->rows * from->stride) * fs_dtype_bytes(from->dtype));
}

/* The carry of the stage before, copied into this slot's arena. Rank 0 of a group holds what all of its ranks hold. */
static fs_status fetch_carry(const fs_step *s, fs_part *part, const fs_batch *b, fs_carry *carry) {
    const fs_stage *stage = part->stage;
    const fs_part *from = &stage[-1].parts[0];
    const fs_space *from_space = &from->spaces[b->slots[stage->index - 1]->index];
    fs_step arriving = *s; /* where its memory is poisoned, this runs before the copy */
    arriving.queue = part->in;
    FS_TRY(fs_carry_push(&arriving, &stage->engine->set, stage->plan->first_layer, carry));
    FS_TRY(s->device->backend->queue_wait(part->in, from_space->done));
    FS_TRY(fetch_view(part, &carry->x, from, &from_space->carry.x));
    return fetch_view(part, &carry->other, from, &from_space->carry.other);
}

/* All that a batch needs, into its slot. */
static fs_status bring(fs_run *r, fs_part *part, fs_space *space) {
    const fs_backend *backend = r->step.device->backend;
    const fs_batch *b = r->work.batch;
    int typed;
    FS_TRY(backend->poison(part->in, space->arena.base, space->arena.size));
    FS_TRY(upload_block(part, space, b, &typed));
    if (typed) r->rows.types = space->device_block.source.types;
    return part->stage->index > 0 ? fetch_carry(&r->step, part, b, &r->carry) : FS_OK;
}

/* What is enqueued in `later` from now on runs behind all that is in `q`, with `e` in between. */
static fs_status pass_on(const fs_backend *backend, fs_queue *q, fs_event *e, fs_queue *later) {
    FS_TRY(backend->event_record(e, q));
    return later == q ? FS_OK : backend->queue_wait(later, e);
}

/* Where results leave. */
static fs_queue *way_out(const fs_part *part) { return part->stream ? part->queue : part->out; }

static fs_status finish_task(fs_step *s, fs_part *part, fs_space *space, fs_batch *b, const fs_carry *carry) {
    const fs_settings *set = &part->stage->engine->set;
    fs_view out;
    FS_TRY(fs_task_finish(s, set, part->weights->ends, &b->task, carry, &out));
    if (part->rank != 0) return FS_OK;
    b->results = space->out_memory.at;
    b->result_stride = out.stride;
    size_t floats = (size_t)((out.rows - 1) * out.stride + out.cols);
    FS_TRY(pass_on(s->device->backend, s->queue, space->computed, way_out(part)));
    return s->device->backend->download(way_out(part), space->out_memory.at, out.at, floats * sizeof(float));
}

static fs_space *space_of(const fs_run *r) { return &r->work.part->spaces[r->work.slot->index]; }

static void run_open(fs_run *r, fs_part *part, fs_space *space) {
    r->status = FS_OK;
    r->carry = (fs_carry){ 0 };
    r->scratch = fs_arena_over(part->scratch_memory.at, part->scratch_memory.bytes);
    r->step = (fs_step){ .device = part->driver->device,
                         .queue = part->queue,
                         .ops = &part->stage->ops,
                         .arena = part->stream ? &r->scratch : &space->arena,
                         .kept = &space->arena,
                         .rows = &r->rows,
                         .comm = part->stage->comm,
                         .rank = part->rank,
                         .ranks = part->stage->plan->ranks,
                         .targets = part->stage->engine->set.targets == FS_NOTHING ? NULL : &r->targets };
}

static fs_status begin(fs_run *r) {
    fs_part *part = r->work.part;
    fs_space *space = space_of(r);
    fs_batch *b = r->work.batch;
    const fs_settings *set = &part->stage->engine->set;
    const fs_block *block = &space->device_block;
    r->rows = rows_of(&block->source, b->tokens, b->count, b->longest);
    r->targets = rows_of(&block->targets, b->target_tokens, b->count, b->longest_target);
    fs_arena_reset(&space->arena, 0);
    fs_status st = bring(r, part, space);
    fs_status passed = pass_on(r->step.device->backend, part->in, space->arrived, part->queue);
    FS_TRY(st); /* what did come is waited for all the same */
    FS_TRY(passed);
    return fs_forward_begin(&r->step, set, part->weights->ends, part->stage->plan->first_layer, &r->carry);
}

static fs_status finish(fs_run *r) {
    fs_part *part = r->work.part;
    fs_space *space = space_of(r);
    if (part->stage->last) FS_TRY(finish_task(&r->step, part, space, r->work.batch, &r->carry));
    space->carry = r->carry;
    return FS_OK;
}

static void fail(fs_run *r, fs_status st) {
    if (st == FS_OK) return;
    r->status = st;
    fs_error_take(&r->error, st);
}

/* The weights of a layer, held or brought; *streamed when they have to be given back. */
static fs_status layer_weights(fs_pass *p, int layer, void **weights, int *streamed) {
    fs_part *part = p->part;
    int held = layer - part->weights->plan.first_layer;
    *streamed = layer >= part->weights->plan.last_layer - part->weights->plan.streamed;
    if (!*streamed) {
        *weights = part->weights->layers[held];
        return FS_OK;
    }
    int64_t start = fs_now_ns();
    fs_status st = fs_stream_take(part->stream, layer, weights);
    p->waited_ns += fs_now_ns() - start;
    return st;
}

static fs_status run_layer(fs_pass *p, int layer) {
    const fs_settings *set = &p->part->stage->engine->set;
    int streamed;
    void *weights;
    FS_TRY(layer_weights(p, layer, &weights, &streamed));
    for (int i = 0; i < p->count; i++) {
        fs_run *r = &p->runs[i];
        if (r->status == FS_OK)
            fail(r, fs_forward_layer(&r->step, set, p->part->weights->ends, layer, weights, &r->carry));
    }
    if (!streamed) return FS_OK;
    p->streamed_bytes += fs_stream_layer_bytes(p->part->stream, layer);
    return fs_stream_give(p->part->stream, layer, p->part->queue);
}

static int any_left(const fs_pass *p) {
    for (int i = 0; i < p->count; i++)
        if (p->runs[i].status == FS_OK) return 1;
    return 0;
}

static void run_layers(fs_pass *p) {
    const fs_shard_plan *plan = &p->part->weights->plan;
    for (int layer = plan->first_layer; layer < plan->last_layer; layer++) {
        fs_status st = any_left(p) ? run_layer(p, layer) : FS_CANCELLED;
        if (st == FS_OK) continue;
        for (int i = 0; i < p->count; i++)
            if (p->runs[i].status == FS_OK) fail(&p->runs[i], st);
        if (p->part->stream) fs_stream_restart(p->part->stream, p->part->queue);
        return;
    }
}

/* Whatever happened: it is waited for. */
static void record(fs_run *r) {
    fs_part *part = r->work.part;
    int downloads = part->stage->last && part->rank == 0 && r->status == FS_OK;
    fs_status st = r->step.device->backend->event_record(space_of(r)->done, downloads ? way_out(part) : part->queue);
    if (r->status == FS_OK) fail(r, st);
}

void fs_pass_enqueue(fs_pass *p) {
    p->waited_ns = p->streamed_bytes = 0;
    for (int i = 0; i < p->count; i++) {
        run_open(&p->runs[i], p->part, space_of(&p->runs[i]));
        fail(&p->runs[i], begin(&p->runs[i]));
    }
    run_layers(p);
    for (int i = 0; i < p->count; i++) {
        if (p->runs[i].status == FS_OK) fail(&p->runs[i], finish(&p->runs[i]));
        record(&p->runs[i]);
    }
}

/* Streamed layers come once for it. */
static fs_status prepare_step(fs_pass *p, const fs_ops *ops) {
    fs_part *part = p->part;
    fs_run *r = &p->runs[0];
    const fs_stage *stage = part->stage;
    const fs_settings *set = &stage->engine->set;
    fs_task tasks[FS_TASKS_MOST];
    const int count = fs_task_largest(tasks, set);
    fs_view out;
    run_open(r, part, &part->spaces[0]);
    const fs_rows most = fs_plan_rows(set, &stage->engine->capacity);
    const fs_block *block = &part->spaces[0].device_block;
    r->rows = rows_of(&block->source, most.T, most.B, most.longest);
    r->targets = rows_of(&block->targets, most.T, most.B, most.longest);
    r->rows.types = block->source.types;
    r->step.ops = ops;
    fs_arena_reset(r->step.kept, 0);
    if (stage->index > 0) FS_TRY(fs_carry_push(&r->step, set, stage->plan->first_layer, &r->carry));
    FS_TRY(fs_forward_begin(&r->step, set, part->weights->ends, stage->plan->first_layer, &r->carry));
    run_layers(p);
    if (r->status != FS_OK) return fs_error_raise(&r->error);
    const size_t mark = fs_arena_mark(r->step.arena);
    for (int i = 0; stage->last && i < count; i++) {
        FS_TRY(fs_task_finish(&r->step, set, part->weights->ends, &tasks[i], &r->carry, &out));
        fs_arena_reset(r->step.arena, mark);
    }
    return FS_OK;
}

fs_status fs_part_prepare(fs_part *p) {
    const fs_backend *backend = p->driver->device->backend;
    if (!backend->prepare) return FS_OK;
    const fs_ops ops = fs_ops_complete(backend->prepare);
    fs_pass pass = { .part = p, .count = 1 };
    fs_event *done = p->spaces[0].done;
    FS_TRY(prepare_step(&pass, &ops));
    FS_TRY(backend->event_record(done, p->queue));
    return backend->event_wait(done);
}
