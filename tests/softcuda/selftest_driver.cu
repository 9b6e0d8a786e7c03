/* selftest_driver.cu - the driver: what it refuses, defers and remembers, and that it can be made to fail. */
#include "softcuda/selftest_driver.h"

#include <sys/wait.h>
#include <thread>
#include <unistd.h>

enum {
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    UNKNOWN = 999,
};

struct sum {
    float *y;
    const float *a, *b;
    int n;
};

KERNEL(add, sum) {
    int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < a.n) a.y[i] = a.a[i] + a.b[i];
}

KERNEL(broken, sum) {
    if (threadIdx.x < static_cast<unsigned>(a.n)) FS_SYNC();
}

static sum of(address y, address a, address b, int n) {
    return { reinterpret_cast<float *>(y), reinterpret_cast<const float *>(a), reinterpret_cast<const float *>(b), n };
}

/* -- devices and contexts ------------------------------------------------------------------------------------------ */

TEST(devices_are_as_the_environment_says) {
    static const struct {
        const char *capability;
        int shared;
    } generations[] = { { "75", 64 },  { "80", 163 },  { "86", 99 }, { "89", 99 },
                        { "90", 227 }, { "100", 227 }, { "120", 99 } };
    for (const auto &g : generations) {
        int n, major, minor, shared;
        size_t bytes;
        settings({ "SOFTCUDA_DEVICES=3", std::string("SOFTCUDA_CC=") + g.capability, "SOFTCUDA_MEMORY=1000000" });
        SAME(cuInit(0), 0);
        SAME(cuDeviceGetCount(&n), 0);
        SAME(n, 3);
        SAME(cuDeviceGet(&n, 2), 0);
        SAME(cuDeviceGetAttribute(&major, 75, n), 0);
        SAME(cuDeviceGetAttribute(&minor, 76, n), 0);
        SAME(cuDeviceGetAttribute(&shared, 97, n), 0);
        SAME(major * 10 + minor, std::atoi(g.capability));
        SAME(shared, g.shared << 10);
        SAME(cuDeviceTotalMem_v2(&bytes, n), 0);
        SAME(bytes, 1000000);
        SAME(cuDeviceGet(&n, 3), INVALID_DEVICE);
        SAME(cuDeviceGetAttribute(&n, 12345, 0), INVALID_VALUE);
    }
}

TEST(devices_have_names_of_their_own) {
    char name[40], a[40], b[40];
    unsigned char one[16], two[16];
    int version, can;
    SAME(cuInit(0), 0);
    SAME(cuDriverGetVersion(&version), 0);
    SAME(version, 12090);
    SAME(cuDeviceGetName(name, sizeof name, 0), 0);
    HOLDS(name, "Software GPU 8.0");
    SAME(cuDeviceGetPCIBusId(a, sizeof a, 0), 0);
    SAME(cuDeviceGetPCIBusId(b, sizeof b, 1), 0);
    CHECK(std::strcmp(a, b));
    SAME(cuDeviceGetUuid_v2(one, 0), 0);
    SAME(cuDeviceGetUuid_v2(two, 1), 0);
    CHECK(std::memcmp(one, two, 16));
    SAME(cuDeviceCanAccessPeer(&can, 0, 1), 0);
    SAME(can, 1);
    SAME(cuDeviceCanAccessPeer(&can, 0, 0), 0);
    SAME(can, 0);
}

TEST(errors_have_names) {
    const char *name = nullptr, *text = nullptr;
    SAME(cuGetErrorName(719, &name), 0);
    SAME(cuGetErrorString(719, &text), 0);
    HOLDS(name, "CUDA_ERROR_LAUNCH_FAILED");
    HOLDS(text, "unspecified launch failure");
    SAME(cuGetErrorName(12345, &name), INVALID_VALUE);
    CHECK(!name);
}

