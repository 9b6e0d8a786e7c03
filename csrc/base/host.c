#define _GNU_SOURCE
#include "base/host.h"

#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* Where the limits of a container lie:
 *
 *   /proc/self/cgroup    0::/a/b               v2, all controllers
 *                        4:memory:/a/b         v1, one line a controller or several, "cpu,cpuacct"
 *   /sys/fs/cgroup/...   a/b/memory.max ...    a file a limit; those of a and of the root hold for a/b as well
 *
 * In a container the path is often the host's and does not exist below the mount, whose root is then the container's
 * own group. So the path is walked up to the root, and what is not there does not limit. */

enum { FILE_BYTES = 16384, PATH_BYTES = 4352, GROUP_BYTES = 2048 };
static const uint64_t UNLIMITED = (uint64_t)1 << 60; /* v1 writes "no limit" as a number near 2^63 */

/* The file's text, cut at FILE_BYTES - 1; 0 when there is none. */
static int slurp(char *text, const char *root, const char *path) {
    char full[PATH_BYTES];
    int n = snprintf(full, sizeof full, "%s%s", root, path);
    if (n < 0 || (size_t)n >= sizeof full) return 0;
    int fd = open(full, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    size_t used = 0;
    ssize_t got;
    while (used < FILE_BYTES - 1 && (got = read(fd, text + used, FILE_BYTES - 1 - used)) > 0) used += (size_t)got;
    close(fd);
    text[used] = 0;
    return used > 0;
}

/* A word of decimal digits at *at, which moves behind it; 0 when there is none. Too large a number becomes
 * UINT64_MAX. */
static int number(const char **at, uint64_t *out) {
    const char *p = *at;
    while (*p == ' ' || *p == '\t') p++;
    if (*p < '0' || *p > '9') return 0;
    uint64_t value = 0;
    for (; *p >= '0' && *p <= '9'; p++) {
        uint64_t digit = (uint64_t)(*p - '0');
        value = value > (UINT64_MAX - digit) / 10 ? UINT64_MAX : value * 10 + digit;
    }
    if (*p && !strchr(" \t\n", *p)) return 0;
    *at = p;
    *out = value;
    return 1;
}

/* The number after `key` at the start of a line: "inactive_file 123", "MemAvailable:  123 kB". */
static int field(const char *text, const char *key, uint64_t *out) {
    size_t length = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        if (!strncmp(line, key, length) && strchr(" \t:", line[length]) && line[length]) {
            const char *at = line + length + 1;
            return number(&at, out);
        }
    return 0;
}

static int number_in(const char *root, const char *mount, const char *group, const char *file, uint64_t *out) {
    char text[FILE_BYTES], path[PATH_BYTES];
    const char *at = text;
    int n = snprintf(path, sizeof path, "%s%s/%s", mount, group, file);
    return n > 0 && (size_t)n < sizeof path && slurp(text, root, path) && number(&at, out);
}

static int field_in(const char *root, const char *mount, const char *group, const char *file, const char *key,
                    uint64_t *out) {
    char text[FILE_BYTES], path[PATH_BYTES];
    int n = snprintf(path, sizeof path, "%s%s/%s", mount, group, file);
    return n > 0 && (size_t)n < sizeof path && slurp(text, root, path) && field(text, key, out);
}

/* One version of the files that limit CPUs or memory. */
typedef struct {
    const char *controller; /* "" is v2's line "0::" */
    const char *mounts[3];
    const char *quota, *period; /* v2 keeps both in one file, then period is NULL */
    const char *limit, *used, *reclaimable;
} group_files;

static const group_files kinds[] = {
    { .controller = "",
      .mounts = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" },
      .quota = "cpu.max",
      .limit = "memory.max",
      .used = "memory.current",
      .reclaimable = "inactive_file" },
    { .controller = "cpu",
      .mounts = { "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpuacct,cpu" },
      .quota = "cpu.cfs_quota_us",
      .period = "cpu.cfs_period_us" },
    { .controller = "memory",
      .mounts = { "/sys/fs/cgroup/memory" },
      .limit = "memory.limit_in_bytes",
      .used = "memory.usage_in_bytes",
      .reclaimable = "total_inactive_file" },
};

static int quota_of(const char *root, const group_files *k, const char *mount, const char *group, double *cpus) {
    uint64_t quota, period;
    if (k->period) {
        if (!number_in(root, mount, group, k->quota, &quota) || !number_in(root, mount, group, k->period, &period))
            return 0;
    } else {
        char text[FILE_BYTES], path[PATH_BYTES];
        const char *at = text;
        int n = snprintf(path, sizeof path, "%s%s/%s", mount, group, k->quota);
        if (n < 0 || (size_t)n >= sizeof path || !slurp(text, root, path)) return 0;
        if (!number(&at, &quota) || !number(&at, &period)) return 0; /* "max 100000" is no number */
    }
    if (quota == 0 || period == 0 || quota > UNLIMITED || period > UNLIMITED) return 0;
    *cpus = (double)quota / (double)period;
    return 1;
}

static void read_group(fs_host *h, const char *root, const group_files *k, const char *mount, const char *group) {
    double cpus;
    uint64_t limit, used = 0, reclaimable = 0;
    if (k->quota && quota_of(root, k, mount, group, &cpus) && (h->quota == 0 || cpus < h->quota)) h->quota = cpus;
    if (!k->limit || !number_in(root, mount, group, k->limit, &limit) || limit >= UNLIMITED) return;
    number_in(root, mount, group, k->used, &used);
    field_in(root, mount, group, "memory.stat", k->reclaimable, &reclaimable);
    /* Pages of files that nobody uses go first when the group is full, so they are as good as free. */
    uint64_t held = used > reclaimable ? used - reclaimable : 0;
    uint64_t room = limit > held ? limit - held : 0;
    if (h->cgroup_limit == 0 || limit < h->cgroup_limit) h->cgroup_limit = (size_t)limit;
    if (room < h->available) h->available = (size_t)room;
}

/* Reads `group` and every group above it. Its text is a path of the kernel's, or anything at all. */
static void walk(fs_host *h, const char *root, const group_files *k, const char *group) {
    char at[GROUP_BYTES];
    size_t length = strlen(group);
    /* ".." stands in for groups outside of our namespace, which cannot be seen from here. */
    int usable = group[0] == '/' && length < sizeof at && !strstr(group, "..");
    snprintf(at, sizeof at, "%s", usable ? group : "");
    for (;;) {
        length = strlen(at);
        while (length && at[length - 1] == '/') at[--length] = 0;
        for (int m = 0; m < 3 && k->mounts[m]; m++) read_group(h, root, k, k->mounts[m], at);
        if (!length) return;
        *strrchr(at, '/') = 0;
    }
}

/* Whether "cpu,cpuacct" names the controller. */
static int lists(const char *controllers, const char *name) {
    size_t length = strlen(name);
    for (const char *at = controllers; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (!strncmp(at, name, length) && (at[length] == 0 || at[length] == ',')) return 1;
    return 0;
}

static void read_cgroups(fs_host *h, const char *root) {
    char text[FILE_BYTES];
    int seen[sizeof kinds / sizeof *kinds] = { 0 };
    if (!slurp(text, root, "/proc/self/cgroup")) text[0] = 0;
    for (char *line = text, *next; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *controllers++ = 0;
        *group++ = 0;
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            int mine = *kinds[k].controller ? lists(controllers, kinds[k].controller)
                                            : *controllers == 0 && !strcmp(line, "0");
            if (!mine) continue;
            seen[k] = 1;
            walk(h, root, &kinds[k], group);
        }
    }
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        if (!seen[k]) walk(h, root, &kinds[k], "/");
}

static void read_memory(fs_host *h, const char *root) {
    char text[FILE_BYTES];
    uint64_t kb = 0, pages = 0;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int there = slurp(text, root, "/proc/meminfo");
    h->total = there && field(text, "MemTotal", &kb) && kb < UNLIMITED / 1024 ? (size_t)kb * 1024
                                                                              : (size_t)sysconf(_SC_PHYS_PAGES) * page;
    h->available = there && field(text, "MemAvailable", &kb) && kb < UNLIMITED / 1024 ? (size_t)kb * 1024 : h->total;

    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
    const char *at = text;
    h->address_limit = (size_t)limit.rlim_cur;
    size_t used = slurp(text, root, "/proc/self/statm") && number(&at, &pages) && pages < UNLIMITED / page
                      ? (size_t)pages * page
                      : 0;
    size_t room = h->address_limit > used ? h->address_limit - used : 0;
    if (room < h->available) h->available = room;
}

static int affinity(void) {
    for (int cpus = 1024; cpus <= 1 << 16; cpus *= 4) { /* the kernel refuses a mask that is too short */
        cpu_set_t *mask = CPU_ALLOC(cpus);
        if (!mask) break;
        size_t bytes = CPU_ALLOC_SIZE(cpus);
        int count = sched_getaffinity(0, bytes, mask) == 0 ? CPU_COUNT_S(bytes, mask) : 0;
        CPU_FREE(mask);
        if (count > 0) return count;
    }
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

fs_host fs_host_read_under(const char *root) {
    fs_host h = { .affinity = affinity() };
    read_memory(&h, root);
    read_cgroups(&h, root);
    h.cores = h.affinity;
    /* A part of a CPU is worth a thread: 1.5 CPUs keep two threads busy three quarters of the time. */
    if (h.quota > 0 && h.quota < h.cores) {
        h.cores = (int)h.quota;
        if (h.cores < h.quota) h.cores++;
    }
    return h;
}

fs_host fs_host_read(void) { return fs_host_read_under(""); }
