/* ops.h - what layers are made of. Each op: formula, shapes, whether it is optional.
 *
 * All tensors are views of device memory; fp32 unless said. "Narrow" views may also be fp16 or bf16, where the device
 * computes in that type: what products and attention read, and what they write for one another. Sums, norms and the
 * residual stream are fp32 in any case; a number is rounded once, as it is written. Views given to one op do not overlap except where said.
 * Every op obeys the step contract (backend.h) and "same row, same bits": a row of the output depends on the same row of the
 * inputs (for attention and pool: on the same sequence, as far as it is seen) and on nothing else: not on T, B, its
 * place, or the threads. */
#ifndef FS_BACKENDS_OPS_H
#define FS_BACKENDS_OPS_H

#include "backends/backend.h"

/* Sequences of a batch, packed without padding: sequence b is tokens [offsets[b], offsets[b + 1]). B is an upper
 * bound: sequences past the true ones are empty (their offsets repeat T). The arrays are int32 in device memory. */
typedef struct {
    const int32_t *ids;       /* [T] */
    const int32_t *positions; /* [T] in its sequence, from the model's first position on */
    const int32_t *offsets;   /* [B + 1] */
    int64_t T, B, longest;    /* upper bounds */
    float *features; /* [T, D] where rows are features, not ids; layers may write over them */
    const int32_t *types;     /* [T] of tokens; NULL: 0 throughout */
} fs_rows;

/* What a driver thread gives a layer: where to enqueue, scratch, and its place in a tensor group. */
typedef struct {
    fs_device *device;
    fs_queue *queue;
    const fs_ops *ops;
    fs_arena *arena; /* scratch in device memory */
    fs_arena *kept;  /* for what lives until the step ends; may be the same, and then nothing is kept above scratch */
    const fs_rows *rows;
    fs_comm *comm; /* NULL in a group of one */
    int rank, ranks;
    const fs_rows *targets; /* of models with a decoder: as many sequences as rows; else NULL */
} fs_step;

/* X(enum, name in config.json, formula) */
#define FS_ACTIVATIONS(X)                                                                                              \
    X(FS_ACT_NONE, "none", "x")                                                                                        \
    X(FS_ACT_GELU, "gelu", "x/2 (1 + erf(x / sqrt 2))")                                                                \
    X(FS_ACT_GELU_TANH, "gelu_new", "x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))")                                   \
    X(FS_ACT_RELU, "relu", "max(x, 0)")                                                                                \
    X(FS_ACT_SILU, "silu", "x / (1 + exp(-x))")                                                                        \
    X(FS_ACT_TANH, "tanh", "tanh(x)")

typedef enum {
#define X(id, name, formula) id,
    FS_ACTIVATIONS(X)
#undef X
        FS_ACT_COUNT
} fs_activation;

/* What a product does with its sums before they are written. */
typedef struct {
    const fs_weight *bias;  /* [1, N] or NULL */
    fs_activation activation;
    const fs_view *residual; /* [T, N] or NULL; may be y itself */
} fs_epilogue;

/* Distances of keys from their query fall into buckets: bucket[j > i][|j - i|], those beyond `reach` as `reach` does. Must
 * live until the step that uses it has ended. */
#define FS_MOST_REACH 128
typedef struct {
    int32_t reach, count; /* 1 ... FS_MOST_REACH; of buckets */
    uint8_t bucket[2][FS_MOST_REACH + 1];
} fs_buckets;

/* What is added to the scaled score of key j for query i: table[bucket of j - i][first + h]. */
typedef struct {
    const fs_weight *table; /* TABLE [buckets, heads of all ranks]; NULL: nothing is added */
    const fs_buckets *buckets;
    int first; /* of this rank's heads */
} fs_relative;

/* Who attends to whom, and how scores are scaled. */
typedef struct {
    float scale;         /* of q . k */
    int causal;          /* row i of a sequence sees its rows j <= i only; not together with keys */
    const fs_rows *keys; /* the rows of k and v, as many sequences as q has; NULL: q's own */
    fs_relative relative; /* not together with causal or keys; scale > 0 then */
} fs_mask;

