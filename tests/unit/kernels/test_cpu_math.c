// test_cpu_math.c - the CPU's linears, activations and attention, in each of their compilations,
// against sums in double.

#include "tests/test.h"

#include <float.h>

#include "tests/unit/kernels/cpu_kit.h"

// ---------------------------------------------------------------------------------------------
// Linear

struct linear_case {
    uint32_t rows, c, k;
    enum dtype dtype;
    enum activation activation;
    bool bias, residual;
};

static double activate(double x, enum activation activation)
{
    if (activation == ACTIVATION_QUICK_GELU) return x / (1 + exp(-1.702 * x));
    if (activation == ACTIVATION_GELU) return x * (1 + erf(x / sqrt(2.0))) / 2;
    return x;
}

static void check_linear(const struct cpu_compute *compute, const struct linear_case *test)
{
    struct sample weight =
        sample_create(WEIGHT_MATRIX, test->dtype, (uint32_t[4]){test->k, test->c, 0, 0});
    struct sample bias = sample_create(WEIGHT_VECTOR, test->dtype, (uint32_t[4]){test->k, 0, 0, 0});
    float *input = random_floats((size_t)test->rows * test->c);
    float *output = random_floats((size_t)test->rows * test->k);
    double *wanted = malloc((size_t)test->rows * test->k * sizeof wanted[0]);
    assert_non_null(wanted);
    for (uint32_t i = 0; i < test->rows; i++) {
        for (uint32_t j = 0; j < test->k; j++) {
            double sum = test->bias ? (double)bias.values[j] : 0;
            for (uint32_t c = 0; c < test->c; c++) {
                sum += (double)input[(size_t)i * test->c + c] *
                       (double)weight.values[(size_t)j * test->c + c];
            }
            double rest = test->residual ? (double)output[(size_t)i * test->k + j] : 0;
            wanted[(size_t)i * test->k + j] = activate(sum, test->activation) + rest;
        }
    }
    struct operation op = {.kind = OPERATION_LINEAR};
    op.linear = (struct linear){.input = slot(SLOT_INPUT),
                                .rows = test->rows,
                                .c = test->c,
                                .output = slot(SLOT_OUTPUT),
                                .k = test->k,
                                .weight = weight.weight,
                                .bias = test->bias ? bias.weight : NULL,
                                .activation = test->activation};
    if (test->residual) op.linear.residual = slot(SLOT_OUTPUT);
    void *bindings[] = {input, output};
    run_operation(compute, &op, bindings);
    check_close(output, wanted, (size_t)test->rows * test->k, 4e-6, compute->name);
    free(wanted);
    free(output);
    free(input);
    sample_destroy(&bias);
    sample_destroy(&weight);
}

static void a_linear_is_the_product_in_double(void **state)
{
    (void)state;
    static const struct linear_case cases[] = {
        {1, 1, 1, DTYPE_F32, ACTIVATION_NONE, false, false},
        {7, 13, 19, DTYPE_F16, ACTIVATION_NONE, true, false},
        {77, 64, 48, DTYPE_BF16, ACTIVATION_QUICK_GELU, true, false},
        {13, 768, 96, DTYPE_F16, ACTIVATION_GELU, true, true},
        {5, 1280, 33, DTYPE_F32, ACTIVATION_NONE, false, true},
        {325, 300, 520, DTYPE_F16, ACTIVATION_NONE, true, true},
        {3, 40, 2100, DTYPE_BF16, ACTIVATION_NONE, true, false},
    };
    for (uint32_t i = 0; i < compilations_count(); i++) {
        for (size_t j = 0; j < sizeof cases / sizeof cases[0]; j++) {
            check_linear(compilation(i), &cases[j]);
        }
    }
}

static void run_rows(const struct cpu_compute *compute, const struct linear *linear, float *input,
                     float *output)
{
    struct operation op = {.kind = OPERATION_LINEAR, .linear = *linear};
    void *bindings[] = {input, output};
    run_operation(compute, &op, bindings);
}

