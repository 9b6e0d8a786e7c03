/* task.c - from the last layer's hidden states to what the caller asked for. */
#include "models/arch.h"

static int64_t pooled_width(const fs_task *task, const fs_settings *set) { return task->pooling_count * set->D; }

fs_status fs_task_check(const fs_task *task, const fs_settings *set) {
    static const char *const names[] = {
#define X(id, name, meaning) name,
        FS_POOLINGS(X)
#undef X
    };
    int seen[FS_POOL_COUNT] = { 0 };
    if (task->kind == FS_TASK_HIDDEN_STATES) {
        if (task->pooling_count || task->normalize || task->dimensions)
            return fs_fail(FS_REQUEST,
                           "hidden states are neither pooled nor normalised nor cut; ask for embed instead");
        return FS_OK;
    }
    if (task->kind != FS_TASK_EMBED)
        return fs_fail(FS_REQUEST, "task %d is not known; there are embed and hidden_states", (int)task->kind);
    if (set->targets != FS_NOTHING)
        return fs_fail(FS_REQUEST, "embed takes models without a decoder; ask this one for hidden_states");
    if (task->pooling_count < 1 || task->pooling_count > FS_POOL_COUNT)
        return fs_fail(FS_REQUEST, "embed takes 1 to %d poolings, not %d", FS_POOL_COUNT, task->pooling_count);
    for (int i = 0; i < task->pooling_count; i++) {
        unsigned kind = task->pooling[i];
        if (kind >= FS_POOL_COUNT)
            return fs_fail(FS_REQUEST, "pooling %u is not known; there are %d of them", kind, FS_POOL_COUNT);
        if (seen[kind]++) return fs_fail(FS_REQUEST, "pooling %s is named twice; name each once", names[kind]);
    }
    if (task->normalize != 0 && task->normalize != 1)
        return fs_fail(FS_REQUEST, "normalize = %d; it is 0 or 1", task->normalize);
    if (task->dimensions < 0 || task->dimensions > pooled_width(task, set))
        return fs_fail(FS_REQUEST, "dimensions = %lld; the model's vectors have %lld (0 or None keeps all)",
                       (long long)task->dimensions, (long long)pooled_width(task, set));
    return FS_OK;
}

int64_t fs_task_width(const fs_task *task, const fs_settings *set) {
    if (task->kind == FS_TASK_HIDDEN_STATES) return set->D;
    return task->dimensions ? task->dimensions : pooled_width(task, set);
}

fs_status fs_task_finish(fs_step *s, const fs_settings *set, const fs_task *task, const fs_carry *carry, fs_view *out) {
    if (task->kind == FS_TASK_HIDDEN_STATES) {
        *out = carry->x;
        return FS_OK;
    }
    /* Poolings stand side by side; of the last ones only the columns that are kept are computed. */
    int64_t width = fs_task_width(task, set);
    FS_TRY(fs_scratch(s, FS_F32, s->rows->B, width, out));
    for (int64_t i = 0; i * set->D < width; i++) {
        int64_t first = i * set->D, cols = width - first < set->D ? width - first : set->D;
        FS_TRY(s->ops->pool(s, fs_view_cols(*out, first, cols), fs_view_cols(carry->x, 0, cols), task->pooling[i]));
    }
    return task->normalize ? s->ops->l2_normalize(s, *out) : FS_OK;
}
