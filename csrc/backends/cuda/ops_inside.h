/* ops_inside.h - what the ops_*.c share: the ops they define. Shapes are checked by backends/shapes.h. */
#ifndef FS_CUDA_OPS_INSIDE_H
#define FS_CUDA_OPS_INSIDE_H

#include "backends/cuda/cuda.h"
#include "backends/cuda/kernels/args.h"
#include "backends/shapes.h"

fs_status fs_cuda_gather(fs_step *s, fs_view y, const fs_gather *tables, int n);
fs_status fs_cuda_layer_norm(fs_step *s, fs_view y, fs_view x, const fs_norm *norm);
fs_status fs_cuda_gather_norm(fs_step *s, fs_view y, const fs_gather *tables, int n, const fs_norm *norm);
fs_status fs_cuda_matmul(fs_step *s, fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e);
fs_status fs_cuda_prepare_matmul(fs_step *s, fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e);
fs_status fs_cuda_attend(fs_step *s, fs_view y, fs_view q, fs_view k, fs_view v, int heads, const fs_mask *mask);
fs_status fs_cuda_pool_rows(fs_step *s, fs_view y, fs_view x, fs_pooling kind);
fs_status fs_cuda_l2_normalize(fs_step *s, fs_view x);
fs_status fs_cuda_add_rows(fs_step *s, fs_view y, fs_view x, const fs_epilogue *e);

/* The kernel of add over views of any float type that fit. */
fs_status fs_cuda_launch_add(fs_step *s, fs_view y, fs_view x, const fs_epilogue *e);

static inline unsigned fs_cuda_blocks(int64_t n, int64_t each) { return (unsigned)((n + each - 1) / each); }

#endif
