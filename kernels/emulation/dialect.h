// dialect.h - the words of CUDA C that our kernels use, as plain C++ for the processor.
//
// Only what kernels/cuda/ needs is here. What a kernel must not use on its own (raw __shared__,
// <<<>>>, inline PTX) is left out on purpose, so that it fails to compile: kernels/cuda/gpu.h has
// the forms that mean the same to both compilers.

#ifndef KERNELS_EMULATION_DIALECT_H
#define KERNELS_EMULATION_DIALECT_H

#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned nx = 1, unsigned ny = 1, unsigned nz = 1) : x(nx), y(ny), z(nz)
    {
    }
};

struct alignas(8) float2 {
    float x, y;
};

struct alignas(8) uint2 {
    unsigned x, y;
};

struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline float2 make_float2(float x, float y)
{
    return {x, y};
}

inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}

// 16-bit floats have conversions only; arithmetic goes through float, as the kernels do it anyway.
struct __nv_bfloat16 {
    uint16_t bits;
};

struct __half {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value)
{
    uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline __nv_bfloat16 __float2bfloat16_rn(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}

// Exponent and fraction move by three places less than float has; the factor 2^112 moves the bias
// and turns subnormals into what they mean. Infinity and NaN lie above every finite number then.
inline float __half2float(__half value)
{
    uint32_t bits = (value.bits & 0x7fffu) << 13;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    wide *= 0x1p112f;
    memcpy(&bits, &wide, sizeof bits);
    if (wide >= 65536.0f) bits |= 0x7f800000u;
    bits |= (value.bits & 0x8000u) << 16;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// To nearest, ties to even. Results below the smallest normal number are rounded by adding 1/2,
// whose last place is the quantum of fp16's subnormals; what is too large carries over to infinity.
inline __half __float2half_rn(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return {0x7fff};
    if (bits >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
    if (bits < 0x38800000u) {
        float sum;
        memcpy(&sum, &bits, sizeof sum);
        sum += 0.5f;
        memcpy(&bits, &sum, sizeof bits);
        return {static_cast<uint16_t>(sign | (bits - 0x3f000000u))};
    }
    bits += 0xc8000fffu + (bits >> 13 & 1u);
    return {static_cast<uint16_t>(sign | bits >> 13)};
}

template <class T> inline T __ldg(const T *at)
{
    return *at;
}

#endif  // KERNELS_EMULATION_DIALECT_H
