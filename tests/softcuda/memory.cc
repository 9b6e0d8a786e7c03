/* memory.cc - device memory and pinned memory, as allocations of the host's heap.
 *
 * Each is filled with 0xff, or what SOFTCUDA_FRESH says, and lies between guards that are looked at after every launch;
 * under AddressSanitizer its redzones do that at once. What a copy or fill is given must lie in one live allocation of
 * the right kind and device, when it is enqueued and again when it runs: memory that was freed too early is found. */
#include "softcuda.h"

#include <cstdio>
#include <cstdlib>

#ifdef __SANITIZE_ADDRESS__
static const size_t guard_bytes = 0;
#else
static const size_t guard_bytes = 256;
#endif
static const size_t align = 256;
static const unsigned char guard_fill = 0xa5;

static world &w = softcuda_world;

/* -- allocations --------------------------------------------------------------------------------------------------- */

static void *obtain(size_t bytes) {
    void *all;
    if (bytes > SIZE_MAX - 2 * guard_bytes || posix_memalign(&all, align, bytes + 2 * guard_bytes)) return nullptr;
    unsigned char *at = static_cast<unsigned char *>(all) + guard_bytes;
    std::memset(all, guard_fill, guard_bytes);
    std::memset(at + bytes, guard_fill, guard_bytes);
    std::memset(at, w.set.fresh, bytes);
    return at;
}

static void give_back(uintptr_t at) { std::free(reinterpret_cast<char *>(at) - guard_bytes); }

static bool guards_intact(uintptr_t at, size_t bytes) {
    const unsigned char *p = reinterpret_cast<const unsigned char *>(at);
    for (size_t i = 0; i < guard_bytes; i++) {
        if (p[bytes + i] != guard_fill || *(p - 1 - i) != guard_fill) return false;
    }
    return true;
}

outcome softcuda_check_guards(device *d, const char *kernel) {
    for (const auto &block : d->memory) {
        if (guards_intact(block.first, block.second)) continue;
        return { CUDA_ERROR_ILLEGAL_ADDRESS, std::string(kernel) + " wrote just outside an allocation of " +
                                                 std::to_string(block.second) + " bytes" };
    }
    return {};
}

bool softcuda_inside(const std::map<uintptr_t, size_t> &blocks, uintptr_t at, size_t bytes) {
    auto next = blocks.upper_bound(at);
    if (next == blocks.begin()) return false;
    const auto &block = *--next;
    size_t from = at - block.first;
    return from <= block.second && bytes <= block.second - from;
}

void softcuda_memory_clear(device *d) {
    for (const auto &block : d->memory) give_back(block.first);
    d->memory.clear();
    d->used = 0;
    softcuda_tell_others(d);
}

void softcuda_pinned_clear() {
    for (const auto &block : w.pinned) give_back(block.first);
    w.pinned.clear();
}

static size_t rounded(size_t bytes) { return (bytes + align - 1) / align * align; }

static size_t left(const device *d) {
    size_t used = w.set.used + softcuda_used_by_others(d) + d->used;
    return used < w.set.memory ? w.set.memory - used : 0;
}

CU(cuMemGetInfo_v2, size_t *free_bytes, size_t *total) {
    ENTER(NEEDS_CONTEXT);
    *total = w.set.memory;
    *free_bytes = left(c.current);
    return c.status;
}

CU(cuMemAlloc_v2, CUdeviceptr *out, size_t bytes) {
    ENTER(NEEDS_CONTEXT);
    device *d = c.current;
    if (!bytes) return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuMemAlloc of 0 bytes");
    if (softcuda_capturing(d, 0)) return c.refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuMemAlloc in a capture");
    size_t room = left(d);
    if (bytes > room || rounded(bytes) > room) {
        return c.refuse(CUDA_ERROR_OUT_OF_MEMORY, "cuMemAlloc of %zu bytes, %zu are left", bytes, room);
    }
    void *at = obtain(bytes);
    if (!at) return c.refuse(CUDA_ERROR_OUT_OF_MEMORY, "the host has no %zu bytes", bytes);
    d->memory[reinterpret_cast<uintptr_t>(at)] = bytes;
    d->used += rounded(bytes);
    softcuda_tell_others(d);
    *out = reinterpret_cast<CUdeviceptr>(at);
    return c.status;
}

