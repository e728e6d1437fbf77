// fake_cublaslt.c - multiplies on the host, at once, column-major as cuBLASLt does, from nothing
// but what its descriptors were told.

#include "tests/emulation/fake_cublaslt.h"

#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"

struct operation {
    cublasComputeType_t compute;
    cublasOperation_t a, b;
    cublasLtEpilogue_t epilogue;
    const float *bias;
    cudaDataType_t bias_type;
};

struct matrix {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t pitch;
};

struct preference {
    uint64_t workspace_bytes;
    uint32_t reductions;
    uint32_t alignments;  // how many of the four are 16
};

static struct fake_cublaslt fake;

struct fake_cublaslt *fake_cublaslt(void)
{
    return &fake;
}

static void complain(const char *what)
{
    if (fake.complaint == NULL) fake.complaint = what;
}

static cublasStatus_t begin(void)
{
    fake.calls += 1;
    return fake.calls == fake.fail_at ? CUBLAS_STATUS_INTERNAL_ERROR : CUBLAS_STATUS_SUCCESS;
}

// A new object of so many bytes, or a failure.
static cublasStatus_t make(void **out, size_t bytes)
{
    cublasStatus_t status = begin();
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    *out = calloc(1, bytes);
    fake.live += 1;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t drop(void *object)
{
    if (object == NULL) complain("something that does not exist is destroyed");
    free(object);
    fake.live -= 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *out)
{
    return make((void **)out, 1);
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    return drop(handle);
}

size_t cublasLtGetVersion(void)
{
    return fake.version;
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS ? "success" : "what the test wanted";
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    if (scale != CUDA_R_32F) complain("the scale is float32");
    cublasStatus_t status = make((void **)out, sizeof(struct operation));
    if (status == CUBLAS_STATUS_SUCCESS) {
        *(struct operation *)(void *)*out = (struct operation){.compute = compute};
    }
    return status;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation)
{
    return drop(operation);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t what,
                                              cublasLtMatmulDescAttributes_t name,
                                              const void *value, size_t bytes)
{
    struct operation *self = (struct operation *)(void *)what;
    cublasStatus_t status = begin();
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    void *place = NULL;
    size_t wanted = 4;
    if (name == CUBLASLT_MATMUL_DESC_TRANSA) place = &self->a;
    if (name == CUBLASLT_MATMUL_DESC_TRANSB) place = &self->b;
    if (name == CUBLASLT_MATMUL_DESC_EPILOGUE) place = &self->epilogue;
    if (name == CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE) place = &self->bias_type;
    if (name == CUBLASLT_MATMUL_DESC_BIAS_POINTER) {
        place = &self->bias;
        wanted = sizeof self->bias;
    }
    if (place == NULL || bytes != wanted) {
        complain("an attribute of an operation");
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    memcpy(place, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType_t type,
                                          uint64_t rows, uint64_t columns, int64_t pitch)
{
    if (pitch < (int64_t)rows) complain("a leading dimension below the rows");
    cublasStatus_t status = make((void **)out, sizeof(struct matrix));
    if (status == CUBLAS_STATUS_SUCCESS) {
        *(struct matrix *)(void *)*out =
            (struct matrix){.type = type, .rows = rows, .columns = columns, .pitch = pitch};
    }
    return status;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    return drop(layout);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out)
{
    return make((void **)out, sizeof(struct preference));
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    return drop(preference);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t what,
                                                    cublasLtMatmulPreferenceAttributes_t name,
                                                    const void *value, size_t bytes)
{
    struct preference *self = (struct preference *)(void *)what;
    cublasStatus_t status = begin();
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    uint32_t number = 0;
    if (name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && bytes == 8) {
        memcpy(&self->workspace_bytes, value, bytes);
        return CUBLAS_STATUS_SUCCESS;
    }
    if (bytes != 4) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&number, value, bytes);
    if (name == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) self->reductions = number;
    bool is_alignment = name >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
                        name <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES;
    if (is_alignment && number == 16) self->alignments += 1;
    return CUBLAS_STATUS_SUCCESS;
}

// Columns of the result, which are rows to us.
static uint64_t m_of(cublasLtMatrixLayout_t c)
{
    return ((const struct matrix *)(const void *)c)->columns;
}

// D = op(A) op(B): whether the shapes fit together.
static bool fits(cublasLtMatmulDesc_t what, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                 cublasLtMatrixLayout_t c)
{
    const struct operation *op = (const struct operation *)(const void *)what;
    const struct matrix *left = (const struct matrix *)(const void *)a;
    const struct matrix *right = (const struct matrix *)(const void *)b;
    const struct matrix *out = (const struct matrix *)(const void *)c;
    uint64_t n = op->a == CUBLAS_OP_T ? left->columns : left->rows;
    uint64_t k = op->a == CUBLAS_OP_T ? left->rows : left->columns;
    uint64_t depth = op->b == CUBLAS_OP_T ? right->columns : right->rows;
    uint64_t m = op->b == CUBLAS_OP_T ? right->rows : right->columns;
    bool is_float = left->type == CUDA_R_32F;
    cublasComputeType_t compute = is_float ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
    return n == out->rows && m == out->columns && k == depth && left->type == right->type &&
           out->type == CUDA_R_32F && op->compute == compute;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t what,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t found[], int *count)
{
    const struct preference *asked = (const struct preference *)(const void *)preference;
    cublasStatus_t status = begin();
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (handle == NULL || c != d || !fits(what, a, b, c)) complain("shapes of a question");
    if (asked->alignments != 4) complain("an alignment below 16 bytes");
    if (asked->reductions != CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) complain("a reduction");
    if (asked->workspace_bytes == 0) complain("no workspace");
    fake.asked += 1;
    *count = 0;
    for (uint32_t i = 0; i < fake.algorithms_count && *count < wanted; i++, (*count)++) {
        memset(&found[i], 0, sizeof found[i]);
        found[i].algo.data[0] = i;
        found[i].state =
            fake.algorithms[i].is_unusable ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t what,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *found)
{
    const struct fake_algorithm *self = &fake.algorithms[algo->data[0]];
    const struct operation *op = (const struct operation *)(const void *)what;
    cublasStatus_t status = begin();
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (handle == NULL || c != d || !fits(what, a, b, c)) complain("shapes of a check");
    if (m_of(c) == self->refused_m) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (self->refuses_bias && op->epilogue == CUBLASLT_EPILOGUE_BIAS) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    found->workspaceSize = self->workspace_of_m * m_of(c);
    return CUBLAS_STATUS_SUCCESS;
}

static float element(const void *at, const struct matrix *layout, uint64_t row, uint64_t column)
{
    uint64_t i = row + column * (uint64_t)layout->pitch;
    float value = 0;
    enum dtype type = layout->type == CUDA_R_32F   ? DTYPE_F32
                      : layout->type == CUDA_R_16F ? DTYPE_F16
                                                   : DTYPE_BF16;
    dtype_convert(&value, DTYPE_F32, (const char *)at + i * dtype_bytes(type), type, 1);
    return value;
}

static float product(const struct operation *op, const struct matrix *left, const void *a,
                     const struct matrix *right, const void *b, uint64_t row, uint64_t column)
{
    uint64_t k = op->a == CUBLAS_OP_T ? left->rows : left->columns;
    double sum = 0;
    for (uint64_t i = 0; i < k; i++) {
        float x = op->a == CUBLAS_OP_T ? element(a, left, i, row) : element(a, left, row, i);
        float y =
            op->b == CUBLAS_OP_T ? element(b, right, column, i) : element(b, right, i, column);
        sum += (double)x * (double)y;
    }
    return (float)sum;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t what, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    const struct operation *op = (const struct operation *)(const void *)what;
    const struct matrix *out = (const struct matrix *)(const void *)d_layout;
    cublasStatus_t status = begin();
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (handle == NULL || c != d || c_layout != d_layout) complain("C is not D");
    if (!fits(what, a_layout, b_layout, d_layout)) complain("shapes of a product");
    if (*(const float *)alpha != 1 || *(const float *)beta != 0) complain("a factor");
    bool has_bias = op->epilogue == CUBLASLT_EPILOGUE_BIAS;
    if (has_bias && (op->bias == NULL || op->bias_type != CUDA_R_32F)) complain("a bias");
    fake.multiplied += 1;
    fake.last_algorithm = algo->data[0];
    fake.last_m = out->columns;
    fake.last_stream = stream;
    fake.last_workspace_bytes = workspace_bytes;
    memset(workspace, 0x7f, workspace_bytes);
    for (uint64_t column = 0; column < out->columns; column++) {
        for (uint64_t row = 0; row < out->rows; row++) {
            float sum = product(op, (const struct matrix *)(const void *)a_layout, a,
                                (const struct matrix *)(const void *)b_layout, b, row, column);
            if (has_bias) sum += op->bias[row];
            ((float *)d)[row + column * (uint64_t)out->pitch] = sum;
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}
