// winograd_bound_body.h - what the error bound of convolution_plan.h is made of: the range of an
// input that has no statistics, and the columns of a weight that ask for the direct way.

#ifndef KERNELS_CPU_WINOGRAD_BOUND_BODY_H
#define KERNELS_CPU_WINOGRAD_BOUND_BODY_H

#include "kernels/cpu/convolution_plan.h"
#include "kernels/cpu/gemm_body.h"

// Pixels whose squares are summed from zero.
#define RANGE_CHUNK 64u

// Largest magnitudes and sums of squares of groups * 8 channels of an image.
LANES_INLINE void winograd_range_groups(const float *x, uint64_t pixels, uint32_t channels,
                                        uint32_t groups, float *largest, float *squares)
{
    lanes most[RANGE_CHANNELS / 8];
    lanes total[RANGE_CHANNELS / 8];
    for (uint32_t i = 0; i < groups; i++) most[i] = total[i] = lanes_zero();
    for (uint64_t first = 0; first < pixels; first += RANGE_CHUNK) {
        lanes sum[RANGE_CHANNELS / 8];
        uint64_t end = first + RANGE_CHUNK < pixels ? first + RANGE_CHUNK : pixels;
        for (uint32_t i = 0; i < groups; i++) sum[i] = lanes_zero();
        for (uint64_t pixel = first; pixel < end; pixel++) {
#pragma GCC unroll 4
            for (uint32_t i = 0; i < groups; i++) {
                lanes value = lanes_load(x + pixel * channels + 8 * (size_t)i);
                most[i] = lanes_max(lanes_max(value, lanes_subtract(lanes_zero(), value)), most[i]);
                sum[i] = lanes_multiply_add(value, value, sum[i]);
            }
        }
        for (uint32_t i = 0; i < groups; i++) total[i] = lanes_add(total[i], sum[i]);
    }
    for (uint32_t i = 0; i < groups; i++) {
        lanes_store(largest + 8 * (size_t)i, most[i]);
        lanes_store(squares + 8 * (size_t)i, total[i]);
    }
}

// An item: RANGE_CHANNELS channels of a band of one image. With Winograd channels are a multiple of
// 16.
static void winograd_range(const struct operation *operation, const struct cpu_run *run,
                           uint32_t item, void *scratch)
{
    (void)scratch;
    const struct convolution *op = &operation->convolution;
    struct convolution_plan plan = cpu_convolution_plan(op);
    uint32_t parts = cpu_divide_up(op->c, RANGE_CHANNELS);
    uint32_t first = item % parts * RANGE_CHANNELS;
    uint32_t band = item / parts % plan.range_bands;
    uint32_t image = item / parts / plan.range_bands;
    uint64_t pixels = (uint64_t)op->h * op->w;
    uint64_t begin = pixels * band / plan.range_bands;
    uint64_t end = pixels * (band + 1) / plan.range_bands;
    const float *x = (const float *)cpu_address(run, &op->input);
    x += (image * pixels + begin) * op->c + first;
    float *largest = cpu_convolution_band(operation, run, &plan, image, band) + first;
    float *squares = largest + op->c;
    if (op->c - first >= RANGE_CHANNELS) {
        winograd_range_groups(x, end - begin, op->c, RANGE_CHANNELS / 8, largest, squares);
    } else {
        assert(op->c - first == 16);
        winograd_range_groups(x, end - begin, op->c, 2, largest, squares);
    }
}

// Says for each image whether the columns of this panel ask for the direct way. panel: [c][9][16].
static void winograd_bound(const struct operation *operation, const struct cpu_run *run,
                           const struct convolution_plan *plan, uint32_t item, const float *panel)
{
    const double gain = WINOGRAD_ERROR_GAIN * 0x1p-24 / WINOGRAD_ERROR_MAX;
    uint32_t c = operation->convolution.c;
    for (uint32_t image = 0; image < operation->convolution.n; image++) {
        const float *range = cpu_convolution_range(operation, run, plan, image);
        float error[PANEL_COLUMNS];
        float size[PANEL_COLUMNS];
        for (uint32_t half = 0; half < PANEL_COLUMNS; half += 8) {
            lanes sums[2] = {lanes_zero(), lanes_zero()};
            for (uint32_t channel = 0; channel < c; channel++) {
                const float *from = panel + (size_t)channel * 9 * PANEL_COLUMNS + half;
                lanes norm = lanes_zero();
#pragma GCC unroll 9
                for (uint32_t i = 0; i < 9; i++) {
                    lanes tap = lanes_load(from + i * PANEL_COLUMNS);
                    norm = lanes_multiply_add(tap, tap, norm);
                }
                sums[0] = lanes_multiply_add(norm, lanes_set(range[channel]), sums[0]);
                sums[1] = lanes_multiply_add(norm, lanes_set(range[c + channel]), sums[1]);
            }
            lanes_store(error + half, sums[0]);
            lanes_store(size + half, sums[1]);
        }
        // What is infinite or no number asks, too: the direct way keeps it to its own pixels.
        uint32_t asks = 0;
        for (uint32_t i = 0; i < PANEL_COLUMNS; i++) {
            bool fits = (double)error[i] * gain * gain <= (double)size[i];
            asks += !fits || !isfinite(error[i]);
        }
        cpu_convolution_asks(operation, run, plan, image)[item] = (float)asks;
    }
}

#endif  // KERNELS_CPU_WINOGRAD_BOUND_BODY_H
