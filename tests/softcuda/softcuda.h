/* softcuda.h - the driver's own state: devices, handles, queues of enqueued work, faults.
 *
 * One lock guards all of it and is let go while an item of work runs, so kernels of several devices run at once on as
 * many OS threads. Work is run by whoever waits for it: there are no threads of our own. A wait for an event names work
 * that was enqueued before it, so among all streams there is always an item that can run, and nobody holds anything but
 * the one item being run: no deadlock.
 *
 * Only primary contexts exist: a CUcontext is its device. */
#ifndef SOFTCUDA_SOFTCUDA_H
#define SOFTCUDA_SOFTCUDA_H

#include "runtime.h"

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED = 704,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903,
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904,
    CUDA_ERROR_CAPTURED_EVENT = 907,
    CUDA_ERROR_UNKNOWN = 999,
};

/* What became of an item of work; a code that is not 0 stays with the device. */
struct outcome {
    CUresult code = CUDA_SUCCESS;
    std::string what;
};

struct device;
struct stream;
struct capture;
struct collective;
typedef device *CUcontext;

/* A place in a stream's work: reached when the first `count` items are done. Without a stream: reached. */
struct mark {
    std::shared_ptr<stream> of;
    long long count = 0;
};

struct item {
    std::function<outcome()> run; /* empty for waits */
    mark wait = {};
    std::shared_ptr<collective> with = {}; /* nccl.cc: this rank's part in something that all ranks do */
};

/* -- handles: addresses of live objects ---------------------------------------------------------------------------- */

struct object {
    device *owner = nullptr;
    virtual ~object() {}
};

struct stream : object {
    unsigned flags = 0;
    std::deque<item> queue;
    long long enqueued = 0, done = 0;
    bool busy = false; /* an OS thread runs its front item */
    bool launched = false; /* a kernel, at any time */
    std::shared_ptr<capture> capturing;
};

struct event : object {
    unsigned flags = 0;
    bool recorded = false;
    mark at;
    std::shared_ptr<double> when; /* milliseconds, once reached */
    std::weak_ptr<capture> captured;
    std::weak_ptr<stream> captured_in;
    size_t captured_items = 0;
};

struct module : object {};

struct function : object {
    std::shared_ptr<module> in;
    softcuda_kernel_entry *entry = nullptr;
    size_t dynamic_limit = 48 << 10;
};

struct graph : object {
    std::shared_ptr<std::vector<item>> items;
};

struct graph_exec : object {
    std::shared_ptr<std::vector<item>> items;
};

/* A stream's work while it is captured, and that of streams that joined it through events. */
struct capture {
    struct joined {
        size_t items = 0;    /* put in by this stream */
        bool waited = false; /* a later event wait has brought them back */
    };
    stream *origin = nullptr;
    std::map<stream *, joined> streams;
    std::vector<item> items;
    int mode = 0;
    bool spoiled = false;
};

struct device {
    int ordinal = 0, retained = 0;
    int number = 0; /* of the machine; others than the ordinal where CUDA_VISIBLE_DEVICES hides some */
    size_t used = 0;
    long long launches = 0;
    std::map<uintptr_t, size_t> memory; /* start -> bytes */
    std::set<device *> peers;           /* whose memory this context may touch */
    std::shared_ptr<stream> null_stream;
    outcome sticky;
};

/* What the environment asks for; softcuda_reset() reads it again. */
struct settings {
    int devices, capability, version;
    std::vector<int> visible; /* numbers of the machine's devices that are shown, `devices` of them */
    size_t memory, used;
    bool defer, pageable, reverse, talk;
    long long fail_call;
    std::string fail_name;
    long long fail_name_at;
    int fail_code;
    int lose_device;
    long long lose_at;
    int lose_code;
    int hang;    /* a rank of a communicator, or -1 */
    int connect; /* how often a communicator is asked before its first collective is enqueued */
    int fresh;   /* what each byte of new memory holds */
    std::string algorithms; /* of products, in the order they are offered: cublaslt.cc */
};

static const int max_devices = 16;

