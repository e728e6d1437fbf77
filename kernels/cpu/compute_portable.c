// compute_portable.c - the kernel bodies in plain C, correct and slow, for every processor.

#include "kernels/cpu/compute_body.h"

const struct cpu_compute cpu_compute_portable = CPU_COMPUTE("portable");
