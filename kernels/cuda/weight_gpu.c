// weight_gpu.c - weights: read from the mapped file, converted and laid out piece by piece in
// memory that the driver pinned, and copied from there; the host holds no other copy.
//
// Convolutions are packed [tap][chunk of 32 channels][k][32], the last chunk padded with zeros, so
// that a block loads whole rows of 64 bytes whatever c is; within a row as GPU_CHUNK_PLACE says.
// Those that upsample have 16 taps, four 2x2 windows: taps of the file that fall on one pixel are
// added in float32 here, once, and their sums are rounded once.
// Rows of matrices are padded to multiples of 8 elements, for copies of 16 bytes. Parts are one
// behind the other along k.

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

// Of a packed convolution.
static uint32_t taps_of(const struct weight_source *source)
{
    return source->upsample ? 16 : source->dims[2] * source->dims[3];
}

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
        elements *= (uint64_t)taps_of(source) * round_up(dims[1], GPU_CHUNK);
    }
    layout.bytes = elements * dtype_bytes(layout.type);
    return layout;
}

// A weight that is being laid out: the context of gpu_source.fill.
struct packing {
    struct layout layout;                // of the result
    const struct weight_source *source;  // of the elements
};

static uint64_t lesser(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

// Elements of the file that belong to one k.
static uint64_t row_of(const struct weight_source *source)
{
    const uint32_t *dims = source->dims;
    if (source->form == WEIGHT_VECTOR) return 1;
    return source->form == WEIGHT_CONVOLUTION ? (uint64_t)dims[1] * dims[2] * dims[3] : dims[1];
}

static const uint8_t *source_at(const struct weight_source *source, uint32_t k, uint64_t element)
{
    const uint8_t *part = source->parts[k / source->dims[0]];
    uint64_t at = k % source->dims[0] * row_of(source) + element;
    return part + at * dtype_bytes(source->dtype);
}

// Rows of width elements become rows of pitch, zeros behind them. Rows that lie one behind the
// other in the file and on the device go in one run.
static void pack_rows(const struct packing *self, uint8_t *to, uint64_t first, uint64_t count)
{
    const struct weight_source *source = self->source;
    uint64_t width = row_of(source);
    uint64_t pitch = source->form == WEIGHT_MATRIX ? self->layout.pitch : width;
    uint32_t bytes = dtype_bytes(self->layout.type);
    while (count > 0) {
        uint32_t k = (uint32_t)(first / pitch);
        uint64_t column = first % pitch;
        uint64_t dense = pitch == width ? source->dims[0] - k % source->dims[0] : 1;
        uint64_t run = lesser(count, dense * pitch - column);
        uint64_t known = column < dense * width ? lesser(run, dense * width - column) : 0;
        if (known > 0) {
            dtype_convert(to, self->layout.type, source_at(source, k, column), source->dtype,
                          known);
        }
        memset(to + known * bytes, 0, (run - known) * bytes);
        to += run * bytes;
        first += run;
        count -= run;
    }
}

// Channels of one chunk of one filter, which is [c, taps] in the file.
struct strip {
    const uint8_t *from;  // its first channel and tap
    uint32_t count;       // channels that are there, at most GPU_CHUNK
};

static void read_tap(const struct weight_source *source, const struct strip *strip, uint32_t tap,
                     void *out, enum dtype type)
{
    uint32_t taps = source->dims[2] * source->dims[3];
    uint32_t bytes = dtype_bytes(source->dtype);
    uint8_t gathered[GPU_CHUNK * sizeof(float)];
    assert(tap < taps);
    assert(strip->count <= GPU_CHUNK);
    for (uint32_t i = 0; i < strip->count; i++) {
        memcpy(gathered + i * bytes, strip->from + ((uint64_t)i * taps + tap) * bytes, bytes);
    }
    dtype_convert(out, type, gathered, source->dtype, strip->count);
}

// Whether row (or column) `from` of a 3x3 window over the doubled image falls on row `to` of the
// 2x2 window over the image itself: the last one alone if the output's row is odd, the first one
// alone if it is even, and the other two together.
static bool falls_on(bool is_odd, uint32_t from, uint32_t to)
{
    return (is_odd ? from / 2 : (from + 1) / 2) == to;
}

// The sum of those taps of the file that one of the 16 stands for.
static void sum_taps(const struct weight_source *source, const struct strip *strip, uint32_t tap,
                     float sums[GPU_CHUNK])
{
    for (uint32_t from = 0; from < 9; from++) {
        if (!falls_on(tap / 8 == 1, from / 3, tap / 2 % 2)) continue;
        if (!falls_on(tap / 4 % 2 == 1, from % 3, tap % 2)) continue;
        float values[GPU_CHUNK];
        read_tap(source, strip, from, values, DTYPE_F32);
        for (uint32_t i = 0; i < strip->count; i++) sums[i] += values[i];
    }
}

// A packed row: the channels of one chunk and tap of one filter.
static void pack_chunk(const struct packing *self, uint8_t *to, uint64_t row)
{
    const struct weight_source *source = self->source;
    uint32_t c = source->dims[1];
    uint32_t chunks = (uint32_t)round_up(c, GPU_CHUNK) / GPU_CHUNK;
    uint32_t k = (uint32_t)(row % self->layout.k);
    uint32_t tap = (uint32_t)(row / self->layout.k / chunks);
    uint32_t channel = (uint32_t)(row / self->layout.k % chunks) * GPU_CHUNK;
    uint64_t element = (uint64_t)channel * source->dims[2] * source->dims[3];
    const struct strip strip = {.from = source_at(source, k, element),
                                .count = (uint32_t)lesser(GPU_CHUNK, c - channel)};
    uint8_t dense[GPU_CHUNK * sizeof(float)] = {0};
    if (source->upsample) {
        float sums[GPU_CHUNK] = {0};
        sum_taps(source, &strip, tap, sums);
        dtype_convert(dense, self->layout.type, sums, DTYPE_F32, strip.count);
    } else {
        read_tap(source, &strip, tap, dense, self->layout.type);
    }
    uint32_t bytes = dtype_bytes(self->layout.type);
    for (uint32_t i = 0; i < GPU_CHUNK; i += 8) {
        memcpy(to + GPU_CHUNK_PLACE(k, i) * bytes, dense + i * bytes, 8 * bytes);
    }
}

static void pack_filters(const struct packing *self, uint8_t *to, uint64_t first, uint64_t count)
{
    uint32_t bytes = dtype_bytes(self->layout.type);
    while (count > 0) {
        uint32_t from = (uint32_t)(first % GPU_CHUNK);
        uint32_t run = (uint32_t)lesser(count, GPU_CHUNK - from);
        uint8_t row[GPU_CHUNK * sizeof(float)];
        pack_chunk(self, row, first / GPU_CHUNK);
        memcpy(to, row + from * bytes, run * bytes);
        to += run * bytes;
        first += run;
        count -= run;
    }
}

static void fill(void *context, void *to, uint64_t first, uint64_t count)
{
    const struct packing *self = context;
    assert((first + count) * dtype_bytes(self->layout.type) <= self->layout.bytes);
    if (self->source->form == WEIGHT_CONVOLUTION) {
        pack_filters(self, to, first, count);
    } else {
        pack_rows(self, to, first, count);
    }
}

uint64_t gpu_weight_plan(const struct device *device, const struct weight_source *source)
{
    assert(device != NULL);
    return layout_of((const struct gpu_device *)device, source).bytes;
}

// Rows that a library may copy by 16 bytes, and enough of them.
#define CHOICE_MIN 64u

// How a matrix is going to be multiplied. Depends on its shape and types alone.
static const struct gpu_blas_choice *choose(const struct gpu_device *device,
                                            const struct weight_source *source,
                                            const struct layout *layout)
{
    uint32_t c = source->dims[1];
    if (device->blas == NULL || source->form != WEIGHT_MATRIX) return NULL;
    if (layout->k < CHOICE_MIN || c < CHOICE_MIN || layout->k % 4 != 0 || c % 8 != 0) return NULL;
    const struct gpu_blas_shape shape = {.n = layout->k,
                                         .k = c,
                                         .b_pitch = layout->pitch,
                                         .a_pitch = c,
                                         .type = layout->type,
                                         .has_bias = gpu_linear_parts(device, layout->type) == 1};
    return gpu_blas_choose(device->blas, &shape);
}

enum status gpu_weight_create(struct weight **out, struct device *device,
                              const struct weight_source *source, struct error *error)
{
    assert(out != NULL);
    assert(device != NULL);
    const struct gpu_device *owner = (const struct gpu_device *)device;
    struct packing packing = {.layout = layout_of(owner, source), .source = source};
    const struct layout *layout = &packing.layout;
    const struct gpu_source elements = {.fill = fill,
                                        .context = &packing,
                                        .count = layout->bytes / dtype_bytes(layout->type),
                                        .element_bytes = dtype_bytes(layout->type)};
    struct gpu_weight *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a weight");
    self->base.device = device;
    self->base.bytes = layout->bytes;
    self->type = layout->type;
    self->pitch = layout->pitch;
    self->choice = choose(owner, source, layout);
    enum status status = gpu_allocate(owner->card, layout->bytes, &self->data, error);
    if (status != STATUS_OK) goto done;
    status = gpu_upload(owner->card, self->data, &elements, error);
    if (status != STATUS_OK) goto done;
    *out = &self->base;
    self = NULL;

done:
    if (self != NULL) {
        gpu_free(owner->card, self->data, layout->bytes);
        free(self);
    }
    return status;
}

void gpu_weight_destroy(struct weight *weight)
{
    assert(weight != NULL);
    struct gpu_weight *self = (struct gpu_weight *)weight;
    gpu_free(((struct gpu_device *)weight->device)->card, self->data, weight->bytes);
    free(self);
}
