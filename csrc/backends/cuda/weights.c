/* weights.c - how weights lie in device memory, and how file rows get there.
 *
 *     MATRIX, TABLE    rows as they are, [N][K], in the type of the computation
 *     VECTOR           K floats
 *
 * Rows come from a file's bytes, at any address and in any float type: the host converts them into a buffer of the
 * staging (cuda.h), a copy takes them from there. */
#include "backends/cuda/cuda.h"
#include "backends/shapes.h"
#include "base/half.h"

#include <string.h>

static fs_dtype type_of(const fs_weight_desc *desc) { return desc->kind == FS_VECTOR ? FS_F32 : desc->dtype; }

static size_t content_bytes(const fs_weight_desc *desc) {
    return (size_t)(desc->N * desc->K) * fs_dtype_bytes(type_of(desc));
}

size_t fs_cuda_weight_bytes(fs_device *d, const fs_weight_desc *desc) {
    (void)d;
    return (content_bytes(desc) + 255) & ~(size_t)255; /* where one begins, vectors of 16 bytes can be loaded */
}

fs_status fs_cuda_weight_begin(fs_device *d, fs_weight *w, const fs_weight_desc *desc, void *slab_at) {
    FS_TRY(fs_check_weight(d, desc));
    *w = (fs_weight){ .desc = *desc, .at = slab_at };
    return FS_OK;
}

/* Under the lock, but for the first time. */
static void put_back(fs_cuda_device *d, fs_cuda_buffer *b) { d->ring[(d->first + d->in_ring++) % FS_CUDA_BUFFERS] = b; }

fs_status fs_cuda_staging_open(fs_cuda_device *d) {
    FS_TRY(fs_cuda_check(d, d->cu->stream_create(&d->load_stream, FS_CU_STREAM_NON_BLOCKING), "making a stream"));
    for (int i = 0; i < FS_CUDA_BUFFERS; i++) {
        fs_cuda_buffer *b = &d->buffers[i];
        FS_TRY(d->head.backend->alloc_pinned(&d->head, FS_STAGING, FS_CUDA_BUFFER_BYTES, &b->memory));
        FS_TRY(fs_cuda_check(d, d->cu->event_create(&b->sent, FS_CU_EVENT_QUIET), "making an event"));
        put_back(d, b);
    }
    return FS_OK;
}

void fs_cuda_staging_close(fs_cuda_device *d) {
    if (d->load_stream) d->cu->stream_synchronize(d->load_stream);
    for (int i = 0; i < FS_CUDA_BUFFERS; i++) {
        if (d->buffers[i].sent) d->cu->event_destroy(d->buffers[i].sent);
        d->head.backend->release(&d->head, &d->buffers[i].memory);
    }
    if (d->load_stream) d->cu->stream_destroy(d->load_stream);
}

/* The buffer sent longest ago. Who fills one never waits for another, so one always comes back. */
static fs_cuda_buffer *take_buffer(fs_cuda_device *d) {
    pthread_mutex_lock(&d->loading);
    while (d->in_ring == 0) pthread_cond_wait(&d->sent, &d->loading);
    fs_cuda_buffer *b = d->ring[d->first];
    d->first = (d->first + 1) % FS_CUDA_BUFFERS;
    d->in_ring--;
    pthread_mutex_unlock(&d->loading);
    return b;
}

static fs_status wait_for_copy(fs_cuda_device *d, const fs_cuda_buffer *b) {
    return fs_cuda_check(d, d->cu->event_synchronize(b->sent), "copying weights");
}

static fs_status send_buffer(fs_cuda_device *d, fs_cuda_buffer *b, void *to, size_t bytes) {
    const fs_cu_address at = (fs_cu_address)(uintptr_t)to;
    FS_TRY(fs_cuda_check(d, d->cu->upload(at, b->memory.at, bytes, d->load_stream), "copying weights"));
    fs_status st = fs_cuda_check(d, d->cu->event_record(b->sent, d->load_stream), "copying weights");
    if (st != FS_OK) d->cu->stream_synchronize(d->load_stream); /* no event tells when the copy is over */
    return st;
}

fs_status fs_cuda_staging_hold(fs_cuda_device *d, fs_cuda_buffer *out[2]) {
    fs_status st = FS_OK;
    for (int i = 0; i < 2; i++) out[i] = take_buffer(d);
    for (int i = 0; i < 2 && st == FS_OK; i++) st = wait_for_copy(d, out[i]);
    if (st != FS_OK) fs_cuda_staging_let_go(d, out);
    return st;
}

