#define _GNU_SOURCE
/* backends: what devices= may say, the registry, opening CPU devices and their memory. */
#include "backends/devices.h"
#include "base/host.h"
#include "test.h"

#include <math.h>
#include <stdlib.h>

enum { MOST_NAMES = 4 };

typedef struct {
    const char *names[MOST_NAMES];
    int threads;
    fs_status status;
    const char *sentence;
    int index[MOST_NAMES], share[MOST_NAMES]; /* when it is understood */
} naming;

static const naming namings[] = {
    { { "auto" }, 0, FS_OK, "", { 0 }, { 0 } },
    { { "cpu" }, 5, FS_OK, "", { 0 }, { 5 } },
    { { "cpu:0" }, 0, FS_OK, "", { 0 }, { 0 } },
    { { "cpu:0", "cpu:1" }, 3, FS_OK, "", { 0, 1 }, { 2, 1 } },
    { { "cpu:2", "cpu:0", "cpu:1" }, 4, FS_OK, "", { 2, 0, 1 }, { 1, 2, 1 } },
    { { "cpu:0", "cpu:1", "cpu:2" }, 1, FS_OK, "", { 0, 1, 2 }, { 1, 1, 1 } },
    { { "cpu:0", "cuda:1" }, 0, FS_CONFIG, "'cpu:0' and 'cuda:1' are of two kinds", { 0 }, { 0 } },
    { { "cuda", "cuda:0" }, 0, FS_CONFIG, "\"cuda\" stands alone; here it is one of 2 names", { 0 }, { 0 } },
    { { "tpu" }, 0, FS_CONFIG, "'tpu' is of no known kind", { 0 }, { 0 } },
    { { "measure" }, 0, FS_CONFIG, "'measure' is of no known kind", { 0 }, { 0 } },
    { { "" }, 0, FS_CONFIG, "'' is no device", { 0 }, { 0 } },
    { { "cpu:" }, 0, FS_CONFIG, "'cpu:' is no device", { 0 }, { 0 } },
    { { "cpu:x" }, 0, FS_CONFIG, "'cpu:x' is no device", { 0 }, { 0 } },
    { { "cpu:-1" }, 0, FS_CONFIG, "'cpu:-1' is no device", { 0 }, { 0 } },
    { { "cpu:99999999999" }, 0, FS_CONFIG, "is no device", { 0 }, { 0 } },
    { { "a-name-as-long-as-no-kind-of-device-ever-was:0" }, 0, FS_CONFIG, "is no device", { 0 }, { 0 } },
    { { "cpu:1" }, 0, FS_CONFIG, "'cpu:1' lies beyond the 1 named", { 0 }, { 0 } },
    { { "cpu:0", "cpu:2" }, 0, FS_CONFIG, "'cpu:2' lies beyond the 2 named", { 0 }, { 0 } },
    { { "cpu:0", "cpu:0" }, 0, FS_CONFIG, "'cpu:0' and 'cpu:0' are the same device", { 0 }, { 0 } },
    { { "cpu", "cpu:0" }, 0, FS_CONFIG, "'cpu' and 'cpu:0' are the same device", { 0 }, { 0 } },
    { { "auto", "cpu:1" }, 0, FS_CONFIG, "\"auto\" stands alone", { 0 }, { 0 } },
    { { NULL }, 0, FS_CONFIG, "names 0 devices", { 0 }, { 0 } },
};

static void names_are_resolved_or_refused(void) {
    setenv("CUDA_VISIBLE_DEVICES", "", 1); /* "auto" on a machine with GPUs is the next test's */
    for (size_t i = 0; i < sizeof namings / sizeof *namings; i++) {
        const naming *c = &namings[i];
        fs_device_choice out[FS_DEVICES_MAX];
        fs_device_options common = { .threads = c->threads, .max_memory = 77, .path = "portable" };
        int n = 0, count = 0;
        while (n < MOST_NAMES && c->names[n]) n++;
        if (c->status != FS_OK) {
            CHECK_FAILS(fs_devices_resolve(c->names, n, &common, out, &count), c->status, c->sentence);
            continue;
        }
        CHECK_OK(fs_devices_resolve(c->names, n, &common, out, &count));
        CHECK_INT(count, n);
        for (int d = 0; d < count; d++) {
            CHECK(out[d].backend == &fs_cpu_backend);
            CHECK_INT(out[d].options.index, c->index[d]);
            CHECK_INT(out[d].options.of, n);
            CHECK_INT(out[d].options.threads, c->share[d]);
            CHECK_INT(out[d].options.max_memory, 77);
            CHECK_TEXT(out[d].options.path, "portable");
        }
    }
    unsetenv("CUDA_VISIBLE_DEVICES");
}