static void a_row_has_the_same_bytes_in_any_company(void **state)
{
    (void)state;
    enum { C = 600, K = 80, ROWS = 333 };
    struct sample weight = sample_create(WEIGHT_MATRIX, DTYPE_F16, (uint32_t[4]){K, C, 0, 0});
    struct sample down = sample_create(WEIGHT_MATRIX, DTYPE_F16, (uint32_t[4]){5, C, 0, 0});
    struct sample up = sample_create(WEIGHT_MATRIX, DTYPE_F16, (uint32_t[4]){K, 5, 0, 0});
    float *input = random_floats((size_t)ROWS * C);
    float *output = random_floats((size_t)ROWS * K);
    struct low_rank paths[2] = {
        {.row_count = 1, .column_count = K, .rank = 5, .scale = 0.5f},
        {.row_count = 0, .column_count = K, .rank = 5, .scale = 3.0f},
    };
    for (uint32_t i = 0; i < 2; i++) paths[i].down = down.weight, paths[i].up = up.weight;
    struct linear alone = {.input = slot(SLOT_INPUT),
                           .output = slot(SLOT_OUTPUT),
                           .rows = 1,
                           .c = C,
                           .k = K,
                           .weight = weight.weight,
                           .activation = ACTIVATION_GELU,
                           .low_rank = paths,
                           .low_rank_count = 1};
    for (uint32_t i = 0; i < compilations_count(); i++) {
        float expected[K];
        alone.rows = 1;
        alone.low_rank_count = 1;
        paths[0].row_begin = 0;
        run_rows(compilation(i), &alone, input, expected);
        for (uint32_t at = 0; at < 16; at += 3) {
            // The row moves to place `at`, first among 16, then among all; its neighbours have
            // another adapter.
            float kept[C];
            memcpy(kept, input + (size_t)at * C, sizeof kept);
            memcpy(input + (size_t)at * C, input, sizeof kept);
            paths[0].row_begin = at;
            paths[1].row_begin = at + 1;
            paths[1].row_count = 16;
            alone.low_rank_count = 2;
            for (uint32_t rows = 17 + at; rows <= ROWS; rows += ROWS - 17 - at) {
                alone.rows = rows;
                run_rows(compilation(i), &alone, input, output);
                assert_memory_equal(output + (size_t)at * K, expected, sizeof expected);
            }
            memcpy(input + (size_t)at * C, kept, sizeof kept);
        }
    }
    free(output);
    free(input);
    sample_destroy(&up);
    sample_destroy(&down);
    sample_destroy(&weight);
}

static void a_low_rank_path_reaches_its_rows_and_columns_only(void **state)
{
    (void)state;
    enum { C = 40, K = 96, ROWS = 21, RANK = 275, PART = 32, COLUMN = 35, ROW = 4, COUNT = 9 };
    struct sample weight = sample_create(WEIGHT_MATRIX, DTYPE_F32, (uint32_t[4]){K, C, 0, 0});
    struct sample down = sample_create(WEIGHT_MATRIX, DTYPE_F16, (uint32_t[4]){RANK, C, 0, 0});
    struct sample up = sample_create(WEIGHT_MATRIX, DTYPE_BF16, (uint32_t[4]){PART, RANK, 0, 0});
    float *input = random_floats((size_t)ROWS * C);
    float *output = random_floats((size_t)ROWS * K);
    double wanted[ROWS * K];
    for (uint32_t i = 0; i < ROWS; i++) {
        double inner[RANK] = {0};
        for (uint32_t r = 0; r < RANK; r++) {
            for (uint32_t c = 0; c < C; c++) {
                inner[r] += (double)input[i * C + c] * (double)down.values[r * C + c];
            }
        }
        for (uint32_t j = 0; j < K; j++) {
            double sum = 0;
            for (uint32_t c = 0; c < C; c++) {
                sum += (double)input[i * C + c] * (double)weight.values[j * C + c];
            }
            bool inside = i >= ROW && i < ROW + COUNT && j >= COLUMN && j < COLUMN + PART;
            for (uint32_t r = 0; inside && r < RANK; r++) {
                sum += 0.25 * inner[r] * (double)up.values[(j - COLUMN) * RANK + r];
            }
            wanted[i * K + j] = sum;
        }
    }
    struct low_rank path = {.row_begin = ROW,
                            .row_count = COUNT,
                            .column_begin = COLUMN,
                            .column_count = PART,
                            .rank = RANK,
                            .down = down.weight,
                            .up = up.weight,
                            .scale = 0.25f};
    struct linear linear = {.input = slot(SLOT_INPUT),
                            .output = slot(SLOT_OUTPUT),
                            .rows = ROWS,
                            .c = C,
                            .k = K,
                            .weight = weight.weight,
                            .low_rank = &path,
                            .low_rank_count = 1};
    for (uint32_t i = 0; i < compilations_count(); i++) {
        run_rows(compilation(i), &linear, input, output);
        check_close(output, wanted, ROWS * K, 8e-6, compilation(i)->name);
    }
    free(output);
    free(input);
    sample_destroy(&up);
    sample_destroy(&down);
    sample_destroy(&weight);
}

