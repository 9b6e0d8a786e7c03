/* all.cu - the one translation unit: what NVRTC compiles for each generation, and the software device for the host. */
#include "backends/cuda/kernels/attention.cu"
#include "backends/cuda/kernels/pool.cu"
#include "backends/cuda/kernels/product.cu"
#include "backends/cuda/kernels/reduce.cu"
#include "backends/cuda/kernels/rows.cu"
