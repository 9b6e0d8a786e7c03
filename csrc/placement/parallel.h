/* parallel.h - what the user writes for parallel=, as numbers. Pure.
 *
 *   "auto"                   replicas where the model fits on one device, else as few stages as it takes
 *   "replicate"              the whole model on each device
 *   "split"                  its layers cut into as many stages as there are devices
 *   "tensor"                 every layer shared by all devices; the degree is part of the bits, so auto never picks it
 *   "replicate=2,split=2"    combinations; the numbers multiply to the number of devices, one may be left to follow
 *   "stream"                 as many layers are held as there is memory for, the others come again for each pass of many
 *                            rows; alone over several devices: in stages. Not beside tensor groups
 *
 * Of replicas, stages and ranks the last changes first over the devices as they were named:
 *
 *   replicate=2,split=2 of a b c d      a -> b     c -> d           split=2,tensor=2      (a b) -> (c d) */
#ifndef FS_PLACEMENT_PARALLEL_H
#define FS_PLACEMENT_PARALLEL_H

#include "base/status.h"

#include <stddef.h>

typedef struct {
    int replicate, split, tensor; /* 1 where not named */
    int stream;                   /* layers that find no room are streamed */
    int is_auto;                  /* then the planner decides */
} fs_parallel;

/* NULL or "": "auto". FS_CONFIG for a word that is none or named twice, numbers that are none or do not multiply to
 * `devices`; the sentence tells what would work. devices 0: not known yet, so the text alone is checked, and of *out only
 * stream and is_auto are told. */
fs_status fs_parallel_read(fs_parallel *out, const char *text, int devices);

enum { FS_PARALLEL_TEXT = 64 };
/* As one would write it: "split=2,tensor=2", "replicate" where nothing else is more than 1. */
const char *fs_parallel_text(const fs_parallel *p, char out[FS_PARALLEL_TEXT]);

#endif
