/* placement: stages, what a step costs, and traces on the measure backend. */
#include "tiny_bert.h"

#include "placement/survey.h"
#include "random.h"
#include "test.h"

#include <math.h>
#include <time.h>

static fs_shard_plan whole(const fs_settings *set) { return (fs_shard_plan){ .last_layer = (int)set->L, .ranks = 1 }; }

static void stages_are_checked(void) {
    static const struct {
        int count;
        fs_stage_plan stages[3];
        const char *part;
    } cases[] = {
        { 1, { { 0, 2, 1, { 0 }, 0 } }, NULL },
        { 2, { { 0, 1, 1, { 1 }, 0 }, { 1, 2, 1, { 0 }, 0 } }, NULL },
        { 1, { { 0, 2, 2, { 1, 0 }, 0 } }, NULL },
        { 2, { { 0, 1, 1, { 0 }, 0 }, { 1, 2, 1, { 0 }, 0 } }, NULL },
        { 0, { { 0 } }, "layers 0 to 0 where the model has 2" },
        { 1, { { 0, 1, 1, { 0 }, 0 } }, "layers 0 to 1 where the model has 2" },
        { 1, { { 0, 3, 1, { 0 }, 0 } }, "stage 0 holds layers 0 to 3" },
        { 1, { { 1, 2, 1, { 0 }, 0 } }, "from layer 0 on" },
        { 2, { { 0, 1, 1, { 0 }, 0 }, { 0, 2, 1, { 0 }, 0 } }, "from layer 1 on" },
        { 2, { { 0, 0, 1, { 0 }, 0 }, { 0, 2, 1, { 0 }, 0 } }, "layers 0 to 0" },
        { 1, { { 0, 2, 1, { 2 }, 0 } }, "device 2 of 2" },
        { 1, { { 0, 2, 1, { -1 }, 0 } }, "device -1 of 2" },
        { 1, { { 0, 2, 2, { 1, 1 }, 0 } }, "device 1 twice" },
        { 1, { { 0, 2, 0, { 0 }, 0 } }, "group of 0" },
        { 1, { { 0, 2, 9, { 0 }, 0 } }, "group of 9" },
        { 1, { { 0, 2, 3, { 0, 1, 2 }, 0 } }, "(4) cannot be shared evenly" },
        /* replicas follow one another */
        { 2, { { 0, 2, 1, { 0 }, 0 }, { 0, 2, 1, { 1 }, 0 } }, NULL },
        { 3, { { 0, 2, 1, { 0 }, 0 }, { 0, 1, 1, { 1 }, 0 }, { 1, 2, 1, { 0 }, 0 } }, NULL },
        { 2, { { 0, 2, 1, { 0 }, 0 }, { 0, 1, 1, { 1 }, 0 } }, "layers 0 to 1 where the model has 2" },
        { 2, { { 0, 2, 1, { 0 }, 0 }, { 1, 2, 1, { 1 }, 0 } }, "from layer 0 on" },
        { 2, { { 0, 2, 2, { 0, 1 }, 0 }, { 0, 2, 1, { 1 }, 0 } }, "stage 1, of replica 1, shares layer 0 between 1" },
        { 3, { { 0, 1, 1, { 0 }, 0 }, { 1, 2, 2, { 0, 1 }, 0 }, { 0, 2, 1, { 1 }, 0 } }, "shares layer 1 between 1" },
    };
    tiny_bert t;
    fs_settings set;
    fs_plan p;
    tiny_open(&t, &TINY);
    CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].part) {
            CHECK_FAILS(fs_plan_from_stages(&p, &set, cases[i].stages, cases[i].count, 2), FS_CONFIG, cases[i].part);
        } else {
            CHECK_OK(fs_plan_from_stages(&p, &set, cases[i].stages, cases[i].count, 2));
            CHECK_INT(p.stage_count, cases[i].count);
            int replicas = 0, stages = 0;
            for (int s = 0; s < cases[i].count; s++) replicas += cases[i].stages[s].first_layer == 0;
            CHECK_INT(p.replica_count, replicas);
            for (int r = 0; r < replicas; r++) stages += p.replicas[r].stage_count;
            CHECK_INT(stages, cases[i].count);
        }
        fs_plan_free(&p);
    }
    tiny_close(&t);
}

