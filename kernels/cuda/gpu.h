// gpu.h - the one header of our kernels: CUDA C for nvcc, and the same text for g++, which runs it
// on the processor (kernels/emulation/).
//
// All inline PTX and all code that differs between the two compilers is here, but for what only one
// card has (gpu_hopper.h). Every function has two bodies, the device's and the emulator's; GPU_BODY
// picks. A kernel file writes
//
//     GPU_KERNEL void scale(const struct scale_arguments a) { ... }
//     GPU_LAUNCH(stream, scale, grid, block, shared_bytes, arguments);
//
// with GPU_SHARED and GPU_DYNAMIC_SHARED in place of __shared__. Nothing is fused or approximated
// behind our backs (nvcc -fmad=false): a multiply-add is fmaf, an approximation has its name.

#ifndef KERNELS_CUDA_GPU_H
#define KERNELS_CUDA_GPU_H

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "kernels/emulation/emulation.h"
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cuda/launch.h"

#ifdef __CUDACC__
#define GPU_BODY(device, emulated)                                                                 \
    {                                                                                              \
        device;                                                                                    \
    }
#define GPU_SITE
#define GPU_NEXT_SITE
#define GPU_PASS_SITE
#define GPU_KERNEL static __global__
#define GPU_SHARED(name, ...) __shared__ typename gpu::type_of<__VA_ARGS__>::type name
#define GPU_DYNAMIC_SHARED(name, type)                                                             \
    extern __shared__ __align__(128) unsigned char gpu_dynamic_shared[];                           \
    type *const name = reinterpret_cast<type *>(gpu_dynamic_shared)
#else
#define GPU_BODY(device, emulated)                                                                 \
    {                                                                                              \
        emulated;                                                                                  \
    }
