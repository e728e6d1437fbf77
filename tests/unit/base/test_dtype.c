// test_dtype.c - conversions, for every 16-bit pattern and around every border.

#include <math.h>
#include <string.h>

#include "base/dtype.h"
#include "tests/test.h"

static uint32_t bits_of(float value)
{
    uint32_t bits = 0;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits)
{
    float value = 0;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The value of a half by its definition, in double.
static double half_value(unsigned half)
{
    unsigned exponent = half >> 10 & 31;
    unsigned mantissa = half & 1023;
    double value =
        exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, (int)exponent - 25);
    return half & 0x8000 ? -value : value;
}

static bool half_is_finite(unsigned half)
{
    return (half >> 10 & 31) != 31;
}

static void every_half_has_the_value_of_its_definition_and_comes_back(void **state)
{
    (void)state;
    for (unsigned half = 0; half < 65536; half++) {
        float value = f16_to_f32((uint16_t)half);
        bool is_nan = (half & 0x7fff) > 0x7c00;
        assert_int_equal(isnan(value) != 0, is_nan);
        if (!is_nan && half_is_finite(half)) assert_true((double)value == half_value(half));
        if (!is_nan && !half_is_finite(half)) assert_true(isinf(value));
        assert_int_equal(signbit(value) != 0, half >> 15);
        uint16_t back = f32_to_f16(value);
        if (is_nan) {
            assert_true((back & 0x7fff) > 0x7c00);
        } else {
            assert_int_equal(back, half);
        }
    }
}

static void every_bfloat_is_the_upper_half_of_a_float_and_comes_back(void **state)
{
    (void)state;
    for (unsigned bfloat = 0; bfloat < 65536; bfloat++) {
        float value = bf16_to_f32((uint16_t)bfloat);
        assert_int_equal(bits_of(value), bfloat << 16);
        uint16_t back = f32_to_bf16(value);
        bool is_nan = (bfloat & 0x7fff) > 0x7f80;
        assert_int_equal(isnan(value) != 0, is_nan);
        if (is_nan) {
            assert_true((back & 0x7fff) > 0x7f80);
        } else {
            assert_int_equal(back, bfloat);
        }
    }
}

// What rounding to nearest, ties to even, makes of a finite value between two halves.
static unsigned nearest_half(double value, unsigned lower)
{
    double below = fabs(half_value(lower));
    double above = lower == 0x7bff ? 65536.0 : fabs(half_value(lower + 1));
    double middle = (below + above) / 2;
    if (value < middle) return lower;
    if (value > middle) return lower + 1;
    return lower & 1 ? lower + 1 : lower;
}

