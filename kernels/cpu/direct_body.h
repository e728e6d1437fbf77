// direct_body.h - convolution as a product: rows are output pixels, depth is (tap, channel).
//
// An item takes a tile of pixels. Where the input has to be normalised, or its channels are not a
// multiple of 8, the patch under the tile is first copied into scratch, with its padding; otherwise
// strips are packed straight from the input, and padding is a row of zeros.

#ifndef KERNELS_CPU_DIRECT_BODY_H
#define KERNELS_CPU_DIRECT_BODY_H

#include "kernels/cpu/narrow_body.h"

// The channels that output pixel `pixel` of the tile sees through a tap.
static const float *direct_source(const struct direct_item *self, uint32_t pixel, uint32_t tap)
{
    uint32_t i = pixel / self->tile_w * self->stride + tap / self->plan.side;
    uint32_t j = pixel % self->tile_w * self->stride + tap % self->plan.side;
    if (self->plan.patched) {
        return self->patch + ((size_t)i * self->plan.patch_w + j) * self->plan.channels;
    }
    const float *from = direct_pixel(self, (int64_t)self->y * self->stride + i - self->pad,
                                     (int64_t)self->x * self->stride + j - self->pad);
    return from != NULL ? from : self->patch;
}

// Packs elements first .. first + depth of (tap, channel) for one strip of pixels.
static void direct_pack_strip(const struct direct_item *self, uint32_t strip, uint32_t first,
                              uint32_t depth, float *out)
{
    uint32_t last = self->tile_h * self->tile_w - 1;
    uint32_t channels = self->plan.channels;
    for (uint32_t at = first; at < first + depth;) {
        uint32_t tap = at / channels;
        uint32_t channel = at % channels;
        uint32_t count = cpu_min(channels - channel, first + depth - at);
        const float *rows[STRIP_ROWS];
        for (uint32_t i = 0; i < STRIP_ROWS; i++) {
            rows[i] = direct_source(self, cpu_min(strip * STRIP_ROWS + i, last), tap) + channel;
        }
        strip_pack(rows, count, out);
        out += (size_t)count * STRIP_ROWS;
        at += count;
    }
}

static void direct_product(const struct direct_item *self)
{
    const struct direct_plan *plan = &self->plan;
    uint32_t strips = cpu_divide_up(self->tile_h * self->tile_w, STRIP_ROWS);
    for (uint32_t first = 0; first < plan->depth; first += DIRECT_CHUNK) {
        uint32_t depth = cpu_min(DIRECT_CHUNK, plan->depth - first);
        size_t strip_floats = (size_t)depth * STRIP_ROWS;
        for (uint32_t i = 0; i < strips; i++) {
            direct_pack_strip(self, i, first, depth, self->strips + i * strip_floats);
        }
        for (uint32_t j = 0; j < plan->columns; j += PANEL_COLUMNS) {
            const float *panel = self->panels + (size_t)j * plan->depth + first * PANEL_COLUMNS;
            const float *next = panel + (size_t)PANEL_COLUMNS * plan->depth;
            for (uint32_t i = 0; i < strips; i++) {
                tile_multiply(self->strips + i * strip_floats, panel, depth,
                              self->tile + (size_t)i * STRIP_ROWS * plan->columns + j,
                              plan->columns, first > 0, next + (size_t)i % 8 * depth * 2);
            }
        }
    }
}

