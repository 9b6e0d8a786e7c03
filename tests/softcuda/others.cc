/* others.cc - device memory that other processes take, where SOFTCUDA_SHARED names a file that all of them map.
 *
 * Each process has a row in it, which only it writes: its pid and what it has of each of the machine's devices. What
 * stands in the row of a dead process counts for nothing, and the row is free. */
#include "softcuda.h"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static const int max_processes = 256;

struct row {
    std::atomic<int> pid;
    std::atomic<size_t> used[max_devices];
};

static bool alive(int pid) { return pid && (kill(pid, 0) == 0 || errno != ESRCH); }

static row *mapped() {
    const char *path = std::getenv("SOFTCUDA_SHARED");
    if (!path || !*path) return nullptr;
    const size_t bytes = max_processes * sizeof(row);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes))) std::abort();
    void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at == MAP_FAILED) std::abort();
    return static_cast<row *>(at);
}

static row *table() {
    static row *const rows = mapped();
    return rows;
}

static row *taken() {
    for (row *r = table(); r && r < table() + max_processes; r++) {
        int before = r->pid;
        if (alive(before) || !r->pid.compare_exchange_strong(before, getpid())) continue;
        for (std::atomic<size_t> &used : r->used) used = 0;
        return r;
    }
    return nullptr;
}

void softcuda_tell_others(const device *d) {
    static row *const own = taken();
    if (own) own->used[d->number] = d->used;
}

size_t softcuda_used_by_others(const device *d) {
    size_t sum = 0;
    for (row *r = table(); r && r < table() + max_processes; r++) {
        int pid = r->pid;
        if (pid != getpid() && alive(pid)) sum += r->used[d->number];
    }
    return sum;
}

bool softcuda_is_shared() { return table() != nullptr; }
