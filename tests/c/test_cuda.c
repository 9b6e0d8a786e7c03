/* The CUDA backend under sanitizers, on the driver in software: whole engines over one, two and four GPUs.
 *
 * FIRESTEEL_LIBCUDA names that driver, built with the same sanitizers (Makefile); kernels, host code and driver are then one
 * program to AddressSanitizer, which names a store past the end by its line of a .cu file. */
#include "engine_kit.h"

#include "backends/cuda/cuda.h"

#include <dlfcn.h>
#include <math.h>

static void every_way_gives_the_same_bits(void) {
    static const setup ways[] = {
        { .threads = 1 },
        { .knobs = { "FIRESTEEL_BATCH_TOKENS", "40", "FIRESTEEL_SLOTS", "3" } },
        { .knobs = { "FIRESTEEL_TEST_POISON", "1", "FIRESTEEL_LOAD_THREADS", "4" } },
        { .devices = { "cuda:0", "cuda:1" },
          .device_count = 2,
          .stage_count = 3,
          .stages = { { 0, 1, 1, { 0 }, 0 }, { 1, 2, 1, { 1 }, 0 }, { 2, 3, 1, { 0 }, 0 } } },
        { .devices = { "cuda:1", "cuda:0" },
          .device_count = 2,
          .stage_count = 2,
          .stages = { { 0, 2, 1, { 0 }, 0 }, { 2, 3, 1, { 1 }, 0 } },
          .knobs = { "FIRESTEEL_BATCH_TOKENS", "40", "FIRESTEEL_TEST_POISON", "1", "FIRESTEEL_LOAD_THREADS", "7" } },
        { .devices = { "cuda:0", "cuda:1", "cuda:3" },
          .device_count = 3,
          .stage_count = 3,
          .stages = { { 0, 1, 1, { 2 }, 0 }, { 1, 2, 1, { 0 }, 0 }, { 2, 3, 1, { 1 }, 0 } } },
        { .devices = { "cuda:0", "cuda:1", "cuda:2", "cuda:3" },
          .device_count = 4,
          .parallel = "replicate=2,split=2",
          .knobs = { "FIRESTEEL_BATCH_TOKENS", "40", "FIRESTEEL_TEST_POISON", "1" } },
        { .devices = { "cuda" }, .device_count = 1, .parallel = "replicate", .knobs = { "FIRESTEEL_SLOTS", "1" } },
    };
    start(); /* "auto" is a GPU here, so the reference is as well */
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) check_engine(&ways[i], "a way over GPUs");
    end();
}

static void agrees_with_the_cpu(void) {
    static request q;
    const setup cpu = { .devices = { "cpu" }, .device_count = 1 };
    start();
    fs_engine *e = opened(&model, &cpu);
    make_rows(&q, 5, ROWS);
    run(e, &q, &MEAN);
    for (int64_t i = 0; i < ROWS * D; i++)
        if (!(fabsf(q.out[i] - reference_rows.out[i]) < 1e-5f))
            TEST_FAIL("number %lld is %g on the CPU, %g on the GPU", (long long)i, (double)q.out[i],
                      (double)reference_rows.out[i]);
    fs_engine_close(e);
    end();
}

/* ---- weights filled by several threads ---- */

enum { FILLERS = FS_CUDA_BUFFERS + 4, WEIGHT_ROWS = 200, WEIGHT_COLS = 1500 /* several buffers each */ };

typedef struct {
    fs_device *device;
    void *at;
    fs_weight weight;
    fs_error error;
    float rows[WEIGHT_ROWS][WEIGHT_COLS];
} filler;

static fs_status fill(filler *f, const fs_backend *b) {
    const fs_weight_desc desc = { .kind = FS_TABLE, .dtype = FS_F32, .N = WEIGHT_ROWS, .K = WEIGHT_COLS };
    FS_TRY(b->weight_begin(f->device, &f->weight, &desc, f->at));
    for (int64_t row = 0, n; row < WEIGHT_ROWS; row += n) {
        n = row + 67 < WEIGHT_ROWS ? 67 : WEIGHT_ROWS - row;
        FS_TRY(b->weight_fill(f->device, &f->weight, row, n, f->rows[row], sizeof f->rows[row], FS_F32));
        memset(f->rows[row], 0, (size_t)n * sizeof f->rows[row]); /* the backend has taken what it needs */
    }
    return b->weight_end(f->device, &f->weight);
}

static void *filler_main(void *filler_) {
    filler *f = filler_;
    fs_status st = fill(f, f->device->backend);
    f->error = (fs_error){ 0 };
    if (st != FS_OK) fs_error_take(&f->error, st);
    return NULL;
}

static float number_at(int number, int64_t row, int64_t col, int round) {
    return (float)((row * 7919 + col * 31 + number * 101 + round * 13) % 4099);
}

