// rows.cu - layer norm, embedding, gather: operations on rows of activations.

#include "kernels/cuda/split.h"

namespace
{

constexpr unsigned THREADS = gpu::ROW_THREADS;

// One row a block. The variance is taken around the mean, in a second pass: rows of mean 1000 and
// sigma 1 exist. Where a linear of split operands reads the row next, they are made at once.
template <class T> GPU_KERNEL void layer_norm_rows(const struct gpu_layer_norm a)
{
    const T *input = static_cast<const T *>(a.input) + static_cast<uint64_t>(blockIdx.x) * a.width;
    T *output = static_cast<T *>(a.output) + static_cast<uint64_t>(blockIdx.x) * a.width;
    float sum = 0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < a.width; i += THREADS) sum += gpu::widen(input[i]);
    float mean = gpu::block_sum<THREADS>(sum) / static_cast<float>(a.width);
    float squares = 0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < a.width; i += THREADS) {
        float away = gpu::widen(input[i]) - mean;
        squares = fmaf(away, away, squares);
    }
    float variance = gpu::block_sum<THREADS>(squares) / static_cast<float>(a.width);
    float inverse = 1.0f / sqrtf(variance + a.epsilon);
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < a.width; i += THREADS) {
        float normal = (gpu::widen(input[i]) - mean) * inverse;
        output[i] = gpu::narrow<T>(fmaf(normal, a.gamma[i], a.beta[i]));
    }
    if (a.next.parts != NULL) gpu::split_row<THREADS>(a.next, blockIdx.x);
}

template <class T> GPU_KERNEL void embed_rows(const struct gpu_embedding a)
{
    uint64_t count = static_cast<uint64_t>(a.rows) * a.width;
    for (uint64_t i = gpu::thread_index(); i < count; i += gpu::thread_count()) {
        uint64_t row = i / a.width;
        uint64_t column = i % a.width;
        int32_t id = a.ids[row];
        uint64_t line = static_cast<uint64_t>(id >= 0 ? id : -1 - static_cast<int64_t>(id));
        float word = id >= 0 ? gpu::load_element(a.table, line * a.width + column, a.table_type)
                             : a.vectors[line * a.width + column];
        float place =
            gpu::load_element(a.positions, row % a.tokens * a.width + column, a.positions_type);
        static_cast<T *>(a.output)[i] = gpu::narrow<T>(word + place);
    }
}

template <class T> GPU_KERNEL void gather_rows(const struct gpu_gather a)
{
    uint64_t count = static_cast<uint64_t>(a.count) * a.width;
    for (uint64_t i = gpu::thread_index(); i < count; i += gpu::thread_count()) {
        uint64_t row = static_cast<uint64_t>(a.indices[i / a.width]);
        static_cast<T *>(a.output)[i] =
            static_cast<const T *>(a.input)[row * a.width + i % a.width];
    }
}

}  // namespace

void gpu_launch_layer_norm(struct gpu_stream *stream, const struct gpu_layer_norm *arguments)
{
    GPU_LAUNCH_STORAGE(stream, arguments->storage, layer_norm_rows, arguments->rows, THREADS, 0,
                       *arguments);
}

void gpu_launch_embedding(struct gpu_stream *stream, const struct gpu_embedding *arguments)
{
    uint64_t count = static_cast<uint64_t>(arguments->rows) * arguments->width;
    GPU_LAUNCH_STORAGE(stream, arguments->storage, embed_rows, gpu::blocks_for(count, 256), 256, 0,
                       *arguments);
}

void gpu_launch_gather(struct gpu_stream *stream, const struct gpu_gather *arguments)
{
    uint64_t count = static_cast<uint64_t>(arguments->count) * arguments->width;
    GPU_LAUNCH_STORAGE(stream, arguments->storage, gather_rows, gpu::blocks_for(count, 256), 256, 0,
                       *arguments);
}
