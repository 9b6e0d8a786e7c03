/* path_avx512.c - the kernels for AVX-512F: tiles of 14 rows x 32 columns, 28 of 32 registers hold sums.
 *
 * With FS_SIMD_PAIR the same tiles are compiled over AVX2's pair of registers: too many for it, so slow, but tests can
 * run the shapes and tails of this path on a machine without AVX-512, and compare the bits with avx2. */
#include "backends/cpu/kernels.h"

#if defined(__x86_64__)

#ifdef FS_SIMD_PAIR
#define FS_SIMD_AVX2
#define FS_PATH        fs_kernels_avx512_tiles
#define FS_PATH_NAME   "avx512-tiles"
#define FS_PATH_TARGET "avx2,fma"
#else
#define FS_SIMD_AVX512
#define FS_PATH        fs_kernels_avx512
#define FS_PATH_NAME   "avx512"
#define FS_PATH_TARGET "avx512f,avx2,fma"
#endif

#define FS_PRAGMA(x)        _Pragma(#x)
#define FS_PRAGMA_TARGET(x) FS_PRAGMA(x)
#if defined(__clang__)
FS_PRAGMA_TARGET(clang attribute push(__attribute__((target(FS_PATH_TARGET))), apply_to = function))
#else
#pragma GCC push_options
FS_PRAGMA_TARGET(GCC target(FS_PATH_TARGET))
#endif

#define FS_TILE_ROWS        14
#define FS_PANEL_VECTORS    2
#define FS_EACH_ROWS(X)     X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#define FS_FEW_ROWS         7
#define FS_EACH_FEW_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

#include "backends/cpu/kernels/table.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
