// driver_cuda_blas.c - driver_blas.h over cuBLASLt, which is opened when it is asked for: it is
// several hundred MB that a machine has or has not.
//
// cuBLASLt is column-major. A row-major [r, c] of some pitch is its [c, r] with that pitch as
// leading dimension, so c = a b^T is asked for as
//
//     D [n, m] = op(A) [n, k] * op(B) [k, m],  A = b as [k, n], transposed; B = a as [k, m]
//
// which has the bias along D's rows, where the epilogue adds it. Activations are not left to it: it
// has no QuickGELU, and its GELU is the one by tanh.
//
// The heuristics are asked once for a shape, at a fixed m, and the first algorithm wins that can be
// had with the workspace at every m. Sums of a split k go through the workspace, in order, never
// into the output by whoever comes first.

#include "kernels/cuda/driver_blas.h"

#include <assert.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/driver_cuda.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

#define STRING_OF(number) STRING(number)
#define STRING(text) #text
#define LIBRARY "libcublasLt.so." STRING_OF(CUBLAS_VER_MAJOR)

#define REFERENCE_ROWS 154   // a text and its two halves: what the heuristics are asked for
#define CANDIDATES_MAX 16    // that they may name
#define ALIGNMENT_BYTES 16u  // of every operand

// The library's functions that we use, under their names without the prefix.
#define FUNCTIONS(each)                                                                            \
    each(Create) each(Destroy) each(GetVersion) each(MatmulDescCreate) each(MatmulDescDestroy)     \
        each(MatmulDescSetAttribute) each(MatrixLayoutCreate) each(MatrixLayoutDestroy)            \
            each(MatmulPreferenceCreate) each(MatmulPreferenceDestroy)                             \
                each(MatmulPreferenceSetAttribute) each(MatmulAlgoGetHeuristic)                    \
                    each(MatmulAlgoCheck) each(Matmul) each(GetStatusString)

struct functions {
#define DECLARE(name) __typeof__ (&cublasLt##name)(name);
    FUNCTIONS(DECLARE)
#undef DECLARE
};

struct gpu_blas_choice {
    struct gpu_blas_choice *next;  // in the list
    struct gpu_blas_shape shape;   // for which it was made
    bool is_usable;                // an algorithm was found
    cublasLtMatmulAlgo_t algo;     // with its tile and its split
};

struct gpu_blas {
    struct functions call;            // of the library
    void *library;                    // opened
    struct gpu_card *card;            // whose context the handle is of
    cublasLtHandle_t handle;          // may be used by several threads at once
    char name[32];                    // for people
    pthread_mutex_t lock;             // guards choices, which are never taken back
    struct gpu_blas_choice *choices;  // by shape
};

// A product as the library wants it said.
struct description {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c;  // the library's A and B, and its C and D, which are one
};

// ---------------------------------------------------------------------------------------------
// The library

void gpu_blas_close(struct gpu_blas **self_p)
{
    assert(self_p != NULL);
    struct gpu_blas *self = *self_p;
    if (self == NULL) return;
    while (self->choices != NULL) {
        struct gpu_blas_choice *first = self->choices;
        self->choices = first->next;
        free(first);
    }
    if (self->handle != NULL) self->call.Destroy(self->handle);
    if (self->library != NULL) dlclose(self->library);
    pthread_mutex_destroy(&self->lock);
    free(self);
    *self_p = NULL;
}

