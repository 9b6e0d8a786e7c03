/* selftest_kernels.cu - what shim.h gives kernels, each against plain loops, and every fault that must be found. */
#include "softcuda/selftest.h"

#include "softcuda/runtime.h"

#include <thread>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

struct launch {
    unsigned threads = 32;
    softcuda_index blocks = { 1, 1, 1 };
    size_t dynamic_bytes = 0;
    int capability = 80;
    bool reverse = false;
};

template <typename T> static std::string run(const char *name, const T &arguments, const launch &l) {
    softcuda_kernel_entry *k = softcuda_kernels();
    while (k && std::strcmp(k->name, name)) k = k->next;
    CHECK(k && k->bytes == sizeof(T));
    return softcuda_run(k, &arguments, { l.blocks, l.threads, l.dynamic_bytes, l.capability, l.reverse });
}

#define RUN(name, arguments, ...) CHECK(run(name, arguments, launch __VA_ARGS__).empty())

static uint32_t random_bits() {
    static uint32_t state = 1;
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    return state;
}

struct numbers {
    float *y;
    const float *x;
    int n;
};

/* -- threads and blocks -------------------------------------------------------------------------------------------- */

KERNEL(every_index, numbers) {
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    a.y[block * blockDim.x + threadIdx.x] += static_cast<float>(threadIdx.x + 1);
}

TEST(every_thread_of_every_block_runs_once) {
    for (bool reverse : { false, true }) {
        std::vector<float> y(3 * 4 * 5 * 70);
        RUN("every_index", (numbers{ y.data(), nullptr, 0 }), { 70, { 3, 4, 5 }, 0, 80, reverse });
        for (size_t i = 0; i < y.size(); i++) SAME(y[i], i % 70 + 1);
    }
}

KERNEL(turn_round, numbers) {
    FS_SHARED float held[1024];
    FS_DYNAMIC_SHARED(float, more);
    unsigned t = threadIdx.x, n = blockDim.x;
    held[t] = a.x[t];
    for (int i = 0; i < a.n; i++) {
        FS_SYNC();
        more[t] = held[n - 1 - t] + 1;
        FS_SYNC();
        held[t] = more[t];
    }
    a.y[t] = held[t];
}

TEST(barriers_keep_a_block_in_step) {
    for (unsigned threads : { 1u, 31u, 32u, 100u, 128u, 1024u }) {
        std::vector<float> x(threads), y(threads);
        for (unsigned i = 0; i < threads; i++) x[i] = static_cast<float>(i);
        for (bool reverse : { false, true }) {
            RUN("turn_round", (numbers{ y.data(), x.data(), 7 }), { threads, { 2, 1, 1 }, threads * 4, 80, reverse });
            for (unsigned i = 0; i < threads; i++) SAME(y[i], threads - 1 - i + 7);
        }
    }
}

#ifndef __SANITIZE_THREAD__ /* which does not wait for bad luck */
/* Reads its left neighbour's number without a barrier: right by luck where threads run in order. */
KERNEL(barrier_forgotten, numbers) {
    FS_DYNAMIC_SHARED(float, held);
    unsigned t = threadIdx.x;
    held[t] = 1;
    if (t % 32 == 5) a.y[t] = held[t - 1];
}

TEST(reverse_order_finds_a_forgotten_barrier) {
    std::vector<float> y(32);
    RUN("barrier_forgotten", (numbers{ y.data(), nullptr, 0 }), { 32, { 1, 1, 1 }, 128 });
    SAME(y[5], 1);
    RUN("barrier_forgotten", (numbers{ y.data(), nullptr, 0 }), { 32, { 1, 1, 1 }, 128, 80, true });
    CHECK(std::isnan(y[5]));
}
#endif

