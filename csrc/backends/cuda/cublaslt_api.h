/* cublaslt_api.h - NVIDIA's library of products behind a call table, found on first use; majors 12 and 13.
 *
 * It is looked for in the wheels beside ours, then by its name, which finds what the process has loaded already before
 * what lies on the loader's path. Of both places 12 comes before 13: it runs on every driver that we do. Sizes of its
 * own structs differ between the majors, so they are only made and ended by its own calls. Thread-safe.
 *
 * It is not needed: without it all products go through our own kernels. */
#ifndef FS_CUDA_CUBLASLT_API_H
#define FS_CUDA_CUBLASLT_API_H

#include "backends/cuda/driver_api.h"

#include <stdint.h>

typedef struct cublasLtContext *fs_lt_handle;
typedef struct cublasLtMatmulDesc *fs_lt_product;
typedef struct cublasLtMatrixLayout *fs_lt_layout;
typedef struct cublasLtMatmulPreference *fs_lt_wish;

typedef struct {
    uint64_t data[8];
} fs_lt_algorithm;

typedef struct {
    fs_lt_algorithm algorithm;
    size_t workspace;
    int state; /* FS_LT_SUCCESS, or this one is none */
    float waves;
    int reserved[4];
} fs_lt_candidate;

/* The numbers of cuBLASLt that are used. */
enum {
    FS_LT_SUCCESS = 0,
    FS_LT_ALLOC_FAILED = 3,
    FS_LT_INVALID_VALUE = 7,
    FS_LT_ARCH_MISMATCH = 8,
    FS_LT_NOT_SUPPORTED = 15,

    FS_LT_F32 = 0, /* cudaDataType_t */
    FS_LT_F16 = 2,
    FS_LT_BF16 = 14,
    FS_LT_COMPUTE_32F = 68, /* sums in fp32, TF32 off */
    FS_LT_TRANSPOSED = 1,

    FS_LT_PRODUCT_TRANSPOSE_A = 3, /* int32 */
    FS_LT_PRODUCT_EPILOGUE = 7,    /* uint32 */
    FS_LT_PRODUCT_BIAS = 8,        /* device address */
    FS_LT_PRODUCT_BIAS_TYPE = 26,  /* int32 */
    FS_LT_LAYOUT_COLS = 3,         /* uint64 */
    FS_LT_LAYOUT_LD = 4,           /* int64 */
    FS_LT_WISH_WORKSPACE = 1,      /* uint64 */
    FS_LT_WISH_ALIGNMENT_A = 5,    /* uint32; those of B, C and D follow */

    FS_LT_EPILOGUE_DEFAULT = 1,
    FS_LT_EPILOGUE_BIAS = 4,
    FS_LT_EPILOGUE_RELU_BIAS = 6,

    FS_LT_ALGORITHM_SPLIT_K = 2,     /* uint32, as all below the last two, */
    FS_LT_ALGORITHM_REDUCTION = 3,   /* 0: none */
    FS_LT_ALGORITHM_INNER_SHAPE = 7, /* which are uint16 */
    FS_LT_ALGORITHM_ATTRIBUTES = 9,
};

typedef struct {
#define X(field, symbol, arguments) int(*field) arguments;
#include "backends/cuda/cublaslt_api.def"
#undef X
    size_t (*version)(void); /* 120901 for 12.9.1 */
    const char *(*status_name)(int status);
    const char *(*status_string)(int status);
    const char *file; /* it was loaded from */
} fs_lt_api;

/* The table, once for the process; or NULL with FS_OK: it was not found where it usually is, or the knob LIBCUBLASLT is
 * "off". FS_DEVICE lists what was tried where the knob names a library that cannot be used. */
fs_status fs_lt_open(const fs_lt_api **out);

/* Without the knob's permission not to be there: FS_DEVICE tells in any case why there is none. */
fs_status fs_lt_find(const fs_lt_api **out);

#endif
