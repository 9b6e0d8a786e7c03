/* pool.h - the threads of one CPU device.
 *
 * One caller at a time (the device's driver thread) hands out `chunks` pieces of work; it and the helpers claim them
 * dynamically, so an oversubscribed host costs only its share: the caller waits for chunks that somebody has claimed,
 * never for a helper to come. Idle helpers spin for a few thousand pauses, then park on a futex. Threads are started
 * on first use, never at open, and anew after a fork (the pid is compared); one that cannot be started only means
 * fewer helpers. Helpers block all signals, are called "fs-cpu.1", "fs-cpu.2" ... and are not pinned: executors on one
 * host would all pin to the same first cores. Results must not depend on who runs a chunk.
 *
 * Devices that are parts of one host are guests at each other's pools: the core of a device that has nothing to do would
 * stand still, while a split's larger stage works alone. */
#ifndef FS_CPU_POOL_H
#define FS_CPU_POOL_H

#include "base/status.h"

#include <stdatomic.h>
#include <stdint.h>

typedef struct fs_pool fs_pool;

/* thread: 0 ... fs_pool_threads - 1, the claimer's; 0 is the caller. */
typedef void (*fs_chunk)(void *context, int64_t chunk, int thread);

/* guests: threads of others that may come to help. scratch_bytes: private memory of each thread, 64-byte aligned. */
fs_status fs_pool_open(fs_pool **out, int threads, int guests, size_t scratch_bytes);
void fs_pool_close(fs_pool *p); /* NULL is fine; in a forked child it only frees memory */
/* Runs every chunk once; returns when all are done. With one thread or one chunk the caller runs them itself. */
void fs_pool_run(fs_pool *p, fs_chunk run, void *context, int64_t chunks);
/* Runs chunks of p's jobs, in a thread that is not p's, as its guest number `guest`, which nobody else is. Returns when
 * *stop is set, or nothing has come for some 100 us; how many nanoseconds its chunks took. */
int64_t fs_pool_help(fs_pool *p, int guest, const atomic_int *stop);
int fs_pool_threads(const fs_pool *p); /* that may take part, guests too */
void *fs_pool_scratch(fs_pool *p, int thread);
/* Nanoseconds that chunks have run, over all threads, for stats. Any thread may ask. */
int64_t fs_pool_busy_ns(const fs_pool *p);

/* A few thousand of these, some 100 us, are spun before a thread parks. */
enum { FS_SPINS = 4000 };
static inline void fs_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

#endif
