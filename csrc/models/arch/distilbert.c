/* distilbert.c - DistilBERT: BERT's layers under other names, without token types.
 *
 *   x = norm(words[id] + positions[i])
 *   classifier: classifier(relu(pre_classifier(x[0])))
 *
 * Sinusoidal positions are in the files like learnt ones. */
#include "models/encoder.h"

typedef struct {
    fs_weight words, positions; /* [V, D], [P, D] */
    fs_weight gamma, beta; /* [1, D] */
} ends;

static const fs_key_row keys[] = {
    FS_SIZE("n_layers", L, "6", 1 << 12),
    FS_SIZE("dim", D, "768", 1 << 16),
    FS_SIZE("n_heads", H, "12", 1 << 12),
    FS_SIZE("hidden_dim", F, "3072", 1 << 20),
    FS_SIZE("vocab_size", V, "30522", 1 << 24),
    FS_SIZE("max_position_embeddings", P, "512", 1 << 20),
    FS_ACTIVATION("activation", "gelu"),
    FS_NO_DECODER,
    FS_IGNORED("sinusoidal_pos_embds"),
    FS_IGNORED("tie_weights_"),
    FS_IGNORED("tie_word_embeddings"), /* of the masked-word head */
    FS_IGNORED("qa_dropout"),
    FS_IGNORED("seq_classif_dropout"),
    { 0 },
};

static const fs_weight_row layer_weights[] = {
    FS_ENCODER_LAYER_ROWS("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm",
                          "ffn.lin1", "ffn.lin2", "output_layer_norm"),
    { 0 },
};

static const fs_weight_row end_weights[] = {
    FS_TABLE_ROW("embeddings.word_embeddings.weight", ends, words, V),
    FS_TABLE_ROW("embeddings.position_embeddings.weight", ends, positions, P),
    FS_NORM_ROW("embeddings.LayerNorm.weight", ends, gamma, "embeddings.LayerNorm.gamma"),
    FS_NORM_ROW("embeddings.LayerNorm.bias", ends, beta, "embeddings.LayerNorm.beta"),
    { 0 },
};

static const fs_head_row head[] = {
    { "pre_classifier.weight", "pre_classifier.bias", FS_ACT_RELU, 0 },
    { "classifier.weight", "classifier.bias", FS_ACT_NONE, 0 },
    { 0 },
};

static const char *const names[] = { "DistilBert*", NULL };
static const char *const refused[] = { NULL };
static const char *const unused[] = {
    "embeddings.position_ids", "vocab_transform.*", "vocab_layer_norm.*", "vocab_projector.*",
    "pre_classifier.*",        "classifier.*",      "qa_outputs.*",       NULL
};

static fs_status settle(fs_settings *set) {
    set->eps = 1e-12f; /* not configurable */
    return FS_OK;
}

static fs_status begin(fs_step *s, const fs_settings *set, const void *weights, fs_carry *carry) {
    const ends *w = weights;
    const fs_gather tables[] = { { &w->words, s->rows->ids }, { &w->positions, s->rows->positions } };
    return fs_encoder_begin(s, set, carry, tables, 2, &w->gamma, &w->beta);
}

static const fs_layer_kind kinds[] = {
    { "transformer.layer.%d.", layer_weights, sizeof(fs_encoder_layer), 0, fs_encoder_layer_plain, NULL },
    { 0 },
};

extern const fs_arch fs_distilbert;
const fs_arch fs_distilbert = {
    .model_type = "distilbert",
    .names = names,
    .refused = refused,
    .base = "distilbert.",
    .unused = unused,
    .keys = keys,
    .kinds = kinds,
    .ends = end_weights,
    .ends_bytes = sizeof(ends),
    .head = head,
    .settle = settle,
    .begin = begin,
};