static enum status find_functions(struct gpu_blas *self, struct error *error)
{
    const char *missing = NULL;
    void *symbol = NULL;
#define FIND(name)                                                                                 \
    symbol = dlsym(self->library, "cublasLt" #name);                                               \
    if (symbol == NULL) missing = "cublasLt" #name;                                                \
    memcpy(&self->call.name, &symbol, sizeof symbol);
    FUNCTIONS(FIND)
#undef FIND
    if (missing == NULL) return STATUS_OK;
    return error_set(error, STATUS_UNAVAILABLE, "cuBLASLt lacks %s", missing);
}

static enum status open_library(struct gpu_blas *self, struct error *error)
{
    const char *path = getenv("LUNA_CUBLASLT");
    self->library = dlopen(path != NULL ? path : LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (self->library == NULL) {
        const char *why = dlerror();
        return error_set(error, STATUS_UNAVAILABLE, "cuBLASLt cannot be opened: %s",
                         why != NULL ? why : "no reason given");
    }
    enum status status = find_functions(self, error);
    if (status != STATUS_OK) return status;
    size_t version = self->call.GetVersion();
    if (version / 10000 != CUBLAS_VER_MAJOR) {
        return error_set(error, STATUS_UNAVAILABLE, "cuBLASLt is of version %zu, %d is needed",
                         version / 10000, CUBLAS_VER_MAJOR);
    }
    snprintf(self->name, sizeof self->name, "cuBLASLt %zu.%zu.%zu", version / 10000,
             version / 100 % 100, version % 100);
    return STATUS_OK;
}

enum status gpu_blas_open(struct gpu_blas **out, struct gpu_card *card, struct error *error)
{
    assert(out != NULL);
    assert(card != NULL);
    struct gpu_blas *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for cuBLASLt");
    self->card = card;
    pthread_mutex_init(&self->lock, NULL);
    enum status status = open_library(self, error);
    if (status != STATUS_OK) goto done;
    cublasStatus_t result = CUBLAS_STATUS_NOT_INITIALIZED;
    if (cudaSetDevice(card->number) == cudaSuccess) result = self->call.Create(&self->handle);
    if (result != CUBLAS_STATUS_SUCCESS) {
        self->handle = NULL;
        status = error_set(error, STATUS_UNAVAILABLE, "cuBLASLt does not start: %s",
                           self->call.GetStatusString(result));
        goto done;
    }
    *out = self;
    self = NULL;

done:
    gpu_blas_close(&self);
    return status;
}

const char *gpu_blas_name(const struct gpu_blas *self)
{
    assert(self != NULL);
    return self->name;
}

// ---------------------------------------------------------------------------------------------
// Descriptions

static cudaDataType_t type_of(enum dtype type)
{
    if (type == DTYPE_F32) return CUDA_R_32F;
    return type == DTYPE_F16 ? CUDA_R_16F : CUDA_R_16BF;
}

static void forget(const struct gpu_blas *self, struct description *what)
{
    if (what->a != NULL) self->call.MatrixLayoutDestroy(what->a);
    if (what->b != NULL) self->call.MatrixLayoutDestroy(what->b);
    if (what->c != NULL) self->call.MatrixLayoutDestroy(what->c);
    if (what->operation != NULL) self->call.MatmulDescDestroy(what->operation);
}

static cublasStatus_t set(const struct gpu_blas *self, cublasLtMatmulDesc_t operation,
                          cublasLtMatmulDescAttributes_t name, const void *value, size_t bytes)
{
    return self->call.MatmulDescSetAttribute(operation, name, value, bytes);
}

// Sums are float32 always; float32 operands are not rounded to anything less.
static cublasStatus_t describe_operation(const struct gpu_blas *self, cublasLtMatmulDesc_t *out,
                                         enum dtype type, bool has_bias)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cublasOperation_t straight = CUBLAS_OP_N;
    const cublasLtEpilogue_t epilogue =
        has_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    const cudaDataType_t bias_type = CUDA_R_32F;
    cublasStatus_t result = self->call.MatmulDescCreate(
        out, type == DTYPE_F32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (result != CUBLAS_STATUS_SUCCESS) *out = NULL;
    if (result == CUBLAS_STATUS_SUCCESS) {
        result = set(self, *out, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    }
    if (result == CUBLAS_STATUS_SUCCESS) {
        result = set(self, *out, CUBLASLT_MATMUL_DESC_TRANSB, &straight, sizeof straight);
    }
    if (result == CUBLAS_STATUS_SUCCESS) {
        result = set(self, *out, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    }
    if (result == CUBLAS_STATUS_SUCCESS && has_bias) {
        result = set(self, *out, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type, sizeof bias_type);
    }
    return result;
}

static cublasStatus_t describe_matrix(const struct gpu_blas *self, cublasLtMatrixLayout_t *out,
                                      enum dtype type, uint64_t rows, uint64_t columns,
                                      uint32_t pitch)
{
    cublasStatus_t result =
        self->call.MatrixLayoutCreate(out, type_of(type), rows, columns, (int64_t)pitch);
    if (result != CUBLAS_STATUS_SUCCESS) *out = NULL;
    return result;
}

// forget() follows, whatever the result.
static cublasStatus_t describe(const struct gpu_blas *self, const struct gpu_blas_shape *shape,
                               uint32_t m, struct description *out)
{
    *out = (struct description){.operation = NULL};
    cublasStatus_t result = describe_operation(self, &out->operation, shape->type, shape->has_bias);
    if (result == CUBLAS_STATUS_SUCCESS) {
        result = describe_matrix(self, &out->a, shape->type, shape->k, shape->n, shape->b_pitch);
    }
    if (result == CUBLAS_STATUS_SUCCESS) {
        result = describe_matrix(self, &out->b, shape->type, shape->k, m, shape->a_pitch);
    }
    if (result == CUBLAS_STATUS_SUCCESS) {
        result = describe_matrix(self, &out->c, DTYPE_F32, shape->n, m, shape->n);
    }
    return result;
}

// ---------------------------------------------------------------------------------------------
// Choices

static cublasStatus_t describe_preference(const struct gpu_blas *self,
                                          cublasLtMatmulPreference_t preference)
{
    const uint64_t workspace_bytes = GPU_BLAS_WORKSPACE_BYTES;
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint32_t alignment = ALIGNMENT_BYTES;
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasStatus_t result = self->call.MatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
        sizeof workspace_bytes);
    if (result == CUBLAS_STATUS_SUCCESS) {
        result = self->call.MatmulPreferenceSetAttribute(
            preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions);
    }
    for (uint32_t i = 0; i < 4 && result == CUBLAS_STATUS_SUCCESS; i++) {
        result = self->call.MatmulPreferenceSetAttribute(preference, alignments[i], &alignment,
                                                         sizeof alignment);
    }
    return result;
}

// What the heuristics name for the reference, best first; returns how many.
static int ask(const struct gpu_blas *self, const struct gpu_blas_shape *shape,
               cublasLtMatmulHeuristicResult_t candidates[CANDIDATES_MAX])
{
    struct description what;
    cublasLtMatmulPreference_t preference = NULL;
    int count = 0;
    cublasStatus_t result = describe(self, shape, REFERENCE_ROWS, &what);
    if (result == CUBLAS_STATUS_SUCCESS) result = self->call.MatmulPreferenceCreate(&preference);
    if (result == CUBLAS_STATUS_SUCCESS) {
        result = describe_preference(self, preference);
        if (result == CUBLAS_STATUS_SUCCESS) {
            result = self->call.MatmulAlgoGetHeuristic(self->handle, what.operation, what.a, what.b,
                                                       what.c, what.c, preference, CANDIDATES_MAX,
                                                       candidates, &count);
        }
        self->call.MatmulPreferenceDestroy(preference);
    }
    forget(self, &what);
    return result == CUBLAS_STATUS_SUCCESS ? count : 0;
}

// Whether an algorithm does every product of the shape within the workspace.
static bool serves(const struct gpu_blas *self, const struct gpu_blas_shape *shape,
                   const cublasLtMatmulAlgo_t *algo)
{
    bool good = true;
    for (uint32_t m = 1; m <= GPU_BLAS_ROWS_MAX && good; m++) {
        struct description what;
        cublasLtMatmulHeuristicResult_t found = {.workspaceSize = 0};
        cublasStatus_t result = describe(self, shape, m, &what);
        if (result == CUBLAS_STATUS_SUCCESS) {
            result = self->call.MatmulAlgoCheck(self->handle, what.operation, what.a, what.b,
                                                what.c, what.c, algo, &found);
        }
        forget(self, &what);
        good = result == CUBLAS_STATUS_SUCCESS && found.workspaceSize <= GPU_BLAS_WORKSPACE_BYTES;
    }
    return good;
}

// The first that serves, with the bias and without.
static void choose(const struct gpu_blas *self, struct gpu_blas_choice *choice)
{
    cublasLtMatmulHeuristicResult_t candidates[CANDIDATES_MAX];
    struct gpu_blas_shape bare = choice->shape;
    bare.has_bias = false;
    int count = ask(self, &choice->shape, candidates);
    for (int i = 0; i < count && !choice->is_usable; i++) {
        if (candidates[i].state != CUBLAS_STATUS_SUCCESS) continue;
        choice->algo = candidates[i].algo;
        choice->is_usable =
            serves(self, &bare, &choice->algo) &&
            (!choice->shape.has_bias || serves(self, &choice->shape, &choice->algo));
    }
}

static bool is_same_shape(const struct gpu_blas_shape *a, const struct gpu_blas_shape *b)
{
    return a->n == b->n && a->k == b->k && a->b_pitch == b->b_pitch && a->a_pitch == b->a_pitch &&
           a->type == b->type && a->has_bias == b->has_bias;
}

// The caller holds the lock.
static struct gpu_blas_choice *find(const struct gpu_blas *self, const struct gpu_blas_shape *shape)
{
    for (struct gpu_blas_choice *at = self->choices; at != NULL; at = at->next) {
        if (is_same_shape(&at->shape, shape)) return at;
    }
    return NULL;
}

const struct gpu_blas_choice *gpu_blas_choose(struct gpu_blas *self,
                                              const struct gpu_blas_shape *shape)
{
    assert(self != NULL);
    assert(shape->n > 0 && shape->k > 0);
    pthread_mutex_lock(&self->lock);
    struct gpu_blas_choice *choice = find(self, shape);
    if (choice == NULL) choice = calloc(1, sizeof *choice);
    if (choice != NULL && choice->shape.n == 0) {
        choice->shape = *shape;
        cudaSetDevice(self->card->number);
        choose(self, choice);
        choice->next = self->choices;
        self->choices = choice;
    }
    pthread_mutex_unlock(&self->lock);
    return choice != NULL && choice->is_usable ? choice : NULL;
}

// ---------------------------------------------------------------------------------------------
// Products

void gpu_blas_multiply(struct gpu_blas *self, struct gpu_stream *stream,
                       const struct gpu_blas_product *product)
{
    assert(self != NULL);
    assert(product->choice != NULL);
    assert(product->m >= 1 && product->m <= GPU_BLAS_ROWS_MAX);
    const float one = 1;
    const float zero = 0;
    struct gpu_blas_shape shape = product->choice->shape;
    struct description what;
    assert(product->bias == NULL || shape.has_bias);
    shape.has_bias = product->bias != NULL;
    cublasStatus_t result = describe(self, &shape, product->m, &what);
    if (result == CUBLAS_STATUS_SUCCESS && shape.has_bias) {
        result = set(self, what.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &product->bias,
                     sizeof product->bias);
    }
    if (result == CUBLAS_STATUS_SUCCESS) {
        result = self->call.Matmul(self->handle, what.operation, &one, product->b, what.a,
                                   product->a, what.b, &zero, product->c, what.c, product->c,
                                   what.c, &product->choice->algo, product->workspace,
                                   GPU_BLAS_WORKSPACE_BYTES, gpu_stream_handle(stream));
    }
    forget(self, &what);
    if (result != CUBLAS_STATUS_SUCCESS) {
        gpu_stream_fail(stream, "cublasLtMatmul", self->call.GetStatusString(result));
    } else {
        gpu_stream_note(stream, "cublasLtMatmul");
    }
}

#else  // a toolkit without cuBLASLt's header

enum status gpu_blas_open(struct gpu_blas **out, struct gpu_card *card, struct error *error)
{
    assert(out != NULL);
    assert(card != NULL);
    return error_set(error, STATUS_UNAVAILABLE, "this build knows nothing of cuBLASLt");
}

void gpu_blas_close(struct gpu_blas **self_p)
{
    assert(*self_p == NULL);
}

const char *gpu_blas_name(const struct gpu_blas *self)
{
    assert(self != NULL);
    return "";
}

const struct gpu_blas_choice *gpu_blas_choose(struct gpu_blas *self,
                                              const struct gpu_blas_shape *shape)
{
    assert(self != NULL);
    assert(shape != NULL);
    return NULL;
}

void gpu_blas_multiply(struct gpu_blas *self, struct gpu_stream *stream,
                       const struct gpu_blas_product *product)
{
    assert(self != NULL);
    assert(product != NULL);
    gpu_stream_fail(stream, "cublasLtMatmul", "this build knows nothing of cuBLASLt");
}

#endif
