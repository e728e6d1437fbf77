// winograd_body.h - 3x3 convolution by Winograd's minimal filtering
// (https://arxiv.org/abs/1509.09308).
//
// An item takes a group of tiles through all three steps, in scratch of its own:
//
//     input     [36][strips * 6 tiles, packed as strips of all channels]   normalised on the way
//     product   [36][strips * 6][32]                                      one block of columns
//     output    4x4 (or 5x5) pixels a tile, with bias, residual and statistics
//
// Nearest-2x upsampling followed by 3x3 is four 2x2 convolutions of the small image, one for each
// parity of the output's row and column; they share the transformed input. The output pixel
// (2 i + py, 2 j + px) of phase (py, px) belongs to small row i, column j; phase 1 sees the row and
// its successor, phase 0 the row and its predecessor, so the tiles of phase 1 begin one earlier.

#ifndef KERNELS_CPU_WINOGRAD_BODY_H
#define KERNELS_CPU_WINOGRAD_BODY_H

#include "kernels/cpu/epilogue_body.h"
#include "kernels/cpu/winograd_weight_body.h"

// Columns of input under six tiles side by side, at most: 6 * 5 + 1.
#define WINOGRAD_RUN_COLUMNS 32u
// The most pixels of one transformed tile, 5 x 5.
#define WINOGRAD_TILE_PIXELS 25u

struct winograd_item {
    const struct convolution *op;
    struct winograd_plan plan;
    const float *input;      // of the image
    float *output;           // of the image
    const float *residual;   // of the image, or NULL
    const float *bias;       // [k], or NULL
    const float *weight;     // [phase][k / 16][36][c][16]
    struct input_norm norm;  // of the image
    float *partial;          // where to leave statistics, or NULL
    uint32_t out_w;          // of the output
    uint32_t tile_begin;     // first tile
    uint32_t tiles;          // how many are real
    uint32_t strips;         // of 6 tiles
    uint32_t phase_begin;    // first phase
    uint32_t column_begin;   // first column
    uint32_t column_end;     // one more than the last
    uint32_t layout_strips;  // strips in transformed
    uint32_t layout_begin;   // the first of ours among them
    float *transformed;      // the input, in scratch or workspace
    float *product;          // scratch: one block
    float *sums;             // scratch: [5][k], the fields of struct pixel_sums
};

// A run of tiles of one tile row, as far as they lie in one strip.
struct winograd_run {
    uint32_t slot;    // of the first tile in its strip
    uint32_t length;  // tiles
    uint32_t tile_y;  // tile row
    uint32_t tile_x;  // column of the first tile
};

// Transforms columns: for each column of input under the run, six rows become six points.
LANES_INLINE void winograd_input_columns(const struct winograd_item *self, bool norm, bool silu,
                                         const struct winograd_run *at, uint32_t channel,
                                         float *columns)
{
    const struct convolution *op = self->op;
    int64_t y0 = (int64_t)at->tile_y * self->plan.side - 1;
    int64_t x0 = (int64_t)at->tile_x * self->plan.side - 1;
    uint32_t count = at->length * self->plan.side + WINOGRAD_SIDE - self->plan.side;
    const float *rows[WINOGRAD_SIDE];
    for (uint32_t i = 0; i < WINOGRAD_SIDE; i++) {
        bool inside = y0 + i >= 0 && y0 + i < op->h;
        rows[i] = inside ? self->input + (size_t)(y0 + i) * op->w * op->c + channel : NULL;
    }
    for (uint32_t j = 0; j < count; j++) {
        int64_t x = x0 + j;
        bool inside = x >= 0 && x < op->w;
        for (uint32_t half = 0; half < 16; half += 8) {
            lanes d[WINOGRAD_SIDE];
            lanes out[WINOGRAD_SIDE];
#pragma GCC unroll 6
            for (uint32_t i = 0; i < WINOGRAD_SIDE; i++) {
                d[i] = lanes_zero();
                if (!inside || rows[i] == NULL) continue;
                const float *from = rows[i] + (size_t)x * op->c + half;
                d[i] = lanes_load(from);
                __builtin_prefetch(from + 16);
                if (norm) d[i] = input_norm_apply(&self->norm, silu, channel + half, d[i]);
            }
            winograd_transform_input(d, out);
#pragma GCC unroll 6
            for (uint32_t i = 0; i < WINOGRAD_SIDE; i++) {
                lanes_store(columns + (i * WINOGRAD_RUN_COLUMNS + j) * 16 + half, out[i]);
            }
        }
    }
}