static void workspace_does_not_grow_with_layers(void) {
    const fs_task task = { .pooling_count = 1, .pooling = { FS_POOL_MEAN } };
    fs_step_cost cost[2], part[2], group;
    fs_settings set;
    for (int i = 0; i < 2; i++) {
        tiny_shape shape = TINY;
        tiny_bert t;
        shape.L = i ? 7 : 1;
        tiny_open(&t, &shape);
        CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
        const fs_shard_plan plan = whole(&set);
        CHECK_OK(fs_plan_step_cost(&cost[i], &set, &plan, &task, 100, 10, 20));
        tiny_close(&t);
    }
    /* x and the sum [T, D], then the larger of q, k, v and context [T, 4 D] and inner [T, F]; all in fp32 */
    CHECK_INT(cost[1].kept + cost[1].scratch, 100 * (2 * 16 + 4 * 16) * 4);
    CHECK_INT(cost[0].kept, cost[1].kept);
    CHECK_INT(cost[0].scratch, cost[1].scratch);
    CHECK_INT(cost[1].multiply_adds, 7 * cost[0].multiply_adds);
    /* a layer: 4 D D + 2 D F of weights for each token; two products with each of 20 keys */
    CHECK_INT(cost[0].multiply_adds, 100 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 100 * 20 * 16);
    CHECK(cost[1].moved_bytes > 6 * cost[0].moved_bytes / 2);

    const fs_shard_plan cut[] = { { .last_layer = 3, .ranks = 1 },
                                  { .first_layer = 3, .last_layer = 7, .ranks = 1 },
                                  { .last_layer = 7, .rank = 1, .ranks = 2 } };
    for (int i = 0; i < 2; i++) CHECK_OK(fs_plan_step_cost(&part[i], &set, &cut[i], &task, 100, 10, 20));
    CHECK_INT(part[0].multiply_adds + part[1].multiply_adds, cost[1].multiply_adds);
    CHECK_INT(part[1].kept, cost[1].kept); /* the carry arrives there */
    CHECK_INT(part[1].scratch, cost[1].scratch);
    CHECK_OK(fs_plan_step_cost(&group, &set, &cut[2], &task, 100, 10, 20));
    CHECK_INT(2 * group.multiply_adds, cost[1].multiply_adds);
    CHECK(group.scratch < cost[1].scratch + 2 * 100 * 16 * sizeof(float)); /* room for both ranks' parts of a sum */
}

static void a_trace_reads_like_the_paper(void) {
    const fs_task task = { .pooling_count = 1, .pooling = { FS_POOL_MEAN }, .normalize = 1 };
    const int64_t lengths[] = { 4, 3 };
    tiny_shape shape = TINY;
    tiny_bert t;
    fs_settings set;
    char *trace;
    shape.L = 1;
    tiny_open(&t, &shape);
    CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    CHECK_OK(fs_plan_trace(&trace, &set, &task, lengths, lengths, 2));
    CHECK_TEXT(trace, "gather_norm w[24,16] w[2,16]@0 w[16,16] gamma beta eps 1e-12 -> y[7,16]\n"
                      "matmul x[7,16] w[48,16] bias -> y[7,48]\n"
                      "attention q[7,16]/48 k[7,16]/48 v[7,16]/48 heads 4 scale 0.5 B 2 longest 4 -> y[7,16]\n"
                      "matmul x[7,16] w[16,16] bias residual -> y[7,16]\n"
                      "layer_norm x[7,16] gamma beta eps 1e-12 -> y[7,16]\n"
                      "matmul x[7,16] w[32,16] bias gelu -> y[7,32]\n"
                      "matmul x[7,32] w[16,32] bias residual -> y[7,16]\n"
                      "layer_norm x[7,16] gamma beta eps 1e-12 -> y[7,16]\n"
                      "pool mean x[7,16] -> y[2,16]\n"
                      "l2_normalize x[2,16]\n");
    fs_free(trace);
    tiny_close(&t);
}

