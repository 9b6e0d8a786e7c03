/* roberta.c - RoBERTa, XLM-RoBERTa and CamemBERT: BERT's layers, whose positions begin behind the padding token's id.
 *
 *   x = norm(words[id] + types[type] + positions[pad_token_id + 1 + i])
 *   classifier: out_proj(tanh(dense(x[0])))
 *
 * A token that is the padding token takes no position of its own: it stands at pad_token_id, and those behind it count
 * on as if it were not there, as in transformers' create_position_ids_from_input_ids. */
#include "models/encoder.h"

typedef struct {
    fs_weight words, types, positions; /* [V, D], [types, D], [table, D] */
    fs_weight gamma, beta; /* [1, D] */
} ends;

typedef struct {
    int64_t pad, table; /* pad_token_id; positions in the table, of which those up to pad are no row's */
} own;

static const fs_key_row keys[] = {
    FS_SIZE("num_hidden_layers", L, NULL, 1 << 12),
    FS_SIZE("hidden_size", D, NULL, 1 << 16),
    FS_SIZE("num_attention_heads", H, NULL, 1 << 12),
    FS_SIZE("intermediate_size", F, NULL, 1 << 20),
    FS_SIZE("vocab_size", V, NULL, 1 << 24),
    { "max_position_embeddings", FS_KEY_SIZE, FS_OWN(own, table), "512", 1 << 20, NULL },
    { "pad_token_id", FS_KEY_COUNT, FS_OWN(own, pad), "1", 1 << 19, NULL },
    FS_SIZE("type_vocab_size", types, "2", FS_MAX_TYPES),
    FS_NUMBER("layer_norm_eps", eps, "1e-12"),
    FS_ACTIVATION("hidden_act", "gelu"),
    FS_MUST("position_embedding_type", "absolute"),
    FS_NO_DECODER,
    FS_IGNORED("tie_word_embeddings"), /* of the masked-word head */
    { 0 },
};

static const fs_weight_row end_weights[] = {
    FS_TABLE_ROW("embeddings.word_embeddings.weight", ends, words, V),
    FS_TABLE_ROW("embeddings.token_type_embeddings.weight", ends, types, TYPES),
    FS_ROW("embeddings.position_embeddings.weight", offsetof(ends, positions), FS_TABLE, FS_OWN(own, table), FS_DIM_D,
           FS_CUT_NONE, NULL),
    FS_NORM_ROW("embeddings.LayerNorm.weight", ends, gamma, "embeddings.LayerNorm.gamma"),
    FS_NORM_ROW("embeddings.LayerNorm.bias", ends, beta, "embeddings.LayerNorm.beta"),
    { 0 },
};

static const fs_head_row head[] = {
    { "classifier.dense.weight", "classifier.dense.bias", FS_ACT_TANH, 0 },
    { "classifier.out_proj.weight", "classifier.out_proj.bias", FS_ACT_NONE, 0 },
    { 0 },
};

static const char *const names[] = { "Roberta*", NULL };
static const char *const refused[] = { "RobertaForCausalLM", "RobertaPreLayerNorm*", NULL };
static const char *const xlm_names[] = { "XLMRoberta*", NULL };
static const char *const xlm_refused[] = { "XLMRobertaForCausalLM", "XLMRobertaXL*", NULL };
static const char *const camembert_names[] = { "Camembert*", NULL };
static const char *const camembert_refused[] = { "CamembertForCausalLM", NULL };
static const char *const unused[] = { "embeddings.position_ids",
                                      "embeddings.token_type_ids",
                                      "pooler.*",
                                      "lm_head.*",
                                      "classifier.*",
                                      "qa_outputs.*",
                                      NULL };

static fs_status settle(fs_settings *set) {
    const own *o = fs_own(set);
    if (o->table <= o->pad + 1)
        return fs_fail(FS_CONFIG,
                       "config.json: max_position_embeddings = %lld leaves no positions for tokens, which begin behind "
                       "pad_token_id = %lld",
                       (long long)o->table, (long long)o->pad);
    set->first_position = o->pad + 1;
    set->skipped_id = o->pad;
    set->P = o->table - set->first_position;
    return FS_OK;
}

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

#define ARCH(type, names_, refused_)                                                                                   \
    {                                                                                                                  \
        .model_type = type,                                                                                            \
        .names = names_,                                                                                               \
        .refused = refused_,                                                                                           \
        .base = "roberta.",                                                                                            \
        .unused = unused,                                                                                              \
        .keys = keys,                                                                                                  \
        .kinds = kinds,                                                                                                \
        .ends = end_weights,                                                                                           \
        .ends_bytes = sizeof(ends),                                                                                    \
        .settle = settle,                                                                                              \
        .head = head,                                                                                                  \
        .begin = begin,                                                                                                \
    }

extern const fs_arch fs_roberta, fs_xlm_roberta, fs_camembert;
const fs_arch fs_roberta = ARCH("roberta", names, refused);
const fs_arch fs_xlm_roberta = ARCH("xlm-roberta", xlm_names, xlm_refused);
const fs_arch fs_camembert = ARCH("camembert", camembert_names, camembert_refused);
