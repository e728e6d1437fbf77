// images.cu - pixels and latents in and out, and the blending of tiles.
//
// Fixed to the last bit before the one rounding to storage: float32 in the order of kernels.h,
// without a fused multiply-add.

#include "kernels/cuda/elements.h"

namespace
{

constexpr unsigned THREADS = 256;

// True for NaN and what is at least limit away from 0.
__device__ bool reaches(float value, float limit)
{
    return !(fabsf(value) < limit);
}

// What a thread tells at its end.
__device__ void note(uint32_t *not_finite, bool found)
{
    if (found && not_finite != nullptr) atomicOr(not_finite, 1u);
}

template <class T> GPU_KERNEL void load_pixels(const struct gpu_load a)
{
    uint64_t count = static_cast<uint64_t>(a.h) * a.w * 3;
    bool found = false;
    for (uint64_t i = gpu::thread_index(); i < count; i += gpu::thread_count()) {
        uint64_t pixel = i / 3;
        uint64_t from = (pixel / a.w * a.full_w + a.x + pixel % a.w) * a.channels + i % 3;
        float value =
            a.source_type == DTYPE_U8
                ? static_cast<float>(static_cast<const uint8_t *>(a.source)[from]) / 255.0f
                : gpu::load_element(a.source, from, a.source_type);
        static_cast<T *>(a.output)[i] = gpu::narrow<T>(value * 2.0f - 1.0f);
        found |= reaches(value, INFINITY);
    }
    note(a.not_finite, found);
}

template <class T> GPU_KERNEL void load_latent(const struct gpu_load a)
{
    uint64_t count = static_cast<uint64_t>(a.h) * a.w * a.channels;
    bool found = false;
    for (uint64_t i = gpu::thread_index(); i < count; i += gpu::thread_count()) {
        uint64_t pixel = i / a.channels;
        uint64_t line = i % a.channels * a.h + pixel / a.w;
        float value =
            gpu::load_element(a.source, line * a.full_w + a.x + pixel % a.w, a.source_type);
        static_cast<T *>(a.output)[i] = gpu::narrow<T>(value);
        found |= reaches(value, INFINITY);
    }
    note(a.not_finite, found);
}

__device__ float pixel_value(const struct gpu_store &a, uint64_t i, bool *found)
{
    float value = gpu::load_element(a.input, i, a.input_type);
    *found |= reaches(value, a.limit);
    if (!a.clamp) return value;
    value = (value + 1.0f) / 2.0f;
    if (value < 0.0f) value = 0.0f;
    if (value > 1.0f) value = 1.0f;
    return value;
}

__device__ uint32_t byte_of(float value)
{
    return isnan(value) ? 0u : static_cast<uint32_t>(rintf(value * 255.0f));
}

GPU_KERNEL void store_pixels(const struct gpu_store a)
{
    uint64_t count = static_cast<uint64_t>(a.h) * a.w * 3;
    bool found = false;
    for (uint64_t i = gpu::thread_index(); i < count; i += gpu::thread_count()) {
        gpu::store_element(a.output, i, a.output_type, pixel_value(a, i, &found));
    }
    note(a.not_finite, found);
}

// Four bytes a thread, so that no two threads write into the same word.
GPU_KERNEL void store_bytes(const struct gpu_store a)
{
    uint64_t count = static_cast<uint64_t>(a.h) * a.w * 3;
    uint64_t words = (count + 3) / 4;
    bool found = false;
    for (uint64_t i = gpu::thread_index(); i < words; i += gpu::thread_count()) {
        uint32_t word = 0;
        uint64_t left = count - 4 * i;
        for (uint64_t j = 0; j < 4 && j < left; j++) {
            word |= byte_of(pixel_value(a, 4 * i + j, &found)) << (8 * j);
        }
        static_cast<uint32_t *>(a.output)[i] = word;
    }
    note(a.not_finite, found);
}

GPU_KERNEL void store_latent(const struct gpu_store a)
{
    uint64_t pixels = static_cast<uint64_t>(a.h) * a.w;
    uint64_t count = pixels * a.channels;
    bool found = false;
    for (uint64_t i = gpu::thread_index(); i < count; i += gpu::thread_count()) {
        float value = gpu::load_element(a.input, i % pixels * a.stride + i / pixels, a.input_type);
        gpu::store_element(a.output, i, a.output_type, value);
        found |= reaches(value, a.limit);
    }
    note(a.not_finite, found);
}

template <class T> GPU_KERNEL void widen_elements(const struct gpu_widen a)
{
    for (uint64_t i = gpu::thread_index(); i < a.count; i += gpu::thread_count()) {
        a.output[i] = gpu::widen(static_cast<const T *>(a.input)[i]);
    }
}

// The feathers of both ends of one axis, in the order in which ComfyUI's loop comes to them.
__device__ float feathered(float mask, uint32_t at, uint32_t length, uint32_t feather)
{
    if (feather >= length) return mask;
    uint32_t back = length - 1 - at;
    uint32_t near = at < back ? at : back;
    uint32_t far = at < back ? back : at;
    if (near < feather) mask *= static_cast<float>(near + 1) / static_cast<float>(feather);
    if (far < feather) mask *= static_cast<float>(far + 1) / static_cast<float>(feather);
    return mask;
}

template <class T> GPU_KERNEL void blend_tile(const struct gpu_blend a)
{
    uint64_t count = static_cast<uint64_t>(a.h) * a.w;
    for (uint64_t i = gpu::thread_index(); i < count; i += gpu::thread_count()) {
        uint32_t y = static_cast<uint32_t>(i / a.w);
        uint32_t x = static_cast<uint32_t>(i % a.w);
        float mask = feathered(1.0f, y, a.h, a.feather);
        mask = feathered(mask, x, a.w, a.feather);
        uint64_t pixel = (static_cast<uint64_t>(a.y) + y) * a.full_w + a.x + x;
        a.weight[pixel] += mask;
        for (uint32_t c = 0; c < a.channels; c++) {
            float value = gpu::widen(static_cast<const T *>(a.tile)[i * a.stride + c]);
            a.sum[pixel * a.channels + c] += value * mask;
        }
    }
}

GPU_KERNEL void blend_ends(const struct gpu_blend_end a)
{
    uint64_t count = a.pixels * a.channels;
    for (uint64_t i = gpu::thread_index(); i < count; i += gpu::thread_count()) {
        float value = a.sum[i] / a.weight[i / a.channels];
        if (a.pass > 0) value = a.total[i] + value;
        if (a.passes > 1 && a.pass == a.passes - 1) value = value / static_cast<float>(a.passes);
        a.total[i] = value;
    }
}

}  // namespace

