// linear.cu - what surrounds the product of a linear: operands split into 16-bit parts before it,
// its sums added up, adapters, bias, activation and residual behind it; and a product in float32.

#include "kernels/cuda/row.h"

namespace
{

constexpr unsigned THREADS = 256;

GPU_KERNEL void split_rows(const struct gpu_split a)
{
    gpu::split_row<gpu::ROW_THREADS>(a, blockIdx.x);
}

// ---------------------------------------------------------------------------------------------
// The product in float32: a block makes 32x32 sums, a thread 4 of them

constexpr unsigned TILE = 32;

__device__ void load_tile(const float *from, uint32_t rows, uint32_t pitch, uint32_t columns,
                          uint32_t column, float tile[TILE][TILE + 1])
{
    for (unsigned i = threadIdx.x; i < TILE * TILE; i += THREADS) {
        unsigned row = i / TILE;
        unsigned at = column + i % TILE;
        bool inside = row < rows && at < columns;
        tile[row][i % TILE] = inside ? from[static_cast<uint64_t>(row) * pitch + at] : 0.0f;
    }
}

GPU_KERNEL void multiply_float(const struct gpu_product_plain a)
{
    GPU_SHARED(left, float[TILE][TILE + 1]);
    GPU_SHARED(right, float[TILE][TILE + 1]);
    uint32_t row = blockIdx.y * TILE;
    uint32_t column = blockIdx.x * TILE;
    uint32_t x = threadIdx.x % TILE;
    uint32_t y = threadIdx.x / TILE * 4;
    float sums[4] = {};
    for (uint32_t k = 0; k < a.k; k += TILE) {
        load_tile(a.a + static_cast<uint64_t>(row) * a.k, a.m - row, a.k, a.k, k, left);
        load_tile(a.b + static_cast<uint64_t>(column) * a.b_pitch, a.n - column, a.b_pitch, a.k, k,
                  right);
        __syncthreads();
        for (unsigned i = 0; i < TILE; i++) {
            for (unsigned j = 0; j < 4; j++) sums[j] = fmaf(left[y + j][i], right[x][i], sums[j]);
        }
        __syncthreads();
    }
    for (unsigned j = 0; j < 4; j++) {
        if (row + y + j >= a.m || column + x >= a.n) continue;
        a.c[static_cast<uint64_t>(row + y + j) * a.n + column + x] = sums[j];
    }
}

// ---------------------------------------------------------------------------------------------
// Adapters

// A warp for each row and each of the rank's dimensions.
template <class T> GPU_KERNEL void low_rank_down(const struct gpu_linear_paths a)
{
    const struct gpu_path &path = a.paths[blockIdx.z];
    uint32_t row = blockIdx.x;
    uint32_t r = blockIdx.y * (THREADS / 32) + threadIdx.x / 32;
    if (row >= path.row_count || r >= path.rank) return;
    const T *input =
        static_cast<const T *>(a.input) + static_cast<uint64_t>(path.row_begin + row) * a.c;
    float sum = 0;
    for (uint32_t i = threadIdx.x % 32; i < a.c; i += 32) {
        uint64_t at = static_cast<uint64_t>(r) * path.down_pitch + i;
        float down = gpu::load_element(path.down, at, path.down_type);
        sum = fmaf(gpu::widen(input[i]), down, sum);
    }
    sum = gpu::warp_sum(sum);
    if (threadIdx.x % 32 != 0) return;
    path.inner[static_cast<uint64_t>(row) * path.rank + r] = path.scale * sum;
}

// A thread for each output; adapters in their order.
GPU_KERNEL void low_rank_up(const struct gpu_linear_paths a, float *sums, uint32_t k)
{
    uint32_t row = blockIdx.x;
    uint32_t column = blockIdx.y * THREADS + threadIdx.x;
    if (column >= k) return;
    float sum = sums[static_cast<uint64_t>(row) * k + column];
    for (uint32_t i = 0; i < a.count; i++) {
        const struct gpu_path &path = a.paths[i];
        uint32_t line = row - path.row_begin;  // wraps around above the rows that it covers
        uint32_t at = column - path.column_begin;
        if (line >= path.row_count || at >= path.column_count) continue;
        float part = 0;
        for (uint32_t r = 0; r < path.rank; r++) {
            float up = gpu::load_element(path.up, static_cast<uint64_t>(at) * path.up_pitch + r,
                                         path.up_type);
            part = fmaf(path.inner[static_cast<uint64_t>(line) * path.rank + r], up, part);
        }
        sum += part;
    }
    sums[static_cast<uint64_t>(row) * k + column] = sum;
}

// ---------------------------------------------------------------------------------------------
// The end

__device__ float activate(enum gpu_activation activation, float x)
{
    if (activation == GPU_ACTIVATION_QUICK_GELU) return x / (1.0f + expf(-1.702f * x));
    if (activation == GPU_ACTIVATION_GELU) return 0.5f * x * erfcf(-0.70710678f * x);
    return x;
}

// Columns of a thread at once: what they need is under way together.
constexpr unsigned FINISHED = 4;

// Column `column` of a row and the next ones, STEP apart.
template <class T, unsigned STEP>
__device__ void finish_columns(const struct gpu_finish &a, uint32_t row, uint32_t column)
{
    uint64_t first = static_cast<uint64_t>(row) * a.k + column;
    uint64_t addend = static_cast<uint64_t>(a.rows) * a.k;
    float scale = a.scales == NULL ? 1.0f : a.scales[row];
    float values[FINISHED];
    for (uint32_t j = 0; j < a.addends; j++) {
#pragma unroll
        for (unsigned i = 0; i < FINISHED; i++) {
            if (column + i * STEP >= a.k) continue;
            float sum = a.sums[j * addend + first + i * STEP];
            values[i] = j == 0 ? sum : values[i] + sum;
        }
    }
#pragma unroll
    for (unsigned i = 0; i < FINISHED; i++) {
        if (column + i * STEP >= a.k) continue;
        values[i] *= scale;
        if (a.bias != NULL) values[i] += a.bias[column + i * STEP];
        values[i] = activate(a.activation, values[i]);
        if (a.residual == NULL) continue;
        values[i] += gpu::widen(static_cast<const T *>(a.residual)[first + i * STEP]);
    }
#pragma unroll
    for (unsigned i = 0; i < FINISHED; i++) {
        if (column + i * STEP >= a.k) continue;
        static_cast<T *>(a.output)[first + i * STEP] = gpu::narrow<T>(values[i]);
    }
}

template <class T> GPU_KERNEL void finish_linear(const struct gpu_finish a)
{
    finish_columns<T, THREADS>(a, blockIdx.x, blockIdx.y * FINISHED * THREADS + threadIdx.x);
}

// A row a block, and what comes next of it.
template <class T> GPU_KERNEL void finish_rows(const struct gpu_finish a)
{
    constexpr unsigned WIDE = gpu::ROW_THREADS;
    for (uint32_t column = threadIdx.x; column < a.k; column += FINISHED * WIDE) {
        finish_columns<T, WIDE>(a, blockIdx.x, column);
    }
    if (a.norm.gamma != NULL) {
        gpu::normalize_row<T, WIDE>(a.norm, blockIdx.x);
    } else {
        gpu::split_row<WIDE>(a.next, blockIdx.x);
    }
}

}  // namespace

