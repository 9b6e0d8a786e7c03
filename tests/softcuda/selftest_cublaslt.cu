/* selftest_cublaslt.cu - products of the software cuBLASLt: numbers, the algorithms' bits, what is refused. */
#include "softcuda/selftest_driver.h"

struct algorithm {
    unsigned long long data[8];
};

struct candidate {
    algorithm algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

extern "C" {
size_t cublasLtGetVersion(void);
const char *cublasLtGetStatusName(int);
const char *cublasLtGetStatusString(int);
int cublasLtCreate(handle *);
int cublasLtDestroy(handle);
int cublasLtMatmulDescCreate(handle *, int, int);
int cublasLtMatmulDescDestroy(handle);
int cublasLtMatmulDescSetAttribute(handle, int, const void *, size_t);
int cublasLtMatrixLayoutCreate(handle *, int, unsigned long long, unsigned long long, long long);
int cublasLtMatrixLayoutDestroy(handle);
int cublasLtMatrixLayoutSetAttribute(handle, int, const void *, size_t);
int cublasLtMatmulPreferenceCreate(handle *);
int cublasLtMatmulPreferenceDestroy(handle);
int cublasLtMatmulPreferenceSetAttribute(handle, int, const void *, size_t);
int cublasLtMatmulAlgoGetHeuristic(handle, handle, handle, handle, handle, handle, handle, int, candidate *, int *);
int cublasLtMatmulAlgoConfigGetAttribute(const algorithm *, int, void *, size_t, size_t *);
int cublasLtMatmul(handle, handle, const void *, const void *, handle, const void *, handle, const void *, const void *,
                   handle, void *, handle, const algorithm *, void *, size_t, handle);
long long softcuda_products(int);
}

enum { INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15, F32 = 0, F16 = 2, COLS = 3, BIAS_OF_FLOATS = 26 };
enum { N = 20, K = 24, MOST = 130, ALGORITHMS = 6, CHAIN = 4 };

/* A product of MOST rows at most: x, w and a bias of given numbers, y of none. */
struct product {
    ready d;
    handle lt, desc, w, x, y, wish;
    address w_at, x_at, y_at, bias_at;
    std::vector<float> xs, ws, biases;
    candidate found[16] = {};
    int count = 0;

