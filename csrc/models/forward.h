/* forward.h - a stage's part of a step: what comes in, its layers, and what stands between the kinds of layers. */
#ifndef FS_MODELS_FORWARD_H
#define FS_MODELS_FORWARD_H

#include "models/load.h"

/* What stands before the shard's first layer. The carry was fetched from the stage before unless that is layer 0. */
fs_status fs_forward_begin(fs_step *s, const fs_settings *set, const void *ends, int first_layer, fs_carry *carry);
/* A layer, and where it is the last of its kind what stands behind those. */
fs_status fs_forward_layer(fs_step *s, const fs_settings *set, const void *ends, int layer, const void *weights,
                           fs_carry *carry);
/* Both, for all layers of a shard that holds each of its own. */
fs_status fs_forward(fs_step *s, const fs_settings *set, const fs_shard *shard, fs_carry *carry);
/* Keeps a carry of the shapes and types that it has ahead of `layer`: what the stage before is copied to. */
fs_status fs_carry_push(fs_step *s, const fs_settings *set, int layer, fs_carry *carry);

#endif
