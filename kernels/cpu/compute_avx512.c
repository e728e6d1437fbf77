// compute_avx512.c - the kernel bodies for AVX-512: the product sixteen wide, the rest as for AVX2
// with twice as many registers. Nobody has run it on such a processor yet, only its lowered twin
// (compute_wide_avx2.c), so "cpu" does not choose it; "cpu:avx512" does.

#if defined(__x86_64__)

#define CPU_TILE_WIDE
#include "kernels/cpu/compute_body.h"

const struct cpu_compute cpu_compute_avx512 = CPU_COMPUTE("AVX-512");

#endif
