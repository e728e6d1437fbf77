// text_bench.h - the tiny encoders of tests/golden/make_text.py as models on devices, and what runs
// jobs on them.

#ifndef TESTS_UNIT_MODELS_TEXT_BENCH_H
#define TESTS_UNIT_MODELS_TEXT_BENCH_H

#include <math.h>

#include "models/text/text_model.h"
#include "tests/unit/models/lora_kit.h"
#include "tests/unit/models/text_kit.h"
#include "tests/unit/models/text_weights.h"

#define BAR 2e-4  // largest difference, relative to the largest value
#define KINDS 4
#define LAYERS 3u

static const struct {
    const char *name;
    enum text_kind kind;
} kinds[KINDS] = {
    {"sd1", TEXT_SD1}, {"sd2", TEXT_SD2}, {"sdxl", TEXT_SDXL}, {"refiner", TEXT_REFINER}};

// All encoders; made once.
struct encoders {
    struct golden_encoder *parts[MODEL_PART_COUNT];
    struct text_embeddings *embeddings;
};

// A model of one kind on one device.
struct bench {
    struct device *device;
    struct lane *lane;
    struct text_model *model;
    struct model_description description;
};

// Makes all encoders, of weights of one type.
static inline struct encoders *encoders_open(enum dtype dtype)
{
    static const struct clip_config narrow = {.layers = LAYERS,
                                              .width = 64,
                                              .heads = 1,
                                              .mlp_width = 256,
                                              .vocabulary = 49408,
                                              .tokens = 77,
                                              .quick_gelu = true};
    static const struct clip_config wide = {.layers = LAYERS,
                                            .width = 128,
                                            .heads = 2,
                                            .mlp_width = 512,
                                            .vocabulary = 49408,
                                            .tokens = 77,
                                            .projection = 128};
    struct encoders *self = calloc(1, sizeof *self);
    struct error error;
    self->parts[MODEL_CLIP_L] = golden_encoder_open("clip_l", narrow, dtype);
    self->parts[MODEL_CLIP_G] = golden_encoder_open("clip_g", wide, dtype);
    self->parts[MODEL_CLIP_H] = golden_encoder_open("clip_h", wide, dtype);
    expect_ok(text_embeddings_open(&self->embeddings, TEXT_GOLDEN "embeddings", NULL, &error),
              &error);
    return self;
}

static inline void encoders_close(struct encoders *self)
{
    for (int i = 0; i < MODEL_PART_COUNT; i++) golden_encoder_close(&self->parts[i]);
    text_embeddings_close(&self->embeddings);
    free(self);
}

static inline struct bench open_bench_of(struct encoders *encoders, const char *device,
                                         uint32_t threads, const char *kind)
{
    struct bench self = {.description = {.kind = kind}};
    struct error error;
    struct tensor_table *tables[MODEL_PART_COUNT] = {NULL};
    enum model_part parts[MODEL_PART_COUNT];
    for (int i = 0; i < KINDS; i++) {
        if (strcmp(kinds[i].name, kind) == 0) self.description.text = kinds[i].kind;
    }
    uint32_t parts_count = text_parts(self.description.text, parts);
    for (uint32_t i = 0; i < parts_count; i++) {
        enum model_part part = parts[i];
        self.description.has[part] = true;
        self.description.clip[part] = encoders->parts[part]->config;
        tables[part] = encoders->parts[part]->weights.table;
    }
    struct device_options options = {.name = device, .threads = threads};
    expect_ok(device_open(&self.device, &options, &error), &error);
    expect_ok(lane_create(&self.lane, self.device, &error), &error);
    expect_ok(text_model_create(&self.model, self.device, tables, &self.description,
                                encoders->embeddings, &error),
              &error);
    return self;
}

static inline struct bench open_bench(struct encoders *encoders, const char *device,
                                      const char *kind)
{
    return open_bench_of(encoders, device, 2, kind);
}

static inline void close_bench(struct bench *self)
{
    text_model_destroy(&self->model);
    lane_destroy(&self->lane);
    device_close(&self->device);
}

static inline struct text_batch *make_batch(const struct bench *self, struct text_job **jobs,
                                            uint32_t count)
{
    struct error error;
    struct text_batch *batch = NULL;
    expect_ok(text_batch_create(&batch, self->model, jobs, count, &error), &error);
    return batch;
}

static inline void start_batch(const struct text_batch *batch, struct lane *lane)
{
    struct error error;
    const struct program *program = text_batch_program(batch);
    expect_ok(lane_reserve(lane, program_peak_bytes(program), &error), &error);
    uint32_t bindings_count = 0;
    void *const *bindings = text_batch_bindings(batch, &bindings_count);
    lane_run(lane, program, bindings, bindings_count);
}

static inline void end_batch(struct text_batch **batch, struct lane *lane)
{
    struct error error;
    expect_ok(lane_collect(lane, &error), &error);
    text_batch_finish(*batch);
    text_batch_destroy(batch);
}

static inline void run_jobs(const struct bench *self, struct text_job **jobs, uint32_t count)
{
    struct text_batch *batch = make_batch(self, jobs, count);
    start_batch(batch, self->lane);
    end_batch(&batch, self->lane);
}

static inline struct text_job *make_job(const struct bench *self,
                                        const struct text_request *request)
{
    struct error error;
    struct text_job *job = NULL;
    expect_ok(text_job_create(&job, self->model, request, &error), &error);
    return job;
}

static inline struct text_request prompt_request(const char *prompt)
{
    return (struct text_request){.prompt = text_of(prompt)};
}

static inline void expect_close_within(const char *name, const float *found,
                                       const struct tensor *expected, double bar)
{
    const float *values = expected->data;
    uint64_t count = expected->bytes / sizeof *values;
    double difference = 0;
    double size = 0;
    for (uint64_t i = 0; i < count; i++) {
        double here = fabs((double)found[i] - (double)values[i]);
        if (isnan(here) || here > difference) difference = here;
        size = fmax(size, fabs((double)values[i]));
    }
    if (!(difference <= bar * size)) fail_msg("%s: %g of %g", name, difference, size);
}

static inline void expect_close(const char *name, const float *found, const struct tensor *expected)
{
    expect_close_within(name, found, expected, BAR);
}

static inline void expect_same_output(struct text_output a, struct text_output b)
{
    assert_int_equal(a.tokens, b.tokens);
    assert_int_equal(a.width, b.width);
    assert_int_equal(a.pooled_width, b.pooled_width);
    assert_memory_equal(a.cond, b.cond, (size_t)a.tokens * a.width * sizeof(float));
    assert_memory_equal(a.pooled, b.pooled, a.pooled_width * sizeof(float));
}

#endif  // TESTS_UNIT_MODELS_TEXT_BENCH_H
