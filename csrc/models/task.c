/* task.c - from the last layer's hidden states to what the caller asked for. */
#include "models/arch.h"

static int64_t pooled_width(const fs_task *task, const fs_settings *set) { return task->pooling_count * set->D; }

static const fs_tail_step *last_of(const fs_tail *tail) { return &tail->steps[tail->count - 1]; }

/* Of a vector as pooling and the chain behind it make it. */
static int64_t vector_width(const fs_task *task, const fs_settings *set) {
    return set->chain.count ? last_of(&set->chain)->N : pooled_width(task, set);
}

static fs_status check_poolings(const fs_task *task, const fs_settings *set) {
    static const char *const names[] = {
#define X(id, name, meaning) name,
        FS_POOLINGS(X)
#undef X
    };
    int seen[FS_POOL_COUNT] = { 0 };
    if (task->pooling_count < 1 || task->pooling_count > FS_POOL_COUNT)
        return fs_fail(FS_REQUEST, "embed takes 1 to %d poolings, not %d", FS_POOL_COUNT, task->pooling_count);
    for (int i = 0; i < task->pooling_count; i++) {
        unsigned kind = task->pooling[i];
        if (kind >= FS_POOL_COUNT)
            return fs_fail(FS_REQUEST, "pooling %u is not known; there are %d of them", kind, FS_POOL_COUNT);
        if (seen[kind]++) return fs_fail(FS_REQUEST, "pooling %s is named twice; name each once", names[kind]);
    }
    if (set->chain.count && set->chain.steps[0].K != pooled_width(task, set))
        return fs_fail(FS_REQUEST,
                       "pooling makes vectors of %lld, and the folder's module behind it takes %lld; use "
                       "pooling=\"auto\"",
                       (long long)pooled_width(task, set), (long long)set->chain.steps[0].K);
    return FS_OK;
}

static fs_status check_bare(const fs_task *task, const char *what, const char *instead) {
    if (!task->pooling_count && !task->normalize && !task->dimensions) return FS_OK;
    return fs_fail(FS_REQUEST, "%s are neither pooled nor normalised nor cut; %s", what, instead);
}

fs_status fs_task_check(const fs_task *task, const fs_settings *set) {
    if (task->kind == FS_TASK_HIDDEN_STATES) return check_bare(task, "hidden states", "ask for embed instead");
    if (task->kind == FS_TASK_CLASSIFY && !set->head.count)
        return fs_fail(FS_REQUEST,
                       "the model has no classifier: its config.json names no ...ForSequenceClassification, or the "
                       "files lack its weights; embed makes vectors of its rows");
    if (task->kind == FS_TASK_CLASSIFY) return check_bare(task, "labels", "leave those options out");
    if (task->kind != FS_TASK_EMBED)
        return fs_fail(FS_REQUEST, "task %d is not known; there are embed, classify and hidden_states",
                       (int)task->kind);
    if (set->targets != FS_NOTHING)
        return fs_fail(FS_REQUEST, "embed takes models without a decoder; ask this one for hidden_states");
    FS_TRY(check_poolings(task, set));
    if (task->normalize != 0 && task->normalize != 1)
        return fs_fail(FS_REQUEST, "normalize = %d; it is 0 or 1", task->normalize);
    if (task->dimensions < 0 || task->dimensions > vector_width(task, set))
        return fs_fail(FS_REQUEST, "dimensions = %lld; the model's vectors have %lld (0 or None keeps all)",
                       (long long)task->dimensions, (long long)vector_width(task, set));
    return FS_OK;
}

int64_t fs_task_width(const fs_task *task, const fs_settings *set) {
    if (task->kind == FS_TASK_HIDDEN_STATES) return set->D;
    if (task->kind == FS_TASK_CLASSIFY) return set->head.count ? last_of(&set->head)->N : 0;
    return task->dimensions ? task->dimensions : vector_width(task, set);
}

int fs_task_largest(fs_task out[FS_TASKS_MOST], const fs_settings *set) {
    int count = 0;
    fs_task embed = { .kind = FS_TASK_EMBED, .pooling_count = FS_POOL_COUNT, .normalize = 1 };
    if (set->chain.count) embed.pooling_count = (int)(set->chain.steps[0].K / set->D);
    if (embed.pooling_count < 1 || embed.pooling_count > FS_POOL_COUNT) embed.pooling_count = 1;
    for (int i = 0; i < embed.pooling_count; i++) embed.pooling[i] = (fs_pooling)i;
    out[count++] = embed;
    if (set->head.count) out[count++] = (fs_task){ .kind = FS_TASK_CLASSIFY };
    return count;
}

/* Poolings stand side by side; of the last ones only the `width` columns that are wanted are computed. */
static fs_status pool(fs_step *s, const fs_settings *set, const fs_task *task, fs_view x, int64_t width, fs_view *out) {
    FS_TRY(fs_scratch(s, FS_F32, s->rows->B, width, out));
    for (int64_t i = 0; i * set->D < width; i++) {
        int64_t first = i * set->D, cols = width - first < set->D ? width - first : set->D;
        FS_TRY(s->ops->pool(s, fs_view_cols(*out, first, cols), fs_view_cols(x, 0, cols), task->pooling[i]));
    }
    return FS_OK;
}

static fs_status embed(fs_step *s, const fs_settings *set, const void *ends, const fs_task *task, fs_view x,
                       fs_view *out) {
    const int64_t width = fs_task_width(task, set);
    FS_TRY(pool(s, set, task, x, set->chain.count ? pooled_width(task, set) : width, out));
    FS_TRY(fs_tail_run(s, &set->chain, fs_chain_weights(set, ends), *out, out));
    *out = fs_view_cols(*out, 0, width);
    return task->normalize ? s->ops->l2_normalize(s, *out) : FS_OK;
}

fs_status fs_task_finish(fs_step *s, const fs_settings *set, const void *ends, const fs_task *task,
                         const fs_carry *carry, fs_view *out) {
    const fs_task first = { .pooling_count = 1, .pooling = { FS_POOL_CLS } };
    *out = carry->x;
    if (task->kind == FS_TASK_HIDDEN_STATES) return FS_OK;
    if (task->kind == FS_TASK_EMBED) return embed(s, set, ends, task, carry->x, out);
    FS_TRY(pool(s, set, &first, carry->x, set->D, out));
    return fs_tail_run(s, &set->head, fs_head_weights(set, ends), *out, out);
}
