/* device.c - the CPU backend's table: opening a part of the host, its memory, its copies. */
#define _GNU_SOURCE
#include "backends/collectives.h"
#include "backends/cpu/cpu.h"
#include "base/alloc.h"
#include "base/host.h"
#include "base/knobs.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define MB(bytes) ((double)(bytes) / 1e6)

enum { MOST_THREADS = 1024, HUGE_PAGE = 2 << 20, CHECK_FROM = 1 << 20, POISON = 0xff /* as fp32: NaN; as int32: -1 */ };

/* From here on memory is mapped: pages cost nothing until they are touched and go back to the host when released. Under
 * AddressSanitizer all of it comes from the heap, whose bounds are watched. */
#if defined(__SANITIZE_ADDRESS__)
#define MAP_FROM SIZE_MAX
#else
#define MAP_FROM ((size_t)1 << 20)
#endif

struct fs_cpu_block {
    fs_cpu_block *next;
    void *at, *mapped; /* mapped: NULL when it is from the heap */
    size_t mapped_bytes;
};

static int count(void) { return fs_host_read().cores; }

static int part(int whole, int index, int of) {
    int share = whole / of + (index < whole % of);
    return share > 0 ? share : 1;
}

static fs_status check_threads(int64_t wanted) {
    if (wanted >= 1 && wanted <= MOST_THREADS) return FS_OK;
    return fs_fail(FS_CONFIG, "threads is %lld; a CPU device takes 1 to %d, or 0 for the cores this process may use",
                   (long long)wanted, MOST_THREADS);
}

static fs_status device_check(const fs_device_options *o) {
    if (o->threads) FS_TRY(check_threads(o->threads));
    return fs_cpu_path_check(o->path);
}

static fs_status threads_of(const fs_device_options *o, int of, int cores, int *out) {
    int64_t wanted = o->threads;
    if (wanted == 0) {
        FS_TRY(fs_knob_int(FS_KNOB_THREADS, 0, MOST_THREADS, &wanted));
        wanted = part(wanted ? (int)wanted : cores, o->index, of);
    }
    FS_TRY(check_threads(wanted));
    *out = (int)wanted;
    return FS_OK;
}

static void device_close(fs_device *head) {
    if (!head) return;
    fs_cpu_device *d = fs_cpu(head);
    fs_pool_close(d->pool);
    pthread_mutex_destroy(&d->running);
    pthread_mutex_destroy(&d->lock);
    fs_budget_destroy(&d->head.budget);
    fs_free(d);
}

static int computes(const fs_device *d, fs_dtype dtype) {
    (void)d;
    return dtype == FS_F32;
}

static fs_status device_open(fs_device **out, const fs_device_options *o) {
    fs_status st = FS_OK;
    fs_cpu_device *d = NULL;
    fs_host host = fs_host_read();
    int of = o->of ? o->of : 1, threads = 1;
    int64_t delay, poison;
    char name[32];
    *out = NULL;
    if (of < 1 || o->index < 0 || o->index >= of)
        return fs_fail(FS_CONFIG, "cpu:%d is no part of a host cut into %d; parts are cpu:0 to cpu:%d", o->index, of,
                       of - 1);
    FS_TRY(threads_of(o, of, host.cores, &threads));
    FS_TRY(fs_knob_int(FS_KNOB_TEST_DELAY, 0, 1, &delay));
    FS_TRY(fs_knob_int(FS_KNOB_TEST_POISON, 0, 1, &poison));

    FS_TRY(fs_alloc(&d, 1, sizeof *d));
    snprintf(name, sizeof name, "cpu:%d", o->index);
    /* Devices that share the host share its memory. */
    fs_budget_init(&d->head.budget, name, o->max_memory ? o->max_memory : host.available / (size_t)of);
    pthread_mutex_init(&d->running, NULL);
    pthread_mutex_init(&d->lock, NULL);
    d->head.backend = &fs_cpu_backend;
    snprintf(d->head.name, sizeof d->head.name, "%s", name);
    d->delay = (int)delay;
    d->poison = (int)poison;
    FS_GO(fs_cpu_path_find(o->path && *o->path ? o->path : fs_knob_text(FS_KNOB_CPU_PATH), &d->kernels));
    snprintf(d->head.numerics, sizeof d->head.numerics, "cpu %s", d->kernels->name);
    d->index = o->index;
    if (!o->outline) FS_GO(fs_pool_open(&d->pool, threads, of - 1, FS_CPU_SCRATCH));
    *out = &d->head;
    d = NULL;
done:
    if (d) device_close(&d->head);
    return st;
}

/* The budget bounds what is promised; this asks what the host has left right now, others having taken some
 * meanwhile. */
static fs_status check_host(fs_cpu_device *d, fs_charge charge, size_t bytes) {
    if (bytes < CHECK_FROM) return FS_OK;
    fs_host host = fs_host_read();
    if (bytes <= host.available) return FS_OK;
    char why[128] = "";
    if (host.cgroup_limit) snprintf(why, sizeof why, ", in a container of %.1f MB", MB(host.cgroup_limit));
    else if (host.address_limit)
        snprintf(why, sizeof why, ", with RLIMIT_AS (spark.executor.pyspark.memory) at %.1f MB",
                 MB(host.address_limit));
    return fs_fail(
        FS_NO_MEMORY,
        "%s: %s need %.1f MB more, the host has %.1f MB left for this process%s, %.1f MB are missing; free memory "
        "or raise the container's limit",
        d->head.name, fs_charge_name(charge), MB(bytes), MB(host.available), why, MB(bytes - host.available));
}

