/* product.cu - y[T,N] = activation(x[T,K] . w[N,K]^T + bias) + residual
 *
 *     kernel                  grid                                block   dynamic shared
 *     fs_product_f32_kernel   ceil(T / 128) * ceil(N / 64)        256     0
 *     fs_product_16_kernel    ceil(T / 64) * ceil(N / 64)         128     0     fp16 or bf16 w (bf16: sm_80 and newer)
 *
 * The grid is one-dimensional; blocks that share rows of x follow each other, so x comes from memory once and w,
 * which is small, stays in L2.
 *
 * Both bring blocks of K through shared memory, zeros past every edge, and add to the same sums in ascending k: one
 * chain of fused multiply-adds an element (f32), one chain of 16 x 8 x 16 steps (16). No element sees T, N or its
 * place in a tile. Then the sums lie down in shared memory and leave in fours, with everything that is done to them
 * on the way: from registers they could only leave through code that is there once for each of a thread's sums.
 *
 * Not yet measured on a GPU. To try there: tiles of 128 x 128, more blocks of K under way, 16-bit y through 16-byte
 * stores. */
#include "backends/cuda/kernels/math.cuh"

enum { FS_TILE = 64, FS_TILE_FOURS = FS_TILE / 4 };

/* 64 x 64 sums on their way out; a four of padding keeps rows apart in the banks. */
typedef fs_quad fs_sums[FS_TILE][FS_TILE_FOURS + 1];

/* Writes the sums of rows from `row` and columns from `column` on. */
template <int THREADS>
FS_DEVICE void fs_product_finish(const fs_cuda_product &a, const fs_wholes &whole, const fs_sums &sums, long long row,
                                 long long column) {
    FS_UNROLL_BY(1)
    for (int i = fs_thread(); i < FS_TILE * FS_TILE_FOURS; i += THREADS) {
        const long long r = row + i / FS_TILE_FOURS, c = column + 4 * (i % FS_TILE_FOURS);
        if (r < a.T && c < a.N) fs_finish(a, whole, r, c, a.N, sums[i / FS_TILE_FOURS][i % FS_TILE_FOURS]);
    }
}

/* -- fp32 ---------------------------------------------------------------------------------------------------------- */

enum { FS_F32_ROWS = 128, FS_F32_DEPTH = 16, FS_F32_THREADS = fs_product_f32_kernel_threads };

/* Both sides lie with k outside: a thread reads its rows, and its columns, in fours. */
union fs_product_f32_memory {
    struct {
        fs_quad x[2][FS_F32_DEPTH][FS_F32_ROWS / 4 + 1];
        fs_quad w[2][FS_F32_DEPTH][FS_TILE_FOURS + 1];
    } in;
    fs_sums out;
};

/* Of a block's rows, four fours each, a thread brings one four, and the same of the rows FS_F32_STEP further on. */
enum { FS_F32_STEP = FS_F32_THREADS / (FS_F32_DEPTH / 4) };

FS_DEVICE fs_side fs_f32_side(const void *base, long long stride, int type, int first, int rows, int K) {
    return fs_side_of(base, stride, type, first + fs_thread() / (FS_F32_DEPTH / 4), FS_F32_STEP, rows,
                      fs_thread() % (FS_F32_DEPTH / 4) * 4, K);
}

template <int N, int WIDE>
FS_DEVICE void fs_f32_land(fs_quad (&to)[FS_F32_DEPTH][WIDE], const fs_four (&held)[N], int type) {
    const int row = fs_thread() / (FS_F32_DEPTH / 4), k = fs_thread() % (FS_F32_DEPTH / 4) * 4;
    fs_quad q[N];
    fs_floats(q, held, type);
    FS_UNROLL
    for (int i = 0; i < N; i++) {
        const int r = row + i * FS_F32_STEP;
        FS_UNROLL
        for (int j = 0; j < 4; j++) to[k + j][r / 4].v[r % 4] = q[i].v[j];
    }
}

/* A thread's eight rows by four columns. */
FS_DEVICE void fs_f32_multiply(fs_quad sums[8], const fs_quad (&x)[FS_F32_DEPTH][FS_F32_ROWS / 4 + 1],
                               const fs_quad (&w)[FS_F32_DEPTH][FS_TILE_FOURS + 1], int row, int column) {
    FS_UNROLL
    for (int k = 0; k < FS_F32_DEPTH; k++) {
        const fs_quad low = x[k][row / 4], high = x[k][row / 4 + 1], by = w[k][column / 4];
        FS_UNROLL
        for (int i = 0; i < 8; i++) {
            FS_UNROLL
            for (int j = 0; j < 4; j++)
                sums[i].v[j] = fs_fma(i < 4 ? low.v[i % 4] : high.v[i % 4], by.v[j], sums[i].v[j]);
        }
    }
}