static void backends_are_found_by_name(void) {
    const fs_backend *b = NULL;
    for (int i = 0; fs_backends[i]; i++) {
        CHECK_OK(fs_backend_find(fs_backends[i]->name, &b));
        CHECK(b == fs_backends[i]);
        CHECK(b->count() >= (b != &fs_cuda_backend));
    }
    CHECK_FAILS(fs_backend_find("tpu", &b), FS_CONFIG, "'tpu' is no backend; there are cpu, cuda, measure");
}

/* Nothing is opened by naming a GPU, so this needs none. */
static void gpus_are_named_by_the_drivers_numbers(void) {
    const char *const names[] = { "cuda:3", "cuda:1" };
    fs_device_choice out[FS_DEVICES_MAX];
    int count = 0;
    CHECK_OK(fs_devices_resolve(names, 2, &(fs_device_options){ .threads = 4 }, out, &count));
    CHECK_INT(count, 2);
    CHECK(out[0].backend == &fs_cuda_backend && out[1].backend == &fs_cuda_backend);
    CHECK_INT(out[0].options.index, 3);
    CHECK_INT(out[1].options.index, 1);

    /* All of them, and at least the first, so that opening it says what is missing. */
    static const char *const all[] = { "cuda" };
    CHECK_OK(fs_devices_resolve(all, 1, &(fs_device_options){ 0 }, out, &count));
    int there = fs_cuda_backend.count();
    CHECK_INT(count, there > 1 ? there : 1);
    for (int i = 0; i < count; i++) CHECK_INT(out[i].options.index, i);

    /* "auto" asks for the GPUs where there are any, and never falls back. */
    static const char *const preset[] = { "auto" };
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    CHECK_OK(fs_devices_resolve(preset, 1, &(fs_device_options){ 0 }, out, &count));
    CHECK(out[0].backend == &fs_cpu_backend);
    unsetenv("CUDA_VISIBLE_DEVICES");
}

static void a_gpu_that_cannot_be_opened_says_what_was_tried(void) {
    fs_device *d;
    setenv("FIRESTEEL_LIBCUDA", "/no/such/libcuda.so", 1);
    CHECK_FAILS(fs_cuda_backend.open(&d, &(fs_device_options){ 0 }), FS_DEVICE, "tried /no/such/libcuda.so");
    CHECK(d == NULL);
    CHECK_INT(fs_cuda_backend.count(), 0);
    setenv("FIRESTEEL_LIBCUDA", "libm.so.6", 1);
    CHECK_FAILS(fs_cuda_backend.open(&d, &(fs_device_options){ 0 }), FS_DEVICE, "has no cuInit");
    CHECK_FAILS(fs_cuda_backend.open(&d, &(fs_device_options){ .path = "avx2" }), FS_CONFIG, "cpu_path='avx2'");
    unsetenv("FIRESTEEL_LIBCUDA");
}

static void a_device_says_what_it_is(void) {
    fs_device *d;
    CHECK_OK(fs_cpu_backend.open(&d, &(fs_device_options){ .path = "portable" }));
    CHECK_TEXT(d->name, "cpu:0");
    CHECK_TEXT(d->numerics, "cpu portable");
    CHECK(d->backend == &fs_cpu_backend);
    CHECK(d->budget.limit > 0);
    fs_cpu_backend.close(d);
    fs_cpu_backend.close(NULL);

    CHECK_OK(fs_cpu_backend.open(&d, &(fs_device_options){ .index = 1, .of = 3, .max_memory = 1000 }));
    CHECK_TEXT(d->name, "cpu:1");
    CHECK_INT(d->budget.limit, 1000);
    fs_cpu_backend.close(d);
}

typedef struct {
    const char *variable, *value; /* or NULL */
    fs_device_options options;
    const char *sentence;
} refusal;

