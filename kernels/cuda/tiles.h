// tiles.h - what the kernels on tensor cores share: 64-byte rows in shared memory and how they are
// filled.
//
// A row holds 32 elements of 16 bits, four units of 16 bytes. Unit u of row r lies at place
// u ^ ((r >> 1) & 3): eight consecutive rows, read at one u by ldmatrix, come from eight different
// groups of banks, whatever row they begin at.

#ifndef KERNELS_CUDA_TILES_H
#define KERNELS_CUDA_TILES_H

#include "kernels/cuda/elements.h"

namespace gpu
{

constexpr unsigned ROW_BYTES = 64;
constexpr unsigned ROW_UNITS = 4;

__device__ __forceinline__ uint32_t unit_offset(uint32_t row, uint32_t unit)
{
    return row * ROW_BYTES + ((unit ^ ((row >> 1) & 3)) << 4);
}

// True when rows of so many 16-bit elements all begin where 16 bytes may be copied at once.
__device__ __forceinline__ bool rows_are_aligned(const void *at, uint32_t elements)
{
    return elements % 8 == 0 && (reinterpret_cast<uintptr_t>(at) & 15) == 0;
}

// Fills one unit of shared memory with `count` elements (0 to 8) from device memory, zeros behind
// them. Where `aligned`, the source is, and the copy is asynchronous.
template <class T>
__device__ __forceinline__ void fill_unit(unsigned char *to, const T *from, unsigned count,
                                          bool aligned GPU_NEXT_SITE)
{
    if (aligned) {
        copy_async16(shared_address(to GPU_PASS_SITE), from, count * 2 GPU_PASS_SITE);
        return;
    }
    uint32_t words[4] = {};
    for (unsigned i = 0; i < 8; i++) {
        uint32_t bits = i < count ? bits_of<uint16_t>(from[i]) : 0u;
        words[i / 2] |= bits << (16 * (i % 2));
    }
    *reinterpret_cast<uint4 *>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// The fragments of B for 16 columns (rows of shared memory) from `row` on: two m16n8k16 operands.
__device__ __forceinline__ void load_columns(uint32_t *fragments, uint32_t tile, uint32_t row,
                                             uint32_t unit, unsigned lane GPU_NEXT_SITE)
{
    uint32_t at = row + (lane & 7) + ((lane >> 4) << 3);
    load_matrix4(fragments, tile + unit_offset(at, unit + ((lane >> 3) & 1)) GPU_PASS_SITE);
}

}  // namespace gpu

#endif  // KERNELS_CUDA_TILES_H
