/* ops.c - the table, and what its rows share. The ops themselves: ops_product.c, ops_attention.c, ops_rows.c. */
#include "backends/collectives.h"
#include "backends/cpu/ops_inside.h"

enum { SHARE_FROM = 200000 }; /* about what handing over costs, in multiply-adds */

void fs_cpu_share(fs_cpu_device *d, fs_chunk run, void *context, int64_t chunks, int64_t work) {
    if (work >= SHARE_FROM) {
        fs_pool_run(d->pool, run, context, chunks);
        return;
    }
    for (int64_t chunk = 0; chunk < chunks; chunk++) run(context, chunk, 0);
}

fs_cpu_epilogue fs_cpu_epilogue_of(const fs_epilogue *e) {
    fs_cpu_epilogue out = { .activation = FS_ACT_NONE };
    if (!e) return out;
    out.activation = e->activation;
    if (e->bias) out.bias = e->bias->at;
    if (e->residual) out.residual = e->residual->at, out.residual_stride = e->residual->stride;
    return out;
}

typedef struct {
    fs_comm *comm;
    int rank;
    fs_view x;
} reduction;

static fs_status reduce(fs_cpu_device *d, const void *args) {
    const reduction *r = args;
    (void)d;
    return fs_rendezvous_sum(r->comm, r->rank, r->x);
}

static fs_status all_reduce(fs_step *s, fs_view x) {
    if (!s->comm || s->ranks < 2) return FS_OK;
    if (x.dtype != FS_F32) return fs_misfit(s, "all_reduce", x, x);
    reduction r = { .comm = s->comm, .rank = s->rank, .x = x };
    return fs_cpu_enqueue(s->queue, reduce, &r, sizeof r);
}

const fs_ops fs_cpu_ops = {
    .gather = fs_cpu_gather,
    .layer_norm = fs_cpu_layer_norm,
    .gather_norm = fs_cpu_gather_norm,
    .matmul = fs_cpu_matmul,
    .attention = fs_cpu_attention,
    .pool = fs_cpu_pool_rows,
    .l2_normalize = fs_cpu_l2_normalize,
    .add = fs_cpu_add,
    .all_reduce = all_reduce,
};
