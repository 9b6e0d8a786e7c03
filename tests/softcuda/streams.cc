/* streams.cc - streams, events and captured graphs.
 *
 * A stream keeps what is enqueued until somebody waits for it: work of different streams runs as late, and as much out
 * of step, as the program allows, so that a missing wait shows in results. SOFTCUDA_DEFER=0 runs everything at once.
 *
 * A captured graph is its items in the order they were enqueued, which is one of the orders it allows. */
#include "softcuda.h"

#include <ctime>

static world &w = softcuda_world;

enum { NON_BLOCKING = 1, DISABLE_TIMING = 2 };

/* -- running what is queued ---------------------------------------------------------------------------------------- */

static bool reached(const mark &m) { return !m.of || m.of->done >= m.count; }

static mark end_of(const std::shared_ptr<stream> &s) { return { s, s->enqueued }; }

/* A device that has failed does nothing more: its work is dropped. */
static void run_front(call &c, const std::shared_ptr<stream> &s) {
    item front = std::move(s->queue.front());
    device *d = s->owner;
    outcome result;
    s->queue.pop_front();
    s->busy = true;
    if (front.with && !d->sticky.code) softcuda_perform(*front.with);
    if (front.run && !d->sticky.code) {
        c.lock.unlock();
        result = front.run();
        c.lock.lock();
    }
    s->busy = false;
    s->done++;
    if (result.code && !d->sticky.code) {
        d->sticky = result;
        softcuda_note(result.what);
    }
    w.moved.notify_all();
}

enum progress { MOVED, BUSY /* another thread is at it */, BLOCKED /* by a rank that has not come */ };

/* What the first item of `s` waits for: another stream's work, or nothing. False: nobody here can bring it about. */
static bool first_need(const stream &s, std::shared_ptr<stream> *other) {
    const item &front = s.queue.front();
    if (s.owner->sticky.code) return true;
    if (!reached(front.wait)) return *other = front.wait.of, true;
    return !front.with || softcuda_all_here(*front.with, &s, other) || *other;
}

/* Runs one item that brings `s` nearer to its end: its first, or one that this waits for. */
static progress advance(call &c, std::shared_ptr<stream> s) {
    for (int hops = 0; hops < 1000; hops++) { /* more are a circle: ranks that wait for each other */
        std::shared_ptr<stream> other;
        if (s->busy) return BUSY;
        if (s->queue.empty() || !first_need(*s, &other)) return BLOCKED;
        if (!other) return run_front(c, s), MOVED;
        s = other;
    }
    return BLOCKED;
}

void softcuda_run_to(call &c, const mark &to) {
    while (!reached(to)) {
        if (advance(c, to.of) != MOVED) w.moved.wait(c.lock);
    }
}

/* As far as it goes without other ranks, who may be waiting for this thread. */
static void run_at_once(call &c, const mark &to) {
    while (!reached(to)) {
        progress made = advance(c, to.of);
        if (made == BLOCKED) return;
        if (made == BUSY) w.moved.wait(c.lock);
    }
}

static std::vector<std::shared_ptr<stream>> streams_of(const device *d) {
    std::vector<std::shared_ptr<stream>> found;
    if (d->null_stream) found.push_back(d->null_stream);
    for (const auto &entry : w.live) {
        std::shared_ptr<stream> s = std::dynamic_pointer_cast<stream>(entry.second);
        if (s && s->owner == d) found.push_back(s);
    }
    return found;
}

void softcuda_drain(call &c, device *d) {
    for (const auto &s : streams_of(d)) softcuda_run_to(c, end_of(s));
}

void softcuda_forget_work(stream *s) {
    s->queue.clear();
    s->done = s->enqueued;
    s->capturing.reset();
    w.moved.notify_all();
}

bool softcuda_capturing(device *d, int mode_at_most) {
    for (const auto &s : streams_of(d)) {
        if (!s->capturing || s->capturing->mode > mode_at_most) continue;
        s->capturing->spoiled = true;
        return true;
    }
    return false;
}

