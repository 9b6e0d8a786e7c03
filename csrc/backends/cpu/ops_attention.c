/* ops_attention.c - attention over rows, cut into (64 tokens, some heads).
 *
 *   tokens   0         64        128       192         a chunk does the query blocks that BEGIN in its tokens;
 *   rows     |--a--|-b-|----c----+----|-d-|----...     a sequence's blocks begin every FS_QUERIES tokens from its start
 *
 * So a short sequence is done whole, its keys packed once, and a long one by several chunks. A query row's bits
 * depend on neither border. */
#include "backends/cpu/ops_inside.h"

enum { TOKENS = 64, CHUNKS_A_THREAD = 12 };

typedef struct {
    float *y;
    const float *q, *k, *v;
    int64_t y_stride, q_stride, k_stride, v_stride;
    const int32_t *offsets, *key_offsets;
    int64_t T, B;
    int64_t most_keys; /* of a row */
    int heads, width, causal;
    float scale;
    fs_relative relative;
} attention;

typedef struct {
    fs_cpu_device *device;
    const attention *a;
    int64_t head_cuts;
} context;

/* The first sequence that ends after token t; B when none does. */
static int64_t sequence_at(const attention *a, int64_t t) {
    int64_t low = 0, high = a->B;
    while (low < high) {
        int64_t mid = (low + high) / 2;
        if (a->offsets[mid + 1] > t) high = mid;
        else low = mid + 1;
    }
    return low;
}

/* What is added to q . k by distance, in units that `scale` makes scores of. The middle one is of a token itself. */
static void spread_relative(float *to, const attention *a, int head) {
    const fs_buckets *b = a->relative.buckets;
    const int64_t stride = a->relative.table->desc.K;
    const float *column = (const float *)a->relative.table->at + a->relative.first + head;
    for (int64_t d = -b->reach; d <= b->reach; d++)
        to[b->reach + d] = column[b->bucket[d > 0][d < 0 ? -d : d] * stride] / a->scale;
}

static void run_head(fs_cpu_device *d, const attention *a, int64_t first, int64_t end, int head, float *scratch) {
    const int64_t column = (int64_t)head * a->width;
    float relative[2 * FS_MOST_REACH + 1];
    if (a->relative.table) spread_relative(relative, a, head);
    for (int64_t b = sequence_at(a, first); b < a->B && a->offsets[b] < end; b++) {
        int64_t start = a->offsets[b], tokens = a->offsets[b + 1] - start, key = a->key_offsets[b];
        int64_t row = start < first ? (first - start + FS_QUERIES - 1) / FS_QUERIES * FS_QUERIES : 0;
        fs_head h = { .y = a->y + start * a->y_stride + column,
                      .q = a->q + start * a->q_stride + column,
                      .k = a->k + key * a->k_stride + column,
                      .v = a->v + key * a->v_stride + column,
                      .y_stride = a->y_stride,
                      .q_stride = a->q_stride,
                      .k_stride = a->k_stride,
                      .v_stride = a->v_stride,
                      .keys = a->key_offsets[b + 1] - key,
                      .head_width = a->width,
                      .scale = a->scale,
                      .causal = a->causal };
        if (a->relative.table) h.reach = a->relative.buckets->reach, h.relative = relative + h.reach;
        for (; row < tokens && start + row < end; row += FS_QUERIES)
            d->kernels->attend(&h, row, tokens - row < FS_QUERIES ? tokens - row : FS_QUERIES, scratch);
    }
}

static void run_chunk(void *made, int64_t chunk, int thread) {
    const context *c = made;
    int64_t first = chunk / c->head_cuts * TOKENS, cut = chunk % c->head_cuts;
    int64_t head = c->a->heads * cut / c->head_cuts, last = c->a->heads * (cut + 1) / c->head_cuts;
    for (; head < last; head++)
        run_head(c->device, c->a, first, first + TOKENS, (int)head, fs_pool_scratch(c->device->pool, thread));
}

static fs_status run_attention(fs_cpu_device *d, const void *args) {
    const attention *a = args;
    /* As many heads to a chunk as leaves enough chunks: while one is done, the rows of the next come nearer. */
    int64_t blocks = (a->T + TOKENS - 1) / TOKENS;
    int64_t cuts = (CHUNKS_A_THREAD * (int64_t)fs_pool_threads(d->pool) + blocks - 1) / blocks;
    context c = { .device = d, .a = a, .head_cuts = cuts < a->heads ? cuts : a->heads };
    fs_cpu_share(d, run_chunk, &c, blocks * c.head_cuts, 2 * a->T * a->most_keys * a->heads * a->width);
    return FS_OK;
}

fs_status fs_cpu_attention(fs_step *s, fs_view y, fs_view q, fs_view k, fs_view v, int heads, const fs_mask *mask) {
    if (!fs_fits_attention(s, y, q, k, v, heads, mask)) return fs_misfit(s, "attention", q, y);
    if (y.cols / heads > FS_HEAD_WIDTH)
        return fs_fail(FS_CONFIG,
                       "%s: heads of %lld numbers are wider than the %d that attention is made for; "
                       "use a checkpoint with narrower heads",
                       s->device->name, (long long)(y.cols / heads), FS_HEAD_WIDTH);
    if (y.rows == 0) return FS_OK;
    const fs_rows *keys = mask->keys ? mask->keys : s->rows;
    attention a = { .y = y.at,
                    .q = q.at,
                    .k = k.at,
                    .v = v.at,
                    .y_stride = y.stride,
                    .q_stride = q.stride,
                    .k_stride = k.stride,
                    .v_stride = v.stride,
                    .offsets = s->rows->offsets,
                    .key_offsets = keys->offsets,
                    .T = y.rows,
                    .B = s->rows->B,
                    .most_keys = keys->longest < k.rows ? keys->longest : k.rows,
                    .heads = heads,
                    .width = (int)(y.cols / heads),
                    .causal = mask->causal,
                    .scale = mask->scale,
                    .relative = mask->relative };
    return fs_cpu_enqueue(s->queue, run_attention, &a, sizeof a);
}
