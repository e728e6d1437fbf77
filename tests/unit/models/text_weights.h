// text_weights.h - CLIP encoders of any size whose weights follow from their names, as
// tests/golden/make_text.py computes them.

#ifndef TESTS_UNIT_MODELS_TEXT_WEIGHTS_H
#define TESTS_UNIT_MODELS_TEXT_WEIGHTS_H

#include <stdio.h>

#include "models/model.h"
#include "tests/unit/models/golden_weights.h"

// One encoder.
struct golden_encoder {
    struct clip_config config;      // its shape
    const char *part;               // "clip_l": what the noise of its tensors is called
    struct golden_weights weights;  // with the table
};

static inline struct golden_rule clip_rule(const char *name, uint64_t columns)
{
    size_t length = strlen(name);
    bool is_norm = strstr(name, "norm") != NULL;
    if (is_norm) return (struct golden_rule){0.0625f, strstr(name, "weight") != NULL ? 1.0f : 0};
    if (strstr(name, "embedding") != NULL) return (struct golden_rule){0.0625f, 0};
    if (length > 4 && strcmp(name + length - 4, "bias") == 0) {
        return (struct golden_rule){0.015625f, 0};
    }
    return (struct golden_rule){columns <= 128 ? 0.125f : columns <= 512 ? 0.0625f : 0.03125f, 0};
}

// Adds the tensor `name` of [rows, columns], or [columns] when rows is 0.
static inline void clip_add(struct golden_encoder *self, const char *name, uint64_t rows,
                            uint64_t columns)
{
    char noise_name[128];
    snprintf(noise_name, sizeof noise_name, "%s.%s", self->part, name);
    struct tensor shape = {.rank = 2, .dims = {rows, columns}};
    if (rows == 0) shape = (struct tensor){.rank = 1, .dims = {columns}};
    const struct tensor *added =
        golden_add(&self->weights, name, noise_name, &shape, clip_rule(name, columns));
    if (strstr(name, "layers.0.mlp.fc2.bias") != NULL) {
        golden_set(added, 7, 24.0f);
        golden_set(added, 40, -12.0f);
    }
    if (strstr(name, "layer_norm1.weight") != NULL) golden_set(added, 3, 4.0f);
}

static inline void clip_add_layer(struct golden_encoder *self, uint32_t layer)
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
        clip_add(self, name, 0, width);
    }
    for (size_t i = 0; i < sizeof squares / sizeof squares[0]; i++) {
        snprintf(name, sizeof name, "text_model.encoder.layers.%u.%s", layer, squares[i]);
        clip_add(self, name, width, width);
    }
    snprintf(name, sizeof name, "text_model.encoder.layers.%u.mlp.fc1.weight", layer);
    clip_add(self, name, mlp, width);
    snprintf(name, sizeof name, "text_model.encoder.layers.%u.mlp.fc1.bias", layer);
    clip_add(self, name, 0, mlp);
    snprintf(name, sizeof name, "text_model.encoder.layers.%u.mlp.fc2.weight", layer);
    clip_add(self, name, width, mlp);
}

// Turns the last tensor, the projection, as OpenCLIP stores it.
static inline void clip_transpose_last(struct golden_weights *weights)
{
    struct tensor *tensor = &weights->tensors[weights->count - 1];
    uint64_t rows = tensor->dims[0];
    uint64_t columns = tensor->dims[1];
    uint64_t size = dtype_bytes(tensor->dtype);
    uint8_t *values = golden_elements(tensor);
    uint8_t *turned = malloc(tensor->bytes);
    assert_non_null(turned);
    for (uint64_t i = 0; i < rows * columns; i++) {
        memcpy(turned + (i % columns * rows + i / columns) * size, values + i * size, size);
    }
    memcpy(values, turned, tensor->bytes);
    free(turned);
    tensor->transposed = true;
}

static inline struct golden_encoder *
golden_encoder_open(const char *part, struct clip_config config, enum dtype dtype)
{
    struct golden_encoder *self = calloc(1, sizeof *self);
    assert_non_null(self);
    self->config = config;
    self->part = part;
    self->weights.dtype = dtype;
    clip_add(self, "text_model.embeddings.token_embedding.weight", config.vocabulary, config.width);
    clip_add(self, "text_model.embeddings.position_embedding.weight", config.tokens, config.width);
    for (uint32_t i = 0; i < config.layers; i++) clip_add_layer(self, i);
    clip_add(self, "text_model.final_layer_norm.weight", 0, config.width);
    clip_add(self, "text_model.final_layer_norm.bias", 0, config.width);
    if (config.projection > 0) {
        clip_add(self, "text_projection.weight", config.projection, config.width);
        clip_transpose_last(&self->weights);
    }
    golden_finish(&self->weights);
    return self;
}

static inline void golden_encoder_close(struct golden_encoder **self_p)
{
    struct golden_encoder *self = *self_p;
    if (self == NULL) return;
    golden_close(&self->weights);
    free(self);
    *self_p = NULL;
}

#endif  // TESTS_UNIT_MODELS_TEXT_WEIGHTS_H