CUresult softcuda_stream(call &c, const void *handle, std::shared_ptr<stream> *out) {
    *out = handle ? softcuda_find<stream>(handle) : c.current->null_stream;
    if (!*out) return c.refuse(CUDA_ERROR_INVALID_HANDLE, "%p is no stream", handle);
    if ((*out)->owner != c.current) {
        return c.refuse(CUDA_ERROR_INVALID_HANDLE, "a stream of device %d, while device %d is current",
                        (*out)->owner->ordinal, c.current->ordinal);
    }
    return CUDA_SUCCESS;
}

/* The legacy stream runs after all that blocking streams hold, and before what they are given later. */
static void run_legacy(call &c, const std::shared_ptr<stream> &s) {
    for (const auto &other : streams_of(s->owner)) {
        if (!(other->flags & NON_BLOCKING)) softcuda_run_to(c, end_of(other));
    }
}

CUresult softcuda_put(call &c, const std::shared_ptr<stream> &s, item work) {
    if (s->capturing) {
        capture &to = *s->capturing;
        if (to.spoiled) return c.refuse(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "this capture has failed before");
        to.items.push_back(std::move(work));
        to.streams[s.get()].items++;
        to.streams[s.get()].waited = false;
        return c.status;
    }
    bool legacy = s == s->owner->null_stream;
    if (legacy) run_legacy(c, s);
    s->queue.push_back(std::move(work));
    s->enqueued++;
    w.moved.notify_all(); /* another rank may wait for this one to come */
    if (legacy) softcuda_run_to(c, end_of(s));
    else if (!w.set.defer) run_at_once(c, end_of(s));
    return c.status;
}

CUresult softcuda_enqueue(call &c, const std::shared_ptr<stream> &s, std::function<outcome()> run) {
    return softcuda_put(c, s, { std::move(run), {}, {} });
}

/* -- streams ------------------------------------------------------------------------------------------------------- */

CU(cuStreamCreate, void **out, unsigned flags) {
    ENTER(NEEDS_CONTEXT);
    if (flags > NON_BLOCKING) return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuStreamCreate: flags %#x", flags);
    std::shared_ptr<stream> s = softcuda_make<stream>(c.current);
    s->flags = flags;
    *out = s.get();
    return c.status;
}

CU(cuStreamDestroy_v2, void *handle) {
    ENTER(NEEDS_CONTEXT | RELEASES);
    std::shared_ptr<stream> s = softcuda_find<stream>(handle);
    if (!s) return c.refuse(CUDA_ERROR_INVALID_HANDLE, "%p is no stream", handle);
    softcuda_run_to(c, end_of(s));
    w.live.erase(handle);
    return c.status;
}

/* Waiting for a stream that is captured is not possible, and ends the capture. */
static CUresult waitable(call &c, const std::shared_ptr<stream> &s) {
    if (!s->capturing) return CUDA_SUCCESS;
    s->capturing->spoiled = true;
    return c.refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a stream that is being captured cannot be waited for");
}

CU(cuStreamSynchronize, void *handle) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<stream> s;
    CUresult status = softcuda_stream(c, handle, &s);
    if (!status) status = waitable(c, s);
    if (status) return status;
    softcuda_run_to(c, end_of(s));
    return c.current->sticky.code;
}

/* Runs one item each time, so that whoever polls comes to an end. */
CU(cuStreamQuery, void *handle) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<stream> s;
    CUresult status = softcuda_stream(c, handle, &s);
    if (!status) status = waitable(c, s);
    if (status) return status;
    if (reached(end_of(s))) return c.status;
    advance(c, s);
    return c.current->sticky.code ? c.current->sticky.code : CUDA_ERROR_NOT_READY;
}

CU(cuCtxSynchronize) {
    ENTER(NEEDS_CONTEXT);
    if (softcuda_capturing(c.current, 2)) {
        return c.refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuCtxSynchronize while a stream is captured");
    }
    softcuda_drain(c, c.current);
    return c.current->sticky.code;
}

/* -- events -------------------------------------------------------------------------------------------------------- */

static double milliseconds() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
}

