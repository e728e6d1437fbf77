// compute.c - which compilation of the kernels runs here, and what an operation's workspace is.

#include "kernels/cpu/compute.h"

#if defined(__x86_64__)
#include <cpuid.h>

// F16C, which not every compiler's __builtin_cpu_supports knows by name.
static bool has_f16c(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

const struct cpu_compute *cpu_compute_best(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
        return &cpu_compute_avx2;
    }
#endif
    return &cpu_compute_portable;
}

bool cpu_has_avx512(void)
{
#if defined(__x86_64__)
    return cpu_compute_best() == &cpu_compute_avx2 && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq");
#else
    return false;
#endif
}

uint64_t cpu_workspace_bytes(const struct device *device, const struct operation *op)
{
    assert(device != 0);
    assert(op != 0);
    switch (op->kind) {
    case OPERATION_CONVOLUTION:
        return cpu_convolution_workspace_bytes(&op->convolution);
    case OPERATION_LINEAR:
        return cpu_linear_workspace_bytes(&op->linear);
    case OPERATION_ATTENTION:
        return cpu_attention_workspace_bytes(&op->attention);
    default:
        return 0;
    }
}

uint32_t cpu_launches(const struct cpu_compute *compute, const struct operation *op,
                      struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    assert(compute != 0);
    assert(op != 0);
    switch (op->kind) {
    case OPERATION_CONVOLUTION:
        return cpu_convolution_launches(compute, op, out);
    case OPERATION_LINEAR:
        return cpu_linear_launches(compute, op, out);
    case OPERATION_ATTENTION:
        return cpu_attention_launches(compute, op, out);
    default:
        return cpu_simple_launches(compute, op, out);
    }
}
