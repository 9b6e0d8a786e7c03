/* plan.h - which layers sit on which device, and what they take there. Pure but for the measure backend: devices are
 * asked for their names, limits and how they pack weights, which an outline of one (fs_device_options) knows as well.
 *
 *   plan = replica, replica, ...     replica = stage 0 -> stage 1 -> ...     stage = layers [first, last) on a group of
 *                                                                            1 ... n devices, a part on each
 *
 *   plan.c     plans by hand, and dry runs           need.c     bytes of a part, and of all parts of a device
 *   balance.c  layers -> stages                      choose.c   parallel= and devices -> plan, or what is missing */
#ifndef FS_PLACEMENT_PLAN_H
#define FS_PLACEMENT_PLAN_H

#include "models/forward.h"
#include "placement/parallel.h"

#define FS_MAX_GROUP  8
#define FS_MAX_SLOTS  8
#define FS_BATCH_ROWS 512 /* rows a batch holds at most */

typedef struct {
    int first_layer, last_layer; /* [first, last) */
    int ranks, devices[FS_MAX_GROUP]; /* indices into the engine's devices; a device may hold several stages */
    int window; /* layers there is memory for; the others are streamed through the last of it. 0: all */
} fs_stage_plan;

typedef struct {
    int stage_count;
    const fs_stage_plan *stages; /* inside the plan's */
} fs_replica_plan;

typedef struct {
    int replica_count, stage_count;
    fs_replica_plan *replicas; /* owned */
    fs_stage_plan *stages;     /* owned; of all replicas, one after the other */
} fs_plan;

/* All layers on device 0. */
fs_status fs_plan_single(fs_plan *out, const fs_settings *set);
/* Checks and copies hand-written stages: they must cover all layers in order, name existing devices and be cuttable.
 * When all layers are there, the next stage begins another replica, which shares each layer between as many ranks. */
fs_status fs_plan_from_stages(fs_plan *out, const fs_settings *set, const fs_stage_plan *stages, int count,
                              int device_count);
void fs_plan_free(fs_plan *p); /* a zeroed one is fine */

/* What a stage has in flight. */
typedef struct {
    int64_t batch_tokens; /* of a batch at most; a longer row is a batch of its own */
    int64_t tokens, rows; /* a slot has room for: batch_tokens, or the longest row the model takes */
    int slots;            /* batches in flight */
    int split_slots;      /* the same where stages follow one another: one stage's slow batch is another's store */
    int pass_slots;       /* the same where layers are streamed: what they go over before the next layer comes */
} fs_capacity;
/* From the knobs. */
fs_status fs_capacity_read(fs_capacity *out, const fs_settings *set);

/* Slabs that a stage streams layers through: two where its window has room for a second beside those that are held;
 * 0: it streams none. */
int fs_stage_slabs(const fs_stage_plan *s);
int fs_stage_slots(const fs_settings *set, const fs_stage_plan *s, const fs_capacity *c);
/* The bounds of the rows of the step that takes most memory. */
fs_rows fs_plan_rows(const fs_settings *set, const fs_capacity *c);

/* A part by its place. */
typedef struct {
    int replica, stage, rank;
} fs_part_at;

fs_shard_plan fs_plan_shard(const fs_plan *p, fs_part_at at);
/* The part that loads what this one computes with: the first with an equal shard on the same device, or, where all
 * devices of the backend see one memory, on any. Often the part itself. */
fs_part_at fs_plan_lender(const fs_plan *p, const fs_backend *b, fs_part_at at);

/* What differs from batch to batch is one block a slot, of numbers of 4 bytes: for each of its sides, rows and targets,
 * offsets, ids and positions; then the features of the sides, in stages that begin with them. All begin at a multiple of
 * 16 numbers. */
