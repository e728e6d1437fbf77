// normalize.cu - GroupNorm around a convolution: from the blocks' partials to the moments of each
// channel, and from those to the factor and shift that the next convolution applies.
//
// Moments are kept around their means and merged pairwise (Chan, Golub, LeVeque), because a sum of
// squares minus a squared mean has no digits left where the mean is large. Every sum has a fixed
// order.

#include "kernels/cuda/elements.h"

namespace
{

constexpr unsigned CHANNELS = 32;  // of a block
constexpr unsigned SLICES = 8;     // threads that share one channel

__device__ struct gpu_partial merge(const struct gpu_partial &a, const struct gpu_partial &b)
{
    float count = a.count + b.count;
    if (b.count == 0) return a;
    float away = b.mean - a.mean;
    float part = b.count / count;
    struct gpu_partial both;
    both.count = count;
    both.mean = fmaf(away, part, a.mean);
    both.squares = a.squares + fmaf(away * away, a.count * part, b.squares);
    return both;
}

// Block: CHANNELS channels of one image. Slice s takes the slots s, s + SLICES, ...
GPU_KERNEL void fold_moments(const struct gpu_fold a)
{
    GPU_SHARED(slices, struct gpu_partial[SLICES][CHANNELS]);
    uint32_t channel = blockIdx.x * CHANNELS + threadIdx.x;
    uint64_t image = blockIdx.y;
    struct gpu_partial mine = {0, 0, 0};
    if (channel < a.k) {
        for (uint32_t slot = threadIdx.y; slot < a.slots; slot += SLICES) {
            mine = merge(mine, a.partials[(image * a.slots + slot) * a.k + channel]);
        }
    }
    slices[threadIdx.y][threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.y > 0 || channel >= a.k) return;
    for (unsigned slice = 1; slice < SLICES; slice++) {
        mine = merge(mine, slices[slice][threadIdx.x]);
    }
    struct gpu_moments moments = {mine.mean, mine.squares / mine.count};
    a.moments[image * a.k + channel] = moments;
}

// Thread: one group of one image. All channels of a group have the same number of pixels.
GPU_KERNEL void group_factors(const struct gpu_normalize a)
{
    uint32_t width = a.c / a.groups;
    uint64_t groups = static_cast<uint64_t>(a.n) * a.groups;
    for (uint64_t i = gpu::thread_index(); i < groups; i += gpu::thread_count()) {
        uint64_t image = i / a.groups;
        uint32_t first = static_cast<uint32_t>(i % a.groups) * width;
        const struct gpu_moments *moments = a.moments + image * a.c + first;
        struct gpu_partial all = {0, 0, 0};
        for (uint32_t j = 0; j < width; j++) {
            struct gpu_partial one = {1, moments[j].mean, moments[j].variance};
            all = merge(all, one);
        }
        float variance = all.squares / static_cast<float>(width);
        float inverse = 1.0f / sqrtf(variance + a.epsilon);
        for (uint32_t j = 0; j < width; j++) {
            float scale = inverse * a.gamma[first + j];
            struct gpu_factors factors = {scale, fmaf(-all.mean, scale, a.beta[first + j])};
            a.factors[image * a.c + first + j] = factors;
        }
    }
}

}  // namespace

void gpu_launch_fold_moments(struct gpu_stream *stream, const struct gpu_fold *arguments)
{
    GPU_LAUNCH(stream, fold_moments, dim3((arguments->k + CHANNELS - 1) / CHANNELS, arguments->n),
               dim3(CHANNELS, SLICES), 0, *arguments);
}

void gpu_launch_normalize(struct gpu_stream *stream, const struct gpu_normalize *arguments)
{
    uint64_t groups = static_cast<uint64_t>(arguments->n) * arguments->groups;
    GPU_LAUNCH(stream, group_factors, gpu::blocks_for(groups, 64), 64, 0, *arguments);
}
