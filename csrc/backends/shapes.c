#include "backends/shapes.h"

fs_status fs_misfit(const fs_step *s, const char *op, fs_view x, fs_view y) {
    return fs_fail(FS_DEVICE,
                   "%s: %s of [%lld, %lld] to [%lld, %lld] was given shapes, weights or types that do not go together; "
                   "this is a fault in the architecture, please report it",
                   s->device->name, op, (long long)x.rows, (long long)x.cols, (long long)y.rows, (long long)y.cols);
}

/* Whether ops of the device read and write numbers of this type. */
static int is_number(const fs_step *s, fs_dtype type) { return s->device->backend->computes(s->device, type); }

static int fits_epilogue(fs_view y, const fs_epilogue *e) {
    return !e || (e->activation < FS_ACT_COUNT && (!e->bias || fs_is_vector(e->bias, y.cols)) &&
                  (!e->residual || (e->residual->dtype == FS_F32 && fs_same_shape(*e->residual, y))));
}

int fs_fits_matmul(fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e) {
    const fs_dtype type = w->desc.dtype;
    return (x.dtype == FS_F32 || x.dtype == type) && (y.dtype == FS_F32 || y.dtype == type) &&
           w->desc.kind == FS_MATRIX && x.rows == y.rows && x.cols == w->desc.K && y.cols == w->desc.N &&
           fits_epilogue(y, e);
}

static int fits_relative(const fs_mask *mask, int heads) {
    const fs_relative *r = &mask->relative;
    return !r->table || (!mask->causal && !mask->keys && mask->scale > 0 && r->buckets->reach >= 1 &&
                         r->buckets->reach <= FS_MOST_REACH && r->table->desc.kind == FS_TABLE && r->first >= 0 &&
                         r->buckets->count <= r->table->desc.N && r->first + heads <= r->table->desc.K);
}

int fs_fits_attention(const fs_step *s, fs_view y, fs_view q, fs_view k, fs_view v, int heads, const fs_mask *mask) {
    const fs_rows *keys = mask->keys;
    return heads >= 1 && y.cols >= heads && y.cols % heads == 0 && fs_same_shape(q, y) && fs_same_shape(v, k) &&
           k.cols == y.cols && k.rows == (keys ? keys->T : y.rows) &&
           (!keys || (!mask->causal && keys->B == s->rows->B)) && is_number(s, y.dtype) && q.dtype == y.dtype &&
           k.dtype == y.dtype && v.dtype == y.dtype && fits_relative(mask, heads);
}

static int fits_norm(const fs_step *s, fs_view y, const fs_norm *norm) {
    return fs_is_vector(norm->gamma, y.cols) && (!norm->beta || fs_is_vector(norm->beta, y.cols)) &&
           (!norm->copy ||
            (norm->copy->dtype != FS_F32 && is_number(s, norm->copy->dtype) && fs_same_shape(*norm->copy, y)));
}

int fs_fits_rows(const fs_step *s, fs_view y, fs_view x, const fs_gather *tables, int n, const fs_norm *norm) {
    int fits = is_number(s, y.dtype) && (n || x.dtype == FS_F32) && fs_same_shape(x, y);
    fits = fits && n >= 0 && n <= FS_GATHER_TABLES && (!norm || fits_norm(s, y, norm));
    for (int i = 0; fits && i < n; i++)
        fits = tables[i].table->desc.kind == FS_TABLE && tables[i].table->desc.K == y.cols;
    return fits;
}

int fs_fits_pool(const fs_step *s, fs_view y, fs_view x, fs_pooling kind) {
    return x.dtype == FS_F32 && y.dtype == FS_F32 && x.cols == y.cols && y.rows <= s->rows->B && kind < FS_POOL_COUNT;
}

int fs_fits_add(const fs_step *s, fs_view y, fs_view x, const fs_epilogue *e) {
    return x.dtype == FS_F32 && is_number(s, y.dtype) && fs_same_shape(x, y) && fits_epilogue(y, e);
}

fs_status fs_check_weight(const fs_device *d, const fs_weight_desc *desc) {
    if (!d->backend->computes(d, desc->dtype))
        return fs_fail(FS_CONFIG, "%s does not compute in %s; use dtype=\"fp32\" or \"auto\"", d->name,
                       fs_dtype_name(desc->dtype));
    if (desc->scheme != FS_SCHEME_PLAIN || desc->group != 0)
        return fs_fail(FS_CONFIG, "%s holds no weights of scheme %d in groups of %d; there is scheme 0, without groups",
                       d->name, (int)desc->scheme, (int)desc->group);
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
