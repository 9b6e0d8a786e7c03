/* math.cuh - numbers as they lie in memory, and what is done to a sum before it is written.
 *
 * Kernels go through rows in fours: four neighbouring columns that begin at a multiple of four. Where base, stride
 * and width allow it a four is one load (`whole`), else up to four; which thread does which columns, and so every
 * bit, is the same. A four is pulled as it is and becomes floats later, so that many loads are under way before the
 * first is needed.
 *
 * What is long and seldom run, or long and run once for many numbers, is called: as part of its callers it would make
 * a cubin twice as large (sm_80: 528 KB, not 274). */
#ifndef FS_CUDA_MATH_CUH
#define FS_CUDA_MATH_CUH

#include "backends/cuda/kernels/portable.cuh"

/* The numbers of fs_dtype (base/view.h) and fs_activation (backends/ops.h). */
enum { FS_TYPE_F32, FS_TYPE_F16, FS_TYPE_BF16 };
enum { FS_DO_NOTHING, FS_DO_GELU, FS_DO_GELU_TANH, FS_DO_RELU, FS_DO_SILU, FS_DO_TANH };

struct alignas(16) fs_quad {
    float v[4];
};

/* Words of memory that somebody else may know as floats or as pairs of 16-bit numbers. */
struct __attribute__((may_alias, aligned(16))) fs_words_4 {
    unsigned w[4];
};
struct __attribute__((may_alias, aligned(8))) fs_words_2 {
    unsigned w[2];
};

/* fp32: four words. 16-bit: two words, the first number in the low half of the first. */
struct fs_four {
    unsigned w[4];
};

FS_DEVICE int fs_thread() { return (int)threadIdx.x; }

FS_DEVICE float fs_float_of(unsigned word) {
    union {
        unsigned word;
        float number;
    } as;
    as.word = word;
    return as.number;
}

FS_DEVICE unsigned fs_word_of(float number) {
    union {
        float number;
        unsigned word;
    } as;
    as.number = number;
    return as.word;
}

FS_DEVICE float fs_from_16(unsigned short bits, int type) {
    return type == FS_TYPE_F16 ? fs_half_to_float(bits) : fs_bf16_to_float(bits);
}

FS_DEVICE unsigned short fs_to_16(float x, int type) {
    return type == FS_TYPE_F16 ? fs_float_to_half(x) : fs_float_to_bf16(x);
}

FS_DEVICE fs_words_2 fs_to_16(const fs_quad &q, int type) {
    unsigned short h[4];
    FS_UNROLL
    for (int j = 0; j < 4; j++) h[j] = fs_to_16(q.v[j], type);
    return { { (unsigned)h[1] << 16 | h[0], (unsigned)h[3] << 16 | h[2] } };
}

FS_DEVICE float fs_load(const void *at, long long i, int type) {
    if (type == FS_TYPE_F32) return ((const float *)at)[i];
    return fs_from_16(((const unsigned short *)at)[i], type);
}

FS_DEVICE void fs_store(void *at, long long i, int type, float x) {
    if (type == FS_TYPE_F32) ((float *)at)[i] = x;
    else ((unsigned short *)at)[i] = fs_to_16(x, type);
}

FS_DEVICE long long fs_bytes(long long numbers, int type) { return numbers << (type == FS_TYPE_F32 ? 2 : 1); }

FS_DEVICE const void *fs_address(const void *at, long long i, int type) {
    return (const unsigned char *)at + fs_bytes(i, type);
}

/* Whether every four of rows of `columns`, `stride` apart, can be moved at once. */
FS_DEVICE bool fs_whole(const void *at, long long stride, long long columns, int type) {
    const unsigned long long bytes = type == FS_TYPE_F32 ? 16 : 8;
    return ((stride | columns) & 3) == 0 && (unsigned long long)at % bytes == 0;
}

