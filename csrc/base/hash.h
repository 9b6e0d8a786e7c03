/* hash.h - a fast 64-bit mix of bytes, for hash tables that compare in full on a hit. Not for untrusted keys' secrecy. */
#ifndef FS_BASE_HASH_H
#define FS_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t fs_hash(const void *at, size_t bytes, uint64_t seed);

#endif
