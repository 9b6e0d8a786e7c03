/* backends/measure: figures and trace of every op, without memory behind any address; and ops composed of ops. */
#include "backends/ops.h"
#include "test.h"

static const fs_backend *const measure = &fs_measure_backend;

/* A device with memory for the ops below: T = 7 tokens of B = 2 sequences, longest 4, D = 48. */
typedef struct {
    fs_device *device;
    fs_queue *queue;
    fs_memory memory;
    fs_ops ops;
    fs_rows rows;
    fs_step step;
    fs_weight table, one_row, matrix, bias, gamma, beta;
    fs_view x, y, wide, sentences;
} bench;

static fs_weight weight(bench *b, fs_weight_kind kind, int64_t N, int64_t K) {
    fs_weight w;
    fs_weight_desc desc = { .kind = kind, .dtype = FS_F32, .N = N, .K = K };
    CHECK_OK(measure->weight_begin(b->device, &w, &desc, b->memory.at));
    CHECK_OK(measure->weight_fill(b->device, &w, 0, N, NULL, 0, FS_BF16));
    CHECK_FAILS(measure->weight_fill(b->device, &w, 1, N, NULL, 0, FS_BF16), FS_DEVICE, "are filled into a weight of");
    CHECK_OK(measure->weight_end(b->device, &w));
    return w;
}

static void set_up(bench *b) {
    memset(b, 0, sizeof *b);
    CHECK_OK(measure->open(&b->device, &(fs_device_options){ .max_memory = (size_t)1 << 50 }));
    CHECK_OK(measure->queue_new(b->device, &b->queue));
    CHECK_OK(measure->alloc(b->device, FS_WORKSPACE, (size_t)1 << 40, &b->memory)); /* a terabyte: none is touched */
    b->ops = fs_ops_complete(measure->ops);
    b->rows = (fs_rows){ .T = 7, .B = 2, .longest = 4 };
    b->step = (fs_step){ .device = b->device, .queue = b->queue, .ops = &b->ops, .rows = &b->rows, .ranks = 1 };
    b->table = weight(b, FS_TABLE, 100, 48);
    b->one_row = weight(b, FS_TABLE, 2, 48);
    b->matrix = weight(b, FS_MATRIX, 144, 48);
    b->bias = weight(b, FS_VECTOR, 1, 144);
    b->gamma = weight(b, FS_VECTOR, 1, 48);
    b->beta = weight(b, FS_VECTOR, 1, 48);
    b->x = (fs_view){ .at = b->memory.at, .dtype = FS_F32, .rows = 7, .cols = 48, .stride = 48 };
    b->y = b->x;
    b->wide = (fs_view){ .at = b->memory.at, .dtype = FS_F32, .rows = 7, .cols = 144, .stride = 144 };
    b->sentences = fs_view_rows(b->x, 0, 2);
}

static void tear_down(bench *b) {
    measure->release(b->device, &b->memory);
    CHECK_INT(fs_budget_used(&b->device->budget, FS_WORKSPACE), 0);
    measure->queue_free(b->queue);
    measure->close(b->device);
}

static void run_every_op(bench *b) {
    fs_step *s = &b->step;
    const int32_t *ids = b->memory.at;
    fs_gather tables[] = { { &b->table, ids }, { &b->one_row, NULL } };
    const fs_rows others = { .T = 5, .B = 2, .longest = 3 };
    fs_mask mask = { .scale = 0.25f }, causal = { .scale = 0.25f, .causal = 1 },
            cross = { .scale = 1, .keys = &others };
    fs_epilogue all = { .bias = &b->bias, .activation = FS_ACT_GELU, .residual = &b->wide };
    fs_epilogue nothing = { 0 }, rest = { .bias = &b->gamma, .residual = &b->x };
    fs_view q = fs_view_cols(b->wide, 0, 48), k = fs_view_cols(b->wide, 48, 48), v = fs_view_cols(b->wide, 96, 48);
    CHECK_OK(s->ops->gather(s, b->x, tables, 2));
    CHECK_OK(s->ops->gather_norm(s, b->x, tables, 2, &(fs_norm){ &b->gamma, &b->beta, 1e-12f, NULL }));
    CHECK_OK(s->ops->matmul(s, b->wide, b->x, &b->matrix, &all));
    CHECK_OK(s->ops->matmul(s, b->wide, b->x, &b->matrix, &nothing));
    CHECK_OK(s->ops->attention(s, b->y, q, k, v, 3, &mask));
    CHECK_OK(s->ops->attention(s, b->y, q, k, v, 3, &causal));
    CHECK_OK(s->ops->attention(s, b->y, q, fs_view_rows(k, 0, 5), fs_view_rows(v, 0, 5), 3, &cross));
    CHECK_OK(s->ops->add(s, b->y, b->x, &rest));
    CHECK_OK(s->ops->layer_norm(s, b->y, b->x, &(fs_norm){ &b->gamma, &b->beta, 1e-5f, NULL }));
    CHECK_OK(s->ops->all_reduce(s, b->x)); /* alone: nothing */
    CHECK_OK(s->ops->pool(s, b->sentences, b->x, FS_POOL_MEAN));
    CHECK_OK(s->ops->l2_normalize(s, b->sentences));
}

