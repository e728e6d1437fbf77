// enqueue_convolution.c - a convolution: factors of its norm, the sums, moments of its output.
//
// Whether a kernel on tensor cores runs depends on the shapes alone, and which of the two on the
// device. What lies between the launches is in the operation's workspace: factors and partials.

#include <assert.h>

#include "base/checked.h"
#include "kernels/cuda/device_gpu.h"
#include "kernels/operation.h"

// Offsets in the workspace.
struct layout {
    uint64_t factors;   // [n, c]
    uint64_t partials;  // [n, slots, k]
    uint64_t bytes;     // of all
    uint32_t slots;     // partials of an image
};

// Shapes alone: no addresses.
static struct gpu_convolution shape_of(const struct gpu_device *device,
                                       const struct convolution *op)
{
    return (struct gpu_convolution){.n = op->n,
                                    .h = op->h,
                                    .w = op->w,
                                    .c = op->c,
                                    .k = op->k,
                                    .r = op->weight->dims[2],
                                    .oh = convolution_output_h(op),
                                    .ow = convolution_output_w(op),
                                    .shortcut_c = op->shortcut_c,
                                    .stride = op->stride,
                                    .upsample = op->upsample,
                                    .silu = op->norm.silu,
                                    .storage = device->storage};
}

static bool takes_mma(const struct gpu_device *device, const struct convolution *op)
{
    bool is_folded_with_more = op->upsample && op->shortcut.place != VALUE_NONE;
    return device->storage != DTYPE_F32 && !is_folded_with_more;
}

static struct layout layout_of(const struct gpu_device *device, const struct convolution *op)
{
    struct gpu_convolution shape = shape_of(device, op);
    struct layout layout = {.factors = 0};
    bool is_mma = takes_mma(device, op);
    layout.slots = is_mma ? gpu_convolution_mma_slots(&shape) : gpu_convolution_plain_slots(&shape);
    uint64_t at = 0;
    if (op->norm.statistics.place != VALUE_NONE) {
        at += round_up((uint64_t)op->n * op->c * sizeof(struct gpu_factors), ARENA_ALIGNMENT);
    }
    layout.partials = at;
    if (op->statistics.place != VALUE_NONE) {
        uint64_t count = (uint64_t)op->n * layout.slots * op->k;
        at += round_up(count * sizeof(struct gpu_partial), ARENA_ALIGNMENT);
    }
    layout.bytes = at;
    return layout;
}

uint64_t gpu_convolution_bytes(const struct gpu_device *device, const struct convolution *op)
{
    assert(op != NULL);
    return layout_of(device, op).bytes;
}

static struct gpu_factors *enqueue_factors(const struct gpu_run *run, const struct convolution *op,
                                           uint64_t offset)
{
    const struct normalization *norm = &op->norm;
    if (norm->statistics.place == VALUE_NONE) return NULL;
    struct gpu_factors *factors = gpu_workspace(run, offset);
    gpu_launch_normalize(run->stream,
                         &(struct gpu_normalize){.moments = gpu_address(run, &norm->statistics),
                                                 .gamma = gpu_weight_data(norm->gamma),
                                                 .beta = gpu_weight_data(norm->beta),
                                                 .factors = factors,
                                                 .n = op->n,
                                                 .c = op->c,
                                                 .groups = norm->groups,
                                                 .epsilon = norm->epsilon});
    return factors;
}

void gpu_enqueue_convolution(const struct gpu_run *run)
{
    const struct convolution *op = &run->operation->convolution;
    struct layout layout = layout_of(run->device, op);
    bool is_mma = takes_mma(run->device, op);
    struct gpu_convolution arguments = shape_of(run->device, op);
    arguments.input = gpu_address(run, &op->input);
    arguments.weight = gpu_weight_data(op->weight);
    arguments.bias = gpu_weight_data(op->bias);
    arguments.factors = enqueue_factors(run, op, layout.factors);
    arguments.residual = gpu_address(run, &op->residual);
    arguments.shortcut = gpu_address(run, &op->shortcut);
    arguments.shortcut_weight = gpu_weight_data(op->shortcut_weight);
    arguments.shortcut_bias = gpu_weight_data(op->shortcut_bias);
    arguments.output = gpu_address(run, &op->output);
    if (op->statistics.place != VALUE_NONE) {
        arguments.partials = gpu_workspace(run, layout.partials);
    }
    if (is_mma && run->device->has_wgmma) {
        gpu_launch_convolution_wgmma(run->stream, &arguments);
    } else if (is_mma) {
        gpu_launch_convolution_mma(run->stream, &arguments);
    } else {
        gpu_launch_convolution_plain(run->stream, &arguments);
    }
    if (op->statistics.place == VALUE_NONE) return;
    gpu_launch_fold_moments(run->stream,
                            &(struct gpu_fold){.partials = arguments.partials,
                                               .moments = gpu_address(run, &op->statistics),
                                               .n = op->n,
                                               .slots = layout.slots,
                                               .k = op->k});
}
