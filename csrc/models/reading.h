/* reading.h - the weights of a shard, out of the checkpoint's files into slabs, by one or several readers.
 *
 * A slab is all weights of a layer, or all outside the layers. Its slots (fused tensors) are what readers share out, in
 * the order of the files; each reader has its own open file and piece of memory:
 *
 *   slots   | 0 | 1 | 2 | 3 | 4 | 5 | ...              fill: the backend packs or copies a piece
 *   reader 0  0: |read|fill|read|fill|  2: |read|fill| ...
 *   reader 1  1: |read|fill|  3: |read|fill|read|fill| ...
 *
 * Of several failures the one of the earliest slot is told: the sentence that a single reader would have met.
 * Owner: whoever opened it; what it was opened with is borrowed until it is closed. Threads: one uses a reading at a
 * time; those that it starts have ended when a call returns, and with one reader there are none. */
#ifndef FS_MODELS_READING_H
#define FS_MODELS_READING_H

#include "models/load.h"

typedef struct {
    int layer;   /* or FS_OUTSIDE */
    void *slots; /* its kind's bytes (fs_ends_bytes) of fs_weight, which are set */
    void *at;    /* fs_slab_bytes of the device's memory */
} fs_slab;

typedef struct fs_reader fs_reader;

typedef struct {
    const fs_checkpoint *c;
    const fs_settings *set;
    const fs_shard_plan *plan;
    fs_device *device;
    fs_tensor_names names;
    fs_reader *readers;
    int reader_count;
} fs_reading;

size_t fs_slab_bytes(const fs_settings *set, const fs_shard_plan *plan, int layer, fs_device *device);
/* Sets the slots as if the slab had been read; no file is. */
fs_status fs_slab_shape(const fs_slab *slab, const fs_settings *set, const fs_shard_plan *plan, fs_device *device);

/* readers >= 1. Opens no file yet. FS_NO_MEMORY. */
fs_status fs_reading_open(fs_reading *out, const fs_checkpoint *c, const fs_settings *set, const fs_shard_plan *plan,
                          fs_device *device, int readers);
void fs_reading_close(fs_reading *r); /* a zeroed one is fine */
/* Reads these slabs; may be called again, with others or with the same layers elsewhere. FS_CHECKPOINT: a file has
 * changed or lacks a tensor; FS_NO_MEMORY; what the backend says. After a failure the slabs hold anything, and nothing
 * is written to them any more. */
fs_status fs_reading_slabs(fs_reading *r, const fs_slab slabs[], int count);

#endif