static void what_cannot_be_opened_is_refused(void) {
    static const refusal refusals[] = {
        { NULL, NULL, { .index = 2, .of = 2 }, "cpu:2 is no part of a host cut into 2" },
        { NULL, NULL, { .index = -1 }, "cpu:-1 is no part" },
        { NULL, NULL, { .threads = -1 }, "threads is -1" },
        { NULL, NULL, { .threads = 100000 }, "threads is 100000" },
        { NULL, NULL, { .path = "sse9" }, "sse9" },
        { "FIRESTEEL_CPU_PATH", "mmx", { 0 }, "mmx" },
        { "FIRESTEEL_THREADS", "many", { 0 }, "FIRESTEEL_THREADS is 'many'" },
        { "FIRESTEEL_TEST_DELAY", "2", { 0 }, "FIRESTEEL_TEST_DELAY is '2'" },
        { "FIRESTEEL_TEST_POISON", "yes", { 0 }, "FIRESTEEL_TEST_POISON is 'yes'" },
    };
    fs_device *d;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        const refusal *r = &refusals[i];
        if (r->variable) setenv(r->variable, r->value, 1);
        CHECK_FAILS(fs_cpu_backend.open(&d, &r->options), FS_CONFIG, r->sentence);
        CHECK(d == NULL);
        if (r->variable) unsetenv(r->variable);
    }
}

static void opening_and_allocating_can_fail_anywhere(void) {
    fs_device *d = NULL;
    fs_memory small, large;
    fs_status st = FS_NO_MEMORY;
    for (int n = 1; st != FS_OK && n < 100; n++) {
        fs_alloc_fail_at(n);
        st = fs_cpu_backend.open(&d, &(fs_device_options){ .threads = 2 });
        if (st != FS_OK) CHECK_INT(st, FS_NO_MEMORY);
    }
    fs_alloc_fail_at(0);
    CHECK_OK(st);
    for (int n = 1; n <= 2; n++) {
        fs_alloc_fail_at(n);
        CHECK_FAILS(fs_cpu_backend.alloc(d, FS_WEIGHTS, 100, &small), FS_NO_MEMORY, "refused");
        CHECK(small.at == NULL);
        CHECK_INT(fs_budget_used(&d->budget, FS_WEIGHTS), 0);
    }
    fs_alloc_fail_at(1);
    CHECK_FAILS(fs_cpu_backend.alloc(d, FS_WEIGHTS, 5 << 20, &large), FS_NO_MEMORY, "refused");
    CHECK_INT(fs_budget_used(&d->budget, FS_WEIGHTS), 0);
    CHECK_OK(fs_cpu_backend.alloc(d, FS_WEIGHTS, 100, &small));
    fs_cpu_backend.release(d, &small);
    fs_cpu_backend.close(d);
}

static void memory_is_charged_and_given_back(void) {
    static const size_t sizes[] = { 0, 1, 64, 4097, (1 << 20) - 1, 1 << 20, (3 << 20) + 5, 9 << 20 };
    enum { SIZES = sizeof sizes / sizeof *sizes };
    fs_device *d;
    fs_memory m[SIZES];
    size_t sum = 0;
    CHECK_OK(fs_cpu_backend.open(&d, &(fs_device_options){ .max_memory = 100 << 20 }));
    for (int i = 0; i < SIZES; i++) {
        CHECK_OK(fs_cpu_backend.alloc(d, FS_WORKSPACE, sizes[i], &m[i]));
        CHECK(m[i].at != NULL);
        CHECK_INT((uintptr_t)m[i].at % 64, 0);
        if (sizes[i]) memset(m[i].at, i, sizes[i]);
        sum += sizes[i];
    }
    CHECK_INT(fs_budget_used(&d->budget, FS_WORKSPACE), sum);
    for (int i = 0; i < SIZES; i++)
        if (sizes[i]) CHECK_INT(((char *)m[i].at)[sizes[i] - 1], i);
    for (int i = 0; i < SIZES; i++) {
        fs_cpu_backend.release(d, &m[i]);
        CHECK(m[i].at == NULL);
        fs_cpu_backend.release(d, &m[i]);
    }
    CHECK_INT(fs_budget_used(&d->budget, FS_WORKSPACE), 0);
    CHECK_OK(fs_cpu_backend.alloc_pinned(d, FS_STAGING, 1000, &m[0]));
    CHECK_INT(fs_budget_used(&d->budget, FS_STAGING), 1000);
    fs_cpu_backend.release(d, &m[0]);
    CHECK_FAILS(fs_cpu_backend.alloc(d, FS_WEIGHTS, 101 << 20, &m[0]), FS_NO_MEMORY,
                "cpu:0: weights need 105.9 MB more");
    fs_cpu_backend.close(d);
}

