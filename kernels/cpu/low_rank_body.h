// low_rank_body.h - the adapters beside a linear: scale * up(down(x)) for some rows and columns.
//
//     down launch    an item: 16 of a path's ranks for some of its strips, from the packed input;
//                    the product is scaled and left as strips, which is what the next launch reads
//     multiply       an item of the linear adds strip x up to its tile before it finishes the rows
//
//     x [rows, c] -> packed strips x down panels -> t [strips][rank / 8][6][8] x up panels -> tile
//
// The strips are those of the linear's input, so a path may share its first and its last strip with
// its neighbours. What comes of their rows is computed and not added: a row's bytes depend on the
// row and its own paths alone, and an adapter of infinities spoils nobody else.

#ifndef KERNELS_CPU_LOW_RANK_BODY_H
#define KERNELS_CPU_LOW_RANK_BODY_H

#include "kernels/cpu/gemm_body.h"
#include "kernels/cpu/linear_plan.h"

// The share of a path's down product that an item computes.
struct low_rank_item {
    const struct low_rank *path;
    struct low_rank_cut cut;  // of the path
    uint32_t panel;           // which 16 ranks
    uint32_t strip_begin;     // first strip
    uint32_t strips;          // how many
    float *out;               // the path's product
};

static struct low_rank_item low_rank_find(const struct linear *op, uint32_t item, float *down)
{
    struct low_rank_item found = {.out = down};
    for (uint32_t i = 0; i < op->low_rank_count; i++) {
        found.path = &op->low_rank[i];
        found.cut = cpu_low_rank_cut(found.path);
        uint32_t items = found.cut.panels * found.cut.row_items;
        if (item < items) break;
        item -= items;
        found.out += found.cut.floats;
    }
    uint32_t first = item / found.cut.panels * found.cut.item_strips;
    found.panel = item % found.cut.panels;
    found.strip_begin = found.cut.strip_begin + first;
    found.strips = cpu_min(found.cut.item_strips, found.cut.strips - first);
    return found;
}

// Leaves [6][16] of a down product as groups of a strip, scaled; ranks that are not there are zero.
static void low_rank_store(const struct low_rank_item *self, const float *tile, uint32_t strip)
{
    uint32_t depth = cpu_round_up(self->path->rank, 8);
    uint32_t column = self->panel * PANEL_COLUMNS;
    float *out = self->out + (size_t)(strip - self->cut.strip_begin) * STRIP_ROWS * depth;
    lanes scale = lanes_set(self->path->scale);
    for (uint32_t at = 0; at < PANEL_COLUMNS && column + at < depth; at += 8) {
        uint32_t count = cpu_min(8, self->path->rank - column - at);
        float *group = out + (size_t)(column + at) * STRIP_ROWS;
        for (uint32_t i = 0; i < STRIP_ROWS; i++) {
            const float *from = tile + i * PANEL_COLUMNS + at;
            lanes value = count == 8 ? lanes_load(from) : lanes_load_part(from, count);
            lanes_store(group + i * 8, lanes_multiply(scale, value));
        }
    }
}

static void linear_down(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                        void *scratch)
{
    const struct linear *op = &operation->linear;
    struct linear_plan plan = cpu_linear_plan(op);
    float *packed = cpu_address(run, &operation->workspace);
    struct low_rank_item self = low_rank_find(op, item, packed + plan.packed_bytes / sizeof(float));
    const struct cpu_weight *weight = cpu_weight_of(self.path->down);
    size_t element_bytes = dtype_bytes(weight->base.dtype);
    float *panel = scratch;
    float *tile = panel + LINEAR_CHUNK * PANEL_COLUMNS;
    const uint8_t *rows[PANEL_COLUMNS];
    panel_rows(weight, (int64_t)self.panel * PANEL_COLUMNS, rows);
    for (uint32_t first = 0; first < plan.depth; first += LINEAR_CHUNK) {
        uint32_t depth = cpu_min(LINEAR_CHUNK, plan.depth - first);
        panel_pack_padded(rows, weight->base.dtype, first, cpu_min(depth, op->c - first), panel);
        for (uint32_t i = 0; i < self.strips; i++) {
            const uint8_t *ahead = rows[i % PANEL_COLUMNS] + (first + depth) * element_bytes;
            tile_multiply(linear_strip(&plan, packed, first, depth, self.strip_begin + i), panel,
                          depth, tile + (size_t)i * STRIP_ROWS * PANEL_COLUMNS, PANEL_COLUMNS,
                          first > 0, ahead);
        }
    }
    for (uint32_t i = 0; i < self.strips; i++) {
        low_rank_store(&self, tile + (size_t)i * STRIP_ROWS * PANEL_COLUMNS, self.strip_begin + i);
    }
}

// What an item of the linear adds its paths to.
struct low_rank_tile {
    const struct linear *op;
    uint32_t strip_begin;  // first strip
    uint32_t strips;       // how many
    uint32_t panel_begin;  // first panel
    uint32_t panels;       // how many
    float *tile;           // [strips * 6][stride], the sums
    size_t stride;         // floats from row to row of tile
    float *panel;          // scratch: one panel of a chunk
};

