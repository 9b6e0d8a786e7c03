/* attention.cu - y[i] = sum_j softmax_j(scale * q[i] . k[j]) v[j]: each head of each sequence; causal: j <= i.
 *
 *     kernel                    head width   grid                                    block   dynamic shared
 *     fs_attention_32_kernel    1 ... 32     (B * ceil(longest / 64), heads)         128     0
 *     fs_attention_64_kernel    33 ... 64    (B * ceil(longest / 64), heads)         128     0
 *     fs_attention_128_kernel   65 ... 128   (B * ceil(longest / 32), heads)         128     0
 *
 *     block (QUERIES rows of a sequence, head)       nothing to do where the sequence ends before
 *       q to shared memory
 *       for tile of KEYS keys, from the sequence's start
 *         k to shared memory                       while v is on its way
 *         s = q . k                                a thread: ROWS rows, KEYS / LANES keys
 *         m' = max(m, s); p = 2^(s - m'); l = l 2^(m - m') + p; y = y 2^(m - m')
 *         v over k in shared memory                while the next k is on its way
 *         y += p . v                               a thread: the same rows, E / LANES columns
 *       y / l
 *
 * Scores are in units of log2, scaled by c = scale * log2(e). LANES neighbouring lanes share their rows: they exchange
 * maxima and sums by shuffles, and p through shared memory. Narrower heads are padded with zeros. A warp whose rows are
 * past the end only helps to load. All is computed in fp32, whatever the type. A row meets the same tiles in the same
 * order wherever its block is, so its bits depend on its sequence alone. Causal: tiles that no row of a block sees are
 * left out, and in those that rows see to different ends each row adds up what it sees and no more, so that
 * nothing is felt of later keys, and what a block begins with changes nothing. A sequence without keys gives 0. A relative
 * bias is added to the scores of a tile as they are made.
 *
 * Bound: 2 E multiply-adds for each row, head and key. Where s is made a thread reads 3 (E = 32), 4 (64) or 6 (128)
 * fours of shared memory for 32 of them. Not yet measured on a GPU. To try there: mma for 16-bit types; several
 * short sequences a block. */
#include "backends/cuda/kernels/math.cuh"

enum { FS_ATTENTION_THREADS = fs_attention_32_kernel_threads };

static_assert((int)fs_attention_64_kernel_threads == FS_ATTENTION_THREADS &&
                  (int)fs_attention_128_kernel_threads == FS_ATTENTION_THREADS,
              "one template serves all widths");

template <int WIDTH, int QUERY_ROWS, int KEY_ROWS, int LANES_A_ROW> struct fs_attention_tile {
    enum {
        E = WIDTH,
        QUERIES = QUERY_ROWS,
        KEYS = KEY_ROWS,
        LANES = LANES_A_ROW,
        ROWS = QUERIES * LANES / FS_ATTENTION_THREADS, /* of a thread */
        COLUMNS = KEYS / LANES,                        /* of s, of a thread: its lane, its lane + LANES ... */
        FOURS = E / 4,                                 /* of a head's row */
        OUT = FOURS / LANES,                           /* of y, of a thread: its lane, its lane + LANES ... */
        HELD = KEYS * FOURS / FS_ATTENTION_THREADS,    /* of k or v, that a thread brings */
        STEP = FS_ATTENTION_THREADS / FOURS,           /* from a row that it brings to its next */
    };
    /* A four of padding: neighbouring rows begin in different banks. */
    fs_quad q[QUERIES][FOURS + 1];
    fs_quad kv[KEYS][FOURS + 1];
    fs_quad p[QUERIES][KEYS / 4 + 1];
};

/* A thread's fours of q, k or v of this head, from a sequence's first row on. */
template <typename Tile>
FS_DEVICE fs_side fs_head_side(const fs_cuda_attention &a, const void *base, long long stride, int first, int tokens) {
    const void *head = fs_address(base, first * stride + (long long)blockIdx.y * a.width, a.type);
    fs_side s = fs_side_of(head, stride, a.type, fs_thread() / Tile::FOURS, Tile::STEP, tokens,
                           fs_thread() % Tile::FOURS * 4, a.width);
    s.whole = fs_whole(base, stride, a.width, a.type);
    return s;
}