void gpu_launch_load_pixels(struct gpu_stream *stream, const struct gpu_load *arguments)
{
    uint64_t count = static_cast<uint64_t>(arguments->h) * arguments->w * 3;
    GPU_LAUNCH_STORAGE(stream, arguments->storage, load_pixels, gpu::blocks_for(count, THREADS),
                       THREADS, 0, *arguments);
}

void gpu_launch_load_latent(struct gpu_stream *stream, const struct gpu_load *arguments)
{
    uint64_t count = static_cast<uint64_t>(arguments->h) * arguments->w * arguments->channels;
    GPU_LAUNCH_STORAGE(stream, arguments->storage, load_latent, gpu::blocks_for(count, THREADS),
                       THREADS, 0, *arguments);
}

void gpu_launch_store_pixels(struct gpu_stream *stream, const struct gpu_store *arguments)
{
    uint64_t count = static_cast<uint64_t>(arguments->h) * arguments->w * 3;
    if (arguments->output_type == DTYPE_U8) {
        GPU_LAUNCH(stream, store_bytes, gpu::blocks_for((count + 3) / 4, THREADS), THREADS, 0,
                   *arguments);
    } else {
        GPU_LAUNCH(stream, store_pixels, gpu::blocks_for(count, THREADS), THREADS, 0, *arguments);
    }
}

void gpu_launch_store_latent(struct gpu_stream *stream, const struct gpu_store *arguments)
{
    uint64_t count = static_cast<uint64_t>(arguments->h) * arguments->w * arguments->channels;
    GPU_LAUNCH(stream, store_latent, gpu::blocks_for(count, THREADS), THREADS, 0, *arguments);
}

void gpu_launch_widen(struct gpu_stream *stream, const struct gpu_widen *arguments)
{
    dim3 grid = gpu::blocks_for(arguments->count, THREADS);
    if (arguments->storage == DTYPE_F16) {
        GPU_LAUNCH(stream, widen_elements<__half>, grid, THREADS, 0, *arguments);
    } else {
        GPU_LAUNCH(stream, widen_elements<__nv_bfloat16>, grid, THREADS, 0, *arguments);
    }
}

void gpu_launch_blend(struct gpu_stream *stream, const struct gpu_blend *arguments)
{
    uint64_t count = static_cast<uint64_t>(arguments->h) * arguments->w;
    GPU_LAUNCH_STORAGE(stream, arguments->storage, blend_tile, gpu::blocks_for(count, THREADS),
                       THREADS, 0, *arguments);
}

void gpu_launch_blend_end(struct gpu_stream *stream, const struct gpu_blend_end *arguments)
{
    uint64_t count = arguments->pixels * arguments->channels;
    GPU_LAUNCH(stream, blend_ends, gpu::blocks_for(count, THREADS), THREADS, 0, *arguments);
}