/* A four that is not whole. */
FS_CALLED fs_four fs_pull_apart(const void *from, long long n, int type) {
    fs_four f = { { 0, 0, 0, 0 } };
    FS_UNROLL
    for (int j = 0; j < 4; j++) {
        if (j >= n) break;
        if (type == FS_TYPE_F32) f.w[j] = fs_word_of(((const float *)from)[j]);
        else f.w[j / 2] |= (unsigned)((const unsigned short *)from)[j] << 16 * (j % 2);
    }
    return f;
}

/* The fours at from[0] ... from[count - 1], of which the first `n` numbers are there. All else is 0. */
template <int N>
FS_DEVICE void fs_pull(fs_four (&f)[N], const void *const (&from)[N], int count, long long n, int type, bool whole) {
    FS_UNROLL
    for (int i = 0; i < N; i++) f[i].w[0] = f[i].w[1] = f[i].w[2] = f[i].w[3] = 0;
    if (n <= 0) return;
    if (!whole) {
        FS_UNROLL
        for (int i = 0; i < N; i++)
            if (i < count) f[i] = fs_pull_apart(from[i], n, type);
    } else if (type == FS_TYPE_F32) {
        FS_UNROLL
        for (int i = 0; i < N; i++) {
            if (i >= count) continue;
            const fs_words_4 words = *(const fs_words_4 *)from[i];
            f[i] = { { words.w[0], words.w[1], words.w[2], words.w[3] } };
        }
    } else {
        FS_UNROLL
        for (int i = 0; i < N; i++) {
            if (i >= count) continue;
            const fs_words_2 words = *(const fs_words_2 *)from[i];
            f[i].w[0] = words.w[0], f[i].w[1] = words.w[1];
        }
    }
}

/* A thread's part of a block of rows: fours (or eights) that begin at `at` in its first row and `step` bytes on in each
 * of its next; of those rows `rows` are there, and of each row `left` numbers. */
struct fs_side {
    const unsigned char *at;
    long long step;
    int rows, left, type;
    bool whole;
};

/* Rows row, row + step ... of `rows`, each of `columns` numbers, from `column` on. */
FS_DEVICE fs_side fs_side_of(const void *base, long long stride, int type, int row, int step, int rows, int column,
                             int columns) {
    return { (const unsigned char *)fs_address(base, row * stride + column, type),
             fs_bytes(step * stride, type),
             rows > row ? (rows - row + step - 1) / step : 0,
             columns - column,
             type,
             fs_whole(base, stride, columns, type) };
}

/* The fours `bytes` behind the first ones, of which that many rows and numbers fewer are there. */
template <int N>
FS_DEVICE void fs_side_pull(fs_four (&f)[N], const fs_side &s, long long bytes, int fewer_rows, int fewer_numbers) {
    const void *from[N];
    FS_UNROLL
    for (int i = 0; i < N; i++) from[i] = s.at + bytes + i * s.step;
    fs_pull(f, from, s.rows - fewer_rows, s.left - fewer_numbers, s.type, s.whole);
}

template <int N> FS_DEVICE void fs_floats(fs_quad (&q)[N], const fs_four (&f)[N], int type) {
    if (type == FS_TYPE_F32) {
        FS_UNROLL
        for (int i = 0; i < 4 * N; i++) q[i / 4].v[i % 4] = fs_float_of(f[i / 4].w[i % 4]);
    } else if (type == FS_TYPE_F16) {
        FS_UNROLL
        for (int i = 0; i < 4 * N; i++)
            q[i / 4].v[i % 4] = fs_half_to_float((unsigned short)(f[i / 4].w[i % 4 / 2] >> 16 * (i % 2)));
    } else {
        FS_UNROLL
        for (int i = 0; i < 4 * N; i++)
            q[i / 4].v[i % 4] = fs_bf16_to_float((unsigned short)(f[i / 4].w[i % 4 / 2] >> 16 * (i % 2)));
    }
}

/* Elements i ... i + 3 of `at`, of which the first `n` are there; 0 for the others. */
FS_DEVICE fs_quad fs_load_four(const void *at, long long i, long long n, int type, bool whole) {
    const void *const from[1] = { fs_address(at, i, type) };
    fs_four f[1];
    fs_quad q[1];
    fs_pull(f, from, 1, n, type, whole);
    fs_floats(q, f, type);
    return q[0];
}