// Finishes eight (or, at the end, fewer) columns of all pixels.
LANES_INLINE void direct_finish_columns(const struct direct_item *self, uint32_t column,
                                        uint32_t count)
{
    lanes bias = lanes_zero();
    if (self->bias != NULL) bias = lanes_load_part(self->bias + column, count);
    struct pixel_sums sums = pixel_sums_begin(lanes_zero());
    struct pixel_sums total = sums;
    uint32_t pixels = self->tile_h * self->tile_w;
    for (uint32_t pixel = 0; pixel < pixels; pixel++) {
        uint32_t y = self->y + pixel / self->tile_w;
        uint32_t x = self->x + pixel % self->tile_w;
        size_t at = ((size_t)y * self->plan.out_w + x) * self->k + column;
        lanes value = lanes_add(lanes_load(self->tile + pixel * self->tile_stride + column), bias);
        if (self->residual != NULL) {
            const float *more = self->residual + at;
            value = lanes_add(value, count == 8 ? lanes_load(more) : lanes_load_part(more, count));
        }
        if (count == 8) {
            lanes_store(self->output + at, value);
        } else {
            lanes_store_part(self->output + at, value, count);
        }
        if (pixel == 0) sums = pixel_sums_begin(value);
        pixel_sums_add(&sums, value);
        if ((pixel + 1) % 16 == 0) pixel_sums_gather(&total, &sums);
    }
    if (self->partial == NULL) return;
    pixel_sums_gather(&total, &sums);
    pixel_sums_finish(&total, pixels, self->partial + 16 + column,
                      cpu_round_up(self->k, PANEL_COLUMNS));
}

static void direct_finish(const struct direct_item *self)
{
    if (self->partial != NULL) {
        self->partial[0] = (float)(self->tile_h * self->tile_w);
        size_t floats = (size_t)4 * cpu_round_up(self->k, PANEL_COLUMNS);
        memset(self->partial + 16, 0, floats * sizeof self->partial[0]);
    }
    for (uint32_t column = 0; column < self->k; column += 8) {
        if (self->k - column >= 8) {
            direct_finish_columns(self, column, 8);
        } else {
            direct_finish_columns(self, column, self->k - column);
        }
    }
}

static void direct_run(struct direct_item *self, uint32_t tile, float *scratch)
{
    const struct direct_plan *plan = &self->plan;
    self->y = tile / plan->tiles_x * plan->tile_h;
    self->x = tile % plan->tiles_x * plan->tile_w;
    self->tile_h = cpu_min(plan->tile_h, plan->out_h - self->y);
    self->tile_w = cpu_min(plan->tile_w, plan->out_w - self->x);
    self->pad = plan->side == 3 && self->stride == 1 ? 1 : 0;
    size_t pixels = plan->patched ? (size_t)plan->patch_h * plan->patch_w : 1;
    self->patch = scratch;
    self->strips = self->patch + pixels * plan->channels;
    self->tile = self->strips + (size_t)plan->strips * STRIP_ROWS * DIRECT_CHUNK;
    if (plan->patched) {
        direct_copy_patch(self);
    } else {
        memset(self->patch, 0, plan->channels * sizeof self->patch[0]);
    }
    self->tile_stride = plan->columns;
    if (plan->narrow) {
        narrow_product(self);
        narrow_gather(self, self->patch);
        self->tile = self->patch;
        self->tile_stride = 8;
    } else {
        direct_product(self);
    }
    direct_finish(self);
}

static void direct_multiply(const struct operation *operation, const struct cpu_run *run,
                            uint32_t item, void *scratch)
{
    const struct convolution *op = &operation->convolution;
    struct convolution_plan plan = cpu_convolution_plan(op);
    uint32_t image = item / plan.direct.tiles;
    if (!cpu_image_is_direct(operation, run, &plan, image)) return;
    size_t image_out = (size_t)plan.out_h * plan.out_w * op->k;
    uint8_t *workspace = cpu_address(run, &operation->workspace);
    const float *residual = cpu_address(run, plan.has_shortcut ? &op->output : &op->residual);
    struct direct_item self = {
        .plan = plan.direct,
        .c = op->c,
        .k = op->k,
        .stride = op->stride,
        .upsample = op->upsample,
        .input =
            (const float *)cpu_address(run, &op->input) + image * (size_t)op->h * op->w * op->c,
        .output = (float *)cpu_address(run, &op->output) + image * image_out,
        .residual = residual != NULL ? residual + image * image_out : NULL,
        .bias = cpu_vector(op->bias),
        .panels = (const float *)(const void *)(workspace + plan.weight_offset),
        .norm = input_norm_of(operation, run, &plan, image),
    };
    if (plan.has_statistics) {
        size_t index = (size_t)image * plan.partials + item % plan.direct.tiles;
        self.partial =
            (float *)(void *)(workspace + plan.partials_offset) + index * plan.partial_stride;
    }
    direct_run(&self, item % plan.direct.tiles, scratch);
}

