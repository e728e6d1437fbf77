// driver_blas.h - products of matrices by a library of the vendor's. Part of driver.h, implemented
// beside it: driver_cuda_blas.c over cuBLASLt, where the machine has it, and
// driver_emulated_blas.cpp, which stands in with our own kernels so that what surrounds it runs.
//
//     c[m, n] = a[m, k] * b[n, k]^T (+ bias[n]), all of them row-major; b is a weight
//
// For each shape of weight one algorithm, with its tile and its split of k, is chosen once: by
// shape and type alone, never by timing, and only one that takes every m from 1 to
// GPU_BLAS_ROWS_MAX. So a row has the same bytes whatever rows are beside it, as far as the
// library's algorithm keeps an order of its own; tests/gpu checks that on the card.

#ifndef KERNELS_CUDA_DRIVER_BLAS_H
#define KERNELS_CUDA_DRIVER_BLAS_H

#include "base/dtype.h"
#include "kernels/cuda/driver.h"

#ifdef __cplusplus
extern "C" {
#endif

// The most rows of one product: larger ones are made in several.
#define GPU_BLAS_ROWS_MAX 384u

// Device memory that one product may use beside its operands: of 4 partial sums of 384 x 5120.
#define GPU_BLAS_WORKSPACE_BYTES (UINT64_C(32) << 20)

struct gpu_blas;
struct gpu_blas_choice;

// Opens the library for a card: $LUNA_CUBLASLT, or the one that the system finds.
// Ownership: on success the caller owns *out.
// Errors:    UNAVAILABLE says why not; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status gpu_blas_open(struct gpu_blas **out, struct gpu_card *card, struct error *error);

// Closes it; nothing runs, and its choices are not used any more. NULL is allowed.
// Thread:    any.
void gpu_blas_close(struct gpu_blas **self_p);

// "cuBLASLt 13.1.0". The result lives as long as the library is open.
// Thread:    any.
const char *gpu_blas_name(const struct gpu_blas *self);

struct gpu_blas_shape {
    uint32_t n, k, b_pitch;  // of the weight; elements from row to row
    uint32_t a_pitch;        // of what it is multiplied with
    enum dtype type;         // of a and b: f16, bf16 or f32; c is f32
    bool has_bias;           // may be added, of f32
};

// How products of a shape are made; NULL when no algorithm serves. The result lives as long as the
// library is open.
// Thread:    any.
const struct gpu_blas_choice *gpu_blas_choose(struct gpu_blas *self,
                                              const struct gpu_blas_shape *shape);

struct gpu_blas_product {
    const struct gpu_blas_choice *choice;  // for the weight
    const void *a, *b;                     // device memory, aligned to 16 bytes
    float *c;                              // likewise, dense
    const float *bias;                     // NULL: none
    void *workspace;                       // GPU_BLAS_WORKSPACE_BYTES
    uint32_t m;                            // 1 to GPU_BLAS_ROWS_MAX
};

// Enqueues a product.
// Thread:    the stream's user.
void gpu_blas_multiply(struct gpu_blas *self, struct gpu_stream *stream,
                       const struct gpu_blas_product *product);

#ifdef __cplusplus
}
#endif

#endif  // KERNELS_CUDA_DRIVER_BLAS_H
