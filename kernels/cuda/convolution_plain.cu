// convolution_plain.cu - any convolution of kernels.h in any type, on ordinary cores.
//
// The reference path of float32, and of whatever the tensor cores' kernel does not take. A block
// makes 8x8 output pixels of 32 channels. Input channels come in chunks of 8: the part of the input
// that the tile sees goes to shared memory, normalised, with zeros where the convolution pads, and
// the weights beside it; then every thread adds up 4 pixels x 4 channels. The shortcut's channels
// are further chunks with one tap. An upsampling convolution is four 2x2 ones, one for each parity
// of output row and column (launch.h), and a tile is of one of them.

#include "kernels/cuda/elements.h"

namespace
{

constexpr unsigned SIDE = 8;                    // of the tile, pixels
constexpr unsigned PIXELS = SIDE * SIDE;        // of the tile
constexpr unsigned CHANNELS = 32;               // of the tile
constexpr unsigned CHUNK = 8;                   // input channels at a time
constexpr unsigned THREADS = 128;               //
constexpr unsigned SOURCE_SIDE = 2 * SIDE + 1;  // most input rows that a tile sees: stride 2
constexpr unsigned TAPS = 9;                    // at most

struct tile {
    uint32_t y, x;         // first output pixel; of its phase
    uint32_t k;            // first output channel
    uint32_t image;        //
    uint32_t phase;        // 0 unless it upsamples
    uint32_t slot;         // of the partials
    uint32_t high, wide;   // output rows and columns that are cut into tiles: those of one phase
    uint32_t side;         // of the window
    uint32_t above, left;  // rows and columns of the window in front of the pixel
};

// Shared memory of a block.
struct stage {
    float input[SOURCE_SIDE * SOURCE_SIDE][CHUNK];
    float weight[TAPS][CHUNK][CHANNELS];
};

__device__ struct tile tile_of(const struct gpu_convolution &a)
{
    struct tile tile;
    tile.high = a.upsample ? a.h : a.oh;
    tile.wide = a.upsample ? a.w : a.ow;
    uint32_t across = (tile.wide + SIDE - 1) / SIDE;
    uint32_t channels = (a.k + CHANNELS - 1) / CHANNELS;
    uint32_t place = blockIdx.x / channels;
    tile.k = blockIdx.x % channels * CHANNELS;
    tile.y = place / across * SIDE;
    tile.x = place % across * SIDE;
    tile.image = a.upsample ? blockIdx.y / 4 : blockIdx.y;
    tile.phase = a.upsample ? blockIdx.y % 4 : 0;
    tile.slot = tile.phase * (gridDim.x / channels) + place;
    tile.side = a.upsample ? 2 : a.r;
    uint32_t centre = a.stride == 2 ? 0 : a.r / 2;
    tile.above = a.upsample ? 1 - tile.phase / 2 : centre;
    tile.left = a.upsample ? 1 - tile.phase % 2 : centre;
    return tile;
}

// The output's pixel, of all images, at a row and column of the tile's phase.
__device__ uint64_t output_pixel(const struct gpu_convolution &a, const struct tile &tile,
                                 uint32_t y, uint32_t x)
{
    uint64_t row = a.upsample ? 2 * y + tile.phase / 2 : y;
    uint64_t column = a.upsample ? 2 * x + tile.phase % 2 : x;
    return (static_cast<uint64_t>(tile.image) * a.oh + row) * a.ow + column;
}

// One element of the input as the convolution sees it, at a row and column that count from the
// padding of the tile.
template <class T>
__device__ float source_element(const struct gpu_convolution &a, const struct tile &tile,
                                uint32_t row, uint32_t column, uint32_t channel)
{
    uint32_t y = tile.y * a.stride + row - tile.above;  // wraps around above the image
    uint32_t x = tile.x * a.stride + column - tile.left;
    if (y >= a.h || x >= a.w || channel >= a.c) return 0;
    uint64_t pixel = (static_cast<uint64_t>(tile.image) * a.h + y) * a.w + x;
    float value = gpu::widen(static_cast<const T *>(a.input)[pixel * a.c + channel]);
    if (a.factors == NULL) return value;
    struct gpu_factors factors = a.factors[static_cast<uint64_t>(tile.image) * a.c + channel];
    value = fmaf(value, factors.scale, factors.shift);
    return a.silu ? gpu::silu(value) : value;
}

template <class T>
__device__ void load_input(const struct gpu_convolution &a, const struct tile &tile,
                           uint32_t channel, struct stage *stage)
{
    uint32_t side = (SIDE - 1) * a.stride + tile.side;
    for (uint32_t i = threadIdx.x; i < side * side * CHUNK; i += THREADS) {
        uint32_t pixel = i / CHUNK;
        stage->input[pixel][i % CHUNK] =
            source_element<T>(a, tile, pixel / side, pixel % side, channel + i % CHUNK);
    }
}

template <class T>
__device__ void load_shortcut(const struct gpu_convolution &a, const struct tile &tile,
                              uint32_t channel, struct stage *stage)
{
    for (uint32_t i = threadIdx.x; i < PIXELS * CHUNK; i += THREADS) {
        uint32_t y = tile.y + i / CHUNK / SIDE;
        uint32_t x = tile.x + i / CHUNK % SIDE;
        uint32_t c = channel + i % CHUNK;
        bool inside = y < tile.high && x < tile.wide && c < a.shortcut_c;
        uint64_t at = output_pixel(a, tile, y, x) * a.shortcut_c + c;
        stage->input[i / CHUNK][i % CHUNK] =
            inside ? gpu::widen(static_cast<const T *>(a.shortcut)[at]) : 0.0f;
    }
}

// `taps` of a packed weight. It is padded with zeros up to a multiple of GPU_CHUNK channels, and
// CHUNK divides it.
template <class T>
__device__ void load_weight(const void *packed, uint32_t taps, uint32_t c, uint32_t channel,
                            const struct gpu_convolution &a, const struct tile &tile,
                            struct stage *stage)
{
    uint32_t chunks = (c + GPU_CHUNK - 1) / GPU_CHUNK;
    for (uint32_t i = threadIdx.x; i < taps * CHANNELS * CHUNK; i += THREADS) {
        uint32_t inner = i % CHUNK;
        uint32_t k = i / CHUNK % CHANNELS;
        uint32_t tap = i / CHUNK / CHANNELS;
        uint64_t row = static_cast<uint64_t>(tap * chunks + channel / GPU_CHUNK) * a.k + tile.k + k;
        uint64_t at = row * GPU_CHUNK + GPU_CHUNK_PLACE(tile.k + k, channel % GPU_CHUNK + inner);
        stage->weight[tap][inner][k] =
            tile.k + k < a.k ? gpu::widen(static_cast<const T *>(packed)[at]) : 0.0f;
    }
}

// Thread t makes pixels 4 (t / 8) .. + 3, which lie in one row, of channels 4 (t % 8) .. + 3.
__device__ void add_products(const struct stage &stage, uint32_t r, uint32_t stride,
                             float sums[4][4])
{
    uint32_t side = (SIDE - 1) * stride + r;
    uint32_t group = threadIdx.x / 8;
    uint32_t first = group / 2 * stride * side + group % 2 * 4 * stride;
    uint32_t k = threadIdx.x % 8 * 4;
    for (uint32_t tap = 0; tap < r * r; tap++) {
        uint32_t from = first + tap / r * side + tap % r;
        for (uint32_t c = 0; c < CHUNK; c++) {
            const float *weight = &stage.weight[tap][c][k];
            for (uint32_t i = 0; i < 4; i++) {
                float x = stage.input[from + i * stride][c];
                for (uint32_t j = 0; j < 4; j++) sums[i][j] = fmaf(x, weight[j], sums[i][j]);
            }
        }
    }
}

// What has been stored, for the statistics: [pixel][channel].
using results = float[PIXELS][CHANNELS + 1];

template <class T>
__device__ void store_results(const struct gpu_convolution &a, const struct tile &tile,
                              const float sums[4][4], results &stored)
{
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t pixel = threadIdx.x / 8 * 4 + i / 4;
        uint32_t channel = threadIdx.x % 8 * 4 + i % 4;
        uint32_t y = tile.y + pixel / SIDE;
        uint32_t x = tile.x + pixel % SIDE;
        uint32_t k = tile.k + channel;
        if (y >= tile.high || x >= tile.wide || k >= a.k) continue;
        uint64_t at = output_pixel(a, tile, y, x) * a.k + k;
        float value = sums[i / 4][i % 4];
        if (a.bias != NULL) value += a.bias[k];
        if (a.shortcut_bias != NULL) value += a.shortcut_bias[k];
        if (a.residual != NULL) value += gpu::widen(static_cast<const T *>(a.residual)[at]);
        T narrow = gpu::narrow<T>(value);
        static_cast<T *>(a.output)[at] = narrow;
        stored[pixel][channel] = gpu::widen(narrow);
    }
}