static CUresult find_event(call &c, const void *handle, std::shared_ptr<event> *out) {
    *out = softcuda_find<event>(handle);
    return *out ? CUDA_SUCCESS : c.refuse(CUDA_ERROR_INVALID_HANDLE, "%p is no event", handle);
}

/* The same, for those who would wait: an event that stands for a place in a graph has no time of its own. */
static CUresult find_waitable(call &c, const void *handle, std::shared_ptr<event> *out) {
    CUresult status = find_event(c, handle, out);
    if (status) return status;
    std::shared_ptr<capture> in = (*out)->captured.lock();
    if (!in) return CUDA_SUCCESS;
    in->spoiled = true;
    return c.refuse(CUDA_ERROR_CAPTURED_EVENT, "an event recorded in a capture cannot be waited for");
}

CU(cuEventCreate, void **out, unsigned flags) {
    ENTER(NEEDS_CONTEXT);
    if (flags & ~3u) return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuEventCreate: flags %#x", flags);
    std::shared_ptr<event> e = softcuda_make<event>(c.current);
    e->flags = flags;
    *out = e.get();
    return c.status;
}

CU(cuEventDestroy_v2, void *handle) {
    ENTER(NEEDS_CONTEXT | RELEASES);
    std::shared_ptr<event> e;
    CUresult status = find_event(c, handle, &e);
    if (status) return status;
    w.live.erase(handle);
    return c.status;
}

CU(cuEventRecord, void *handle, void *on) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<event> e;
    std::shared_ptr<stream> s;
    CUresult status = find_event(c, handle, &e);
    if (!status) status = softcuda_stream(c, on, &s);
    if (status) return status;
    if (e->owner != c.current) {
        return c.refuse(CUDA_ERROR_INVALID_HANDLE, "an event of device %d, recorded on device %d", e->owner->ordinal,
                        c.current->ordinal);
    }
    if (s->capturing) {
        e->captured = s->capturing, e->captured_in = s;
        e->captured_items = s->capturing->streams[s.get()].items;
        return c.status;
    }
    std::shared_ptr<double> when = std::make_shared<double>(0.0);
    e->captured.reset();
    e->recorded = true;
    e->at = { s, s->enqueued + 1 };
    e->when = when;
    return softcuda_enqueue(c, s, [when] { return *when = milliseconds(), outcome(); });
}

/* Inside a capture: `s` joins it, or takes back a stream that had joined. */
static CUresult wait_captured(call &c, const std::shared_ptr<stream> &s, const event &e,
                              const std::shared_ptr<capture> &in) {
    std::shared_ptr<stream> other = e.captured_in.lock();
    if (s->capturing && s->capturing != in) return c.refuse(CUDA_ERROR_INVALID_VALUE, "two captures cannot be joined");
    if (!s->capturing) s->capturing = in;
    in->streams[s.get()].waited = false;
    if (other && other != s && in->streams[other.get()].items == e.captured_items)
        in->streams[other.get()].waited = true;
    return c.status;
}

CU(cuStreamWaitEvent, void *on, void *handle, unsigned flags) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<event> e;
    std::shared_ptr<stream> s;
    CUresult status = find_event(c, handle, &e);
    if (!status) status = softcuda_stream(c, on, &s);
    if (status) return status;
    if (flags) return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuStreamWaitEvent: flags are 0");
    if (std::shared_ptr<capture> in = e->captured.lock()) return wait_captured(c, s, *e, in);
    if (s->capturing) {
        s->capturing->spoiled = true;
        return c.refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                        "a captured stream waits for an event outside its graph");
    }
    return e->recorded ? softcuda_put(c, s, { nullptr, e->at, {} }) : c.status;
}

/* What failed on the event's own device comes out, whichever is current. */
CU(cuEventSynchronize, void *handle) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<event> e;
    CUresult status = find_waitable(c, handle, &e);
    if (status) return status;
    softcuda_run_to(c, e->at);
    return e->owner->sticky.code;
}

CU(cuEventQuery, void *handle) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<event> e;
    CUresult status = find_waitable(c, handle, &e);
    if (status) return status;
    if (reached(e->at)) return e->owner->sticky.code;
    advance(c, e->at.of);
    return e->owner->sticky.code ? e->owner->sticky.code : CUDA_ERROR_NOT_READY;
}

