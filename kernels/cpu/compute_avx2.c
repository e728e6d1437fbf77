// compute_avx2.c - the kernel bodies for AVX2 with FMA and F16C.

#if defined(__x86_64__)

#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/direct_body.h"
#include "kernels/cpu/linear_body.h"
#include "kernels/cpu/winograd_body.h"

const struct cpu_compute cpu_compute_avx2 = {
    .name = "AVX2",
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

#endif
