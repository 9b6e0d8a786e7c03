#include "base/view.h"

#include <string.h>

static const struct {
    const char *name, *file_name;
    size_t bytes;
} dtypes[] = {
#define X(id, name, file_name, bytes) { name, file_name, bytes },
    FS_DTYPES(X)
#undef X
};

const char *fs_dtype_name(fs_dtype t) { return t < FS_DTYPE_COUNT ? dtypes[t].name : "unknown"; }

size_t fs_dtype_bytes(fs_dtype t) { return t < FS_DTYPE_COUNT ? dtypes[t].bytes : 0; }

fs_dtype fs_dtype_from_file(const char *name) {
    for (int t = 0; t < FS_DTYPE_COUNT; t++)
        if (!strcmp(dtypes[t].file_name, name)) return (fs_dtype)t;
    return FS_DTYPE_COUNT;
}

fs_view fs_view_cols(fs_view v, int64_t first, int64_t cols) {
    v.at = (char *)v.at + (size_t)first * fs_dtype_bytes(v.dtype);
    v.cols = cols;
    return v;
}

fs_view fs_view_rows(fs_view v, int64_t first, int64_t rows) {
    v.at = (char *)v.at + (size_t)(first * v.stride) * fs_dtype_bytes(v.dtype);
    v.rows = rows;
    return v;
}
