/* shim.h - what a CUDA kernel sees when it is compiled for the host: the names of portable.cuh, in C++17.
 *
 * The threads of a block are fibers of one OS thread (fibers.cc) that switch where they meet: at FS_SYNC() and at
 * whatever needs a whole warp. Blocks of a grid run one after the other. Meetings compare their source lines, so a
 * divergent one is a launch failure with the kernel's name and the line, never a hang.
 *
 * FS_SHARED arrays are thread-local variables, filled with NaN (0xff bytes) before each block. Under AddressSanitizer,
 * which guards only plain variables, they are those instead: not refilled, and one launch at a time. */
#ifndef SOFTCUDA_SHIM_H
#define SOFTCUDA_SHIM_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

struct softcuda_index {
    unsigned x, y, z;
};

/* Every thread-local of the library but FS_SHARED arrays: what is wiped before a block is all of the others. */
struct softcuda_thread {
    softcuda_index thread, block, block_size, grid_size;
    void *dynamic;        /* dynamic shared memory of this launch */
    struct fiber_pool *pool; /* fibers.cc */
    void *context;           /* driver.cc: the current CUcontext */
    int nccl_groups;         /* nccl.cc: ncclGroupStart without its end */
};
extern __thread softcuda_thread softcuda_now;

/* Kernels register themselves before main; the list never changes afterwards, the counters do. */
struct softcuda_kernel_entry {
    const char *name;
    size_t bytes; /* of the argument struct */
    int threads;  /* at most, of a block: its __launch_bounds__ */
    void (*run)(const void *arguments);
    softcuda_kernel_entry *next;
    long long launches, most_blocks;
    softcuda_kernel_entry(const char *named, size_t struct_bytes, int most_threads, void (*body)(const void *));
};

/* Where a meeting or a fault is in the source: default arguments are evaluated at the call. */
#define SOFTCUDA_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

/* All threads of the block; all lanes of the warp. The last lane to arrive calls work with what the others brought. */
void softcuda_block_meet(const char *file, int line);
void softcuda_warp_meet(void *mine, void (*work)(void *const lanes[32]), const char *what, const char *file, int line);
/* Queues 16 bytes for `to`; closes a group; the next copy that must be done while `groups_left` groups may stay. */
void softcuda_copy_queue(void *to, const unsigned char bytes[16]);
void softcuda_copy_commit();
bool softcuda_copy_next(int groups_left, void **to, unsigned char bytes[16]);

int softcuda_capability(); /* of the device: 80 for 8.0 */
/* The whole launch ends here. */
[[noreturn]] void softcuda_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Works for whole warps, in warp.cc. */
struct softcuda_shuffle {
    float value, result;
    int from;
};
struct softcuda_mma {
    float *d;
    const unsigned *a, *b;
    const float *c;
};
struct softcuda_row {
    unsigned words[4], *r;
};
void softcuda_work_none(void *const lanes[32]);
void softcuda_work_shuffle(void *const lanes[32]);
void softcuda_work_mma_f16(void *const lanes[32]);
void softcuda_work_mma_bf16(void *const lanes[32]);
void softcuda_work_load_matrix(void *const lanes[32]);

#define threadIdx (softcuda_now.thread)
#define blockIdx  (softcuda_now.block)
#define blockDim  (softcuda_now.block_size)
#define gridDim   (softcuda_now.grid_size)

#define FS_DEVICE static inline
#ifdef __SANITIZE_ADDRESS__
#define FS_SHARED alignas(16) static
#else
#define FS_SHARED alignas(16) static __thread
#endif
#define FS_DYNAMIC_SHARED(type, name) type *const name = static_cast<type *>(softcuda_now.dynamic)
#define FS_SYNC()                     softcuda_block_meet(__FILE__, __LINE__)

/* As under CUDA, name_threads says how many threads a block of it may have. */
#define FS_KERNEL(name, type)                                                                                          \
    extern "C" void name(const type a);                                                                                \
    static void softcuda_run_##name(const void *arguments) { name(*static_cast<const type *>(arguments)); }            \
    static softcuda_kernel_entry softcuda_entry_##name(#name, sizeof(type), name##_threads, softcuda_run_##name);      \
    extern "C" void name([[maybe_unused]] const type a)

FS_DEVICE int fs_lane() { return static_cast<int>(threadIdx.x % 32); }

/* -- meetings of a warp -------------------------------------------------------------------------------------------- */

FS_DEVICE float fs_shuffle(float value, int from, SOFTCUDA_HERE) {
    softcuda_shuffle mine = { value, 0, from & 31 };
    softcuda_warp_meet(&mine, softcuda_work_shuffle, "a shuffle", file, line);
    return mine.result;
}

FS_DEVICE float fs_shuffle_xor(float value, int mask, SOFTCUDA_HERE) {
    return fs_shuffle(value, fs_lane() ^ mask, file, line);
}

