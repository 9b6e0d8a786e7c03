/* host.h - what this process may use of its host: the container's share, not the machine's.
 *
 * Cores: the affinity mask, cut by the cgroup's CPU quota (v2 cpu.max, v1 cpu.cfs_quota_us). Memory: the least of the
 * free memory of the host, the cgroup's limit less what it holds that cannot be reclaimed, and RLIMIT_AS (Spark sets it by
 * spark.executor.pyspark.memory). Each call reads the system anew; nothing is cached. */
#ifndef FS_BASE_HOST_H
#define FS_BASE_HOST_H

#include <stddef.h>

typedef struct {
    int cores;           /* threads worth starting, >= 1 */
    int affinity;        /* CPUs of the affinity mask */
    double quota;        /* CPUs of the cgroup's quota; 0: none */
    size_t total;        /* bytes of host memory */
    size_t available;    /* bytes this process may still take */
    size_t cgroup_limit; /* bytes; 0: none */
    size_t address_limit; /* RLIMIT_AS in bytes; 0: none */
} fs_host;

fs_host fs_host_read(void);
/* As fs_host_read, with / replaced by `root`: tests lay a file tree of /proc and /sys/fs/cgroup there. */
fs_host fs_host_read_under(const char *root);

#endif
