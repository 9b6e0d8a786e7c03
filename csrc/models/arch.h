/* arch.h - an architecture: what a model HAS is tables, what it DOES is a short layer() (models/arch/NAME.c).
 *
 * Settings come from config.json through the key table; weights come from the checkpoint through the weight tables, cut
 * as the tables allow; layer() is written as if for one device. To add an architecture: one file in arch/, one line in
 * registry.c, and tests/models/tiny/NAME.json for the test that walks the registry. */
#ifndef FS_MODELS_ARCH_H
#define FS_MODELS_ARCH_H

#include "backends/ops.h"
#include "models/checkpoint.h"

#include <math.h>

typedef struct fs_arch fs_arch;
typedef struct fs_layer_kind fs_layer_kind;

/* The widest head that attention takes on every backend: a tile of its keys and values must fit a thread's scratch. */
#define FS_MAX_HEAD_WIDTH 256
/* Token ids have 24 bits, types of tokens the seven above. */
#define FS_ID_BITS        24
#define FS_MAX_TYPES      128

/* What a row, or its targets, are made of. */
typedef enum { FS_NOTHING, FS_IDS, FS_FEATURES } fs_input;

/* Settings that one architecture alone reads lie in `own`, in a struct of its file (FS_OWN, fs_own). */
#define FS_OWN_BYTES 512

/* The most steps of a head or a chain, and the most table rows outside the layers. */
#define FS_TAIL_MOST 8
#define FS_ENDS_MOST 64

/* A step on vectors [B, K] behind the layers: of a head (FS_TASK_CLASSIFY), or of a chain of modules behind pooling. */
typedef struct {
    enum {
        FS_TAIL_DENSE, /* activation(x . w^T + bias), [B, N] */
        FS_TAIL_NORM,  /* layer norm */
        FS_TAIL_UNIT,  /* divided by its length */
    } kind;
    fs_activation activation;
    float eps;
    int bias; /* a condition of its weight row */
    int64_t N, K;
} fs_tail_step;

typedef struct {
    int count;
    fs_tail_step steps[FS_TAIL_MOST];
} fs_tail;

/* A size in fs_settings, by its offset: what weight tables name dimensions by. */
typedef size_t fs_dim;

/* How a weight may be cut over the ranks of a tensor group. */
typedef enum {
    FS_CUT_NONE,  /* every rank holds all of it */
    FS_CUT_ROWS,  /* rows of [N, K] (with its bias): outputs are cut */
    FS_CUT_COLS,  /* columns: inputs are cut, outputs are partial sums; the bias is whole and added after the sum */
    FS_CUT_HEADS, /* rows, whole heads at a time */
} fs_cut;

/* Where a weight outside the layers must live: with layer 0, with the last layer ahead of a decoder's, with the last
 * layer, with every stage's layers. */
typedef enum { FS_AT_FIRST, FS_AT_BORDER, FS_AT_LAST, FS_AT_EVERY } fs_where;

/* How the tensor of a row lies in the file. */
enum {
    FS_TRANSPOSED = 1, /* [K, N] there */
    FS_ABOVE =
        2, /* where it is not behind the whole prefix, behind a part of it: "classifier.weight" beside "bert.encoder. ..." */
};

/* One tensor of the checkpoint and where it goes. Neighbouring rows with the same slot are parts of one fused weight,
 * stacked along N in the order of the table (after the cut: rank r holds its part of each); those whose `when` does not
 * hold are left out. Rows with the same name are the parts of one tensor, which is stacked in the file already. A tensor
 * may be in rows of several slots: each gets its copy (tied weights). */
typedef struct {
    const char *name; /* "attention.self.query.weight", after the prefix */
    size_t slot; /* offsetof an fs_weight in the layer's or ends' struct */
    fs_weight_kind kind;
    fs_dim N, K; /* of this part; a VECTOR has N = FS_DIM_ONE and is stacked and cut along K */
    fs_cut cut;
    const char *also; /* what other files call the tensor, or NULL */
    int part, parts; /* this is part 0 ... parts - 1 of the tensor, along N; parts 0: all of it */
    size_t when; /* offsetof an int in fs_settings: no such weight where that is 0; 0: there always */
    fs_where at; /* outside the layers */
    int flags;
} fs_weight_row;

