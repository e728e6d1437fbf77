// dtype.c - names, sizes and exact conversions of element types.

#include "base/dtype.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

static const struct {
    const char *name;
    uint32_t bytes;
} dtypes[] = {
    [DTYPE_NONE] = {"?", 0},          [DTYPE_F32] = {"F32", 4},   [DTYPE_F16] = {"F16", 2},
    [DTYPE_BF16] = {"BF16", 2},       [DTYPE_U8] = {"U8", 1},     [DTYPE_I32] = {"I32", 4},
    [DTYPE_I64] = {"I64", 8},         [DTYPE_F64] = {"F64", 8},   [DTYPE_I8] = {"I8", 1},
    [DTYPE_I16] = {"I16", 2},         [DTYPE_BOOL] = {"BOOL", 1}, [DTYPE_F8_E4M3] = {"F8_E4M3", 1},
    [DTYPE_F8_E5M2] = {"F8_E5M2", 1}, [DTYPE_U16] = {"U16", 2},   [DTYPE_U32] = {"U32", 4},
    [DTYPE_U64] = {"U64", 8},
};
_Static_assert(sizeof dtypes / sizeof dtypes[0] == DTYPE_COUNT,
               "every dtype has a name and a size");

uint32_t dtype_bytes(enum dtype dtype)
{
    return (unsigned)dtype < DTYPE_COUNT ? dtypes[dtype].bytes : 0;
}

const char *dtype_name(enum dtype dtype)
{
    return (unsigned)dtype < DTYPE_COUNT ? dtypes[dtype].name : "?";
}

enum dtype dtype_from_name(const char *name, uint64_t length)
{
    assert(name != NULL);
    for (int i = DTYPE_NONE + 1; i < DTYPE_COUNT; i++) {
        if (strlen(dtypes[i].name) == length && memcmp(dtypes[i].name, name, length) == 0) {
            return (enum dtype)i;
        }
    }
    return DTYPE_NONE;
}

bool dtype_is_real(enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16;
}

static float float_from_bits(uint32_t bits)
{
    float value = 0;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_from_float(float value)
{
    uint32_t bits = 0;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float f16_to_f32(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = (half >> 10) & 0x1fu;
    uint32_t mantissa = half & 0x3ffu;
    if (exponent == 0x1f) return float_from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent != 0) return float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float magnitude = (float)mantissa * 0x1p-24f;  // zero and subnormal halves are exact here
    return sign != 0 ? -magnitude : magnitude;
}

uint16_t f32_to_f16(float value)
{
    uint32_t bits = bits_from_float(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x1ffu));
    if (magnitude >= 0x477ff000u)
        return (uint16_t)(sign | 0x7c00u);  // 65520 and above round to infinity
    if (magnitude < 0x38800000u) {
        // Below 2^-14 a half is a multiple of 2^-24: adding 0.5 lets the FPU round to that
        // multiple.
        float sum = float_from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (bits_from_float(sum) - 0x3f000000u));
    }
    uint32_t rounded = magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | rounded >> 13);
}

float bf16_to_f32(uint16_t bfloat)
{
    return float_from_bits((uint32_t)bfloat << 16);
}

uint16_t f32_to_bf16(float value)
{
    uint32_t bits = bits_from_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static float load_real(const uint8_t *at, enum dtype dtype)
{
    uint16_t half = 0;
    float value = 0;
    if (dtype == DTYPE_F32) {
        memcpy(&value, at, sizeof value);
        return value;
    }
    memcpy(&half, at, sizeof half);
    return dtype == DTYPE_F16 ? f16_to_f32(half) : bf16_to_f32(half);
}

static void store_real(uint8_t *at, enum dtype dtype, float value)
{
    if (dtype == DTYPE_F32) {
        memcpy(at, &value, sizeof value);
        return;
    }
    uint16_t half = dtype == DTYPE_F16 ? f32_to_f16(value) : f32_to_bf16(value);
    memcpy(at, &half, sizeof half);
}

void dtype_convert(void *out, enum dtype out_dtype, const void *in, enum dtype in_dtype,
                   uint64_t count)
{
    assert(dtype_is_real(out_dtype));
    assert(dtype_is_real(in_dtype));
    uint64_t out_step = dtype_bytes(out_dtype);
    uint64_t in_step = dtype_bytes(in_dtype);
    if (out_dtype == in_dtype) {
        if (count > 0) memcpy(out, in, count * in_step);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        store_real((uint8_t *)out + i * out_step, out_dtype,
                   load_real((const uint8_t *)in + i * in_step, in_dtype));
    }
}
