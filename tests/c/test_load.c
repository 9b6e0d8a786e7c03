/* loading: the weights a shard holds are the file's, cut and fused as the tables say, and nothing is lost on failure. */
#include "tiny_bert.h"

#include "base/half.h"
#include "models/load.h"
#include "placement/plan.h"
#include "test.h"

/* ---- a backend that keeps weights as plain fp32 rows, so that tests can look at them ---- */

static int64_t plain_filled; /* rows */

static fs_status plain_alloc(fs_device *d, fs_charge charge, size_t bytes, fs_memory *out) {
    FS_TRY(fs_budget_take(&d->budget, charge, bytes));
    fs_status st = fs_alloc_aligned(&out->at, bytes);
    if (st != FS_OK) fs_budget_give(&d->budget, charge, bytes);
    else *out = (fs_memory){ out->at, bytes, charge };
    return st;
}

static void plain_release(fs_device *d, fs_memory *m) {
    if (!m->at) return;
    fs_free(m->at);
    fs_budget_give(&d->budget, m->charge, m->bytes);
    *m = (fs_memory){ 0 };
}

static size_t plain_bytes(fs_device *d, const fs_weight_desc *desc) {
    (void)d;
    return ((size_t)(desc->N * desc->K) * sizeof(float) + 63) & ~(size_t)63;
}

static fs_status plain_begin(fs_device *d, fs_weight *w, const fs_weight_desc *desc, void *at) {
    (void)d;
    *w = (fs_weight){ *desc, at };
    for (int64_t i = 0; i < desc->N * desc->K; i++) ((float *)at)[i] = 999;
    return FS_OK;
}

static fs_status plain_fill(fs_device *d, fs_weight *w, int64_t row, int64_t rows, const void *from, size_t stride,
                            fs_dtype dtype) {
    (void)d;
    CHECK(row >= 0 && rows > 0 && row + rows <= w->desc.N);
    for (int64_t r = 0; r < rows; r++)
        fs_to_f32((float *)w->at + (row + r) * w->desc.K, (const char *)from + (size_t)r * stride, dtype, w->desc.K);
    plain_filled += rows;
    return FS_OK;
}

static fs_status plain_end(fs_device *d, fs_weight *w) {
    (void)d;
    for (int64_t i = 0; i < w->desc.N * w->desc.K; i++) CHECK(((float *)w->at)[i] != 999);
    return FS_OK;
}

static const fs_backend plain_backend = { .name = "plain",
                                          .alloc = plain_alloc,
                                          .release = plain_release,
                                          .weight_bytes = plain_bytes,
                                          .weight_begin = plain_begin,
                                          .weight_fill = plain_fill,
                                          .weight_end = plain_end };

static void plain_open(fs_device *d, size_t limit) {
    *d = (fs_device){ .backend = &plain_backend, .name = "plain:0" };
    fs_budget_init(&d->budget, d->name, limit);
}

/* ---- helpers ---- */

static fs_status read_all(tiny_bert *t, fs_settings *set) {
    FS_TRY(fs_checkpoint_check(&t->c));
    FS_TRY(fs_settings_read(set, &t->c, "auto"));
    return fs_weights_check(&t->c, set);
}

static fs_shard_plan whole(const fs_settings *set) {
    return (fs_shard_plan){ .last_layer = (int)set->L, .ranks = 1, .with_ends = 1 };
}

static const fs_weight *slot(const fs_shard *s, int layer, const fs_weight_row *table, const char *name) {
    for (const fs_weight_row *row = table; row->name; row++)
        if (!strcmp(row->name, name))
            return (const fs_weight *)((char *)(layer < 0 ? s->ends : s->layers[layer]) + row->slot);
    TEST_FAIL("no row %s", name);
    return NULL;
}

static const fs_weight *layer_weight(const fs_shard *s, int layer, const char *name) {
    return slot(s, layer, fs_archs[0]->layer, name);
}

/* ---- loading ---- */

/* Weight `w` of a shard, row n, column k. */
static float at(const fs_weight *w, int64_t n, int64_t k) { return ((const float *)w->at)[n * w->desc.K + k]; }

