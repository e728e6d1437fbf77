// simple.c - the operations that only move memory: items are bands of rows.
//
// What is fixed to the last bit (pixels, latents, blending) is computed in float32 in the order of
// kernels.h.

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "kernels/cpu/band.h"
#include "kernels/cpu/compute.h"
#include "kernels/operation.h"

// ---------------------------------------------------------------------------------------------
// Rows of text

static void run_embedding(const struct operation *operation, const struct cpu_run *run,
                          uint32_t item, void *scratch)
{
    const struct embedding *op = &operation->embedding;
    const struct cpu_weight *table = cpu_weight_of(op->table);
    const struct cpu_weight *positions = cpu_weight_of(op->positions);
    const uint8_t *ids = cpu_address(run, &op->ids);
    const uint8_t *vectors = cpu_address(run, &op->vectors);
    uint64_t row_bytes = (uint64_t)op->width * sizeof(float);
    float *position = scratch;
    struct band band = band_of(item, op->rows, op->width);
    for (uint32_t row = band.begin; row < band.end; row++) {
        int32_t id = (int32_t)load_u32(ids + (uint64_t)row * sizeof id);
        float *y = (float *)cpu_address(run, &op->output) + (uint64_t)row * op->width;
        if (id >= 0) {
            dtype_convert(y, DTYPE_F32, cpu_weight_row(table, (uint32_t)id), table->base.dtype,
                          op->width);
        } else {
            memcpy(y, vectors + (uint64_t)(-1 - (int64_t)id) * row_bytes, row_bytes);
        }
        dtype_convert(position, DTYPE_F32, cpu_weight_row(positions, row % op->tokens),
                      positions->base.dtype, op->width);
        for (uint32_t i = 0; i < op->width; i++) y[i] += position[i];
    }
}

static void run_gather(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                       void *scratch)
{
    (void)scratch;
    const struct gather *op = &operation->gather;
    const uint8_t *indices = cpu_address(run, &op->indices);
    const float *input = cpu_address(run, &op->input);
    float *output = cpu_address(run, &op->output);
    struct band band = band_of(item, op->count, op->width);
    for (uint32_t row = band.begin; row < band.end; row++) {
        uint64_t from = load_u32(indices + 4ull * row);
        memcpy(output + (uint64_t)row * op->width, input + from * op->width,
               (uint64_t)op->width * sizeof *input);
    }
}

// ---------------------------------------------------------------------------------------------
// Flat memory

static uint32_t blocks(uint64_t bytes)
{
    return (uint32_t)((bytes + ITEM_ELEMENTS * sizeof(float) - 1) /
                      (ITEM_ELEMENTS * sizeof(float)));
}

// The length of block number item of bytes.
static uint64_t block_bytes(uint32_t item, uint64_t bytes)
{
    uint64_t block = ITEM_ELEMENTS * sizeof(float);
    uint64_t left = bytes - item * block;
    return left < block ? left : block;
}

static void run_store(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                      void *scratch)
{
    (void)scratch;
    const struct store *op = &operation->store;
    uint64_t begin = (uint64_t)item * ITEM_ELEMENTS * sizeof(float);
    memcpy((uint8_t *)cpu_address(run, &op->output) + begin,
           (const uint8_t *)cpu_address(run, &op->input) + begin,
           block_bytes(item, op->count * sizeof(float)));
}

static void run_clear(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                      void *scratch)
{
    (void)scratch;
    const struct clear *op = &operation->clear;
    uint64_t begin = (uint64_t)item * ITEM_ELEMENTS * sizeof(float);
    memset((uint8_t *)cpu_address(run, &op->output) + begin, 0, block_bytes(item, op->bytes));
}

static void run_words_store(const struct operation *operation, const struct cpu_run *run,
                            uint32_t item, void *scratch)
{
    (void)item;
    (void)scratch;
    const struct words_store *op = &operation->words_store;
    memcpy(cpu_address(run, &op->output), cpu_address(run, &op->input),
           (uint64_t)op->count * sizeof(uint32_t));
}

// ---------------------------------------------------------------------------------------------
// Images

