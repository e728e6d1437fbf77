// multiply_mma.cu - c = a b^T of 16-bit elements on tensor cores, sums in float32.
//
// A block makes 64x64 sums with four warps, 32 columns of a and b at a time, through a ring of
// three stages. The order of a sum is that of its columns, whatever the rows beside it are.
// Linears are multiplied by this, unless $LUNA_CUDA_LINEARS asks for the vendor's library
// (driver_blas.h).

#include "kernels/cuda/tiles.h"

namespace
{

constexpr unsigned THREADS = 128;
constexpr unsigned SIDE = 64;   // of the tile
constexpr unsigned DEPTH = 32;  // columns of a stage
constexpr unsigned STAGES = 3;
constexpr unsigned TILE_BYTES = SIDE * gpu::ROW_BYTES;

// Rows row .. row + 63 of a matrix, columns column .. column + 31.
template <class T>
__device__ void load_rows(unsigned char *to, const T *from, uint32_t rows, uint32_t row,
                          uint32_t columns, uint32_t column, uint32_t pitch, bool aligned)
{
    for (unsigned i = threadIdx.x; i < SIDE * gpu::ROW_UNITS; i += THREADS) {
        unsigned line = i / gpu::ROW_UNITS;
        unsigned unit = i % gpu::ROW_UNITS;
        uint32_t first = column + unit * 8;
        unsigned count = row + line < rows && first < columns ? columns - first : 0;
        const T *at = count == 0 ? from : from + static_cast<uint64_t>(row + line) * pitch + first;
        gpu::fill_unit(to + gpu::unit_offset(line, unit), at, count < 8 ? count : 8, aligned);
    }
}

template <class T>
GPU_KERNEL void __launch_bounds__(THREADS) multiply_tiles(const struct gpu_product_mma a)
{
    GPU_DYNAMIC_SHARED(shared, unsigned char);
    const T *left = static_cast<const T *>(a.a);
    const T *right = static_cast<const T *>(a.b);
    bool left_aligned = gpu::rows_are_aligned(left, a.a_pitch);
    bool right_aligned = gpu::rows_are_aligned(right, a.b_pitch);
    uint32_t row = blockIdx.x * SIDE;
    uint32_t column = blockIdx.y * SIDE;
    unsigned lane = threadIdx.x % 32;
    unsigned warp = threadIdx.x / 32;
    auto load_stage = [&](uint32_t stage) {
        unsigned char *to = shared + stage % STAGES * 2 * TILE_BYTES;
        load_rows(to, left, a.m, row, a.k, stage * DEPTH, a.a_pitch, left_aligned);
        load_rows(to + TILE_BYTES, right, a.n, column, a.k, stage * DEPTH, a.b_pitch,
                  right_aligned);
    };
    float sums[2][4][4] = {};
    uint32_t stages = (a.k + DEPTH - 1) / DEPTH;
    load_stage(0);
    gpu::copy_commit();
    if (stages > 1) load_stage(1);
    gpu::copy_commit();
    for (uint32_t stage = 0; stage < stages; stage++) {
        gpu::copy_wait<1>();
        __syncthreads();  // this stage is there for all, and all have left the one before
        if (stage + 2 < stages) load_stage(stage + 2);
        gpu::copy_commit();
        uint32_t tile = gpu::shared_address(shared) + stage % STAGES * 2 * TILE_BYTES;
#pragma unroll
        for (unsigned step = 0; step < 2; step++) {
            uint32_t x[2][4];
            uint32_t y[2][4];
#pragma unroll
            for (unsigned i = 0; i < 2; i++) {
                uint32_t line = warp / 2 * 32 + i * 16 + lane % 16;
                gpu::load_matrix4(x[i], tile + gpu::unit_offset(line, step * 2 + lane / 16));
                gpu::load_columns(y[i], tile + TILE_BYTES, warp % 2 * 32 + i * 16, step * 2, lane);
            }
#pragma unroll
            for (unsigned i = 0; i < 2; i++) {
#pragma unroll
                for (unsigned j = 0; j < 4; j++) {
                    gpu::multiply<T>(sums[i][j], x[i], y[j / 2] + j % 2 * 2);
                }
            }
        }
    }
    gpu::copy_wait<0>();  // only empty groups are left
#pragma unroll
    for (unsigned i = 0; i < 32; i++) {
        uint32_t m = row + warp / 2 * 32 + i / 16 * 16 + i % 4 / 2 * 8 + lane / 4;
        uint32_t n = column + warp % 2 * 32 + i / 4 % 4 * 8 + lane % 4 * 2 + i % 2;
        if (m < a.m && n < a.n) {
            a.c[static_cast<uint64_t>(m) * a.n + n] = sums[i / 16][i / 4 % 4][i % 4];
        }
    }
}

}  // namespace

void gpu_launch_multiply_mma(struct gpu_stream *stream, const struct gpu_product_mma *arguments)
{
    dim3 grid((arguments->m + SIDE - 1) / SIDE, (arguments->n + SIDE - 1) / SIDE);
    unsigned bytes = STAGES * 2 * TILE_BYTES;
    if (arguments->is_bf16) {
        GPU_LAUNCH(stream, multiply_tiles<__nv_bfloat16>, grid, THREADS, bytes, *arguments);
    } else {
        GPU_LAUNCH(stream, multiply_tiles<__half>, grid, THREADS, bytes, *arguments);
    }
}