TEST(nothing_works_before_init_or_without_a_context) {
    int n;
    address at;
    handle context;
    SAME(cuDeviceGetCount(&n), NOT_INITIALIZED);
    SAME(cuInit(0), 0);
    SAME(cuMemAlloc_v2(&at, 16), INVALID_CONTEXT);
    SAME(cuDevicePrimaryCtxRetain(&context, 0), 0);
    SAME(cuMemAlloc_v2(&at, 16), INVALID_CONTEXT);
    SAME(cuCtxSetCurrent(context), 0);
    SAME(cuMemAlloc_v2(&at, 16), 0);
    std::thread([&] { SAME(cuMemAlloc_v2(&at, 16), INVALID_CONTEXT); }).join();
    SAME(cuCtxSetCurrent(nullptr), 0);
    SAME(cuMemFree_v2(at), INVALID_CONTEXT);
    SAME(cuDevicePrimaryCtxRelease_v2(0), 0);
    SAME(cuDevicePrimaryCtxRelease_v2(0), INVALID_CONTEXT);
    SAME(cuCtxSetCurrent(context), INVALID_CONTEXT);
    SAME(softcuda_live(), 1); /* the allocation that the context took with it */
    settings({ "SOFTCUDA_DEVICES=0" });
    SAME(cuInit(0), NO_DEVICE);
}