// A row of any element type as float32; u8 becomes value / 255.
static void load_row(float *out, const uint8_t *in, enum dtype dtype, uint64_t count)
{
    if (dtype == DTYPE_U8) {
        for (uint64_t i = 0; i < count; i++) out[i] = (float)in[i] / 255.0f;
    } else {
        dtype_convert(out, DTYPE_F32, in, dtype, count);
    }
}

// True for NaN and what is at least limit away from 0.
static bool reaches(float value, float limit)
{
    return !(fabsf(value) < limit);
}

static void run_pixels_load(const struct operation *operation, const struct cpu_run *run,
                            uint32_t item, void *scratch)
{
    const struct pixels_load *op = &operation->pixels_load;
    const struct window *window = &op->window;
    const uint8_t *source = cpu_address(run, &op->source);
    uint64_t pixel_bytes = (uint64_t)op->channels * dtype_bytes(op->dtype);
    float *row = scratch;
    bool found = false;
    struct band band = band_of(item, window->h, (uint64_t)window->w * op->channels);
    for (uint32_t y = band.begin; y < band.end; y++) {
        uint64_t pixel = (uint64_t)(window->y + y) * window->full_w + window->x;
        float *out = (float *)cpu_address(run, &op->output) + 3ull * y * window->w;
        load_row(row, source + pixel * pixel_bytes, op->dtype, (uint64_t)window->w * op->channels);
        for (uint64_t x = 0; x < window->w; x++) {
            const float *from = row + x * op->channels;
            for (uint32_t i = 0; i < 3; i++) {
                out[3 * x + i] = from[i] * 2.0f - 1.0f;
                found |= reaches(from[i], INFINITY);
            }
        }
    }
    cpu_note(run, &op->not_finite, found);
}

// clamp((x + 1) / 2, 0, 1); NaN stays NaN. Returns whether there was one, or an infinity.
static bool clamp_row(float *out, const float *in, uint64_t count)
{
    bool found = false;
    for (uint64_t i = 0; i < count; i++) {
        found |= reaches(in[i], INFINITY);
        float value = (in[i] + 1.0f) / 2.0f;
        value = value < 0.0f ? 0.0f : value;
        out[i] = value > 1.0f ? 1.0f : value;
    }
    return found;
}

static bool row_reaches(const float *row, uint64_t count, float limit)
{
    bool found = false;
    for (uint64_t i = 0; i < count; i++) found |= reaches(row[i], limit);
    return found;
}

static void run_pixels_store(const struct operation *operation, const struct cpu_run *run,
                             uint32_t item, void *scratch)
{
    const struct pixels_store *op = &operation->pixels_store;
    uint64_t width = 3ull * op->w;
    float *row = scratch;
    bool found = false;
    struct band band = band_of(item, op->h, width);
    for (uint32_t y = band.begin; y < band.end; y++) {
        const float *in = (const float *)cpu_address(run, &op->input) + y * width;
        uint8_t *out =
            (uint8_t *)cpu_address(run, &op->output) + y * width * dtype_bytes(op->dtype);
        found |= op->clamp ? clamp_row(row, in, width)
                           : row_reaches(in, width, operation_limit(op->dtype));
        const float *from = op->clamp ? row : in;
        if (op->dtype != DTYPE_U8) {
            dtype_convert(out, op->dtype, from, DTYPE_F32, width);
            continue;
        }
        for (uint64_t i = 0; i < width; i++) {
            out[i] = isnan(from[i]) ? 0 : (uint8_t)lrintf(from[i] * 255.0f);
        }
    }
    cpu_note(run, &op->not_finite, found);
}

