// tile_body.h - the innermost product, six rows by sixteen columns, in one source over the width of
// the vectors. Twelve registers of sums keep both multipliers of a core busy:
//
//     8 wide     two registers a row, one for each half of the columns
//     16 wide    two registers a row, one for even depths and one for odd; added up at the end
//
// CPU_TILE_WIDE asks for the second. Without AVX-512 sixteen lanes are a pair of eights: that is
// slower than eight and only serves to test what such a processor would compute.

#ifndef KERNELS_CPU_TILE_BODY_H
#define KERNELS_CPU_TILE_BODY_H

#include "kernels/cpu/compute.h"
#include "kernels/cpu/lanes.h"

#if !defined(CPU_TILE_WIDE)

#define TILE_LANES 8u
#define tile_lanes lanes
#define tile_zero lanes_zero
#define tile_broadcast lanes_broadcast
#define tile_load lanes_load
#define tile_store lanes_store
#define tile_add lanes_add
#define tile_multiply_add lanes_multiply_add

#elif defined(__AVX512F__)

#define TILE_LANES 16u
#define tile_lanes __m512

LANES_INLINE tile_lanes tile_zero(void)
{
    return _mm512_setzero_ps();
}

LANES_INLINE tile_lanes tile_broadcast(const float *at)
{
    return _mm512_set1_ps(*at);
}

LANES_INLINE tile_lanes tile_load(const float *at)
{
    return _mm512_loadu_ps(at);
}

LANES_INLINE void tile_store(float *at, tile_lanes value)
{
    _mm512_storeu_ps(at, value);
}

LANES_INLINE tile_lanes tile_add(tile_lanes a, tile_lanes b)
{
    return _mm512_add_ps(a, b);
}

LANES_INLINE tile_lanes tile_multiply_add(tile_lanes a, tile_lanes b, tile_lanes c)
{
    return _mm512_fmadd_ps(a, b, c);
}

#else

struct tile_pair {
    lanes low;   // lanes 0 to 7
    lanes high;  // lanes 8 to 15
};
#define TILE_LANES 16u
#define tile_lanes struct tile_pair

LANES_INLINE tile_lanes tile_zero(void)
{
    return (tile_lanes){lanes_zero(), lanes_zero()};
}

LANES_INLINE tile_lanes tile_broadcast(const float *at)
{
    return (tile_lanes){lanes_broadcast(at), lanes_broadcast(at)};
}

LANES_INLINE tile_lanes tile_load(const float *at)
{
    return (tile_lanes){lanes_load(at), lanes_load(at + 8)};
}

LANES_INLINE void tile_store(float *at, tile_lanes value)
{
    lanes_store(at, value.low);
    lanes_store(at + 8, value.high);
}

LANES_INLINE tile_lanes tile_add(tile_lanes a, tile_lanes b)
{
    return (tile_lanes){lanes_add(a.low, b.low), lanes_add(a.high, b.high)};
}

LANES_INLINE tile_lanes tile_multiply_add(tile_lanes a, tile_lanes b, tile_lanes c)
{
    return (tile_lanes){lanes_multiply_add(a.low, b.low, c.low),
                        lanes_multiply_add(a.high, b.high, c.high)};
}

#endif

// Registers across the columns: 2 or 1.
#define TILE_REGISTERS (PANEL_COLUMNS / TILE_LANES)
// How far ahead of its use a strip is prefetched, in floats: eight groups of six rows.
#define STRIP_AHEAD (8u * 48u)

// out[6][16] = strip x panel, or += with add; of the strip's first rows alone where the others are
// padding. depth is a multiple of 8. `ahead` is what the caller will read next: depth * 8 bytes
// from there on are prefetched. A row's bytes are the same among any number of rows.
LANES_INLINE void tile_rows(uint32_t rows, const float *strip, const float *panel, uint32_t depth,
                            float *out, size_t stride, bool add, const void *ahead)
{
    tile_lanes left[STRIP_ROWS];   // or of even depths
    tile_lanes right[STRIP_ROWS];  // or of odd depths
    const char *next = ahead;
#pragma GCC unroll 6
    for (uint32_t i = 0; i < rows; i++) left[i] = right[i] = tile_zero();
    for (uint32_t k = 0; k < depth; k += 8) {
        __builtin_prefetch(strip + STRIP_AHEAD);
        __builtin_prefetch(next, 0, 2);
        next += 64;
#pragma GCC unroll 8
        for (uint32_t u = 0; u < 8; u++) {
            tile_lanes b0 = tile_load(panel + u * PANEL_COLUMNS);
            tile_lanes b1 = TILE_REGISTERS == 1 ? b0 : tile_load(panel + u * PANEL_COLUMNS + 8);
#pragma GCC unroll 6
            for (uint32_t i = 0; i < rows; i++) {
                tile_lanes a = tile_broadcast(strip + i * 8 + u);
                bool odd = u % 2 == 1;
                if (TILE_REGISTERS == 2 || !odd) left[i] = tile_multiply_add(a, b0, left[i]);
                if (TILE_REGISTERS == 2 || odd) right[i] = tile_multiply_add(a, b1, right[i]);
            }
        }
        strip += 48;
        panel += 128;
    }
#pragma GCC unroll 6
    for (uint32_t i = 0; i < rows && TILE_REGISTERS == 1; i++) {
        left[i] = tile_add(left[i], right[i]);
    }
    if (add) {
#pragma GCC unroll 6
        for (uint32_t i = 0; i < rows; i++) {
            left[i] = tile_add(tile_load(out + i * stride), left[i]);
            if (TILE_REGISTERS == 1) continue;
            right[i] = tile_add(tile_load(out + i * stride + 8), right[i]);
        }
    }
#pragma GCC unroll 6
    for (uint32_t i = 0; i < rows; i++) {
        tile_store(out + i * stride, left[i]);
        if (TILE_REGISTERS == 2) tile_store(out + i * stride + 8, right[i]);
    }
}

static __attribute__((noinline)) void tile_multiply(const float *strip, const float *panel,
                                                    uint32_t depth, float *out, size_t stride,
                                                    bool add, const void *ahead)
{
    tile_rows(STRIP_ROWS, strip, panel, depth, out, stride, add, ahead);
}

// The last strip of 77 tokens has five rows, that of twice as many four.
static __attribute__((noinline)) void tile_multiply_5(const float *strip, const float *panel,
                                                      uint32_t depth, float *out, size_t stride,
                                                      bool add, const void *ahead)
{
    tile_rows(5, strip, panel, depth, out, stride, add, ahead);
}

static __attribute__((noinline)) void tile_multiply_4(const float *strip, const float *panel,
                                                      uint32_t depth, float *out, size_t stride,
                                                      bool add, const void *ahead)
{
    tile_rows(4, strip, panel, depth, out, stride, add, ahead);
}

// The product that computes so many rows or a few more.
static inline void tile_multiply_some(uint32_t rows, const float *strip, const float *panel,
                                      uint32_t depth, float *out, size_t stride, bool add,
                                      const void *ahead)
{
    if (rows > 5) {
        tile_multiply(strip, panel, depth, out, stride, add, ahead);
    } else if (rows == 5) {
        tile_multiply_5(strip, panel, depth, out, stride, add, ahead);
    } else {
        tile_multiply_4(strip, panel, depth, out, stride, add, ahead);
    }
}

#endif  // KERNELS_CPU_TILE_BODY_H
