/* selftest_nccl.cu - collectives of the software NCCL: they wait for all ranks, and end when they are aborted. */
#include "softcuda/selftest_driver.h"

#include <chrono>
#include <thread>

struct unique_id {
    char bytes[128];
};

struct config {
    size_t size;
    unsigned magic, version;
    int blocking, cluster_size, min_blocks, max_blocks;
    const char *net_name;
    int split_share;
};

extern "C" {
int ncclGetVersion(int *);
const char *ncclGetErrorString(int);
int ncclGetUniqueId(unique_id *);
int ncclCommInitRankConfig(handle *, int, unique_id, int, const config *);
int ncclCommGetAsyncError(handle, int *);
int ncclCommDestroy(handle);
int ncclCommAbort(handle);
int ncclGroupStart(void);
int ncclGroupEnd(void);
int ncclAllGather(const void *, void *, size_t, int, handle, handle);
}

enum {
    CUDA_ERROR = 1,
    SYSTEM_ERROR = 2,
    INVALID_ARGUMENT = 4,
    INVALID_USAGE = 5,
    IN_PROGRESS = 7,
    FLOAT = 7,
    NOT_READY = 600
};
static const config how = { sizeof how, 0xcafebeef, 21800, 0, -1, -1, -1, nullptr, -1 };

/* Two devices, a group of both, and on each a number of its own and room for all numbers. */
struct pair {
    ready d[2] = { ready(0), ready(1) };
    handle comm[2] = {}, done[2] = {};
    address mine[2], all[2];
    pair() {
        unique_id id;
        SAME(ncclGetUniqueId(&id), 0);
        SAME(ncclGroupStart(), 0);
        for (int r = 0; r < 2; r++) {
            enter(r);
            SAME(ncclCommInitRankConfig(&comm[r], 2, id, r, &how), IN_PROGRESS);
            mine[r] = d[r].memory(4), all[r] = d[r].memory(8);
            SAME(cuEventCreate(&done[r], 2), 0);
            SAME(cuMemsetD32Async(mine[r], r ? 0x40000000 : 0x3f800000, 1, d[r].stream), 0);
        }
        SAME(ncclGroupEnd(), 0);
        for (handle c : comm) {
            int error = 0;
            SAME(ncclCommGetAsyncError(c, &error), 0);
            SAME(error, IN_PROGRESS);
            SAME(ncclCommGetAsyncError(c, &error), 0);
            SAME(error, 0);
        }
    }
    ~pair() {
        for (int r = 0; r < 2; r++) {
            enter(r);
            if (comm[r]) ncclCommDestroy(comm[r]);
            cuEventDestroy_v2(done[r]);
        }
    }
    void enter(int r) { SAME(cuCtxSetCurrent(d[r].context), 0); }
    int gather(int r, size_t count = 1) {
        enter(r);
        int status = ncclAllGather(reinterpret_cast<void *>(mine[r]), reinterpret_cast<void *>(all[r]), count, FLOAT,
                                   comm[r], d[r].stream);
        SAME(cuEventRecord(done[r], d[r].stream), 0);
        return status;
    }
};

TEST(a_gather_brings_everything_to_all) {
    for (const char *defer : { "SOFTCUDA_DEFER=1", "SOFTCUDA_DEFER=0" }) {
        settings({ defer });
        {
            pair p;
            for (int r = 0; r < 2; r++) SAME(p.gather(r), 0);
            /* What comes later does not change what is gathered. */
            SAME(cuMemsetD32Async(p.mine[1], 0, 1, p.d[1].stream), 0);
            for (int r = 0; r < 2; r++) {
                p.enter(r);
                SAME(cuStreamSynchronize(p.d[r].stream), 0);
                SAME(p.d[r].peek(p.all[r]), 1);
                SAME(p.d[r].peek(p.all[r] + 4), 2);
            }
        }
        SAME(softcuda_live(), 0);
    }
}

TEST(ranks_of_two_threads_gather_many_times) {
    pair p;
    std::thread threads[2];
    for (int r = 0; r < 2; r++) {
        threads[r] = std::thread([&, r] {
            p.enter(r);
            for (int i = 0; i < 100; i++) {
                SAME(cuMemsetD32Async(p.mine[r], static_cast<unsigned>(1000 * r + i), 1, p.d[r].stream), 0);
                SAME(p.gather(r), 0);
                SAME(cuMemcpyDtoDAsync_v2(p.mine[r], p.all[r] + 4, 4, p.d[r].stream), 0);
                if (i % 3 == 0) SAME(cuEventSynchronize(p.done[r]), 0);
            }
            SAME(cuStreamSynchronize(p.d[r].stream), 0);
        });
    }
    for (std::thread &t : threads) t.join();
    for (int r = 0; r < 2; r++) {
        p.enter(r);
        SAME(softcuda_bits(p.d[r].peek(p.all[r])), 99);
        SAME(softcuda_bits(p.d[r].peek(p.mine[r])), 1099);
    }
}

