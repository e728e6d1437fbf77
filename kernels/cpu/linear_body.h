// linear_body.h - the items of a linear: pack the input, multiply it by the weight, add what the
// adapters make of it (low_rank_body.h), and finish the rows.

#ifndef KERNELS_CPU_LINEAR_BODY_H
#define KERNELS_CPU_LINEAR_BODY_H

#include "kernels/cpu/gemm_body.h"
#include "kernels/cpu/linear_plan.h"
#include "kernels/cpu/low_rank_body.h"

// What an item of the product works on.
struct linear_item {
    const struct linear *op;
    const struct cpu_run *run;
    struct linear_plan plan;
    const float *packed;   // the packed input
    const float *down;     // the first down product
    uint32_t strip_begin;  // first strip
    uint32_t strips;       // how many
    uint32_t row_begin;    // first row
    uint32_t rows;         // how many are real
    uint32_t panel_begin;  // first panel
    uint32_t panels;       // how many
    size_t stride;         // floats from row to row of tile
    float *panel;          // scratch: one panel of a chunk
    float *tile;           // scratch: [strips * 6][stride], the sums
};

static void linear_pack(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                        void *scratch)
{
    const struct linear *op = &operation->linear;
    struct linear_plan plan = cpu_linear_plan(op);
    const float *input = cpu_address(run, &op->input);
    float *packed = cpu_address(run, &operation->workspace);
    uint32_t end = cpu_min(plan.strips, (item + 1) * LINEAR_PACK_STRIPS);
    (void)scratch;
    for (uint32_t strip = item * LINEAR_PACK_STRIPS; strip < end; strip++) {
        for (uint32_t first = 0; first < plan.depth; first += LINEAR_CHUNK) {
            uint32_t depth = cpu_min(LINEAR_CHUNK, plan.depth - first);
            const float *rows[STRIP_ROWS];
            for (uint32_t i = 0; i < STRIP_ROWS; i++) {
                uint32_t row = cpu_min(strip * STRIP_ROWS + i, op->rows - 1);
                rows[i] = input + (size_t)row * op->c + first;
            }
            float *out = packed + (linear_strip(&plan, packed, first, depth, strip) - packed);
            strip_pack(rows, cpu_min(depth, op->c - first), out);
        }
    }
}

// Prefetches a share of the file's bytes that the next panel is packed from: some of its rows.
static inline void linear_prefetch(const uint8_t *const rows[PANEL_COLUMNS], size_t begin_bytes,
                                   size_t row_bytes, uint32_t share, uint32_t shares)
{
    uint32_t end = PANEL_COLUMNS * (share + 1) / shares;
    for (uint32_t row = PANEL_COLUMNS * share / shares; row < end; row++) {
        const uint8_t *from = rows[row] + begin_bytes;
        for (size_t at = 0; at < row_bytes; at += 64) __builtin_prefetch(from + at);
    }
}

static void linear_product(struct linear_item *self)
{
    const struct cpu_weight *weight = cpu_weight_of(self->op->weight);
    const uint8_t *rows[LINEAR_ITEM_PANELS][PANEL_COLUMNS];
    size_t element_bytes = dtype_bytes(weight->base.dtype);
    assert(self->panels <= LINEAR_ITEM_PANELS);
    for (uint32_t j = 0; j < self->panels; j++) {
        panel_rows(weight, (int64_t)(self->panel_begin + j) * PANEL_COLUMNS, rows[j]);
    }
    for (uint32_t first = 0; first < self->plan.depth; first += LINEAR_CHUNK) {
        uint32_t depth = cpu_min(LINEAR_CHUNK, self->plan.depth - first);
        for (uint32_t j = 0; j < self->panels; j++) {
            panel_pack_padded(rows[j], weight->base.dtype, first,
                              cpu_min(depth, self->op->c - first), self->panel);
            bool last = j + 1 == self->panels;
            uint32_t next_first = last ? first + depth : first;
            uint32_t next_depth =
                cpu_min(LINEAR_CHUNK, self->op->c - cpu_min(next_first, self->op->c));
            for (uint32_t i = 0; i < self->strips; i++) {
                linear_prefetch(rows[last ? 0 : j + 1], next_first * element_bytes,
                                next_depth * element_bytes, i, self->strips);
                const float *strip =
                    linear_strip(&self->plan, self->packed, first, depth, self->strip_begin + i);
                tile_multiply_some(self->rows - i * STRIP_ROWS, strip, self->panel, depth,
                                   self->tile + i * STRIP_ROWS * self->stride + j * PANEL_COLUMNS,
                                   self->stride, first > 0, strip + depth * STRIP_ROWS);
            }
        }
    }
}