FS_DEVICE void fs_warp_sync(SOFTCUDA_HERE) {
    softcuda_warp_meet(nullptr, softcuda_work_none, "a warp barrier", file, line);
}

FS_DEVICE void fs_mma_f16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4], SOFTCUDA_HERE) {
    softcuda_mma mine = { d, a, b, c };
    softcuda_warp_meet(&mine, softcuda_work_mma_f16, "an fp16 mma", file, line);
}

FS_DEVICE void fs_mma_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4], SOFTCUDA_HERE) {
    softcuda_mma mine = { d, a, b, c };
    if (softcuda_capability() < 80) softcuda_fail(file, line, "compute capability 7.5 has no bf16 mma");
    softcuda_warp_meet(&mine, softcuda_work_mma_bf16, "a bf16 mma", file, line);
}

FS_DEVICE void softcuda_aligned(const void *at, const char *file, int line) {
    if (reinterpret_cast<uintptr_t>(at) % 16) softcuda_fail(file, line, "%p is not aligned to 16 bytes", at);
}

/* Each lane reads its row by itself, so that a fault is its own. */
FS_DEVICE void fs_load_matrix_4(unsigned r[4], const void *shared_row, SOFTCUDA_HERE) {
    softcuda_row mine;
    mine.r = r;
    softcuda_aligned(shared_row, file, line);
    std::memcpy(mine.words, shared_row, 16);
    softcuda_warp_meet(&mine, softcuda_work_load_matrix, "a matrix load", file, line);
}

/* -- copies that are done only when they are waited for ------------------------------------------------------------ */

FS_DEVICE void fs_copy_async_16(void *shared, const void *global, int bytes, SOFTCUDA_HERE) {
    unsigned char held[16] = {};
    if (bytes < 0 || bytes > 16) softcuda_fail(file, line, "an async copy of %d bytes; 0 to 16", bytes);
    softcuda_aligned(shared, file, line);
    softcuda_aligned(global, file, line);
    std::memcpy(held, global, static_cast<size_t>(bytes));
    softcuda_copy_queue(shared, held);
}

FS_DEVICE void fs_copy_commit() { softcuda_copy_commit(); }

FS_DEVICE void fs_copy_wait(int groups_left) {
    unsigned char held[16];
    void *to;
    while (softcuda_copy_next(groups_left, &to, held)) std::memcpy(to, held, sizeof held);
}

/* -- numbers ------------------------------------------------------------------------------------------------------- */

FS_DEVICE float fs_fma(float a, float b, float c) { return std::fma(a, b, c); }
FS_DEVICE float fs_exp2(float x) { return std::exp2(x); }
FS_DEVICE float fs_sqrt(float x) { return std::sqrt(x); }
FS_DEVICE float fs_div(float a, float b) { return a / b; }
FS_DEVICE float fs_erf(float x) { return std::erf(x); }
FS_DEVICE float fs_tanh(float x) { return std::tanh(x); }
FS_DEVICE float fs_max(float a, float b) { return std::fmax(a, b); }
FS_DEVICE float fs_min(float a, float b) { return std::fmin(a, b); }

FS_DEVICE uint32_t softcuda_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

FS_DEVICE float softcuda_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

/* To nearest, ties to even; NaN becomes 0x7fff, as cvt.rn gives it. */
FS_DEVICE unsigned short fs_float_to_bf16(float x) {
    uint32_t bits = softcuda_bits(x);
    if (x != x) return 0x7fff;
    return static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

FS_DEVICE float fs_bf16_to_float(unsigned short x) { return softcuda_float(static_cast<uint32_t>(x) << 16); }

FS_DEVICE float fs_half_to_float(unsigned short x) {
    uint32_t sign = (x & 0x8000u) << 16, exponent = x >> 10 & 31, fraction = x & 1023u;
    if (exponent == 31) return softcuda_float(sign | 0x7f800000 | fraction << 13);
    if (exponent) return softcuda_float(sign | (exponent + 112) << 23 | fraction << 13);
    float small = static_cast<float>(fraction) * 0x1p-24f; /* exact */
    return softcuda_float(sign | softcuda_bits(small));
}

FS_DEVICE unsigned short fs_float_to_half(float x) {
    uint32_t bits = softcuda_bits(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (x != x) return 0x7fff;
    if (size >= 0x477ff000) return static_cast<unsigned short>(sign | 0x7c00); /* 65520 and more */
    if (size < 0x38800000) { /* below 2^-14: adding 0.5 rounds to multiples of 2^-24 */
        float rounded = softcuda_float(size) + 0.5f;
        return static_cast<unsigned short>(sign | (softcuda_bits(rounded) - 0x3f000000));
    }
    uint32_t rounded = size + 0xfff + (size >> 13 & 1);
    return static_cast<unsigned short>(sign | ((rounded >> 13) - (112u << 10)));
}

#endif
