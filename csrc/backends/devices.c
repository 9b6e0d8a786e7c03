#include "backends/devices.h"

#include <string.h>

#define WRITE "write \"auto\", \"cpu\", \"cuda\" or a list like \"cpu:0\", \"cpu:1\" or \"cuda:0\", \"cuda:1\""

/* "cpu:1" -> kind "cpu", index 1; no index is 0. */
static fs_status parse(const char *name, char kind[16], int *index) {
    const char *colon = strchr(name, ':');
    size_t length = colon ? (size_t)(colon - name) : strlen(name);
    *index = 0;
    if (length == 0 || length >= 16) goto bad;
    memcpy(kind, name, length);
    kind[length] = 0;
    if (!colon) return FS_OK;
    const char *digit = colon + 1;
    if (!*digit || strlen(digit) > 4) goto bad;
    for (; *digit; digit++) {
        if (*digit < '0' || *digit > '9') goto bad;
        *index = *index * 10 + (*digit - '0');
    }
    return FS_OK;
bad:
    return fs_fail(FS_CONFIG, "devices: '%.60s' is no device; " WRITE, name);
}

static fs_status find(const char *name, const char *kind, const fs_backend **out) {
    /* measure computes nothing, so it is no place for a user's rows */
    if (!strcmp(kind, fs_measure_backend.name) || fs_backend_find(kind, out) != FS_OK)
        return fs_fail(FS_CONFIG, "devices: '%.60s' is of no known kind; " WRITE, name);
    return FS_OK;
}

/* Part `index` of a whole cut into `of`. */
static int part(int whole, int index, int of) {
    int share = whole / of + (index < whole % of);
    return share > 0 ? share : 1;
}

static fs_status read_one(const char *name, int n, fs_device_choice *out) {
    char kind[16];
    int index;
    FS_TRY(parse(name, kind, &index));
    FS_TRY(find(name, kind, &out->backend));
    if (out->backend == &fs_cpu_backend && index >= n)
        return fs_fail(FS_CONFIG,
                       "devices: '%s' lies beyond the %d named: the cores are cut into as many devices as are named, "
                       "cpu:0 to cpu:%d; name its siblings too, or \"cpu\" for all cores",
                       name, n, n - 1);
    out->options.index = index;
    return FS_OK;
}

fs_status fs_devices_read(const char *const *names, int n, const fs_device_options *common, fs_device_choice *out,
                          int *count) {
    if (n < 1 || n > FS_DEVICES_MAX)
        return fs_fail(FS_CONFIG, "devices names %d devices; name 1 to %d, or \"auto\"", n, FS_DEVICES_MAX);
    *count = n;
    for (int i = 0; i < n; i++) {
        int is_auto = !strcmp(names[i], "auto"), alone = is_auto || !strcmp(names[i], "cuda");
        if (n > 1 && alone)
            return fs_fail(FS_CONFIG, "devices: \"%s\" stands alone; here it is one of %d names", names[i], n);
        out[i] = (fs_device_choice){ .options = *common };
        if (alone) *count = 0;
        if (!is_auto) FS_TRY(read_one(names[i], n, &out[i]));
        if (out[i].backend != out[0].backend)
            return fs_fail(FS_CONFIG, "devices: '%s' and '%s' are of two kinds; devices of one engine are of one kind",
                           names[0], names[i]);
        for (int k = 0; k < i; k++)
            if (out[k].options.index == out[i].options.index)
                return fs_fail(FS_CONFIG, "devices: '%s' and '%s' are the same device; name each once", names[k],
                               names[i]);
        out[i].options.of = n;
        if (common->threads) out[i].options.threads = part(common->threads, out[i].options.index, n);
    }
    return FS_OK;
}

/* "cuda" alone: all GPUs. Where there is none, opening the first one says what was tried. */
static void all_gpus(fs_device_choice *out, int *count) {
    int found = fs_cuda_backend.count();
    *count = found < 1 ? 1 : found < FS_DEVICES_MAX ? found : FS_DEVICES_MAX;
    for (int i = 0; i < *count; i++) {
        out[i] = out[0];
        out[i].options.index = i;
        out[i].options.of = *count;
    }
}

fs_status fs_devices_resolve(const char *const *names, int n, const fs_device_options *common, fs_device_choice *out,
                             int *count) {
    FS_TRY(fs_devices_read(names, n, common, out, count));
    if (*count) return FS_OK;
    *count = 1;
    if (!out->backend) out->backend = fs_cuda_backend.count() > 0 ? &fs_cuda_backend : &fs_cpu_backend;
    if (out->backend == &fs_cuda_backend) all_gpus(out, count);
    return FS_OK;
}
