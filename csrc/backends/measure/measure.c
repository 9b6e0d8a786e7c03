#include "backends/measure/measure.h"
#include "backends/collectives.h"
#include "base/alloc.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* All work is done when it is enqueued, so there is nothing to order or to wait for. */
struct fs_queue {
    fs_device *device;
};
struct fs_event {
    fs_device *device;
};
struct fs_comm {
    int size;
};

static fs_measure_device *measure(fs_device *d) { return (fs_measure_device *)d; }

static int count(void) { return 1; }

static fs_status device_open(fs_device **out, const fs_device_options *o) {
    fs_measure_device *d;
    *out = NULL;
    FS_TRY(fs_alloc(&d, 1, sizeof *d));
    snprintf(d->head.name, sizeof d->head.name, "measure:%d", o->index);
    snprintf(d->head.numerics, sizeof d->head.numerics, "measure");
    fs_budget_init(&d->head.budget, d->head.name, o->max_memory);
    pthread_mutex_init(&d->lock, NULL);
    d->head.backend = &fs_measure_backend;
    d->next = (char *)(uintptr_t)4096;
    *out = &d->head;
    return FS_OK;
}

static int computes(const fs_device *d, fs_dtype dtype) {
    (void)d;
    return dtype == FS_F32 || dtype == FS_F16 || dtype == FS_BF16;
}

static void device_close(fs_device *head) {
    if (!head) return;
    fs_measure_device *d = measure(head);
    for (fs_trace_text *t = d->trace, *older; t; t = older) {
        older = t->older;
        fs_free(t);
    }
    pthread_mutex_destroy(&d->lock);
    fs_budget_destroy(&d->head.budget);
    fs_free(d);
}

static fs_status device_alloc(fs_device *head, fs_charge charge, size_t bytes, fs_memory *out) {
    fs_measure_device *d = measure(head);
    memset(out, 0, sizeof *out);
    FS_TRY(fs_budget_take(&head->budget, charge, bytes));
    pthread_mutex_lock(&d->lock);
    uintptr_t at = (uintptr_t)d->next, step = (bytes + 64) & ~(size_t)63;
    int fits = step >= bytes && step <= UINTPTR_MAX / 2 - at;
    if (fits) d->next += step;
    pthread_mutex_unlock(&d->lock);
    if (!fits) {
        fs_budget_give(&head->budget, charge, bytes);
        return fs_fail(FS_NO_MEMORY, "%s: %zu bytes exceed the addresses there are", head->name, bytes);
    }
    *out = (fs_memory){ .at = (void *)at, .bytes = bytes, .charge = charge };
    return FS_OK;
}

static fs_status alloc_pinned(fs_device *d, fs_charge charge, size_t bytes, fs_memory *out) {
    return device_alloc(d, charge, bytes, out);
}

static void device_release(fs_device *head, fs_memory *m) {
    if (!m->at) return;
    fs_budget_give(&head->budget, m->charge, m->bytes);
    memset(m, 0, sizeof *m);
}

static fs_status queue_new(fs_device *d, fs_queue **out) {
    FS_TRY(fs_alloc(out, 1, sizeof **out));
    (*out)->device = d;
    return FS_OK;
}

static void queue_free(fs_queue *q) { fs_free(q); }

static fs_status event_new(fs_device *d, fs_event **out) {
    FS_TRY(fs_alloc(out, 1, sizeof **out));
    (*out)->device = d;
    return FS_OK;
}

static void event_free(fs_event *e) { fs_free(e); }

static fs_status event_record(fs_event *e, fs_queue *q) {
    (void)e;
    (void)q;
    return FS_OK;
}

static fs_status queue_wait(fs_queue *q, fs_event *e) {
    (void)q;
    (void)e;
    return FS_OK;
}

static fs_status event_wait(fs_event *e) {
    (void)e;
    return FS_OK;
}

static fs_status copy(fs_queue *q, void *to, const void *from, size_t bytes) {
    (void)q;
    (void)to;
    (void)from;
    (void)bytes;
    return FS_OK;
}

static fs_status peer_copy(fs_queue *q, fs_device *to_device, void *to, fs_device *from_device, const void *from,
                           size_t bytes) {
    (void)to_device;
    (void)from_device;
    return copy(q, to, from, bytes);
}

