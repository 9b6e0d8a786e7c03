/* rows.cu - what goes row by row: gathered sums, LayerNorm, elementwise ends, norms.
 *
 *     kernel                grid                                  block   dynamic shared
 *     fs_rows_kernel        rows                                  128     0
 *     fs_normalize_kernel   rows                                  128     0
 *     fs_add_kernel         ceil(rows * ceil(D / 4) / 256)        256     0
 *
 * All have a one-dimensional grid, which may be as large as 2^31 - 1.
 *
 * A row's sums have one tree for each D: a thread adds up fours 0, 128, 256 ... from its own on, a warp halves by
 * shuffles, the four warps add up in order. The first 2048 numbers of a row wait in shared memory between the
 * passes over it; what lies behind them is read again.
 *
 * Bound: each row read once and written once. Not yet measured on a GPU. */
#include "backends/cuda/kernels/math.cuh"

enum { FS_ROW_THREADS = 128, FS_ROW_KEPT = 512 /* fours */ };

static_assert((int)fs_rows_kernel_threads == FS_ROW_THREADS && (int)fs_normalize_kernel_threads == FS_ROW_THREADS,
              "fs_row_sum adds up four warps");

/* The sum of v over the block, in every thread. */
FS_DEVICE float fs_row_sum(float v) {
    FS_SHARED float warps[FS_ROW_THREADS / 32];
    for (int mask = 16; mask > 0; mask /= 2) v += fs_shuffle_xor(v, mask);
    FS_SYNC(); /* what an earlier sum left here was read */
    if (fs_lane() == 0) warps[fs_thread() / 32] = v;
    FS_SYNC();
    return warps[0] + warps[1] + warps[2] + warps[3];
}

/* use(column) for the first column of each four of this thread */
template <typename Use> FS_DEVICE void fs_row_each(long long D, Use use) {
    FS_UNROLL_BY(1)
    for (long long column = 4 * fs_thread(); column < D; column += 4 * FS_ROW_THREADS) use(column);
}

/* The sum over the row of f(number), where read(column) brings a four. */
template <typename Read, typename F> FS_DEVICE float fs_row_sum_of(long long D, Read read, F f) {
    float sum = 0;
    fs_row_each(D, [&](long long column) {
        const fs_quad q = read(column);
        FS_UNROLL
        for (int j = 0; j < 4; j++)
            if (column + j < D) sum = f(q.v[j], sum);
    });
    return fs_row_sum(sum);
}

/* Where a row of fs_rows_kernel comes from: x is a table too, row r of it for row r. */
struct fs_row_source {
    const void *first[4]; /* numbers of the rows that are summed */
    int tables, type;
    bool whole;
};

FS_DEVICE fs_row_source fs_row_source_of(const fs_cuda_rows &a, long long row) {
    fs_row_source s;
    s.tables = a.tables ? a.tables : 1;
    s.type = a.tables ? a.table_type : a.x_type;
    s.whole = true;
    FS_UNROLL
    for (int i = 0; i < 4; i++) {
        s.first[i] = nullptr;
        if (i >= s.tables) continue;
        const long long from = !a.tables ? row * a.x_stride : a.index[i] ? a.index[i][row] * a.D : 0;
        s.first[i] = fs_address(a.tables ? a.table[i] : a.x, from, s.type);
        s.whole = s.whole && fs_whole(a.tables ? a.table[i] : a.x, a.tables ? 0 : a.x_stride, a.D, s.type);
    }
    return s;
}

FS_DEVICE fs_quad fs_row_read(const fs_row_source &s, long long column, long long D) {
    const void *from[4];
    fs_four f[4];
    fs_quad q[4];
    FS_UNROLL
    for (int i = 0; i < 4; i++) from[i] = fs_address(s.first[i], column, s.type);
    fs_pull(f, from, s.tables, D - column, s.type, s.whole);
    fs_floats(q, f, s.type);
    FS_UNROLL
    for (int i = 1; i < 4; i++) {
        if (i >= s.tables) break;
        FS_UNROLL
        for (int j = 0; j < 4; j++) q[0].v[j] += q[i].v[j];
    }
    return q[0];
}

