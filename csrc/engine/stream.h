/* stream.h - layers that have no memory of their own: brought again for each pass of batches, into one slab or two.
 *
 *   a pass      each layer over all batches of the pass, one layer after the other:
 *
 *   layers      | 0 1 held | 2      | 3      | 4      | 5      |
 *   slab 0                 | uses 2 | 4 comes         | ...    | 2 comes, for the next pass
 *   slab 1                 | 3 comes| uses 3 | 5 comes| uses 5 | 3 comes
 *
 * Where device memory is the host's, layers come out of the checkpoint's files, packed as they are read; else out of
 * pinned host memory, which holds each as the device wants it since the stream was opened.
 *
 * Owner: a part. Threads: the part's driver takes and gives, a thread of the stream brings. */
#ifndef FS_ENGINE_STREAM_H
#define FS_ENGINE_STREAM_H

#include "models/load.h"

typedef struct fs_stream fs_stream;

#define FS_MOST_SLABS 2

/* Of `plan` the streamed layers, its last ones. slabs: 1 or 2. readers: threads that may read at once while it opens.
 * Nothing of c is needed afterwards. FS_CHECKPOINT, FS_NO_MEMORY, or what the device says. */
fs_status fs_stream_open(fs_stream **out, const fs_checkpoint *c, const fs_settings *set, const fs_shard_plan *plan,
                         fs_device *device, int slabs, int readers);
void fs_stream_close(fs_stream *s); /* NULL is fine; waits for what is enqueued with its layers */

/* The weights of the model's layer `layer`, once they are there. A pass takes all streamed layers in order, gives each
 * back before it takes the next, and begins anew with the first: after a failure, behind fs_stream_restart.
 * FS_CHECKPOINT when a file can no longer be read as it was; the next pass tries again. */
fs_status fs_stream_take(fs_stream *s, int layer, void **weights);
/* What uses the layer is enqueued on q. */
fs_status fs_stream_give(fs_stream *s, int layer, fs_queue *q);
/* The pass ends early; what it enqueued is on q. */
void fs_stream_restart(fs_stream *s, fs_queue *q);

/* Bytes that come for the layer. */
size_t fs_stream_layer_bytes(const fs_stream *s, int layer);
#endif
