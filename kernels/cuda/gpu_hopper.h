// gpu_hopper.h - what only compute capability 9.0 has, each with its two bodies as in gpu.h:
// barriers in shared memory that count arrivals and bytes, bulk copies that complete on them,
// products that a warpgroup starts and waits for, registers that change hands.
//
// A warpgroup is four warps, the first of them a multiple of four. What it multiplies, and what a
// bulk copy writes, moves through a way of its own to shared memory, the "async proxy". Whoever
// wrote shared memory by ordinary stores calls fence_async before a barrier, behind which that way
// may see it.
//
// Only files that are compiled for sm_90a include this.

#ifndef KERNELS_CUDA_GPU_HOPPER_H
#define KERNELS_CUDA_GPU_HOPPER_H

#include "kernels/cuda/gpu.h"

// Dynamic shared memory that begins where the pattern of every swizzle does.
#ifdef __CUDACC__
#define GPU_SWIZZLED_SHARED(name, type)                                                            \
    extern __shared__ __align__(1024) unsigned char gpu_swizzled_shared[];                         \
    type *const name = reinterpret_cast<type *>(gpu_swizzled_shared)
#else
#define GPU_SWIZZLED_SHARED(name, type) GPU_DYNAMIC_SHARED(name, type)
#endif

namespace gpu
{

template <class T> struct is_bf16 {
    static constexpr bool value = false;
};

template <> struct is_bf16<__nv_bfloat16> {
    static constexpr bool value = true;
};

// clang-format off

// ---------------------------------------------------------------------------------------------
// Barriers in shared memory. One is 8 bytes; its phases count from 0, and a phase ends when `count`
// threads have arrived and all expected bytes are there.

// One thread makes it; fence_async and a block barrier come before anybody else uses it.
__device__ __forceinline__ void counter_create(uint64_t *at, uint32_t count GPU_NEXT_SITE)
    GPU_BODY(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                          :: "r"(shared_address(at)), "r"(count) : "memory"),
             emulation::counter_create(at, count GPU_PASS_SITE))

// One arrival of this phase.
__device__ __forceinline__ void counter_arrive(uint64_t *at GPU_NEXT_SITE)
    GPU_BODY(asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
                          :: "r"(shared_address(at)) : "memory"),
             emulation::counter_arrive(at, 0 GPU_PASS_SITE))

// Arrives, and makes the phase wait for so many bytes more.
__device__ __forceinline__ void counter_arrive_expect(uint64_t *at, uint32_t bytes GPU_NEXT_SITE)
    GPU_BODY(asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                          :: "r"(shared_address(at)), "r"(bytes) : "memory"),
             emulation::counter_arrive(at, bytes GPU_PASS_SITE))

// Waits for the end of the phase of this parity: returns at once while the phase behind it is on.
__device__ __forceinline__ void counter_wait(uint64_t *at, uint32_t parity GPU_NEXT_SITE)
    GPU_BODY(asm volatile("{\n"
                          ".reg .pred done;\n"
                          "again:\n"
                          "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                          "@done bra over;\n"
                          "bra again;\n"
                          "over:\n"
                          "}" :: "r"(shared_address(at)), "r"(parity) : "memory"),
             emulation::counter_wait(at, parity GPU_PASS_SITE))

// What this thread did to shared memory so far comes before what the async proxy does behind the
// next barrier.
__device__ __forceinline__ void fence_async(GPU_SITE)
    GPU_BODY(asm volatile("fence.proxy.async.shared::cta;" ::: "memory"),
             emulation::fence_async(EMULATION_HERE))

// Starts a copy of bytes from device memory; all of it in multiples of 16. Their arrival counts at
// the barrier.
__device__ __forceinline__ void copy_bulk(void *to, const void *from, uint32_t bytes,
                                          uint64_t *counter GPU_NEXT_SITE)
    GPU_BODY(asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                          "[%0], [%1], %2, [%3];"
                          :: "r"(shared_address(to)), "l"(from), "r"(bytes),
                             "r"(shared_address(counter)) : "memory"),
             emulation::copy_bulk(to, from, bytes, counter GPU_PASS_SITE))

// ---------------------------------------------------------------------------------------------
// Registers. All warps of a warpgroup call the same.

// From here on each thread of this warpgroup has COUNT, fewer than before.
template <unsigned COUNT> __device__ __forceinline__ void registers_give(GPU_SITE)
    GPU_BODY(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(COUNT)),
             emulation::set_registers(COUNT, false GPU_PASS_SITE))

// The same, more than before: waits until others have given them.
template <unsigned COUNT> __device__ __forceinline__ void registers_take(GPU_SITE)
    GPU_BODY(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(COUNT)),
             emulation::set_registers(COUNT, true GPU_PASS_SITE))

// ---------------------------------------------------------------------------------------------
// Products of a warpgroup. Neither sums nor operands may be touched between a product and the wait
// for its group.

// Comes between the last touch of registers and the first product of a group.
__device__ __forceinline__ void group_fence(GPU_SITE)
    GPU_BODY(asm volatile("wgmma.fence.sync.aligned;" ::: "memory"),
             emulation::group_fence(EMULATION_HERE))

// Makes a group of the products so far.
__device__ __forceinline__ void group_commit(GPU_SITE)
    GPU_BODY(asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"),
             emulation::group_commit(EMULATION_HERE))

// Waits until at most LEFT groups are under way.
template <int LEFT> __device__ __forceinline__ void group_wait(GPU_SITE)
    GPU_BODY(asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(LEFT) : "memory"),
             emulation::group_wait(LEFT, EMULATION_HERE))

