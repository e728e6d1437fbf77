// Any bytes as an adapter in a safetensors file: described, and understood for an SD1.5 and an SDXL
// model so small that a few bytes fit them; what fits must merge.

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "models/lora/lora.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct clip_config small = {.layers = 2,
                                         .width = 8,
                                         .heads = 1,
                                         .mlp_width = 16,
                                         .vocabulary = 12,
                                         .tokens = 6,
                                         .projection = 8};

// The shape of a target in the small encoder.
static struct tensor base_of(const struct lora_module *module)
{
    struct tensor base = {
        .name = module->target, .dtype = DTYPE_F16, .rank = 2, .dims = {small.width, small.width}};
    const char *target = module->target;
    if (strstr(target, "fc1") != NULL) base.dims[0] = small.mlp_width;
    if (strstr(target, "fc2.weight") != NULL) base.dims[1] = small.mlp_width;
    if (strstr(target, "token_embedding") != NULL) base.dims[0] = small.vocabulary;
    if (strstr(target, "position_embedding") != NULL) base.dims[0] = small.tokens;
    if (strstr(target, "norm") != NULL || strstr(target, ".bias") != NULL) base.rank = 1;
    base.bytes = 2 * base.dims[0] * (base.rank == 2 ? base.dims[1] : 1);
    return base;
}

static void merge(const struct lora_module *module)
{
    struct error error = {0};
    struct tensor base = base_of(module);
    struct lora_patch patches[2] = {{module, 1.0f}, {module, -0.5f}};
    void *zeros = calloc(1, base.bytes);
    void *out = malloc(base.bytes);
    assert(zeros != NULL);
    assert(out != NULL);
    base.data = zeros;
    enum status status = lora_merge(&base, patches, 2, NULL, out, &error);
    assert(status == STATUS_OK || status == STATUS_INVALID_ARGUMENT);
    free(out);
    free(zeros);
}

static void understand(struct tensor_table *tensors, const struct model_description *model)
{
    struct error error = {0};
    struct lora *lora = NULL;
    enum status status = lora_create(&lora, tensors, model, &error);
    assert((status == STATUS_OK) == (lora != NULL));
    if (lora == NULL) {
        assert(status == STATUS_INVALID_ARGUMENT);
        assert(error.message[0] != '\0');
        return;
    }
    uint32_t count = 0;
    const struct lora_module *modules = lora_modules(lora, &count);
    for (uint32_t i = 0; i < count; i++) {
        assert(model->has[modules[i].part]);
        merge(&modules[i]);
    }
    for (uint32_t i = 0; i < lora_unused_count(lora); i++) {
        assert(lora_key_is_encoder(lora_unused_key(lora, i)));
    }
    lora_destroy(&lora);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_description sd15 = {.kind = "sd1.5"};
    struct model_description sdxl = {.kind = "sdxl"};
    sd15.has[MODEL_CLIP_L] = sdxl.has[MODEL_CLIP_L] = sdxl.has[MODEL_CLIP_G] = true;
    sd15.clip[MODEL_CLIP_L] = sdxl.clip[MODEL_CLIP_L] = sdxl.clip[MODEL_CLIP_G] = small;
    struct error error = {0};
    struct tensor_table *file = NULL;
    struct tensor_table *tensors = NULL;
    struct lora_description description;
    if (tensor_table_from_bytes(&file, (struct bytes){data, size}, &error) != STATUS_OK) return 0;
    enum status status = lora_describe(file, &description, &error);
    assert(status == STATUS_OK || status == STATUS_INVALID_ARGUMENT);
    if (status == STATUS_OK) {
        assert(description.keys_encoder + description.keys_other == tensor_table_count(file));
    }
    assert(lora_encoder_tensors(&tensors, file, &error) == STATUS_OK);
    if (tensors != NULL) {
        understand(tensors, &sd15);
        understand(tensors, &sdxl);
    }
    tensor_table_release(&tensors);
    tensor_table_release(&file);
    return 0;
}
