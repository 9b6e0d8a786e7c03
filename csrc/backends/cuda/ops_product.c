/* ops_product.c - matmul on our own kernels, so that a GPU works with nothing but its driver. */
#include "backends/cuda/ops_inside.h"

/* Rows of y that a block computes, and columns: product.cu */
enum { ROWS_F32 = 128, ROWS_16 = 64, COLUMNS = 64 };

fs_status fs_cuda_matmul(fs_step *s, fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e) {
    if (!fs_fits_matmul(y, x, w, e)) return fs_misfit(s, "matmul", x, y);
    if (y.rows == 0) return FS_OK;
    fs_cuda_product p = { .y = y.at,
                          .x = x.at,
                          .w = w->at,
                          .y_stride = y.stride,
                          .x_stride = x.stride,
                          .T = (int)y.rows,
                          .N = (int)y.cols,
                          .K = (int)x.cols,
                          .x_type = x.dtype,
                          .w_type = w->desc.dtype,
                          .y_type = y.dtype };
    if (e) p.activation = e->activation;
    if (e && e->bias) p.bias = e->bias->at;
    if (e && e->residual) {
        p.residual = e->residual->at, p.residual_stride = e->residual->stride;
        p.residual_type = e->residual->dtype;
    }
    const int wide = p.w_type == FS_F32;
    const unsigned blocks = fs_cuda_blocks(p.T, wide ? ROWS_F32 : ROWS_16) * fs_cuda_blocks(p.N, COLUMNS);
    return fs_cuda_launch(s->queue, wide ? FS_CUDA_fs_product_f32_kernel : FS_CUDA_fs_product_16_kernel,
                          (fs_cuda_grid){ blocks, 1, 1 }, &p);
}
