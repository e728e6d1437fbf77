// lanes_x86.h - lanes.h for AVX2 with FMA and F16C; include lanes.h, not this.

#ifndef KERNELS_CPU_LANES_X86_H
#define KERNELS_CPU_LANES_X86_H

#include <immintrin.h>

#define lanes __m256

LANES_INLINE lanes lanes_set(float value)
{
    return _mm256_set1_ps(value);
}

// One float in all lanes. The empty assembly keeps the loads of a long product in the order in
// which they are written: scheduled by the compiler, the product runs 5 % slower.
LANES_INLINE lanes lanes_broadcast(const float *at)
{
    lanes value = _mm256_broadcast_ss(at);
    __asm__ volatile("" : "+x"(value));
    return value;
}

LANES_INLINE lanes lanes_load(const float *at)
{
    return _mm256_loadu_ps(at);
}

LANES_INLINE void lanes_store(float *at, lanes value)
{
    _mm256_storeu_ps(at, value);
}

LANES_INLINE lanes lanes_add(lanes a, lanes b)
{
    return _mm256_add_ps(a, b);
}

LANES_INLINE lanes lanes_subtract(lanes a, lanes b)
{
    return _mm256_sub_ps(a, b);
}

LANES_INLINE lanes lanes_multiply(lanes a, lanes b)
{
    return _mm256_mul_ps(a, b);
}

LANES_INLINE lanes lanes_divide(lanes a, lanes b)
{
    return _mm256_div_ps(a, b);
}

// a * b + c, rounded once.
LANES_INLINE lanes lanes_multiply_add(lanes a, lanes b, lanes c)
{
    return _mm256_fmadd_ps(a, b, c);
}

LANES_INLINE lanes lanes_max(lanes a, lanes b)
{
    return _mm256_max_ps(a, b);
}

LANES_INLINE lanes lanes_min(lanes a, lanes b)
{
    return _mm256_min_ps(a, b);
}

// Eight numbers of a file, widened exactly.
LANES_INLINE lanes lanes_load_f32_bytes(const uint8_t *at)
{
    return _mm256_castsi256_ps(_mm256_loadu_si256((const __m256i_u *)(const void *)at));
}

LANES_INLINE lanes lanes_load_f16_bytes(const uint8_t *at)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)(const void *)at));
}

LANES_INLINE lanes lanes_load_bf16_bytes(const uint8_t *at)
{
    __m128i narrow = _mm_loadu_si128((const __m128i_u *)(const void *)at);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
}

