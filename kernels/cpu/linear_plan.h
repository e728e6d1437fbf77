// linear_plan.h - how a linear is cut: shared by linear.c and linear_body.h.

#ifndef KERNELS_CPU_LINEAR_PLAN_H
#define KERNELS_CPU_LINEAR_PLAN_H

#include "kernels/cpu/compute.h"

// Channels that are summed from zero before they are added: a panel of them stays in L1.
#define LINEAR_CHUNK 256u
// Strips that one item of the packing takes.
#define LINEAR_PACK_STRIPS 2u
// The most strips of one item of the product.
#define LINEAR_ITEM_STRIPS 52u
// The most panels of one item of the product.
#define LINEAR_ITEM_PANELS 4u
// How many of an operation's last items are cut into items of one panel.
#define LINEAR_ITEMS_CUT 4u

// The workspace holds the packed input, [chunk][strip][chunk / 8][6][8], and then, for each
// low-rank path, its down product [strip][round_up(rank, 8) / 8][6][8].
struct linear_plan {
    uint32_t strips;        // of the input's rows
    uint32_t depth;         // channels, rounded up to 8
    uint32_t panels;        // of the output's columns
    uint32_t item_strips;   // of one item of the product
    uint32_t item_panels;   // of one item of the product
    uint32_t row_items;     // items along the rows
    uint32_t large_items;   // items along the columns of item_panels; those behind take one
    uint32_t column_items;  // items along the columns
    uint32_t down_items;    // of all low-rank paths
    uint64_t packed_bytes;  // of the packed input
    uint64_t down_bytes;    // of all down products
};

// Thread:    any.
struct linear_plan cpu_linear_plan(const struct linear *op);

// The first panel of item `column` along the columns, and behind the last one the end. The last
// items are small, so that the threads finish together.
static inline uint32_t linear_panel(const struct linear_plan *plan, uint32_t column)
{
    uint32_t large = cpu_min(column, plan->large_items);
    return large * plan->item_panels + (column - large);
}

// How the down product of one low-rank path is cut. Its strips are some of the linear's.
struct low_rank_cut {
    uint32_t strip_begin;  // the first strip with a row of the path
    uint32_t strips;       // strips with such rows
    uint32_t panels;       // of its ranks
    uint32_t item_strips;  // of one item
    uint32_t row_items;    // items along the strips
    uint64_t floats;       // of the product
};

// Thread:    any.
struct low_rank_cut cpu_low_rank_cut(const struct low_rank *path);

// The packed floats of a strip's chunk that begins at channel first and is depth long.
static inline const float *linear_strip(const struct linear_plan *plan, const float *packed,
                                        uint32_t first, uint32_t depth, uint32_t strip)
{
    return packed + (size_t)first * plan->strips * STRIP_ROWS + (size_t)strip * depth * STRIP_ROWS;
}

#endif  // KERNELS_CPU_LINEAR_PLAN_H
