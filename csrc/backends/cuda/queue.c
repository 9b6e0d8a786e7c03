/* queue.c - streams and events. An event knows its device so that any thread can wait for it. */
#include "backends/cuda/cuda.h"
#include "base/alloc.h"

struct fs_event {
    fs_cuda_device *device;
    fs_cu_event event;
    fs_comm *comm; /* of the queue it was recorded in */
};

fs_status fs_cuda_queue_new(fs_device *head, fs_queue **out) {
    fs_status st = FS_OK;
    fs_cuda_device *d = fs_cuda(head);
    fs_queue *q = NULL;
    *out = NULL;
    FS_TRY(fs_cuda_enter(d));
    FS_TRY(fs_alloc(&q, 1, sizeof *q));
    q->device = d;
    FS_GO(fs_cuda_check(d, d->cu->stream_create(&q->stream, FS_CU_STREAM_NON_BLOCKING), "making a stream"));
    *out = q;
    q = NULL;
done:
    fs_free(q);
    return st;
}

/* What is enqueued still reads and writes the caller's memory, so it ends first; whether it failed was told by events. */
void fs_cuda_queue_free(fs_queue *q) {
    if (!q) return;
    fs_cuda_device *d = q->device;
    d->cu->context_set(d->context); /* whatever it says: what is released must be released */
    d->cu->stream_synchronize(q->stream);
    d->cu->stream_destroy(q->stream);
    fs_free(q);
}

fs_status fs_cuda_event_new(fs_device *head, fs_event **out) {
    fs_status st = FS_OK;
    fs_cuda_device *d = fs_cuda(head);
    fs_event *e = NULL;
    *out = NULL;
    FS_TRY(fs_cuda_enter(d));
    FS_TRY(fs_alloc(&e, 1, sizeof *e));
    e->device = d;
    FS_GO(fs_cuda_check(d, d->cu->event_create(&e->event, FS_CU_EVENT_QUIET), "making an event"));
    *out = e;
    e = NULL;
done:
    fs_free(e);
    return st;
}

void fs_cuda_event_free(fs_event *e) {
    if (!e) return;
    e->device->cu->context_set(e->device->context);
    e->device->cu->event_destroy(e->event);
    fs_free(e);
}

fs_status fs_cuda_event_record(fs_event *e, fs_queue *q) {
    FS_TRY(fs_cuda_enter(q->device));
    e->comm = q->comm;
    return fs_cuda_check(q->device, q->device->cu->event_record(e->event, q->stream), "recording an event");
}

fs_status fs_cuda_queue_wait(fs_queue *q, fs_event *e) {
    FS_TRY(fs_cuda_enter(q->device));
    if (e->comm) q->comm = e->comm; /* what is behind a collective may be as late as it */
    return fs_cuda_check(q->device, q->device->cu->stream_wait_event(q->stream, e->event, 0), "waiting for a stream");
}

fs_status fs_cuda_event_wait(fs_event *e) {
    FS_TRY(fs_cuda_enter(e->device));
    if (e->comm) return fs_cuda_comm_wait(e->comm, e->device, e->event);
    return fs_cuda_check(e->device, e->device->cu->event_synchronize(e->event), "running a step");
}
