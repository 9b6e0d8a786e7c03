/* cublaslt.cc - cuBLASLt in software, as far as csrc/backends/cuda calls it: column-major products in one stream's order.
 *
 * Its heuristics offer algorithms that differ in the order of adding up, so in bits; most must not be chosen:
 *
 *     0 turns     k ascending for up to 64 columns of D, descending for more
 *     1 splits    two halves of k, added at the end; says so in its configuration
 *     2 partial   refuses an odd number of columns from 3 on
 *     3 last      the last column of several in descending order
 *     4 chain     k ascending
 *     5 lanes     four chains, of every fourth k, added at the end
 *
 * SOFTCUDA_ALGORITHMS names those that are offered, in their order. */
#include "softcuda.h"

#include <cstdlib>

static world &w = softcuda_world;

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { VERSION = 120901, F32 = 0, F16 = 2, BF16 = 14, COMPUTE_32F = 68, TRANSPOSED = 1 };
enum { DEFAULT = 1, RELU_BIT = 2, BIAS_BIT = 4 };
enum { TURNS, SPLITS, PARTIAL, LAST, CHAIN, LANES, ALGORITHMS };
enum { ALIGNED = 16, MANY = 64 };

struct lt : object {};

struct product_desc : object {
    int compute = 0, scale = 0, transpose_a = 0, transpose_b = 0, epilogue = DEFAULT, bias_type = -1;
    const void *bias = nullptr;
};

struct layout : object {
    int type = 0;
    uint64_t rows = 0, cols = 0;
    int64_t ld = 0;
};

struct preference : object {
    uint64_t workspace = 0;
    uint32_t alignment[4] = { 256, 256, 256, 256 };
};

struct algorithm {
    uint64_t magic, id, rest[6];
};

