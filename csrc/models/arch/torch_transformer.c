/* torch_transformer.c - PyTorch's own modules: nn.TransformerEncoder(Layer), nn.TransformerDecoder(Layer), nn.Transformer.
 *
 *   norm_first = false:   x = norm(x + block(x))          block: self attention; in a decoder then attention to the
 *   norm_first = true:    x = x + block(norm(x))                 memory; then linear2(activation(linear1(x)))
 *
 *   part             rows                  targets              result
 *   encoder(_layer)  x                     -                    norm(layers(x))
 *   decoder(_layer)  the memory            x                    norm(layers(x, memory))
 *   transformer      x of the encoder      x of the decoder     decoder(targets, memory = encoder(rows))
 *
 * x is embedding[id], or the features themselves; a memory that comes from outside is features. The last norms are there
 * where the file has them: nn.Transformer has both, two layers that stand for themselves have neither. Sequences are
 * whole: there is no padding to mask. There are no positions either: PyTorch's modules have none.
 *
 * In front of the decoder's layers the carry's `other` holds the targets, behind that border the memory. */
#include "models/arch.h"

#include <stdio.h>
#include <string.h>

enum { ENCODER_LAYER, ENCODER, DECODER_LAYER, DECODER, TRANSFORMER };
static const char *const parts[] = { "encoder_layer", "encoder", "decoder_layer", "decoder", "transformer", NULL };

/* config.json's, and what the tensors tell; `bias` to `norms_bias` are conditions of weights. */
typedef struct {
    int64_t encoder_layers, decoder_layers;
    int part, activation_name, norm_first, causal_targets;
    int bias, embedded, norm, norm_bias, norms, norms_bias;
} own;

static const char *const activation_names[] = { "relu", "gelu", NULL };
static const fs_activation activations[] = { FS_ACT_RELU, FS_ACT_GELU };

typedef struct {
    fs_weight gamma, beta; /* [1, D] */
} norm;

typedef struct {
    fs_attention_weights attention;
    fs_mlp_weights mlp;
    norm norm1, norm2;
} encoder_layer;

typedef struct {
    fs_attention_weights attention;
    fs_cross_weights cross;
    fs_mlp_weights mlp;
    norm norm1, norm2, norm3;
} decoder_layer;

typedef struct {
    fs_weight words; /* [V, D] */
    norm last, encoder, decoder; /* last: of an encoder or a decoder alone */
} ends;

#define KEY(name, kind, place, preset, most, choices) { name, kind, place, preset, most, choices }

static const fs_key_row keys[] = {
    KEY("part", FS_KEY_CHOICE, FS_OWN(own, part), NULL, 0, parts),
    KEY("d_model", FS_KEY_SIZE, FS_SET(D), "512", 1 << 16, NULL),
    KEY("nhead", FS_KEY_SIZE, FS_SET(H), "8", 1 << 12, NULL),
    KEY("num_encoder_layers", FS_KEY_SIZE, FS_OWN(own, encoder_layers), "6", 1 << 11, NULL),
    KEY("num_decoder_layers", FS_KEY_SIZE, FS_OWN(own, decoder_layers), "6", 1 << 11, NULL),
    KEY("dim_feedforward", FS_KEY_SIZE, FS_SET(F), "2048", 1 << 20, NULL),
    KEY("activation", FS_KEY_CHOICE, FS_OWN(own, activation_name), "relu", 0, activation_names),
    KEY("layer_norm_eps", FS_KEY_NUMBER, FS_SET(eps), "1e-5", 0, NULL),
    KEY("norm_first", FS_KEY_FLAG, FS_OWN(own, norm_first), "false", 0, NULL),
    KEY("bias", FS_KEY_FLAG, FS_OWN(own, bias), "true", 0, NULL),
    KEY("causal_targets", FS_KEY_FLAG, FS_OWN(own, causal_targets), "false", 0, NULL),
    KEY("vocab_size", FS_KEY_SIZE, FS_SET(V), "0", 1 << 24, NULL),
    { 0 },
};

