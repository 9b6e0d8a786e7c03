/* mpnet.c - MPNet: BERT's layers, whose attention also weighs how far tokens stand apart; no token types.
 *
 *   x = norm(words[id] + positions[2 + i])
 *   score(i, j) = q[i] . k[j] / sqrt(E) + distances[bucket(j - i)][head], the same table in all layers
 *   classifier: out_proj(tanh(dense(x[0])))
 *
 * There are 32 buckets, whatever config.json says: it decides the rows of the table alone, in transformers too.
 * Half of the buckets are for keys behind the query's place, half for the others; in each half the first half has a bucket a
 * distance, the rest grows by logarithms up to 128, as in T5 (transformers' MPNetEncoder.relative_position_bucket).
 * Positions begin behind 1, whatever pad_token_id says, and a token 1 takes none, as in transformers. */
#include "models/encoder.h"

enum { PAD = 1, BUCKETS = 32, FARTHEST = 128 };

typedef struct {
    fs_weight words, positions; /* [V, D], [table, D] */
    fs_weight gamma, beta;      /* [1, D] */
    fs_weight distances;        /* [buckets, H] */
} ends;

typedef struct {
    int64_t table, count; /* positions and buckets in the tables */
    fs_buckets buckets;
} own;

_Static_assert(sizeof(own) <= FS_OWN_BYTES, "the settings have room for it");

static const fs_key_row keys[] = {
    FS_SIZE("num_hidden_layers", L, "12", 1 << 12),
    FS_SIZE("hidden_size", D, "768", 1 << 16),
    FS_SIZE("num_attention_heads", H, "12", 1 << 12),
    FS_SIZE("intermediate_size", F, "3072", 1 << 20),
    FS_SIZE("vocab_size", V, "30527", 1 << 24),
    { "max_position_embeddings", FS_KEY_SIZE, FS_OWN(own, table), "512", 1 << 20, NULL },
    { "relative_attention_num_buckets", FS_KEY_SIZE, FS_OWN(own, count), "32", 256, NULL },
    FS_NUMBER("layer_norm_eps", eps, "1e-12"),
    FS_ACTIVATION("hidden_act", "gelu"),
    FS_NO_DECODER,
    FS_IGNORED("tie_word_embeddings"), /* of the masked-word head */
    { 0 },
};

static const fs_weight_row layer_weights[] = {
    FS_ENCODER_LAYER_ROWS("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o",
                          "attention.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
    { 0 },
};

static const fs_weight_row end_weights[] = {
    FS_TABLE_ROW("embeddings.word_embeddings.weight", ends, words, V),
    FS_ROW("embeddings.position_embeddings.weight", offsetof(ends, positions), FS_TABLE, FS_OWN(own, table), FS_DIM_D,
           FS_CUT_NONE, NULL),
    FS_NORM_ROW("embeddings.LayerNorm.weight", ends, gamma, NULL),
    FS_NORM_ROW("embeddings.LayerNorm.bias", ends, beta, NULL),
    { "encoder.relative_attention_bias.weight", offsetof(ends, distances), FS_TABLE, FS_OWN(own, count), FS_SET(H),
      FS_CUT_NONE, NULL, 0, 0, 0, FS_AT_EVERY, 0 },
    { 0 },
};

static const fs_head_row head[] = {
    { "classifier.dense.weight", "classifier.dense.bias", FS_ACT_TANH, 0 },
    { "classifier.out_proj.weight", "classifier.out_proj.bias", FS_ACT_NONE, 0 },
    { 0 },
};

static const char *const names[] = { "MPNet*", NULL };
static const char *const refused[] = { NULL };
static const char *const unused[] = {
    "embeddings.position_ids", "pooler.*", "lm_head.*", "classifier.*", "qa_outputs.*", NULL
};

/* In fp32, in torch's order: at some distances the logarithm is all but whole. */
static int bucket_of(int behind, int distance) {
    const int half = BUCKETS / 2, exact = half / 2;
    int bucket = distance;
    if (distance >= exact) {
        const float ratio = logf((float)distance / (float)exact) / (float)log((double)FARTHEST / exact);
        bucket = exact + (int)(ratio * (float)(half - exact));
        if (bucket > half - 1) bucket = half - 1;
    }
    return behind * half + bucket;
}

static fs_status settle(fs_settings *set) {
    own *o = (own *)set->own;
    if (o->table <= PAD + 1)
        return fs_fail(FS_CONFIG,
                       "config.json: max_position_embeddings = %lld leaves no positions for tokens, which begin "
                       "at %d",
                       (long long)o->table, PAD + 1);
    if (o->count < BUCKETS)
        return fs_fail(
            FS_CONFIG,
            "config.json: relative_attention_num_buckets = %lld; distances fall into %d buckets in any case, as "
            "in transformers, so there must be as many at least",
            (long long)o->count, BUCKETS);
    set->first_position = PAD + 1;
    set->skipped_id = PAD;
    set->P = o->table - set->first_position;
    o->buckets = (fs_buckets){ .reach = FS_MOST_REACH, .count = BUCKETS };
    for (int behind = 0; behind < 2; behind++)
        for (int distance = 0; distance <= FS_MOST_REACH; distance++)
            o->buckets.bucket[behind][distance] = (uint8_t)bucket_of(behind, distance);
    return FS_OK;
}

static fs_status begin(fs_step *s, const fs_settings *set, const void *weights, fs_carry *carry) {
    const ends *w = weights;
    const fs_gather tables[] = { { &w->words, s->rows->ids }, { &w->positions, s->rows->positions } };
    return fs_encoder_begin(s, set, carry, tables, 2, &w->gamma, &w->beta);
}

static fs_status run(fs_step *s, const fs_settings *set, const void *outside, const void *layer, fs_carry *carry) {
    const own *o = fs_own(set);
    fs_mask mask = fs_full_mask(set);
    mask.relative =
        (fs_relative){ &((const ends *)outside)->distances, &o->buckets, s->rank * (int)(set->H / s->ranks) };
    return fs_encoder_layer_run(s, set, layer, carry, &mask);
}

static const fs_layer_kind kinds[] = {
    { "encoder.layer.%d.", layer_weights, sizeof(fs_encoder_layer), 0, run, NULL },
    { 0 },
};

extern const fs_arch fs_mpnet;
const fs_arch fs_mpnet = {
    .model_type = "mpnet",
    .names = names,
    .refused = refused,
    .base = "mpnet.",
    .unused = unused,
    .keys = keys,
    .kinds = kinds,
    .ends = end_weights,
    .ends_bytes = sizeof(ends),
    .head = head,
    .settle = settle,
    .begin = begin,
};
