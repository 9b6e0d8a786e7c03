#define _GNU_SOURCE
#include "manager/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL };

static fs_status no_memory(size_t bytes, const char *doing, int error) {
    return fs_fail(FS_NO_MEMORY,
                   "%s of %zu bytes of memory shared with the manager failed: %s; fewer or shorter rows "
                   "at a time need less, manager=False needs none",
                   doing, bytes, strerror(error));
}

static fs_status map(fs_segment *out, int fd, size_t bytes) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return no_memory(bytes, "mapping", errno);
    *out = (fs_segment){ .at = at, .bytes = bytes, .fd = -1 };
    return FS_OK;
}

fs_status fs_segment_make(fs_segment *out, size_t bytes) {
    fs_status st = FS_OK;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    memset(out, 0, sizeof *out);
    if (bytes > FS_SEGMENT_BYTES)
        return fs_fail(FS_REQUEST,
                       "%zu bytes of rows or results in one piece are more than the %llu that a manager takes; "
                       "send fewer rows at a time",
                       bytes, (unsigned long long)FS_SEGMENT_BYTES);
    bytes = (bytes + page - 1) / page * page + (bytes == 0) * page;
    /* not by its function, which the oldest libc lacks */
    int fd = (int)syscall(SYS_memfd_create, "firesteel", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return no_memory(bytes, "making", errno);
    int error = posix_fallocate(fd, 0, (off_t)bytes); /* not ftruncate: the pages themselves */
    if (error) FS_GO(no_memory(bytes, "taking", error));
    if (fcntl(fd, F_ADD_SEALS, SEALS) < 0) FS_GO(no_memory(bytes, "sealing", errno));
    FS_GO(map(out, fd, bytes));
    out->fd = fd;
    return FS_OK;
done:
    close(fd);
    return st;
}

fs_status fs_segment_map(fs_segment *out, int fd, uint64_t bytes) {
    struct stat file;
    memset(out, 0, sizeof *out);
    if (bytes == 0 || bytes > FS_SEGMENT_BYTES)
        return fs_fail(FS_REQUEST, "a segment has %llu bytes; it may have 1 to %llu", (unsigned long long)bytes,
                       (unsigned long long)FS_SEGMENT_BYTES);
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS || seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
        return fs_fail(FS_REQUEST, "a segment's size is not sealed as it must be (seals %#x)", seals);
    if (fstat(fd, &file) < 0 || (uint64_t)file.st_size != bytes)
        return fs_fail(FS_REQUEST, "a segment has %lld bytes, not the %llu it was announced with",
                       (long long)file.st_size, (unsigned long long)bytes);
    return map(out, fd, (size_t)bytes);
}

void fs_segment_close(fs_segment *s) {
    if (s->at) {
        munmap(s->at, s->bytes);
        if (s->fd >= 0) close(s->fd);
    }
    memset(s, 0, sizeof *s);
}
