/* bert.c - BERT's encoder: token + type + position embeddings, then L times attention and an inner layer, each followed
 * by a norm of the sum with what went in (encoder.h).
 *
 *   x = norm(words[id] + types[type] + positions[i])
 *   classifier: classifier(tanh(pooler(x[0])))
 *
 * Heads of pre-training (masked words, next sentences) are not part of it. */
#include "models/encoder.h"

typedef struct {
    fs_weight words, types, positions; /* [V, D], [types, D], [P, D] */
    fs_weight gamma, beta; /* [1, D] */
} ends;

static const fs_key_row keys[] = {
    FS_SIZE("num_hidden_layers", L, NULL, 1 << 12),
    FS_SIZE("hidden_size", D, NULL, 1 << 16),
    FS_SIZE("num_attention_heads", H, NULL, 1 << 12),
    FS_SIZE("intermediate_size", F, NULL, 1 << 20),
    FS_SIZE("vocab_size", V, NULL, 1 << 24),
    FS_SIZE("max_position_embeddings", P, "512", 1 << 20),
    FS_SIZE("type_vocab_size", types, "2", FS_MAX_TYPES),
    FS_NUMBER("layer_norm_eps", eps, "1e-12"),
    FS_ACTIVATION("hidden_act", "gelu"),
    FS_MUST("position_embedding_type", "absolute"),
    FS_NO_DECODER,
    FS_IGNORED("tie_word_embeddings"), /* of the masked-word head */
    /* of the pooler, in files converted from the first release */
    FS_IGNORED("directionality"),
    FS_IGNORED("pooler_fc_size"),
    FS_IGNORED("pooler_num_attention_heads"),
    FS_IGNORED("pooler_num_fc_layers"),
    FS_IGNORED("pooler_size_per_head"),
    FS_IGNORED("pooler_type"),
    { 0 },
};

static const fs_weight_row end_weights[] = {
    FS_TABLE_ROW("embeddings.word_embeddings.weight", ends, words, V),
    FS_TABLE_ROW("embeddings.token_type_embeddings.weight", ends, types, TYPES),
    FS_TABLE_ROW("embeddings.position_embeddings.weight", ends, positions, P),
    FS_NORM_ROW("embeddings.LayerNorm.weight", ends, gamma, "embeddings.LayerNorm.gamma"),
    FS_NORM_ROW("embeddings.LayerNorm.bias", ends, beta, "embeddings.LayerNorm.beta"),
    { 0 },
};

static const fs_head_row head[] = {
    { "pooler.dense.weight", "pooler.dense.bias", FS_ACT_TANH, 0 },
    { "classifier.weight", "classifier.bias", FS_ACT_NONE, 0 },
    { 0 },
};

static const char *const names[] = { "Bert*", NULL };
static const char *const refused[] = { "BertLMHeadModel", "BertGeneration*", NULL }; /* decoders */
static const char *const unused[] = {
    "embeddings.position_ids", "embeddings.token_type_ids", "pooler.*", "cls.*", "classifier.*", "qa_outputs.*", NULL
};

static fs_status begin(fs_step *s, const fs_settings *set, const void *weights, fs_carry *carry) {
    const ends *w = weights;
    /* in transformers' order of adding up */
    const fs_gather tables[] = { { &w->words, s->rows->ids },
                                 { &w->types, s->rows->types },
                                 { &w->positions, s->rows->positions } };
    return fs_encoder_begin(s, set, carry, tables, 3, &w->gamma, &w->beta);
}

static const fs_layer_kind kinds[] = {
    { "encoder.layer.%d.", fs_bert_layer_weights, sizeof(fs_encoder_layer), 0, fs_encoder_layer_plain, NULL },
    { 0 },
};

extern const fs_arch fs_bert;
const fs_arch fs_bert = {
    .model_type = "bert",
    .names = names,
    .refused = refused,
    .base = "bert.",
    .unused = unused,
    .keys = keys,
    .kinds = kinds,
    .ends = end_weights,
    .ends_bytes = sizeof(ends),
    .head = head,
    .begin = begin,
};
