/* survey.h - what firesteel.plan() tells: the plan of a model on devices that nobody has opened, from its config alone.
 *
 * The same code as the engine's (choose.c, need.c) over outlines of devices: names, limits, how they pack weights. The
 * memory of a GPU is not known without opening it and has to be said. */
#ifndef FS_PLACEMENT_SURVEY_H
#define FS_PLACEMENT_SURVEY_H

#include "backends/devices.h"
#include "placement/plan.h"

typedef struct {
    const char *const *devices;
    int device_count;
    const size_t *memory; /* bytes of each device, or one for all; 0 or none: what the host has */
    int memory_count;
    const char *dtype, *parallel, *cpu_path; /* NULL: as fs_engine_options */
} fs_survey_options;

typedef struct {
    fs_settings set;
    fs_capacity capacity;
    int device_count;
    fs_device *devices[FS_DEVICES_MAX]; /* outlines */
    fs_need needs[FS_DEVICES_MAX];
    fs_plan plan;
    fs_choice choice;
    size_t whole; /* bytes of all weights on one device */
    double *stage_cost; /* [plan.stage_count] of each stage, in multiply-adds; owned */
} fs_survey;

/* c may have no tensors; then "auto" for dtype is fp32. Released with fs_survey_close whatever came out. */
fs_status fs_survey_open(fs_survey *out, const fs_checkpoint *c, const fs_survey_options *options);
void fs_survey_close(fs_survey *s); /* a zeroed one is fine */

#endif
