/* ernie.c - ERNIE: BERT, which may add a vector for the task; nobody names one here, so that it is task 0's.
 *
 *   x = norm(words[id] + types[type] + positions[i] + tasks[0])       without `tasks` unless use_task_id
 *   classifier: classifier(tanh(pooler(x[0]))) */
#include "models/encoder.h"

typedef struct {
    fs_weight words, types, positions, tasks; /* [V, D], [types, D], [P, D], [tasks, D] */
    fs_weight gamma, beta;                    /* [1, D] */
} ends;

typedef struct {
    int64_t tasks;
    int has_tasks;
} own;

static const fs_key_row keys[] = {
    FS_SIZE("num_hidden_layers", L, "12", 1 << 12),
    FS_SIZE("hidden_size", D, "768", 1 << 16),
    FS_SIZE("num_attention_heads", H, "12", 1 << 12),
    FS_SIZE("intermediate_size", F, "3072", 1 << 20),
    FS_SIZE("vocab_size", V, "30522", 1 << 24),
    FS_SIZE("max_position_embeddings", P, "512", 1 << 20),
    FS_SIZE("type_vocab_size", types, "2", FS_MAX_TYPES),
    { "task_type_vocab_size", FS_KEY_SIZE, FS_OWN(own, tasks), "3", 1 << 16, NULL },
    { "use_task_id", FS_KEY_FLAG, FS_OWN(own, has_tasks), "false", 0, NULL },
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
    FS_TABLE_ROW("embeddings.position_embeddings.weight", ends, positions, P),
    { "embeddings.task_type_embeddings.weight", offsetof(ends, tasks), FS_TABLE, FS_OWN(own, tasks), FS_DIM_D,
      FS_CUT_NONE, NULL, 0, 0, FS_OWN(own, has_tasks), FS_AT_FIRST, 0 },
    FS_NORM_ROW("embeddings.LayerNorm.weight", ends, gamma, "embeddings.LayerNorm.gamma"),
    FS_NORM_ROW("embeddings.LayerNorm.bias", ends, beta, "embeddings.LayerNorm.beta"),
    { 0 },
};

static const fs_head_row head[] = {
    { "pooler.dense.weight", "pooler.dense.bias", FS_ACT_TANH, 0 },
    { "classifier.weight", "classifier.bias", FS_ACT_NONE, 0 },
    { 0 },
};

static const char *const names[] = { "Ernie*", NULL };
static const char *const refused[] = { "ErnieForCausalLM", NULL };
static const char *const unused[] = {
    "embeddings.position_ids", "embeddings.token_type_ids", "pooler.*", "cls.*", "classifier.*", "qa_outputs.*", NULL
};

static fs_status begin(fs_step *s, const fs_settings *set, const void *weights, fs_carry *carry) {
    const ends *w = weights;
    /* in transformers' order of adding up */
    const fs_gather tables[] = { { &w->words, s->rows->ids },
                                 { &w->types, s->rows->types },
                                 { &w->positions, s->rows->positions },
                                 { &w->tasks, NULL } };
    const own *o = fs_own(set);
    return fs_encoder_begin(s, set, carry, tables, o->has_tasks ? 4 : 3, &w->gamma, &w->beta);
}

static const fs_layer_kind kinds[] = {
    { "encoder.layer.%d.", fs_bert_layer_weights, sizeof(fs_encoder_layer), 0, fs_encoder_layer_plain, NULL },
    { 0 },
};

extern const fs_arch fs_ernie;
const fs_arch fs_ernie = {
    .model_type = "ernie",
    .names = names,
    .refused = refused,
    .base = "ernie.",
    .unused = unused,
    .keys = keys,
    .kinds = kinds,
    .ends = end_weights,
    .ends_bytes = sizeof(ends),
    .head = head,
    .begin = begin,
};