struct world {
    std::mutex mutex;
    std::condition_variable moved; /* an item was run */
    settings set;
    bool ready = false, initialised = false, forked = false;
    device devices[max_devices];
    std::map<void *, std::shared_ptr<object>> live;
    std::map<uintptr_t, size_t> pinned;
    long long calls = 0, leaked = 0, copies_behind_kernels = 0;
    std::map<std::string, long long> calls_of;
    std::string message;
};
extern world softcuda_world;

/* -- one API call -------------------------------------------------------------------------------------------------- */

enum : unsigned {
    NEEDS_NOTHING = 0, /* cuInit and the like */
    NEEDS_INIT = 1,
    NEEDS_CONTEXT = 2, /* a current one, without a failure that stays */
    RELEASES = 4,      /* does its work even where it fails, as destructors must */
};

struct call {
    std::unique_lock<std::mutex> lock;
    device *current = nullptr;
    CUresult status = CUDA_SUCCESS;
    bool stop = false; /* do nothing but return status */
    call(const char *name, unsigned needs);
    CUresult refuse(CUresult code, const char *format, ...) __attribute__((format(printf, 3, 4)));
};

#define SOFTCUDA_EXPORT extern "C" __attribute__((visibility("default")))
#define CU(name, ...)   SOFTCUDA_EXPORT CUresult name(__VA_ARGS__)
#define ENTER(needs)                                                                                                   \
    call c(__func__, needs);                                                                                           \
    if (c.stop) return c.status

void softcuda_note(const std::string &message);
device *softcuda_device(CUdevice ordinal);        /* NULL: no such */
device *softcuda_context(const void *handle);     /* NULL: no such, or not retained */
size_t softcuda_shared_limit(int capability);     /* opt-in, bytes a block */

/* NULL where the handle is not a live T. */
template <typename T> std::shared_ptr<T> softcuda_find(const void *handle) {
    auto found = softcuda_world.live.find(const_cast<void *>(handle));
    return found == softcuda_world.live.end() ? nullptr : std::dynamic_pointer_cast<T>(found->second);
}

template <typename T> std::shared_ptr<T> softcuda_make(device *owner) {
    std::shared_ptr<T> made = std::make_shared<T>();
    made->owner = owner;
    softcuda_world.live[made.get()] = made;
    return made;
}

/* -- memory.cc ----------------------------------------------------------------------------------------------------- */

bool softcuda_inside(const std::map<uintptr_t, size_t> &blocks, uintptr_t at, size_t bytes);
outcome softcuda_check_guards(device *d, const char *kernel);
void softcuda_memory_clear(device *d); /* frees all of it */
void softcuda_pinned_clear();

/* -- others.cc ----------------------------------------------------------------------------------------------------- */

/* What this process has of a device, to be called after each change; what other processes have of it. */
void softcuda_tell_others(const device *d);
size_t softcuda_used_by_others(const device *d);
bool softcuda_is_shared();

/* -- streams.cc ---------------------------------------------------------------------------------------------------- */

/* The stream of a handle, NULL meaning the context's own; refuses those of other contexts. */
CUresult softcuda_stream(call &c, const void *handle, std::shared_ptr<stream> *out);
/* Puts work at the end of a stream, or into the graph being captured; runs it at once where nothing is deferred. */
CUresult softcuda_enqueue(call &c, const std::shared_ptr<stream> &s, std::function<outcome()> run);
CUresult softcuda_put(call &c, const std::shared_ptr<stream> &s, item work);
void softcuda_run_to(call &c, const mark &to);
void softcuda_drain(call &c, device *d); /* everything its streams hold */
bool softcuda_capturing(device *d, int mode_at_most);
void softcuda_forget_work(stream *s); /* drops what is queued, as done */

/* -- modules.cc ---------------------------------------------------------------------------------------------------- */

/* One more launch on d; a failure where that is the one it is lost at. Under the lock. */
outcome softcuda_count_launch(device *d);

/* -- nccl.cc ------------------------------------------------------------------------------------------------------- */

/* Whether all ranks have come to this; if not, the stream of one that can be moved on to it, or none. */
bool softcuda_all_here(const collective &all, const stream *asking, std::shared_ptr<stream> *behind);
void softcuda_perform(collective &all);
void softcuda_groups_clear();

/* -- cublaslt.cc --------------------------------------------------------------------------------------------------- */

void softcuda_products_clear();

#endif
