/* ops.c - every op as a line and figures. The lines are compared with golden files, so their form is fixed:
 *
 *   matmul x[7,48] w[144,48] bias gelu -> y[7,144]
 *   attention q[7,48]/144 k[7,48]/144 v[7,48]/144 heads 3 scale 0.25 B 2 longest 4 -> y[7,48]
 *
 * [rows,cols], then :type where it is not fp32, /stride where it is not cols; N, K of a weight; what an op is not given
 * is not mentioned. Shapes that do not go together fail here, before a real device would read past an end. */
#include "backends/measure/measure.h"
#include "backends/shapes.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *op;
    char text[480];
    fs_measured figures;
    int misfit; /* some shape does not go with the others */
} entry;

static void add_text(entry *e, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add_text(entry *e, const char *format, ...) {
    size_t used = strlen(e->text);
    va_list args;
    va_start(args, format);
    vsnprintf(e->text + used, sizeof e->text - used, format, args);
    va_end(args);
}

static entry begin(const char *op) {
    entry e = { .op = op };
    add_text(&e, "%s", op);
    return e;
}

static void add_shape(entry *e, const char *name, const fs_view *v) {
    add_text(e, " %s[%lld,%lld]", name, (long long)v->rows, (long long)v->cols);
    if (v->dtype != FS_F32) add_text(e, ":%s", fs_dtype_name(v->dtype));
    if (v->stride != v->cols) add_text(e, "/%lld", (long long)v->stride);
}

static int64_t bytes_of(const fs_view *v) { return v->rows * v->cols * (int64_t)fs_dtype_bytes(v->dtype); }

static void add_input(entry *e, const char *name, const fs_view *v) {
    add_shape(e, name, v);
    e->figures.read_bytes += bytes_of(v);
}

static void expect(entry *e, int fits) { e->misfit |= !fits; }

static void add_weight(entry *e, const fs_weight *w, fs_weight_kind kind) {
    add_text(e, " w[%lld,%lld]", (long long)w->desc.N, (long long)w->desc.K);
    expect(e, w->desc.kind == kind);
}

static int64_t weight_size(const fs_weight *w) {
    return w->desc.N * w->desc.K * (int64_t)fs_dtype_bytes(w->desc.dtype);
}

/* A bias, gamma or beta of `width` numbers. */
static void add_vector(entry *e, const char *name, const fs_weight *w, int64_t width) {
    add_text(e, " %s", name);
    expect(e, w->desc.kind == FS_VECTOR && w->desc.N == 1 && w->desc.K == width);
    e->figures.read_bytes += weight_size(w);
}

static void add_epilogue(entry *e, const fs_epilogue *epilogue, const fs_view *y) {
    static const char *const names[] = {
#define X(id, name, formula) name,
        FS_ACTIVATIONS(X)
#undef X
    };
    if (!epilogue) return;
    if (epilogue->bias) add_vector(e, "bias", epilogue->bias, y->cols);
    if (epilogue->activation != FS_ACT_NONE && epilogue->activation < FS_ACT_COUNT)
        add_text(e, " %s", names[epilogue->activation]);
    if (epilogue->residual) {
        add_text(e, " residual");
        expect(e, epilogue->residual->rows == y->rows && epilogue->residual->cols == y->cols);
        e->figures.read_bytes += bytes_of(epilogue->residual);
    }
}

/* The line ends with the output; what is made in place has none. */
static fs_status finish(fs_step *s, entry *e, const fs_view *y) {
    if (y) {
        add_text(e, " ->");
        add_shape(e, "y", y);
        e->figures.written_bytes += bytes_of(y);
    }
    if (e->misfit) return fs_fail(FS_DEVICE, "%s: the shapes of '%s' do not go together", s->device->name, e->text);
    return fs_measure_op(s->device, e->figures, e->text);
}

static void add_tables(entry *e, const fs_view *y, const fs_gather *tables, int n) {
    expect(e, n >= 1 && n <= 4);
    for (int i = 0; i < n && i < 4; i++) {
        add_weight(e, tables[i].table, FS_TABLE);
        add_text(e, tables[i].index ? "" : "@0");
        expect(e, tables[i].table->desc.K == y->cols);
        e->figures.read_bytes += bytes_of(y) + (tables[i].index ? y->rows * (int64_t)sizeof(int32_t) : 0);
    }
}

static void add_norm(entry *e, const fs_norm *norm, const fs_view *y) {
    add_vector(e, "gamma", norm->gamma, y->cols);
    if (norm->beta) add_vector(e, "beta", norm->beta, y->cols);
    add_text(e, " eps %g", (double)norm->eps);
    if (!norm->copy) return;
    add_shape(e, "copy", norm->copy);
    expect(e, norm->copy->rows == y->rows && norm->copy->cols == y->cols);
    e->figures.written_bytes += bytes_of(norm->copy);
}

static fs_status gather(fs_step *s, fs_view y, const fs_gather *tables, int n) {
    entry e = begin("gather");
    add_tables(&e, &y, tables, n);
    return finish(s, &e, &y);
}

static fs_status layer_norm(fs_step *s, fs_view y, fs_view x, const fs_norm *norm) {
    entry e = begin("layer_norm");
    add_input(&e, "x", &x);
    add_norm(&e, norm, &y);
    expect(&e, x.rows == y.rows && x.cols == y.cols);
    return finish(s, &e, &y);
}

static fs_status gather_norm(fs_step *s, fs_view y, const fs_gather *tables, int n, const fs_norm *norm) {
    entry e = begin("gather_norm");
    add_tables(&e, &y, tables, n);
    add_norm(&e, norm, &y);
    return finish(s, &e, &y);
}

static fs_status matmul(fs_step *s, fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *epilogue) {
    entry e = begin("matmul");
    add_input(&e, "x", &x);
    add_weight(&e, w, FS_MATRIX);
    e.figures.read_bytes += weight_size(w);
    add_epilogue(&e, epilogue, &y);
    e.figures.multiply_adds = x.rows * w->desc.N * w->desc.K;
    expect(&e, x.cols == w->desc.K && y.cols == w->desc.N && x.rows == y.rows);
    return finish(s, &e, &y);
}

static fs_status attention(fs_step *s, fs_view y, fs_view q, fs_view k, fs_view v, int heads, const fs_mask *mask) {
    entry e = begin("attention");
    add_input(&e, "q", &q);
    add_input(&e, "k", &k);
    add_input(&e, "v", &v);
    add_text(&e, " heads %d scale %g B %lld longest %lld", heads, (double)mask->scale, (long long)s->rows->B,
             (long long)s->rows->longest);
    if (mask->causal) add_text(&e, " causal");
    if (mask->relative.table) {
        const fs_buckets *b = mask->relative.buckets;
        add_text(&e, " relative [%d,%d] reach %d", (int)b->count, heads, (int)b->reach);
        e.figures.read_bytes += (int64_t)b->count * heads * (int64_t)fs_dtype_bytes(mask->relative.table->desc.dtype);
    }
    if (mask->keys) add_text(&e, " cross longest %lld", (long long)mask->keys->longest);
    /* Each row with each key of the longest sequence, once for the scores and once for the values; causal rows 1, 2 ...
     * n of a sequence with (n + 1) / 2 of them on average. No batch takes more. */
    int64_t longest = mask->keys ? mask->keys->longest : s->rows->longest, keys = longest < k.rows ? longest : k.rows;
    e.figures.multiply_adds = q.rows * (mask->causal ? keys + 1 : 2 * keys) * q.cols;
    expect(&e, fs_fits_attention(s, y, q, k, v, heads, mask));
    return finish(s, &e, &y);
}

static fs_status pool(fs_step *s, fs_view y, fs_view x, fs_pooling kind) {
    static const char *const names[] = {
#define X(id, name, meaning) name,
        FS_POOLINGS(X)
#undef X
    };
    entry e = begin("pool");
    add_text(&e, " %s", kind < FS_POOL_COUNT ? names[kind] : "?");
    add_input(&e, "x", &x);
    expect(&e, kind < FS_POOL_COUNT && x.cols == y.cols && y.rows == s->rows->B);
    return finish(s, &e, &y);
}

static fs_status l2_normalize(fs_step *s, fs_view x) {
    entry e = begin("l2_normalize");
    add_input(&e, "x", &x);
    e.figures.written_bytes += bytes_of(&x);
    return finish(s, &e, NULL);
}

static fs_status add(fs_step *s, fs_view y, fs_view x, const fs_epilogue *epilogue) {
    entry e = begin("add");
    add_input(&e, "x", &x);
    add_epilogue(&e, epilogue, &y);
    expect(&e, x.rows == y.rows && x.cols == y.cols);
    return finish(s, &e, &y);
}

static fs_status all_reduce(fs_step *s, fs_view x) {
    fs_view parts;
    if (!s->comm || s->ranks < 2) return FS_OK;
    size_t mark = fs_arena_mark(s->arena); /* what a backend may gather into before it adds up */
    FS_TRY(fs_arena_view(s->arena, FS_F32, s->ranks * x.rows, x.cols, &parts));
    fs_arena_reset(s->arena, mark);
    entry e = begin("all_reduce");
    add_input(&e, "x", &x);
    add_text(&e, " ranks %d", s->ranks);
    e.figures.written_bytes += bytes_of(&x);
    return finish(s, &e, NULL);
}

const fs_ops fs_measure_ops = {
    .gather = gather,
    .layer_norm = layer_norm,
    .gather_norm = gather_norm,
    .matmul = matmul,
    .attention = attention,
    .pool = pool,
    .l2_normalize = l2_normalize,
    .add = add,
    .all_reduce = all_reduce,
};