/* What any architecture may need of its config; keys fill it by offset. */
typedef struct {
    const fs_arch *arch;
    int64_t L, D, F, V, P; /* layers, width, inner width, vocabulary, the longest row */
    int64_t H, KV,
        E; /* heads, of them with keys and values of their own, head width; KV, E 0 until settled: H, D / H */
    int64_t HE, KE; /* H * E, KV * E */
    int64_t types; /* of tokens; an id's upper byte is its type (engine.h) */
    int64_t first_position; /* the position of a row's first token */
    int64_t skipped_id; /* tokens that take no position: they stand at first_position - 1; -1: none */
    int any_length; /* no positions limit a row: P is what a batch has room for, the engine's to say */
    fs_input rows, targets; /* targets: a decoder's input, one for each row */
    float eps;
    fs_activation activation;
    fs_dtype dtype; /* of the products; all else is fp32 */
    int any_dtype; /* "auto": the devices decide, see fs_settings_choose_dtype */
    char prefix[128]; /* of the tensor names, found in them */
    fs_tail head; /* from the first token to a value a label; count 0: the checkpoint has none */
    fs_tail chain; /* of modules behind pooling */
    fs_weight_row outside
        [FS_ENDS_MOST]; /* the architecture's table of weights outside the layers, head's and chain's rows behind */
    _Alignas(8) char own[FS_OWN_BYTES];
} fs_settings;

#define FS_SET(field)    offsetof(fs_settings, field)
#define FS_OWN(T, field) (offsetof(fs_settings, own) + offsetof(T, field))
#define FS_DIM_ONE       ((fs_dim)0)
#define FS_DIM_D         FS_SET(D)
#define FS_DIM_F         FS_SET(F)
#define FS_DIM_V         FS_SET(V)
#define FS_DIM_P         FS_SET(P)
#define FS_DIM_TYPES     FS_SET(types)
#define FS_DIM_HE        FS_SET(HE)
#define FS_DIM_KE        FS_SET(KE)
static inline const void *fs_own(const fs_settings *set) { return set->own; }

/* One key of config.json. A FS_KEY_CHOICE that ends with ".*" is each member of a list: member i goes to place i of
 * `most` ints; those that the list lacks are left alone. */
typedef struct {
    const char *key;
    enum {
        FS_KEY_SIZE, /* a whole number >= 1 into an int64_t of fs_settings */
        FS_KEY_COUNT, /* a whole number >= 0 into an int64_t */
        FS_KEY_NUMBER, /* a number > 0 into a float */
        FS_KEY_ACTIVATION, /* a name into an fs_activation */
        FS_KEY_FLAG, /* true or false into an int */
        FS_KEY_CHOICE, /* one of `choices` into an int, its place among them */
        FS_KEY_MUST, /* must be absent, null or as `preset` says: anything else changes the mathematics */
        FS_KEY_IGNORED, /* known, and without effect on what we compute */
        FS_KEY_OPEN, /* a list or object, whose members have rows of their own: "rope_parameters.rope_theta" */
    } kind;
    size_t slot; /* FS_SET or FS_OWN */
    const char *preset; /* value when absent, as text; NULL: required (of FS_KEY_MUST: must be absent or null) */
    int64_t most; /* FS_KEY_SIZE, FS_KEY_COUNT: the largest value taken; keeps every product of sizes within int64 */
    const char *const *choices; /* FS_KEY_CHOICE: ends with NULL */
} fs_key_row;

/* What goes from layer to layer. x and `other` cross stage borders; `in` does not, and is made again behind one
 * (fs_carry_in). */
typedef struct {
    fs_view x; /* [T, D], fp32: of the rows; where a decoder's layers run, of the targets */
    fs_view in; /* x as products read it, in their type: x itself where that is fp32. Not made yet: zeroed */
    fs_view
        other; /* models with targets: ahead of the decoder's layers what those begin with, fp32; then the memory that
                      they attend to, in the type of the products */
} fs_carry;

/* Layers that have the same weights and do the same. */
struct fs_layer_kind {
    const char *prefix; /* "encoder.layer.%d."; without a number there is one such layer */
    const fs_weight_row *weights; /* ends with a NULL name */
    size_t bytes; /* of the struct of fs_weight that `slot` points into */
    int decodes; /* a decoder's layers: their x is of the targets */
    /* ends: the weights outside the layers that live here (FS_AT_EVERY) */
    fs_status (*run)(fs_step *s, const fs_settings *set, const void *ends, const void *layer, fs_carry *carry);
    /* Behind the last layer of the kind, or NULL. */
    fs_status (*end)(fs_step *s, const fs_settings *set, const void *ends, fs_carry *carry);
};

/* A dense layer of a head, on the vector of a row's first token. */
typedef struct {
    const char *weight, *bias;
    fs_activation activation;
    int configured; /* the activation is config.json's instead */
} fs_head_row;