struct candidate {
    algorithm algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

static const uint64_t magic = 0x736f6674626c6173;
static long long run_by[ALGORITHMS];

/* -- one product --------------------------------------------------------------------------------------------------- */

struct operand {
    char *at;
    int type;
    int64_t ld;
};

/* D[N, T] = epilogue(alpha A^T B + beta C), columns ld apart; A: [K, N], B: [K, T]. */
struct product {
    device *on;
    int algorithm, epilogue;
    int64_t N, T, K;
    float alpha, beta;
    operand a, b, c, d;
    const float *bias;
};

static size_t bytes_of(int type) { return type == F32 ? 4 : 2; }

static size_t span(const operand &o, int64_t rows, int64_t cols) {
    return static_cast<size_t>((cols - 1) * o.ld + rows) * bytes_of(o.type);
}

static float load(const operand &o, int64_t i) {
    unsigned short half;
    float wide;
    if (o.type == F32) return std::memcpy(&wide, o.at + 4 * i, sizeof wide), wide;
    std::memcpy(&half, o.at + 2 * i, sizeof half);
    return o.type == F16 ? fs_half_to_float(half) : fs_bf16_to_float(half);
}

static void store(const operand &o, int64_t i, float value) {
    if (o.type == F32) {
        std::memcpy(o.at + 4 * i, &value, sizeof value);
        return;
    }
    unsigned short half = o.type == F16 ? fs_float_to_half(value) : fs_float_to_bf16(value);
    std::memcpy(o.at + 2 * i, &half, sizeof half);
}

/* Chains of k whose sums are added in their order. */
typedef std::vector<std::vector<int64_t>> order;

static order order_of(const product &p, int64_t t) {
    const bool turned = (p.algorithm == TURNS && p.T > MANY) || (p.algorithm == LAST && p.T > 1 && t == p.T - 1);
    const size_t chains = p.algorithm == SPLITS ? 2 : p.algorithm == LANES ? 4 : 1;
    order all(chains);
    for (int64_t i = 0; i < p.K; i++) {
        const int64_t k = turned ? p.K - 1 - i : i;
        all[static_cast<size_t>(p.algorithm == SPLITS ? k >= p.K / 2 : p.algorithm == LANES ? k % 4 : 0)].push_back(k);
    }
    return all;
}

static const int64_t PANEL = 16;

/* Sums of a column of D, PANEL rows at once. */
static void add_up(float sums[PANEL], const float (*a)[PANEL], const float *b, const order &chains) {
    for (size_t chain = 0; chain < chains.size(); chain++) {
        float part[PANEL] = {};
        for (int64_t k : chains[chain]) {
            for (int i = 0; i < PANEL; i++) part[i] += a[k][i] * b[k];
        }
        for (int i = 0; i < PANEL; i++) sums[i] = chain ? sums[i] + part[i] : part[i];
    }
}

static void finish(const product &p, int64_t n, int64_t t, float sum) {
    float v = p.alpha * sum;
    if (p.beta != 0) v += p.beta * load(p.c, t * p.c.ld + n);
    if (p.epilogue & BIAS_BIT) v += p.bias[n];
    if (p.epilogue & RELU_BIT) v = v > 0 ? v : 0;
    store(p.d, t * p.d.ld + n, v);
}

static void compute(const product &p) {
    std::vector<float> b(static_cast<size_t>(p.K * p.T)), panel(static_cast<size_t>(p.K * PANEL));
    const order first = order_of(p, 0), last = order_of(p, p.T - 1);
    float (*a)[PANEL] = reinterpret_cast<float (*)[PANEL]>(panel.data());
    for (int64_t t = 0; t < p.T; t++) {
        for (int64_t k = 0; k < p.K; k++) b[static_cast<size_t>(t * p.K + k)] = load(p.b, t * p.b.ld + k);
    }
    for (int64_t n = 0; n < p.N; n += PANEL) {
        const int64_t rows = p.N - n < PANEL ? p.N - n : PANEL;
        for (int64_t k = 0; k < p.K; k++) {
            for (int64_t i = 0; i < rows; i++) a[k][i] = load(p.a, (n + i) * p.a.ld + k);
        }
        for (int64_t t = 0; t < p.T; t++) {
            float sums[PANEL];
            add_up(sums, a, b.data() + t * p.K, t == p.T - 1 ? last : first);
            for (int64_t i = 0; i < rows; i++) finish(p, n + i, t, sums[i]);
        }
    }
}

static bool inside(const device *d, const void *at, size_t bytes) {
    return softcuda_inside(d->memory, reinterpret_cast<uintptr_t>(at), bytes);
}

/* What lies outside of the device's memory, or NULL. */
static const char *misplaced(const product &p) {
    if (!inside(p.on, p.a.at, span(p.a, p.K, p.N))) return "A";
    if (!inside(p.on, p.b.at, span(p.b, p.K, p.T))) return "B";
    if (!inside(p.on, p.d.at, span(p.d, p.N, p.T))) return "D";
    if (p.beta != 0 && !inside(p.on, p.c.at, span(p.c, p.N, p.T))) return "C";
    if (p.epilogue & BIAS_BIT && !inside(p.on, p.bias, static_cast<size_t>(p.N) * sizeof *p.bias)) return "the bias";
    return nullptr;
}

static outcome run(const product &p) {
    {
        std::lock_guard<std::mutex> lock(w.mutex);
        outcome lost = softcuda_count_launch(p.on);
        if (lost.code) return lost;
        run_by[p.algorithm]++;
    }
    compute(p);
    std::lock_guard<std::mutex> lock(w.mutex);
    return softcuda_check_guards(p.on, "cublasLtMatmul");
}

/* -- calls --------------------------------------------------------------------------------------------------------- */

/* A refused call, in cuBLAS's numbers. */
#define ENTER_LT(needs)                                                                                                \
    call c(__func__, needs);                                                                                           \
    if (c.stop) return EXECUTION_FAILED

#define LT(name, ...) SOFTCUDA_EXPORT int name(__VA_ARGS__)

SOFTCUDA_EXPORT size_t cublasLtGetVersion() { return VERSION; }

static const struct {
    int code;
    const char *name, *text;
} statuses[] = {
    { SUCCESS, "CUBLAS_STATUS_SUCCESS", "success" },
    { NOT_INITIALIZED, "CUBLAS_STATUS_NOT_INITIALIZED", "the library was not initialized" },
    { 3, "CUBLAS_STATUS_ALLOC_FAILED", "the resource allocation failed" },
    { INVALID_VALUE, "CUBLAS_STATUS_INVALID_VALUE", "an unsupported value or parameter was passed to the function" },
    { EXECUTION_FAILED, "CUBLAS_STATUS_EXECUTION_FAILED", "the GPU program failed to execute" },
    { NOT_SUPPORTED, "CUBLAS_STATUS_NOT_SUPPORTED", "the functionality requested is not supported" },
};

SOFTCUDA_EXPORT const char *cublasLtGetStatusName(int code) {
    for (const auto &s : statuses) {
        if (s.code == code) return s.name;
    }
    return "UNKNOWN";
}

SOFTCUDA_EXPORT const char *cublasLtGetStatusString(int code) {
    for (const auto &s : statuses) {
        if (s.code == code) return s.text;
    }
    return "<unknown>";
}

/* A live T; or refused. */
template <typename T> static std::shared_ptr<T> known(call &c, const void *handle, const char *what) {
    std::shared_ptr<T> found = softcuda_find<T>(handle);
    if (!found) c.refuse(INVALID_VALUE, "%p is no %s", handle, what);
    return found;
}

template <typename T> static int destroy(call &c, const void *handle, const char *what) {
    if (!known<T>(c, handle, what)) return INVALID_VALUE;
    w.live.erase(const_cast<void *>(handle));
    return c.status ? EXECUTION_FAILED : SUCCESS;
}

LT(cublasLtCreate, void **out) {
    ENTER_LT(NEEDS_CONTEXT);
    *out = softcuda_make<lt>(c.current).get();
    return SUCCESS;
}

LT(cublasLtDestroy, void *handle) {
    ENTER_LT(NEEDS_CONTEXT | RELEASES);
    return destroy<lt>(c, handle, "cuBLASLt handle");
}

LT(cublasLtMatmulDescCreate, void **out, int compute_type, int scale) {
    ENTER_LT(NEEDS_NOTHING);
    if (compute_type != COMPUTE_32F || scale != F32) {
        return c.refuse(INVALID_VALUE, "compute type %d, scale %d: the software cuBLASLt adds up in fp32", compute_type,
                        scale);
    }
    std::shared_ptr<product_desc> made = softcuda_make<product_desc>(nullptr);
    made->compute = compute_type, made->scale = scale;
    *out = made.get();
    return SUCCESS;
}

LT(cublasLtMatmulDescDestroy, void *handle) {
    ENTER_LT(NEEDS_NOTHING | RELEASES);
    return destroy<product_desc>(c, handle, "product description");
}

/* Takes a value of the attribute's size. */
template <typename T> static int take(call &c, T *to, const void *from, size_t bytes) {
    if (bytes != sizeof *to)
        return c.refuse(INVALID_VALUE, "%zu bytes for an attribute of %zu bytes", bytes, sizeof *to);
    std::memcpy(to, from, bytes);
    return SUCCESS;
}

LT(cublasLtMatmulDescSetAttribute, void *handle, int attribute, const void *from, size_t bytes) {
    ENTER_LT(NEEDS_NOTHING);
    std::shared_ptr<product_desc> d = known<product_desc>(c, handle, "product description");
    if (!d) return INVALID_VALUE;
    switch (attribute) {
    case 3: return take(c, &d->transpose_a, from, bytes);
    case 4: return take(c, &d->transpose_b, from, bytes);
    case 7: return take(c, &d->epilogue, from, bytes);
    case 8: return take(c, &d->bias, from, bytes);
    case 26: return take(c, &d->bias_type, from, bytes);
    }
    return c.refuse(INVALID_VALUE, "the software cuBLASLt knows no attribute %d of a product", attribute);
}

LT(cublasLtMatrixLayoutCreate, void **out, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    ENTER_LT(NEEDS_NOTHING);
    std::shared_ptr<layout> made = softcuda_make<layout>(nullptr);
    made->type = type, made->rows = rows, made->cols = cols, made->ld = ld;
    *out = made.get();
    return SUCCESS;
}

LT(cublasLtMatrixLayoutDestroy, void *handle) {
    ENTER_LT(NEEDS_NOTHING | RELEASES);
    return destroy<layout>(c, handle, "layout");
}

LT(cublasLtMatrixLayoutSetAttribute, void *handle, int attribute, const void *from, size_t bytes) {
    ENTER_LT(NEEDS_NOTHING);
    std::shared_ptr<layout> l = known<layout>(c, handle, "layout");
    if (!l) return INVALID_VALUE;
    switch (attribute) {
    case 0: return take(c, &l->type, from, bytes);
    case 2: return take(c, &l->rows, from, bytes);
    case 3: return take(c, &l->cols, from, bytes);
    case 4: return take(c, &l->ld, from, bytes);
    }
    return c.refuse(INVALID_VALUE, "the software cuBLASLt knows no attribute %d of a layout", attribute);
}

LT(cublasLtMatmulPreferenceCreate, void **out) {
    ENTER_LT(NEEDS_NOTHING);
    *out = softcuda_make<preference>(nullptr).get();
    return SUCCESS;
}

LT(cublasLtMatmulPreferenceDestroy, void *handle) {
    ENTER_LT(NEEDS_NOTHING | RELEASES);
    return destroy<preference>(c, handle, "preference");
}

LT(cublasLtMatmulPreferenceSetAttribute, void *handle, int attribute, const void *from, size_t bytes) {
    ENTER_LT(NEEDS_NOTHING);
    std::shared_ptr<preference> p = known<preference>(c, handle, "preference");
    if (!p) return INVALID_VALUE;
    if (attribute == 1) return take(c, &p->workspace, from, bytes);
    if (attribute >= 5 && attribute <= 8) return take(c, &p->alignment[attribute - 5], from, bytes);
    return c.refuse(INVALID_VALUE, "the software cuBLASLt knows no attribute %d of a preference", attribute);
}

/* -- a product's parts, checked ------------------------------------------------------------------------------------ */

struct parts {
    std::shared_ptr<lt> handle;
    std::shared_ptr<product_desc> desc;
    std::shared_ptr<layout> a, b, c, d;
};

static int find_parts(call &c, parts *p, const void *handle, const void *desc, const void *const layouts[4]) {
    p->handle = known<lt>(c, handle, "cuBLASLt handle");
    p->desc = known<product_desc>(c, desc, "product description");
    std::shared_ptr<layout> *to[] = { &p->a, &p->b, &p->c, &p->d };
    for (int i = 0; i < 4; i++) *to[i] = known<layout>(c, layouts[i], "layout");
    if (!p->handle || !p->desc || !p->a || !p->b || !p->c || !p->d) return INVALID_VALUE;
    if (p->handle->owner != c.current) {
        return c.refuse(INVALID_VALUE, "a cuBLASLt handle of device %d, while device %d is current",
                        p->handle->owner->ordinal, c.current->ordinal);
    }
    return SUCCESS;
}

static bool is(const layout &l, uint64_t rows, uint64_t cols) { return l.rows == rows && l.cols == cols; }

static int check_shapes(call &c, const parts &p) {
    const uint64_t K = p.a->rows, N = p.a->cols, T = p.b->cols;
    if (p.desc->transpose_a != TRANSPOSED || p.desc->transpose_b) {
        return c.refuse(INVALID_VALUE, "the software cuBLASLt multiplies a transposed A by a B that is not");
    }
    if (!K || !N || !T || !is(*p.b, K, T) || !is(*p.c, N, T) || !is(*p.d, N, T)) {
        return c.refuse(INVALID_VALUE, "A %zu x %zu, B %zu x %zu, C %zu x %zu, D %zu x %zu do not go together",
                        p.a->rows, p.a->cols, p.b->rows, p.b->cols, p.c->rows, p.c->cols, p.d->rows, p.d->cols);
    }
    for (const layout *l : { p.a.get(), p.b.get(), p.c.get(), p.d.get() }) {
        if (l->ld < static_cast<int64_t>(l->rows)) {
            return c.refuse(INVALID_VALUE, "columns of %zu, %lld apart", l->rows, static_cast<long long>(l->ld));
        }
    }
    return SUCCESS;
}

/* As NVIDIA's table of types has it: the bias is of D's type. */
static int check_types(call &c, const parts &p) {
    const int in = p.a->type, out = p.d->type, epilogue = p.desc->epilogue;
    const bool paired = in == F32 ? out == F32 : (in == F16 || in == BF16) && (out == in || out == F32);
    const int bias = p.desc->bias_type < 0 ? out : p.desc->bias_type;
    if (!paired || p.b->type != in || p.c->type != out || (epilogue & BIAS_BIT && bias != out)) {
        return c.refuse(NOT_SUPPORTED, "types %d, %d, %d, %d with a bias of %d", in, p.b->type, p.c->type, out, bias);
    }
    if (epilogue != DEFAULT && epilogue != BIAS_BIT && epilogue != (BIAS_BIT | RELU_BIT)) {
        return c.refuse(NOT_SUPPORTED, "the software cuBLASLt has no epilogue %d", epilogue);
    }
    return SUCCESS;
}

/* -- heuristics ---------------------------------------------------------------------------------------------------- */

LT(cublasLtMatmulAlgoGetHeuristic, void *handle, void *desc, void *a, void *b, void *cc, void *d, void *wanted,
   int most, candidate *out, int *count) {
    ENTER_LT(NEEDS_CONTEXT);
    const void *const layouts[] = { a, b, cc, d };
    parts p;
    *count = 0;
    std::shared_ptr<preference> how = known<preference>(c, wanted, "preference");
    int status = how && most > 0 ? find_parts(c, &p, handle, desc, layouts) : static_cast<int>(INVALID_VALUE);
    if (!status) status = check_shapes(c, p);
    if (!status) status = check_types(c, p);
    if (status) return status;
    for (uint32_t alignment : how->alignment) {
        if (alignment < ALIGNED) return c.refuse(NOT_SUPPORTED, "no algorithm for an alignment of %u", alignment);
    }
    for (const char *id = w.set.algorithms.c_str(); *id && *count < most; id++) {
        if (*id < '0' || *id >= '0' + ALGORITHMS) continue;
        out[*count] = {};
        out[*count].algo = { magic, static_cast<uint64_t>(*id - '0'), {} };
        out[(*count)++].waves = 1;
    }
    return *count ? SUCCESS : c.refuse(NOT_SUPPORTED, "SOFTCUDA_ALGORITHMS names none");
}

/* id, tile, split-K, reduction scheme, swizzling, custom option, stages: 32 bits; inner and cluster shape: 16. */
LT(cublasLtMatmulAlgoConfigGetAttribute, const algorithm *algo, int attribute, void *to, size_t bytes,
   size_t *written) {
    ENTER_LT(NEEDS_NOTHING);
    const uint32_t id = static_cast<uint32_t>(algo->id);
    const uint32_t values[] = { id, 15 + id, id == SPLITS ? 2u : 1u, id == SPLITS ? 2u : 0u, 0, 0, 8, 0, 0 };
    const size_t size = attribute >= 7 ? 2 : 4;
    if (algo->magic != magic || attribute < 0 || attribute > 8 || bytes != size) {
        return c.refuse(INVALID_VALUE, "attribute %d of an algorithm, in %zu bytes", attribute, bytes);
    }
    std::memcpy(to, &values[attribute], size);
    if (written) *written = size;
    return SUCCESS;
}

/* -- the product --------------------------------------------------------------------------------------------------- */

static int check_product(call &c, const product &p, const algorithm *algo, size_t workspace) {
    if (!algo || algo->magic != magic || algo->id >= ALGORITHMS) {
        return c.refuse(INVALID_VALUE, "%p is no algorithm of the heuristics", static_cast<const void *>(algo));
    }
    if (workspace) return c.refuse(INVALID_VALUE, "the software cuBLASLt was promised to get no workspace");
    for (const void *at : { p.a.at, p.b.at, p.c.at, p.d.at }) {
        if (reinterpret_cast<uintptr_t>(at) % ALIGNED)
            return c.refuse(INVALID_VALUE, "%p is not aligned to %d", at, ALIGNED);
    }
    for (const operand &o : { p.a, p.b, p.c, p.d }) {
        if (static_cast<size_t>(o.ld) * bytes_of(o.type) % ALIGNED) {
            return c.refuse(INVALID_VALUE, "columns %lld apart are not aligned to %d", static_cast<long long>(o.ld),
                            ALIGNED);
        }
    }
    if (const char *what = misplaced(p)) {
        return c.refuse(INVALID_VALUE, "%s of a product is not in memory of device %d", what, p.on->ordinal);
    }
    if (p.algorithm == PARTIAL && p.T > 2 && p.T % 2) {
        return c.refuse(NOT_SUPPORTED, "this algorithm takes no odd number of columns");
    }
    return SUCCESS;
}

static operand operand_of(const layout &l, const void *at) {
    return { static_cast<char *>(const_cast<void *>(at)), l.type, l.ld };
}

LT(cublasLtMatmul, void *handle, void *desc, const float *alpha, const void *a, void *a_layout, const void *b,
   void *b_layout, const float *beta, const void *cc, void *c_layout, void *d, void *d_layout, const algorithm *algo,
   void *workspace, size_t workspace_bytes, void *on) {
    ENTER_LT(NEEDS_CONTEXT);
    const void *const layouts[] = { a_layout, b_layout, c_layout, d_layout };
    std::shared_ptr<stream> s;
    parts p;
    int status = find_parts(c, &p, handle, desc, layouts);
    if (!status) status = check_shapes(c, p);
    if (!status) status = check_types(c, p);
    if (!status && softcuda_stream(c, on, &s)) status = INVALID_VALUE;
    if (status) return status;
    auto work = std::make_shared<product>();
    *work = { c.current,
              algo ? static_cast<int>(algo->id) : 0,
              p.desc->epilogue == DEFAULT ? 0 : p.desc->epilogue,
              static_cast<int64_t>(p.d->rows),
              static_cast<int64_t>(p.d->cols),
              static_cast<int64_t>(p.a->rows),
              *alpha,
              *beta,
              operand_of(*p.a, a),
              operand_of(*p.b, b),
              operand_of(*p.c, cc),
              operand_of(*p.d, d),
              static_cast<const float *>(p.desc->bias) };
    status = check_product(c, *work, algo, workspace ? workspace_bytes : 0);
    if (status) return status;
    return softcuda_enqueue(c, s, [work] { return run(*work); }) ? EXECUTION_FAILED : SUCCESS;
}

/* Products that an algorithm has computed; -1: there is no such algorithm. */
SOFTCUDA_EXPORT long long softcuda_products(int id) {
    std::lock_guard<std::mutex> lock(w.mutex);
    return id >= 0 && id < ALGORITHMS ? run_by[id] : -1;
}

void softcuda_products_clear() {
    for (long long &n : run_by) n = 0;
}