// Transforms rows and packs: out is the strip's group of eight channels at point 0.
static void winograd_input_rows(const struct winograd_item *self, const struct winograd_run *at,
                                const float *columns, float *out)
{
    for (uint32_t tile = 0; tile < at->length; tile++) {
        for (uint32_t half = 0; half < 2; half++) {
            float *to = out + half * 48 + (at->slot + tile) * 8;
            for (uint32_t i = 0; i < WINOGRAD_SIDE; i++) {
                const float *from =
                    columns + (i * WINOGRAD_RUN_COLUMNS + tile * self->plan.side) * 16 + half * 8;
                lanes d[WINOGRAD_SIDE];
                lanes points[WINOGRAD_SIDE];
#pragma GCC unroll 6
                for (uint32_t j = 0; j < WINOGRAD_SIDE; j++) d[j] = lanes_load(from + j * 16);
                winograd_transform_input(d, points);
#pragma GCC unroll 6
                for (uint32_t j = 0; j < WINOGRAD_SIDE; j++) {
                    lanes_store(to + (i * WINOGRAD_SIDE + j) * self->plan.input_stride, points[j]);
                }
            }
        }
    }
}

// Where a strip's chunk of channels begins, at point 0.
static inline size_t winograd_strip_offset(const struct winograd_item *self, uint32_t strip,
                                           uint32_t first, uint32_t depth)
{
    return ((size_t)first * self->layout_strips + (size_t)(self->layout_begin + strip) * depth) *
           STRIP_ROWS;
}

static void winograd_input_run(const struct winograd_item *self, uint32_t strip,
                               const struct winograd_run *at)
{
    _Alignas(64) float columns[WINOGRAD_SIDE * WINOGRAD_RUN_COLUMNS * 16];
    for (uint32_t channel = 0; channel < self->op->c; channel += 16) {
        if (self->norm.mean == NULL) {
            winograd_input_columns(self, false, false, at, channel, columns);
        } else if (self->norm.silu) {
            winograd_input_columns(self, true, true, at, channel, columns);
        } else {
            winograd_input_columns(self, true, false, at, channel, columns);
        }
        uint32_t first = channel / WINOGRAD_CHUNK * WINOGRAD_CHUNK;
        uint32_t depth = cpu_min(WINOGRAD_CHUNK, self->op->c - first);
        float *out = self->transformed + winograd_strip_offset(self, strip, first, depth) +
                     (size_t)(channel - first) * STRIP_ROWS;
        winograd_input_rows(self, at, columns, out);
    }
}

static void winograd_input_strip(const struct winograd_item *self, uint32_t strip)
{
    uint32_t begin = strip * STRIP_ROWS;
    uint32_t count = cpu_min(STRIP_ROWS, self->tiles - begin);
    struct winograd_run at = {0};
    for (uint32_t slot = 0; slot < count; slot += at.length) {
        uint32_t tile = self->tile_begin + begin + slot;
        at.slot = slot;
        at.tile_y = tile / self->plan.tiles_x;
        at.tile_x = tile % self->plan.tiles_x;
        at.length = cpu_min(count - slot, self->plan.tiles_x - at.tile_x);
        winograd_input_run(self, strip, &at);
    }
}