/* The same for what is behind the kept part of a row: long rows are rare, so this is not made part of the passes. */
FS_CALLED fs_quad fs_row_read_again(const fs_cuda_rows &a, long long row, long long column) {
    return fs_row_read(fs_row_source_of(a, row), column, a.D);
}

FS_KERNEL(fs_rows_kernel, fs_cuda_rows) {
    FS_SHARED fs_quad kept[FS_ROW_KEPT];
    const long long row = blockIdx.x, D = a.D, to = row * a.y_stride;
    const fs_row_source source = fs_row_source_of(a, row);
    const bool y_whole = fs_whole(a.y, a.y_stride, D, a.y_type);
    if (!a.gamma) {
        fs_row_each(D, [&](long long column) {
            fs_store_four(a.y, to + column, D - column, a.y_type, y_whole, fs_row_read(source, column, D));
        });
        return;
    }
    const auto first = [&](long long column) {
        const fs_quad q = fs_row_read(source, column, D);
        if (column < 4 * FS_ROW_KEPT) kept[column / 4] = q;
        return q;
    };
    const auto again = [&](long long column) {
        return column < 4 * FS_ROW_KEPT ? kept[column / 4] : fs_row_read_again(a, row, column);
    };
    const float mean = fs_div(fs_row_sum_of(D, first, [](float x, float sum) { return sum + x; }), (float)D);
    const float squares = fs_row_sum_of(D, again, [mean](float x, float sum) {
        const float off = x - mean;
        return fs_fma(off, off, sum);
    });
    const float scale = fs_div(1.0f, fs_sqrt(fs_div(squares, (float)D) + a.eps));
    const bool gamma_whole = fs_whole(a.gamma, 0, D, FS_TYPE_F32), beta_whole = fs_whole(a.beta, 0, D, FS_TYPE_F32);
    const bool copy_whole = fs_whole(a.copy, a.copy_stride, D, a.copy_type);
    fs_row_each(D, [&](long long column) {
        const long long n = D - column;
        const fs_quad gamma = fs_load_four(a.gamma, column, n, FS_TYPE_F32, gamma_whole);
        const fs_quad beta = fs_load_four(a.beta, column, a.beta ? n : 0, FS_TYPE_F32, beta_whole);
        fs_quad q = again(column);
        FS_UNROLL
        for (int j = 0; j < 4; j++) q.v[j] = fs_fma((q.v[j] - mean) * scale, gamma.v[j], beta.v[j]);
        fs_store_four(a.y, to + column, n, a.y_type, y_whole, q);
        if (a.copy) fs_store_four(a.copy, row * a.copy_stride + column, n, a.copy_type, copy_whole, q);
    });
}

FS_KERNEL(fs_normalize_kernel, fs_cuda_normalize) {
    const long long start = blockIdx.x * a.stride, D = a.D;
    const bool whole = fs_whole(a.x, a.stride, D, FS_TYPE_F32);
    const auto read = [&](long long column) {
        return fs_load_four(a.x, start + column, D - column, FS_TYPE_F32, whole);
    };
    const float norm = fs_sqrt(fs_row_sum_of(D, read, [](float x, float sum) { return fs_fma(x, x, sum); }));
    const float by = norm > 1e-12f ? norm : 1e-12f;
    fs_row_each(D, [&](long long column) {
        fs_quad q = read(column);
        FS_UNROLL
        for (int j = 0; j < 4; j++) q.v[j] = fs_div(q.v[j], by);
        fs_store_four(a.x, start + column, D - column, FS_TYPE_F32, whole, q);
    });
}

FS_KERNEL(fs_add_kernel, fs_cuda_add) {
    const long long fours = (a.D + 3) / 4, i = (long long)blockIdx.x * fs_add_kernel_threads + fs_thread();
    if (i >= a.rows * fours) return;
    /* Long division is many times slower than short. */
    const long long row = i <= 0xffffffffLL && fours <= 0xffffffffLL ? (unsigned)i / (unsigned)fours : i / fours;
    const long long column = 4 * (i - row * fours);
    const bool x_whole = fs_whole(a.x, a.x_stride, a.D, a.x_type);
    const fs_quad q = fs_load_four(a.x, row * a.x_stride + column, a.D - column, a.x_type, x_whole);
    fs_finish(a, fs_wholes_of(a, a.D), row, column, a.D, q);
}
