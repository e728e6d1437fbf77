// multiply_mma.cu - c = a b^T of 16-bit elements on tensor cores, sums in float32, on any card.
//
// All eight warps load and multiply; each has 80 rows of the tile (multiply_tile.h). Linears are
// multiplied by this, unless $LUNA_CUDA_LINEARS asks for another.

#include "kernels/cuda/multiply_tile.h"

namespace
{

constexpr unsigned THREADS = 256;
constexpr unsigned WARP_ROWS = 80;

struct roles {
    static constexpr unsigned LOADERS = THREADS;
    static constexpr unsigned SHARED_MAX = 99u << 10;  // that a block can have on every card
};

template <class F> struct worker : gpu::product_tile<F> {
    using T = typename F::T;
    static constexpr unsigned WARPS_M = F::ROWS / WARP_ROWS;
    static constexpr unsigned COLUMNS = gpu::PRODUCT_COLUMNS * WARPS_M / (THREADS / 32);
    static constexpr unsigned MMA_M = WARP_ROWS / 16;
    static constexpr unsigned MMA_N = COLUMNS / 8;
    static_assert(F::ROWS % WARP_ROWS == 0 && COLUMNS % 16 == 0, "whole products");
    static_assert(MMA_M * MMA_N * 4 <= gpu::PRODUCT_SUMS, "and not too many");
    const unsigned lane, warp_row, warp_column;

    __device__ worker(const struct gpu_product_mma &arguments, unsigned char *shared)
        : gpu::product_tile<F>(arguments, shared), lane(threadIdx.x % 32),
          warp_row(threadIdx.x / 32 % WARPS_M * WARP_ROWS),
          warp_column(threadIdx.x / 32 / WARPS_M * COLUMNS)
    {
    }

    // The products of a stage, column by column of 16, part by part.
    __device__ void multiply_stage(uint32_t stage, float sums[MMA_M][MMA_N][4]) const
    {
        uint32_t right = gpu::shared_address(this->right_of(stage));
#pragma unroll
        for (unsigned step = 0; step < 2; step++) {
            uint32_t y[MMA_N / 2][4];
#pragma unroll
            for (unsigned j = 0; j < MMA_N / 2; j++) {
                gpu::load_columns(y[j], right, warp_column + j * 16, step * 2, lane);
            }
#pragma unroll
            for (unsigned part = 0; part < F::PARTS; part++) {
                uint32_t left = gpu::shared_address(this->left_of(stage, part));
#pragma unroll
                for (unsigned i = 0; i < MMA_M; i++) {
                    uint32_t line = warp_row + i * 16 + lane % 16;
                    uint32_t x[4];
                    gpu::load_matrix4(x, left + gpu::unit_offset(line, step * 2 + lane / 16));
#pragma unroll
                    for (unsigned j = 0; j < MMA_N; j++) {
                        gpu::multiply<T>(sums[i][j], x, y[j / 2] + j % 2 * 2);
                    }
                }
            }
        }
    }

    __device__ void add_up(float total[MMA_M][MMA_N][4]) const
    {
        constexpr unsigned COUNT = MMA_M * MMA_N * 4;
        float sums[MMA_M][MMA_N][4] = {};
        for (unsigned i = 0; i + 1 < F::STAGES; i++) {
            if (i < this->stages) this->load_stage(i, threadIdx.x);
            gpu::copy_commit();
        }
        uint32_t left = this->in_slice;
        for (uint32_t stage = 0; stage < this->stages; stage++) {
            uint32_t next = stage + F::STAGES - 1;
            gpu::copy_wait<F::STAGES - 2>();
            __syncthreads();  // this stage is there for all, and all have left the one before
            if (next < this->stages) this->load_stage(next, threadIdx.x);
            gpu::copy_commit();
            multiply_stage(stage, sums);
            if (--left > 0) continue;
            gpu::end_slice<COUNT>(sums[0][0], total[0][0]);
            left = this->in_slice;
        }
        gpu::copy_wait<0>();  // only empty groups are left
        gpu::end_slice<COUNT>(sums[0][0], total[0][0]);
    }

    // Two columns at once where the rows of c are even.
    __device__ void store(const float total[MMA_M][MMA_N][4]) const
    {
#pragma unroll
        for (unsigned i = 0; i < MMA_M * 2; i++) {
            uint32_t m = this->row + warp_row + i * 8 + lane / 4;
            if (m >= this->a.m) continue;
            float *line = this->target() + static_cast<uint64_t>(m) * this->a.n;
#pragma unroll
            for (unsigned j = 0; j < MMA_N; j++) {
                uint32_t n = this->column + warp_column + j * 8 + lane % 4 * 2;
                const float *pair = &total[i / 2][j][i % 2 * 2];
                if (n + 1 < this->a.n && this->a.n % 2 == 0) {
                    *reinterpret_cast<float2 *>(line + n) = make_float2(pair[0], pair[1]);
                } else {
                    if (n < this->a.n) line[n] = pair[0];
                    if (n + 1 < this->a.n) line[n + 1] = pair[1];
                }
            }
        }
    }
};

template <class F>
GPU_KERNEL void __launch_bounds__(THREADS, 1) multiply_mma(const struct gpu_product_mma a)
{
    GPU_DYNAMIC_SHARED(shared, unsigned char);
    worker<F> worker(a, shared);
    float total[worker.MMA_M][worker.MMA_N][4] = {};
    worker.add_up(total);
    worker.store(total);
}

struct launcher {
    struct gpu_stream *stream;
    const struct gpu_product_mma &a;

    template <class T, unsigned ROWS, unsigned PARTS> void launch() const
    {
        using form = gpu::product_form<roles, T, ROWS, PARTS>;
        auto products_mma = multiply_mma<form>;
        GPU_LAUNCH(stream, products_mma, gpu::product_grid(a), THREADS, form::SHARED_BYTES, a);
    }
};

}  // namespace

static uint32_t tiles_of(uint32_t count, uint32_t side)
{
    return (count + side - 1) / side;
}

uint32_t gpu_product_tiles(uint32_t m, uint32_t n)
{
    uint32_t rows = m <= gpu::PRODUCT_ROWS_LOW ? gpu::PRODUCT_ROWS_LOW : gpu::PRODUCT_ROWS_HIGH;
    return tiles_of(m, rows) * tiles_of(n, gpu::PRODUCT_COLUMNS);
}

// Enough blocks for a large card, none of them with less than four stages.
uint32_t gpu_product_slices(uint32_t n, uint32_t k)
{
    constexpr uint32_t BLOCKS = 128;
    constexpr uint32_t SLICES_MAX = 8;
    uint32_t stages = tiles_of(k, gpu::PRODUCT_DEPTH);
    uint32_t slices = BLOCKS / tiles_of(n, gpu::PRODUCT_COLUMNS);
    if (slices > SLICES_MAX) slices = SLICES_MAX;
    if (slices > stages / 4) slices = stages / 4;
    if (slices < 2) return 1;
    return tiles_of(stages, tiles_of(stages, slices));
}

void gpu_launch_multiply_mma(struct gpu_stream *stream, const struct gpu_product_mma *arguments)
{
    gpu::launch_product(launcher{stream, *arguments}, *arguments);
}