static void run_latent_load(const struct operation *operation, const struct cpu_run *run,
                            uint32_t item, void *scratch)
{
    const struct latent_load *op = &operation->latent_load;
    const struct window *window = &op->window;
    const uint8_t *source = cpu_address(run, &op->source);
    float *row = scratch;
    bool found = false;
    struct band band = band_of(item, window->h, (uint64_t)window->w * op->channels);
    for (uint32_t y = band.begin; y < band.end; y++) {
        uint64_t width = (uint64_t)window->w * op->channels;
        float *out = (float *)cpu_address(run, &op->output) + y * width;
        for (uint32_t i = 0; i < op->channels; i++) {
            uint64_t line = (uint64_t)i * window->full_h + window->y + y;
            uint64_t first = line * window->full_w + window->x;
            load_row(row, source + first * dtype_bytes(op->dtype), op->dtype, window->w);
            for (uint64_t x = 0; x < window->w; x++) {
                out[x * op->channels + i] = row[x];
                found |= reaches(row[x], INFINITY);
            }
        }
    }
    cpu_note(run, &op->not_finite, found);
}

static void run_latent_store(const struct operation *operation, const struct cpu_run *run,
                             uint32_t item, void *scratch)
{
    const struct latent_store *op = &operation->latent_store;
    uint8_t *output = cpu_address(run, &op->output);
    float *row = scratch;
    float limit = operation_limit(op->dtype);
    bool found = false;
    struct band band = band_of(item, op->h, (uint64_t)op->w * op->stride);
    for (uint32_t y = band.begin; y < band.end; y++) {
        const float *in =
            (const float *)cpu_address(run, &op->input) + (uint64_t)y * op->w * op->stride;
        for (uint32_t i = 0; i < op->channels; i++) {
            for (uint64_t x = 0; x < op->w; x++) {
                row[x] = in[x * op->stride + i];
                found |= reaches(row[x], limit);
            }
            uint64_t first = ((uint64_t)i * op->h + y) * op->w;
            dtype_convert(output + first * dtype_bytes(op->dtype), op->dtype, row, DTYPE_F32,
                          op->w);
        }
    }
    cpu_note(run, &op->not_finite, found);
}

// ---------------------------------------------------------------------------------------------
// Blending

// Multiplies onto mask the factors of one line of a feathered axis: (t + 1) / feather for its
// distance t from either edge, the smaller t first.
static float feather_line(float mask, uint32_t at, uint32_t length, uint32_t feather)
{
    if (feather >= length) return mask;
    uint32_t near = cpu_min(at, length - 1 - at);
    uint32_t far = length - 1 - near;
    if (near < feather) mask *= (float)((near + 1.0) / feather);
    if (far < feather) mask *= (float)((far + 1.0) / feather);
    return mask;
}

static void run_blend(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                      void *scratch)
{
    (void)scratch;
    const struct blend *op = &operation->blend;
    const struct window *window = &op->window;
    struct band band = band_of(item, window->h, (uint64_t)window->w * op->stride);
    for (uint32_t y = band.begin; y < band.end; y++) {
        uint64_t first = (uint64_t)(window->y + y) * window->full_w + window->x;
        const float *tile =
            (const float *)cpu_address(run, &op->tile) + (uint64_t)y * window->w * op->stride;
        float *sum = (float *)cpu_address(run, &op->sum) + first * op->channels;
        float *weight = (float *)cpu_address(run, &op->weight) + first;
        float row_mask = feather_line(1.0f, y, window->h, op->feather);
        for (uint32_t x = 0; x < window->w; x++) {
            float mask = feather_line(row_mask, x, window->w, op->feather);
            for (uint32_t i = 0; i < op->channels; i++) sum[i] += tile[i] * mask;
            weight[x] += mask;
            sum += op->channels;
            tile += op->stride;
        }
    }
}

