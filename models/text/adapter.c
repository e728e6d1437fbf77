// adapter.c - a lora's factors become weights of the device; a CPU reads them where the file is.

#include <assert.h>
#include <stdlib.h>

#include "models/text/text_adapter.h"

bool adapter_module_counts(const struct lora_module *module, float strength)
{
    assert(module != NULL);
    if (strength == 0) return false;
    switch (module->family) {
    case LORA_LOW_RANK:
    case LORA_LOHA:
    case LORA_LOKR:
    case LORA_GLORA:
        return module->factor != 0;
    default:  // DoRA scales the rows, the others know no factor
        return true;
    }
}

bool adapter_module_is_read(const struct text_model *model, const struct lora_module *module)
{
    assert(model != NULL);
    const struct text_network *network = model->networks[module->part];
    if (network == NULL) return false;
    return module->linear != LORA_PROJECTION || network->projection != NULL;
}

// A factor as a matrix; a LoCon's has dimensions of one behind the two.
static enum status create_factor(struct text_adapter *self, const struct tensor *tensor,
                                 struct weight **out, struct error *error)
{
    assert(tensor != NULL);
    assert(tensor->rank >= 2);
    struct weight_source source = {.form = WEIGHT_MATRIX,
                                   .dtype = tensor->dtype,
                                   .dims = {(uint32_t)tensor->dims[0], (uint32_t)tensor->dims[1]},
                                   .parts_count = 1,
                                   .parts = {tensor->data}};
    enum status status = weight_create(out, self->model->device, &source, error);
    if (status != STATUS_OK) {
        error_prefix(error, "%s", tensor->name);
        return status;
    }
    self->bytes += weight_bytes(*out);
    return STATUS_OK;
}

static enum status create_factors(struct text_adapter *self, struct error *error)
{
    uint32_t count = 0;
    const struct lora_module *modules = lora_modules(self->lora, &count);
    self->factors = calloc(count + 1ull, sizeof *self->factors);
    if (self->factors == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for an adapter");
    }
    for (uint32_t i = 0; i < count; i++) {
        struct adapter_factors *factors = &self->factors[self->factors_count++];
        factors->module = &modules[i];
        enum status status =
            create_factor(self, modules[i].operands[LORA_ROLE_DOWN], &factors->down, error);
        if (status == STATUS_OK) {
            status = create_factor(self, modules[i].operands[LORA_ROLE_UP], &factors->up, error);
        }
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

static uint64_t table_bytes(const struct tensor_table *table)
{
    uint64_t bytes = 0;
    uint32_t count = tensor_table_count(table);
    for (uint32_t i = 0; i < count; i++) bytes += tensor_table_at(table, i)->bytes;
    return bytes;
}

enum status text_adapter_create(struct text_adapter **out, const struct text_model *model,
                                struct tensor_table *encoder_tensors, struct error *error)
{
    assert(out != NULL);
    assert(model != NULL);
    struct text_adapter *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for an adapter");
    }
    self->model = model;
    if (encoder_tensors != NULL) self->bytes = table_bytes(encoder_tensors);
    enum status status = lora_create(&self->lora, encoder_tensors, &model->description, error);
    if (status == STATUS_OK && lora_is_low_rank(self->lora)) status = create_factors(self, error);
    if (status == STATUS_OK) {
        *out = self;
        self = NULL;
    }
    text_adapter_destroy(&self);
    return status;
}

void text_adapter_destroy(struct text_adapter **self_p)
{
    assert(self_p != NULL);
    struct text_adapter *self = *self_p;
    if (self == NULL) return;
    for (uint32_t i = 0; i < self->factors_count; i++) {
        weight_destroy(&self->factors[i].down);
        weight_destroy(&self->factors[i].up);
    }
    free(self->factors);
    lora_destroy(&self->lora);
    free(self);
    *self_p = NULL;
}

const struct lora *text_adapter_lora(const struct text_adapter *self)
{
    assert(self != NULL);
    return self->lora;
}

uint64_t text_adapter_bytes(const struct text_adapter *self)
{
    assert(self != NULL);
    return self->bytes;
}
