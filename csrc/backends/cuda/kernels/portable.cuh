/* portable.cuh - what kernels may use: CUDA under NVRTC, fibers on the host.
 *
 * The only file that asks which compiler it is. The names below are all that kernels know of the machine;
 * tests/softcuda gives the same ones to a C++ compiler, so the very same sources run where there is no GPU. Compile
 * with -fmad=false: what is fused is written fs_fma, and one source has the same roundings on every generation and
 * on the host (but for exp2, erf and tanh, whose last bit is the library's).
 *
 *     FS_KERNEL(name, struct)       a kernel over `const struct a`, listed in kernels.def
 *     FS_DEVICE, FS_CALLED          a function that becomes part of its caller; one that is there once and is called
 *     FS_SYNC, fs_warp_sync         barrier of the block, of the warp
 *     fs_shuffle, fs_shuffle_xor    over the whole warp
 *     fs_mma_f16, fs_mma_bf16       d = a b + c, 16 x 8 x 16, sums in fp32. sm_75 has no bf16: it traps
 *     fs_load_matrix_4              four 8 x 8 matrices of 16-bit numbers; lanes 8 i ... point at the rows of matrix i
 *     fs_copy_async_16              16 bytes to shared memory, the first `bytes` copied and the rest 0
 *     fs_copy_commit, fs_copy_wait  closes a group of copies; waits until at most n (a constant) groups are under way
 *     FS_ASYNC_COPIES               0 on sm_75, where fs_copy_async_16 traps: loads go through registers there
 *     FS_UNROLL, FS_UNROLL_BY(n)    before a loop */
#ifndef FS_CUDA_PORTABLE_CUH
#define FS_CUDA_PORTABLE_CUH

#include "backends/cuda/kernels/args.h"

/* name_threads: the block each kernel is launched with. */
enum {
#define X(name, args, threads) name##_threads = threads,
#include "backends/cuda/kernels/kernels.def"
#undef X
};

#ifdef __CUDACC__

#define FS_KERNEL(name, type)                                                                                          \
    extern "C" __global__ void __launch_bounds__(name##_threads) name(const __grid_constant__ type a)
#define FS_DEVICE static __device__ __forceinline__
#define FS_CALLED static __device__ __noinline__
#define FS_SHARED __shared__ __align__(16)
#define FS_DYNAMIC_SHARED(type, name)                                                                                  \
    extern __shared__ __align__(16) unsigned char fs_dynamic_shared[];                                                 \
    type *const name = reinterpret_cast<type *>(fs_dynamic_shared)
#define FS_SYNC()       __syncthreads()
#define FS_PRAGMA(text) _Pragma(#text)
#define FS_UNROLL       _Pragma("unroll")
#define FS_UNROLL_BY(n) FS_PRAGMA(unroll n)

FS_DEVICE int fs_lane() { return static_cast<int>(threadIdx.x % 32); }
FS_DEVICE float fs_shuffle(float v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
FS_DEVICE float fs_shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
FS_DEVICE void fs_warp_sync() { __syncwarp(); }

FS_DEVICE float fs_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
FS_DEVICE float fs_exp2(float x) { return exp2f(x); }
FS_DEVICE float fs_sqrt(float x) { return __fsqrt_rn(x); }
FS_DEVICE float fs_div(float a, float b) { return __fdiv_rn(a, b); }
FS_DEVICE float fs_erf(float x) { return erff(x); }
FS_DEVICE float fs_tanh(float x) { return tanhf(x); }
FS_DEVICE float fs_max(float a, float b) { return fmaxf(a, b); }
FS_DEVICE float fs_min(float a, float b) { return fminf(a, b); }

FS_DEVICE float fs_half_to_float(unsigned short x) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x));
    return f;
}

FS_DEVICE unsigned short fs_float_to_half(float x) {
    unsigned short h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}

FS_DEVICE float fs_bf16_to_float(unsigned short x) { return __uint_as_float(static_cast<unsigned>(x) << 16); }

FS_DEVICE unsigned short fs_float_to_bf16(float x) {
#if __CUDA_ARCH__ >= 800
    unsigned short h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
#else
    unsigned bits = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}

FS_DEVICE unsigned fs_shared_address(const void *shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

#if __CUDA_ARCH__ >= 800

#define FS_ASYNC_COPIES 1

#define FS_MMA(type)                                                                                                   \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, " \
                 "{%10,%11,%12,%13};"                                                                                  \
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),  \
                   "f"(c[3]))

FS_DEVICE void fs_mma_f16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) { FS_MMA("f16"); }
FS_DEVICE void fs_mma_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) { FS_MMA("bf16"); }

FS_DEVICE void fs_copy_async_16(void *shared, const void *global, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(fs_shared_address(shared)), "l"(global),
                 "r"(bytes)
                 : "memory");
}
FS_DEVICE void fs_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
#define fs_copy_wait(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")

#else /* sm_75 */

#define FS_ASYNC_COPIES 0

/* Half of the k steps: m16n8k8, which is all that sm_75 has. */
FS_DEVICE void fs_mma_f16_8(float d[4], unsigned a0, unsigned a1, unsigned b, const float c[4]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

FS_DEVICE void fs_mma_f16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) {
    fs_mma_f16_8(d, a[0], a[1], b[0], c);
    fs_mma_f16_8(d, a[2], a[3], b[1], d);
}

FS_DEVICE void fs_mma_bf16(float *, const unsigned *, const unsigned *, const float *) { asm volatile("trap;"); }

FS_DEVICE void fs_copy_async_16(void *, const void *, int) { asm volatile("trap;"); }
FS_DEVICE void fs_copy_commit() {}
#define fs_copy_wait(n) static_cast<void>(n)

#endif

FS_DEVICE void fs_load_matrix_4(unsigned r[4], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(fs_shared_address(shared_row))
                 : "memory");
}

#else /* a C++ compiler of the host */

#include "softcuda/shim.h"

#define FS_CALLED       static __attribute__((noinline))
#define FS_ASYNC_COPIES 1
#define FS_UNROLL
#define FS_UNROLL_BY(n)

#endif

#endif
