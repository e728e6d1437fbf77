// vae_kit.h - a VAE on a device, and requests that run to their end.

#ifndef TESTS_UNIT_MODELS_VAE_KIT_H
#define TESTS_UNIT_MODELS_VAE_KIT_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/vae/vae.h"
#include "tests/test.h"

#define GOLDEN LUNA_SOURCE_DIR "/tests/golden/vae/"
#define DEMO_WEIGHTS LUNA_SOURCE_DIR "/conf/demo/vae.safetensors"

// A model on a device, and the references that belong to it.
struct bench {
    struct device *device;
    struct lane *lane;
    struct tensor_table *weights, *cases;
    struct vae_config config;
    struct vae *vae;
};

static inline void assert_ok(enum status status, const struct error *error)
{
    if (status != STATUS_OK) fail_msg("%s: %s", status_name(status), error->message);
}

static inline const struct tensor *tensor(const struct tensor_table *table, const char *name,
                                          const char *suffix)
{
    char full[128];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    const struct tensor *found = tensor_table_find(table, full);
    if (found == NULL) fail_msg("no tensor %s", full);
    return found;
}

static inline uint32_t integer(const struct tensor *of, uint32_t index)
{
    assert_int_equal(of->dtype, DTYPE_I32);
    assert_true(index < of->dims[0]);
    return load_u32((const uint8_t *)of->data + 4 * (size_t)index);
}

static inline float real(const struct tensor *of, uint64_t index)
{
    assert_int_equal(of->dtype, DTYPE_F32);
    float value = 0;
    memcpy(&value, (const uint8_t *)of->data + 4 * index, sizeof value);
    return value;
}

static inline struct vae_config read_config(const struct tensor_table *cases)
{
    const struct tensor *numbers = tensor(cases, "config", "");
    struct vae_config config = {.levels = integer(numbers, 0),
                                .blocks_per_level = integer(numbers, 9),
                                .latent_channels = integer(numbers, 10),
                                .image_channels = 3,
                                .groups = integer(numbers, 11),
                                .encoder = true,
                                .decoder = true,
                                .quant_conv = integer(numbers, 12) != 0,
                                .post_quant_conv = integer(numbers, 13) != 0,
                                .mid_attention = integer(numbers, 14) != 0};
    for (uint32_t i = 0; i < config.levels; i++) config.block_channels[i] = integer(numbers, 1 + i);
    return config;
}

static inline struct bench open_bench(const char *device, const char *weights, const char *cases)
{
    struct bench self = {0};
    struct error error = {0};
    assert_ok(
        device_open(&self.device, &(struct device_options){.name = device, .threads = 2}, &error),
        &error);
    assert_ok(lane_create(&self.lane, self.device, &error), &error);
    assert_ok(tensor_table_open(&self.weights, weights, NULL, &error), &error);
    assert_ok(tensor_table_open(&self.cases, cases, NULL, &error), &error);
    self.config = read_config(self.cases);
    assert_ok(vae_create(&self.vae, self.device, self.weights, &self.config, &error), &error);
    return self;
}

static inline struct bench open_golden(const char *device, const char *name)
{
    char weights[512];
    char cases[512];
    snprintf(weights, sizeof weights, GOLDEN "%s.safetensors", name);
    snprintf(cases, sizeof cases, GOLDEN "%s.cases.safetensors", name);
    return open_bench(device, weights, cases);
}

static inline void close_bench(struct bench *self)
{
    vae_destroy(&self->vae);
    tensor_table_release(&self->cases);
    tensor_table_release(&self->weights);
    lane_destroy(&self->lane);
    device_close(&self->device);
}

// Plans, builds and runs a request; returns the output and what was found.
static inline void *run_and_find(const struct bench *self, const struct vae_request *request,
                                 const void *input, struct vae_plan *plan, struct vae_found *found)
{
    struct error error = {0};
    struct program *program = NULL;
    assert_ok(vae_plan(self->vae, request, plan, &error), &error);
    assert_ok(vae_program(self->vae, plan, &program, &error), &error);
    assert_int_equal(program_peak_bytes(program), plan->peak_bytes);
    assert_int_equal(program_marks(program), plan->tiles);
    assert_true(vae_estimate_bytes(&self->config, request) >= plan->peak_bytes);
    assert_ok(lane_reserve(self->lane, plan->peak_bytes, &error), &error);

    void *in = malloc(plan->input_bytes);
    void *out = malloc(plan->output_bytes);
    assert_non_null(in);
    assert_non_null(out);
    memcpy(in, input, plan->input_bytes);
    memset(out, 0xff, plan->output_bytes);
    memset(found, 0xff, sizeof *found);
    lane_run(self->lane, program, (void *const[]){in, out, found}, VAE_SLOTS);
    assert_ok(lane_collect(self->lane, &error), &error);
    assert_int_equal(lane_marks(self->lane), plan->tiles);
    program_destroy(&program);
    free(in);
    return out;
}

// The same for what is finite, as the program has to find.
static inline void *run(const struct bench *self, const struct vae_request *request,
                        const void *input, struct vae_plan *plan)
{
    struct vae_found found;
    void *out = run_and_find(self, request, input, plan, &found);
    assert_int_equal(found.not_finite_input, 0);
    assert_int_equal(found.not_finite_output, 0);
    return out;
}

static inline int open_shared(void **state)
{
    struct bench *self = calloc(1, sizeof *self);
    if (self == NULL) return -1;
    *self = open_golden("cpu", "two");
    *state = self;
    return 0;
}

static inline int close_shared(void **state)
{
    close_bench(*state);
    free(*state);
    return 0;
}

static inline struct vae_request decode_request(uint32_t n, uint32_t h, uint32_t w)
{
    return (struct vae_request){.direction = VAE_DECODE,
                                .n = n,
                                .h = h,
                                .w = w,
                                .c = 4,
                                .input_dtype = DTYPE_F32,
                                .output_dtype = DTYPE_F32,
                                .tiling = VAE_TILING_NEVER,
                                .overlap = UINT32_MAX};
}

static inline struct vae_request encode_request(uint32_t n, uint32_t h, uint32_t w)
{
    struct vae_request request = decode_request(n, h, w);
    request.direction = VAE_ENCODE;
    request.c = 3;
    return request;
}

static inline struct vae_plan plan_of(const struct bench *self, const struct vae_request *request)
{
    struct vae_plan plan = {0};
    struct error error = {0};
    assert_ok(vae_plan(self->vae, request, &plan, &error), &error);
    return plan;
}

#endif  // TESTS_UNIT_MODELS_VAE_KIT_H
