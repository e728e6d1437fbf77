// ahead.c - what an operation does by the way for the one behind it, while it has a row at hand:
// the last launch of a linear makes the layer norm of its output, and a layer norm or a linear
// splits its output for the linear that reads it. A launch less each, and the bytes are the same.
//
// Whoever makes a row writes it, its norm and its parts while others still read theirs, so these
// must lie elsewhere than what is read. The planner keeps a linear's workspace until the next one
// has taken its own (holds_workspace); where something overlaps in spite of that, there are two
// launches.

#include <assert.h>

#include "kernels/cuda/device_gpu.h"

const struct operation *gpu_before(const struct gpu_run *run, const struct operation *operation)
{
    assert(operation >= run->program->operations);
    while (operation > run->program->operations) {
        operation -= 1;
        if (operation->kind != OPERATION_MARK) return operation;
    }
    return NULL;
}

const struct operation *gpu_behind(const struct gpu_run *run, const struct operation *operation)
{
    const struct operation *end = run->program->operations + run->program->operations_count;
    assert(operation < end);
    while (++operation < end) {
        if (operation->kind != OPERATION_MARK) return operation;
    }
    return NULL;
}

static bool is_same(const struct value *a, const struct value *b)
{
    return a->place == VALUE_ARENA && b->place == VALUE_ARENA && a->offset == b->offset;
}

// True when one may be written while the other is still read.
static bool is_apart(const struct value *a, const struct value *b)
{
    if (a->place != VALUE_ARENA || b->place != VALUE_ARENA) return true;
    return a->offset + a->bytes <= b->offset || b->offset + b->bytes <= a->offset;
}

// From all that the last launch of a linear reads.
static bool is_apart_from_linear(const struct value *written, const struct operation *linear)
{
    return is_apart(written, &linear->workspace) && is_apart(written, &linear->linear.residual);
}

bool gpu_makes_split(const struct gpu_run *run, const struct operation *maker,
                     const struct operation *linear)
{
    if (maker == NULL || linear == NULL || linear->kind != OPERATION_LINEAR) return false;
    const struct linear *to = &linear->linear;
    const struct value *parts = &linear->workspace;
    if (gpu_linear_parts(run->device, gpu_weight_of(to->weight)->type) == 1) return false;
    if (maker->kind == OPERATION_LAYER_NORM) {
        const struct layer_norm *from = &maker->layer_norm;
        return is_same(&to->input, &from->output) && to->rows == from->rows &&
               to->c == from->width && is_apart(parts, &from->input);
    }
    if (maker->kind != OPERATION_LINEAR) return false;
    const struct linear *from = &maker->linear;
    return is_same(&to->input, &from->output) && to->rows == from->rows && to->c == from->k &&
           is_apart_from_linear(parts, maker);
}

bool gpu_makes_norm(const struct gpu_run *run, const struct operation *linear,
                    const struct operation *norm)
{
    if (linear == NULL || norm == NULL) return false;
    if (linear->kind != OPERATION_LINEAR || norm->kind != OPERATION_LAYER_NORM) return false;
    const struct linear *from = &linear->linear;
    const struct layer_norm *to = &norm->layer_norm;
    const struct operation *next = gpu_behind(run, norm);
    if (!is_same(&to->input, &from->output) || to->rows != from->rows || to->width != from->k) {
        return false;
    }
    if (!is_apart_from_linear(&to->output, linear)) return false;
    return !gpu_makes_split(run, norm, next) || is_apart_from_linear(&next->workspace, linear);
}
