/* cuda.h - the inside of the CUDA backend: a device is a primary context, its kernels and one stream for loading.
 *
 *   driver thread --op--> queue (a stream) --launch--> a kernel (kernels/args.h: one struct each)
 *
 * Every call may come from any thread, so each makes the device's context current first (`fs_cuda_enter`); that is a
 * store when it is already. A failure inside a kernel breaks the context: the driver answers every later call with it,
 * so it comes out of the next event_wait and of all that follow, as the contract asks.
 *
 * STAGING. Weights pass through a ring of pinned buffers. A thread that fills takes the one sent longest ago, waits until
 * its copy is over, converts into it, sends it and puts it back; only taking and sending are under the lock, so several
 * threads convert while several copies are on their way:
 *
 *     buffer 0   |fill|--copy--|           |fill|--copy--|       an event a buffer says when it may be filled again;
 *     buffer 1    |fill|   --copy--|        |fill|   --copy--|   more threads than buffers wait for one to be sent
 *     buffer 2         |fill|      --copy--|     |fill| ...      all copies are in one stream */
#ifndef FS_CUDA_CUDA_H
#define FS_CUDA_CUDA_H

#include "backends/backend.h"
#include "backends/cuda/cublaslt_api.h"
#include "backends/cuda/driver_api.h"
#include "backends/ops.h"

#include <pthread.h>

typedef enum {
#define X(name, args, threads) FS_CUDA_##name,
#include "backends/cuda/kernels/kernels.def"
#undef X
    FS_CUDA_KERNEL_COUNT
} fs_cuda_kernel;

typedef struct fs_cuda_plans fs_cuda_plans; /* plans.c */

/* The loader's pieces are of 1 MB; each of four readers fills one buffer while another is copied. */
enum { FS_CUDA_BUFFERS = 8, FS_CUDA_BUFFER_BYTES = 1 << 20 };

typedef struct {
    fs_memory memory;
    fs_cu_event sent; /* behind the last copy out of it */
} fs_cuda_buffer;

typedef struct {
    fs_device head;
    const fs_cu_api *cu;
    int ordinal; /* as the driver numbers them; also its device handle's argument */
    int handle, retained;
    fs_cu_context context;
    fs_cu_module module;
    fs_cu_function kernels[FS_CUDA_KERNEL_COUNT];
    int has_bf16;
    int poison; /* test mode */

    const fs_lt_api *lt;  /* NULL: own kernels only */
    fs_cuda_plans *plans; /* NULL: none made; the driver thread's */

    fs_cu_stream load_stream;
    fs_cuda_buffer buffers[FS_CUDA_BUFFERS];
    pthread_mutex_t loading; /* of the ring: never held while a thread waits for a copy or converts */
    pthread_cond_t sent;     /* a buffer is back in the ring */
    fs_cuda_buffer *ring[FS_CUDA_BUFFERS]; /* in nobody's hands, in the order in which they were sent */
    int first, in_ring;
} fs_cuda_device;

static inline fs_cuda_device *fs_cuda(fs_device *d) { return (fs_cuda_device *)d; }

struct fs_queue {
    fs_cuda_device *device;
    fs_cu_stream stream;
    fs_comm *comm; /* of the collectives in it or before it, or NULL: waits then have a deadline */
};

/* The device's context for this thread. */
fs_status fs_cuda_enter(fs_cuda_device *d);
/* fs_cu_check with the device's name. */
fs_status fs_cuda_check(fs_cuda_device *d, int result, const char *doing);

typedef struct {
    unsigned x, y, z;
} fs_cuda_grid;

/* kernels.c. A kernel's image for the device, and launches: `args` is its struct of args.h. */
fs_status fs_cuda_kernels_load(fs_cuda_device *d);
fs_status fs_cuda_launch(fs_queue *q, fs_cuda_kernel kernel, fs_cuda_grid grid, const void *args);

/* queue.c, as backend.h says */
fs_status fs_cuda_queue_new(fs_device *d, fs_queue **out);
void fs_cuda_queue_free(fs_queue *q);
fs_status fs_cuda_event_new(fs_device *d, fs_event **out);
void fs_cuda_event_free(fs_event *e);
fs_status fs_cuda_event_record(fs_event *e, fs_queue *q);
fs_status fs_cuda_queue_wait(fs_queue *q, fs_event *e);
fs_status fs_cuda_event_wait(fs_event *e);

/* weights.c, as backend.h says; and the staging it goes through */
fs_status fs_cuda_staging_open(fs_cuda_device *d);
void fs_cuda_staging_close(fs_cuda_device *d);
/* Two buffers for this thread, idle, until it lets go of them; it must have waited for what it enqueued with them. One
 * thread at a time holds two: the device's driver. */
fs_status fs_cuda_staging_hold(fs_cuda_device *d, fs_cuda_buffer *out[2]);
void fs_cuda_staging_let_go(fs_cuda_device *d, fs_cuda_buffer *const held[2]);
size_t fs_cuda_weight_bytes(fs_device *d, const fs_weight_desc *desc);
fs_status fs_cuda_weight_begin(fs_device *d, fs_weight *w, const fs_weight_desc *desc, void *slab_at);
fs_status fs_cuda_weight_fill(fs_device *d, fs_weight *w, int64_t row, int64_t rows, const void *from,
                              size_t stride_bytes, fs_dtype from_dtype);
fs_status fs_cuda_weight_end(fs_device *d, fs_weight *w);

/* collectives.c, as backend.h and ops.h say */
fs_status fs_cuda_comm_open(fs_comm **out, fs_device *const ranks[], int size, double deadline_seconds);
void fs_cuda_comm_close(fs_comm *c);
fs_status fs_cuda_all_reduce(fs_step *s, fs_view x);
/* event_wait behind a collective of c. */
fs_status fs_cuda_comm_wait(fs_comm *c, fs_cuda_device *d, fs_cu_event event);
/* A call of d has failed with `st`, this thread's last failure: its groups are over, for the other ranks would wait. */
void fs_cuda_comms_fail(fs_cuda_device *d, fs_status st);

/* plans.c: ends what plans.h has made */
void fs_cuda_plans_close(fs_cuda_device *d);

/* ops.c, ops_prepare.c fill the tables */
extern const fs_ops fs_cuda_ops, fs_cuda_prepare;

#endif
