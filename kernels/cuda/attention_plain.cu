// attention_plain.cu - attention of any shape in any type, on ordinary cores.
//
// A block takes 8 queries of one head and walks over the keys in tiles of 32: scores, the running
// maximum and sum of the softmax, then the values. The score matrix is never whole. Columns of the
// output beyond 512 are made in a second walk with the same scores.

#include "kernels/cuda/elements.h"

namespace
{

constexpr unsigned THREADS = 128;
constexpr unsigned QUERIES = 8;                        // of a block
constexpr unsigned KEYS = 32;                          // of a tile
constexpr unsigned WIDTH = 64;                         // columns of q and k at a time
constexpr unsigned COLUMNS = 4;                        // of the output, a thread
constexpr unsigned WALK = THREADS * COLUMNS;           // columns of the output, a walk
constexpr unsigned SCORES = QUERIES * KEYS / THREADS;  // a thread

struct stage {
    float q[QUERIES][WIDTH];
    float k[KEYS][WIDTH + 1];
    float scores[QUERIES][KEYS];  // then their exponentials
    float highest[QUERIES];       // so far
    float total[QUERIES];         // of the exponentials, relative to it
    float rescale[QUERIES];       // of what was summed before this tile
};

struct head {
    uint64_t row;     // of the batch's token 0
    uint64_t column;  // of the head
    uint32_t query;   // first of the block
};

template <class T>
__device__ void load_lines(const void *from, uint32_t stride, const struct gpu_attention &a,
                           const struct head &head, uint32_t line, uint32_t column, unsigned lines,
                           float *to, unsigned pitch)
{
    for (unsigned i = threadIdx.x; i < lines * WIDTH; i += THREADS) {
        uint32_t token = line + i / WIDTH;
        uint32_t at = column + i % WIDTH;
        bool inside = token < a.tokens && at < a.head_width;
        uint64_t element = (head.row + token) * stride + head.column + at;
        to[i / WIDTH * pitch + i % WIDTH] =
            inside ? gpu::widen(static_cast<const T *>(from)[element]) : 0.0f;
    }
}

// Scores of the block's queries with the keys from `key` on; -infinity for those not to be seen.
template <class T>
__device__ void make_scores(const struct gpu_attention &a, const struct head &head, uint32_t key,
                            struct stage *stage)
{
    float sums[SCORES] = {};
    for (uint32_t column = 0; column < a.head_width; column += WIDTH) {
        load_lines<T>(a.q, a.q_stride, a, head, head.query, column, QUERIES, stage->q[0], WIDTH);
        load_lines<T>(a.k, a.k_stride, a, head, key, column, KEYS, stage->k[0], WIDTH + 1);
        __syncthreads();
        for (unsigned j = 0; j < SCORES; j++) {
            const float *q = stage->q[threadIdx.x / KEYS + j * (THREADS / KEYS)];
            const float *k = stage->k[threadIdx.x % KEYS];
            for (unsigned i = 0; i < WIDTH; i++) sums[j] = fmaf(q[i], k[i], sums[j]);
        }
        __syncthreads();
    }
    for (unsigned j = 0; j < SCORES; j++) {
        unsigned query = threadIdx.x / KEYS + j * (THREADS / KEYS);
        uint32_t at = key + threadIdx.x % KEYS;
        bool seen = at < a.tokens && (!a.causal || at <= head.query + query);
        stage->scores[query][threadIdx.x % KEYS] = seen ? a.scale * sums[j] : -INFINITY;
    }
    __syncthreads();
}

// A thread for each query. A query sees the first key of the first tile always, so `highest` is
// finite from then on.
__device__ void update_softmax(struct stage *stage)
{
    if (threadIdx.x < QUERIES) {
        unsigned query = threadIdx.x;
        float highest = stage->highest[query];
        for (unsigned i = 0; i < KEYS; i++) highest = fmaxf(highest, stage->scores[query][i]);
        float rescale = expf(stage->highest[query] - highest);
        float total = 0;
        for (unsigned i = 0; i < KEYS; i++) {
            float weight = expf(stage->scores[query][i] - highest);
            stage->scores[query][i] = weight;
            total += weight;
        }
        stage->total[query] = fmaf(stage->total[query], rescale, total);
        stage->highest[query] = highest;
        stage->rescale[query] = rescale;
    }
    __syncthreads();
}

template <class T>
__device__ void add_values(const struct gpu_attention &a, const struct head &head, uint32_t key,
                           uint32_t first, const struct stage &stage, float sums[COLUMNS][QUERIES])
{
    uint32_t keys = a.tokens - key < KEYS ? a.tokens - key : KEYS;
#pragma unroll
    for (unsigned j = 0; j < COLUMNS; j++) {
        uint32_t column = first + j * THREADS + threadIdx.x;
        if (column >= a.head_width) continue;
#pragma unroll
        for (unsigned i = 0; i < QUERIES; i++) sums[j][i] *= stage.rescale[i];
        for (uint32_t t = 0; t < keys; t++) {
            uint64_t at = (head.row + key + t) * a.v_stride + head.column + column;
            float v = gpu::widen(static_cast<const T *>(a.v)[at]);
#pragma unroll
            for (unsigned i = 0; i < QUERIES; i++) {
                sums[j][i] = fmaf(stage.scores[i][t], v, sums[j][i]);
            }
        }
    }
}

template <class T>
__device__ void store_columns(const struct gpu_attention &a, const struct head &head,
                              uint32_t first, const struct stage &stage,
                              const float sums[COLUMNS][QUERIES])
{
    uint64_t width = static_cast<uint64_t>(a.heads) * a.head_width;
#pragma unroll
    for (unsigned j = 0; j < COLUMNS; j++) {
        uint32_t column = first + j * THREADS + threadIdx.x;
        if (column >= a.head_width) continue;
#pragma unroll
        for (unsigned i = 0; i < QUERIES; i++) {
            if (head.query + i >= a.tokens) continue;
            uint64_t at = (head.row + head.query + i) * width + head.column + column;
            static_cast<T *>(a.output)[at] = gpu::narrow<T>(sums[j][i] / stage.total[i]);
        }
    }
}

template <class T> GPU_KERNEL void __launch_bounds__(THREADS) attend(const struct gpu_attention a)
{
    GPU_SHARED(stage, struct stage);
    struct head head;
    head.query = blockIdx.x * QUERIES;
    head.column = static_cast<uint64_t>(blockIdx.y) * a.head_width;
    head.row = static_cast<uint64_t>(blockIdx.z) * a.tokens;
    uint32_t end = a.tokens;
    if (a.causal && head.query + QUERIES < end) end = head.query + QUERIES;
    for (uint32_t first = 0; first < a.head_width; first += WALK) {
        float sums[COLUMNS][QUERIES] = {};
        if (threadIdx.x < QUERIES) {
            stage.highest[threadIdx.x] = -INFINITY;
            stage.total[threadIdx.x] = 0;
        }
        for (uint32_t key = 0; key < end; key += KEYS) {
            make_scores<T>(a, head, key, &stage);
            update_softmax(&stage);
            add_values<T>(a, head, key, first, stage, sums);
            __syncthreads();
        }
        store_columns<T>(a, head, first, stage, sums);
        __syncthreads();
    }
}

}  // namespace

// A launch has at most 65535 heads and as many images.
void gpu_launch_attention_plain(struct gpu_stream *stream, const struct gpu_attention *arguments)
{
    dim3 grid((arguments->tokens + QUERIES - 1) / QUERIES, arguments->heads, arguments->batch);
    GPU_LAUNCH_STORAGE(stream, arguments->storage, attend, grid, THREADS, 0, *arguments);
}