/* A pattern is a name, or the start of names with "*" behind it. */
struct fs_arch {
    const char *model_type; /* config.json's model_type */
    const char *const *names; /* of config.json's architectures: patterns of those we read; ends with NULL */
    const char *const *refused; /* patterns of those among them that we do not, decoders; ends with NULL */
    const char *base; /* "bert.": what stands before the names of the tables where a head's class has saved them; "" */
    const char *const *unused; /* patterns of tensors that may be there and are not read; ends with NULL */
    const fs_key_row *keys; /* ends with a NULL key */
    const fs_layer_kind *kinds; /* ends with a NULL prefix */
    /* The kind of a layer, and its number among the names of that kind: layers of one number have the same weights. NULL:
     * all are of the first kind, by their own numbers. */
    const fs_layer_kind *(*kind_of)(const fs_settings *set, int layer, int *number);
    const fs_weight_row *ends; /* weights outside the layers */
    const fs_head_row *head; /* of its *ForSequenceClassification; ends with a NULL weight. NULL: it has none */
    size_t ends_bytes; /* of the struct of fs_weight that `slot` points into; where a stage lacks one, it is zeroed */

    /* After the keys were read: derived settings, combinations that cannot be. NULL: nothing. */
    fs_status (*settle)(fs_settings *set);
    /* What only the tensors tell; set->prefix was found. NULL: nothing. */
    void (*look)(fs_settings *set, const fs_checkpoint *c);
    /* First stage: ids or features -> carry, which it keeps (fs_keep). */
    fs_status (*begin)(fs_step *s, const fs_settings *set, const void *ends, fs_carry *carry);
};

/* registry.c */
extern const fs_arch *const fs_archs[]; /* ends with NULL */
int fs_pattern_matches(const char *pattern, const char *name);
/* The one of `among` (ends with NULL) whose tables know most of the checkpoint's tensor names, and that share; NULL
 * when none knows any. */
const fs_arch *fs_arch_nearest(const fs_arch *const *among, const fs_checkpoint *c, double *share);
/* The share of the checkpoint's tensor names that the tables of `a` know, whatever the number of layers. */
double fs_arch_share(const fs_arch *a, const fs_checkpoint *c);

/* Config keys -> settings: finds the architecture, reads the key table, refuses what changes the mathematics and is not
 * understood (naming every such key at once; FIRESTEEL_IGNORE_KEYS lets named ones pass). dtype: "auto", "fp32" ... */
fs_status fs_settings_read(fs_settings *out, const fs_checkpoint *c, const char *dtype);
/* "auto" (or NULL), "fp32", "fp16", "bf16" -> set->any_dtype, set->dtype. FS_CONFIG for any other word. */
/* The part of it that reads the table of an architecture. */
fs_status fs_settings_read_keys(fs_settings *out, const fs_arch *a, const fs_checkpoint *c);
/* A name that transformers has for an activation; NULL: none. FS_CONFIG: not one we compute. */
fs_status fs_activation_find(fs_activation *out, const char *name);
fs_status fs_settings_read_dtype(fs_settings *set, const char *dtype);
/* FS_CONFIG when a type was named that no device of this kind computes; `device` is what the sentence calls it. */
fs_status fs_settings_check_dtype(const fs_settings *set, const fs_backend *kind, const char *device);
/* What "auto" means on these devices: the checkpoint's type where all compute in it (fp16 for bf16 files where bf16 is
 * lacking), else fp32. FS_CONFIG when a named type is not computed on one of them. */
fs_status fs_settings_choose_dtype(fs_settings *set, const fs_checkpoint *c, fs_device *const devices[], int n);
static inline int64_t fs_dim_of(const fs_settings *set, fs_dim dim) {
    return dim == FS_DIM_ONE ? 1 : *(const int64_t *)((const char *)set + dim);
}
/* Bytes of the ends' struct: the architecture's own, then an fs_tail_weights for each step of head and chain. */
size_t fs_ends_bytes(const fs_settings *set);
/* Memory [rows, cols] until the step ends, for the carry; no scratch may be held meanwhile. Poisoned in the test mode. */
fs_status fs_keep(fs_step *s, fs_dtype dtype, int64_t rows, int64_t cols, fs_view *out);
const fs_layer_kind *fs_kind_of(const fs_settings *set, int layer);
int fs_number_of(const fs_settings *set, int layer);
/* The first layer that has the weights of this one: itself unless layers share them. */
int fs_layer_like(const fs_settings *set, int layer);
/* Whether the layer is a decoder's: its x is of the targets. */
static inline int fs_decodes(const fs_settings *set, int layer) { return fs_kind_of(set, layer)->decodes; }
/* Scratch [rows, cols] of this step, poisoned in the test mode; given back by an fs_arena_reset. */
fs_status fs_scratch(fs_step *s, fs_dtype dtype, int64_t rows, int64_t cols, fs_view *out);