FS_KERNEL(fs_product_f32_kernel, fs_cuda_product) {
    FS_SHARED fs_product_f32_memory memory;
    const int across = (a.N + FS_TILE - 1) / FS_TILE, t = fs_thread();
    const int first_row = (int)(blockIdx.x / across) * FS_F32_ROWS, first_column = (int)(blockIdx.x % across) * FS_TILE;
    const fs_side x = fs_f32_side(a.x, a.x_stride, a.x_type, first_row, a.T, a.K);
    const fs_side w = fs_f32_side(a.w, a.K, a.w_type, first_column, a.N, a.K);
    /* Warps lie four by two over the tile, threads four by eight over a warp's 32 x 32. */
    const int row = t / 64 * 32 + fs_lane() / 8 * 8, column = t / 32 % 2 * 32 + fs_lane() % 8 * 4;
    const bool busy = first_row + t / 64 * 32 < a.T && first_column + t / 32 % 2 * 32 < a.N;

    fs_quad sums[8] = {};
    fs_four x_held[2] = {}, w_held[1] = {}; /* the block after k, on its way */
    for (int k = -FS_F32_DEPTH, turn = 1; k < a.K; k += FS_F32_DEPTH, turn ^= 1) {
        if (k >= 0) {
            fs_f32_land(memory.in.x[turn], x_held, x.type);
            fs_f32_land(memory.in.w[turn], w_held, w.type);
            FS_SYNC(); /* the block is there; and nobody reads the one before it any more, where the next will land */
        }
        const int next = k + FS_F32_DEPTH;
        fs_side_pull(x_held, x, fs_bytes(next, x.type), 0, next);
        fs_side_pull(w_held, w, fs_bytes(next, w.type), 0, next);
        if (k >= 0 && busy) fs_f32_multiply(sums, memory.in.x[turn], memory.in.w[turn], row, column);
    }

    const fs_wholes whole = fs_wholes_of(a, a.N);
    for (int half = 0; half < FS_F32_ROWS; half += FS_TILE) {
        FS_SYNC(); /* what lies there was read */
        FS_UNROLL
        for (int i = 0; i < 8; i++)
            if (row / FS_TILE * FS_TILE == half) memory.out[row % FS_TILE + i][column / 4] = sums[i];
        FS_SYNC();
        fs_product_finish<FS_F32_THREADS>(a, whole, memory.out, first_row + half, first_column);
    }
}

/* -- fp16 and bf16 ------------------------------------------------------------------------------------------------- */

enum {
    FS_16_DEPTH = 32,
    FS_16_WIDE = FS_16_DEPTH + 8, /* rows 80 bytes apart: no two of a matrix's eight begin in the same banks */
    FS_16_STAGES = 3,             /* blocks of K under way */
    FS_16_THREADS = fs_product_16_kernel_threads,
    FS_16_PIECES = FS_TILE * FS_16_DEPTH / 8 / FS_16_THREADS, /* of 16 bytes, of a thread */
    FS_16_FOURS = FS_TILE * FS_16_DEPTH / 4 / FS_16_THREADS,
};

typedef unsigned short fs_tile_16[FS_TILE][FS_16_WIDE];

union fs_product_16_memory {
    fs_tile_16 in[FS_16_STAGES][2]; /* x, w */
    fs_sums out;
};

/* A thread's part of a block of K: pieces that go straight into shared memory where they can go as they are
 * (async), else fours by way of registers. */
struct fs_side_16 {
    fs_side s;
    bool async;
};

FS_DEVICE fs_side_16 fs_16_side(const void *base, long long stride, int type, int w_type, int first, int rows, int K) {
    const bool async = FS_ASYNC_COPIES && type == w_type && stride % 8 == 0 && (unsigned long long)base % 16 == 0;
    const int wide = async ? 8 : 4, across = FS_16_DEPTH / wide, step = FS_16_THREADS / across;
    return { fs_side_of(base, stride, type, first + fs_thread() / across, step, rows, fs_thread() % across * wide, K),
             async };
}

/* Begins to bring the block of K at k. */
FS_DEVICE void fs_16_start(const fs_side_16 &from, int k, fs_tile_16 &tile, fs_four (&held)[FS_16_FOURS]) {
    const fs_side &s = from.s;
    if (!from.async) {
        fs_side_pull(held, s, fs_bytes(k, s.type), 0, k);
        return;
    }
    const int row = fs_thread() / (FS_16_DEPTH / 8), column = fs_thread() % (FS_16_DEPTH / 8) * 8, left = s.left - k;
    FS_UNROLL
    for (int i = 0; i < FS_16_PIECES; i++) {
        const int bytes = i >= s.rows || left <= 0 ? 0 : left >= 8 ? 16 : 2 * left;
        fs_copy_async_16(&tile[row + i * (FS_16_THREADS / (FS_16_DEPTH / 8))][column],
                         bytes ? s.at + i * s.step + 2 * k : s.at, bytes);
    }
}