TEST(a_forked_child_is_told_so) {
    ready d;
    pid_t child = fork();
    if (!child) {
        int n;
        _exit(cuDeviceGetCount(&n) == NOT_INITIALIZED && cuInit(0) == NOT_INITIALIZED ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    SAME(status, 0);
}

/* -- memory -------------------------------------------------------------------------------------------------------- */

TEST(memory_is_nan_bounded_and_given_back) {
    settings({ "SOFTCUDA_MEMORY=1048576", "SOFTCUDA_USED=524288" });
    ready d;
    size_t left, total;
    address one, two;
    SAME(cuMemGetInfo_v2(&left, &total), 0);
    SAME(left, 524288);
    SAME(total, 1048576);
    SAME(cuMemAlloc_v2(&one, 524289), OUT_OF_MEMORY);
    SAME(cuMemAlloc_v2(&one, static_cast<size_t>(-1)), OUT_OF_MEMORY);
    SAME(cuMemAlloc_v2(&one, 0), INVALID_VALUE);
    SAME(cuMemAlloc_v2(&one, 524287), 0);
    SAME(one % 256, 0);
    CHECK(std::isnan(d.peek(one)));
    SAME(cuMemAlloc_v2(&two, 1), OUT_OF_MEMORY);
    SAME(cuMemGetInfo_v2(&left, &total), 0);
    SAME(left, 0);
    SAME(cuMemFree_v2(one), 0);
    SAME(cuMemFree_v2(one), INVALID_VALUE);
    SAME(cuMemAlloc_v2(&two, 524288), 0);
    SAME(cuMemFree_v2(two), 0);
    CHECK(std::isnan(d.host(1)[0]));
}

TEST(copies_and_fills_stay_inside_their_memory) {
    ready other(1), d;
    address there;
    SAME(cuCtxSetCurrent(other.context), 0);
    there = other.memory(64);
    SAME(cuCtxSetCurrent(d.context), 0);
    address at = d.memory(64), gone = d.memory(64);
    float *host = d.host(16), pageable[16];
    address host_address = reinterpret_cast<address>(host);
    d.blocks.pop_back();
    SAME(cuMemFree_v2(gone), 0);
    SAME(cuMemcpyHtoDAsync_v2(at, host, 64, d.stream), 0);
    SAME(cuMemcpyHtoDAsync_v2(at, host + 1, 64, d.stream), INVALID_VALUE);
    SAME(cuMemcpyHtoDAsync_v2(at + 4, host, 64, d.stream), INVALID_VALUE);
    HOLDS(message(), "cuMemcpyHtoDAsync_v2: 64 bytes at ");
    SAME(cuMemcpyHtoDAsync_v2(at, pageable, 64, d.stream), INVALID_VALUE);
    HOLDS(message(), "are not in pinned memory");
    SAME(cuMemcpyDtoHAsync_v2(host, there, 64, d.stream), INVALID_VALUE);
    HOLDS(message(), "are not in one allocation of device 0");
    SAME(cuMemcpyDtoHAsync_v2(host, gone, 64, d.stream), INVALID_VALUE);
    SAME(cuMemcpyDtoHAsync_v2(host, host_address, 64, d.stream), INVALID_VALUE);
    SAME(cuMemcpyDtoDAsync_v2(at, at + 32, 32, d.stream), 0);
    SAME(cuMemcpyDtoDAsync_v2(at, there, 64, d.stream), INVALID_VALUE);
    SAME(cuMemsetD8Async(at + 1, 0, 64, d.stream), INVALID_VALUE);
    SAME(cuMemsetD8Async(at + 1, 0, 63, d.stream), 0);
    SAME(cuMemsetD32Async(at + 2, 0, 1, d.stream), INVALID_VALUE);
    SAME(cuMemsetD32Async(at, 0, 16, d.stream), 0);
    SAME(cuMemcpyHtoDAsync_v2(at + 64, host, 0, d.stream), 0);
    SAME(cuMemFreeHost(pageable), INVALID_VALUE);
    SAME(cuStreamSynchronize(d.stream), 0);
}

/* -- streams and events -------------------------------------------------------------------------------------------- */

/* Fills a[0] = 3 on one stream and adds a + a on another; gives what the sum is, with and without a wait between. */
static float sum_over_streams(bool wait) {
    ready d;
    handle second, event;
    address a = d.memory(4), y = d.memory(4);
    float *from = d.host(1);
    *from = 3;
    SAME(cuStreamCreate(&second, 1), 0);
    SAME(cuEventCreate(&event, 2), 0);
    SAME(cuMemcpyHtoDAsync_v2(a, from, 4, d.stream), 0);
    SAME(cuEventRecord(event, d.stream), 0);
    if (wait) SAME(cuStreamWaitEvent(second, event, 0), 0);
    SAME(d.launch("add", of(y, a, a, 1), 1, 32, 0, second), 0);
    SAME(cuEventDestroy_v2(event), 0); /* what waits for it still does */
    SAME(cuStreamSynchronize(second), 0);
    float value = d.peek(y);
    SAME(cuStreamDestroy_v2(second), 0);
    return value;
}

TEST(deferred_work_finds_a_missing_wait) {
    SAME(sum_over_streams(true), 6);
    CHECK(std::isnan(sum_over_streams(false)));
    settings({ "SOFTCUDA_DEFER=0" });
    SAME(sum_over_streams(false), 6);
    SAME(softcuda_live(), 0);
}

TEST(a_copy_reads_its_source_when_it_runs) {
    ready d;
    address a = d.memory(4);
    float *from = d.host(1);
    *from = 1;
    SAME(cuMemcpyHtoDAsync_v2(a, from, 4, d.stream), 0);
    *from = 2; /* too early: the copy has not run */
    SAME(cuStreamSynchronize(d.stream), 0);
    SAME(d.peek(a), 2);
    SAME(cuMemcpyHtoDAsync_v2(a, from, 4, d.stream), 0);
    d.pinned.erase(d.pinned.begin());
    SAME(cuMemFreeHost(from), 0);
    SAME(cuStreamSynchronize(d.stream), ILLEGAL_ADDRESS);
    HOLDS(message(), "a copy that comes to run: 4 bytes at ");
}

TEST(pageable_memory_is_copied_where_that_is_asked_for) {
    settings({ "SOFTCUDA_PAGEABLE=1" });
    ready d;
    address a = d.memory(4);
    float from = 4;
    SAME(cuMemcpyHtoDAsync_v2(a, &from, 4, d.stream), 0);
    SAME(cuStreamSynchronize(d.stream), 0);
    SAME(d.peek(a), 4);
}

TEST(a_value_is_written_when_its_turn_comes) {
    ready d;
    address a = d.memory(4);
    float *host = d.host(1);
    SAME(cuStreamWriteValue32_v2(d.stream, a, 0x3f800000, 0), 0);
    SAME(cuStreamWriteValue32_v2(d.stream, reinterpret_cast<address>(host), 0x40000000, 0), 0);
    SAME(cuStreamWriteValue32_v2(d.stream, a + 4, 0, 0), INVALID_VALUE);
    SAME(cuStreamWriteValue32_v2(d.stream, a + 2, 0, 0), INVALID_VALUE);
    CHECK(std::isnan(*host) && std::isnan(d.peek(a)));
    SAME(cuStreamSynchronize(d.stream), 0);
    SAME(*host, 2);
    SAME(d.peek(a), 1);
}

TEST(polling_comes_to_an_end) {
    ready d;
    handle event, other, unused;
    address a = d.memory(4);
    SAME(cuEventCreate(&event, 2), 0);
    SAME(cuEventCreate(&unused, 2), 0);
    SAME(cuStreamCreate(&other, 1), 0);
    SAME(cuEventQuery(unused), 0);
    SAME(cuEventSynchronize(unused), 0);
    for (int i = 0; i < 3; i++) SAME(cuMemsetD32Async(a, 0x3f800000, 1, other), 0);
    SAME(cuEventRecord(event, other), 0);
    SAME(cuStreamWaitEvent(d.stream, event, 0), 0);
    SAME(cuMemsetD32Async(a, 0x40000000, 1, d.stream), 0);
    SAME(cuEventRecord(event, d.stream), 0); /* moves it; the wait is for where it was */
    int polls = 0;
    while (cuEventQuery(event) == NOT_READY) polls++;
    SAME(polls, 7); /* three fills, a record; wait, fill, record */
    SAME(cuEventQuery(event), 0);
    SAME(d.peek(a), 2);
    SAME(cuMemsetD32Async(a, 0, 1, d.stream), 0);
    SAME(cuStreamQuery(d.stream), NOT_READY);
    SAME(cuStreamQuery(d.stream), 0);
    for (handle e : { event, unused }) SAME(cuEventDestroy_v2(e), 0);
    SAME(cuStreamDestroy_v2(other), 0);
}

TEST(the_legacy_stream_waits_for_blocking_streams) {
    ready d;
    handle blocking;
    address a = d.memory(4), b = d.memory(4), y = d.memory(8);
    SAME(cuStreamCreate(&blocking, 0), 0);
    SAME(cuMemsetD32Async(a, 0x3f800000, 1, blocking), 0);
    SAME(cuMemsetD32Async(b, 0x3f800000, 1, d.stream), 0); /* not blocking */
    SAME(cuMemcpyDtoDAsync_v2(y, a, 4, nullptr), 0);
    SAME(cuMemcpyDtoDAsync_v2(y + 4, b, 4, nullptr), 0);
    SAME(d.peek(y), 1);
    CHECK(std::isnan(d.peek(y + 4)));
    SAME(cuStreamDestroy_v2(blocking), 0);
}

TEST(events_have_times) {
    ready d;
    handle a, b, untimed;
    float elapsed = -1;
    SAME(cuEventCreate(&a, 0), 0);
    SAME(cuEventCreate(&b, 0), 0);
    SAME(cuEventCreate(&untimed, 2), 0);
    SAME(cuEventElapsedTime(&elapsed, a, b), INVALID_HANDLE);
    SAME(cuEventRecord(a, d.stream), 0);
    SAME(cuEventRecord(b, d.stream), 0);
    SAME(cuEventRecord(untimed, d.stream), 0);
    SAME(cuEventElapsedTime(&elapsed, a, b), NOT_READY);
    SAME(cuEventSynchronize(b), 0);
    SAME(cuEventElapsedTime(&elapsed, a, b), 0);
    CHECK(elapsed >= 0 && elapsed < 60000);
    SAME(cuEventElapsedTime(&elapsed, a, untimed), INVALID_HANDLE);
    for (handle e : { a, b, untimed }) SAME(cuEventDestroy_v2(e), 0);
}

TEST(handles_are_of_their_device_and_alive) {
    ready other(1), d;
    handle event;
    address a = d.memory(4);
    sum arguments = of(a, a, a, 1);
    void *given[] = { &arguments };
    SAME(cuEventCreate(&event, 2), 0);
    SAME(cuMemsetD8Async(a, 0, 4, other.stream), INVALID_HANDLE);
    HOLDS(message(), "a stream of device 1, while device 0 is current");
    SAME(cuStreamSynchronize(other.stream), INVALID_HANDLE);
    SAME(d.launch("add", arguments, 1, 32, 0, other.stream), INVALID_HANDLE);
    handle f = d.function("add"), missing;
    SAME(cuModuleGetFunction(&missing, d.module, "subtract"), NOT_FOUND);
    SAME(cuModuleGetFunction(&missing, other.module, "add"), INVALID_HANDLE);
    SAME(cuCtxSetCurrent(other.context), 0);
    SAME(cuEventRecord(event, other.stream), INVALID_HANDLE);
    SAME(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, other.stream, given, nullptr), INVALID_HANDLE);
    SAME(cuCtxSetCurrent(d.context), 0);
    SAME(cuEventDestroy_v2(event), 0);
    SAME(cuEventDestroy_v2(event), INVALID_HANDLE);
    SAME(cuEventQuery(event), INVALID_HANDLE);
    SAME(cuStreamDestroy_v2(event), INVALID_HANDLE);
    SAME(cuEventRecord(d.stream, d.stream), INVALID_HANDLE); /* a stream is no event */
    SAME(cuModuleUnload(d.module), 0);
    SAME(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, d.stream, given, nullptr), INVALID_HANDLE);
    SAME(cuModuleLoadDataEx(&d.module, "image", 0, nullptr, nullptr), 0);
}

