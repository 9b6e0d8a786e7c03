/* ops_attention.c - attention over rows: the kernel made for heads of this width or the next wider one. */
#include "backends/cuda/ops_inside.h"

#include <string.h>

enum { QUERIES = 64, QUERIES_128 = 32, WIDEST = 128 }; /* of a block: attention.cu */

_Static_assert(sizeof((fs_cuda_attention *)0)->bucket == sizeof((fs_buckets *)0)->bucket, "buckets are copied whole");

static void add_relative(fs_cuda_attention *a, const fs_relative *r) {
    const fs_dtype type = r->table->desc.dtype;
    a->table = (const char *)r->table->at + (size_t)r->first * fs_dtype_bytes(type);
    a->table_stride = r->table->desc.K;
    a->table_type = type;
    a->reach = r->buckets->reach;
    memcpy(a->bucket, r->buckets->bucket, sizeof a->bucket);
}

fs_status fs_cuda_attend(fs_step *s, fs_view y, fs_view q, fs_view k, fs_view v, int heads, const fs_mask *mask) {
    if (!fs_fits_attention(s, y, q, k, v, heads, mask)) return fs_misfit(s, "attention", q, y);
    const int width = (int)(y.cols / heads);
    if (width > WIDEST)
        return fs_fail(FS_CONFIG,
                       "%s: heads of %d numbers are wider than the %d that attention is made for; "
                       "use a checkpoint with narrower heads or devices=\"cpu\"",
                       s->device->name, width, WIDEST);
    if (y.rows == 0) return FS_OK;
    fs_cuda_attention a = { .y = y.at,
                            .q = q.at,
                            .k = k.at,
                            .v = v.at,
                            .offsets = s->rows->offsets,
                            .key_offsets = (mask->keys ? mask->keys : s->rows)->offsets,
                            .y_stride = y.stride,
                            .q_stride = q.stride,
                            .k_stride = k.stride,
                            .v_stride = v.stride,
                            .B = (int)s->rows->B,
                            .longest = (int)s->rows->longest,
                            .heads = heads,
                            .width = width,
                            .scale = mask->scale,
                            .causal = mask->causal,
                            .type = q.dtype,
                            .y_type = y.dtype };
    if (mask->relative.table) add_relative(&a, &mask->relative);
    const fs_cuda_kernel kernel = width <= 32   ? FS_CUDA_fs_attention_32_kernel
                                  : width <= 64 ? FS_CUDA_fs_attention_64_kernel
                                                : FS_CUDA_fs_attention_128_kernel;
    const unsigned blocks = (unsigned)a.B * fs_cuda_blocks(a.longest, width > 64 ? QUERIES_128 : QUERIES);
    return fs_cuda_launch(s->queue, kernel, (fs_cuda_grid){ blocks, (unsigned)heads, 1 }, &a);
}
