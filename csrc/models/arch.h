/* arch.h - an architecture: what a model HAS is tables, what it DOES is a short layer() (models/arch/NAME.c).
 *
 * Settings come from config.json through the key table; weights come from the checkpoint through the weight tables, cut
 * as the tables allow; layer() is written as if for one device. To add an architecture: one file in arch/, one line in
 * registry.c, and tests/models/tiny/NAME.json for the test that walks the registry. */
#ifndef FS_MODELS_ARCH_H
#define FS_MODELS_ARCH_H

#include "backends/ops.h"
#include "models/checkpoint.h"

typedef struct fs_arch fs_arch;
typedef struct fs_layer_kind fs_layer_kind;

/* The widest head that attention takes on every backend: a tile of its keys and values must fit a thread's scratch. */
#define FS_MAX_HEAD_WIDTH 256

/* What a row, or its targets, are made of. */
typedef enum { FS_NOTHING, FS_IDS, FS_FEATURES } fs_input;

/* What any architecture may need of its config; keys fill it by offset. */
typedef struct {
    const fs_arch *arch;
    int64_t L, D, H, E, F, V, P; /* layers, width, heads, head width, inner width, vocabulary, positions */
    int any_length;              /* no positions limit a row: P is what a batch has room for, the engine's to say */
    fs_input rows, targets;      /* targets: a decoder's input, one for each row */
    const fs_layer_kind *kinds[2]; /* of layers [0, border) and [border, L); one kind alone: border = L */
    int64_t border;
    char prefix[128]; /* of the tensor names, found in them; where the architecture says which there are: empty */
    int64_t types;               /* of tokens */
    float eps;
    fs_activation activation;
    fs_dtype dtype; /* of the products; all else is fp32 */
    int any_dtype;  /* "auto": the devices decide, see fs_settings_choose_dtype */
    /* PyTorch's modules (arch/torch_transformer.c); `bias` to `norms_bias` are conditions of weights. */
    int64_t encoder_layers, decoder_layers;
    int part, activation_name, norm_first, causal_targets;
    int bias, embedded, norm, norm_bias, norms, norms_bias;
} fs_settings;

/* One key of config.json. */
typedef struct {
    const char *key;
    enum {
        FS_KEY_SIZE,       /* a whole number >= 1 into an int64_t of fs_settings */
        FS_KEY_NUMBER,     /* a number > 0 into a float */
        FS_KEY_ACTIVATION, /* a name into an fs_activation */
        FS_KEY_FLAG,       /* true or false into an int */
        FS_KEY_CHOICE,     /* one of `choices` into an int, its place among them */
        FS_KEY_MUST,       /* must be absent, null or as `preset` says: anything else changes the mathematics */
        FS_KEY_IGNORED,    /* known, and without effect on what we compute */
    } kind;
    size_t slot;        /* offsetof(fs_settings, ...) */
    const char *preset; /* value when absent, as text; NULL: required (of FS_KEY_MUST: must be absent or null) */
    int64_t most;       /* FS_KEY_SIZE: the largest value taken; keeps every product of sizes within int64 */
    const char *const *choices; /* FS_KEY_CHOICE: ends with NULL */
} fs_key_row;

/* How a weight may be cut over the ranks of a tensor group. */
typedef enum {
    FS_CUT_NONE,  /* every rank holds all of it */
    FS_CUT_ROWS,  /* rows of [N, K] (with its bias): outputs are cut */
    FS_CUT_COLS,  /* columns: inputs are cut, outputs are partial sums; the bias is whole and added after the sum */
    FS_CUT_HEADS, /* rows, whole heads at a time */
} fs_cut;

/* A dimension, as a letter of fs_settings. */
typedef enum { FS_DIM_ONE, FS_DIM_D, FS_DIM_F, FS_DIM_V, FS_DIM_P, FS_DIM_TYPES, FS_DIM_HE } fs_dim;

/* Where a weight outside the layers must live: with layer 0, with the last layer ahead of the border, with the last. */
typedef enum { FS_AT_FIRST, FS_AT_BORDER, FS_AT_LAST } fs_where;

/* One tensor of the checkpoint and where it goes. Neighbouring rows with the same slot are parts of one fused weight,
 * stacked along N in the order of the table (after the cut: rank r holds its part of each). Rows with the same name are
 * the parts of one tensor, which is stacked in the file already. */
typedef struct {
    const char *name; /* "attention.self.query.weight", after the prefix */
    size_t slot;      /* offsetof an fs_weight in the layer's or ends' struct */
    fs_weight_kind kind;
    fs_dim N, K; /* of this part; a VECTOR has N = FS_DIM_ONE and is stacked and cut along K */
    fs_cut cut;
    const char *also; /* what older files call the tensor, or NULL */
    int part, parts;  /* this is part 0 ... parts - 1 of the tensor, along N; parts 0: all of it */
    size_t when;      /* offsetof an int in fs_settings: no such weight where that is 0; 0: there always */
    fs_where at;      /* outside the layers */
} fs_weight_row;

/* What goes from layer to layer. x and `other` cross stage borders; `in` does not, and is made again behind one
 * (fs_carry_in). */
typedef struct {
    fs_view x;  /* [T, D], fp32: of the rows; where a decoder's layers run, of the targets */
    fs_view in; /* x as products read it, in their type: x itself where that is fp32. Not made yet: zeroed */
    fs_view
        other; /* models with targets: ahead of the decoder's layers what those begin with, fp32; then the memory that
                      they attend to, in the type of the products */
} fs_carry;

