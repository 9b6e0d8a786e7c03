#include "base/half.h"

#include <string.h>

float fs_f16_to_f32(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    union {
        uint32_t u;
        float f;
    } v;
    if (exponent == 31) {
        v.u = sign | 0x7f800000u | fraction << 13; /* infinities, NaN */
    } else if (exponent) {
        v.u = sign | (exponent + 112) << 23 | fraction << 13;
    } else {
        v.f = (float)fraction * 0x1p-24f; /* subnormal: exact in fp32 */
        v.u |= sign;
    }
    return v.f;
}

void fs_to_f32(float *out, const void *in, fs_dtype dtype, int64_t n) {
    if (dtype == FS_F32) {
        memcpy(out, in, (size_t)n * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, (const char *)in + i * 2, 2);
        out[i] = dtype == FS_F16 ? fs_f16_to_f32(bits) : fs_bf16_to_f32(bits);
    }
}