/* Brings KEYS rows from `row`, a multiple of KEYS, on: zeros past the last row and past the width. */
template <typename Tile> FS_DEVICE void fs_head_pull(fs_four (&held)[Tile::HELD], const fs_side &s, int row) {
    fs_side_pull(held, s, row / Tile::STEP * s.step, row / Tile::STEP, 0);
}

template <typename Tile>
FS_DEVICE void fs_head_land(fs_quad (*to)[Tile::FOURS + 1], const fs_four (&held)[Tile::HELD], int type) {
    fs_quad q[Tile::HELD];
    fs_floats(q, held, type);
    FS_UNROLL
    for (int i = 0; i < Tile::HELD; i++)
        to[fs_thread() / Tile::FOURS + i * Tile::STEP][fs_thread() % Tile::FOURS] = q[i];
}

template <typename Tile> FS_DEVICE void fs_queries_load(Tile &tile, const fs_side &s, int row) {
    FS_UNROLL_BY(1)
    for (int r = 0; r < Tile::QUERIES; r += Tile::KEYS) {
        fs_four held[Tile::HELD];
        fs_head_pull<Tile>(held, s, row + r);
        fs_head_land<Tile>(tile.q + r, held, s.type);
    }
}

/* A thread's part of a block: its first row in the tile, its place among those that share the row. */
struct fs_attention_place {
    int row, lane;
};

/* s = q . k; groups of LANES keys that begin at `keys` or later are left alone. */
template <typename Tile>
FS_DEVICE void fs_attention_scores(float s[Tile::ROWS][Tile::COLUMNS], const Tile &tile, fs_attention_place at,
                                   int keys) {
    FS_UNROLL
    for (int i = 0; i < Tile::ROWS * Tile::COLUMNS; i++) s[i / Tile::COLUMNS][i % Tile::COLUMNS] = 0;
    FS_UNROLL_BY(2)
    for (int e = 0; e < Tile::FOURS; e++) {
        fs_quad q[Tile::ROWS];
        FS_UNROLL
        for (int i = 0; i < Tile::ROWS; i++) q[i] = tile.q[at.row + i][e];
        FS_UNROLL
        for (int j = 0; j < Tile::COLUMNS; j++) {
            if (j * Tile::LANES >= keys) break;
            const fs_quad k = tile.kv[at.lane + j * Tile::LANES][e];
            FS_UNROLL
            for (int i = 0; i < Tile::ROWS; i++) {
                FS_UNROLL
                for (int n = 0; n < 4; n++) s[i][j] = fs_fma(q[i].v[n], k.v[n], s[i][j]);
            }
        }
    }
}

/* s += what the distances of the keys from `key` on say, divided by scale: s is q . k yet. */
template <typename Tile>
FS_DEVICE void fs_attention_relative(float s[Tile::ROWS][Tile::COLUMNS], const fs_cuda_attention &a, int row, int key,
                                     int lane) {
    const float by = fs_div(1.0f, a.scale);
    FS_UNROLL_BY(1)
    for (int i = 0; i < Tile::ROWS; i++) {
        FS_UNROLL
        for (int j = 0; j < Tile::COLUMNS; j++) {
            const int far = key + lane + j * Tile::LANES - (row + i), distance = far < 0 ? -far : far;
            const int bucket = a.bucket[far > 0][distance < a.reach ? distance : a.reach];
            s[i][j] = fs_fma(fs_load(a.table, bucket * a.table_stride + (int)blockIdx.y, a.table_type), by, s[i][j]);
        }
    }
}

/* What a thread has gathered for its rows so far. l is the sum over its own keys only. */
template <typename Tile> struct fs_attention_sums {
    float m[Tile::ROWS], l[Tile::ROWS];
    fs_quad y[Tile::ROWS][Tile::OUT];
};

/* The scores of one row to weights, in shared memory, and what was gathered scaled to the new maximum. This row may see
 * `visible` keys of the tile. The first tile has one for every row, so from then on the maximum is a number. */