// Rows 0..7 have two adapters, one of a rank beyond a chunk; rows 8..20 one of infinities, and
// share a strip with them.
static void an_adapter_of_infinities_spoils_its_own_rows_only(void **state)
{
    (void)state;
    enum { C = 40, K = 96, ROWS = 21, ROW = 8, RANK = 300, PART = 32, COLUMN = 35 };
    struct sample weight = sample_create(WEIGHT_MATRIX, DTYPE_F16, (uint32_t[4]){K, C, 0, 0});
    struct sample down = sample_create(WEIGHT_MATRIX, DTYPE_F16, (uint32_t[4]){RANK, C, 0, 0});
    struct sample up = sample_create(WEIGHT_MATRIX, DTYPE_F16, (uint32_t[4]){K, RANK, 0, 0});
    struct sample part = sample_create(WEIGHT_MATRIX, DTYPE_F32, (uint32_t[4]){PART, RANK, 0, 0});
    struct sample wild = sample_create(WEIGHT_MATRIX, DTYPE_F32, (uint32_t[4]){K, RANK, 0, 0});
    for (uint32_t i = 0; i < K * RANK; i++) {
        memcpy((uint8_t *)wild.bytes + 1 + i * sizeof(float), &(float){INFINITY}, sizeof(float));
    }
    float *input = random_floats((size_t)ROWS * C);
    float *output = random_floats((size_t)ROWS * K);
    struct low_rank paths[] = {
        {0, ROW, 0, K, RANK, down.weight, up.weight, 0.5f},
        {0, ROW, COLUMN, PART, RANK, down.weight, part.weight, -0.25f},
        {ROW, ROWS - ROW, 0, K, RANK, down.weight, wild.weight, 1.0f},
    };
    struct linear linear = {.input = slot(SLOT_INPUT),
                            .output = slot(SLOT_OUTPUT),
                            .c = C,
                            .k = K,
                            .weight = weight.weight,
                            .low_rank = paths};
    for (uint32_t i = 0; i < compilations_count(); i++) {
        float alone[ROW * K];
        linear.rows = ROW;
        linear.low_rank_count = 2;
        run_rows(compilation(i), &linear, input, alone);
        linear.rows = ROWS;
        linear.low_rank_count = 3;
        run_rows(compilation(i), &linear, input, output);
        assert_memory_equal(output, alone, sizeof alone);
        for (uint32_t j = ROW * K; j < ROWS * K; j++) assert_false(fabsf(output[j]) < INFINITY);
    }
    free(output);
    free(input);
    struct sample *samples[] = {&weight, &down, &up, &part, &wild};
    for (size_t i = 0; i < sizeof samples / sizeof samples[0]; i++) sample_destroy(samples[i]);
}

// ---------------------------------------------------------------------------------------------
// Elementary functions, through a linear of one channel