#define BIAS FS_OWN(own, bias)
#define MATRIX(n, T, slot_, N, K, cut)                                                                                 \
    { n, offsetof(T, slot_), FS_MATRIX, FS_DIM_##N, FS_DIM_##K, FS_CUT_##cut, NULL, 0, 0, 0, FS_AT_FIRST, 0 }
#define VECTOR(n, T, slot_, K, cut, when)                                                                              \
    { n, offsetof(T, slot_), FS_VECTOR, FS_DIM_ONE, FS_DIM_##K, FS_CUT_##cut, NULL, 0, 0, when, FS_AT_FIRST, 0 }
/* q, k and v lie in one tensor; a rank takes its heads of each. */
#define IN_WEIGHT(n, T, slot_, part)                                                                                   \
    { n, offsetof(T, slot_), FS_MATRIX, FS_DIM_HE, FS_DIM_D, FS_CUT_HEADS, NULL, part, 3, 0, FS_AT_FIRST, 0 }
#define IN_BIAS(n, T, slot_, part)                                                                                     \
    { n, offsetof(T, slot_), FS_VECTOR, FS_DIM_ONE, FS_DIM_HE, FS_CUT_HEADS, NULL, part, 3, BIAS, FS_AT_FIRST, 0 }
#define NORM(n, T, slot_)                                                                                              \
    VECTOR(n ".weight", T, slot_.gamma, D, NONE, 0), VECTOR(n ".bias", T, slot_.beta, D, NONE, BIAS)

/* What both kinds of layers have. */
#define SHARED(T)                                                                                                      \
    IN_WEIGHT("self_attn.in_proj_weight", T, attention.qkv, 0),                                                        \
        IN_WEIGHT("self_attn.in_proj_weight", T, attention.qkv, 1),                                                    \
        IN_WEIGHT("self_attn.in_proj_weight", T, attention.qkv, 2),                                                    \
        IN_BIAS("self_attn.in_proj_bias", T, attention.qkv_bias, 0),                                                   \
        IN_BIAS("self_attn.in_proj_bias", T, attention.qkv_bias, 1),                                                   \
        IN_BIAS("self_attn.in_proj_bias", T, attention.qkv_bias, 2),                                                   \
        MATRIX("self_attn.out_proj.weight", T, attention.out, D, HE, COLS),                                            \
        VECTOR("self_attn.out_proj.bias", T, attention.out_bias, D, NONE, BIAS),                                       \
        MATRIX("linear1.weight", T, mlp.up, F, D, ROWS), VECTOR("linear1.bias", T, mlp.up_bias, F, ROWS, BIAS),        \
        MATRIX("linear2.weight", T, mlp.down, D, F, COLS), VECTOR("linear2.bias", T, mlp.down_bias, D, NONE, BIAS),    \
        NORM("norm1", T, norm1), NORM("norm2", T, norm2)

static const fs_weight_row encoder_weights[] = { SHARED(encoder_layer), { 0 } };

static const fs_weight_row decoder_weights[] = {
    SHARED(decoder_layer),
    IN_WEIGHT("multihead_attn.in_proj_weight", decoder_layer, cross.q, 0),
    IN_WEIGHT("multihead_attn.in_proj_weight", decoder_layer, cross.kv, 1),
    IN_WEIGHT("multihead_attn.in_proj_weight", decoder_layer, cross.kv, 2),
    IN_BIAS("multihead_attn.in_proj_bias", decoder_layer, cross.q_bias, 0),
    IN_BIAS("multihead_attn.in_proj_bias", decoder_layer, cross.kv_bias, 1),
    IN_BIAS("multihead_attn.in_proj_bias", decoder_layer, cross.kv_bias, 2),
    MATRIX("multihead_attn.out_proj.weight", decoder_layer, cross.out, D, HE, COLS),
    VECTOR("multihead_attn.out_proj.bias", decoder_layer, cross.out_bias, D, NONE, BIAS),
    NORM("norm3", decoder_layer, norm3),
    { 0 },
};

#define END(n, slot_, kind, N, when_, at_)                                                                             \
    { n, offsetof(ends, slot_), kind, N, FS_DIM_D, FS_CUT_NONE, NULL, 0, 0, FS_OWN(own, when_), at_, FS_ABOVE }

static const fs_weight_row end_weights[] = {
    END("embedding.weight", words, FS_TABLE, FS_DIM_V, embedded, FS_AT_FIRST),
    END("norm.weight", last.gamma, FS_VECTOR, FS_DIM_ONE, norm, FS_AT_LAST),
    END("norm.bias", last.beta, FS_VECTOR, FS_DIM_ONE, norm_bias, FS_AT_LAST),
    END("encoder.norm.weight", encoder.gamma, FS_VECTOR, FS_DIM_ONE, norms, FS_AT_BORDER),
    END("encoder.norm.bias", encoder.beta, FS_VECTOR, FS_DIM_ONE, norms_bias, FS_AT_BORDER),
    END("decoder.norm.weight", decoder.gamma, FS_VECTOR, FS_DIM_ONE, norms, FS_AT_LAST),
    END("decoder.norm.bias", decoder.beta, FS_VECTOR, FS_DIM_ONE, norms_bias, FS_AT_LAST),
    { 0 },
};

static const own *of(const fs_settings *set) { return fs_own(set); }

static fs_status norm_in_place(fs_step *s, const fs_settings *set, fs_view x, const norm *w) {
    const fs_norm n = { &w->gamma, fs_given(&w->beta), set->eps, NULL };
    return s->ops->layer_norm(s, x, x, &n);
}

/* carry->in ahead of a block: x or, with norm_first, its norm, which has a place of its own. */
static fs_status enter(fs_step *s, const fs_settings *set, fs_carry *carry, const norm *w) {
    const fs_norm n = { &w->gamma, fs_given(&w->beta), set->eps, NULL };
    if (!of(set)->norm_first) return fs_carry_in(s, set, carry);
    if (!carry->in.at) FS_TRY(fs_keep(s, set->dtype, carry->x.rows, set->D, &carry->in));
    return s->ops->layer_norm(s, carry->in, carry->x, &n);
}

/* Behind a block, which has added itself to x. */
static fs_status leave(fs_step *s, const fs_settings *set, fs_carry *carry, const norm *w) {
    if (of(set)->norm_first) return FS_OK;
    return fs_norm_carry(s, set, carry, carry->x, &w->gamma, fs_given(&w->beta));
}

static fs_status run_encoder_layer(fs_step *s, const fs_settings *set, const void *ends_, const void *weights,
                                   fs_carry *carry) {
    (void)ends_;
    const encoder_layer *w = weights;
    const fs_mask mask = fs_full_mask(set);
    FS_TRY(enter(s, set, carry, &w->norm1));
    FS_TRY(fs_self_attention(s, set, &w->attention, carry->x, carry, &mask));
    FS_TRY(leave(s, set, carry, &w->norm1));
    FS_TRY(enter(s, set, carry, &w->norm2));
    FS_TRY(fs_mlp(s, set, &w->mlp, carry->x, carry));
    return leave(s, set, carry, &w->norm2);
}

static fs_status run_decoder_layer(fs_step *s, const fs_settings *set, const void *ends_, const void *weights,
                                   fs_carry *carry) {
    (void)ends_;
    const decoder_layer *w = weights;
    const fs_mask mask = of(set)->causal_targets ? fs_causal_mask(set) : fs_full_mask(set);
    fs_step t = *s; /* whose rows are the targets */
    t.rows = s->targets;
    FS_TRY(enter(&t, set, carry, &w->norm1));
    FS_TRY(fs_self_attention(&t, set, &w->attention, carry->x, carry, &mask));
    FS_TRY(leave(&t, set, carry, &w->norm1));
    FS_TRY(enter(&t, set, carry, &w->norm2));
    FS_TRY(fs_cross_attention(&t, set, &w->cross, carry->x, carry, s->rows));
    FS_TRY(leave(&t, set, carry, &w->norm2));
    FS_TRY(enter(&t, set, carry, &w->norm3));
    FS_TRY(fs_mlp(&t, set, &w->mlp, carry->x, carry));
    return leave(&t, set, carry, &w->norm3);
}

static fs_status end_alone(fs_step *s, const fs_settings *set, const void *weights, fs_carry *carry) {
    const ends *w = weights;
    return of(set)->norm ? norm_in_place(s, set, carry->x, &w->last) : FS_OK;
}

/* x becomes the memory, and the targets x. */
static fs_status end_encoder(fs_step *s, const fs_settings *set, const void *weights, fs_carry *carry) {
    const ends *w = weights;
    const fs_epilogue none = { 0 };
    if (!carry->in.at) FS_TRY(fs_carry_in(s, set, carry));
    if (of(set)->norms) FS_TRY(fs_norm_carry(s, set, carry, carry->x, &w->encoder.gamma, fs_given(&w->encoder.beta)));
    else if (of(set)->norm_first && set->dtype != FS_F32) /* what a block's norm left there is not x */
        FS_TRY(s->ops->add(s, carry->in, carry->x, &none));
    *carry = (fs_carry){ .x = carry->other, .other = set->dtype == FS_F32 ? carry->x : carry->in };
    return FS_OK;
}

static fs_status end_decoder(fs_step *s, const fs_settings *set, const void *weights, fs_carry *carry) {
    const ends *w = weights;
    return of(set)->norms ? norm_in_place(s, set, carry->x, &w->decoder) : FS_OK;
}

#define ENCODERS(prefix, end) { prefix, encoder_weights, sizeof(encoder_layer), 0, run_encoder_layer, end }
#define DECODERS(prefix, end) { prefix, decoder_weights, sizeof(decoder_layer), 1, run_decoder_layer, end }

/* By part; of a transformer the first of two. */
static const fs_layer_kind kinds[] = {
    [ENCODER_LAYER] = ENCODERS("", NULL),
    [ENCODER] = ENCODERS("layers.%d.", end_alone),
    [DECODER_LAYER] = DECODERS("", NULL),
    [DECODER] = DECODERS("layers.%d.", end_alone),
    [TRANSFORMER] = ENCODERS("encoder.layers.%d.", end_encoder),
    [TRANSFORMER + 1] = DECODERS("decoder.layers.%d.", end_decoder),
    { 0 },
};

static const fs_layer_kind *kind_of(const fs_settings *set, int layer, int *number) {
    const own *o = fs_own(set);
    const int second = o->part == TRANSFORMER && layer >= o->encoder_layers;
    *number = second ? layer - (int)o->encoder_layers : layer;
    return &kinds[o->part + second];
}

static void settle_layers(fs_settings *set, const own *o) {
    if (o->part == ENCODER_LAYER || o->part == DECODER_LAYER) set->L = 1;
    if (o->part == ENCODER) set->L = o->encoder_layers;
    if (o->part == DECODER) set->L = o->decoder_layers;
    if (o->part == TRANSFORMER) set->L = o->encoder_layers + o->decoder_layers;
}

static fs_status settle(fs_settings *set) {
    own *o = (own *)set->own;
    const int decoder = o->part == DECODER || o->part == DECODER_LAYER;
    settle_layers(set, o);
    set->any_length = 1;
    set->activation = activations[o->activation_name];
    o->embedded = set->V > 0;
    set->rows = o->embedded && !decoder ? FS_IDS : FS_FEATURES;
    if (decoder || o->part == TRANSFORMER) set->targets = o->embedded ? FS_IDS : FS_FEATURES;
    o->norms = o->part == TRANSFORMER;
    o->norms_bias = o->norms && o->bias;
    return FS_OK;
}

/* A transformer of layers alone, as when each stands for itself in PyTorch, has neither last norm. */
static void look_for_norms(own *o, const char *prefix, const fs_checkpoint *c) {
    const size_t before = strlen(prefix);
    int found = c->tensor_count == 0; /* a config alone: as nn.Transformer makes them */
    for (int i = 0; i < c->tensor_count; i++) {
        const char *name = c->tensors[i].name;
        if (strncmp(name, prefix, before)) continue;
        found |= !strncmp(name + before, "encoder.norm.", 13) || !strncmp(name + before, "decoder.norm.", 13);
    }
    o->norms &= found;
    o->norms_bias &= found;
}

/* PyTorch adds a last norm to an encoder or a decoder where it is told to, and config.json does not say. */
static void look(fs_settings *set, const fs_checkpoint *c) {
    const size_t before = strlen(set->prefix);
    own *o = (own *)set->own;
    if (o->part == TRANSFORMER) look_for_norms(o, set->prefix, c);
    if (o->part != ENCODER && o->part != DECODER) return;
    for (int i = 0; i < c->tensor_count; i++) {
        const char *name = c->tensors[i].name;
        if (strncmp(name, set->prefix, before)) continue;
        o->norm |= !strncmp(name + before, "norm.", 5);
        o->norm_bias |= !strcmp(name + before, "norm.bias");
    }
}

static fs_status start(fs_step *s, const fs_settings *set, const ends *w, const fs_rows *rows, fs_input input,
                       fs_view *out) {
    const fs_gather table = { &w->words, rows->ids };
    if (input == FS_FEATURES) {
        *out = (fs_view){ .at = rows->features, .dtype = FS_F32, .rows = rows->T, .cols = set->D, .stride = set->D };
        return FS_OK;
    }
    FS_TRY(fs_keep(s, FS_F32, rows->T, set->D, out));
    return s->ops->gather(s, *out, &table, 1);
}

static fs_status begin(fs_step *s, const fs_settings *set, const void *weights, fs_carry *carry) {
    fs_view rows, targets;
    *carry = (fs_carry){ 0 };
    FS_TRY(start(s, set, weights, s->rows, set->rows, &rows));
    if (set->targets != FS_NOTHING) FS_TRY(start(s, set, weights, s->targets, set->targets, &targets));
    if (!fs_decodes(set, 0)) {
        carry->x = rows;
        if (set->targets != FS_NOTHING) carry->other = targets;
        return FS_OK;
    }
    fs_carry memory = { .x = rows };
    FS_TRY(fs_carry_in(s, set, &memory));
    *carry = (fs_carry){ .x = targets, .other = memory.in };
    return FS_OK;
}

static const char *const names[] = { "Transformer*", NULL };
static const char *const none[] = { NULL };

extern const fs_arch fs_torch_transformer;
const fs_arch fs_torch_transformer = {
    .model_type = "torch_transformer",
    .names = names,
    .refused = none,
    .base = "",
    .unused = none,
    .keys = keys,
    .kinds = kinds,
    .kind_of = kind_of,
    .ends = end_weights,
    .ends_bytes = sizeof(ends),
    .settle = settle,
    .look = look,
    .begin = begin,
};