template <typename Tile>
FS_DEVICE void fs_attention_row(fs_attention_sums<Tile> &sums, Tile &tile, const float s[Tile::COLUMNS], int i,
                                fs_attention_place at, int visible, float c) {
    float top = sums.m[i];
    FS_UNROLL
    for (int j = 0; j < Tile::COLUMNS; j++)
        if (at.lane + j * Tile::LANES < visible) top = fs_max(top, s[j] * c);
    FS_UNROLL
    for (int mask = Tile::LANES / 2; mask > 0; mask /= 2) top = fs_max(top, fs_shuffle_xor(top, mask));
    const float factor = fs_exp2(sums.m[i] - top);
    sums.m[i] = top, sums.l[i] *= factor;
    FS_UNROLL
    for (int j = 0; j < Tile::COLUMNS; j++) {
        const int key = at.lane + j * Tile::LANES;
        const float p = key < visible ? fs_exp2(fs_fma(s[j], c, -top)) : 0.0f;
        sums.l[i] += p;
        tile.p[at.row + i][key / 4].v[key % 4] = p;
    }
    FS_UNROLL
    for (int e = 0; e < Tile::OUT; e++) {
        FS_UNROLL
        for (int n = 0; n < 4; n++) sums.y[i][e].v[n] *= factor;
    }
}

/* y += p . v over the first `keys` keys; those up to the next multiple of four have p = 0 and v = 0. EACH: the thread's
 * i-th row takes the first `seen` + i only. */
template <bool EACH, typename Tile>
FS_DEVICE void fs_attention_mix(fs_attention_sums<Tile> &sums, const Tile &tile, fs_attention_place at, int keys,
                                int seen) {
    FS_UNROLL_BY(2)
    for (int key = 0; key < keys; key += 4) {
        fs_quad p[Tile::ROWS];
        FS_UNROLL
        for (int i = 0; i < Tile::ROWS; i++) p[i] = tile.p[at.row + i][key / 4];
        FS_UNROLL
        for (int k = 0; k < 4; k++) {
            FS_UNROLL
            for (int e = 0; e < Tile::OUT; e++) {
                const fs_quad v = tile.kv[key + k][at.lane + e * Tile::LANES];
                FS_UNROLL
                for (int i = 0; i < Tile::ROWS; i++) {
                    if (EACH && key + k >= seen + i) continue;
                    FS_UNROLL
                    for (int n = 0; n < 4; n++) sums.y[i][e].v[n] = fs_fma(p[i].v[k], v.v[n], sums.y[i][e].v[n]);
                }
            }
        }
    }
}

/* y / l of a warp's rows, by way of the place where its q was, so that neighbouring lanes write neighbouring
 * columns. */
template <typename Tile>
FS_DEVICE void fs_attention_write(const fs_cuda_attention &a, fs_attention_sums<Tile> &sums, Tile &tile,
                                  fs_attention_place at, long long first, int row, int tokens) {
    enum { WARP_ROWS = 32 / Tile::LANES * Tile::ROWS };
    FS_UNROLL
    for (int i = 0; i < Tile::ROWS; i++) {
        float l = sums.l[i];
        FS_UNROLL
        for (int mask = Tile::LANES / 2; mask > 0; mask /= 2) l += fs_shuffle_xor(l, mask);
        const float by = l == 0.0f ? 0.0f : fs_div(1.0f, l);
        FS_UNROLL
        for (int e = 0; e < Tile::OUT; e++) {
            FS_UNROLL
            for (int n = 0; n < 4; n++) sums.y[i][e].v[n] *= by;
            tile.q[at.row + i][at.lane + e * Tile::LANES] = sums.y[i][e];
        }
    }
    fs_warp_sync();
    const bool whole = fs_whole(a.y, a.y_stride, a.width, a.y_type);
    FS_UNROLL_BY(1)
    for (int f = fs_lane(); f < WARP_ROWS * Tile::FOURS; f += 32) {
        const int r = fs_thread() / 32 * WARP_ROWS + f / Tile::FOURS, column = f % Tile::FOURS * 4;
        if (row + r < tokens && column < a.width)
            fs_store_four(a.y, (first + row + r) * a.y_stride + (long long)blockIdx.y * a.width + column,
                          a.width - column, a.y_type, whole, tile.q[r][column / 4]);
    }
}

