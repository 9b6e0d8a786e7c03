#include "backends/cpu/kernels.h"

#include <stdio.h>
#include <string.h>

const fs_kernels *const fs_cpu_paths[] = {
#if defined(__x86_64__)
    &fs_kernels_avx512,
    &fs_kernels_avx2,
#endif
    &fs_kernels_portable,
    NULL,
};

#if defined(__x86_64__)

#include <cpuid.h>

/* What the CPU can do, and what the operating system saves on a task switch (XCR0: 2 SSE, 4 AVX, 0xe0 the three parts
 * of AVX-512). */
typedef struct {
    int avx2, fma, avx512f;
    unsigned saved;
} features;

static features read_features(void) {
    features f = { 0 };
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
    f.fma = c >> 12 & 1;
    if (c >> 27 & 1) { /* OSXSAVE: xgetbv exists */
        unsigned high;
        __asm__ volatile("xgetbv" : "=a"(f.saved), "=d"(high) : "c"(0));
    }
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) f.avx2 = b >> 5 & 1, f.avx512f = b >> 16 & 1;
    return f;
}

const char *fs_cpu_path_missing(const fs_kernels *path) {
    if (path == &fs_kernels_portable) return NULL;
    features f = read_features();
    if (!f.avx2) return "this CPU has no AVX2";
    if (!f.fma) return "this CPU has no FMA";
    if ((f.saved & 6) != 6) return "the operating system does not save AVX registers";
    if (path == &fs_kernels_avx2) return NULL;
    if (!f.avx512f) return "this CPU has no AVX-512F";
    return (f.saved & 0xe6) == 0xe6 ? NULL : "the operating system does not save AVX-512 registers";
}

#else

const char *fs_cpu_path_missing(const fs_kernels *path) {
    (void)path;
    return NULL;
}

#endif

fs_status fs_cpu_path_check(const char *name) {
    char known[100] = "";
    if (!name || !*name) return FS_OK;
    for (int i = 0; fs_cpu_paths[i]; i++) {
        if (!strcmp(name, fs_cpu_paths[i]->name)) return FS_OK;
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", fs_cpu_paths[i]->name);
    }
    return fs_fail(FS_CONFIG, "there is no CPU path %.60s; choose one of %s, or leave it empty for the best", name,
                   known);
}

fs_status fs_cpu_path_find(const char *name, const fs_kernels **out) {
    int at = 0, named = name && *name;
    FS_TRY(fs_cpu_path_check(name));
    /* both searches end: the name is one of them, and the last of them runs everywhere */
    while (named ? strcmp(name, fs_cpu_paths[at]->name) != 0 : fs_cpu_path_missing(fs_cpu_paths[at]) != NULL) at++;
    const char *missing = fs_cpu_path_missing(fs_cpu_paths[at]);
    if (missing)
        return fs_fail(FS_DEVICE, "the CPU path %s cannot run here: %s; leave the path empty to get the best there is",
                       name, missing);
    *out = fs_cpu_paths[at];
    return FS_OK;
}
