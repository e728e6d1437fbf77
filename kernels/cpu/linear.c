// linear.c - plans a linear: pack the rows once, then each item packs the weight panels it uses.
//
// Rows are few (77 tokens a text) and the weight is the cost, so an item takes all the rows it can
// and a few panels of columns, and the weight streams from the file's pages exactly once.

#include "base/checked.h"
#include "kernels/cpu/linear_plan.h"

struct low_rank_cut cpu_low_rank_cut(const struct low_rank *path)
{
    assert(path->rank >= 1);
    struct low_rank_cut cut = {0};
    cut.strip_begin = path->row_begin / STRIP_ROWS;
    cut.strips = cpu_divide_up(path->row_begin + path->row_count, STRIP_ROWS) - cut.strip_begin;
    cut.panels = cpu_divide_up(path->rank, PANEL_COLUMNS);
    cut.row_items = cpu_divide_up(cut.strips, LINEAR_ITEM_STRIPS);
    cut.item_strips = cut.row_items == 0 ? 0 : cpu_divide_up(cut.strips, cut.row_items);
    cut.floats = (uint64_t)cut.strips * STRIP_ROWS * cpu_round_up(path->rank, 8);
    return cut;
}

struct linear_plan cpu_linear_plan(const struct linear *op)
{
    assert(op->rows >= 1);
    assert(op->c >= 1);
    assert(op->k >= 1);
    struct linear_plan plan = {0};
    plan.strips = cpu_divide_up(op->rows, STRIP_ROWS);
    plan.depth = cpu_round_up(op->c, 8);
    plan.panels = cpu_divide_up(op->k, PANEL_COLUMNS);
    plan.row_items = cpu_divide_up(plan.strips, LINEAR_ITEM_STRIPS);
    plan.item_strips = cpu_divide_up(plan.strips, plan.row_items);
    uint64_t smallest_items = (uint64_t)plan.panels * plan.row_items;
    plan.item_panels = smallest_items >= 128 ? LINEAR_ITEM_PANELS : smallest_items >= 32 ? 2 : 1;
    uint32_t large_items = plan.panels / plan.item_panels;
    plan.large_items = large_items - cpu_min(large_items, LINEAR_ITEMS_CUT);
    plan.column_items = plan.large_items + plan.panels - plan.large_items * plan.item_panels;
    plan.packed_bytes = (uint64_t)plan.strips * STRIP_ROWS * plan.depth * sizeof(float);
    for (uint32_t i = 0; i < op->low_rank_count; i++) {
        struct low_rank_cut cut = cpu_low_rank_cut(&op->low_rank[i]);
        plan.down_items += cut.panels * cut.row_items;
        plan.down_bytes += cut.floats * sizeof(float);
    }
    return plan;
}

uint64_t cpu_linear_workspace_bytes(const struct linear *op)
{
    struct linear_plan plan = cpu_linear_plan(op);
    return plan.packed_bytes + plan.down_bytes;
}

uint32_t cpu_linear_launches(const struct cpu_compute *compute, const struct operation *op,
                             struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    assert(op->kind == OPERATION_LINEAR);
    struct linear_plan plan = cpu_linear_plan(&op->linear);
    uint64_t panel_bytes = (uint64_t)LINEAR_CHUNK * PANEL_COLUMNS * sizeof(float);
    uint64_t rows = (uint64_t)plan.item_strips * STRIP_ROWS;
    uint64_t columns = (uint64_t)plan.item_panels * PANEL_COLUMNS;
    uint32_t count = 0;
    out[count++] = (struct cpu_launch){
        .items = cpu_divide_up(plan.strips, LINEAR_PACK_STRIPS),
        .run = compute->linear_pack,
    };
    if (plan.down_items > 0) {
        out[count++] = (struct cpu_launch){
            .items = plan.down_items,
            .scratch_bytes =
                panel_bytes + LINEAR_ITEM_STRIPS * STRIP_ROWS * PANEL_COLUMNS * sizeof(float),
            .run = compute->linear_down,
        };
    }
    out[count++] = (struct cpu_launch){
        .items = plan.row_items * plan.column_items,
        .scratch_bytes = panel_bytes + rows * columns * sizeof(float),
        .run = compute->linear_multiply,
    };
    return count;
}
