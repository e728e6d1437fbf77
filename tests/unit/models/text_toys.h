// text_toys.h - adapters on all linears of the encoders of text_bench.h, stacks of them, and jobs
// that are encoded with those.

#ifndef TESTS_UNIT_MODELS_TEXT_TOYS_H
#define TESTS_UNIT_MODELS_TEXT_TOYS_H

#include "models/text/stack.h"
#include "models/text/text_stack.h"
#include "tests/unit/models/text_bench.h"

#define STACKS 8u
#define ENTRIES_MAX 8u

// An adapter on all linears of both encoders, in kohya's naming; its values follow from its name.
struct toy {
    struct golden_weights weights;
    struct text_adapter *adapter;
};

// What an adapter is to be.
struct toy_shape {
    uint32_t rank;
    enum dtype dtype;  // F32 or F16
    float alpha;       // 0: is written, too
    float scale;       // of its elements
};

static inline void add_pair(struct toy *self, const char *name, const char *stem, uint64_t k,
                            uint64_t c, const struct toy_shape *shape)
{
    char key[128];
    char noise[192];
    snprintf(key, sizeof key, "%s.lora_down.weight", stem);
    snprintf(noise, sizeof noise, "%s.%s", name, key);
    golden_add(&self->weights, key, noise, &(struct tensor){.rank = 2, .dims = {shape->rank, c}},
               (struct golden_rule){shape->scale, 0});
    snprintf(key, sizeof key, "%s.lora_up.weight", stem);
    snprintf(noise, sizeof noise, "%s.%s", name, key);
    golden_add(&self->weights, key, noise, &(struct tensor){.rank = 2, .dims = {k, shape->rank}},
               (struct golden_rule){shape->scale, 0});
    snprintf(key, sizeof key, "%s.alpha", stem);
    golden_add(&self->weights, key, key, &(struct tensor){.rank = 0},
               (struct golden_rule){0, shape->alpha});
}

static inline void add_encoder(struct toy *self, const char *name, uint32_t number,
                               const struct clip_config *config, const struct toy_shape *shape)
{
    static const char *const linears[] = {"self_attn_q_proj", "self_attn_k_proj",
                                          "self_attn_v_proj", "self_attn_out_proj",
                                          "mlp_fc1",          "mlp_fc2"};
    for (uint32_t i = 0; i < config->layers * 6; i++) {
        char stem[96];
        snprintf(stem, sizeof stem, "lora_te%u_text_model_encoder_layers_%u_%s", number, i / 6,
                 linears[i % 6]);
        uint64_t k = i % 6 == 4 ? config->mlp_width : config->width;
        uint64_t c = i % 6 == 5 ? config->mlp_width : config->width;
        add_pair(self, name, stem, k, c, shape);
    }
    if (config->projection > 0) {
        add_pair(self, name, "lora_te2_text_projection", config->projection, config->width, shape);
    }
}

static inline struct toy toy_open(const struct bench *bench, const char *name,
                                  struct toy_shape shape)
{
    struct toy self = {.weights = {.dtype = shape.dtype}};
    struct error error;
    add_encoder(&self, name, 1, &bench->description.clip[MODEL_CLIP_L], &shape);
    add_encoder(&self, name, 2, &bench->description.clip[MODEL_CLIP_G], &shape);
    golden_finish(&self.weights);
    expect_ok(text_adapter_create(&self.adapter, bench->model, self.weights.table, &error), &error);
    return self;
}

static inline void toy_close(struct toy *self)
{
    text_adapter_destroy(&self->adapter);
    golden_close(&self->weights);
}

// Eight adapters of several ranks and types.
static inline void toys_open(const struct bench *bench, struct toy toys[STACKS])
{
    for (uint32_t i = 0; i < STACKS; i++) {
        char name[16];
        snprintf(name, sizeof name, "toy %u", i);
        toys[i] = toy_open(bench, name,
                           (struct toy_shape){.rank = 1 + 5 * i,
                                              .dtype = i % 2 == 0 ? DTYPE_F16 : DTYPE_F32,
                                              .alpha = 1.0f + (float)i,
                                              .scale = 0.2f});
    }
}

static inline void toys_close(struct toy toys[STACKS])
{
    for (uint32_t i = 0; i < STACKS; i++) toy_close(&toys[i]);
}

static inline struct text_stack_entry entry_of(const struct toy *toy, float strength)
{
    struct text_stack_entry entry = {.adapter = toy->adapter};
    for (uint32_t i = 0; i < MODEL_PART_COUNT; i++) entry.strength[i] = strength;
    return entry;
}

static inline struct text_stack *make_stack(const struct bench *bench,
                                            const struct text_stack_entry *entries, uint32_t count,
                                            bool merged)
{
    struct error error;
    struct text_stack *stack = NULL;
    expect_ok(text_stack_create(&stack, bench->model, entries, count,
                                &(struct text_stack_options){.merged = merged}, &error),
              &error);
    return stack;
}

// Encodes a weighted prompt and a negative with a stack, alone.
static inline struct text_job *encode(const struct bench *bench, const struct text_stack *stack)
{
    struct text_request request = prompt_request("a photo of a (red:1.3) fox");
    request.has_negative = true;
    request.negative = text_of("blurry");
    struct text_job *job = make_job(bench, &request);
    text_job_apply(job, stack);
    run_jobs(bench, &job, 1);
    return job;
}

static inline void expect_same_jobs(const struct text_job *a, const struct text_job *b)
{
    expect_same_output(text_job_output(a, 0), text_job_output(b, 0));
    expect_same_output(text_job_output(a, 1), text_job_output(b, 1));
}

#endif  // TESTS_UNIT_MODELS_TEXT_TOYS_H
