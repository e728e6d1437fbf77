// attention_plan.h - how an attention is cut: shared by attention.c and attention_body.h.

#ifndef KERNELS_CPU_ATTENTION_PLAN_H
#define KERNELS_CPU_ATTENTION_PLAN_H

#include "kernels/cpu/compute.h"

// Keys that are taken at once: their scores and weights stay in the cache.
#define ATTENTION_KEYS 128u
// The most queries of one item, 16 strips.
#define ATTENTION_QUERIES 96u
// About the most multiplications and additions of one item, some 40 ms of one core.
#define ATTENTION_ITEM_OPERATIONS 4000000000u
// Elements of a head that are summed from zero before they are added.
#define ATTENTION_CHUNK 256u

// The workspace holds, for each batch and head, the packed keys and then the packed values:
//
//     keys    [blocks][128 / 16][depth][16]
//     values  [blocks][columns / 16][128][16]
struct attention_plan {
    uint32_t depth;         // of a head, rounded up to 8
    uint32_t columns;       // of a head, rounded up to 16
    uint32_t blocks;        // of 128 keys
    uint32_t item_queries;  // of one item: 96, fewer where tokens are very many
    uint32_t query_blocks;  // of item_queries
    size_t key_floats;      // packed keys of one block
    size_t value_floats;    // packed values of one block
};

// Thread:    any.
struct attention_plan cpu_attention_plan(const struct attention *op);

#endif  // KERNELS_CPU_ATTENTION_PLAN_H