void fs_cuda_staging_let_go(fs_cuda_device *d, fs_cuda_buffer *const held[2]) {
    pthread_mutex_lock(&d->loading);
    for (int i = 0; i < 2; i++) put_back(d, held[i]);
    pthread_cond_broadcast(&d->sent);
    pthread_mutex_unlock(&d->loading);
}

/* The buffer's first bytes, to `to` on the device, unless `st` is a failure; it goes back in any case. */
static fs_status give_buffer(fs_cuda_device *d, fs_cuda_buffer *b, fs_status st, void *to, size_t bytes) {
    pthread_mutex_lock(&d->loading);
    if (st == FS_OK) st = send_buffer(d, b, to, bytes);
    put_back(d, b);
    pthread_cond_signal(&d->sent);
    pthread_mutex_unlock(&d->loading);
    return st;
}

/* n numbers in another type; equal types are copied as they are, whatever they hold. */
static void convert(void *to, fs_dtype to_type, const char *from, fs_dtype from_type, int64_t n) {
    enum { PIECE = 256 };
    float piece[PIECE];
    const size_t to_bytes = fs_dtype_bytes(to_type), from_bytes = fs_dtype_bytes(from_type);
    if (to_type == from_type) {
        memcpy(to, from, (size_t)n * to_bytes);
        return;
    }
    for (int64_t at = 0, take; at < n; at += take) {
        take = n - at < PIECE ? n - at : PIECE;
        fs_to_f32(piece, from + (size_t)at * from_bytes, from_type, take);
        fs_from_f32((char *)to + (size_t)at * to_bytes, piece, to_type, take);
    }
}

typedef struct {
    const char *at;
    size_t stride_bytes;
    fs_dtype type;
} file_rows;

/* A block of the weight that lies together there, through one buffer. */
static fs_status stage_block(fs_cuda_device *d, char *to, fs_dtype type, int64_t rows, int64_t cols, file_rows from) {
    const size_t item = fs_dtype_bytes(type);
    fs_cuda_buffer *b = take_buffer(d);
    fs_status st = wait_for_copy(d, b);
    for (int64_t i = 0; st == FS_OK && i < rows; i++)
        convert((char *)b->memory.at + (size_t)(i * cols) * item, type, from.at + (size_t)i * from.stride_bytes,
                from.type, cols);
    return give_buffer(d, b, st, to, (size_t)(rows * cols) * item);
}

/* Whole rows as many as a buffer takes; of rows wider than that, pieces. */
static fs_status stage_rows(fs_cuda_device *d, char *to, fs_dtype type, int64_t rows, int64_t K, file_rows from) {
    const size_t item = fs_dtype_bytes(type), from_item = fs_dtype_bytes(from.type);
    const int64_t room = FS_CUDA_BUFFER_BYTES / (int64_t)item, cols = K < room ? K : room;
    const int64_t most = K < room ? room / K : 1;
    for (int64_t r = 0, n; r < rows; r += n) {
        n = rows - r < most ? rows - r : most;
        for (int64_t k = 0, take; k < K; k += take) {
            file_rows block = from;
            take = K - k < cols ? K - k : cols;
            block.at += (size_t)r * from.stride_bytes + (size_t)k * from_item;
            FS_TRY(stage_block(d, to + (size_t)(r * K + k) * item, type, n, take, block));
        }
    }
    return FS_OK;
}

fs_status fs_cuda_weight_fill(fs_device *head, fs_weight *w, int64_t row, int64_t rows, const void *from,
                              size_t stride_bytes, fs_dtype from_dtype) {
    fs_cuda_device *d = fs_cuda(head);
    const int64_t K = w->desc.K;
    FS_TRY(fs_check_fill(w, row, rows, from_dtype));
    FS_TRY(fs_cuda_enter(d));
    const fs_dtype type = type_of(&w->desc);
    const file_rows file = { .at = from, .stride_bytes = stride_bytes, .type = from_dtype };
    return stage_rows(d, (char *)w->at + (size_t)(row * K) * fs_dtype_bytes(type), type, rows, K, file);
}

/* Queues know nothing of the loading stream, so what was copied has arrived before the weight is used. Copies of other
 * weights that were sent until now are waited for too: a few buffers at most. */
fs_status fs_cuda_weight_end(fs_device *head, fs_weight *w) {
    fs_cuda_device *d = fs_cuda(head);
    (void)w;
    FS_TRY(fs_cuda_enter(d));
    return fs_cuda_check(d, d->cu->stream_synchronize(d->load_stream), "copying weights");
}
