/* The engine over the CPU backend, on a tiny nn.Transformer: rows and their targets get the same bits wherever encoder
 * and decoder are cut, copied or streamed, and a wrong target is one row's error. */
#include "engine_kit.h"
#include "tiny_torch.h"

#include <math.h>

enum { LONGEST = 12 };

static const tiny_torch_shape SHAPES[] = {
    { .encoders = 2, .decoders = 2, .D = D, .H = 2, .F = 52, .V = 60, .norm_first = 1 },
    { .encoders = 2, .decoders = 2, .D = D, .H = 2, .F = 52, .causal_targets = 1 },
};
enum { OF_IDS, OF_FEATURES, SHAPE_COUNT };

/* Ids and features; which of them are given depends on the shape. */
typedef struct {
    int32_t ids[ROWS * LONGEST];
    float features[ROWS * LONGEST * D];
    int64_t offsets[ROWS + 1];
} side;

typedef struct {
    side source, targets;
    int64_t rows;
    float out[ROWS * LONGEST * D];
} pairs;

static const tiny_torch_shape *shape;
static pairs alone; /* each pair in a request of its own, through one thread */

static void make_side(side *to, uint64_t *seed) {
    for (int i = 0; i < ROWS; i++) {
        to->offsets[i + 1] = to->offsets[i] + random_between(seed, 1, LONGEST);
        for (int64_t t = to->offsets[i]; t < to->offsets[i + 1]; t++) {
            to->ids[t] = (int32_t)random_between(seed, 0, SHAPES[OF_IDS].V - 1);
            for (int k = 0; k < D; k++) to->features[t * D + k] = (float)random_between(seed, -64, 64) / 64;
        }
    }
}

static void add_tokens(side *to, int64_t row, const side *from, int64_t i) {
    const int64_t at = to->offsets[row], first = from->offsets[i], tokens = from->offsets[i + 1] - first;
    memcpy(to->ids + at, from->ids + first, (size_t)tokens * sizeof *to->ids);
    memcpy(to->features + at * D, from->features + first * D, (size_t)(tokens * D) * sizeof *to->features);
    to->offsets[row + 1] = at + tokens;
}

/* Row `source` of alone with the targets of row `targets`. */
static void add_pair(pairs *q, int64_t source, int64_t targets) {
    add_tokens(&q->source, q->rows, &alone.source, source);
    add_tokens(&q->targets, q->rows, &alone.targets, targets);
    q->rows++;
}

static fs_tokens as_tokens(const side *s) {
    if (shape->V) return (fs_tokens){ .ids = s->ids, .offsets = s->offsets };
    return (fs_tokens){ .features = s->features, .width = D, .offsets = s->offsets };
}

static fs_request request_of(pairs *q) {
    const int64_t floats = q->targets.offsets[q->rows] * D;
    for (int64_t i = 0; i < floats; i++) q->out[i] = 99.0f;
    return (fs_request){ .task = HIDDEN,
                         .source = as_tokens(&q->source),
                         .targets = as_tokens(&q->targets),
                         .rows = q->rows,
                         .out = q->out,
                         .out_floats = floats };
}

static fs_job *submit_pairs(fs_engine *e, pairs *q) {
    const fs_request r = request_of(q);
    fs_job *j = NULL;
    CHECK_OK(fs_engine_submit(e, &r, &j));
    return j;
}

static void run_pairs(fs_engine *e, pairs *q) {
    int done = 0;
    fs_job *j = submit_pairs(e, q);
    const fs_row_error *errors;
    CHECK_OK(fs_job_wait(j, -1, &done));
    CHECK_INT(done, 1);
    CHECK_INT(fs_job_errors(j, &errors), 0);
    fs_job_free(j);
}

/* Row i of q is row k of alone. */
static void check_row(const pairs *q, int64_t i, int64_t k, const char *what) {
    const int64_t *x = q->targets.offsets, *y = alone.targets.offsets;
    const size_t bytes = (size_t)((y[k + 1] - y[k]) * D) * sizeof(float);
    CHECK_INT(x[i + 1] - x[i], y[k + 1] - y[k]);
    if (memcmp(q->out + x[i] * D, alone.out + y[k] * D, bytes))
        TEST_FAIL("%s: row %lld has other bits than alone", what, (long long)i);
}