LANES_INLINE void lanes_transpose(lanes rows[LANES_COUNT])
{
    lanes pair[LANES_COUNT];
    lanes quad[LANES_COUNT];
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 2
    for (uint32_t i = 0; i < 8; i += 4) {
        quad[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
        quad[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
        quad[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
        quad[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        rows[i] = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31);
    }
}

// e to the x, within 2 units in the last place; 0 below -86.98, where the result would soon be
// denormal, and infinity above 88.7. x = n ln 2 + r; the polynomial is a fit of (e^r - 1 - r) /
// r^2.
LANES_INLINE lanes lanes_exp(lanes x)
{
    lanes tiny = _mm256_cmp_ps(x, lanes_set(-86.98f), _CMP_LT_OQ);
    lanes huge = _mm256_cmp_ps(x, lanes_set(88.72f), _CMP_GT_OQ);
    // min and max return their second operand when one is NaN: NaN stays NaN.
    lanes safe = _mm256_max_ps(lanes_set(-86.98f), _mm256_min_ps(lanes_set(88.72f), x));
    lanes n = _mm256_round_ps(lanes_multiply(safe, lanes_set(1.44269504f)),
                              _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    lanes r = _mm256_fnmadd_ps(n, lanes_set(0.693359375f), safe);
    r = lanes_multiply_add(n, lanes_set(2.12194440e-4f), r);
    lanes p = lanes_multiply_add(lanes_set(0.0013933734f), r, lanes_set(0.008363236f));
    p = lanes_multiply_add(p, r, lanes_set(0.041666463f));
    p = lanes_multiply_add(p, r, lanes_set(0.16666576f));
    p = lanes_multiply_add(p, r, lanes_set(0.5f));
    p = lanes_add(lanes_multiply_add(p, lanes_multiply(r, r), r), lanes_set(1.0f));
    // 2^n as 2^(n-1) * 2, so that n = 128 does not overflow on the way.
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(126));
    lanes power = _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
    p = lanes_multiply(lanes_multiply(p, lanes_set(2.0f)), power);
    return _mm256_blendv_ps(_mm256_andnot_ps(tiny, p), lanes_set(INFINITY), huge);
}

// x * sigmoid(slope * x), within 1.2e-7 of |x|: x over 1 + e^t, where e^t = 2^n p(t - n ln 2) and p
// is a fit of e^r. Half of lanes_exp's work: to a number near 1, what that one does for the last
// bits, the smallest and the largest is lost. The sum with 1.5 * 2^23 rounds to n, whose lowest
// bits are then the exponent; from t = 88.4 on e^t is infinity.
LANES_INLINE lanes lanes_swish(lanes x, float slope)
{
    // min and max return their second operand when one is NaN: NaN stays NaN.
    lanes t = _mm256_min_ps(lanes_set(89.0f), lanes_multiply(x, lanes_set(-slope)));
    t = _mm256_max_ps(lanes_set(-87.0f), t);
    lanes rounder = lanes_set(12582912.0f + 127.0f);
    lanes shifted = lanes_multiply_add(t, lanes_set(1.44269504f), rounder);
    lanes power = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23));
    lanes r = _mm256_fnmadd_ps(lanes_subtract(shifted, rounder), lanes_set(0.69314718f), t);
    lanes p = lanes_multiply_add(lanes_set(0.0082976194f), r, lanes_set(0.041915629f));
    p = lanes_multiply_add(p, r, lanes_set(0.16667576f));
    p = lanes_multiply_add(p, r, lanes_set(0.49998891f));
    p = lanes_multiply_add(p, r, lanes_set(0.9999997f));
    p = lanes_multiply_add(p, r, lanes_set(1.0000001f));
    return lanes_divide(x, lanes_multiply_add(p, power, lanes_set(1.0f)));
}

// x * (1 + erf(x / sqrt 2)) / 2, within 1.2e-7 of |x|: what is above 0 of x less |x| Q(|x|), where
// Q, the normal distribution's upper tail, is 2^n p(u - n) of a fit u of its logarithm; from 5.8 on
// |x| Q counts as what it is there, 2e-8.
LANES_INLINE lanes lanes_gelu(lanes x)
{
    // min and max return their second operand when one is NaN: NaN stays NaN.
    lanes t = _mm256_min_ps(lanes_set(5.8f), _mm256_andnot_ps(lanes_set(-0.0f), x));
    lanes u = lanes_multiply_add(lanes_set(-2.77222966e-06f), t, lanes_set(3.86228579e-05f));
    u = lanes_multiply_add(u, t, lanes_set(-1.82557392e-04f));
    u = lanes_multiply_add(u, t, lanes_set(-1.45846931e-04f));
    u = lanes_multiply_add(u, t, lanes_set(7.07544163e-03f));
    u = lanes_multiply_add(u, t, lanes_set(-5.25050074e-02f));
    u = lanes_multiply_add(u, t, lanes_set(-0.459204915f));
    u = lanes_multiply_add(u, t, lanes_set(-1.15110572f));
    u = lanes_multiply_add(u, t, lanes_set(-0.999999978f));
    // The sum with 1.5 * 2^23 rounds to n, whose lowest bits are then the exponent.
    lanes rounder = lanes_set(12582912.0f + 127.0f);
    lanes shifted = lanes_add(u, rounder);
    lanes power = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23));
    lanes r = lanes_subtract(u, lanes_subtract(shifted, rounder));
    lanes p = lanes_multiply_add(lanes_set(0.0013276408f), r, lanes_set(0.009675541f));
    p = lanes_multiply_add(p, r, lanes_set(0.055507135f));
    p = lanes_multiply_add(p, r, lanes_set(0.2402212f));
    p = lanes_multiply_add(p, r, lanes_set(0.69314694f));
    p = lanes_multiply_add(p, r, lanes_set(1.0000001f));
    lanes above = _mm256_max_ps(lanes_set(0.0f), x);
    return _mm256_fnmadd_ps(lanes_multiply(p, power), t, above);
}

#endif  // KERNELS_CPU_LANES_X86_H