// The product of all tiles with `panels` panels of weights.
static void winograd_product(const struct winograd_item *self, const float *weight, uint32_t panels)
{
    const struct winograd_plan *plan = &self->plan;
    uint32_t c = self->op->c;
    size_t panel_stride = WINOGRAD_POINTS * plan->weight_stride;
    for (uint32_t point = 0; point < WINOGRAD_POINTS; point++) {
        const float *input = self->transformed + point * plan->input_stride;
        float *out = self->product + point * plan->product_stride;
        for (uint32_t first = 0; first < c; first += WINOGRAD_CHUNK) {
            uint32_t depth = cpu_min(WINOGRAD_CHUNK, c - first);
            for (uint32_t j = 0; j < panels; j++) {
                const float *points = weight + point * plan->weight_stride;
                const float *panel = points + j * panel_stride + (size_t)first * PANEL_COLUMNS;
                const float *next = panel + panel_stride;
                if (j + 1 == panels) {
                    next = first + depth < c ? points + (size_t)(first + depth) * PANEL_COLUMNS
                                             : points + plan->weight_stride;
                }
                for (uint32_t strip = 0; strip < self->strips; strip++) {
                    tile_multiply(
                        input + winograd_strip_offset(self, strip, first, depth), panel, depth,
                        out + (size_t)strip * STRIP_ROWS * WINOGRAD_BLOCK + j * PANEL_COLUMNS,
                        WINOGRAD_BLOCK, first > 0,
                        strip < 8 ? next + (size_t)strip * depth * 2 : panel);
                }
            }
        }
    }
}

// The pixels of one tile and phase that lie inside the image.
struct winograd_window {
    uint32_t i_begin, i_end;  // rows of the tile
    uint32_t j_begin, j_end;  // columns of the tile
    uint32_t step;            // pixels from one to the next, 2 with upsampling
    int64_t y, x;             // of output pixel (0, 0) of the tile, possibly outside
};

static struct winograd_window winograd_window_of(const struct winograd_item *self, uint32_t tile,
                                                 uint32_t phase)
{
    const struct winograd_plan *plan = &self->plan;
    uint32_t py = phase / 2;
    uint32_t px = phase % 2;
    uint32_t y = (self->tile_begin + tile) / plan->tiles_x * plan->side;
    uint32_t x = (self->tile_begin + tile) % plan->tiles_x * plan->side;
    struct winograd_window window = {.step = plan->phases == 4 ? 2 : 1};
    window.i_begin = y == 0 ? py : 0;
    window.j_begin = x == 0 ? px : 0;
    window.i_end = cpu_min(plan->side, self->op->h + py - cpu_min(y, self->op->h + py));
    window.j_end = cpu_min(plan->side, self->op->w + px - cpu_min(x, self->op->w + px));
    window.y = ((int64_t)y - py) * window.step + py;
    window.x = ((int64_t)x - px) * window.step + px;
    return window;
}

// pixels[25][32] of one tile, eight columns from `column` on.
LANES_INLINE void winograd_output_tile(const struct winograd_item *self, uint32_t side,
                                       uint32_t tile, uint32_t column, float *pixels)
{
    const float *from = self->product + (size_t)tile * WINOGRAD_BLOCK + column;
    lanes rows[5][WINOGRAD_SIDE];
    lanes out[5];
    for (uint32_t j = 0; j < WINOGRAD_SIDE; j++) {
        lanes m[WINOGRAD_SIDE];
#pragma GCC unroll 6
        for (uint32_t i = 0; i < WINOGRAD_SIDE; i++) {
            m[i] = lanes_load(from + (i * WINOGRAD_SIDE + j) * self->plan.product_stride);
        }
        winograd_transform_output(side, m, out);
#pragma GCC unroll 5
        for (uint32_t i = 0; i < side; i++) rows[i][j] = out[i];
    }
    for (uint32_t i = 0; i < side; i++) {
        winograd_transform_output(side, rows[i], out);
#pragma GCC unroll 5
        for (uint32_t j = 0; j < side; j++) {
            lanes_store(pixels + (size_t)(i * side + j) * WINOGRAD_BLOCK + column, out[j]);
        }
    }
}

// The sums of eight columns so far.
LANES_INLINE struct pixel_sums winograd_sums_load(const float *memory, size_t k)
{
    return (struct pixel_sums){lanes_load(memory), lanes_load(memory + k),
                               lanes_load(memory + 2 * k), lanes_load(memory + 3 * k),
                               lanes_load(memory + 4 * k)};
}