static void start_pairs(const tiny_torch_shape *wanted) {
    static pairs one;
    const setup s = { .threads = 1 };
    uint64_t seed = 7;
    shape = wanted;
    tiny_torch_open(&model, shape);
    memset(&alone, 0, sizeof alone);
    make_side(&alone.source, &seed);
    make_side(&alone.targets, &seed);
    alone.rows = ROWS;
    fs_engine *e = opened(&model, &s);
    for (int64_t i = 0; i < ROWS; i++) {
        memset(&one, 0, sizeof one);
        add_pair(&one, i, i);
        run_pairs(e, &one);
        memcpy(alone.out + alone.targets.offsets[i] * D, one.out,
               (size_t)(one.targets.offsets[1] * D) * sizeof *one.out);
    }
    for (int64_t i = 0; i < alone.targets.offsets[ROWS] * D; i++) CHECK(isfinite(alone.out[i]));
    fs_engine_close(e);
}

/* ---- the same bits ---- */

#define TWO .devices = { "cpu:0", "cpu:1" }, .device_count = 2

static const struct {
    const char *what;
    setup s;
} WAYS[] = {
    { "one device", { .threads = 2 } },
    { "cut between encoder and decoder",
      { TWO, .stage_count = 2, .stages = { { 0, 2, 1, { 0 }, 0 }, { 2, 4, 1, { 1 }, 0 } } } },
    { "cut inside the encoder", { TWO, .stage_count = 2, .stages = { { 0, 1, 1, { 0 }, 0 }, { 1, 4, 1, { 1 }, 0 } } } },
    { "cut inside the decoder", { TWO, .stage_count = 2, .stages = { { 0, 3, 1, { 1 }, 0 }, { 3, 4, 1, { 0 }, 0 } } } },
    { "cut after every layer",
      { TWO, .stage_count = 4,
        .stages = { { 0, 1, 1, { 0 }, 0 }, { 1, 2, 1, { 1 }, 0 }, { 2, 3, 1, { 0 }, 0 }, { 3, 4, 1, { 1 }, 0 } } } },
    { "two replicas", { TWO, .parallel = "replicate" } },
    { "two replicas, cut at two places",
      { TWO, .stage_count = 4,
        .stages = { { 0, 2, 1, { 0 }, 0 }, { 2, 4, 1, { 1 }, 0 }, { 0, 3, 1, { 1 }, 0 }, { 3, 4, 1, { 0 }, 0 } } } },
    { "streamed", { .devices = { "cpu" }, .device_count = 1, .stage_count = 1, .stages = { { 0, 4, 1, { 0 }, 1 } } } },
    { "one of two replicas streams",
      { TWO, .stage_count = 2, .stages = { { 0, 4, 1, { 0 }, 2 }, { 0, 4, 1, { 1 }, 0 } } } },
    { "streamed behind a cut", { TWO, .stage_count = 2, .stages = { { 0, 1, 1, { 1 }, 0 }, { 1, 4, 1, { 0 }, 2 } } } },
};

static void check_way(const setup *s, const char *what) {
    static pairs q;
    fs_engine *e = opened(&model, s);
    for (int turned = 0; turned < 2; turned++) {
        memset(&q, 0, sizeof q);
        for (int64_t i = 0; i < ROWS; i++) {
            const int64_t from = turned ? (i * 21 + 11) % ROWS : i;
            add_pair(&q, from, from);
        }
        run_pairs(e, &q);
        for (int64_t i = 0; i < ROWS; i++) check_row(&q, i, turned ? (i * 21 + 11) % ROWS : i, what);
    }
    CHECK(fs_engine_stats_read(e).batches > 2);
    fs_engine_close(e);
}

/* Delayed and poisoned or neither, with few slots and more. */
static void check_ways(const tiny_torch_shape *wanted) {
    start_pairs(wanted);
    for (size_t w = 0; w < sizeof WAYS / sizeof *WAYS; w++)
        for (int m = 0; m < 8; m++) {
            const char *delay = m & 1 ? "1" : "0", *poison = m & 2 ? "1" : "0", *slots = m & 4 ? "3" : "1";
            const char *knobs[8] = { "FIRESTEEL_TEST_DELAY", delay, "FIRESTEEL_TEST_POISON",  poison,
                                     "FIRESTEEL_SLOTS",      slots, "FIRESTEEL_BATCH_TOKENS", "48" };
            char what[128];
            setup s = WAYS[w].s;
            memcpy(s.knobs, knobs, sizeof knobs);
            snprintf(what, sizeof what, "%s, delay %s, poison %s, %s slots", WAYS[w].what, delay, poison, slots);
            check_way(&s, what);
        }
    end();
}

