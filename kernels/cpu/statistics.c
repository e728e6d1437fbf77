// statistics.c - mean and variance of a convolution's output, for the GroupNorm that follows.
//
// Each item of a convolution leaves, per channel, the count, the mean and M2 (the sum of squared
// deviations from that mean) of the pixels it wrote: sums of differences from the item's first
// pixel, so that a large mean cancels nothing. They are merged here in the order of the items, in
// double, by the rule of Chan et al.; the statistics hold, for each image, mean and M2 of all
// channels in double and then the lowest and the highest in float.
// Groups, gamma and beta are the consumer's: it folds them into (x - mean) * scale + offset. From
// the same numbers it knows how large its input will be, for Winograd's error bound; an input
// without statistics is read once for that (measured: 0.3 % of a decode).

#include <math.h>

#include "kernels/cpu/convolution_plan.h"

// Of one channel: two doubles and two floats.
#define CHANNEL_BYTES 24u

// Where the statistics of an image begin.
static double *image_statistics(const struct cpu_run *run, const struct value *statistics,
                                uint32_t image, uint32_t channels)
{
    uint8_t *start = (uint8_t *)cpu_address(run, statistics);
    return (double *)(void *)(start + (size_t)image * channels * CHANNEL_BYTES);
}

uint64_t cpu_statistics_bytes(const struct device *device, uint32_t n, uint32_t h, uint32_t w,
                              uint32_t k)
{
    (void)device;
    (void)h;
    (void)w;
    return (uint64_t)n * k * CHANNEL_BYTES;
}

void cpu_statistics_merge(const struct operation *op, const struct cpu_run *run, uint32_t item,
                          void *scratch)
{
    (void)scratch;
    const struct convolution *self = &op->convolution;
    struct convolution_plan plan = cpu_convolution_plan(self);
    uint32_t columns = plan.panels * PANEL_COLUMNS;
    uint32_t image = item / plan.panels;
    uint32_t first = item % plan.panels * PANEL_COLUMNS;
    uint32_t partials =
        cpu_image_is_direct(op, run, &plan, image) ? plan.direct.tiles : plan.tiles.partials;
    const uint8_t *workspace = cpu_address(run, &op->workspace);
    const float *partial = (const float *)(const void *)(workspace + plan.partials_offset) +
                           (size_t)image * plan.partials * plan.partial_stride;
    double count = 0;
    double mean[PANEL_COLUMNS] = {0};
    double m2[PANEL_COLUMNS] = {0};
    float low[PANEL_COLUMNS] = {0};
    float high[PANEL_COLUMNS] = {0};
    for (uint32_t i = 0; i < partials; i++, partial += plan.partial_stride) {
        double more = (double)partial[0];
        if (more == 0) continue;
        double share = more / (count + more);
        for (uint32_t j = 0; j < PANEL_COLUMNS; j++) {
            double delta = (double)partial[16 + first + j] - mean[j];
            mean[j] += delta * share;
            m2[j] += (double)partial[16 + columns + first + j] + delta * delta * count * share;
            float lowest = partial[16 + 2 * (size_t)columns + first + j];
            float highest = partial[16 + 3 * (size_t)columns + first + j];
            if (count == 0 || lowest < low[j]) low[j] = lowest;
            if (count == 0 || highest > high[j]) high[j] = highest;
        }
        count += more;
    }
    double *out = image_statistics(run, &self->statistics, image, self->k);
    float *extremes = (float *)(void *)(out + (size_t)2 * self->k);
    for (uint32_t j = 0; j < PANEL_COLUMNS && first + j < self->k; j++) {
        out[first + j] = mean[j];
        out[self->k + first + j] = m2[j];
        extremes[first + j] = low[j];
        extremes[self->k + first + j] = high[j];
    }
}

// ---------------------------------------------------------------------------------------------
// How large an input is

static void leave_range(float *range, uint32_t channels, double largest, double mean_square,
                        uint64_t count)
{
    uint64_t share = count / 256;
    double bright = share < 9 ? (double)share : 9;
    double rest = mean_square - bright * largest * largest / (double)count;
    if (rest < mean_square * 0x1p-12) rest = mean_square * 0x1p-12;
    range[0] = (float)(largest * largest);
    range[channels] = (float)rest;
}

void cpu_range_merge(const struct operation *op, const struct cpu_run *run, uint32_t item,
                     void *scratch)
{
    (void)scratch;
    const struct convolution *self = &op->convolution;
    struct convolution_plan plan = cpu_convolution_plan(self);
    uint64_t pixels = (uint64_t)self->h * self->w;
    float *range = cpu_convolution_range(op, run, &plan, item);
    for (uint32_t i = 0; i < self->c; i++) {
        double largest = 0;
        double squares = 0;
        for (uint32_t j = 0; j < plan.range_bands; j++) {
            const float *band = cpu_convolution_band(op, run, &plan, item, j) + i;
            largest = fmax(largest, (double)band[0]);
            squares += (double)band[self->c];
        }
        leave_range(range + i, self->c, largest, squares / (double)pixels, pixels);
    }
}

// The range of a channel behind its norm, x * scale + offset, and SiLU. SiLU is at most 0.2785
// large below zero; that it makes the mean square smaller, too, is left out.
static void leave_normalized_range(float *range, const struct convolution *op, const double *means,
                                   uint32_t channel, const double affine[2])
{
    uint64_t pixels = (uint64_t)op->h * op->w;
    const float *extremes = (const float *)(const void *)(means + 2 * (size_t)op->c);
    double a = (double)extremes[channel] * affine[0] + affine[1];
    double b = (double)extremes[op->c + channel] * affine[0] + affine[1];
    double mean = means[channel] * affine[0] + affine[1];
    double variance = means[op->c + channel] / (double)pixels * affine[0] * affine[0];
    double largest = fmax(fabs(a), fabs(b));
    if (op->norm.silu) {
        double high = fmax(a, b);
        largest = fmax(fmin(a, b) < 0 ? 0.2785 : 0, high > 0 ? high / (1 + exp(-high)) : 0);
    }
    leave_range(range + channel, op->c, largest, variance + mean * mean, pixels);
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
    const double *mean = image_statistics(run, &norm->statistics, item, self->c);
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
            double offset = (beta != NULL ? (double)beta[i] : 0.0) - rest * scale * gain;
            out[2 * depth + i] = (float)offset;
            if (!plan.winograd) continue;
            const double affine[2] = {scale * gain, offset - (double)out[i] * scale * gain};
            leave_normalized_range(cpu_convolution_range(op, run, &plan, item), self, mean, i,
                                   affine);
        }
    }
}