static void floats_between_two_halves_round_to_the_nearer_and_ties_to_even(void **state)
{
    (void)state;
    for (unsigned half = 0; half < 0x7c00; half++) {
        float below = f16_to_f32((uint16_t)half);
        float above = half == 0x7bff ? 65536.0f : f16_to_f32((uint16_t)(half + 1));
        float middle = (below + above) / 2;  // exact in float32
        const float probes[] = {nextafterf(below, above), nextafterf(middle, below), middle,
                                nextafterf(middle, above), nextafterf(above, below)};
        for (size_t i = 0; i < sizeof probes / sizeof probes[0]; i++) {
            unsigned expected = nearest_half((double)probes[i], half);
            assert_int_equal(f32_to_f16(probes[i]), expected);
            assert_int_equal(f32_to_f16(-probes[i]), expected | 0x8000);
        }
    }
    assert_int_equal(f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(f32_to_f16(3e38f), 0x7c00);
    assert_int_equal(f32_to_f16(1e-40f), 0);
    assert_int_equal(f32_to_f16(0x1p-25f), 0);  // the tie with zero
    assert_int_equal(f32_to_f16(0x1.000002p-25f), 1);
}

static void floats_between_two_bfloats_round_to_the_nearer_and_ties_to_even(void **state)
{
    (void)state;
    for (uint32_t bfloat = 0; bfloat < 0x7f80; bfloat++) {
        uint32_t base = bfloat << 16;
        assert_int_equal(f32_to_bf16(float_of(base | 0x0001)), bfloat);
        assert_int_equal(f32_to_bf16(float_of(base | 0x7fff)), bfloat);
        assert_int_equal(f32_to_bf16(float_of(base | 0x8000)), bfloat + (bfloat & 1));
        assert_int_equal(f32_to_bf16(float_of(base | 0x8001)), bfloat + 1);
        assert_int_equal(f32_to_bf16(float_of(base | 0xffff)), bfloat + 1);
        assert_int_equal(f32_to_bf16(float_of(base | 0x80008001)), (bfloat + 1) | 0x8000);
    }
}

static void nan_stays_nan_whatever_its_payload(void **state)
{
    (void)state;
    const uint32_t payloads[] = {0x7f800001, 0x7f801fff, 0x7fc00000, 0x7fffffff, 0xff800001};
    for (size_t i = 0; i < sizeof payloads / sizeof payloads[0]; i++) {
        assert_true((f32_to_f16(float_of(payloads[i])) & 0x7fff) > 0x7c00);
        assert_true((f32_to_bf16(float_of(payloads[i])) & 0x7fff) > 0x7f80);
    }
}

static void arrays_convert_between_all_real_types_at_any_address(void **state)
{
    (void)state;
    const float values[] = {0.0f, -1.5f, 65504.0f, 0.333251953125f, -0x1p-14f};
    const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    uint8_t in[64], out[64], expected[64];
    for (int from = 0; from < 3; from++) {
        for (int to = 0; to < 3; to++) {
            dtype_convert(in + 1, types[from], values, DTYPE_F32, 5);
            dtype_convert(out + 3, types[to], in + 1, types[from], 5);
            for (size_t i = 0; i < 5; i++) {
                dtype_convert(expected, types[to], in + 1 + i * dtype_bytes(types[from]),
                              types[from], 1);
                assert_memory_equal(out + 3 + i * dtype_bytes(types[to]), expected,
                                    dtype_bytes(types[to]));
            }
        }
    }
    dtype_convert(out, DTYPE_F16, in, DTYPE_F32, 0);
    float back[5];
    dtype_convert(in, DTYPE_F16, values, DTYPE_F32, 5);
    dtype_convert(back, DTYPE_F32, in, DTYPE_F16, 5);
    assert_memory_equal(back, values, sizeof values);  // all of them are halves
}

static void every_type_has_its_name_and_size(void **state)
{
    (void)state;
    for (int i = DTYPE_NONE + 1; i < DTYPE_COUNT; i++) {
        const char *name = dtype_name((enum dtype)i);
        assert_int_equal(dtype_from_name(name, strlen(name)), i);
        assert_int_equal(dtype_from_name(name, strlen(name) - 1), DTYPE_NONE);
        uint32_t bytes = dtype_bytes((enum dtype)i);
        assert_true(bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8);
    }
    assert_int_equal(dtype_bytes(DTYPE_BF16), 2);
    assert_int_equal(dtype_bytes(DTYPE_I64), 8);
    assert_int_equal(dtype_bytes((enum dtype)99), 0);
    assert_string_equal(dtype_name((enum dtype)99), "?");
    assert_int_equal(dtype_from_name("?", 1), DTYPE_NONE);
    assert_int_equal(dtype_from_name("f32", 3), DTYPE_NONE);
    assert_true(dtype_is_real(DTYPE_BF16));
    assert_false(dtype_is_real(DTYPE_F64));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_has_the_value_of_its_definition_and_comes_back),
        cmocka_unit_test(every_bfloat_is_the_upper_half_of_a_float_and_comes_back),
        cmocka_unit_test(floats_between_two_halves_round_to_the_nearer_and_ties_to_even),
        cmocka_unit_test(floats_between_two_bfloats_round_to_the_nearer_and_ties_to_even),
        cmocka_unit_test(nan_stays_nan_whatever_its_payload),
        cmocka_unit_test(arrays_convert_between_all_real_types_at_any_address),
        cmocka_unit_test(every_type_has_its_name_and_size),
    };
    return cmocka_run_group_tests_name("dtype", tests, NULL, NULL);
}