/* One layer as rank 0 of 2: partial products are summed before bias and residual are added. */
static void a_tensor_group_adds_the_bias_once(void) {
    const fs_shard_plan plan = { .first_layer = 1, .last_layer = 2, .rank = 0, .ranks = 2 };
    const fs_device_options options = { 0 };
    const fs_backend *b = &fs_measure_backend;
    tiny_bert t;
    fs_settings set;
    fs_device *device;
    fs_queue *queue;
    fs_comm *comm;
    fs_shard shard;
    tiny_open(&t, &TINY);
    CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    CHECK_OK(b->open(&device, &options));
    CHECK_OK(b->queue_new(device, &queue));
    fs_device *const ranks[] = { device, device };
    CHECK_OK(b->comm_open(&comm, ranks, 2, 1));
    CHECK_OK(fs_shard_load(&shard, &t.c, &set, &plan, device, 1));
    fs_ops ops = fs_ops_complete(b->ops);
    fs_arena arena = fs_arena_over((void *)(uintptr_t)4096, 1 << 20);
    const fs_rows rows = { NULL, NULL, NULL, 7, 2, 4, NULL, NULL };
    fs_step step = { .device = device,
                     .queue = queue,
                     .ops = &ops,
                     .arena = &arena,
                     .kept = &arena,
                     .rows = &rows,
                     .comm = comm,
                     .ranks = 2 };
    fs_carry carry = { 0 };
    CHECK_OK(fs_arena_view(&arena, FS_F32, 7, 16, &carry.x));
    CHECK_OK(fs_forward(&step, &set, &shard, &carry));
    CHECK_INT(arena.used, 7 * 16 * 4);
    CHECK_TEXT(fs_measure_trace(device),
               "matmul x[7,16] w[24,16] bias -> y[7,24]\n"
               "attention q[7,8]/24 k[7,8]/24 v[7,8]/24 heads 2 scale 0.5 B 2 longest 4 -> y[7,8]\n"
               "matmul x[7,8] w[16,8] -> y[7,16]\n"
               "all_reduce x[7,16] ranks 2\n"
               "add x[7,16] bias residual -> y[7,16]\n"
               "layer_norm x[7,16] gamma beta eps 1e-12 -> y[7,16]\n"
               "matmul x[7,16] w[16,16] bias gelu -> y[7,16]\n"
               "matmul x[7,16] w[16,16] -> y[7,16]\n"
               "all_reduce x[7,16] ranks 2\n"
               "add x[7,16] bias residual -> y[7,16]\n"
               "layer_norm x[7,16] gamma beta eps 1e-12 -> y[7,16]\n");
    fs_shard_release(&shard);
    b->comm_close(comm);
    b->queue_free(queue);
    b->close(device);
    tiny_close(&t);
}

static void parallel_is_read_or_refused(void) {
    static const struct {
        const char *text;
        int devices, replicate, split, tensor;
        const char *sentence; /* or what it is written as again */
    } cases[] = {
        { "replicate", 4, 4, 1, 1, "replicate" },
        { "split", 4, 1, 4, 1, "split" },
        { "tensor", 2, 1, 1, 2, "tensor" },
        { "split", 1, 1, 1, 1, "replicate" },
        { "replicate=2,split=2", 4, 2, 2, 1, "replicate=2,split=2" },
        { "split=2,replicate", 6, 3, 2, 1, "replicate=3,split=2" },
        { "split=2,tensor=2", 4, 1, 2, 2, "split=2,tensor=2" },
        { "tensor=2,split=2,replicate=2", 8, 2, 2, 2, "replicate=2,split=2,tensor=2" },
        { "split=1,replicate=3", 3, 3, 1, 1, "replicate" },
        { "replicate=2,split=3", 4, 0, 0, 0, "on 6 devices and devices names 4; the numbers multiply to 4, as in" },
        { "split=2", 4, 0, 0, 0, "as in \"replicate=2,split=2\"" },
        { "split=3,replicate", 4, 0, 0, 0, "on 3 devices and devices names 4" },
        { "replicate,split", 4, 0, 0, 0, "gives neither replicate nor split a number" },
        { "split=2,split=2", 4, 0, 0, 0, "names split twice" },
        { "split=0", 4, 0, 0, 0, "a whole number from 1 to 9999" },
        { "split=-2", 4, 0, 0, 0, "a whole number from 1 to 9999" },
        { "split=", 4, 0, 0, 0, "a whole number from 1 to 9999" },
        { "split=99999999999999999999", 4, 0, 0, 0, "a whole number from 1 to 9999" },
        { "9", 4, 0, 0, 0, "'9' is no way to place a model" },
        { "splits", 4, 0, 0, 0, "'splits' is no way to place a model" },
        { "split=2,", 4, 0, 0, 0, "'' is no way to place a model" },
        { "auto,split=2", 4, 0, 0, 0, "'auto' is no way to place a model" },
        { "splits", 0, 0, 0, 0, "'splits' is no way to place a model" }, /* 0: who knows how many */
        { "replicate,split", 0, 0, 0, 0, "gives neither replicate nor split a number" },
        { "tensor=2,stream", 0, 0, 0, 0, "none can be streamed" },
        { "stream", 1, 1, 1, 1, "stream" },
        { "stream", 3, 1, 3, 1, "split=3,stream" },
        { "split=2,stream", 2, 1, 2, 1, "split=2,stream" },
        { "stream,replicate", 4, 4, 1, 1, "replicate=4,stream" },
        { "stream=2", 2, 0, 0, 0, "stream takes no number" },
        { "tensor=2,stream", 2, 0, 0, 0, "none can be streamed; write \"split,stream\"" },
        { "split=2,stream", 4, 0, 0, 0, "places the model on 2 devices and devices names 4" },
    };
    fs_parallel p;
    char text[FS_PARALLEL_TEXT];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!cases[i].replicate) {
            CHECK_FAILS(fs_parallel_read(&p, cases[i].text, cases[i].devices), FS_CONFIG, cases[i].sentence);
            continue;
        }
        CHECK_OK(fs_parallel_read(&p, cases[i].text, cases[i].devices));
        CHECK(p.replicate == cases[i].replicate && p.split == cases[i].split && p.tensor == cases[i].tensor);
        CHECK_TEXT(fs_parallel_text(&p, text), cases[i].sentence);
    }
    static const char *const any_count[] = { "split=3", "tensor,split=2", "replicate=2,stream", "stream" };
    for (int i = 0; i < 4; i++) {
        CHECK_OK(fs_parallel_read(&p, any_count[i], 0));
        CHECK(!p.is_auto);
        CHECK_INT(p.stream, i > 1);
    }
    static const char *const automatic[] = { NULL, "", "auto" };
    for (int i = 0; i < 3; i++) {
        CHECK_OK(fs_parallel_read(&p, automatic[i], 4));
        CHECK(p.is_auto);
    }
}

