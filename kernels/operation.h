// operation.h - what is true of every operation on every device: its checks and its cost.

#ifndef KERNELS_OPERATION_H
#define KERNELS_OPERATION_H

#include <stddef.h>

#include "kernels/device.h"

// The most images x rows x columns, or rows of a matrix, that one operand may have.
#define OPERATION_ROWS_MAX 0x7fffffffu

// What an operation is called in messages, "convolution".
// Thread:    any.
const char *operation_name(enum operation_kind kind);

// The same with its shape, "convolution 3x3 512>256 64x64".
// Thread:    any.
void operation_describe(const struct operation *op, char *out, size_t out_bytes);

// Height and width of a convolution's output; 0 when the input is too small.
// Thread:    any.
uint32_t convolution_output_h(const struct convolution *op);
uint32_t convolution_output_w(const struct convolution *op);

// Checks every operand of the operation against its own shapes, against its weights, and against
// what lives in the program now.
// Errors:    INVALID_ARGUMENT that names the operation, the operand and the numbers.
// Thread:    the program's builder's.
enum status operation_check(const struct program *program, const struct operation *op,
                            struct error *error);

// Multiplications and additions of a checked operation; UINT64_MAX when they are beyond counting.
// Thread:    any.
uint64_t operation_cost(const struct operation *op);

// The magnitude from which on a float32 becomes infinite when it is rounded to the type, f32, f16
// or bf16: half a step above the largest number of the type.
// Thread:    any.
float operation_limit(enum dtype dtype);

#endif  // KERNELS_OPERATION_H
