/* need.c - the bytes a plan takes on each device, known before anything is loaded: the engine allocates by these very
 * figures, plan() prints them. */
#include "base/knobs.h"
#include "placement/plan.h"

#define MB(bytes) ((double)(bytes) / 1e6)

enum { DEVICE_SLOTS = 2, SPLIT_SLOTS = 4 };

fs_status fs_capacity_read(fs_capacity *out, const fs_settings *set) {
    int64_t tokens, slots, pass;
    FS_TRY(fs_knob_int(FS_KNOB_BATCH_TOKENS, 1, 1 << 20, &tokens));
    FS_TRY(fs_knob_int(FS_KNOB_SLOTS, 0, FS_MAX_SLOTS, &slots));
    FS_TRY(fs_knob_int(FS_KNOB_PASS_TOKENS, 1, 1 << 24, &pass));
    const int64_t split = slots ? slots : SPLIT_SLOTS;
    slots = slots ? slots : DEVICE_SLOTS;
    pass = (pass + tokens - 1) / tokens < FS_MAX_SLOTS ? (pass + tokens - 1) / tokens : FS_MAX_SLOTS;
    *out = (fs_capacity){ .batch_tokens = tokens,
                          .tokens = set->any_length || tokens > set->P ? tokens : set->P,
                          .rows = tokens < FS_BATCH_ROWS ? tokens : FS_BATCH_ROWS,
                          .slots = (int)slots,
                          .split_slots = (int)split,
                          .pass_slots = (int)(pass > slots ? pass : slots) };
    return FS_OK;
}

int fs_stage_slabs(const fs_stage_plan *s) {
    if (s->window == 0 || s->window >= s->last_layer - s->first_layer) return 0;
    return s->window > 1 ? 2 : 1;
}

static int slots_of(const fs_settings *set, const fs_capacity *c, int first_layer, int last_layer, int streams) {
    if (streams) return c->pass_slots;
    return first_layer == 0 && last_layer == set->L ? c->slots : c->split_slots;
}

int fs_stage_slots(const fs_settings *set, const fs_stage_plan *s, const fs_capacity *c) {
    return slots_of(set, c, s->first_layer, s->last_layer, fs_stage_slabs(s) > 0);
}

fs_rows fs_plan_rows(const fs_settings *set, const fs_capacity *c) {
    return (
        fs_rows){ .T = c->tokens, .B = c->rows, .longest = set->any_length || set->P > c->tokens ? c->tokens : set->P };
}

fs_shard_plan fs_plan_shard(const fs_plan *p, fs_part_at at) {
    const fs_replica_plan *replica = &p->replicas[at.replica];
    const fs_stage_plan *stage = &replica->stages[at.stage];
    int slabs = fs_stage_slabs(stage);
    return (fs_shard_plan){ .first_layer = stage->first_layer,
                            .last_layer = stage->last_layer,
                            .rank = at.rank,
                            .ranks = stage->ranks,
                            .streamed = slabs ? stage->last_layer - stage->first_layer - (stage->window - slabs) : 0 };
}

static int equal(const fs_shard_plan *a, const fs_shard_plan *b) {
    return a->first_layer == b->first_layer && a->last_layer == b->last_layer && a->rank == b->rank &&
           a->ranks == b->ranks && a->streamed == b->streamed;
}

fs_part_at fs_plan_lender(const fs_plan *p, const fs_backend *b, fs_part_at at) {
    const fs_shard_plan wanted = fs_plan_shard(p, at);
    int device = p->replicas[at.replica].stages[at.stage].devices[at.rank];
    for (fs_part_at other = { .rank = at.rank }; other.replica < at.replica; other.replica++) {
        const fs_replica_plan *replica = &p->replicas[other.replica];
        for (other.stage = 0; other.stage < replica->stage_count; other.stage++) {
            const fs_stage_plan *stage = &replica->stages[other.stage];
            if (stage->ranks <= at.rank || (!b->one_memory && stage->devices[at.rank] != device)) continue;
            const fs_shard_plan shard = fs_plan_shard(p, other);
            if (equal(&shard, &wanted)) return other;
        }
    }
    return at;
}

