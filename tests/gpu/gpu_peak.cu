// gpu_peak.cu - what a card can do at best, measured: the roofline that our kernels stand beside.
//
//     gpu_peak CARD [CUBLAS...]
//
// One line of JSON: `copy_gb_s`, bytes read and written by a copy from device to device;
// `mma_tflop_s`, bf16 multiplications with fp32 sums by mma.sync out of registers, the instruction
// of our kernels; and, where one of the named libraries (or the system's own) can be opened,
// `gemm_tflop_s` of cuBLAS for 8192 x 8192 x 8192 bf16 on random numbers. Medians of ten, timed by
// events.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace
{

constexpr int kRuns = 10;
constexpr size_t kCopyBytes = size_t{1} << 30;
constexpr int kSide = 8192;          // of the matrices
constexpr int kSums = 8;             // products under way in each warp
constexpr int kTurns = 4096;         // of the loop
constexpr int kWarps = 8;            // of a block
constexpr double kProduct = 4096.0;  // operations of one mma.m16n8k16: 2 x 16 x 8 x 16

void check(cudaError_t result, const char *what)
{
    if (result == cudaSuccess) return;
    fprintf(stderr, "gpu_peak: %s: %s\n", what, cudaGetErrorString(result));
    exit(1);
}

// The median of the times of what `work` enqueues, in ms, behind two runs that are not counted.
template <class W> double median_ms(W work)
{
    cudaEvent_t begin, end;
    std::vector<float> times;
    check(cudaEventCreate(&begin), "event");
    check(cudaEventCreate(&end), "event");
    for (int i = 0; i < kRuns + 2; i++) {
        float ms = 0;
        check(cudaEventRecord(begin), "event");
        work();
        check(cudaEventRecord(end), "event");
        check(cudaEventSynchronize(end), "run");
        check(cudaGetLastError(), "launch");
        check(cudaEventElapsedTime(&ms, begin, end), "event");
        if (i >= 2) times.push_back(ms);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::sort(times.begin(), times.end());
    return times[kRuns / 2];
}

// Numbers from -1 to 1 that are not alike: some cards compute faster on zeros.
__global__ void fill(__nv_bfloat16 *out, size_t count)
{
    size_t step = size_t{gridDim.x} * blockDim.x;
    for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
        uint32_t bits = static_cast<uint32_t>(i) * 2654435761u;
        bits = (bits ^ bits >> 15) * 2246822519u;
        out[i] = __float2bfloat16(static_cast<float>(bits >> 8) / 8388608.0f - 1.0f);
    }
}

__global__ void __launch_bounds__(kWarps * 32) multiply(const uint32_t *numbers, float *out)
{
    float sums[kSums][4] = {};
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; i++) a[i] = numbers[threadIdx.x * 8 + i];
    for (int i = 0; i < 2; i++) b[i] = numbers[threadIdx.x * 8 + 4 + i];
    for (int turn = 0; turn < kTurns; turn++) {
#pragma unroll
        for (int i = 0; i < kSums; i++) {
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                         "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                         : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
        }
    }
    float sum = 0;
    for (int i = 0; i < kSums; i++) sum += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

double copy_gb_s()
{
    void *from = nullptr, *to = nullptr;
    check(cudaMalloc(&from, kCopyBytes), "memory");
    check(cudaMalloc(&to, kCopyBytes), "memory");
    fill<<<1024, 256>>>(static_cast<__nv_bfloat16 *>(from), kCopyBytes / 2);
    double ms = median_ms(
        [&] { check(cudaMemcpyAsync(to, from, kCopyBytes, cudaMemcpyDeviceToDevice), "copy"); });
    cudaFree(from);
    cudaFree(to);
    return 2.0 * kCopyBytes / ms / 1e6;
}

double mma_tflop_s(int multiprocessors)
{
    int blocks = multiprocessors * 4;
    void *numbers = nullptr;
    float *out = nullptr;
    check(cudaMalloc(&numbers, kWarps * 32 * 8 * 4), "memory");
    check(cudaMalloc(&out, sizeof(float) * blocks * kWarps * 32), "memory");
    fill<<<16, 256>>>(static_cast<__nv_bfloat16 *>(numbers), kWarps * 32 * 8 * 2);
    double ms = median_ms(
        [&] { multiply<<<blocks, kWarps * 32>>>(static_cast<const uint32_t *>(numbers), out); });
    cudaFree(numbers);
    cudaFree(out);
    return kProduct * kSums * kTurns * kWarps * blocks / ms / 1e9;
}

// The few names of cuBLAS that are needed; its header and its library need not be here.
struct cublas {
    int (*create)(void **handle);
    int (*gemm)(void *handle, int transpose_a, int transpose_b, int m, int n, int k,
                const void *alpha, const void *a, int a_type, int lda, const void *b, int b_type,
                int ldb, const void *beta, void *c, int c_type, int ldc, int compute_type,
                int algorithm);
};

bool open_cublas(cublas &out, const char *name)
{
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return false;
    out.create = reinterpret_cast<decltype(out.create)>(dlsym(library, "cublasCreate_v2"));
    out.gemm = reinterpret_cast<decltype(out.gemm)>(dlsym(library, "cublasGemmEx"));
    return out.create != nullptr && out.gemm != nullptr;
}

// 0 when the library refuses.
double gemm_tflop_s(const cublas &blas)
{
    constexpr int bf16 = 14, sums_f32 = 68, by_itself = -1, transposed = 1, plain = 0;
    constexpr size_t count = size_t{kSide} * kSide;
    const float one = 1, zero = 0;
    void *handle = nullptr;
    __nv_bfloat16 *memory = nullptr;
    if (blas.create(&handle) != 0) return 0;
    check(cudaMalloc(&memory, 3 * count * sizeof *memory), "memory");
    fill<<<1024, 256>>>(memory, 2 * count);
    int result = 0;
    double ms = median_ms([&] {
        result |= blas.gemm(handle, transposed, plain, kSide, kSide, kSide, &one, memory, bf16,
                            kSide, memory + count, bf16, kSide, &zero, memory + 2 * count, bf16,
                            kSide, sums_f32, by_itself);
    });
    cudaFree(memory);
    return result != 0 ? 0 : 2.0 * kSide * kSide * kSide / ms / 1e9;
}

}  // namespace

int main(int argc, char **argv)
{
    std::vector<const char *> libraries(argv + std::min(argc, 2), argv + argc);
    libraries.insert(libraries.end(), {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11"});
    cudaDeviceProp card;
    check(cudaSetDevice(argc < 2 ? 0 : atoi(argv[1])), "card");
    check(cudaGetDeviceProperties(&card, argc < 2 ? 0 : atoi(argv[1])), "card");
    printf("{\"multiprocessors\": %d, \"l2_mib\": %d, \"copy_gb_s\": %.0f, \"mma_tflop_s\": %.1f",
           card.multiProcessorCount, card.l2CacheSize >> 20, copy_gb_s(),
           mma_tflop_s(card.multiProcessorCount));
    cublas blas = {};
    auto found = std::find_if(libraries.begin(), libraries.end(),
                              [&](const char *name) { return open_cublas(blas, name); });
    double gemm = found == libraries.end() ? 0 : gemm_tflop_s(blas);
    if (gemm > 0) printf(", \"gemm_tflop_s\": %.1f, \"gemm_library\": \"%s\"", gemm, *found);
    printf("}\n");
    return 0;
}
