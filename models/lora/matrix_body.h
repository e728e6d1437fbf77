// matrix_body.h - the loops that must be fast, written on lanes of eight; matrix.c has them once
// for every processor and once for AVX2. No multiply-add is fused, so both give the same bits.

#ifndef MODELS_LORA_MATRIX_BODY_H
#define MODELS_LORA_MATRIX_BODY_H

#include <stdint.h>
#include <string.h>

#define BODY static inline __attribute__((always_inline))
#define LANES 8u
#define TILE_ROWS 4u
_Static_assert(PANEL == 2 * LANES, "a panel is two lanes");

// Eight elements at any address.
struct lanes {
    float v __attribute__((vector_size(LANES * sizeof(float))));
} __attribute__((packed));
struct words {
    uint32_t v __attribute__((vector_size(LANES * sizeof(uint32_t))));
} __attribute__((packed));
struct halves {
    uint16_t v __attribute__((vector_size(LANES * sizeof(uint16_t))));
} __attribute__((packed));

#define LANES_AT(at) (((const struct lanes *)(const void *)(at))->v)
#define LANES_TO(at) (((struct lanes *)(void *)(at))->v)

// Four rows of out = left [4, depth] panel [depth, PANEL]. The sums are single variables, because
// an array of them would live in memory.
BODY void tile_multiply(float *out, uint64_t out_step, const float *left, uint64_t depth,
                        const float *panel)
{
    struct lanes a0 = {{0}}, a1 = {{0}}, a2 = {{0}}, a3 = {{0}};
    struct lanes b0 = {{0}}, b1 = {{0}}, b2 = {{0}}, b3 = {{0}};
    for (uint64_t k = 0; k < depth; k++) {
        struct lanes a = {LANES_AT(panel + k * PANEL)};
        struct lanes b = {LANES_AT(panel + k * PANEL + LANES)};
        a0.v += left[k] * a.v;
        b0.v += left[k] * b.v;
        a1.v += left[depth + k] * a.v;
        b1.v += left[depth + k] * b.v;
        a2.v += left[2 * depth + k] * a.v;
        b2.v += left[2 * depth + k] * b.v;
        a3.v += left[3 * depth + k] * a.v;
        b3.v += left[3 * depth + k] * b.v;
    }
    LANES_TO(out) = a0.v;
    LANES_TO(out + LANES) = b0.v;
    LANES_TO(out + out_step) = a1.v;
    LANES_TO(out + out_step + LANES) = b1.v;
    LANES_TO(out + 2 * out_step) = a2.v;
    LANES_TO(out + 2 * out_step + LANES) = b2.v;
    LANES_TO(out + 3 * out_step) = a3.v;
    LANES_TO(out + 3 * out_step + LANES) = b3.v;
}

// One row, of which the first `width` columns count.
BODY void row_multiply(float *out, const float *left, uint64_t depth, const float *panel,
                       uint32_t width)
{
    struct lanes a = {{0}}, b = {{0}};
    float row[PANEL];
    for (uint64_t k = 0; k < depth; k++) {
        a.v += left[k] * LANES_AT(panel + k * PANEL);
        b.v += left[k] * LANES_AT(panel + k * PANEL + LANES);
    }
    LANES_TO(row) = a.v;
    LANES_TO(row + LANES) = b.v;
    memcpy(out, row, width * sizeof *row);
}

BODY void panel_multiply(float *out, uint64_t out_step, const float *left, uint64_t rows,
                         uint64_t depth, const float *panel, uint32_t width)
{
    uint64_t i = 0;
    for (; width == PANEL && i + TILE_ROWS <= rows; i += TILE_ROWS) {
        tile_multiply(out + i * out_step, out_step, left + i * depth, depth, panel);
    }
    for (; i < rows; i++) {
        row_multiply(out + i * out_step, left + i * depth, depth, panel, width);
    }
}

