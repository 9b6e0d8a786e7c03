/* albert.c - ALBERT: layers in groups that share one set of weights, behind embeddings of another width W.
 *
 *   x = mapping(norm(words[id] + types[type] + positions[i]))
 *   layer i has the weights of group i / (L / groups)
 *   classifier: classifier(tanh(pooler(x[0]))) */
#include "models/encoder.h"

typedef struct {
    fs_weight words, types, positions; /* [V, W], [types, W], [P, W] */
    fs_weight gamma, beta;             /* [1, W] */
    fs_weight mapping, mapping_bias;   /* [D, W], [1, D] */
} ends;

typedef struct {
    int64_t W, groups;
} own;

static const fs_key_row keys[] = {
    FS_SIZE("num_hidden_layers", L, "12", 1 << 12),
    { "num_hidden_groups", FS_KEY_SIZE, FS_OWN(own, groups), "1", 1 << 12, NULL },
    FS_MUST("inner_group_num", "1"),
    FS_SIZE("hidden_size", D, "4096", 1 << 16),
    { "embedding_size", FS_KEY_SIZE, FS_OWN(own, W), "128", 1 << 16, NULL },
    FS_SIZE("num_attention_heads", H, "64", 1 << 12),
    FS_SIZE("intermediate_size", F, "16384", 1 << 20),
    FS_SIZE("vocab_size", V, "30000", 1 << 24),
    FS_SIZE("max_position_embeddings", P, "512", 1 << 20),
    FS_SIZE("type_vocab_size", types, "2", FS_MAX_TYPES),
    FS_NUMBER("layer_norm_eps", eps, "1e-12"),
    FS_ACTIVATION("hidden_act", "gelu_new"),
    FS_MUST("position_embedding_type", "absolute"),
    FS_NO_DECODER,
    FS_IGNORED("tie_word_embeddings"), /* of the masked-word head */
    /* of the first release's code, without a meaning since */
    FS_IGNORED("down_scale_factor"),
    FS_IGNORED("gap_size"),
    FS_IGNORED("net_structure_type"),
    FS_IGNORED("num_memory_blocks"),
    { 0 },
};

static const fs_weight_row layer_weights[] = {
    FS_ENCODER_LAYER_ROWS("attention.query", "attention.key", "attention.value", "attention.dense",
                          "attention.LayerNorm", "ffn", "ffn_output", "full_layer_layer_norm"),
    { 0 },
};

#define TABLE(n, field, N) FS_ROW(n, offsetof(ends, field), FS_TABLE, FS_DIM_##N, FS_OWN(own, W), FS_CUT_NONE, NULL)
#define NORM(n, field)     FS_ROW(n, offsetof(ends, field), FS_VECTOR, FS_DIM_ONE, FS_OWN(own, W), FS_CUT_NONE, NULL)
#define MAP(n, field, kind, N, K) FS_ROW(n, offsetof(ends, field), kind, N, K, FS_CUT_NONE, NULL)

static const fs_weight_row end_weights[] = {
    TABLE("embeddings.word_embeddings.weight", words, V),
    TABLE("embeddings.token_type_embeddings.weight", types, TYPES),
    TABLE("embeddings.position_embeddings.weight", positions, P),
    NORM("embeddings.LayerNorm.weight", gamma),
    NORM("embeddings.LayerNorm.bias", beta),
    MAP("encoder.embedding_hidden_mapping_in.weight", mapping, FS_MATRIX, FS_DIM_D, FS_OWN(own, W)),
    MAP("encoder.embedding_hidden_mapping_in.bias", mapping_bias, FS_VECTOR, FS_DIM_ONE, FS_DIM_D),
    { 0 },
};

static const fs_head_row head[] = {
    { "pooler.weight", "pooler.bias", FS_ACT_TANH, 0 },
    { "classifier.weight", "classifier.bias", FS_ACT_NONE, 0 },
    { 0 },
};

static const char *const names[] = { "Albert*", NULL };
static const char *const refused[] = { NULL };
static const char *const unused[] = {
    "embeddings.position_ids", "pooler.*", "predictions.*", "sop_classifier.*", "classifier.*", "qa_outputs.*", NULL
};

static fs_status settle(fs_settings *set) {
    const own *o = fs_own(set);
    if (o->groups <= set->L) return FS_OK;
    return fs_fail(FS_CONFIG,
                   "config.json: num_hidden_groups = %lld; there are num_hidden_layers = %lld layers for them",
                   (long long)o->groups, (long long)set->L);
}

static fs_status begin(fs_step *s, const fs_settings *set, const void *weights, fs_carry *carry) {
    const ends *w = weights;
    /* in transformers' order of adding up */
    const fs_gather tables[] = { { &w->words, s->rows->ids },
                                 { &w->types, s->rows->types },
                                 { &w->positions, s->rows->positions } };
    return fs_encoder_begin_narrow(s, set, carry, tables, 3, &w->gamma, &w->beta, &w->mapping, &w->mapping_bias);
}

static const fs_layer_kind kinds[] = {
    { "encoder.albert_layer_groups.%d.albert_layers.0.", layer_weights, sizeof(fs_encoder_layer), 0,
      fs_encoder_layer_plain, NULL },
    { 0 },
};

/* As transformers divides, in floating point. */
static const fs_layer_kind *kind_of(const fs_settings *set, int layer, int *number) {
    const own *o = fs_own(set);
    *number = (int)(layer / ((double)set->L / (double)o->groups));
    return kinds;
}

extern const fs_arch fs_albert;
const fs_arch fs_albert = {
    .model_type = "albert",
    .names = names,
    .refused = refused,
    .base = "albert.",
    .unused = unused,
    .keys = keys,
    .kinds = kinds,
    .kind_of = kind_of,
    .ends = end_weights,
    .ends_bytes = sizeof(ends),
    .head = head,
    .settle = settle,
    .begin = begin,
};
