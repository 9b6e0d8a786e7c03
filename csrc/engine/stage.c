/* stage.c - what a stage is made of: shards of weights, queues, and for each slot an arena and the blocks that feed it.
 *
 * Sizes come from the limits alone (a dry run on the measure backend at the largest batch), so they are known, and
 * checked against the devices' budgets, before anything is loaded. */
#include "base/alloc.h"
#include "engine/internal.h"

#include <string.h>

#define MB(bytes) ((double)(bytes) / 1e6)

typedef struct {
    size_t weights, workspace, staging;
} need;

/* Slabs that layers are streamed through: two, where there is memory for a second layer beside those that are held. */
static int slabs_of(const fs_stage_plan *plan) {
    if (plan->window == 0 || plan->window >= plan->last_layer - plan->first_layer) return 0;
    return plan->window > 1 ? 2 : 1;
}

static fs_shard_plan shard_of(const fs_engine *e, int index, int rank) {
    const fs_stage_plan *plan = &e->plan.stages[index];
    int slabs = slabs_of(plan), layers = plan->last_layer - plan->first_layer;
    int holder = e->set.arch->ends_at == FS_AT_FIRST ? 0 : e->plan.stage_count - 1;
    return (fs_shard_plan){ .first_layer = plan->first_layer,
                            .last_layer = plan->last_layer,
                            .rank = rank,
                            .ranks = plan->ranks,
                            .with_ends = index == holder,
                            .streamed = slabs ? layers - (plan->window - slabs) : 0 };
}

static size_t block_ints(size_t n) { return (n + 15) & ~(size_t)15; }

static size_t block_bytes(const fs_engine *e) {
    return (block_ints((size_t)e->limits.max_rows + 1) + 2 * block_ints((size_t)e->block_tokens)) * sizeof(int32_t);
}

static fs_block block_at(const fs_engine *e, void *at) {
    fs_block b = { .offsets = at };
    b.ids = b.offsets + block_ints((size_t)e->limits.max_rows + 1);
    b.positions = b.ids + block_ints((size_t)e->block_tokens);
    return b;
}

/* The largest result: every pooling of a full batch's rows, or the hidden states of all its tokens. */
static size_t out_bytes(const fs_engine *e, int index, int rank) {
    if (index != e->plan.stage_count - 1 || rank != 0) return 0;
    int64_t pooled = e->limits.max_rows * FS_POOL_COUNT, tokens = e->block_tokens;
    return (size_t)(pooled > tokens ? pooled : tokens) * (size_t)e->set.D * sizeof(float);
}

fs_task fs_largest_task(void) {
    fs_task task = { .kind = FS_TASK_EMBED, .pooling_count = FS_POOL_COUNT, .normalize = 1 };
    for (int i = 0; i < FS_POOL_COUNT; i++) task.pooling[i] = (fs_pooling)i;
    return task;
}

/* Its bounds; of addresses only where they will lie. */
fs_rows fs_largest_rows(const fs_engine *e, const fs_block *block) {
    return (fs_rows){ .ids = block->ids,
                      .positions = block->positions,
                      .offsets = block->offsets,
                      .T = e->block_tokens,
                      .B = e->limits.max_rows,
                      .longest = e->set.P < e->block_tokens ? e->set.P : e->block_tokens };
}

static fs_status arena_bytes(const fs_engine *e, const fs_shard_plan *shard, fs_step_cost *out) {
    const fs_task task = fs_largest_task();
    const fs_block nowhere = { 0 };
    const fs_rows rows = fs_largest_rows(e, &nowhere);
    return fs_plan_step_cost(out, &e->set, shard, &task, rows.T, rows.B, rows.longest);
}