#define FS_POOLINGS(X)                                                                                                 \
    X(FS_POOL_CLS, "cls", "the first token")                                                                           \
    X(FS_POOL_MEAN, "mean", "the mean over the tokens")                                                                \
    X(FS_POOL_MAX, "max", "the largest value over the tokens")                                                         \
    X(FS_POOL_MEAN_SQRT, "mean_sqrt_len", "the sum over the tokens / sqrt(tokens)")                                    \
    X(FS_POOL_WEIGHTED, "weightedmean", "the mean weighted by 1, 2, 3 ... tokens")                                     \
    X(FS_POOL_LAST, "lasttoken", "the last token")

typedef enum {
#define X(id, name, meaning) id,
    FS_POOLINGS(X)
#undef X
        FS_POOL_COUNT
} fs_pooling;

/* A table that gather_norm adds up: row index[t] of it, or its row 0 for every token where index is NULL. */
typedef struct {
    const fs_weight *table; /* TABLE [N, D] */
    const int32_t *index;   /* device memory [T], checked to be below N before upload; or NULL */
} fs_gather;

/* A norm's weights, and where its result is wanted a second time: `copy`, of y's shape and a 16-bit type, or NULL. */
typedef struct {
    const fs_weight *gamma, *beta; /* [1, D] */
    float eps;
    const fs_view *copy;
} fs_norm;

struct fs_ops {
    /* y[T,D] = sum_i tables[i][index_i[t]], in the order given. n <= 4 */
    fs_status (*gather)(fs_step *s, fs_view y, const fs_gather *tables, int n);
    /* y[T,D] = (x - mean_D x) / sqrt(var_D x + eps) * gamma + beta, var over D (not D - 1). y may be x; y may be narrow. */
    fs_status (*layer_norm)(fs_step *s, fs_view y, fs_view x, const fs_norm *norm);
    /* optional: y = layer_norm(gather(tables)) */
    fs_status (*gather_norm)(fs_step *s, fs_view y, const fs_gather *tables, int n, const fs_norm *norm);
    /* y[T,N] = activation(x[T,K] . w[N,K]^T + bias) + residual. One K order per weight shape, whatever T is. x and y may
     * be of w's type. */
    fs_status (*matmul)(fs_step *s, fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e);
    /* Over rows, all four of one type, which may be narrow: for each sequence and head h,  y[i, h] = sum_j softmax_j(scale * q[i, h] . k[j, h]) v[j, h],
     * j over the rows of the same sequence that i sees; 0 where there is none. With `relative` a score has its bias added. q, y: [T, H*E], columns h*E ... of head
     * h; k, v: the same, or [keys->T, H*E]. Keys are taken in tiles at fixed places from their sequence's start; of a
     * key that is not seen nothing is felt, whatever it holds. FS_DEVICE for shapes or masks that do not fit. */
    fs_status (*attention)(fs_step *s, fs_view y, fs_view q, fs_view k, fs_view v, int heads, const fs_mask *mask);
    /* y[B,D] from x[T,D]; y of an empty sequence is 0. */
    fs_status (*pool)(fs_step *s, fs_view y, fs_view x, fs_pooling kind);
    /* x[B,D] /= max(|x|_2 over D, 1e-12), in place. */
    fs_status (*l2_normalize)(fs_step *s, fs_view x);
    /* y[T,D] = activation(x + bias) + residual: what is left of an epilogue after all_reduce, or x in y's type. y may be
     * x; y may be narrow. */
    fs_status (*add)(fs_step *s, fs_view y, fs_view x, const fs_epilogue *e);
    /* x[T,D] = sum over the ranks of s->comm, in rank order; nothing in a group of one (collectives.h). */
    fs_status (*all_reduce)(fs_step *s, fs_view x);
};

/* The op table with what the backend left empty composed of the rest (fallback.c). */
fs_ops fs_ops_complete(const fs_ops *ops);

#endif