static void shortcut_multiply(const struct operation *operation, const struct cpu_run *run,
                              uint32_t item, void *scratch)
{
    const struct convolution *op = &operation->convolution;
    struct convolution_plan plan = cpu_convolution_plan(op);
    uint32_t image = item / plan.shortcut.tiles;
    size_t pixels = (size_t)plan.out_h * plan.out_w;
    const uint8_t *workspace = cpu_address(run, &operation->workspace);
    const float *residual = cpu_address(run, &op->residual);
    struct direct_item self = {
        .plan = plan.shortcut,
        .c = op->shortcut_c,
        .k = op->k,
        .stride = 1,
        .input = (const float *)cpu_address(run, &op->shortcut) + image * pixels * op->shortcut_c,
        .output = (float *)cpu_address(run, &op->output) + image * pixels * op->k,
        .residual = residual != NULL ? residual + image * pixels * op->k : NULL,
        .bias = cpu_vector(op->shortcut_bias),
        .panels = (const float *)(const void *)(workspace + plan.shortcut_offset),
    };
    direct_run(&self, item % plan.shortcut.tiles, scratch);
}

// Packs one panel of a weight [k, c, taps] as [tap][channels][16].
static void direct_pack_panel(const struct cpu_weight *weight, const struct direct_plan *plan,
                              uint32_t c, uint32_t panel, float *out, float *scratch)
{
    const uint8_t *rows[PANEL_COLUMNS];
    uint32_t taps = plan->side * plan->side;
    panel_rows(weight, (int64_t)panel * PANEL_COLUMNS, rows);
    panel_pack(rows, weight->base.dtype, 0, c * taps, scratch);
    for (uint32_t tap = 0; tap < taps; tap++) {
        for (uint32_t i = 0; i < plan->channels; i++) {
            float *to = out + ((size_t)tap * plan->channels + i) * PANEL_COLUMNS;
            const float *from = scratch + ((size_t)i * taps + tap) * PANEL_COLUMNS;
            lanes_store(to, i < c ? lanes_load(from) : lanes_zero());
            lanes_store(to + 8, i < c ? lanes_load(from + 8) : lanes_zero());
        }
    }
}

static void direct_pack(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                        void *scratch)
{
    const struct convolution *op = &operation->convolution;
    struct convolution_plan plan = cpu_convolution_plan(op);
    uint32_t image = 0;
    while (image < op->n && !cpu_image_is_direct(operation, run, &plan, image)) image++;
    if (image == op->n) return;
    uint8_t *workspace = cpu_address(run, &operation->workspace);
    float *out = (float *)(void *)(workspace + plan.weight_offset);
    out += (size_t)item * plan.direct.depth * PANEL_COLUMNS;
    if (plan.direct.narrow) {
        narrow_pack_panel(cpu_weight_of(op->weight), &plan.direct, op->c, item, out);
    } else {
        direct_pack_panel(cpu_weight_of(op->weight), &plan.direct, op->c, item, out, scratch);
    }
}

static void shortcut_pack(const struct operation *operation, const struct cpu_run *run,
                          uint32_t item, void *scratch)
{
    const struct convolution *op = &operation->convolution;
    struct convolution_plan plan = cpu_convolution_plan(op);
    uint8_t *workspace = cpu_address(run, &operation->workspace);
    float *out = (float *)(void *)(workspace + plan.shortcut_offset);
    direct_pack_panel(cpu_weight_of(op->shortcut_weight), &plan.shortcut, op->shortcut_c, item,
                      out + (size_t)item * plan.shortcut.depth * PANEL_COLUMNS, scratch);
}

#endif  // KERNELS_CPU_DIRECT_BODY_H