typedef struct {
    fs_layer_load layers[9];
    size_t rooms[4];
    int n, count;
} puzzle;

static double cost_of(const puzzle *z, int first, int last, int stage) {
    double cost = 0;
    size_t fixed = 0, space = 0;
    for (int i = first; i < last; i++) {
        cost += z->layers[i].cost;
        fixed += z->layers[i].fixed;
        if (z->layers[i].space > space) space = z->layers[i].space;
    }
    return fixed + space <= z->rooms[stage] ? cost : INFINITY;
}

/* The least cost of the costliest stage, by trying every cut. */
static double try_all(const puzzle *z, int first, int stage) {
    double best = INFINITY;
    if (stage == z->count - 1) return first < z->n ? cost_of(z, first, z->n, stage) : INFINITY;
    for (int last = first + 1; last < z->n; last++)
        best = fmin(best, fmax(cost_of(z, first, last, stage), try_all(z, last, stage + 1)));
    return best;
}

static void balancing_finds_the_best_cut(void) {
    uint64_t seed = 3;
    int fitting = 0;
    for (int turn = 0; turn < 3000; turn++) {
        puzzle z = { .n = (int)random_between(&seed, 1, 9), .count = (int)random_between(&seed, 1, 4) };
        for (int i = 0; i < z.n; i++)
            z.layers[i] = (fs_layer_load){ .cost = (double)random_between(&seed, 1, 20),
                                           .fixed = (size_t)random_between(&seed, 0, 9),
                                           .space = (size_t)random_between(&seed, 0, 9) };
        for (int s = 0; s < z.count; s++) z.rooms[s] = (size_t)random_between(&seed, 5, 60);
        int cuts[5] = { -1, -1, -1, -1, -1 }, found;
        CHECK_OK(fs_balance(cuts, &found, z.layers, z.n, z.rooms, z.count));
        double best = try_all(&z, 0, 0), costliest = 0;
        CHECK_INT(found, isfinite(best) ? 1 : 0);
        if (!found) continue;
        fitting++;
        CHECK_INT(cuts[0], 0);
        CHECK_INT(cuts[z.count], z.n);
        for (int s = 0; s < z.count; s++) {
            CHECK(cuts[s] < cuts[s + 1]);
            costliest = fmax(costliest, cost_of(&z, cuts[s], cuts[s + 1], s));
        }
        if (costliest != best) TEST_FAIL("turn %d: %g where %g can be had", turn, costliest, best);
    }
    CHECK(fitting > 500 && fitting < 2900);
}

/* A device by its memory alone. */
static fs_device *outline(const char *kind, int index, int of, size_t memory) {
    const fs_backend *b;
    fs_device *d = NULL;
    const fs_device_options options = { .index = index, .of = of, .threads = 1, .max_memory = memory, .outline = 1 };
    CHECK_OK(fs_backend_find(kind, &b));
    CHECK_OK(b->open(&d, &options));
    return d;
}

