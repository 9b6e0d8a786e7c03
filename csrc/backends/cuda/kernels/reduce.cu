/* reduce.cu - the sum over a tensor group, after its parts were gathered.
 *
 *     kernel           grid                  block   dynamic shared
 *     fs_sum_kernel    ceil(count / 256)     256     0
 *
 * In rank order, so every rank of the group, and every run, has the same bits. Bound: each part read once. Not yet
 * measured on a GPU. */
#include "backends/cuda/kernels/math.cuh"

FS_KERNEL(fs_sum_kernel, fs_cuda_sum) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.count) return;
    float sum = a.x[i];
    for (int part = 1; part < a.parts; part++) sum += a.x[part * a.count + i];
    a.y[i] = sum;
}