/* -- two devices --------------------------------------------------------------------------------------------------- */

TEST(peers_copy_behind_events) {
    for (bool wait : { true, false }) {
        ready one(1), d;
        handle event;
        address a = d.memory(4);
        SAME(cuEventCreate(&event, 2), 0);
        SAME(cuMemsetD32Async(a, 0x40400000, 1, d.stream), 0);
        SAME(cuEventRecord(event, d.stream), 0);
        SAME(cuCtxSetCurrent(one.context), 0);
        address b = one.memory(4);
        if (wait) SAME(cuStreamWaitEvent(one.stream, event, 0), 0);
        SAME(cuMemcpyPeerAsync(b, one.context, a, d.context, 4, one.stream), 0);
        SAME(cuMemcpyPeerAsync(b, d.context, a, one.context, 4, one.stream), INVALID_VALUE);
        SAME(cuMemcpyPeerAsync(b, nullptr, a, d.context, 4, one.stream), INVALID_CONTEXT);
        SAME(cuStreamSynchronize(one.stream), 0);
        if (wait) SAME(one.peek(b), 3);
        else CHECK(std::isnan(one.peek(b)));
        SAME(cuCtxEnablePeerAccess(d.context, 0), 0);
        SAME(cuCtxEnablePeerAccess(d.context, 0), 704);
        SAME(cuMemcpyDtoDAsync_v2(b, a, 4, one.stream), 0);
        SAME(cuCtxSetCurrent(d.context), 0);
        SAME(cuEventDestroy_v2(event), 0);
    }
}

