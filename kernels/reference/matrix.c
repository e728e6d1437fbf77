// matrix.c - linear, attention, layer norm, embedding, gather: one row an item.

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "kernels/reference/reference.h"

static double activate(enum activation activation, double x)
{
    if (activation == ACTIVATION_QUICK_GELU) return x / (1 + exp(-1.702 * x));
    if (activation == ACTIVATION_GELU) return x * (1 + erf(x / sqrt(2.0))) / 2;
    return x;
}

static double dot(const float *a, const float *b, uint32_t count)
{
    assert(a != NULL);
    assert(b != NULL);
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

// Adds one adapter to the sums [k] of a row.
static void add_low_rank(const struct linear *op, const struct low_rank *path, const float *x,
                         double *sums)
{
    const float *down = reference_data(path->down);
    const float *up = reference_data(path->up);
    for (uint32_t r = 0; r < path->rank; r++) {
        double t = (double)path->scale * dot(x, down + (uint64_t)r * op->c, op->c);
        for (uint32_t k = 0; k < path->column_count; k++) {
            sums[path->column_begin + k] += t * (double)up[(uint64_t)k * path->rank + r];
        }
    }
}

static void run_linear(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                       void *scratch)
{
    const struct linear *op = &operation->linear;
    const float *x = (const float *)cpu_address(run, &op->input) + (uint64_t)item * op->c;
    const float *weight = reference_data(op->weight);
    const float *bias = reference_data(op->bias);
    double *sums = scratch;
    for (uint32_t k = 0; k < op->k; k++) {
        sums[k] = dot(x, weight + (uint64_t)k * op->c, op->c);
        if (bias != NULL) sums[k] += (double)bias[k];
    }
    for (uint32_t i = 0; i < op->low_rank_count; i++) {
        const struct low_rank *path = &op->low_rank[i];
        bool covered = item >= path->row_begin && item - path->row_begin < path->row_count;
        if (covered) add_low_rank(op, path, x, sums);
    }
    const float *residual = cpu_address(run, &op->residual);
    float *output = (float *)cpu_address(run, &op->output) + (uint64_t)item * op->k;
    for (uint32_t k = 0; k < op->k; k++) {
        double y = activate(op->activation, sums[k]);
        if (residual != NULL) y += (double)residual[(uint64_t)item * op->k + k];
        output[k] = (float)y;
    }
}

// One head of one query row.
struct query {
    const float *q;  // [head_width]
    const float *k;  // token 0 of the batch
    const float *v;  // token 0 of the batch
    uint32_t seen;   // tokens that the query may look at
    double *scores;  // [tokens], scratch
    float *output;   // [head_width]
};

// Scores, their softmax, the weighted sum of v.
static void attend(const struct attention *op, const struct query *query)
{
    double *scores = query->scores;
    double highest = -INFINITY;
    for (uint32_t t = 0; t < query->seen; t++) {
        const float *k = query->k + (uint64_t)t * op->k_stride;
        scores[t] = (double)op->scale * dot(query->q, k, op->head_width);
        highest = fmax(highest, scores[t]);
    }
    double total = 0;
    for (uint32_t t = 0; t < query->seen; t++) {
        scores[t] = exp(scores[t] - highest);
        total += scores[t];
    }
    for (uint32_t i = 0; i < op->head_width; i++) {
        double sum = 0;
        for (uint32_t t = 0; t < query->seen; t++) {
            sum += scores[t] * (double)query->v[(uint64_t)t * op->v_stride + i];
        }
        query->output[i] = (float)(sum / total);
    }
}

static void run_attention(const struct operation *operation, const struct cpu_run *run,
                          uint32_t item, void *scratch)
{
    const struct attention *op = &operation->attention;
    uint64_t first = (uint64_t)(item / op->tokens) * op->tokens;  // row of the batch's token 0
    const float *q = (const float *)cpu_address(run, &op->q) + (uint64_t)item * op->q_stride;
    const float *k = (const float *)cpu_address(run, &op->k) + first * op->k_stride;
    const float *v = (const float *)cpu_address(run, &op->v) + first * op->v_stride;
    uint64_t width = (uint64_t)op->heads * op->head_width;
    float *output = (float *)cpu_address(run, &op->output) + item * width;
    for (uint32_t head = 0; head < op->heads; head++) {
        uint64_t column = (uint64_t)head * op->head_width;
        struct query query = {.q = q + column,
                              .k = k + column,
                              .v = v + column,
                              .seen = op->causal ? item % op->tokens + 1 : op->tokens,
                              .scores = scratch,
                              .output = output + column};
        attend(op, &query);
    }
}

static void run_layer_norm(const struct operation *operation, const struct cpu_run *run,
                           uint32_t item, void *scratch)
{
    (void)scratch;
    const struct layer_norm *op = &operation->layer_norm;
    const float *x = (const float *)cpu_address(run, &op->input) + (uint64_t)item * op->width;
    float *y = (float *)cpu_address(run, &op->output) + (uint64_t)item * op->width;
    double mean = 0;
    double variance = 0;
    for (uint32_t i = 0; i < op->width; i++) mean += (double)x[i];
    mean /= op->width;
    for (uint32_t i = 0; i < op->width; i++) {
        variance += ((double)x[i] - mean) * ((double)x[i] - mean);
    }
    double sigma = sqrt(variance / op->width + (double)op->epsilon);
    for (uint32_t i = 0; i < op->width; i++) {
        double normal = ((double)x[i] - mean) / sigma;
        double gamma = (double)reference_data(op->gamma)[i];
        y[i] = (float)(normal * gamma + (double)reference_data(op->beta)[i]);
    }
}

static void run_embedding(const struct operation *operation, const struct cpu_run *run,
                          uint32_t item, void *scratch)
{
    (void)scratch;
    const struct embedding *op = &operation->embedding;
    const uint8_t *ids = cpu_address(run, &op->ids);
    int32_t id = (int32_t)load_u32(ids + (uint64_t)item * sizeof id);
    const float *positions = reference_data(op->positions);
    float *output = (float *)cpu_address(run, &op->output) + (uint64_t)item * op->width;
    for (uint32_t i = 0; i < op->width; i++) {
        float element = 0;
        if (id >= 0) {
            element = reference_data(op->table)[(uint64_t)id * op->width + i];
        } else {
            const uint8_t *vectors = cpu_address(run, &op->vectors);
            uint64_t row = (uint64_t)(-1 - (int64_t)id);
            memcpy(&element, vectors + (row * op->width + i) * sizeof element, sizeof element);
        }
        output[i] = element + positions[(uint64_t)(item % op->tokens) * op->width + i];
    }
}

static void run_gather(const struct operation *operation, const struct cpu_run *run, uint32_t item,
                       void *scratch)
{
    (void)scratch;
    const struct gather *op = &operation->gather;
    uint32_t row = load_u32((const uint8_t *)cpu_address(run, &op->indices) + 4ull * item);
    const float *input = (const float *)cpu_address(run, &op->input) + (uint64_t)row * op->width;
    float *output = (float *)cpu_address(run, &op->output) + (uint64_t)item * op->width;
    for (uint32_t i = 0; i < op->width; i++) output[i] = input[i];
}

uint32_t reference_matrix_launches(const struct operation *op,
                                   struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    assert(op != NULL);
    if (op->kind == OPERATION_LINEAR) {
        out[0] = (struct cpu_launch){.items = op->linear.rows,
                                     .scratch_bytes = op->linear.k * sizeof(double),
                                     .run = run_linear};
    } else if (op->kind == OPERATION_ATTENTION) {
        out[0] = (struct cpu_launch){.items = op->attention.batch * op->attention.tokens,
                                     .scratch_bytes = op->attention.tokens * sizeof(double),
                                     .run = run_attention};
    } else if (op->kind == OPERATION_LAYER_NORM) {
        out[0] = (struct cpu_launch){.items = op->layer_norm.rows, .run = run_layer_norm};
    } else if (op->kind == OPERATION_EMBEDDING) {
        out[0] = (struct cpu_launch){.items = op->embedding.rows, .run = run_embedding};
    } else {
        assert(op->kind == OPERATION_GATHER);
        out[0] = (struct cpu_launch){.items = op->gather.count, .run = run_gather};
    }
    return 1;
}
