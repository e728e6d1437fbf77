// row.h - what a block does with a row of activations that it has just made, or that is its own:
// normalises it, splits it into 16-bit parts for the product that follows. Each thread reads and
// writes the columns that are THREADS apart, from its own number on, so it may have written them
// itself just before.

#ifndef KERNELS_CUDA_ROW_H
#define KERNELS_CUDA_ROW_H

#include "kernels/cuda/elements.h"

namespace gpu
{

// Of a block that has a row: two or three columns of a text's each, so that a walk over the row is
// one trip to memory.
constexpr unsigned ROW_THREADS = 512;

// A value of each warp, for all threads; safe to be called again at once.
template <unsigned THREADS> __device__ __forceinline__ const float *exchange(float value)
{
    GPU_SHARED(values, float[THREADS / 32]);
    __syncthreads();  // the values of the call before have been read
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value;
    __syncthreads();
    return values;
}

// The sum of a value over a block of so many threads, the same bits for every thread.
template <unsigned THREADS> __device__ __forceinline__ float block_sum(float value)
{
    const float *values = exchange<THREADS>(warp_sum(value));
    float sum = values[0];
    for (unsigned i = 1; i < THREADS / 32; i++) sum += values[i];
    return sum;
}

template <unsigned THREADS> __device__ __forceinline__ float block_maximum(float value)
{
    const float *values = exchange<THREADS>(warp_maximum(value));
    float largest = values[0];
    for (unsigned i = 1; i < THREADS / 32; i++) largest = fmaxf(largest, values[i]);
    return largest;
}

// 2^e with largest < 2^e, kept in the range of float32; 1 for a row of zeros.
__device__ __forceinline__ float power_above(float largest)
{
    if (!(largest > 0) || !isfinite(largest)) return 1.0f;
    int exponent = 0;
    frexpf(largest, &exponent);
    if (exponent < -110) exponent = -110;
    if (exponent > 110) exponent = 110;
    return ldexpf(1.0f, exponent);
}

// A part is what the parts before it left, rounded.
template <class T, unsigned PARTS>
__device__ __forceinline__ void store_parts(const struct gpu_split &a, uint32_t row,
                                            uint32_t column, float rest)
{
    for (unsigned part = 0; part < PARTS; part++) {
        uint64_t line = static_cast<uint64_t>(part) * a.rows + row;
        T narrow = gpu::narrow<T>(rest);
        static_cast<T *>(a.parts)[line * a.pitch + column] = narrow;
        rest -= widen(narrow);
    }
}

// Splits a row as gpu_split says. With fp16, x / scale lies within +-2^15, so the second part's
// quantum, 2^-24, is far below what float32 holds of the row's largest.
template <unsigned THREADS>
__device__ __forceinline__ void split_row(const struct gpu_split &a, uint32_t row)
{
    const float *input = a.input + static_cast<uint64_t>(row) * a.c;
    float scale = 1.0f;
    if (!a.is_bf16) {
        float largest = 0;
#pragma unroll 4
        for (uint32_t i = threadIdx.x; i < a.c; i += THREADS) {
            largest = fmaxf(largest, fabsf(input[i]));
        }
        scale = power_above(block_maximum<THREADS>(largest)) * 0x1p-15f;
    }
    if (threadIdx.x == 0) a.scales[row] = scale;
    float factor = 1.0f / scale;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < a.pitch; i += THREADS) {
        float x = i < a.c ? input[i] : 0.0f;
        if (a.is_bf16) {
            store_parts<__nv_bfloat16, 3>(a, row, i, x);
        } else {
            store_parts<__half, 2>(a, row, i, x * factor);
        }
    }
}

// Normalises a row. The variance is taken around the mean, in a second walk: rows of mean 1000 and
// sigma 1 exist.
template <class T, unsigned THREADS>
__device__ __forceinline__ void normalize_row(const struct gpu_layer_norm &a, uint32_t row)
{
    const T *input = static_cast<const T *>(a.input) + static_cast<uint64_t>(row) * a.width;
    T *output = static_cast<T *>(a.output) + static_cast<uint64_t>(row) * a.width;
    float sum = 0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < a.width; i += THREADS) sum += widen(input[i]);
    float mean = block_sum<THREADS>(sum) / static_cast<float>(a.width);
    float squares = 0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < a.width; i += THREADS) {
        float away = widen(input[i]) - mean;
        squares = fmaf(away, away, squares);
    }
    float variance = block_sum<THREADS>(squares) / static_cast<float>(a.width);
    float inverse = 1.0f / sqrtf(variance + a.epsilon);
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < a.width; i += THREADS) {
        float normal = (widen(input[i]) - mean) * inverse;
        output[i] = narrow<T>(fmaf(normal, a.gamma[i], a.beta[i]));
    }
    if (a.next.parts != NULL) split_row<THREADS>(a.next, row);
}

}  // namespace gpu

#endif  // KERNELS_CUDA_ROW_H
