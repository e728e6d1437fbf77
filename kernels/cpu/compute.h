// compute.h - the kernels that are compiled once per instruction set, and what they share with the
// files that plan launches.
//
// linear.c, convolution.c and attention.c decide from shapes what is done in which order: a plan is
// a pure function of the operation, computed again by every item. The item functions live in
// *_body.h and come in two compilations, chosen when a launch is written.

#ifndef KERNELS_CPU_COMPUTE_H
#define KERNELS_CPU_COMPUTE_H

#include <assert.h>
#include <stddef.h>

#include "kernels/cpu/launch.h"

// The tile of the dense product, gemm_body.h.
#define STRIP_ROWS 6u
#define PANEL_COLUMNS 16u

// One compilation of the item functions; each is the run of a launch.
struct cpu_compute {
    const char *name;  // "AVX2", "portable", "wide", "AVX-512"
    void (*linear_pack)(const struct operation *, const struct cpu_run *, uint32_t, void *);
    void (*linear_down)(const struct operation *, const struct cpu_run *, uint32_t, void *);
    void (*linear_multiply)(const struct operation *, const struct cpu_run *, uint32_t, void *);
    void (*direct_pack)(const struct operation *, const struct cpu_run *, uint32_t, void *);
    void (*direct_multiply)(const struct operation *, const struct cpu_run *, uint32_t, void *);
    void (*shortcut_pack)(const struct operation *, const struct cpu_run *, uint32_t, void *);
    void (*shortcut_multiply)(const struct operation *, const struct cpu_run *, uint32_t, void *);
    void (*winograd_range)(const struct operation *, const struct cpu_run *, uint32_t, void *);
    void (*winograd_pack)(const struct operation *, const struct cpu_run *, uint32_t, void *);
    void (*winograd_input)(const struct operation *, const struct cpu_run *, uint32_t, void *);
    void (*winograd_multiply)(const struct operation *, const struct cpu_run *, uint32_t, void *);
    void (*attention_pack)(const struct operation *, const struct cpu_run *, uint32_t, void *);
    void (*attention_multiply)(const struct operation *, const struct cpu_run *, uint32_t, void *);
    void (*layer_norm)(const struct operation *, const struct cpu_run *, uint32_t, void *);
};

extern const struct cpu_compute cpu_compute_portable;
#if defined(__x86_64__)
extern const struct cpu_compute cpu_compute_avx2;
extern const struct cpu_compute cpu_compute_wide;
extern const struct cpu_compute cpu_compute_avx512;
#endif

// The best compilation that this processor runs.
// Thread:    any.
const struct cpu_compute *cpu_compute_best(void);

// True when this processor runs AVX-512 as compute_avx512.c is compiled.
// Thread:    any.
bool cpu_has_avx512(void);

// Each writes the launches of its operation, in order, and returns how many. They allocate nothing.
// Thread:    any.
uint32_t cpu_linear_launches(const struct cpu_compute *compute, const struct operation *op,
                             struct cpu_launch out[CPU_LAUNCHES_MAX]);
uint32_t cpu_convolution_launches(const struct cpu_compute *compute, const struct operation *op,
                                  struct cpu_launch out[CPU_LAUNCHES_MAX]);
uint32_t cpu_attention_launches(const struct cpu_compute *compute, const struct operation *op,
                                struct cpu_launch out[CPU_LAUNCHES_MAX]);
// Layer norm, embedding, gather, store, pixels, latents, clear, blend: what only moves memory.
uint32_t cpu_simple_launches(const struct cpu_compute *compute, const struct operation *op,
                             struct cpu_launch out[CPU_LAUNCHES_MAX]);
// Any of them.
uint32_t cpu_launches(const struct cpu_compute *compute, const struct operation *op,
                      struct cpu_launch out[CPU_LAUNCHES_MAX]);

// Their shares of cpu_workspace_bytes.
// Thread:    any.
uint64_t cpu_linear_workspace_bytes(const struct linear *op);
uint64_t cpu_convolution_workspace_bytes(const struct convolution *op);
uint64_t cpu_attention_workspace_bytes(const struct attention *op);

static inline uint32_t cpu_round_up(uint32_t value, uint32_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

static inline uint32_t cpu_divide_up(uint32_t value, uint32_t divisor)
{
    return (value + divisor - 1) / divisor;
}

static inline uint32_t cpu_min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline const struct cpu_weight *cpu_weight_of(const struct weight *weight)
{
    assert(weight != 0);
    return (const struct cpu_weight *)weight;
}

// The floats of a vector (bias, gamma, beta), or NULL for no weight.
static inline const float *cpu_vector(const struct weight *weight)
{
    if (weight == 0) return 0;
    assert(weight->form == WEIGHT_VECTOR);
    return cpu_weight_of(weight)->vector.data;
}

// Elements of one row (one output) of a weight.
static inline uint32_t cpu_weight_row_elements(const struct cpu_weight *weight)
{
    const uint32_t *dims = weight->base.dims;
    if (weight->base.form == WEIGHT_VECTOR) return 1;
    if (weight->base.form == WEIGHT_CONVOLUTION) return dims[1] * dims[2] * dims[3];
    return dims[1];
}

// The first byte of a row as the file has it; rows count on over all parts.
static inline const uint8_t *cpu_weight_row(const struct cpu_weight *weight, uint32_t row)
{
    uint32_t part_rows = weight->base.dims[0] / weight->parts_count;
    const uint8_t *part = weight->parts[row / part_rows];
    size_t row_bytes = (size_t)cpu_weight_row_elements(weight) * dtype_bytes(weight->base.dtype);
    return part + (row % part_rows) * row_bytes;
}

#endif  // KERNELS_CPU_COMPUTE_H
