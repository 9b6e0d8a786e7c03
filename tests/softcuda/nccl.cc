/* nccl.cc - NCCL in software, as far as csrc/backends/cuda calls it: non-blocking communicators and all-gather.
 *
 * A collective is one item in a stream of every rank. It can run when all ranks have come to it; whoever runs it first
 * copies for all of them, so no rank can change what another still reads. A rank that never comes leaves the others
 * where they are, as on real devices, until they abort. With SOFTCUDA_CONNECT the first collective of a communicator is
 * enqueued behind the caller's back, while it asks how that is going: what the caller has put into the stream meanwhile
 * runs before it. */
#include "softcuda.h"

static world &w = softcuda_world;

enum {
    SUCCESS,
    UNHANDLED_CUDA_ERROR,
    SYSTEM_ERROR,
    INTERNAL_ERROR,
    INVALID_ARGUMENT,
    INVALID_USAGE,
    REMOTE_ERROR,
    IN_PROGRESS
};
enum { VERSION = 22304, MAGIC = 0xcafebeef };

struct communicator;

struct group {
    int ranks = 0, joined = 0;
    bool disagreed = false;
    std::vector<std::weak_ptr<communicator>> members; /* by rank */
    std::map<size_t, std::shared_ptr<collective>> collectives; /* those that some ranks have yet to enqueue */
};

/* What one rank brings. It has come when all before it in its stream is done. */
struct part {
    std::shared_ptr<communicator> by;
    std::shared_ptr<stream> of;
    long long before = 0;
    const void *from = nullptr;
    void *to = nullptr;
    size_t bytes = 0;
};

struct communicator : object {
    std::shared_ptr<group> in;
    size_t enqueued = 0;
    bool aborted = false, asked = false, connected = false;
    int polls = 0; /* until `first` is enqueued */
    part first;    /* without `by`, which would be a circle */
};

struct collective {
    std::weak_ptr<group> in;
    std::vector<part> parts; /* by rank; none any more once it is performed */
    bool performed = false;
};

struct unique_id {
    char bytes[128];
};

struct config {
    size_t size;
    unsigned magic, version;
    int blocking;
};

static std::map<std::string, std::shared_ptr<group>> groups; /* those that some ranks have yet to join */

/* -- running ------------------------------------------------------------------------------------------------------- */

bool softcuda_all_here(const collective &all, const stream *asking, std::shared_ptr<stream> *behind) {
    if (all.performed) return true;
    bool here = true;
    for (const part &p : all.parts) {
        if (p.of && p.of.get() == asking && p.by->aborted) return behind->reset(), true;
        if (!p.of || p.of->done != p.before) here = false;
        if (p.of && p.of->done < p.before && !*behind) *behind = p.of;
    }
    return here;
}

static bool agree(const std::vector<part> &parts) {
    for (const part &p : parts) {
        if (p.bytes != parts[0].bytes) return false;
    }
    return true;
}

void softcuda_perform(collective &all) {
    std::shared_ptr<stream> behind;
    if (all.performed || !softcuda_all_here(all, nullptr, &behind)) return; /* the latter for a rank that gave up */
    std::vector<part> parts = std::move(all.parts);
    all.performed = true;
    if (!agree(parts)) {
        if (std::shared_ptr<group> in = all.in.lock()) in->disagreed = true;
        softcuda_note("ranks disagree about the size of a collective");
        return;
    }
    for (const part &to : parts) {
        char *at = static_cast<char *>(to.to);
        for (const part &from : parts) std::memmove(at, from.from, from.bytes), at += from.bytes;
    }
}

void softcuda_groups_clear() { groups.clear(); }

/* -- calls --------------------------------------------------------------------------------------------------------- */

/* A refused call, in NCCL's numbers. */
#define ENTER_NCCL(needs)                                                                                              \
    call c(__func__, needs);                                                                                           \
    if (c.stop) return c.current ? UNHANDLED_CUDA_ERROR : SYSTEM_ERROR

#define NCCL(name, ...) SOFTCUDA_EXPORT int name(__VA_ARGS__)

NCCL(ncclGetVersion, int *out) {
    ENTER_NCCL(NEEDS_NOTHING);
    *out = VERSION;
    return SUCCESS;
}

