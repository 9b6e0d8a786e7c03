/* fibers.cc - the threads of a block as fibers of the calling OS thread.
 *
 * A fiber runs until it must wait for others, then switches straight to the next one that can run: first within its
 * warp, then in the next warp. A thread that ends hands its stack to the next that has not begun, so a kernel without
 * meetings costs a call per thread. When nobody can run and somebody has not ended, the launch has failed.
 *
 * A failed launch leaves its fibers where they are: kernels own nothing that would need a destructor.
 *
 * Under ThreadSanitizer each thread of a block is one to it too, and only meetings put their accesses in order: what
 * two threads do to one place without a barrier between is reported, whatever order it ran in. This file itself must
 * not be instrumented then; build.py says SOFTCUDA_RACES instead. */
#include "runtime.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <link.h>
#include <mutex>
#include <new>
#include <pthread.h>
#include <sys/mman.h>
#include <vector>

#if !defined(__x86_64__) || defined(SOFTCUDA_UCONTEXT)
#define USE_UCONTEXT 1
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
static const bool sanitized = true;
static const size_t stack_bytes = 512 << 10, guard_bytes = 0; /* redzones are better guards */
#else
static const bool sanitized = false;
static const size_t stack_bytes = 128 << 10, guard_bytes = 64;
#endif

#ifdef SOFTCUDA_RACES
#include <sanitizer/tsan_interface.h>
static const bool races = true;
/* All that was done before some hand_over(place) was done before what follows a take_over of the same place. */
static void hand_over(void *place) { __tsan_release(place); }
static void take_over(void *place) { __tsan_acquire(place); }
#else
static const bool races = false;
static void hand_over(void *) {}
static void take_over(void *) {}
#endif

__thread softcuda_thread softcuda_now;

/* -- switching ----------------------------------------------------------------------------------------------------- */

struct place { /* where a fiber, or the OS thread itself, can be continued */
#ifdef USE_UCONTEXT
    ucontext_t machine;
#else
    void *stack;
#endif
    void *stack_low; /* for AddressSanitizer */
    size_t stack_size;
    void *known_as; /* to ThreadSanitizer */
};

#ifdef USE_UCONTEXT
static void machine_begin(place *to, char *low, char *high, void (*entry)()) {
    getcontext(&to->machine);
    to->machine.uc_stack.ss_sp = low;
    to->machine.uc_stack.ss_size = static_cast<size_t>(high - low);
    to->machine.uc_link = nullptr;
    makecontext(&to->machine, entry, 0);
}

static void machine_switch(place *from, place *to) { swapcontext(&from->machine, &to->machine); }
#else
/* Keeps what the calling convention says a call keeps, on the old stack, and takes the same from the new one. */
extern "C" void softcuda_switch(void **from, void *to);
asm(R"(
    .text
    .p2align 4
    .hidden softcuda_switch
    .globl softcuda_switch
    .type softcuda_switch, @function
softcuda_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size softcuda_switch, . - softcuda_switch
)");

static void machine_begin(place *to, char *, char *high, void (*entry)()) {
    void **top = reinterpret_cast<void **>(high);
    *--top = nullptr; /* where entry would return to; it never does */
    *--top = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    to->stack = top;
}

static void machine_switch(place *from, place *to) { softcuda_switch(&from->stack, to->stack); }
#endif

/* -- the pool ------------------------------------------------------------------------------------------------------ */

struct copy {
    void *to;
    unsigned char bytes[16];
    int group;
};

struct fiber {
    place at;
    int stack;        /* -1: not begun */
    const char *file; /* where it waits */
    int line;
    int group; /* of async copies, the open one */
    std::deque<copy> copies;
};

struct warp {
    uint32_t ready, arrived, ended;
    int meetings;
    char order[2]; /* for hand_over, of even and odd meetings: one may be left while the next is arrived at */
    void (*work)(void *const lanes[32]);
    const char *file;
    int line;
    void *lanes[32];
};

