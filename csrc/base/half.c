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

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

uint16_t fs_f32_to_bf16(float value) {
    uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40); /* quiet, and not infinity */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t fs_f32_to_f16(float value) {
    uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x47800000u) return (uint16_t)(sign | 0x7c00); /* 65536 and more */
    if (rest < 0x38800000u) {                                  /* below 2^-14: a whole number of 2^-24 */
        float steps = (value < 0 ? -value : value) * 0x1p24f;
        union {
            float f;
            uint32_t u;
        } rounded = { .f = steps + 0x1p23f }; /* the addition rounds to the nearest, ties to even */
        return (uint16_t)(sign | (rounded.u & 0x7ff));
    }
    return (uint16_t)(sign | ((rest - 0x38000000u + 0xfff + (rest >> 13 & 1)) >> 13));
}

void fs_from_f32(void *out, const float *in, fs_dtype dtype, int64_t n) {
    if (dtype == FS_F32) {
        memcpy(out, in, (size_t)n * sizeof *in);
        return;
    }
    uint16_t *to = out;
    for (int64_t i = 0; i < n; i++) to[i] = dtype == FS_F16 ? fs_f32_to_f16(in[i]) : fs_f32_to_bf16(in[i]);
}
