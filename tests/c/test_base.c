/* base: allocation that fails on demand, arena, budget, errors and threads, element types, knobs. */
#include "base/arena.h"
#include "base/budget.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/knobs.h"
#include "test.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>

static fs_status take(int kind, void **out) {
    switch (kind) {
    case 0: return fs_alloc(out, 10, 4);
    case 1: return fs_realloc(out, 10, 4);
    case 2: return fs_alloc_aligned(out, 100);
    default: return fs_strdup((char **)out, "text");
    }
}

static void every_allocation_can_fail(void) {
    for (int kind = 0; kind < 4; kind++) {
        void *at = NULL, *second = NULL;
        fs_alloc_fail_at(2);
        CHECK_OK(take(kind, &at));
        CHECK_FAILS(take(kind, &second), FS_NO_MEMORY, "bytes of memory");
        CHECK(second == NULL);
        CHECK_OK(take(kind, &second)); /* once only */
        fs_free(at);
        fs_free(second);
    }
    fs_alloc_fail_at(1);
    fs_alloc_fail_at(0);
    void *at;
    CHECK_OK(fs_alloc(&at, 1, 1));
    fs_free(at);
}

static void allocations_keep_their_promises(void) {
    char *at = NULL;
    CHECK_OK(fs_alloc(&at, 3, 5));
    for (int i = 0; i < 15; i++) CHECK_INT(at[i], 0);
    memset(at, 7, 15);
    CHECK_OK(fs_realloc(&at, 100, 100));
    for (int i = 0; i < 15; i++) CHECK_INT(at[i], 7);
    fs_alloc_fail_at(1);
    CHECK_FAILS(fs_realloc(&at, 200, 100), FS_NO_MEMORY, "200 x 100");
    CHECK_INT(at[14], 7);
    CHECK_FAILS(fs_realloc(&at, SIZE_MAX / 4, 16), FS_NO_MEMORY, "refused");
    fs_free(at);
    CHECK_FAILS(fs_alloc(&at, SIZE_MAX / 2, 3), FS_NO_MEMORY, "refused");
    CHECK_FAILS(fs_alloc_aligned(&at, SIZE_MAX), FS_NO_MEMORY, "refused");
    CHECK_OK(fs_alloc(&at, 0, 8));
    CHECK(at != NULL);
    fs_free(at);
    CHECK_OK(fs_alloc_aligned(&at, 1));
    CHECK_INT((uintptr_t)at % 64, 0);
    fs_free(at);
    fs_free(NULL);
}

static void arena_hands_out_and_takes_back(void) {
    _Alignas(64) static char room[256];
    fs_arena a = fs_arena_over(room, sizeof room);
    void *first, *second, *third;
    CHECK_OK(fs_arena_push(&a, 1, &first));
    size_t mark = fs_arena_mark(&a);
    CHECK_OK(fs_arena_push(&a, 65, &second));
    CHECK_INT((char *)second - (char *)first, 64);
    CHECK_FAILS(fs_arena_push(&a, 65, &third), FS_NO_MEMORY, "needs 65 bytes of workspace where 64 of 256 are left");
    CHECK_OK(fs_arena_push(&a, 64, &third));
    fs_arena_reset(&a, mark);
    CHECK_OK(fs_arena_push(&a, 1, &third));
    CHECK(third == second);
    CHECK_INT(a.peak, 256);
    CHECK_FAILS(fs_arena_push(&a, SIZE_MAX, &third), FS_NO_MEMORY, "workspace");
    fs_view v;
    fs_arena_reset(&a, 0);
    CHECK_OK(fs_arena_view(&a, FS_F32, 3, 5, &v));
    CHECK_INT(a.used, 64);
    CHECK_INT(v.stride, 5);
}

static void *spend(void *arg) {
    for (int i = 0; i < 2000; i++)
        if (fs_budget_take(arg, FS_WORKSPACE, 3) == FS_OK) fs_budget_give(arg, FS_WORKSPACE, 3);
    return NULL;
}

