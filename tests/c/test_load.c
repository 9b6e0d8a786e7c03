/* loading: the weights a shard holds are the file's, cut and fused as the tables say, and nothing is lost on failure. */
#include "plain_device.h"

#include "models/reading.h"
#include "models/weights.h"
#include "placement/plan.h"
#include "random.h"

/* ---- helpers ---- */

static fs_status read_all(tiny_bert *t, fs_settings *set) {
    FS_TRY(fs_checkpoint_check(&t->c));
    FS_TRY(fs_settings_read(set, &t->c, "auto"));
    return fs_weights_check(&t->c, set);
}

static fs_shard_plan whole(const fs_settings *set) { return (fs_shard_plan){ .last_layer = (int)set->L, .ranks = 1 }; }

static const fs_weight *slot(const fs_shard *s, int layer, const fs_weight_row *table, const char *name) {
    for (const fs_weight_row *row = table; row->name; row++)
        if (!strcmp(row->name, name))
            return (const fs_weight *)((char *)(layer < 0 ? s->ends : s->layers[layer]) + row->slot);
    TEST_FAIL("no row %s", name);
    return NULL;
}

static const fs_weight *layer_weight(const fs_shard *s, int layer, const char *name) {
    return slot(s, layer, fs_archs[0]->kinds[0].weights, name);
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
        CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device, 1));
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
    CHECK_OK(fs_shard_load(&one, &t.c, &set, &plan, &device, 1));
    for (int ranks = 2; ranks <= 4; ranks *= 2)
        for (int rank = 0; rank < ranks; rank++) {
            fs_shard s;
            plan = (fs_shard_plan){ .first_layer = 1, .last_layer = 2, .rank = rank, .ranks = ranks };
            CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device, 1));
            CHECK(s.ends_slab.at == NULL); /* they live with layer 0 */
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
    CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device, 1));
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
    CHECK_FAILS(fs_shard_load(&s, &t.c, &set, &plan, &device, 1), FS_CHECKPOINT, "somebody writes to it");
    CHECK_FAILS(fs_checkpoint_check(&t.c), FS_CHECKPOINT, "the file is cut short");
    close(t.fds[0]);
    CHECK_FAILS(fs_shard_load(&s, &t.c, &set, &plan, &device, 1), FS_CHECKPOINT, "cannot be opened");
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
    CHECK_FAILS(fs_shard_load(&s, &t.c, &set, &plan, &device, 1), FS_NO_MEMORY, "plain:0");
    CHECK_INT(fs_budget_used(&device.budget, FS_WEIGHTS), 0);
    CHECK(s.layers == NULL);
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

static fs_status open_and_plan(tiny_bert *t, fs_device *device, int readers) {
    fs_settings set;
    fs_shard s;
    fs_plan p;
    fs_step_cost cost;
    char *trace;
    const fs_task task = { .pooling_count = 1, .pooling = { FS_POOL_MEAN } };
    const int64_t lengths[] = { 3, 1 };
    FS_TRY(read_all(t, &set));
    const fs_shard_plan plan = whole(&set);
    FS_TRY(fs_shard_load(&s, &t->c, &set, &plan, device, readers));
    fs_shard_release(&s);
    FS_TRY(fs_plan_single(&p, &set));
    fs_plan_free(&p);
    FS_TRY(fs_plan_step_cost(&cost, &set, &plan, &task, 10, 2, 8));
    FS_TRY(fs_plan_trace(&trace, &set, &task, lengths, lengths, 2));
    fs_free(trace);
    return FS_OK;
}

static void any_allocation_may_fail(void) {
    tiny_bert t;
    fs_device device;
    tiny_open(&t, &TINY);
    plain_open(&device, 0);
    for (int readers = 1; readers <= 3; readers += 2) {
        int n = 1;
        for (;; n++) {
            int64_t live = fs_alloc_live();
            fs_alloc_fail_at(n);
            fs_status st = open_and_plan(&t, &device, readers);
            fs_alloc_fail_at(0);
            CHECK_INT(fs_alloc_live(), live);
            CHECK_INT(fs_budget_used(&device.budget, FS_WEIGHTS), 0);
            if (st == FS_OK) break;
            CHECK_INT(st, FS_NO_MEMORY);
        }
        CHECK(n > 30);
    }
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

/* ---- several readers ---- */

/* The tensor of a weight's first table row. */
static const fs_tensor *tensor_of(tiny_bert *t, const fs_shard *s, const fs_weight *w) {
    const fs_arch *a = fs_archs[0];
    const fs_settings set = { .arch = a };
    for (int l = -1; l < s->plan.last_layer; l++) {
        const char *from = l < 0 ? s->ends : s->layers[l];
        for (const fs_weight_row *row = l < 0 ? a->ends : a->kinds[0].weights; row->name; row++) {
            char name[FS_NAME_BYTES];
            if ((const char *)w != from + row->slot) continue;
            fs_weight_name(name, &set, l, row->name);
            return tiny_find(t, name);
        }
    }
    TEST_FAIL("%p is no weight", (const void *)w);
    return t->tensors;
}

static void weights_are_read_in_the_order_of_the_files(void) {
    tiny_shape shape = TINY;
    tiny_bert t;
    fs_settings set;
    fs_device device;
    fs_shard s;
    shape.files = 3;
    tiny_open(&t, &shape);
    plain_open(&device, 0);
    CHECK_OK(read_all(&t, &set));
    const fs_shard_plan plan = whole(&set);
    CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device, 1));
    CHECK_INT(plain.elsewhere, 0);
    CHECK_INT(plain.begun, 5 + 2 * 12);
    for (int i = 1; i < plain.begun; i++) {
        const fs_tensor *a = tensor_of(&t, &s, plain.order[i - 1]), *b = tensor_of(&t, &s, plain.order[i]);
        CHECK(a->file < b->file || (a->file == b->file && a->offset < b->offset));
    }
    fs_shard_release(&s);
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

