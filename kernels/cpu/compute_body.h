// compute_body.h - all the kernel bodies, and the table of them: each compilation is a file that
// sets what it is compiled for, includes this, and names the table.

#ifndef KERNELS_CPU_COMPUTE_BODY_H
#define KERNELS_CPU_COMPUTE_BODY_H

#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/direct_body.h"
#include "kernels/cpu/layer_norm_body.h"
#include "kernels/cpu/linear_body.h"
#include "kernels/cpu/winograd_body.h"

#define CPU_COMPUTE(compilation)                                                                   \
    {                                                                                              \
        .name = compilation, .linear_pack = linear_pack, .linear_down = linear_down,               \
        .linear_multiply = linear_multiply, .direct_pack = direct_pack,                            \
        .direct_multiply = direct_multiply, .shortcut_pack = shortcut_pack,                        \
        .shortcut_multiply = shortcut_multiply, .winograd_range = winograd_range,                  \
        .winograd_pack = winograd_pack, .winograd_input = winograd_input,                          \
        .winograd_multiply = winograd_multiply, .attention_pack = attention_pack,                  \
        .attention_multiply = attention_multiply, .layer_norm = layer_norm,                        \
    }

#endif  // KERNELS_CPU_COMPUTE_BODY_H
