// epilogue_body.h - what the two ways of a convolution share: normalise what is read, add bias and
// residual to what is written, and take its statistics.

#ifndef KERNELS_CPU_EPILOGUE_BODY_H
#define KERNELS_CPU_EPILOGUE_BODY_H

#include "kernels/cpu/convolution_plan.h"
#include "kernels/cpu/gemm_body.h"

// The norm of one image's input, or all NULL.
struct input_norm {
    const float *mean;    // [channels]
    const float *scale;   // [channels]
    const float *offset;  // [channels]
    bool silu;            // after it
};

static inline struct input_norm input_norm_of(const struct operation *operation,
                                              const struct cpu_run *run,
                                              const struct convolution_plan *plan, uint32_t image)
{
    struct input_norm norm = {0};
    if (!plan->has_norm) return norm;
    const float *start = cpu_address(run, &operation->workspace);
    size_t depth = plan->norm_stride / 3;
    norm.mean = start + image * plan->norm_stride;
    norm.scale = norm.mean + depth;
    norm.offset = norm.scale + depth;
    norm.silu = operation->convolution.norm.silu;
    return norm;
}

// Eight channels from `channel` on, normalised.
LANES_INLINE lanes input_norm_apply(const struct input_norm *norm, bool silu, uint32_t channel,
                                    lanes x)
{
    x = lanes_subtract(x, lanes_load(norm->mean + channel));
    x = lanes_multiply_add(x, lanes_load(norm->scale + channel),
                           lanes_load(norm->offset + channel));
    return silu ? lanes_swish(x, 1.0f) : x;
}

// Running sums of eight channels: of the differences from the first pixel, and of their squares.
struct pixel_sums {
    lanes first;    // the first pixel
    lanes sum;      // of x - first
    lanes squares;  // of (x - first)^2
    lanes low;      // the lowest pixel
    lanes high;     // the highest pixel
};

LANES_INLINE struct pixel_sums pixel_sums_begin(lanes first)
{
    return (struct pixel_sums){first, lanes_zero(), lanes_zero(), first, first};
}

LANES_INLINE void pixel_sums_add(struct pixel_sums *sums, lanes x)
{
    lanes delta = lanes_subtract(x, sums->first);
    sums->sum = lanes_add(sums->sum, delta);
    sums->squares = lanes_multiply_add(delta, delta, sums->squares);
    sums->low = lanes_min(x, sums->low);
    sums->high = lanes_max(x, sums->high);
}

// Moves the sums of a few pixels to the total, which keeps the rounding of long sums small.
LANES_INLINE void pixel_sums_gather(struct pixel_sums *total, struct pixel_sums *sums)
{
    total->first = sums->first;
    total->sum = lanes_add(total->sum, sums->sum);
    total->squares = lanes_add(total->squares, sums->squares);
    total->low = sums->low;
    total->high = sums->high;
    sums->sum = lanes_zero();
    sums->squares = lanes_zero();
}

// Writes mean, M2, lowest and highest of count pixels, each `stride` floats behind the one before.
LANES_INLINE void pixel_sums_finish(const struct pixel_sums *sums, uint32_t count, float *out,
                                    size_t stride)
{
    lanes average = lanes_multiply(sums->sum, lanes_set(1.0f / (float)count));
    lanes correction = lanes_multiply(average, sums->sum);
    lanes m2 = lanes_max(lanes_zero(), lanes_subtract(sums->squares, correction));
    lanes_store(out, lanes_add(sums->first, average));
    lanes_store(out + stride, m2);
    lanes_store(out + 2 * stride, sums->low);
    lanes_store(out + 3 * stride, sums->high);
}

#endif  // KERNELS_CPU_EPILOGUE_BODY_H
