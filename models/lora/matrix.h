// matrix.h - the little linear algebra that merging takes: matrices of floats, their product, and
// how tensors become them.
//
// Everything works on a `work`, which keeps the first error (no memory, cancelled) and makes all
// that follows do nothing; whoever started it asks for its status at the end. Sums run in ascending
// order of k in fp32, so a result depends on the operands alone.
//
// Thread of everything here: that of its work.

#ifndef MODELS_LORA_MATRIX_H
#define MODELS_LORA_MATRIX_H

#include "models/lora/lora.h"

struct work {
    const struct lora_stop *stop;  // asked now and then
    uint64_t units;                // of work since it was asked
    struct error *error;
    enum status status;  // the first error, or OK
};

// Counts work done, about one unit for a multiply-add; asks stop when it is time. False when there
// is nothing more to do.
bool work_on(struct work *self, uint64_t units);

// Keeps an error if it is the first.
void work_fail(struct work *self, enum status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

// Row-major floats.
struct matrix {
    float *values;  // NULL in one that is not there
    uint64_t rows, columns;
};

// Makes a matrix of zeros; an empty one on failure.
// Ownership: the caller frees it with matrix_free, which an empty one survives.
struct matrix matrix_create(struct work *work, uint64_t rows, uint64_t columns);
void matrix_free(struct matrix *self);

// Reads a whole tensor as a matrix: its first dimension, and all others flat.
// Ownership: as matrix_create.
struct matrix matrix_read(struct work *work, const struct tensor *tensor);

// The same, turned.
struct matrix matrix_read_turned(struct work *work, const struct tensor *tensor);

// A matrix that stands on the right of products, in panels of columns.
struct panels {
    float *values;  // [columns / PANEL rounded up][rows][PANEL], padded with zeros
    uint64_t rows, columns;
};
#define PANEL 16u

// Packs a matrix of `rows` rows that are `columns` floats each.
// Ownership: the caller frees it with panels_free, which an empty one survives.
struct panels panels_create(struct work *work, const float *values, uint64_t rows,
                            uint64_t columns);
void panels_free(struct panels *self);

// out [rows, right->columns] = left [rows, right->rows] right. out overlaps nothing.
void matrix_multiply(struct work *work, float *out, const float *left, uint64_t rows,
                     const struct panels *right);

// left right, both matrices.
// Ownership: as matrix_create.
struct matrix matrix_product(struct work *work, const struct matrix *left,
                             const struct matrix *right);

// Elements of f32, f16 or bf16 to floats, and back, rounded to nearest even; as dtype_convert, only
// fast.
void reals_load(float *out, const void *in, enum dtype dtype, uint64_t count);
void reals_store(void *out, enum dtype dtype, const float *in, uint64_t count);

// to += scale what.
void reals_add(float *to, const float *what, float scale, uint64_t count);

// Rows first to first + rows - 1 of a tensor of rank 1 (rows of one element) or more.
void reals_load_rows(float *out, const struct tensor *tensor, uint64_t first, uint64_t rows);

#endif  // MODELS_LORA_MATRIX_H
