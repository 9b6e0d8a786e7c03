/* device.c - the CUDA backend's table: opening a GPU by its primary context, its memory, its copies. */
#include "backends/cuda/cuda.h"
#include "base/alloc.h"
#include "base/knobs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GIB(bytes) ((double)(bytes) / (1 << 30))

/* Of what is free, this much is left alone: the driver takes memory for kernels and streams while we run. */
#define RESERVE ((size_t)64 << 20)

enum { MOST_FILES = 64, POISON = 0xff /* as fp32: NaN; as int32: -1 */ };

fs_status fs_cuda_check(fs_cuda_device *d, int result, const char *doing) {
    fs_status st = fs_cu_check(d->cu, result, d->head.name, doing);
    if (st != FS_OK) fs_cuda_comms_fail(d, st);
    return st;
}

fs_status fs_cuda_enter(fs_cuda_device *d) { return fs_cuda_check(d, d->cu->context_set(d->context), "using it"); }

/* By device files, so that asking starts nothing; a library named by the knob is asked itself, for it may have no
 * files. CUDA_VISIBLE_DEVICES hides devices from the driver; set and empty, it hides all. */
static int count(void) {
    const fs_cu_api *cu;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int devices = 0;
    if (visible && (!*visible || !strcmp(visible, "-1"))) return 0;
    if (*fs_knob_text(FS_KNOB_LIBCUDA))
        return fs_cu_open(&cu) == FS_OK && cu->device_count(&devices) == 0 ? devices : 0;
    for (int i = 0; i < MOST_FILES; i++) {
        char file[32];
        snprintf(file, sizeof file, "/dev/nvidia%d", i);
        devices += access(file, F_OK) == 0;
    }
    return devices;
}

static void device_close(fs_device *head) {
    if (!head) return;
    fs_cuda_device *d = fs_cuda(head);
    if (d->context) {
        d->cu->context_set(d->context); /* whatever it says: what is released must be released */
        fs_cuda_plans_close(d);
        fs_cuda_staging_close(d);
        if (d->module) d->cu->module_unload(d->module);
    }
    if (d->retained) d->cu->context_release(d->handle);
    pthread_cond_destroy(&d->sent);
    pthread_mutex_destroy(&d->loading);
    fs_budget_destroy(&d->head.budget);
    fs_free(d);
}

static fs_status find_device(fs_cuda_device *d) {
    int devices;
    FS_TRY(fs_cuda_check(d, d->cu->device_count(&devices), "counting the GPUs"));
    if (d->ordinal < 0 || d->ordinal >= devices)
        return fs_fail(FS_DEVICE, "%s: there is no such GPU, the driver shows %d%s; CUDA_VISIBLE_DEVICES may hide some",
                       d->head.name, devices, devices ? ", from cuda:0 on" : "");
    return fs_cuda_check(d, d->cu->device_get(&d->handle, d->ordinal), "finding it");
}

static fs_status enter_first(fs_cuda_device *d) {
    FS_TRY(fs_cuda_check(d, d->cu->context_retain(&d->context, d->handle), "opening it"));
    d->retained = 1;
    return fs_cuda_enter(d);
}

/* max_memory, but never more than others have left. */
static fs_status measure_memory(fs_cuda_device *d, size_t max_memory) {
    size_t available, total;
    FS_TRY(fs_cuda_check(d, d->cu->memory_info(&available, &total), "asking for its memory"));
    size_t left = available > RESERVE ? available - RESERVE : 0;
    d->head.budget.limit = max_memory && max_memory < left ? max_memory : left ? left : 1;
    if (total - available > total / 10)
        snprintf(d->head.budget.note, sizeof d->head.budget.note, "; %.1f of %.1f GiB are used by other processes",
                 GIB(total - available), GIB(total));
    return FS_OK;
}

static fs_status describe(fs_cuda_device *d) {
    int major, minor;
    FS_TRY(fs_cuda_check(d, d->cu->device_attribute(&major, FS_CU_MAJOR, d->handle), "asking for its generation"));
    FS_TRY(fs_cuda_check(d, d->cu->device_attribute(&minor, FS_CU_MINOR, d->handle), "asking for its generation"));
    snprintf(d->head.numerics, sizeof d->head.numerics, "cuda sm_%d%d", major, minor);
    d->has_bf16 = major >= 8; /* tensor cores of sm_75 multiply fp16 only */
    return FS_OK;
}

