/* load.h - from a checkpoint to the weights of one shard of one stage, on one device.
 *
 * All weights of a layer lie in one slab (and all weights outside the layers in another), so that a layer can be moved
 * or streamed as a whole later. Tensors are read in pieces, in the order of the files, and packed by the backend as they
 * come: never a second full copy (reading.h). Threads: one loads a shard, with as many readers as it is told; several
 * shards at a time. */
#ifndef FS_MODELS_LOAD_H
#define FS_MODELS_LOAD_H

#include "models/arch.h"

/* Every tensor has its place and every place its tensor, with the right shape and a dtype we can read. All missing,
 * extra and misshapen tensors are named in one sentence, with the nearest architecture where the names fit it best. */
fs_status fs_weights_check(const fs_checkpoint *c, const fs_settings *set);

typedef struct {
    int first_layer, last_layer; /* [first, last) */
    int rank, ranks;             /* of the tensor group */
    int streamed;                /* of the layers the last ones, which have no place here (engine/stream.h) */
} fs_shard_plan;

typedef struct {
    fs_shard_plan plan;
    fs_device *device;
    fs_memory ends_slab, *layer_slabs;
    void *ends;    /* fs_ends_bytes of fs_weight: those that live with its layers, the others zeroed */
    void **layers; /* [last - first - streamed], each its kind's bytes; layers of the same weights are one */
} fs_shard;

/* Whether the settings can be cut `ranks` ways; FS_CONFIG says which number does not divide. */
fs_status fs_shard_check(const fs_settings *set, int ranks);
/* Bytes of weights the shard takes on the device; nothing is allocated. */
size_t fs_shard_bytes(const fs_settings *set, const fs_shard_plan *plan, fs_device *device);
/* Bytes of a slab that any of the shard's streamed layers fits into; 0 where none is. */
size_t fs_shard_slab_bytes(const fs_settings *set, const fs_shard_plan *plan, fs_device *device);
/* The checkpoint must have passed fs_checkpoint_check and fs_weights_check. A file that changed since is an error.
 * readers >= 1: threads that read, this one among them. */
fs_status fs_shard_load(fs_shard *out, const fs_checkpoint *c, const fs_settings *set, const fs_shard_plan *plan,
                        fs_device *device, int readers);
/* As fs_shard_load with slabs allocated and no file read: what the measure backend plans with. */
fs_status fs_shard_shape(fs_shard *out, const fs_settings *set, const fs_shard_plan *plan, fs_device *device);
void fs_shard_release(fs_shard *s); /* a zeroed one is fine */

#endif
