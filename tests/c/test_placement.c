/* placement: stages, what a step costs, and traces on the measure backend. */
#include "tiny_bert.h"

#include "placement/plan.h"
#include "test.h"

static fs_shard_plan whole(const fs_settings *set) {
    return (fs_shard_plan){ .last_layer = (int)set->L, .ranks = 1, .with_ends = 1 };
}

static void stages_are_checked(void) {
    static const struct {
        int count;
        fs_stage_plan stages[3];
        const char *part;
    } cases[] = {
        { 1, { { 0, 2, 1, { 0 } } }, NULL },
        { 2, { { 0, 1, 1, { 1 } }, { 1, 2, 1, { 0 } } }, NULL },
        { 1, { { 0, 2, 2, { 1, 0 } } }, NULL },
        { 2, { { 0, 1, 1, { 0 } }, { 1, 2, 1, { 0 } } }, NULL },
        { 0, { { 0 } }, "layers 0 to 0 where the model has 2" },
        { 1, { { 0, 1, 1, { 0 } } }, "layers 0 to 1 where the model has 2" },
        { 1, { { 0, 3, 1, { 0 } } }, "stage 0 holds layers 0 to 3" },
        { 1, { { 1, 2, 1, { 0 } } }, "from layer 0 on" },
        { 2, { { 0, 1, 1, { 0 } }, { 0, 2, 1, { 0 } } }, "from layer 1 on" },
        { 2, { { 0, 0, 1, { 0 } }, { 0, 2, 1, { 0 } } }, "layers 0 to 0" },
        { 1, { { 0, 2, 1, { 2 } } }, "device 2 of 2" },
        { 1, { { 0, 2, 1, { -1 } } }, "device -1 of 2" },
        { 1, { { 0, 2, 2, { 1, 1 } } }, "device 1 twice" },
        { 1, { { 0, 2, 0, { 0 } } }, "group of 0" },
        { 1, { { 0, 2, 9, { 0 } } }, "group of 9" },
        { 1, { { 0, 2, 3, { 0, 1, 2 } } }, "(4) cannot be shared evenly" },
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

    const fs_shard_plan cut[] = { { .last_layer = 3, .ranks = 1, .with_ends = 1 },
                                  { .first_layer = 3, .last_layer = 7, .ranks = 1 },
                                  { .last_layer = 7, .rank = 1, .ranks = 2, .with_ends = 1 } };
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
    CHECK_OK(fs_plan_trace(&trace, &set, &task, lengths, 2));
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
    const fs_rows rows = { NULL, NULL, NULL, 7, 2, 4 };
    fs_step step = { .device = device,
                     .queue = queue,
                     .ops = &ops,
                     .arena = &arena,
                     .kept = &arena,
                     .rows = &rows,
                     .comm = comm,
                     .ranks = 2 };
    fs_carry carry;
    CHECK_OK(fs_arena_view(&arena, FS_F32, 7, 16, &carry.x));
    CHECK_OK(set.arch->run_layer(&step, &set, shard.layers[0], &carry));
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

TESTS({ "stages_are_checked", stages_are_checked },
      { "workspace_does_not_grow_with_layers", workspace_does_not_grow_with_layers },
      { "a_trace_reads_like_the_paper", a_trace_reads_like_the_paper },
      { "a_tensor_group_adds_the_bias_once", a_tensor_group_adds_the_bias_once })