/* Layers that have the same weights and do the same. */
struct fs_layer_kind {
    const char *prefix;           /* "encoder.layer.%d."; without a number there is one such layer */
    const fs_weight_row *weights; /* ends with a NULL name */
    size_t bytes;                 /* of the struct of fs_weight that `slot` points into */
    fs_status (*run)(fs_step *s, const fs_settings *set, const void *layer, fs_carry *carry);
    /* Behind the last layer of the kind, or NULL. */
    fs_status (*end)(fs_step *s, const fs_settings *set, const void *ends, fs_carry *carry);
};

/* A pattern is a name, or the start of names with "*" behind it. */
struct fs_arch {
    const char *model_type;          /* config.json's model_type */
    const char *const *names;        /* of config.json's architectures: patterns of those we read; ends with NULL */
    const char *const *refused;      /* patterns of those among them that we do not, decoders; ends with NULL */
    const char *const *prefixes; /* before every tensor name; "" among them; ends with NULL. NULL: any, found */
    const char *const *unused; /* patterns of tensors that may be there and are not read; ends with NULL */
    const fs_key_row *keys; /* ends with a NULL key */
    const fs_layer_kind *kinds; /* ends with a NULL prefix; all layers are of the first one unless settle() says so */
    const fs_weight_row *ends; /* weights outside the layers */
    size_t ends_bytes; /* of the struct of fs_weight that `slot` points into; where a stage lacks one, it is zeroed */

    /* After the keys were read: derived settings, combinations that cannot be. */
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
fs_status fs_settings_read_dtype(fs_settings *set, const char *dtype);
/* FS_CONFIG when a type was named that no device of this kind computes; `device` is what the sentence calls it. */
fs_status fs_settings_check_dtype(const fs_settings *set, const fs_backend *kind, const char *device);
/* What "auto" means on these devices: the checkpoint's type where all compute in it (fp16 for bf16 files where bf16 is
 * lacking), else fp32. FS_CONFIG when a named type is not computed on one of them. */
fs_status fs_settings_choose_dtype(fs_settings *set, const fs_checkpoint *c, fs_device *const devices[], int n);
int64_t fs_dim_of(const fs_settings *set, fs_dim dim);
/* Memory [rows, cols] until the step ends, for the carry; no scratch may be held meanwhile. Poisoned in the test mode. */
fs_status fs_keep(fs_step *s, fs_dtype dtype, int64_t rows, int64_t cols, fs_view *out);
const fs_layer_kind *fs_kind_of(const fs_settings *set, int layer);
/* Whether the layer is a decoder's: its x is of the targets. */
static inline int fs_decodes(const fs_settings *set, int layer) {
    return set->targets != FS_NOTHING && (set->border == set->L || layer >= set->border);
}
/* Scratch [rows, cols] of this step, poisoned in the test mode; given back by an fs_arena_reset. */
fs_status fs_scratch(fs_step *s, fs_dtype dtype, int64_t rows, int64_t cols, fs_view *out);

/* blocks.c: what two architectures share. Weights of a transformer block as fs_weight slots; biases may be missing. */
typedef struct {
    fs_weight qkv, qkv_bias; /* [3*H*E, D], cut by heads */
    fs_weight out, out_bias; /* [D, H*E], cut by columns; the bias is added once */
} fs_attention_weights;

/* Attention of the targets to a memory: queries of the one, keys and values of the other. */
typedef struct {
    fs_weight q, q_bias;     /* [H*E, D], cut by heads */
    fs_weight kv, kv_bias;   /* [2*H*E, D], cut by heads */
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
/* A weight that the checkpoint may lack: NULL where it does. */
static inline const fs_weight *fs_given(const fs_weight *w) { return w->desc.K ? w : NULL; }
/* y[T,D] = carry's x + attention(carry's in); y is fp32, and may be carry's x. causal: a token sees those up to itself. */
fs_status fs_self_attention(fs_step *s, const fs_settings *set, const fs_attention_weights *w, fs_view y,
                            const fs_carry *carry, int causal);
/* y[T,D] = carry's x + attention(carry's in -> carry's other, which has the rows `keys`); y as above. */
fs_status fs_cross_attention(fs_step *s, const fs_settings *set, const fs_cross_weights *w, fs_view y,
                             const fs_carry *carry, const fs_rows *keys);
/* y[T,D] = carry's x + down(activation(up(carry's in))); y as above. */
fs_status fs_mlp(fs_step *s, const fs_settings *set, const fs_mlp_weights *w, fs_view y, const fs_carry *carry);

/* What a batch is asked for (task.c). Pooling may name several; their vectors stand side by side. */
typedef enum { FS_TASK_EMBED, FS_TASK_HIDDEN_STATES } fs_task_kind;

typedef struct {
    fs_task_kind kind;
    int pooling_count;
    fs_pooling pooling[FS_POOL_COUNT];
    int normalize; /* 0 or 1 */
    int64_t dimensions; /* keep the first n before normalising; 0: all */
} fs_task;

/* Names what is wrong: dimensions beyond the width, no pooling, one named twice. */
fs_status fs_task_check(const fs_task *task, const fs_settings *set);
/* Floats of one output row (per sequence for embed, per token for hidden states). */
int64_t fs_task_width(const fs_task *task, const fs_settings *set);
/* Last stage: carry -> out, pushed on the arena; [B, width] for embed, [T, D] for hidden states. */
fs_status fs_task_finish(fs_step *s, const fs_settings *set, const fs_task *task, const fs_carry *carry, fs_view *out);

#endif
