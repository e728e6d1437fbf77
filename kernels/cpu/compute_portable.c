// compute_portable.c - the kernel bodies in plain C, correct and slow, for every processor.

#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/direct_body.h"
#include "kernels/cpu/linear_body.h"
#include "kernels/cpu/winograd_body.h"

const struct cpu_compute cpu_compute_portable = {
    .name = "portable",
    .linear_pack = linear_pack,
    .linear_down = linear_down,
    .linear_multiply = linear_multiply,
    .direct_pack = direct_pack,
    .direct_multiply = direct_multiply,
    .shortcut_pack = shortcut_pack,
    .shortcut_multiply = shortcut_multiply,
    .winograd_range = winograd_range,
    .winograd_pack = winograd_pack,
    .winograd_input = winograd_input,
    .winograd_multiply = winograd_multiply,
    .attention_pack = attention_pack,
    .attention_multiply = attention_multiply,
};