/* Waits for the work of the context first, as the real one does. */
CU(cuMemFree_v2, CUdeviceptr at) {
    ENTER(NEEDS_CONTEXT | RELEASES);
    if (!at) return c.status;
    device *d = c.current;
    if (softcuda_capturing(d, 0)) return c.refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuMemFree in a capture");
    softcuda_drain(c, d);
    auto block = d->memory.find(at);
    if (block == d->memory.end()) {
        return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuMemFree: %#llx was not allocated on device %d", at, d->ordinal);
    }
    d->used -= rounded(block->second);
    softcuda_tell_others(d);
    d->memory.erase(block);
    give_back(at);
    return c.status;
}

CU(cuMemHostAlloc, void **out, size_t bytes, unsigned flags) {
    ENTER(NEEDS_CONTEXT);
    if (!bytes || flags & ~7u) return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuMemHostAlloc(%zu, %#x)", bytes, flags);
    if (softcuda_capturing(c.current, 0)) {
        return c.refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuMemHostAlloc in a capture");
    }
    *out = obtain(bytes);
    if (!*out) return c.refuse(CUDA_ERROR_OUT_OF_MEMORY, "the host has no %zu bytes", bytes);
    w.pinned[reinterpret_cast<uintptr_t>(*out)] = bytes;
    return c.status;
}

/* Waits for nothing: a copy that still needs the memory fails when it runs. */
CU(cuMemFreeHost, void *at) {
    ENTER(NEEDS_CONTEXT | RELEASES);
    if (!w.pinned.erase(reinterpret_cast<uintptr_t>(at))) {
        return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuMemFreeHost: %p is not pinned memory", at);
    }
    give_back(reinterpret_cast<uintptr_t>(at));
    return c.status;
}

/* -- copies and fills ---------------------------------------------------------------------------------------------- */

/* One end of a copy: memory of a device, or of the host where there is none. */
struct side {
    device *of;
    uintptr_t at;
};

static bool usable(const side &s, size_t bytes) {
    if (s.of) return softcuda_inside(s.of->memory, s.at, bytes);
    return w.set.pageable || softcuda_inside(w.pinned, s.at, bytes);
}

static std::string named(const side &s, size_t bytes) {
    char text[160];
    if (s.of) {
        std::snprintf(text, sizeof text, "%zu bytes at %#zx are not in one allocation of device %d", bytes, s.at,
                      s.of->ordinal);
    } else {
        std::snprintf(text, sizeof text, "%zu bytes at %#zx are not in pinned memory", bytes, s.at);
    }
    return text;
}

static outcome copy_now(const side &to, const side &from, size_t bytes) {
    {
        std::lock_guard<std::mutex> lock(w.mutex);
        for (const side &s : { to, from }) {
            if (!usable(s, bytes))
                return { CUDA_ERROR_ILLEGAL_ADDRESS, "a copy that comes to run: " + named(s, bytes) };
        }
    }
    std::memmove(reinterpret_cast<void *>(to.at), reinterpret_cast<const void *>(from.at), bytes);
    return {};
}

static CUresult copy(call &c, const char *name, side to, side from, size_t bytes, const void *handle) {
    std::shared_ptr<stream> s;
    CUresult status = softcuda_stream(c, handle, &s);
    if (status) return status;
    if (!bytes) return c.status;
    for (const side &end : { to, from }) {
        if (!usable(end, bytes)) return c.refuse(CUDA_ERROR_INVALID_VALUE, "%s: %s", name, named(end, bytes).c_str());
    }
    if (s->launched) w.copies_behind_kernels++;
    return softcuda_enqueue(c, s, [=] { return copy_now(to, from, bytes); });
}

CU(cuMemcpyHtoDAsync_v2, CUdeviceptr to, const void *from, size_t bytes, void *on) {
    ENTER(NEEDS_CONTEXT);
    return copy(c, __func__, { c.current, to }, { nullptr, reinterpret_cast<uintptr_t>(from) }, bytes, on);
}

CU(cuMemcpyDtoHAsync_v2, void *to, CUdeviceptr from, size_t bytes, void *on) {
    ENTER(NEEDS_CONTEXT);
    return copy(c, __func__, { nullptr, reinterpret_cast<uintptr_t>(to) }, { c.current, from }, bytes, on);
}

/* The device whose memory this is: the current one, or a peer it may touch. */
static device *reachable(device *current, CUdeviceptr at) {
    for (device *peer : current->peers) {
        if (softcuda_inside(peer->memory, at, 1)) return peer;
    }
    return current;
}

CU(cuMemcpyDtoDAsync_v2, CUdeviceptr to, CUdeviceptr from, size_t bytes, void *on) {
    ENTER(NEEDS_CONTEXT);
    return copy(c, __func__, { reachable(c.current, to), to }, { reachable(c.current, from), from }, bytes, on);
}

CU(cuMemcpyPeerAsync, CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t bytes,
   void *on) {
    ENTER(NEEDS_CONTEXT);
    device *to_device = softcuda_context(to_context), *from_device = softcuda_context(from_context);
    if (!to_device || !from_device) return c.refuse(CUDA_ERROR_INVALID_CONTEXT, "%s: no such context", __func__);
    return copy(c, __func__, { to_device, to }, { from_device, from }, bytes, on);
}

static outcome fill_now(const side &to, size_t count, unsigned value, size_t width) {
    {
        std::lock_guard<std::mutex> lock(w.mutex);
        if (!usable(to, count * width)) {
            return { CUDA_ERROR_ILLEGAL_ADDRESS, "a fill that comes to run: " + named(to, count * width) };
        }
    }
    char *at = reinterpret_cast<char *>(to.at);
    if (width == 1) std::memset(at, static_cast<int>(value), count);
    else {
        for (size_t i = 0; i < count; i++) std::memcpy(at + 4 * i, &value, 4);
    }
    return {};
}

static CUresult fill(call &c, const char *name, CUdeviceptr at, size_t count, unsigned value, size_t width, void *on) {
    std::shared_ptr<stream> s;
    side to = { c.current, at };
    CUresult status = softcuda_stream(c, on, &s);
    if (status) return status;
    if (!count) return c.status;
    if (at % width || count > SIZE_MAX / width || !usable(to, count * width)) {
        return c.refuse(CUDA_ERROR_INVALID_VALUE, "%s: %s", name, named(to, count * width).c_str());
    }
    return softcuda_enqueue(c, s, [=] { return fill_now(to, count, value, width); });
}

CU(cuMemsetD8Async, CUdeviceptr at, unsigned char value, size_t count, void *on) {
    ENTER(NEEDS_CONTEXT);
    return fill(c, __func__, at, count, value, 1, on);
}

CU(cuMemsetD32Async, CUdeviceptr at, unsigned value, size_t count, void *on) {
    ENTER(NEEDS_CONTEXT);
    return fill(c, __func__, at, count, value, 4, on);
}

/* Into memory of the device or pinned memory of the host; the host may look at it any time. */
CU(cuStreamWriteValue32_v2, void *on, CUdeviceptr at, unsigned value, unsigned flags) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<stream> s;
    const side host = { nullptr, at }, own = { c.current, at };
    CUresult status = softcuda_stream(c, on, &s);
    if (status) return status;
    if (flags || at % 4 || !(softcuda_inside(w.pinned, at, 4) || usable(own, 4))) {
        return c.refuse(CUDA_ERROR_INVALID_VALUE, "%s(%#llx, flags %#x)", __func__, at, flags);
    }
    return softcuda_enqueue(c, s, [=] {
        {
            std::lock_guard<std::mutex> lock(w.mutex);
            if (!usable(own, 4) && !softcuda_inside(w.pinned, at, 4)) {
                return outcome{ CUDA_ERROR_ILLEGAL_ADDRESS, "a value that comes to be written: " + named(host, 4) };
            }
        }
        __atomic_store_n(reinterpret_cast<unsigned *>(at), value, __ATOMIC_RELEASE);
        return outcome();
    });
}