/* A budget larger than the host: what the host has left decides, and the sentence says what is missing. */
static void the_host_has_the_last_word(void) {
    fs_device *d;
    fs_memory m;
    size_t available = fs_host_read().available;
    CHECK_OK(fs_cpu_backend.open(&d, &(fs_device_options){ .max_memory = SIZE_MAX / 4 }));
    CHECK_FAILS(fs_cpu_backend.alloc(d, FS_WEIGHTS, available + ((size_t)8 << 30), &m), FS_NO_MEMORY, "MB are missing");
    CHECK(strstr(fs_error_text(), "the host has") != NULL);
    CHECK_INT(fs_budget_used(&d->budget, FS_WEIGHTS), 0);
    fs_cpu_backend.close(d);

    CHECK_OK(fs_cpu_backend.open(&d, &(fs_device_options){ 0 }));
    CHECK(d->budget.limit >= available / 2);
    CHECK_FAILS(fs_cpu_backend.alloc(d, FS_WEIGHTS, available * 2, &m), FS_NO_MEMORY, "of a budget of");
    fs_cpu_backend.close(d);
}

static void fresh_memory_is_poisoned_on_demand(void) {
    fs_device *d;
    fs_queue *q;
    fs_event *e;
    fs_memory m[2];
    setenv("FIRESTEEL_TEST_POISON", "1", 1);
    CHECK_OK(fs_cpu_backend.open(&d, &(fs_device_options){ 0 }));
    unsetenv("FIRESTEEL_TEST_POISON");
    CHECK_OK(fs_cpu_backend.alloc(d, FS_WORKSPACE, 400, &m[0]));
    CHECK_OK(fs_cpu_backend.alloc(d, FS_WORKSPACE, 4 << 20, &m[1]));
    for (int i = 0; i < 2; i++) CHECK(isnan(((float *)m[i].at)[0]) && isnan(((float *)m[i].at)[m[i].bytes / 4 - 1]));
    memset(m[0].at, 0, 400);
    CHECK_OK(fs_cpu_backend.queue_new(d, &q));
    CHECK_OK(fs_cpu_backend.event_new(d, &e));
    CHECK_OK(fs_cpu_backend.poison(q, (char *)m[0].at + 4, 8));
    CHECK_OK(fs_cpu_backend.event_record(e, q));
    CHECK_OK(fs_cpu_backend.event_wait(e));
    CHECK(((float *)m[0].at)[0] == 0 && isnan(((float *)m[0].at)[1]) && ((float *)m[0].at)[3] == 0);
    fs_cpu_backend.event_free(e);
    fs_cpu_backend.queue_free(q);
    for (int i = 0; i < 2; i++) fs_cpu_backend.release(d, &m[i]);
    fs_cpu_backend.close(d);
}

TESTS({ "names_are_resolved_or_refused", names_are_resolved_or_refused },
      { "backends_are_found_by_name", backends_are_found_by_name },
      { "gpus_are_named_by_the_drivers_numbers", gpus_are_named_by_the_drivers_numbers },
      { "a_gpu_that_cannot_be_opened_says_what_was_tried", a_gpu_that_cannot_be_opened_says_what_was_tried },
      { "a_device_says_what_it_is", a_device_says_what_it_is },
      { "what_cannot_be_opened_is_refused", what_cannot_be_opened_is_refused },
      { "opening_and_allocating_can_fail_anywhere", opening_and_allocating_can_fail_anywhere },
      { "memory_is_charged_and_given_back", memory_is_charged_and_given_back },
      { "the_host_has_the_last_word", the_host_has_the_last_word },
      { "fresh_memory_is_poisoned_on_demand", fresh_memory_is_poisoned_on_demand })