struct fiber_pool {
    std::vector<char *> stacks;
    std::vector<void *> known_as; /* of each stack, once begun */
    std::vector<int> free_stacks;
    fiber fibers[1024];
    warp warps[32];
    uint32_t ready_warps;
    place home; /* the OS thread */
    bool from_home; /* it began the fiber that now runs */
    int threads, ended, arrived, now, barriers;
    char begin, end, order[2]; /* for hand_over: of the block, and of its barriers */
    const char *barrier_file;
    int barrier_line, barrier_thread;
    softcuda_kernel_entry *kernel;
    const void *arguments;
    const softcuda_grid *grid;
    char *shared; /* every FS_SHARED array of this OS thread */
    size_t shared_bytes;
    std::string failure;
};

static softcuda_kernel_entry *kernels;

softcuda_kernel_entry::softcuda_kernel_entry(const char *named, size_t struct_bytes, int most_threads,
                                             void (*body)(const void *))
    : name(named), bytes(struct_bytes), threads(most_threads), run(body), next(kernels), launches(0), most_blocks(0) {
    kernels = this;
}

softcuda_kernel_entry *softcuda_kernels() { return kernels; }

static int find_shared(struct dl_phdr_info *object, size_t, void *given) {
    fiber_pool *pool = static_cast<fiber_pool *>(given);
    uintptr_t here = reinterpret_cast<uintptr_t>(&kernels);
    bool ours = false;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) &part = object->dlpi_phdr[i];
        uintptr_t begin = object->dlpi_addr + part.p_vaddr;
        if (part.p_type == PT_LOAD && here >= begin && here < begin + part.p_memsz) ours = true;
        if (part.p_type == PT_TLS) pool->shared_bytes = part.p_memsz;
    }
    pool->shared = static_cast<char *>(object->dlpi_tls_data);
    return ours;
}

/* Fibers of a failed launch are in the middle of something; ThreadSanitizer is given new ones. */
static void forget_fibers([[maybe_unused]] fiber_pool *pool) {
#ifdef SOFTCUDA_RACES
    for (void *&known_as : pool->known_as) {
        if (known_as) __tsan_destroy_fiber(known_as);
        known_as = nullptr;
    }
#endif
}

/* Whoever has this place next, another fiber or the stack of a thread, must find no redzones there. */
static void stack_clean([[maybe_unused]] char *stack) {
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(stack, stack_bytes);
#endif
}

static void pool_free(void *given) {
    fiber_pool *pool = static_cast<fiber_pool *>(given);
    forget_fibers(pool);
    for (char *stack : pool->stacks) {
        stack_clean(stack);
        munmap(stack, stack_bytes);
    }
    delete pool;
}

static fiber_pool *pool_get() {
    static pthread_key_t key;
    static std::once_flag once;
    if (softcuda_now.pool) return softcuda_now.pool;
    std::call_once(once, [] { pthread_key_create(&key, pool_free); });
    fiber_pool *pool = new fiber_pool();
    softcuda_now.pool = pool;
    pthread_setspecific(key, pool);
    pool->stacks.reserve(1024), pool->known_as.reserve(1024), pool->free_stacks.reserve(1024);
#ifdef SOFTCUDA_RACES
    pool->home.known_as = __tsan_get_current_fiber();
#endif
    dl_iterate_phdr(find_shared, pool);
    return pool;
}

/* The lowest page of a stack is a guard. */
static int stack_take(fiber_pool *pool) {
    if (pool->free_stacks.empty()) {
        void *at = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED || mprotect(at, 4096, PROT_NONE)) {
            std::perror("softcuda: a stack");
            std::abort();
        }
        pool->stacks.push_back(static_cast<char *>(at));
        pool->known_as.push_back(nullptr);
        return static_cast<int>(pool->stacks.size()) - 1;
    }
    int stack = pool->free_stacks.back();
    pool->free_stacks.pop_back();
    return stack;
}

