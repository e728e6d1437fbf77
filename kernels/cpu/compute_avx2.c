// compute_avx2.c - the kernel bodies for AVX2 with FMA and F16C.

#if defined(__x86_64__)

#include "kernels/cpu/compute_body.h"

const struct cpu_compute cpu_compute_avx2 = CPU_COMPUTE("AVX2");

#endif