void gpu_launch_split(struct gpu_stream *stream, const struct gpu_split *arguments)
{
    GPU_LAUNCH(stream, split_rows, arguments->rows, gpu::ROW_THREADS, 0, *arguments);
}

// A launch has at most 65535 rows of blocks.
void gpu_launch_multiply_plain(struct gpu_stream *stream, const struct gpu_product_plain *arguments)
{
    constexpr uint32_t ROWS_MAX = 65535u * TILE;
    struct gpu_product_plain part = *arguments;
    for (uint32_t row = 0; row < arguments->m; row += part.m) {
        part.a = arguments->a + static_cast<uint64_t>(row) * arguments->k;
        part.c = arguments->c + static_cast<uint64_t>(row) * arguments->n;
        part.m = arguments->m - row < ROWS_MAX ? arguments->m - row : ROWS_MAX;
        dim3 grid((part.n + TILE - 1) / TILE, (part.m + TILE - 1) / TILE);
        GPU_LAUNCH(stream, multiply_float, grid, THREADS, 0, part);
    }
}

void gpu_launch_low_rank_down(struct gpu_stream *stream, const struct gpu_linear_paths *arguments)
{
    uint32_t rows = 0;
    uint32_t ranks = 0;
    for (uint32_t i = 0; i < arguments->count; i++) {
        const struct gpu_path &path = arguments->paths[i];
        if (path.row_count > rows) rows = path.row_count;
        if (path.rank > ranks) ranks = path.rank;
    }
    constexpr uint32_t WARPS = THREADS / 32;
    dim3 grid(rows, (ranks + WARPS - 1) / WARPS, arguments->count);
    GPU_LAUNCH_STORAGE(stream, arguments->storage, low_rank_down, grid, THREADS, 0, *arguments);
}

void gpu_launch_low_rank_up(struct gpu_stream *stream, const struct gpu_linear_paths *arguments,
                            float *sums, uint32_t k)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < arguments->count; i++) {
        const struct gpu_path &path = arguments->paths[i];
        if (path.row_begin + path.row_count > rows) rows = path.row_begin + path.row_count;
    }
    dim3 grid(rows, (k + THREADS - 1) / THREADS);
    GPU_LAUNCH(stream, low_rank_up, grid, THREADS, 0, *arguments, sums, k);
}

void gpu_launch_finish_linear(struct gpu_stream *stream, const struct gpu_finish *arguments)
{
    constexpr uint32_t COLUMNS = FINISHED * THREADS;
    if (arguments->norm.gamma != NULL || arguments->next.parts != NULL) {
        GPU_LAUNCH_STORAGE(stream, arguments->storage, finish_rows, arguments->rows,
                           gpu::ROW_THREADS, 0, *arguments);
    } else {
        dim3 grid(arguments->rows, (arguments->k + COLUMNS - 1) / COLUMNS);
        GPU_LAUNCH_STORAGE(stream, arguments->storage, finish_linear, grid, THREADS, 0, *arguments);
    }
}
