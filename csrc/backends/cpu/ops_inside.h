/* ops_inside.h - what the ops_*.c share: the ops they define, and how work is handed to the pool. */
#ifndef FS_CPU_OPS_INSIDE_H
#define FS_CPU_OPS_INSIDE_H

#include "backends/cpu/cpu.h"
#include "backends/shapes.h"

fs_status fs_cpu_gather(fs_step *s, fs_view y, const fs_gather *tables, int n);
fs_status fs_cpu_layer_norm(fs_step *s, fs_view y, fs_view x, const fs_norm *norm);
fs_status fs_cpu_gather_norm(fs_step *s, fs_view y, const fs_gather *tables, int n, const fs_norm *norm);
fs_status fs_cpu_matmul(fs_step *s, fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e);
fs_status fs_cpu_attention(fs_step *s, fs_view y, fs_view q, fs_view k, fs_view v, int heads, const fs_mask *mask);
fs_status fs_cpu_pool_rows(fs_step *s, fs_view y, fs_view x, fs_pooling kind);
fs_status fs_cpu_l2_normalize(fs_step *s, fs_view x);
fs_status fs_cpu_add(fs_step *s, fs_view y, fs_view x, const fs_epilogue *e);

/* An epilogue with its addresses taken out: what outlives the call of the op. */
typedef struct {
    const float *bias, *residual; /* or NULL */
    int64_t residual_stride;
    fs_activation activation;
} fs_cpu_epilogue;

/* e may be NULL. */
fs_cpu_epilogue fs_cpu_epilogue_of(const fs_epilogue *e);

/* Runs every chunk, on the pool when the work (multiply-adds, or what takes as long) is worth waking a thread for. */
void fs_cpu_share(fs_cpu_device *d, fs_chunk run, void *context, int64_t chunks, int64_t work);

#endif