static fs_status poison(fs_queue *q, void *at, size_t bytes) { return copy(q, at, NULL, bytes); }

static size_t weight_bytes(fs_device *d, const fs_weight_desc *desc) {
    (void)d;
    return ((size_t)desc->N * (size_t)desc->K * fs_dtype_bytes(desc->dtype) + 63) & ~(size_t)63;
}

static fs_status weight_begin(fs_device *d, fs_weight *w, const fs_weight_desc *desc, void *slab_at) {
    (void)d;
    *w = (fs_weight){ .desc = *desc, .at = slab_at };
    return FS_OK;
}

static fs_status weight_fill(fs_device *d, fs_weight *w, int64_t row, int64_t rows, const void *from,
                             size_t stride_bytes, fs_dtype from_dtype) {
    (void)from;
    (void)stride_bytes;
    (void)from_dtype;
    if (row < 0 || rows < 0 || row > w->desc.N || rows > w->desc.N - row)
        return fs_fail(FS_DEVICE, "%s: rows %lld to %lld are filled into a weight of %lld", d->name, (long long)row,
                       (long long)(row + rows), (long long)w->desc.N);
    return FS_OK;
}

static fs_status weight_end(fs_device *d, fs_weight *w) {
    (void)d;
    (void)w;
    return FS_OK;
}

static fs_status comm_open(fs_comm **out, fs_device *const ranks[], int size, double deadline_seconds) {
    (void)ranks;
    (void)deadline_seconds;
    FS_TRY(fs_alloc(out, 1, sizeof **out));
    (*out)->size = size;
    return FS_OK;
}

static void comm_close(fs_comm *c) { fs_free(c); }

static fs_status trace_room(fs_measure_device *d, size_t more) {
    fs_trace_text *t = d->trace, *larger;
    size_t used = t ? t->used : 0;
    if (t && t->room - used > more) return FS_OK;
    size_t room = 2 * (used + more) + 4096;
    FS_TRY(fs_alloc(&larger, 1, sizeof *larger + room));
    if (t) memcpy(larger->text, t->text, used + 1);
    larger->used = used;
    larger->room = room;
    larger->older = t;
    d->trace = larger;
    return FS_OK;
}

fs_status fs_measure_op(fs_device *head, fs_measured figures, const char *line) {
    fs_measure_device *d = measure(head);
    size_t length = strlen(line);
    pthread_mutex_lock(&d->lock);
    fs_status st = trace_room(d, length + 1);
    if (st == FS_OK) {
        char *end = d->trace->text + d->trace->used;
        memcpy(end, line, length);
        memcpy(end + length, "\n", 2);
        d->trace->used += length + 1;
        d->counted.ops++;
        d->counted.multiply_adds += figures.multiply_adds;
        d->counted.read_bytes += figures.read_bytes;
        d->counted.written_bytes += figures.written_bytes;
    }
    pthread_mutex_unlock(&d->lock);
    return st;
}

fs_measured fs_measure_read(fs_device *d) {
    pthread_mutex_lock(&measure(d)->lock);
    fs_measured counted = measure(d)->counted;
    pthread_mutex_unlock(&measure(d)->lock);
    return counted;
}

const char *fs_measure_trace(fs_device *d) {
    pthread_mutex_lock(&measure(d)->lock);
    const char *text = measure(d)->trace ? measure(d)->trace->text : "";
    pthread_mutex_unlock(&measure(d)->lock);
    return text;
}

const fs_backend fs_measure_backend = {
    .name = "measure",
    .ops = &fs_measure_ops,
    .count = count,
    .open = device_open,
    .close = device_close,
    .computes = computes,
    .alloc = device_alloc,
    .alloc_pinned = alloc_pinned,
    .release = device_release,
    .queue_new = queue_new,
    .queue_free = queue_free,
    .event_new = event_new,
    .event_free = event_free,
    .event_record = event_record,
    .queue_wait = queue_wait,
    .event_wait = event_wait,
    .upload = copy,
    .download = copy,
    .peer_copy = peer_copy,
    .poison = poison,
    .weight_bytes = weight_bytes,
    .weight_begin = weight_begin,
    .weight_fill = weight_fill,
    .weight_end = weight_end,
    .comm_open = comm_open,
    .comm_close = comm_close,
};
