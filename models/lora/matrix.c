// matrix.c - see matrix.h. A product runs by panels of 16 columns: four rows of left and one panel
// make 64 sums that stay in registers, and a panel's rows lie side by side in memory, whatever the
// width of the matrix.

#include "models/lora/matrix.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/checked.h"
#include "models/lora/matrix_body.h"

// At 1e9 multiply-adds a second, less than any processor with AVX2 does, this is 20 ms.
#define UNITS_BETWEEN_ASKING 20000000u

bool work_on(struct work *self, uint64_t units)
{
    assert(self != NULL);
    if (self->status != STATUS_OK) return false;
    self->units += units;
    if (self->units < UNITS_BETWEEN_ASKING) return true;
    self->units = 0;
    const struct lora_stop *stop = self->stop;
    if (stop == NULL || stop->should_stop == NULL || !stop->should_stop(stop->context)) return true;
    work_fail(self, STATUS_CANCELLED, "merging was cancelled");
    return false;
}

void work_fail(struct work *self, enum status status, const char *format, ...)
{
    char text[ERROR_MESSAGE_BYTES];
    va_list arguments;
    assert(status != STATUS_OK);
    if (self->status != STATUS_OK) return;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    self->status = error_set(self->error, status, "%s", text);
}

// ---------------------------------------------------------------------------------------------
// For every processor, and for AVX2

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))

AVX2 static void panel_multiply_avx2(float *out, uint64_t out_step, const float *left,
                                     uint64_t rows, uint64_t depth, const float *panel,
                                     uint32_t width)
{
    panel_multiply(out, out_step, left, rows, depth, panel, width);
}

AVX2 static uint64_t load_f16_avx2(float *out, const uint8_t *in, uint64_t count)
{
    return load_lanes(out, in, 1, count);
}

AVX2 static uint64_t load_bf16_avx2(float *out, const uint8_t *in, uint64_t count)
{
    return load_lanes(out, in, 0, count);
}

AVX2 static uint64_t store_f16_avx2(uint8_t *out, const float *in, uint64_t count)
{
    return store_lanes(out, in, 1, count);
}

AVX2 static uint64_t store_bf16_avx2(uint8_t *out, const float *in, uint64_t count)
{
    return store_lanes(out, in, 0, count);
}

AVX2 static uint64_t add_avx2(float *to, const float *what, float scale, uint64_t count)
{
    return add_lanes(to, what, scale, count);
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") != 0;
}
#endif

static void multiply_panel(float *out, uint64_t out_step, const float *left, uint64_t rows,
                           uint64_t depth, const float *panel, uint32_t width)
{
#if defined(__x86_64__)
    if (has_avx2()) {
        panel_multiply_avx2(out, out_step, left, rows, depth, panel, width);
        return;
    }
#endif
    panel_multiply(out, out_step, left, rows, depth, panel, width);
}

static uint64_t load_halves(float *out, const uint8_t *in, bool is_f16, uint64_t count)
{
#if defined(__x86_64__)
    if (has_avx2()) {
        return is_f16 ? load_f16_avx2(out, in, count) : load_bf16_avx2(out, in, count);
    }
#endif
    return load_lanes(out, in, is_f16, count);
}

static uint64_t store_halves(uint8_t *out, const float *in, bool is_f16, uint64_t count)
{
#if defined(__x86_64__)
    if (has_avx2()) {
        return is_f16 ? store_f16_avx2(out, in, count) : store_bf16_avx2(out, in, count);
    }
#endif
    return store_lanes(out, in, is_f16, count);
}

static uint64_t add(float *to, const float *what, float scale, uint64_t count)
{
#if defined(__x86_64__)
    if (has_avx2()) return add_avx2(to, what, scale, count);
#endif
    return add_lanes(to, what, scale, count);
}

// ---------------------------------------------------------------------------------------------
// Elements

void reals_load(float *out, const void *in, enum dtype dtype, uint64_t count)
{
    assert(dtype_is_real(dtype));
    uint64_t done = 0;
    if (dtype != DTYPE_F32) done = load_halves(out, in, dtype == DTYPE_F16, count);
    dtype_convert(out + done, DTYPE_F32, (const uint8_t *)in + done * dtype_bytes(dtype), dtype,
                  count - done);
}

void reals_store(void *out, enum dtype dtype, const float *in, uint64_t count)
{
    assert(dtype_is_real(dtype));
    uint64_t done = 0;
    if (dtype != DTYPE_F32) done = store_halves(out, in, dtype == DTYPE_F16, count);
    dtype_convert((uint8_t *)out + done * dtype_bytes(dtype), dtype, in + done, DTYPE_F32,
                  count - done);
}