static void budget_bounds_the_sum(void) {
    fs_budget b;
    fs_budget_init(&b, "cpu:0", 1000000);
    CHECK_OK(fs_budget_take(&b, FS_WEIGHTS, 600000));
    CHECK_OK(fs_budget_take(&b, FS_STAGING, 400000));
    CHECK_FAILS(fs_budget_take(&b, FS_WORKSPACE, 500000), FS_NO_MEMORY,
                "cpu:0: workspace need 0.5 MB more, of a budget of 1.0 MB 0.0 MB are left, 0.5 MB are missing");
    CHECK_INT(fs_budget_used(&b, FS_WORKSPACE), 0);
    fs_budget_give(&b, FS_STAGING, 400000);
    CHECK_INT(fs_budget_used(&b, FS_STAGING), 0);
    CHECK_INT(fs_budget_peak(&b), 1000000);
    CHECK_FAILS(fs_budget_take(&b, FS_WORKSPACE, SIZE_MAX), FS_NO_MEMORY, "missing");
    pthread_t threads[3];
    for (int t = 0; t < 3; t++) pthread_create(&threads[t], NULL, spend, &b);
    for (int t = 0; t < 3; t++) pthread_join(threads[t], NULL);
    CHECK_INT(fs_budget_used(&b, FS_WORKSPACE), 0);
    fs_budget_destroy(&b);
    fs_budget_init(&b, "cpu:0", 0);
    CHECK_OK(fs_budget_take(&b, FS_WEIGHTS, (size_t)1 << 60));
    fs_budget_destroy(&b);
}

static void *fail_elsewhere(void *arg) {
    CHECK_TEXT(fs_error_text(), "");
    fs_error_take(arg, fs_fail(FS_DEVICE, "over there"));
    CHECK_TEXT(fs_error_text(), "");
    return NULL;
}

static void errors_stay_in_their_thread(void) {
    fs_error error;
    pthread_t thread;
    fs_fail(FS_CONFIG, "here");
    pthread_create(&thread, NULL, fail_elsewhere, &error);
    pthread_join(thread, NULL);
    CHECK_TEXT(fs_error_text(), "here");
    CHECK_FAILS(fs_error_raise(&error), FS_DEVICE, "over there");
    CHECK_FAILS(fs_fail(FS_CHECKPOINT, "model: %s", fs_error_text()), FS_CHECKPOINT, "model: over there");
    char *long_text;
    CHECK_OK(fs_alloc(&long_text, 5000, 1));
    memset(long_text, 'x', 4999);
    fs_fail(FS_CONFIG, "%s", long_text);
    CHECK_INT(strlen(fs_error_text()), sizeof error.text - 1);
    fs_free(long_text);
    CHECK_TEXT(fs_row_code_name(FS_ROW_TOO_LONG), "TOO_LONG");
    CHECK_TEXT(fs_row_code_name(FS_ROW_OK), "");
}

static void halves_are_exact(void) {
    char moved[9];
    for (int bits = 0; bits < 65536; bits++) {
        uint16_t half = (uint16_t)bits;
        int exponent = bits >> 10 & 31, fraction = bits & 1023;
        float got = fs_f16_to_f32(half), wanted;
        if (exponent == 31) wanted = fraction ? NAN : INFINITY;
        else if (exponent) wanted = ldexpf((float)(1024 + fraction), exponent - 25);
        else wanted = ldexpf((float)fraction, -24);
        if (bits & 0x8000) wanted = -wanted;
        if (isnan(wanted) ? !isnan(got) : got != wanted || signbit(got) != signbit(wanted))
            TEST_FAIL("fp16 %04x is %g, not %g", bits, (double)got, (double)wanted);

        float bf, from[2];
        uint32_t wide = (uint32_t)bits << 16;
        memcpy(&wanted, &wide, 4);
        bf = fs_bf16_to_f32(half);
        if (memcmp(&bf, &wanted, 4)) TEST_FAIL("bf16 %04x is %g, not %g", bits, (double)bf, (double)wanted);
        memcpy(moved + 1, &half, 2); /* not aligned */
        memcpy(moved + 3, &half, 2);
        fs_to_f32(from, moved + 1, FS_BF16, 2);
        if (memcmp(from + 1, &wanted, 4)) TEST_FAIL("bf16 %04x changes when moved", bits);
        fs_to_f32(from, moved + 1, FS_F16, 2);
        if (memcmp(from + 1, &got, 4)) TEST_FAIL("fp16 %04x changes when moved", bits);
    }
    float one = 1.5f, out;
    memcpy(moved + 1, &one, 4);
    fs_to_f32(&out, moved + 1, FS_F32, 1);
    CHECK(out == one);
}