static void every_weight_is_the_file_s(void) {
    static const fs_dtype dtypes[] = { FS_F32, FS_F16, FS_BF16 };
    for (int d = 0; d < 3; d++) {
        tiny_shape shape = TINY;
        tiny_bert t;
        fs_settings set;
        fs_device device;
        fs_shard s;
        shape.dtype = dtypes[d];
        shape.files = d + 1;
        tiny_open(&t, &shape);
        plain_open(&device, 0);
        CHECK_OK(read_all(&t, &set));
        const fs_shard_plan plan = whole(&set);
        CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device));
        CHECK_INT(fs_budget_used(&device.budget, FS_WEIGHTS), fs_shard_bytes(&set, &plan, &device));
        CHECK_INT(fs_budget_peak(&device.budget), fs_shard_bytes(&set, &plan, &device));
        const fs_weight *words = slot(&s, -1, set.arch->ends, "embeddings.word_embeddings.weight");
        for (int64_t i = 0; i < words->desc.N * words->desc.K; i++)
            CHECK(((float *)words->at)[i] == tiny_value("embeddings.word_embeddings.weight", i));
        const fs_weight *down = layer_weight(&s, 1, "output.dense.weight");
        CHECK_INT(down->desc.N, 16);
        CHECK_INT(down->desc.K, 32);
        for (int64_t i = 0; i < 16 * 32; i++)
            CHECK(((float *)down->at)[i] == tiny_value("encoder.layer.1.output.dense.weight", i));
        fs_shard_release(&s);
        CHECK_INT(fs_budget_used(&device.budget, FS_WEIGHTS), 0);
        fs_budget_destroy(&device.budget);
        tiny_close(&t);
    }
}

/* Shards of 2 and 4 laid side by side are the whole: fused by part, rows, columns, and what is not cut. */
static void shards_reassemble_to_the_whole(void) {
    tiny_bert t;
    fs_settings set;
    fs_device device;
    fs_shard one;
    tiny_open(&t, &TINY);
    plain_open(&device, 0);
    CHECK_OK(read_all(&t, &set));
    fs_shard_plan plan = whole(&set);
    CHECK_OK(fs_shard_load(&one, &t.c, &set, &plan, &device));
    for (int ranks = 2; ranks <= 4; ranks *= 2)
        for (int rank = 0; rank < ranks; rank++) {
            fs_shard s;
            plan = (fs_shard_plan){ .first_layer = 1, .last_layer = 2, .rank = rank, .ranks = ranks };
            CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device));
            CHECK(s.ends == NULL);
            const fs_weight *w, *v;
            int64_t part = set.D / ranks, inner = set.F / ranks;

            w = layer_weight(&one, 1, "attention.self.query.weight"),
            v = layer_weight(&s, 0, "attention.self.query.weight");
            CHECK_INT(v->desc.N, 3 * part);
            for (int64_t n = 0; n < v->desc.N; n++)
                for (int64_t k = 0; k < set.D; k++)
                    CHECK(at(v, n, k) == at(w, n / part * set.D + rank * part + n % part, k));
            w = layer_weight(&one, 1, "attention.self.key.bias"), v = layer_weight(&s, 0, "attention.self.key.bias");
            CHECK_INT(v->desc.K, 3 * part);
            for (int64_t k = 0; k < v->desc.K; k++)
                CHECK(at(v, 0, k) == at(w, 0, k / part * set.D + rank * part + k % part));

            w = layer_weight(&one, 1, "attention.output.dense.weight");
            v = layer_weight(&s, 0, "attention.output.dense.weight");
            CHECK_INT(v->desc.K, part);
            for (int64_t n = 0; n < set.D; n++)
                for (int64_t k = 0; k < part; k++) CHECK(at(v, n, k) == at(w, n, rank * part + k));
            w = layer_weight(&one, 1, "intermediate.dense.weight"),
            v = layer_weight(&s, 0, "intermediate.dense.weight");
            CHECK_INT(v->desc.N, inner);
            for (int64_t n = 0; n < inner; n++)
                for (int64_t k = 0; k < set.D; k++) CHECK(at(v, n, k) == at(w, rank * inner + n, k));
            w = layer_weight(&one, 1, "intermediate.dense.bias"), v = layer_weight(&s, 0, "intermediate.dense.bias");
            CHECK_INT(v->desc.K, inner);
            for (int64_t k = 0; k < inner; k++) CHECK(at(v, 0, k) == at(w, 0, rank * inner + k));
            w = layer_weight(&one, 1, "output.dense.weight"), v = layer_weight(&s, 0, "output.dense.weight");
            CHECK_INT(v->desc.K, inner);
            for (int64_t n = 0; n < set.D; n++)
                for (int64_t k = 0; k < inner; k++) CHECK(at(v, n, k) == at(w, n, rank * inner + k));
            w = layer_weight(&one, 1, "output.dense.bias"), v = layer_weight(&s, 0, "output.dense.bias");
            CHECK_INT(v->desc.K, set.D);
            CHECK(!memcmp(w->at, v->at, (size_t)set.D * sizeof(float)));
            fs_shard_release(&s);
        }
    fs_shard_release(&one);
    CHECK_FAILS(fs_shard_check(&set, 3), FS_CONFIG,
                "attention heads (4) cannot be shared evenly by a tensor group of 3");
    CHECK_FAILS(fs_shard_check(&set, 0), FS_CONFIG, "group of 0");
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

