/* driver.cc - the software CUDA driver: what every call goes through, errors, devices, contexts; and the functions that
 * tests call through ctypes.
 *
 * A call counts, may be made to fail, needs cuInit and mostly a current context; a failure inside enqueued work stays
 * with its device and comes out of every later call, as with the real driver. */
#include "softcuda.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <pthread.h>

world softcuda_world;
static world &w = softcuda_world;

/* -- settings ------------------------------------------------------------------------------------------------------ */

static long long number(const char *name, long long otherwise) {
    const char *text = std::getenv(name);
    return text && *text ? std::strtoll(text, nullptr, 0) : otherwise;
}

/* "name:n" -> name and n; n is 1 where it is left out. */
static std::string split(const char *variable, long long *n) {
    const char *text = std::getenv(variable);
    std::string all = text ? text : "";
    size_t colon = all.find(':');
    *n = colon == std::string::npos ? 1 : std::strtoll(all.c_str() + colon + 1, nullptr, 0);
    return all.substr(0, colon);
}

/* Of `all` devices those that CUDA_VISIBLE_DEVICES lists by number, up to its first that is none. */
static std::vector<int> read_visible(int all) {
    std::vector<int> shown;
    const char *text = std::getenv("CUDA_VISIBLE_DEVICES");
    for (int i = 0; !text && i < all; i++) shown.push_back(i);
    while (text && *text) {
        char *end;
        long i = std::strtol(text, &end, 10);
        if (end == text || (*end && *end != ',') || i < 0 || i >= all) break;
        shown.push_back(static_cast<int>(i));
        text = *end ? end + 1 : end;
    }
    return shown;
}

static settings read_settings() {
    settings s = {};
    int all = static_cast<int>(number("SOFTCUDA_DEVICES", 2));
    s.visible = read_visible(all < max_devices ? all : max_devices);
    s.devices = static_cast<int>(s.visible.size());
    s.capability = static_cast<int>(number("SOFTCUDA_CC", 80));
    s.version = static_cast<int>(number("SOFTCUDA_VERSION", 12090));
    s.memory = static_cast<size_t>(number("SOFTCUDA_MEMORY", 1ll << 30));
    s.used = static_cast<size_t>(number("SOFTCUDA_USED", 0));
    if (s.used > s.memory) s.used = s.memory;
    s.defer = number("SOFTCUDA_DEFER", 1) != 0;
    s.pageable = number("SOFTCUDA_PAGEABLE", 0) != 0;
    s.reverse = number("SOFTCUDA_REVERSE", 0) != 0;
    s.talk = number("SOFTCUDA_TALK", 0) != 0;
    s.fail_call = number("SOFTCUDA_FAIL_CALL", 0);
    s.fail_name = split("SOFTCUDA_FAIL_NAME", &s.fail_name_at);
    s.fail_code = static_cast<int>(number("SOFTCUDA_FAIL_CODE", CUDA_ERROR_UNKNOWN));
    std::string lose = split("SOFTCUDA_LOSE", &s.lose_at);
    s.lose_device = lose.empty() ? -1 : std::atoi(lose.c_str());
    s.lose_code = static_cast<int>(number("SOFTCUDA_LOSE_CODE", CUDA_ERROR_LAUNCH_FAILED));
    s.hang = static_cast<int>(number("SOFTCUDA_HANG", -1));
    const char *algorithms = std::getenv("SOFTCUDA_ALGORITHMS");
    s.algorithms = algorithms ? algorithms : "012345";
    s.connect = static_cast<int>(number("SOFTCUDA_CONNECT", 0));
    s.fresh = static_cast<int>(number("SOFTCUDA_FRESH", 0xff));
    return s;
}

static void get_ready() {
    if (w.ready) return;
    w.set = read_settings();
    for (int i = 0; i < max_devices; i++) {
        w.devices[i].ordinal = i;
        w.devices[i].number = i < w.set.devices ? w.set.visible[static_cast<size_t>(i)] : i;
    }
    w.ready = true;
}

/* -- one call ------------------------------------------------------------------------------------------------------ */

void softcuda_note(const std::string &message) {
    w.message = message;
    if (w.set.talk) std::fprintf(stderr, "softcuda: %s\n", message.c_str());
}

static CUresult injected(const char *name) {
    long long of = ++w.calls_of[name];
    if (++w.calls == w.set.fail_call || (w.set.fail_name == name && of == w.set.fail_name_at)) {
        softcuda_note(std::string(name) + " was made to fail");
        return w.set.fail_code;
    }
    return CUDA_SUCCESS;
}

