// image.c - pixels, latents, blending, store, clear: one row an item.
//
// What these compute is fixed to the last bit (float32, in the order of kernels.h), so there are no
// wider sums here.

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/reference/reference.h"

#define ROW_BYTES 65536u  // of store and clear, which have no rows of their own

static float load(const void *at, uint64_t index, enum dtype dtype)
{
    const uint8_t *bytes = (const uint8_t *)at + index * dtype_bytes(dtype);
    float value = 0;
    if (dtype == DTYPE_U8) return (float)*bytes / 255.0f;
    dtype_convert(&value, DTYPE_F32, bytes, dtype, 1);
    return value;
}

static void store(void *at, uint64_t index, enum dtype dtype, float value)
{
    uint8_t *bytes = (uint8_t *)at + index * dtype_bytes(dtype);
    if (dtype == DTYPE_U8) {
        *bytes = isnan(value) ? 0 : (uint8_t)lrintf(value * 255.0f);
    } else {
        dtype_convert(bytes, dtype, &value, DTYPE_F32, 1);
    }
}

static void run_store(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                      void *scratch)
{
    (void)scratch;
    const struct store *op = &operation->store;
    uint64_t first = (uint64_t)item * ROW_BYTES;
    uint64_t count = op->count - first < ROW_BYTES ? op->count - first : ROW_BYTES;
    const float *input = cpu_address(run, &op->input);
    uint8_t *output = cpu_address(run, &op->output);
    memcpy(output + first * sizeof *input, input + first, count * sizeof *input);
}

static void run_clear(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                      void *scratch)
{
    (void)scratch;
    const struct clear *op = &operation->clear;
    uint64_t first = (uint64_t)item * ROW_BYTES;
    uint64_t count = op->bytes - first < ROW_BYTES ? op->bytes - first : ROW_BYTES;
    memset((uint8_t *)cpu_address(run, &op->output) + first, 0, count);
}

static void run_pixels_load(const struct operation *operation, const struct cpu_run *run,
                            uint32_t item, void *scratch)
{
    (void)scratch;
    const struct pixels_load *op = &operation->pixels_load;
    const struct window *window = &op->window;
    const void *source = cpu_address(run, &op->source);
    float *output = cpu_address(run, &op->output);
    bool found = false;
    for (uint32_t x = 0; x < window->w; x++) {
        uint64_t pixel = (uint64_t)(window->y + item) * window->full_w + window->x + x;
        for (uint32_t i = 0; i < 3; i++) {
            float value = load(source, pixel * op->channels + i, op->dtype);
            output[((uint64_t)item * window->w + x) * 3 + i] = value * 2.0f - 1.0f;
            found |= !isfinite(value);
        }
    }
    cpu_note(run, &op->not_finite, found);
}

static void run_pixels_store(const struct operation *operation, const struct cpu_run *run,
                             uint32_t item, void *scratch)
{
    (void)scratch;
    const struct pixels_store *op = &operation->pixels_store;
    const float *input = cpu_address(run, &op->input);
    void *output = cpu_address(run, &op->output);
    bool found = false;
    for (uint64_t i = 0; i < 3ull * op->w; i++) {
        uint64_t at = 3ull * item * op->w + i;
        float value = input[at];
        if (op->clamp) {
            value = (value + 1.0f) / 2.0f;
            if (value < 0.0f) value = 0.0f;
            if (value > 1.0f) value = 1.0f;
        }
        store(output, at, op->dtype, value);
        found |= !isfinite(input[at]) || !isfinite(load(output, at, op->dtype));
    }
    cpu_note(run, &op->not_finite, found);
}

static void run_latent_load(const struct operation *operation, const struct cpu_run *run,
                            uint32_t item, void *scratch)
{
    (void)scratch;
    const struct latent_load *op = &operation->latent_load;
    const struct window *window = &op->window;
    const void *source = cpu_address(run, &op->source);
    float *output = cpu_address(run, &op->output);
    bool found = false;
    for (uint32_t x = 0; x < window->w; x++) {
        for (uint32_t i = 0; i < op->channels; i++) {
            uint64_t line = (uint64_t)i * window->full_h + window->y + item;
            float value = load(source, line * window->full_w + window->x + x, op->dtype);
            output[((uint64_t)item * window->w + x) * op->channels + i] = value;
            found |= !isfinite(value);
        }
    }
    cpu_note(run, &op->not_finite, found);
}

