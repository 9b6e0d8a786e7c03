/* view.h - element types, and a tensor that somebody else owns: [rows, cols], rows `stride` elements apart.
 *
 * `at` is an address on the device the view belongs to; host code must not read through it unless it made the
 * memory. Letters, everywhere: L layers, T tokens, B rows of a batch, D width, H heads, E head width, F inner width,
 * V vocabulary, P positions. */
#ifndef FS_BASE_VIEW_H
#define FS_BASE_VIEW_H

#include <stddef.h>
#include <stdint.h>

/* X(enum, name in options, name in safetensors, bytes) */
#define FS_DTYPES(X)                                                                                                   \
    X(FS_F32, "fp32", "F32", 4)                                                                                        \
    X(FS_F16, "fp16", "F16", 2)                                                                                        \
    X(FS_BF16, "bf16", "BF16", 2)                                                                                      \
    X(FS_I32, "int32", "I32", 4)                                                                                       \
    X(FS_I64, "int64", "I64", 8)

typedef enum {
#define X(id, name, file_name, bytes) id,
    FS_DTYPES(X)
#undef X
        FS_DTYPE_COUNT
} fs_dtype;

const char *fs_dtype_name(fs_dtype t);
size_t fs_dtype_bytes(fs_dtype t);
/* FS_DTYPE_COUNT when safetensors' name is none we know. */
fs_dtype fs_dtype_from_file(const char *name);

typedef struct {
    void *at;
    fs_dtype dtype;
    int64_t rows, cols, stride;
} fs_view;

/* Columns [first, first + cols) of v; rows first ... of v. */
fs_view fs_view_cols(fs_view v, int64_t first, int64_t cols);
fs_view fs_view_rows(fs_view v, int64_t first, int64_t rows);
static inline float *fs_f32(fs_view v, int64_t row) { return (float *)v.at + row * v.stride; }
static inline int32_t *fs_i32(fs_view v, int64_t row) { return (int32_t *)v.at + row * v.stride; }

#endif
