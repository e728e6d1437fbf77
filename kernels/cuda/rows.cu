// rows.cu - layer norm, embedding, gather: operations on rows of activations.

#include "kernels/cuda/row.h"

namespace
{

template <class T> GPU_KERNEL void layer_norm_rows(const struct gpu_layer_norm a)
{
    gpu::normalize_row<T, gpu::ROW_THREADS>(a, blockIdx.x);
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
    GPU_LAUNCH_STORAGE(stream, arguments->storage, layer_norm_rows, arguments->rows,
                       gpu::ROW_THREADS, 0, *arguments);
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
