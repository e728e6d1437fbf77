// compute_wide_avx2.c - the bodies of AVX-512, its sixteen lanes lowered to pairs of eight, so that
// the conformance suite can look at them on a processor that has only AVX2.

#if defined(__x86_64__)

#define CPU_TILE_WIDE
#include "kernels/cpu/compute_body.h"

const struct cpu_compute cpu_compute_wide = CPU_COMPUTE("wide");

#endif
