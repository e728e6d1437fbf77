// lanes.h - eight floats side by side, the alphabet of every kernel body.
//
// A *_body.h is written once against these functions and compiled twice: into compute_avx2.c, where
// lanes is a register, and into compute_portable.c, where it is an array and the compiler does what
// it can. `lanes` is a macro since it is the compiler's type in one build and ours in the other.

#ifndef KERNELS_CPU_LANES_H
#define KERNELS_CPU_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/bytes.h"
#include "base/dtype.h"

#define LANES_COUNT 8u
#define LANES_INLINE static inline __attribute__((always_inline))

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "kernels/cpu/lanes_x86.h"

#else

struct lanes_array {
    float at[LANES_COUNT];  // one a lane
};
#define lanes struct lanes_array

#define LANES_EACH(expression)                                                                     \
    lanes result;                                                                                  \
    for (uint32_t i = 0; i < LANES_COUNT; i++) result.at[i] = (expression);                        \
    return result

LANES_INLINE lanes lanes_set(float value)
{
    LANES_EACH(value);
}

LANES_INLINE lanes lanes_broadcast(const float *at)
{
    return lanes_set(*at);
}

LANES_INLINE lanes lanes_load(const float *at)
{
    LANES_EACH(at[i]);
}

LANES_INLINE void lanes_store(float *at, lanes value)
{
    memcpy(at, value.at, sizeof value.at);
}

LANES_INLINE lanes lanes_add(lanes a, lanes b)
{
    LANES_EACH(a.at[i] + b.at[i]);
}

LANES_INLINE lanes lanes_subtract(lanes a, lanes b)
{
    LANES_EACH(a.at[i] - b.at[i]);
}

LANES_INLINE lanes lanes_multiply(lanes a, lanes b)
{
    LANES_EACH(a.at[i] * b.at[i]);
}

LANES_INLINE lanes lanes_divide(lanes a, lanes b)
{
    LANES_EACH(a.at[i] / b.at[i]);
}

LANES_INLINE lanes lanes_multiply_add(lanes a, lanes b, lanes c)
{
    LANES_EACH(a.at[i] * b.at[i] + c.at[i]);
}

LANES_INLINE lanes lanes_max(lanes a, lanes b)
{
    LANES_EACH(a.at[i] > b.at[i] ? a.at[i] : b.at[i]);
}

LANES_INLINE lanes lanes_min(lanes a, lanes b)
{
    LANES_EACH(a.at[i] < b.at[i] ? a.at[i] : b.at[i]);
}

LANES_INLINE lanes lanes_load_f32_bytes(const uint8_t *at)
{
    lanes result;
    memcpy(result.at, at, sizeof result.at);
    return result;
}

LANES_INLINE lanes lanes_load_f16_bytes(const uint8_t *at)
{
    LANES_EACH(f16_to_f32(load_u16(at + 2 * i)));
}

LANES_INLINE lanes lanes_load_bf16_bytes(const uint8_t *at)
{
    LANES_EACH(bf16_to_f32(load_u16(at + 2 * i)));
}

LANES_INLINE void lanes_transpose(lanes rows[LANES_COUNT])
{
    for (uint32_t i = 0; i < LANES_COUNT; i++) {
        for (uint32_t j = 0; j < i; j++) {
            float moved = rows[i].at[j];
            rows[i].at[j] = rows[j].at[i];
            rows[j].at[i] = moved;
        }
    }
}

LANES_INLINE lanes lanes_exp(lanes x)
{
    LANES_EACH(expf(x.at[i]));
}

LANES_INLINE lanes lanes_swish(lanes x, float slope)
{
    LANES_EACH(x.at[i] / (1.0f + expf(-slope * x.at[i])));
}

// x * (1 + erf(x / sqrt 2)) / 2
LANES_INLINE lanes lanes_gelu(lanes x)
{
    LANES_EACH(0.5f * x.at[i] * (1.0f + erff(x.at[i] * 0.70710678118654752f)));
}

#endif

LANES_INLINE lanes lanes_zero(void)
{
    return lanes_set(0.0f);
}

// The first count (below 8) floats at `at`, and zeros.
LANES_INLINE lanes lanes_load_part(const float *at, uint32_t count)
{
    float part[LANES_COUNT] = {0};
    memcpy(part, at, count * sizeof part[0]);
    return lanes_load(part);
}

LANES_INLINE void lanes_store_part(float *at, lanes value, uint32_t count)
{
    float part[LANES_COUNT];
    lanes_store(part, value);
    memcpy(at, part, count * sizeof part[0]);
}

// The sum of the lanes, always as ((0+4)+(2+6)) + ((1+5)+(3+7)).
LANES_INLINE float lanes_sum(lanes value)
{
    float v[LANES_COUNT];
    lanes_store(v, value);
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

LANES_INLINE float lanes_largest(lanes value)
{
    float v[LANES_COUNT];
    lanes_store(v, value);
    float largest = v[0];
    for (uint32_t i = 1; i < LANES_COUNT; i++) largest = v[i] > largest ? v[i] : largest;
    return largest;
}

#endif  // KERNELS_CPU_LANES_H
