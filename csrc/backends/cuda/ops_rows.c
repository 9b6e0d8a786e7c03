/* ops_rows.c - ops that go row by row: gather, norm, add, pool, normalise. */
#include "backends/cuda/ops_inside.h"

enum { FOURS = 256, POOL_COLUMNS = 128 }; /* of a block: rows.cu, pool.cu */

static fs_status run_rows(fs_step *s, const char *op, fs_view y, fs_view x, const fs_gather *tables, int n,
                          const fs_norm *norm) {
    if (!fs_fits_rows(s, y, x, tables, n, norm)) return fs_misfit(s, op, x, y);
    if (y.rows == 0) return FS_OK;
    fs_cuda_rows a = { .y = y.at,
                       .x = n ? NULL : x.at,
                       .y_stride = y.stride,
                       .x_stride = x.stride,
                       .D = y.cols,
                       .rows = (int)y.rows,
                       .tables = n,
                       .x_type = x.dtype,
                       .y_type = y.dtype };
    for (int i = 0; i < n; i++) {
        a.table[i] = tables[i].table->at, a.index[i] = tables[i].index;
        a.table_type = tables[i].table->desc.dtype;
    }
    if (norm) a.gamma = norm->gamma->at, a.eps = norm->eps;
    if (norm && norm->beta) a.beta = norm->beta->at;
    if (norm && norm->copy)
        a.copy = norm->copy->at, a.copy_stride = norm->copy->stride, a.copy_type = norm->copy->dtype;
    return fs_cuda_launch(s->queue, FS_CUDA_fs_rows_kernel, (fs_cuda_grid){ (unsigned)a.rows, 1, 1 }, &a);
}

fs_status fs_cuda_gather(fs_step *s, fs_view y, const fs_gather *tables, int n) {
    if (n < 1) return fs_misfit(s, "gather", y, y);
    return run_rows(s, "gather", y, y, tables, n, NULL);
}

fs_status fs_cuda_layer_norm(fs_step *s, fs_view y, fs_view x, const fs_norm *norm) {
    return run_rows(s, "layer_norm", y, x, NULL, 0, norm);
}

fs_status fs_cuda_gather_norm(fs_step *s, fs_view y, const fs_gather *tables, int n, const fs_norm *norm) {
    if (n < 1) return fs_misfit(s, "gather_norm", y, y);
    return run_rows(s, "gather_norm", y, y, tables, n, norm);
}

fs_status fs_cuda_add_rows(fs_step *s, fs_view y, fs_view x, const fs_epilogue *e) {
    if (!fs_fits_add(s, y, x, e)) return fs_misfit(s, "add", x, y);
    return y.rows ? fs_cuda_launch_add(s, y, x, e) : FS_OK;
}

fs_status fs_cuda_launch_add(fs_step *s, fs_view y, fs_view x, const fs_epilogue *e) {
    fs_cuda_add a = { .y = y.at,
                      .x = x.at,
                      .y_stride = y.stride,
                      .x_stride = x.stride,
                      .D = y.cols,
                      .rows = (int)y.rows,
                      .x_type = x.dtype,
                      .y_type = y.dtype };
    if (e) a.activation = e->activation;
    if (e && e->bias) a.bias = e->bias->at;
    if (e && e->residual) {
        a.residual = e->residual->at, a.residual_stride = e->residual->stride;
        a.residual_type = e->residual->dtype;
    }
    const int64_t fours = a.rows * ((a.D + 3) / 4);
    return fs_cuda_launch(s->queue, FS_CUDA_fs_add_kernel, (fs_cuda_grid){ fs_cuda_blocks(fours, FOURS), 1, 1 }, &a);
}

fs_status fs_cuda_pool_rows(fs_step *s, fs_view y, fs_view x, fs_pooling kind) {
    if (!fs_fits_pool(s, y, x, kind)) return fs_misfit(s, "pool", x, y);
    if (y.rows == 0) return FS_OK;
    const fs_cuda_pool a = { .y = y.at,
                             .x = x.at,
                             .offsets = s->rows->offsets,
                             .y_stride = y.stride,
                             .x_stride = x.stride,
                             .D = y.cols,
                             .B = (int)y.rows,
                             .kind = kind,
                             .x_type = x.dtype,
                             .y_type = y.dtype };
    return fs_cuda_launch(s->queue, FS_CUDA_fs_pool_kernel,
                          (fs_cuda_grid){ (unsigned)a.B, fs_cuda_blocks(a.D, POOL_COLUMNS), 1 }, &a);
}

fs_status fs_cuda_l2_normalize(fs_step *s, fs_view x) {
    if (x.dtype != FS_F32) return fs_misfit(s, "l2_normalize", x, x);
    if (x.rows == 0) return FS_OK;
    const fs_cuda_normalize a = { .x = x.at, .stride = x.stride, .D = x.cols, .rows = (int)x.rows };
    return fs_cuda_launch(s->queue, FS_CUDA_fs_normalize_kernel, (fs_cuda_grid){ (unsigned)a.rows, 1, 1 }, &a);
}