/* From below, on and above each border between two neighbours; what is a half already stays. */
static void floats_go_to_the_nearest_half(void) {
    for (int bits = 0; bits < 65536; bits++) {
        uint16_t half = (uint16_t)bits, next = (uint16_t)(bits + 1), to[1];
        float value = fs_f16_to_f32(half), wide = fs_bf16_to_f32(half), middle;
        if (isnan(value)) CHECK((fs_f32_to_f16(value) & 0x7fff) > 0x7c00);
        else CHECK_INT(fs_f32_to_f16(value), half);
        if (isnan(wide)) CHECK((fs_f32_to_bf16(wide) & 0x7fff) > 0x7f80);
        else CHECK_INT(fs_f32_to_bf16(wide), half);
        if ((bits & 0x7fff) < 0x7bff) {
            middle = value / 2 + fs_f16_to_f32(next) / 2;
            CHECK_INT(fs_f32_to_f16(middle), bits & 1 ? next : half);
            CHECK_INT(fs_f32_to_f16(nextafterf(middle, 0)), half);
            CHECK_INT(fs_f32_to_f16(nextafterf(middle, value < 0 || bits & 0x8000 ? -1e9f : 1e9f)), next);
        }
        if ((bits & 0x7fff) >= 0x80 && (bits & 0x7fff) < 0x7f7f) { /* the others' middles are no normal numbers */
            middle = wide / 2 + fs_bf16_to_f32(next) / 2;
            CHECK_INT(fs_f32_to_bf16(middle), bits & 1 ? next : half);
            CHECK_INT(fs_f32_to_bf16(nextafterf(middle, 0)), half);
        }
        fs_from_f32(to, &value, FS_F16, 1);
        CHECK_INT(to[0], fs_f32_to_f16(value));
    }
    CHECK_INT(fs_f32_to_f16(65519.0f), 0x7bff);
    CHECK_INT(fs_f32_to_f16(65520.0f), 0x7c00);
    CHECK_INT(fs_f32_to_f16(-1e30f), 0xfc00);
    CHECK_INT(fs_f32_to_bf16(3.4e38f), 0x7f80);
}

static void views_and_types(void) {
    float data[12];
    fs_view v = { .at = data, .dtype = FS_F32, .rows = 3, .cols = 4, .stride = 4 };
    fs_view cols = fs_view_cols(v, 1, 2), rows = fs_view_rows(v, 1, 2);
    CHECK(fs_f32(cols, 2) == data + 9);
    CHECK(fs_f32(rows, 1) == data + 8);
    CHECK_INT(cols.cols, 2);
    CHECK_INT(rows.rows, 2);
    CHECK_INT(fs_dtype_from_file("BF16"), FS_BF16);
    CHECK_INT(fs_dtype_from_file("U8"), FS_DTYPE_COUNT);
    CHECK_TEXT(fs_dtype_name(FS_F16), "fp16");
    CHECK_TEXT(fs_dtype_name(FS_DTYPE_COUNT), "unknown");
    CHECK_INT(fs_dtype_bytes(FS_I64), 8);
}

static void hash_sees_every_byte(void) {
    char a[40] = { 0 }, b[40] = { 0 };
    uint64_t same = fs_hash(a, 0, 1);
    for (size_t n = 1; n <= sizeof a; n++) {
        CHECK(fs_hash(a, n, 1) == fs_hash(b, n, 1));
        CHECK(fs_hash(a, n, 1) != same); /* zeros of another length */
        CHECK(fs_hash(a, n, 1) != fs_hash(a, n, 2));
        b[n - 1] = 1;
        CHECK(fs_hash(a, n, 1) != fs_hash(b, n, 1));
        b[n - 1] = 0;
        same = fs_hash(a, n, 1);
    }
}

static void knobs_are_checked(void) {
    int64_t value;
    static const char *const bad[] = { "many", "-1", "1e3", "5 ", "9999999999999999999999", "17" };
    unsetenv("FIRESTEEL_SLOTS");
    CHECK_OK(fs_knob_int(FS_KNOB_SLOTS, 0, 16, &value));
    CHECK_INT(value, 0);
    setenv("FIRESTEEL_SLOTS", "", 1);
    CHECK_TEXT(fs_knob_text(FS_KNOB_SLOTS), "0");
    setenv("FIRESTEEL_SLOTS", "16", 1);
    CHECK_OK(fs_knob_int(FS_KNOB_SLOTS, 1, 16, &value));
    CHECK_INT(value, 16);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        setenv("FIRESTEEL_SLOTS", bad[i], 1);
        CHECK_FAILS(fs_knob_int(FS_KNOB_SLOTS, 1, 16, &value), FS_CONFIG, "a whole number from 1 to 16");
        CHECK(strstr(fs_error_text(), bad[i]) && strstr(fs_error_text(), "FIRESTEEL_SLOTS"));
    }
    unsetenv("FIRESTEEL_SLOTS");
}

TESTS({ "every_allocation_can_fail", every_allocation_can_fail },
      { "allocations_keep_their_promises", allocations_keep_their_promises },
      { "arena_hands_out_and_takes_back", arena_hands_out_and_takes_back },
      { "budget_bounds_the_sum", budget_bounds_the_sum },
      { "errors_stay_in_their_thread", errors_stay_in_their_thread }, { "halves_are_exact", halves_are_exact },
      { "floats_go_to_the_nearest_half", floats_go_to_the_nearest_half }, { "views_and_types", views_and_types },
      { "hash_sees_every_byte", hash_sees_every_byte }, { "knobs_are_checked", knobs_are_checked })
