/* driver_api.h - NVIDIA's driver behind a call table: declared here, found at run time, nothing linked.
 *
 * Opened once in a process, on first use, and kept. A forked child cannot use its parent's driver: it gets a sentence
 * instead of a hang. Thread-safe. */
#ifndef FS_CUDA_DRIVER_API_H
#define FS_CUDA_DRIVER_API_H

#include "base/status.h"

#include <stddef.h>

typedef struct CUctx_st *fs_cu_context;
typedef struct CUstream_st *fs_cu_stream;
typedef struct CUevent_st *fs_cu_event;
typedef struct CUmod_st *fs_cu_module;
typedef struct CUfunc_st *fs_cu_function;
typedef unsigned long long fs_cu_address;

/* The numbers of the driver API that are used. */
enum {
    FS_CU_OUT_OF_MEMORY = 2,
    FS_CU_EVENT_QUIET = 0x1 | 0x2, /* a wait sleeps; no timing */
    FS_CU_STREAM_NON_BLOCKING = 1,
    FS_CU_HOST_PORTABLE = 1,
    FS_CU_MAJOR = 75,
    FS_CU_MINOR = 76,
    FS_CU_NOT_READY = 600,
};

typedef struct {
#define X(field, symbol, arguments) int(*field) arguments;
#include "backends/cuda/driver_api.def"
#undef X
} fs_cu_api;

/* The table, with cuInit done. FS_DEVICE lists where the library was looked for, or what it lacks. */
fs_status fs_cu_open(const fs_cu_api **out);

/* FS_OK, or: FS_NO_MEMORY when `result` says so, else FS_DEVICE: "cuda:0: <doing> failed: CUDA_ERROR_X (...)". */
fs_status fs_cu_check(const fs_cu_api *cu, int result, const char *device, const char *doing);

#endif
