// attention_short.cu - attention of short texts in float32: all keys and values of a head lie in
// shared memory.
//
// A block takes 32 queries of one head, a warp four of them at once. Scores: a lane has every 32nd
// key. Then the weights go through shared memory, and a lane has every 32nd column of the output.

#include "kernels/cuda/elements.h"

namespace
{

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / 32;
constexpr unsigned KEYS = GPU_SHORT_TOKENS_MAX;
constexpr unsigned WIDTH = GPU_SHORT_HEAD_MAX;
constexpr unsigned QUERIES = 4 * WARPS;  // of a block
constexpr unsigned LANE_KEYS = KEYS / 32;
constexpr unsigned LANE_COLUMNS = WIDTH / 32;

struct stage {
    float4 weights[WARPS][KEYS];  // of a warp's four queries
    float4 q[WARPS][WIDTH];       // likewise
    float k[KEYS][WIDTH + 1];
    float v[KEYS][WIDTH];
};

__device__ float element(const struct gpu_attention &a, const void *from, uint32_t stride,
                         uint32_t token, uint32_t column)
{
    if (token >= a.tokens || column >= a.head_width) return 0.0f;
    uint64_t row = static_cast<uint64_t>(blockIdx.z) * a.tokens + token;
    return static_cast<const float *>(
        from)[row * stride + static_cast<uint64_t>(blockIdx.y) * a.head_width + column];
}

// Keys and values of all tokens below `keys`, and the block's queries; zeros beyond them.
__device__ void load(const struct gpu_attention &a, uint32_t keys, struct stage &stage)
{
    for (unsigned i = threadIdx.x; i < (keys + 31) / 32 * 32 * WIDTH; i += THREADS) {
        stage.k[i / WIDTH][i % WIDTH] = element(a, a.k, a.k_stride, i / WIDTH, i % WIDTH);
        stage.v[i / WIDTH][i % WIDTH] = element(a, a.v, a.v_stride, i / WIDTH, i % WIDTH);
    }
    for (unsigned i = threadIdx.x; i < WARPS * WIDTH; i += THREADS) {
        uint32_t query = blockIdx.x * QUERIES + i / WIDTH * 4;
        stage.q[i / WIDTH][i % WIDTH] =
            make_float4(element(a, a.q, a.q_stride, query, i % WIDTH),
                        element(a, a.q, a.q_stride, query + 1, i % WIDTH),
                        element(a, a.q, a.q_stride, query + 2, i % WIDTH),
                        element(a, a.q, a.q_stride, query + 3, i % WIDTH));
    }
    __syncthreads();
}

__device__ void add_products(float *sums, const float4 &left, float right)
{
    sums[0] = fmaf(left.x, right, sums[0]);
    sums[1] = fmaf(left.y, right, sums[1]);
    sums[2] = fmaf(left.z, right, sums[2]);
    sums[3] = fmaf(left.w, right, sums[3]);
}

// scores[j][i]: of the warp's query i and key lane + 32 j.
__device__ void make_scores(const struct gpu_attention &a, uint32_t keys, const struct stage &stage,
                            float scores[LANE_KEYS][4])
{
    const float4 *q = stage.q[threadIdx.x / 32];
    for (unsigned column = 0; column < a.head_width; column++) {
#pragma unroll
        for (unsigned j = 0; j < LANE_KEYS; j++) {
            if (32 * j >= keys) continue;
            add_products(scores[j], q[column], stage.k[threadIdx.x % 32 + 32 * j][column]);
        }
    }
}

// The softmax of query i over its keys, not yet divided by the sum, which is returned.
__device__ float make_weights(const struct gpu_attention &a, unsigned i, float scores[LANE_KEYS][4])
{
    uint32_t query = blockIdx.x * QUERIES + threadIdx.x / 32 * 4 + i;
    uint32_t seen = a.causal && query < a.tokens ? query + 1 : a.tokens;
    float highest = -INFINITY;
#pragma unroll
    for (unsigned j = 0; j < LANE_KEYS; j++) {
        bool is_seen = threadIdx.x % 32 + 32 * j < seen;
        scores[j][i] = is_seen ? a.scale * scores[j][i] : -INFINITY;
        highest = fmaxf(highest, scores[j][i]);
    }
    highest = gpu::warp_maximum(highest);
    float total = 0;
#pragma unroll
    for (unsigned j = 0; j < LANE_KEYS; j++) {
        scores[j][i] = expf(scores[j][i] - highest);
        total += scores[j][i];
    }
    return gpu::warp_sum(total);
}

__device__ void store(const struct gpu_attention &a, const float *totals,
                      const float sums[LANE_COLUMNS][4])
{
    uint32_t query = blockIdx.x * QUERIES + threadIdx.x / 32 * 4;
#pragma unroll
    for (unsigned i = 0; i < 4 * LANE_COLUMNS; i++) {
        uint32_t column = threadIdx.x % 32 + i / 4 * 32;
        if (query + i % 4 >= a.tokens || column >= a.head_width) continue;
        uint64_t row = static_cast<uint64_t>(blockIdx.z) * a.tokens + query + i % 4;
        uint64_t at = (row * a.heads + blockIdx.y) * a.head_width + column;
        static_cast<float *>(a.output)[at] = sums[i / 4][i % 4] / totals[i % 4];
    }
}

GPU_KERNEL void __launch_bounds__(THREADS) attend_short(const struct gpu_attention a)
{
    GPU_DYNAMIC_SHARED(shared, struct stage);
    struct stage &stage = *shared;
    unsigned lane = threadIdx.x % 32;
    uint32_t behind = (blockIdx.x + 1) * QUERIES;
    uint32_t keys = a.causal && behind < a.tokens ? behind : a.tokens;
    load(a, keys, stage);
    float scores[LANE_KEYS][4] = {};
    make_scores(a, keys, stage, scores);
    float totals[4];
#pragma unroll
    for (unsigned i = 0; i < 4; i++) totals[i] = make_weights(a, i, scores);
    float4 *weights = stage.weights[threadIdx.x / 32];
#pragma unroll
    for (unsigned j = 0; j < LANE_KEYS; j++) {
        weights[lane + 32 * j] =
            make_float4(scores[j][0], scores[j][1], scores[j][2], scores[j][3]);
    }
    __syncwarp();
    float sums[LANE_COLUMNS][4] = {};
    for (unsigned key = 0; key < keys; key++) {
#pragma unroll
        for (unsigned j = 0; j < LANE_COLUMNS; j++) {
            add_products(sums[j], weights[key], stage.v[key][lane + 32 * j]);
        }
    }
    store(a, totals, sums);
}

}  // namespace

void gpu_launch_attention_short(struct gpu_stream *stream, const struct gpu_attention *arguments)
{
    dim3 grid((arguments->tokens + QUERIES - 1) / QUERIES, arguments->heads, arguments->batch);
    GPU_LAUNCH(stream, attend_short, grid, THREADS, sizeof(struct stage), *arguments);
}
