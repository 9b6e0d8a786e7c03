/* collectives.c - sums over a group of GPUs: NCCL carries, our own kernel adds.
 *
 *     rank 0: x0 --.                     .--> [x0 x1 x2] --sum--> x0 + x1 + x2
 *     rank 1: x1 ---+--- all-gather ----+---> [x0 x1 x2] --sum--> the same bits
 *     rank 2: x2 --'                     '--> [x0 x1 x2] --sum--> the same bits
 *
 * NCCL's own sums depend on the algorithm, protocol and channels it picks; gathering moves bytes, and the sum is then
 * taken in rank order on every rank, as on the CPU. For two ranks both move the same bytes; for n, gathering moves
 * n / 2 times as many.
 *
 * WAITING. A rank that does not come would leave the others' GPUs spinning for ever. Communicators do not block, and
 * whoever waits for an event behind a collective looks at the clock: when no rank has reached a collective for as long
 * as the deadline, the whole group is aborted, which ends what spins, and every wait on it returns the sentence that
 * names the rank. Each rank's stream writes how many collectives it has reached, so that the one behind is known even
 * where all hosts have enqueued theirs. A rank whose device fails a call ends its groups at once: the others need not
 * wait.
 *
 * LOCKS. `open_lock` over the list of groups, then a group's own. Neither is held while a rank waits. */
#define _GNU_SOURCE
#include "backends/collectives.h"
#include "backends/cuda/nccl_api.h"
#include "backends/cuda/ops_inside.h"
#include "base/alloc.h"
#include "base/clock.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { MOST_RANKS = 64, POLL_NS = 50000 };

struct fs_comm {
    const fs_nccl_api *nccl;
    int size;
    double deadline_seconds;
    pthread_mutex_t lock;
    fs_error broken;
    fs_comm *next; /* in the list of open groups */
    fs_cuda_device *devices[MOST_RANKS];
    fs_nccl_comm comms[MOST_RANKS];
    uint32_t enqueued[MOST_RANKS]; /* collectives, by rank */
    uint32_t *reached;             /* the same, written by the streams; pinned */
};

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static fs_comm *open_groups;

static double now(void) { return (double)fs_now_ns() * 1e-9; }

static void rest(void) {
    const struct timespec t = { .tv_nsec = POLL_NS };
    nanosleep(&t, NULL);
}

static fs_status check(const fs_comm *c, int rank, int result, const char *doing) {
    if (result == 0 || result == FS_NCCL_IN_PROGRESS) return FS_OK;
    return fs_fail(FS_DEVICE, "%s (rank %d of %d): %s failed: NCCL says %s; NCCL_DEBUG=INFO tells more",
                   c->devices[rank]->head.name, rank, c->size, doing, c->nccl->error_string(result));
}

/* Under the lock: the group is over. What spins on the devices ends, every later use gets the sentence, which stays
 * this thread's last failure as well. Whatever it was, even a lack of memory, to all who come later it is a fault of the
 * device: no smaller batch will get through. */
static void break_group(fs_comm *c, fs_status st) {
    if (c->broken.status != FS_OK) return;
    fs_error_take(&c->broken, st);
    c->broken.status = FS_DEVICE;
    fs_error_raise(&c->broken);
    for (int r = 0; r < c->size; r++) {
        if (!c->comms[r]) continue;
        c->devices[r]->cu->context_set(c->devices[r]->context);
        c->nccl->abort_comm(c->comms[r]);
        c->comms[r] = NULL;
    }
}

static uint32_t reached(const fs_comm *c, int rank) { return __atomic_load_n(&c->reached[rank], __ATOMIC_ACQUIRE); }

/* Whose host has not enqueued what others have, else whose GPU has not reached what others' have; -1: nobody's. */
static int missing(const fs_comm *c) {
    uint32_t low = UINT32_MAX, high = 0, most = 0;
    int behind = -1;
    for (int r = 0; r < c->size; r++) {
        const uint32_t at = reached(c, r);
        if (at < low) low = at, behind = r;
        if (at > high) high = at;
        if (c->enqueued[r] > most) most = c->enqueued[r];
    }
    for (int r = 0; r < c->size; r++)
        if (c->enqueued[r] == low && most > low) return r;
    return low < high ? behind : -1;
}

static fs_status too_late(const fs_comm *c) {
    int rank = missing(c);
    if (rank < 0)
        return fs_fail(
            FS_DEVICE,
            "%s ... %s: a collective was given up after %g s: all %d ranks have reached it, and it did not end; "
            "NCCL_DEBUG=INFO tells more, FIRESTEEL_COLLECTIVE_SECONDS waits longer",
            c->devices[0]->head.name, c->devices[c->size - 1]->head.name, c->deadline_seconds, c->size);
    return fs_fail(
        FS_DEVICE,
        "a collective over %d GPUs was given up after %g s: rank %d (%s) did not take part in it; see what holds "
        "that GPU, or raise FIRESTEEL_COLLECTIVE_SECONDS",
        c->size, c->deadline_seconds, rank, c->devices[rank]->head.name);
}