static void all_stacks_free(fiber_pool *pool) {
    pool->free_stacks.clear();
    for (int i = static_cast<int>(pool->stacks.size()) - 1; i >= 0; i--) pool->free_stacks.push_back(i);
    for (char *stack : pool->stacks) stack_clean(stack);
}

/* -- who runs next ------------------------------------------------------------------------------------------------- */

static void set_ready(fiber_pool *pool, int w, uint32_t lanes) {
    pool->warps[w].ready = lanes;
    if (lanes) pool->ready_warps |= 1u << w;
    else pool->ready_warps &= ~(1u << w);
}

/* The next set bit after `from`, or before it where everything runs in reverse; round the end, if need be. */
static int next_bit(uint32_t bits, int from, bool reverse) {
    if (reverse) {
        uint32_t below = bits & ((1u << from) - 1);
        return 31 - __builtin_clz(below ? below : bits);
    }
    uint32_t above = bits & ~((2u << from) - 1);
    return __builtin_ctz(above ? above : bits);
}

/* The thread to run now, or -1. */
static int pick(fiber_pool *pool) {
    bool reverse = pool->grid->reverse;
    int w = pool->now / 32, lane = pool->now % 32;
    if (!pool->ready_warps) return -1;
    if (!pool->warps[w].ready) {
        w = next_bit(pool->ready_warps, w, reverse);
        lane = reverse ? 0 : 31; /* so that the first is next */
    }
    return w * 32 + next_bit(pool->warps[w].ready, lane, reverse);
}

static void fiber_entry();

static void fiber_begin(fiber_pool *pool, fiber *f) {
    f->stack = stack_take(pool);
    char *low = pool->stacks[f->stack] + 4096;
    /* Stacks that began at the same place of a page would all want the same cache lines. */
    char *high = pool->stacks[f->stack] + stack_bytes - f->stack % 64 * 320;
    f->at.stack_low = low;
    f->at.stack_size = static_cast<size_t>(high - low);
#ifdef SOFTCUDA_RACES
    if (!pool->known_as[f->stack]) pool->known_as[f->stack] = __tsan_create_fiber(0);
    f->at.known_as = pool->known_as[f->stack];
#endif
    machine_begin(&f->at, low, high, fiber_entry);
}

static void arrived_here(place *from) {
#ifdef __SANITIZE_ADDRESS__
    const void *low;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &low, &size);
    if (from) from->stack_low = const_cast<void *>(low), from->stack_size = size;
#else
    (void)from;
#endif
}

static void go(place *from, place *to) {
#ifdef __SANITIZE_ADDRESS__
    void *fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, to->stack_low, to->stack_size);
    machine_switch(from, to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
#ifdef SOFTCUDA_RACES
    __tsan_switch_to_fiber(to->known_as, __tsan_switch_to_fiber_no_sync);
#endif
    machine_switch(from, to);
#endif
}

[[noreturn]] static void go_home(fiber_pool *pool) {
    hand_over(&pool->end);
    go(&pool->fibers[pool->now].at, &pool->home);
    __builtin_unreachable();
}

static const char *base_name(const char *path) {
    const char *slash = std::strrchr(path, '/');
    return slash ? slash + 1 : path;
}

[[noreturn]] void softcuda_fail(const char *file, int line, const char *format, ...) {
    fiber_pool *pool = softcuda_now.pool;
    char what[512], where[512];
    va_list list;
    va_start(list, format);
    std::vsnprintf(what, sizeof what, format, list);
    va_end(list);
    std::snprintf(where, sizeof where, "%s, block (%u,%u,%u), thread %d, %s:%d: ", pool->kernel->name,
                  softcuda_now.block.x, softcuda_now.block.y, softcuda_now.block.z, pool->now, base_name(file), line);
    pool->failure = std::string(where) + what;
    go_home(pool);
}