#define GPU_SITE EMULATION_SITE
#define GPU_NEXT_SITE , EMULATION_SITE
#define GPU_PASS_SITE , site_file, site_line
#define GPU_KERNEL static
#define GPU_SHARED(name, ...)                                                                      \
    static const char name##_key = 0;                                                              \
    auto &name = *static_cast<typename gpu::type_of<__VA_ARGS__>::type *>(emulation::shared_array( \
        &name##_key, #name, sizeof(typename gpu::type_of<__VA_ARGS__>::type)))
#define GPU_DYNAMIC_SHARED(name, type)                                                             \
    type *const name = static_cast<type *>(emulation::shared_dynamic())
#endif

namespace gpu
{

template <class T> struct type_of {
    using type = T;
};

// ---------------------------------------------------------------------------------------------
// Launching

#ifdef __CUDACC__
// More than 48 KiB of shared memory must be asked for. Safe from several threads.
template <class... P, class... A>
void launch(struct gpu_stream *stream, const char *name, void (*kernel)(P...), dim3 grid,
            dim3 block, size_t shared_bytes, A... values)
{
    cudaError_t error = cudaSuccess;
    if (shared_bytes > 48u << 10) {
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(shared_bytes));
    }
    if (error == cudaSuccess) {
        kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(gpu_stream_handle(stream))>>>(
            values...);
        error = cudaGetLastError();
    }
    if (error == cudaErrorMemoryAllocation) {
        gpu_stream_lack(stream, name);
    } else if (error != cudaSuccess) {
        gpu_stream_fail(stream, name, cudaGetErrorString(error));
    } else {
        gpu_stream_note(stream, name);
    }
}
#else
template <class... P, class... A>
void launch(struct gpu_stream *stream, const char *name, void (*kernel)(P...), dim3 grid,
            dim3 block, size_t shared_bytes, A... values)
{
    if (gpu_stream_is_recording(stream)) {
        auto again = [=] { launch(stream, name, kernel, grid, block, shared_bytes, values...); };
        using closure = decltype(again);
        gpu_stream_record(
            stream, [](void *context) { (*static_cast<closure *>(context))(); },
            [](void *context) { delete static_cast<closure *>(context); }, new closure(again));
        return;
    }
    if (!gpu_stream_begin_launch(stream)) return;
    bool good = emulation::launch(name, kernel, grid, block, shared_bytes, values...);
    gpu_stream_end_launch(stream, name, good ? NULL : emulation::report());
}
#endif
#define GPU_LAUNCH(stream, kernel, grid, block, shared_bytes, ...)                                 \
    gpu::launch(stream, #kernel, kernel, grid, block, shared_bytes, __VA_ARGS__)

// ---------------------------------------------------------------------------------------------
// Element types: T is float, __nv_bfloat16 or __half

template <class To, class From> __device__ __forceinline__ To bits_of(From from)
{
    static_assert(sizeof(To) == sizeof(From), "bits_of keeps the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

__device__ __forceinline__ float widen(float value)
{
    return value;
}

__device__ __forceinline__ float widen(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}

__device__ __forceinline__ float widen(__half value)
{
    return __half2float(value);
}

// Rounds to nearest, ties to even.
template <class T> __device__ __forceinline__ T narrow(float value);

template <> __device__ __forceinline__ float narrow<float>(float value)
{
    return value;
}

template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float value)
{
    return __float2bfloat16_rn(value);
}

template <> __device__ __forceinline__ __half narrow<__half>(float value)
{
    return __float2half_rn(value);
}

// Two elements of 16 bits in a register, the first in the low half.
template <class T> struct pair {
    T low, high;
};

template <class T> __device__ __forceinline__ float2 widen_pair(uint32_t bits)
{
    pair<T> both = bits_of<pair<T>>(bits);
    return make_float2(widen(both.low), widen(both.high));
}

template <class T> __device__ __forceinline__ uint32_t narrow_pair(float low, float high)
{
    return bits_of<uint32_t>(pair<T>{narrow<T>(low), narrow<T>(high)});
}

// ---------------------------------------------------------------------------------------------
// Barriers

// Where the whole block waits.
struct block_barrier {
    __device__ __forceinline__ static void wait(GPU_SITE)
        GPU_BODY(__syncthreads(), emulation::barrier(0, 0 GPU_PASS_SITE))
};

// Where COUNT threads, whole warps, wait: NUMBER is one of 1 to 15.
template <int NUMBER, unsigned COUNT> struct part_barrier {
    __device__ __forceinline__ static void wait(GPU_SITE)
        GPU_BODY(asm volatile("bar.sync %0, %1;" ::"n"(NUMBER), "n"(COUNT)
                              : "memory"),
                 emulation::barrier(NUMBER, COUNT GPU_PASS_SITE))
};

// ---------------------------------------------------------------------------------------------
// Approximations. Relative bounds as the PTX manual documents them.

// 2^x, 2^-22; subnormal results are zero.
__device__ __forceinline__ float exp2_approximate(float x)
    GPU_BODY(float y; asm("ex2.approx.ftz.f32 %0, %1;"
                          : "=f"(y)
                          : "f"(x));
             return y, return emulation::approximate(exp2f(x), 0x1p-22f))

    // 1 / x, 2^-23.
    __device__ __forceinline__ float reciprocal_approximate(float x)
        GPU_BODY(float y; asm("rcp.approx.ftz.f32 %0, %1;"
                              : "=f"(y)
                              : "f"(x));
                 return y, return emulation::approximate(1.0f / x, 0x1p-23f))

    // tanh x, 2^-11.
    __device__ __forceinline__ float tanh_approximate(float x)
        GPU_BODY(float y; asm("tanh.approx.f32 %0, %1;"
                              : "=f"(y)
                              : "f"(x));
                 return y, return emulation::approximate(tanhf(x), 0x1p-11f))

    // ---------------------------------------------------------------------------------------------
    // Shared memory and copies into it

    __device__ __forceinline__ uint32_t shared_address(const void *at GPU_NEXT_SITE)
        GPU_BODY(return static_cast<uint32_t>(__cvta_generic_to_shared(at)),
                        return emulation::shared_address(at GPU_PASS_SITE))

    // 16 bytes from device memory; where bytes is less, the rest is zero and not read.
    __device__ __forceinline__
    void copy_async16(uint32_t to, const void *from, unsigned bytes GPU_NEXT_SITE)
        GPU_BODY(asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                              "r"(bytes)
                              : "memory"),
                 emulation::copy_async(to, from, 16, bytes GPU_PASS_SITE))

            __device__ __forceinline__ void copy_commit()
                GPU_BODY(asm volatile("cp.async.commit_group;" ::
                                          : "memory"),
                         emulation::copy_commit())

    // Waits until at most LEFT of this thread's groups are under way.
    template <int LEFT>
    __device__ __forceinline__ void copy_wait(GPU_SITE)
        GPU_BODY(asm volatile("cp.async.wait_group %0;" ::"n"(LEFT)
                              : "memory"),
                 emulation::copy_wait(LEFT GPU_PASS_SITE))

    // ---------------------------------------------------------------------------------------------
    // Tensor cores

    // Four 8x8 matrices of 16-bit elements; lane 8 m + i gives the address of row i of matrix m.
    __device__ __forceinline__
    void load_matrix4(uint32_t *registers, uint32_t address GPU_NEXT_SITE)
        GPU_BODY(asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                              : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]),
                                "=r"(registers[3])
                              : "r"(address)
                              : "memory"),
                 emulation::load_matrix(4, false, registers, address GPU_PASS_SITE))

    // The same, each matrix transposed.
    __device__ __forceinline__
    void load_matrix4_transposed(uint32_t *registers, uint32_t address GPU_NEXT_SITE) GPU_BODY(
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]),
                       "=r"(registers[3])
                     : "r"(address)
                     : "memory"),
        emulation::load_matrix(4, true, registers, address GPU_PASS_SITE))

#define GPU_MMA(type)                                                                              \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                            \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"            \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

    // d [16, 8] += a [16, 16] b [16, 8], float32 sums.
    template <class T>
    __device__ __forceinline__
    void multiply(float *d, const uint32_t *a, const uint32_t *b GPU_NEXT_SITE);

template <>
__device__ __forceinline__ void multiply<__nv_bfloat16>(float *d, const uint32_t *a,
                                                        const uint32_t *b
#ifndef __CUDACC__
                                                        ,
                                                        const char *site_file, int site_line
#endif
                                                        )
    GPU_BODY(GPU_MMA("bf16"), emulation::multiply_bf16(d, a, b GPU_PASS_SITE))

        template <>
        __device__ __forceinline__
    void multiply<__half>(float *d, const uint32_t *a, const uint32_t *b
#ifndef __CUDACC__
                          ,
                          const char *site_file, int site_line
#endif
                          ) GPU_BODY(GPU_MMA("f16"), emulation::multiply_f16(d, a, b GPU_PASS_SITE))

    // ---------------------------------------------------------------------------------------------
    // Sums. Every lane gets the same bits, in an order that depends on the lanes alone.

    __device__ __forceinline__ float warp_sum(float value GPU_NEXT_SITE)
{
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(~0u, value, step, 32 GPU_PASS_SITE);
    }
    return value;
}

__device__ __forceinline__ float warp_maximum(float value GPU_NEXT_SITE)
{
    for (int step = 16; step > 0; step /= 2) {
        value = fmaxf(value, __shfl_xor_sync(~0u, value, step, 32 GPU_PASS_SITE));
    }
    return value;
}

}  // namespace gpu

#endif  // KERNELS_CUDA_GPU_H