// A thread for each of the tile's channels: the mean of its pixels, then the squares around it.
__device__ void store_partials(const struct gpu_convolution &a, const struct tile &tile,
                               const results &stored)
{
    uint32_t slots = gridDim.x / ((a.k + CHANNELS - 1) / CHANNELS) * (a.upsample ? 4 : 1);
    uint32_t channel = threadIdx.x;
    if (channel >= CHANNELS || tile.k + channel >= a.k) return;
    uint32_t rows = tile.high - tile.y < SIDE ? tile.high - tile.y : SIDE;
    uint32_t columns = tile.wide - tile.x < SIDE ? tile.wide - tile.x : SIDE;
    struct gpu_partial partial = {static_cast<float>(rows * columns), 0, 0};
    for (uint32_t i = 0; i < rows * columns; i++) {
        partial.mean += stored[i / columns * SIDE + i % columns][channel];
    }
    partial.mean /= partial.count;
    for (uint32_t i = 0; i < rows * columns; i++) {
        float away = stored[i / columns * SIDE + i % columns][channel] - partial.mean;
        partial.squares = fmaf(away, away, partial.squares);
    }
    uint64_t at = (static_cast<uint64_t>(tile.image) * slots + tile.slot) * a.k + tile.k + channel;
    a.partials[at] = partial;
}

