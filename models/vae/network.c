// network.c - the layers as operations of a program, one image at a time.
//
// A flow owns the tensor it carries. A layer reserves its output, appends its operation and
// releases what nobody reads any more, so that at most three tensors of a level are alive at once:
//
//     resnet          conv1: x, y     conv2: y, x = x + ...     in place, no third tensor
//     width changes   conv1: x, y     conv2: y, x, out
//     attention       qkv is three wide, out replaces it, then x = x + ... in place
//
// GroupNorm and SiLU happen while a convolution reads its input; the statistics are left by the
// convolution that made that input. Nearest 2x happens while the upsampling convolution reads.

#include "models/vae/network.h"

#include <assert.h>
#include <math.h>

#define NORM_EPSILON 1e-6f

// What a single layer does beside its convolution.
struct step {
    const struct network_norm *norm;  // with SiLU, of the input; NULL: none
    uint32_t stride;                  // 1 or 2
    bool upsample;
    bool statistics;  // a norm follows
};

static struct normalization normalization(const struct network *self,
                                          const struct network_norm *norm, struct value statistics)
{
    return (struct normalization){.statistics = statistics,
                                  .gamma = norm->gamma,
                                  .beta = norm->beta,
                                  .groups = self->config.groups,
                                  .epsilon = NORM_EPSILON,
                                  .silu = true};
}

// The flow carries another tensor from now on.
static void flow_replace(struct network_flow *flow, struct value x, struct value statistics)
{
    program_release(flow->program, flow->x);
    program_release(flow->program, flow->statistics);
    flow->x = x;
    flow->statistics = statistics;
}

static struct convolution convolution_of(const struct network_flow *flow,
                                         const struct network_layer *layer)
{
    assert(flow->c == layer->c);
    return (struct convolution){.input = flow->x,
                                .n = 1,
                                .h = flow->h,
                                .w = flow->w,
                                .c = layer->c,
                                .k = layer->k,
                                .weight = layer->weight,
                                .bias = layer->bias,
                                .stride = 1};
}

static void append_layer(const struct network *self, struct network_flow *flow,
                         const struct network_layer *layer, const struct step *step)
{
    assert(step->stride == 1 || flow->h % 2 + flow->w % 2 == 0);
    struct convolution op = convolution_of(flow, layer);
    op.stride = step->stride;
    op.upsample = step->upsample;
    if (step->norm != NULL) op.norm = normalization(self, step->norm, flow->statistics);
    uint32_t h = step->upsample ? 2 * flow->h : flow->h / step->stride;
    uint32_t w = step->upsample ? 2 * flow->w : flow->w / step->stride;
    op.output = program_tensor(flow->program, 1, h, w, layer->k);
    if (step->statistics) op.statistics = program_statistics(flow->program, 1, h, w, layer->k);
    program_convolution(flow->program, &op);
    flow_replace(flow, op.output, op.statistics);
    flow->h = h;
    flow->w = w;
    flow->c = layer->k;
}

// y = conv1(silu(norm1(x))), then conv2 adds x, or its 1x1 convolution, to what it makes of y.
static void append_resnet(const struct network *self, struct network_flow *flow,
                          const struct network_resnet *resnet, bool statistics)
{
    struct program *program = flow->program;
    uint32_t k = resnet->conv1.k;
    struct convolution first = convolution_of(flow, &resnet->conv1);
    first.norm = normalization(self, &resnet->norm1, flow->statistics);
    first.output = program_tensor(program, 1, flow->h, flow->w, k);
    first.statistics = program_statistics(program, 1, flow->h, flow->w, k);
    program_convolution(program, &first);

    flow->c = k;
    struct convolution second = convolution_of(flow, &resnet->conv2);
    second.input = first.output;
    second.norm = normalization(self, &resnet->norm2, first.statistics);
    if (statistics) second.statistics = program_statistics(program, 1, flow->h, flow->w, k);
    if (resnet->shortcut.weight == NULL) {
        second.residual = flow->x;
        second.output = flow->x;
        program_convolution(program, &second);
        program_release(program, flow->statistics);
        flow->statistics = second.statistics;
    } else {
        second.shortcut = flow->x;
        second.shortcut_c = resnet->shortcut.c;
        second.shortcut_weight = resnet->shortcut.weight;
        second.shortcut_bias = resnet->shortcut.bias;
        second.output = program_tensor(program, 1, flow->h, flow->w, k);
        program_convolution(program, &second);
        flow_replace(flow, second.output, second.statistics);
    }
    program_release(program, first.output);
    program_release(program, first.statistics);
}

