// fit.c - see fit.h. The check keeps the first thing that is wrong and does nothing afterwards, so
// that each formula reads as the list of its shapes.
//
// Legend: [O, I] the tensor (a vector: [O, 1]), r rank. Operands may have dims of 1 behind, as the
// 1x1 convolutions of trainers do.

#include "models/lora/fit.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "models/lora/scalar.h"
#include "models/names.h"

#define SHAPE_BYTES 96u

struct fit {
    const struct choice *choice;
    const struct lora_shape *shape;
    const char *target;
    enum model_part part;
    struct error *error;
    enum status status;  // of the first thing that is wrong
    uint64_t rank;       // found so far
};

static const struct tensor *operand(const struct fit *self, enum lora_role role)
{
    return self->choice->operands[role];
}

// "[64, 4]"
static const char *shape_text(const uint64_t *dims, uint32_t rank, char out[SHAPE_BYTES])
{
    size_t used = (size_t)snprintf(out, SHAPE_BYTES, "[");
    for (uint32_t i = 0; i < rank && used < SHAPE_BYTES - 26; i++) {
        used += (size_t)snprintf(out + used, SHAPE_BYTES - used, "%s%llu", i > 0 ? ", " : "",
                                 (unsigned long long)dims[i]);
    }
    snprintf(out + used, SHAPE_BYTES - used, "]");
    return out;
}

// Says that a tensor has another shape than the formula needs.
static void reject(struct fit *self, const struct tensor *tensor, const char *needed)
{
    char has[SHAPE_BYTES];
    char whole[SHAPE_BYTES];
    const uint64_t dims[TENSOR_RANK_MAX] = {self->shape->rows, self->shape->columns};
    assert(self->shape->rank <= 2);
    if (self->status != STATUS_OK) return;
    self->status =
        error_set(self->error, STATUS_INVALID_ARGUMENT,
                  "\"%s\" has the shape %s, needed is %s: \"%s\" of %s is %s", tensor->name,
                  shape_text(tensor->dims, tensor->rank, has), needed, self->target,
                  names_part(self->part), shape_text(dims, self->shape->rank, whole));
}

static bool has_ones_behind(const struct tensor *tensor, uint32_t from)
{
    for (uint32_t i = from; i < tensor->rank; i++) {
        if (tensor->dims[i] != 1) return false;
    }
    return true;
}

static bool is_matrix(const struct tensor *tensor, uint64_t rows, uint64_t columns)
{
    return tensor->rank >= 2 && tensor->dims[0] == rows && tensor->dims[1] == columns &&
           has_ones_behind(tensor, 2);
}

static void need_matrix(struct fit *self, const struct tensor *tensor, uint64_t rows,
                        uint64_t columns)
{
    char needed[SHAPE_BYTES];
    const uint64_t dims[TENSOR_RANK_MAX] = {rows, columns};
    if (is_matrix(tensor, rows, columns)) return;
    reject(self, tensor, shape_text(dims, 2, needed));
}

// One of the two dims of a factor, which is the rank or a part of a Kronecker product; 0 when
// something is wrong. A 0 in the file is wrong.
static uint64_t need_dim(struct fit *self, const struct tensor *tensor, uint32_t index)
{
    if (self->status != STATUS_OK) return 0;
    if (tensor->rank < 2 || !has_ones_behind(tensor, 2)) {
        reject(self, tensor, "a matrix");
        return 0;
    }
    if (tensor->dims[index] == 0) reject(self, tensor, "without a 0");
    return tensor->dims[index];
}

// The rank that an operand says.
static uint64_t need_rank(struct fit *self, const struct tensor *tensor, uint32_t index)
{
    uint64_t rank = need_dim(self, tensor, index);
    const struct lora_shape *shape = self->shape;
    uint64_t most = shape->rows < shape->columns ? shape->rows : shape->columns;
    if (shape->rank == 1) most = shape->rows;
    if (rank <= most || self->status != STATUS_OK) return rank;
    self->status =
        error_set(self->error, STATUS_INVALID_ARGUMENT,
                  "\"%s\" has the rank %llu, but \"%s\" of %s is [%llu, %llu]", tensor->name,
                  (unsigned long long)rank, self->target, names_part(self->part),
                  (unsigned long long)shape->rows, (unsigned long long)shape->columns);
    return 0;
}

