#include "base/hash.h"

#include <string.h>

/* The 64-bit finaliser of MurmurHash3, over 8-byte words. */
static uint64_t mix(uint64_t h) {
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdULL;
    h ^= h >> 33;
    h *= 0xc4ceb9fe1a85ec53ULL;
    return h ^ h >> 33;
}

uint64_t fs_hash(const void *at, size_t bytes, uint64_t seed) {
    const char *p = at;
    uint64_t h = mix(seed ^ bytes * 0x9e3779b97f4a7c15ULL);
    for (; bytes >= 8; p += 8, bytes -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        h = mix(h ^ word) + 0x9e3779b97f4a7c15ULL;
    }
    uint64_t word = 0;
    memcpy(&word, p, bytes);
    return mix(h ^ word);
}
