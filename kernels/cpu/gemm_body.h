// gemm_body.h - the dense product under everything: strips of 6 rows times panels of 16 columns.
//
//     strip  [depth / 8][6][8]   six rows, eight channels at a time: packing needs no transposition
//     panel  [depth][16]         sixteen columns; their rows in the file are transposed when packed
//     tile   [6][16]             the product, in twelve registers: tile_body.h
//
// A long depth is cut into chunks. Each chunk is summed from zero, in order, and then added to the
// tile: that keeps rounding errors small and makes a row's bytes depend on the row and the weight
// alone, never on the strip it lies in or on its neighbours.

#ifndef KERNELS_CPU_GEMM_BODY_H
#define KERNELS_CPU_GEMM_BODY_H

#include "kernels/cpu/compute.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/tile_body.h"

// Packs count channels of six rows into round_up(count, 8) * 6 floats; missing ones are zero.
LANES_INLINE void strip_pack(const float *const rows[STRIP_ROWS], uint32_t count, float *out)
{
    uint32_t whole = count & ~7u;
    for (uint32_t c = 0; c < whole; c += 8) {
#pragma GCC unroll 6
        for (uint32_t i = 0; i < STRIP_ROWS; i++) {
            lanes_store(out + (size_t)c * STRIP_ROWS + i * 8, lanes_load(rows[i] + c));
        }
    }
    if (whole == count) return;
    for (uint32_t i = 0; i < STRIP_ROWS; i++) {
        lanes_store(out + (size_t)whole * STRIP_ROWS + i * 8,
                    lanes_load_part(rows[i] + whole, count - whole));
    }
}

LANES_INLINE lanes lanes_load_bytes(const uint8_t *at, enum dtype dtype)
{
    if (dtype == DTYPE_F16) return lanes_load_f16_bytes(at);
    if (dtype == DTYPE_BF16) return lanes_load_bf16_bytes(at);
    return lanes_load_f32_bytes(at);
}

static inline float load_element(const uint8_t *at, enum dtype dtype)
{
    float value = 0;
    if (dtype == DTYPE_F16) return f16_to_f32(load_u16(at));
    if (dtype == DTYPE_BF16) return bf16_to_f32(load_u16(at));
    memcpy(&value, at, sizeof value);
    return value;
}

LANES_INLINE void panel_pack_typed(const uint8_t *const rows[PANEL_COLUMNS], enum dtype dtype,
                                   size_t element_bytes, uint32_t first, uint32_t count, float *out)
{
    uint32_t whole = count & ~7u;
    for (uint32_t c = 0; c < whole; c += 8) {
        for (uint32_t half = 0; half < 2; half++) {
            lanes block[8];
#pragma GCC unroll 8
            for (uint32_t i = 0; i < 8; i++) {
                const uint8_t *at = rows[half * 8 + i] + (first + c) * element_bytes;
                block[i] = lanes_load_bytes(at, dtype);
            }
            lanes_transpose(block);
#pragma GCC unroll 8
            for (uint32_t i = 0; i < 8; i++) {
                lanes_store(out + (size_t)(c + i) * PANEL_COLUMNS + half * 8, block[i]);
            }
        }
    }
    for (uint32_t c = whole; c < count; c++) {
        for (uint32_t i = 0; i < PANEL_COLUMNS; i++) {
            const uint8_t *at = rows[i] + (first + c) * element_bytes;
            out[(size_t)c * PANEL_COLUMNS + i] = load_element(at, dtype);
        }
    }
}

// Transposes elements first .. first + count of sixteen rows into [count][16], widened exactly.
static __attribute__((noinline)) void panel_pack(const uint8_t *const rows[PANEL_COLUMNS],
                                                 enum dtype dtype, uint32_t first, uint32_t count,
                                                 float *out)
{
    if (dtype == DTYPE_F16) {
        panel_pack_typed(rows, DTYPE_F16, 2, first, count, out);
    } else if (dtype == DTYPE_BF16) {
        panel_pack_typed(rows, DTYPE_BF16, 2, first, count, out);
    } else {
        panel_pack_typed(rows, DTYPE_F32, 4, first, count, out);
    }
}

// The same, with zero rows up to a depth that is a multiple of 8.
static inline void panel_pack_padded(const uint8_t *const rows[PANEL_COLUMNS], enum dtype dtype,
                                     uint32_t first, uint32_t count, float *out)
{
    uint32_t depth = cpu_round_up(count, 8);
    panel_pack(rows, dtype, first, count, out);
    memset(out + (size_t)count * PANEL_COLUMNS, 0,
           (size_t)(depth - count) * PANEL_COLUMNS * sizeof out[0]);
}

// The sixteen rows of the weight from `first` on; those outside of it repeat its nearest row, and
// the columns that come of them are never stored.
static inline void panel_rows(const struct cpu_weight *weight, int64_t first,
                              const uint8_t *rows[PANEL_COLUMNS])
{
    int64_t last = (int64_t)weight->base.dims[0] - 1;
    for (uint32_t i = 0; i < PANEL_COLUMNS; i++) {
        int64_t row = first + i;
        row = row < 0 ? 0 : row > last ? last : row;
        rows[i] = cpu_weight_row(weight, (uint32_t)row);
    }
}

#endif  // KERNELS_CPU_GEMM_BODY_H
