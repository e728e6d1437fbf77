// operation.c - names, geometry and cost of operations. Costs are counted in 64 bits and saturate.

#include "kernels/operation.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>

#include "base/checked.h"

static const char *const names[] = {
    [OPERATION_CONVOLUTION] = "convolution",
    [OPERATION_LINEAR] = "linear",
    [OPERATION_ATTENTION] = "attention",
    [OPERATION_LAYER_NORM] = "layer_norm",
    [OPERATION_EMBEDDING] = "embedding",
    [OPERATION_GATHER] = "gather",
    [OPERATION_STORE] = "store",
    [OPERATION_PIXELS_LOAD] = "pixels_load",
    [OPERATION_PIXELS_STORE] = "pixels_store",
    [OPERATION_LATENT_LOAD] = "latent_load",
    [OPERATION_LATENT_STORE] = "latent_store",
    [OPERATION_WORDS_STORE] = "words_store",
    [OPERATION_CLEAR] = "clear",
    [OPERATION_BLEND] = "blend",
    [OPERATION_BLEND_END] = "blend_end",
    [OPERATION_MARK] = "mark",
};
_Static_assert(sizeof names / sizeof names[0] == OPERATION_COUNT, "every operation has a name");

const char *operation_name(enum operation_kind kind)
{
    assert((unsigned)kind < OPERATION_COUNT);
    return names[kind];
}

void operation_describe(const struct operation *op, char *out, size_t out_bytes)
{
    assert(op != NULL);
    assert(out_bytes > 0);
    const char *name = operation_name(op->kind);
    if (op->kind == OPERATION_CONVOLUTION) {
        const struct convolution *c = &op->convolution;
        snprintf(out, out_bytes, "%s %ux%u%s %u>%u %ux%u", name, c->weight->dims[2],
                 c->weight->dims[3], c->upsample ? " up" : "", c->c, c->k, convolution_output_h(c),
                 convolution_output_w(c));
    } else if (op->kind == OPERATION_LINEAR) {
        const struct linear *l = &op->linear;
        snprintf(out, out_bytes, "%s %u x %u>%u%s", name, l->rows, l->c, l->k,
                 l->low_rank_count > 0 ? " low rank" : "");
    } else if (op->kind == OPERATION_ATTENTION) {
        const struct attention *a = &op->attention;
        snprintf(out, out_bytes, "%s %ux%u heads %u tokens%s", name, a->heads, a->head_width,
                 a->tokens, a->causal ? " causal" : "");
    } else {
        snprintf(out, out_bytes, "%s", name);
    }
}

static uint32_t output_side(const struct convolution *op, uint32_t side)
{
    if (op->upsample) return side > UINT32_MAX / 2 ? 0 : 2 * side;
    if (op->stride == 2) return side < 2 ? 0 : (side - 2) / 2 + 1;
    return side;
}

uint32_t convolution_output_h(const struct convolution *op)
{
    assert(op != NULL);
    return output_side(op, op->h);
}

uint32_t convolution_output_w(const struct convolution *op)
{
    assert(op != NULL);
    return output_side(op, op->w);
}

// a * b * c * d, or UINT64_MAX.
static uint64_t product(uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    const uint64_t dims[4] = {a, b, c, d};
    uint64_t result = UINT64_MAX;
    if (!checked_product(dims, 4, &result)) result = UINT64_MAX;
    return result;
}

static uint64_t sum(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static uint64_t convolution_cost(const struct convolution *op)
{
    uint64_t pixels = product(op->n, convolution_output_h(op), convolution_output_w(op), 1);
    uint64_t taps = product(op->weight->dims[2], op->weight->dims[3], op->c, 1);
    uint64_t shortcut = op->shortcut.place == VALUE_NONE ? 0 : op->shortcut_c;
    return product(2, pixels, op->k, sum(taps, shortcut));
}

static uint64_t linear_cost(const struct linear *op)
{
    uint64_t cost = product(2, op->rows, op->k, op->c);
    for (uint32_t i = 0; i < op->low_rank_count; i++) {
        const struct low_rank *path = &op->low_rank[i];
        uint64_t width = sum(op->c, path->column_count);
        cost = sum(cost, product(2, path->row_count, path->rank, width));
    }
    return cost;
}

static uint64_t attention_cost(const struct attention *op)
{
    uint64_t tokens = op->tokens;
    uint64_t pairs = op->causal ? tokens * (tokens + 1) / 2 : tokens * tokens;
    return product(4, product(op->batch, op->heads, op->head_width, 1), pairs, 1);
}

uint64_t operation_cost(const struct operation *op)
{
    assert(op != NULL);
    if (op->kind == OPERATION_CONVOLUTION) return convolution_cost(&op->convolution);
    if (op->kind == OPERATION_LINEAR) return linear_cost(&op->linear);
    if (op->kind == OPERATION_ATTENTION) return attention_cost(&op->attention);
    return 0;
}

float operation_limit(enum dtype dtype)
{
    assert(dtype_is_real(dtype));
    if (dtype == DTYPE_F16) return 65520.0f;
    if (dtype == DTYPE_BF16) return 0x1.ffp127f;
    return INFINITY;
}