// Lanes of ones where a >= b, else of zeros; both below 2^31.
#define AT_LEAST(a, b) (0u - (((b)-1u - (a)) >> 31))
#define CHOOSE(mask, a, b) (((mask) & (a)) | (~(mask) & (b)))
#define AS_WORDS(lanes) ((__typeof__(((struct words *)0)->v))(lanes))
#define AS_LANES(words) ((__typeof__(((struct lanes *)0)->v))(words))

BODY void widen_f16(float *out, const void *in)
{
    struct halves half = *(const struct halves *)in;
    struct words bits = {__builtin_convertvector(half.v, __typeof__(bits.v))};
    struct words magnitude = {(bits.v & 0x7fffu) << 13};
    struct words special = {AT_LEAST(magnitude.v, 0x7c00u << 13)};
    // Moves the exponent's bias, of subnormals too.
    struct words finite = {AS_WORDS(AS_LANES(magnitude.v) * 0x1p112f)};
    finite.v = CHOOSE(special.v, magnitude.v | 0x7f800000u, finite.v);
    LANES_TO(out) = AS_LANES(finite.v | (bits.v & 0x8000u) << 16);
}

BODY void narrow_f16(void *out, const float *in)
{
    struct words bits = {AS_WORDS(LANES_AT(in))};
    struct words magnitude = {bits.v & 0x7fffffffu};
    struct words nan = {AT_LEAST(magnitude.v, 0x7f800001u)};
    struct words infinite = {AT_LEAST(magnitude.v, 0x477ff000u)};
    struct words normal = {AT_LEAST(magnitude.v, 0x38800000u)};
    struct words half = {(magnitude.v - 0x38000000u + 0xfffu + (magnitude.v >> 13 & 1u)) >> 13};
    // Below 2^-14 the addition rounds to a multiple of 2^-24.
    struct words small = {AS_WORDS(AS_LANES(magnitude.v & ~normal.v) + 0.5f) - 0x3f000000u};
    half.v = CHOOSE(normal.v, half.v, small.v);
    half.v = CHOOSE(infinite.v, 0x7c00u, half.v);
    half.v = CHOOSE(nan.v, 0x7e00u | (magnitude.v >> 13 & 0x1ffu), half.v);
    half.v |= bits.v >> 16 & 0x8000u;
    ((struct halves *)out)->v =
        __builtin_convertvector(half.v, __typeof__(((struct halves *)0)->v));
}

BODY void widen_bf16(float *out, const void *in)
{
    struct halves half = *(const struct halves *)in;
    struct words bits = {__builtin_convertvector(half.v, __typeof__(bits.v))};
    LANES_TO(out) = AS_LANES(bits.v << 16);
}

BODY void narrow_bf16(void *out, const float *in)
{
    struct words bits = {AS_WORDS(LANES_AT(in))};
    struct words nan = {AT_LEAST(bits.v & 0x7fffffffu, 0x7f800001u)};
    struct words half = {(bits.v + 0x7fffu + (bits.v >> 16 & 1u)) >> 16};
    half.v = CHOOSE(nan.v, bits.v >> 16 | 0x40u, half.v);
    ((struct halves *)out)->v =
        __builtin_convertvector(half.v, __typeof__(((struct halves *)0)->v));
}

// Both convert whole lanes and return how many elements that was; the caller does what is left.
BODY uint64_t load_lanes(float *out, const uint8_t *in, int is_f16, uint64_t count)
{
    uint64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        if (is_f16) {
            widen_f16(out + i, in + i * sizeof(uint16_t));
        } else {
            widen_bf16(out + i, in + i * sizeof(uint16_t));
        }
    }
    return i;
}

BODY uint64_t store_lanes(uint8_t *out, const float *in, int is_f16, uint64_t count)
{
    uint64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        if (is_f16) {
            narrow_f16(out + i * sizeof(uint16_t), in + i);
        } else {
            narrow_bf16(out + i * sizeof(uint16_t), in + i);
        }
    }
    return i;
}

BODY uint64_t add_lanes(float *to, const float *what, float scale, uint64_t count)
{
    uint64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        LANES_TO(to + i) = LANES_AT(to + i) + scale * LANES_AT(what + i);
    }
    return i;
}

#endif  // MODELS_LORA_MATRIX_BODY_H