template <class T>
GPU_KERNEL void __launch_bounds__(THREADS) convolve(const struct gpu_convolution a)
{
    GPU_SHARED(stage, struct stage);
    GPU_SHARED(stored, results);
    struct tile tile = tile_of(a);
    uint32_t taps = tile.side * tile.side;
    uint64_t window = static_cast<uint64_t>(tile.phase) * taps *
                      ((a.c + GPU_CHUNK - 1) / GPU_CHUNK) * a.k * GPU_CHUNK;
    const T *weight = static_cast<const T *>(a.weight) + window;
    float sums[4][4] = {};
    for (uint32_t c = 0; c < a.c; c += CHUNK) {
        load_input<T>(a, tile, c, &stage);
        load_weight<T>(weight, taps, a.c, c, a, tile, &stage);
        __syncthreads();
        add_products(stage, tile.side, a.stride, sums);
        __syncthreads();
    }
    for (uint32_t c = 0; a.shortcut != NULL && c < a.shortcut_c; c += CHUNK) {
        load_shortcut<T>(a, tile, c, &stage);
        load_weight<T>(a.shortcut_weight, 1, a.shortcut_c, c, a, tile, &stage);
        __syncthreads();
        add_products(stage, 1, 1, sums);
        __syncthreads();
    }
    store_results<T>(a, tile, sums, stored);
    if (a.partials == NULL) return;
    __syncthreads();
    store_partials(a, tile, stored);
}

// Of one phase of an image.
uint32_t tiles_of(const struct gpu_convolution &a)
{
    uint32_t h = a.upsample ? a.h : a.oh;
    uint32_t w = a.upsample ? a.w : a.ow;
    return (h + SIDE - 1) / SIDE * ((w + SIDE - 1) / SIDE);
}

uint32_t phases_of(const struct gpu_convolution &a)
{
    return a.upsample ? 4 : 1;
}

}  // namespace

uint32_t gpu_convolution_plain_slots(const struct gpu_convolution *arguments)
{
    return tiles_of(*arguments) * phases_of(*arguments);
}

void gpu_launch_convolution_plain(struct gpu_stream *stream,
                                  const struct gpu_convolution *arguments)
{
    uint32_t channels = (arguments->k + CHANNELS - 1) / CHANNELS;
    dim3 grid(tiles_of(*arguments) * channels, arguments->n * phases_of(*arguments));
    GPU_LAUNCH_STORAGE(stream, arguments->storage, convolve, grid, THREADS, 0, *arguments);
}
