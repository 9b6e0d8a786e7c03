#define _GNU_SOURCE
/* base/host: file trees of /proc and /sys/fs/cgroup as containers show them, and as nobody should. */
#include "base/host.h"
#include "test.h"

#include <ftw.h>
#include <math.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_FILES = 10 };

typedef struct {
    const char *path, *text;
} file;

typedef struct {
    const char *name;
    file files[MOST_FILES];
    double quota;
    int64_t cgroup_limit, available; /* -1: whatever this machine says */
} tree;

#define MEMINFO { "/proc/meminfo", "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n" }
#define ALL     ((int64_t)8000000 * 1024)

static const tree trees[] = {
    { "no container", { MEMINFO }, 0, 0, ALL },
    { "nothing to read", { { "/empty", "" } }, 0, 0, -1 },
    { "v2, limits at the root of the namespace",
      { MEMINFO,
        { "/proc/self/cgroup", "0::/\n" },
        { "/sys/fs/cgroup/cpu.max", "50000 100000\n" },
        { "/sys/fs/cgroup/memory.max", "2000000000\n" },
        { "/sys/fs/cgroup/memory.current", "900000000\n" },
        { "/sys/fs/cgroup/memory.stat", "anon 500000000\nfile 400000000\ninactive_file 300000000\n" } },
      0.5,
      2000000000,
      1400000000 },
    { "v2, no limits",
      { MEMINFO,
        { "/proc/self/cgroup", "0::/\n" },
        { "/sys/fs/cgroup/cpu.max", "max 100000\n" },
        { "/sys/fs/cgroup/memory.max", "max\n" } },
      0,
      0,
      ALL },
    { "v2, a group above is tighter in memory, the own one in CPUs",
      { MEMINFO,
        { "/proc/self/cgroup", "0::/pod/main\n" },
        { "/sys/fs/cgroup/pod/main/cpu.max", "75000 100000" },
        { "/sys/fs/cgroup/pod/cpu.max", "900000 100000" },
        { "/sys/fs/cgroup/pod/main/memory.max", "4000000000" },
        { "/sys/fs/cgroup/pod/main/memory.current", "1000000000" },
        { "/sys/fs/cgroup/pod/memory.max", "3000000000" },
        { "/sys/fs/cgroup/pod/memory.current", "2500000000" } },
      0.75,
      3000000000,
      500000000 },
    { "v2, the host's path is not there, the mount is the own group",
      { MEMINFO,
        { "/proc/self/cgroup", "0::/kubepods/pod7/c3\n" },
        { "/sys/fs/cgroup/memory.max", "1000000000" },
        { "/sys/fs/cgroup/memory.current", "1500000000" } },
      0,
      1000000000,
      0 },
    { "v2, a path out of the namespace",
      { MEMINFO,
        { "/proc/self/cgroup", "0::/../../other\n" },
        { "/sys/fs/cgroup/cpu.max", "20000 100000" },
        { "/sys/fs/other/cpu.max", "1 100000" } },
      0.2,
      0,
      ALL },
    { "v1",
      { MEMINFO,
        { "/proc/self/cgroup", "12:pids:/x\n5:cpuset:/docker/c\n4:cpu,cpuacct:/docker/c\n3:memory:/docker/c\n" },
        { "/sys/fs/cgroup/cpu,cpuacct/docker/c/cpu.cfs_quota_us", "30000\n" },
        { "/sys/fs/cgroup/cpu,cpuacct/docker/c/cpu.cfs_period_us", "100000\n" },
        { "/sys/fs/cgroup/memory/docker/c/memory.limit_in_bytes", "1000000000\n" },
        { "/sys/fs/cgroup/memory/docker/c/memory.usage_in_bytes", "700000000\n" },
        { "/sys/fs/cgroup/memory/docker/c/memory.stat", "inactive_file 1\ntotal_inactive_file 200000000\n" } },
      0.3,
      1000000000,
      500000000 },
    { "v1, no limits",
      { MEMINFO,
        { "/proc/self/cgroup", "4:cpu:/\n3:memory:/\n" },
        { "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n" },
        { "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n" },
        { "/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n" } },
      0,
      0,
      ALL },
    { "v2 beside v1",
      { MEMINFO,
        { "/proc/self/cgroup", "3:memory:/a\n0::/b\n" },
        { "/sys/fs/cgroup/unified/b/cpu.max", "10000 100000\n" },
        { "/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000000\n" } },
      0.1,
      1000000,
      1000000 },
    { "numbers that are none",
      { { "/proc/meminfo", "MemTotal: lots\nMemAvailable:\nMemAvailable" },
        { "/proc/self/cgroup", "0::/\n" },
        { "/sys/fs/cgroup/cpu.max", "100000 0\n" },
        { "/sys/fs/cgroup/memory.max", "-5\n" } },
      0,
      0,
      -1 },
    { "numbers too large",
      { { "/proc/meminfo", "MemTotal: 99999999999999999999999 kB\nMemAvailable: 99999999999999999999999 kB\n" },
        { "/proc/self/cgroup", "0::/\n" },
        { "/sys/fs/cgroup/cpu.max", "99999999999999999999999 1\n" },
        { "/sys/fs/cgroup/memory.max", "99999999999999999999999\n" } },
      0,
      0,
      -1 },
    { "lines that are none",
      { MEMINFO,
        { "/proc/self/cgroup", "\n:\n::\n0\n0:\n0::\n0::relative\n:::::\n4:cpu\n3:memory:" },
        { "/sys/fs/cgroup/memory.max", "1000000000" },
        { "/sys/fs/cgroup/memory.stat", "inactive_file" } },
      0,
      1000000000,
      1000000000 },
};

