// convolution_wgmma.cu - the same convolutions as convolution_mma.cu for compute capability 9.0,
// whose tensor cores are only filled by products that a warpgroup starts and waits for later.
//
// Two warpgroups hold the sums and do nothing but multiply. Of the third, three warps bring input,
// a chunk ahead, and normalise it; one lane of the fourth brings weights, a stage at a time, by
// bulk copies, for they are packed in the order in which wgmma reads them. Nobody waits for the
// whole block: each place of the two rings has a barrier that says it is full and one that says it
// is empty. The input's stand at
//
//     full    a chunk is loaded and normalised: each loader arrives
//     empty   it is in the registers of all computers for its last tap: a lane of each warp arrives
//
// and the weights' likewise, full when their bytes are there, empty when the products that read
// them are waited for. Pixels are operands in registers, loaded by ldmatrix as a tap shifts them,
// weights are read from shared memory. A group of products, one stage, stays under way while the
// operands of the next are loaded.
//
// Rows of weights beyond the last output channel are zeros that are written once: bulk copies leave
// them alone, and their columns of the sums are stored nowhere.

#include "kernels/cuda/convolution_tile.h"
#include "kernels/cuda/gpu_hopper.h"

namespace
{

constexpr unsigned THREADS = 384;
constexpr unsigned LOADER_REGISTERS = 56;
constexpr unsigned COMPUTER_REGISTERS = 224;
static_assert(128 * LOADER_REGISTERS + 256 * COMPUTER_REGISTERS <= 65536, "of a multiprocessor");

struct roles {
    using barrier = gpu::part_barrier<1, 256>;
    static constexpr unsigned COMPUTERS = 256;
    static constexpr unsigned LOADERS = 96;
    static constexpr unsigned INPUTS = 3;
    static constexpr unsigned WEIGHTS = 4;