static int computes(const fs_device *head, fs_dtype dtype) {
    const fs_cuda_device *d = (const fs_cuda_device *)head;
    return dtype == FS_F32 || dtype == FS_F16 || (dtype == FS_BF16 && (!d || d->has_bf16));
}

/* An outline: a GPU that multiplies in every type, with its staging as fs_cuda_staging_open takes it. */
static void draw(fs_cuda_device *d) {
    snprintf(d->head.numerics, sizeof d->head.numerics, "cuda");
    d->has_bf16 = 1;
    d->head.budget.used[FS_STAGING] = (size_t)FS_CUDA_BUFFERS * FS_CUDA_BUFFER_BYTES;
}

static fs_status device_check(const fs_device_options *o) {
    if (!o->path || !*o->path) return FS_OK;
    return fs_fail(FS_CONFIG, "cuda:%d: cpu_path='%.40s' is for CPU devices; leave it out, or use devices=\"cpu\"",
                   o->index, o->path);
}

static fs_status device_open(fs_device **out, const fs_device_options *o) {
    fs_status st = FS_OK;
    fs_cuda_device *d = NULL;
    const fs_cu_api *cu = NULL;
    const fs_lt_api *lt = NULL;
    int64_t poison;
    *out = NULL;
    FS_TRY(device_check(o));
    FS_TRY(fs_knob_int(FS_KNOB_TEST_POISON, 0, 1, &poison));
    if (!o->outline) {
        FS_TRY(fs_cu_open(&cu));
        FS_TRY(fs_lt_open(&lt));
    }
    FS_TRY(fs_alloc(&d, 1, sizeof *d));
    d->ordinal = o->index;
    d->poison = (int)poison;
    d->head.backend = &fs_cuda_backend;
    snprintf(d->head.name, sizeof d->head.name, "cuda:%d", o->index);
    fs_budget_init(&d->head.budget, d->head.name, o->max_memory);
    pthread_mutex_init(&d->loading, NULL);
    pthread_cond_init(&d->sent, NULL);
    if (o->outline) {
        draw(d);
        *out = &d->head;
        return FS_OK;
    }
    d->cu = cu, d->lt = lt;
    FS_GO(find_device(d));
    FS_GO(enter_first(d));
    FS_GO(describe(d));
    FS_GO(fs_cuda_kernels_load(d));
    FS_GO(measure_memory(d, o->max_memory));
    FS_GO(fs_cuda_staging_open(d));
    *out = &d->head;
    d = NULL;
done:
    if (d) device_close(&d->head);
    return st;
}

static fs_status device_alloc(fs_device *head, fs_charge charge, size_t bytes, fs_memory *out) {
    fs_status st = FS_OK;
    fs_cuda_device *d = fs_cuda(head);
    fs_cu_address at = 0;
    memset(out, 0, sizeof *out);
    FS_TRY(fs_budget_take(&head->budget, charge, bytes));
    FS_GO(fs_cuda_enter(d));
    FS_GO(fs_cuda_check(d, d->cu->memory_alloc(&at, bytes ? bytes : 1), fs_charge_name(charge)));
    *out = (fs_memory){ .at = (void *)(uintptr_t)at, .bytes = bytes, .charge = charge };
    if (d->poison && bytes) {
        FS_GO(fs_cuda_check(d, d->cu->fill(at, POISON, bytes, d->load_stream), "filling memory"));
        FS_GO(fs_cuda_check(d, d->cu->stream_synchronize(d->load_stream), "filling memory"));
    }
    return FS_OK;
done:
    if (at) d->cu->memory_free(at);
    memset(out, 0, sizeof *out);
    fs_budget_give(&head->budget, charge, bytes);
    return st;
}