static void run_blend_end(const struct operation *operation, const struct cpu_run *run,
                          uint32_t item, void *scratch)
{
    (void)scratch;
    const struct blend_end *op = &operation->blend_end;
    bool is_last = op->passes > 1 && op->pass == op->passes - 1;
    struct band band = band_of(item, op->full_h, (uint64_t)op->full_w * op->channels);
    uint64_t pixel = (uint64_t)band.begin * op->full_w;
    uint64_t end = (uint64_t)band.end * op->full_w;
    const float *sum = cpu_address(run, &op->sum);
    const float *weight = cpu_address(run, &op->weight);
    float *total = cpu_address(run, &op->total);
    for (; pixel < end; pixel++) {
        for (uint64_t i = pixel * op->channels; i < (pixel + 1) * op->channels; i++) {
            float value = sum[i] / weight[pixel];
            if (op->pass > 0) value = total[i] + value;
            total[i] = is_last ? value / (float)op->passes : value;
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Launches

static struct cpu_launch text_launch(const struct cpu_compute *compute, const struct operation *op)
{
    if (op->kind == OPERATION_LAYER_NORM) {
        return (struct cpu_launch){.items = bands(op->layer_norm.rows, op->layer_norm.width),
                                   .run = compute->layer_norm};
    }
    if (op->kind == OPERATION_EMBEDDING) {
        return (struct cpu_launch){.items = bands(op->embedding.rows, op->embedding.width),
                                   .scratch_bytes = op->embedding.width * sizeof(float),
                                   .run = run_embedding};
    }
    assert(op->kind == OPERATION_GATHER);
    return (struct cpu_launch){.items = bands(op->gather.count, op->gather.width),
                               .run = run_gather};
}

static struct cpu_launch load_launch(const struct operation *op)
{
    if (op->kind == OPERATION_PIXELS_LOAD) {
        const struct window *window = &op->pixels_load.window;
        uint64_t width = (uint64_t)window->w * op->pixels_load.channels;
        return (struct cpu_launch){.items = bands(window->h, width),
                                   .scratch_bytes = width * sizeof(float),
                                   .run = run_pixels_load};
    }
    assert(op->kind == OPERATION_LATENT_LOAD);
    const struct window *window = &op->latent_load.window;
    uint64_t width = (uint64_t)window->w * op->latent_load.channels;
    return (struct cpu_launch){.items = bands(window->h, width),
                               .scratch_bytes = window->w * sizeof(float),
                               .run = run_latent_load};
}

static struct cpu_launch store_launch(const struct operation *op)
{
    if (op->kind == OPERATION_PIXELS_STORE) {
        uint64_t width = 3ull * op->pixels_store.w;
        return (struct cpu_launch){.items = bands(op->pixels_store.h, width),
                                   .scratch_bytes = width * sizeof(float),
                                   .run = run_pixels_store};
    }
    assert(op->kind == OPERATION_LATENT_STORE);
    uint64_t width = (uint64_t)op->latent_store.w * op->latent_store.stride;
    return (struct cpu_launch){.items = bands(op->latent_store.h, width),
                               .scratch_bytes = op->latent_store.w * sizeof(float),
                               .run = run_latent_store};
}

static struct cpu_launch memory_launch(const struct operation *op)
{
    if (op->kind == OPERATION_STORE) {
        return (struct cpu_launch){.items = blocks(op->store.count * sizeof(float)),
                                   .run = run_store};
    }
    if (op->kind == OPERATION_CLEAR) {
        return (struct cpu_launch){.items = blocks(op->clear.bytes), .run = run_clear};
    }
    if (op->kind == OPERATION_WORDS_STORE) {
        return (struct cpu_launch){.items = 1, .run = run_words_store};
    }
    if (op->kind == OPERATION_BLEND) {
        uint64_t width = (uint64_t)op->blend.window.w * op->blend.stride;
        return (struct cpu_launch){.items = bands(op->blend.window.h, width), .run = run_blend};
    }
    assert(op->kind == OPERATION_BLEND_END);
    uint64_t width = (uint64_t)op->blend_end.full_w * op->blend_end.channels;
    return (struct cpu_launch){.items = bands(op->blend_end.full_h, width), .run = run_blend_end};
}

uint32_t cpu_simple_launches(const struct cpu_compute *compute, const struct operation *op,
                             struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    assert(op != NULL);
    switch ((int)op->kind) {
    case OPERATION_LAYER_NORM:
    case OPERATION_EMBEDDING:
    case OPERATION_GATHER:
        out[0] = text_launch(compute, op);
        break;
    case OPERATION_PIXELS_LOAD:
    case OPERATION_LATENT_LOAD:
        out[0] = load_launch(op);
        break;
    case OPERATION_PIXELS_STORE:
    case OPERATION_LATENT_STORE:
        out[0] = store_launch(op);
        break;
    default:
        out[0] = memory_launch(op);
        break;
    }
    return 1;
}