/* All weights at once; returns how many threads have failed. */
static int fill_all(filler *all, int round) {
    pthread_t threads[FILLERS];
    int failed = 0;
    for (int i = 0; i < FILLERS; i++)
        for (int64_t r = 0; r < WEIGHT_ROWS; r++)
            for (int64_t c = 0; c < WEIGHT_COLS; c++) all[i].rows[r][c] = number_at(i, r, c, round);
    for (int i = 0; i < FILLERS; i++) CHECK_INT(pthread_create(&threads[i], NULL, filler_main, &all[i]), 0);
    for (int i = 0; i < FILLERS; i++) {
        pthread_join(threads[i], NULL);
        failed += all[i].error.status != FS_OK;
        CHECK(all[i].error.status == FS_OK || strstr(all[i].error.text, "cuda:0"));
    }
    return failed;
}

static void check_filled(filler *all, int round) {
    const fs_backend *b = &fs_cuda_backend;
    fs_device *d = all->device;
    fs_memory host;
    fs_queue *queue;
    fs_event *event;
    CHECK_OK(b->alloc_pinned(d, FS_STAGING, sizeof all->rows, &host));
    CHECK_OK(b->queue_new(d, &queue));
    CHECK_OK(b->event_new(d, &event));
    for (int i = 0; i < FILLERS; i++) {
        int64_t wrong = 0;
        CHECK_OK(b->download(queue, host.at, all[i].weight.at, host.bytes));
        CHECK_OK(b->event_record(event, queue));
        CHECK_OK(b->event_wait(event));
        for (int64_t k = 0; k < WEIGHT_ROWS * WEIGHT_COLS; k++)
            wrong += ((float *)host.at)[k] != number_at(i, k / WEIGHT_COLS, k % WEIGHT_COLS, round);
        CHECK_INT(wrong, 0);
    }
    b->event_free(event);
    b->queue_free(queue);
    b->release(d, &host);
}

/* Only so many buffers are there for a round; the others as if threads held them. */
static void leave_buffers(fs_cuda_device *d, int n) {
    for (int i = 0; i < FS_CUDA_BUFFERS; i++) d->ring[i] = &d->buffers[i];
    d->first = 0;
    d->in_ring = n;
}

/* More threads than buffers. A failing call is one thread's; whatever fails, no buffer is lost and nothing stays
 * locked, or a later round would not end. */
static void weights_are_filled_by_many_threads(void) {
    const fs_device_options options = { 0 };
    static const int buffers[] = { FS_CUDA_BUFFERS, 1, 2 };
    void (*fail_at)(long long, int);
    fs_device *d;
    fs_memory slab;
    filler *all = calloc(FILLERS, sizeof *all);
    void *driver = dlopen(getenv("FIRESTEEL_LIBCUDA"), RTLD_NOW | RTLD_LOCAL),
         *symbol = dlsym(driver, "softcuda_fail_at");
    memcpy(&fail_at, &symbol, sizeof symbol);
    CHECK_OK(fs_cuda_backend.open(&d, &options));
    CHECK_INT(fs_budget_used(&d->budget, FS_STAGING), FS_CUDA_BUFFERS * FS_CUDA_BUFFER_BYTES);
    CHECK_OK(fs_cuda_backend.alloc(d, FS_WEIGHTS, FILLERS * sizeof all->rows, &slab));
    for (int i = 0; i < FILLERS; i++) {
        all[i].device = d;
        all[i].at = (char *)slab.at + (size_t)i * sizeof all->rows;
    }
    for (int round = 0; round < 3; round++) {
        leave_buffers(fs_cuda(d), buffers[round]);
        CHECK_INT(fill_all(all, round), 0);
        check_filled(all, round);
        CHECK_INT(fs_cuda(d)->in_ring, buffers[round]);
    }
    leave_buffers(fs_cuda(d), FS_CUDA_BUFFERS);
    int failures = 0;
    for (int n = 1; n < 240; n += 9) {
        fail_at(n, 999);
        failures += fill_all(all, n);
        fail_at(0, 0);
        CHECK_INT(fs_cuda(d)->in_ring, FS_CUDA_BUFFERS);
    }
    CHECK(failures > 2 * FS_CUDA_BUFFERS);
    CHECK_INT(fill_all(all, 3), 0);
    check_filled(all, 3);
    fs_cuda_backend.release(d, &slab);
    fs_cuda_backend.close(d);
    dlclose(driver);
    free(all);
}

static void check_bytes(const fs_memory *m, size_t from, size_t to, unsigned char byte, const char *what) {
    for (size_t i = from; i < to; i++)
        if (((unsigned char *)m->at)[i] != byte) {
            TEST_FAIL("%s: byte %zu is %d, not %d", what, i, ((unsigned char *)m->at)[i], byte);
            return;
        }
}

/* The backend has called cuInit once and will not again. */
static void start_driver_anew(void *driver) {
    void *symbols[] = { dlsym(driver, "softcuda_reset"), dlsym(driver, "cuInit") };
    void (*reset)(void);
    int (*init)(unsigned);
    memcpy(&reset, &symbols[0], sizeof symbols[0]);
    memcpy(&init, &symbols[1], sizeof symbols[1]);
    reset();
    CHECK_INT(init(0), 0);
}