static void run_latent_store(const struct operation *operation, const struct cpu_run *run,
                             uint32_t item, void *scratch)
{
    (void)scratch;
    const struct latent_store *op = &operation->latent_store;
    const float *input = cpu_address(run, &op->input);
    void *output = cpu_address(run, &op->output);
    bool found = false;
    for (uint32_t x = 0; x < op->w; x++) {
        for (uint32_t i = 0; i < op->channels; i++) {
            float value = input[((uint64_t)item * op->w + x) * op->stride + i];
            uint64_t at = ((uint64_t)i * op->h + item) * op->w + x;
            store(output, at, op->dtype, value);
            found |= !isfinite(value) || !isfinite(load(output, at, op->dtype));
        }
    }
    cpu_note(run, &op->not_finite, found);
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

// Multiplies the feather of one axis onto a mask, as ComfyUI's loop over t does.
static float feathered(float mask, uint32_t at, uint32_t length, uint32_t feather)
{
    if (feather >= length) return mask;
    for (uint32_t t = 0; t < feather; t++) {
        float factor = (float)((t + 1.0) / feather);
        if (at == t) mask *= factor;
        if (at == length - 1 - t) mask *= factor;
    }
    return mask;
}

static void run_blend(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                      void *scratch)
{
    (void)scratch;
    const struct blend *op = &operation->blend;
    const struct window *window = &op->window;
    const float *tile = cpu_address(run, &op->tile);
    float *sum = cpu_address(run, &op->sum);
    float *weight = cpu_address(run, &op->weight);
    for (uint32_t x = 0; x < window->w; x++) {
        float mask = feathered(1.0f, item, window->h, op->feather);
        mask = feathered(mask, x, window->w, op->feather);
        uint64_t pixel = (uint64_t)(window->y + item) * window->full_w + window->x + x;
        weight[pixel] += mask;
        for (uint32_t i = 0; i < op->channels; i++) {
            float value = tile[((uint64_t)item * window->w + x) * op->stride + i];
            sum[pixel * op->channels + i] += value * mask;
        }
    }
}

static void run_blend_end(const struct operation *operation, const struct cpu_run *run,
                          uint32_t item, void *scratch)
{
    (void)scratch;
    const struct blend_end *op = &operation->blend_end;
    const float *sum = cpu_address(run, &op->sum);
    const float *weight = cpu_address(run, &op->weight);
    float *total = cpu_address(run, &op->total);
    for (uint64_t i = 0; i < (uint64_t)op->full_w * op->channels; i++) {
        uint64_t at = (uint64_t)item * op->full_w * op->channels + i;
        float value = sum[at] / weight[at / op->channels];
        if (op->pass > 0) value = total[at] + value;
        if (op->passes > 1 && op->pass == op->passes - 1) value = value / (float)op->passes;
        total[at] = value;
    }
}

uint32_t reference_image_launches(const struct operation *op,
                                  struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    assert(op != NULL);
    struct cpu_launch launch = {.items = 0};
    switch ((int)op->kind) {
    case OPERATION_STORE:
        launch.items = (uint32_t)((op->store.count + ROW_BYTES - 1) / ROW_BYTES);
        launch.run = run_store;
        break;
    case OPERATION_CLEAR:
        launch.items = (uint32_t)((op->clear.bytes + ROW_BYTES - 1) / ROW_BYTES);
        launch.run = run_clear;
        break;
    case OPERATION_PIXELS_LOAD:
        launch.items = op->pixels_load.window.h;
        launch.run = run_pixels_load;
        break;
    case OPERATION_PIXELS_STORE:
        launch.items = op->pixels_store.h;
        launch.run = run_pixels_store;
        break;
    case OPERATION_LATENT_LOAD:
        launch.items = op->latent_load.window.h;
        launch.run = run_latent_load;
        break;
    case OPERATION_LATENT_STORE:
        launch.items = op->latent_store.h;
        launch.run = run_latent_store;
        break;
    case OPERATION_WORDS_STORE:
        launch.items = 1;
        launch.run = run_words_store;
        break;
    case OPERATION_BLEND:
        launch.items = op->blend.window.h;
        launch.run = run_blend;
        break;
    case OPERATION_BLEND_END:
        launch.items = op->blend_end.full_h;
        launch.run = run_blend_end;
        break;
    default:
        assert(!"not an operation on images");
    }
    out[0] = launch;
    return 1;
}