template <typename Tile> FS_DEVICE void fs_attention(const fs_cuda_attention &a, Tile &tile) {
    const int blocks = (a.longest + Tile::QUERIES - 1) / Tile::QUERIES, b = (int)blockIdx.x / blocks;
    const int first = a.offsets[b], tokens = a.offsets[b + 1] - first;
    const int first_key = a.key_offsets[b], all_keys = a.key_offsets[b + 1] - first_key;
    const int first_query = (int)blockIdx.x % blocks * Tile::QUERIES;
    if (first_query >= tokens) return;
    const fs_side q = fs_head_side<Tile>(a, a.q, a.q_stride, first, tokens);
    const fs_side k = fs_head_side<Tile>(a, a.k, a.k_stride, first_key, all_keys);
    const fs_side v = fs_head_side<Tile>(a, a.v, a.v_stride, first_key, all_keys);
    const fs_attention_place at = { fs_thread() / Tile::LANES * Tile::ROWS, fs_thread() % Tile::LANES };
    const bool busy = first_query + fs_thread() / 32 * (32 / Tile::LANES * Tile::ROWS) < tokens;
    const int row = first_query + at.row, past = first_query + Tile::QUERIES; /* in the sequence */
    const int end = a.causal && past < all_keys ? past : all_keys;
    const float c = a.scale * 1.44269504089f;

    fs_attention_sums<Tile> sums = {};
    FS_UNROLL
    for (int i = 0; i < Tile::ROWS; i++) sums.m[i] = fs_float_of(0xff800000u); /* minus infinity */
    fs_four held[Tile::HELD] = {}; /* the k or v after this one, on its way */
    const int steps = (end + Tile::KEYS - 1) / Tile::KEYS * 2; /* even ones have k, odd ones v of the same tile */
    for (int step = -1; step < steps; step++) {
        if (step >= 0) {
            fs_head_land<Tile>(tile.kv, held, a.type);
            FS_SYNC();
        }
        if (step + 1 < steps) {
            fs_side next = k;
            if (step % 2 == 0) next.at = v.at, next.step = v.step, next.whole = v.whole;
            fs_head_pull<Tile>(held, next, (step + 1) / 2 * Tile::KEYS);
        }
        if (step < 0) {
            fs_queries_load(tile, q, first_query);
            if (steps == 0) FS_SYNC(); /* y goes where q was */
            continue;
        }
        const int key = step / 2 * Tile::KEYS, keys = end - key < Tile::KEYS ? end - key : (int)Tile::KEYS;
        if (busy && step % 2 == 0) {
            float s[Tile::ROWS][Tile::COLUMNS];
            fs_attention_scores(s, tile, at, keys);
            if (a.table) fs_attention_relative<Tile>(s, a, row, key, at.lane);
            FS_UNROLL
            for (int i = 0; i < Tile::ROWS; i++) {
                const int seen = a.causal && row + i + 1 < end ? row + i + 1 : end;
                fs_attention_row(sums, tile, s[i], i, at, seen - key, c);
            }
        } else if (busy && a.causal && row + 1 < key + keys) {
            fs_attention_mix<true>(sums, tile, at, keys, row + 1 - key);
        } else if (busy) {
            fs_attention_mix<false>(sums, tile, at, keys, keys);
        }
        FS_SYNC(); /* what landed was read */
    }
    if (busy) fs_attention_write(a, sums, tile, at, first, first_query, tokens);
}

FS_KERNEL(fs_attention_32_kernel, fs_cuda_attention) {
    typedef fs_attention_tile<32, 64, 64, 8> tile;
    FS_SHARED tile memory;
    fs_attention(a, memory);
}

FS_KERNEL(fs_attention_64_kernel, fs_cuda_attention) {
    typedef fs_attention_tile<64, 64, 32, 8> tile;
    FS_SHARED tile memory;
    fs_attention(a, memory);
}

FS_KERNEL(fs_attention_128_kernel, fs_cuda_attention) {
    typedef fs_attention_tile<128, 32, 32, 16> tile;
    FS_SHARED tile memory;
    fs_attention(a, memory);
}
