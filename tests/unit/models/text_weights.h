// text_weights.h - small CLIP encoders whose weights follow from their names, as
// tests/golden/make_text.py computes them.

#ifndef TESTS_UNIT_MODELS_TEXT_WEIGHTS_H
#define TESTS_UNIT_MODELS_TEXT_WEIGHTS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/model.h"
#include "tests/test.h"

#define TINY_LAYERS 3u
#define TINY_TENSORS_MAX 64u

// One encoder: a table, and the memory that its tensors point into.
struct tiny_encoder {
    struct clip_config config;
    struct tensor_table *table;
    float *values[TINY_TENSORS_MAX];
    struct tensor tensors[TINY_TENSORS_MAX];
    char names[TINY_TENSORS_MAX][96];
    uint32_t count;
};

static inline float splitmix_value(uint64_t seed, uint64_t index)
{
    uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (float)(z >> 40) / 8388608.0f - 1.0f;
}

static inline float tiny_scale(const char *name, uint64_t columns)
{
    size_t length = strlen(name);
    if (strstr(name, "embedding") != NULL || strstr(name, "norm") != NULL) return 0.0625f;
    if (length > 4 && strcmp(name + length - 4, "bias") == 0) return 0.015625f;
    return columns <= 128 ? 0.125f : 0.0625f;
}

// Adds the tensor `name` of [rows, columns], or [columns] when rows is 0.
static inline void tiny_add(struct tiny_encoder *self, const char *part, const char *name,
                            uint64_t rows, uint64_t columns)
{
    assert_true(self->count < TINY_TENSORS_MAX);
    uint32_t index = self->count++;
    uint64_t count = (rows > 0 ? rows : 1) * columns;
    float *values = malloc(count * sizeof *values);
    assert_non_null(values);
    snprintf(self->names[index], sizeof self->names[index], "%s.%s", part, name);
    uint64_t seed = 0xCBF29CE484222325u;
    for (const char *at = self->names[index]; *at != '\0'; at++) {
        seed = (seed ^ (uint8_t)*at) * 0x100000001B3u;
    }
    snprintf(self->names[index], sizeof self->names[index], "%s", name);
    float scale = tiny_scale(name, columns);
    bool is_gamma = strstr(name, "norm") != NULL && strstr(name, "weight") != NULL;
    for (uint64_t i = 0; i < count; i++) {
        values[i] = splitmix_value(seed, i) * scale + (is_gamma ? 1.0f : 0.0f);
    }
    if (strstr(name, "layers.0.mlp.fc2.bias") != NULL) {
        values[7] = 24.0f;
        values[40] = -12.0f;
    }
    if (strstr(name, "layer_norm1.weight") != NULL) values[3] = 4.0f;
    self->values[index] = values;
    self->tensors[index] = (struct tensor){.name = self->names[index],
                                           .dtype = DTYPE_F32,
                                           .rank = rows > 0 ? 2 : 1,
                                           .dims = {rows > 0 ? rows : columns, columns},
                                           .data = values,
                                           .bytes = count * sizeof *values};
    if (rows == 0) self->tensors[index].dims[1] = 0;
}

static inline void tiny_add_layer(struct tiny_encoder *self, const char *part, uint32_t layer)
{
    static const char *const widths[] = {
        "layer_norm1.weight",    "layer_norm1.bias",        "layer_norm2.weight",
        "layer_norm2.bias",      "self_attn.q_proj.bias",   "self_attn.k_proj.bias",
        "self_attn.v_proj.bias", "self_attn.out_proj.bias", "mlp.fc2.bias"};
    static const char *const squares[] = {"self_attn.q_proj.weight", "self_attn.k_proj.weight",
                                          "self_attn.v_proj.weight", "self_attn.out_proj.weight"};
    char name[96];
    uint64_t width = self->config.width;
    uint64_t mlp = self->config.mlp_width;
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        snprintf(name, sizeof name, "text_model.encoder.layers.%u.%s", layer, widths[i]);
        tiny_add(self, part, name, 0, width);
    }
    for (size_t i = 0; i < sizeof squares / sizeof squares[0]; i++) {
        snprintf(name, sizeof name, "text_model.encoder.layers.%u.%s", layer, squares[i]);
        tiny_add(self, part, name, width, width);
    }
    snprintf(name, sizeof name, "text_model.encoder.layers.%u.mlp.fc1.weight", layer);
    tiny_add(self, part, name, mlp, width);
    snprintf(name, sizeof name, "text_model.encoder.layers.%u.mlp.fc1.bias", layer);
    tiny_add(self, part, name, 0, mlp);
    snprintf(name, sizeof name, "text_model.encoder.layers.%u.mlp.fc2.weight", layer);
    tiny_add(self, part, name, width, mlp);
}

// Turns the projection as OpenCLIP stores it.
static inline void tiny_transpose(struct tensor *tensor, float *values)
{
    uint64_t rows = tensor->dims[0];
    uint64_t columns = tensor->dims[1];
    float *turned = malloc(tensor->bytes);
    assert_non_null(turned);
    for (uint64_t i = 0; i < rows * columns; i++) {
        turned[i % columns * rows + i / columns] = values[i];
    }
    memcpy(values, turned, tensor->bytes);
    free(turned);
    tensor->transposed = true;
}

static inline struct tiny_encoder *tiny_open(const char *part, struct clip_config config)
{
    struct tiny_encoder *self = calloc(1, sizeof *self);
    assert_non_null(self);
    self->config = config;
    tiny_add(self, part, "text_model.embeddings.token_embedding.weight", config.vocabulary,
             config.width);
    tiny_add(self, part, "text_model.embeddings.position_embedding.weight", config.tokens,
             config.width);
    for (uint32_t i = 0; i < config.layers; i++) tiny_add_layer(self, part, i);
    tiny_add(self, part, "text_model.final_layer_norm.weight", 0, config.width);
    tiny_add(self, part, "text_model.final_layer_norm.bias", 0, config.width);
    if (config.projection > 0) {
        tiny_add(self, part, "text_projection.weight", config.projection, config.width);
        tiny_transpose(&self->tensors[self->count - 1], self->values[self->count - 1]);
    }
    struct error error;
    enum status status =
        tensor_table_from_tensors(&self->table, self->tensors, self->count, NULL, 0, &error);
    if (status != STATUS_OK) fail_msg("%s", error.message);
    return self;
}

static inline void tiny_close(struct tiny_encoder **self_p)
{
    struct tiny_encoder *self = *self_p;
    if (self == NULL) return;
    tensor_table_release(&self->table);
    for (uint32_t i = 0; i < self->count; i++) free(self->values[i]);
    free(self);
    *self_p = NULL;
}

#endif  // TESTS_UNIT_MODELS_TEXT_WEIGHTS_H