/* What NCCL reports of any rank. `busy`: one of them is still at something, or, where one is named, that one. */
static fs_status ask_all(fs_comm *c, int rank, int *busy) {
    *busy = 0;
    for (int r = 0; r < c->size; r++) {
        int error = 0;
        FS_TRY(check(c, r, c->nccl->async_error(c->comms[r], &error), "asking for the group's state"));
        FS_TRY(check(c, r, error, "a collective"));
        *busy |= error == FS_NCCL_IN_PROGRESS && (rank < 0 || r == rank);
    }
    return FS_OK;
}

/* A deadline that starts anew whenever a rank reaches a collective. */
typedef struct {
    double end;
    uint32_t reached; /* by all ranks together */
} watch;

static watch watch_start(const fs_comm *c) { return (watch){ .end = now() + c->deadline_seconds }; }

/* One look of a wait: breaks the group where it has failed or is too late; the failure of a broken one. */
static fs_status look(fs_comm *c, watch *w, int rank, int *busy) {
    fs_status st = FS_OK;
    uint32_t sum = 0;
    pthread_mutex_lock(&c->lock);
    if (c->broken.status == FS_OK) {
        for (int r = 0; r < c->size; r++) sum += reached(c, r);
        if (sum != w->reached) *w = (watch){ .end = now() + c->deadline_seconds, .reached = sum };
        st = ask_all(c, rank, busy);
        if (st == FS_OK && now() > w->end) st = too_late(c);
        if (st != FS_OK) break_group(c, st);
    }
    if (c->broken.status != FS_OK) st = fs_error_raise(&c->broken);
    pthread_mutex_unlock(&c->lock);
    return st;
}

static fs_status connect_ranks(fs_comm *c) {
    fs_nccl_id id;
    int busy = 1;
    FS_TRY(check(c, 0, c->nccl->unique_id(&id), "naming the group"));
    FS_TRY(check(c, 0, c->nccl->group_start(), "opening the group"));
    fs_status st = FS_OK;
    for (int r = 0; r < c->size && st == FS_OK; r++) {
        fs_nccl_config config = { .size = sizeof config,
                                  .magic = FS_NCCL_MAGIC,
                                  .version = FS_NCCL_2_18,
                                  .blocking = 0,
                                  .cluster_size = FS_NCCL_UNSET,
                                  .min_blocks = FS_NCCL_UNSET,
                                  .max_blocks = FS_NCCL_UNSET,
                                  .split_share = FS_NCCL_UNSET };
        st = fs_cuda_enter(c->devices[r]);
        if (st == FS_OK)
            st = check(c, r, c->nccl->init_rank(&c->comms[r], c->size, id, r, &config), "joining the group");
    }
    int ended = c->nccl->group_end();
    FS_TRY(st);
    FS_TRY(check(c, 0, ended, "opening the group"));
    for (watch w = watch_start(c);; rest()) {
        FS_TRY(look(c, &w, -1, &busy));
        if (!busy) return FS_OK;
    }
}

static fs_status open_marks(fs_comm *c) {
    fs_cuda_device *d = c->devices[0];
    void *at;
    FS_TRY(fs_cuda_enter(d));
    FS_TRY(fs_cuda_check(d, d->cu->pinned_alloc(&at, MOST_RANKS * sizeof *c->reached, FS_CU_HOST_PORTABLE),
                         "pinning host memory"));
    memset(at, 0, MOST_RANKS * sizeof *c->reached);
    c->reached = at;
    return FS_OK;
}

fs_status fs_cuda_comm_open(fs_comm **out, fs_device *const ranks[], int size, double deadline_seconds) {
    fs_status st = FS_OK;
    fs_comm *c = NULL;
    const fs_nccl_api *nccl;
    *out = NULL;
    if (size < 1 || size > MOST_RANKS)
        return fs_fail(FS_CONFIG, "a tensor group of %d GPUs cannot be; it has 1 to %d", size, MOST_RANKS);
    for (int r = 0; r < size; r++)
        if (ranks[r]->backend != &fs_cuda_backend)
            return fs_fail(FS_CONFIG, "rank %d of a tensor group is %s; all ranks must be devices of the cuda backend",
                           r, ranks[r]->name);
    FS_TRY(fs_nccl_open(&nccl));
    FS_TRY(fs_alloc(&c, 1, sizeof *c));
    c->nccl = nccl, c->size = size, c->deadline_seconds = deadline_seconds;
    for (int r = 0; r < size; r++) c->devices[r] = fs_cuda(ranks[r]);
    pthread_mutex_init(&c->lock, NULL);
    FS_GO(open_marks(c));
    FS_GO(connect_ranks(c));
    pthread_mutex_lock(&open_lock);
    c->next = open_groups, open_groups = c;
    pthread_mutex_unlock(&open_lock);
    *out = c;
    return FS_OK;
done:
    break_group(c, st);
    fs_cuda_comm_close(c);
    return st;
}

