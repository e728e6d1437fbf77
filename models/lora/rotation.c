// rotation.c - OFT and BOFT: rows turned by orthogonal blocks.
//
// OFT has one block for each group of b rows. BOFT has stages of them: before stage i every 2^i b
// rows are shuffled like cards, two halves into one, and dealt back afterwards, so that m stages
// mix 2^(m - 1) b rows. Spec lora 3.
//
// Legend: n blocks, b their size, m stages.

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "models/lora/formula.h"

// One block's equation (I - Q) R = I + Q, in doubles: exact enough whatever the order of sums.
struct equation {
    double *left;   // [b, b] I - Q, destroyed
    double *right;  // [b, b] I + Q, becomes R
    uint64_t size;  // b
};

static void swap_rows(double *values, uint64_t size, uint64_t a, uint64_t b)
{
    for (uint64_t i = 0; i < size && a != b; i++) {
        double value = values[a * size + i];
        values[a * size + i] = values[b * size + i];
        values[b * size + i] = value;
    }
}

// Takes `factor` times one row from another, from column `from` on.
static void subtract_row(double *values, uint64_t size, uint64_t row, uint64_t from_row,
                         uint64_t from, double factor)
{
    double *to = values + row * size;
    const double *what = values + from_row * size;
    for (uint64_t i = from; i < size; i++) to[i] -= factor * what[i];
}

// Gauss-Jordan with the largest pivot of each column. False when there is none: the block holds
// infinities or NaN.
static bool solve(struct equation *self, struct work *work)
{
    uint64_t size = self->size;
    for (uint64_t k = 0; k < size; k++) {
        uint64_t pivot = k;
        for (uint64_t i = k + 1; i < size; i++) {
            if (fabs(self->left[i * size + k]) > fabs(self->left[pivot * size + k])) pivot = i;
        }
        double value = self->left[pivot * size + k];
        if (!isfinite(value) || value == 0) return false;
        if (!work_on(work, 3 * size * size)) return true;
        swap_rows(self->left, size, k, pivot);
        swap_rows(self->right, size, k, pivot);
        for (uint64_t i = k; i < size; i++) self->left[k * size + i] /= value;
        for (uint64_t i = 0; i < size; i++) self->right[k * size + i] /= value;
        for (uint64_t i = 0; i < size; i++) {
            double factor = self->left[i * size + k];
            if (i == k || factor == 0) continue;
            subtract_row(self->left, size, i, k, k, factor);
            subtract_row(self->right, size, i, k, 0, factor);
        }
    }
    return true;
}

// By what Q is multiplied so that its norm over all blocks is at most alpha.
static double limit(const struct matrix *blocks, const struct lora_module *module)
{
    double sum = 0;
    uint64_t size = blocks->columns;
    if (!module->has_alpha || module->alpha <= 0) return 1;
    for (uint64_t row = 0; row < blocks->rows; row++) {
        const float *block = blocks->values + row / size * size * size;
        for (uint64_t j = 0; j < size; j++) {
            uint64_t i = row % size;
            double q = (double)block[i * size + j] - (double)block[j * size + i];
            sum += q * q;
        }
    }
    double norm = sqrt(sum) + 1e-8;
    return norm > (double)module->alpha ? (double)module->alpha / norm : 1;
}

static void set_up(struct equation *self, const float *block, double scale)
{
    uint64_t size = self->size;
    for (uint64_t i = 0; i < size; i++) {
        for (uint64_t j = 0; j < size; j++) {
            double q = ((double)block[i * size + j] - (double)block[j * size + i]) * scale;
            self->left[i * size + j] = (i == j ? 1.0 : 0.0) - q;
            self->right[i * size + j] = (i == j ? 1.0 : 0.0) + q;
        }
    }
}

// What rows are multiplied by: of OFT s (R - I) turned, of BOFT s R + (1 - s) I.
static void write_rotation(float *out, const struct equation *solved, bool butterfly, float s)
{
    uint64_t size = solved->size;
    for (uint64_t i = 0; i < size; i++) {
        for (uint64_t j = 0; j < size; j++) {
            float same = i == j ? 1.0f : 0.0f;
            float r = (float)solved->right[butterfly ? i * size + j : j * size + i];
            out[i * size + j] = butterfly ? r * s + (1.0f - s) * same : r * s - s * same;
        }
    }
}