    explicit product(int in = F32) {
        const int transposed = 1, epilogue = 4, floats = F32;
        const unsigned long long none = 0;
        const unsigned alignment = 16;
        SAME(cublasLtCreate(&lt), 0);
        SAME(cublasLtMatmulDescCreate(&desc, 68, F32), 0);
        SAME(cublasLtMatmulDescSetAttribute(desc, 3, &transposed, sizeof transposed), 0);
        SAME(cublasLtMatmulDescSetAttribute(desc, 7, &epilogue, sizeof epilogue), 0);
        SAME(cublasLtMatmulDescSetAttribute(desc, BIAS_OF_FLOATS, &floats, sizeof floats), 0);
        SAME(cublasLtMatrixLayoutCreate(&w, in, K, N, K), 0);
        SAME(cublasLtMatrixLayoutCreate(&x, in, K, MOST, K), 0);
        SAME(cublasLtMatrixLayoutCreate(&y, F32, N, MOST, N), 0);
        SAME(cublasLtMatmulPreferenceCreate(&wish), 0);
        SAME(cublasLtMatmulPreferenceSetAttribute(wish, 1, &none, sizeof none), 0);
        for (int i = 5; i <= 8; i++)
            SAME(cublasLtMatmulPreferenceSetAttribute(wish, i, &alignment, sizeof alignment), 0);
        w_at = filled(ws, N * K, 1), x_at = filled(xs, MOST * K, 2), bias_at = filled(biases, N, 3);
        y_at = d.memory(MOST * N * sizeof(float));
        SAME(cublasLtMatmulDescSetAttribute(desc, 8, &bias_at, sizeof bias_at), 0);
    }
    ~product() {
        for (handle layout : { w, x, y }) SAME(cublasLtMatrixLayoutDestroy(layout), 0);
        SAME(cublasLtMatmulPreferenceDestroy(wish), 0);
        SAME(cublasLtMatmulDescDestroy(desc), 0);
        SAME(cublasLtDestroy(lt), 0);
    }
    address filled(std::vector<float> &numbers, size_t n, unsigned seed) {
        float *host = d.host(n);
        for (size_t i = 0; i < n; i++) {
            seed = seed * 1664525u + 1013904223u;
            host[i] = static_cast<float>(static_cast<int>(seed)) * 0x1p-31f;
        }
        numbers.assign(host, host + n);
        address at = d.memory(n * sizeof(float));
        SAME(cuMemcpyHtoDAsync_v2(at, host, n * sizeof(float), d.stream), 0);
        return at;
    }
    int ask() { return cublasLtMatmulAlgoGetHeuristic(lt, desc, w, x, y, y, wish, 16, found, &count); }
    int run(const algorithm *algo, unsigned long long T, address x_from, address y_to, float beta = 0) {
        const float one = 1;
        SAME(cublasLtMatrixLayoutSetAttribute(x, COLS, &T, sizeof T), 0);
        SAME(cublasLtMatrixLayoutSetAttribute(y, COLS, &T, sizeof T), 0);
        void *to = reinterpret_cast<void *>(y_to);
        return cublasLtMatmul(lt, desc, &one, reinterpret_cast<void *>(w_at), w, reinterpret_cast<void *>(x_from), x,
                              &beta, to, y, to, y, algo, nullptr, 0, d.stream);
    }
    std::vector<float> read(size_t rows) {
        float *host = d.host(rows * N);
        SAME(cuMemcpyDtoHAsync_v2(host, y_at, rows * N * sizeof(float), d.stream), 0);
        SAME(cuStreamSynchronize(d.stream), 0);
        return std::vector<float>(host, host + rows * N);
    }
};

TEST(products_are_what_they_should_be) {
    product p;
    SAME(p.ask(), 0);
    SAME(p.count, ALGORITHMS);
    for (int i = 0; i < p.count; i++) {
        SAME(p.run(&p.found[i].algo, 66, p.x_at, p.y_at), 0);
        SAME(softcuda_products(i), 0); /* nobody has waited for it */
        std::vector<float> y = p.read(66);
        SAME(softcuda_products(i), 1);
        for (size_t t = 0; t < 66; t++) {
            for (size_t n = 0; n < N; n++) {
                double sum = p.biases[n];
                for (size_t k = 0; k < K; k++) sum += static_cast<double>(p.xs[t * K + k]) * p.ws[n * K + k];
                CHECK(std::fabs(y[t * N + n] - sum) < 1e-5);
            }
        }
    }
}

TEST(beta_adds_what_is_there) {
    product p;
    SAME(p.ask(), 0);
    SAME(p.run(&p.found[CHAIN].algo, 3, p.x_at, p.y_at), 0);
    std::vector<float> once = p.read(3);
    SAME(p.run(&p.found[CHAIN].algo, 3, p.x_at, p.y_at, 1), 0);
    std::vector<float> twice = p.read(3);
    for (size_t i = 0; i < once.size(); i++) CHECK(std::fabs(twice[i] - 2 * once[i]) < 1e-5);
}

/* Whether each row of a batch of T has the bits it has alone. */
static bool same_bits(product &p, int algo, size_t T) {
    SAME(p.run(&p.found[algo].algo, T, p.x_at, p.y_at), 0);
    std::vector<float> all = p.read(T);
    for (size_t t = 0; t < T; t++) {
        SAME(p.run(&p.found[algo].algo, 1, p.x_at + t * K * sizeof(float), p.y_at), 0);
        std::vector<float> one = p.read(1);
        if (std::memcmp(one.data(), &all[t * N], N * sizeof(float))) return false;
    }
    return true;
}

TEST(some_algorithms_have_bits_that_depend_on_the_batch) {
    product p;
    SAME(p.ask(), 0);
    const bool small[] = { true, true, true, false, true, true }, large[] = { false, true, true, false, true, true };
    for (int i = 0; i < ALGORITHMS; i++) {
        SAME(same_bits(p, i, 64), small[i]);
        SAME(same_bits(p, i, MOST), large[i]);
        unsigned split = 0, scheme = 9;
        size_t written = 0;
        SAME(cublasLtMatmulAlgoConfigGetAttribute(&p.found[i].algo, 2, &split, sizeof split, &written), 0);
        SAME(cublasLtMatmulAlgoConfigGetAttribute(&p.found[i].algo, 3, &scheme, sizeof scheme, &written), 0);
        SAME(split, i == 1 ? 2 : 1);
        SAME(scheme != 0, i == 1);
    }
    SAME(p.run(&p.found[2].algo, 17, p.x_at, p.y_at), NOT_SUPPORTED);
}

TEST(what_is_asked_for_is_offered) {
    settings({ "SOFTCUDA_ALGORITHMS=51" });
    {
        product p;
        SAME(p.ask(), 0);
        SAME(p.count, 2);
        int id = 0;
        SAME(cublasLtMatmulAlgoConfigGetAttribute(&p.found[0].algo, 0, &id, sizeof id, nullptr), 0);
        SAME(id, 5);
    }
    settings({ "SOFTCUDA_ALGORITHMS=" });
    product p;
    SAME(p.ask(), NOT_SUPPORTED);
}

TEST(what_does_not_go_together_is_refused) {
    product p;
    SAME(p.ask(), 0);
    const algorithm *good = &p.found[CHAIN].algo;
    const algorithm made_up = {};
    SAME(p.run(&made_up, 4, p.x_at, p.y_at), INVALID_VALUE);
    HOLDS(message(), "is no algorithm");
    SAME(p.run(good, 4, p.x_at + 4, p.y_at), INVALID_VALUE);
    HOLDS(message(), "is not aligned to 16");
    SAME(p.run(good, MOST + 1, p.x_at, p.y_at), INVALID_VALUE);
    HOLDS(message(), "B of a product is not in memory of device 0");
    SAME(p.run(good, 4, p.x_at, 0x1000), INVALID_VALUE);
    HOLDS(message(), "D of a product");
    const unsigned long long three = 3;
    const long long narrow = K - 4;
    SAME(cublasLtMatrixLayoutSetAttribute(p.x, COLS, &three, 4), INVALID_VALUE);
    HOLDS(message(), "4 bytes for an attribute of 8 bytes");
    SAME(cublasLtMatrixLayoutSetAttribute(p.w, COLS, &three, sizeof three), 0);
    SAME(p.run(good, 4, p.x_at, p.y_at), INVALID_VALUE);
    HOLDS(message(), "do not go together");
    SAME(cublasLtMatrixLayoutSetAttribute(p.x, 4, &narrow, sizeof narrow), 0);
    SAME(cublasLtMatmulDescSetAttribute(p.lt, 3, &three, 4), INVALID_VALUE);
    SAME(cublasLtMatmulDescSetAttribute(p.desc, 99, &three, 4), INVALID_VALUE);
    SAME(std::strcmp(cublasLtGetStatusName(NOT_SUPPORTED), "CUBLAS_STATUS_NOT_SUPPORTED"), 0);
}

TEST(types_go_together_as_in_the_table) {
    product p(F16); /* fp16 to fp32, with a bias of fp32 */
    const int half = F16;
    SAME(p.ask(), 0);
    SAME(cublasLtMatrixLayoutSetAttribute(p.y, 0, &half, sizeof half), 0);
    SAME(p.ask(), NOT_SUPPORTED);
    SAME(cublasLtMatmulDescSetAttribute(p.desc, BIAS_OF_FLOATS, &half, sizeof half), 0);
    SAME(p.ask(), 0);
    SAME(cublasLtMatrixLayoutSetAttribute(p.w, 0, &(const int &)F32, sizeof half), 0);
    SAME(p.ask(), NOT_SUPPORTED);
}

TEST(calls_count_and_may_fail_and_handles_are_counted) {
    settings({});
    {
        ready d;
        handle lt = nullptr, desc = nullptr;
        long long calls = softcuda_calls(), live = softcuda_live();
        SAME(cublasLtCreate(&lt), 0);
        SAME(softcuda_calls(), calls + 1);
        SAME(softcuda_live(), live + 1);
        softcuda_fail_at(1, 999);
        SAME(cublasLtMatmulDescCreate(&desc, 68, F32), EXECUTION_FAILED);
        SAME(softcuda_live(), live + 1);
        softcuda_fail_at(1, 999);
        SAME(cublasLtDestroy(lt), EXECUTION_FAILED);
        SAME(softcuda_live(), live);
        SAME(cublasLtDestroy(lt), INVALID_VALUE);
        SAME(cublasLtGetVersion() / 10000, 12);
    }
    SAME(softcuda_live(), 0);
}