static inline size_t fs_block_ints(int64_t n) { return ((size_t)n + 15) & ~(size_t)15; }
size_t fs_block_side_ints(const fs_capacity *c);
size_t fs_block_feature_ints(const fs_settings *set, const fs_capacity *c, int first_layer, fs_input input);

/* Bytes of a part. Of each slot: the arena, the block (device and pinned) and the results (pinned; 0 where none come
 * out). weights: whether it loads them itself or not. Where it streams layers: the slabs, and scratch for all slots. */
typedef struct {
    size_t weights, slabs, scratch, arena, block, out;
    int slots;
} fs_part_bytes;
/* slabs: of the stage. */
fs_status fs_part_bytes_read(fs_part_bytes *out, const fs_settings *set, const fs_shard_plan *shard, int slabs,
                             const fs_capacity *c, fs_device *d);

/* All of it, where nobody lends the weights. */
size_t fs_part_total(const fs_part_bytes *b);

typedef struct {
    size_t weights, workspace, staging;
} fs_need;
/* What each device holds once the plan is loaded, what it holds already included. out: [n]. */
fs_status fs_plan_needs(fs_need *out, const fs_plan *p, const fs_settings *set, const fs_capacity *c,
                        fs_device *const devices[], int n);
/* FS_NO_MEMORY with what the first device lacks that has no room for its part. */
fs_status fs_plan_fits(const fs_need *needs, const fs_capacity *c, fs_device *const devices[], int n);

/* A layer as balancing sees it; what comes before the first and behind the last layer counts as theirs. */
typedef struct {
    double cost;  /* of a full batch, in multiply-adds */
    size_t fixed; /* bytes that add up over the layers of a stage: weights, results */
    size_t space; /* bytes that the layers of a stage use in turn */
} fs_layer_load;
/* out: [L], for rank 0 of a group of `ranks`. */
fs_status fs_layer_loads(fs_layer_load *out, const fs_settings *set, const fs_capacity *c, int ranks, fs_device *d);
/* Cuts n layers into `count` stages of at least one, whose costliest costs as little as can be while stage s takes no
 * more than rooms[s] bytes (NULL: no limit): stage s is [cuts[s], cuts[s + 1]). *found = 0 where no cut fits. Pure. */
fs_status fs_balance(int *cuts, int *found, const fs_layer_load *layers, int n, const size_t *rooms, int count);

/* What was chosen, and one sentence why; where it does not fit, what is missing where, and what would fit. */
typedef struct {
    fs_parallel parallel;
    int fits;
    char why[900];
} fs_choice;
/* FS_CONFIG when the model has fewer layers than there are stages, or cannot be shared by so many ranks. */
fs_status fs_plan_check(const fs_parallel *p, const fs_settings *set);
/* FS_CONFIG when the text or its numbers go with neither the devices nor the model. A plan that does not fit is no
 * failure here: *out is then the best there is. devices are of one backend. */
fs_status fs_plan_choose(fs_plan *out, fs_choice *choice, const fs_settings *set, const fs_capacity *c,
                         fs_device *const devices[], int n, const char *parallel);

/* What one slot of one shard needs for a batch of at most T tokens in B rows, from a dry run on the measure backend;
 * where rows have targets, T of those as well, because a batch may hold nearly T of the one or of the other.
 * The task counts where the shard holds the last layer (else it may be NULL). */
typedef struct {
    size_t kept, scratch; /* arena bytes: until the step ends; within a layer */
    int64_t multiply_adds, moved_bytes;
} fs_step_cost;
fs_status fs_plan_step_cost(fs_step_cost *out, const fs_settings *set, const fs_shard_plan *shard, const fs_task *task,
                            int64_t T, int64_t B, int64_t longest);
/* The ops of one batch of rows with these lengths, and their targets', where the model has some; a line each (golden
 * traces). Released with fs_free. */
fs_status fs_plan_trace(char **out, const fs_settings *set, const fs_task *task, const int64_t *lengths,
                        const int64_t *target_lengths, int64_t B);

#endif
