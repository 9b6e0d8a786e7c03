#include "placement/plan.h"

#include "base/alloc.h"

#include <string.h>

fs_status fs_plan_single(fs_plan *out, const fs_settings *set) {
    const fs_stage_plan all = { .last_layer = (int)set->L, .ranks = 1 };
    return fs_plan_from_stages(out, set, &all, 1, 1);
}

static fs_status check_stage(const fs_settings *set, const fs_stage_plan *s, int index, int first, int device_count) {
    if (s->first_layer != first || s->last_layer <= s->first_layer || s->last_layer > set->L)
        return fs_fail(
            FS_CONFIG,
            "stage %d holds layers %d to %d; stages follow one another from layer %d on and hold 1 or more of "
            "the model's %lld",
            index, s->first_layer, s->last_layer, first, (long long)set->L);
    if (s->ranks < 1 || s->ranks > FS_MAX_GROUP)
        return fs_fail(FS_CONFIG, "stage %d is a group of %d devices; a group has 1 to %d", index, s->ranks,
                       FS_MAX_GROUP);
    FS_TRY(fs_shard_check(set, s->ranks));
    if (s->window < 0)
        return fs_fail(FS_CONFIG, "stage %d holds %d layers at a time; it holds 1 or more, or 0 for all", index,
                       s->window);
    if (s->window > 0 && s->ranks > 1)
        return fs_fail(FS_CONFIG,
                       "stage %d is a group of %d devices that would stream its layers; a group holds all of them, so "
                       "split the layers over devices (split=%d), or stream on one",
                       index, s->ranks, s->ranks);
    for (int r = 0; r < s->ranks; r++) {
        if (s->devices[r] < 0 || s->devices[r] >= device_count)
            return fs_fail(FS_CONFIG, "stage %d names device %d of %d", index, s->devices[r], device_count);
        for (int other = 0; other < r; other++)
            if (s->devices[other] == s->devices[r])
                return fs_fail(FS_CONFIG, "stage %d names device %d twice; ranks of a group need a device each", index,
                               s->devices[r]);
    }
    return FS_OK;
}

/* Every row must get the same bits from every replica. */
static fs_status check_degree(const fs_stage_plan *stages, int count, int index, int replica) {
    const fs_stage_plan *s = &stages[index];
    for (int i = 0; i < count && stages[i].last_layer > stages[i].first_layer; i++) {
        const fs_stage_plan *first = &stages[i];
        int meet = first->first_layer < s->last_layer && s->first_layer < first->last_layer;
        if (meet && first->ranks != s->ranks)
            return fs_fail(FS_CONFIG,
                           "stage %d, of replica %d, shares layer %d between %d devices and replica 0 between %d; the "
                           "degree is part of a row's bits, so replicas share each layer alike",
                           index, replica, s->first_layer > first->first_layer ? s->first_layer : first->first_layer,
                           s->ranks, first->ranks);
    }
    return FS_OK;
}

fs_status fs_plan_from_stages(fs_plan *out, const fs_settings *set, const fs_stage_plan *stages, int count,
                              int device_count) {
    fs_status st = FS_OK;
    int next = 0, replicas = 0, first_count = count;
    *out = (fs_plan){ 0 };
    for (int i = 0; i < count; i++) {
        FS_TRY(check_stage(set, &stages[i], i, next, device_count));
        if (replicas > 0) FS_TRY(check_degree(stages, first_count, i, replicas));
        next = stages[i].last_layer;
        if (next < set->L) continue;
        if (replicas++ == 0) first_count = i + 1;
        if (i + 1 < count) next = 0;
    }
    if (next != set->L)
        return fs_fail(FS_CONFIG, "the stages hold layers 0 to %d where the model has %lld", next, (long long)set->L);
    FS_GO(fs_alloc(&out->stages, (size_t)count, sizeof *out->stages));
    FS_GO(fs_alloc(&out->replicas, (size_t)replicas, sizeof *out->replicas));
    memcpy(out->stages, stages, (size_t)count * sizeof *out->stages);
    out->stage_count = count;
    for (int i = 0; i < count; i++) {
        if (stages[i].first_layer == 0)
            out->replicas[out->replica_count++] = (fs_replica_plan){ .stages = &out->stages[i] };
        out->replicas[out->replica_count - 1].stage_count++;
    }
done:
    if (st != FS_OK) fs_plan_free(out);
    return st;
}

void fs_plan_free(fs_plan *p) {
    fs_free(p->replicas);
    fs_free(p->stages);
    *p = (fs_plan){ 0 };
}