static void read_back(fs_queue *q, fs_event *e, const fs_memory *to, const fs_memory *from) {
    CHECK_OK(fs_cuda_backend.download(q, to->at, from->at, from->bytes));
    CHECK_OK(fs_cuda_backend.event_record(e, q));
    CHECK_OK(fs_cuda_backend.event_wait(e));
}

/* On a driver whose new memory is all zeros. NaN is 0xff four times, as an index -1. */
static void memory_is_poisoned_on_demand(void) {
    const fs_backend *cuda = &fs_cuda_backend;
    void *driver = dlopen(getenv("FIRESTEEL_LIBCUDA"), RTLD_NOW | RTLD_LOCAL);
    for (int poison = 0; poison < 2; poison++) {
        const unsigned char fresh = poison ? 0xff : 0;
        fs_device *d;
        fs_queue *q;
        fs_event *e;
        fs_memory m, host;
        setenv("SOFTCUDA_FRESH", "0", 1);
        setenv("FIRESTEEL_TEST_POISON", poison ? "1" : "0", 1);
        start_driver_anew(driver);
        CHECK_OK(cuda->open(&d, &(fs_device_options){ 0 }));
        CHECK_OK(cuda->queue_new(d, &q));
        CHECK_OK(cuda->event_new(d, &e));
        CHECK_OK(cuda->alloc(d, FS_WORKSPACE, 4100, &m));
        CHECK_OK(cuda->alloc_pinned(d, FS_STAGING, 4100, &host));
        check_bytes(&host, 0, 4100, fresh, "pinned memory");
        memset(host.at, 1, 4100);
        read_back(q, e, &host, &m);
        check_bytes(&host, 0, 4100, fresh, "memory");
        CHECK(!isnan(((float *)host.at)[1024]) == !poison && ((int32_t *)host.at)[1024] == -poison);
        memset(host.at, 0, 4100);
        CHECK_OK(cuda->upload(q, m.at, host.at, 4100));
        CHECK_OK(cuda->poison(q, (char *)m.at + 12, 4000));
        read_back(q, e, &host, &m);
        check_bytes(&host, 0, 12, 0, "before what is recycled");
        check_bytes(&host, 12, 4012, fresh, "recycled memory");
        check_bytes(&host, 4012, 4100, 0, "behind what is recycled");
        cuda->release(d, &host);
        cuda->release(d, &m);
        cuda->event_free(e);
        cuda->queue_free(q);
        cuda->close(d);
    }
    unsetenv("FIRESTEEL_TEST_POISON");
    unsetenv("SOFTCUDA_FRESH");
    start_driver_anew(driver);
    dlclose(driver);
}

/* Under LeakSanitizer too: what a failing call leaves behind on either side. */
static void calls_may_fail(void) {
    void *driver = dlopen(getenv("FIRESTEEL_LIBCUDA"), RTLD_NOW | RTLD_LOCAL);
    void (*fail_at)(long long, int);
    long long (*live)(void);
    static request q;
    const setup two = { .devices = { "cuda:0", "cuda:1" },
                        .device_count = 2,
                        .stage_count = 2,
                        .stages = { { 0, 2, 1, { 0 }, 0 }, { 2, 3, 1, { 1 }, 0 } } };
    void *symbols[] = { dlsym(driver, "softcuda_fail_at"), dlsym(driver, "softcuda_live") };
    memcpy(&fail_at, &symbols[0], sizeof symbols[0]);
    memcpy(&live, &symbols[1], sizeof symbols[1]);
    start();
    long long before = live();
    make_rows(&q, 5, 3);
    int failures = 0;
    for (int n = 1; n < 700; n += 31) {
        fs_engine *e = NULL;
        fs_job *j = NULL;
        fail_at(n, 999);
        fs_status st = open_as(&e, &model, &two);
        if (st == FS_OK) {
            fs_request r = as_request(&q, &MEAN);
            int done;
            st = fs_engine_submit(e, &r, &j);
            if (st == FS_OK) st = fs_job_wait(j, -1, &done);
            fs_job_free(j);
            fs_engine_close(e);
        }
        fail_at(0, 0);
        failures += st != FS_OK;
        if (st != FS_OK) CHECK(strstr(fs_error_text(), "cuda"));
        CHECK_INT(live(), before);
    }
    CHECK(failures > 8);
    end();
    dlclose(driver);
}

TESTS({ "every_way_gives_the_same_bits", every_way_gives_the_same_bits },
      { "agrees_with_the_cpu", agrees_with_the_cpu },
      { "weights_are_filled_by_many_threads", weights_are_filled_by_many_threads },
      { "memory_is_poisoned_on_demand", memory_is_poisoned_on_demand }, { "calls_may_fail", calls_may_fail })