static fs_status add_need(need *n, const fs_engine *e, int index, int rank) {
    fs_shard_plan shard = shard_of(e, index, rank);
    fs_device *device = e->drivers[e->plan.stages[index].devices[rank]].device;
    fs_step_cost cost;
    size_t slots = (size_t)e->slot_count, scratches = shard.streamed ? 1 : slots;
    FS_TRY(arena_bytes(e, &shard, &cost));
    n->weights += fs_shard_bytes(&e->set, &shard, device);
    n->weights += fs_stream_bytes(&e->set, &shard, device, slabs_of(&e->plan.stages[index]));
    n->workspace += slots * (cost.kept + block_bytes(e)) + scratches * cost.scratch;
    n->staging += slots * (block_bytes(e) + out_bytes(e, index, rank));
    return FS_OK;
}

fs_status fs_replica_fits(const fs_engine *e, int device) {
    fs_device *d = e->drivers[device].device;
    need n = { 0 };
    size_t limit = d->budget.limit, all;
    for (int i = 0; i < e->plan.stage_count; i++)
        for (int r = 0; r < e->plan.stages[i].ranks; r++)
            if (e->plan.stages[i].devices[r] == device) FS_TRY(add_need(&n, e, i, r));
    all = n.weights + n.workspace + n.staging;
    if (limit == 0 || all <= limit) return FS_OK;
    return fs_fail(
        FS_NO_MEMORY,
        "%s: the model takes %.1f MB (weights %.1f, workspace %.1f, staging %.1f) of a budget of %.1f MB, %.1f MB "
        "are missing; raise max_memory or the container's limit, or lower FIRESTEEL_BATCH_TOKENS (now %lld)%s",
        d->name, MB(all), MB(n.weights), MB(n.workspace), MB(n.staging), MB(limit), MB(all - limit),
        (long long)e->limits.max_tokens, d->budget.note);
}

static fs_status space_open(fs_space *s, const fs_engine *e, fs_device *d, size_t arena, size_t out) {
    const fs_backend *b = d->backend;
    FS_TRY(b->alloc(d, FS_WORKSPACE, arena, &s->arena_memory));
    FS_TRY(b->alloc(d, FS_WORKSPACE, block_bytes(e), &s->block_memory));
    FS_TRY(b->alloc_pinned(d, FS_STAGING, block_bytes(e), &s->pinned_memory));
    if (out) FS_TRY(b->alloc_pinned(d, FS_STAGING, out, &s->out_memory));
    FS_TRY(b->event_new(d, &s->copied));
    FS_TRY(b->event_new(d, &s->done));
    memset(s->pinned_memory.at, 0, s->pinned_memory.bytes); /* all of it is uploaded, whatever a batch fills */
    s->arena = fs_arena_over(s->arena_memory.at, arena);
    s->device_block = block_at(e, s->block_memory.at);
    s->host_block = block_at(e, s->pinned_memory.at);
    return FS_OK;
}

static void space_close(fs_space *s, fs_device *d) {
    const fs_backend *b = d->backend;
    b->event_free(s->done);
    b->event_free(s->copied);
    b->release(d, &s->out_memory);
    b->release(d, &s->pinned_memory);
    b->release(d, &s->block_memory);
    b->release(d, &s->arena_memory);
}

static fs_status part_open(fs_part *p, fs_stage *stage, int rank) {
    fs_engine *e = stage->engine;
    fs_shard_plan shard = shard_of(e, stage->index, rank);
    fs_step_cost cost;
    p->stage = stage;
    p->rank = rank;
    p->driver = &e->drivers[stage->plan->devices[rank]];
    fs_device *d = p->driver->device;
    FS_TRY(arena_bytes(e, &shard, &cost));
    FS_TRY(d->backend->queue_new(d, &p->queue));
    if (shard.streamed) FS_TRY(d->backend->alloc(d, FS_WORKSPACE, cost.scratch, &p->scratch_memory));
    size_t arena = shard.streamed ? cost.kept : cost.kept + cost.scratch;
    for (int s = 0; s < e->slot_count; s++)
        FS_TRY(space_open(&p->spaces[s], e, d, arena, out_bytes(e, stage->index, rank)));
    return FS_OK;
}

static void part_close(fs_part *p) {
    if (!p->driver) return;
    fs_device *d = p->driver->device;
    fs_stream_close(p->stream);
    d->backend->queue_free(p->queue);
    d->backend->release(d, &p->scratch_memory);
    for (int s = 0; s < FS_MAX_SLOTS; s++) space_close(&p->spaces[s], d);
    fs_shard_release(&p->shard);
}

