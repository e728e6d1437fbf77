// multiply_tile.h - what the two kernels that multiply the operands of linears share: a tile of c,
// how its operands come into shared memory, slices, and which form a product takes.
//
// Texts have few rows and many weights, so what counts is that weights stream: a tile has 128 rows
// of b and 80 or 160 of a, all there are in most requests, with all parts that a was split into.
// Operands come 32 columns at a time, a stage, through a ring as long as shared memory allows.
//
// Columns are summed in slices, and the sums of the slices are added up in their order. Where the
// tiles of c are too few for a card, each slice has a block of its own and the reader of c adds
// them; else one block walks through all of them. How many slices there are depends on n and k
// alone, so the bits of a row do not depend on the rows beside it.

#ifndef KERNELS_CUDA_MULTIPLY_TILE_H
#define KERNELS_CUDA_MULTIPLY_TILE_H

#include "kernels/cuda/tiles.h"

namespace gpu
{

constexpr unsigned PRODUCT_ROWS_LOW = 80;    // of a tile where m has no more
constexpr unsigned PRODUCT_ROWS_HIGH = 160;  // of any other
constexpr unsigned PRODUCT_COLUMNS = 128;    // of c in a tile: rows of b
constexpr unsigned PRODUCT_DEPTH = 32;       // columns of a and b in a stage
constexpr unsigned PRODUCT_SUMS = 80;        // of a thread, at most
constexpr unsigned PRODUCT_STAGES_MAX = 6;   // of the ring
static_assert(PRODUCT_DEPTH * 2 == ROW_BYTES, "a stage has whole rows of shared memory");

// R says how many threads load, LOADERS, and how much shared memory there is, SHARED_MAX.
template <class R, class T_, unsigned ROWS_, unsigned PARTS_> struct product_form : R {
    using T = T_;
    static constexpr unsigned ROWS = ROWS_;  // of a tile, in each part
    static constexpr unsigned PARTS = PARTS_;
    static constexpr unsigned A_BYTES = ROWS * ROW_BYTES;  // of one part
    static constexpr unsigned STAGE_BYTES = PARTS * A_BYTES + PRODUCT_COLUMNS * ROW_BYTES;
    static constexpr unsigned FITTING = R::SHARED_MAX / STAGE_BYTES;
    static constexpr unsigned STAGES = FITTING < PRODUCT_STAGES_MAX ? FITTING : PRODUCT_STAGES_MAX;
    static constexpr unsigned SHARED_BYTES = STAGES * STAGE_BYTES;
    static_assert(STAGES >= 2 && A_BYTES % 512 == 0,
                  "a ring of tiles that begin where swizzles do");
};

// Stages are counted from the block's first.
template <class F> struct product_tile {
    using T = typename F::T;
    const struct gpu_product_mma &a;
    unsigned char *const memory;
    const uint32_t row, column;  // of c, its first
    const bool left_aligned, right_aligned;
    uint32_t first, stages;  // of the columns, and how many this block adds up
    uint32_t in_slice;       // stages of a slice

    __device__ product_tile(const struct gpu_product_mma &arguments, unsigned char *shared)
        : a(arguments), memory(shared), row(blockIdx.x / tiles_n(arguments) * F::ROWS),
          column(blockIdx.x % tiles_n(arguments) * PRODUCT_COLUMNS),
          left_aligned(rows_are_aligned(arguments.a, arguments.a_pitch)),
          right_aligned(rows_are_aligned(arguments.b, arguments.b_pitch))
    {
        uint32_t all = (a.k + PRODUCT_DEPTH - 1) / PRODUCT_DEPTH;
        in_slice = (all + a.slices - 1) / a.slices;
        first = blockIdx.y * in_slice;
        stages = a.is_apart && first + in_slice < all ? in_slice : all - first;
    }

    __device__ static uint32_t tiles_n(const struct gpu_product_mma &arguments)
    {
        return (arguments.n + PRODUCT_COLUMNS - 1) / PRODUCT_COLUMNS;
    }

    // Rows of one part of a, and of b, in the place of a stage.
    __device__ unsigned char *left_of(uint32_t stage, unsigned part) const
    {
        return memory + stage % F::STAGES * F::STAGE_BYTES + part * F::A_BYTES;
    }

    __device__ unsigned char *right_of(uint32_t stage) const
    {
        return left_of(stage, F::PARTS);
    }

    // Where this block's sums go.
    __device__ float *target() const
    {
        return a.c + static_cast<uint64_t>(blockIdx.y) * a.m * a.n;
    }

    // LINES rows from `begin` on of a matrix that has `rows`, columns of the stage; zeros beyond.
    template <unsigned LINES>
    __device__ void load_rows(unsigned char *to, const T *from, uint32_t rows, uint32_t begin,
                              uint32_t stage, uint32_t pitch, bool aligned, unsigned thread) const
    {
        for (unsigned i = thread; i < LINES * ROW_UNITS; i += F::LOADERS) {
            unsigned line = i / ROW_UNITS;
            unsigned unit = i % ROW_UNITS;
            uint32_t at = (first + stage) * PRODUCT_DEPTH + unit * 8;
            unsigned count = begin + line < rows && at < a.k ? a.k - at : 0;
            const T *element =
                count == 0 ? from : from + static_cast<uint64_t>(begin + line) * pitch + at;
            fill_unit(to + unit_offset(line, unit), element, count < 8 ? count : 8, aligned);
        }
    }

    // `thread` is the caller's number among the loaders.
    __device__ void load_stage(uint32_t stage, unsigned thread) const
    {
        for (unsigned part = 0; part < F::PARTS; part++) {
            const T *from =
                static_cast<const T *>(a.a) + static_cast<uint64_t>(part) * a.m * a.a_pitch;
            load_rows<F::ROWS>(left_of(stage, part), from, a.m, row, stage, a.a_pitch, left_aligned,
                               thread);
        }
        load_rows<PRODUCT_COLUMNS>(right_of(stage), static_cast<const T *>(a.b), a.n, column, stage,
                                   a.b_pitch, right_aligned, thread);
    }
};

// Sums of a slice into those of all, then none.
template <unsigned COUNT> __device__ __forceinline__ void end_slice(float *sums, float *total)
{
#pragma unroll
    for (unsigned i = 0; i < COUNT; i++) {
        total[i] += sums[i];
        sums[i] = 0;
    }
}

inline dim3 product_grid(const struct gpu_product_mma &a)
{
    return dim3(gpu_product_tiles(a.m, a.n), a.is_apart ? a.slices : 1);
}

template <class T, unsigned PARTS, class L>
void launch_rows(const L &launcher, const struct gpu_product_mma &a)
{
    if (a.m <= PRODUCT_ROWS_LOW) {
        launcher.template launch<T, PRODUCT_ROWS_LOW, PARTS>();
    } else {
        launcher.template launch<T, PRODUCT_ROWS_HIGH, PARTS>();
    }
}

// Calls the launcher's launch<T, ROWS, PARTS>() for the type, the rows and the parts of a product.
template <class L> void launch_product(const L &launcher, const struct gpu_product_mma &a)
{
    if (a.is_bf16 && a.parts == 1) {
        launch_rows<__nv_bfloat16, 1>(launcher, a);
    } else if (a.is_bf16) {
        launch_rows<__nv_bfloat16, 3>(launcher, a);
    } else if (a.parts == 1) {
        launch_rows<__half, 1>(launcher, a);
    } else {
        launch_rows<__half, 2>(launcher, a);
    }
}

}  // namespace gpu

#endif  // KERNELS_CUDA_MULTIPLY_TILE_H
