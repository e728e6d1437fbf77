// formula.c - see formula.h. Every family makes a difference, delta; then all are added alike:
// W += s f delta, or by DoRA's decomposition. Spec lora 3.
//
// Legend: W the tensor [rows, columns], s strength, f alpha / rank.

#include "models/lora/formula.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "models/lora/fit.h"

static const struct tensor *operand(const struct formula *self, enum lora_role role)
{
    return self->module->operands[role];
}

// ---------------------------------------------------------------------------------------------
// Operands

static struct panels read_panels(struct work *work, const struct tensor *tensor)
{
    struct matrix matrix = matrix_read(work, tensor);
    struct panels panels = panels_create(work, matrix.values, matrix.rows, matrix.columns);
    matrix_free(&matrix);
    return panels;
}

// The right factor of a pair: b, or t b.
static struct matrix read_right(struct work *work, const struct tensor *b, const struct tensor *t)
{
    struct matrix right = matrix_read(work, b);
    if (t == NULL) return right;
    struct matrix middle = matrix_read(work, t);
    struct matrix product = matrix_product(work, &middle, &right);
    matrix_free(&middle);
    matrix_free(&right);
    return product;
}

// The left factor of a pair: a, or a turned where there is a t.
static struct matrix read_left(struct work *work, const struct tensor *a, const struct tensor *t)
{
    return t == NULL ? matrix_read(work, a) : matrix_read_turned(work, a);
}

static const enum lora_role roles_whole[2] = {LORA_ROLE_W1, LORA_ROLE_W2};
static const enum lora_role roles_a[2] = {LORA_ROLE_W1_A, LORA_ROLE_W2_A};
static const enum lora_role roles_b[2] = {LORA_ROLE_W1_B, LORA_ROLE_W2_B};
static const enum lora_role roles_t[2] = {LORA_ROLE_T1, LORA_ROLE_T2};

static void prepare_loha(struct formula *self, struct work *work)
{
    for (int i = 0; i < 2; i++) {
        const struct tensor *t = operand(self, roles_t[i]);
        struct matrix right = read_right(work, operand(self, roles_b[i]), t);
        self->left[i] = read_left(work, operand(self, roles_a[i]), t);
        self->right[i] = panels_create(work, right.values, right.rows, right.columns);
        matrix_free(&right);
    }
}

static void prepare_lokr(struct formula *self, struct work *work)
{
    for (int i = 0; i < 2; i++) {
        const struct tensor *whole = operand(self, roles_whole[i]);
        if (whole != NULL) {
            self->factor[i] = matrix_read(work, whole);
            continue;
        }
        const struct tensor *t = operand(self, roles_t[i]);
        struct matrix left = read_left(work, operand(self, roles_a[i]), t);
        struct matrix right = read_right(work, operand(self, roles_b[i]), t);
        self->factor[i] = matrix_product(work, &left, &right);
        matrix_free(&left);
        matrix_free(&right);
    }
}

// right[0], right[1]: what W is multiplied by; left[0] right[2]: what is added.
static void prepare_glora(struct formula *self, struct work *work)
{
    const struct lora_shape shape = {2, self->rows, self->columns};
    bool is_old = glora_layout(self->module->operands, &shape) == GLORA_OLD;
    self->right[0] = read_panels(work, operand(self, is_old ? LORA_ROLE_A2 : LORA_ROLE_A1));
    self->right[1] = read_panels(work, operand(self, is_old ? LORA_ROLE_A1 : LORA_ROLE_A2));
    self->left[0] = matrix_read(work, operand(self, is_old ? LORA_ROLE_B2 : LORA_ROLE_B1));
    self->right[2] = read_panels(work, operand(self, is_old ? LORA_ROLE_B1 : LORA_ROLE_B2));
}

static void prepare(struct formula *self, struct work *work, const struct lora_patch *patch)
{
    switch (self->module->product) {
    case LORA_LOW_RANK:
        self->left[0] = matrix_read(work, operand(self, LORA_ROLE_UP));
        self->right[0] = read_panels(work, operand(self, LORA_ROLE_DOWN));
        break;
    case LORA_LOHA:
        prepare_loha(self, work);
        break;
    case LORA_LOKR:
        prepare_lokr(self, work);
        break;
    case LORA_GLORA:
        prepare_glora(self, work);
        break;
    case LORA_OFT:
    case LORA_BOFT:
        self->rotations = rotation_create(work, patch);
        if (operand(self, LORA_ROLE_RESCALE) != NULL) {
            self->rescale = matrix_read(work, operand(self, LORA_ROLE_RESCALE));
        }
        break;
    case LORA_DIFF:
    case LORA_SET:
        assert(operand(self, LORA_ROLE_DIFF)->dims[0] == self->rows);
        break;
    case LORA_DORA:
    case LORA_FAMILY_COUNT:
        assert(!"a product is never DoRA itself");
    }
    if (operand(self, LORA_ROLE_DORA_SCALE) != NULL) {
        self->scale = matrix_read(work, operand(self, LORA_ROLE_DORA_SCALE));
    }
}

