/* shapes.h - which views and weights go together, op by op: asked by every backend before it enqueues.
 *
 * A view that does not fit is a fault in an architecture, never in a row or a file: those were checked when they came in. */
#ifndef FS_BACKENDS_SHAPES_H
#define FS_BACKENDS_SHAPES_H

#include "backends/ops.h"

#define FS_GATHER_TABLES 4 /* most that one gather adds up */

/* FS_DEVICE with both shapes. */
fs_status fs_misfit(const fs_step *s, const char *op, fs_view x, fs_view y);

static inline int fs_same_shape(fs_view a, fs_view b) { return a.rows == b.rows && a.cols == b.cols; }
static inline int fs_is_vector(const fs_weight *w, int64_t width) {
    return w->desc.kind == FS_VECTOR && w->desc.N == 1 && w->desc.K == width;
}

/* e may be NULL. */
int fs_fits_matmul(fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e);
/* Views, heads, and the mask with the rows it names. */
int fs_fits_attention(const fs_step *s, fs_view y, fs_view q, fs_view k, fs_view v, int heads, const fs_mask *mask);
/* gather, layer_norm and gather_norm: n tables or x; norm NULL: none. */
int fs_fits_rows(const fs_step *s, fs_view y, fs_view x, const fs_gather *tables, int n, const fs_norm *norm);
int fs_fits_pool(const fs_step *s, fs_view y, fs_view x, fs_pooling kind);
int fs_fits_add(const fs_step *s, fs_view y, fs_view x, const fs_epilogue *e);

/* What weight_begin and weight_fill refuse on every backend: these may come from a file. */
fs_status fs_check_weight(const fs_device *d, const fs_weight_desc *desc);
fs_status fs_check_fill(const fs_weight *w, int64_t row, int64_t rows, fs_dtype from_dtype);

#endif
