// operation_check.c - every operand of every operation, checked once for all devices.
//
// One function an operation lists what the operation reads and writes; the helpers above them keep
// the first complaint and let the later ones pass, so that the lists need no branches. A size of 0
// bytes means "could not be computed, and somebody has complained already".

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/checked.h"
#include "kernels/arena_plan.h"
#include "kernels/operation.h"

struct check {
    const struct program *program;  // where the operation is to be appended
    const struct operation *op;     // what is checked
    struct error *error;            // the first complaint
    enum status status;             // OK until then
    uint64_t activation_bytes;      // of one element
};

static void complain(struct check *self, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void complain(struct check *self, const char *format, ...)
{
    if (self->status != STATUS_OK) return;
    char text[ERROR_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    self->status = error_set(self->error, STATUS_INVALID_ARGUMENT, "operation %u, %s: %s",
                             self->program->operations_count, operation_name(self->op->kind), text);
}

// ---------------------------------------------------------------------------------------------
// Numbers

static void check_positive(struct check *self, const char *name, uint64_t number)
{
    if (number == 0) complain(self, "%s is 0", name);
}

static void check_equal(struct check *self, const char *name, uint64_t got, uint64_t want)
{
    if (got == want) return;
    complain(self, "%s is %llu, must be %llu", name, (unsigned long long)got,
             (unsigned long long)want);
}

static void check_finite(struct check *self, const char *name, float number)
{
    if (!isfinite(number)) complain(self, "%s is %g", name, (double)number);
}

static void check_epsilon(struct check *self, float epsilon)
{
    if (!(epsilon >= 0) || !isfinite(epsilon)) complain(self, "epsilon is %g", (double)epsilon);
}

// a x b x c, none of them 0 and together at most OPERATION_ROWS_MAX; else 0 and a complaint.
static uint64_t check_rows(struct check *self, const char *name, uint64_t a, uint64_t b, uint64_t c)
{
    const uint64_t dims[3] = {a, b, c};
    uint64_t rows = 0;
    if (checked_product(dims, 3, &rows) && rows > 0 && rows <= OPERATION_ROWS_MAX) return rows;
    complain(self, "%s: %llu x %llu x %llu must be 1 to %u", name, (unsigned long long)a,
             (unsigned long long)b, (unsigned long long)c, OPERATION_ROWS_MAX);
    return 0;
}

// a x b x c bytes; 0 and a complaint when one is 0 or the product overflows.
static uint64_t check_bytes(struct check *self, const char *name, uint64_t a, uint64_t b,
                            uint64_t c)
{
    const uint64_t dims[3] = {a, b, c};
    uint64_t bytes = 0;
    if (checked_product(dims, 3, &bytes) && bytes > 0) return bytes;
    complain(self, "%s: %llu x %llu x %llu bytes cannot be", name, (unsigned long long)a,
             (unsigned long long)b, (unsigned long long)c);
    return 0;
}

static void check_real(struct check *self, enum dtype dtype, bool allow_u8)
{
    if (dtype_is_real(dtype) || (allow_u8 && dtype == DTYPE_U8)) return;
    complain(self, "dtype is %s, must be F32, F16%s", dtype_name(dtype),
             allow_u8 ? ", BF16 or U8" : " or BF16");
}

// ---------------------------------------------------------------------------------------------
// Places

static void check_room(struct check *self, const char *name, const struct value *value,
                       uint64_t bytes)
{
    if (bytes <= value->bytes) return;
    complain(self, "%s has %llu bytes, needs %llu", name, (unsigned long long)value->bytes,
             (unsigned long long)bytes);
}

static void check_arena(struct check *self, const char *name, const struct value *value,
                        uint64_t bytes)
{
    if (value->place != VALUE_ARENA) {
        complain(self, "%s must be a value of the arena", name);
        return;
    }
    check_room(self, name, value, bytes);
    if (!arena_plan_holds(self->program->plan, value->offset, value->bytes)) {
        complain(self, "%s (%llu bytes at %llu) is not inside a live value of this program", name,
                 (unsigned long long)value->bytes, (unsigned long long)value->offset);
    }
    if (value->offset % self->activation_bytes != 0) {
        complain(self, "%s begins at byte %llu, between two elements", name,
                 (unsigned long long)value->offset);
    }
}

static void check_words(struct check *self, const char *name, const struct value *value,
                        uint64_t bytes)
{
    check_arena(self, name, value, bytes);
    if (value->offset % sizeof(uint32_t) != 0) {
        complain(self, "%s begins at byte %llu, between two words", name,
                 (unsigned long long)value->offset);
    }
}

static void check_slot(struct check *self, const char *name, const struct value *value,
                       uint64_t bytes)
{
    if (value->place != VALUE_SLOT || value->slot >= self->program->slots_count) {
        complain(self, "%s must be in a slot of this program", name);
        return;
    }
    check_room(self, name, value, bytes);
    uint64_t slot_bytes = self->program->slot_bytes[value->slot];
    if (value->offset <= slot_bytes && value->bytes <= slot_bytes - value->offset) return;
    complain(self, "%s (%llu bytes at %llu) is beyond slot %u of %llu bytes", name,
             (unsigned long long)value->bytes, (unsigned long long)value->offset, value->slot,
             (unsigned long long)slot_bytes);
}

static bool overlap(const struct value *a, uint64_t a_bytes, const struct value *b,
                    uint64_t b_bytes)
{
    if (a->place != b->place || a->place == VALUE_NONE) return false;
    if (a->place == VALUE_SLOT && a->slot != b->slot) return false;
    return a->offset < b->offset + b_bytes && b->offset < a->offset + a_bytes;
}

static void check_apart(struct check *self, const char *names, const struct value *a,
                        uint64_t a_bytes, const struct value *b, uint64_t b_bytes)
{
    if (self->status != STATUS_OK || !overlap(a, a_bytes, b, b_bytes)) return;
    complain(self, "%s overlap: bytes %llu and %llu", names, (unsigned long long)a->offset,
             (unsigned long long)b->offset);
}

// Two operands of the same size: the same bytes or none in common.
static void check_same_or_apart(struct check *self, const char *names, const struct value *a,
                                const struct value *b, uint64_t bytes)
{
    if (a->place == b->place && a->slot == b->slot && a->offset == b->offset) return;
    check_apart(self, names, a, bytes, b, bytes);
}

static void check_statistics(struct check *self, const char *name, const struct value *value,
                             const uint32_t dims[4])
{
    const struct device *device = self->program->device;
    if (self->status != STATUS_OK) return;
    uint64_t bytes = device->class->statistics_bytes(device, dims[0], dims[1], dims[2], dims[3]);
    check_arena(self, name, value, bytes);
}

// ---------------------------------------------------------------------------------------------
// Weights

static void check_weight(struct check *self, const char *name, const struct weight *weight,
                         enum weight_form form, uint32_t rows)
{
    static const char *const forms[] = {"a vector", "a matrix", "a convolution", "a table"};
    if (weight == NULL) {
        complain(self, "%s is missing", name);
        return;
    }
    if (weight->device != self->program->device) {
        complain(self, "%s was made for another device", name);
    }
    if (weight->form != form) complain(self, "%s must be %s", name, forms[form]);
    if (weight->dims[0] != rows) {
        complain(self, "%s has dimension %u, must be %u", name, weight->dims[0], rows);
    }
}

static void check_optional(struct check *self, const char *name, const struct weight *weight,
                           uint32_t rows)
{
    if (weight != NULL) check_weight(self, name, weight, WEIGHT_VECTOR, rows);
}

static void check_matrix(struct check *self, const char *name, const struct weight *weight,
                         const uint32_t dims[2])
{
    check_weight(self, name, weight, WEIGHT_MATRIX, dims[0]);
    if (self->status == STATUS_OK && weight->dims[1] != dims[1]) {
        complain(self, "%s is [%u, %u], must be [%u, %u]", name, weight->dims[0], weight->dims[1],
                 dims[0], dims[1]);
    }
}

static void check_taps(struct check *self, const char *name, const struct weight *weight,
                       const uint32_t dims[2])
{
    check_weight(self, name, weight, WEIGHT_CONVOLUTION, dims[0]);
    if (self->status == STATUS_OK && weight->dims[1] != dims[1]) {
        complain(self, "%s is [%u, %u, %u, %u], must be [%u, %u, ...]", name, weight->dims[0],
                 weight->dims[1], weight->dims[2], weight->dims[3], dims[0], dims[1]);
    }
}

// ---------------------------------------------------------------------------------------------
// Operations

static void check_normalization(struct check *self, const struct convolution *op)
{
    const struct normalization *norm = &op->norm;
    if (norm->statistics.place == VALUE_NONE) {
        if (norm->silu || norm->gamma != NULL || norm->beta != NULL || norm->groups != 0) {
            complain(self, "norm is given without statistics");
        }
        return;
    }
    check_statistics(self, "norm.statistics", &norm->statistics,
                     (uint32_t[4]){op->n, op->h, op->w, op->c});
    check_weight(self, "norm.gamma", norm->gamma, WEIGHT_VECTOR, op->c);
    check_weight(self, "norm.beta", norm->beta, WEIGHT_VECTOR, op->c);
    check_epsilon(self, norm->epsilon);
    if (norm->groups == 0 || op->c % norm->groups != 0) {
        complain(self, "norm.groups is %u, must divide c, which is %u", norm->groups, op->c);
    }
}

static void check_shortcut(struct check *self, const struct convolution *op, uint64_t rows)
{
    if (op->shortcut.place == VALUE_NONE) {
        if (op->shortcut_weight != NULL || op->shortcut_bias != NULL || op->shortcut_c != 0) {
            complain(self, "a shortcut's weight is given without the shortcut");
        }
        return;
    }
    uint64_t bytes = check_bytes(self, "shortcut", rows, op->shortcut_c, self->activation_bytes);
    check_arena(self, "shortcut", &op->shortcut, bytes);
    check_taps(self, "shortcut_weight", op->shortcut_weight, (uint32_t[2]){op->k, op->shortcut_c});
    if (self->status == STATUS_OK) {
        check_equal(self, "width of shortcut_weight", op->shortcut_weight->dims[2], 1);
    }
    check_optional(self, "shortcut_bias", op->shortcut_bias, op->k);
}

static void check_window_kind(struct check *self, const struct convolution *op)
{
    check_taps(self, "weight", op->weight, (uint32_t[2]){op->k, op->c});
    if (self->status != STATUS_OK) return;
    uint32_t r = op->weight->dims[2];
    if (op->stride != 1 && op->stride != 2) complain(self, "stride is %u, not 1 or 2", op->stride);
    if (op->stride == 2 && r != 3) complain(self, "stride 2 needs r = 3, weight has r = %u", r);
    if (op->upsample && (op->stride != 1 || r != 3)) {
        complain(self, "upsample needs stride 1 and r = 3, got stride %u, r = %u", op->stride, r);
    }
    if (op->upsample != op->weight->upsample) {
        complain(self, "%s, weight was made for one that %s",
                 op->upsample ? "the convolution upsamples" : "the convolution does not upsample",
                 op->upsample ? "does not" : "does");
    }
}

static void check_convolution(struct check *self, const struct convolution *op)
{
    uint64_t in_rows = check_rows(self, "input n x h x w", op->n, op->h, op->w);
    check_positive(self, "c", op->c);
    check_positive(self, "k", op->k);
    check_window_kind(self, op);
    if (self->status != STATUS_OK) return;
    uint32_t oh = convolution_output_h(op);
    uint32_t ow = convolution_output_w(op);
    uint64_t out_rows = check_rows(self, "output n x oh x ow", op->n, oh, ow);
    uint64_t in_bytes = check_bytes(self, "input", in_rows, op->c, self->activation_bytes);
    uint64_t out_bytes = check_bytes(self, "output", out_rows, op->k, self->activation_bytes);
    check_arena(self, "input", &op->input, in_bytes);
    check_arena(self, "output", &op->output, out_bytes);
    check_apart(self, "input and output", &op->input, in_bytes, &op->output, out_bytes);
    check_optional(self, "bias", op->bias, op->k);
    check_normalization(self, op);
    check_apart(self, "norm.statistics and output", &op->norm.statistics, op->norm.statistics.bytes,
                &op->output, out_bytes);
    check_shortcut(self, op, out_rows);
    check_apart(self, "shortcut and output", &op->shortcut, op->shortcut.bytes, &op->output,
                out_bytes);
    if (op->residual.place != VALUE_NONE) {
        check_arena(self, "residual", &op->residual, out_bytes);
        check_same_or_apart(self, "residual and output", &op->residual, &op->output, out_bytes);
    }
    if (op->statistics.place == VALUE_NONE) return;
    const struct value *statistics = &op->statistics;
    check_statistics(self, "statistics", statistics, (uint32_t[4]){op->n, oh, ow, op->k});
    check_apart(self, "statistics and output", statistics, statistics->bytes, &op->output,
                out_bytes);
    check_apart(self, "statistics and input", statistics, statistics->bytes, &op->input, in_bytes);
    check_apart(self, "statistics and norm.statistics", statistics, statistics->bytes,
                &op->norm.statistics, op->norm.statistics.bytes);
    check_apart(self, "statistics and shortcut", statistics, statistics->bytes, &op->shortcut,
                op->shortcut.bytes);
    check_apart(self, "statistics and residual", statistics, statistics->bytes, &op->residual,
                op->residual.bytes);
}

static void check_low_rank(struct check *self, const struct linear *op, const struct low_rank *path)
{
    check_positive(self, "rank", path->rank);
    check_positive(self, "row_count", path->row_count);
    check_positive(self, "column_count", path->column_count);
    if ((uint64_t)path->row_begin + path->row_count > op->rows) {
        complain(self, "low_rank covers rows %u + %u of %u", path->row_begin, path->row_count,
                 op->rows);
    }
    if ((uint64_t)path->column_begin + path->column_count > op->k) {
        complain(self, "low_rank covers columns %u + %u of %u", path->column_begin,
                 path->column_count, op->k);
    }
    check_matrix(self, "low_rank.down", path->down, (uint32_t[2]){path->rank, op->c});
    check_matrix(self, "low_rank.up", path->up, (uint32_t[2]){path->column_count, path->rank});
    check_finite(self, "low_rank.scale", path->scale);
}

static void check_linear(struct check *self, const struct linear *op)
{
    uint64_t rows = check_rows(self, "rows", op->rows, 1, 1);
    uint64_t in_bytes = check_bytes(self, "input", rows, op->c, self->activation_bytes);
    uint64_t out_bytes = check_bytes(self, "output", rows, op->k, self->activation_bytes);
    check_arena(self, "input", &op->input, in_bytes);
    check_arena(self, "output", &op->output, out_bytes);
    check_apart(self, "input and output", &op->input, in_bytes, &op->output, out_bytes);
    check_matrix(self, "weight", op->weight, (uint32_t[2]){op->k, op->c});
    check_optional(self, "bias", op->bias, op->k);
    if ((unsigned)op->activation > ACTIVATION_GELU) {
        complain(self, "activation is %u", (unsigned)op->activation);
    }
    if (op->residual.place != VALUE_NONE) {
        check_arena(self, "residual", &op->residual, out_bytes);
        check_same_or_apart(self, "residual and output", &op->residual, &op->output, out_bytes);
    }
    if (op->low_rank_count > 0 && op->low_rank == NULL) {
        complain(self, "low_rank is missing");
        return;
    }
    for (uint32_t i = 0; i < op->low_rank_count && self->status == STATUS_OK; i++) {
        check_low_rank(self, op, &op->low_rank[i]);
    }
}

// Bytes from the first element of q, k or v to the end of its last row.
static uint64_t check_strided(struct check *self, const char *name, const struct attention *op,
                              uint32_t stride)
{
    uint64_t width = (uint64_t)op->heads * op->head_width;
    uint64_t rows = (uint64_t)op->batch * op->tokens;
    if (stride < width) {
        complain(self, "%s has stride %u, less than the %llu elements of a row", name, stride,
                 (unsigned long long)width);
        return 0;
    }
    uint64_t elements = 0;
    if (rows == 0 || !checked_multiply(rows - 1, stride, &elements) ||
        !checked_add(elements, width, &elements)) {
        complain(self, "%s is too large to count", name);
        return 0;
    }
    return check_bytes(self, name, elements, self->activation_bytes, 1);
}

static void check_attention(struct check *self, const struct attention *op)
{
    uint64_t rows = check_rows(self, "batch x tokens", op->batch, op->tokens, 1);
    check_positive(self, "heads", op->heads);
    check_positive(self, "head_width", op->head_width);
    check_finite(self, "scale", op->scale);
    const struct value *values[3] = {&op->q, &op->k, &op->v};
    const uint32_t strides[3] = {op->q_stride, op->k_stride, op->v_stride};
    static const char *const value_names[3] = {"q", "k", "v"};
    uint64_t width = check_rows(self, "heads x head_width", op->heads, op->head_width, 1);
    uint64_t out_bytes = check_bytes(self, "output", rows, width, self->activation_bytes);
    check_arena(self, "output", &op->output, out_bytes);
    for (uint32_t i = 0; i < 3 && self->status == STATUS_OK; i++) {
        uint64_t bytes = check_strided(self, value_names[i], op, strides[i]);
        check_arena(self, value_names[i], values[i], bytes);
        check_apart(self, "an input and the output", values[i], bytes, &op->output, out_bytes);
    }
}

static void check_layer_norm(struct check *self, const struct layer_norm *op)
{
    uint64_t rows = check_rows(self, "rows", op->rows, 1, 1);
    uint64_t bytes = check_bytes(self, "input", rows, op->width, self->activation_bytes);
    check_arena(self, "input", &op->input, bytes);
    check_arena(self, "output", &op->output, bytes);
    check_same_or_apart(self, "input and output", &op->input, &op->output, bytes);
    check_weight(self, "gamma", op->gamma, WEIGHT_VECTOR, op->width);
    check_weight(self, "beta", op->beta, WEIGHT_VECTOR, op->width);
    check_epsilon(self, op->epsilon);
}

static void check_table(struct check *self, const char *name, const struct weight *table,
                        uint32_t width)
{
    check_weight(self, name, table, WEIGHT_TABLE, table == NULL ? 0 : table->dims[0]);
    if (self->status != STATUS_OK) return;
    assert(table != NULL);
    if (table->dims[1] != width) {
        complain(self, "%s has rows of %u, must be %u", name, table->dims[1], width);
    }
}

static void check_embedding(struct check *self, const struct embedding *op)
{
    uint64_t rows = check_rows(self, "rows", op->rows, 1, 1);
    check_positive(self, "tokens", op->tokens);
    if (op->tokens > 0 && op->rows % op->tokens != 0) {
        complain(self, "rows is %u, not a multiple of tokens, %u", op->rows, op->tokens);
    }
    check_slot(self, "ids", &op->ids, check_bytes(self, "ids", rows, sizeof(int32_t), 1));
    uint64_t bytes = check_bytes(self, "output", rows, op->width, self->activation_bytes);
    check_arena(self, "output", &op->output, bytes);
    check_table(self, "table", op->table, op->width);
    check_table(self, "positions", op->positions, op->width);
    if (self->status == STATUS_OK && op->positions->dims[0] < op->tokens) {
        complain(self, "positions has %u rows, fewer than the %u tokens", op->positions->dims[0],
                 op->tokens);
    }
    if (op->vectors.place == VALUE_NONE) {
        check_equal(self, "vectors_count without vectors", op->vectors_count, 0);
    } else {
        bytes = check_bytes(self, "vectors", op->vectors_count, op->width, sizeof(float));
        check_slot(self, "vectors", &op->vectors, bytes);
    }
}

static void check_gather(struct check *self, const struct gather *op)
{
    uint64_t rows = check_rows(self, "rows", op->rows, 1, 1);
    uint64_t count = check_rows(self, "count", op->count, 1, 1);
    uint64_t in_bytes = check_bytes(self, "input", rows, op->width, self->activation_bytes);
    uint64_t out_bytes = check_bytes(self, "output", count, op->width, self->activation_bytes);
    check_arena(self, "input", &op->input, in_bytes);
    check_slot(self, "indices", &op->indices,
               check_bytes(self, "indices", count, sizeof(int32_t), 1));
    check_arena(self, "output", &op->output, out_bytes);
    check_apart(self, "input and output", &op->input, in_bytes, &op->output, out_bytes);
}

static void check_store(struct check *self, const struct store *op)
{
    uint64_t bytes = check_bytes(self, "input", op->count, self->activation_bytes, 1);
    check_arena(self, "input", &op->input, bytes);
    check_slot(self, "output", &op->output, check_bytes(self, "output", op->count, 4, 1));
}

// Rows of the window, h x w; the window must lie inside its image.
static uint64_t check_window(struct check *self, const struct window *window)
{
    check_rows(self, "full_h x full_w", window->full_h, window->full_w, 1);
    if ((uint64_t)window->y + window->h > window->full_h ||
        (uint64_t)window->x + window->w > window->full_w) {
        complain(self, "window %u x %u at (%u, %u) is not inside an image of %u x %u", window->h,
                 window->w, window->y, window->x, window->full_h, window->full_w);
    }
    return check_rows(self, "window h x w", window->h, window->w, 1);
}

// The word of a load or a store, apart from what that one reads or writes in the arena.
static void check_not_finite(struct check *self, const struct value *word,
                             const struct value *tensor, uint64_t tensor_bytes)
{
    if (word->place == VALUE_NONE) return;
    check_words(self, "not_finite", word, sizeof(uint32_t));
    check_apart(self, "not_finite and a tensor", word, sizeof(uint32_t), tensor, tensor_bytes);
}

static void check_pixels_load(struct check *self, const struct pixels_load *op)
{
    check_real(self, op->dtype, true);
    uint64_t pixels = check_window(self, &op->window);
    if (op->channels < 3) complain(self, "channels is %u, must be 3 or more", op->channels);
    uint64_t full = (uint64_t)op->window.full_h * op->window.full_w;
    check_slot(self, "source", &op->source,
               check_bytes(self, "source", full, op->channels, dtype_bytes(op->dtype)));
    uint64_t out_bytes = check_bytes(self, "output", pixels, 3, self->activation_bytes);
    check_arena(self, "output", &op->output, out_bytes);
    check_not_finite(self, &op->not_finite, &op->output, out_bytes);
}

static void check_pixels_store(struct check *self, const struct pixels_store *op)
{
    check_real(self, op->dtype, op->clamp);
    uint64_t pixels = check_rows(self, "h x w", op->h, op->w, 1);
    uint64_t element = op->input_f32 ? sizeof(float) : self->activation_bytes;
    uint64_t in_bytes = check_bytes(self, "input", pixels, 3, element);
    check_arena(self, "input", &op->input, in_bytes);
    check_slot(self, "output", &op->output,
               check_bytes(self, "output", pixels, 3, dtype_bytes(op->dtype)));
    check_not_finite(self, &op->not_finite, &op->input, in_bytes);
}

static void check_latent_load(struct check *self, const struct latent_load *op)
{
    check_real(self, op->dtype, false);
    uint64_t pixels = check_window(self, &op->window);
    uint64_t full = (uint64_t)op->window.full_h * op->window.full_w;
    check_slot(self, "source", &op->source,
               check_bytes(self, "source", full, op->channels, dtype_bytes(op->dtype)));
    uint64_t out_bytes = check_bytes(self, "output", pixels, op->channels, self->activation_bytes);
    check_arena(self, "output", &op->output, out_bytes);
    check_not_finite(self, &op->not_finite, &op->output, out_bytes);
}

static void check_stride(struct check *self, uint32_t channels, uint32_t stride)
{
    check_positive(self, "channels", channels);
    if (stride < channels) complain(self, "stride is %u, channels are %u", stride, channels);
}

static void check_latent_store(struct check *self, const struct latent_store *op)
{
    check_real(self, op->dtype, false);
    check_stride(self, op->channels, op->stride);
    uint64_t pixels = check_rows(self, "h x w", op->h, op->w, 1);
    uint64_t element = op->input_f32 ? sizeof(float) : self->activation_bytes;
    uint64_t in_bytes = check_bytes(self, "input", pixels, op->stride, element);
    check_arena(self, "input", &op->input, in_bytes);
    check_slot(self, "output", &op->output,
               check_bytes(self, "output", pixels, op->channels, dtype_bytes(op->dtype)));
    check_not_finite(self, &op->not_finite, &op->input, in_bytes);
}

static void check_words_store(struct check *self, const struct words_store *op)
{
    uint64_t bytes = check_bytes(self, "input", op->count, sizeof(uint32_t), 1);
    check_words(self, "input", &op->input, bytes);
    check_slot(self, "output", &op->output, bytes);
}

static void check_clear(struct check *self, const struct clear *op)
{
    check_positive(self, "bytes", op->bytes);
    check_arena(self, "output", &op->output, op->bytes);
}

static void check_blend(struct check *self, const struct blend *op)
{
    check_stride(self, op->channels, op->stride);
    uint64_t pixels = check_window(self, &op->window);
    uint64_t full = (uint64_t)op->window.full_h * op->window.full_w;
    uint64_t tile_bytes = check_bytes(self, "tile", pixels, op->stride, self->activation_bytes);
    uint64_t sum_bytes = check_bytes(self, "sum", full, op->channels, sizeof(float));
    uint64_t weight_bytes = check_bytes(self, "weight", full, sizeof(float), 1);
    check_arena(self, "tile", &op->tile, tile_bytes);
    check_arena(self, "sum", &op->sum, sum_bytes);
    check_arena(self, "weight", &op->weight, weight_bytes);
    check_apart(self, "tile and sum", &op->tile, tile_bytes, &op->sum, sum_bytes);
    check_apart(self, "tile and weight", &op->tile, tile_bytes, &op->weight, weight_bytes);
    check_apart(self, "sum and weight", &op->sum, sum_bytes, &op->weight, weight_bytes);
}

static void check_blend_end(struct check *self, const struct blend_end *op)
{
    uint64_t full = check_rows(self, "full_h x full_w", op->full_h, op->full_w, 1);
    uint64_t sum_bytes = check_bytes(self, "sum", full, op->channels, sizeof(float));
    uint64_t weight_bytes = check_bytes(self, "weight", full, sizeof(float), 1);
    check_arena(self, "sum", &op->sum, sum_bytes);
    check_arena(self, "weight", &op->weight, weight_bytes);
    check_arena(self, "total", &op->total, sum_bytes);
    check_apart(self, "sum and weight", &op->sum, sum_bytes, &op->weight, weight_bytes);
    check_apart(self, "total and weight", &op->total, sum_bytes, &op->weight, weight_bytes);
    if (op->pass >= op->passes) complain(self, "pass %u of %u", op->pass, op->passes);
    if (op->passes == 1) {
        check_same_or_apart(self, "total and sum", &op->total, &op->sum, sum_bytes);
    } else {
        check_apart(self, "total and sum", &op->total, sum_bytes, &op->sum, sum_bytes);
    }
}

enum status operation_check(const struct program *program, const struct operation *op,
                            struct error *error)
{
    assert(program != NULL);
    assert(program->plan != NULL);
    struct check check = {.program = program,
                          .op = op,
                          .error = error,
                          .activation_bytes = program->device->info.activation_bytes};
    struct check *self = &check;
    switch (op->kind) {
    case OPERATION_CONVOLUTION:
        check_convolution(self, &op->convolution);
        break;
    case OPERATION_LINEAR:
        check_linear(self, &op->linear);
        break;
    case OPERATION_ATTENTION:
        check_attention(self, &op->attention);
        break;
    case OPERATION_LAYER_NORM:
        check_layer_norm(self, &op->layer_norm);
        break;
    case OPERATION_EMBEDDING:
        check_embedding(self, &op->embedding);
        break;
    case OPERATION_GATHER:
        check_gather(self, &op->gather);
        break;
    case OPERATION_STORE:
        check_store(self, &op->store);
        break;
    case OPERATION_PIXELS_LOAD:
        check_pixels_load(self, &op->pixels_load);
        break;
    case OPERATION_PIXELS_STORE:
        check_pixels_store(self, &op->pixels_store);
        break;
    case OPERATION_LATENT_LOAD:
        check_latent_load(self, &op->latent_load);
        break;
    case OPERATION_LATENT_STORE:
        check_latent_store(self, &op->latent_store);
        break;
    case OPERATION_WORDS_STORE:
        check_words_store(self, &op->words_store);
        break;
    case OPERATION_CLEAR:
        check_clear(self, &op->clear);
        break;
    case OPERATION_BLEND:
        check_blend(self, &op->blend);
        break;
    case OPERATION_BLEND_END:
        check_blend_end(self, &op->blend_end);
        break;
    case OPERATION_MARK:
        break;
    case OPERATION_COUNT:
        assert(op->kind != OPERATION_COUNT);  // it is the number of kinds, none of them
        break;
    }
    return check.status;
}