CU(cuEventElapsedTime, float *out, void *from, void *to) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<event> a, b;
    CUresult status = find_waitable(c, from, &a);
    if (!status) status = find_waitable(c, to, &b);
    if (status) return status;
    if (!a->recorded || !b->recorded || (a->flags | b->flags) & DISABLE_TIMING) {
        return c.refuse(CUDA_ERROR_INVALID_HANDLE, "cuEventElapsedTime: an event without a time");
    }
    if (!reached(a->at) || !reached(b->at)) return CUDA_ERROR_NOT_READY;
    *out = static_cast<float>(*b->when - *a->when);
    return c.status;
}

/* -- graphs -------------------------------------------------------------------------------------------------------- */

CU(cuStreamBeginCapture_v2, void *handle, int mode) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<stream> s;
    CUresult status = softcuda_stream(c, handle, &s);
    if (status) return status;
    if (mode < 0 || mode > 2) return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuStreamBeginCapture: mode %d", mode);
    if (!handle) return c.refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy stream cannot be captured");
    if (s->capturing) return c.refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "this stream is being captured");
    s->capturing = std::make_shared<capture>();
    s->capturing->origin = s.get();
    s->capturing->mode = mode;
    s->capturing->streams[s.get()];
    return c.status;
}

static bool all_joined(const capture &of) {
    for (const auto &entry : of.streams) {
        if (entry.first != of.origin && !entry.second.waited) return false;
    }
    return true;
}

CU(cuStreamEndCapture, void *handle, void **out) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<stream> s;
    CUresult status = softcuda_stream(c, handle, &s);
    if (status) return status;
    *out = nullptr;
    std::shared_ptr<capture> of = s->capturing;
    if (!of || of->origin != s.get())
        return c.refuse(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "no capture began in this stream");
    for (const auto &entry : of->streams) entry.first->capturing.reset();
    if (of->spoiled)
        return c.refuse(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "something in this capture was not allowed");
    if (!all_joined(*of))
        return c.refuse(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "a stream of this capture was not waited for");
    std::shared_ptr<graph> g = softcuda_make<graph>(c.current);
    g->items = std::make_shared<std::vector<item>>(std::move(of->items));
    *out = g.get();
    return c.status;
}

CU(cuGraphInstantiateWithFlags, void **out, void *handle, unsigned long long flags) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<graph> g = softcuda_find<graph>(handle);
    if (!g) return c.refuse(CUDA_ERROR_INVALID_VALUE, "%p is no graph", handle);
    if (flags) return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuGraphInstantiateWithFlags: flags %#llx", flags);
    std::shared_ptr<graph_exec> exec = softcuda_make<graph_exec>(g->owner);
    exec->items = g->items;
    *out = exec.get();
    return c.status;
}

CU(cuGraphLaunch, void *handle, void *on) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<graph_exec> exec = softcuda_find<graph_exec>(handle);
    std::shared_ptr<stream> s;
    if (!exec || exec->owner != c.current)
        return c.refuse(CUDA_ERROR_INVALID_VALUE, "%p is no graph of this device", handle);
    CUresult status = softcuda_stream(c, on, &s);
    if (status) return status;
    std::shared_ptr<std::vector<item>> items = exec->items;
    return softcuda_enqueue(c, s, [items] {
        outcome result;
        for (size_t i = 0; i < items->size() && !result.code; i++) result = (*items)[i].run();
        return result;
    });
}

CU(cuGraphExecDestroy, void *handle) {
    ENTER(NEEDS_CONTEXT | RELEASES);
    if (!softcuda_find<graph_exec>(handle)) return c.refuse(CUDA_ERROR_INVALID_VALUE, "%p is no graph", handle);
    w.live.erase(handle);
    return c.status;
}

CU(cuGraphDestroy, void *handle) {
    ENTER(NEEDS_CONTEXT | RELEASES);
    if (!softcuda_find<graph>(handle)) return c.refuse(CUDA_ERROR_INVALID_VALUE, "%p is no graph", handle);
    w.live.erase(handle);
    return c.status;
}