static void ids_keep_their_bits(void) { check_ways(&SHAPES[OF_IDS]); }
static void features_keep_their_bits(void) { check_ways(&SHAPES[OF_FEATURES]); }

typedef struct {
    fs_engine *engine;
    uint64_t seed;
    pairs q;
} caller;

static void *call_often(void *arg) {
    caller *c = arg;
    int done;
    for (int round = 0; round < 12; round++) {
        const int cancel = random_between(&c->seed, 0, 4) == 0;
        const int64_t n = random_between(&c->seed, 0, 8);
        int64_t from[8];
        memset(&c->q, 0, sizeof c->q);
        for (int64_t i = 0; i < n; i++) {
            from[i] = random_between(&c->seed, 0, ROWS - 1);
            add_pair(&c->q, from[i], from[i]);
        }
        fs_job *j = submit_pairs(c->engine, &c->q);
        if (!cancel) CHECK_OK(fs_job_wait(j, -1, &done));
        for (int64_t i = 0; i < n && !cancel; i++) check_row(&c->q, i, from[i], "one caller of many");
        fs_job_free(j);
    }
    return NULL;
}

static void many_callers(void) {
    static caller callers[4];
    pthread_t threads[4];
    for (int k = 0; k < SHAPE_COUNT; k++) {
        start_pairs(&SHAPES[k]);
        for (size_t w = 0; w < sizeof WAYS / sizeof *WAYS; w++) {
            setup s = WAYS[w].s;
            s.knobs[0] = "FIRESTEEL_BATCH_TOKENS", s.knobs[1] = "40";
            fs_engine *e = opened(&model, &s);
            for (int i = 0; i < 4; i++) {
                callers[i].engine = e;
                callers[i].seed = (uint64_t)i * 1000 + w;
                pthread_create(&threads[i], NULL, call_often, &callers[i]);
            }
            for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
            CHECK_INT(fs_engine_stats_read(e).queued_rows, 0);
            fs_engine_close(e);
        }
        end();
    }
}

static void rows_are_equal_with_equal_targets(void) {
    static pairs q, one;
    const setup s = { .threads = 1 };
    for (int k = 0; k < SHAPE_COUNT; k++) {
        start_pairs(&SHAPES[k]);
        fs_engine *e = opened(&model, &s);
        memset(&q, 0, sizeof q);
        memset(&one, 0, sizeof one);
        add_pair(&q, 3, 3);
        add_pair(&q, 3, 4);
        add_pair(&q, 4, 3);
        add_pair(&q, 3, 3);
        add_pair(&one, 3, 4);
        run_pairs(e, &q);
        CHECK_INT(fs_engine_stats_read(e).duplicate_rows, 1);
        run_pairs(e, &one);
        check_row(&q, 0, 3, "the first of two");
        check_row(&q, 3, 3, "the second of two");
        const float *mixed = q.out + q.targets.offsets[1] * D;
        CHECK(!memcmp(mixed, one.out, (size_t)(one.targets.offsets[1] * D) * sizeof(float)));
        fs_engine_close(e);
        end();
    }
}

/* ---- wrong rows ---- */

/* A row whose ids are all `id`. */
static void add_ids(side *to, int64_t row, int32_t id, int64_t tokens) {
    to->offsets[row + 1] = to->offsets[row] + tokens;
    for (int64_t t = to->offsets[row]; t < to->offsets[row + 1]; t++) to->ids[t] = id;
}

static void add_row_of(pairs *q, int32_t source, int64_t tokens, int32_t target, int64_t target_tokens) {
    add_ids(&q->source, q->rows, source, tokens);
    add_ids(&q->targets, q->rows, target, target_tokens);
    q->rows++;
}

