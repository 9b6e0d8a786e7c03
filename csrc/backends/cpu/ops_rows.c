/* ops_rows.c - ops that go row by row: gather, norm, add, pool, normalise. Chunks are runs of rows. */
#include "backends/cpu/ops_inside.h"

#include <string.h>

typedef struct {
    float *y;
    const float *x;
    int64_t y_stride, x_stride, rows, D;
    union {
        struct { /* gather, layer_norm, gather_norm */
            const float *table[FS_GATHER_TABLES];
            const int32_t *index[FS_GATHER_TABLES];
            int tables;
            const float *gamma, *beta; /* gamma NULL: no norm */
            float eps;
        } gather;
        fs_cpu_epilogue add;
        struct {
            const int32_t *offsets;
            fs_pooling kind;
        } pool;
    } of;
} rows_args;

typedef void (*row_run)(const fs_kernels *k, const rows_args *a, int64_t row);

typedef struct {
    fs_cpu_device *device;
    const rows_args *args;
    row_run run;
    int64_t chunks;
} rows_context;

static void run_chunk(void *context, int64_t chunk, int thread) {
    const rows_context *c = context;
    int64_t row = c->args->rows * chunk / c->chunks, end = c->args->rows * (chunk + 1) / c->chunks;
    (void)thread;
    for (; row < end; row++) c->run(c->device->kernels, c->args, row);
}

/* A number takes about as long as `weight` multiply-adds. */
static fs_status run_rows(fs_cpu_device *d, const rows_args *a, row_run run, int64_t weight) {
    enum { NUMBERS = 16384 };
    rows_context c = { .device = d, .args = a, .run = run, .chunks = (a->rows * a->D + NUMBERS - 1) / NUMBERS };
    if (c.chunks > a->rows) c.chunks = a->rows;
    fs_cpu_share(d, run_chunk, &c, c.chunks, a->rows * a->D * weight);
    return FS_OK;
}

static void gather_row(const fs_kernels *k, const rows_args *a, int64_t row) {
    const float *from[FS_GATHER_TABLES], *x = a->x + row * a->x_stride;
    float *y = a->y + row * a->y_stride;
    const int n = a->of.gather.tables;
    for (int i = 0; i < n; i++)
        from[i] = a->of.gather.table[i] + (a->of.gather.index[i] ? a->of.gather.index[i][row] * a->D : 0);
    if (n > 0) {
        k->sum(y, from, n, a->D);
        x = y;
    }
    if (a->of.gather.gamma) k->norm(y, x, a->of.gather.gamma, a->of.gather.beta, a->D, a->of.gather.eps);
}

static fs_status run_gather(fs_cpu_device *d, const void *args) { return run_rows(d, args, gather_row, 8); }

static fs_status enqueue_gather(fs_step *s, const char *op, fs_view y, fs_view x, const fs_gather *tables, int n,
                                const fs_norm *norm) {
    if (!fs_fits_rows(s, y, x, tables, n, norm)) return fs_misfit(s, op, x, y);
    if (y.rows == 0) return FS_OK;
    rows_args a = { .y = y.at, .x = x.at, .y_stride = y.stride, .x_stride = x.stride, .rows = y.rows, .D = y.cols };
    for (int i = 0; i < n; i++) a.of.gather.table[i] = tables[i].table->at, a.of.gather.index[i] = tables[i].index;
    a.of.gather.tables = n;
    if (norm) {
        a.of.gather.gamma = norm->gamma->at;
        a.of.gather.beta = norm->beta ? norm->beta->at : NULL;
        a.of.gather.eps = norm->eps;
    }
    return fs_cpu_enqueue(s->queue, run_gather, &a, sizeof a);
}

fs_status fs_cpu_gather(fs_step *s, fs_view y, const fs_gather *tables, int n) {
    if (n < 1) return fs_misfit(s, "gather", y, y);
    return enqueue_gather(s, "gather", y, y, tables, n, NULL);
}

fs_status fs_cpu_layer_norm(fs_step *s, fs_view y, fs_view x, const fs_norm *norm) {
    return enqueue_gather(s, "layer_norm", y, x, NULL, 0, norm);
}

fs_status fs_cpu_gather_norm(fs_step *s, fs_view y, const fs_gather *tables, int n, const fs_norm *norm) {
    if (n < 1) return fs_misfit(s, "gather_norm", y, y);
    return enqueue_gather(s, "gather_norm", y, y, tables, n, norm);
}

static void add_row(const fs_kernels *k, const rows_args *a, int64_t row) {
    const fs_cpu_epilogue *e = &a->of.add;
    k->epilogue(a->y + row * a->y_stride, a->x + row * a->x_stride, e->bias,
                e->residual ? e->residual + row * e->residual_stride : NULL, e->activation, a->D);
}

static fs_status run_add(fs_cpu_device *d, const void *args) { return run_rows(d, args, add_row, 4); }

fs_status fs_cpu_add(fs_step *s, fs_view y, fs_view x, const fs_epilogue *e) {
    rows_args a = { .y = y.at, .x = x.at, .y_stride = y.stride, .x_stride = x.stride, .rows = y.rows, .D = y.cols };
    if (!fs_fits_add(s, y, x, e)) return fs_misfit(s, "add", x, y);
    a.of.add = fs_cpu_epilogue_of(e);
    return y.rows ? fs_cpu_enqueue(s->queue, run_add, &a, sizeof a) : FS_OK;
}

static void pool_row(const fs_kernels *k, const rows_args *a, int64_t row) {
    const int32_t *offsets = a->of.pool.offsets + row;
    float *y = a->y + row * a->y_stride;
    int64_t tokens = offsets[1] - offsets[0];
    if (tokens > 0) k->pool(y, a->x + offsets[0] * a->x_stride, a->x_stride, tokens, a->D, a->of.pool.kind);
    else memset(y, 0, (size_t)a->D * sizeof *y);
}

static fs_status run_pool(fs_cpu_device *d, const void *args) { return run_rows(d, args, pool_row, 64); }

fs_status fs_cpu_pool_rows(fs_step *s, fs_view y, fs_view x, fs_pooling kind) {
    if (!fs_fits_pool(s, y, x, kind)) return fs_misfit(s, "pool", x, y);
    if (y.rows == 0) return FS_OK;
    rows_args a = { .y = y.at, .x = x.at, .y_stride = y.stride, .x_stride = x.stride, .rows = y.rows, .D = y.cols };
    a.of.pool.offsets = s->rows->offsets;
    a.of.pool.kind = kind;
    return fs_cpu_enqueue(s->queue, run_pool, &a, sizeof a);
}

static void normalize_row(const fs_kernels *k, const rows_args *a, int64_t row) {
    k->normalize(a->y + row * a->y_stride, a->D);
}

static fs_status run_normalize(fs_cpu_device *d, const void *args) { return run_rows(d, args, normalize_row, 4); }

fs_status fs_cpu_l2_normalize(fs_step *s, fs_view x) {
    if (x.dtype != FS_F32) return fs_misfit(s, "l2_normalize", x, x);
    rows_args a = { .y = x.at, .y_stride = x.stride, .rows = x.rows, .D = x.cols };
    return x.rows ? fs_cpu_enqueue(s->queue, run_normalize, &a, sizeof a) : FS_OK;
}