/* Each device adds 1 to what the other has made, many times over, each driven by a thread of its own. */
TEST(threads_of_two_devices_wait_for_each_other) {
    static const int rounds = 200;
    ready d[2] = { ready(0), ready(1) };
    handle done[2][rounds];
    address value[2], one[2];
    for (int i = 0; i < 2; i++) {
        SAME(cuCtxSetCurrent(d[i].context), 0);
        value[i] = d[i].memory(4), one[i] = d[i].memory(4);
        SAME(cuMemsetD32Async(value[i], 0, 1, d[i].stream), 0);
        SAME(cuMemsetD32Async(one[i], 0x3f800000, 1, d[i].stream), 0);
        for (handle &event : done[i]) SAME(cuEventCreate(&event, 2), 0);
        SAME(cuCtxSynchronize(), 0);
    }
    for (int round = 0; round < rounds; round++) {
        int i = round % 2, j = 1 - i;
        SAME(cuCtxSetCurrent(d[i].context), 0);
        if (round) {
            SAME(cuStreamWaitEvent(d[i].stream, done[j][round - 1], 0), 0);
            SAME(cuMemcpyPeerAsync(value[i], d[i].context, value[j], d[j].context, 4, d[i].stream), 0);
        }
        SAME(d[i].launch("add", of(value[i], value[i], one[i], 1), 1, 64), 0);
        SAME(cuEventRecord(done[i][round], d[i].stream), 0);
    }
    std::thread waiters[2];
    for (int i = 0; i < 2; i++) {
        waiters[i] = std::thread([&, i] {
            SAME(cuCtxSetCurrent(d[i].context), 0);
            for (int round = i; round < rounds; round += 2) SAME(cuEventSynchronize(done[i][round]), 0);
        });
    }
    for (std::thread &waiter : waiters) waiter.join();
    for (int i = 0; i < 2; i++) {
        SAME(cuCtxSetCurrent(d[i].context), 0);
        SAME(d[i].peek(value[i]), rounds - 1 + i);
        for (handle event : done[i]) SAME(cuEventDestroy_v2(event), 0);
    }
}

/* -- launches ------------------------------------------------------------------------------------------------------ */