static void ops_are_traced(void) {
    bench b;
    set_up(&b);
    CHECK_TEXT(fs_measure_trace(b.device), "");
    run_every_op(&b);
    CHECK_TEXT(
        fs_measure_trace(b.device),
        "gather w[100,48] w[2,48]@0 -> y[7,48]\n"
        "gather_norm w[100,48] w[2,48]@0 gamma beta eps 1e-12 -> y[7,48]\n"
        "matmul x[7,48] w[144,48] bias gelu residual -> y[7,144]\n"
        "matmul x[7,48] w[144,48] -> y[7,144]\n"
        "attention q[7,48]/144 k[7,48]/144 v[7,48]/144 heads 3 scale 0.25 B 2 longest 4 -> y[7,48]\n"
        "attention q[7,48]/144 k[7,48]/144 v[7,48]/144 heads 3 scale 0.25 B 2 longest 4 causal -> y[7,48]\n"
        "attention q[7,48]/144 k[5,48]/144 v[5,48]/144 heads 3 scale 1 B 2 longest 4 cross longest 3 -> y[7,48]\n"
        "add x[7,48] bias residual -> y[7,48]\n"
        "layer_norm x[7,48] gamma beta eps 1e-05 -> y[7,48]\n"
        "pool mean x[7,48] -> y[2,48]\n"
        "l2_normalize x[2,48]\n");
    tear_down(&b);
}

static void ops_are_counted(void) {
    bench b;
    set_up(&b);
    fs_epilogue all = { .bias = &b.bias, .residual = &b.wide };
    CHECK_OK(b.ops.matmul(&b.step, b.wide, b.x, &b.matrix, &all));
    fs_measured m = fs_measure_read(b.device);
    CHECK_INT(m.ops, 1);
    CHECK_INT(m.multiply_adds, 7 * 144 * 48);
    CHECK_INT(m.read_bytes, 4 * (7 * 48 + 144 * 48 + 144 + 7 * 144));
    CHECK_INT(m.written_bytes, 4 * 7 * 144);

    fs_mask mask = { .scale = 1 };
    CHECK_OK(b.ops.attention(&b.step, b.y, b.x, b.x, b.x, 3, &mask));
    m = fs_measure_read(b.device);
    CHECK_INT(m.ops, 2);
    CHECK_INT(m.multiply_adds, 7 * 144 * 48 + 2 * 7 * 4 * 48);
    mask.causal = 1; /* rows of 4 tokens see 1, 2, 3, 4 */
    CHECK_OK(b.ops.attention(&b.step, b.y, b.x, b.x, b.x, 3, &mask));
    CHECK_INT(fs_measure_read(b.device).multiply_adds - m.multiply_adds, 7 * (4 + 1) * 48);
    m = fs_measure_read(b.device);
    const fs_rows others = { .T = 3, .B = 2, .longest = 8 }; /* bounded by their tokens too */
    mask = (fs_mask){ .scale = 1, .keys = &others };
    fs_view three = fs_view_rows(b.x, 0, 3);
    CHECK_OK(b.ops.attention(&b.step, b.y, b.x, three, three, 3, &mask));
    CHECK_INT(fs_measure_read(b.device).multiply_adds - m.multiply_adds, 2 * 7 * 3 * 48);

    fs_arena arena = fs_arena_over((void *)(uintptr_t)4096, 2 * 7 * 48 * 4);
    b.step.arena = &arena;
    b.step.ranks = 2;
    CHECK_OK(measure->comm_open(&b.step.comm, NULL, 2, 1));
    CHECK_OK(b.ops.all_reduce(&b.step, b.x));
    CHECK(strstr(fs_measure_trace(b.device), "all_reduce x[7,48] ranks 2\n") != NULL);
    CHECK_INT(arena.peak, 2 * 7 * 48 * 4); /* the parts of both ranks side by side */
    CHECK_INT(fs_arena_mark(&arena), 0);
    measure->comm_close(b.step.comm);
    tear_down(&b);
}

