// convolution.c - one output pixel an item: the normalised patch is written out, then multiplied.
//
// Launch 0: items n x oh x ow, all k channels of one output pixel. Launch 1, with statistics: items
// n x k, mean and variance of one channel of one image, in two passes.

#include <assert.h>
#include <math.h>
#include <stddef.h>

#include "kernels/operation.h"
#include "kernels/reference/reference.h"

// Scratch of an item of launch 0.
struct patch {
    double *scale;     // [c]: gamma / sigma of the channel's group
    double *mean;      // [c]: of the channel's group
    double *elements;  // [c, r, r]: as the weight has them
};

static struct patch patch_at(const struct convolution *op, void *scratch)
{
    double *at = scratch;
    return (struct patch){.scale = at, .mean = at + op->c, .elements = at + 2ull * op->c};
}

// Mean and variance of a group from those of its channels: all have the same number of pixels.
static void prepare_normalization(const struct convolution *op, const struct cpu_run *run,
                                  uint32_t image, const struct patch *patch)
{
    const struct reference_moments *moments = cpu_address(run, &op->norm.statistics);
    const float *gamma = reference_data(op->norm.gamma);
    assert(moments != NULL);
    assert(gamma != NULL);
    moments += (uint64_t)image * op->c;
    uint32_t width = op->c / op->norm.groups;
    for (uint32_t first = 0; first < op->c; first += width) {
        double mean = 0;
        double variance = 0;
        for (uint32_t i = first; i < first + width; i++) mean += moments[i].mean / width;
        for (uint32_t i = first; i < first + width; i++) {
            double away = moments[i].mean - mean;
            variance += (moments[i].variance + away * away) / width;
        }
        for (uint32_t i = first; i < first + width; i++) {
            patch->mean[i] = mean;
            patch->scale[i] = (double)gamma[i] / sqrt(variance + (double)op->norm.epsilon);
        }
    }
}

// One element of the input as the convolution sees it.
static double normalized(const struct convolution *op, const struct patch *patch, double x,
                         uint32_t channel)
{
    if (op->norm.statistics.place == VALUE_NONE) return x;
    double beta = (double)reference_data(op->norm.beta)[channel];
    double y = (x - patch->mean[channel]) * patch->scale[channel] + beta;
    return op->norm.silu ? y / (1 + exp(-y)) : y;
}

// Row (or column) of the input under tap `tap` of output row `at`; -1 for padding.
static int64_t source_line(const struct convolution *op, uint32_t at, uint32_t tap, uint32_t side)
{
    int64_t pad = op->stride == 2 ? 0 : op->weight->dims[2] / 2;
    int64_t line = (int64_t)at * op->stride + tap - pad;
    int64_t virtual_side = op->upsample ? 2 * (int64_t)side : side;
    if (line < 0 || line >= virtual_side) return -1;
    return op->upsample ? line / 2 : line;
}

struct pixel {
    uint32_t image, y, x;  // of the output
};

static void fill_patch(const struct convolution *op, const struct cpu_run *run, struct pixel at,
                       const struct patch *patch)
{
    const float *input = cpu_address(run, &op->input);
    uint32_t r = op->weight->dims[2];
    for (uint32_t tap = 0; tap < r * r; tap++) {
        int64_t y = source_line(op, at.y, tap / r, op->h);
        int64_t x = source_line(op, at.x, tap % r, op->w);
        bool inside = y >= 0 && x >= 0;
        uint64_t pixel =
            inside ? ((uint64_t)at.image * op->h + (uint64_t)y) * op->w + (uint64_t)x : 0;
        for (uint32_t i = 0; i < op->c; i++) {
            double element = inside ? (double)input[pixel * op->c + i] : 0;
            patch->elements[(uint64_t)i * r * r + tap] =
                inside ? normalized(op, patch, element, i) : 0;
        }
    }
}

static double dot_shortcut(const struct convolution *op, const struct cpu_run *run, uint64_t pixel,
                           uint32_t k)
{
    if (op->shortcut.place == VALUE_NONE) return 0;
    const float *input = (const float *)cpu_address(run, &op->shortcut) + pixel * op->shortcut_c;
    const float *weight = reference_data(op->shortcut_weight) + (uint64_t)k * op->shortcut_c;
    double sum = op->shortcut_bias == NULL ? 0 : (double)reference_data(op->shortcut_bias)[k];
    for (uint32_t i = 0; i < op->shortcut_c; i++) sum += (double)input[i] * (double)weight[i];
    return sum;
}

static void run_pixel(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                      void *scratch)
{
    const struct convolution *op = &operation->convolution;
    uint32_t ow = convolution_output_w(op);
    uint32_t oh = convolution_output_h(op);
    struct pixel at = {.image = item / ow / oh, .y = item / ow % oh, .x = item % ow};
    struct patch patch = patch_at(op, scratch);
    if (op->norm.statistics.place != VALUE_NONE) prepare_normalization(op, run, at.image, &patch);
    fill_patch(op, run, at, &patch);
    uint64_t taps = (uint64_t)op->c * op->weight->dims[2] * op->weight->dims[3];
    const float *residual = cpu_address(run, &op->residual);
    float *output = cpu_address(run, &op->output);
    for (uint32_t k = 0; k < op->k; k++) {
        const float *weight = reference_data(op->weight) + k * taps;
        double sum = op->bias == NULL ? 0 : (double)reference_data(op->bias)[k];
        for (uint64_t i = 0; i < taps; i++) sum += patch.elements[i] * (double)weight[i];
        sum += dot_shortcut(op, run, item, k);
        if (residual != NULL) sum += (double)residual[(uint64_t)item * op->k + k];
        output[(uint64_t)item * op->k + k] = (float)sum;
    }
}

static void run_moments(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                        void *scratch)
{
    (void)scratch;
    const struct convolution *op = &operation->convolution;
    uint64_t pixels = (uint64_t)convolution_output_h(op) * convolution_output_w(op);
    const float *channel =
        (const float *)cpu_address(run, &op->output) + item / op->k * pixels * op->k + item % op->k;
    struct reference_moments moments = {.mean = 0, .variance = 0};
    for (uint64_t i = 0; i < pixels; i++) moments.mean += (double)channel[i * op->k];
    moments.mean /= (double)pixels;
    for (uint64_t i = 0; i < pixels; i++) {
        double away = (double)channel[i * op->k] - moments.mean;
        moments.variance += away * away;
    }
    moments.variance /= (double)pixels;
    ((struct reference_moments *)cpu_address(run, &op->statistics))[item] = moments;
}

uint64_t reference_statistics_bytes(const struct device *device, uint32_t n, uint32_t h, uint32_t w,
                                    uint32_t k)
{
    (void)device;
    (void)h;
    (void)w;
    return (uint64_t)n * k * sizeof(struct reference_moments);
}

uint32_t reference_convolution_launches(const struct operation *operation,
                                        struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    assert(operation->kind == OPERATION_CONVOLUTION);
    const struct convolution *op = &operation->convolution;
    uint32_t r = op->weight->dims[2];
    uint32_t pixels = op->n * convolution_output_h(op) * convolution_output_w(op);
    out[0] = (struct cpu_launch){.items = pixels,
                                 .scratch_bytes = (2ull + r * r) * op->c * sizeof(double),
                                 .run = run_pixel};
    if (op->statistics.place == VALUE_NONE) return 1;
    out[1] = (struct cpu_launch){.items = op->n * op->k, .run = run_moments};
    return 2;
}
