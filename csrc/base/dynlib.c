#define _GNU_SOURCE
#include "base/dynlib.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

fs_status fs_library_open(fs_library *out, const char *const *names) {
    memset(out, 0, sizeof *out);
    for (int i = 0; names[i]; i++) {
        size_t used = strlen(out->tried);
        out->handle = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (out->handle) return FS_OK;
        const char *why = dlerror();
        snprintf(out->tried + used, sizeof out->tried - used, "%s%s", used ? "; " : "", why ? why : names[i]);
    }
    return FS_DEVICE;
}

int fs_library_beside(char *out, size_t bytes, const char *path) {
    Dl_info self;
    if (!dladdr((void *)(uintptr_t)fs_library_beside, &self) || !self.dli_fname) return 0;
    const char *end = strrchr(self.dli_fname, '/');
    while (end && end > self.dli_fname && *--end != '/') continue; /* firesteel/_core.abi3.so: two parts back */
    if (!end || *end != '/') return 0;
    int length = snprintf(out, bytes, "%.*s/%s", (int)(end - self.dli_fname), self.dli_fname, path);
    return length > 0 && (size_t)length < bytes;
}

const char *fs_library_file(const void *symbol) {
    Dl_info found;
    return dladdr(symbol, &found) && found.dli_fname ? found.dli_fname : "";
}

void *fs_library_symbol(const fs_library *l, const char *name) { return l->handle ? dlsym(l->handle, name) : NULL; }
