/* simd.h - v16, a vector of sixteen floats, and the few things kernels do with it.
 *
 * Included by each path_*.c, which says first what a v16 is: FS_SIMD_AVX512 (one register), FS_SIMD_AVX2 (two), or
 * neither (four vectors of four, which gcc and clang turn into SSE2, NEON or plain C). Kernel sources see only these
 * functions. Rounding is the same everywhere but in v16_fma, where a machine without the instruction rounds twice; so
 * avx2 and avx512 agree in every bit, and horizontal sums go by one tree: lanes 8 apart, then 4, 2, 1.
 *
 *     load, store, set1, add, sub, mul, div      as they say
 *     load_n, store_n (n lanes, 0 ... 16)        lanes from n on are neither read nor written; loaded, they are zero
 *     head(v, n, rest)                           n lanes of v, then those of rest
 *     fma(a, b, c)                               a * b + c
 *     chain(a, b, c)                             the same where c is a sum in a loop: it stays in its register
 *     max, min(a, b)                             b where either is NaN
 *     scale2(v, t)                               v * 2^n, where t = n + 1.5 * 2^23 has n in its low bits
 *     sum, top                                   over the lanes */

#include <stdint.h>
#include <string.h>

#define FS_INLINE static inline __attribute__((always_inline, unused))

typedef float fs_v4 __attribute__((vector_size(16)));
typedef int32_t fs_i4 __attribute__((vector_size(16)));

#if defined(__clang__)
#define FS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (fs_i4){ __VA_ARGS__ })
#endif

FS_INLINE fs_v4 fs_load4(const float *p) {
    fs_v4 v;
    memcpy(&v, p, sizeof v);
    return v;
}
FS_INLINE void fs_store4(float *p, fs_v4 v) { memcpy(p, &v, sizeof v); }

/* to[c * to_stride + r] = from[r * from_stride + c]        r < rows, c < cols */
static __attribute__((unused)) void fs_transpose(float *to, int64_t to_stride, const float *from, int64_t from_stride,
                                                 int64_t rows, int64_t cols) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        const float *a = from + r * from_stride, *b = a + from_stride, *c = b + from_stride, *d = c + from_stride;
        float *at = to + r;
        int64_t k = 0;
        for (; k + 4 <= cols; k += 4, at += 4 * to_stride) {
            fs_v4 p = fs_load4(a + k), q = fs_load4(b + k), s = fs_load4(c + k), t = fs_load4(d + k);
            fs_v4 pq = FS_SHUFFLE(p, q, 0, 4, 1, 5), st = FS_SHUFFLE(s, t, 0, 4, 1, 5);
            fs_store4(at, FS_SHUFFLE(pq, st, 0, 1, 4, 5));
            fs_store4(at + to_stride, FS_SHUFFLE(pq, st, 2, 3, 6, 7));
            pq = FS_SHUFFLE(p, q, 2, 6, 3, 7), st = FS_SHUFFLE(s, t, 2, 6, 3, 7);
            fs_store4(at + 2 * to_stride, FS_SHUFFLE(pq, st, 0, 1, 4, 5));
            fs_store4(at + 3 * to_stride, FS_SHUFFLE(pq, st, 2, 3, 6, 7));
        }
        for (; k < cols; k++, at += to_stride) fs_store4(at, (fs_v4){ a[k], b[k], c[k], d[k] });
    }
    for (; r < rows; r++)
        for (int64_t k = 0; k < cols; k++) to[k * to_stride + r] = from[r * from_stride + k];
}

#if defined(FS_SIMD_AVX512) || defined(FS_SIMD_AVX2)

#include <immintrin.h>

/* From 8 lanes on, the tree is the same code for both. */
FS_INLINE float fs_sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

FS_INLINE float fs_max8(__m256 v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

#endif

#if defined(FS_SIMD_AVX512)

typedef __m512 v16;

FS_INLINE __mmask16 fs_lanes(int64_t n) { return (__mmask16)((1u << n) - 1); }
FS_INLINE __m256 fs_upper(v16 v) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)); }