/* Stops what cannot go on; where a releasing call fails by injection or by an earlier failure, its work is done. */
call::call(const char *name, unsigned needs) {
    if (w.forked) {
        status = CUDA_ERROR_NOT_INITIALIZED, stop = true;
        return;
    }
    lock = std::unique_lock<std::mutex>(w.mutex);
    get_ready();
    status = injected(name);
    stop = status && !(needs & RELEASES);
    if (stop || needs == NEEDS_NOTHING) return;
    current = softcuda_context(softcuda_now.context);
    if (!w.initialised) {
        status = refuse(CUDA_ERROR_NOT_INITIALIZED, "%s before cuInit", name), stop = true;
    } else if (needs & NEEDS_CONTEXT) {
        if (!current) status = refuse(CUDA_ERROR_INVALID_CONTEXT, "%s without a current context", name), stop = true;
        else if (current->sticky.code && !status) status = current->sticky.code, stop = !(needs & RELEASES);
    }
}

CUresult call::refuse(CUresult code, const char *format, ...) {
    char text[512];
    va_list list;
    va_start(list, format);
    std::vsnprintf(text, sizeof text, format, list);
    va_end(list);
    softcuda_note(text);
    return code;
}

device *softcuda_device(CUdevice ordinal) {
    return ordinal >= 0 && ordinal < w.set.devices ? &w.devices[ordinal] : nullptr;
}

device *softcuda_context(const void *handle) {
    for (device &d : w.devices) {
        if (&d == handle) return d.retained ? &d : nullptr;
    }
    return nullptr;
}

/* -- errors -------------------------------------------------------------------------------------------------------- */