static void the_activations_are_exact_to_a_few_units(void **state)
{
    (void)state;
    enum { ROWS = 4001 };
    float one = 1.0f;
    struct weight_source source = {.form = WEIGHT_MATRIX,
                                   .dtype = DTYPE_F32,
                                   .dims = {1, 1},
                                   .parts_count = 1,
                                   .parts = {&one}};
    struct weight *weight = NULL;
    assert_int_equal(cpu_weight_create(&weight, NULL, &source, NULL), STATUS_OK);
    float *input = random_floats(ROWS);
    float *output = random_floats(ROWS);
    for (int i = 0; i < ROWS; i++) input[i] = (float)(i - ROWS / 2) * 0.01f;
    memcpy(input, (float[]){3e5f, -3e5f, 1e30f, -1e30f, NAN}, 5 * sizeof input[0]);
    struct linear linear = {.input = slot(SLOT_INPUT),
                            .output = slot(SLOT_OUTPUT),
                            .rows = ROWS,
                            .c = 1,
                            .k = 1,
                            .weight = weight};
    for (uint32_t i = 0; i < compilations_count(); i++) {
        for (int kind = ACTIVATION_QUICK_GELU; kind <= ACTIVATION_GELU; kind++) {
            linear.activation = (enum activation)kind;
            run_rows(compilation(i), &linear, input, output);
            for (int j = 0; j < ROWS; j++) {
                double x = (double)input[j];
                double wanted = activate(x, (enum activation)kind);
                // GELU is within |x| 1.2e-7 before it is rounded. The sigmoid is relative, but
                // its exponent is rounded to its own size.
                double bound = kind == ACTIVATION_GELU
                                   ? fabs(x) * 1.2e-7 + 2e-7 * fabs(wanted)
                                   : (6e-7 + 1.3e-7 * fabs(x)) * fabs(wanted) + 1e-37;
                if (isnan(x) ? isnan(output[j]) : fabs((double)output[j] - wanted) <= bound) {
                    continue;
                }
                fail_msg("%s: activation %d of %.9g is %.9g, not %.9g", compilation(i)->name, kind,
                         x, (double)output[j], wanted);
            }
        }
    }
    free(output);
    free(input);
    cpu_weight_destroy(weight);
}

// ---------------------------------------------------------------------------------------------
// Attention

struct attention_case {
    uint32_t batch, tokens, heads, width;
    bool causal;
};

static void attend(const struct attention_case *test, const float *qkv, float scale, uint32_t head,
                   uint32_t query, double *out)
{
    uint32_t stride = 3 * test->heads * test->width;
    const float *start = qkv + (size_t)(head / test->heads) * test->tokens * stride +
                         (size_t)(head % test->heads) * test->width;
    uint32_t keys = test->causal ? query + 1 : test->tokens;
    double *weights = malloc(keys * sizeof weights[0]);
    assert_non_null(weights);
    double largest = -DBL_MAX;
    double total = 0;
    for (uint32_t i = 0; i < keys; i++) {
        double score = 0;
        for (uint32_t j = 0; j < test->width; j++) {
            score += (double)start[(size_t)query * stride + j] *
                     (double)start[(size_t)i * stride + test->heads * test->width + j];
        }
        weights[i] = score * (double)scale;
        largest = fmax(largest, weights[i]);
    }
    for (uint32_t i = 0; i < keys; i++) total += weights[i] = exp(weights[i] - largest);
    for (uint32_t j = 0; j < test->width; j++) {
        out[j] = 0;
        for (uint32_t i = 0; i < keys; i++) {
            out[j] += weights[i] / total *
                      (double)start[(size_t)i * stride + 2 * test->heads * test->width + j];
        }
    }
    free(weights);
}

