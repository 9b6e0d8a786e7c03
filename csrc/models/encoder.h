/* encoder.h - the layer that BERT and most encoders after it have, whatever their tensors are called:
 *
 *   x = norm(x + attention(x));  x = norm(x + down(activation(up(x))))
 *
 * and the rows of key and weight tables that several of them spell alike. */
#ifndef FS_MODELS_ENCODER_H
#define FS_MODELS_ENCODER_H

#include "models/arch.h"

typedef struct {
    fs_attention_weights attention;
    fs_weight attention_gamma, attention_beta; /* [1, D] */
    fs_mlp_weights mlp;
    fs_weight mlp_gamma, mlp_beta; /* [1, D] */
} fs_encoder_layer;

/* As BERT's layers are called in the files, in "encoder.layer.%d."; ends with a NULL name. */
extern const fs_weight_row fs_bert_layer_weights[];

/* What a layer kind's `run` does with it. */
fs_status fs_encoder_layer_run(fs_step *s, const fs_settings *set, const fs_encoder_layer *w, fs_carry *carry,
                               const fs_mask *mask);
/* The same with every token seeing all of its row: a `run` as it is. */
fs_status fs_encoder_layer_plain(fs_step *s, const fs_settings *set, const void *ends, const void *layer,
                                 fs_carry *carry);
/* carry->x, and carry->in in the type of products: what begin() fills; of width D. */
fs_status fs_encoder_open(fs_step *s, const fs_settings *set, fs_carry *carry);
/* carry = norm(sum of the tables). */
fs_status fs_encoder_begin(fs_step *s, const fs_settings *set, fs_carry *carry, const fs_gather *tables, int n,
                           const fs_weight *gamma, const fs_weight *beta);

/* carry = project(norm(sum of the tables)), of tables narrower (or wider) than the layers: project [D, width]. */
fs_status fs_encoder_begin_narrow(fs_step *s, const fs_settings *set, fs_carry *carry, const fs_gather *tables, int n,
                                  const fs_weight *gamma, const fs_weight *beta, const fs_weight *project,
                                  const fs_weight *project_bias);

#define FS_SIZE(key, field, preset, most) { key, FS_KEY_SIZE, FS_SET(field), preset, most, NULL }
#define FS_MUST(key, preset)              { key, FS_KEY_MUST, 0, preset, 0, NULL }
#define FS_IGNORED(key)                   { key, FS_KEY_IGNORED, 0, NULL, 0, NULL }
#define FS_NUMBER(key, field, preset)     { key, FS_KEY_NUMBER, FS_SET(field), preset, 0, NULL }
#define FS_ACTIVATION(key, preset)        { key, FS_KEY_ACTIVATION, FS_SET(activation), preset, 0, NULL }
/* Keys that a config has from transformers' base class, and that make another model than an encoder of it. */
#define FS_NO_DECODER                                                                                                  \
    FS_MUST("is_decoder", "false"), FS_MUST("is_encoder_decoder", "false"), FS_MUST("add_cross_attention", "false"),   \
        FS_MUST("cross_attention_hidden_size", NULL), FS_MUST("pruned_heads", "{}")

/* Rows of weight tables: part of the struct T, a matrix [N, K], its bias [N], both ends of a norm. */
#define FS_ROW(n, place, kind, N, K, cut, also) { n, place, kind, N, K, cut, also, 0, 0, 0, FS_AT_FIRST, 0 }
#define FS_PART(n, T, field, kind, N, K, cut)                                                                          \
    FS_ROW(n, offsetof(T, field), kind, FS_DIM_##N, FS_DIM_##K, FS_CUT_##cut, NULL)
#define FS_NORM_ROW(n, T, field, also) FS_ROW(n, offsetof(T, field), FS_VECTOR, FS_DIM_ONE, FS_DIM_D, FS_CUT_NONE, also)
/* A dense layer's weight and bias; the bias of one that is cut along its columns is whole. */
#define FS_DENSE_ROWS(n, T, field, N, K, cut, bias_cut)                                                                \
    FS_PART(n ".weight", T, field, FS_MATRIX, N, K, cut),                                                              \
        FS_PART(n ".bias", T, field##_bias, FS_VECTOR, ONE, N, bias_cut)
#define FS_TABLE_ROW(n, T, field, N) FS_ROW(n, offsetof(T, field), FS_TABLE, FS_DIM_##N, FS_DIM_D, FS_CUT_NONE, NULL)

/* The rows of a layer, by the names that its dense layers and norms have in the files. Older files call a norm's weight
 * gamma and its bias beta. */
#define FS_LAYER_NORM_ROWS(n, field)                                                                                   \
    FS_NORM_ROW(n ".weight", fs_encoder_layer, field##_gamma, n ".gamma"),                                             \
        FS_NORM_ROW(n ".bias", fs_encoder_layer, field##_beta, n ".beta")
#define FS_ENCODER_LAYER_ROWS(query, key, value, dense, norm, inner, outer, last)                                      \
    FS_PART(query ".weight", fs_encoder_layer, attention.qkv, FS_MATRIX, HE, D, HEADS),                                \
        FS_PART(key ".weight", fs_encoder_layer, attention.qkv, FS_MATRIX, KE, D, HEADS),                              \
        FS_PART(value ".weight", fs_encoder_layer, attention.qkv, FS_MATRIX, KE, D, HEADS),                            \
        FS_PART(query ".bias", fs_encoder_layer, attention.qkv_bias, FS_VECTOR, ONE, HE, HEADS),                       \
        FS_PART(key ".bias", fs_encoder_layer, attention.qkv_bias, FS_VECTOR, ONE, KE, HEADS),                         \
        FS_PART(value ".bias", fs_encoder_layer, attention.qkv_bias, FS_VECTOR, ONE, KE, HEADS),                       \
        FS_DENSE_ROWS(dense, fs_encoder_layer, attention.out, D, HE, COLS, NONE), FS_LAYER_NORM_ROWS(norm, attention), \
        FS_DENSE_ROWS(inner, fs_encoder_layer, mlp.up, F, D, ROWS, ROWS),                                              \
        FS_DENSE_ROWS(outer, fs_encoder_layer, mlp.down, D, F, COLS, NONE), FS_LAYER_NORM_ROWS(last, mlp)

#endif
