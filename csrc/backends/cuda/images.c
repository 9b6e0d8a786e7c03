#include "backends/cuda/images.h"

#ifdef FS_CUDA_IMAGES

/* X(arch, ptx, file), worst first; build_tools/kernels.py compiles the same list. */
#define IMAGES(X)                                                                                                      \
    X(80, 1, "compute_80.ptx")                                                                                         \
    X(75, 0, "sm_75.cubin")                                                                                            \
    X(80, 0, "sm_80.cubin")                                                                                            \
    X(86, 0, "sm_86.cubin")                                                                                            \
    X(89, 0, "sm_89.cubin")                                                                                            \
    X(90, 0, "sm_90a.cubin")                                                                                           \
    X(100, 0, "sm_100.cubin")                                                                                          \
    X(120, 0, "sm_120.cubin")

/* The bytes go to .rodata and a row of the table, written as the compiler would lay out an fs_cuda_image, to
 * .data.rel.ro: its pointer is filled in when the module is loaded, its size is known to the assembler only. One asm, as the
 * order of several is the compiler's own affair. */
#define ROW(arch, ptx, file)                                                                                           \
    ".section .rodata\n"                                                                                               \
    ".balign 64\n"                                                                                                     \
    "1: .incbin \"" FS_CUDA_IMAGES "/" file "\"\n"                                                                     \
    "2: .byte 0\n"                                                                                                     \
    ".section .data.rel.ro\n"                                                                                          \
    ".long " #arch ", " #ptx "\n"                                                                                      \
    ".quad 1b, 2b - 1b\n"

_Static_assert(sizeof(fs_cuda_image) == 24 && offsetof(fs_cuda_image, start) == 8 &&
                   offsetof(fs_cuda_image, bytes) == 16,
               "ROW lays the struct out by hand");

__asm__(".pushsection .data.rel.ro,\"aw\",%progbits\n"
        ".balign 8\n"
        ".globl fs_cuda_images\n"
        ".hidden fs_cuda_images\n"
        ".type fs_cuda_images, %object\n"
        "fs_cuda_images:\n" IMAGES(ROW) ".zero 24\n"
                                        ".size fs_cuda_images, . - fs_cuda_images\n"
                                        ".popsection\n");

#else

const fs_cuda_image fs_cuda_images[] = { { 0, 0, NULL, 0 } };

#endif

static int runs_on(const fs_cuda_image *image, int major, int minor) {
    const int device = 10 * major + minor;
    if (image->ptx) return device >= image->arch;
    if (image->arch == 90) return device == 90;
    return major == image->arch / 10 && device >= image->arch;
}

const fs_cuda_image *fs_cuda_image_for(int major, int minor) {
    const fs_cuda_image *best = NULL;
    for (const fs_cuda_image *image = fs_cuda_images; image->arch; image++)
        if (runs_on(image, major, minor)) best = image;
    return best;
}