/* blocks.c: what two architectures share. Weights of a transformer block as fs_weight slots; biases may be missing. */
typedef struct {
    fs_weight qkv, qkv_bias; /* [H*E + 2*KV*E, D], cut by heads */
    fs_weight out, out_bias; /* [D, H*E], cut by columns; the bias is added once */
} fs_attention_weights;

/* Attention of the targets to a memory: queries of the one, keys and values of the other. */
typedef struct {
    fs_weight q, q_bias; /* [H*E, D], cut by heads */
    fs_weight kv, kv_bias; /* [2*H*E, D], cut by heads */
    fs_weight out, out_bias; /* [D, H*E], cut by columns */
} fs_cross_weights;

typedef struct {
    fs_weight up, up_bias; /* [F, D], cut by rows */
    fs_weight down, down_bias; /* [D, F], cut by columns */
} fs_mlp_weights;

/* Makes carry->in where it is not there: carry->x in the type of the products. */
fs_status fs_carry_in(fs_step *s, const fs_settings *set, fs_carry *carry);
/* carry->x = layer_norm(x), and carry->in; both are there. */
fs_status fs_norm_carry(fs_step *s, const fs_settings *set, fs_carry *carry, fs_view x, const fs_weight *gamma,
                        const fs_weight *beta);
/* Each token sees all of its sequence, scores are scaled by 1 / sqrt(E); the causal one: those up to itself. */
static inline fs_mask fs_full_mask(const fs_settings *set) { return (fs_mask){ .scale = 1.0f / sqrtf((float)set->E) }; }
static inline fs_mask fs_causal_mask(const fs_settings *set) {
    return (fs_mask){ .scale = 1.0f / sqrtf((float)set->E), .causal = 1 };
}
/* A weight that the checkpoint may lack: NULL where it does. */
static inline const fs_weight *fs_given(const fs_weight *w) { return w->desc.K ? w : NULL; }
/* y[T,D] = carry's x + attention(carry's in); y is fp32, and may be carry's x. */
fs_status fs_self_attention(fs_step *s, const fs_settings *set, const fs_attention_weights *w, fs_view y,
                            const fs_carry *carry, const fs_mask *mask);
/* y[T,D] = carry's x + attention(carry's in -> carry's other, which has the rows `keys`); y as above. */
fs_status fs_cross_attention(fs_step *s, const fs_settings *set, const fs_cross_weights *w, fs_view y,
                             const fs_carry *carry, const fs_rows *keys);
/* y[T,D] = carry's x + down(activation(up(carry's in))); y as above. */
fs_status fs_mlp(fs_step *s, const fs_settings *set, const fs_mlp_weights *w, fs_view y, const fs_carry *carry);

/* What a batch is asked for (task.c). Pooling may name several; their vectors stand side by side. */
typedef enum { FS_TASK_EMBED, FS_TASK_HIDDEN_STATES, FS_TASK_CLASSIFY } fs_task_kind;

typedef struct {
    fs_task_kind kind;
    int pooling_count;
    fs_pooling pooling[FS_POOL_COUNT];
    int normalize; /* 0 or 1 */
    int64_t dimensions; /* keep the first n before normalising; 0: all */
} fs_task;

static inline int fs_task_by_row(const fs_task *task) { return task->kind != FS_TASK_HIDDEN_STATES; }
/* Names what is wrong: dimensions beyond the width, no pooling, one named twice. */
fs_status fs_task_check(const fs_task *task, const fs_settings *set);
/* Floats of one output row (per token for hidden states, else per sequence). */
int64_t fs_task_width(const fs_task *task, const fs_settings *set);
/* Last stage: carry -> out, pushed on the arena; [T, D] for hidden states, else [B, width]. */
fs_status fs_task_finish(fs_step *s, const fs_settings *set, const void *ends, const fs_task *task,
                         const fs_carry *carry, fs_view *out);
/* The tasks that together need the most of everything, for dry runs: at most FS_TASKS_MOST. */
#define FS_TASKS_MOST 2
int fs_task_largest(fs_task out[FS_TASKS_MOST], const fs_settings *set);

/* tail.c: weights of a step; what it lacks is zeroed. */
typedef struct {
    fs_weight weight, bias; /* [N, K], [1, N]; of a norm [1, K] both */
} fs_tail_weights;

/* Finds the head in the checkpoint, takes the chain from it, and fills set->outside. */
fs_status fs_tail_settle(fs_settings *set, const fs_checkpoint *c);
/* x [B, K of the first step] through the steps, the last of which writes to scratch; x may be that of a step before. */
fs_status fs_tail_run(fs_step *s, const fs_tail *tail, const fs_tail_weights *weights, fs_view x, fs_view *out);
const fs_tail_weights *fs_head_weights(const fs_settings *set, const void *ends);
const fs_tail_weights *fs_chain_weights(const fs_settings *set, const void *ends);

#endif
