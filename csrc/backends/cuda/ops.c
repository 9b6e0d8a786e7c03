/* ops.c - the table. The ops themselves: ops_product.c, ops_attention.c, ops_rows.c. */
#include "backends/cuda/ops_inside.h"

const fs_ops fs_cuda_ops = {
    .gather = fs_cuda_gather,
    .layer_norm = fs_cuda_layer_norm,
    .gather_norm = fs_cuda_gather_norm,
    .matmul = fs_cuda_matmul,
    .attention = fs_cuda_attend,
    .pool = fs_cuda_pool_rows,
    .l2_normalize = fs_cuda_l2_normalize,
    .add = fs_cuda_add_rows,
    .all_reduce = fs_cuda_all_reduce,
};