static void need_tensor_of_two_dims(struct fit *self)
{
    if (self->shape->rank == 2 || self->status != STATUS_OK) return;
    self->status = error_set(self->error, STATUS_INVALID_ARGUMENT,
                             "%s cannot change \"%s\" of %s, which is a vector of %llu",
                             lora_family_name(self->choice->family), self->target,
                             names_part(self->part), (unsigned long long)self->shape->rows);
}

// ---------------------------------------------------------------------------------------------
// Formulas

static void fit_low_rank(struct fit *self)
{
    const struct tensor *down = operand(self, LORA_ROLE_DOWN);
    self->rank = need_rank(self, down, 0);
    need_matrix(self, down, self->rank, self->shape->columns);
    need_matrix(self, operand(self, LORA_ROLE_UP), self->shape->rows, self->rank);
}

// a [rows, r] and b [r, columns]; with t [r, q] between them a [r, rows] and b [q, columns].
static void fit_factors(struct fit *self, const enum lora_role roles[3], uint64_t rows,
                        uint64_t columns)
{
    const struct tensor *a = operand(self, roles[0]);
    const struct tensor *b = operand(self, roles[1]);
    const struct tensor *t = operand(self, roles[2]);
    uint64_t rank = need_rank(self, b, 0);
    need_matrix(self, b, rank, columns);
    if (t == NULL) {
        need_matrix(self, a, rows, rank);
        return;
    }
    uint64_t outer = need_rank(self, a, 0);
    need_matrix(self, a, outer, rows);
    need_matrix(self, t, outer, rank);
}

static const enum lora_role first_factors[] = {LORA_ROLE_W1_A, LORA_ROLE_W1_B, LORA_ROLE_T1};
static const enum lora_role second_factors[] = {LORA_ROLE_W2_A, LORA_ROLE_W2_B, LORA_ROLE_T2};

static void fit_loha(struct fit *self)
{
    fit_factors(self, first_factors, self->shape->rows, self->shape->columns);
    fit_factors(self, second_factors, self->shape->rows, self->shape->columns);
    self->rank = need_rank(self, operand(self, LORA_ROLE_W1_B), 0);
}

// W1 [a, b] and W2 [c, d], each whole or factored, with a c = O and b d = I.
static void fit_lokr(struct fit *self)
{
    const struct tensor *whole = operand(self, LORA_ROLE_W1);
    const struct tensor *left = whole != NULL ? whole : operand(self, LORA_ROLE_W1_A);
    const struct tensor *right = whole != NULL ? whole : operand(self, LORA_ROLE_W1_B);
    uint64_t a = need_dim(self, left, 0);
    uint64_t b = need_dim(self, right, 1);
    const struct lora_shape *shape = self->shape;
    bool divides = a > 0 && b > 0 && shape->rows % a == 0 && shape->columns % b == 0;
    if (!divides) reject(self, left, "one whose dims divide it");
    if (!divides || self->status != STATUS_OK) return;
    if (whole == NULL) {
        fit_factors(self, first_factors, a, b);
        self->rank = need_rank(self, right, 0);
    }
    whole = operand(self, LORA_ROLE_W2);
    if (whole != NULL) {
        need_matrix(self, whole, shape->rows / a, shape->columns / b);
        return;
    }
    fit_factors(self, second_factors, shape->rows / a, shape->columns / b);
    self->rank = need_rank(self, operand(self, LORA_ROLE_W2_B), 0);
}

static uint64_t dim(const struct tensor *tensor, uint32_t index)
{
    return index < tensor->rank ? tensor->dims[index] : 0;
}