/* A dry run: one device of the measure backend with the shard's weights as shapes, and addresses that nobody reads. */
typedef struct {
    fs_device *device;
    fs_queue *queue;
    fs_comm *comm;
    fs_shard shard;
    fs_arena arena, kept;
    fs_ops ops;
} dry;

/* Any address but NULL: the measure backend counts and never looks. */
#define NOWHERE ((void *)(uintptr_t)4096)

static fs_status dry_open(dry *d, const fs_settings *set, const fs_shard_plan *shard) {
    const fs_backend *b = &fs_measure_backend;
    const fs_device_options options = { 0 };
    FS_TRY(b->open(&d->device, &options));
    FS_TRY(b->queue_new(d->device, &d->queue));
    if (shard->ranks > 1) {
        fs_device *ranks[FS_MAX_GROUP];
        for (int i = 0; i < shard->ranks; i++) ranks[i] = d->device;
        FS_TRY(b->comm_open(&d->comm, ranks, shard->ranks, 1));
    }
    fs_shard_plan whole = *shard;
    whole.streamed = 0;
    FS_TRY(fs_shard_shape(&d->shard, set, &whole, d->device));
    d->arena = d->kept = fs_arena_over(NOWHERE, SIZE_MAX / 4);
    d->ops = fs_ops_complete(b->ops);
    return FS_OK;
}

static void dry_close(dry *d) {
    const fs_backend *b = &fs_measure_backend;
    fs_shard_release(&d->shard);
    b->comm_close(d->comm);
    b->queue_free(d->queue);
    b->close(d->device);
}

static fs_rows dry_rows(int64_t T, int64_t B, int64_t longest) {
    return (fs_rows){ NOWHERE, NOWHERE, NOWHERE, T, B, longest, NOWHERE, NULL };
}

/* A stage's part of a step, as a driver thread enqueues it. */
static fs_status dry_run(dry *d, const fs_settings *set, const fs_task *task, const fs_rows *rows,
                         const fs_rows *targets) {
    const fs_shard_plan *plan = &d->shard.plan;
    fs_step s = { .device = d->device,
                  .queue = d->queue,
                  .ops = &d->ops,
                  .arena = &d->arena,
                  .kept = &d->kept,
                  .rows = rows,
                  .comm = d->comm,
                  .rank = plan->rank,
                  .ranks = plan->ranks,
                  .targets = set->targets == FS_NOTHING ? NULL : targets };
    fs_carry carry = { 0 };
    fs_view out;
    if (plan->first_layer > 0) FS_TRY(fs_carry_push(&s, set, plan->first_layer, &carry));
    FS_TRY(fs_forward(&s, set, &d->shard, &carry));
    return plan->last_layer == set->L ? fs_task_finish(&s, set, d->shard.ends, task, &carry, &out) : FS_OK;
}

fs_status fs_plan_step_cost(fs_step_cost *out, const fs_settings *set, const fs_shard_plan *shard, const fs_task *task,
                            int64_t T, int64_t B, int64_t longest) {
    fs_status st = FS_OK;
    dry d = { 0 };
    FS_GO(dry_open(&d, set, shard));
    const fs_rows rows = dry_rows(T, B, longest);
    FS_GO(dry_run(&d, set, task, &rows, &rows));
    const fs_measured m = fs_measure_read(d.device);
    *out = (fs_step_cost){ d.kept.peak, d.arena.peak, m.multiply_adds, m.read_bytes + m.written_bytes };
done:
    dry_close(&d);
    return st;
}

static fs_rows rows_of(const int64_t *lengths, int64_t B) {
    int64_t T = 0, longest = 0;
    for (int64_t i = 0; i < B; i++) {
        T += lengths[i];
        if (lengths[i] > longest) longest = lengths[i];
    }
    return dry_rows(T, B, longest);
}

fs_status fs_plan_trace(char **out, const fs_settings *set, const fs_task *task, const int64_t *lengths,
                        const int64_t *target_lengths, int64_t B) {
    fs_status st = FS_OK;
    dry d = { 0 };
    const fs_shard_plan all = { .last_layer = (int)set->L, .ranks = 1 };
    const fs_rows rows = rows_of(lengths, B), targets = rows_of(target_lengths, B);
    *out = NULL;
    FS_GO(dry_open(&d, set, &all));
    FS_GO(dry_run(&d, set, task, &rows, &targets));
    FS_GO(fs_strdup(out, fs_measure_trace(d.device)));
done:
    dry_close(&d);
    return st;
}
