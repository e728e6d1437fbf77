// attention_body.h - attention by blocks of keys with a running maximum, so that the scores of one
// block are all that ever exists (https://arxiv.org/abs/1805.02867).
//
// For a block of queries: scores = Q K^T; the maximum of each row may grow, then what was summed so
// far shrinks by exp(old - new); weights = exp(scores - maximum); output += weights V. Blocks come
// in the order of the keys. A row's result depends on its query and on the keys alone.

#ifndef KERNELS_CPU_ATTENTION_BODY_H
#define KERNELS_CPU_ATTENTION_BODY_H

#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/gemm_body.h"

struct attention_item {
    const struct attention *op;
    struct attention_plan plan;
    const float *keys;     // packed, of this batch and head
    const float *values;   // packed, of this batch and head
    uint32_t query_begin;  // first query
    uint32_t queries;      // how many
    uint32_t strips;       // of 6 queries
    float *packed;         // scratch: the queries as strips of each chunk
    float *scores;         // scratch: [96][128]
    float *weights;        // scratch: strips of exp(scores - maximum)
    float *sums;           // scratch: [96][columns], the output before its division
    float *maximum;        // scratch: [96]
    float *total;          // scratch: [96], sums of the weights
};

// Packed keys of one batch and head.
static inline float *attention_keys(const struct operation *operation, const struct cpu_run *run,
                                    const struct attention_plan *plan, uint32_t head)
{
    size_t floats = plan->blocks * (plan->key_floats + plan->value_floats);
    return (float *)cpu_address(run, &operation->workspace) + head * floats;
}

static void attention_pack_keys(const struct attention *op, const struct attention_plan *plan,
                                const float *keys, uint32_t block, float *out)
{
    uint32_t begin = block * ATTENTION_KEYS;
    for (uint32_t j = 0; j < ATTENTION_KEYS; j += PANEL_COLUMNS) {
        const uint8_t *rows[PANEL_COLUMNS];
        for (uint32_t i = 0; i < PANEL_COLUMNS; i++) {
            uint32_t token = cpu_min(begin + j + i, op->tokens - 1);
            rows[i] = (const uint8_t *)(keys + (size_t)token * op->k_stride);
        }
        if (begin + j >= op->tokens) break;
        panel_pack_padded(rows, DTYPE_F32, 0, op->head_width, out + (size_t)j * plan->depth);
    }
}

// Values beyond the last token are zeros: their weights are zero too, but scratch may hold NaN.
static void attention_pack_values(const struct attention *op, const struct attention_plan *plan,
                                  const float *values, uint32_t block, float *out)
{
    for (uint32_t i = 0; i < ATTENTION_KEYS; i++) {
        uint32_t token = block * ATTENTION_KEYS + i;
        const float *from = values + (size_t)token * op->v_stride;
        for (uint32_t j = 0; j < plan->columns; j += 8) {
            float *to = out + (size_t)(j / PANEL_COLUMNS) * ATTENTION_KEYS * PANEL_COLUMNS +
                        (size_t)i * PANEL_COLUMNS + j % PANEL_COLUMNS;
            lanes value = lanes_zero();
            if (token < op->tokens && j < op->head_width) {
                uint32_t left = op->head_width - j;
                value = left >= 8 ? lanes_load(from + j) : lanes_load_part(from + j, left);
            }
            lanes_store(to, value);
        }
    }
}

static void attention_pack(const struct operation *operation, const struct cpu_run *run,
                           uint32_t item, void *scratch)
{
    (void)scratch;
    const struct attention *op = &operation->attention;
    struct attention_plan plan = cpu_attention_plan(op);
    uint32_t head = item / plan.blocks;
    uint32_t block = item % plan.blocks;
    size_t row = (size_t)(head / op->heads) * op->tokens;
    size_t column = (size_t)(head % op->heads) * op->head_width;
    const float *keys = (const float *)cpu_address(run, &op->k) + row * op->k_stride + column;
    const float *values = (const float *)cpu_address(run, &op->v) + row * op->v_stride + column;
    float *out = attention_keys(operation, run, &plan, head);
    attention_pack_keys(op, &plan, keys, block, out + block * plan.key_floats);
    attention_pack_values(op, &plan, values, block,
                          out + plan.blocks * plan.key_floats + block * plan.value_floats);
}

