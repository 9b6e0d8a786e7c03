#include "base/knobs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

const fs_knob_row fs_knobs[FS_KNOB_COUNT] = {
#define X(id, name, preset, meaning) { name, preset, meaning },
#include "base/knobs.def"
#undef X
};

const char *fs_knob_text(fs_knob knob) {
    char variable[64];
    snprintf(variable, sizeof variable, "FIRESTEEL_%s", fs_knobs[knob].name);
    const char *value = getenv(variable);
    return value && *value ? value : fs_knobs[knob].preset;
}

fs_status fs_knob_int(fs_knob knob, int64_t low, int64_t high, int64_t *out) {
    const char *text = fs_knob_text(knob);
    char *end = NULL;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || end == text || *end || value < low || value > high)
        return fs_fail(FS_CONFIG, "FIRESTEEL_%s is '%s'; it takes a whole number from %lld to %lld",
                       fs_knobs[knob].name, text, (long long)low, (long long)high);
    *out = value;
    return FS_OK;
}
