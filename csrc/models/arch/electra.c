/* electra.c - ELECTRA: BERT's layers, whose embeddings may be of another width W than the layers.
 *
 *   x = project(norm(words[id] + types[type] + positions[i]))         without `project` where W = D
 *   classifier: out_proj(gelu(dense(x[0]))) */
#include "models/encoder.h"

typedef struct {
    fs_weight words, types, positions; /* [V, W], [types, W], [P, W] */
    fs_weight gamma, beta;             /* [1, W] */
    fs_weight project, project_bias;   /* [D, W], [1, D] */
} ends;

typedef struct {
    int64_t W;
    int projects;
} own;

static const fs_key_row keys[] = {
    FS_SIZE("num_hidden_layers", L, "12", 1 << 12),
    FS_SIZE("hidden_size", D, "256", 1 << 16),
    { "embedding_size", FS_KEY_SIZE, FS_OWN(own, W), "128", 1 << 16, NULL },
    FS_SIZE("num_attention_heads", H, "4", 1 << 12),
    FS_SIZE("intermediate_size", F, "1024", 1 << 20),
    FS_SIZE("vocab_size", V, "30522", 1 << 24),
    FS_SIZE("max_position_embeddings", P, "512", 1 << 20),
    FS_SIZE("type_vocab_size", types, "2", FS_MAX_TYPES),
    FS_NUMBER("layer_norm_eps", eps, "1e-12"),
    FS_ACTIVATION("hidden_act", "gelu"),
    FS_MUST("position_embedding_type", "absolute"),
    FS_NO_DECODER,
    FS_IGNORED("tie_word_embeddings"), /* of the masked-word head */
    /* of the multiple-choice head */
    FS_IGNORED("summary_type"),
    FS_IGNORED("summary_use_proj"),
    FS_IGNORED("summary_activation"),
    FS_IGNORED("summary_last_dropout"),
    FS_IGNORED("summary_first_dropout"),
    FS_IGNORED("summary_proj_to_labels"),
    { 0 },
};

#define TABLE(n, field, N)   FS_ROW(n, offsetof(ends, field), FS_TABLE, FS_DIM_##N, FS_OWN(own, W), FS_CUT_NONE, NULL)
#define NORM(n, field, also) FS_ROW(n, offsetof(ends, field), FS_VECTOR, FS_DIM_ONE, FS_OWN(own, W), FS_CUT_NONE, also)
#define PROJECT(n, field, kind, N, K)                                                                                  \
    { n, offsetof(ends, field), kind, N, K, FS_CUT_NONE, NULL, 0, 0, FS_OWN(own, projects), FS_AT_FIRST, 0 }

static const fs_weight_row end_weights[] = {
    TABLE("embeddings.word_embeddings.weight", words, V),
    TABLE("embeddings.token_type_embeddings.weight", types, TYPES),
    TABLE("embeddings.position_embeddings.weight", positions, P),
    NORM("embeddings.LayerNorm.weight", gamma, "embeddings.LayerNorm.gamma"),
    NORM("embeddings.LayerNorm.bias", beta, "embeddings.LayerNorm.beta"),
    PROJECT("embeddings_project.weight", project, FS_MATRIX, FS_DIM_D, FS_OWN(own, W)),
    PROJECT("embeddings_project.bias", project_bias, FS_VECTOR, FS_DIM_ONE, FS_DIM_D),
    { 0 },
};

static const fs_head_row head[] = {
    { "classifier.dense.weight", "classifier.dense.bias", FS_ACT_GELU, 0 },
    { "classifier.out_proj.weight", "classifier.out_proj.bias", FS_ACT_NONE, 0 },
    { 0 },
};

static const char *const names[] = { "Electra*", NULL };
static const char *const refused[] = { "ElectraForCausalLM", NULL };
static const char *const unused[] = { "embeddings.position_ids",
                                      "generator_predictions.*",
                                      "generator_lm_head.*",
                                      "discriminator_predictions.*",
                                      "classifier.*",
                                      "qa_outputs.*",
                                      "sequence_summary.*",
                                      NULL };

static fs_status settle(fs_settings *set) {
    own *o = (own *)set->own;
    o->projects = o->W != set->D;
    return FS_OK;
}

static fs_status begin(fs_step *s, const fs_settings *set, const void *weights, fs_carry *carry) {
    const ends *w = weights;
    /* in transformers' order of adding up */
    const fs_gather tables[] = { { &w->words, s->rows->ids },
                                 { &w->types, s->rows->types },
                                 { &w->positions, s->rows->positions } };
    const own *o = fs_own(set);
    if (!o->projects) return fs_encoder_begin(s, set, carry, tables, 3, &w->gamma, &w->beta);
    return fs_encoder_begin_narrow(s, set, carry, tables, 3, &w->gamma, &w->beta, &w->project, &w->project_bias);
}

static const fs_layer_kind kinds[] = {
    { "encoder.layer.%d.", fs_bert_layer_weights, sizeof(fs_encoder_layer), 0, fs_encoder_layer_plain, NULL },
    { 0 },
};

extern const fs_arch fs_electra;
const fs_arch fs_electra = {
    .model_type = "electra",
    .names = names,
    .refused = refused,
    .base = "electra.",
    .unused = unused,
    .keys = keys,
    .kinds = kinds,
    .ends = end_weights,
    .ends_bytes = sizeof(ends),
    .head = head,
    .settle = settle,
    .begin = begin,
};