FS_INLINE v16 v16_set1(float x) { return _mm512_set1_ps(x); }
FS_INLINE v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
FS_INLINE void v16_store(float *p, v16 v) { _mm512_storeu_ps(p, v); }
FS_INLINE v16 v16_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(fs_lanes(n), p); }
FS_INLINE void v16_store_n(float *p, v16 v, int64_t n) { _mm512_mask_storeu_ps(p, fs_lanes(n), v); }
FS_INLINE v16 v16_head(v16 v, int64_t n, v16 rest) { return _mm512_mask_blend_ps(fs_lanes(n), rest, v); }
FS_INLINE v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
FS_INLINE v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
FS_INLINE v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
FS_INLINE v16 v16_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
FS_INLINE v16 v16_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
FS_INLINE v16 v16_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
FS_INLINE v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
FS_INLINE v16 v16_chain(v16 a, v16 b, v16 c) { return v16_fma(a, b, c); }
FS_INLINE v16 v16_scale2(v16 v, v16 t) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
}
FS_INLINE float v16_sum(v16 v) { return fs_sum8(_mm256_add_ps(_mm512_castps512_ps256(v), fs_upper(v))); }
FS_INLINE float v16_top(v16 v) { return fs_max8(_mm256_max_ps(_mm512_castps512_ps256(v), fs_upper(v))); }

#elif defined(FS_SIMD_AVX2)

typedef struct {
    __m256 a, b;
} v16;

/* Sixteen lanes from here are the mask of n = 16, from 16 - n on that of n. */
static const int32_t fs_mask_bits[32] = { -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1 };
FS_INLINE __m256i fs_lanes(int64_t n, int half) {
    return _mm256_loadu_si256((const __m256i *)(const void *)(fs_mask_bits + 16 - n + 8 * half));
}

#define FS_EACH(name, call)                                                                                            \
    FS_INLINE v16 name(v16 x, v16 y) { return (v16){ call(x.a, y.a), call(x.b, y.b) }; }
FS_EACH(v16_add, _mm256_add_ps)
FS_EACH(v16_sub, _mm256_sub_ps)
FS_EACH(v16_mul, _mm256_mul_ps)
FS_EACH(v16_div, _mm256_div_ps)
FS_EACH(v16_max, _mm256_max_ps)
FS_EACH(v16_min, _mm256_min_ps)
#undef FS_EACH
FS_INLINE v16 v16_set1(float x) { return (v16){ _mm256_set1_ps(x), _mm256_set1_ps(x) }; }
FS_INLINE v16 v16_load(const float *p) { return (v16){ _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8) }; }
FS_INLINE void v16_store(float *p, v16 v) { _mm256_storeu_ps(p, v.a), _mm256_storeu_ps(p + 8, v.b); }
FS_INLINE v16 v16_load_n(const float *p, int64_t n) {
    return (v16){ _mm256_maskload_ps(p, fs_lanes(n, 0)), _mm256_maskload_ps(p + 8, fs_lanes(n, 1)) };
}
FS_INLINE void v16_store_n(float *p, v16 v, int64_t n) {
    _mm256_maskstore_ps(p, fs_lanes(n, 0), v.a), _mm256_maskstore_ps(p + 8, fs_lanes(n, 1), v.b);
}
FS_INLINE v16 v16_head(v16 v, int64_t n, v16 rest) {
    return (v16){ _mm256_blendv_ps(rest.a, v.a, _mm256_castsi256_ps(fs_lanes(n, 0))),
                  _mm256_blendv_ps(rest.b, v.b, _mm256_castsi256_ps(fs_lanes(n, 1))) };
}
FS_INLINE v16 v16_fma(v16 x, v16 y, v16 z) {
    return (v16){ _mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b) };
}
/* Left to itself, gcc now and then keeps a sum of an unrolled loop in memory. */
FS_INLINE v16 v16_chain(v16 x, v16 y, v16 z) {
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(z.a) : "x"(x.a), "x"(y.a));
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(z.b) : "x"(x.b), "x"(y.b));
    return z;
}
FS_INLINE __m256 fs_scale2(__m256 v, __m256 t) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
FS_INLINE v16 v16_scale2(v16 v, v16 t) { return (v16){ fs_scale2(v.a, t.a), fs_scale2(v.b, t.b) }; }
FS_INLINE float v16_sum(v16 v) { return fs_sum8(_mm256_add_ps(v.a, v.b)); }
FS_INLINE float v16_top(v16 v) { return fs_max8(_mm256_max_ps(v.a, v.b)); }

