/* images.h - the kernels compiled for each generation of GPU, as they lie inside this very module.
 *
 * build_tools/kernels.py compiles kernels/all.cu, setup.py names the folder of the results in FS_CUDA_IMAGES, and images.c
 * takes the files in raw: nothing is unpacked, copied or looked up on disk at run time. Built without FS_CUDA_IMAGES the table
 * has only its end, and the build is CPU-only. Constant: any thread may read it. */
#ifndef FS_CUDA_IMAGES_H
#define FS_CUDA_IMAGES_H

#include <stddef.h>

typedef struct {
    int arch;          /* 80: sm_80, 90: sm_90a; 0 ends the table             */
    int ptx;           /* 1: PTX of compute_<arch>, compiled by the driver    */
    const void *start; /* what cuModuleLoadData takes; a zero byte follows it */
    size_t bytes;
} fs_cuda_image;

/* Ordered: of those that a device can run, the last is the best. */
extern const fs_cuda_image fs_cuda_images[];

/* The image for a device of compute capability major.minor, or NULL. A cubin runs on its own major from its own minor on
 * (sm_90a: on 9.0 alone, its `a` makes no promise for others); PTX on everything newer than itself. */
const fs_cuda_image *fs_cuda_image_for(int major, int minor);

#endif