void reals_add(float *to, const float *what, float scale, uint64_t count)
{
    uint64_t i = add(to, what, scale, count);
    for (; i < count; i++) to[i] += scale * what[i];
}

static uint64_t columns_of(const struct tensor *tensor)
{
    uint64_t columns = 1;
    for (uint32_t i = 1; i < tensor->rank; i++) columns *= tensor->dims[i];
    return columns;
}

void reals_load_rows(float *out, const struct tensor *tensor, uint64_t first, uint64_t rows)
{
    assert(tensor->rank >= 1);
    assert(first + rows <= tensor->dims[0]);
    uint64_t columns = columns_of(tensor);
    uint64_t size = dtype_bytes(tensor->dtype);
    const uint8_t *data = tensor->data;
    if (!tensor->transposed) {
        reals_load(out, data + first * columns * size, tensor->dtype, rows * columns);
        return;
    }
    for (uint64_t i = 0; i < rows; i++) {
        for (uint64_t j = 0; j < columns; j++) {
            const uint8_t *at = data + (j * tensor->dims[0] + first + i) * size;
            dtype_convert(out + i * columns + j, DTYPE_F32, at, tensor->dtype, 1);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Matrices

struct matrix matrix_create(struct work *work, uint64_t rows, uint64_t columns)
{
    struct matrix self = {.rows = rows, .columns = columns};
    uint64_t count = 0;
    if (work->status != STATUS_OK) return (struct matrix){0};
    if (checked_multiply(rows, columns, &count) && count < SIZE_MAX / sizeof(float)) {
        self.values = calloc(count + 1, sizeof(float));
    }
    if (self.values != NULL) return self;
    work_fail(work, STATUS_RESOURCE_EXHAUSTED, "no memory for %llu x %llu numbers",
              (unsigned long long)rows, (unsigned long long)columns);
    return (struct matrix){0};
}

void matrix_free(struct matrix *self)
{
    assert(self != NULL);
    free(self->values);
    *self = (struct matrix){0};
}

struct matrix matrix_read(struct work *work, const struct tensor *tensor)
{
    assert(tensor != NULL);
    struct matrix self = matrix_create(work, tensor->dims[0], columns_of(tensor));
    if (self.values != NULL) reals_load_rows(self.values, tensor, 0, self.rows);
    return self;
}

struct matrix matrix_read_turned(struct work *work, const struct tensor *tensor)
{
    struct matrix straight = matrix_read(work, tensor);
    struct matrix self = matrix_create(work, straight.columns, straight.rows);
    if (self.values != NULL) {
        for (uint64_t i = 0; i < self.rows * self.columns; i++) {
            uint64_t row = i / self.columns;
            self.values[i] = straight.values[i % self.columns * straight.columns + row];
        }
    }
    matrix_free(&straight);
    return self;
}

struct panels panels_create(struct work *work, const float *values, uint64_t rows, uint64_t columns)
{
    uint64_t count = (columns + PANEL - 1) / PANEL;
    struct matrix room = matrix_create(work, count * PANEL, rows);
    if (room.values == NULL || values == NULL) {
        matrix_free(&room);
        return (struct panels){0};
    }
    for (uint64_t i = 0; i < count; i++) {
        uint64_t width = columns - i * PANEL < PANEL ? columns - i * PANEL : PANEL;
        for (uint64_t k = 0; k < rows; k++) {
            memcpy(room.values + (i * rows + k) * PANEL, values + k * columns + i * PANEL,
                   width * sizeof(float));
        }
    }
    return (struct panels){room.values, rows, columns};
}

void panels_free(struct panels *self)
{
    assert(self != NULL);
    free(self->values);
    *self = (struct panels){0};
}

void matrix_multiply(struct work *work, float *out, const float *left, uint64_t rows,
                     const struct panels *right)
{
    if (work->status != STATUS_OK) return;
    assert(out != NULL);
    assert(left != NULL);
    uint64_t depth = right->rows;
    for (uint64_t column = 0; column < right->columns; column += PANEL) {
        uint64_t rest = right->columns - column;
        if (!work_on(work, rows * depth * PANEL)) return;
        multiply_panel(out + column, right->columns, left, rows, depth,
                       right->values + column * depth,
                       rest < PANEL ? (uint32_t)rest : (uint32_t)PANEL);
    }
}

struct matrix matrix_product(struct work *work, const struct matrix *left,
                             const struct matrix *right)
{
    assert(work->status != STATUS_OK || left->columns == right->rows);
    struct matrix out = matrix_create(work, left->rows, right->columns);
    struct panels panels = panels_create(work, right->values, right->rows, right->columns);
    if (work->status == STATUS_OK) {
        matrix_multiply(work, out.values, left->values, left->rows, &panels);
    }
    panels_free(&panels);
    return out;
}
