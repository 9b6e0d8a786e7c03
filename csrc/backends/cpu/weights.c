/* weights.c - how weights lie in their slab, and how file rows get there.
 *
 *     MATRIX   packed for the path's product (kernels.h): N rounded up to panels, then K; columns past N zero
 *     TABLE    rows as they are, [N][K]
 *     VECTOR   K floats, then zeros up to 16
 *
 * Rows come from a file's bytes, at any address and in any float type: they pass through a small buffer on the
 * stack. */
#include "backends/cpu/cpu.h"
#include "backends/shapes.h"
#include "base/half.h"

#include <string.h>

static int64_t floats(const fs_cpu_device *d, const fs_weight_desc *desc) {
    switch (desc->kind) {
    case FS_MATRIX: return d->kernels->packed_floats(desc->N, desc->K);
    case FS_TABLE: return desc->N * desc->K;
    default: return (desc->K + 15) & ~(int64_t)15;
    }
}

size_t fs_cpu_weight_bytes(fs_device *d, const fs_weight_desc *desc) {
    return ((size_t)floats(fs_cpu(d), desc) * sizeof(float) + 63) & ~(size_t)63;
}

fs_status fs_cpu_weight_begin(fs_device *d, fs_weight *w, const fs_weight_desc *desc, void *slab_at) {
    FS_TRY(fs_check_weight(d, desc));
    *w = (fs_weight){ .desc = *desc, .at = slab_at };
    /* What no row will write: lanes past N in the last panel, floats past K of a vector. */
    int64_t panel = fs_cpu(d)->kernels->panel, all = floats(fs_cpu(d), desc), from = all;
    if (desc->kind == FS_MATRIX && desc->N % panel) from = all - panel * desc->K;
    if (desc->kind == FS_VECTOR) from = desc->K;
    memset((float *)slab_at + from, 0, (size_t)(all - from) * sizeof(float));
    return FS_OK;
}

fs_status fs_cpu_weight_fill(fs_device *d, fs_weight *w, int64_t row, int64_t rows, const void *from,
                             size_t stride_bytes, fs_dtype from_dtype) {
    enum { ROWS = 16, COLS = 256 };
    float piece[ROWS * COLS];
    const fs_kernels *kernels = fs_cpu(d)->kernels;
    const int64_t K = w->desc.K;
    const size_t item = fs_dtype_bytes(from_dtype);
    FS_TRY(fs_check_fill(w, row, rows, from_dtype));
    if (w->desc.kind != FS_MATRIX) {
        for (int64_t r = 0; r < rows; r++)
            fs_to_f32((float *)w->at + (row + r) * K, (const char *)from + (size_t)r * stride_bytes, from_dtype, K);
        return FS_OK;
    }
    for (int64_t r = 0; r < rows;) {
        int64_t take = ROWS - (row + r) % ROWS; /* up to the next multiple, so whole panels are packed at a time */
        if (take > rows - r) take = rows - r;
        for (int64_t k = 0; k < K; k += COLS) {
            int64_t cols = K - k < COLS ? K - k : COLS;
            for (int64_t i = 0; i < take; i++)
                fs_to_f32(piece + i * COLS, (const char *)from + (size_t)(r + i) * stride_bytes + (size_t)k * item,
                          from_dtype, cols);
            kernels->pack(w->at, K, row + r, take, k, cols, piece, COLS);
        }
        r += take;
    }
    return FS_OK;
}

fs_status fs_cpu_weight_end(fs_device *d, fs_weight *w) {
    (void)d, (void)w;
    return FS_OK;
}