/* Nobody can run: two threads that wait in different places tell why. */
[[noreturn]] static void fail_stuck(fiber_pool *pool) {
    const fiber *first = nullptr, *other = nullptr;
    for (int i = 0; i < pool->threads; i++) {
        const fiber *f = &pool->fibers[i];
        if (!f->file) continue;
        if (!first) first = f, pool->now = i;
        else if (f->line != first->line && !other) other = f;
    }
    if (other) {
        softcuda_fail(first->file, first->line, "waits here for thread %d, which waits at %s:%d",
                      static_cast<int>(other - pool->fibers), base_name(other->file), other->line);
    }
    softcuda_fail(first->file, first->line, "waits here for threads that will not come");
}

static void make_current(fiber_pool *pool, int t) {
    pool->now = t;
    softcuda_now.thread.x = static_cast<unsigned>(t);
}

/* Leaves the current thread, which waits, and comes back when it is ready and its turn. */
static void wait_here(fiber_pool *pool, const char *file, int line) {
    int self = pool->now;
    fiber *f = &pool->fibers[self];
    set_ready(pool, self / 32, pool->warps[self / 32].ready & ~(1u << self % 32));
    f->file = file, f->line = line;
    int next = pick(pool);
    if (next < 0) fail_stuck(pool);
    if (pool->fibers[next].stack < 0) fiber_begin(pool, &pool->fibers[next]);
    make_current(pool, next);
    hand_over(&pool->end); /* should this be where it is left for good */
    go(&f->at, &pool->fibers[next].at);
    f->file = nullptr;
}

static void thread_end(fiber_pool *pool) {
    int t = pool->now;
    if (pool->arrived) {
        softcuda_fail(pool->barrier_file, pool->barrier_line,
                      "this thread ended while thread %d waits for it at this barrier", pool->barrier_thread);
    }
    warp *w = &pool->warps[t / 32];
    w->ended |= 1u << t % 32;
    set_ready(pool, t / 32, w->ready & ~(1u << t % 32));
    pool->ended++;
}

/* Runs threads until the one to run next has a stack of its own. */
static void fiber_entry() {
    fiber_pool *pool = softcuda_now.pool;
    arrived_here(pool->from_home ? &pool->home : nullptr);
    pool->from_home = false;
    take_over(&pool->begin);
    for (;;) {
        pool->kernel->run(pool->arguments);
        hand_over(&pool->end);
        thread_end(pool);
        int self = pool->now, next = pick(pool);
        if (next < 0) {
            if (pool->ended < pool->threads) fail_stuck(pool);
            go_home(pool);
        }
        int stack = pool->fibers[self].stack;
        make_current(pool, next);
        if (races) {
            if (pool->fibers[next].stack < 0) fiber_begin(pool, &pool->fibers[next]);
        } else if (pool->fibers[next].stack < 0) {
            place &mine = pool->fibers[self].at, &its = pool->fibers[next].at;
            pool->fibers[next].stack = stack;
            its.stack_low = mine.stack_low, its.stack_size = mine.stack_size;
            continue;
        } else {
            pool->free_stacks.push_back(stack);
        }
        go(&pool->fibers[self].at, &pool->fibers[next].at);
    }
}

/* -- meetings ------------------------------------------------------------------------------------------------------ */

/* Counts this thread in; true for the last one, which lets all of them go on. */
static bool barrier_arrive(fiber_pool *pool, const char *file, int line) {
    if (pool->ended) softcuda_fail(file, line, "waits at a barrier after %d threads have ended", pool->ended);
    if (!pool->arrived) {
        pool->barrier_file = file, pool->barrier_line = line, pool->barrier_thread = pool->now;
    } else if (line != pool->barrier_line || std::strcmp(file, pool->barrier_file)) {
        softcuda_fail(file, line, "divergent barrier: thread %d waits at the one in %s:%d", pool->barrier_thread,
                      base_name(pool->barrier_file), pool->barrier_line);
    }
    if (++pool->arrived < pool->threads) return false;
    pool->arrived = 0;
    pool->barriers++;
    for (int i = 0; i < pool->threads; i += 32) {
        int lanes = pool->threads - i;
        set_ready(pool, i / 32, lanes >= 32 ? ~0u : (1u << lanes) - 1);
    }
    return true;
}

