// cpu_kit.h - what the tests of kernels/cpu share: random weights, and a runner that takes the
// items of an operation one after another, without a pool.

#ifndef TESTS_UNIT_KERNELS_CPU_KIT_H
#define TESTS_UNIT_KERNELS_CPU_KIT_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/compute.h"
#include "tests/test.h"

// Slots of the operations below.
enum { SLOT_INPUT, SLOT_OUTPUT, SLOT_RESIDUAL, SLOT_SHORTCUT, SLOT_IN_STATISTICS, SLOT_STATISTICS };

static inline float random_float(void)
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (float)(state >> 40) / 8388608.0f - 1.0f;
}

static inline float *random_floats(size_t count)
{
    float *floats = malloc((count + 1) * sizeof floats[0]);
    assert_non_null(floats);
    for (size_t i = 0; i < count; i++) floats[i] = random_float();
    return floats;
}

// A weight of random numbers in the given type, and the same numbers as floats.
struct sample {
    void *bytes;            // as a file would have them
    float *values;          // the same, widened
    struct weight *weight;  // made of bytes
};

static inline struct sample sample_create(enum weight_form form, enum dtype dtype,
                                          const uint32_t dims[4])
{
    struct sample self = {0};
    size_t count = 1;
    for (uint32_t i = 0; i < 4; i++) count *= dims[i] != 0 ? dims[i] : 1;
    self.values = random_floats(count);
    self.bytes = malloc(count * dtype_bytes(dtype) + 1);
    assert_non_null(self.bytes);
    // An odd address, as a file may have it.
    uint8_t *odd = (uint8_t *)self.bytes + 1;
    dtype_convert(odd, dtype, self.values, DTYPE_F32, count);
    dtype_convert(self.values, DTYPE_F32, odd, dtype, count);
    struct weight_source source = {.form = form, .dtype = dtype, .parts_count = 1, .parts = {odd}};
    memcpy(source.dims, dims, sizeof source.dims);
    struct device *owner = NULL;
    assert_int_equal(cpu_weight_create(&self.weight, owner, &source, NULL), STATUS_OK);
    return self;
}

static inline void sample_destroy(struct sample *self)
{
    if (self->weight != NULL) cpu_weight_destroy(self->weight);
    free(self->values);
    free(self->bytes);
}

// The compilations of the kernels that this processor runs.
static inline uint32_t compilations_count(void)
{
    if (cpu_compute_best() == &cpu_compute_portable) return 1;
    return cpu_has_avx512() ? 4 : 3;
}

static inline const struct cpu_compute *compilation(uint32_t index)
{
#if defined(__x86_64__)
    static const struct cpu_compute *const all[] = {&cpu_compute_portable, &cpu_compute_avx2,
                                                    &cpu_compute_wide, &cpu_compute_avx512};
    return all[index];
#else
    return &cpu_compute_portable;
#endif
}

// Runs all items of an operation, the last first. Workspace and scratch begin as NaN. Returns the
// arena with the workspace, which the caller frees.
static inline uint8_t *run_operation_and_keep(const struct cpu_compute *compute,
                                              struct operation *op, void **bindings)
{
    const struct device device = {.info = {.name = "test"}};
    struct cpu_launch launches[CPU_LAUNCHES_MAX];
    uint64_t workspace_bytes = cpu_workspace_bytes(&device, op);
    uint32_t count = cpu_launches(compute, op, launches);
    uint8_t *arena = aligned_alloc(128, (workspace_bytes + 255) / 128 * 128);
    assert_non_null(arena);
    memset(arena, 0xff, workspace_bytes);
    op->workspace = (struct value){.place = VALUE_ARENA, .bytes = workspace_bytes};
    struct cpu_run run = {.arena = arena, .bindings = bindings};
    for (uint32_t i = 0; i < count; i++) {
        uint64_t scratch_bytes = (launches[i].scratch_bytes + 127) / 64 * 64;
        void *scratch = aligned_alloc(64, scratch_bytes);
        assert_non_null(scratch);
        for (uint32_t item = launches[i].items; item > 0; item--) {
            memset(scratch, 0xff, scratch_bytes);
            launches[i].run(op, &run, item - 1, scratch);
        }
        free(scratch);
    }
    return arena;
}

static inline void run_operation(const struct cpu_compute *compute, struct operation *op,
                                 void **bindings)
{
    free(run_operation_and_keep(compute, op, bindings));
}

static inline struct value slot(uint32_t number)
{
    return (struct value){.place = VALUE_SLOT, .slot = number};
}

// Fails unless |got - wanted| <= tolerance * scale everywhere; scale is the rms of wanted, or 1.
static inline void check_close(const float *got, const double *wanted, size_t count,
                               double tolerance, const char *what)
{
    double squares = 0;
    for (size_t i = 0; i < count; i++) squares += wanted[i] * wanted[i];
    double scale = sqrt(squares / (double)count);
    if (scale < 1) scale = 1;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)got[i] - wanted[i]);
        if (difference <= tolerance * scale) continue;
        fail_msg("%s: element %zu of %zu is %.9g, not %.9g", what, i, count, (double)got[i],
                 wanted[i]);
    }
}

#endif  // TESTS_UNIT_KERNELS_CPU_KIT_H
