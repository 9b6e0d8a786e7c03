#include "engine/stream.h"

#include "base/alloc.h"
#include "base/host.h"
#include "base/thread.h"
#include "models/reading.h"

#include <sys/prctl.h>

#define MB(bytes) ((double)(bytes) / 1e6)

/*  FREE -[bring]-> COMING -[bring]-> READY -[take]-> TAKEN -[give]-> FREE
 *    ^---------------'------[restart]--'--------------'                    */
typedef enum { FS_SLAB_FREE, FS_SLAB_COMING, FS_SLAB_READY, FS_SLAB_TAKEN } slab_state;

typedef struct {
    fs_memory memory;
    void *weights;  /* room for a layer of any kind */
    fs_event *used; /* behind what uses the layer that was given back last */
    int was_used;
    int layer;
    slab_state state;
} slab;

struct fs_stream {
    fs_device *device;
    const fs_settings *set;
    fs_shard_plan plan;
    int first, end; /* the streamed layers, as the model counts them */
    size_t bytes;   /* of a slab */
    slab slabs[FS_MOST_SLABS];
    int slab_count;

    fs_checkpoint *files; /* our copy; NULL where there is a store */
    fs_reading reading;
    fs_memory *store; /* [end - first], pinned */
    fs_queue *queue;  /* of the copies from the store and to it */
    fs_event *copied;

    pthread_t thread;
    int started;
    pthread_mutex_t lock; /* over all below, and over the slabs' states */
    pthread_cond_t turned;
    int next;       /* the layer to bring next */
    int epoch;      /* of restarts: what began to come before one is not wanted */
    fs_error error; /* why `next` did not come; until somebody asks for it again */
    int stopping;
};

static int streamed_from(const fs_shard_plan *plan) { return plan->last_layer - plan->streamed; }

/* ---- bringing a layer ---- */

static fs_status from_files(fs_stream *s, slab *to, int layer) {
    const fs_slab wanted = { layer, to->weights, to->memory.at };
    return fs_reading_slabs(&s->reading, &wanted, 1);
}

static fs_status copy_layer(fs_stream *s, slab *b, int layer, int to_store) {
    const fs_backend *backend = s->device->backend;
    void *kept = s->store[layer - s->first].at;
    size_t bytes = s->store[layer - s->first].bytes;
    if (to_store) FS_TRY(backend->download(s->queue, kept, b->memory.at, bytes));
    else FS_TRY(backend->upload(s->queue, b->memory.at, kept, bytes));
    FS_TRY(backend->event_record(s->copied, s->queue));
    return backend->event_wait(s->copied);
}

static fs_status from_store(fs_stream *s, slab *to, int layer) {
    const fs_slab wanted = { layer, to->weights, to->memory.at };
    FS_TRY(fs_slab_shape(&wanted, s->set, &s->plan, s->device));
    return copy_layer(s, to, layer, 0);
}

static fs_status bring(fs_stream *s, slab *to, int layer) {
    if (to->was_used) FS_TRY(s->device->backend->event_wait(to->used));
    return s->store ? from_store(s, to, layer) : from_files(s, to, layer);
}

static slab *find(fs_stream *s, slab_state state, int layer) {
    for (int i = 0; i < s->slab_count; i++)
        if (s->slabs[i].state == state && (layer < 0 || s->slabs[i].layer == layer)) return &s->slabs[i];
    return NULL;
}

static void *bring_layers(void *stream) {
    fs_stream *s = stream;
    slab *to = NULL;
    prctl(PR_SET_NAME, "fs-stream");
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->stopping && (s->error.status != FS_OK || !(to = find(s, FS_SLAB_FREE, -1))))
            pthread_cond_wait(&s->turned, &s->lock);
        if (s->stopping) break;
        int layer = s->next, epoch = s->epoch;
        to->state = FS_SLAB_COMING, to->layer = layer;
        pthread_mutex_unlock(&s->lock);
        fs_status st = bring(s, to, layer);
        pthread_mutex_lock(&s->lock);
        const int wanted = epoch == s->epoch;
        to->state = st == FS_OK && wanted ? FS_SLAB_READY : FS_SLAB_FREE;
        if (st == FS_OK) to->was_used = 0;
        if (st != FS_OK && wanted) fs_error_take(&s->error, st);
        if (st == FS_OK && wanted) s->next = layer + 1 < s->end ? layer + 1 : s->first;
        pthread_cond_broadcast(&s->turned);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- what a pass calls ---- */

size_t fs_stream_layer_bytes(const fs_stream *s, int layer) {
    return fs_slab_bytes(s->set, &s->plan, layer, s->device);
}

fs_status fs_stream_take(fs_stream *s, int layer, void **weights) {
    fs_status st = FS_OK;
    slab *found;
    *weights = NULL;
    pthread_mutex_lock(&s->lock);
    found = find(s, FS_SLAB_READY, layer);
    if (!found && s->error.status != FS_OK) { /* of an earlier try */
        s->error.status = FS_OK;
        pthread_cond_broadcast(&s->turned);
    }
    while (!found && s->error.status == FS_OK) {
        pthread_cond_wait(&s->turned, &s->lock);
        found = find(s, FS_SLAB_READY, layer);
    }
    if (found) found->state = FS_SLAB_TAKEN, *weights = found->weights;
    else st = fs_error_raise(&s->error);
    pthread_mutex_unlock(&s->lock);
    return st;
}

static fs_status give(slab *b, fs_queue *q, const fs_backend *backend) {
    fs_status st = backend->event_record(b->used, q);
    b->was_used = 1;
    b->state = FS_SLAB_FREE;
    return st;
}