KERNEL(fresh_shared, numbers) {
    FS_SHARED float held[8];
    FS_DYNAMIC_SHARED(float, more);
    float *y = a.y + 2 * (blockIdx.x * blockDim.x + threadIdx.x);
    y[0] = held[threadIdx.x], y[1] = more[threadIdx.x];
    FS_SYNC();
    held[threadIdx.x] = more[threadIdx.x] = 1;
}

TEST(shared_memory_is_nan_before_each_block) {
    std::vector<float> y(3 * 8 * 2);
    RUN("fresh_shared", (numbers{ y.data(), nullptr, 0 }), { 8, { 3, 1, 1 }, 32 });
    for (size_t i = 0; i < y.size(); i++) {
#ifdef __SANITIZE_ADDRESS__
        if (i % 2 == 0) continue; /* FS_SHARED arrays are plain variables there */
#endif
        CHECK(std::isnan(y[i]));
    }
}

KERNEL(sum_in_shared, numbers) {
    FS_SHARED float held[256];
    held[threadIdx.x] = a.x[threadIdx.x];
    for (unsigned half = blockDim.x / 2; half; half /= 2) {
        FS_SYNC();
        if (threadIdx.x < half) held[threadIdx.x] += held[threadIdx.x + half];
    }
    if (threadIdx.x == 0) a.y[blockIdx.x] = held[0];
}

#ifdef __SANITIZE_ADDRESS__
KERNEL(tells_its_stacks, numbers) {
    char here = 0;
    FS_SYNC();
    reinterpret_cast<char **>(a.y)[threadIdx.x] = &here;
}

/* Else an OS thread that later has its own stack there is said to have overrun what a fiber once had. */
TEST(redzones_go_with_their_stacks) {
    const char *at[32] = {};
    const size_t around = 2048;
    int poisoned = 0;
    std::thread([&] {
        RUN("tells_its_stacks", (numbers{ reinterpret_cast<float *>(at), nullptr, 0 }), {});
        for (const char *here : at)
            for (size_t i = 0; i < 2 * around; i++) poisoned += __asan_address_is_poisoned(here - around + i);
    }).join();
    CHECK(poisoned > 0);
    for (const char *here : at)
        for (size_t i = 0; i < 2 * around; i++) CHECK(!__asan_address_is_poisoned(here - around + i));
}
#endif

TEST(two_os_threads_run_grids_at_once) {
    auto work = [](float value) {
        std::vector<float> x(256, value), y(400);
        RUN("sum_in_shared", (numbers{ y.data(), x.data(), 0 }), { 256, { 400, 1, 1 } });
        for (float sum : y) SAME(sum, 256 * value);
    };
    std::thread other(work, 3.0f);
    work(5.0f);
    other.join();
}

/* -- warps --------------------------------------------------------------------------------------------------------- */

KERNEL(shuffles, numbers) {
    float v = static_cast<float>(threadIdx.x * 10), *y = a.y + threadIdx.x * 4;
    y[0] = fs_shuffle_xor(v, 5);
    y[1] = fs_shuffle(v, (fs_lane() + 1) % 32);
    y[2] = fs_shuffle(v, 3);
    y[3] = static_cast<float>(fs_lane());
}

TEST(shuffles_stay_in_their_warp) {
    std::vector<float> y(96 * 4);
    RUN("shuffles", (numbers{ y.data(), nullptr, 0 }), { 96 });
    for (int t = 0; t < 96; t++) {
        int first = t / 32 * 32, lane = t % 32;
        SAME(y[t * 4], (first + (lane ^ 5)) * 10);
        SAME(y[t * 4 + 1], (first + (lane + 1) % 32) * 10);
        SAME(y[t * 4 + 2], (first + 3) * 10);
        SAME(y[t * 4 + 3], lane);
    }
}

KERNEL(neighbours, numbers) {
    FS_DYNAMIC_SHARED(float, held);
    unsigned t = threadIdx.x;
    held[t] = static_cast<float>(t);
    fs_warp_sync();
    a.y[t] = held[t ^ 31];
}