static void readers_read_at_the_same_time(void) {
    tiny_bert t;
    fs_settings set;
    fs_device device;
    fs_shard s;
    tiny_open(&t, &TINY);
    plain_open(&device, 0);
    CHECK_OK(read_all(&t, &set));
    const fs_shard_plan plan = whole(&set);
    for (int readers = 1; readers <= 5; readers += 2) {
        plain_reset();
        plain.wanted = readers;
        CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device, readers));
        CHECK(plain.elsewhere >= readers - 1);
        fs_shard_release(&s);
    }
    plain_reset();
    CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device, 64)); /* more than there are weights */
    fs_shard_release(&s);
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

static void check_same_weights(const fs_shard *a, const fs_shard *b) {
    const fs_arch *arch = fs_archs[0];
    for (int l = a->ends_slab.at && b->ends_slab.at ? -1 : 0; l < a->plan.last_layer - a->plan.first_layer; l++)
        for (const fs_weight_row *row = l < 0 ? arch->ends : arch->kinds[0].weights; row->name; row++) {
            const fs_weight *v = slot(a, l, l < 0 ? arch->ends : arch->kinds[0].weights, row->name);
            const fs_weight *w = slot(b, l, l < 0 ? arch->ends : arch->kinds[0].weights, row->name);
            CHECK(!memcmp(&v->desc, &w->desc, sizeof v->desc));
            CHECK(!memcmp(v->at, w->at, (size_t)(v->desc.N * v->desc.K) * sizeof(float)));
        }
}

static tiny_shape random_shape(uint64_t *seed) {
    static const fs_dtype dtypes[] = { FS_F32, FS_F16, FS_BF16 };
    int heads = 2 * (int)random_between(seed, 1, 3);
    return (tiny_shape){ .L = (int)random_between(seed, 1, 4),
                         .D = heads * (int)random_between(seed, 1, 9),
                         .H = heads,
                         .F = 2 * (int)random_between(seed, 1, 40),
                         .V = (int)random_between(seed, 1, 4000), /* up to several pieces */
                         .P = (int)random_between(seed, 1, 40),
                         .dtype = dtypes[random_between(seed, 0, 2)],
                         .prefix = random_between(seed, 0, 1) ? "bert." : "",
                         .files = (int)random_between(seed, 1, 3) };
}

static void several_readers_give_the_same_weights(void) {
    uint64_t seed = 11;
    for (int round = 0; round < 24; round++) {
        tiny_shape shape = random_shape(&seed);
        tiny_bert t;
        fs_settings set;
        fs_device device;
        fs_shard one, several;
        tiny_open(&t, &shape);
        plain_open(&device, 0);
        plain.shaken = 1;
        CHECK_OK(read_all(&t, &set));
        fs_shard_plan plan = { .last_layer = shape.L, .ranks = (int)random_between(&seed, 1, 2) };
        plan.first_layer = (int)random_between(&seed, 0, shape.L - 1);
        plan.rank = (int)random_between(&seed, 0, plan.ranks - 1);
        CHECK_OK(fs_shard_load(&one, &t.c, &set, &plan, &device, 1));
        CHECK_OK(fs_shard_load(&several, &t.c, &set, &plan, &device, (int)random_between(&seed, 2, 6)));
        check_same_weights(&one, &several);
        fs_shard_release(&one);
        fs_shard_release(&several);
        CHECK_INT(fs_budget_used(&device.budget, FS_WEIGHTS), 0);
        fs_budget_destroy(&device.budget);
        tiny_close(&t);
    }
}