/* The largest result: of a full batch's rows, or the hidden states of all its tokens. */
static size_t out_bytes(const fs_settings *set, const fs_shard_plan *shard, const fs_capacity *c) {
    fs_task tasks[FS_TASKS_MOST];
    const int count = fs_task_largest(tasks, set);
    int64_t most = c->tokens * set->D;
    if (shard->last_layer != set->L || shard->rank != 0) return 0;
    for (int i = 0; i < count; i++) {
        const int64_t floats = c->rows * fs_task_width(&tasks[i], set);
        if (floats > most) most = floats;
    }
    return (size_t)most * sizeof(float);
}

size_t fs_block_side_ints(const fs_capacity *c) { return fs_block_ints(c->rows + 1) + 3 * fs_block_ints(c->tokens); }

size_t fs_block_feature_ints(const fs_settings *set, const fs_capacity *c, int first_layer, fs_input input) {
    return first_layer == 0 && input == FS_FEATURES ? fs_block_ints(c->tokens * set->D) : 0;
}

static size_t block_bytes(const fs_settings *set, const fs_capacity *c, int first_layer) {
    size_t sides = set->targets == FS_NOTHING ? 1 : 2;
    return sizeof(int32_t) * (sides * fs_block_side_ints(c) + fs_block_feature_ints(set, c, first_layer, set->rows) +
                              fs_block_feature_ints(set, c, first_layer, set->targets));
}

/* Dry runs at the largest batch. */
static fs_status step_cost(fs_step_cost *out, const fs_settings *set, const fs_shard_plan *shard,
                           const fs_capacity *c) {
    fs_task tasks[FS_TASKS_MOST];
    const int listed = fs_task_largest(tasks, set), count = shard->last_layer == set->L ? listed : 1;
    const fs_rows rows = fs_plan_rows(set, c); /* tasks differ behind the layers only */
    *out = (fs_step_cost){ 0 };
    for (int i = 0; i < count; i++) {
        fs_step_cost cost;
        FS_TRY(fs_plan_step_cost(&cost, set, shard, &tasks[i], rows.T, rows.B, rows.longest));
        if (cost.kept > out->kept) out->kept = cost.kept;
        if (cost.scratch > out->scratch) out->scratch = cost.scratch;
        if (cost.multiply_adds > out->multiply_adds) out->multiply_adds = cost.multiply_adds;
        if (cost.moved_bytes > out->moved_bytes) out->moved_bytes = cost.moved_bytes;
    }
    return FS_OK;
}

static fs_part_bytes bytes_of(const fs_settings *set, const fs_shard_plan *shard, const fs_capacity *c, fs_device *d,
                              const fs_step_cost *cost) {
    return (fs_part_bytes){ .weights = fs_shard_bytes(set, shard, d),
                            .scratch = shard->streamed ? cost->scratch : 0,
                            .arena = shard->streamed ? cost->kept : cost->kept + cost->scratch,
                            .block = block_bytes(set, c, shard->first_layer),
                            .out = out_bytes(set, shard, c),
                            .slots = slots_of(set, c, shard->first_layer, shard->last_layer, shard->streamed > 0) };
}

fs_status fs_part_bytes_read(fs_part_bytes *out, const fs_settings *set, const fs_shard_plan *shard, int slabs,
                             const fs_capacity *c, fs_device *d) {
    fs_step_cost cost;
    FS_TRY(step_cost(&cost, set, shard, c));
    *out = bytes_of(set, shard, c, d, &cost);
    out->slabs = (size_t)slabs * fs_shard_slab_bytes(set, shard, d);
    return FS_OK;
}

size_t fs_part_total(const fs_part_bytes *b) {
    return b->weights + b->slabs + b->scratch + (size_t)b->slots * (b->arena + 2 * b->block + b->out);
}

static void add_part(fs_need *n, const fs_part_bytes *b, int lent) {
    size_t slots = (size_t)b->slots;
    n->weights += (lent ? 0 : b->weights) + b->slabs;
    n->workspace += slots * (b->arena + b->block) + b->scratch;
    n->staging += slots * (b->block + b->out);
}

