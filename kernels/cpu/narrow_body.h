// narrow_body.h - the direct way for a 3x3 convolution with few outputs (a decoder's last layer).
//
// Three outputs would leave 13 of a panel's 16 columns idle. So the taps become columns: each pixel
// of the patch is multiplied once by the columns (tap, output), and an output pixel is then the sum
// of nine of those products, one from each of its neighbours, in the order of the taps.

#ifndef KERNELS_CPU_NARROW_BODY_H
#define KERNELS_CPU_NARROW_BODY_H

#include "kernels/cpu/direct_item.h"

// Packs channels first .. first + depth of six neighbouring pixels of the patch.
static void narrow_pack_strip(const struct direct_item *self, uint32_t strip, uint32_t first,
                              uint32_t depth, float *out)
{
    uint32_t last = (self->tile_h + 2) * self->plan.patch_w - 1;
    const float *rows[STRIP_ROWS];
    for (uint32_t i = 0; i < STRIP_ROWS; i++) {
        uint32_t pixel = cpu_min(strip * STRIP_ROWS + i, last);
        rows[i] = self->patch + (size_t)pixel * self->plan.channels + first;
    }
    strip_pack(rows, depth, out);
}

// The products of all pixels of the patch with all columns.
static void narrow_product(const struct direct_item *self)
{
    const struct direct_plan *plan = &self->plan;
    uint32_t strips = cpu_divide_up((self->tile_h + 2) * plan->patch_w, STRIP_ROWS);
    for (uint32_t first = 0; first < plan->depth; first += DIRECT_CHUNK) {
        uint32_t depth = cpu_min(DIRECT_CHUNK, plan->depth - first);
        for (uint32_t i = 0; i < strips; i++) {
            narrow_pack_strip(self, i, first, depth, self->strips);
            for (uint32_t j = 0; j < plan->columns; j += PANEL_COLUMNS) {
                const float *panel = self->panels + (size_t)j * plan->depth + first * PANEL_COLUMNS;
                tile_multiply(self->strips, panel, depth,
                              self->tile + (size_t)i * STRIP_ROWS * plan->columns + j,
                              plan->columns, first > 0, panel);
            }
        }
    }
}

// Sums the nine products of each output pixel, eight outputs wide, into out[pixel][8]. Columns
// beyond the outputs come along and are not stored later.
static void narrow_gather(const struct direct_item *self, float *out)
{
    const struct direct_plan *plan = &self->plan;
    for (uint32_t pixel = 0; pixel < self->tile_h * self->tile_w; pixel++) {
        uint32_t corner = pixel / self->tile_w * plan->patch_w + pixel % self->tile_w;
        lanes sum = lanes_zero();
        for (uint32_t tap = 0; tap < 9; tap++) {
            uint32_t from = corner + tap / 3 * plan->patch_w + tap % 3;
            const float *product = self->tile + (size_t)from * plan->columns;
            sum = lanes_add(sum, lanes_load(product + tap * self->k));
        }
        lanes_store(out + (size_t)pixel * 8, sum);
    }
}

// Packs sixteen columns (tap, output) of a weight as [channels][16].
static void narrow_pack_panel(const struct cpu_weight *weight, const struct direct_plan *plan,
                              uint32_t c, uint32_t panel, float *out)
{
    uint32_t k = weight->base.dims[0];
    size_t element_bytes = dtype_bytes(weight->base.dtype);
    memset(out, 0, (size_t)plan->channels * PANEL_COLUMNS * sizeof out[0]);
    for (uint32_t i = 0; i < PANEL_COLUMNS; i++) {
        uint32_t column = panel * PANEL_COLUMNS + i;
        if (column >= 9 * k) return;
        const uint8_t *from = cpu_weight_row(weight, column % k) + column / k * element_bytes;
        for (uint32_t j = 0; j < c; j++) {
            out[(size_t)j * PANEL_COLUMNS + i] =
                load_element(from + (size_t)j * 9 * element_bytes, weight->base.dtype);
        }
    }
}

#endif  // KERNELS_CPU_NARROW_BODY_H
