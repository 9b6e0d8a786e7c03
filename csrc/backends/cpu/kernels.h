/* kernels.h - one table of kernels per path: avx512, avx2, portable.
 *
 * A kernel computes one chunk on the calling thread: no threads, no allocation, no state beyond its arguments. The
 * three tables are one set of sources (kernels/NAME.inc) compiled over three versions of simd.h, whose vector is always
 * 16 floats: two AVX2 registers, one AVX-512 register, or four vectors of four. Every sum over a row is 16 lanes wide
 * with one fixed tree, and every product is one chain of fused multiply-adds in the order of k, so avx2 and avx512 give
 * the same bits. */
#ifndef FS_CPU_KERNELS_H
#define FS_CPU_KERNELS_H

#include "backends/ops.h"

/* y[T,N] = activation(x . w^T + bias) + residual. w is packed in panels of `panel` columns, [panels][K][panel]; columns
 * past N are zero. residual may be y itself. */
typedef struct {
    float *y;
    const float *x, *packed, *bias, *residual; /* bias, residual may be NULL */
    int64_t y_stride, x_stride, residual_stride;
    int64_t T, N, K;
    fs_activation activation;
} fs_product;

/* One head of one sequence: y and q point at its first row and column, k and v at the first of its keys. */
typedef struct {
    float *y;
    const float *q, *k, *v;
    int64_t y_stride, q_stride, k_stride, v_stride;
    int64_t keys, head_width;
    float scale;
    int causal; /* row i sees keys 0 ... i */
    const float *relative; /* relative[j - i], up to `reach` either way, is added to q . k; NULL: nothing is */
    int64_t reach;
} fs_head;

/* Query rows that attention packs its keys for. */
#define FS_QUERIES 128

typedef struct {
    const char *name;
    int panel;     /* columns of a panel */
    int tile_rows; /* rows of the micro-tile */

    int64_t (*packed_floats)(int64_t N, int64_t K);
    /* Rows [n, n + rows) and columns [k, k + cols) of w [N, K], fp32, row r at from + r * stride. */
    void (*pack)(float *packed, int64_t K, int64_t n, int64_t rows, int64_t k, int64_t cols, const float *from,
                 int64_t stride);
    /* Rows [row, row + rows) x panels [panel, panel + panels) of y; all of K. */
    void (*product)(const fs_product *p, int64_t row, int64_t rows, int64_t panel, int64_t panels, float *scratch);
    /* Query rows [row, row + rows) of the head, at most FS_QUERIES from a multiple of it on; head_width <=
     * FS_HEAD_WIDTH. */
    void (*attend)(const fs_head *h, int64_t row, int64_t rows, float *scratch);
    /* One row of D floats each; y may be any of the inputs. */
    void (*norm)(float *y, const float *x, const float *gamma, const float *beta, int64_t D, float eps);
    void (*sum)(float *y, const float *const *x, int n, int64_t D); /* y = x[0] + x[1] + ... in order */
    void (*epilogue)(float *y, const float *x, const float *bias, const float *residual, fs_activation act, int64_t D);
    /* One sequence of at least one token. */
    void (*pool)(float *y, const float *x, int64_t stride, int64_t tokens, int64_t D, fs_pooling kind);
    void (*normalize)(float *x, int64_t D);
} fs_kernels;

/* The widest head that attention's scratch holds. */
#define FS_HEAD_WIDTH 256

/* Per-thread scratch every kernel can count on. */
#define FS_CPU_SCRATCH ((size_t)1 << 20)

extern const fs_kernels fs_kernels_avx512, fs_kernels_avx2; /* x86-64 only */
extern const fs_kernels fs_kernels_portable;

/* Best first, as far as they are compiled for this architecture; ends with NULL. */
extern const fs_kernels *const fs_cpu_paths[];
/* NULL when this CPU and kernel can run the path, else why not ("this CPU has no AVX-512F"). */
const char *fs_cpu_path_missing(const fs_kernels *path);
/* FS_CONFIG names what there is where `name` is none of it, whether it can run here or not; NULL and "" are fine. */
fs_status fs_cpu_path_check(const char *name);
/* By name, or the best when name is NULL or "". FS_CONFIG names what there is; FS_DEVICE says why it cannot run. */
fs_status fs_cpu_path_find(const char *name, const fs_kernels **out);

#endif
