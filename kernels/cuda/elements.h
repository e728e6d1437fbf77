// elements.h - elements whose type is known when the kernel runs, and one call for each storage
// type.

#ifndef KERNELS_CUDA_ELEMENTS_H
#define KERNELS_CUDA_ELEMENTS_H

#include "kernels/cuda/gpu.h"

namespace gpu
{

// Element i of an array of f32, f16 or bf16.
__device__ __forceinline__ float load_element(const void *at, uint64_t i, enum dtype type)
{
    if (type == DTYPE_F32) return static_cast<const float *>(at)[i];
    if (type == DTYPE_F16) return widen(static_cast<const __half *>(at)[i]);
    return widen(static_cast<const __nv_bfloat16 *>(at)[i]);
}

__device__ __forceinline__ void store_element(void *at, uint64_t i, enum dtype type, float value)
{
    if (type == DTYPE_F32) {
        static_cast<float *>(at)[i] = value;
    } else if (type == DTYPE_F16) {
        static_cast<__half *>(at)[i] = narrow<__half>(value);
    } else {
        static_cast<__nv_bfloat16 *>(at)[i] = narrow<__nv_bfloat16>(value);
    }
}

// The index of this thread among all threads of a one-dimensional launch, and how many they are.
__device__ __forceinline__ uint64_t thread_index()
{
    return static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ uint64_t thread_count()
{
    return static_cast<uint64_t>(gridDim.x) * blockDim.x;
}

// Blocks of a launch whose threads walk over count items: enough to fill a card, not more than
// there is work for.
inline unsigned blocks_for(uint64_t count, unsigned threads)
{
    uint64_t blocks = (count + threads - 1) / threads;
    return static_cast<unsigned>(blocks < 4096 ? blocks : 4096);
}

__device__ __forceinline__ float silu(float x)
{
    return x / (1.0f + expf(-x));
}

}  // namespace gpu

// Launches KERNEL<type> for the storage type of the arguments.
#define GPU_LAUNCH_STORAGE(stream, storage, kernel, grid, block, shared_bytes, ...)                \
    do {                                                                                           \
        if ((storage) == DTYPE_F32) {                                                              \
            GPU_LAUNCH(stream, kernel<float>, grid, block, shared_bytes, __VA_ARGS__);             \
        } else if ((storage) == DTYPE_F16) {                                                       \
            GPU_LAUNCH(stream, kernel<__half>, grid, block, shared_bytes, __VA_ARGS__);            \
        } else {                                                                                   \
            GPU_LAUNCH(stream, kernel<__nv_bfloat16>, grid, block, shared_bytes, __VA_ARGS__);     \
        }                                                                                          \
    } while (false)

#endif  // KERNELS_CUDA_ELEMENTS_H
