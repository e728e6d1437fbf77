// linear_body.h - the items of a linear: pack the input, multiply it by the adapters' down
// matrices, multiply it by the weight and finish the rows.

#ifndef KERNELS_CPU_LINEAR_BODY_H
#define KERNELS_CPU_LINEAR_BODY_H

#include "kernels/cpu/gemm_body.h"
#include "kernels/cpu/linear_plan.h"

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
    float *strip;          // scratch: one strip of a chunk of a down product
    float *path;           // scratch: [strips * 6][16], what a low-rank path adds to a panel
};

// The packed floats of a strip's chunk that begins at channel first and is depth long.
static inline const float *linear_strip(const struct linear_plan *plan, const float *packed,
                                        uint32_t first, uint32_t depth, uint32_t strip)
{
    return packed + (size_t)first * plan->strips * STRIP_ROWS + (size_t)strip * depth * STRIP_ROWS;
}

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

// The path and the panel of its down matrix that an item computes, and where its product lies.
struct linear_down_item {
    const struct low_rank *path;
    uint32_t panel;  // of 16 of its rank
    size_t offset;   // of its down product, in floats behind the first one
};

static struct linear_down_item linear_down_find(const struct linear *op, uint32_t item)
{
    struct linear_down_item found = {0};
    for (uint32_t i = 0; i < op->low_rank_count; i++) {
        const struct low_rank *path = &op->low_rank[i];
        uint32_t panels = cpu_divide_up(path->rank, PANEL_COLUMNS);
        found.path = path;
        found.panel = item;
        if (item < panels) break;
        item -= panels;
        found.offset += (size_t)path->row_count * cpu_round_up(path->rank, 8);
    }
    return found;
}

static void linear_down(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                        void *scratch)
{
    const struct linear *op = &operation->linear;
    struct linear_plan plan = cpu_linear_plan(op);
    struct linear_down_item at = linear_down_find(op, item);
    const struct low_rank *path = at.path;
    if (path->row_count == 0) return;
    const float *packed = cpu_address(run, &operation->workspace);
    float *out = (float *)cpu_address(run, &operation->workspace) +
                 plan.packed_bytes / sizeof(float) + at.offset;
    float *panel = scratch;
    float *tile = panel + LINEAR_CHUNK * PANEL_COLUMNS;
    const struct cpu_weight *weight = cpu_weight_of(path->down);
    const uint8_t *rows[PANEL_COLUMNS];
    panel_rows(weight, (int64_t)at.panel * PANEL_COLUMNS, rows);
    uint32_t begin = path->row_begin / STRIP_ROWS;
    uint32_t end = cpu_divide_up(path->row_begin + path->row_count, STRIP_ROWS);
    for (uint32_t first = 0; first < plan.depth; first += LINEAR_CHUNK) {
        uint32_t depth = cpu_min(LINEAR_CHUNK, plan.depth - first);
        panel_pack_padded(rows, weight->base.dtype, first, cpu_min(depth, op->c - first), panel);
        for (uint32_t strip = begin; strip < end; strip++) {
            tile_multiply(linear_strip(&plan, packed, first, depth, strip), panel, depth,
                          tile + (size_t)(strip - begin) * STRIP_ROWS * PANEL_COLUMNS,
                          PANEL_COLUMNS, first > 0, panel);
        }
    }
    // Columns beyond the rank come out as zeros, so that the up product may read them.
    uint32_t stride = cpu_round_up(path->rank, 8);
    uint32_t column = at.panel * PANEL_COLUMNS;
    uint32_t columns = cpu_min(PANEL_COLUMNS, stride - column);
    for (uint32_t i = 0; i < path->row_count; i++) {
        const float *from =
            tile + (size_t)(path->row_begin - begin * STRIP_ROWS + i) * PANEL_COLUMNS;
        float *to = out + (size_t)i * stride + column;
        for (uint32_t j = 0; j < columns; j++) to[j] = column + j < path->rank ? from[j] : 0.0f;
    }
}