TEST(a_waiting_thread_goes_on_when_the_last_rank_has_enqueued) {
    pair p;
    SAME(p.gather(0), 0);
    std::thread waiter([&] {
        p.enter(0);
        SAME(cuEventSynchronize(p.done[0]), 0);
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    p.enter(1);
    SAME(ncclAllGather(reinterpret_cast<void *>(p.mine[1]), reinterpret_cast<void *>(p.all[1]), 1, FLOAT, p.comm[1],
                       p.d[1].stream),
         0);
    waiter.join();
    p.enter(0);
    SAME(p.d[0].peek(p.all[0] + 4), 2);
}

TEST(a_first_gather_is_enqueued_when_it_was_asked_for) {
    for (const char *defer : { "SOFTCUDA_DEFER=1", "SOFTCUDA_DEFER=0" }) {
        settings({ defer, "SOFTCUDA_CONNECT=3" });
        {
            pair p;
            for (int r = 0; r < 2; r++) SAME(p.gather(r), IN_PROGRESS);
            SAME(p.gather(0), INVALID_USAGE);
            p.enter(1);
            SAME(cuMemsetD32Async(p.mine[1], 0x40400000, 1, p.d[1].stream), 0); /* runs before the gather */
            for (int r = 0; r < 2; r++) {
                for (int i = 0; i < 4; i++) {
                    int error = 0;
                    SAME(ncclCommGetAsyncError(p.comm[r], &error), 0);
                    SAME(error, i < 3 ? IN_PROGRESS : 0);
                }
            }
            for (int r = 0; r < 2; r++) {
                p.enter(r);
                SAME(cuStreamSynchronize(p.d[r].stream), 0);
                SAME(p.d[r].peek(p.all[r]), 1);
                SAME(p.d[r].peek(p.all[r] + 4), 3);
            }
            for (int r = 0; r < 2; r++) SAME(p.gather(r), 0); /* connected */
        }
        SAME(softcuda_live(), 0);
        {
            pair p; /* given up in between */
            SAME(p.gather(0), IN_PROGRESS);
            SAME(ncclCommAbort(p.comm[0]), 0);
            p.comm[0] = nullptr;
            SAME(cuStreamSynchronize(p.d[0].stream), 0);
        }
        SAME(softcuda_live(), 0);
    }
}

TEST(a_hanging_rank_gathers_and_stays) {
    settings({ "SOFTCUDA_HANG=1" });
    pair p;
    for (int r = 0; r < 2; r++) SAME(p.gather(r), 0);
    p.enter(0);
    SAME(cuEventSynchronize(p.done[0]), 0);
    SAME(p.d[0].peek(p.all[0] + 4), 2);
    p.enter(1);
    for (int i = 0; i < 10; i++) SAME(cuEventQuery(p.done[1]), NOT_READY);
    SAME(ncclCommAbort(p.comm[1]), 0);
    p.comm[1] = nullptr;
    SAME(cuEventSynchronize(p.done[1]), 0);
}

TEST(a_rank_that_does_not_come_holds_the_others_until_they_abort) {
    pair p;
    SAME(p.gather(0), 0);
    for (int i = 0; i < 10; i++) SAME(cuEventQuery(p.done[0]), NOT_READY);
    SAME(ncclCommAbort(p.comm[0]), 0);
    SAME(cuEventSynchronize(p.done[0]), 0);
    CHECK(std::isnan(p.d[0].peek(p.all[0])));
    SAME(ncclCommAbort(p.comm[0]), INVALID_ARGUMENT);
    p.comm[0] = nullptr;
    SAME(p.gather(1), 0);
    SAME(cuEventQuery(p.done[1]), NOT_READY); /* the fill before it */
    SAME(cuEventQuery(p.done[1]), NOT_READY);
    SAME(cuEventQuery(p.done[1]), NOT_READY);
    SAME(ncclCommAbort(p.comm[1]), 0);
    p.comm[1] = nullptr;
    SAME(cuEventSynchronize(p.done[1]), 0);
}

TEST(ranks_must_agree) {
    pair p;
    int error = 0;
    p.enter(0);
    SAME(cuMemFree_v2(p.mine[0]), 0);
    p.mine[0] = p.d[0].blocks[0] = p.d[0].memory(8);
    p.d[0].blocks.pop_back();
    p.all[0] = p.d[0].memory(16);
    SAME(p.gather(0, 3), INVALID_ARGUMENT);
    SAME(p.gather(0, 2), 0);
    SAME(p.gather(1), 0);
    SAME(cuStreamSynchronize(p.d[1].stream), 0);
    SAME(ncclCommGetAsyncError(p.comm[0], &error), 0);
    SAME(error, INVALID_USAGE);
    HOLDS(message(), "ranks disagree");
}

TEST(groups_are_checked) {
    ready d;
    unique_id id;
    handle comm, second;
    int error, version;
    config blocking = how;
    blocking.blocking = 1;
    SAME(ncclGetVersion(&version), 0);
    CHECK(version >= 21800);
    HOLDS(ncclGetErrorString(INVALID_USAGE), "invalid usage");
    SAME(ncclGetUniqueId(&id), 0);
    SAME(ncclGroupEnd(), INVALID_USAGE);
    SAME(ncclCommInitRankConfig(&comm, 2, id, 2, &how), INVALID_ARGUMENT);
    SAME(ncclCommInitRankConfig(&comm, 2, id, 0, &blocking), INVALID_ARGUMENT);
    softcuda_fail_at(1, 999);
    SAME(ncclCommInitRankConfig(&comm, 2, id, 0, &how), SYSTEM_ERROR);
    SAME(ncclCommInitRankConfig(&comm, 2, id, 0, &how), IN_PROGRESS);
    SAME(ncclCommInitRankConfig(&second, 2, id, 1, &how), INVALID_USAGE); /* the same device */
    for (int i = 0; i < 3; i++) {
        SAME(ncclCommGetAsyncError(comm, &error), 0);
        SAME(error, IN_PROGRESS);
    }
    address at = d.memory(8);
    void *memory = reinterpret_cast<void *>(at);
    SAME(ncclAllGather(memory, memory, 1, FLOAT, comm, d.stream), INVALID_USAGE);
    SAME(ncclCommAbort(comm), 0);
}