static void auto_replicates_what_fits_and_splits_the_rest(void) {
    static const struct {
        double memory; /* of each device, as a share of what one needs for all of the model */
        int devices;
        const char *parallel; /* "": it fits in no way */
        const char *why;
    } cases[] = {
        { 1.0, 1, "replicate", "on the one device" },
        { 1.0, 4, "replicate", "fits on each device" },
        { 0.9, 4, "replicate=2,split=2", "on no device alone, but on 2" },
        { 0.45, 4, "split", "on no device alone, but on 4" },
        { 0.9, 1, "stream", "layers come again for each pass" },
        { 0.45, 1, "", "cuda:0: the model takes" },
        { 0.45, 1, "", "parallel=\"split\" over 4 such devices would fit" },
        { 0.45, 2, "", "parallel=\"split\" over 4 such devices would fit" },
        { 0.01, 4, "", "MB are missing" },
    };
    tiny_shape shape = TINY;
    tiny_bert t;
    fs_settings set;
    shape.L = 4; /* embeddings as light as a layer's weights, so that halves are halves */
    shape.D = 64;
    shape.F = 256;
    tiny_open(&t, &shape);
    setenv("FIRESTEEL_BATCH_TOKENS", "16", 1);
    setenv("FIRESTEEL_SLOTS", "2", 1); /* so that halves are halves */
    CHECK_OK(fs_settings_read(&set, &t.c, "fp32"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fs_device *devices[4], *whole_device = outline("cuda", 0, 1, (size_t)1 << 40);
        fs_capacity capacity;
        fs_choice choice;
        fs_need need;
        fs_plan p;
        char text[FS_PARALLEL_TEXT];
        CHECK_OK(fs_capacity_read(&capacity, &set));
        CHECK_OK(fs_plan_single(&p, &set));
        CHECK_OK(fs_plan_needs(&need, &p, &set, &capacity, &whole_device, 1));
        fs_plan_free(&p);
        size_t held = fs_budget_used(&whole_device->budget, FS_STAGING);
        size_t all = need.weights + need.workspace + need.staging - held;
        for (int d = 0; d < cases[i].devices; d++)
            devices[d] = outline("cuda", d, 1, held + (size_t)(cases[i].memory * (double)all));
        CHECK_OK(fs_plan_choose(&p, &choice, &set, &capacity, devices, cases[i].devices, "auto"));
        CHECK_INT(choice.fits, *cases[i].parallel ? 1 : 0);
        if (choice.fits) CHECK_TEXT(fs_parallel_text(&choice.parallel, text), cases[i].parallel);
        if (!strstr(choice.why, cases[i].why)) TEST_FAIL("case %zu says '%s'", i, choice.why);
        CHECK_INT(p.stage_count, choice.parallel.replicate * choice.parallel.split);
        fs_plan_free(&p);
        for (int d = 0; d < cases[i].devices; d++) fs_cuda_backend.close(devices[d]);
        fs_cuda_backend.close(whole_device);
    }
    unsetenv("FIRESTEEL_SLOTS");
    unsetenv("FIRESTEEL_BATCH_TOKENS");
    tiny_close(&t);
}

static void wrong_numbers_are_refused(void) {
    static const struct {
        const char *parallel, *sentence;
        int devices;
    } cases[] = {
        { "split",
          "cuts the model's 2 layers into 4 stages, which hold one layer at least; name fewer devices, or write "
          "\"replicate=2,split=2\"",
          4 },
        { "split", "or write \"replicate\"", 3 },
        { "tensor", "3 devices cannot share the model's 4 attention heads and inner width of 32 evenly; 2, 4 would do",
          3 },
    };
    tiny_bert t;
    fs_settings set;
    fs_capacity capacity;
    tiny_open(&t, &TINY);
    CHECK_OK(fs_settings_read(&set, &t.c, "fp32"));
    CHECK_OK(fs_capacity_read(&capacity, &set));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fs_device *devices[4];
        fs_choice choice;
        fs_plan p;
        for (int d = 0; d < cases[i].devices; d++) devices[d] = outline("cpu", d, cases[i].devices, 0);
        CHECK_FAILS(fs_plan_choose(&p, &choice, &set, &capacity, devices, cases[i].devices, cases[i].parallel),
                    FS_CONFIG, cases[i].sentence);
        for (int d = 0; d < cases[i].devices; d++) fs_cpu_backend.close(devices[d]);
    }
    tiny_close(&t);
}