static void check_attention(const struct attention_case *test)
{
    uint32_t width = test->heads * test->width;
    size_t rows = (size_t)test->batch * test->tokens;
    float *qkv = random_floats(rows * 3 * width);
    float *output = random_floats(rows * width);
    double *wanted = malloc(rows * width * sizeof wanted[0]);
    assert_non_null(wanted);
    float scale = 4.0f / sqrtf((float)test->width);
    for (uint32_t head = 0; head < test->batch * test->heads; head++) {
        for (uint32_t query = 0; query < test->tokens; query++) {
            size_t row = (size_t)(head / test->heads) * test->tokens + query;
            attend(test, qkv, scale, head, query,
                   wanted + row * width + (size_t)(head % test->heads) * test->width);
        }
    }
    struct operation op = {.kind = OPERATION_ATTENTION};
    op.attention = (struct attention){.q = slot(SLOT_INPUT),
                                      .k = slot(SLOT_INPUT),
                                      .v = slot(SLOT_INPUT),
                                      .q_stride = 3 * width,
                                      .k_stride = 3 * width,
                                      .v_stride = 3 * width,
                                      .output = slot(SLOT_OUTPUT),
                                      .batch = test->batch,
                                      .tokens = test->tokens,
                                      .heads = test->heads,
                                      .head_width = test->width,
                                      .scale = scale,
                                      .causal = test->causal};
    op.attention.k.offset = width * sizeof(float);
    op.attention.v.offset = 2 * width * sizeof(float);
    void *bindings[] = {qkv, output};
    for (uint32_t i = 0; i < compilations_count(); i++) {
        run_operation(compilation(i), &op, bindings);
        check_close(output, wanted, rows * width, 2e-6, compilation(i)->name);
    }
    free(wanted);
    free(output);
    free(qkv);
}

static void attention_is_the_softmax_in_double(void **state)
{
    (void)state;
    static const struct attention_case cases[] = {
        {1, 1, 1, 1, false},   {2, 77, 3, 64, true},    {1, 300, 2, 40, false},
        {1, 257, 1, 13, true}, {1, 130, 1, 512, false}, {1, 8, 5, 20, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_attention(&cases[i]);
}

// ---------------------------------------------------------------------------------------------
// Weights

static void a_weight_that_cannot_be_is_refused(void **state)
{
    (void)state;
    float values[36] = {0};
    struct weight *weight = NULL;
    struct weight_source source = {.form = WEIGHT_CONVOLUTION,
                                   .dtype = DTYPE_F32,
                                   .dims = {2, 2, 3, 3},
                                   .parts_count = 1,
                                   .parts = {values}};
    struct error error;
    source.dims[3] = 2;
    assert_int_equal(cpu_weight_create(&weight, NULL, &source, &error), STATUS_INVALID_ARGUMENT);
    source.dims[3] = 3;
    source.dims[0] = 0;
    assert_int_equal(cpu_weight_create(&weight, NULL, &source, &error), STATUS_INVALID_ARGUMENT);
    source.dims[0] = UINT32_MAX;
    assert_int_equal(cpu_weight_create(&weight, NULL, &source, &error), STATUS_INVALID_ARGUMENT);
    source.dims[0] = 2;
    source.dtype = DTYPE_I32;
    assert_int_equal(cpu_weight_create(&weight, NULL, &source, &error), STATUS_INVALID_ARGUMENT);
    source.dtype = DTYPE_F32;
    source.parts_count = 2;
    assert_int_equal(cpu_weight_create(&weight, NULL, &source, &error), STATUS_INVALID_ARGUMENT);
    assert_null(weight);
    source.parts_count = 1;
    assert_int_equal(cpu_weight_create(&weight, NULL, &source, &error), STATUS_OK);
    assert_int_equal(weight->bytes, 0);
    cpu_weight_destroy(weight);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_linear_is_the_product_in_double),
        cmocka_unit_test(a_row_has_the_same_bytes_in_any_company),
        cmocka_unit_test(a_low_rank_path_reaches_its_rows_and_columns_only),
        cmocka_unit_test(an_adapter_of_infinities_spoils_its_own_rows_only),
        cmocka_unit_test(the_activations_are_exact_to_a_few_units),
        cmocka_unit_test(attention_is_the_softmax_in_double),
        cmocka_unit_test(a_weight_that_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
