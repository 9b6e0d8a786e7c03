#include "backends/cuda/nccl_api.h"
#include "base/dynlib.h"
#include "base/knobs.h"

#include <pthread.h>
#include <string.h>

#define GET_NCCL "install the wheel nvidia-nccl-cu12 (or -cu13), or cut the model by layers"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static fs_nccl_api table;
static int opened;

static fs_status symbol(const fs_library *l, const char *name, void *to) {
    void *found = fs_library_symbol(l, name);
    if (!found) return fs_fail(FS_DEVICE, "cuda: the NCCL library has no %s; version 2.18 or newer is needed", name);
    memcpy(to, &found, sizeof found);
    return FS_OK;
}

static fs_status open_locked(void) {
    char wheel[512];
    const int beside = fs_library_beside(wheel, sizeof wheel, "nvidia/nccl/lib/libnccl.so.2");
    const char *const places[] = { beside ? wheel : "libnccl.so.2", "libnccl.so.2", "libnccl.so", NULL };
    const char *named = fs_knob_text(FS_KNOB_LIBNCCL);
    const char *const only[] = { named, NULL };
    fs_library found;
    fs_nccl_api api;
    if (opened) return FS_OK;
    if (fs_library_open(&found, *named ? only : places) != FS_OK)
        return fs_fail(FS_DEVICE,
                       "cuda: the NCCL library, which tensor groups need, was not found, tried %s; " GET_NCCL,
                       found.tried);
#define X(field, name, arguments) FS_TRY(symbol(&found, #name, &api.field));
#include "backends/cuda/nccl_api.def"
#undef X
    FS_TRY(symbol(&found, "ncclGetErrorString", &api.error_string));
    table = api, opened = 1;
    return FS_OK;
}

fs_status fs_nccl_open(const fs_nccl_api **out) {
    pthread_mutex_lock(&lock);
    fs_status st = open_locked();
    pthread_mutex_unlock(&lock);
    *out = &table;
    return st;
}