static fs_status alloc_pinned(fs_device *head, fs_charge charge, size_t bytes, fs_memory *out) {
    fs_status st = FS_OK;
    fs_cuda_device *d = fs_cuda(head);
    void *at = NULL;
    memset(out, 0, sizeof *out);
    FS_TRY(fs_budget_take(&head->budget, charge, bytes));
    FS_GO(fs_cuda_enter(d));
    FS_GO(fs_cuda_check(d, d->cu->pinned_alloc(&at, bytes ? bytes : 1, FS_CU_HOST_PORTABLE), "pinning host memory"));
    if (d->poison) memset(at, POISON, bytes);
    *out = (fs_memory){ .at = at, .bytes = bytes, .charge = charge };
    return FS_OK;
done:
    fs_budget_give(&head->budget, charge, bytes);
    return st;
}

/* Pinned memory is the only kind that is charged as staging or as the host's. */
static void device_release(fs_device *head, fs_memory *m) {
    fs_cuda_device *d = fs_cuda(head);
    if (!m->at) return;
    d->cu->context_set(d->context);
    if (m->charge == FS_STAGING || m->charge == FS_HOST) d->cu->pinned_free(m->at);
    else d->cu->memory_free((fs_cu_address)(uintptr_t)m->at);
    fs_budget_give(&head->budget, m->charge, m->bytes);
    memset(m, 0, sizeof *m);
}

static fs_status upload(fs_queue *q, void *to, const void *from, size_t bytes) {
    fs_cuda_device *d = q->device;
    if (!bytes) return FS_OK;
    FS_TRY(fs_cuda_enter(d));
    return fs_cuda_check(d, d->cu->upload((fs_cu_address)(uintptr_t)to, from, bytes, q->stream), "copying to it");
}

static fs_status download(fs_queue *q, void *to, const void *from, size_t bytes) {
    fs_cuda_device *d = q->device;
    if (!bytes) return FS_OK;
    FS_TRY(fs_cuda_enter(d));
    return fs_cuda_check(d, d->cu->download(to, (fs_cu_address)(uintptr_t)from, bytes, q->stream), "copying from it");
}

static fs_status peer_copy(fs_queue *q, fs_device *to_device, void *to, fs_device *from_device, const void *from,
                           size_t bytes) {
    fs_cuda_device *d = q->device;
    if (!bytes) return FS_OK;
    FS_TRY(fs_cuda_enter(d));
    int result = d->cu->peer_copy((fs_cu_address)(uintptr_t)to, fs_cuda(to_device)->context,
                                  (fs_cu_address)(uintptr_t)from, fs_cuda(from_device)->context, bytes, q->stream);
    return fs_cuda_check(d, result, "copying from another GPU");
}

static fs_status poison(fs_queue *q, void *at, size_t bytes) {
    fs_cuda_device *d = q->device;
    if (!d->poison || !bytes) return FS_OK;
    FS_TRY(fs_cuda_enter(d));
    return fs_cuda_check(d, d->cu->fill((fs_cu_address)(uintptr_t)at, POISON, bytes, q->stream), "filling memory");
}

const fs_backend fs_cuda_backend = {
    .name = "cuda",
    .ops = &fs_cuda_ops,
    .prepare = &fs_cuda_prepare,
    .enough_tokens = 2048,
    .count = count,
    .open = device_open,
    .check = device_check,
    .close = device_close,
    .computes = computes,
    .alloc = device_alloc,
    .alloc_pinned = alloc_pinned,
    .release = device_release,
    .queue_new = fs_cuda_queue_new,
    .queue_free = fs_cuda_queue_free,
    .event_new = fs_cuda_event_new,
    .event_free = fs_cuda_event_free,
    .event_record = fs_cuda_event_record,
    .queue_wait = fs_cuda_queue_wait,
    .event_wait = fs_cuda_event_wait,
    .upload = upload,
    .download = download,
    .peer_copy = peer_copy,
    .poison = poison,
    .weight_bytes = fs_cuda_weight_bytes,
    .weight_begin = fs_cuda_weight_begin,
    .weight_fill = fs_cuda_weight_fill,
    .weight_end = fs_cuda_weight_end,
    .comm_open = fs_cuda_comm_open,
    .comm_close = fs_cuda_comm_close,
};
