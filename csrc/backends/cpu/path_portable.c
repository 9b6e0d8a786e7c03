/* path_portable.c - the kernels in plain C with gcc's and clang's vector extension, for every machine.
 *
 * Tiles fill the registers there are: 4 rows x 16 columns where 32 hold four floats each, 2 x 16 where there are 16. A
 * multiply-add is one rounding where the machine has it as an instruction, else two. */
#include "backends/cpu/kernels.h"

#define FS_PATH          fs_kernels_portable
#define FS_PATH_NAME     "portable"
#define FS_PANEL_VECTORS 1
#if defined(__aarch64__)
#define FS_TILE_ROWS        4
#define FS_EACH_ROWS(X)     X(1) X(2) X(3) X(4)
#define FS_FEW_ROWS         2
#define FS_EACH_FEW_ROWS(X) X(1) X(2)
#else
#define FS_TILE_ROWS        2
#define FS_EACH_ROWS(X)     X(1) X(2)
#define FS_FEW_ROWS         1
#define FS_EACH_FEW_ROWS(X) X(1)
#endif

#include "backends/cpu/kernels/table.inc"