/* fs_store_four where the four is not whole. */
FS_CALLED void fs_store_apart(void *at, long long i, long long n, int type, fs_quad q) {
    FS_UNROLL
    for (int j = 0; j < 4; j++)
        if (j < n) fs_store(at, i + j, type, q.v[j]);
}

FS_DEVICE void fs_store_four(void *at, long long i, long long n, int type, bool whole, const fs_quad &q) {
    if (!whole) {
        fs_store_apart(at, i, n, type, q);
    } else if (type == FS_TYPE_F32) {
        const fs_words_4 words = { { fs_word_of(q.v[0]), fs_word_of(q.v[1]), fs_word_of(q.v[2]), fs_word_of(q.v[3]) } };
        *(fs_words_4 *)((float *)at + i) = words;
    } else {
        *(fs_words_2 *)((unsigned short *)at + i) = fs_to_16(q, type);
    }
}

/* NaN stays NaN in all of them. */
FS_DEVICE float fs_activate(float x, int activation) {
    if (activation == FS_DO_GELU) return 0.5f * x * (1.0f + fs_erf(x * 0.707106781f));
    if (activation == FS_DO_RELU) return x < 0.0f ? 0.0f : x;
    if (activation == FS_DO_TANH) return fs_tanh(x);
    if (activation == FS_DO_NOTHING) return x;
    /* The others are x times the sigmoid of k x, which is 1 / (1 + 2^-c) with c = log2(e) k x. SILU: k = 1. GELU_TANH:
     * 1 + tanh(u) = 2 sigmoid(2 u), and 2 sqrt(2/pi) log2(e) = 2.302208. */
    const float c = activation == FS_DO_SILU ? x * 1.44269504089f : fs_fma(x * x * x, 0.044715f, x) * 2.30220819813f;
    return fs_div(x, 1.0f + fs_exp2(-c));
}

FS_CALLED fs_quad fs_activate_four(fs_quad q, int activation) {
    FS_UNROLL
    for (int j = 0; j < 4; j++) q.v[j] = fs_activate(q.v[j], activation);
    return q;
}

/* Which of an epilogue's arrays can be moved in whole fours. */
struct fs_wholes {
    bool y, bias, residual;
};

template <typename Args> FS_DEVICE fs_wholes fs_wholes_of(const Args &a, long long columns) {
    return { fs_whole(a.y, a.y_stride, columns, a.y_type), fs_whole(a.bias, 0, columns, FS_TYPE_F32),
             fs_whole(a.residual, a.residual_stride, columns, a.residual_type) };
}

/* y = activation(q + bias) + residual for the four at `column` of `row`. Args: the structs with fields of these
 * names. */
template <typename Args>
FS_DEVICE void fs_finish(const Args &a, const fs_wholes &whole, long long row, long long column, long long columns,
                         fs_quad q) {
    const long long n = columns - column;
    const void *const residual_at[1] = { fs_address(a.residual, row * a.residual_stride + column, a.residual_type) };
    fs_four residual[1]; /* comes while the rest is computed */
    fs_pull(residual, residual_at, 1, a.residual ? n : 0, a.residual_type, whole.residual);
    if (a.bias) {
        const fs_quad bias = fs_load_four(a.bias, column, n, FS_TYPE_F32, whole.bias);
        FS_UNROLL
        for (int j = 0; j < 4; j++) q.v[j] += bias.v[j];
    }
    if (a.activation != FS_DO_NOTHING) q = fs_activate_four(q, a.activation);
    if (a.residual) {
        fs_quad more[1];
        fs_floats(more, residual, a.residual_type);
        FS_UNROLL
        for (int j = 0; j < 4; j++) q.v[j] += more[0].v[j];
    }
    fs_store_four(a.y, row * a.y_stride + column, n, a.y_type, whole.y, q);
}

#endif