#else

typedef struct {
    fs_v4 q[4];
} v16;

#define FS_EACH(name, expression)                                                                                      \
    FS_INLINE fs_v4 name##4(fs_v4 x, fs_v4 y) { return expression; }                                                   \
    FS_INLINE v16 name(v16 x, v16 y) {                                                                                 \
        return (v16){ { name##4(x.q[0], y.q[0]), name##4(x.q[1], y.q[1]), name##4(x.q[2], y.q[2]),                     \
                        name##4(x.q[3], y.q[3]) } };                                                                   \
    }
/* A choice by mask, since only C++ has ?: for vectors. */
#define FS_CHOOSE(mask, yes, no) ((fs_v4)(((fs_i4)(yes) & (mask)) | ((fs_i4)(no) & ~(mask))))
FS_EACH(v16_add, x + y)
FS_EACH(v16_sub, x - y)
FS_EACH(v16_mul, (x) * (y))
FS_EACH(v16_div, x / y)
FS_EACH(v16_max, FS_CHOOSE(x > y, x, y))
FS_EACH(v16_min, FS_CHOOSE(x < y, x, y))
FS_EACH(v16_scale2, (fs_v4)((fs_i4)x + ((fs_i4)y << 23)))
#undef FS_EACH

FS_INLINE v16 v16_set1(float x) {
    fs_v4 v = { x, x, x, x };
    return (v16){ { v, v, v, v } };
}
FS_INLINE v16 v16_load(const float *p) {
    v16 v;
    memcpy(&v, p, sizeof v);
    return v;
}
FS_INLINE void v16_store(float *p, v16 v) { memcpy(p, &v, sizeof v); }
FS_INLINE v16 v16_load_n(const float *p, int64_t n) {
    v16 v = v16_set1(0);
    memcpy(&v, p, (size_t)n * sizeof *p);
    return v;
}
FS_INLINE void v16_store_n(float *p, v16 v, int64_t n) { memcpy(p, &v, (size_t)n * sizeof *p); }
FS_INLINE v16 v16_head(v16 v, int64_t n, v16 rest) {
    memcpy(&rest, &v, (size_t)n * sizeof(float));
    return rest;
}

FS_INLINE fs_v4 fs_fma4(fs_v4 x, fs_v4 y, fs_v4 z) {
#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
    return (fs_v4){ __builtin_fmaf(x[0], y[0], z[0]), __builtin_fmaf(x[1], y[1], z[1]),
                    __builtin_fmaf(x[2], y[2], z[2]), __builtin_fmaf(x[3], y[3], z[3]) };
#else
    return x * y + z;
#endif
}
FS_INLINE v16 v16_fma(v16 x, v16 y, v16 z) {
    return (v16){ { fs_fma4(x.q[0], y.q[0], z.q[0]), fs_fma4(x.q[1], y.q[1], z.q[1]), fs_fma4(x.q[2], y.q[2], z.q[2]),
                    fs_fma4(x.q[3], y.q[3], z.q[3]) } };
}
FS_INLINE v16 v16_chain(v16 x, v16 y, v16 z) { return v16_fma(x, y, z); }
FS_INLINE float v16_sum(v16 v) {
    fs_v4 s = (v.q[0] + v.q[2]) + (v.q[1] + v.q[3]);
    return (s[0] + s[2]) + (s[1] + s[3]);
}
FS_INLINE float v16_top(v16 v) {
    fs_v4 s = v16_max4(v16_max4(v.q[0], v.q[2]), v16_max4(v.q[1], v.q[3]));
    float a = s[0] > s[2] ? s[0] : s[2], b = s[1] > s[3] ? s[1] : s[3];
    return a > b ? a : b;
}

#endif
