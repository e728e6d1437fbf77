// text_model.c - the encoders of one model, and which of them a kind uses.

#include "models/text/text_model.h"

#include <assert.h>
#include <stdlib.h>

uint32_t text_parts(enum text_kind kind, enum model_part parts[MODEL_PART_COUNT])
{
    switch (kind) {
    case TEXT_SD1:
        parts[0] = MODEL_CLIP_L;
        return 1;
    case TEXT_SD2:
        parts[0] = MODEL_CLIP_H;
        return 1;
    case TEXT_SDXL:
        parts[0] = MODEL_CLIP_L;
        parts[1] = MODEL_CLIP_G;
        return 2;
    case TEXT_REFINER:
        parts[0] = MODEL_CLIP_G;
        return 1;
    case TEXT_NONE:
        break;
    }
    return 0;
}

enum model_part text_pooled_part(enum text_kind kind)
{
    assert(kind != TEXT_NONE);
    if (kind == TEXT_SD1) return MODEL_CLIP_L;
    return kind == TEXT_SD2 ? MODEL_CLIP_H : MODEL_CLIP_G;
}

const char *text_part_key(enum model_part part)
{
    static const char *const keys[MODEL_PART_COUNT] = {
        [MODEL_VAE] = "vae",
        [MODEL_CLIP_L] = "clip_l",
        [MODEL_CLIP_H] = "clip_h",
        [MODEL_CLIP_G] = "clip_g",
    };
    assert((unsigned)part < MODEL_PART_COUNT);
    return keys[part];
}

// Loads them, or only counts in planned_bytes (may be NULL) what they would hold.
static enum status load_networks(struct text_model *self,
                                 struct tensor_table *const tensors[MODEL_PART_COUNT],
                                 uint64_t *planned_bytes, struct error *error)
{
    enum model_part parts[MODEL_PART_COUNT];
    enum text_kind kind = self->description.text;
    uint32_t count = text_parts(kind, parts);
    if (count == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "a model of kind \"%s\" offers no text",
                         self->description.kind);
    }
    for (uint32_t i = 0; i < count; i++) {
        enum model_part part = parts[i];
        if (!self->description.has[part] || tensors[part] == NULL) {
            return error_set(error, STATUS_INVALID_ARGUMENT, "a model of kind \"%s\" lacks %s",
                             self->description.kind, text_part_key(part));
        }
        // SD1's pooled output is not projected, whatever the file holds.
        bool project = kind != TEXT_SD1 && part == text_pooled_part(kind);
        const struct clip_config *config = &self->description.clip[part];
        uint64_t bytes = 0;
        enum status status =
            planned_bytes != NULL
                ? text_network_plan(&bytes, self->device, tensors[part], config, project, error)
                : text_network_create(&self->networks[part], self->device, tensors[part], config,
                                      project, error);
        if (status != STATUS_OK) {
            error_prefix(error, "%s", text_part_key(part));
            return status;
        }
        if (planned_bytes != NULL) *planned_bytes += bytes;
    }
    return STATUS_OK;
}

enum status text_model_create(struct text_model **out, struct device *device,
                              struct tensor_table *const tensors[MODEL_PART_COUNT],
                              const struct model_description *description,
                              struct text_embeddings *embeddings, struct error *error)
{
    assert(out != NULL);
    assert(device != NULL);
    assert(description != NULL);
    struct text_model *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a model");
    self->device = device;
    self->description = *description;
    self->embeddings = embeddings;
    enum status status = load_networks(self, tensors, NULL, error);
    if (status == STATUS_OK) {
        *out = self;
        self = NULL;
    }
    text_model_destroy(&self);
    return status;
}

enum status text_model_plan(uint64_t *out, struct device *device,
                            struct tensor_table *const tensors[MODEL_PART_COUNT],
                            const struct model_description *description, struct error *error)
{
    assert(out != NULL);
    assert(device != NULL);
    assert(description != NULL);
    struct text_model model = {.device = device, .description = *description};
    uint64_t bytes = 0;
    enum status status = load_networks(&model, tensors, &bytes, error);
    if (status == STATUS_OK) *out = bytes;
    return status;
}

void text_model_destroy(struct text_model **self_p)
{
    assert(self_p != NULL);
    struct text_model *self = *self_p;
    if (self == NULL) return;
    for (uint32_t i = 0; i < MODEL_PART_COUNT; i++) text_network_destroy(&self->networks[i]);
    free(self);
    *self_p = NULL;
}

uint64_t text_model_bytes(const struct text_model *self)
{
    assert(self != NULL);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < MODEL_PART_COUNT; i++) {
        if (self->networks[i] != NULL) bytes += self->networks[i]->bytes;
    }
    return bytes;
}
