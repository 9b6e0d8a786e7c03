/* options.c - what is wrong with an engine's options on every machine, told without a device.
 *
 * Whoever reads an option when an engine opens reads it here too, so each fault has one sentence. */
#include "backends/devices.h"
#include "engine/engine.h"

#include <stdio.h>

/* What each kind of device takes. Of "auto" the kind is not known, but a path that a CPU has not is none on a GPU. */
static fs_status check_devices(const fs_device_choice *choices, int count, const fs_settings *set) {
    char name[32];
    if (!choices->backend) return fs_cpu_backend.check(&(fs_device_options){ .path = choices->options.path });
    for (int i = 0; i < (count ? count : 1); i++) FS_TRY(choices[i].backend->check(&choices[i].options));
    snprintf(name, sizeof name, "%s:%d", choices->backend->name, choices->options.index);
    return fs_settings_check_dtype(set, choices->backend, name);
}

fs_status fs_engine_check(const fs_engine_options *o, const fs_checkpoint *c) {
    static const char *const preset[] = { "auto" };
    const fs_device_options common = { .threads = o->threads, .path = o->cpu_path };
    fs_device_choice choices[FS_DEVICES_MAX];
    fs_settings set = { 0 };
    fs_parallel parallel;
    int count;
    FS_TRY(c ? fs_settings_read(&set, c, o->dtype) : fs_settings_read_dtype(&set, o->dtype));
    FS_TRY(
        fs_devices_read(o->devices ? o->devices : preset, o->devices ? o->device_count : 1, &common, choices, &count));
    FS_TRY(check_devices(choices, count, &set));
    FS_TRY(fs_parallel_read(&parallel, o->parallel, count));
    return c && count && !parallel.is_auto ? fs_plan_check(&parallel, &set) : FS_OK;
}
