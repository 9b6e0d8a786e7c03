/* random.h - random numbers for tests: the same seed gives the same numbers everywhere. */
#ifndef FS_TEST_RANDOM_H
#define FS_TEST_RANDOM_H

#include <stdint.h>

static inline uint64_t random_next(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
    return z ^ z >> 31;
}

/* In [low, high]. */
static inline int64_t random_between(uint64_t *state, int64_t low, int64_t high) {
    return low + (int64_t)(random_next(state) % (uint64_t)(high - low + 1));
}

#endif
