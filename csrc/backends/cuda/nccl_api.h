/* nccl_api.h - NCCL behind a call table, found on first use: in the process, in the nvidia wheels, on the loader's path.
 *
 * Only groups of GPUs need it. Thread-safe. */
#ifndef FS_CUDA_NCCL_API_H
#define FS_CUDA_NCCL_API_H

#include "backends/cuda/driver_api.h"

typedef struct ncclComm *fs_nccl_comm;
typedef struct {
    char bytes[128];
} fs_nccl_id;

/* NCCL 2.18's ncclConfig_t; newer ones read as much as `size` says. */
typedef struct {
    size_t size;
    unsigned magic, version;
    int blocking, cluster_size, min_blocks, max_blocks;
    const char *net_name;
    int split_share;
} fs_nccl_config;

#define FS_NCCL_MAGIC 0xcafebeefu
enum { FS_NCCL_IN_PROGRESS = 7, FS_NCCL_FLOAT = 7, FS_NCCL_2_18 = 21800 };
#define FS_NCCL_UNSET INT32_MIN /* "as NCCL likes" */

typedef struct {
#define X(field, symbol, arguments) int(*field) arguments;
#include "backends/cuda/nccl_api.def"
#undef X
    const char *(*error_string)(int error);
} fs_nccl_api;

/* FS_DEVICE lists where the library was looked for and how to get it. */
fs_status fs_nccl_open(const fs_nccl_api **out);

#endif