SOFTCUDA_EXPORT const char *ncclGetErrorString(int code) {
    static const char *const texts[] = { "no error",
                                         "unhandled cuda error",
                                         "unhandled system error",
                                         "internal error",
                                         "invalid argument",
                                         "invalid usage",
                                         "remote process exited or there was a network error",
                                         "NCCL operation in progress" };
    return code >= 0 && code <= IN_PROGRESS ? texts[code] : "unknown result code";
}

NCCL(ncclGetUniqueId, unique_id *out) {
    static int made;
    ENTER_NCCL(NEEDS_NOTHING);
    std::memset(out, 0, sizeof *out);
    std::snprintf(out->bytes, sizeof out->bytes, "softcuda group %d", ++made);
    return SUCCESS;
}

NCCL(ncclGroupStart) {
    ENTER_NCCL(NEEDS_NOTHING);
    softcuda_now.nccl_groups++;
    return SUCCESS;
}

NCCL(ncclGroupEnd) {
    ENTER_NCCL(NEEDS_NOTHING | RELEASES);
    if (!softcuda_now.nccl_groups) return c.refuse(INVALID_USAGE, "ncclGroupEnd without a start");
    softcuda_now.nccl_groups--;
    return c.status ? SYSTEM_ERROR : SUCCESS;
}

static bool device_taken(const group &g, const device *d) {
    for (const auto &member : g.members) {
        std::shared_ptr<communicator> there = member.lock();
        if (there && there->owner == d) return true;
    }
    return false;
}

NCCL(ncclCommInitRankConfig, communicator **out, int ranks, unique_id id, int rank, const config *how) {
    ENTER_NCCL(NEEDS_CONTEXT);
    if (!how || how->size < sizeof *how || how->magic != MAGIC || how->blocking) {
        return c.refuse(INVALID_ARGUMENT, "the software NCCL wants a config that says it must not block");
    }
    if (ranks < 1 || rank < 0 || rank >= ranks) return c.refuse(INVALID_ARGUMENT, "rank %d of %d", rank, ranks);
    std::shared_ptr<group> &g = groups[id.bytes];
    if (!g) {
        g = std::make_shared<group>();
        g->ranks = ranks;
        g->members.resize(static_cast<size_t>(ranks));
    }
    if (g->ranks != ranks || g->members[static_cast<size_t>(rank)].lock() || device_taken(*g, c.current)) {
        return c.refuse(INVALID_USAGE, "rank %d of %d is there already, or on a device that another rank has", rank,
                        ranks);
    }
    std::shared_ptr<communicator> made = softcuda_make<communicator>(c.current);
    made->in = g;
    g->members[static_cast<size_t>(rank)] = made;
    *out = made.get();
    if (++g->joined == ranks) groups.erase(id.bytes);
    return IN_PROGRESS;
}

/* Puts a rank's part into the n-th collective of its group. */
static std::shared_ptr<collective> take_part(const std::shared_ptr<group> &g, size_t n, size_t rank, const part &mine) {
    std::shared_ptr<collective> &all = g->collectives[n];
    if (!all) {
        all = std::make_shared<collective>();
        all->in = g;
        all->parts.resize(static_cast<size_t>(g->ranks));
    }
    std::shared_ptr<collective> found = all;
    found->parts[rank] = mine;
    for (const part &p : found->parts) {
        if (!p.of) return found;
    }
    g->collectives.erase(n);
    return found;
}

/* A collective with a rank that never comes: the stream stays there until its communicator is aborted. */
static int hang(call &c, const std::shared_ptr<communicator> &comm, const std::shared_ptr<stream> &s) {
    item stuck;
    stuck.with = std::make_shared<collective>();
    stuck.with->parts = { { comm, s, s->enqueued, nullptr, nullptr, 0 }, {} };
    return softcuda_put(c, s, std::move(stuck)) ? UNHANDLED_CUDA_ERROR : SUCCESS;
}

