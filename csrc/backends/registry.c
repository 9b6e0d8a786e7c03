#include "backends/backend.h"

#include <stdio.h>
#include <string.h>

const fs_backend *const fs_backends[] = { &fs_cpu_backend, &fs_cuda_backend, &fs_measure_backend, NULL };

fs_status fs_backend_find(const char *name, const fs_backend **out) {
    char known[256] = "";
    for (int i = 0; fs_backends[i]; i++) {
        if (!strcmp(fs_backends[i]->name, name)) {
            *out = fs_backends[i];
            return FS_OK;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", fs_backends[i]->name);
    }
    return fs_fail(FS_CONFIG, "'%s' is no backend; there are %s", name, known);
}