void softcuda_block_meet(const char *file, int line) {
    fiber_pool *pool = softcuda_now.pool;
    char *order = &pool->order[pool->barriers % 2];
    hand_over(order);
    if (!barrier_arrive(pool, file, line)) wait_here(pool, file, line);
    take_over(order);
}

static bool warp_arrive(fiber_pool *pool, warp *w, void *mine, void (*work)(void *const lanes[32]), const char *what,
                        const char *file, int line) {
    int lane = pool->now % 32;
    if (w->ended) softcuda_fail(file, line, "%s needs all lanes; some have ended or do not exist", what);
    if (!w->arrived) {
        w->work = work, w->file = file, w->line = line;
    } else if (work != w->work || line != w->line) {
        softcuda_fail(file, line, "%s in a divergent warp: other lanes are at %s:%d", what, base_name(w->file),
                      w->line);
    }
    w->lanes[lane] = mine;
    w->arrived |= 1u << lane;
    if (~w->arrived) return false;
    w->arrived = 0;
    w->meetings++;
    work(w->lanes);
    set_ready(pool, pool->now / 32, ~0u);
    return true;
}

void softcuda_warp_meet(void *mine, void (*work)(void *const lanes[32]), const char *what, const char *file, int line) {
    fiber_pool *pool = softcuda_now.pool;
    warp *w = &pool->warps[pool->now / 32];
    char *order = &w->order[w->meetings % 2];
    hand_over(order);
    if (!warp_arrive(pool, w, mine, work, what, file, line)) wait_here(pool, file, line);
    take_over(order);
}

/* -- async copies -------------------------------------------------------------------------------------------------- */

void softcuda_copy_queue(void *to, const unsigned char bytes[16]) {
    fiber_pool *pool = softcuda_now.pool;
    fiber *f = &pool->fibers[pool->now];
    copy c = { to, {}, f->group };
    std::memcpy(c.bytes, bytes, sizeof c.bytes);
    f->copies.push_back(c);
}

void softcuda_copy_commit() {
    fiber_pool *pool = softcuda_now.pool;
    pool->fibers[pool->now].group++;
}

/* Groups close in order, so the copies to do are the oldest. */
bool softcuda_copy_next(int groups_left, void **to, unsigned char bytes[16]) {
    fiber_pool *pool = softcuda_now.pool;
    fiber *f = &pool->fibers[pool->now];
    if (f->copies.empty() || f->copies.front().group >= f->group - groups_left) return false;
    *to = f->copies.front().to;
    std::memcpy(bytes, f->copies.front().bytes, 16);
    f->copies.pop_front();
    return true;
}

/* -- blocks and grids ---------------------------------------------------------------------------------------------- */

int softcuda_capability() { return softcuda_now.pool->grid->capability; }

static void block_begin(fiber_pool *pool) {
    pool->threads = static_cast<int>(pool->grid->threads);
    pool->ended = pool->arrived = 0;
    pool->ready_warps = 0;
    for (int i = 0; i < pool->threads; i++) {
        fiber *f = &pool->fibers[i];
        f->stack = -1, f->file = nullptr, f->group = 0;
        f->copies.clear();
    }
    for (int i = 0; i < pool->threads; i += 32) {
        int lanes = pool->threads - i;
        uint32_t exist = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        pool->warps[i / 32].arrived = 0, pool->warps[i / 32].ended = ~exist;
        set_ready(pool, i / 32, exist);
    }
    all_stacks_free(pool);
}

