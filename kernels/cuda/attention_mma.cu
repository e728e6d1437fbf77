// attention_mma.cu - attention of 16-bit activations on tensor cores, for heads as wide as 512.
//
// A block takes 64 queries of one head and walks over the keys 16 at a time. Warps go in pairs:
// both of a pair have the same 16 queries, one the even and one the odd chunks of 32 columns. Each
// makes its part of the scores, the parts are exchanged through shared memory and added, so both
// hold all 16x16 scores, do the same softmax in registers, and multiply the exponentials, rounded
// to 16 bits, with their own columns of the values. The sums of the softmax are those of the
// rounded exponentials. Scores are never stored.
//
// Keys of the next tile come while values are multiplied, values while scores are.

#include "kernels/cuda/tiles.h"

namespace
{

constexpr unsigned THREADS = 256;
constexpr unsigned QUERIES = 64;  // of a block
constexpr unsigned KEYS = 16;     // of a tile
constexpr unsigned EXCHANGE_BYTES = THREADS * 8 * sizeof(float);

// SLOTS is how many chunks of 32 columns a warp has at most.
template <unsigned SLOTS_> struct sizes {
    static constexpr unsigned SLOTS = SLOTS_;
    static constexpr unsigned QUERY_BYTES = 2 * SLOTS_ * QUERIES * gpu::ROW_BYTES;
    static constexpr unsigned TILE_BYTES = 2 * SLOTS_ * KEYS * gpu::ROW_BYTES;
    // The parts of the scores lie where the keys were.
    static constexpr unsigned KEY_BYTES = TILE_BYTES < EXCHANGE_BYTES ? EXCHANGE_BYTES : TILE_BYTES;
    static constexpr unsigned SHARED_BYTES = QUERY_BYTES + KEY_BYTES + TILE_BYTES;
};

template <class T, class S> struct attender {
    const struct gpu_attention &a;
    unsigned char *queries, *keys, *values;  // shared
    uint64_t row, column;                    // of the batch's token 0, of the head
    uint32_t first;                          // query of the block
    uint32_t chunks;                         // of 32 columns
    unsigned lane, pair, half;               // pair: which 16 queries; half: odd chunks or even
    float highest[2], total[2];              // of the queries lane / 4 and that + 8
    float sums[S::SLOTS][4][4];              // [chunk][8 columns][as in mma]

    __device__ attender(const struct gpu_attention &arguments, unsigned char *shared)
        : a(arguments), queries(shared), keys(shared + S::QUERY_BYTES),
          values(shared + S::QUERY_BYTES + S::KEY_BYTES)
    {
        row = static_cast<uint64_t>(blockIdx.z) * a.tokens;
        column = static_cast<uint64_t>(blockIdx.y) * a.head_width;
        first = blockIdx.x * QUERIES;
        chunks = (a.head_width + 31) / 32;
        lane = threadIdx.x % 32;
        pair = threadIdx.x / 64;
        half = threadIdx.x / 32 % 2;
        for (unsigned i = 0; i < 2; i++) {
            highest[i] = -INFINITY;
            total[i] = 0;
        }
#pragma unroll
        for (unsigned i = 0; i < S::SLOTS; i++) {
#pragma unroll
            for (unsigned j = 0; j < 16; j++) sums[i][j / 4][j % 4] = 0;
        }
    }

    // Lines of q, k or v as chunks [chunk][line] of rows of 64 bytes; zeros beyond tokens and
    // width.
    __device__ void load_lines(unsigned char *to, const void *from, uint32_t stride, uint32_t line,
                               unsigned lines) const
    {
        const T *base = static_cast<const T *>(from);
        for (unsigned i = threadIdx.x; i < chunks * lines * gpu::ROW_UNITS; i += THREADS) {
            unsigned unit = i % gpu::ROW_UNITS;
            unsigned chunk = i / gpu::ROW_UNITS % chunks;
            unsigned at = i / gpu::ROW_UNITS / chunks;
            uint32_t channel = chunk * 32 + unit * 8;
            bool inside = line + at < a.tokens && channel < a.head_width;
            uint64_t element = (row + line + at) * stride + column + channel;
            gpu::fill_unit(to + chunk * lines * gpu::ROW_BYTES + gpu::unit_offset(at, unit),
                           inside ? base + element : base, inside ? 8 : 0, true);
        }
    }

    // This warp's part of the scores [16 queries, 16 keys], as two products of 8 keys.
    __device__ void multiply_keys(float scores[2][4]) const
    {
        uint32_t q = gpu::shared_address(queries);
        uint32_t k = gpu::shared_address(keys);
#pragma unroll
        for (unsigned i = 0; i < S::SLOTS; i++) {
            unsigned chunk = 2 * i + half;
            if (chunk >= chunks) continue;
#pragma unroll
            for (unsigned step = 0; step < 2; step++) {
                uint32_t x[4];
                uint32_t y[4];
                uint32_t at = gpu::unit_offset(pair * 16 + lane % 16, step * 2 + lane / 16);
                gpu::load_matrix4(x, q + chunk * QUERIES * gpu::ROW_BYTES + at);
                gpu::load_columns(y, k + chunk * KEYS * gpu::ROW_BYTES, 0, step * 2, lane);
                gpu::multiply<T>(scores[0], x, y);
                gpu::multiply<T>(scores[1], x, y + 2);
            }
        }
    }

    // Adds the other half's part. The sum of two numbers does not depend on their order.
    __device__ void exchange(float scores[2][4]) const
    {
        float *parts = reinterpret_cast<float *>(keys);
        __syncthreads();  // everybody has read the keys
        for (unsigned i = 0; i < 8; i++) parts[i * THREADS + threadIdx.x] = scores[i / 4][i % 4];
        __syncthreads();
        for (unsigned i = 0; i < 8; i++) {
            scores[i / 4][i % 4] += parts[i * THREADS + (threadIdx.x ^ 32)];
        }
    }

    // Scores to exponentials, relative to the highest score so far of each query, in base 2.
    // Returns them as the operand of the next product.
    __device__ void exponentiate(float scores[2][4], uint32_t key, uint32_t operand[4])
    {
        float factor = a.scale * 1.44269504f;
        float rescale[2];
        for (unsigned i = 0; i < 2; i++) {
            uint32_t query = first + pair * 16 + lane / 4 + i * 8;
            float now = highest[i];
            for (unsigned j = 0; j < 4; j++) {
                uint32_t at = key + j / 2 * 8 + lane % 4 * 2 + j % 2;
                float *score = &scores[j / 2][i * 2 + j % 2];
                bool seen = at < a.tokens && (!a.causal || at <= query);
                *score = seen ? *score * factor : -INFINITY;
                now = fmaxf(now, *score);
            }
            now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
            now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
            rescale[i] = gpu::exp2_approximate(highest[i] - now);
            highest[i] = now;
        }
        for (unsigned i = 0; i < 4; i++) {
            float *two = &scores[i / 2][i % 2 * 2];
            operand[i] = gpu::narrow_pair<T>(gpu::exp2_approximate(two[0] - highest[i % 2]),
                                             gpu::exp2_approximate(two[1] - highest[i % 2]));
        }
        for (unsigned i = 0; i < 2; i++) {
            float2 left = gpu::widen_pair<T>(operand[i]);
            float2 right = gpu::widen_pair<T>(operand[i + 2]);
            float sum = (left.x + left.y) + (right.x + right.y);
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            total[i] = fmaf(total[i], rescale[i], sum);
        }
#pragma unroll
        for (unsigned i = 0; i < S::SLOTS * 16; i++) {
            sums[i / 16][i / 4 % 4][i % 4] *= rescale[i % 4 / 2];
        }
    }

    __device__ void multiply_values(const uint32_t operand[4])
    {
        uint32_t v = gpu::shared_address(values);
#pragma unroll
        for (unsigned i = 0; i < S::SLOTS; i++) {
            unsigned chunk = 2 * i + half;
            if (chunk >= chunks) continue;
#pragma unroll
            for (unsigned j = 0; j < 2; j++) {
                // Keys are the rows: transposed, a 16x16 part is two operands of 8 columns.
                uint32_t y[4];
                uint32_t at = gpu::unit_offset(lane % 16, j * 2 + lane / 16);
                gpu::load_matrix4_transposed(y, v + chunk * KEYS * gpu::ROW_BYTES + at);
                gpu::multiply<T>(sums[i][j * 2], operand, y);
                gpu::multiply<T>(sums[i][j * 2 + 1], operand, y + 2);
            }
        }
    }

    __device__ void walk()
    {
        uint32_t end = a.tokens;
        if (a.causal && first + QUERIES < end) end = first + QUERIES;
        load_lines(queries, a.q, a.q_stride, first, QUERIES);
        load_lines(keys, a.k, a.k_stride, 0, KEYS);
        gpu::copy_commit();
        load_lines(values, a.v, a.v_stride, 0, KEYS);
        gpu::copy_commit();
        for (uint32_t key = 0; key < end; key += KEYS) {
            float scores[2][4] = {};
            uint32_t operand[4];
            gpu::copy_wait<1>();
            __syncthreads();  // the keys are there for all
            multiply_keys(scores);
            exchange(scores);
            gpu::copy_wait<0>();
            __syncthreads();  // the values are, and all have read the parts of the scores
            if (key + KEYS < end) load_lines(keys, a.k, a.k_stride, key + KEYS, KEYS);
            gpu::copy_commit();
            exponentiate(scores, key, operand);
            multiply_values(operand);
            __syncthreads();  // all have read the values
            if (key + KEYS < end) load_lines(values, a.v, a.v_stride, key + KEYS, KEYS);
            gpu::copy_commit();
        }
        gpu::copy_wait<0>();  // only empty groups are left
    }

    __device__ void store() const
    {
        uint64_t width = static_cast<uint64_t>(a.heads) * a.head_width;
#pragma unroll
        for (unsigned i = 0; i < S::SLOTS * 8; i++) {
            uint32_t query = first + pair * 16 + lane / 4 + i % 2 * 8;
            uint32_t channel = (i / 8 * 2 + half) * 32 + i / 2 % 4 * 8 + lane % 4 * 2;
            if (query >= a.tokens || channel >= a.head_width) continue;
            const float *two = &sums[i / 8][i / 2 % 4][i % 2 * 2];
            T *at = static_cast<T *>(a.output) + (row + query) * width + column + channel;
            *reinterpret_cast<uint32_t *>(at) =
                gpu::narrow_pair<T>(two[0] / total[i % 2], two[1] / total[i % 2]);
        }
    }
};

template <class T, class S>
GPU_KERNEL void __launch_bounds__(THREADS) attend_mma(const struct gpu_attention a)
{
    GPU_DYNAMIC_SHARED(shared, unsigned char);
    attender<T, S> attender(a, shared);
    attender.walk();
    attender.store();
}

template <class S> void launch_sizes(struct gpu_stream *stream, const struct gpu_attention &a)
{
    dim3 grid((a.tokens + QUERIES - 1) / QUERIES, a.heads, a.batch);
    if (a.storage == DTYPE_F16) {
        auto attention_mma = attend_mma<__half, S>;
        GPU_LAUNCH(stream, attention_mma, grid, THREADS, S::SHARED_BYTES, a);
    } else {
        auto attention_mma = attend_mma<__nv_bfloat16, S>;
        GPU_LAUNCH(stream, attention_mma, grid, THREADS, S::SHARED_BYTES, a);
    }
}

}  // namespace

void gpu_launch_attention_mma(struct gpu_stream *stream, const struct gpu_attention *arguments)
{
    if (arguments->head_width <= 64) {
        launch_sizes<sizes<1>>(stream, *arguments);
    } else {
        launch_sizes<sizes<8>>(stream, *arguments);
    }
}
