// convolution.c - plans a convolution: which way, which tiles, how much memory.
//
// 3x3 filters of stride 1 with whole panels of channels go through Winograd, which multiplies 4
// times less (with upsampling 5.8 times less); everything else goes the direct way, and so does an
// image whose error bound asks for it (convolution_plan.h): its items of Winograd do nothing, and
// the weight is packed once more in the place of the transformed one, behind the last item that
// reads it. A 1x1 shortcut runs first, straight into the output, which the convolution then adds
// to.

#include "base/checked.h"
#include "kernels/cpu/convolution_plan.h"

#define WORKSPACE_ALIGNMENT 64u

static struct direct_plan plan_direct(uint32_t h, uint32_t w, uint32_t c, uint32_t k, uint32_t side,
                                      uint32_t stride, bool upsample, bool has_norm)
{
    struct direct_plan plan = {.side = side, .in_h = h, .in_w = w, .out_h = h, .out_w = w};
    if (side == 1) {
        plan.in_w = plan.out_w = h * w;
        plan.in_h = plan.out_h = 1;
    }
    if (upsample) plan.out_h = 2 * h, plan.out_w = 2 * w;
    if (stride == 2) plan.out_h = (h - 2) / 2 + 1, plan.out_w = (w - 2) / 2 + 1;
    plan.channels = cpu_round_up(c, 8);
    plan.depth = side * side * plan.channels;
    plan.columns = cpu_round_up(k, PANEL_COLUMNS);
    plan.narrow = side == 3 && stride == 1 && k <= NARROW_COLUMNS;
    if (plan.narrow) {
        plan.depth = plan.channels;
        plan.columns = cpu_round_up(9 * k, PANEL_COLUMNS);
    }
    // Large tiles repeat less of the border's normalisation, small ones leave room for channels.
    plan.tile_h = side == 1 ? 1 : c > 128 || stride == 2 ? 8 : 16;
    plan.tile_w = side == 1 ? 96 : 12;
    plan.tiles_x = cpu_divide_up(plan.out_w, plan.tile_w);
    plan.tiles = plan.tiles_x * cpu_divide_up(plan.out_h, plan.tile_h);
    plan.patched = has_norm || c % 8 != 0 || plan.narrow;
    plan.patch_h = (plan.tile_h - 1) * stride + side;
    plan.patch_w = (plan.tile_w - 1) * stride + side;
    uint32_t pixels_multiplied =
        plan.narrow ? plan.patch_h * plan.patch_w : plan.tile_h * plan.tile_w;
    plan.strips = cpu_divide_up(pixels_multiplied, STRIP_ROWS);

    uint64_t rows = (uint64_t)plan.strips * STRIP_ROWS;
    uint64_t pixels = plan.patched ? (uint64_t)plan.patch_h * plan.patch_w : 1;
    plan.weight_bytes = (uint64_t)plan.depth * plan.columns * sizeof(float);
    plan.pack_bytes = (uint64_t)side * side * c * PANEL_COLUMNS * sizeof(float);
    plan.item_bytes =
        (pixels * plan.channels + rows * (DIRECT_CHUNK + plan.columns)) * sizeof(float);
    return plan;
}

// Cuts the tiles into groups and the groups' work into items.
static void plan_items(struct winograd_plan *plan, uint32_t c, uint32_t k)
{
    uint32_t blocks = cpu_divide_up(k, WINOGRAD_BLOCK);
    uint64_t strip_operations = (uint64_t)2 * WINOGRAD_POINTS * STRIP_ROWS * c * k * plan->phases;
    uint64_t strips = WINOGRAD_ITEM_OPERATIONS / strip_operations;
    strips = strips < 4 ? 4 : strips > WINOGRAD_ITEM_STRIPS ? WINOGRAD_ITEM_STRIPS : strips;
    if (plan->shared) strips = WINOGRAD_ITEM_STRIPS;
    plan->groups = cpu_divide_up(plan->strips, (uint32_t)strips);
    plan->item_phases = plan->phases;
    plan->splits = 1;
    if (plan->shared) {
        // At least four groups, and with phases and splits at least 16 items where there is work.
        plan->groups = cpu_min(cpu_round_up(plan->groups, 4), cpu_divide_up(plan->strips, 4));
        plan->item_phases = 1;
        if (plan->phases == 1) plan->splits = blocks % 4 == 0 ? 4 : blocks % 2 == 0 ? 2 : 1;
    } else if (plan->groups > 8) {
        plan->groups = cpu_round_up(plan->groups, 8);
    }
    plan->item_strips = cpu_divide_up(plan->strips, plan->groups);
    plan->split_blocks = cpu_divide_up(blocks, plan->splits);
    plan->parts = plan->splits * (plan->phases / plan->item_phases);
    plan->partials = plan->groups * (plan->phases / plan->item_phases);
    plan->input_items = plan->shared ? cpu_divide_up(plan->strips, WINOGRAD_INPUT_STRIPS) : 0;
}