static void write_file(const char *root, const file *f) {
    char path[1024];
    snprintf(path, sizeof path, "%s%s", root, f->path);
    for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = 0;
        mkdir(path, 0700);
    }
    FILE *out = fopen(path, "w");
    CHECK(out != NULL);
    if (!out) return;
    fputs(f->text, out);
    fclose(out);
}

static int delete_one(const char *path, const struct stat *st, int kind, struct FTW *walk) {
    (void)st, (void)kind, (void)walk;
    return remove(path);
}

static void containers_are_understood(void) {
    for (size_t i = 0; i < sizeof trees / sizeof *trees; i++) {
        const tree *t = &trees[i];
        char root[] = "/tmp/fs-host-XXXXXX";
        CHECK(mkdtemp(root) != NULL);
        for (int f = 0; f < MOST_FILES && t->files[f].path; f++) write_file(root, &t->files[f]);
        int before = fs_test_failures;
        fs_host h = fs_host_read_under(root);
        CHECK(fabs(h.quota - t->quota) < 1e-9);
        CHECK_INT(h.cgroup_limit, t->cgroup_limit);
        if (t->available >= 0) CHECK_INT(h.available, t->available);
        else CHECK(h.available > 0 && h.available <= h.total);
        CHECK(h.affinity >= 1 && h.cores >= 1 && h.cores <= h.affinity);
        if (t->quota > 0 && t->quota <= 1) CHECK_INT(h.cores, 1);
        if (t->quota == 0) CHECK_INT(h.cores, h.affinity);
        if (fs_test_failures != before) fprintf(stderr, "  in the tree '%s'\n", t->name);
        nftw(root, delete_one, 8, FTW_DEPTH | FTW_PHYS);
    }
}

/* A long path, and a file without an end: nothing is trusted to be short. */
static void long_texts_are_cut(void) {
    char root[] = "/tmp/fs-host-XXXXXX", *text;
    CHECK(mkdtemp(root) != NULL);
    CHECK_OK(fs_alloc(&text, 100001, 1));
    memset(text, '/', 100000);
    memcpy(text, "0::", 3);
    write_file(root, &(file){ "/proc/self/cgroup", text });
    write_file(root, &(file){ "/sys/fs/cgroup/memory.max", text });
    memset(text, '7', 100000);
    write_file(root, &(file){ "/proc/meminfo", text });
    fs_host h = fs_host_read_under(root);
    CHECK_INT(h.cgroup_limit, 0);
    CHECK(h.cores >= 1 && h.available > 0);
    fs_free(text);
    nftw(root, delete_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void this_host_has_something(void) {
    fs_host h = fs_host_read();
    CHECK(h.cores >= 1);
    CHECK(h.available > 0);
    CHECK(h.total >= h.available);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* whose shadow memory needs the addresses */
static void address_space_is_a_limit(void) {
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = { .rlim_cur = (rlim_t)1 << 30, .rlim_max = (rlim_t)1 << 30 };
        setrlimit(RLIMIT_AS, &limit);
        fs_host h = fs_host_read();
        _exit(h.address_limit != (size_t)1 << 30 || h.available >= (size_t)1 << 30 || h.available == 0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK_INT(status, 0);
}
#else
static void address_space_is_a_limit(void) {}
#endif

TESTS({ "containers_are_understood", containers_are_understood }, { "long_texts_are_cut", long_texts_are_cut },
      { "this_host_has_something", this_host_has_something }, { "address_space_is_a_limit", address_space_is_a_limit })