TEST(warp_barriers_keep_a_warp_in_step) {
    std::vector<float> y(64);
    RUN("neighbours", (numbers{ y.data(), nullptr, 0 }), { 64, { 1, 1, 1 }, 256 });
    for (int t = 0; t < 64; t++) SAME(y[t], t ^ 31);
}

struct matrices {
    float *d; /* [16][8] */
    const unsigned short *a, *b; /* [16][16], [8][16] */
    const float *c;
    int bf16;
};

static unsigned pair_of(const unsigned short *at) { return at[0] | static_cast<unsigned>(at[1]) << 16; }

KERNEL(one_mma, matrices) {
    unsigned x[4], w[2];
    float sums[4];
    int lane = fs_lane(), g = lane >> 2, t = lane & 3;
    x[0] = pair_of(a.a + g * 16 + 2 * t), x[1] = pair_of(a.a + (g + 8) * 16 + 2 * t);
    x[2] = pair_of(a.a + g * 16 + 2 * t + 8), x[3] = pair_of(a.a + (g + 8) * 16 + 2 * t + 8);
    w[0] = pair_of(a.b + g * 16 + 2 * t), w[1] = pair_of(a.b + g * 16 + 2 * t + 8);
    for (int r = 0; r < 4; r++) sums[r] = a.c[(g + r / 2 * 8) * 8 + 2 * t + r % 2];
    if (a.bf16) fs_mma_bf16(sums, x, w, sums);
    else fs_mma_f16(sums, x, w, sums);
    for (int r = 0; r < 4; r++) a.d[(g + r / 2 * 8) * 8 + 2 * t + r % 2] = sums[r];
}

TEST(mma_agrees_with_plain_loops) {
    unsigned short x[256], w[128];
    float c[128], d[128];
    for (int bf16 = 0; bf16 < 2; bf16++) {
        auto wide = bf16 ? fs_bf16_to_float : fs_half_to_float;
        auto narrow = bf16 ? fs_float_to_bf16 : fs_float_to_half;
        for (unsigned short &v : x) v = narrow(static_cast<float>(static_cast<int>(random_bits() % 17) - 8));
        for (unsigned short &v : w) v = narrow(static_cast<float>(static_cast<int>(random_bits() % 17) - 8) / 4);
        for (float &v : c) v = static_cast<float>(random_bits() % 100);
        RUN("one_mma", (matrices{ d, x, w, c, bf16 }), { 32 });
        for (int i = 0; i < 16; i++) {
            for (int j = 0; j < 8; j++) {
                float sum = c[i * 8 + j]; /* of small integers over 4: exact in any order */
                for (int k = 0; k < 16; k++) sum += wide(x[i * 16 + k]) * wide(w[j * 16 + k]);
                SAME(d[i * 8 + j], sum);
            }
        }
    }
}

struct words {
    unsigned *y;
    int shift;
};

/* Row i of matrix m holds the numbers 64 m + 8 i ...; lane 8 m + i points at it. */
KERNEL(load_four, words) {
    FS_DYNAMIC_SHARED(unsigned short, held);
    for (int i = fs_lane(); i < 256; i += 32) held[i] = static_cast<unsigned short>(i);
    FS_SYNC();
    fs_load_matrix_4(a.y + fs_lane() * 4, held + fs_lane() * 8 + a.shift);
}

TEST(load_matrix_spreads_rows_over_lanes) {
    unsigned y[128];
    RUN("load_four", (words{ y, 0 }), { 32, { 1, 1, 1 }, 512 });
    for (int lane = 0; lane < 32; lane++) {
        for (int m = 0; m < 4; m++) {
            unsigned first = 64 * m + 8 * (lane / 4) + 2 * (lane % 4);
            SAME(y[lane * 4 + m], first | (first + 1) << 16);
        }
    }
}

/* -- async copies -------------------------------------------------------------------------------------------------- */