fs_status fs_stream_give(fs_stream *s, int layer, fs_queue *q) {
    pthread_mutex_lock(&s->lock);
    fs_status st = give(find(s, FS_SLAB_TAKEN, layer), q, s->device->backend);
    pthread_cond_broadcast(&s->turned);
    pthread_mutex_unlock(&s->lock);
    return st;
}

void fs_stream_restart(fs_stream *s, fs_queue *q) {
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < s->slab_count; i++) {
        slab *b = &s->slabs[i];
        if (b->state == FS_SLAB_TAKEN) give(b, q, s->device->backend); /* a failure comes out of the next wait */
        if (b->state == FS_SLAB_READY) b->state = FS_SLAB_FREE;
    }
    s->epoch++;
    s->next = s->first;
    s->error.status = FS_OK;
    pthread_cond_broadcast(&s->turned);
    pthread_mutex_unlock(&s->lock);
}

/* ---- open and close ---- */

static fs_status store_room(const fs_stream *s, size_t bytes) {
    size_t available = fs_host_read().available;
    if (bytes <= available) return FS_OK;
    return fs_fail(FS_NO_MEMORY,
                   "%s: streaming %d layers takes %.1f MB of pinned host memory where %.1f MB are left; raise the "
                   "container's limit, or hold more of the model on the device (max_memory)",
                   s->device->name, s->end - s->first, MB(bytes), MB(available));
}

/* Each layer once through the first slab, then back to the host as the device holds it. */
static fs_status open_store(fs_stream *s) {
    const fs_backend *b = s->device->backend;
    size_t all = 0;
    FS_TRY(fs_alloc(&s->store, (size_t)(s->end - s->first), sizeof *s->store));
    for (int layer = s->first; layer < s->end; layer++) all += fs_slab_bytes(s->set, &s->plan, layer, s->device);
    FS_TRY(store_room(s, all));
    FS_TRY(b->queue_new(s->device, &s->queue));
    FS_TRY(b->event_new(s->device, &s->copied));
    for (int layer = s->first; layer < s->end; layer++) {
        size_t bytes = fs_slab_bytes(s->set, &s->plan, layer, s->device);
        FS_TRY(b->alloc_pinned(s->device, FS_HOST, bytes, &s->store[layer - s->first]));
        FS_TRY(from_files(s, &s->slabs[0], layer));
        FS_TRY(copy_layer(s, &s->slabs[0], layer, 1));
    }
    fs_reading_close(&s->reading);
    return FS_OK;
}

static fs_status open_slabs(fs_stream *s, int slabs) {
    const fs_backend *b = s->device->backend;
    size_t most = 0; /* layers may be of two kinds */
    for (int k = s->first; k < s->end; k++)
        if (fs_kind_of(s->set, k)->bytes > most) most = fs_kind_of(s->set, k)->bytes;
    s->bytes = fs_shard_slab_bytes(s->set, &s->plan, s->device);
    for (; s->slab_count < slabs; s->slab_count++) {
        slab *to = &s->slabs[s->slab_count];
        fs_status st = fs_alloc(&to->weights, 1, most);
        if (st == FS_OK) st = b->alloc(s->device, FS_WEIGHTS, s->bytes, &to->memory);
        if (st == FS_OK) st = b->event_new(s->device, &to->used);
        if (st == FS_OK) continue;
        s->slab_count++; /* to be closed with the others */
        return st;
    }
    return FS_OK;
}

fs_status fs_stream_open(fs_stream **out, const fs_checkpoint *c, const fs_settings *set, const fs_shard_plan *plan,
                         fs_device *device, int slabs, int readers) {
    fs_status st = FS_OK;
    fs_stream *s = NULL;
    *out = NULL;
    FS_TRY(fs_alloc(&s, 1, sizeof *s));
    *s = (fs_stream){ .device = device, .set = set, .plan = *plan };
    s->first = s->next = streamed_from(plan);
    s->end = plan->last_layer;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->turned, NULL);
    FS_GO(open_slabs(s, slabs));
    if (device->backend->one_memory) {
        FS_GO(fs_checkpoint_copy(&s->files, c));
        FS_GO(fs_reading_open(&s->reading, s->files, set, &s->plan, device, 1));
    } else {
        FS_GO(fs_reading_open(&s->reading, c, set, &s->plan, device, readers));
        FS_GO(open_store(s));
    }
    FS_GO(fs_thread_start(&s->thread, bring_layers, s));
    s->started = 1;
    *out = s;
    s = NULL;
done:
    fs_stream_close(s);
    return st;
}

void fs_stream_close(fs_stream *s) {
    if (!s) return;
    const fs_backend *b = s->device->backend;
    if (s->started) {
        pthread_mutex_lock(&s->lock);
        s->stopping = 1;
        pthread_cond_broadcast(&s->turned);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    for (int i = 0; i < s->slab_count; i++) {
        if (s->slabs[i].was_used) b->event_wait(s->slabs[i].used); /* a failure was told to those it concerns */
        b->event_free(s->slabs[i].used);
        b->release(s->device, &s->slabs[i].memory);
        fs_free(s->slabs[i].weights);
    }
    for (int i = 0; s->store && i < s->end - s->first; i++) b->release(s->device, &s->store[i]);
    fs_free(s->store);
    b->event_free(s->copied);
    b->queue_free(s->queue);
    fs_reading_close(&s->reading);
    fs_checkpoint_free(s->files);
    pthread_cond_destroy(&s->turned);
    pthread_mutex_destroy(&s->lock);
    fs_free(s);
}
