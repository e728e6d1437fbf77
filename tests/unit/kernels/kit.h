// kit.h - what the tests of kernels/ share: random numbers, and a rig that runs operations on any
// device through the public interface alone, over poisoned memory and between guards.

#ifndef TESTS_UNIT_KERNELS_KIT_H
#define TESTS_UNIT_KERNELS_KIT_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "tests/test.h"

// ---------------------------------------------------------------------------------------------
// Random numbers

struct dice {
    uint64_t state;  // never 0
};

// The seed of the whole program: $LUNA_SEED, or always the same.
static inline uint64_t seed_of_run(void)
{
    const char *text = getenv("LUNA_SEED");
    uint64_t seed = text == NULL ? 0 : strtoull(text, NULL, 10);
    return seed == 0 ? 20240607 : seed;
}

static inline uint64_t dice_next(struct dice *self)
{
    self->state ^= self->state << 13;
    self->state ^= self->state >> 7;
    self->state ^= self->state << 17;
    return self->state * UINT64_C(2685821657736338717);
}

static inline uint32_t dice_below(struct dice *self, uint32_t limit)
{
    return (uint32_t)((dice_next(self) >> 32) % limit);
}

// About normal, mean 0 and sigma 1: the sum of four uniform numbers, scaled.
static inline float dice_normal(struct dice *self)
{
    double sum = 0;
    for (int i = 0; i < 4; i++) sum += (double)(dice_next(self) >> 40) * 0x1p-24 - 0.5;
    return (float)(sum * 1.7320508);
}

static inline float *dice_array(struct dice *self, uint64_t count, float mean, float sigma)
{
    float *values = malloc(count * sizeof *values);
    assert_non_null(values);
    for (uint64_t i = 0; i < count; i++) values[i] = mean + sigma * dice_normal(self);
    return values;
}

// Makes every value one that the type can hold.
static inline void round_all(float *values, uint64_t count, enum dtype dtype)
{
    uint8_t bytes[4];
    for (uint64_t i = 0; i < count && dtype != DTYPE_F32; i++) {
        dtype_convert(bytes, dtype, &values[i], DTYPE_F32, 1);
        dtype_convert(&values[i], DTYPE_F32, bytes, dtype, 1);
    }
}

// ---------------------------------------------------------------------------------------------
// Statuses

static inline void must(enum status status, const struct error *error)
{
    if (status != STATUS_OK) fail_msg("%s: %s", status_name(status), error->message);
}

static inline struct device *open_device_with(const struct device_options *options)
{
    struct error error = {.status = STATUS_OK};
    struct device *device = NULL;
    must(device_open(&device, options, &error), &error);
    return device;
}

static inline struct device *open_device(const char *name, uint32_t threads)
{
    return open_device_with(&(struct device_options){.name = name, .threads = threads});
}

// ---------------------------------------------------------------------------------------------
// The rig: one program on one device

#define RIG_GUARD 64u       // floats of a guard
#define RIG_GUARDS_MAX 16u  // guards of one rig
#define RIG_OWNED_MAX 64u   // things that a rig frees
#define RIG_SENTINEL (-12288.0f)

struct rig {
    struct device *device;                  // borrowed
    struct program *program;                // that is being built
    void *bindings[PROGRAM_SLOTS_MAX];      // one each for slots_count
    uint32_t slots_count;                   // named so far; slots 0 and 1 are the guards'
    struct value guards[RIG_GUARDS_MAX];    // checked at the end
    uint32_t guards_count;                  // how many
    struct weight *weights[RIG_OWNED_MAX];  // made for the program
    uint32_t weights_count;                 // how many
    void *owned[RIG_OWNED_MAX];             // host memory to free
    uint32_t owned_count;                   // how many
};

static inline void *rig_own(struct rig *self, void *memory)
{
    assert_non_null(memory);
    assert_true(self->owned_count < RIG_OWNED_MAX);
    self->owned[self->owned_count++] = memory;
    return memory;
}

