/* fallback.c - ops composed of ops, for backends that leave them empty. Same formula, more memory traffic. */
#include "backends/ops.h"

static fs_status gather_then_norm(fs_step *s, fs_view y, const fs_gather *tables, int n, const fs_norm *norm) {
    FS_TRY(s->ops->gather(s, y, tables, n));
    return s->ops->layer_norm(s, y, y, norm);
}

fs_ops fs_ops_complete(const fs_ops *ops) {
    fs_ops whole = *ops;
    if (!whole.gather_norm) whole.gather_norm = gather_then_norm;
    return whole;
}
