// weight_gpu.c - weights: converted and laid out in host memory, then copied to the device.
//
// Convolutions are packed [tap][chunk of 32 channels][k][32], the last chunk padded with zeros, so
// that a block loads whole rows of 64 bytes whatever c is. Rows of matrices are padded to multiples
// of 8 elements, for copies of 16 bytes. Parts are one behind the other along k.

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/cuda/device_gpu.h"

// What a weight becomes: its elements and where each goes.
struct layout {
    enum dtype type;  // of an element on the device
    uint64_t bytes;   // of all
    uint32_t pitch;   // of a matrix
    uint32_t k;       // rows of all parts
};

static struct layout layout_of(const struct gpu_device *device, const struct weight_source *source)
{
    const uint32_t *dims = source->dims;
    struct layout layout = {.type = DTYPE_F32, .k = dims[0] * source->parts_count};
    uint64_t elements = layout.k;
    if (source->form == WEIGHT_TABLE) {
        layout.type = source->dtype;
        elements *= dims[1];
    } else if (source->form == WEIGHT_MATRIX) {
        layout.type = device->storage == DTYPE_F32 ? source->dtype : device->storage;
        layout.pitch = (uint32_t)round_up(dims[1], 8);
        elements *= layout.pitch;
    } else if (source->form == WEIGHT_CONVOLUTION) {
        layout.type = device->storage;
        elements *= (uint64_t)dims[2] * dims[3] * round_up(dims[1], GPU_CHUNK);
    }
    layout.bytes = elements * dtype_bytes(layout.type);
    return layout;
}

// Rows of width elements to rows of pitch, the rest zero already.
static void pack_rows(uint8_t *to, const struct layout *layout, const struct weight_source *source,
                      uint32_t width, uint32_t pitch)
{
    uint32_t from_bytes = dtype_bytes(source->dtype);
    uint32_t to_bytes = dtype_bytes(layout->type);
    for (uint32_t part = 0; part < source->parts_count; part++) {
        for (uint64_t row = 0; row < source->dims[0]; row++) {
            const uint8_t *from = (const uint8_t *)source->parts[part] + row * width * from_bytes;
            uint64_t line = (uint64_t)part * source->dims[0] + row;
            dtype_convert(to + line * pitch * to_bytes, layout->type, from, source->dtype, width);
        }
    }
}

// One output channel, [c, taps] in the file.
static void pack_filter(uint8_t *to, const struct layout *layout,
                        const struct weight_source *source, const uint8_t *from, uint32_t k)
{
    uint32_t c = source->dims[1];
    uint32_t taps = source->dims[2] * source->dims[3];
    uint32_t chunks = (uint32_t)round_up(c, GPU_CHUNK) / GPU_CHUNK;
    uint32_t from_bytes = dtype_bytes(source->dtype);
    uint32_t to_bytes = dtype_bytes(layout->type);
    for (uint64_t i = 0; i < (uint64_t)c * taps; i++) {
        uint64_t channel = i / taps;
        uint64_t row = (i % taps * chunks + channel / GPU_CHUNK) * layout->k + k;
        uint64_t at = row * GPU_CHUNK + channel % GPU_CHUNK;
        dtype_convert(to + at * to_bytes, layout->type, from + i * from_bytes, source->dtype, 1);
    }
}

static void pack_filters(uint8_t *to, const struct layout *layout,
                         const struct weight_source *source)
{
    uint64_t filter = (uint64_t)source->dims[1] * source->dims[2] * source->dims[3];
    uint64_t filter_bytes = filter * dtype_bytes(source->dtype);
    for (uint32_t k = 0; k < layout->k; k++) {
        const uint8_t *part = source->parts[k / source->dims[0]];
        pack_filter(to, layout, source, part + k % source->dims[0] * filter_bytes, k);
    }
}

static void pack(uint8_t *to, const struct layout *layout, const struct weight_source *source)
{
    if (source->form == WEIGHT_CONVOLUTION) {
        pack_filters(to, layout, source);
    } else if (source->form == WEIGHT_MATRIX) {
        pack_rows(to, layout, source, source->dims[1], layout->pitch);
    } else {
        uint32_t width = source->form == WEIGHT_TABLE ? source->dims[1] : 1;
        pack_rows(to, layout, source, width, width);
    }
}

enum status gpu_weight_create(struct weight **out, struct device *device,
                              const struct weight_source *source, struct error *error)
{
    assert(out != NULL);
    assert(device != NULL);
    const struct gpu_device *owner = (const struct gpu_device *)device;
    struct layout layout = layout_of(owner, source);
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    struct gpu_weight *self = calloc(1, sizeof *self);
    uint8_t *packed = calloc(1, layout.bytes);
    if (self == NULL || packed == NULL) {
        error_set(error, status, "no memory for a weight of %llu bytes",
                  (unsigned long long)layout.bytes);
        goto done;
    }
    self->base.device = device;
    self->base.bytes = layout.bytes;
    self->type = layout.type;
    self->pitch = layout.pitch;
    pack(packed, &layout, source);
    status = gpu_allocate(owner->card, layout.bytes, &self->data, error);
    if (status != STATUS_OK) goto done;
    status = gpu_upload(owner->card, self->data, packed, layout.bytes, error);
    if (status != STATUS_OK) goto done;
    *out = &self->base;
    self = NULL;

done:
    free(packed);
    if (self != NULL) {
        gpu_free(owner->card, self->data);
        free(self);
    }
    return status;
}

void gpu_weight_destroy(struct weight *weight)
{
    assert(weight != NULL);
    struct gpu_weight *self = (struct gpu_weight *)weight;
    gpu_free(((struct gpu_device *)weight->device)->card, self->data);
    free(self);
}
