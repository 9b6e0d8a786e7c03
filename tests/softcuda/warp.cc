/* warp.cc - what the 32 lanes of a warp do together, done by the last of them to arrive.
 *
 * The fragments of mma and ldmatrix lie over the lanes as the PTX manual draws them: lane 4 g + t holds row (or column)
 * g, places 2 t and 2 t + 1; further registers are 8 rows down, then 8 places on. */
#include "runtime.h"

void softcuda_work_none(void *const[32]) {}

void softcuda_work_shuffle(void *const lanes[32]) {
    for (int i = 0; i < 32; i++) {
        softcuda_shuffle *lane = static_cast<softcuda_shuffle *>(lanes[i]);
        lane->result = static_cast<softcuda_shuffle *>(lanes[lane->from])->value;
    }
}

/* d[16,8] = a[16,16] . b[8,16]^T + c[16,8]: each product is exact in fp32, sums run along k. */
template <float (*to_float)(unsigned short)> static void mma(void *const lanes[32]) {
    float a[16][16], b[16][8], sum[16][8]; /* b as [k][n] */
    for (int i = 0; i < 32; i++) {
        const softcuda_mma *lane = static_cast<softcuda_mma *>(lanes[i]);
        int g = i / 4, t = i % 4;
        for (int r = 0; r < 4; r++) {
            float *to = &a[g + r % 2 * 8][2 * t + r / 2 * 8];
            to[0] = to_float(static_cast<unsigned short>(lane->a[r])), to[1] = to_float(lane->a[r] >> 16);
        }
        for (int r = 0; r < 2; r++) {
            int k = 2 * t + 8 * r;
            b[k][g] = to_float(static_cast<unsigned short>(lane->b[r])), b[k + 1][g] = to_float(lane->b[r] >> 16);
        }
        for (int r = 0; r < 4; r++) sum[g + r / 2 * 8][2 * t + r % 2] = lane->c[r];
    }
    for (int m = 0; m < 16; m++) {
        for (int k = 0; k < 16; k++) {
            for (int n = 0; n < 8; n++) sum[m][n] += a[m][k] * b[k][n];
        }
    }
    for (int i = 0; i < 32; i++) {
        const softcuda_mma *lane = static_cast<softcuda_mma *>(lanes[i]);
        for (int r = 0; r < 4; r++) lane->d[r] = sum[i / 4 + r / 2 * 8][2 * (i % 4) + r % 2];
    }
}

void softcuda_work_mma_f16(void *const lanes[32]) { mma<fs_half_to_float>(lanes); }
void softcuda_work_mma_bf16(void *const lanes[32]) { mma<fs_bf16_to_float>(lanes); }

/* Lane 8 m + i has read row i of matrix m; register m of lane 4 g + t is word t of row g of matrix m. */
void softcuda_work_load_matrix(void *const lanes[32]) {
    for (int i = 0; i < 32; i++) {
        const softcuda_row *lane = static_cast<softcuda_row *>(lanes[i]);
        for (int m = 0; m < 4; m++) lane->r[m] = static_cast<softcuda_row *>(lanes[8 * m + i / 4])->words[i % 4];
    }
}