static fs_status map(fs_cpu_device *d, fs_cpu_block *block, size_t bytes) {
    size_t whole = bytes + (bytes >= HUGE_PAGE ? HUGE_PAGE : 0);
    void *at = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return fs_fail(FS_NO_MEMORY, "%s: the host refused to map %zu bytes; free memory or raise RLIMIT_AS",
                       d->head.name, whole);
    block->mapped = at;
    block->mapped_bytes = whole;
    block->at = at;
    if (bytes >= HUGE_PAGE) {
        block->at = (void *)(((uintptr_t)at + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
        madvise(block->at, bytes, MADV_HUGEPAGE); /* a hint: products over weights walk many pages */
    }
    return FS_OK;
}

static void block_free(fs_cpu_block *block) {
    if (!block) return;
    if (block->mapped) munmap(block->mapped, block->mapped_bytes);
    else fs_free(block->at);
    fs_free(block);
}

static fs_status device_alloc(fs_device *head, fs_charge charge, size_t bytes, fs_memory *out) {
    fs_status st = FS_OK;
    fs_cpu_device *d = fs_cpu(head);
    fs_cpu_block *block = NULL;
    memset(out, 0, sizeof *out);
    FS_TRY(fs_budget_take(&head->budget, charge, bytes));
    FS_GO(check_host(d, charge, bytes));
    FS_GO(fs_alloc(&block, 1, sizeof *block));
    if (bytes >= MAP_FROM) FS_GO(map(d, block, bytes));
    else FS_GO(fs_alloc_aligned(&block->at, bytes));
    if (d->poison) memset(block->at, POISON, bytes);
    *out = (fs_memory){ .at = block->at, .bytes = bytes, .charge = charge };
    pthread_mutex_lock(&d->lock);
    block->next = d->blocks;
    d->blocks = block;
    pthread_mutex_unlock(&d->lock);
    return FS_OK;
done:
    block_free(block);
    fs_budget_give(&head->budget, charge, bytes);
    return st;
}

static fs_status alloc_pinned(fs_device *d, fs_charge charge, size_t bytes, fs_memory *out) {
    return device_alloc(d, charge, bytes, out);
}

static void device_release(fs_device *head, fs_memory *m) {
    fs_cpu_device *d = fs_cpu(head);
    fs_cpu_block *block = NULL;
    if (!m->at) return;
    pthread_mutex_lock(&d->lock);
    for (fs_cpu_block **at = &d->blocks; *at; at = &(*at)->next)
        if ((*at)->at == m->at) {
            block = *at;
            *at = block->next;
            break;
        }
    pthread_mutex_unlock(&d->lock);
    block_free(block);
    fs_budget_give(&head->budget, m->charge, m->bytes);
    memset(m, 0, sizeof *m);
}

typedef struct {
    void *to;
    const void *from;
    size_t bytes;
} copy_args;

static fs_status run_copy(fs_cpu_device *d, const void *args) {
    const copy_args *a = args;
    (void)d;
    memcpy(a->to, a->from, a->bytes);
    return FS_OK;
}

static fs_status copy(fs_queue *q, void *to, const void *from, size_t bytes) {
    copy_args a = { .to = to, .from = from, .bytes = bytes };
    return bytes ? fs_cpu_enqueue(q, run_copy, &a, sizeof a) : FS_OK;
}

static fs_status peer_copy(fs_queue *q, fs_device *to_device, void *to, fs_device *from_device, const void *from,
                           size_t bytes) {
    (void)to_device; /* all CPU devices see one memory */
    (void)from_device;
    return copy(q, to, from, bytes);
}

static fs_status run_poison(fs_cpu_device *d, const void *args) {
    const copy_args *a = args;
    if (d->poison) memset(a->to, POISON, a->bytes);
    return FS_OK;
}

static fs_status poison(fs_queue *q, void *at, size_t bytes) {
    copy_args a = { .to = at, .bytes = bytes };
    return bytes ? fs_cpu_enqueue(q, run_poison, &a, sizeof a) : FS_OK;
}

/* The other parts of the host are guests 0, 1, ... of a part, itself left out. */
static int64_t help(fs_device *head, fs_device *other, const atomic_int *stop) {
    const int me = fs_cpu(head)->index, it = fs_cpu(other)->index;
    return fs_pool_help(fs_cpu(other)->pool, me < it ? me : me - 1, stop);
}

static fs_status comm_open(fs_comm **out, fs_device *const ranks[], int size, double deadline_seconds) {
    for (int r = 0; r < size; r++)
        if (ranks[r]->backend != &fs_cpu_backend)
            return fs_fail(FS_CONFIG, "rank %d of a tensor group is %s; all ranks must be devices of the cpu backend",
                           r, ranks[r]->name);
    return fs_rendezvous_open(out, size, deadline_seconds);
}

const fs_backend fs_cpu_backend = {
    .name = "cpu",
    .ops = &fs_cpu_ops,
    .enough_tokens = 512,
    .one_memory = 1,
    .count = count,
    .open = device_open,
    .check = device_check,
    .close = device_close,
    .computes = computes,
    .alloc = device_alloc,
    .alloc_pinned = alloc_pinned,
    .release = device_release,
    .queue_new = fs_cpu_queue_new,
    .queue_free = fs_cpu_queue_free,
    .event_new = fs_cpu_event_new,
    .event_free = fs_cpu_event_free,
    .event_record = fs_cpu_event_record,
    .queue_wait = fs_cpu_queue_wait,
    .event_wait = fs_cpu_event_wait,
    .upload = copy,
    .download = copy,
    .peer_copy = peer_copy,
    .poison = poison,
    .help = help,
    .weight_bytes = fs_cpu_weight_bytes,
    .weight_begin = fs_cpu_weight_begin,
    .weight_fill = fs_cpu_weight_fill,
    .weight_end = fs_cpu_weight_end,
    .comm_open = comm_open,
    .comm_close = fs_rendezvous_close,
};