    __device__ static unsigned loader()
    {
        return threadIdx.x - COMPUTERS;
    }
};

// The thread that brings weights.
constexpr unsigned CARRIER = roles::COMPUTERS + roles::LOADERS;

struct counters {
    uint64_t input_full[roles::INPUTS], input_empty[roles::INPUTS];
    uint64_t weight_full[roles::WEIGHTS], weight_empty[roles::WEIGHTS];
};

template <class T, class F> struct worker : gpu::convolution_tile<T, F> {
    struct counters &counters;
    uint32_t all_chunks;  // of the input and the shortcut

    __device__ worker(const struct gpu_convolution &arguments, unsigned char *memory,
                      struct counters &shared_counters)
        : gpu::convolution_tile<T, F>(arguments, memory), counters(shared_counters)
    {
        all_chunks = this->chunks + this->stages - this->chunks * F::TAPS;
    }

    // Barriers, and the rows of weights that no copy writes. All threads.
    __device__ void prepare() const
    {
        if (threadIdx.x == 0) {
            for (unsigned i = 0; i < F::INPUTS; i++) {
                gpu::counter_create(&counters.input_full[i], F::LOADERS);
                gpu::counter_create(&counters.input_empty[i], F::COMPUTERS / 32);
            }
            for (unsigned i = 0; i < F::WEIGHTS; i++) {
                gpu::counter_create(&counters.weight_full[i], 1);
                gpu::counter_create(&counters.weight_empty[i], F::COMPUTERS / 32);
            }
        }
        uint32_t begin = this->channels_here() * gpu::ROW_UNITS;
        uint32_t units = F::BLOCK_K * gpu::ROW_UNITS - begin;
        for (unsigned i = threadIdx.x; i < units * F::WEIGHTS; i += THREADS) {
            auto *to = reinterpret_cast<uint4 *>(this->weight_of(i / units));
            to[begin + i % units] = make_uint4(0, 0, 0, 0);
        }
        gpu::fence_async();
        gpu::block_barrier::wait();
    }

    // ---- loaders

    __device__ void load_chunk(uint32_t chunk) const
    {
        if (chunk < all_chunks) {
            unsigned place = chunk % F::INPUTS;
            gpu::counter_wait(&counters.input_empty[place], (chunk / F::INPUTS + 1) % 2);
            if (chunk < this->chunks) {
                this->load_input(chunk * F::TAPS);
            } else {
                this->load_shortcut(this->chunks * (F::TAPS - 1) + chunk);
            }
        }
        gpu::copy_commit();
    }

    __device__ void bring_input() const
    {
        load_chunk(0);
        for (uint32_t chunk = 0; chunk < all_chunks; chunk++) {
            load_chunk(chunk + 1);
            gpu::copy_wait<1>();
            bool is_normalized = this->a.factors != NULL && chunk < this->chunks;
            if (is_normalized) this->normalize(chunk * F::TAPS);
            gpu::counter_arrive(&counters.input_full[chunk % F::INPUTS]);
        }
        gpu::copy_wait<0>();  // only empty groups are left
    }

    __device__ void bring_weights() const
    {
        uint32_t bytes = this->channels_here() * gpu::ROW_BYTES;
        for (uint32_t stage = 0; stage < this->stages; stage++) {
            unsigned place = stage % F::WEIGHTS;
            gpu::counter_wait(&counters.weight_empty[place], (stage / F::WEIGHTS + 1) % 2);
            gpu::counter_arrive_expect(&counters.weight_full[place], bytes);
            gpu::copy_bulk(this->weight_of(stage), this->weights_from(stage), bytes,
                           &counters.weight_full[place]);
        }
    }

    // ---- computers

    // This warp needs the place no more.
    __device__ void leave(uint64_t *empty) const
    {
        __syncwarp();
        if (threadIdx.x % 32 == 0) gpu::counter_arrive(empty);
    }

    // Operands of a stage; behind the last one of a chunk its place is free.
    __device__ void load_operands(uint32_t stage, uint32_t x[2][F::MMA_M][4]) const
    {
        uint32_t chunk = this->chunk_of(stage);
        bool is_first = this->is_shortcut(stage) || stage % F::TAPS == 0;
        bool is_last = this->is_shortcut(stage) || stage % F::TAPS == F::TAPS - 1;
        if (is_first) {
            gpu::counter_wait(&counters.input_full[chunk % F::INPUTS], chunk / F::INPUTS % 2);
        }
        this->load_pixels(stage, 0, x[0]);
        this->load_pixels(stage, 2, x[1]);
        if (is_last) leave(&counters.input_empty[chunk % F::INPUTS]);
    }

    // Starts the products of a stage and waits for those of the one before.
    __device__ void multiply_stage(uint32_t stage, uint32_t x[2][F::MMA_M][4],
                                   float sums[F::MMA_M][F::MMA_N][4]) const
    {
        unsigned place = stage % F::WEIGHTS;
        uint32_t row = threadIdx.x / 32 / F::WARPS_M * F::MMA_N * 8;
        uint32_t weight = gpu::shared_address(this->weight_of(stage)) + row * gpu::ROW_BYTES;
        load_operands(stage, x);
        gpu::counter_wait(&counters.weight_full[place], stage / F::WEIGHTS % 2);
        gpu::group_fence();
#pragma unroll
        for (unsigned step = 0; step < 2; step++) {
            uint64_t columns = gpu::columns_at(weight + step * 32);
#pragma unroll
            for (unsigned i = 0; i < F::MMA_M; i++) {
                gpu::group_multiply<T, F::MMA_N * 8>(sums[i][0], x[step][i], columns);
            }
        }
        gpu::group_commit();
        gpu::group_wait<1>();
        if (stage > 0) leave(&counters.weight_empty[(stage - 1) % F::WEIGHTS]);
    }

    __device__ void add_up(float sums[F::MMA_M][F::MMA_N][4]) const
    {
        // Operands of even stages, and of odd ones: those of one stage are read while the next
        // one's are loaded.
        uint32_t even[2][F::MMA_M][4];
        uint32_t odd[2][F::MMA_M][4];
        gpu::hold_registers<F::MMA_M * F::MMA_N * 4>(sums[0][0]);
        uint32_t stage = 0;
        for (; stage + 1 < this->stages; stage += 2) {
            multiply_stage(stage, even, sums);
            multiply_stage(stage + 1, odd, sums);
        }
        if (stage < this->stages) multiply_stage(stage, even, sums);
        gpu::group_wait<0>();
        gpu::hold_registers<F::MMA_M * F::MMA_N * 4>(sums[0][0]);
    }
};

template <class T, class F>
GPU_KERNEL void __launch_bounds__(THREADS, 1) convolve_wgmma(const struct gpu_convolution a)
{
    GPU_SWIZZLED_SHARED(shared, unsigned char);
    GPU_SHARED(counters, struct counters);
    worker<T, F> worker(a, shared, counters);
    worker.prepare();
    if (threadIdx.x >= F::COMPUTERS) {
        gpu::registers_give<LOADER_REGISTERS>();
        if (threadIdx.x < CARRIER) worker.bring_input();
        if (threadIdx.x == CARRIER) worker.bring_weights();
    } else {
        gpu::registers_take<COMPUTER_REGISTERS>();
        float sums[F::MMA_M][F::MMA_N][4];
        gpu::clear_sums<F>(sums);
        worker.add_up(sums);
        worker.store(sums);
        if (a.partials != NULL) worker.store_partials(sums);
    }
}

struct launcher {
    struct gpu_stream *stream;
    const struct gpu_convolution &a;

    using wide = gpu::form<roles, 3, 1, 16, 8, 2, 16>;    // 3x3, 128 channels
    using narrow = gpu::form<roles, 3, 1, 16, 8, 2, 2>;   // 3x3, 16 channels: a decoder's last
    using halves = gpu::form<roles, 3, 2, 8, 4, 1, 8>;    // 3x3, stride 2
    using phases = gpu::form<roles, 2, 1, 16, 8, 2, 16>;  // 2x2, one of four
    using points = gpu::form<roles, 1, 1, 16, 8, 2, 16>;  // 1x1

    template <class T, class F> void launch() const
    {
        auto convolution_wgmma = convolve_wgmma<T, F>;
        GPU_LAUNCH(stream, convolution_wgmma, gpu::grid_of<F>(a), THREADS, F::SHARED_BYTES, a);
    }
};

}  // namespace

void gpu_launch_convolution_wgmma(struct gpu_stream *stream,
                                  const struct gpu_convolution *arguments)
{
    gpu::launch_convolution(launcher{stream, *arguments});
}
