/* stage.c - what a stage is made of: shards of weights, queues, and for each slot an arena and the blocks that feed it.
 *
 * Sizes are placement's (need.c), which has checked them against the devices' budgets. */
#include "base/alloc.h"
#include "engine/internal.h"

#include <string.h>

static fs_block_side side_at(const fs_capacity *c, int32_t *at) {
    fs_block_side side = { .offsets = at };
    side.ids = side.offsets + fs_block_ints(c->rows + 1);
    side.positions = side.ids + fs_block_ints(c->tokens);
    side.types = side.positions + fs_block_ints(c->tokens);
    return side;
}

static fs_block block_at(const fs_stage *stage, void *at) {
    const fs_capacity *c = &stage->engine->capacity;
    const fs_settings *set = &stage->engine->set;
    fs_block b = { .source = side_at(c, at) };
    int32_t *end = b.source.offsets + fs_block_side_ints(c);
    size_t features = fs_block_feature_ints(set, c, stage->plan->first_layer, set->rows);
    if (set->targets != FS_NOTHING) {
        b.targets = side_at(c, end);
        end += fs_block_side_ints(c);
    }
    b.number_bytes = (size_t)((char *)end - (char *)at);
    if (features) b.source.features = (float *)end;
    end += features;
    if (fs_block_feature_ints(set, c, stage->plan->first_layer, set->targets)) b.targets.features = (float *)end;
    return b;
}

static fs_status space_open(fs_space *s, const fs_stage *stage, fs_device *d, const fs_part_bytes *bytes) {
    const fs_backend *b = d->backend;
    FS_TRY(b->alloc(d, FS_WORKSPACE, bytes->arena, &s->arena_memory));
    FS_TRY(b->alloc(d, FS_WORKSPACE, bytes->block, &s->block_memory));
    FS_TRY(b->alloc_pinned(d, FS_STAGING, bytes->block, &s->pinned_memory));
    if (bytes->out) FS_TRY(b->alloc_pinned(d, FS_STAGING, bytes->out, &s->out_memory));
    FS_TRY(b->event_new(d, &s->arrived));
    FS_TRY(b->event_new(d, &s->computed));
    FS_TRY(b->event_new(d, &s->done));
    memset(s->pinned_memory.at, 0, s->pinned_memory.bytes); /* all numbers are uploaded, whatever a batch fills */
    s->arena = fs_arena_over(s->arena_memory.at, bytes->arena);
    s->device_block = block_at(stage, s->block_memory.at);
    s->host_block = block_at(stage, s->pinned_memory.at);
    return FS_OK;
}

static void space_close(fs_space *s, fs_device *d) {
    const fs_backend *b = d->backend;
    b->event_free(s->done);
    b->event_free(s->computed);
    b->event_free(s->arrived);
    b->release(d, &s->out_memory);
    b->release(d, &s->pinned_memory);
    b->release(d, &s->block_memory);
    b->release(d, &s->arena_memory);
}

/* One queue where copies are made by those who compute. */
static fs_status queues_open(fs_part *p, fs_device *d) {
    const fs_backend *b = d->backend;
    FS_TRY(b->queue_new(d, &p->queue));
    p->in = p->out = p->queue;
    if (b->one_memory) return FS_OK;
    p->in = p->out = NULL;
    FS_TRY(b->queue_new(d, &p->in));
    return b->queue_new(d, &p->out);
}

static void queues_close(fs_part *p, fs_device *d) {
    if (p->in != p->queue) d->backend->queue_free(p->in);
    if (p->out != p->queue) d->backend->queue_free(p->out);
    d->backend->queue_free(p->queue);
}

