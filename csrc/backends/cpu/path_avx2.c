/* path_avx2.c - the kernels for AVX2 and FMA: tiles of 6 rows x 16 columns, 12 of 16 registers hold sums. */
#include "backends/cpu/kernels.h"

#if defined(__x86_64__)

/* Everything from here on may use the instructions; nothing of it is inlined elsewhere, and the table is only reached
 * after paths.c has asked the CPU. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define FS_SIMD_AVX2
#define FS_PATH             fs_kernels_avx2
#define FS_PATH_NAME        "avx2"
#define FS_TILE_ROWS        6
#define FS_PANEL_VECTORS    1
#define FS_EACH_ROWS(X)     X(1) X(2) X(3) X(4) X(5) X(6)
#define FS_FEW_ROWS         3
#define FS_EACH_FEW_ROWS(X) X(1) X(2) X(3)

#include "backends/cpu/kernels/table.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
