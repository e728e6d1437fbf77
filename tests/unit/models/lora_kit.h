// lora_kit.h - what the tests of adapters share: models without weights, adapters made on the spot,
// the golden ones.

#ifndef TESTS_UNIT_MODELS_LORA_KIT_H
#define TESTS_UNIT_MODELS_LORA_KIT_H

#include <jansson.h>
#include <stdio.h>

#include "models/files/torch_zip.h"
#include "models/lora/lora.h"
#include "tests/unit/models/golden_weights.h"

#define LORA_GOLDEN LUNA_SOURCE_DIR "/tests/golden/lora/"

static const struct clip_config lora_narrow = {.layers = 3,
                                               .width = 64,
                                               .heads = 1,
                                               .mlp_width = 256,
                                               .vocabulary = 49408,
                                               .tokens = 77,
                                               .quick_gelu = true};
static const struct clip_config lora_wide = {.layers = 3,
                                             .width = 128,
                                             .heads = 2,
                                             .mlp_width = 512,
                                             .vocabulary = 49408,
                                             .tokens = 77,
                                             .projection = 128};

// A model of the tiny encoders; parts is a string of "l", "h" and "g".
static inline struct model_description lora_model(const char *parts)
{
    struct model_description model = {.kind = parts};
    for (const char *at = parts; *at != '\0'; at++) {
        enum model_part part = *at == 'l' ? MODEL_CLIP_L : *at == 'h' ? MODEL_CLIP_H : MODEL_CLIP_G;
        model.has[part] = true;
        model.clip[part] = part == MODEL_CLIP_L ? lora_narrow : lora_wide;
    }
    return model;
}

static inline enum model_part lora_part(const char *name)
{
    return strcmp(name, "clip_l") == 0   ? MODEL_CLIP_L
           : strcmp(name, "clip_h") == 0 ? MODEL_CLIP_H
                                         : MODEL_CLIP_G;
}

static inline void expect_ok(enum status status, const struct error *error)
{
    if (status != STATUS_OK) fail_msg("%s: %s", status_name(status), error->message);
}

// Adds a tensor of noise to an adapter; unused dims are 0.
static inline struct tensor *adapter_add(struct golden_weights *self, const char *name,
                                         uint64_t first, uint64_t second)
{
    if (self->dtype == DTYPE_NONE) self->dtype = DTYPE_F32;
    struct tensor shape = {.rank = second > 0 ? 2 : first > 0 ? 1 : 0, .dims = {first, second}};
    return golden_add(self, name, name, &shape, (struct golden_rule){0.25f, 0});
}

// Adds STEM.lora_up.weight [rows, rank] and STEM.lora_down.weight [rank, columns].
static inline void adapter_add_pair(struct golden_weights *self, const char *stem, uint64_t rows,
                                    uint64_t rank, uint64_t columns)
{
    char name[256];
    snprintf(name, sizeof name, "%s.lora_up.weight", stem);
    adapter_add(self, name, rows, rank);
    snprintf(name, sizeof name, "%s.lora_down.weight", stem);
    adapter_add(self, name, rank, columns);
}

static inline void adapter_add_scalar(struct golden_weights *self, const char *name, float value)
{
    golden_set(adapter_add(self, name, 0, 0), 0, value);
}

static inline struct tensor_table *lora_golden_open(const char *name)
{
    char path[512];
    struct error error = {0};
    struct torch_reader reader = torch_reader_in_process();
    struct tensor_table *table = NULL;
    snprintf(path, sizeof path, LORA_GOLDEN "adapters/%s", name);
    expect_ok(tensor_table_open(&table, path, &reader, &error), &error);
    return table;
}

// A golden adapter, understood for a model.
static inline struct lora *lora_golden_create(const char *name,
                                              const struct model_description *model)
{
    struct error error = {0};
    struct lora *lora = NULL;
    struct tensor_table *file = lora_golden_open(name);
    struct tensor_table *tensors = NULL;
    expect_ok(lora_encoder_tensors(&tensors, file, &error), &error);
    expect_ok(lora_create(&lora, tensors, model, &error), &error);
    tensor_table_release(&tensors);
    tensor_table_release(&file);
    return lora;
}

// The models that golden adapters are for.
static inline struct model_description lora_golden_model(const char *adapter)
{
    return lora_model(strncmp(adapter, "refiner", 7) == 0 ? "g" : "lg");
}

static inline const struct lora_module *lora_find(const struct lora *self, enum model_part part,
                                                  const char *target)
{
    uint32_t count = 0;
    const struct lora_module *modules = lora_modules(self, &count);
    for (uint32_t i = 0; i < count; i++) {
        if (modules[i].part == part && strcmp(modules[i].target, target) == 0) return &modules[i];
    }
    return NULL;
}

static inline json_t *lora_golden_json(const char *name)
{
    char path[512];
    json_error_t error;
    snprintf(path, sizeof path, LORA_GOLDEN "%s", name);
    json_t *value = json_load_file(path, 0, &error);
    if (value == NULL) fail_msg("%s: line %d: %s", path, error.line, error.text);
    return value;
}

#endif  // TESTS_UNIT_MODELS_LORA_KIT_H
