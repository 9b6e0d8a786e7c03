/* ops_product.c - matmul: the product cut into blocks of rows x ranges of panels. Any cut gives the same bits. */
#include "backends/cpu/ops_inside.h"

/* Blocks of fewer rows meet each panel too seldom for what it costs to bring it into L1. */
enum { ROWS_LEAST = 48, CHUNKS_A_THREAD = 16, CHUNKS_A_THREAD_FEW = 4 };

typedef struct {
    fs_cpu_device *device;
    const fs_product *product;
    int64_t row_cuts, panels, panel_cuts;
} cut;

static void run_chunk(void *context, int64_t chunk, int thread) {
    const cut *c = context;
    int64_t r = chunk / c->panel_cuts, p = chunk % c->panel_cuts;
    int64_t row = c->product->T * r / c->row_cuts, panel = c->panels * p / c->panel_cuts;
    c->device->kernels->product(c->product, row, c->product->T * (r + 1) / c->row_cuts - row, panel,
                                c->panels * (p + 1) / c->panel_cuts - panel, fs_pool_scratch(c->device->pool, thread));
}

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows first, in blocks of at least ROWS_LEAST; where that gives too few chunks, panels too. */
static fs_status run_product(fs_cpu_device *d, const void *args) {
    const fs_product *p = args;
    const int threads = fs_pool_threads(d->pool), panel = d->kernels->panel;
    cut c = { .device = d, .product = p, .row_cuts = 1, .panels = (p->N + panel - 1) / panel, .panel_cuts = 1 };
    if (threads > 1) {
        c.row_cuts = at_most((p->T + ROWS_LEAST - 1) / ROWS_LEAST, (int64_t)CHUNKS_A_THREAD * threads);
        if (c.row_cuts < CHUNKS_A_THREAD_FEW * threads)
            c.panel_cuts = at_most(c.panels, (CHUNKS_A_THREAD_FEW * threads + c.row_cuts - 1) / c.row_cuts);
    }
    fs_cpu_share(d, run_chunk, &c, c.row_cuts * c.panel_cuts, p->T * p->N * p->K);
    return FS_OK;
}

fs_status fs_cpu_matmul(fs_step *s, fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e) {
    if (!fs_fits_matmul(y, x, w, e)) return fs_misfit(s, "matmul", x, y);
    if (y.rows == 0) return FS_OK;
    const fs_cpu_epilogue end = fs_cpu_epilogue_of(e);
    fs_product p = { .y = y.at,
                     .x = x.at,
                     .packed = w->at,
                     .bias = end.bias,
                     .residual = end.residual,
                     .y_stride = y.stride,
                     .x_stride = x.stride,
                     .residual_stride = end.residual_stride,
                     .T = y.rows,
                     .N = y.cols,
                     .K = x.cols,
                     .activation = end.activation };
    return fs_cpu_enqueue(s->queue, run_product, &p, sizeof p);
}