TEST(launches_are_checked) {
    settings({ "SOFTCUDA_CC=86" });
    ready d;
    address a = d.memory(4);
    sum given = of(a, a, a, 1);
    void *arguments[] = { &given };
    handle f = d.function("add");
    int value;
    SAME(d.launch("add", given, 1, 1024), 0);
    SAME(d.launch("add", given, 1, 1025), INVALID_VALUE);
    HOLDS(message(), "add: a block of 1025 x 1 x 1; 1 to 1024 x 1 x 1");
    SAME(d.launch("add", given, 1, 0), INVALID_VALUE);
    SAME(d.launch("add", given, 0, 32), INVALID_VALUE);
    SAME(cuLaunchKernel(f, 1, 65536, 1, 32, 1, 1, 0, d.stream, arguments, nullptr), INVALID_VALUE);
    SAME(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, d.stream, nullptr, nullptr), INVALID_VALUE);
    SAME(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 48 << 10, d.stream, arguments, nullptr), 0);
    SAME(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, (48 << 10) + 1, d.stream, arguments, nullptr), INVALID_VALUE);
    SAME(cuFuncSetAttribute(f, 8, (99 << 10) + 1), INVALID_VALUE);
    SAME(cuFuncSetAttribute(f, 8, 99 << 10), 0);
    SAME(cuFuncGetAttribute(&value, 8, f), 0);
    SAME(value, 99 << 10);
    SAME(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 99 << 10, d.stream, arguments, nullptr), 0);
    SAME(cuCtxSynchronize(), 0);
}

TEST(launches_take_their_arguments_at_once_and_are_counted) {
    ready d;
    address a = d.memory(400), y = d.memory(400);
    long long most = 0;
    SAME(cuMemsetD32Async(a, 0x3f800000, 100, d.stream), 0);
    sum arguments = of(y, a, a, 100);
    void *given[] = { &arguments };
    SAME(cuLaunchKernel(d.function("add"), 4, 1, 1, 32, 1, 1, 0, d.stream, given, nullptr), 0);
    arguments.n = 0;
    SAME(softcuda_launches("add", &most), 0);
    SAME(cuCtxSynchronize(), 0);
    SAME(d.peek(y + 396), 2);
    SAME(softcuda_launches("add", &most), 1);
    SAME(most, 4);
    SAME(softcuda_launches("subtract", &most), -1);
    std::string names;
    for (int i = 0; softcuda_kernel(i); i++) names += softcuda_kernel(i);
    HOLDS(names, "add");
    HOLDS(names, "broken");
}

TEST(a_failed_kernel_stays_with_its_device) {
    ready other(1), d;
    address a = d.memory(4);
    handle event;
    size_t free_bytes, total;
    SAME(cuEventCreate(&event, 2), 0);
    SAME(d.launch("broken", of(a, a, a, 7), 1, 32), 0);
    SAME(cuMemsetD8Async(a, 0, 4, d.stream), 0);
    SAME(cuEventRecord(event, d.stream), 0);
    SAME(cuMemGetInfo_v2(&free_bytes, &total), 0); /* nothing has run yet */
    SAME(cuEventSynchronize(event), LAUNCH_FAILED);
    HOLDS(message(), "broken, block (0,0,0), thread ");
    SAME(cuMemGetInfo_v2(&free_bytes, &total), LAUNCH_FAILED);
    SAME(cuEventQuery(event), LAUNCH_FAILED);
    SAME(cuMemsetD8Async(a, 0, 4, d.stream), LAUNCH_FAILED);
    SAME(cuCtxSetCurrent(other.context), 0);
    SAME(cuMemGetInfo_v2(&free_bytes, &total), 0);
    SAME(cuEventSynchronize(event), LAUNCH_FAILED);
    SAME(cuCtxSetCurrent(d.context), 0);
    SAME(cuEventDestroy_v2(event), LAUNCH_FAILED); /* but it is gone */
    SAME(cuDevicePrimaryCtxRetain(&d.context, 0), 0);
    SAME(cuDevicePrimaryCtxRelease_v2(0), 0);
}

TEST(a_context_begins_anew) {
    {
        ready d;
        SAME(d.launch("broken", of(0, 0, 0, 7), 1, 32), 0);
        SAME(cuCtxSynchronize(), LAUNCH_FAILED);
    }
    SAME(softcuda_live(), 0);
    SAME(sum_over_streams(true), 6);
}

