// weight.c - weights of the reference: a widened copy, parts one after the other.

#include <assert.h>
#include <stdlib.h>

#include "kernels/reference/reference.h"

// Elements of one part.
static uint64_t part_of(const struct weight_source *source)
{
    uint64_t part = 1;
    uint32_t dims = source->form == WEIGHT_VECTOR ? 1 : source->form == WEIGHT_CONVOLUTION ? 4 : 2;
    for (uint32_t i = 0; i < dims; i++) part *= source->dims[i];
    return part;
}

uint64_t reference_weight_plan(const struct device *device, const struct weight_source *source)
{
    (void)device;
    return part_of(source) * source->parts_count * sizeof(float);
}

enum status reference_weight_create(struct weight **out, struct device *device,
                                    const struct weight_source *source, struct error *error)
{
    assert(out != NULL);
    assert(device != NULL);
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    uint64_t part = part_of(source);
    uint64_t bytes = reference_weight_plan(device, source);
    struct reference_weight *self = calloc(1, sizeof *self);
    if (self != NULL) self->data = malloc(bytes);
    if (self == NULL || self->data == NULL) {
        error_set(error, status, "no memory for a weight of %llu bytes", (unsigned long long)bytes);
        goto done;
    }
    for (uint32_t i = 0; i < source->parts_count; i++) {
        dtype_convert(self->data + i * part, DTYPE_F32, source->parts[i], source->dtype, part);
    }
    self->base.device = device;
    self->base.form = source->form;
    self->base.bytes = bytes;
    status = STATUS_OK;
    *out = &self->base;
    self = NULL;

done:
    if (self != NULL) reference_weight_destroy(&self->base);
    return status;
}

void reference_weight_destroy(struct weight *weight)
{
    assert(weight != NULL);
    struct reference_weight *self = (struct reference_weight *)weight;
    free(self->data);
    free(self);
}

const float *reference_data(const struct weight *weight)
{
    if (weight == NULL) return NULL;
    const struct reference_weight *self = (const struct reference_weight *)weight;
    assert(self->data != NULL);
    return self->data;
}