static void attention_pack_queries(const struct attention_item *self, const float *queries)
{
    const struct attention *op = self->op;
    for (uint32_t first = 0; first < self->plan.depth; first += ATTENTION_CHUNK) {
        uint32_t depth = cpu_min(ATTENTION_CHUNK, self->plan.depth - first);
        float *out = self->packed + (size_t)first * self->strips * STRIP_ROWS;
        for (uint32_t strip = 0; strip < self->strips; strip++) {
            const float *rows[STRIP_ROWS];
            for (uint32_t i = 0; i < STRIP_ROWS; i++) {
                uint32_t query = cpu_min(strip * STRIP_ROWS + i, self->queries - 1);
                rows[i] = queries + (size_t)query * op->q_stride + first;
            }
            strip_pack(rows, cpu_min(depth, op->head_width - first), out);
            out += (size_t)depth * STRIP_ROWS;
        }
    }
}

// scores = Q K^T for one block of keys, whole panels of them.
static void attention_scores(const struct attention_item *self, const float *keys, uint32_t panels)
{
    for (uint32_t j = 0; j < panels; j++) {
        const float *panel = keys + (size_t)j * self->plan.depth * PANEL_COLUMNS;
        for (uint32_t first = 0; first < self->plan.depth; first += ATTENTION_CHUNK) {
            uint32_t depth = cpu_min(ATTENTION_CHUNK, self->plan.depth - first);
            const float *strip = self->packed + (size_t)first * self->strips * STRIP_ROWS;
            const float *next = panel + (size_t)(first + depth) * PANEL_COLUMNS;
            for (uint32_t i = 0; i < self->strips; i++) {
                tile_multiply(strip, panel + first * PANEL_COLUMNS, depth,
                              self->scores + (size_t)i * STRIP_ROWS * ATTENTION_KEYS +
                                  j * PANEL_COLUMNS,
                              ATTENTION_KEYS, first > 0, next + (size_t)i % 8 * depth * 2);
                strip += (size_t)depth * STRIP_ROWS;
            }
        }
    }
}

// One row of scores to weights. seen is how many keys of the block this query sees, count (a
// multiple of 8) how many weights are wanted. Returns the factor by which earlier sums shrink.
static float attention_row(struct attention_item *self, uint32_t row, uint32_t seen, uint32_t count)
{
    float *scores = self->scores + (size_t)row * ATTENTION_KEYS;
    float *out =
        self->weights + (size_t)(row / STRIP_ROWS) * count * STRIP_ROWS + row % STRIP_ROWS * 8;
    lanes scale = lanes_set(self->op->scale);
    lanes largest = lanes_set(self->maximum[row]);
    for (uint32_t i = 0; i < count; i += 8) {
        lanes scaled = lanes_multiply(lanes_load(scores + i), scale);
        lanes_store(scores + i, scaled);
    }
    for (uint32_t i = seen; i < count; i++) scores[i] = -INFINITY;
    for (uint32_t i = 0; i < count; i += 8) largest = lanes_max(largest, lanes_load(scores + i));
    float maximum = lanes_largest(largest);
    lanes shift = lanes_set(maximum);
    lanes total = lanes_zero();
    for (uint32_t i = 0; i < count; i += 8) {
        lanes weight = lanes_exp(lanes_subtract(lanes_load(scores + i), shift));
        total = lanes_add(total, weight);
        lanes_store(out + i * STRIP_ROWS, weight);
    }
    float shrink = lanes_largest(lanes_exp(lanes_set(self->maximum[row] - maximum)));
    self->maximum[row] = maximum;
    self->total[row] = self->total[row] * shrink + lanes_sum(total);
    return shrink;
}

// Turns a block's scores into weights and shrinks what was summed before it.
static void attention_softmax(struct attention_item *self, uint32_t block, uint32_t count)
{
    uint32_t begin = block * ATTENTION_KEYS;
    for (uint32_t row = 0; row < self->strips * STRIP_ROWS; row++) {
        uint32_t query = self->query_begin + cpu_min(row, self->queries - 1);
        uint32_t keys = self->op->causal ? query + 1 : self->op->tokens;
        uint32_t seen = keys > begin ? cpu_min(count, keys - begin) : 0;
        float shrink = attention_row(self, row, seen, count);
        if (block == 0 || shrink == 1.0f) continue;
        float *sums = self->sums + (size_t)row * self->plan.columns;
        for (uint32_t j = 0; j < self->plan.columns; j += 8) {
            lanes_store(sums + j, lanes_multiply(lanes_load(sums + j), lanes_set(shrink)));
        }
    }
}

