// weight.c - weights stay where they are.
//
// A matrix or a convolution is read from the mapped file in the file's own type; the product packs
// and widens the panel it is about to use, which costs 8 % at 77 rows and less beyond. So creating
// a weight is free, it holds no memory of its own, and 16-bit weights stay 16 bit. Only vectors are
// copied, as float32: they are small, and every reader wants them aligned. The copies are sealed,
// so that nothing that computes can write a weight.

#include <assert.h>
#include <stdlib.h>

#include "base/checked.h"
#include "kernels/cpu/launch.h"

// The most elements of one part: offsets inside of it fit 32 bit.
#define PART_ELEMENTS_MAX ((uint64_t)UINT32_MAX)

static uint32_t form_dims(enum weight_form form)
{
    switch (form) {
    case WEIGHT_VECTOR:
        return 1;
    case WEIGHT_MATRIX:
    case WEIGHT_TABLE:
        return 2;
    case WEIGHT_CONVOLUTION:
        return 4;
    }
    return 0;
}

static enum status check_dims(const struct weight_source *source, struct error *error)
{
    uint32_t count = form_dims(source->form);
    uint64_t elements = 1;
    for (uint32_t i = 0; i < count; i++) {
        if (source->dims[i] == 0 || !checked_multiply(elements, source->dims[i], &elements) ||
            elements > PART_ELEMENTS_MAX) {
            return error_set(error, STATUS_INVALID_ARGUMENT,
                             "a weight's dimension %u is %u, out of range", i, source->dims[i]);
        }
    }
    if ((uint64_t)source->dims[0] * source->parts_count > UINT32_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "a weight stacks %u parts of %u rows",
                         source->parts_count, source->dims[0]);
    }
    if (source->form != WEIGHT_CONVOLUTION) return STATUS_OK;
    if (source->dims[2] != source->dims[3] || (source->dims[2] != 1 && source->dims[2] != 3)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "a convolution has %u x %u taps; 1 x 1 and 3 x 3 exist", source->dims[2],
                         source->dims[3]);
    }
    return STATUS_OK;
}

static enum status check_source(const struct weight_source *source, struct error *error)
{
    if (form_dims(source->form) == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "weight form %d does not exist",
                         (int)source->form);
    }
    if (!dtype_is_real(source->dtype)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "a weight is of type %s; F32, F16 and BF16 are possible",
                         dtype_name(source->dtype));
    }
    if (source->parts_count == 0 || source->parts_count > WEIGHT_PARTS_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "a weight has %u parts, 1 to %u may be",
                         source->parts_count, WEIGHT_PARTS_MAX);
    }
    for (uint32_t i = 0; i < source->parts_count; i++) {
        if (source->parts[i] == NULL) {
            return error_set(error, STATUS_INVALID_ARGUMENT, "part %u of a weight is missing", i);
        }
    }
    return check_dims(source, error);
}

uint64_t cpu_weight_plan(const struct device *device, const struct weight_source *source)
{
    (void)device;
    if (source->form != WEIGHT_VECTOR) return 0;
    return pages_round((uint64_t)source->dims[0] * sizeof(float) * source->parts_count);
}

// Copies a vector's parts as float32.
static enum status copy_vector(struct cpu_weight *self, const struct weight_source *source,
                               struct error *error)
{
    uint64_t part_bytes = (uint64_t)source->dims[0] * sizeof(float);
    uint64_t bytes = part_bytes * source->parts_count;
    enum status status = pages_take(&self->vector, bytes, error);
    if (status != STATUS_OK) return status;
    uint8_t *data = self->vector.data;
    for (uint32_t i = 0; i < source->parts_count; i++) {
        dtype_convert(data + i * part_bytes, DTYPE_F32, source->parts[i], source->dtype,
                      source->dims[0]);
    }
    self->base.bytes = self->vector.bytes;
    return pages_seal(&self->vector, bytes, error);
}

enum status cpu_weight_create(struct weight **out, struct device *device,
                              const struct weight_source *source, struct error *error)
{
    assert(out != NULL);
    assert(source != NULL);
    struct cpu_weight *self = NULL;
    enum status status = check_source(source, error);
    if (status != STATUS_OK) goto done;

    self = calloc(1, sizeof *self);
    if (self == NULL) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a weight");
        goto done;
    }
    self->base.device = device;
    self->base.form = source->form;
    self->base.dtype = source->dtype;
    for (uint32_t i = 0; i < form_dims(source->form); i++) self->base.dims[i] = source->dims[i];
    self->base.dims[0] *= source->parts_count;
    self->parts_count = source->parts_count;
    for (uint32_t i = 0; i < source->parts_count; i++) self->parts[i] = source->parts[i];
    if (source->form == WEIGHT_VECTOR) status = copy_vector(self, source, error);
    if (status != STATUS_OK) goto done;

    *out = &self->base;
    self = NULL;

done:
    if (self != NULL) cpu_weight_destroy(&self->base);
    return status;
}

void cpu_weight_destroy(struct weight *weight)
{
    struct cpu_weight *self = (struct cpu_weight *)weight;
    if (self == NULL) return;
    pages_release(&self->vector);
    free(self);
}