struct matrix rotation_create(struct work *work, const struct lora_patch *patch)
{
    assert(patch->module->operands[LORA_ROLE_BLOCKS] != NULL);
    const struct tensor *tensor = patch->module->operands[LORA_ROLE_BLOCKS];
    struct tensor flat = *tensor;
    flat.dims[0] = 1;
    flat.dims[1] = tensor->dims[tensor->rank - 1];
    for (uint32_t i = 0; i + 1 < tensor->rank; i++) flat.dims[0] *= tensor->dims[i];
    flat.rank = 2;
    struct matrix out = matrix_read(work, &flat);
    if (out.values == NULL) return out;

    uint64_t size = out.columns;
    uint64_t area = size * size;
    assert(size > 0);
    struct equation equation = {malloc(area * sizeof(double)), malloc(area * sizeof(double)), size};
    if (equation.left == NULL || equation.right == NULL) {
        work_fail(work, STATUS_RESOURCE_EXHAUSTED, "no memory for \"%s\"", tensor->name);
    }
    double scale = limit(&out, patch->module);
    for (uint64_t i = 0; i < out.rows / size && work_on(work, area); i++) {
        set_up(&equation, out.values + i * area, scale);
        if (!solve(&equation, work)) {
            work_fail(work, STATUS_INVALID_ARGUMENT, "\"%s\": block %llu cannot be inverted",
                      tensor->name, (unsigned long long)i);
        }
        write_rotation(out.values + i * area, &equation, tensor->rank == 4, patch->strength);
    }
    free(equation.left);
    free(equation.right);
    return out;
}

// out = the blocks of a stage times rows [n b, columns].
static void turn(const struct formula *self, struct work *work, uint64_t stage, const float *rows,
                 float *out)
{
    uint64_t size = self->rotations.columns;
    const float *blocks = self->rotations.values + stage * self->rows * size;
    for (uint64_t i = 0; i < self->rows && work_on(work, size * self->columns); i += size) {
        struct panels panels = panels_create(work, rows + i * self->columns, size, self->columns);
        matrix_multiply(work, out + i * self->columns, blocks + i * size, size, &panels);
        panels_free(&panels);
    }
}

// Shuffles rows for a stage, or deals them back: place 2 k + g of every 2 half rows is row
// g half + k.
static void shuffle(const struct block *block, uint64_t half, const float *in, float *out,
                    bool back)
{
    size_t bytes = block->columns * sizeof *in;
    for (uint64_t row = 0; row < block->rows; row++) {
        uint64_t inside = row % (2 * half);
        uint64_t place = row - inside + inside % half * 2 + inside / half;
        memcpy(out + (back ? row : place) * block->columns,
               in + (back ? place : row) * block->columns, bytes);
    }
}

static void turn_butterfly(const struct formula *self, struct work *work, const struct block *block)
{
    uint64_t count = block->rows * block->columns;
    uint64_t size = self->rotations.columns;
    uint64_t stages = self->rotations.rows / self->rows;
    struct matrix room = matrix_create(work, block->rows, block->columns);
    if (room.values == NULL) return;
    memcpy(block->delta, block->weight, count * sizeof *block->delta);
    for (uint64_t stage = 0; stage < stages; stage++) {
        uint64_t half = (size / 2) << stage;
        shuffle(block, half, block->delta, block->other, false);
        turn(self, work, stage, block->other, room.values);
        shuffle(block, half, room.values, block->delta, true);
    }
    for (uint64_t i = 0; i < count; i++) {
        if (self->rescale.values != NULL) {
            block->delta[i] *= self->rescale.values[i / block->columns];
        }
        block->delta[i] -= block->weight[i];
    }
    matrix_free(&room);
}

void rotation_apply(const struct formula *self, struct work *work, const struct block *block)
{
    assert(work->status != STATUS_OK || self->rotations.values != NULL);
    assert(block->rows == self->rows);
    if (work->status != STATUS_OK) return;
    if (self->module->product == LORA_BOFT) {
        turn_butterfly(self, work, block);
    } else {
        turn(self, work, 0, block->weight, block->delta);
    }
}