fs_status fs_plan_needs(fs_need *out, const fs_plan *p, const fs_settings *set, const fs_capacity *c,
                        fs_device *const devices[], int n) {
    fs_part_bytes bytes = { 0 };
    fs_shard_plan last = { 0 };
    int most = 0, last_slabs = 0;
    for (int d = 0; d < n; d++)
        out[d] = (fs_need){ .weights = fs_budget_used(&devices[d]->budget, FS_WEIGHTS),
                            .workspace = fs_budget_used(&devices[d]->budget, FS_WORKSPACE),
                            .staging = fs_budget_used(&devices[d]->budget, FS_STAGING) };
    for (int r = 0; r < p->replica_count; r++)
        if (p->replicas[r].stage_count > most) most = p->replicas[r].stage_count;
    /* Replicas innermost: most are alike, and a shard that was just measured is not measured again. */
    fs_part_at at;
    for (at.stage = 0; at.stage < most; at.stage++)
        for (at.rank = 0; at.rank < FS_MAX_GROUP; at.rank++)
            for (at.replica = 0; at.replica < p->replica_count; at.replica++) {
                const fs_replica_plan *replica = &p->replicas[at.replica];
                if (at.stage >= replica->stage_count || at.rank >= replica->stages[at.stage].ranks) continue;
                int d = replica->stages[at.stage].devices[at.rank];
                const fs_shard_plan shard = fs_plan_shard(p, at);
                int slabs = fs_stage_slabs(&replica->stages[at.stage]);
                if (!equal(&shard, &last) || slabs != last_slabs)
                    FS_TRY(fs_part_bytes_read(&bytes, set, &shard, slabs, c, devices[d]));
                last = shard, last_slabs = slabs;
                const fs_part_at lender = fs_plan_lender(p, devices[d]->backend, at);
                add_part(&out[d], &bytes, lender.replica != at.replica);
            }
    return FS_OK;
}

fs_status fs_plan_fits(const fs_need *needs, const fs_capacity *c, fs_device *const devices[], int n) {
    for (int d = 0; d < n; d++) {
        const fs_need *need = &needs[d];
        size_t limit = devices[d]->budget.limit, all = need->weights + need->workspace + need->staging;
        if (limit == 0 || all <= limit) continue;
        return fs_fail(FS_NO_MEMORY,
                       "%s: the model takes %.1f MB (weights %.1f, workspace %.1f, staging %.1f) of a budget of %.1f "
                       "MB, %.1f MB are missing; raise max_memory or the container's limit, or lower "
                       "FIRESTEEL_BATCH_TOKENS (now %lld)%s",
                       devices[d]->name, MB(all), MB(need->weights), MB(need->workspace), MB(need->staging), MB(limit),
                       MB(all - limit), (long long)c->batch_tokens, devices[d]->budget.note);
    }
    return FS_OK;
}

/* What a machine computes while it moves a byte, roughly: multiply-adds in fp32 of a Zen 3 or Ice Lake core for a byte
 * of its share of the memory. */
#define ADDS_A_BYTE 8.0

fs_status fs_layer_loads(fs_layer_load *out, const fs_settings *set, const fs_capacity *c, int ranks, fs_device *d) {
    for (int i = 0; i < set->L; i++) {
        const fs_shard_plan one = { .first_layer = i, .last_layer = i + 1, .ranks = ranks };
        fs_step_cost cost;
        FS_TRY(step_cost(&cost, set, &one, c));
        const fs_part_bytes bytes = bytes_of(set, &one, c, d, &cost);
        out[i] = (fs_layer_load){ .cost = (double)cost.multiply_adds + ADDS_A_BYTE * (double)cost.moved_bytes,
                                  .fixed = bytes.weights + (size_t)bytes.slots * bytes.out,
                                  .space = (size_t)bytes.slots * (bytes.arena + 2 * bytes.block) };
    }
    return FS_OK;
}