// The compiler moves no use of these registers across this place.
template <unsigned COUNT> __device__ __forceinline__ void hold_registers(float *values)
{
#ifdef __CUDACC__
#pragma unroll
    for (unsigned i = 0; i < COUNT; i++) asm volatile("" : "+f"(values[i]) :: "memory");
#else
    static_cast<void>(values);
#endif
}

// Where columns of B are: rows of 64 bytes in shared memory, in the 64-byte swizzle (unit_offset of
// tiles.h is the same), eight rows 512 bytes behind the last eight.
__device__ __forceinline__ uint64_t columns_at(uint32_t address)
{
    return static_cast<uint64_t>((address & 0x3ffff) >> 4) | 1ull << 16 |
           static_cast<uint64_t>(512 >> 4) << 32 | 2ull << 62;
}

#define GPU_GROUP_SUMS_8(i)                                                                        \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define GPU_GROUP_SUMS_32(i)                                                                       \
    GPU_GROUP_SUMS_8(i), GPU_GROUP_SUMS_8(i + 8), GPU_GROUP_SUMS_8(i + 16), GPU_GROUP_SUMS_8(i + 24)
#define GPU_GROUP_SUMS_40(i)                                                                       \
    GPU_GROUP_SUMS_32(i), GPU_GROUP_SUMS_8(i + 32)
#define GPU_GROUP_OPERANDS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(columns)
#define GPU_GROUP_MMA_16(type)                                                                     \
    asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                    \
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type "\n"                  \
                 "{%0, %1, %2, %3, %4, %5, %6, %7},\n"                                             \
                 "{%8, %9, %10, %11}, %12, add, 1, 1, 0;\n}"                                       \
                 : GPU_GROUP_SUMS_8(0)                                                             \
                 : GPU_GROUP_OPERANDS)
#define GPU_GROUP_MMA_64(type)                                                                     \
    asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                    \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type "\n"                  \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,\n"        \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "     \
                 "%31},\n"                                                                         \
                 "{%32, %33, %34, %35}, %36, add, 1, 1, 0;\n}"                                     \
                 : GPU_GROUP_SUMS_32(0)                                                            \
                 : GPU_GROUP_OPERANDS)
#define GPU_GROUP_MMA_128(type)                                                                    \
    asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                    \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type "\n"                 \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,\n"        \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "     \
                 "%31,\n"                                                                          \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "     \
                 "%47,\n"                                                                          \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, "     \
                 "%63},\n"                                                                         \
                 "{%64, %65, %66, %67}, %68, add, 1, 1, 0;\n}"                                     \
                 : GPU_GROUP_SUMS_32(0), GPU_GROUP_SUMS_32(32)                                     \
                 : GPU_GROUP_OPERANDS)
#define GPU_GROUP_MMA_80(type)                                                                     \
    asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                    \
                 "wgmma.mma_async.sync.aligned.m64n80k16.f32." type "." type "\n"                  \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13,\n"                  \
                 "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27,\n"         \
                 "%28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39},\n"                  \
                 "{%40, %41, %42, %43}, %44, add, 1, 1, 0;\n}"                                     \
                 : GPU_GROUP_SUMS_40(0)                                                            \
                 : GPU_GROUP_OPERANDS)
#define GPU_GROUP_MMA_160(type)                                                                    \
    asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                    \
                 "wgmma.mma_async.sync.aligned.m64n160k16.f32." type "." type "\n"                 \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13,\n"                  \
                 "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27,\n"         \
                 "%28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41,\n"         \
                 "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55,\n"         \
                 "%56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69,\n"         \
                 "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79},\n"                            \
                 "{%80, %81, %82, %83}, %84, add, 1, 1, 0;\n}"                                     \
                 : GPU_GROUP_SUMS_40(0), GPU_GROUP_SUMS_40(40)                                     \
                 : GPU_GROUP_OPERANDS)

// Starts d [64, N] += a [64, 16] b [16, N] with float32 sums: a warp has 16 rows of a and of d, laid
// out as multiply has them, d[4 i + ...] for columns 8 i and on; b's columns are at columns_at.
template <class T, unsigned N>
__device__ __forceinline__ void group_multiply(float *d, const uint32_t *a,
                                               uint64_t columns GPU_NEXT_SITE)
{
    constexpr bool IS_BF16 = is_bf16<T>::value;
    static_assert(N == 16 || N == 64 || N == 80 || N == 128 || N == 160,
                  "only what is used has a body");
#ifdef __CUDACC__
    if constexpr (N == 16 && IS_BF16) GPU_GROUP_MMA_16("bf16");
    if constexpr (N == 16 && !IS_BF16) GPU_GROUP_MMA_16("f16");
    if constexpr (N == 64 && IS_BF16) GPU_GROUP_MMA_64("bf16");
    if constexpr (N == 64 && !IS_BF16) GPU_GROUP_MMA_64("f16");
    if constexpr (N == 80 && IS_BF16) GPU_GROUP_MMA_80("bf16");
    if constexpr (N == 80 && !IS_BF16) GPU_GROUP_MMA_80("f16");
    if constexpr (N == 160 && IS_BF16) GPU_GROUP_MMA_160("bf16");
    if constexpr (N == 160 && !IS_BF16) GPU_GROUP_MMA_160("f16");
    if constexpr (N == 128 && IS_BF16) GPU_GROUP_MMA_128("bf16");
    if constexpr (N == 128 && !IS_BF16) GPU_GROUP_MMA_128("f16");
#else
    emulation::group_multiply({d, a, columns, N, IS_BF16}, EMULATION_HERE);
#endif
}

// clang-format on

}  // namespace gpu

#endif  // KERNELS_CUDA_GPU_HOPPER_H
