// convolution_mma.cu - convolutions of 16-bit activations on tensor cores: an implicit GEMM whose
// operand is a tile of the image with its halo.
//
// A block makes a tile of output pixels x BLOCK_K output channels. Input channels come in chunks of
// 32. The part of the input that the tile sees is loaded once a chunk, normalised in place, and
// serves all taps: a tap only shifts the rows that ldmatrix reads. Each pair (chunk, tap) is a
// stage with its own 32 columns of weights. Behind the taps of all chunks come the chunks of the
// 1x1 shortcut, a stage each, which see the shortcut's pixels raw. Loads run two stages ahead in
// rings of three, by cp.async.
//
// Padding is zero after the norm and its SiLU. An upsampling convolution is four 2x2 ones, one for
// each parity of output row and column (gpu_launch_fold_phases). With stride 2, even and odd
// columns of the input lie apart, so that the rows which ldmatrix reads are consecutive again.

#include "kernels/cuda/tiles.h"

namespace
{

constexpr unsigned THREADS = 256;
constexpr unsigned STAGES = 3;

// One of the forms below: window, tile, and how 8 warps share a block.
template <unsigned SIDE_, unsigned STRIDE_, unsigned TILE_SIDE_, unsigned WARPS_M_, unsigned MMA_M_,
          unsigned MMA_N_>
struct form {
    static constexpr unsigned SIDE = SIDE_;            // of the window: 1, 2 or 3
    static constexpr unsigned TAPS = SIDE_ * SIDE_;    //
    static constexpr unsigned STRIDE = STRIDE_;        //
    static constexpr unsigned TILE_SIDE = TILE_SIDE_;  // of the output, pixels: 16 or 8
    static constexpr unsigned PIXELS = TILE_SIDE_ * TILE_SIDE_;
    static constexpr unsigned WARPS_M = WARPS_M_;      // along pixels; the rest along channels
    static constexpr unsigned WARPS_N = 8 / WARPS_M_;  //
    static constexpr unsigned MMA_M = MMA_M_;          // 16-pixel products of a warp
    static constexpr unsigned MMA_N = MMA_N_;          // 8-channel products of a warp
    static constexpr unsigned BLOCK_K = WARPS_N * MMA_N_ * 8;
    static constexpr unsigned HALO = (TILE_SIDE_ - 1) * STRIDE_ + SIDE_;  // side of the input part
    static constexpr unsigned PLACES = HALO * HALO;
    static constexpr unsigned INPUT_BYTES = PLACES * gpu::ROW_BYTES;
    static constexpr unsigned WEIGHT_BYTES = BLOCK_K * gpu::ROW_BYTES;
    static constexpr unsigned SHARED_BYTES = STAGES * (INPUT_BYTES + WEIGHT_BYTES);
    static constexpr bool FOUR_PHASES = SIDE_ == 2;
    static constexpr unsigned CENTRE = SIDE_ == 3 && STRIDE_ == 1 ? 1 : 0;  // tap of the shortcut
    static_assert(PIXELS == WARPS_M_ * MMA_M_ * 16, "warps cover the tile");
    static_assert(MMA_N_ % 2 == 0, "weights are loaded 16 channels at a time");
};

using wide_form = form<3, 1, 16, 4, 4, 8>;    // 3x3, 128 channels
using narrow_form = form<3, 1, 16, 8, 2, 2>;  // 3x3, 16 channels: the last of a decoder
using halves_form = form<3, 2, 8, 2, 2, 4>;   // 3x3, stride 2
using phases_form = form<2, 1, 16, 4, 4, 8>;  // 2x2, one of four
using points_form = form<1, 1, 16, 4, 4, 8>;  // 1x1

// Where the halo's pixel lies among the rows of shared memory.
template <class F> __device__ __forceinline__ uint32_t place_of(uint32_t y, uint32_t x)
{
    if (F::STRIDE == 1) return y * F::HALO + x;
    return y * F::HALO + (x >> 1) + (x & 1) * ((F::HALO + 1) / 2);
}

// silu in the precision that its rounding to T leaves visible.
template <class T> __device__ __forceinline__ float silu_near(float x)
{
    return 0.5f * x * (1.0f + gpu::tanh_approximate(0.5f * x));
}

template <> __device__ __forceinline__ float silu_near<__half>(float x)
{
    return x * gpu::reciprocal_approximate(1.0f + gpu::exp2_approximate(-1.4426950f * x));
}

// What a block works on. T is the element, F the form.
template <class T, class F> struct worker {
    const struct gpu_convolution &a;
    unsigned char *shared;
    uint32_t image, phase, slot;  // slot: of the partials
    uint32_t tile_y, tile_x;      // first output pixel; of its phase
    uint32_t first_k;             // first output channel
    uint32_t chunks;              // of the input; the shortcut's follow
    uint32_t stages;              // of both

    __device__ worker(const struct gpu_convolution &arguments, unsigned char *memory)
        : a(arguments), shared(memory)
    {
        uint32_t blocks_k = (a.k + F::BLOCK_K - 1) / F::BLOCK_K;
        uint32_t tile = blockIdx.x / blocks_k;
        uint32_t across = (columns() + F::TILE_SIDE - 1) / F::TILE_SIDE;
        first_k = blockIdx.x % blocks_k * F::BLOCK_K;
        image = F::FOUR_PHASES ? blockIdx.y / 4 : blockIdx.y;
        phase = F::FOUR_PHASES ? blockIdx.y % 4 : 0;
        slot = phase * (gridDim.x / blocks_k) + tile;
        tile_y = tile / across * F::TILE_SIDE;
        tile_x = tile % across * F::TILE_SIDE;
        chunks = (a.c + GPU_CHUNK - 1) / GPU_CHUNK;
        uint32_t more = a.shortcut == NULL ? 0 : (a.shortcut_c + GPU_CHUNK - 1) / GPU_CHUNK;
        stages = chunks * F::TAPS + more;
    }

    // Output rows and columns that are cut into tiles: those of one phase.
    __device__ uint32_t rows() const
    {
        return F::FOUR_PHASES ? a.h : a.oh;
    }

    __device__ uint32_t columns() const
    {
        return F::FOUR_PHASES ? a.w : a.ow;
    }

    __device__ bool is_shortcut(uint32_t stage) const
    {
        return stage >= chunks * F::TAPS;
    }

    // Chunks of the input and the shortcut counted on; a ring's place is this modulo STAGES.
    __device__ uint32_t chunk_of(uint32_t stage) const
    {
        return is_shortcut(stage) ? stage - chunks * F::TAPS + chunks : stage / F::TAPS;
    }

    __device__ unsigned char *input_of(uint32_t stage) const
    {
        return shared + chunk_of(stage) % STAGES * F::INPUT_BYTES;
    }

    __device__ unsigned char *weight_of(uint32_t stage) const
    {
        return shared + STAGES * F::INPUT_BYTES + stage % STAGES * F::WEIGHT_BYTES;
    }

    // The input's row and column under the halo's; beyond the image for padding.
    __device__ uint32_t input_y(uint32_t y) const
    {
        uint32_t before = F::FOUR_PHASES ? 1 - phase / 2 : F::CENTRE;
        return tile_y * F::STRIDE + y - before;
    }

    __device__ uint32_t input_x(uint32_t x) const
    {
        uint32_t before = F::FOUR_PHASES ? 1 - phase % 2 : F::CENTRE;
        return tile_x * F::STRIDE + x - before;
    }

    // Of eight channels from `channel` on, how many there are.
    __device__ static unsigned channels_from(uint32_t channel, uint32_t c)
    {
        if (channel >= c) return 0;
        return c - channel < 8 ? c - channel : 8;
    }

    __device__ void load_input(uint32_t stage) const
    {
        const T *input = static_cast<const T *>(a.input);
        bool aligned = gpu::rows_are_aligned(input, a.c);
        unsigned char *to = input_of(stage);
        for (unsigned i = threadIdx.x; i < F::PLACES * gpu::ROW_UNITS; i += THREADS) {
            uint32_t y = i / gpu::ROW_UNITS / F::HALO;
            uint32_t x = i / gpu::ROW_UNITS % F::HALO;
            uint32_t unit = i % gpu::ROW_UNITS;
            uint32_t channel = chunk_of(stage) * GPU_CHUNK + unit * 8;
            bool inside = input_y(y) < a.h && input_x(x) < a.w;
            unsigned count = inside ? channels_from(channel, a.c) : 0;
            uint64_t pixel = (static_cast<uint64_t>(image) * a.h + input_y(y)) * a.w + input_x(x);
            const T *from = count == 0 ? input : input + pixel * a.c + channel;
            gpu::fill_unit(to + gpu::unit_offset(place_of<F>(y, x), unit), from, count, aligned);
        }
    }

    // The shortcut has the output's rows and columns; its pixels lie where the centre tap reads.
    __device__ void load_shortcut(uint32_t stage) const
    {
        const T *input = static_cast<const T *>(a.shortcut);
        bool aligned = gpu::rows_are_aligned(input, a.shortcut_c);
        unsigned char *to = input_of(stage);
        for (unsigned i = threadIdx.x; i < F::PIXELS * gpu::ROW_UNITS; i += THREADS) {
            uint32_t y = i / gpu::ROW_UNITS / F::TILE_SIDE;
            uint32_t x = i / gpu::ROW_UNITS % F::TILE_SIDE;
            uint32_t unit = i % gpu::ROW_UNITS;
            uint32_t channel = (chunk_of(stage) - chunks) * GPU_CHUNK + unit * 8;
            bool inside = tile_y + y < a.oh && tile_x + x < a.ow;
            unsigned count = inside ? channels_from(channel, a.shortcut_c) : 0;
            uint64_t pixel = (static_cast<uint64_t>(image) * a.oh + tile_y + y) * a.ow + tile_x + x;
            const T *from = count == 0 ? input : input + pixel * a.shortcut_c + channel;
            uint32_t place = place_of<F>(y * F::STRIDE + F::CENTRE, x * F::STRIDE + F::CENTRE);
            gpu::fill_unit(to + gpu::unit_offset(place, unit), from, count, aligned);
        }
    }

    __device__ void load_weight(uint32_t stage) const
    {
        const T *packed = static_cast<const T *>(is_shortcut(stage) ? a.shortcut_weight : a.weight);
        uint64_t block = is_shortcut(stage)
                             ? chunk_of(stage) - chunks
                             : (phase * F::TAPS + stage % F::TAPS) * chunks + chunk_of(stage);
        const T *from = packed + (block * a.k + first_k) * GPU_CHUNK;
        unsigned char *to = weight_of(stage);
        for (unsigned i = threadIdx.x; i < F::BLOCK_K * gpu::ROW_UNITS; i += THREADS) {
            unsigned row = i / gpu::ROW_UNITS;
            bool inside = first_k + row < a.k;
            gpu::fill_unit(to + gpu::unit_offset(row, i % gpu::ROW_UNITS),
                           inside ? from + i * 8 : packed, inside ? 8 : 0, true);
        }
    }

    __device__ void load_stage(uint32_t stage) const
    {
        load_weight(stage);
        if (is_shortcut(stage)) {
            load_shortcut(stage);
        } else if (stage % F::TAPS == 0) {
            load_input(stage);
        }
    }

    // Two channels of the input; `count` of them are there.
    __device__ uint32_t normalize_pair(uint32_t bits, const struct gpu_factors *factors,
                                       unsigned count) const
    {
        float2 x = gpu::widen_pair<T>(bits);
        if (count > 0) x.x = fmaf(x.x, factors[0].scale, factors[0].shift);
        if (count > 1) x.y = fmaf(x.y, factors[1].scale, factors[1].shift);
        if (a.silu) {
            x.x = silu_near<T>(x.x);
            x.y = silu_near<T>(x.y);
        }
        return gpu::narrow_pair<T>(x.x, x.y);
    }

    // What is padding stays zero: it is zero behind the norm.
    __device__ void normalize(uint32_t stage) const
    {
        const struct gpu_factors *all = a.factors + static_cast<uint64_t>(image) * a.c;
        unsigned char *input = input_of(stage);
        for (unsigned i = threadIdx.x; i < F::PLACES * gpu::ROW_UNITS; i += THREADS) {
            uint32_t y = i / gpu::ROW_UNITS / F::HALO;
            uint32_t x = i / gpu::ROW_UNITS % F::HALO;
            uint32_t unit = i % gpu::ROW_UNITS;
            uint32_t channel = chunk_of(stage) * GPU_CHUNK + unit * 8;
            unsigned count = channels_from(channel, a.c);
            if (input_y(y) >= a.h || input_x(x) >= a.w || count == 0) continue;
            const struct gpu_factors *factors = all + channel;
            auto *at = reinterpret_cast<uint4 *>(input + gpu::unit_offset(place_of<F>(y, x), unit));
            uint4 v = *at;
            auto left = [count](unsigned from) { return count > from ? count - from : 0; };
            v.x = normalize_pair(v.x, factors, left(0));
            v.y = normalize_pair(v.y, factors + 2, left(2));
            v.z = normalize_pair(v.z, factors + 4, left(4));
            v.w = normalize_pair(v.w, factors + 6, left(6));
            *at = v;
        }
    }

    __device__ void multiply_stage(uint32_t stage, float sums[F::MMA_M][F::MMA_N][4]) const
    {
        unsigned lane = threadIdx.x % 32;
        unsigned warp = threadIdx.x / 32;
        uint32_t tap = is_shortcut(stage) ? F::CENTRE * (F::SIDE + 1) : stage % F::TAPS;
        uint32_t input = gpu::shared_address(input_of(stage));
        uint32_t weight = gpu::shared_address(weight_of(stage));
#pragma unroll
        for (unsigned step = 0; step < 2; step++) {
            uint32_t x[F::MMA_M][4];
            uint32_t y[F::MMA_N / 2][4];
#pragma unroll
            for (unsigned i = 0; i < F::MMA_M; i++) {
                uint32_t pixel = (warp % F::WARPS_M * F::MMA_M + i) * 16 + lane % 16;
                uint32_t row = pixel / F::TILE_SIDE * F::STRIDE + tap / F::SIDE;
                uint32_t column = pixel % F::TILE_SIDE * F::STRIDE + tap % F::SIDE;
                uint32_t place = place_of<F>(row, column);
                gpu::load_matrix4(x[i], input + gpu::unit_offset(place, step * 2 + lane / 16));
            }
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
        if (stages > 1) load_stage(1);
        gpu::copy_commit();
        for (uint32_t stage = 0; stage < stages; stage++) {
            gpu::copy_wait<1>();
            __syncthreads();  // this stage is there for all, and all have left the one before
            if (a.factors != NULL && !is_shortcut(stage) && stage % F::TAPS == 0) {
                normalize(stage);
                __syncthreads();
            }
            if (stage + 2 < stages) load_stage(stage + 2);
            gpu::copy_commit();
            multiply_stage(stage, sums);
        }
        gpu::copy_wait<0>();  // only empty groups are left
    }

    // Row (of this thread's 2 MMA_M) and pair of channels to the output's pixel and channel.
    __device__ bool locate(unsigned row, uint32_t *y, uint32_t *x) const
    {
        unsigned lane = threadIdx.x % 32;
        unsigned warp = threadIdx.x / 32;
        uint32_t pixel = (warp % F::WARPS_M * F::MMA_M + row / 2) * 16 + lane / 4 + row % 2 * 8;
        *y = tile_y + pixel / F::TILE_SIDE;
        *x = tile_x + pixel % F::TILE_SIDE;
        return *y < rows() && *x < columns();
    }

    __device__ uint32_t channel_of(unsigned pair) const
    {
        unsigned lane = threadIdx.x % 32;
        unsigned warp = threadIdx.x / 32;
        return first_k + (warp / F::WARPS_M * F::MMA_N + pair) * 8 + lane % 4 * 2;
    }

    __device__ uint64_t output_at(uint32_t y, uint32_t x, uint32_t k) const
    {
        uint64_t row = F::FOUR_PHASES ? 2 * y + phase / 2 : y;
        uint64_t column = F::FOUR_PHASES ? 2 * x + phase % 2 : x;
        return ((image * static_cast<uint64_t>(a.oh) + row) * a.ow + column) * a.k + k;
    }

    // Adds what is added to a sum, stores it, and leaves in its place what has been stored.
    __device__ void store_one(uint64_t at, float bias, float *sum) const
    {
        float value = *sum + bias;
        if (a.residual != NULL) value += gpu::widen(static_cast<const T *>(a.residual)[at]);
        T narrow = gpu::narrow<T>(value);
        static_cast<T *>(a.output)[at] = narrow;
        *sum = gpu::widen(narrow);
    }

    __device__ void store_two(uint64_t at, const float bias[2], float *sums) const
    {
        float2 value = make_float2(sums[0] + bias[0], sums[1] + bias[1]);
        if (a.residual != NULL) {
            const T *residual = static_cast<const T *>(a.residual) + at;
            float2 more = gpu::widen_pair<T>(*reinterpret_cast<const uint32_t *>(residual));
            value.x += more.x;
            value.y += more.y;
        }
        uint32_t narrow = gpu::narrow_pair<T>(value.x, value.y);
        *reinterpret_cast<uint32_t *>(static_cast<T *>(a.output) + at) = narrow;
        value = gpu::widen_pair<T>(narrow);
        sums[0] = value.x;
        sums[1] = value.y;
    }

    __device__ float bias_of(uint32_t k) const
    {
        float bias = a.bias != NULL && k < a.k ? a.bias[k] : 0.0f;
        if (a.shortcut_bias != NULL && k < a.k) bias += a.shortcut_bias[k];
        return bias;
    }

    // Pairs of channels leave together where every pair is aligned.
    __device__ void store(float sums[F::MMA_M][F::MMA_N][4]) const
    {
        bool in_pairs = a.k % 2 == 0 && (reinterpret_cast<uintptr_t>(a.output) & 3) == 0 &&
                        (reinterpret_cast<uintptr_t>(a.residual) & 3) == 0;
#pragma unroll
        for (unsigned j = 0; j < F::MMA_N; j++) {
            uint32_t k = channel_of(j);
            const float bias[2] = {bias_of(k), bias_of(k + 1)};
#pragma unroll
            for (unsigned i = 0; i < 2 * F::MMA_M; i++) {
                uint32_t y = 0;
                uint32_t x = 0;
                float *two = sums[i / 2][j] + i % 2 * 2;
                if (!locate(i, &y, &x) || k >= a.k) continue;
                if (in_pairs) {
                    store_two(output_at(y, x, k), bias, two);
                    continue;
                }
                store_one(output_at(y, x, k), bias[0], two);
                if (k + 1 < a.k) store_one(output_at(y, x, k + 1), bias[1], two + 1);
            }
        }
    }

    // Sums over the tile's pixels of one channel of each pair: first over this thread's rows, then
    // over the lanes of the same channels, then over the warps. `mean` is NULL in the first pass.
    __device__ void total(const float sums[F::MMA_M][F::MMA_N][4], const float *mean,
                          float (*totals)[F::BLOCK_K]) const
    {
        unsigned lane = threadIdx.x % 32;
        unsigned warp = threadIdx.x / 32;
#pragma unroll
        for (unsigned j = 0; j < 2 * F::MMA_N; j++) {
            unsigned column = (warp / F::WARPS_M * F::MMA_N + j / 2) * 8 + lane % 4 * 2 + j % 2;
            float sum = 0;
#pragma unroll
            for (unsigned i = 0; i < 2 * F::MMA_M; i++) {
                uint32_t y = 0;
                uint32_t x = 0;
                if (!locate(i, &y, &x)) continue;
                float value = sums[i / 2][j / 2][i % 2 * 2 + j % 2];
                float away = mean == NULL ? 0.0f : value - mean[column];
                sum = mean == NULL ? sum + value : fmaf(away, away, sum);
            }
            for (int step = 16; step >= 4; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
            if (lane < 4) totals[warp % F::WARPS_M][column] = sum;
        }
    }

    // The block's part of the statistics, in shared memory that the stages have left.
    __device__ void store_partials(const float sums[F::MMA_M][F::MMA_N][4]) const
    {
        auto *totals = reinterpret_cast<float(*)[F::BLOCK_K]>(shared);
        float *means = reinterpret_cast<float *>(shared) + F::WARPS_M * F::BLOCK_K;
        uint32_t high = rows() - tile_y < F::TILE_SIDE ? rows() - tile_y : F::TILE_SIDE;
        uint32_t wide = columns() - tile_x < F::TILE_SIDE ? columns() - tile_x : F::TILE_SIDE;
        float count = static_cast<float>(high * wide);
        uint32_t k = first_k + threadIdx.x;
        bool is_mine = threadIdx.x < F::BLOCK_K;
        __syncthreads();
        total(sums, NULL, totals);
        __syncthreads();
        float mean = 0;
        for (unsigned i = 0; is_mine && i < F::WARPS_M; i++) mean += totals[i][threadIdx.x];
        mean /= count;
        if (is_mine) means[threadIdx.x] = mean;
        __syncthreads();
        total(sums, means, totals);
        __syncthreads();
        if (!is_mine || k >= a.k) return;
        struct gpu_partial partial = {count, mean, 0};
        for (unsigned i = 0; i < F::WARPS_M; i++) partial.squares += totals[i][threadIdx.x];
        uint32_t slots = gridDim.x / ((a.k + F::BLOCK_K - 1) / F::BLOCK_K);
        uint64_t line = static_cast<uint64_t>(image) * slots * (F::FOUR_PHASES ? 4 : 1) + slot;
        a.partials[line * a.k + k] = partial;
    }
};

template <class T, class F>
GPU_KERNEL void __launch_bounds__(THREADS) convolve_mma(const struct gpu_convolution a)
{
    GPU_DYNAMIC_SHARED(shared, unsigned char);
    worker<T, F> worker(a, shared);
    float sums[F::MMA_M][F::MMA_N][4];
#pragma unroll
    for (unsigned i = 0; i < F::MMA_M; i++) {
#pragma unroll
        for (unsigned j = 0; j < F::MMA_N; j++) {
#pragma unroll
            for (unsigned q = 0; q < 4; q++) sums[i][j][q] = 0;
        }
    }
    worker.add_up(sums);
    worker.store(sums);
    if (a.partials != NULL) worker.store_partials(sums);
}

template <class F> uint32_t tiles_of(const struct gpu_convolution &a)
{
    uint32_t h = F::FOUR_PHASES ? a.h : a.oh;
    uint32_t w = F::FOUR_PHASES ? a.w : a.ow;
    return (h + F::TILE_SIDE - 1) / F::TILE_SIDE * ((w + F::TILE_SIDE - 1) / F::TILE_SIDE);
}

// Channels of the output come first in the grid, so that blocks that run together share their
// input.
template <class F> void launch_form(struct gpu_stream *stream, const struct gpu_convolution &a)
{
    uint32_t blocks_k = (a.k + F::BLOCK_K - 1) / F::BLOCK_K;
    dim3 grid(tiles_of<F>(a) * blocks_k, a.n * (F::FOUR_PHASES ? 4 : 1));
    if (a.storage == DTYPE_F16) {
        auto kernel = convolve_mma<__half, F>;
        GPU_LAUNCH(stream, kernel, grid, THREADS, F::SHARED_BYTES, a);
    } else {
        auto kernel = convolve_mma<__nv_bfloat16, F>;
        GPU_LAUNCH(stream, kernel, grid, THREADS, F::SHARED_BYTES, a);
    }
}

// ---------------------------------------------------------------------------------------------
// Phases

// Rows of a 3x3 window that fall on row `to` of the 2x2 window of a phase: the first or the last
// two, and the other one.
__device__ bool falls_on(uint32_t phase, uint32_t from, uint32_t to)
{
    uint32_t row = phase == 0 ? (from == 0 ? 0 : 1) : (from == 2 ? 1 : 0);
    return row == to;
}

// A thread for each element of the result, [phase][tap of 4][chunk][k][32]; sums in float32.
template <class T> GPU_KERNEL void fold_phases(const struct gpu_phases a)
{
    uint64_t plane = static_cast<uint64_t>((a.c + GPU_CHUNK - 1) / GPU_CHUNK) * a.k * GPU_CHUNK;
    for (uint64_t i = gpu::thread_index(); i < 16 * plane; i += gpu::thread_count()) {
        uint32_t phase = static_cast<uint32_t>(i / plane / 4);
        uint32_t tap = static_cast<uint32_t>(i / plane % 4);
        float sum = 0;
        for (uint32_t from = 0; from < 9; from++) {
            if (!falls_on(phase / 2, from / 3, tap / 2)) continue;
            if (!falls_on(phase % 2, from % 3, tap % 2)) continue;
            sum += gpu::widen(static_cast<const T *>(a.weight)[from * plane + i % plane]);
        }
        static_cast<T *>(a.phases)[i] = gpu::narrow<T>(sum);
    }
}

}  // namespace

// ---------------------------------------------------------------------------------------------
// Which form

// K up to which the narrow form wastes less.
static constexpr uint32_t NARROW_MAX = narrow_form::BLOCK_K;

uint32_t gpu_convolution_mma_slots(const struct gpu_convolution *arguments)
{
    if (arguments->upsample) return 4 * tiles_of<phases_form>(*arguments);
    return arguments->stride == 2 ? tiles_of<halves_form>(*arguments)
                                  : tiles_of<wide_form>(*arguments);
}

void gpu_launch_convolution_mma(struct gpu_stream *stream, const struct gpu_convolution *arguments)
{
    if (arguments->upsample) {
        launch_form<phases_form>(stream, *arguments);
    } else if (arguments->stride == 2) {
        launch_form<halves_form>(stream, *arguments);
    } else if (arguments->r == 1) {
        launch_form<points_form>(stream, *arguments);
    } else if (arguments->k <= NARROW_MAX) {
        launch_form<narrow_form>(stream, *arguments);
    } else {
        launch_form<wide_form>(stream, *arguments);
    }
}

void gpu_launch_fold_phases(struct gpu_stream *stream, const struct gpu_phases *arguments)
{
    uint64_t chunks = (arguments->c + GPU_CHUNK - 1) / GPU_CHUNK;
    uint64_t count = 16 * chunks * arguments->k * GPU_CHUNK;
    if (arguments->storage == DTYPE_F16) {
        GPU_LAUNCH(stream, fold_phases<__half>, gpu::blocks_for(count, 256), 256, 0, *arguments);
    } else {
        GPU_LAUNCH(stream, fold_phases<__nv_bfloat16>, gpu::blocks_for(count, 256), 256, 0,
                   *arguments);
    }
}