// The part of a value that begins after so many of its elements.
static struct value value_from(const struct network *self, struct value value, uint32_t elements)
{
    uint64_t skipped = (uint64_t)elements * device_info(self->device)->activation_bytes;
    if (value.place == VALUE_NONE) return value;  // the program has failed already
    assert(skipped < value.bytes);
    value.offset += skipped;
    value.bytes -= skipped;
    return value;
}

// softmax(q k^T / sqrt(c)) v with one head, q, k and v side by side; qkv: [h w, 3 c].
static struct value append_scores(const struct network *self, struct network_flow *flow,
                                  struct value qkv)
{
    uint32_t c = flow->c;
    struct value out = program_tensor(flow->program, 1, flow->h, flow->w, c);
    program_attention(flow->program, &(struct attention){.q = qkv,
                                                         .k = value_from(self, qkv, c),
                                                         .v = value_from(self, qkv, 2 * c),
                                                         .q_stride = 3 * c,
                                                         .k_stride = 3 * c,
                                                         .v_stride = 3 * c,
                                                         .output = out,
                                                         .batch = 1,
                                                         .tokens = flow->h * flow->w,
                                                         .heads = 1,
                                                         .head_width = c,
                                                         .scale = 1 / sqrtf((float)c)});
    return out;
}

static void append_attention(const struct network *self, struct network_flow *flow,
                             const struct network_attention *attention)
{
    struct program *program = flow->program;
    struct convolution inner = convolution_of(flow, &attention->qkv);
    inner.norm = normalization(self, &attention->norm, flow->statistics);
    inner.norm.silu = false;
    inner.output = program_tensor(program, 1, flow->h, flow->w, inner.k);
    program_convolution(program, &inner);
    program_release(program, flow->statistics);

    struct value scores = append_scores(self, flow, inner.output);
    program_release(program, inner.output);

    struct convolution outer = convolution_of(flow, &attention->out);
    outer.input = scores;
    outer.residual = flow->x;
    outer.output = flow->x;
    outer.statistics = program_statistics(program, 1, flow->h, flow->w, outer.k);
    program_convolution(program, &outer);
    program_release(program, scores);
    flow->statistics = outer.statistics;
}

// norm_follows: of what comes after the middle.
static void append_middle(const struct network *self, struct network_flow *flow,
                          const struct network_half *half)
{
    append_resnet(self, flow, &half->mid[0], true);
    if (half->attention.qkv.weight != NULL) append_attention(self, flow, &half->attention);
    append_resnet(self, flow, &half->mid[1], true);
}

// A level's resnets and its way to the next one; a norm follows but in front of the sampling.
static void append_level(const struct network *self, struct network_flow *flow,
                         const struct network_level *level, const struct step *sampling)
{
    bool samples = level->sample.weight != NULL;
    for (uint32_t i = 0; i < level->resnets_count; i++) {
        bool last = i + 1 == level->resnets_count;
        append_resnet(self, flow, &level->resnets[i], !(last && samples));
    }
    if (samples) append_layer(self, flow, &level->sample, sampling);
}

void network_encode(const struct network *self, struct network_flow *flow)
{
    assert(self->config.encoder);
    assert(flow->c == self->config.image_channels);
    const struct network_half *half = &self->encoder;
    const struct step plain = {.stride = 1};
    const struct step normed = {.stride = 1, .statistics = true};
    const struct step down = {.stride = 2, .statistics = true};
    const struct step last = {.stride = 1, .norm = &half->norm_out};

    append_layer(self, flow, &half->conv_in, &normed);
    for (uint32_t i = 0; i < self->config.levels; i++) {
        append_level(self, flow, &half->levels[i], &down);
    }
    append_middle(self, flow, half);
    append_layer(self, flow, &half->conv_out, &last);
    if (half->quant.weight != NULL) append_layer(self, flow, &half->quant, &plain);
}

void network_decode(const struct network *self, struct network_flow *flow)
{
    assert(self->config.decoder);
    assert(flow->c == self->config.latent_channels);
    const struct network_half *half = &self->decoder;
    const struct step plain = {.stride = 1};
    const struct step normed = {.stride = 1, .statistics = true};
    const struct step up = {.stride = 1, .upsample = true, .statistics = true};
    const struct step last = {.stride = 1, .norm = &half->norm_out};

    if (half->quant.weight != NULL) append_layer(self, flow, &half->quant, &plain);
    append_layer(self, flow, &half->conv_in, &normed);
    append_middle(self, flow, half);
    for (uint32_t i = 0; i < self->config.levels; i++) {
        append_level(self, flow, &half->levels[i], &up);
    }
    append_layer(self, flow, &half->conv_out, &last);
}