struct formula formula_create(struct work *work, const struct lora_patch *patch, uint64_t rows,
                              uint64_t columns)
{
    assert(patch != NULL);
    assert(patch->module != NULL);
    struct formula self = {
        .module = patch->module, .strength = patch->strength, .rows = rows, .columns = columns};
    prepare(&self, work, patch);
    assert(self.left[0].values == NULL || self.left[0].rows == rows);
    return self;
}

void formula_free(struct formula *self)
{
    assert(self != NULL);
    for (int i = 0; i < 2; i++) {
        matrix_free(&self->left[i]);
        matrix_free(&self->factor[i]);
    }
    for (int i = 0; i < 3; i++) panels_free(&self->right[i]);
    matrix_free(&self->rotations);
    matrix_free(&self->rescale);
    matrix_free(&self->scale);
}

bool formula_is_local(const struct formula *self)
{
    assert(self != NULL);
    bool rotates = self->module->product == LORA_OFT || self->module->product == LORA_BOFT;
    const struct tensor *scale = operand(self, LORA_ROLE_DORA_SCALE);
    return !rotates && (scale == NULL || scale->dims[0] == self->rows);
}

// ---------------------------------------------------------------------------------------------
// Differences

static void multiply_rows(struct work *work, float *out, const struct matrix *left,
                          const struct panels *right, const struct block *block)
{
    if (work->status != STATUS_OK) return;
    matrix_multiply(work, out, left->values + block->first * left->columns, block->rows, right);
}

static void make_loha(const struct formula *self, struct work *work, const struct block *block)
{
    multiply_rows(work, block->delta, &self->left[0], &self->right[0], block);
    multiply_rows(work, block->other, &self->left[1], &self->right[1], block);
    if (work->status != STATUS_OK) return;
    uint64_t count = block->rows * block->columns;
    for (uint64_t i = 0; i < count; i++) block->delta[i] *= block->other[i];
}

static void make_lokr(const struct formula *self, struct work *work, const struct block *block)
{
    const struct matrix *outer = &self->factor[0];
    const struct matrix *inner = &self->factor[1];
    for (uint64_t i = 0; i < block->rows && work_on(work, block->columns); i++) {
        uint64_t row = block->first + i;
        const float *outer_row = outer->values + row / inner->rows * outer->columns;
        const float *inner_row = inner->values + row % inner->rows * inner->columns;
        float *out = block->delta + i * block->columns;
        for (uint64_t j = 0; j < outer->columns; j++) {
            for (uint64_t k = 0; k < inner->columns; k++) *out++ = outer_row[j] * inner_row[k];
        }
    }
}

// (W a1) a2 + b1 b2; the rank is at most the columns, so W a1 fits into other.
static void make_glora(const struct formula *self, struct work *work, const struct block *block)
{
    if (work->status != STATUS_OK) return;
    assert(self->right[0].columns <= block->columns);
    uint64_t count = block->rows * block->columns;
    matrix_multiply(work, block->other, block->weight, block->rows, &self->right[0]);
    matrix_multiply(work, block->delta, block->other, block->rows, &self->right[1]);
    multiply_rows(work, block->other, &self->left[0], &self->right[2], block);
    if (work->status == STATUS_OK) reals_add(block->delta, block->other, 1.0f, count);
}

static void make_difference(const struct formula *self, struct work *work,
                            const struct block *block)
{
    switch (self->module->product) {
    case LORA_LOW_RANK:
        multiply_rows(work, block->delta, &self->left[0], &self->right[0], block);
        break;
    case LORA_LOHA:
        make_loha(self, work, block);
        break;
    case LORA_LOKR:
        make_lokr(self, work, block);
        break;
    case LORA_GLORA:
        make_glora(self, work, block);
        break;
    case LORA_OFT:
    case LORA_BOFT:
        rotation_apply(self, work, block);
        break;
    case LORA_DIFF:
    case LORA_SET:
        reals_load_rows(block->delta, operand(self, LORA_ROLE_DIFF), block->first, block->rows);
        break;
    case LORA_DORA:
    case LORA_FAMILY_COUNT:
        assert(!"a product is never DoRA itself");
    }
}

