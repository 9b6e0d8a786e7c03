/* bert.c - BERT's encoder: token + type + position embeddings, then L times attention and an inner layer, each followed
 * by a norm of the sum with what went in.
 *
 *   x = norm(words[id] + types[0] + positions[i])
 *   x = norm(x + attention(x));  x = norm(x + down(gelu(up(x))))          L times
 *
 * Heads (pooler, masked words, classifiers) are not part of it: embeddings and hidden states are the encoder's. Rows
 * are single texts, so the token type is 0 throughout. */
#include "models/arch.h"

typedef struct {
    fs_attention_weights attention;
    fs_weight attention_gamma, attention_beta; /* [1, D] */
    fs_mlp_weights mlp;
    fs_weight mlp_gamma, mlp_beta; /* [1, D] */
} layer;

typedef struct {
    fs_weight words, types, positions; /* [V, D], [types, D], [P, D] */
    fs_weight gamma, beta; /* [1, D] */
} ends;

#define SIZE(key, field, preset, most) { key, FS_KEY_SIZE, offsetof(fs_settings, field), preset, most, NULL }
#define MUST(key, preset)              { key, FS_KEY_MUST, 0, preset, 0, NULL }
#define IGNORED(key)                   { key, FS_KEY_IGNORED, 0, NULL, 0, NULL }

static const fs_key_row keys[] = {
    SIZE("num_hidden_layers", L, NULL, 1 << 12),
    SIZE("hidden_size", D, NULL, 1 << 16),
    SIZE("num_attention_heads", H, NULL, 1 << 12),
    SIZE("intermediate_size", F, NULL, 1 << 20),
    SIZE("vocab_size", V, NULL, 1 << 24),
    SIZE("max_position_embeddings", P, "512", 1 << 20),
    SIZE("type_vocab_size", types, "2", 1 << 16),
    { "layer_norm_eps", FS_KEY_NUMBER, offsetof(fs_settings, eps), "1e-12", 0, NULL },
    { "hidden_act", FS_KEY_ACTIVATION, offsetof(fs_settings, activation), "gelu", 0, NULL },
    MUST("position_embedding_type", "absolute"),
    MUST("is_decoder", "false"),
    MUST("is_encoder_decoder", "false"),
    MUST("add_cross_attention", "false"),
    MUST("cross_attention_hidden_size", NULL),
    MUST("pruned_heads", "{}"),
    IGNORED("tie_word_embeddings"), /* of the masked-word head */
    /* of the pooler, in files converted from the first release */
    IGNORED("directionality"),
    IGNORED("pooler_fc_size"),
    IGNORED("pooler_num_attention_heads"),
    IGNORED("pooler_num_fc_layers"),
    IGNORED("pooler_size_per_head"),
    IGNORED("pooler_type"),
    { 0 },
};

#define ROW(n, slot, kind, N, K, cut, older) { n, slot, kind, N, K, cut, older, 0, 0, 0, FS_AT_FIRST }
#define PART(n, slot_, kind, N, K, cut)      ROW(n, offsetof(layer, slot_), kind, N, K, cut, NULL)
#define NORM(n, slot_, older) ROW(n, offsetof(layer, slot_), FS_VECTOR, FS_DIM_ONE, FS_DIM_D, FS_CUT_NONE, older)

static const fs_weight_row layer_weights[] = {
    PART("attention.self.query.weight", attention.qkv, FS_MATRIX, FS_DIM_HE, FS_DIM_D, FS_CUT_HEADS),
    PART("attention.self.key.weight", attention.qkv, FS_MATRIX, FS_DIM_HE, FS_DIM_D, FS_CUT_HEADS),
    PART("attention.self.value.weight", attention.qkv, FS_MATRIX, FS_DIM_HE, FS_DIM_D, FS_CUT_HEADS),
    PART("attention.self.query.bias", attention.qkv_bias, FS_VECTOR, FS_DIM_ONE, FS_DIM_HE, FS_CUT_HEADS),
    PART("attention.self.key.bias", attention.qkv_bias, FS_VECTOR, FS_DIM_ONE, FS_DIM_HE, FS_CUT_HEADS),
    PART("attention.self.value.bias", attention.qkv_bias, FS_VECTOR, FS_DIM_ONE, FS_DIM_HE, FS_CUT_HEADS),
    PART("attention.output.dense.weight", attention.out, FS_MATRIX, FS_DIM_D, FS_DIM_HE, FS_CUT_COLS),
    PART("attention.output.dense.bias", attention.out_bias, FS_VECTOR, FS_DIM_ONE, FS_DIM_D, FS_CUT_NONE),
    NORM("attention.output.LayerNorm.weight", attention_gamma, "attention.output.LayerNorm.gamma"),
    NORM("attention.output.LayerNorm.bias", attention_beta, "attention.output.LayerNorm.beta"),
    PART("intermediate.dense.weight", mlp.up, FS_MATRIX, FS_DIM_F, FS_DIM_D, FS_CUT_ROWS),
    PART("intermediate.dense.bias", mlp.up_bias, FS_VECTOR, FS_DIM_ONE, FS_DIM_F, FS_CUT_ROWS),
    PART("output.dense.weight", mlp.down, FS_MATRIX, FS_DIM_D, FS_DIM_F, FS_CUT_COLS),
    PART("output.dense.bias", mlp.down_bias, FS_VECTOR, FS_DIM_ONE, FS_DIM_D, FS_CUT_NONE),
    NORM("output.LayerNorm.weight", mlp_gamma, "output.LayerNorm.gamma"),
    NORM("output.LayerNorm.bias", mlp_beta, "output.LayerNorm.beta"),
    { 0 },
};