static void shapes_that_do_not_fit_are_refused(void) {
    bench b;
    set_up(&b);
    fs_step *s = &b.step;
    fs_epilogue wrong_bias = { .bias = &b.gamma }, wrong_residual = { .residual = &b.x };
    fs_gather no_table = { &b.matrix, NULL };
    fs_mask mask = { .scale = 1 };
    fs_view fewer = fs_view_rows(b.x, 0, 6);
    CHECK_FAILS(s->ops->matmul(s, b.wide, b.wide, &b.matrix, NULL), FS_DEVICE,
                "measure:0: the shapes of 'matmul x[7,144] w[144,48] -> y[7,144]' do not go together");
    CHECK_FAILS(s->ops->matmul(s, b.wide, b.x, &b.matrix, &wrong_bias), FS_DEVICE, "do not go together");
    CHECK_FAILS(s->ops->matmul(s, b.wide, b.x, &b.matrix, &wrong_residual), FS_DEVICE, "do not go together");
    CHECK_FAILS(s->ops->matmul(s, b.wide, fewer, &b.matrix, NULL), FS_DEVICE, "do not go together");
    CHECK_FAILS(s->ops->matmul(s, b.wide, b.x, &b.table, NULL), FS_DEVICE, "do not go together");
    CHECK_FAILS(s->ops->gather(s, b.x, &no_table, 1), FS_DEVICE, "do not go together");
    CHECK_FAILS(s->ops->gather(s, b.x, &no_table, 0), FS_DEVICE, "do not go together");
    CHECK_FAILS(s->ops->attention(s, b.y, b.x, b.x, b.x, 5, &mask), FS_DEVICE, "do not go together");
    CHECK_FAILS(s->ops->attention(s, b.y, b.x, fewer, fewer, 3, &mask), FS_DEVICE, "do not go together");
    mask.keys = s->rows;
    CHECK_FAILS(s->ops->attention(s, b.y, b.x, fewer, fewer, 3, &mask), FS_DEVICE, "do not go together");
    mask.causal = 1;
    CHECK_FAILS(s->ops->attention(s, b.y, b.x, b.x, b.x, 3, &mask), FS_DEVICE, "do not go together");
    const fs_norm wrong = { &b.bias, NULL, 1e-5f, NULL };
    CHECK_FAILS(s->ops->layer_norm(s, b.x, b.x, &wrong), FS_DEVICE, "do not go together");
    CHECK_FAILS(s->ops->pool(s, b.x, b.x, FS_POOL_CLS), FS_DEVICE, "do not go together");
    CHECK_FAILS(s->ops->add(s, b.x, fewer, NULL), FS_DEVICE, "do not go together");
    CHECK_INT(fs_measure_read(b.device).ops, 0);
    tear_down(&b);
}

static void a_long_trace_keeps_old_readers(void) {
    bench b;
    set_up(&b);
    CHECK_OK(b.ops.l2_normalize(&b.step, b.x));
    const char *first = fs_measure_trace(b.device);
    for (int i = 0; i < 3000; i++) CHECK_OK(b.ops.l2_normalize(&b.step, b.x));
    CHECK(!strncmp(first, "l2_normalize x[7,48]\n", 21));
    CHECK_INT(strlen(fs_measure_trace(b.device)), 3001 * 21);
    CHECK_INT(fs_measure_read(b.device).ops, 3001);
    tear_down(&b);
}

