// convolution_tile.h - what both convolutions on tensor cores do alike: which pixels and channels a
// block has, its part of the input with norm and SiLU, and what happens to its sums.
//
// A block makes a tile of output pixels x BLOCK_K output channels. Input channels come in chunks of
// 32. The part of the input that the tile sees, its halo, is loaded once a chunk, normalised in
// place, and serves all taps: a tap only shifts the rows that ldmatrix reads. Each pair (chunk,
// tap) is a stage with its own 32 columns of weights. Behind the taps of all chunks come the chunks
// of the 1x1 shortcut, a stage each, which see the shortcut's pixels raw.
//
// Padding is zero after the norm and its SiLU. An upsampling convolution is four 2x2 ones, one for
// each parity of output row and column (launch.h). With stride 2, even and odd columns of the input
// lie apart, so that the rows which ldmatrix reads are consecutive again.
//
// Sums lie in registers as mma and wgmma leave them: of 16 pixels x 8 channels, lane l has pixels
// l / 4 and l / 4 + 8, channels 2 (l % 4) and the next.

#ifndef KERNELS_CUDA_CONVOLUTION_TILE_H
#define KERNELS_CUDA_CONVOLUTION_TILE_H

#include "kernels/cuda/tiles.h"

namespace gpu
{

// A form of the window and the tile. R says which threads do what:
//
//     COMPUTERS  threads 0 .. COMPUTERS - 1 hold sums, eight warps
//     barrier    where the computers wait for each other
//     LOADERS    threads that load input, and loader() is this thread's number among them
//     INPUTS     places in the ring of input chunks
//     WEIGHTS    places in the ring of weights
template <class R, unsigned SIDE_, unsigned STRIDE_, unsigned TILE_SIDE_, unsigned WARPS_M_,
          unsigned MMA_M_, unsigned MMA_N_>
struct form : R {
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
    static constexpr unsigned INPUT_BYTES = PLACES * ROW_BYTES;
    static constexpr unsigned WEIGHT_BYTES = BLOCK_K * ROW_BYTES;
    static constexpr unsigned SHARED_BYTES = R::INPUTS * INPUT_BYTES + R::WEIGHTS * WEIGHT_BYTES;
    static constexpr bool FOUR_PHASES = SIDE_ == 2;
    static constexpr unsigned CENTRE = SIDE_ == 3 && STRIDE_ == 1 ? 1 : 0;  // tap of the shortcut
    static_assert(R::COMPUTERS == 256, "eight warps share a block");
    static_assert(PIXELS == WARPS_M_ * MMA_M_ * 16, "warps cover the tile");
    static_assert(MMA_N_ % 2 == 0, "weights are loaded 16 channels at a time");
};

// Where the halo's pixel lies among the rows of shared memory.
template <class F> __device__ __forceinline__ uint32_t place_of(uint32_t y, uint32_t x)
{
    if (F::STRIDE == 1) return y * F::HALO + x;
    return y * F::HALO + (x >> 1) + (x & 1) * ((F::HALO + 1) / 2);
}

// silu in the precision that its rounding to T leaves visible.
template <class T> __device__ __forceinline__ float silu_near(float x)
{
    return 0.5f * x * (1.0f + tanh_approximate(0.5f * x));
}

template <> __device__ __forceinline__ float silu_near<__half>(float x)
{
    return x * reciprocal_approximate(1.0f + exp2_approximate(-1.4426950f * x));
}

// A block's part of a convolution. T is the element, F the form.
template <class T, class F> struct convolution_tile {
    const struct gpu_convolution &a;
    unsigned char *shared;
    uint32_t image, phase, slot;  // slot: of the partials
    uint32_t tile_y, tile_x;      // first output pixel; of its phase
    uint32_t first_k;             // first output channel
    uint32_t chunks;              // of the input; the shortcut's follow
    uint32_t stages;              // of both

    __device__ convolution_tile(const struct gpu_convolution &arguments, unsigned char *memory)
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

    // Chunks of the input and the shortcut counted on; a ring's place is this modulo its length.
    __device__ uint32_t chunk_of(uint32_t stage) const
    {
        return is_shortcut(stage) ? stage - chunks * F::TAPS + chunks : stage / F::TAPS;
    }

    __device__ unsigned char *input_of(uint32_t stage) const
    {
        return shared + F::WEIGHTS * F::WEIGHT_BYTES + chunk_of(stage) % F::INPUTS * F::INPUT_BYTES;
    }

    __device__ unsigned char *weight_of(uint32_t stage) const
    {
        return shared + stage % F::WEIGHTS * F::WEIGHT_BYTES;
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
        bool aligned = rows_are_aligned(input, a.c);
        unsigned char *to = input_of(stage);
        for (unsigned i = F::loader(); i < F::PLACES * ROW_UNITS; i += F::LOADERS) {
            uint32_t y = i / ROW_UNITS / F::HALO;
            uint32_t x = i / ROW_UNITS % F::HALO;
            uint32_t unit = i % ROW_UNITS;
            uint32_t channel = chunk_of(stage) * GPU_CHUNK + unit * 8;
            bool inside = input_y(y) < a.h && input_x(x) < a.w;
            unsigned count = inside ? channels_from(channel, a.c) : 0;
            uint64_t pixel = (static_cast<uint64_t>(image) * a.h + input_y(y)) * a.w + input_x(x);
            const T *from = count == 0 ? input : input + pixel * a.c + channel;
            fill_unit(to + unit_offset(place_of<F>(y, x), unit), from, count, aligned);
        }
    }

    // The shortcut has the output's rows and columns; its pixels lie where the centre tap reads.
    __device__ void load_shortcut(uint32_t stage) const
    {
        const T *input = static_cast<const T *>(a.shortcut);
        bool aligned = rows_are_aligned(input, a.shortcut_c);
        unsigned char *to = input_of(stage);
        for (unsigned i = F::loader(); i < F::PIXELS * ROW_UNITS; i += F::LOADERS) {
            uint32_t y = i / ROW_UNITS / F::TILE_SIDE;
            uint32_t x = i / ROW_UNITS % F::TILE_SIDE;
            uint32_t unit = i % ROW_UNITS;
            uint32_t channel = (chunk_of(stage) - chunks) * GPU_CHUNK + unit * 8;
            bool inside = tile_y + y < a.oh && tile_x + x < a.ow;
            unsigned count = inside ? channels_from(channel, a.shortcut_c) : 0;
            uint64_t pixel = (static_cast<uint64_t>(image) * a.oh + tile_y + y) * a.ow + tile_x + x;
            const T *from = count == 0 ? input : input + pixel * a.shortcut_c + channel;
            uint32_t place = place_of<F>(y * F::STRIDE + F::CENTRE, x * F::STRIDE + F::CENTRE);
            fill_unit(to + unit_offset(place, unit), from, count, aligned);
        }
    }

    // Where the packed weights of a stage begin, for this block's channels.
    __device__ const T *weights_from(uint32_t stage) const
    {
        const T *packed = static_cast<const T *>(is_shortcut(stage) ? a.shortcut_weight : a.weight);
        uint64_t block = is_shortcut(stage)
                             ? chunk_of(stage) - chunks
                             : (phase * F::TAPS + stage % F::TAPS) * chunks + chunk_of(stage);
        return packed + (block * a.k + first_k) * GPU_CHUNK;
    }

    // Of this block's channels, how many there are.
    __device__ uint32_t channels_here() const
    {
        return a.k - first_k < F::BLOCK_K ? a.k - first_k : F::BLOCK_K;
    }

    // Two channels of the input; `count` of them are there.
    __device__ uint32_t normalize_pair(uint32_t bits, const struct gpu_factors *factors,
                                       unsigned count) const
    {
        float2 x = widen_pair<T>(bits);
        if (count > 0) x.x = fmaf(x.x, factors[0].scale, factors[0].shift);
        if (count > 1) x.y = fmaf(x.y, factors[1].scale, factors[1].shift);
        if (a.silu) {
            x.x = silu_near<T>(x.x);
            x.y = silu_near<T>(x.y);
        }
        return narrow_pair<T>(x.x, x.y);
    }

    // Every loader does what it has loaded itself. What is padding stays zero: it is zero behind
    // the norm.
    __device__ void normalize(uint32_t stage) const
    {
        const struct gpu_factors *all = a.factors + static_cast<uint64_t>(image) * a.c;
        unsigned char *input = input_of(stage);
        for (unsigned i = F::loader(); i < F::PLACES * ROW_UNITS; i += F::LOADERS) {
            uint32_t y = i / ROW_UNITS / F::HALO;
            uint32_t x = i / ROW_UNITS % F::HALO;
            uint32_t unit = i % ROW_UNITS;
            uint32_t channel = chunk_of(stage) * GPU_CHUNK + unit * 8;
            unsigned count = channels_from(channel, a.c);
            if (input_y(y) >= a.h || input_x(x) >= a.w || count == 0) continue;
            const struct gpu_factors *factors = all + channel;
            auto *at = reinterpret_cast<uint4 *>(input + unit_offset(place_of<F>(y, x), unit));
            uint4 v = *at;
            auto left = [count](unsigned from) { return count > from ? count - from : 0; };
            v.x = normalize_pair(v.x, factors, left(0));
            v.y = normalize_pair(v.y, factors + 2, left(2));
            v.z = normalize_pair(v.z, factors + 4, left(4));
            v.w = normalize_pair(v.w, factors + 6, left(6));
            *at = v;
        }
    }

    // The operands that this warp's products of half a stage have of the pixels: 16 channels from
    // `unit` on.
    __device__ void load_pixels(uint32_t stage, uint32_t unit, uint32_t x[F::MMA_M][4]) const
    {
        unsigned lane = threadIdx.x % 32;
        unsigned warp = threadIdx.x / 32;
        uint32_t tap = is_shortcut(stage) ? F::CENTRE * (F::SIDE + 1) : stage % F::TAPS;
        uint32_t input = shared_address(input_of(stage));
#pragma unroll
        for (unsigned i = 0; i < F::MMA_M; i++) {
            uint32_t pixel = (warp % F::WARPS_M * F::MMA_M + i) * 16 + lane % 16;
            uint32_t row = pixel / F::TILE_SIDE * F::STRIDE + tap / F::SIDE;
            uint32_t column = pixel % F::TILE_SIDE * F::STRIDE + tap % F::SIDE;
            uint32_t place = place_of<F>(row, column);
            load_matrix4(x[i], input + unit_offset(place, unit + lane / 16));
        }
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
        if (a.residual != NULL) value += widen(static_cast<const T *>(a.residual)[at]);
        T stored = narrow<T>(value);
        static_cast<T *>(a.output)[at] = stored;
        *sum = widen(stored);
    }

    __device__ void store_two(uint64_t at, const float bias[2], float *sums) const
    {
        float2 value = make_float2(sums[0] + bias[0], sums[1] + bias[1]);
        if (a.residual != NULL) {
            const T *residual = static_cast<const T *>(a.residual) + at;
            float2 more = widen_pair<T>(*reinterpret_cast<const uint32_t *>(residual));
            value.x += more.x;
            value.y += more.y;
        }
        uint32_t stored = narrow_pair<T>(value.x, value.y);
        *reinterpret_cast<uint32_t *>(static_cast<T *>(a.output) + at) = stored;
        value = widen_pair<T>(stored);
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
        F::barrier::wait();
        total(sums, NULL, totals);
        F::barrier::wait();
        float mean = 0;
        for (unsigned i = 0; is_mine && i < F::WARPS_M; i++) mean += totals[i][threadIdx.x];
        mean /= count;
        if (is_mine) means[threadIdx.x] = mean;
        F::barrier::wait();
        total(sums, means, totals);
        F::barrier::wait();
        if (!is_mine || k >= a.k) return;
        struct gpu_partial partial = {count, mean, 0};
        for (unsigned i = 0; i < F::WARPS_M; i++) partial.squares += totals[i][threadIdx.x];
        uint32_t slots = gridDim.x / ((a.k + F::BLOCK_K - 1) / F::BLOCK_K);
        uint64_t line = static_cast<uint64_t>(image) * slots * (F::FOUR_PHASES ? 4 : 1) + slot;
        a.partials[line * a.k + k] = partial;
    }
};

// Sums of nothing.
template <class F> __device__ __forceinline__ void clear_sums(float sums[F::MMA_M][F::MMA_N][4])
{
#pragma unroll
    for (unsigned i = 0; i < F::MMA_M; i++) {
#pragma unroll
        for (unsigned j = 0; j < F::MMA_N; j++) {
#pragma unroll
            for (unsigned q = 0; q < 4; q++) sums[i][j][q] = 0;
        }
    }
}

template <class F> uint32_t tiles_of(const struct gpu_convolution &a)
{
    uint32_t h = F::FOUR_PHASES ? a.h : a.oh;
    uint32_t w = F::FOUR_PHASES ? a.w : a.ow;
    return (h + F::TILE_SIDE - 1) / F::TILE_SIDE * ((w + F::TILE_SIDE - 1) / F::TILE_SIDE);
}

// Channels of the output come first, so that blocks that run together share their input.
template <class F> dim3 grid_of(const struct gpu_convolution &a)
{
    uint32_t blocks_k = (a.k + F::BLOCK_K - 1) / F::BLOCK_K;
    return dim3(tiles_of<F>(a) * blocks_k, a.n * (F::FOUR_PHASES ? 4 : 1));
}

template <class F, class L> void launch_form(const L &launcher)
{
    if (launcher.a.storage == DTYPE_F16) {
        launcher.template launch<__half, F>();
    } else {
        launcher.template launch<__nv_bfloat16, F>();
    }
}

// Calls launch<element, form> of a launcher, which has the convolution as `a`, with that one of its
// forms which the convolution takes. The narrow one is for k up to which it wastes less.
template <class L> void launch_convolution(const L &launcher)
{
    if (launcher.a.upsample) {
        launch_form<typename L::phases>(launcher);
    } else if (launcher.a.stride == 2) {
        launch_form<typename L::halves>(launcher);
    } else if (launcher.a.r == 1) {
        launch_form<typename L::points>(launcher);
    } else if (launcher.a.k <= L::narrow::BLOCK_K) {
        launch_form<typename L::narrow>(launcher);
    } else {
        launch_form<typename L::wide>(launcher);
    }
}

}  // namespace gpu

#endif  // KERNELS_CUDA_CONVOLUTION_TILE_H
