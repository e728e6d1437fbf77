// direct_item.h - one tile of a direct convolution, and the copy of the input's patch under it.

#ifndef KERNELS_CPU_DIRECT_ITEM_H
#define KERNELS_CPU_DIRECT_ITEM_H

#include "kernels/cpu/epilogue_body.h"

// What an item works on: one tile of one image, of the convolution itself or of its shortcut.
struct direct_item {
    struct direct_plan plan;
    uint32_t c, k;            // channels in and out
    uint32_t stride;          // of the convolution
    bool upsample;            // nearest 2x in front
    uint32_t pad;             // zeros above and to the left
    const float *input;       // of the image
    float *output;            // of the image
    const float *residual;    // of the image, or NULL
    const float *bias;        // [k], or NULL
    const float *panels;      // packed weight, [columns / 16][depth][16]
    struct input_norm norm;   // of the image
    float *partial;           // where to leave statistics, or NULL
    uint32_t y, x;            // of the tile's first output pixel
    uint32_t tile_h, tile_w;  // of this tile, smaller at the border
    float *patch;             // scratch: [patch_h][patch_w][channels], or one pixel of zeros
    float *strips;            // scratch: one chunk of all strips
    size_t tile_stride;       // floats from pixel to pixel of tile
    float *tile;              // scratch: [strips * 6][columns], the sums
};

// The stored pixel under row y, column x of the (virtually upsampled) padded input, or NULL.
static inline const float *direct_pixel(const struct direct_item *self, int64_t y, int64_t x)
{
    if (self->upsample) {
        y = y < 0 ? -1 : y / 2;
        x = x < 0 ? -1 : x / 2;
    }
    if (y < 0 || x < 0 || y >= self->plan.in_h || x >= self->plan.in_w) return NULL;
    return self->input + ((size_t)y * self->plan.in_w + (size_t)x) * self->c;
}

// Copies one pixel's channels, normalised, and zeros up to a multiple of 8.
LANES_INLINE void direct_copy_pixel(const struct direct_item *self, bool norm, bool silu,
                                    const float *from, float *to)
{
    for (uint32_t c = 0; c < self->plan.channels; c += 8) {
        uint32_t left = self->c - c;
        lanes x = left >= 8 ? lanes_load(from + c) : lanes_load_part(from + c, left);
        // Beyond the last channel scale and offset are zero, and so is SiLU of zero.
        if (norm) x = input_norm_apply(&self->norm, silu, c, x);
        lanes_store(to + c, x);
    }
}

static void direct_copy_patch(const struct direct_item *self)
{
    uint32_t rows = (self->tile_h - 1) * self->stride + self->plan.side;
    uint32_t columns = (self->tile_w - 1) * self->stride + self->plan.side;
    for (uint32_t i = 0; i < rows; i++) {
        for (uint32_t j = 0; j < columns; j++) {
            const float *from = direct_pixel(self, (int64_t)self->y * self->stride + i - self->pad,
                                             (int64_t)self->x * self->stride + j - self->pad);
            float *to = self->patch + ((size_t)i * self->plan.patch_w + j) * self->plan.channels;
            if (from == NULL) {
                memset(to, 0, self->plan.channels * sizeof to[0]);
            } else if (self->norm.mean == NULL) {
                direct_copy_pixel(self, false, false, from, to);
            } else if (self->norm.silu) {
                direct_copy_pixel(self, true, true, from, to);
            } else {
                direct_copy_pixel(self, true, false, from, to);
            }
        }
    }
}

#endif  // KERNELS_CPU_DIRECT_ITEM_H
