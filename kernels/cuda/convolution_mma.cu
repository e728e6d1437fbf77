// convolution_mma.cu - convolutions of 16-bit activations on tensor cores, for every card: an
// implicit GEMM whose operand is a tile of the image with its halo (convolution_tile.h).
//
// All threads load, normalise and multiply. Loads run two stages ahead in rings of three, by
// cp.async.

#include "kernels/cuda/convolution_tile.h"

namespace
{

constexpr unsigned THREADS = 256;

struct everybody {
    using barrier = gpu::block_barrier;
    static constexpr unsigned COMPUTERS = THREADS;
    static constexpr unsigned LOADERS = THREADS;
    static constexpr unsigned INPUTS = 3;
    static constexpr unsigned WEIGHTS = 3;

    __device__ static unsigned loader()
    {
        return threadIdx.x;
    }
};

template <class T, class F> struct worker : gpu::convolution_tile<T, F> {
    using gpu::convolution_tile<T, F>::convolution_tile;

    __device__ void load_weight(uint32_t stage) const
    {
        const T *from = this->weights_from(stage);
        unsigned char *to = this->weight_of(stage);
        uint32_t units = this->channels_here() * gpu::ROW_UNITS;
        for (unsigned i = threadIdx.x; i < F::BLOCK_K * gpu::ROW_UNITS; i += THREADS) {
            gpu::fill_unit(to + i * 16, i < units ? from + i * 8 : from, i < units ? 8 : 0, true);
        }
    }

    __device__ void load_stage(uint32_t stage) const
    {
        load_weight(stage);
        if (this->is_shortcut(stage)) {
            this->load_shortcut(stage);
        } else if (stage % F::TAPS == 0) {
            this->load_input(stage);
        }
    }

    __device__ void multiply_stage(uint32_t stage, float sums[F::MMA_M][F::MMA_N][4]) const
    {
        unsigned lane = threadIdx.x % 32;
        unsigned warp = threadIdx.x / 32;
        uint32_t weight = gpu::shared_address(this->weight_of(stage));
#pragma unroll
        for (unsigned step = 0; step < 2; step++) {
            uint32_t x[F::MMA_M][4];
            uint32_t y[F::MMA_N / 2][4];
            this->load_pixels(stage, step * 2, x);
#pragma unroll
            for (unsigned j = 0; j < F::MMA_N / 2; j++) {
                uint32_t row = warp / F::WARPS_M * F::MMA_N * 8 + j * 16;
                gpu::load_columns(y[j], weight, row, step * 2, lane);
            }
#pragma unroll
            for (unsigned i = 0; i < F::MMA_M; i++) {
#pragma unroll
                for (unsigned j = 0; j < F::MMA_N; j++) {
                    gpu::multiply<T>(sums[i][j], x[i], y[j / 2] + j % 2 * 2);
                }
            }
        }
    }

    __device__ void add_up(float sums[F::MMA_M][F::MMA_N][4]) const
    {
        load_stage(0);
        gpu::copy_commit();
        if (this->stages > 1) load_stage(1);
        gpu::copy_commit();
        for (uint32_t stage = 0; stage < this->stages; stage++) {
            gpu::copy_wait<1>();
            __syncthreads();  // this stage is there for all, and all have left the one before
            if (this->a.factors != NULL && !this->is_shortcut(stage) && stage % F::TAPS == 0) {
                this->normalize(stage);
                __syncthreads();
            }
            if (stage + 2 < this->stages) load_stage(stage + 2);
            gpu::copy_commit();
            multiply_stage(stage, sums);
        }
        gpu::copy_wait<0>();  // only empty groups are left
    }
};

template <class T, class F>
GPU_KERNEL void __launch_bounds__(THREADS) convolve_mma(const struct gpu_convolution a)
{
    GPU_DYNAMIC_SHARED(shared, unsigned char);
    worker<T, F> worker(a, shared);
    float sums[F::MMA_M][F::MMA_N][4];
    gpu::clear_sums<F>(sums);
    worker.add_up(sums);
    worker.store(sums);
    if (a.partials != NULL) worker.store_partials(sums);
}

struct launcher {
    struct gpu_stream *stream;
    const struct gpu_convolution &a;

    using wide = gpu::form<everybody, 3, 1, 16, 4, 4, 8>;    // 3x3, 128 channels
    using narrow = gpu::form<everybody, 3, 1, 16, 8, 2, 2>;  // 3x3, 16 channels: a decoder's last
    using halves = gpu::form<everybody, 3, 2, 8, 2, 2, 4>;   // 3x3, stride 2
    using phases = gpu::form<everybody, 2, 1, 16, 4, 4, 8>;  // 2x2, one of four
    using points = gpu::form<everybody, 1, 1, 16, 4, 4, 8>;  // 1x1

    template <class T, class F> void launch() const
    {
        auto convolution_mma = convolve_mma<T, F>;
        GPU_LAUNCH(stream, convolution_mma, gpu::grid_of<F>(a), THREADS, F::SHARED_BYTES, a);
    }
};

}  // namespace

// ---------------------------------------------------------------------------------------------
// Which form

uint32_t gpu_convolution_mma_slots(const struct gpu_convolution *arguments)
{
    if (arguments->upsample) return 4 * gpu::tiles_of<launcher::phases>(*arguments);
    return arguments->stride == 2 ? gpu::tiles_of<launcher::halves>(*arguments)
                                  : gpu::tiles_of<launcher::wide>(*arguments);
}

void gpu_launch_convolution_mma(struct gpu_stream *stream, const struct gpu_convolution *arguments)
{
    gpu::launch_convolution(launcher{stream, *arguments});
}