// sums += weights V for one block of count keys.
static void attention_values(const struct attention_item *self, const float *values, uint32_t count,
                             bool add)
{
    for (uint32_t j = 0; j < self->plan.columns; j += PANEL_COLUMNS) {
        const float *panel = values + (size_t)j * ATTENTION_KEYS;
        const float *next = panel + (size_t)PANEL_COLUMNS * ATTENTION_KEYS;
        for (uint32_t i = 0; i < self->strips; i++) {
            tile_multiply(self->weights + (size_t)i * count * STRIP_ROWS, panel, count,
                          self->sums + (size_t)i * STRIP_ROWS * self->plan.columns + j,
                          self->plan.columns, add, next + (size_t)i % 8 * count * 2);
        }
    }
}

static void attention_finish(const struct attention_item *self, float *output)
{
    const struct attention *op = self->op;
    size_t stride = (size_t)op->heads * op->head_width;
    for (uint32_t row = 0; row < self->queries; row++) {
        const float *sums = self->sums + (size_t)row * self->plan.columns;
        lanes share = lanes_set(1.0f / self->total[row]);
        float *out = output + row * stride;
        for (uint32_t j = 0; j < op->head_width; j += 8) {
            lanes value = lanes_multiply(lanes_load(sums + j), share);
            if (op->head_width - j >= 8) {
                lanes_store(out + j, value);
            } else {
                lanes_store_part(out + j, value, op->head_width - j);
            }
        }
    }
}

static void attention_multiply(const struct operation *operation, const struct cpu_run *run,
                               uint32_t item, void *scratch)
{
    const struct attention *op = &operation->attention;
    struct attention_item self = {.op = op, .plan = cpu_attention_plan(op)};
    const struct attention_plan *plan = &self.plan;
    uint32_t head = item / plan->query_blocks;
    self.query_begin = item % plan->query_blocks * plan->item_queries;
    self.queries = cpu_min(plan->item_queries, op->tokens - self.query_begin);
    self.strips = cpu_divide_up(self.queries, STRIP_ROWS);
    self.keys = attention_keys(operation, run, plan, head);
    self.values = self.keys + plan->blocks * plan->key_floats;
    self.packed = scratch;
    self.scores = self.packed + (size_t)ATTENTION_QUERIES * plan->depth;
    self.weights = self.scores + (size_t)ATTENTION_QUERIES * ATTENTION_KEYS;
    self.sums = self.weights + (size_t)ATTENTION_QUERIES * ATTENTION_KEYS;
    self.maximum = self.sums + (size_t)ATTENTION_QUERIES * plan->columns;
    self.total = self.maximum + ATTENTION_QUERIES;
    for (uint32_t i = 0; i < ATTENTION_QUERIES; i++) self.maximum[i] = -INFINITY;
    for (uint32_t i = 0; i < ATTENTION_QUERIES; i++) self.total[i] = 0;

    size_t row = (size_t)(head / op->heads) * op->tokens + self.query_begin;
    size_t column = (size_t)(head % op->heads) * op->head_width;
    const float *queries = (const float *)cpu_address(run, &op->q) + row * op->q_stride + column;
    float *output =
        (float *)cpu_address(run, &op->output) + row * (size_t)op->heads * op->head_width + column;
    attention_pack_queries(&self, queries);
    uint32_t keys = op->causal ? self.query_begin + self.queries : op->tokens;
    for (uint32_t block = 0; block * ATTENTION_KEYS < keys; block++) {
        uint32_t count = cpu_min(ATTENTION_KEYS, keys - block * ATTENTION_KEYS);
        attention_scores(&self, self.keys + block * plan->key_floats,
                         cpu_divide_up(count, PANEL_COLUMNS));
        attention_softmax(&self, block, cpu_round_up(count, 8));
        attention_values(&self, self.values + block * plan->value_floats, cpu_round_up(count, 8),
                         block > 0);
    }
    attention_finish(&self, output);
}

#endif  // KERNELS_CPU_ATTENTION_BODY_H
