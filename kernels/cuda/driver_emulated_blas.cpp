// driver_emulated_blas.cpp - driver_blas.h for the emulated device: our own products under the
// library's interface, so that what surrounds a library's product is what the tests run. It holds
// callers to what a library would: rows, alignment, a workspace that is there.

#include <pthread.h>

#include <cassert>
#include <cstdlib>
#include <list>

#include "kernels/cuda/driver_blas.h"
#include "kernels/cuda/launch.h"

struct gpu_blas_choice {
    struct gpu_blas_shape shape;
};

struct gpu_blas {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    std::list<gpu_blas_choice> choices;  // whose addresses stay
};

namespace
{

constexpr uint64_t WRITTEN_BYTES = 256;  // at either end of the workspace

bool is_aligned(const void *at)
{
    return reinterpret_cast<uintptr_t>(at) % 16 == 0;
}

void multiply(struct gpu_stream *stream, const struct gpu_blas_product *product)
{
    const struct gpu_blas_shape &shape = product->choice->shape;
    if (shape.type == DTYPE_F32) {
        assert(shape.a_pitch == shape.k);
        struct gpu_product_plain plain = {};
        plain.a = static_cast<const float *>(product->a);
        plain.b = static_cast<const float *>(product->b);
        plain.c = product->c;
        plain.m = product->m;
        plain.n = shape.n;
        plain.k = shape.k;
        plain.b_pitch = shape.b_pitch;
        gpu_launch_multiply_plain(stream, &plain);
        return;
    }
    struct gpu_product_mma mma = {};
    mma.a = product->a;
    mma.b = product->b;
    mma.c = product->c;
    mma.m = product->m;
    mma.n = shape.n;
    mma.k = shape.k;
    mma.a_pitch = shape.a_pitch;
    mma.b_pitch = shape.b_pitch;
    mma.parts = 1;
    mma.slices = gpu_product_slices(shape.n, shape.k);
    mma.is_bf16 = shape.type == DTYPE_BF16;
    gpu_launch_multiply_mma(stream, &mma);
}

}  // namespace

extern "C" {

enum status gpu_blas_open(struct gpu_blas **out, struct gpu_card *card, struct error *error)
{
    static_cast<void>(card);
    // As on a machine that has no such library.
    if (getenv("LUNA_CUBLASLT") != nullptr) {
        return error_set(error, STATUS_UNAVAILABLE, "cuBLASLt cannot be opened: %s is none",
                         getenv("LUNA_CUBLASLT"));
    }
    *out = new gpu_blas;
    return STATUS_OK;
}

void gpu_blas_close(struct gpu_blas **self_p)
{
    delete *self_p;
    *self_p = nullptr;
}

const char *gpu_blas_name(const struct gpu_blas *self)
{
    static_cast<void>(self);
    return "our own products in the place of cuBLASLt";
}

const struct gpu_blas_choice *gpu_blas_choose(struct gpu_blas *self,
                                              const struct gpu_blas_shape *shape)
{
    pthread_mutex_lock(&self->lock);
    self->choices.push_back({*shape});
    const struct gpu_blas_choice *made = &self->choices.back();
    pthread_mutex_unlock(&self->lock);
    return made;
}

void gpu_blas_multiply(struct gpu_blas *self, struct gpu_stream *stream,
                       const struct gpu_blas_product *product)
{
    static_cast<void>(self);
    assert(product->m >= 1 && product->m <= GPU_BLAS_ROWS_MAX);
    assert(is_aligned(product->a) && is_aligned(product->b) && is_aligned(product->c));
    assert(product->bias == nullptr || product->choice->shape.has_bias);
    multiply(stream, product);
    // The workspace is the library's to overwrite, from its first byte to its last.
    gpu_zero(stream, product->workspace, WRITTEN_BYTES);
    gpu_zero(stream,
             static_cast<char *>(product->workspace) + GPU_BLAS_WORKSPACE_BYTES - WRITTEN_BYTES,
             WRITTEN_BYTES);
    if (product->bias == nullptr) return;
    struct gpu_finish finish = {};
    finish.sums = product->c;
    finish.bias = product->bias;
    finish.output = product->c;
    finish.addends = 1;
    finish.storage = DTYPE_F32;
    finish.rows = product->m;
    finish.k = product->choice->shape.n;
    gpu_launch_finish_linear(stream, &finish);
}

}  // extern "C"
