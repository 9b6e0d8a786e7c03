/* runtime.h - running one grid on the calling OS thread: what driver code asks of fibers.cc.
 *
 * Nothing here knows streams or memory. Several OS threads may run grids at once, each with its own pool of fibers. */
#ifndef SOFTCUDA_RUNTIME_H
#define SOFTCUDA_RUNTIME_H

#include "shim.h"

#include <string>

struct softcuda_grid {
    softcuda_index blocks;
    unsigned threads;     /* of a block, along x */
    size_t dynamic_bytes; /* of shared memory */
    int capability;       /* 80 for 8.0 */
    bool reverse;         /* last block and last thread first */
};

/* Empty when every block came to its end; else what went wrong, with kernel, block, thread and line. */
std::string softcuda_run(softcuda_kernel_entry *kernel, const void *arguments, const softcuda_grid &grid);

/* The list that kernels registered in, in no particular order. */
softcuda_kernel_entry *softcuda_kernels();

/* 0xff everywhere: NaN as fp32, fp16 and bf16, and a bad index as an integer. */
inline void softcuda_poison(void *at, size_t bytes) { std::memset(at, 0xff, bytes); }

#endif