// Adds bias and residual to eight columns of a tile's pixels, stores them and sums them up, a tile
// on its own first: that keeps the sums' rounding small. begun tells that they have their first
// pixel. residual is NULL or the output's counterpart.
LANES_INLINE void winograd_store_tile(const struct winograd_item *self,
                                      const struct winograd_window *window, const float *pixels,
                                      uint32_t column, bool begun)
{
    uint32_t k = self->op->k;
    lanes bias = self->bias != NULL ? lanes_load(self->bias + column) : lanes_zero();
    float *memory = self->sums + column;
    struct pixel_sums sums = pixel_sums_begin(lanes_zero());
    struct pixel_sums before = sums;
    if (begun) {
        before = winograd_sums_load(memory, k);
        sums = pixel_sums_begin(before.first);
        sums.low = before.low;
        sums.high = before.high;
    }
    for (uint32_t i = window->i_begin; i < window->i_end; i++) {
        size_t y = (size_t)(window->y + (int64_t)i * window->step);
        for (uint32_t j = window->j_begin; j < window->j_end; j++) {
            size_t x = (size_t)(window->x + (int64_t)j * window->step);
            size_t at = (y * self->out_w + x) * k + column;
            lanes value = lanes_load(pixels + (size_t)(i * self->plan.side + j) * WINOGRAD_BLOCK);
            value = lanes_add(value, bias);
            if (self->residual != NULL) value = lanes_add(value, lanes_load(self->residual + at));
            lanes_store(self->output + at, value);
            if (!begun) sums = pixel_sums_begin(value);
            begun = true;
            pixel_sums_add(&sums, value);
        }
    }
    pixel_sums_gather(&before, &sums);
    lanes_store(memory, before.first);
    lanes_store(memory + k, before.sum);
    lanes_store(memory + 2 * (size_t)k, before.squares);
    lanes_store(memory + 3 * (size_t)k, before.low);
    lanes_store(memory + 4 * (size_t)k, before.high);
}

// Finishes one block of columns of one phase. begun is the number of pixels of earlier phases.
// Returns the number with this one.
static uint32_t winograd_finish(const struct winograd_item *self, uint32_t phase, uint32_t first,
                                uint32_t columns, uint32_t begun)
{
    _Alignas(64) float pixels[WINOGRAD_TILE_PIXELS * WINOGRAD_BLOCK];
    for (uint32_t tile = 0; tile < self->tiles; tile++) {
        struct winograd_window window = winograd_window_of(self, tile, phase);
        if (window.i_end <= window.i_begin || window.j_end <= window.j_begin) continue;
        for (uint32_t column = 0; column < columns; column += 8) {
            if (self->plan.side == 4) {
                winograd_output_tile(self, 4, tile, column, pixels);
            } else {
                winograd_output_tile(self, 5, tile, column, pixels);
            }
        }
        for (uint32_t column = 0; column < columns; column += 8) {
            winograd_store_tile(self, &window, pixels + column, first + column, begun > 0);
        }
        begun += (window.i_end - window.i_begin) * (window.j_end - window.j_begin);
    }
    return begun;
}

static void winograd_leave_partial(const struct winograd_item *self, uint32_t pixels)
{
    uint32_t k = self->op->k;
    // Splits of the columns write the same count; one of them is enough.
    if (self->column_begin == 0) self->partial[0] = (float)pixels;
    if (pixels == 0) return;
    for (uint32_t column = self->column_begin; column < self->column_end; column += 8) {
        struct pixel_sums sums = winograd_sums_load(self->sums + column, k);
        pixel_sums_finish(&sums, pixels, self->partial + 16 + column, k);
    }
}

static void winograd_columns(const struct winograd_item *self)
{
    const struct winograd_plan *plan = &self->plan;
    uint32_t panels = self->op->k / PANEL_COLUMNS;
    size_t panel_floats = WINOGRAD_POINTS * plan->weight_stride;
    uint32_t pixels = 0;
    for (uint32_t i = 0; i < plan->item_phases; i++) {
        uint32_t phase = self->phase_begin + i;
        const float *weight = self->weight + (size_t)phase * panels * panel_floats;
        uint32_t after = pixels;
        for (uint32_t first = self->column_begin; first < self->column_end;) {
            uint32_t columns = cpu_min(WINOGRAD_BLOCK, self->column_end - first);
            winograd_product(self, weight + first / PANEL_COLUMNS * panel_floats,
                             columns / PANEL_COLUMNS);
            after = winograd_finish(self, phase, first, columns, pixels);
            first += columns;
        }
        pixels = after;
    }
    if (self->partial != NULL) winograd_leave_partial(self, pixels);
}