/* The workspace of a stage is the most that any of its layers takes alone, which balancing counts on. */
static void a_stage_takes_what_its_layers_take_in_turn(void) {
    tiny_shape shape = TINY;
    tiny_bert t;
    fs_settings set;
    fs_capacity c;
    fs_layer_load loads[7];
    shape.L = 7;
    tiny_open(&t, &shape);
    fs_device *d = outline("cpu", 0, 1, 0);
    for (int type = 0; type < 2; type++) {
        CHECK_OK(fs_settings_read(&set, &t.c, type ? "bf16" : "fp32"));
        CHECK_OK(fs_capacity_read(&c, &set));
        CHECK_OK(fs_layer_loads(loads, &set, &c, 1, d));
        for (int first = 0; first < 7; first++)
            for (int last = first + 1; last <= 7; last++) {
                const fs_shard_plan shard = { .first_layer = first, .last_layer = last, .ranks = 1 };
                fs_part_bytes bytes;
                size_t fixed = 0, space = 0;
                CHECK_OK(fs_part_bytes_read(&bytes, &set, &shard, 0, &c, d));
                for (int i = first; i < last; i++) {
                    fixed += loads[i].fixed;
                    if (loads[i].space > space) space = loads[i].space;
                }
                /* the whole has fewer slots than a stage */
                const size_t slots = (size_t)c.split_slots;
                CHECK_INT(bytes.slots, last - first == 7 ? c.slots : c.split_slots);
                CHECK_INT(fixed + space, bytes.weights + slots * (bytes.arena + 2 * bytes.block + bytes.out));
            }
    }
    fs_cpu_backend.close(d);
    tiny_close(&t);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * (int64_t)1000000000 + t.tv_nsec;
}

/* 80 layers, 8192 wide: no weight is there, no device is opened. */
static void a_large_model_is_planned_at_once(void) {
    static const fs_config_key keys[] = {
        { .key = "model_type", .kind = FS_TEXT, .text = "bert" },
        { .key = "num_hidden_layers", .kind = FS_INT, .i = 80 },
        { .key = "hidden_size", .kind = FS_INT, .i = 8192 },
        { .key = "num_attention_heads", .kind = FS_INT, .i = 64 },
        { .key = "intermediate_size", .kind = FS_INT, .i = 28672 },
        { .key = "vocab_size", .kind = FS_INT, .i = 128256 },
        { .key = "max_position_embeddings", .kind = FS_INT, .i = 8192 },
    };
    static const char *const devices[] = { "cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4", "cuda:5", "cuda:6" };
    const size_t memory[] = { (size_t)24 << 30 };
    const fs_checkpoint c = { .name = "large", .keys = keys, .key_count = sizeof keys / sizeof *keys };
    const fs_survey_options o = {
        .devices = devices, .device_count = 7, .memory = memory, .memory_count = 1, .dtype = "bf16"
    };
    fs_survey s;
    int64_t start = now_ns();
    CHECK_OK(fs_survey_open(&s, &c, &o));
    CHECK(now_ns() - start < (int64_t)100 * 1000 * 1000);
    CHECK_INT(s.choice.fits, 1);
    CHECK_INT(s.choice.parallel.split, 7);
    CHECK_INT(s.plan.stages[6].last_layer, 80);
    double least = INFINITY, most = 0;
    for (int i = 0; i < 7; i++) least = fmin(least, s.stage_cost[i]), most = fmax(most, s.stage_cost[i]);
    CHECK(most / least < 12.0 / 11 + 0.01); /* 80 layers over 7 are 12 and 11 */
    fs_survey_close(&s);
    fs_survey_close(&s);
}

TESTS({ "stages_are_checked", stages_are_checked }, { "parallel_is_read_or_refused", parallel_is_read_or_refused },
      { "balancing_finds_the_best_cut", balancing_finds_the_best_cut },
      { "auto_replicates_what_fits_and_splits_the_rest", auto_replicates_what_fits_and_splits_the_rest },
      { "wrong_numbers_are_refused", wrong_numbers_are_refused },
      { "a_stage_takes_what_its_layers_take_in_turn", a_stage_takes_what_its_layers_take_in_turn },
      { "a_large_model_is_planned_at_once", a_large_model_is_planned_at_once },
      { "workspace_does_not_grow_with_layers", workspace_does_not_grow_with_layers },
      { "a_trace_reads_like_the_paper", a_trace_reads_like_the_paper },
      { "a_tensor_group_adds_the_bias_once", a_tensor_group_adds_the_bias_once })