#ifndef __SANITIZE_ADDRESS__
KERNEL(writes_near, sum) { a.y[a.n] = 1; }

TEST(a_store_just_outside_is_found) {
    for (int n : { -1, 4, 5 }) {
        settings({});
        ready d;
        SAME(d.launch("writes_near", of(d.memory(16), 0, 0, n), 1, 1), 0);
        SAME(cuCtxSynchronize(), ILLEGAL_ADDRESS);
        HOLDS(message(), "writes_near wrote just outside an allocation of 16 bytes");
    }
}
#else
KERNEL(reads_freed, sum) { a.y[0] = a.a[0]; }
static const int reads_freed_line = __LINE__ - 1;

TEST(dies_reading_freed_memory) {
    ready d;
    address y = d.memory(4), a = d.memory(4);
    EXPECT("heap-use-after-free");
    EXPECT("in cuMemFree_v2");
    EXPECT(("selftest_driver.cu:" + std::to_string(reads_freed_line)).c_str());
    SAME(cuMemFree_v2(a), 0);
    SAME(d.launch("reads_freed", of(y, a, a, 1), 1, 1), 0);
    cuCtxSynchronize();
}
#endif

/* -- graphs -------------------------------------------------------------------------------------------------------- */

TEST(a_captured_step_can_be_replayed) {
    ready d;
    handle second, fork_event, join_event, graph, exec;
    address a = d.memory(4), b = d.memory(4), y = d.memory(4);
    float *from = d.host(1);
    SAME(cuStreamCreate(&second, 1), 0);
    SAME(cuEventCreate(&fork_event, 2), 0);
    SAME(cuEventCreate(&join_event, 2), 0);
    SAME(cuStreamBeginCapture_v2(d.stream, 0), 0);
    SAME(cuMemcpyHtoDAsync_v2(a, from, 4, d.stream), 0);
    SAME(cuEventRecord(fork_event, d.stream), 0);
    SAME(cuStreamWaitEvent(second, fork_event, 0), 0);
    SAME(cuMemcpyDtoDAsync_v2(b, a, 4, second), 0);
    SAME(cuEventRecord(join_event, second), 0);
    SAME(cuStreamWaitEvent(d.stream, join_event, 0), 0);
    SAME(d.launch("add", of(y, a, b, 1), 1, 32), 0);
    SAME(cuStreamEndCapture(d.stream, &graph), 0);
    SAME(cuGraphInstantiateWithFlags(&exec, graph, 0), 0);
    SAME(cuGraphDestroy(graph), 0);
    SAME(cuCtxSynchronize(), 0);
    CHECK(std::isnan(d.peek(y)));
    for (float value : { 5.0f, 7.0f }) {
        *from = value;
        SAME(cuGraphLaunch(exec, d.stream), 0);
        SAME(cuStreamSynchronize(d.stream), 0);
        SAME(d.peek(y), 2 * value);
    }
    SAME(cuGraphExecDestroy(exec), 0);
    for (handle e : { fork_event, join_event }) SAME(cuEventDestroy_v2(e), 0);
    SAME(cuStreamDestroy_v2(second), 0);
}

TEST(a_capture_allows_neither_waits_nor_loose_ends) {
    ready d;
    handle second, event, graph;
    address a = d.memory(4);
    SAME(cuStreamCreate(&second, 1), 0);
    SAME(cuEventCreate(&event, 2), 0);
    for (int mistake = 0; mistake < 5; mistake++) {
        SAME(cuStreamBeginCapture_v2(d.stream, 0), 0);
        SAME(cuEventRecord(event, d.stream), 0);
        if (mistake == 0) SAME(cuStreamSynchronize(d.stream), 900);
        if (mistake == 1) SAME(cuEventSynchronize(event), 907);
        if (mistake == 2) SAME(cuMemAlloc_v2(&a, 4), 900);
        if (mistake == 3) SAME(cuCtxSynchronize(), 900);
        if (mistake == 4) SAME(cuStreamWaitEvent(second, event, 0), 0);
        if (mistake < 4) SAME(cuMemsetD8Async(a, 0, 4, d.stream), 901);
        SAME(cuStreamEndCapture(d.stream, &graph), mistake == 4 ? 904 : 901);
        CHECK(!graph);
        SAME(cuMemsetD8Async(a, 0, 4, d.stream), 0);
        SAME(cuMemsetD8Async(a, 0, 4, second), 0);
        SAME(cuCtxSynchronize(), 0);
    }
    SAME(cuStreamEndCapture(d.stream, &graph), 903);
    SAME(cuStreamBeginCapture_v2(nullptr, 0), 900);
    SAME(cuEventDestroy_v2(event), 0);
    SAME(cuStreamDestroy_v2(second), 0);
}

