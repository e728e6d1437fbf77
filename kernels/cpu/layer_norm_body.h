// layer_norm_body.h - layer norm: sums in float64, in CHAINS interleaved chains that the compiler
// keeps in vector registers; their number is part of the result and never changes.

#ifndef KERNELS_CPU_LAYER_NORM_BODY_H
#define KERNELS_CPU_LAYER_NORM_BODY_H

#include <math.h>

#include "kernels/cpu/band.h"
#include "kernels/cpu/lanes.h"

#define CHAINS 8u

// The sum of (x - shift)^power, power 1 or 2.
LANES_INLINE double layer_norm_sum(const float *x, uint32_t width, double shift, int power)
{
    double chains[CHAINS] = {0};
    uint32_t i = 0;
    for (; i + CHAINS <= width; i += CHAINS) {
        for (uint32_t j = 0; j < CHAINS; j++) {
            double away = (double)x[i + j] - shift;
            chains[j] += power == 1 ? away : away * away;
        }
    }
    for (uint32_t j = 0; i + j < width; j++) {
        double away = (double)x[i + j] - shift;
        chains[j] += power == 1 ? away : away * away;
    }
    for (uint32_t step = CHAINS / 2; step > 0; step /= 2) {
        for (uint32_t j = 0; j < step; j++) chains[j] += chains[j + step];
    }
    return chains[0];
}

static void layer_norm(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                       void *scratch)
{
    (void)scratch;
    const struct layer_norm *op = &operation->layer_norm;
    const float *gamma = cpu_vector(op->gamma);
    const float *beta = cpu_vector(op->beta);
    const uint32_t width = op->width;
    struct band band = band_of(item, op->rows, width);
    for (uint32_t row = band.begin; row < band.end; row++) {
        const float *x = (const float *)cpu_address(run, &op->input) + (uint64_t)row * width;
        float *y = (float *)cpu_address(run, &op->output) + (uint64_t)row * width;
        double mean = layer_norm_sum(x, width, 0, 1) / width;
        double variance = layer_norm_sum(x, width, mean, 2) / width;
        double scale = 1 / sqrt(variance + (double)op->epsilon);
        for (uint32_t i = 0; i < width; i++) {
            y[i] = (float)(((double)x[i] - mean) * scale) * gamma[i] + beta[i];
        }
    }
}

#endif  // KERNELS_CPU_LAYER_NORM_BODY_H