static void leave_list(fs_comm *c) {
    pthread_mutex_lock(&open_lock);
    for (fs_comm **at = &open_groups; *at; at = &(*at)->next)
        if (*at == c) {
            *at = c->next;
            break;
        }
    pthread_mutex_unlock(&open_lock);
}

void fs_cuda_comm_close(fs_comm *c) {
    if (!c) return;
    leave_list(c);
    for (int r = 0; r < c->size; r++)
        if (c->comms[r]) {
            c->devices[r]->cu->context_set(c->devices[r]->context);
            c->nccl->destroy(c->comms[r]);
        }
    c->devices[0]->cu->context_set(c->devices[0]->context);
    if (c->reached) c->devices[0]->cu->pinned_free(c->reached);
    pthread_mutex_destroy(&c->lock);
    fs_free(c);
}

void fs_cuda_comms_fail(fs_cuda_device *d, fs_status st) {
    pthread_mutex_lock(&open_lock);
    for (fs_comm *c = open_groups; c; c = c->next) {
        int member = 0;
        for (int r = 0; r < c->size; r++) member |= c->devices[r] == d;
        if (!member) continue;
        pthread_mutex_lock(&c->lock);
        break_group(c, st);
        pthread_mutex_unlock(&c->lock);
        d->cu->context_set(d->context); /* the caller's */
    }
    pthread_mutex_unlock(&open_lock);
}

/* The mark first: a rank that has not written it is who the others wait for. */
static fs_status enqueue_gather(fs_comm *c, fs_queue *q, int rank, fs_view x, fs_view parts) {
    const fs_cu_address mark = (fs_cu_address)(uintptr_t)&c->reached[rank];
    FS_TRY(fs_cu_check(q->device->cu, q->device->cu->write_value(q->stream, mark, ++c->enqueued[rank], 0),
                       q->device->head.name, "marking a collective"));
    int result =
        c->nccl->all_gather(x.at, parts.at, (size_t)(x.rows * x.cols), FS_NCCL_FLOAT, c->comms[rank], q->stream);
    return check(c, rank, result, "a collective");
}

/* The first collective connects the ranks, behind our back: until it has, nothing may be enqueued behind it. */
static fs_status gather_parts(fs_comm *c, fs_queue *q, int rank, fs_view x, fs_view parts) {
    fs_status st = FS_OK;
    int busy = 1;
    pthread_mutex_lock(&c->lock);
    if (c->broken.status == FS_OK) {
        st = enqueue_gather(c, q, rank, x, parts);
        if (st != FS_OK) break_group(c, st);
    }
    if (c->broken.status != FS_OK) st = fs_error_raise(&c->broken);
    pthread_mutex_unlock(&c->lock);
    FS_TRY(st);
    for (watch w = watch_start(c);; rest()) {
        FS_TRY(look(c, &w, rank, &busy));
        if (!busy) return FS_OK;
    }
}

fs_status fs_cuda_all_reduce(fs_step *s, fs_view x) {
    size_t mark = fs_arena_mark(s->arena);
    fs_view parts;
    if (!s->comm || s->ranks < 2) return FS_OK;
    if (x.dtype != FS_F32 || x.stride != x.cols) return fs_misfit(s, "all_reduce", x, x);
    if (x.rows == 0) return FS_OK;
    FS_TRY(fs_arena_view(s->arena, FS_F32, s->ranks * x.rows, x.cols, &parts));
    FS_TRY(fs_cuda_enter(s->queue->device));
    s->queue->comm = s->comm;
    FS_TRY(gather_parts(s->comm, s->queue, s->rank, x, parts));
    const fs_cuda_sum a = { .y = x.at, .x = parts.at, .count = x.rows * x.cols, .parts = s->ranks };
    FS_TRY(fs_cuda_launch(s->queue, FS_CUDA_fs_sum_kernel, (fs_cuda_grid){ fs_cuda_blocks(a.count, 256), 1, 1 }, &a));
    fs_arena_reset(s->arena, mark);
    return FS_OK;
}

/* In a group that was broken meanwhile, what came to its end may not have gathered. */
fs_status fs_cuda_comm_wait(fs_comm *c, fs_cuda_device *d, fs_cu_event event) {
    watch w = watch_start(c);
    int result, busy;
    for (; (result = d->cu->event_query(event)) == FS_CU_NOT_READY; rest()) FS_TRY(look(c, &w, -1, &busy));
    FS_TRY(fs_cuda_check(d, result, "running a step"));
    pthread_mutex_lock(&c->lock);
    fs_status st = c->broken.status == FS_OK ? FS_OK : fs_error_raise(&c->broken);
    pthread_mutex_unlock(&c->lock);
    return st;
}