static void large_tensors_come_in_pieces(void) {
    tiny_shape shape = { .L = 1, .D = 64, .H = 2, .F = 64, .V = 10000, .P = 4, .prefix = "", .files = 1 };
    tiny_bert t;
    fs_settings set;
    fs_device device;
    fs_shard s;
    tiny_open(&t, &shape);
    plain_open(&device, 0);
    CHECK_OK(read_all(&t, &set));
    const fs_shard_plan plan = whole(&set);
    plain_filled = 0;
    CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device));
    CHECK_INT(plain_filled, 10000 + 2 + 4 + 2 + 3 * 64 + 1 + 64 + 3 + 64 + 1 + 64 + 3);
    const fs_weight *words = slot(&s, -1, set.arch->ends, "embeddings.word_embeddings.weight");
    for (int64_t i = 0; i < 10000 * 64; i += 61)
        CHECK(((float *)words->at)[i] == tiny_value("embeddings.word_embeddings.weight", i));
    fs_shard_release(&s);
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

static void files_that_change_while_they_are_read(void) {
    tiny_bert t;
    fs_settings set;
    fs_device device;
    fs_shard s;
    tiny_open(&t, &TINY);
    plain_open(&device, 0);
    CHECK_OK(read_all(&t, &set));
    const fs_shard_plan plan = whole(&set);
    CHECK_INT(ftruncate(t.fds[0], t.file_bytes[0] - 3), 0);
    CHECK_FAILS(fs_shard_load(&s, &t.c, &set, &plan, &device), FS_CHECKPOINT, "somebody writes to it");
    CHECK_FAILS(fs_checkpoint_check(&t.c), FS_CHECKPOINT, "the file is cut short");
    close(t.fds[0]);
    CHECK_FAILS(fs_shard_load(&s, &t.c, &set, &plan, &device), FS_CHECKPOINT, "cannot be opened");
    CHECK_INT(fs_budget_used(&device.budget, FS_WEIGHTS), 0);
    fs_budget_destroy(&device.budget);
}

static void too_little_memory_is_told_for_the_whole_shard(void) {
    tiny_bert t;
    fs_settings set;
    fs_device device;
    fs_shard s;
    tiny_open(&t, &TINY);
    plain_open(&device, 10000);
    CHECK_OK(read_all(&t, &set));
    const fs_shard_plan plan = whole(&set);
    CHECK_FAILS(fs_shard_load(&s, &t.c, &set, &plan, &device), FS_NO_MEMORY, "plain:0");
    CHECK_INT(fs_budget_used(&device.budget, FS_WEIGHTS), 0);
    CHECK(s.layers == NULL);
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

static fs_status open_and_plan(tiny_bert *t, fs_device *device) {
    fs_settings set;
    fs_shard s;
    fs_plan p;
    fs_step_cost cost;
    char *trace;
    const fs_task task = { .pooling_count = 1, .pooling = { FS_POOL_MEAN } };
    const int64_t lengths[] = { 3, 1 };
    FS_TRY(read_all(t, &set));
    const fs_shard_plan plan = whole(&set);
    FS_TRY(fs_shard_load(&s, &t->c, &set, &plan, device));
    fs_shard_release(&s);
    FS_TRY(fs_plan_single(&p, &set));
    fs_plan_free(&p);
    FS_TRY(fs_plan_step_cost(&cost, &set, &plan, &task, 10, 2, 8));
    FS_TRY(fs_plan_trace(&trace, &set, &task, lengths, 2));
    fs_free(trace);
    return FS_OK;
}

static void any_allocation_may_fail(void) {
    tiny_bert t;
    fs_device device;
    int n = 1;
    fs_status st;
    tiny_open(&t, &TINY);
    plain_open(&device, 0);
    for (;; n++) {
        int64_t live = fs_alloc_live();
        fs_alloc_fail_at(n);
        st = open_and_plan(&t, &device);
        fs_alloc_fail_at(0);
        CHECK_INT(fs_alloc_live(), live);
        CHECK_INT(fs_budget_used(&device.budget, FS_WEIGHTS), 0);
        if (st == FS_OK) break;
        CHECK_INT(st, FS_NO_MEMORY);
    }
    CHECK(n > 40);
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

TESTS({ "every_weight_is_the_file_s", every_weight_is_the_file_s },
      { "shards_reassemble_to_the_whole", shards_reassemble_to_the_whole },
      { "large_tensors_come_in_pieces", large_tensors_come_in_pieces },
      { "files_that_change_while_they_are_read", files_that_change_while_they_are_read },
      { "too_little_memory_is_told_for_the_whole_shard", too_little_memory_is_told_for_the_whole_shard },
      { "any_allocation_may_fail", any_allocation_may_fail })