static void linear_paths(const struct linear_item *self)
{
    low_rank_add_all(&(struct low_rank_tile){.op = self->op,
                                             .strip_begin = self->strip_begin,
                                             .strips = self->strips,
                                             .panel_begin = self->panel_begin,
                                             .panels = self->panels,
                                             .tile = self->tile,
                                             .stride = self->stride,
                                             .panel = self->panel},
                     self->down);
}

LANES_INLINE lanes linear_activate(lanes value, enum activation activation)
{
    if (activation == ACTIVATION_QUICK_GELU) return lanes_swish(value, 1.702f);
    if (activation == ACTIVATION_GELU) return lanes_gelu(value);
    return value;
}

// Bias, activation and residual of one row's columns, eight at a time.
static void linear_finish_row(const struct linear *op, const float *sums, const float *bias,
                              const float *residual, uint32_t columns, float *out)
{
    for (uint32_t j = 0; j < columns; j += 8) {
        uint32_t count = cpu_min(8, columns - j);
        lanes value = lanes_load(sums + j);
        if (bias != NULL) {
            lanes more = count == 8 ? lanes_load(bias + j) : lanes_load_part(bias + j, count);
            value = lanes_add(value, more);
        }
        value = linear_activate(value, op->activation);
        if (residual != NULL) {
            lanes more =
                count == 8 ? lanes_load(residual + j) : lanes_load_part(residual + j, count);
            value = lanes_add(value, more);
        }
        if (count == 8) {
            lanes_store(out + j, value);
        } else {
            lanes_store_part(out + j, value, count);
        }
    }
}

static void linear_finish(struct linear_item *self)
{
    const struct linear *op = self->op;
    uint32_t column = self->panel_begin * PANEL_COLUMNS;
    uint32_t columns = cpu_min(self->panels * PANEL_COLUMNS, op->k - column);
    const float *bias = cpu_vector(op->bias);
    const float *residual = cpu_address(self->run, &op->residual);
    float *output = cpu_address(self->run, &op->output);
    for (uint32_t i = 0; i < self->rows; i++) {
        size_t at = (size_t)(self->row_begin + i) * op->k + column;
        linear_finish_row(op, self->tile + i * self->stride, bias != NULL ? bias + column : NULL,
                          residual != NULL ? residual + at : NULL, columns, output + at);
    }
}

static void linear_multiply(const struct operation *operation, const struct cpu_run *run,
                            uint32_t item, void *scratch)
{
    const struct linear *op = &operation->linear;
    struct linear_item self = {.op = op, .run = run, .plan = cpu_linear_plan(op)};
    const struct linear_plan *plan = &self.plan;
    self.packed = cpu_address(run, &operation->workspace);
    self.down = self.packed + plan->packed_bytes / sizeof(float);
    self.strip_begin = item % plan->row_items * plan->item_strips;
    self.strips = cpu_min(plan->item_strips, plan->strips - self.strip_begin);
    self.row_begin = self.strip_begin * STRIP_ROWS;
    self.rows = cpu_min(self.strips * STRIP_ROWS, op->rows - self.row_begin);
    self.panel_begin = linear_panel(plan, item / plan->row_items);
    self.panels = linear_panel(plan, item / plan->row_items + 1) - self.panel_begin;
    self.stride = (size_t)plan->item_panels * PANEL_COLUMNS;
    self.panel = scratch;
    self.tile = self.panel + LINEAR_CHUNK * PANEL_COLUMNS;
    linear_product(&self);
    linear_paths(&self);
    linear_finish(&self);
}

#endif  // KERNELS_CPU_LINEAR_BODY_H