/* Puts down what fs_16_start() left in registers, as numbers of `type`. */
FS_DEVICE void fs_16_land(const fs_side_16 &from, int type, fs_tile_16 &tile, const fs_four (&held)[FS_16_FOURS]) {
    if (from.async) return;
    const int row = fs_thread() / (FS_16_DEPTH / 4), column = fs_thread() % (FS_16_DEPTH / 4) * 4;
    fs_words_2 words[FS_16_FOURS];
    if (from.s.type == type) {
        FS_UNROLL
        for (int i = 0; i < FS_16_FOURS; i++) words[i] = { { held[i].w[0], held[i].w[1] } };
    } else {
        fs_quad q[FS_16_FOURS];
        fs_floats(q, held, from.s.type);
        FS_UNROLL
        for (int i = 0; i < FS_16_FOURS; i++) words[i] = fs_to_16(q[i], type);
    }
    FS_UNROLL
    for (int i = 0; i < FS_16_FOURS; i++)
        *(fs_words_2 *)&tile[row + i * (FS_16_THREADS / (FS_16_DEPTH / 4))][column] = words[i];
}

/* A warp's 32 x 32 of the tile: two 16-row halves by four 8-column quarters. The second half is left out where
 * there are no such rows. */
template <int TYPE>
FS_DEVICE void fs_16_multiply(float sums[2][4][4], const fs_tile_16 &x, const fs_tile_16 &w, int row, int column,
                              bool second) {
    const int lane = fs_lane();
    FS_UNROLL
    for (int k = 0; k < FS_16_DEPTH; k += 16) {
        unsigned by[2][4];
        FS_UNROLL
        for (int c = 0; c < 2; c++) /* columns 0-7 with k 0-7 and 8-15, then columns 8-15 */
            fs_load_matrix_4(by[c], &w[column + c * 16 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
        FS_UNROLL
        for (int r = 0; r < 2; r++) {
            if (r > 0 && !second) break;
            unsigned rows[4]; /* rows 0-7, 8-15 with k 0-7, then with k 8-15 */
            fs_load_matrix_4(rows, &x[row + r * 16 + lane % 16][k + lane / 16 * 8]);
            FS_UNROLL
            for (int c = 0; c < 4; c++) {
                if (TYPE == FS_TYPE_F16) fs_mma_f16(sums[r][c], rows, by[c / 2] + c % 2 * 2, sums[r][c]);
                else fs_mma_bf16(sums[r][c], rows, by[c / 2] + c % 2 * 2, sums[r][c]);
            }
        }
    }
}

/* A lane of a 16 x 8 result holds columns 2 (lane % 4) and the next of rows lane / 4 and lane / 4 + 8. */
FS_DEVICE void fs_16_lay_down(fs_sums &out, const float sums[2][4][4], int row, int column) {
    FS_UNROLL
    for (int i = 0; i < 32; i++) {
        const int r = row + i / 16 * 16 + fs_lane() / 4 + i / 2 % 2 * 8;
        const int c = column + i / 4 % 4 * 8 + fs_lane() % 4 * 2 + i % 2;
        out[r][c / 4].v[c % 4] = sums[i / 16][i / 4 % 4][i % 4];
    }
}

FS_KERNEL(fs_product_16_kernel, fs_cuda_product) {
    FS_SHARED fs_product_16_memory memory;
    const int across = (a.N + FS_TILE - 1) / FS_TILE, blocks = (a.K + FS_16_DEPTH - 1) / FS_16_DEPTH;
    const int first_row = (int)(blockIdx.x / across) * FS_TILE, first_column = (int)(blockIdx.x % across) * FS_TILE;
    const fs_side_16 x = fs_16_side(a.x, a.x_stride, a.x_type, a.w_type, first_row, a.T, a.K);
    const fs_side_16 w = fs_16_side(a.w, a.K, a.w_type, a.w_type, first_column, a.N, a.K);
    const int row = fs_thread() / 64 * 32, column = fs_thread() / 32 % 2 * 32; /* of this warp in the tile */
    const bool busy = first_row + row < a.T && first_column + column < a.N, second = first_row + row + 16 < a.T;

    float sums[2][4][4] = {};
    fs_four x_held[FS_16_FOURS] = {}, w_held[FS_16_FOURS] = {};
    for (int b = 1 - FS_16_STAGES; b < blocks; b++) {
        const int next = b + FS_16_STAGES - 1;
        fs_tile_16 *to = memory.in[next % FS_16_STAGES];
        if (b >= 0) {
            fs_copy_wait(FS_16_STAGES - 2);
            FS_SYNC(); /* block b is there; and nobody reads block b - 1 any more, where the next will land */
        }
        if (next < blocks) {
            fs_16_start(x, next * FS_16_DEPTH, to[0], x_held);
            fs_16_start(w, next * FS_16_DEPTH, to[1], w_held);
        }
        fs_copy_commit();
        if (b >= 0 && busy) {
            const fs_tile_16 *from = memory.in[b % FS_16_STAGES];
            if (a.w_type == FS_TYPE_F16) fs_16_multiply<FS_TYPE_F16>(sums, from[0], from[1], row, column, second);
            else fs_16_multiply<FS_TYPE_BF16>(sums, from[0], from[1], row, column, second);
        }
        if (next < blocks) {
            fs_16_land(x, a.w_type, to[0], x_held);
            fs_16_land(w, a.w_type, to[1], w_held);
        }
    }
    FS_SYNC();
    fs_16_lay_down(memory.out, sums, row, column);
    FS_SYNC();
    fs_product_finish<FS_16_THREADS>(a, fs_wholes_of(a, a.N), memory.out, first_row, first_column);
}
