// attention.c - plans an attention: pack keys and values once, then blocks of queries run alone.

#include "kernels/cpu/attention_plan.h"

struct attention_plan cpu_attention_plan(const struct attention *op)
{
    assert(op->tokens >= 1);
    assert(op->head_width >= 1);
    struct attention_plan plan = {
        .depth = cpu_round_up(op->head_width, 8),
        .columns = cpu_round_up(op->head_width, PANEL_COLUMNS),
        .blocks = cpu_divide_up(op->tokens, ATTENTION_KEYS),
    };
    uint64_t strip_operations = (uint64_t)4 * STRIP_ROWS * op->tokens * plan.columns;
    uint64_t strips = ATTENTION_ITEM_OPERATIONS / strip_operations;
    if (strips < 1) strips = 1;
    if (strips > ATTENTION_QUERIES / STRIP_ROWS) strips = ATTENTION_QUERIES / STRIP_ROWS;
    plan.item_queries = (uint32_t)strips * STRIP_ROWS;
    plan.query_blocks = cpu_divide_up(op->tokens, plan.item_queries);
    plan.key_floats = (size_t)ATTENTION_KEYS * plan.depth;
    plan.value_floats = (size_t)ATTENTION_KEYS * plan.columns;
    return plan;
}

uint64_t cpu_attention_workspace_bytes(const struct attention *op)
{
    struct attention_plan plan = cpu_attention_plan(op);
    return (uint64_t)op->batch * op->heads * plan.blocks * (plan.key_floats + plan.value_floats) *
           sizeof(float);
}

uint32_t cpu_attention_launches(const struct cpu_compute *compute, const struct operation *op,
                                struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    assert(op->kind == OPERATION_ATTENTION);
    const struct attention *self = &op->attention;
    struct attention_plan plan = cpu_attention_plan(self);
    uint64_t rows = ATTENTION_QUERIES;
    uint64_t floats = rows * (plan.depth + plan.columns + 2 * ATTENTION_KEYS + 2);
    out[0] = (struct cpu_launch){
        .items = self->batch * self->heads * plan.blocks,
        .run = compute->attention_pack,
    };
    out[1] = (struct cpu_launch){
        .items = self->batch * self->heads * plan.query_blocks,
        .scratch_bytes = floats * sizeof(float),
        .run = compute->attention_multiply,
    };
    return 2;
}