/* However the readers get on, the failure that one reader meets. */
static void check_one_failure(const tiny_bert *t, const fs_settings *set, fs_device *device, const char *part) {
    const fs_shard_plan plan = whole(set);
    fs_shard s;
    char alone[1000];
    plain.shaken = 0;
    fs_status st = fs_shard_load(&s, &t->c, set, &plan, device, 1);
    CHECK(st != FS_OK && strstr(fs_error_text(), part));
    snprintf(alone, sizeof alone, "%s", fs_error_text());
    plain.shaken = 1;
    for (int i = 0; i < 12; i++) {
        CHECK_INT(fs_shard_load(&s, &t->c, set, &plan, device, 2 + i % 4), st);
        CHECK_TEXT(fs_error_text(), alone);
        CHECK_INT(fs_budget_used(&device->budget, FS_WEIGHTS), 0);
        CHECK(s.layers == NULL);
    }
}

static void of_several_failures_the_earliest_is_told(void) {
    tiny_shape shape = TINY;
    tiny_bert t;
    fs_settings set;
    fs_device device;
    shape.L = 4;
    shape.files = 3;
    tiny_open(&t, &shape);
    plain_open(&device, 0);
    CHECK_OK(read_all(&t, &set));

    plain_reset();
    plain.fails = shape.F; /* a weight of every layer */
    check_one_failure(&t, &set, &device, "is refused");
    plain_reset();
    t.names[40][0] = 'x';
    t.names[70][0] = 'x';
    check_one_failure(&t, &set, &device, "lacks the tensor encoder.layer.");
    t.names[40][0] = t.names[70][0] = 'e';

    for (int cut = 1; cut <= 4; cut++) {
        for (int f = 0; f < 3; f++) CHECK_INT(ftruncate(t.fds[f], t.file_bytes[f] * (5 - cut) / 5), 0);
        check_one_failure(&t, &set, &device, "somebody writes to it");
    }
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

static void a_host_without_threads_is_told(void) {
    tiny_bert t;
    fs_settings set;
    fs_device device;
    fs_shard s;
    pthread_attr_t usual, huge;
    tiny_open(&t, &TINY);
    plain_open(&device, 0);
    CHECK_OK(read_all(&t, &set));
    const fs_shard_plan plan = whole(&set);
    pthread_getattr_default_np(&usual);
    pthread_getattr_default_np(&huge);
    pthread_attr_setstacksize(&huge, (size_t)1 << 50); /* more than there are addresses */
    CHECK_INT(pthread_setattr_default_np(&huge), 0);
    CHECK_FAILS(fs_shard_load(&s, &t.c, &set, &plan, &device, 2), FS_NO_MEMORY, "the host refused a thread");
    CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device, 1));
    CHECK_INT(pthread_setattr_default_np(&usual), 0);
    fs_shard_release(&s);
    pthread_attr_destroy(&usual);
    pthread_attr_destroy(&huge);
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

/* One layer's memory for all layers in turn, through one open reading. */
static void layers_can_be_read_again_elsewhere(void) {
    tiny_bert t;
    fs_settings set;
    fs_device device;
    fs_shard all, window;
    fs_reading reading;
    tiny_open(&t, &TINY);
    plain_open(&device, 0);
    CHECK_OK(read_all(&t, &set));
    const fs_shard_plan plan = { .last_layer = TINY.L, .ranks = 1 }, last = { TINY.L - 1, TINY.L, 0, 1, 0 };
    CHECK_OK(fs_shard_load(&all, &t.c, &set, &plan, &device, 1));
    CHECK_OK(fs_shard_load(&window, &t.c, &set, &last, &device, 1));
    CHECK_OK(fs_reading_open(&reading, &t.c, &set, &plan, &device, 1));
    for (int l = 2 * TINY.L - 1; l >= 0; l--) {
        const fs_slab slab = { l % TINY.L, window.layers[0], window.layer_slabs[0].at };
        fs_shard same = { .plan = last, .layers = &all.layers[l % TINY.L] };
        CHECK_OK(fs_reading_slabs(&reading, &slab, 1));
        check_same_weights(&window, &same);
    }
    fs_reading_close(&reading);
    fs_shard_release(&window);
    fs_shard_release(&all);
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

TESTS({ "every_weight_is_the_file_s", every_weight_is_the_file_s },
      { "shards_reassemble_to_the_whole", shards_reassemble_to_the_whole },
      { "large_tensors_come_in_pieces", large_tensors_come_in_pieces },
      { "files_that_change_while_they_are_read", files_that_change_while_they_are_read },
      { "too_little_memory_is_told_for_the_whole_shard", too_little_memory_is_told_for_the_whole_shard },
      { "any_allocation_may_fail", any_allocation_may_fail },
      { "weights_are_read_in_the_order_of_the_files", weights_are_read_in_the_order_of_the_files },
      { "readers_read_at_the_same_time", readers_read_at_the_same_time },
      { "several_readers_give_the_same_weights", several_readers_give_the_same_weights },
      { "of_several_failures_the_earliest_is_told", of_several_failures_the_earliest_is_told },
      { "a_host_without_threads_is_told", a_host_without_threads_is_told },
      { "layers_can_be_read_again_elsewhere", layers_can_be_read_again_elsewhere })