static void wrong_targets(void) {
    static pairs q;
    const struct {
        int64_t row;
        fs_row_code code;
        const char *part;
    } expected[] = { { 1, FS_ROW_SCHEMA, "token id 60 at target 0; the vocabulary has 0 to 59" },
                     { 2, FS_ROW_SCHEMA, "token id -1 at target 0" },
                     { 3, FS_ROW_SCHEMA, "token id 60 at token 0" },
                     { 4, FS_ROW_SCHEMA, "no tokens; its targets need at least one to attend to" },
                     { 5, FS_ROW_TOO_LONG, "25 tokens, 13 of them targets; a batch has room for 24" } };
    const setup s = { .threads = 1, .knobs = { "FIRESTEEL_BATCH_TOKENS", "24" } };
    int done;
    start_pairs(&SHAPES[OF_IDS]);
    fs_engine *e = opened(&model, &s);
    memset(&q, 0, sizeof q);
    add_pair(&q, 0, 0);
    add_row_of(&q, 1, 3, 60, 2);
    add_row_of(&q, 1, 3, -1, 1);
    add_row_of(&q, 60, 3, 1, 4);
    add_row_of(&q, 1, 0, 1, 5);
    add_row_of(&q, 1, 12, 1, 13);
    add_row_of(&q, 60, 0, 1, 0); /* nothing to do */
    add_pair(&q, 1, 1);
    fs_job *j = submit_pairs(e, &q);
    const fs_row_error *errors;
    CHECK_OK(fs_job_wait(j, -1, &done));
    CHECK_INT(fs_job_errors(j, &errors), 5);
    for (int i = 0; i < 5; i++) {
        CHECK_INT(errors[i].row, expected[i].row);
        CHECK_INT(errors[i].code, expected[i].code);
        if (!strstr(errors[i].text, expected[i].part)) TEST_FAIL("'%s' lacks '%s'", errors[i].text, expected[i].part);
    }
    for (int64_t at = q.targets.offsets[1] * D; at < q.targets.offsets[7] * D; at++) CHECK(q.out[at] == 99.0f);
    check_row(&q, 0, 0, "ahead of wrong rows");
    check_row(&q, 7, 1, "behind wrong rows");
    CHECK_INT(fs_engine_stats_read(e).failed_rows, 5);
    fs_job_free(j);
    fs_engine_close(e);
    end();
}

static void wrong_requests(void) {
    static pairs q;
    static const int64_t falling[] = { 0, 3, 2 }, late[] = { 1, 2, 3 };
    const setup s = { .threads = 1 };
    for (int k = 0; k < SHAPE_COUNT; k++) {
        start_pairs(&SHAPES[k]);
        fs_engine *e = opened(&model, &s);
        fs_job *j = NULL;
        memset(&q, 0, sizeof q);
        add_pair(&q, 0, 0);
        add_pair(&q, 1, 1);
        const fs_request good = request_of(&q);
        fs_request r = good;
        r.targets = (fs_tokens){ 0 };
        CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "the model has a decoder, whose input is missing");
        r = good;
        r.targets.offsets = falling;
        CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "offsets of targets fall from 3 to 2 at row 1");
        r.targets.offsets = late;
        CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "offsets of targets must start with 0");
        r = good;
        r.targets.ids = NULL, r.targets.features = NULL;
        CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "where there are none");
        r.targets = (fs_tokens){ .offsets = good.targets.offsets };
        if (shape->V) r.targets.features = q.out, r.targets.width = D;
        else r.targets.ids = q.targets.ids;
        CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST,
                    shape->V ? "targets are features where the model takes token ids"
                             : "targets are token ids where the model takes features");
        r = good;
        r.targets.width = D + 1;
        if (!shape->V) CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "targets are features of width 37");
        r = good;
        r.out_floats--;
        CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "out has room for");
        r = good;
        r.task = MEAN;
        CHECK_FAILS(fs_engine_submit(e, &r, &j), FS_REQUEST, "models without a decoder");
        CHECK(j == NULL);
        CHECK_INT(fs_engine_stats_read(e).rows, 0);
        fs_engine_close(e);
        end();
    }
}

TESTS({ "ids_keep_their_bits", ids_keep_their_bits }, { "features_keep_their_bits", features_keep_their_bits },
      { "many_callers", many_callers }, { "rows_are_equal_with_equal_targets", rows_are_equal_with_equal_targets },
      { "wrong_targets", wrong_targets }, { "wrong_requests", wrong_requests })