static int enqueue(call &c, const std::shared_ptr<communicator> &comm, part mine) {
    std::shared_ptr<stream> s = mine.of;
    size_t rank = 0;
    while (comm->in->members[rank].lock() != comm) rank++;
    mine.by = comm, mine.before = s->enqueued;
    item work;
    work.with = take_part(comm->in, comm->enqueued++, rank, mine);
    if (softcuda_put(c, s, std::move(work))) return UNHANDLED_CUDA_ERROR;
    return static_cast<int>(rank) == w.set.hang ? hang(c, comm, s) : SUCCESS;
}

/* In progress until all ranks have joined, the first time it is asked, and while the first collective connects. */
NCCL(ncclCommGetAsyncError, const communicator *handle, int *out) {
    ENTER_NCCL(NEEDS_INIT);
    std::shared_ptr<communicator> comm = softcuda_find<communicator>(handle);
    if (!comm) return c.refuse(INVALID_ARGUMENT, "%p is no communicator", static_cast<const void *>(handle));
    bool busy = comm->in->joined < comm->in->ranks || !comm->asked || comm->polls;
    comm->asked = true;
    if (comm->polls && --comm->polls == 0 && enqueue(c, comm, std::move(comm->first))) return UNHANDLED_CUDA_ERROR;
    *out = comm->in->disagreed ? INVALID_USAGE : busy ? IN_PROGRESS : SUCCESS;
    return SUCCESS;
}

/* Ends a communicator; its collectives that have not run do nothing, if `aborted`, or still wait for all ranks. */
static int end(call &c, const communicator *handle, bool aborted) {
    std::shared_ptr<communicator> comm = softcuda_find<communicator>(handle);
    if (!comm) return c.refuse(INVALID_ARGUMENT, "%p is no communicator", static_cast<const void *>(handle));
    comm->aborted = aborted;
    w.live.erase(const_cast<communicator *>(handle));
    w.moved.notify_all();
    return c.status ? SYSTEM_ERROR : SUCCESS;
}

NCCL(ncclCommDestroy, const communicator *handle) {
    ENTER_NCCL(NEEDS_INIT | RELEASES);
    return end(c, handle, false);
}

NCCL(ncclCommAbort, const communicator *handle) {
    ENTER_NCCL(NEEDS_INIT | RELEASES);
    return end(c, handle, true);
}

/* Bytes of ncclDataType_t: int8, uint8, int32, uint32, int64, uint64, half, float, double, bfloat16. */
static size_t bytes_of(int type) {
    static const size_t bytes[] = { 1, 1, 4, 4, 8, 8, 2, 4, 8, 2 };
    return type >= 0 && type < 10 ? bytes[type] : 0;
}

static bool usable(const device *d, const void *at, size_t bytes) {
    return softcuda_inside(d->memory, reinterpret_cast<uintptr_t>(at), bytes);
}

NCCL(ncclAllGather, const void *from, void *to, size_t count, int type, const communicator *handle, const void *on) {
    ENTER_NCCL(NEEDS_CONTEXT);
    std::shared_ptr<communicator> comm = softcuda_find<communicator>(handle);
    std::shared_ptr<stream> s;
    if (!comm || softcuda_stream(c, on, &s) || s->owner != comm->owner || s->capturing) {
        return c.refuse(INVALID_ARGUMENT,
                        "ncclAllGather: a communicator and a stream of the current device are wanted");
    }
    group &g = *comm->in;
    size_t bytes = count * bytes_of(type), all = bytes * static_cast<size_t>(g.ranks);
    if (g.joined < g.ranks) return c.refuse(INVALID_USAGE, "ncclAllGather before all ranks have joined");
    if (!bytes || !usable(c.current, from, bytes) || !usable(c.current, to, all)) {
        return c.refuse(INVALID_ARGUMENT, "ncclAllGather: %zu bytes, and %zu, are not in memory of device %d", bytes,
                        all, c.current->ordinal);
    }
    if (comm->polls) return c.refuse(INVALID_USAGE, "ncclAllGather while the first one is in progress");
    part mine = { nullptr, s, 0, from, to, bytes };
    if (w.set.connect > 0 && !comm->connected) {
        comm->connected = true, comm->polls = w.set.connect, comm->first = mine;
        return IN_PROGRESS;
    }
    return enqueue(c, comm, mine);
}
