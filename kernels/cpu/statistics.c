// statistics.c - mean and variance of a convolution's output, for the GroupNorm that follows.
//
// Each item of a convolution leaves, per channel, the count, the mean and M2 (the sum of squared
// deviations from that mean) of the pixels it wrote: sums of differences from the item's first
// pixel, so that a large mean cancels nothing. They are merged here in the order of the items, in
// double, by the rule of Chan et al.; the statistics hold, for each image and channel, mean and M2.
// Groups, gamma and beta are the consumer's: it folds them into (x - mean) * scale + offset.

#include <math.h>

#include "kernels/cpu/convolution_plan.h"

uint64_t cpu_statistics_bytes(const struct device *device, uint32_t n, uint32_t h, uint32_t w,
                              uint32_t k)
{
    (void)device;
    (void)h;
    (void)w;
    return (uint64_t)n * k * 2 * sizeof(double);
}

void cpu_statistics_merge(const struct operation *op, const struct cpu_run *run, uint32_t item,
                          void *scratch)
{
    (void)scratch;
    const struct convolution *self = &op->convolution;
    struct convolution_plan plan = cpu_convolution_plan(self);
    uint32_t panels = cpu_divide_up(self->k, PANEL_COLUMNS);
    uint32_t columns = cpu_round_up(self->k, PANEL_COLUMNS);
    uint32_t image = item / panels;
    uint32_t first = item % panels * PANEL_COLUMNS;
    const uint8_t *workspace = cpu_address(run, &op->workspace);
    const float *partial = (const float *)(const void *)(workspace + plan.partials_offset) +
                           (size_t)image * plan.partials * plan.partial_stride;
    double count = 0;
    double mean[PANEL_COLUMNS] = {0};
    double m2[PANEL_COLUMNS] = {0};
    for (uint32_t i = 0; i < plan.partials; i++, partial += plan.partial_stride) {
        double more = (double)partial[0];
        if (more == 0) continue;
        double share = more / (count + more);
        for (uint32_t j = 0; j < PANEL_COLUMNS; j++) {
            double delta = (double)partial[16 + first + j] - mean[j];
            mean[j] += delta * share;
            m2[j] += (double)partial[16 + columns + first + j] + delta * delta * count * share;
        }
        count += more;
    }
    double *out = (double *)cpu_address(run, &self->statistics) + (size_t)image * 2 * self->k;
    for (uint32_t j = 0; j < PANEL_COLUMNS && first + j < self->k; j++) {
        out[first + j] = mean[j];
        out[self->k + first + j] = m2[j];
    }
}

void cpu_norm_fold(const struct operation *op, const struct cpu_run *run, uint32_t item,
                   void *scratch)
{
    (void)scratch;
    const struct convolution *self = &op->convolution;
    const struct normalization *norm = &self->norm;
    assert(norm->groups >= 1);
    assert(self->c % norm->groups == 0);
    struct convolution_plan plan = cpu_convolution_plan(self);
    uint32_t width = self->c / norm->groups;
    uint32_t depth = (uint32_t)(plan.norm_stride / 3);
    double pixels = (double)self->h * self->w;
    const double *mean =
        (const double *)cpu_address(run, &norm->statistics) + (size_t)item * 2 * self->c;
    const double *m2 = mean + self->c;
    const float *gamma = cpu_vector(norm->gamma);
    const float *beta = cpu_vector(norm->beta);
    float *out = (float *)cpu_address(run, &op->workspace) + item * plan.norm_stride;
    for (uint32_t i = 0; i < 3 * depth; i++) out[i] = 0;
    for (uint32_t first = 0; first < self->c; first += width) {
        double group_mean = 0;
        double group_m2 = 0;
        for (uint32_t i = first; i < first + width; i++) group_mean += mean[i];
        group_mean /= width;
        for (uint32_t i = first; i < first + width; i++) {
            double delta = mean[i] - group_mean;
            group_m2 += m2[i] + pixels * delta * delta;
        }
        double variance = group_m2 / (pixels * width);
        double scale = 1.0 / sqrt(variance + (double)norm->epsilon);
        for (uint32_t i = first; i < first + width; i++) {
            double gain = gamma != NULL ? (double)gamma[i] : 1.0;
            // What float rounds off the mean comes back with the offset.
            double rest = group_mean - (double)(float)group_mean;
            out[i] = (float)group_mean;
            out[depth + i] = (float)(scale * gain);
            out[2 * depth + i] =
                (float)((beta != NULL ? (double)beta[i] : 0.0) - rest * scale * gain);
        }
    }
}