// Binds memory as the next slot.
static inline struct value rig_slot(struct rig *self, void *memory, uint64_t bytes)
{
    assert_true(self->slots_count < PROGRAM_SLOTS_MAX);
    self->bindings[self->slots_count] = memory;
    return program_slot(self->program, self->slots_count++, bytes);
}

static inline void rig_begin(struct rig *self, struct device *device)
{
    struct error error = {.status = STATUS_OK};
    *self = (struct rig){.device = device};
    must(program_create(&self->program, device, &error), &error);
    float *sentinels = rig_own(self, malloc(RIG_GUARD * sizeof(float)));
    for (uint32_t i = 0; i < RIG_GUARD; i++) sentinels[i] = RIG_SENTINEL;
    uint64_t bytes = (uint64_t)RIG_GUARDS_MAX * RIG_GUARD * sizeof(float);
    rig_slot(self, sentinels, RIG_GUARD * sizeof(float));
    rig_slot(self, rig_own(self, calloc(1, bytes)), bytes);
}

// Appends the copy of a slot's float32 [rows, width], stored column by column, to a tensor.
static inline void rig_copy(struct rig *self, struct value slot, struct value output, uint32_t rows,
                            uint32_t width)
{
    program_latent_load(self->program, &(struct latent_load){.source = slot,
                                                             .dtype = DTYPE_F32,
                                                             .channels = width,
                                                             .window = {1, rows, 0, 0, 1, rows},
                                                             .output = output});
}

static inline void rig_guard(struct rig *self)
{
    assert_true(self->guards_count < RIG_GUARDS_MAX);
    struct value guard = program_tensor(self->program, 1, 1, RIG_GUARD, 1);
    self->guards[self->guards_count++] = guard;
    struct value sentinels = {.place = VALUE_SLOT, .slot = 0, .bytes = RIG_GUARD * sizeof(float)};
    rig_copy(self, sentinels, guard, RIG_GUARD, 1);
}

// A tensor of rows x width whose bytes are NaN, between two guards.
static inline struct value rig_tensor(struct rig *self, uint32_t rows, uint32_t width)
{
    rig_guard(self);
    struct value value = program_tensor(self->program, 1, 1, rows, width);
    rig_guard(self);
    return value;
}

// A tensor with the given content, row-major.
static inline struct value rig_load(struct rig *self, const float *data, uint32_t rows,
                                    uint32_t width)
{
    uint64_t bytes = (uint64_t)rows * width * sizeof(float);
    float *columns = rig_own(self, malloc(bytes));
    for (uint64_t row = 0; row < rows; row++) {
        for (uint64_t i = 0; i < width; i++) columns[i * rows + row] = data[row * width + i];
    }
    struct value value = program_tensor(self->program, 1, 1, rows, width);
    rig_copy(self, rig_slot(self, columns, bytes), value, rows, width);
    return value;
}

// Appends the copy of a tensor to host memory, which the rig owns and rig_run fills.
static inline float *rig_store(struct rig *self, struct value value, uint64_t count)
{
    float *memory = rig_own(self, malloc((count + RIG_GUARD) * sizeof(float)));
    for (uint64_t i = 0; i < count + RIG_GUARD; i++) memory[i] = NAN;
    program_store(self->program,
                  &(struct store){.input = value,
                                  .output = rig_slot(self, memory, count * sizeof(float)),
                                  .count = count});
    return memory;
}

// Where an operation finds its residual: nowhere, in memory of its own, in its output's.
enum residual { RESIDUAL_NONE, RESIDUAL_APART, RESIDUAL_ALIAS };