static void memory_and_weights_are_charged(void) {
    fs_device *d;
    fs_memory a, b;
    CHECK_OK(measure->open(&d, &(fs_device_options){ .max_memory = 1000 }));
    CHECK_OK(measure->alloc(d, FS_WEIGHTS, 900, &a));
    CHECK_FAILS(measure->alloc(d, FS_WEIGHTS, 900, &b), FS_NO_MEMORY, "measure:0: weights need");
    CHECK_OK(measure->alloc_pinned(d, FS_STAGING, 100, &b));
    CHECK(a.at != NULL && b.at != NULL && a.at != b.at);
    CHECK_INT((uintptr_t)b.at % 64, 0);
    CHECK_INT(fs_budget_used(&d->budget, FS_STAGING), 100);
    measure->release(d, &a);
    measure->release(d, &b);
    measure->release(d, &b);
    CHECK_INT(fs_budget_used(&d->budget, FS_WEIGHTS), 0);
    CHECK_INT(measure->weight_bytes(d, &(fs_weight_desc){ FS_MATRIX, FS_F32, 144, 48, FS_SCHEME_PLAIN, 0 }),
              144 * 48 * 4);
    CHECK_INT(measure->weight_bytes(d, &(fs_weight_desc){ FS_VECTOR, FS_F32, 1, 17, FS_SCHEME_PLAIN, 0 }), 128);
    measure->close(d);
    CHECK_OK(measure->open(&d, &(fs_device_options){ 0 }));
    CHECK_FAILS(measure->alloc(d, FS_WEIGHTS, SIZE_MAX - 10, &a), FS_NO_MEMORY, "addresses");
    CHECK_INT(fs_budget_used(&d->budget, FS_WEIGHTS), 0);
    measure->close(d);
}

static void every_allocation_can_fail(void) {
    int done = 0;
    for (int n = 1; n < 50 && !done; n++) {
        fs_device *d = NULL;
        fs_queue *q = NULL;
        fs_event *e = NULL;
        fs_status st;
        fs_alloc_fail_at(n);
        st = measure->open(&d, &(fs_device_options){ 0 });
        if (st == FS_OK) st = measure->queue_new(d, &q);
        if (st == FS_OK) st = measure->event_new(d, &e);
        if (st == FS_OK) {
            fs_step s = { .device = d, .queue = q, .ops = measure->ops };
            st = s.ops->l2_normalize(&s, (fs_view){ .dtype = FS_F32, .rows = 1, .cols = 1, .stride = 1 });
        }
        if (st == FS_OK) st = measure->event_record(e, q);
        if (st == FS_OK) st = measure->event_wait(e);
        fs_alloc_fail_at(0);
        done = st == FS_OK;
        if (!done) CHECK_INT(st, FS_NO_MEMORY);
        measure->event_free(e);
        measure->queue_free(q);
        measure->close(d);
    }
    CHECK(done);
}

static void what_is_left_empty_is_composed(void) {
    bench b;
    set_up(&b);
    fs_ops bare = *measure->ops;
    bare.gather_norm = NULL;
    b.ops = fs_ops_complete(&bare);
    CHECK(b.ops.gather == measure->ops->gather);
    fs_gather table = { &b.table, b.memory.at };
    CHECK_OK(b.ops.gather_norm(&b.step, b.x, &table, 1, &(fs_norm){ &b.gamma, &b.beta, 1e-12f, NULL }));
    CHECK_TEXT(fs_measure_trace(b.device), "gather w[100,48] -> y[7,48]\n"
                                           "layer_norm x[7,48] gamma beta eps 1e-12 -> y[7,48]\n");
    CHECK(fs_ops_complete(measure->ops).gather_norm == measure->ops->gather_norm);
    tear_down(&b);
}

TESTS({ "ops_are_traced", ops_are_traced }, { "ops_are_counted", ops_are_counted },
      { "shapes_that_do_not_fit_are_refused", shapes_that_do_not_fit_are_refused },
      { "a_long_trace_keeps_old_readers", a_long_trace_keeps_old_readers },
      { "memory_and_weights_are_charged", memory_and_weights_are_charged },
      { "every_allocation_can_fail", every_allocation_can_fail },
      { "what_is_left_empty_is_composed", what_is_left_empty_is_composed })
