/* kernels.c - the image that fits the device, its functions, and how one is launched.
 *
 * Images are chosen by compute capability only (images.h), so two machines with equal GPUs run the same code. */
#include "backends/cuda/cuda.h"
#include "backends/cuda/images.h"

static const char *const names[] = {
#define X(name, args, threads) #name,
#include "backends/cuda/kernels/kernels.def"
#undef X
};

static const unsigned block_threads[] = {
#define X(name, args, threads) threads,
#include "backends/cuda/kernels/kernels.def"
#undef X
};

static fs_status find_image(fs_cuda_device *d, const fs_cuda_image **out) {
    int major, minor;
    FS_TRY(fs_cuda_check(d, d->cu->device_attribute(&major, FS_CU_MAJOR, d->handle), "asking for its generation"));
    FS_TRY(fs_cuda_check(d, d->cu->device_attribute(&minor, FS_CU_MINOR, d->handle), "asking for its generation"));
    if (!fs_cuda_images[0].arch)
        return fs_fail(FS_DEVICE,
                       "%s: this build of firesteel is CPU-only; install a wheel with GPU kernels, or build one with "
                       "FIRESTEEL_CUDA=1",
                       d->head.name);
    *out = fs_cuda_image_for(major, minor);
    if (!*out)
        return fs_fail(FS_DEVICE,
                       "%s: compute capability %d.%d is older than the 7.5 that the kernels are made for; "
                       "use a newer GPU or devices=\"cpu\"",
                       d->head.name, major, minor);
    return FS_OK;
}

fs_status fs_cuda_kernels_load(fs_cuda_device *d) {
    const fs_cuda_image *image;
    FS_TRY(find_image(d, &image));
    FS_TRY(fs_cuda_check(d, d->cu->module_load(&d->module, image->start), "loading kernels"));
    for (int k = 0; k < FS_CUDA_KERNEL_COUNT; k++)
        FS_TRY(fs_cuda_check(d, d->cu->module_function(&d->kernels[k], d->module, names[k]), names[k]));
    return FS_OK;
}

fs_status fs_cuda_launch(fs_queue *q, fs_cuda_kernel kernel, fs_cuda_grid grid, const void *args) {
    fs_cuda_device *d = q->device;
    void *const arguments[] = { (void *)args }; /* the driver copies them */
    FS_TRY(fs_cuda_enter(d));
    int result = d->cu->launch(d->kernels[kernel], grid.x, grid.y, grid.z, block_threads[kernel], 1, 1, 0, q->stream,
                               (void **)arguments, NULL);
    return fs_cuda_check(d, result, names[kernel]);
}