static struct winograd_plan plan_winograd(const struct convolution *op)
{
    struct winograd_plan plan = {.side = op->upsample ? 5 : 4, .phases = op->upsample ? 4 : 1};
    // The second phase of upsampling begins one pixel to the left of the first.
    uint32_t extra = op->upsample ? 1 : 0;
    plan.tiles_x = cpu_divide_up(op->w + extra, plan.side);
    plan.tiles = plan.tiles_x * cpu_divide_up(op->h + extra, plan.side);
    plan.strips = cpu_divide_up(plan.tiles, STRIP_ROWS);
    uint64_t row_floats = (uint64_t)STRIP_ROWS * op->c;
    // Strides are kept off powers of two, or the points of one tile would share a cache set.
    plan.weight_stride = (size_t)op->c * PANEL_COLUMNS + 48;
    plan.weight_bytes = (uint64_t)plan.phases * (op->k / PANEL_COLUMNS) * WINOGRAD_POINTS *
                        plan.weight_stride * sizeof(float);
    plan.shared = WINOGRAD_POINTS * plan.strips * row_floats * sizeof(float) <= plan.weight_bytes;
    plan_items(&plan, op->c, op->k);
    uint32_t input_strips = plan.shared ? plan.strips : plan.item_strips;
    plan.input_stride = round_up(input_strips * row_floats, 1024) + 96;
    plan.product_stride =
        round_up((uint64_t)plan.item_strips * STRIP_ROWS * WINOGRAD_BLOCK, 1024) + 48;
    plan.pack_bytes = (uint64_t)op->c * 9 * PANEL_COLUMNS * sizeof(float);
    uint64_t input_bytes = WINOGRAD_POINTS * plan.input_stride * sizeof(float);
    plan.input_bytes = plan.shared ? input_bytes : 0;
    plan.item_bytes = (plan.shared ? 0 : input_bytes) +
                      (WINOGRAD_POINTS * plan.product_stride + 5 * (uint64_t)op->k) * sizeof(float);
    return plan;
}

// Depends on shapes alone.
static bool choose_winograd(const struct convolution *op, uint32_t side)
{
    if (side != 3 || op->stride != 1) return false;
    if (op->c % PANEL_COLUMNS != 0 || op->k % PANEL_COLUMNS != 0) return false;
    return op->c >= 32 && op->k >= 32 && op->h >= 8 && op->w >= 8;
}