// ---------------------------------------------------------------------------------------------
// Sums

// f before it is rounded to a float.
static double factor_of(const struct lora_module *module)
{
    bool scaled = module->has_alpha && module->rank > 0;
    return scaled ? (double)module->alpha / (double)module->rank : 1.0;
}

// delta becomes V = W + f delta.
static void make_sum(const struct block *block, float factor)
{
    uint64_t count = block->rows * block->columns;
    for (uint64_t i = 0; i < count; i++) {
        block->delta[i] = block->weight[i] + factor * block->delta[i];
    }
}

// V's rows times m / |rows of W|: of the tensor as it was, which is ComfyUI's way.
static void scale_rows(const struct formula *self, const struct block *block)
{
    for (uint64_t i = 0; i < block->rows; i++) {
        const float *weight = block->weight + i * block->columns;
        float *out = block->delta + i * block->columns;
        double sum = 0;
        for (uint64_t j = 0; j < block->columns; j++) sum += (double)weight[j] * (double)weight[j];
        float ratio = self->scale.values[block->first + i] / ((float)sqrt(sum) + FLT_EPSILON);
        for (uint64_t j = 0; j < block->columns; j++) out[j] *= ratio;
    }
}

// V's columns times m / |columns of V|.
static void scale_columns(const struct formula *self, struct work *work, const struct block *block)
{
    uint64_t columns = block->columns;
    double *sums = calloc(columns, sizeof *sums);
    if (sums == NULL) {
        work_fail(work, STATUS_RESOURCE_EXHAUSTED, "no memory for %llu norms",
                  (unsigned long long)columns);
        return;
    }
    for (uint64_t i = 0; i < block->rows && work_on(work, columns); i++) {
        const float *row = block->delta + i * columns;
        for (uint64_t j = 0; j < columns; j++) sums[j] += (double)row[j] * (double)row[j];
    }
    // The norms' room becomes that of the ratios.
    for (uint64_t j = 0; j < columns; j++) {
        sums[j] = (double)(self->scale.values[j] / ((float)sqrt(sums[j]) + FLT_EPSILON));
    }
    for (uint64_t i = 0; i < block->rows && work_on(work, columns); i++) {
        float *row = block->delta + i * columns;
        for (uint64_t j = 0; j < columns; j++) row[j] *= (float)sums[j];
    }
    free(sums);
}

static void decompose(const struct formula *self, struct work *work, const struct block *block)
{
    const struct lora_module *module = self->module;
    uint64_t count = block->rows * block->columns;
    bool rotates = module->product == LORA_OFT || module->product == LORA_BOFT;
    // ComfyUI multiplies what rotates by its limit here: without one nothing turns.
    float factor = rotates ? (module->has_alpha ? module->alpha : 0.0f) : module->factor;
    make_sum(block, factor);
    if (self->scale.rows == self->rows) {
        scale_rows(self, block);
    } else {
        scale_columns(self, work, block);
    }
    if (work->status != STATUS_OK) return;
    if (self->strength == 1.0f) {
        memcpy(block->weight, block->delta, count * sizeof *block->weight);
        return;
    }
    for (uint64_t i = 0; i < count; i++) block->delta[i] -= block->weight[i];
    reals_add(block->weight, block->delta, self->strength, count);
}

void formula_apply(const struct formula *self, struct work *work, const struct block *block)
{
    assert(self != NULL);
    assert(block->columns == self->columns);
    uint64_t count = block->rows * block->columns;
    const struct lora_module *module = self->module;
    if (!work_on(work, count)) return;
    make_difference(self, work, block);
    if (work->status != STATUS_OK) return;
    if (module->family == LORA_SET) {
        memcpy(block->weight, block->delta, count * sizeof *block->weight);
    } else if (module->family == LORA_DORA) {
        decompose(self, work, block);
    } else if (module->family != LORA_DIFF || self->strength != 0) {
        bool rotates = module->family == LORA_OFT || module->family == LORA_BOFT;
        double scale = (double)self->strength * (rotates ? 1.0 : factor_of(module));
        reals_add(block->weight, block->delta, (float)scale, count);
    }
}
