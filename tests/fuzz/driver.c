/* driver.c - a small fuzzer for where clang's is missing: mutates inputs, keeps those that reach new code.
 *
 *   driver SECONDS SEED FOLDER       FOLDER holds the first inputs; what crashes or hangs is left in FOLDER/failed
 *
 * The code under test is compiled with -fsanitize-coverage=trace-pc, which calls us at every branch: a bit per place
 * tells whether an input went where none had been. This file itself is compiled without. */
#include "format.h"

#include <dirent.h>
#include <signal.h>
#include <time.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void __sanitizer_cov_trace_pc(void);
void __sanitizer_set_death_callback(void (*callback)(void));

#define PLACES       (1u << 16)
#define KEPT         4096
#define HANG_SECONDS 20

typedef struct {
    uint8_t *at;
    size_t size;
} input;

static uint8_t seen[PLACES];
static uint32_t seen_count;
static input kept[KEPT], now;
static int kept_count;
static char failed_path[512];
static uint64_t state;

void __sanitizer_cov_trace_pc(void) {
    uintptr_t place = (uintptr_t)__builtin_return_address(0);
    uint8_t *bit = &seen[(place ^ place >> 16) % PLACES];
    seen_count += !*bit;
    *bit = 1;
}

static uint64_t next(void) { /* splitmix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t below(size_t n) { return n ? (size_t)(next() % n) : 0; }

static void save(void) {
    FILE *file = fopen(failed_path, "wb");
    if (!file) return;
    fwrite(now.at, 1, now.size, file);
    fclose(file);
    fprintf(stderr, "driver: the input that failed is %s\n", failed_path);
}

static void on_signal(int number) {
    fprintf(stderr, number == SIGALRM ? "driver: an input took too long\n" : "driver: aborted\n");
    save();
    _exit(1);
}

static void keep(const uint8_t *at, size_t size) {
    /* when full, a random one makes room */
    input *slot = &kept[kept_count < KEPT ? (size_t)kept_count++ : below(KEPT)];
    free(slot->at);
    slot->at = malloc(size ? size : 1);
    slot->size = size;
    memcpy(slot->at, at, size);
}

static void put_number(uint8_t *at, size_t size) {
    static const int64_t odd[] = { 0,
                                   1,
                                   -1,
                                   2,
                                   3,
                                   7,
                                   8,
                                   16,
                                   127,
                                   128,
                                   255,
                                   256,
                                   4096,
                                   65535,
                                   65536,
                                   INT32_MAX,
                                   INT32_MIN,
                                   INT64_MAX,
                                   INT64_MIN,
                                   INT64_C(1) << 32,
                                   INT64_C(1) << 61,
                                   INT64_MAX - 7 };
    int64_t value = odd[below(sizeof odd / sizeof *odd)];
    size_t width = (size_t)1 << below(4);
    if (width > size) return;
    uint8_t *place = at + below(size - width + 1);
    if (below(3) == 0) { /* a small step instead */
        memcpy(&value, place, width);
        value = (int64_t)((uint64_t)value + below(17) - 8);
    }
    memcpy(place, &value, width);
}

/* Copies a stretch of another kept input over, or into, this one. */
static size_t splice(uint8_t *at, size_t size) {
    const input *other = &kept[below((size_t)kept_count)];
    size_t from = below(other->size), n = below(other->size - from < 200 ? other->size - from : 200), to = below(size);
    if (below(2)) { /* insert */
        if (size + n > FUZZ_BYTES) return size;
        memmove(at + to + n, at + to, size - to);
        memcpy(at + to, other->at + from, n);
        return size + n;
    }
    if (n > size - to) n = size - to;
    memcpy(at + to, other->at + from, n);
    return size;
}

static size_t mutate(uint8_t *at, size_t size) {
    for (size_t times = 1 + below(4); times; times--) {
        size_t place = below(size);
        switch (below(6)) {
        case 0:
            if (size) at[place] ^= (uint8_t)(1u << below(8));
            break;
        case 1:
            if (size) at[place] = (uint8_t)next();
            break;
        case 2: /* cut out */ {
            size_t n = below(size - place < 40 ? size - place : 40);
            memmove(at + place, at + place + n, size - place - n);
            size -= n;
            break;
        }
        case 3: size = splice(at, size); break;
        default: put_number(at, size);
        }
    }
    return size;
}

static void read_folder(const char *folder) {
    static uint8_t bytes[FUZZ_BYTES];
    char path[800];
    DIR *d = opendir(folder);
    for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        FILE *file = e->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (!file) continue;
        size_t size = fread(bytes, 1, sizeof bytes, file);
        fclose(file);
        keep(bytes, size);
    }
    if (d) closedir(d);
}

int main(int argc, char **argv) {
    static uint8_t bytes[FUZZ_BYTES];
    if (argc != 4) {
        fprintf(stderr, "usage: driver SECONDS SEED FOLDER\n");
        return 2;
    }
    double seconds = atof(argv[1]);
    state = strtoull(argv[2], NULL, 10);
    snprintf(failed_path, sizeof failed_path, "%s/failed", argv[3]);
    read_folder(argv[3]);
    if (!kept_count) {
        fprintf(stderr, "driver: no inputs in %s\n", argv[3]);
        return 2;
    }
    signal(SIGALRM, on_signal);
    signal(SIGABRT, on_signal);
    __sanitizer_set_death_callback(save);
    for (int i = 0, n = kept_count; i < n; i++) {
        now = kept[i];
        LLVMFuzzerTestOneInput(now.at, now.size);
    }
    time_t end = time(NULL) + (time_t)seconds, told = time(NULL);
    long long runs = 0;
    while (time(NULL) < end) {
        const input *from = &kept[below((size_t)kept_count)];
        memcpy(bytes, from->at, from->size);
        now.at = bytes;
        now.size = mutate(bytes, from->size);
        uint32_t before = seen_count;
        alarm(HANG_SECONDS);
        LLVMFuzzerTestOneInput(now.at, now.size);
        if (seen_count > before) keep(now.at, now.size);
        runs++;
        if (time(NULL) - told >= 30) {
            told = time(NULL);
            printf("%lld inputs, %d kept, %u places\n", runs, kept_count, seen_count);
            fflush(stdout);
        }
    }
    alarm(0);
    printf("%lld inputs in %.0f s, %d kept, %u places reached: nothing failed\n", runs, seconds, kept_count,
           seen_count);
    for (int i = 0; i < kept_count; i++) free(kept[i].at);
    return 0;
}