// Makes a weight of the device in the given type from values, which become what the type can hold.
static inline struct weight *rig_weight(struct rig *self, struct weight_source source,
                                        float *values, uint64_t count)
{
    struct error error = {.status = STATUS_OK};
    uint64_t element = dtype_bytes(source.dtype);
    // One byte in, so that nobody can count on alignment.
    uint8_t *bytes = rig_own(self, malloc(count * element + 1));
    dtype_convert(bytes + 1, source.dtype, values, DTYPE_F32, count);
    float *rounded = malloc(count * sizeof *rounded);
    assert_non_null(rounded);
    dtype_convert(rounded, DTYPE_F32, bytes + 1, source.dtype, count);
    memcpy(values, rounded, count * sizeof *rounded);
    free(rounded);
    for (uint32_t i = 0; i < source.parts_count; i++) {
        source.parts[i] = bytes + 1 + i * (count / source.parts_count) * element;
    }
    assert_true(self->weights_count < RIG_OWNED_MAX);
    struct weight **weight = &self->weights[self->weights_count];
    must(weight_create(weight, self->device, &source, &error), &error);
    self->weights_count++;
    return *weight;
}

static inline struct weight *rig_vector(struct rig *self, float *values, uint32_t count)
{
    struct weight_source source = {
        .form = WEIGHT_VECTOR, .dtype = DTYPE_F32, .dims = {count}, .parts_count = 1};
    return rig_weight(self, source, values, count);
}

// Reserves, runs, collects.
static inline void run_to_end(struct lane *lane, const struct program *program,
                              void *const *bindings, uint32_t count)
{
    struct error error = {.status = STATUS_OK};
    must(lane_reserve(lane, program_peak_bytes(program), &error), &error);
    lane_run(lane, program, bindings, count);
    must(lane_collect(lane, &error), &error);
}

// Fills the lane's arena with NaN.
static inline void poison_arena(struct lane *lane, struct device *device)
{
    struct rig rig = {.device = device};
    struct error error = {.status = STATUS_OK};
    must(program_create(&rig.program, device, &error), &error);
    uint32_t count = (uint32_t)(lane_arena_bytes(lane) / device_info(device)->activation_bytes);
    float *nans = rig_own(&rig, malloc(count * sizeof *nans));
    for (uint32_t i = 0; i < count; i++) nans[i] = NAN;
    struct value slot = rig_slot(&rig, nans, count * sizeof *nans);
    rig_copy(&rig, slot, program_tensor(rig.program, 1, 1, count, 1), count, 1);
    must(program_finish(rig.program, &error), &error);
    run_to_end(lane, rig.program, rig.bindings, rig.slots_count);
    program_destroy(&rig.program);
    free(nans);
}

// Runs what was built, over NaN, and checks the guards.
static inline void rig_run(struct rig *self)
{
    struct error error = {.status = STATUS_OK};
    struct lane *lane = NULL;
    for (uint32_t i = 0; i < self->guards_count; i++) {
        struct value output = {.place = VALUE_SLOT, .slot = 1};
        output.offset = (uint64_t)i * RIG_GUARD * sizeof(float);
        output.bytes = RIG_GUARD * sizeof(float);
        if (i == 0) program_slot(self->program, 1, RIG_GUARDS_MAX * output.bytes);
        program_store(
            self->program,
            &(struct store){.input = self->guards[i], .output = output, .count = RIG_GUARD});
    }
    must(program_finish(self->program, &error), &error);
    must(lane_create(&lane, self->device, &error), &error);
    must(lane_reserve(lane, program_peak_bytes(self->program), &error), &error);
    poison_arena(lane, self->device);
    run_to_end(lane, self->program, self->bindings, self->slots_count);
    const float *guards = self->bindings[1];
    for (uint32_t i = 0; i < self->guards_count * RIG_GUARD; i++) {
        if (guards[i] != RIG_SENTINEL) {
            fail_msg("guard %u was overwritten at element %u with %g", i / RIG_GUARD, i % RIG_GUARD,
                     (double)guards[i]);
        }
    }
    lane_destroy(&lane);
}

static inline void rig_end(struct rig *self)
{
    program_destroy(&self->program);
    for (uint32_t i = 0; i < self->weights_count; i++) weight_destroy(&self->weights[i]);
    for (uint32_t i = 0; i < self->owned_count; i++) free(self->owned[i]);
    *self = (struct rig){.device = NULL};
}

#endif  // TESTS_UNIT_KERNELS_KIT_H