// Prefetches a share of the file's bytes that the next panel is packed from: some of its rows.
static inline void linear_prefetch(const uint8_t *const rows[PANEL_COLUMNS], size_t begin_bytes,
                                   size_t row_bytes, uint32_t share, uint32_t shares)
{
    uint32_t end = PANEL_COLUMNS * (share + 1) / shares;
    for (uint32_t row = PANEL_COLUMNS * share / shares; row < end; row++) {
        const uint8_t *from = rows[row] + begin_bytes;
        for (size_t at = 0; at < row_bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
    }
}

static void linear_product(struct linear_item *self)
{
    const struct cpu_weight *weight = cpu_weight_of(self->op->weight);
    const uint8_t *rows[PANEL_COLUMNS];
    size_t element_bytes = dtype_bytes(weight->base.dtype);
    for (uint32_t first = 0; first < self->plan.depth; first += LINEAR_CHUNK) {
        uint32_t depth = cpu_min(LINEAR_CHUNK, self->plan.depth - first);
        for (uint32_t j = 0; j < self->panels; j++) {
            panel_rows(weight, (int64_t)(self->panel_begin + j) * PANEL_COLUMNS, rows);
            panel_pack_padded(rows, weight->base.dtype, first, cpu_min(depth, self->op->c - first),
                              self->panel);
            bool last = j + 1 == self->panels;
            uint32_t next_first = last ? first + depth : first;
            uint32_t next_depth =
                cpu_min(LINEAR_CHUNK, self->op->c - cpu_min(next_first, self->op->c));
            panel_rows(weight, (int64_t)(self->panel_begin + (last ? 0 : j + 1)) * PANEL_COLUMNS,
                       rows);
            for (uint32_t i = 0; i < self->strips; i++) {
                linear_prefetch(rows, next_first * element_bytes, next_depth * element_bytes, i,
                                self->strips);
                const float *strip =
                    linear_strip(&self->plan, self->packed, first, depth, self->strip_begin + i);
                tile_multiply(strip, self->panel, depth,
                              self->tile + i * STRIP_ROWS * self->stride + j * PANEL_COLUMNS,
                              self->stride, first > 0, strip + depth * STRIP_ROWS);
            }
        }
    }
}

// Six rows of a down product as a strip; those beyond count repeat the last one.
static void linear_path_strip(const float *down, size_t stride, uint32_t row, uint32_t count,
                              uint32_t depth, float *out)
{
    const float *rows[STRIP_ROWS];
    for (uint32_t i = 0; i < STRIP_ROWS; i++) {
        rows[i] = down + (size_t)cpu_min(row + i, count - 1) * stride;
    }
    strip_pack(rows, depth, out);
}

// Adds scale * up(down) of one path to one panel, for the rows that both have.
static void linear_path_panel(struct linear_item *self, const struct low_rank *path,
                              const float *down, uint32_t j)
{
    uint32_t begin = path->row_begin > self->row_begin ? path->row_begin : self->row_begin;
    uint32_t end = cpu_min(path->row_begin + path->row_count, self->row_begin + self->rows);
    int64_t column = (int64_t)(self->panel_begin + j) * PANEL_COLUMNS - (int64_t)path->column_begin;
    if (begin >= end || column <= -(int64_t)PANEL_COLUMNS || column >= path->column_count) return;

    const struct cpu_weight *up = cpu_weight_of(path->up);
    const uint8_t *rows[PANEL_COLUMNS];
    panel_rows(up, column, rows);
    size_t stride = cpu_round_up(path->rank, 8);
    const float *from = down + (size_t)(begin - path->row_begin) * stride;
    for (uint32_t first = 0; first < path->rank; first += LINEAR_CHUNK) {
        uint32_t count = cpu_min(LINEAR_CHUNK, path->rank - first);
        uint32_t depth = cpu_round_up(count, 8);
        panel_pack_padded(rows, up->base.dtype, first, count, self->panel);
        for (uint32_t row = 0; row < end - begin; row += STRIP_ROWS) {
            linear_path_strip(from + first, stride, row, end - begin, depth, self->strip);
            tile_multiply(self->strip, self->panel, depth, self->path + row * PANEL_COLUMNS,
                          PANEL_COLUMNS, first > 0, self->strip);
        }
    }
    for (uint32_t i = 0; i < end - begin; i++) {
        float *sums = self->tile + (begin - self->row_begin + i) * self->stride + j * PANEL_COLUMNS;
        for (uint32_t u = 0; u < PANEL_COLUMNS; u++) {
            if (column + u < 0 || column + u >= path->column_count) continue;
            sums[u] += path->scale * self->path[i * PANEL_COLUMNS + u];
        }
    }
}

static void linear_paths(struct linear_item *self)
{
    const float *down = self->down;
    for (uint32_t i = 0; i < self->op->low_rank_count; i++) {
        const struct low_rank *path = &self->op->low_rank[i];
        for (uint32_t j = 0; j < self->panels; j++) linear_path_panel(self, path, down, j);
        down += (size_t)path->row_count * cpu_round_up(path->rank, 8);
    }
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
    self.panel_begin = item / plan->row_items * plan->item_panels;
    self.panels = cpu_min(plan->item_panels, plan->panels - self.panel_begin);
    self.stride = (size_t)plan->item_panels * PANEL_COLUMNS;
    self.panel = scratch;
    self.tile = self.panel + LINEAR_CHUNK * PANEL_COLUMNS;
    self.strip = self.tile + (size_t)plan->item_strips * STRIP_ROWS * self.stride;
    self.path = self.strip + LINEAR_CHUNK * STRIP_ROWS;
    linear_product(&self);
    linear_paths(&self);
    linear_finish(&self);
}

#endif  // KERNELS_CPU_LINEAR_BODY_H
