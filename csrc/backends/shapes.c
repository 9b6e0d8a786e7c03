#include "backends/shapes.h"

fs_status fs_misfit(const fs_step *s, const char *op, fs_view x, fs_view y) {
    return fs_fail(FS_DEVICE,
                   "%s: %s of [%lld, %lld] to [%lld, %lld] was given shapes, weights or types that do not go together; "
                   "this is a fault in the architecture, please report it",
                   s->device->name, op, (long long)x.rows, (long long)x.cols, (long long)y.rows, (long long)y.cols);
}

int fs_fits_epilogue(fs_view y, const fs_epilogue *e) {
    return !e || (e->activation < FS_ACT_COUNT && (!e->bias || fs_is_vector(e->bias, y.cols)) &&
                  (!e->residual || (e->residual->dtype == FS_F32 && fs_same_shape(*e->residual, y))));
}

int fs_fits_matmul(fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e) {
    return x.dtype == FS_F32 && y.dtype == FS_F32 && w->desc.kind == FS_MATRIX && x.rows == y.rows &&
           x.cols == w->desc.K && y.cols == w->desc.N && fs_fits_epilogue(y, e);
}

int fs_fits_attention(fs_view y, fs_view q, fs_view k, fs_view v, int heads) {
    return heads >= 1 && y.cols >= heads && y.cols % heads == 0 && fs_same_shape(q, y) && fs_same_shape(k, y) &&
           fs_same_shape(v, y) && y.dtype == FS_F32 && q.dtype == FS_F32 && k.dtype == FS_F32 && v.dtype == FS_F32;
}

int fs_fits_rows(fs_view y, fs_view x, const fs_gather *tables, int n, const fs_weight *gamma, const fs_weight *beta) {
    int fits = y.dtype == FS_F32 && x.dtype == FS_F32 && fs_same_shape(x, y) && n >= 0 && n <= FS_GATHER_TABLES;
    fits = fits && (!gamma || fs_is_vector(gamma, y.cols)) && (!beta || fs_is_vector(beta, y.cols));
    for (int i = 0; fits && i < n; i++)
        fits = tables[i].table->desc.kind == FS_TABLE && tables[i].table->desc.K == y.cols;
    return fits;
}

int fs_fits_pool(const fs_step *s, fs_view y, fs_view x, fs_pooling kind) {
    return x.dtype == FS_F32 && y.dtype == FS_F32 && x.cols == y.cols && y.rows <= s->rows->B && kind < FS_POOL_COUNT;
}

int fs_fits_add(fs_view y, fs_view x, const fs_epilogue *e) {
    return x.dtype == FS_F32 && y.dtype == FS_F32 && fs_same_shape(x, y) && fs_fits_epilogue(y, e);
}

fs_status fs_check_weight(const fs_device *d, const fs_weight_desc *desc) {
    if (!d->backend->computes(d, desc->dtype))
        return fs_fail(FS_CONFIG, "%s does not compute in %s; use dtype=\"fp32\" or \"auto\"", d->name,
                       fs_dtype_name(desc->dtype));
    if (desc->N < 1 || desc->K < 1 || desc->N > INT32_MAX || desc->K > INT32_MAX ||
        (desc->kind == FS_VECTOR && desc->N != 1))
        return fs_fail(FS_CHECKPOINT,
                       "a weight of [%lld, %lld] is not one that can be held: both sides must be 1 ... %d, and "
                       "a vector has one row",
                       (long long)desc->N, (long long)desc->K, INT32_MAX);
    return FS_OK;
}

fs_status fs_check_fill(const fs_weight *w, int64_t row, int64_t rows, fs_dtype from_dtype) {
    const int64_t N = w->desc.N, K = w->desc.K;
    if (row < 0 || rows < 0 || row > N || rows > N - row)
        return fs_fail(FS_CHECKPOINT, "rows %lld ... %lld do not lie in a weight of [%lld, %lld]", (long long)row,
                       (long long)(row + rows - 1), (long long)N, (long long)K);
    if (from_dtype != FS_F32 && from_dtype != FS_F16 && from_dtype != FS_BF16)
        return fs_fail(FS_CHECKPOINT, "a weight cannot be filled from %s; fp32, fp16 and bf16 are read",
                       fs_dtype_name(from_dtype));
    return FS_OK;
}
