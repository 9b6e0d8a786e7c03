#include "backends/cuda/cublaslt_api.h"
#include "base/dynlib.h"
#include "base/knobs.h"

#include <pthread.h>
#include <string.h>

#define GO_WITHOUT "install firesteel[cuda12] (or [cuda13]), or set FIRESTEEL_LIBCUBLASLT=off to do without"

enum { OLDEST = 12, NEWEST = 13 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static fs_lt_api table;
static int opened;

static int is_off(void) { return !strcmp(fs_knob_text(FS_KNOB_LIBCUBLASLT), "off"); }

static fs_status symbol(const fs_library *l, const char *name, void *to) {
    void *found = fs_library_symbol(l, name);
    if (!found)
        return fs_fail(FS_DEVICE, "cuda: the cuBLASLt library has no %s; one of CUDA 12 or 13 is needed; " GO_WITHOUT,
                       name);
    memcpy(to, &found, sizeof found);
    return FS_OK;
}

static fs_status fill_table(const fs_library *l, fs_lt_api *api) {
#define X(field, name, arguments) FS_TRY(symbol(l, #name, &api->field));
#include "backends/cuda/cublaslt_api.def"
#undef X
    FS_TRY(symbol(l, "cublasLtGetVersion", &api->version));
    FS_TRY(symbol(l, "cublasLtGetStatusName", &api->status_name));
    FS_TRY(symbol(l, "cublasLtGetStatusString", &api->status_string));
    void *there = fs_library_symbol(l, "cublasLtGetVersion");
    api->file = fs_library_file(there);
    const size_t major = api->version() / 10000;
    if (major < OLDEST || major > NEWEST)
        return fs_fail(FS_DEVICE,
                       "cuda: the cuBLASLt library is of CUDA %zu; one of CUDA %d or %d is needed; " GO_WITHOUT, major,
                       OLDEST, NEWEST);
    return FS_OK;
}

static fs_status find_library(fs_library *out) {
    char twelve[512], thirteen[512];
    const int has_12 = fs_library_beside(twelve, sizeof twelve, "nvidia/cublas/lib/libcublasLt.so.12");
    const int has_13 = fs_library_beside(thirteen, sizeof thirteen, "nvidia/cu13/lib/libcublasLt.so.13");
    const char *const places[] = { has_12 ? twelve : "libcublasLt.so.12", has_13 ? thirteen : "libcublasLt.so.13",
                                   "libcublasLt.so.12", "libcublasLt.so.13", NULL };
    const char *named = fs_knob_text(FS_KNOB_LIBCUBLASLT);
    const char *const only[] = { named, NULL };
    if (fs_library_open(out, *named ? only : places) == FS_OK) return FS_OK;
    return fs_fail(FS_DEVICE, "cuda: the cuBLASLt library was not found, tried %s; " GO_WITHOUT, out->tried);
}

static fs_status open_locked(void) {
    fs_library found;
    fs_lt_api api;
    if (opened) return FS_OK;
    FS_TRY(find_library(&found));
    FS_TRY(fill_table(&found, &api));
    table = api, opened = 1;
    return FS_OK;
}

fs_status fs_lt_find(const fs_lt_api **out) {
    if (is_off())
        return fs_fail(FS_DEVICE, "cuda: FIRESTEEL_LIBCUBLASLT=off keeps cuBLASLt out; unset it to have it used");
    pthread_mutex_lock(&lock);
    fs_status st = open_locked();
    pthread_mutex_unlock(&lock);
    *out = &table;
    return st;
}

fs_status fs_lt_open(const fs_lt_api **out) {
    const fs_lt_api *found;
    *out = NULL;
    if (is_off()) return FS_OK;
    fs_status st = fs_lt_find(&found);
    if (st == FS_OK) *out = found;
    return *fs_knob_text(FS_KNOB_LIBCUBLASLT) ? st : FS_OK;
}
