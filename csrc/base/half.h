/* half.h - fp16 and bf16 as files and devices hold them, to fp32 (exact) and back (to the nearest, ties to even). */
#ifndef FS_BASE_HALF_H
#define FS_BASE_HALF_H

#include "base/view.h"

float fs_f16_to_f32(uint16_t bits);
static inline float fs_bf16_to_f32(uint16_t bits) {
    union {
        uint32_t u;
        float f;
    } v = { .u = (uint32_t)bits << 16 };
    return v.f;
}
/* out[i] = in[i] for n elements of a float type; `in` need not be aligned. */
void fs_to_f32(float *out, const void *in, fs_dtype dtype, int64_t n);
uint16_t fs_f32_to_f16(float value);
uint16_t fs_f32_to_bf16(float value);
/* out[i] = in[i] in a float type; past its range infinity, NaN stays NaN. */
void fs_from_f32(void *out, const float *in, fs_dtype dtype, int64_t n);

#endif
