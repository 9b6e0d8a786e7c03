#include "backends/cuda/driver_api.h"
#include "base/dynlib.h"
#include "base/knobs.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define GET_DRIVER "install the GPU's driver (nvidia-smi shows it), or use devices=\"cpu\""

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static fs_cu_api table;
static pid_t opened_by; /* 0: not yet */

static fs_status find_library(fs_library *out) {
    const char *named = fs_knob_text(FS_KNOB_LIBCUDA);
    const char *const only[] = { named, NULL };
    static const char *const places[] = {
        "libcuda.so.1",
        "libcuda.so",
        "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
        "/usr/lib64/libcuda.so.1",
        "/usr/local/nvidia/lib64/libcuda.so.1",
        "/usr/lib/wsl/lib/libcuda.so.1",
        NULL,
    };
    if (fs_library_open(out, *named ? only : places) == FS_OK) return FS_OK;
    return fs_fail(FS_DEVICE, "cuda: the driver's library was not found, tried %s; " GET_DRIVER, out->tried);
}

static fs_status fill_table(const fs_library *l, fs_cu_api *out) {
#define X(field, symbol, arguments)                                                                                    \
    {                                                                                                                  \
        void *found = fs_library_symbol(l, #symbol);                                                                   \
        if (!found)                                                                                                    \
            return fs_fail(FS_DEVICE, "cuda: the driver's library has no " #symbol                                     \
                                      "; a driver of CUDA 12 (525 or newer) is needed");                               \
        memcpy(&out->field, &found, sizeof found);                                                                     \
    }
#include "backends/cuda/driver_api.def"
#undef X
    return FS_OK;
}

static fs_status open_locked(void) {
    fs_library found;
    fs_cu_api api;
    if (opened_by == getpid()) return FS_OK;
    if (opened_by)
        return fs_fail(FS_DEVICE,
                       "cuda: this process was forked from %d after that had opened the GPUs, which a child "
                       "cannot share; open engines after the fork only",
                       (int)opened_by);
    FS_TRY(find_library(&found));
    FS_TRY(fill_table(&found, &api));
    FS_TRY(fs_cu_check(&api, api.init(0), "cuda", "starting the driver (cuInit)"));
    table = api, opened_by = getpid();
    return FS_OK;
}

fs_status fs_cu_open(const fs_cu_api **out) {
    pthread_mutex_lock(&lock);
    fs_status st = open_locked();
    pthread_mutex_unlock(&lock);
    *out = &table;
    return st;
}

fs_status fs_cu_check(const fs_cu_api *cu, int result, const char *device, const char *doing) {
    const char *name = NULL, *text = NULL;
    if (result == 0) return FS_OK;
    if (cu->error_name(result, &name) || !name) name = "an error the driver does not name";
    if (cu->error_string(result, &text) || !text) text = "no description";
    if (result == FS_CU_OUT_OF_MEMORY)
        return fs_fail(FS_NO_MEMORY, "%s: %s: the device has no memory left; lower FIRESTEEL_BATCH_TOKENS or free it",
                       device, doing);
    return fs_fail(FS_DEVICE,
                   "%s: %s failed: %s (%d: %s); where it stays, restart the executor and see the driver's log", device,
                   doing, name, result, text);
}