/* -- being made to fail -------------------------------------------------------------------------------------------- */

/* One of everything; the status of the first call that fails, and nothing is left behind in any case. */
static int whole_program() {
    handle context = nullptr, module = nullptr, stream = nullptr, event = nullptr, f = nullptr;
    address a = 0;
    void *host = nullptr;
    int status = cuInit(0), retained = 0;
    if (!status) status = cuDevicePrimaryCtxRetain(&context, 0), retained = !status;
    if (!status) status = cuCtxSetCurrent(context);
    if (!status) status = cuModuleLoadData(&module, "image");
    if (!status) status = cuModuleGetFunction(&f, module, "add");
    if (!status) status = cuStreamCreate(&stream, 1);
    if (!status) status = cuEventCreate(&event, 2);
    if (!status) status = cuMemAlloc_v2(&a, 64);
    if (!status) status = cuMemHostAlloc(&host, 64, 0);
    if (!status) status = cuMemcpyHtoDAsync_v2(a, host, 64, stream);
    sum arguments = of(a, a, a, 16);
    void *given[] = { &arguments };
    if (!status) status = cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, stream, given, nullptr);
    if (!status) status = cuEventRecord(event, stream);
    if (!status) status = cuEventSynchronize(event);
    int first = status;
    auto also = [&first](int released) { first = first ? first : released; };
    if (retained) cuCtxSetCurrent(context);
    if (host) also(cuMemFreeHost(host));
    if (a) also(cuMemFree_v2(a));
    if (event) also(cuEventDestroy_v2(event));
    if (stream) also(cuStreamDestroy_v2(stream));
    if (module) also(cuModuleUnload(module));
    if (retained) also(cuDevicePrimaryCtxRelease_v2(0));
    return first;
}

TEST(every_call_can_be_made_to_fail_and_nothing_is_left) {
    SAME(whole_program(), 0);
    long long calls = softcuda_calls();
    SAME(calls, 20);
    SAME(softcuda_live(), 0);
    for (long long n = 1; n <= calls; n++) {
        softcuda_fail_at(n, 46);
        int status = whole_program();
        if (n != 14) SAME(status, 46); /* that is the second cuCtxSetCurrent, which nobody asks */
        SAME(softcuda_live(), 0);
        softcuda_fail_at(0, 0);
    }
    SAME(whole_program(), 0);
}

TEST(the_environment_makes_calls_fail) {
    settings({ "SOFTCUDA_FAIL_CALL=4" });
    SAME(whole_program(), UNKNOWN);
    HOLDS(message(), "cuModuleLoadData was made to fail");
    settings({ "SOFTCUDA_FAIL_CALL=", "SOFTCUDA_FAIL_NAME=cuMemAlloc_v2:2", "SOFTCUDA_FAIL_CODE=2" });
    SAME(whole_program(), 0);
    SAME(whole_program(), OUT_OF_MEMORY);
    SAME(whole_program(), 0);
    SAME(softcuda_live(), 0);
}

TEST(a_device_can_be_lost) {
    settings({ "SOFTCUDA_LOSE=1:2", "SOFTCUDA_LOSE_CODE=46" });
    ready other(0), d(1);
    size_t left, total;
    address a = d.memory(4);
    SAME(d.launch("add", of(a, a, a, 1), 1, 32), 0);
    SAME(cuStreamSynchronize(d.stream), 0);
    SAME(d.launch("add", of(a, a, a, 1), 1, 32), 0);
    SAME(cuStreamSynchronize(d.stream), 46);
    SAME(cuMemGetInfo_v2(&left, &total), 46);
    SAME(cuCtxSetCurrent(other.context), 0);
    SAME(cuMemGetInfo_v2(&left, &total), 0);
}