#undef NORM
#define TABLE(n, slot_, N)    ROW(n, offsetof(ends, slot_), FS_TABLE, N, FS_DIM_D, FS_CUT_NONE, NULL)
#define NORM(n, slot_, older) ROW(n, offsetof(ends, slot_), FS_VECTOR, FS_DIM_ONE, FS_DIM_D, FS_CUT_NONE, older)

static const fs_weight_row end_weights[] = {
    TABLE("embeddings.word_embeddings.weight", words, FS_DIM_V),
    TABLE("embeddings.token_type_embeddings.weight", types, FS_DIM_TYPES),
    TABLE("embeddings.position_embeddings.weight", positions, FS_DIM_P),
    NORM("embeddings.LayerNorm.weight", gamma, "embeddings.LayerNorm.gamma"),
    NORM("embeddings.LayerNorm.bias", beta, "embeddings.LayerNorm.beta"),
    { 0 },
};

static const char *const names[] = { "Bert*", NULL };
static const char *const refused[] = { "BertLMHeadModel", "BertGeneration*", NULL }; /* decoders */
static const char *const prefixes[] = { "", "bert.", NULL };
static const char *const unused[] = {
    "embeddings.position_ids", "embeddings.token_type_ids", "pooler.*", "cls.*", "classifier.*", "qa_outputs.*", NULL
};

static fs_status settle(fs_settings *set) {
    if (set->D % set->H)
        return fs_fail(FS_CONFIG, "config.json: hidden_size = %lld cannot be cut into num_attention_heads = %lld heads",
                       (long long)set->D, (long long)set->H);
    set->E = set->D / set->H;
    if (set->E > FS_MAX_HEAD_WIDTH)
        return fs_fail(FS_CONFIG, "config.json: hidden_size / num_attention_heads = %lld; heads of at most %d are read",
                       (long long)set->E, FS_MAX_HEAD_WIDTH);
    return FS_OK;
}

static fs_status begin(fs_step *s, const fs_settings *set, const void *weights, fs_carry *carry) {
    const ends *w = weights;
    /* in transformers' order of adding up */
    const fs_gather tables[] = { { &w->words, s->rows->ids },
                                 { &w->types, NULL },
                                 { &w->positions, s->rows->positions } };
    FS_TRY(fs_keep(s, FS_F32, s->rows->T, set->D, &carry->x));
    if (set->dtype == FS_F32) carry->in = carry->x;
    else FS_TRY(fs_keep(s, set->dtype, s->rows->T, set->D, &carry->in));
    const fs_norm norm = { &w->gamma, &w->beta, set->eps, set->dtype == FS_F32 ? NULL : &carry->in };
    return s->ops->gather_norm(s, carry->x, tables, 3, &norm);
}

static fs_status run_layer(fs_step *s, const fs_settings *set, const void *weights, fs_carry *carry) {
    const layer *w = weights;
    fs_view sum;
    FS_TRY(fs_carry_in(s, set, carry));
    size_t mark = fs_arena_mark(s->arena);
    FS_TRY(fs_scratch(s, FS_F32, carry->x.rows, set->D, &sum));
    FS_TRY(fs_self_attention(s, set, &w->attention, sum, carry, 0));
    FS_TRY(fs_norm_carry(s, set, carry, sum, &w->attention_gamma, &w->attention_beta));
    FS_TRY(fs_mlp(s, set, &w->mlp, sum, carry));
    FS_TRY(fs_norm_carry(s, set, carry, sum, &w->mlp_gamma, &w->mlp_beta));
    fs_arena_reset(s->arena, mark); /* later work of this queue runs after what reads `sum` */
    return FS_OK;
}

static const fs_layer_kind kinds[] = {
    { "encoder.layer.%d.", layer_weights, sizeof(layer), run_layer, NULL },
    { 0 },
};

extern const fs_arch fs_bert;
const fs_arch fs_bert = {
    .model_type = "bert",
    .names = names,
    .refused = refused,
    .prefixes = prefixes,
    .unused = unused,
    .keys = keys,
    .kinds = kinds,
    .ends = end_weights,
    .ends_bytes = sizeof(ends),
    .settle = settle,
    .begin = begin,
};
