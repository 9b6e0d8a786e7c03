/* args.h - what each kernel is given: one struct by value. Read by the host (C), by NVRTC and by the software device,
 * so it includes nothing and holds only types whose size all three agree on.
 *
 * Strides are in elements. Types are fs_dtype's: 0 fp32, 1 fp16, 2 bf16. Sizes given by the host are upper bounds that
 * hold for the whole batch; kernels find sequences through `offsets`. */
#ifndef FS_CUDA_ARGS_H
#define FS_CUDA_ARGS_H

/* y[r] = norm(x[r])  or  norm(sum_i table_i[index_i[r]])  or, where gamma is NULL, the sum itself.
 * norm(x) = (x - mean) / sqrt(var + eps) * gamma + beta. A norm's result goes to `copy` as well. One block a row. */
typedef struct {
    void *y, *copy; /* copy may be NULL */
    const void *x; /* NULL where tables are summed */
    const void *table[4]; /* [N, D] of table_type, rows D apart */
    const int *index[4]; /* NULL: row 0 for every token */
    const float *gamma, *beta;
    long long y_stride, copy_stride, x_stride, D;
    int rows, tables, table_type, x_type, y_type, copy_type;
    float eps;
} fs_cuda_rows;

/* y = activation(x + bias) + residual, elementwise; any of bias, residual may be NULL. */
typedef struct {
    void *y;
    const void *x, *residual;
    const float *bias;
    long long y_stride, x_stride, residual_stride, D;
    int rows, activation, x_type, y_type, residual_type;
} fs_cuda_add;

/* y[T,N] = activation(x[T,K] . w[N,K]^T + bias) + residual; w row-major, rows K apart, of w_type. x, y, residual: their
 * types; sums are fp32. */
typedef struct {
    void *y;
    const void *x, *w, *residual;
    const float *bias;
    long long y_stride, x_stride, residual_stride;
    int T, N, K, activation;
    int x_type, w_type, y_type, residual_type;
} fs_cuda_product;

/* ops.h attention over rows: heads of `width` numbers side by side. causal: key j only for j <= i; both offsets are the
 * same ones then. */
typedef struct {
    void *y;
    const void *q, *k, *v;
    const int *offsets, *key_offsets; /* [B + 1]: of q and y; of k and v */
    long long y_stride, q_stride, k_stride, v_stride;
    int B, longest, heads, width;
    float scale;
    int causal;
    int type, y_type; /* of q, k, v; of y */
    /* Added to a score: table[bucket[j > i][min(|j - i|, reach)]][blockIdx.y], in rows of table_stride. NULL: nothing is. */
    const void *table;
    long long table_stride;
    int table_type, reach;
    unsigned char bucket[2][129];
} fs_cuda_attention;

/* y[b] = pooling of x[offsets[b] ... offsets[b + 1]); kind: fs_pooling. Empty sequences give 0. */
typedef struct {
    void *y;
    const void *x;
    const int *offsets;
    long long y_stride, x_stride, D;
    int B, kind, x_type, y_type;
} fs_cuda_pool;

/* x[r] /= max(|x[r]|, 1e-12), fp32, in place. */
typedef struct {
    float *x;
    long long stride, D;
    int rows;
} fs_cuda_normalize;

/* y[i] = x[0][i] + x[1][i] + ... in that order: parts of `count` numbers, one behind the other. */
typedef struct {
    float *y;
    const float *x;
    long long count;
    int parts;
} fs_cuda_sum;

#endif