enum glora_layout glora_layout(const struct tensor *const operands[LORA_ROLE_COUNT],
                               const struct lora_shape *shape)
{
    const struct tensor *a1 = operands[LORA_ROLE_A1];
    const struct tensor *a2 = operands[LORA_ROLE_A2];
    const struct tensor *b1 = operands[LORA_ROLE_B1];
    const struct tensor *b2 = operands[LORA_ROLE_B2];
    uint64_t rank = dim(a1, 0);
    bool is_old = dim(a2, 1) == rank && dim(b1, 0) == rank && dim(b2, 1) == rank;
    rank = dim(a1, 1);
    bool is_new = dim(a2, 0) == rank && dim(b1, 1) == rank && dim(b2, 0) == rank;
    bool square = dim(a2, 0) == shape->rows && shape->rows == shape->columns;
    if (is_new && !(is_old && square)) return GLORA_NEW;
    return is_old ? GLORA_OLD : GLORA_NEITHER;
}

static void fit_glora(struct fit *self)
{
    const struct lora_shape *shape = self->shape;
    const struct tensor *a1 = operand(self, LORA_ROLE_A1);
    const struct tensor *a2 = operand(self, LORA_ROLE_A2);
    const struct tensor *b1 = operand(self, LORA_ROLE_B1);
    const struct tensor *b2 = operand(self, LORA_ROLE_B2);
    need_tensor_of_two_dims(self);
    enum glora_layout layout = glora_layout(self->choice->operands, shape);
    if (layout == GLORA_NEITHER) {
        reject(self, a1, "one that shares its rank with a2, b1 and b2");
        return;
    }
    bool is_old = layout == GLORA_OLD;
    self->rank = need_rank(self, a1, is_old ? 0 : 1);
    need_matrix(self, is_old ? a2 : a1, shape->columns, self->rank);
    need_matrix(self, is_old ? a1 : a2, self->rank, shape->columns);
    need_matrix(self, is_old ? b2 : b1, shape->rows, self->rank);
    need_matrix(self, is_old ? b1 : b2, self->rank, shape->columns);
}

// OFT [n, b, b] and BOFT [m, n, b, b] with n b = O; stage i of BOFT mixes within 2^i b rows.
static void fit_rotation(struct fit *self)
{
    const struct tensor *blocks = operand(self, LORA_ROLE_BLOCKS);
    const struct lora_shape *shape = self->shape;
    uint64_t stages = blocks->rank == 4 ? blocks->dims[0] : 1;
    uint64_t size = blocks->rank >= 3 ? blocks->dims[blocks->rank - 1] : 0;
    bool good = (blocks->rank == 3 || blocks->rank == 4) && size >= 1 && size <= shape->rows &&
                blocks->dims[blocks->rank - 2] == size && shape->rows % size == 0 &&
                blocks->dims[blocks->rank - 3] == shape->rows / size;
    if (good && blocks->rank == 4) {
        good = stages >= 1 && stages <= 32 && size % 2 == 0 &&
               shape->rows % (size << (stages - 1)) == 0;
    }
    if (!good) reject(self, blocks, "blocks [n, b, b] or [m, n, b, b] of n b rows");
    const struct tensor *rescale = operand(self, LORA_ROLE_RESCALE);
    if (rescale != NULL) need_matrix(self, rescale, shape->rows, 1);
}

static void fit_difference(struct fit *self)
{
    char needed[SHAPE_BYTES];
    const uint64_t dims[TENSOR_RANK_MAX] = {self->shape->rows, self->shape->columns};
    const struct tensor *diff = operand(self, LORA_ROLE_DIFF);
    bool same = diff->rank == self->shape->rank && diff->dims[0] == dims[0];
    if (same && diff->rank == 2) same = diff->dims[1] == dims[1];
    if (!same) reject(self, diff, shape_text(dims, self->shape->rank, needed));
}