static const struct {
    CUresult code;
    const char *name, *text;
} errors[] = {
    { 0, "CUDA_SUCCESS", "no error" },
    { 1, "CUDA_ERROR_INVALID_VALUE", "invalid argument" },
    { 2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory" },
    { 3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error" },
    { 46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable" },
    { 100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected" },
    { 101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal" },
    { 200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid" },
    { 201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context" },
    { 209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device" },
    { 214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered" },
    { 217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "peer access is not supported between these two devices" },
    { 400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle" },
    { 500, "CUDA_ERROR_NOT_FOUND", "named symbol not found" },
    { 600, "CUDA_ERROR_NOT_READY", "device not ready" },
    { 700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered" },
    { 704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled" },
    { 719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure" },
    { 801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported" },
    { 900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing" },
    { 901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture" },
    { 903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not initiated in this stream" },
    { 904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work" },
    { 907, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream" },
    { 999, "CUDA_ERROR_UNKNOWN", "unknown error" },
};

CU(cuGetErrorName, CUresult code, const char **out) {
    for (const auto &e : errors) {
        if (e.code == code) return *out = e.name, CUDA_SUCCESS;
    }
    return *out = nullptr, CUDA_ERROR_INVALID_VALUE;
}

CU(cuGetErrorString, CUresult code, const char **out) {
    for (const auto &e : errors) {
        if (e.code == code) return *out = e.text, CUDA_SUCCESS;
    }
    return *out = nullptr, CUDA_ERROR_INVALID_VALUE;
}

/* -- devices ------------------------------------------------------------------------------------------------------- */

CU(cuInit, unsigned flags) {
    ENTER(NEEDS_NOTHING);
    if (flags) return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuInit: flags are 0");
    if (w.set.devices <= 0) return c.refuse(CUDA_ERROR_NO_DEVICE, "there are no devices, or all are hidden");
    if (!w.initialised) {
        static std::once_flag once;
        std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { w.forked = w.initialised; }); });
    }
    w.initialised = true;
    return c.status;
}

CU(cuDriverGetVersion, int *out) {
    ENTER(NEEDS_NOTHING);
    *out = w.set.version;
    return c.status;
}

CU(cuDeviceGetCount, int *out) {
    ENTER(NEEDS_INIT);
    *out = w.set.devices;
    return c.status;
}

#define ENTER_DEVICE(ordinal)                                                                                          \
    ENTER(NEEDS_INIT);                                                                                                 \
    device *d = softcuda_device(ordinal);                                                                              \
    if (!d) return c.refuse(CUDA_ERROR_INVALID_DEVICE, "%s: there is no device %d", __func__, ordinal)

CU(cuDeviceGet, CUdevice *out, int ordinal) {
    ENTER_DEVICE(ordinal);
    *out = d->ordinal;
    return c.status;
}

CU(cuDeviceGetName, char *out, int room, CUdevice ordinal) {
    ENTER_DEVICE(ordinal);
    std::snprintf(out, static_cast<size_t>(room), "Software GPU %d.%d", w.set.capability / 10, w.set.capability % 10);
    return c.status;
}

/* The same in all processes; but where these do not share the memory, other devices in each build of this library. */
CU(cuDeviceGetUuid_v2, unsigned char out[16], CUdevice ordinal) {
    ENTER_DEVICE(ordinal);
    std::memcpy(out, "softcuda device", 16);
    Dl_info self;
    if (!softcuda_is_shared() && dladdr(&softcuda_world, &self)) {
        size_t hash = std::hash<std::string>()(self.dli_fname);
        std::memcpy(out, &hash, sizeof hash);
    }
    out[15] = static_cast<unsigned char>(d->number);
    return c.status;
}

CU(cuDeviceTotalMem_v2, size_t *out, CUdevice ordinal) {
    ENTER_DEVICE(ordinal);
    *out = w.set.memory;
    return c.status;
}

CU(cuDeviceGetPCIBusId, char *out, int room, CUdevice ordinal) {
    ENTER_DEVICE(ordinal);
    std::snprintf(out, static_cast<size_t>(room), "0000:%02X:00.0", d->number + 1);
    return c.status;
}

/* Largest dynamic shared memory of a block, as the generations have it. */
size_t softcuda_shared_limit(int capability) {
    switch (capability) {
    case 75: return 64 << 10;
    case 80:
    case 87: return 163 << 10;
    case 86:
    case 89:
    case 120: return 99 << 10;
    default: return 227 << 10;
    }
}

CU(cuDeviceGetAttribute, int *out, int attribute, CUdevice ordinal) {
    ENTER_DEVICE(ordinal);
    switch (attribute) {
    case 1: /* MAX_THREADS_PER_BLOCK */
    case 2: /* MAX_BLOCK_DIM_X */
    case 3: *out = 1024; break;
    case 4: *out = 64; break;
    case 5: *out = 0x7fffffff; break; /* MAX_GRID_DIM_X */
    case 6:
    case 7: *out = 65535; break;
    case 8: *out = 48 << 10; break; /* MAX_SHARED_MEMORY_PER_BLOCK */
    case 10: *out = 32; break; /* WARP_SIZE */
    case 12: *out = 65536; break; /* MAX_REGISTERS_PER_BLOCK */
    case 16: *out = 8; break; /* MULTIPROCESSOR_COUNT */
    case 18: *out = 0; break; /* INTEGRATED */
    case 20: *out = 0; break; /* COMPUTE_MODE: default */
    case 31: *out = 1; break; /* CONCURRENT_KERNELS */
    case 33: *out = d->number + 1; break; /* PCI_BUS_ID */
    case 34: *out = 0; break; /* PCI_DEVICE_ID */
    case 38: *out = 4 << 20; break; /* L2_CACHE_SIZE */
    case 39: *out = 2048; break; /* MAX_THREADS_PER_MULTIPROCESSOR */
    case 40: *out = 2; break; /* ASYNC_ENGINE_COUNT */
    case 41: *out = 1; break; /* UNIFIED_ADDRESSING */
    case 50: *out = 0; break; /* PCI_DOMAIN_ID */
    case 75: *out = w.set.capability / 10; break;
    case 76: *out = w.set.capability % 10; break;
    case 81: *out = static_cast<int>(softcuda_shared_limit(w.set.capability)) + 1024; break;
    case 97: *out = static_cast<int>(softcuda_shared_limit(w.set.capability)); break;
    default: return c.refuse(CUDA_ERROR_INVALID_VALUE, "the software device has no attribute %d", attribute);
    }
    return c.status;
}

CU(cuDeviceCanAccessPeer, int *out, CUdevice ordinal, CUdevice peer) {
    ENTER_DEVICE(ordinal);
    if (!softcuda_device(peer)) return c.refuse(CUDA_ERROR_INVALID_DEVICE, "%s: there is no device %d", __func__, peer);
    *out = d->ordinal != peer;
    return c.status;
}

/* -- contexts ------------------------------------------------------------------------------------------------------ */

CU(cuDevicePrimaryCtxRetain, CUcontext *out, CUdevice ordinal) {
    ENTER_DEVICE(ordinal);
    if (!d->retained++) {
        d->null_stream = std::make_shared<stream>();
        d->null_stream->owner = d;
    }
    *out = d;
    return c.status;
}

/* What a context still held when it went counts as leaked. */
static void context_end(device *d) {
    if (d->null_stream) softcuda_forget_work(d->null_stream.get());
    for (auto at = w.live.begin(); at != w.live.end();) {
        if (at->second->owner != d) {
            ++at;
            continue;
        }
        if (stream *s = dynamic_cast<stream *>(at->second.get())) softcuda_forget_work(s);
        if (!dynamic_cast<function *>(at->second.get())) w.leaked++;
        at = w.live.erase(at);
    }
    w.leaked += static_cast<long long>(d->memory.size());
    softcuda_memory_clear(d);
    d->null_stream.reset();
    d->peers.clear();
    d->sticky = outcome();
}

CU(cuDevicePrimaryCtxRelease_v2, CUdevice ordinal) {
    ENTER(NEEDS_INIT | RELEASES);
    device *d = softcuda_device(ordinal);
    if (!d) return c.refuse(CUDA_ERROR_INVALID_DEVICE, "%s: there is no device %d", __func__, ordinal);
    if (!d->retained) return c.refuse(CUDA_ERROR_INVALID_CONTEXT, "device %d is not retained", ordinal);
    if (!--d->retained) context_end(d);
    return c.status;
}

/* A failure of earlier work that it reports does not keep it from switching: clean-up must reach each device's context. */
CU(cuCtxSetCurrent, CUcontext context) {
    ENTER(NEEDS_INIT | RELEASES);
    if (context && !softcuda_context(context)) return c.refuse(CUDA_ERROR_INVALID_CONTEXT, "%p is no context", context);
    softcuda_now.context = context;
    return c.status;
}

CU(cuCtxGetCurrent, CUcontext *out) {
    ENTER(NEEDS_INIT);
    *out = c.current;
    return c.status;
}

CU(cuCtxEnablePeerAccess, CUcontext peer, unsigned flags) {
    ENTER(NEEDS_CONTEXT);
    device *other = softcuda_context(peer);
    if (flags) return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuCtxEnablePeerAccess: flags are 0");
    if (!other || other == c.current) return c.refuse(CUDA_ERROR_INVALID_CONTEXT, "%p is no peer", peer);
    return c.current->peers.insert(other).second ? c.status : CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
}

/* -- for tests ----------------------------------------------------------------------------------------------------- */

typedef std::lock_guard<std::mutex> guard;

SOFTCUDA_EXPORT long long softcuda_calls() {
    guard lock(w.mutex);
    return w.calls;
}

/* The n-th call from now on gives `code`; n = 0: none does. */
SOFTCUDA_EXPORT void softcuda_fail_at(long long n, int code) {
    guard lock(w.mutex);
    get_ready();
    w.set.fail_call = n ? w.calls + n : 0, w.set.fail_code = code;
}

/* Allocations, pinned ones too, streams, events, modules, graphs, retained contexts; and what contexts left behind. */
SOFTCUDA_EXPORT long long softcuda_live() {
    guard lock(w.mutex);
    long long n = w.leaked + static_cast<long long>(w.pinned.size());
    for (const auto &entry : w.live) n += !dynamic_cast<function *>(entry.second.get());
    for (const device &d : w.devices) n += d.retained + static_cast<long long>(d.memory.size());
    return n;
}

/* Copies why the last refused call was refused, or what failed in a kernel. */
SOFTCUDA_EXPORT void softcuda_message(char *out, size_t room) {
    guard lock(w.mutex);
    std::snprintf(out, room, "%s", w.message.c_str());
}

static softcuda_kernel_entry *kernel_named(const char *name) {
    softcuda_kernel_entry *k = softcuda_kernels();
    while (k && std::strcmp(k->name, name)) k = k->next;
    return k;
}

/* How often a kernel was run to its end, and over how many blocks at most; -1: no such kernel. */
SOFTCUDA_EXPORT long long softcuda_launches(const char *name, long long *most_blocks) {
    const softcuda_kernel_entry *k = kernel_named(name);
    if (!k) return -1;
    *most_blocks = __atomic_load_n(&k->most_blocks, __ATOMIC_RELAXED);
    return __atomic_load_n(&k->launches, __ATOMIC_RELAXED);
}

/* Copies that were enqueued in a stream that kernels had been launched in: these cannot run beside it. */
SOFTCUDA_EXPORT long long softcuda_copies_behind_kernels() {
    guard lock(w.mutex);
    return w.copies_behind_kernels;
}

/* Name of the i-th kernel; NULL after the last. */
SOFTCUDA_EXPORT const char *softcuda_kernel(int i) {
    const softcuda_kernel_entry *k = softcuda_kernels();
    while (k && i-- > 0) k = k->next;
    return k ? k->name : nullptr;
}

/* Forgets everything, as if loaded anew, and reads the environment again. Not while another thread makes calls. */
SOFTCUDA_EXPORT void softcuda_reset() {
    guard lock(w.mutex);
    for (device &d : w.devices) {
        context_end(&d);
        d.retained = 0, d.launches = 0;
    }
    softcuda_pinned_clear();
    softcuda_groups_clear();
    softcuda_products_clear();
    w.live.clear(); /* what belongs to no device */
    w.calls = w.leaked = w.copies_behind_kernels = 0;
    w.calls_of.clear();
    w.message.clear();
    for (softcuda_kernel_entry *k = softcuda_kernels(); k; k = k->next) k->launches = k->most_blocks = 0;
    w.initialised = w.ready = false;
    get_ready();
}
