/* pool.cu - one vector of each sequence.
 *
 *     kernel           grid                      block   dynamic shared
 *     fs_pool_kernel   (B, ceil(D / 128))        128     0
 *
 * A thread has one column and takes the tokens in order, four loads under way at a time; the bits of a sequence
 * depend on its tokens only. Whether numbers are wide is a template argument so that no branch stands between those
 * loads.
 *
 * Bound: x read once. Not yet measured on a GPU. */
#include "backends/cuda/kernels/math.cuh"

/* The numbers of fs_pooling (backends/ops.h). */
enum { FS_TAKE_FIRST, FS_TAKE_MEAN, FS_TAKE_MAX, FS_TAKE_MEAN_SQRT, FS_TAKE_WEIGHTED, FS_TAKE_LAST };

template <bool WIDE> FS_DEVICE float fs_pool_load(const void *x, long long i, int type) {
    return WIDE ? ((const float *)x)[i] : fs_from_16(((const unsigned short *)x)[i], type);
}

/* x: this column of the sequence's first token. NaN stays NaN. */
template <bool WIDE> FS_DEVICE float fs_pool_max(const void *x, long long stride, int tokens, int type) {
    float v = fs_pool_load<WIDE>(x, 0, type);
    FS_UNROLL_BY(4)
    for (int t = 1; t < tokens; t++) {
        const float next = fs_pool_load<WIDE>(x, t * stride, type);
        v = next > v || next != next ? next : v;
    }
    return v;
}

/* sum_t x[t] (1 + t * step) */
template <bool WIDE> FS_DEVICE float fs_pool_sum(const void *x, long long stride, int tokens, int step, int type) {
    float v = fs_pool_load<WIDE>(x, 0, type);
    FS_UNROLL_BY(4)
    for (int t = 1; t < tokens; t++) v = fs_fma(fs_pool_load<WIDE>(x, t * stride, type), (float)(1 + t * step), v);
    return v;
}

template <bool WIDE> FS_DEVICE float fs_pool_tokens(const void *x, long long stride, int tokens, int kind, int type) {
    const float count = (float)tokens;
    if (kind == FS_TAKE_FIRST) return fs_load(x, 0, type);
    if (kind == FS_TAKE_LAST) return fs_load(x, (tokens - 1) * stride, type);
    if (kind == FS_TAKE_MAX) return fs_pool_max<WIDE>(x, stride, tokens, type);
    const float sum = fs_pool_sum<WIDE>(x, stride, tokens, kind == FS_TAKE_WEIGHTED, type);
    if (kind == FS_TAKE_WEIGHTED) return fs_div(sum, count * (count + 1.0f) * 0.5f);
    return fs_div(sum, kind == FS_TAKE_MEAN ? count : fs_sqrt(count));
}

FS_KERNEL(fs_pool_kernel, fs_cuda_pool) {
    const long long b = blockIdx.x, column = (long long)blockIdx.y * fs_pool_kernel_threads + fs_thread();
    if (column >= a.D) return;
    const int first = a.offsets[b], tokens = a.offsets[b + 1] - first;
    const void *x = fs_address(a.x, first * a.x_stride + column, a.x_type);
    float v = 0;
    if (tokens > 0 && a.x_type == FS_TYPE_F32) v = fs_pool_tokens<true>(x, a.x_stride, tokens, a.kind, a.x_type);
    else if (tokens > 0) v = fs_pool_tokens<false>(x, a.x_stride, tokens, a.kind, a.x_type);
    fs_store(a.y, b * a.y_stride + column, a.y_type, v);
}