// m [O, 1], or [1, I].
static void fit_dora(struct fit *self)
{
    const struct tensor *scale = operand(self, LORA_ROLE_DORA_SCALE);
    if (scale == NULL) return;
    need_tensor_of_two_dims(self);
    if (is_matrix(scale, self->shape->rows, 1)) return;
    if (!is_matrix(scale, 1, self->shape->columns))
        reject(self, scale, "[rows, 1] or [1, columns]");
}

// ---------------------------------------------------------------------------------------------
// Values

// alpha, finite also as a float.
static void read_alpha(struct fit *self, struct lora_module *out)
{
    const struct tensor *alpha = self->choice->alpha;
    double value = 0;
    if (alpha == NULL || self->status != STATUS_OK) return;
    if (!has_ones_behind(alpha, 0) || !scalar_read(alpha, 0, &value)) {
        char has[SHAPE_BYTES];
        self->status = error_set(
            self->error, STATUS_INVALID_ARGUMENT, "\"%s\" is %s %s, needed is one number",
            alpha->name, dtype_name(alpha->dtype), shape_text(alpha->dims, alpha->rank, has));
        return;
    }
    if (!isfinite((float)value)) {
        self->status = error_set(self->error, STATUS_INVALID_ARGUMENT,
                                 "\"%s\" is %g, needed is a finite number", alpha->name, value);
        return;
    }
    out->has_alpha = true;
    out->alpha = (float)value;
}

// reshape_weight tells that the weight was padded to another shape, which encoders never are.
static void check_reshape(struct fit *self)
{
    const struct tensor *reshape = self->choice->reshape;
    const uint64_t dims[TENSOR_RANK_MAX] = {self->shape->rows, self->shape->columns};
    if (reshape == NULL || self->status != STATUS_OK) return;
    bool same = reshape->rank == 1 && reshape->dims[0] == self->shape->rank;
    for (uint32_t i = 0; i < self->shape->rank && same; i++) {
        double value = 0;
        same = scalar_read(reshape, i, &value) && value == (double)dims[i];
    }
    if (same) return;
    self->status = error_set(self->error, STATUS_INVALID_ARGUMENT,
                             "\"%s\" asks for another shape than that of \"%s\" of %s, [%llu, "
                             "%llu]",
                             reshape->name, self->target, names_part(self->part),
                             (unsigned long long)dims[0], (unsigned long long)dims[1]);
}

static void fit_shapes(struct fit *self)
{
    switch (self->choice->product) {
    case LORA_LOW_RANK:
        fit_low_rank(self);
        break;
    case LORA_LOHA:
        fit_loha(self);
        break;
    case LORA_LOKR:
        fit_lokr(self);
        break;
    case LORA_GLORA:
        fit_glora(self);
        break;
    case LORA_OFT:
    case LORA_BOFT:
        fit_rotation(self);
        break;
    case LORA_DIFF:
    case LORA_SET:
        fit_difference(self);
        break;
    case LORA_DORA:
    case LORA_FAMILY_COUNT:
        assert(!"a product is never DoRA itself");
    }
    fit_dora(self);
}

enum status choice_fit(const struct choice *choice, const struct lora_shape *shape,
                       const char *target, enum model_part part, struct lora_module *out,
                       struct error *error)
{
    assert(choice != NULL);
    assert(shape != NULL);
    struct fit self = {
        .choice = choice, .shape = shape, .target = target, .part = part, .error = error};
    struct lora_module module = *out;
    fit_shapes(&self);
    check_reshape(&self);
    read_alpha(&self, &module);
    if (self.status != STATUS_OK) return self.status;
    assert(self.rank <= UINT32_MAX);
    module.family = choice->family;
    module.product = choice->product;
    module.rank = (uint32_t)self.rank;
    // Rotations use alpha as the limit of their angles, and nothing factored has no rank.
    bool scaled = module.has_alpha && module.rank > 0;
    module.factor = scaled ? (float)((double)module.alpha / (double)module.rank) : 1.0f;
    memcpy(module.operands, choice->operands, sizeof module.operands);
    *out = module;
    return STATUS_OK;
}