static fs_status part_open(fs_part *p, fs_stage *stage, int rank) {
    fs_engine *e = stage->engine;
    const fs_part_at at = { (int)(stage->replica - e->replicas), stage->index, rank };
    const fs_shard_plan shard = fs_plan_shard(&e->plan, at);
    p->stage = stage;
    p->rank = rank;
    p->driver = &e->drivers[stage->plan->devices[rank]];
    fs_device *device = p->driver->device;
    const fs_part_at lender = fs_plan_lender(&e->plan, device->backend, at);
    fs_part_bytes bytes;
    p->weights = &e->replicas[lender.replica].stages[lender.stage].parts[lender.rank].shard;
    FS_TRY(fs_part_bytes_read(&bytes, &e->set, &shard, fs_stage_slabs(stage->plan), &e->capacity, device));
    FS_TRY(queues_open(p, device));
    if (shard.streamed) FS_TRY(device->backend->alloc(device, FS_WORKSPACE, bytes.scratch, &p->scratch_memory));
    for (int s = 0; s < fs_stage_slots(&e->set, stage->plan, &e->capacity); s++)
        FS_TRY(space_open(&p->spaces[s], stage, device, &bytes));
    return FS_OK;
}

static void part_close(fs_part *p) {
    if (!p->driver) return;
    fs_device *d = p->driver->device;
    fs_stream_close(p->stream);
    queues_close(p, d);
    d->backend->release(d, &p->scratch_memory);
    for (int s = 0; s < FS_MAX_SLOTS; s++) space_close(&p->spaces[s], d);
    fs_shard_release(&p->shard);
}

static fs_status stage_open(fs_stage *s, fs_engine *e, fs_replica *replica, int index, double deadline_seconds) {
    fs_device *ranks[FS_MAX_GROUP];
    s->engine = e;
    s->replica = replica;
    s->plan = &replica->plan->stages[index];
    s->index = index;
    s->last = index == replica->plan->stage_count - 1;
    STAILQ_INIT(&s->waiting);
    for (int i = 0; i < fs_stage_slots(&e->set, s->plan, &e->capacity); i++) {
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

fs_status fs_replica_open(fs_engine *e, int index, double deadline_seconds) {
    fs_replica *r = &e->replicas[index];
    r->plan = &e->plan.replicas[index];
    int stages = r->plan->stage_count, batches = 0; /* each holds a slot at least */
    for (int i = 0; i < stages; i++) {
        batches += fs_stage_slots(&e->set, &r->plan->stages[i], &e->capacity);
        r->streams |= fs_stage_slabs(&r->plan->stages[i]) > 0;
    }
    STAILQ_INIT(&r->free);
    FS_TRY(fs_alloc(&r->stages, (size_t)stages, sizeof *r->stages));
    r->stage_count = stages;
    for (int i = 0; i < stages; i++) FS_TRY(stage_open(&r->stages[i], e, r, i, deadline_seconds));
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

static fs_status part_load(fs_part *p, const fs_checkpoint *c, int readers) {
    const fs_engine *e = p->stage->engine;
    const fs_part_at at = { (int)(p->stage->replica - e->replicas), p->stage->index, p->rank };
    const fs_shard_plan shard = fs_plan_shard(&e->plan, at);
    fs_device *d = p->driver->device;
    if (p->weights == &p->shard) FS_TRY(fs_shard_load(&p->shard, c, &e->set, &shard, d, readers));
    if (shard.streamed)
        FS_TRY(fs_stream_open(&p->stream, c, &e->set, &shard, d, fs_stage_slabs(p->stage->plan), readers));
    return fs_part_prepare(p);
}

fs_status fs_driver_load(fs_driver *d) {
    fs_engine *e = d->engine;
    int readers = readers_of(d);
    for (int i = 0; i < e->replica_count; i++)
        for (int k = 0; k < e->replicas[i].stage_count; k++) {
            fs_stage *stage = &e->replicas[i].stages[k];
            for (int r = 0; r < stage->plan->ranks; r++)
                if (stage->parts[r].driver == d) FS_TRY(part_load(&stage->parts[r], d->loading, readers));
        }
    return FS_OK;
}
