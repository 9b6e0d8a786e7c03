/* fuzz_checkpoint.c - any config and tensor table: opened, checked, loaded on the CPU, run, and released.
 *
 * Whatever the bytes say, nothing may crash, leak, hang or write past an end; what is refused must be refused with a
 * sentence, and what passes the checks must load and run. A libFuzzer entry; driver.c calls the same entry. */
#include "format.h"

#include "backends/ops.h"
#include "base/alloc.h"
#include "models/forward.h"
#include "placement/plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int fds[FUZZ_FILES];
static fs_device *device;
static fs_queue *queue;
static fs_event *event;
static fs_ops ops;

static void must(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "fuzz_checkpoint: %s (%s)\n", what, fs_error_text());
    abort();
}

static void open_once(void) {
    const fs_device_options options = { .threads = 1, .max_memory = (size_t)64 << 20 };
    if (device) return;
    for (int i = 0; i < FUZZ_FILES; i++) fds[i] = memfd_create("fuzz", MFD_CLOEXEC);
    must(fs_cpu_backend.open(&device, &options) == FS_OK, "the CPU opens");
    must(fs_cpu_backend.queue_new(device, &queue) == FS_OK, "a queue opens");
    must(fs_cpu_backend.event_new(device, &event) == FS_OK, "an event opens");
    ops = fs_ops_complete(fs_cpu_backend.ops);
}

/* One batch of three rows, one of them empty, of token 0 or features of 0; targets are the like. */
static void run(const fs_settings *set, const fs_shard *shard, const fs_task *task) {
    const int32_t first = (int32_t)set->first_position;
    int32_t ids[3] = { 0 }, positions[3] = { first, first + 1, first }, offsets[4] = { 0, 2, 2, 3 };
    float *features = calloc(2 * 3 * (size_t)set->D, sizeof *features);
    const fs_rows rows = { ids, positions, offsets, 3, 3, 2, features, NULL };
    const fs_rows targets = { ids, positions, offsets, 3, 3, 2, features + 3 * set->D, NULL };
    const fs_shard_plan *plan = &shard->plan;
    fs_step_cost cost;
    fs_memory memory;
    fs_carry carry = { 0 };
    fs_view out;
    must(fs_plan_step_cost(&cost, set, plan, task, 3, 3, 2) == FS_OK, "a step can be planned");
    if (fs_cpu_backend.alloc(device, FS_WORKSPACE, cost.kept + cost.scratch, &memory) != FS_OK) {
        free(features);
        return;
    }
    fs_arena kept = fs_arena_over(memory.at, cost.kept);
    fs_arena arena = fs_arena_over((char *)memory.at + cost.kept, cost.scratch);
    fs_step step = { .device = device,
                     .queue = queue,
                     .ops = &ops,
                     .arena = &arena,
                     .kept = &kept,
                     .rows = &rows,
                     .ranks = 1,
                     .targets = &targets };
    must(fs_forward(&step, set, shard, &carry) == FS_OK, "the layers run");
    must(fs_task_finish(&step, set, shard->ends, task, &carry, &out) == FS_OK, "a task finishes");
    must(fs_cpu_backend.event_record(event, queue) == FS_OK, "an event is recorded");
    must(fs_cpu_backend.event_wait(event) == FS_OK, "a step runs");
    must(arena.peak == cost.scratch && kept.peak == cost.kept, "the plan knows the workspace");
    fs_cpu_backend.release(device, &memory);
    free(features);
}

static void load(const fs_checkpoint *c, const fs_settings *set, int rank, int ranks) {
    fs_shard shard;
    const fs_shard_plan plan = { 0, (int)set->L, rank, ranks, 0 };
    fs_status st = fs_shard_load(&shard, c, set, &plan, device, ranks);
    must(st == FS_OK || st == FS_NO_MEMORY || fs_shard_check(set, ranks) != FS_OK, "what was checked loads");
    fs_task tasks[FS_TASKS_MOST];
    const int count = fs_task_largest(tasks, set);
    for (int i = 0; st == FS_OK && ranks == 1 && (set->any_length || set->P >= 2) && i < count; i++)
        run(set, &shard, &tasks[i]);
    if (st == FS_OK) fs_shard_release(&shard);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static fuzz_input input;
    fs_settings set;
    open_once();
    int64_t live = fs_alloc_live();
    fuzz_read(&input, fds, data, size);
    const fs_checkpoint *c = &input.c;
    fs_status st = fs_checkpoint_check(c);
    int sound = st == FS_OK;
    must(sound || (st == FS_CHECKPOINT && *fs_error_text()), "a refused table has a sentence");
    st = fs_settings_read(&set, c, "auto");
    must(st == FS_OK || (st == FS_CONFIG && *fs_error_text()), "refused settings have a sentence");
    /* The later steps trust the table's numbers, as their headers say. */
    if (sound && st == FS_OK) {
        st = fs_weights_check(c, &set);
        must(st == FS_OK || (st == FS_CHECKPOINT && *fs_error_text()), "refused weights have a sentence");
        for (int ranks = 1; st == FS_OK && ranks <= 2; ranks++) load(c, &set, ranks - 1, ranks);
    }
    must(fs_alloc_live() == live, "all memory was given back");
    for (int i = 0; i < FS_CHARGE_COUNT; i++)
        must(fs_budget_used(&device->budget, (fs_charge)i) == 0, "all device memory was given back");
    return 0;
}