/* Two groups of 16 bytes, the second of which has two numbers only; waits until `n` groups may be open, if at all. */
KERNEL(two_copies, numbers) {
    FS_DYNAMIC_SHARED(float, held);
    fs_copy_async_16(held, a.x, 16);
    fs_copy_commit();
    fs_copy_async_16(held + 4, a.x + 4, 8);
    fs_copy_commit();
    if (a.n == 1) fs_copy_wait(1);
    if (a.n == 0) fs_copy_wait(0);
    for (int i = 0; i < 8; i++) a.y[i] = held[i];
}

TEST(async_copies_are_done_when_waited_for_and_not_before) {
    alignas(16) float x[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    float y[8];
    for (int left = 0; left < 3; left++) {
        RUN("two_copies", (numbers{ y, x, left }), { 1, { 1, 1, 1 }, 32 });
        for (int i = 0; i < 8; i++) {
            if (left > 1 - i / 4) CHECK(std::isnan(y[i]));
            else SAME(y[i], i < 6 ? x[i] : 0);
        }
    }
}

/* -- numbers ------------------------------------------------------------------------------------------------------- */

/* All 16-bit numbers below infinity: each comes back, and between two neighbours ties go to the even one. */
static void check_rounding(unsigned infinity, float (*wide)(unsigned short), unsigned short (*narrow)(float)) {
    for (unsigned i = 0; i < infinity; i++) {
        unsigned short at = static_cast<unsigned short>(i), up = static_cast<unsigned short>(i + 1);
        double low = wide(at),
               high = i + 1 < infinity ? wide(up) : 2.0 * wide(at) - wide(static_cast<unsigned short>(i - 1));
        float middle = static_cast<float>((low + high) / 2);
        SAME(narrow(wide(at)), at);
        SAME(narrow(-wide(at)), at | 0x8000);
        SAME(narrow(middle), i % 2 ? up : at);
        SAME(narrow(std::nextafterf(middle, 0)), at);
        SAME(narrow(std::nextafterf(middle, INFINITY)), up);
    }
    SAME(wide(static_cast<unsigned short>(infinity)), INFINITY);
    SAME(narrow(INFINITY), infinity);
    SAME(narrow(-INFINITY), infinity | 0x8000);
    CHECK(std::isnan(wide(narrow(NAN))) && std::isnan(wide(0xffff)));
    CHECK(std::isnan(wide(narrow(softcuda_float(0x7f800001)))));
}

TEST(halves_round_to_nearest_even) { check_rounding(0x7c00, fs_half_to_float, fs_float_to_half); }
TEST(bf16_rounds_to_nearest_even) { check_rounding(0x7f80, fs_bf16_to_float, fs_float_to_bf16); }

TEST(arithmetic_is_not_contracted) {
    volatile float a = 1 + 0x1p-12f, b = 1 + 0x1p-12f, c = -1 - 0x1p-11f; /* so that it is not done by the compiler */
    SAME(fs_fma(a, b, c), 0x1p-24f);
    SAME(a * b + c, 0);
    SAME(fs_max(NAN, 1), 1);
    SAME(fs_min(NAN, 1), 1);
}

/* -- faults -------------------------------------------------------------------------------------------------------- */

/* Kernels that do something wrong, the line above their last, and what must be said of it. */
struct fault {
    const char *name;
    unsigned threads;
    int line;
    const char *text;
};
static std::vector<fault> faults;

#define FAULT(name, threads, text)                                                                                     \
    static bool listed_##name = (faults.push_back({ #name, threads, __LINE__ - 2, text }), true)

KERNEL(barrier_not_by_all, numbers) {
    if (threadIdx.x < 5) return;
    FS_SYNC();
}
FAULT(barrier_not_by_all, 64, "threads have ended");

KERNEL(barrier_left_waiting, numbers) {
    if (threadIdx.x != 9) FS_SYNC();
}
FAULT(barrier_left_waiting, 64, "ended while thread 0 waits for it at this barrier");

KERNEL(barrier_in_one_warp, numbers) {
    if (threadIdx.x < 32) FS_SYNC();
}
FAULT(barrier_in_one_warp, 64, "ended while thread 0 waits for it at this barrier");

KERNEL(shuffle_not_by_all, numbers) {
    if (threadIdx.x != 3) a.y[threadIdx.x] = fs_shuffle(1, 0);
}
FAULT(shuffle_not_by_all, 64, "a shuffle needs all lanes; some have ended");

KERNEL(half_a_warp, numbers) {
    a.y[threadIdx.x] = 0;
    fs_warp_sync();
}
FAULT(half_a_warp, 48, "a warp barrier needs all lanes; some have ended or do not exist");

KERNEL(warp_waits_for_block, numbers) {
    if (threadIdx.x == 7) FS_SYNC();
    else fs_warp_sync();
}
FAULT(warp_waits_for_block, 32, "waits here for thread 7, which waits at selftest_kernels.cu");

KERNEL(divergent_barrier, numbers) {
    if (threadIdx.x < 40) FS_SYNC();
    else FS_SYNC();
}
FAULT(divergent_barrier, 64, "divergent barrier: thread 0 waits at the one in selftest_kernels.cu");

KERNEL(divergent_warp, numbers) {
    if (threadIdx.x < 5) a.y[0] = fs_shuffle(1, 0);
    else a.y[0] = fs_shuffle(1, 0);
}
FAULT(divergent_warp, 64, "a shuffle in a divergent warp: other lanes are at selftest_kernels.cu");

KERNEL(different_meetings, numbers) {
    if (threadIdx.x < 5) a.y[0] = fs_shuffle(1, 0);
    if (threadIdx.x >= 5) fs_warp_sync();
}
FAULT(different_meetings, 32, "a warp barrier in a divergent warp: other lanes are at");

KERNEL(rows_of_8_bytes, numbers) {
    unsigned r[4];
    fs_load_matrix_4(r, a.x + 2);
}
FAULT(rows_of_8_bytes, 32, "is not aligned to 16 bytes");

KERNEL(copy_of_17, numbers) {
    a.y[threadIdx.x] = 0;
    fs_copy_async_16(a.y, a.x, 17);
}
FAULT(copy_of_17, 32, "an async copy of 17 bytes");

KERNEL(copy_to_odd_place, numbers) {
    a.y[threadIdx.x] = 0;
    fs_copy_async_16(a.y + 1, a.x, 16);
}
FAULT(copy_to_odd_place, 32, "is not aligned to 16 bytes");

KERNEL(bf16_on_75, numbers) {
    unsigned r[4] = {};
    fs_mma_bf16(a.y, r, r, a.x);
}
FAULT(bf16_on_75, 32, "has no bf16 mma");

/* And whatever has failed, the next launch is as good as any. */
static void check_fault(const fault &f) {
    alignas(16) float x[64] = {}, y[256];
    std::string said = run(f.name, numbers{ y, x, 0 }, { f.threads, { 2, 1, 1 }, 0, 75 });
    HOLDS(said, f.text);
    HOLDS(said, std::string(f.name) + ", block (0,0,0), thread ");
    HOLDS(said, ", selftest_kernels.cu:" + std::to_string(f.line) + ": ");
    std::vector<float> ok(70);
    RUN("every_index", (numbers{ ok.data(), nullptr, 0 }), { 70 });
    SAME(ok[69], 70);
}

TEST(faults_are_named_with_their_line) {
    for (const fault &f : faults) check_fault(f);
}

KERNEL(writes_far, numbers) {
    FS_DYNAMIC_SHARED(float, held);
    held[a.n] = 1;
}
[[maybe_unused]] static const int writes_far_line = __LINE__ - 2;

[[maybe_unused]] static void expect(const char *kind, const char *kernel, int line) {
    EXPECT(kind);
    EXPECT(kernel);
    EXPECT(("selftest_kernels.cu:" + std::to_string(line)).c_str());
}

#ifndef __SANITIZE_ADDRESS__
TEST(dynamic_shared_memory_is_guarded) {
    for (int at : { -1, 4, 19 }) {
        std::string said = run("writes_far", numbers{ nullptr, nullptr, at }, { 1, { 1, 1, 1 }, 16 });
        HOLDS(said, "writes_far: wrote outside its dynamic shared memory");
    }
    RUN("writes_far", (numbers{ nullptr, nullptr, 3 }), { 1, { 1, 1, 1 }, 16 });
}
#endif

#ifdef __SANITIZE_ADDRESS__
TEST(dies_past_dynamic_shared_memory) {
    expect("heap-buffer-overflow", "writes_far", writes_far_line);
    run("writes_far", numbers{ nullptr, nullptr, 4 }, { 32, { 1, 1, 1 }, 16 });
}

KERNEL(writes_past_shared, numbers) {
    FS_SHARED float held[4];
    float *at = held + a.n + threadIdx.x;
    FS_SYNC();
    *at = 1;
    a.y[threadIdx.x] = held[threadIdx.x];
}
static const int writes_past_shared_line = __LINE__ - 3;

TEST(dies_past_a_shared_array) {
    float y[4];
    expect("global-buffer-overflow", "writes_past_shared", writes_past_shared_line);
    run("writes_past_shared", numbers{ y, nullptr, 1 }, { 4 });
}

KERNEL(copies_past, numbers) {
    FS_DYNAMIC_SHARED(float, held);
    fs_copy_async_16(held, a.x, 16);
    a.y[0] = held[0];
}
static const int copies_past_line = __LINE__ - 3;

TEST(dies_copying_from_past_an_array) {
    float y[1];
    std::vector<float> x(3);
    expect("heap-buffer-overflow", "copies_past", copies_past_line);
    run("copies_past", numbers{ y, x.data(), 0 }, { 1, { 1, 1, 1 }, 16 });
}

KERNEL(stores_past, numbers) {
    FS_SYNC();
    a.y[threadIdx.x] = 1;
}
static const int stores_past_line = __LINE__ - 2;

TEST(dies_past_global_memory) {
    std::vector<float> y(63);
    expect("heap-buffer-overflow", "stores_past", stores_past_line);
    run("stores_past", numbers{ y.data(), nullptr, 0 }, { 64 });
}
#endif

#ifdef __SANITIZE_THREAD__
/* Right in every order that threads are run in, and wrong all the same. */
KERNEL(races_in_shared, numbers) {
    FS_SHARED float held[64];
    if (threadIdx.x == 0) held[0] = 1;
    if (a.n) FS_SYNC();
    if (threadIdx.x == 0) a.y[0] = held[0];
    if (threadIdx.x == 33) held[0] = 2;
}
static const int races_in_shared_line = __LINE__ - 2;

TEST(dies_of_a_race_between_warps) {
    float y[1];
    expect("data race", "races_in_shared", races_in_shared_line);
    run("races_in_shared", numbers{ y, nullptr, 1 }, { 64 });
}

KERNEL(races_in_a_warp, numbers) {
    FS_DYNAMIC_SHARED(float, held);
    held[threadIdx.x] = 1;
    fs_warp_sync();
    a.y[threadIdx.x] = held[threadIdx.x ^ 1];
    if (a.n) fs_warp_sync();
    held[threadIdx.x] = 2;
}
static const int races_in_a_warp_line = __LINE__ - 2;

TEST(dies_of_a_race_within_a_warp) {
    float y[32];
    RUN("races_in_a_warp", (numbers{ y, nullptr, 1 }), { 32, { 1, 1, 1 }, 128 });
    expect("data race", "races_in_a_warp", races_in_a_warp_line);
    run("races_in_a_warp", numbers{ y, nullptr, 0 }, { 32, { 1, 1, 1 }, 128 });
}
#endif