struct convolution_plan cpu_convolution_plan(const struct convolution *op)
{
    assert(op->n >= 1);
    assert(op->weight != NULL);
    uint32_t side = cpu_filter_side(op->weight);
    struct convolution_plan plan = {
        .has_norm = op->norm.statistics.place != VALUE_NONE,
        .has_shortcut = op->shortcut.place != VALUE_NONE,
        .has_statistics = op->statistics.place != VALUE_NONE,
        .winograd = choose_winograd(op, side),
        .out_h = op->h,
        .out_w = op->w,
    };
    if (op->upsample) plan.out_h = 2 * op->h, plan.out_w = 2 * op->w;
    if (op->stride == 2) plan.out_h = (op->h - 2) / 2 + 1, plan.out_w = (op->w - 2) / 2 + 1;
    plan.panels = cpu_divide_up(op->k, PANEL_COLUMNS);
    plan.direct =
        plan_direct(op->h, op->w, op->c, op->k, side, op->stride, op->upsample, plan.has_norm);
    plan.partials = plan.direct.tiles;
    plan.direct_items = op->n * plan.direct.tiles;
    uint64_t weight_bytes = plan.direct.weight_bytes;
    if (plan.winograd) {
        plan.tiles = plan_winograd(op);
        plan.items = op->n * plan.tiles.groups * plan.tiles.parts;
        if (!plan.has_norm) plan.range_bands = cpu_divide_up(op->h * op->w, RANGE_PIXELS);
        if (plan.tiles.partials > plan.partials) plan.partials = plan.tiles.partials;
        if (plan.tiles.weight_bytes > weight_bytes) weight_bytes = plan.tiles.weight_bytes;
    }
    if (plan.has_shortcut) {
        plan.shortcut =
            plan_direct(plan.out_h, plan.out_w, op->shortcut_c, op->k, 1, 1, false, false);
    }
    plan.norm_stride = (size_t)3 * cpu_round_up(op->c, 16);
    plan.partial_stride = 16 + 4 * (size_t)plan.panels * PANEL_COLUMNS;
    uint64_t norm_bytes = plan.has_norm ? (uint64_t)op->n * plan.norm_stride * sizeof(float) : 0;
    uint64_t range_bytes = plan.winograd ? (uint64_t)op->n * 2 * op->c * sizeof(float) : 0;
    uint64_t asks_bytes = plan.winograd ? (uint64_t)op->n * plan.panels * sizeof(float) : 0;
    plan.range_offset = round_up(norm_bytes, WORKSPACE_ALIGNMENT);
    plan.asks_offset = round_up(plan.range_offset + range_bytes, WORKSPACE_ALIGNMENT);
    plan.bands_offset = round_up(plan.asks_offset + asks_bytes, WORKSPACE_ALIGNMENT);
    plan.shortcut_offset =
        round_up(plan.bands_offset + plan.range_bands * range_bytes, WORKSPACE_ALIGNMENT);
    plan.weight_offset =
        round_up(plan.shortcut_offset + plan.shortcut.weight_bytes, WORKSPACE_ALIGNMENT);
    plan.input_offset = round_up(plan.weight_offset + weight_bytes, WORKSPACE_ALIGNMENT);
    plan.partials_offset =
        round_up(plan.input_offset + op->n * plan.tiles.input_bytes, WORKSPACE_ALIGNMENT);
    plan.workspace_bytes = plan.partials_offset;
    if (plan.has_statistics) {
        plan.workspace_bytes +=
            (uint64_t)op->n * plan.partials * plan.partial_stride * sizeof(float);
    }
    return plan;
}

uint64_t cpu_convolution_workspace_bytes(const struct convolution *op)
{
    return cpu_convolution_plan(op).workspace_bytes;
}

uint32_t cpu_convolution_launches(const struct cpu_compute *compute, const struct operation *op,
                                  struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    assert(op->kind == OPERATION_CONVOLUTION);
    const struct convolution *self = &op->convolution;
    struct convolution_plan plan = cpu_convolution_plan(self);
    uint32_t count = 0;
    if (plan.has_norm) {
        out[count++] = (struct cpu_launch){.items = self->n, .run = cpu_norm_fold};
    } else if (plan.winograd) {
        uint32_t parts = cpu_divide_up(self->c, RANGE_CHANNELS);
        out[count++] = (struct cpu_launch){.items = self->n * plan.range_bands * parts,
                                           .run = compute->winograd_range};
        out[count++] = (struct cpu_launch){.items = self->n, .run = cpu_range_merge};
    }
    if (plan.has_shortcut) {
        out[count++] =
            (struct cpu_launch){plan.panels, plan.shortcut.pack_bytes, compute->shortcut_pack};
        out[count++] = (struct cpu_launch){self->n * plan.shortcut.tiles, plan.shortcut.item_bytes,
                                           compute->shortcut_multiply};
    }
    if (plan.winograd) {
        out[count++] =
            (struct cpu_launch){plan.panels, plan.tiles.pack_bytes, compute->winograd_pack};
        if (plan.tiles.shared) {
            out[count++] = (struct cpu_launch){.items = self->n * plan.tiles.input_items,
                                               .run = compute->winograd_input};
        }
        out[count++] =
            (struct cpu_launch){plan.items, plan.tiles.item_bytes, compute->winograd_multiply};
    }
    out[count++] = (struct cpu_launch){plan.direct.columns / PANEL_COLUMNS, plan.direct.pack_bytes,
                                       compute->direct_pack};
    out[count++] =
        (struct cpu_launch){plan.direct_items, plan.direct.item_bytes, compute->direct_multiply};
    if (plan.has_statistics) {
        out[count++] =
            (struct cpu_launch){.items = self->n * plan.panels, .run = cpu_statistics_merge};
    }
    assert(count <= CPU_LAUNCHES_MAX);
    return count;
}