static fs_status stage_open(fs_stage *s, fs_engine *e, int index, double deadline_seconds) {
    fs_device *ranks[FS_MAX_GROUP];
    s->engine = e;
    s->plan = &e->plan.stages[index];
    s->index = index;
    s->last = index == e->plan.stage_count - 1;
    STAILQ_INIT(&s->waiting);
    for (int i = 0; i < e->slot_count; i++) {
        s->slots[i].index = i;
        s->free[s->free_count++] = &s->slots[i];
    }
    for (int r = 0; r < s->plan->ranks; r++) {
        ranks[r] = e->drivers[s->plan->devices[r]].device;
        FS_TRY(part_open(&s->parts[r], s, r));
    }
    s->ops = fs_ops_complete(ranks[0]->backend->ops);
    if (s->plan->ranks > 1) FS_TRY(ranks[0]->backend->comm_open(&s->comm, ranks, s->plan->ranks, deadline_seconds));
    return FS_OK;
}

static void stage_close(fs_stage *s) {
    if (!s->plan) return;
    for (int r = 0; r < s->plan->ranks; r++) part_close(&s->parts[r]);
    if (s->comm) s->engine->drivers[s->plan->devices[0]].device->backend->comm_close(s->comm);
}

fs_status fs_replica_open(fs_replica *r, fs_engine *e, double deadline_seconds) {
    int stages = e->plan.stage_count, batches = stages * e->slot_count; /* each holds a slot at least */
    STAILQ_INIT(&r->free);
    FS_TRY(fs_alloc(&r->stages, (size_t)stages, sizeof *r->stages));
    r->stage_count = stages;
    for (int i = 0; i < stages; i++) FS_TRY(stage_open(&r->stages[i], e, i, deadline_seconds));
    FS_TRY(fs_alloc(&r->batches, (size_t)batches, sizeof *r->batches));
    r->batch_count = batches;
    for (int i = 0; i < batches; i++) {
        fs_batch *b = &r->batches[i];
        b->replica = r;
        FS_TRY(fs_alloc(&b->rows, (size_t)e->limits.max_rows, sizeof *b->rows));
        FS_TRY(fs_alloc(&b->slots, (size_t)stages, sizeof *b->slots));
        STAILQ_INSERT_TAIL(&r->free, b, link);
    }
    return FS_OK;
}

void fs_replica_close(fs_replica *r) {
    for (int i = 0; i < r->batch_count; i++) {
        fs_free(r->batches[i].rows);
        fs_free(r->batches[i].slots);
    }
    fs_free(r->batches);
    for (int i = 0; i < r->stage_count; i++) stage_close(&r->stages[i]);
    fs_free(r->stages);
}

/* Drivers load at the same time: each has its share of the reading threads, itself at least. */
static int readers_of(const fs_driver *d) {
    const fs_engine *e = d->engine;
    int share = e->load_threads / e->device_count, more = d - e->drivers < e->load_threads % e->device_count;
    return share + more > 1 ? share + more : 1;
}

fs_status fs_driver_load(fs_driver *d) {
    fs_engine *e = d->engine;
    int readers = readers_of(d);
    for (int i = 0; i < e->replica_count; i++)
        for (int k = 0; k < e->replicas[i].stage_count; k++)
            for (int r = 0; r < e->plan.stages[k].ranks; r++) {
                fs_part *p = &e->replicas[i].stages[k].parts[r];
                fs_shard_plan shard = shard_of(e, k, r);
                if (p->driver != d) continue;
                FS_TRY(fs_shard_load(&p->shard, d->loading, &e->set, &shard, d->device, readers));
                if (shard.streamed)
                    FS_TRY(fs_stream_open(&p->stream, d->loading, &e->set, &shard, d->device, slabs_of(p->stage->plan),
                                          readers));
                FS_TRY(fs_part_prepare(p));
            }
    return FS_OK;
}
