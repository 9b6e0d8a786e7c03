/* devices.h - what the user writes for devices=, as backends and how to open them.
 *
 *   "auto"                   as "cuda" where there is a GPU, else "cpu"; never the CPU because a GPU would not open
 *   "cpu"                    all of this process's cores as one device
 *   "cpu:0", "cpu:1", ...    the cores cut into as many devices as are named; the numbers run from 0 without a gap
 *   "cuda"                   all GPUs of this process
 *   "cuda:0", "cuda:1", ...  GPUs as the driver numbers them, in any choice and order
 *
 * Opens no device. "auto" looks for device files (fs_backend.count); the rest is pure but for the text of an error. */
#ifndef FS_BACKENDS_DEVICES_H
#define FS_BACKENDS_DEVICES_H

#include "backends/backend.h"

#define FS_DEVICES_MAX 64

typedef struct {
    const fs_backend *backend;
    fs_device_options options;
} fs_device_choice;

/* What `names` says by itself, whatever machine reads it. *count is 0 where the machine decides how many there are: "cuda",
 * and "auto", of which not even the kind is known (backend NULL). The rest is as in fs_devices_resolve. */
fs_status fs_devices_read(const char *const *names, int n, const fs_device_options *common, fs_device_choice *out,
                          int *count);

/* What holds for all of them: threads is cut over the devices, each getting at least one (0: the host's cores);
 * max_memory bounds each; path is kept as a pointer. out has room for FS_DEVICES_MAX; *count is what `names` asks for,
 * in its order. FS_CONFIG for a name that is none, a repetition, a gap, or two kinds in one list. */
fs_status fs_devices_resolve(const char *const *names, int n, const fs_device_options *common, fs_device_choice *out,
                             int *count);

#endif