// What all items of an image have in common.
static struct winograd_item winograd_image(const struct operation *operation,
                                           const struct cpu_run *run,
                                           const struct convolution_plan *plan, uint32_t image)
{
    const struct convolution *op = &operation->convolution;
    const struct winograd_plan *tiles = &plan->tiles;
    size_t image_in = (size_t)op->h * op->w * op->c;
    size_t image_out = (size_t)plan->out_h * plan->out_w * op->k;
    uint8_t *workspace = cpu_address(run, &operation->workspace);
    const float *residual = cpu_address(run, plan->has_shortcut ? &op->output : &op->residual);
    uint8_t *transformed = workspace + plan->input_offset + image * tiles->input_bytes;
    return (struct winograd_item){
        .op = op,
        .plan = *tiles,
        .input = (const float *)cpu_address(run, &op->input) + image * image_in,
        .output = (float *)cpu_address(run, &op->output) + image * image_out,
        .residual = residual != NULL ? residual + image * image_out : NULL,
        .bias = cpu_vector(op->bias),
        .weight = (const float *)(const void *)(workspace + plan->weight_offset),
        .norm = input_norm_of(operation, run, plan, image),
        .out_w = plan->out_w,
        .transformed = (float *)(void *)transformed,
        .layout_strips = tiles->strips,
    };
}

static void winograd_take_strips(struct winograd_item *self, uint32_t begin, uint32_t end)
{
    self->strips = end - begin;
    self->tile_begin = begin * STRIP_ROWS;
    self->tiles = cpu_min(self->strips * STRIP_ROWS, self->plan.tiles - self->tile_begin);
    self->layout_begin = begin;
}

static void winograd_input(const struct operation *operation, const struct cpu_run *run,
                           uint32_t item, void *scratch)
{
    (void)scratch;
    struct convolution_plan plan = cpu_convolution_plan(&operation->convolution);
    const struct winograd_plan *tiles = &plan.tiles;
    uint32_t image = item / tiles->input_items;
    if (cpu_image_is_direct(operation, run, &plan, image)) return;
    struct winograd_item self = winograd_image(operation, run, &plan, image);
    uint32_t begin = item % tiles->input_items * WINOGRAD_INPUT_STRIPS;
    winograd_take_strips(&self, begin, cpu_min(begin + WINOGRAD_INPUT_STRIPS, tiles->strips));
    for (uint32_t i = 0; i < self.strips; i++) winograd_input_strip(&self, i);
}

static void winograd_multiply(const struct operation *operation, const struct cpu_run *run,
                              uint32_t item, void *scratch)
{
    const struct convolution *op = &operation->convolution;
    struct convolution_plan plan = cpu_convolution_plan(op);
    const struct winograd_plan *tiles = &plan.tiles;
    // Neighbouring items share weights: they are the groups of one part of one image.
    uint32_t group = item % tiles->groups;
    uint32_t part = item / tiles->groups % tiles->parts;
    uint32_t image = item / tiles->groups / tiles->parts;
    if (cpu_image_is_direct(operation, run, &plan, image)) return;
    uint32_t split = part % tiles->splits;
    struct winograd_item self = winograd_image(operation, run, &plan, image);
    winograd_take_strips(&self, cpu_winograd_strip(tiles, group),
                         cpu_winograd_strip(tiles, group + 1));
    self.phase_begin = part / tiles->splits;
    self.column_begin = split * tiles->split_blocks * WINOGRAD_BLOCK;
    self.column_end = cpu_min(op->k, (split + 1) * tiles->split_blocks * WINOGRAD_BLOCK);
    self.product = scratch;
    self.sums = self.product + WINOGRAD_POINTS * tiles->product_stride;
    if (plan.has_statistics) {
        uint8_t *workspace = cpu_address(run, &operation->workspace);
        uint32_t index = image * plan.partials + self.phase_begin * tiles->groups + group;
        self.partial =
            (float *)(void *)(workspace + plan.partials_offset) + index * plan.partial_stride;
    }
    if (!tiles->shared) {
        self.transformed = self.sums + 5 * (size_t)op->k;
        self.layout_strips = self.strips;
        self.layout_begin = 0;
        for (uint32_t i = 0; i < self.strips; i++) winograd_input_strip(&self, i);
    }
    winograd_columns(&self);
}

#endif  // KERNELS_CPU_WINOGRAD_BODY_H
