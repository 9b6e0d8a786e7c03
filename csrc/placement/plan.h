/* plan.h - which layers sit on which device, and what a batch will take there. Pure but for the measure backend.
 *
 * One device and hand-written stages for now; balancing, budgets over several devices and parallel= build on it.
 *
 *   replica = stage 0 -> stage 1 -> ...         a stage = layers [first, last) on a tensor group of 1 ... n devices */
#ifndef FS_PLACEMENT_PLAN_H
#define FS_PLACEMENT_PLAN_H

#include "models/load.h"

#define FS_MAX_GROUP 8

typedef struct {
    int first_layer, last_layer; /* [first, last) */
    int ranks, devices[FS_MAX_GROUP]; /* indices into the engine's devices; a device may hold several stages */
    int window; /* layers there is memory for; the others are streamed through the last of it. 0: all */
} fs_stage_plan;

typedef struct {
    int stage_count;
    fs_stage_plan *stages; /* owned */
} fs_plan;

/* All layers on device 0. */
fs_status fs_plan_single(fs_plan *out, const fs_settings *set);
/* Checks and copies hand-written stages: they must cover all layers in order, name existing devices and be cuttable. */
fs_status fs_plan_from_stages(fs_plan *out, const fs_settings *set, const fs_stage_plan *stages, int count,
                              int device_count);
void fs_plan_free(fs_plan *p); /* a zeroed one is fine */

/* What one slot of one shard needs for a batch of at most T tokens in B rows, from a dry run on the measure backend.
 * The task counts where the shard holds the last layer (else it may be NULL). */
typedef struct {
    size_t kept, scratch; /* arena bytes: until the step ends; within a layer */
    int64_t multiply_adds, moved_bytes;
} fs_step_cost;
fs_status fs_plan_step_cost(fs_step_cost *out, const fs_settings *set, const fs_shard_plan *shard, const fs_task *task,
                            int64_t T, int64_t B, int64_t longest);
/* The ops of one batch of rows with these lengths, a line each (golden traces). Released with fs_free. */
fs_status fs_plan_trace(char **out, const fs_settings *set, const fs_task *task, const int64_t *lengths, int64_t B);

#endif
