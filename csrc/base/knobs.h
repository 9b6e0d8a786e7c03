/* knobs.h - settings from the environment. Read when an engine opens, never at import. */
#ifndef FS_BASE_KNOBS_H
#define FS_BASE_KNOBS_H

#include "base/status.h"

#include <stdint.h>

typedef enum {
#define X(id, name, preset, meaning) FS_KNOB_##id,
#include "base/knobs.def"
#undef X
    FS_KNOB_COUNT
} fs_knob;

typedef struct {
    const char *name, *preset, *meaning;
} fs_knob_row;

extern const fs_knob_row fs_knobs[FS_KNOB_COUNT];

/* The environment's FIRESTEEL_<name>, else the default. */
const char *fs_knob_text(fs_knob knob);
/* The same as a number within [low, high]; FS_CONFIG names the variable, the value and the range. */
fs_status fs_knob_int(fs_knob knob, int64_t low, int64_t high, int64_t *out);

#endif