// One panel of an up matrix, and where its product goes.
struct low_rank_panel {
    const struct low_rank *path;
    const float *strip;      // the first strip of the chunk's down product
    size_t strip_floats;     // from strip to strip
    uint32_t depth;          // of the chunk
    uint32_t columns_begin;  // of the panel's sixteen, those that the path reaches
    uint32_t columns_end;    // behind the last of them
    uint32_t rows_end;       // behind the path's last row; beyond the linear's last, none
    float *sums;             // of the item's first strip in this panel
};

// Adds a strip's product to the rows and columns that are the path's; the others keep their bytes.
static void low_rank_add_edge(const struct low_rank_tile *self, const struct low_rank_panel *at,
                              uint32_t strip, const float *from, float *sums)
{
    float edge[STRIP_ROWS * PANEL_COLUMNS];
    tile_multiply(from, self->panel, at->depth, edge, PANEL_COLUMNS, false, from);
    for (uint32_t i = 0; i < STRIP_ROWS; i++) {
        uint32_t row = strip * STRIP_ROWS + i;
        if (row < at->path->row_begin || row >= at->rows_end) continue;
        for (uint32_t u = at->columns_begin; u < at->columns_end; u++) {
            sums[i * self->stride + u] += edge[i * PANEL_COLUMNS + u];
        }
    }
}

static void low_rank_add_panel(const struct low_rank_tile *self, const struct low_rank_panel *at,
                               const struct low_rank_cut *cut)
{
    uint32_t begin = self->strip_begin > cut->strip_begin ? self->strip_begin : cut->strip_begin;
    uint32_t end = cpu_min(self->strip_begin + self->strips, cut->strip_begin + cut->strips);
    bool whole_columns = at->columns_begin == 0 && at->columns_end == PANEL_COLUMNS;
    for (uint32_t strip = begin; strip < end; strip++) {
        const float *from = at->strip + (strip - cut->strip_begin) * at->strip_floats;
        float *sums = at->sums + (strip - self->strip_begin) * STRIP_ROWS * self->stride;
        bool whole_rows =
            strip * STRIP_ROWS >= at->path->row_begin && at->rows_end >= (strip + 1) * STRIP_ROWS;
        if (whole_rows && whole_columns) {
            tile_multiply(from, self->panel, at->depth, sums, self->stride, true,
                          from + at->strip_floats);
        } else {
            low_rank_add_edge(self, at, strip, from, sums);
        }
    }
}

// Adds one path to one panel of the item.
static void low_rank_add(const struct low_rank_tile *self, const struct low_rank *path,
                         const struct low_rank_cut *cut, const float *down, uint32_t j)
{
    const struct linear *op = self->op;
    int64_t column = (int64_t)(self->panel_begin + j) * PANEL_COLUMNS;
    int64_t begin = (int64_t)path->column_begin - column;
    int64_t end = begin + path->column_count;
    if (begin >= (int64_t)PANEL_COLUMNS || end <= 0) return;
    // What lies behind the last row and the last column is never stored: it may be added to.
    bool last_column = path->column_begin + path->column_count == op->k;
    bool last_row = path->row_begin + path->row_count == op->rows;
    const struct cpu_weight *up = cpu_weight_of(path->up);
    const uint8_t *rows[PANEL_COLUMNS];
    panel_rows(up, -begin, rows);
    uint32_t depth_all = cpu_round_up(path->rank, 8);
    struct low_rank_panel at = {
        .path = path,
        .strip_floats = (size_t)depth_all * STRIP_ROWS,
        .columns_begin = begin < 0 ? 0 : (uint32_t)begin,
        .columns_end = end > (int64_t)PANEL_COLUMNS || last_column ? PANEL_COLUMNS : (uint32_t)end,
        .rows_end = last_row ? UINT32_MAX : path->row_begin + path->row_count,
        .sums = self->tile + (size_t)j * PANEL_COLUMNS,
    };
    for (uint32_t first = 0; first < path->rank; first += LINEAR_CHUNK) {
        uint32_t count = cpu_min(LINEAR_CHUNK, path->rank - first);
        at.depth = cpu_round_up(count, 8);
        at.strip = down + (size_t)first * STRIP_ROWS;
        panel_pack_padded(rows, up->base.dtype, first, count, self->panel);
        low_rank_add_panel(self, &at, cut);
    }
}

// Adds all paths, in their order. down: what the launch before left.
static void low_rank_add_all(const struct low_rank_tile *self, const float *down)
{
    for (uint32_t i = 0; i < self->op->low_rank_count; i++) {
        const struct low_rank *path = &self->op->low_rank[i];
        struct low_rank_cut cut = cpu_low_rank_cut(path);
        bool meets = cut.strip_begin < self->strip_begin + self->strips &&
                     self->strip_begin < cut.strip_begin + cut.strips;
        for (uint32_t j = 0; meets && j < self->panels; j++) {
            low_rank_add(self, path, &cut, down, j);
        }
        down += cut.floats;
    }
}

#endif  // KERNELS_CPU_LOW_RANK_BODY_H