/* Wipes what FS_SHARED arrays hold; the library's own thread-local lies among them. */
static void wipe_shared(fiber_pool *pool) {
    if (sanitized) return;
    softcuda_thread kept = softcuda_now;
    softcuda_poison(pool->shared, pool->shared_bytes);
    softcuda_now = kept;
}

static void block_run(fiber_pool *pool) {
    block_begin(pool);
    wipe_shared(pool);
    int first = pool->grid->reverse ? pool->threads - 1 : 0;
    fiber_begin(pool, &pool->fibers[first]);
    make_current(pool, first);
    pool->from_home = true;
    hand_over(&pool->begin);
    go(&pool->home, &pool->fibers[first].at);
    take_over(&pool->end);
    if (!pool->failure.empty()) forget_fibers(pool);
}

/* Dynamic shared memory of exactly the size asked for, between guards or redzones. */
struct dynamic_memory {
    char *at = nullptr;
    size_t bytes;
    explicit dynamic_memory(size_t size) : bytes(size) {
        void *all;
        if (posix_memalign(&all, 128, bytes + 2 * room())) throw std::bad_alloc();
        at = static_cast<char *>(all) + room();
        std::memset(at - guard_bytes, 0xa5, guard_bytes);
        std::memset(at + bytes, 0xa5, guard_bytes);
    }
    ~dynamic_memory() { std::free(at - room()); }
    dynamic_memory(const dynamic_memory &) = delete;
    dynamic_memory &operator=(const dynamic_memory &) = delete;
    static size_t room() { return guard_bytes ? 128 : 0; }
    bool intact() const {
        for (size_t i = 0; i < guard_bytes; i++) {
            if (at[bytes + i] != static_cast<char>(0xa5) ||
                at[-1 - static_cast<ptrdiff_t>(i)] != static_cast<char>(0xa5))
                return false;
        }
        return true;
    }
};

static void count_launch(softcuda_kernel_entry *kernel, long long blocks) {
    __atomic_add_fetch(&kernel->launches, 1, __ATOMIC_RELAXED);
    long long most = __atomic_load_n(&kernel->most_blocks, __ATOMIC_RELAXED);
    while (most < blocks && !__atomic_compare_exchange_n(&kernel->most_blocks, &most, blocks, true, __ATOMIC_RELAXED,
                                                         __ATOMIC_RELAXED)) {}
}

std::string softcuda_run(softcuda_kernel_entry *kernel, const void *arguments, const softcuda_grid &grid) {
    static std::mutex one_at_a_time;
    std::unique_lock<std::mutex> alone(one_at_a_time, std::defer_lock);
    if (sanitized) alone.lock();
    fiber_pool *pool = pool_get();
    dynamic_memory dynamic(grid.dynamic_bytes);
    softcuda_index n = grid.blocks;
    long long blocks = static_cast<long long>(n.x) * n.y * n.z;
    pool->kernel = kernel, pool->arguments = arguments, pool->grid = &grid;
    pool->failure.clear();
    softcuda_now.grid_size = n;
    softcuda_now.block_size = { grid.threads, 1, 1 };
    softcuda_now.dynamic = dynamic.at;
    for (long long i = 0; i < blocks && pool->failure.empty(); i++) {
        long long b = grid.reverse ? blocks - 1 - i : i;
        softcuda_now.block = { static_cast<unsigned>(b % n.x), static_cast<unsigned>(b / n.x % n.y),
                               static_cast<unsigned>(b / n.x / n.y) };
        softcuda_poison(dynamic.at, dynamic.bytes);
        block_run(pool);
        if (pool->failure.empty() && !dynamic.intact()) {
            pool->failure = std::string(kernel->name) + ": wrote outside its dynamic shared memory";
        }
    }
    if (pool->failure.empty()) count_launch(kernel, blocks);
    return pool->failure;
}
