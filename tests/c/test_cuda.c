/* The CUDA backend under sanitizers, on the driver in software: whole engines over one, two and four GPUs.
 *
 * FIRESTEEL_LIBCUDA names that driver, built with the same sanitizers (Makefile); kernels, host code and driver are then one
 * program to AddressSanitizer, which names a store past the end by its line of a .cu file. */
#include "engine_kit.h"

#include <dlfcn.h>
#include <math.h>

static void every_way_gives_the_same_bits(void) {
    static const setup ways[] = {
        { .threads = 1 },
        { .knobs = { "FIRESTEEL_BATCH_TOKENS", "40", "FIRESTEEL_SLOTS", "3" } },
        { .knobs = { "FIRESTEEL_TEST_POISON", "1" } },
        { .devices = { "cuda:0", "cuda:1" },
          .device_count = 2,
          .stage_count = 3,
          .stages = { { 0, 1, 1, { 0 } }, { 1, 2, 1, { 1 } }, { 2, 3, 1, { 0 } } } },
        { .devices = { "cuda:1", "cuda:0" },
          .device_count = 2,
          .stage_count = 2,
          .stages = { { 0, 2, 1, { 0 } }, { 2, 3, 1, { 1 } } },
          .knobs = { "FIRESTEEL_BATCH_TOKENS", "40", "FIRESTEEL_TEST_POISON", "1" } },
        { .devices = { "cuda:0", "cuda:1", "cuda:3" },
          .device_count = 3,
          .stage_count = 3,
          .stages = { { 0, 1, 1, { 2 } }, { 1, 2, 1, { 0 } }, { 2, 3, 1, { 1 } } } },
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

/* Under LeakSanitizer too: what a failing call leaves behind on either side. */
static void calls_may_fail(void) {
    void *driver = dlopen(getenv("FIRESTEEL_LIBCUDA"), RTLD_NOW | RTLD_LOCAL);
    void (*fail_at)(long long, int);
    long long (*live)(void);
    static request q;
    const setup two = { .devices = { "cuda:0", "cuda:1" },
                        .device_count = 2,
                        .stage_count = 2,
                        .stages = { { 0, 2, 1, { 0 } }, { 2, 3, 1, { 1 } } } };
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
      { "agrees_with_the_cpu", agrees_with_the_cpu }, { "calls_may_fail", calls_may_fail })
