// test_cpu_math.c - the CPU's products, convolutions and attention, in each of their compilations,
// against sums in double. The items run here one after another, without a pool.

#include "tests/test.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/compute.h"

// Slots of the operations below.
enum { SLOT_INPUT, SLOT_OUTPUT, SLOT_RESIDUAL, SLOT_SHORTCUT, SLOT_IN_STATISTICS, SLOT_STATISTICS };

static const struct device device = {.info = {.name = "test"}};

static uint64_t random_state = 88172645463325252u;

static float random_float(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (float)(random_state >> 40) / 8388608.0f - 1.0f;
}

static float *random_floats(size_t count)
{
    float *floats = malloc((count + 1) * sizeof floats[0]);
    assert_non_null(floats);
    for (size_t i = 0; i < count; i++) floats[i] = random_float();
    return floats;
}

// A weight of random numbers in the given type, and the same numbers as floats.
struct sample {
    void *bytes;            // as a file would have them
    float *values;          // the same, widened
    struct weight *weight;  // made of bytes
};

static struct sample sample_create(enum weight_form form, enum dtype dtype, const uint32_t dims[4])
{
    struct sample self = {0};
    size_t count = 1;
    for (uint32_t i = 0; i < 4; i++) count *= dims[i] != 0 ? dims[i] : 1;
    self.values = random_floats(count);
    self.bytes = malloc(count * dtype_bytes(dtype) + 1);
    assert_non_null(self.bytes);
    // An odd address, as a file may have it.
    uint8_t *odd = (uint8_t *)self.bytes + 1;
    dtype_convert(odd, dtype, self.values, DTYPE_F32, count);
    dtype_convert(self.values, DTYPE_F32, odd, dtype, count);
    struct weight_source source = {.form = form, .dtype = dtype, .parts_count = 1, .parts = {odd}};
    memcpy(source.dims, dims, sizeof source.dims);
    struct device *owner = NULL;
    assert_int_equal(cpu_weight_create(&self.weight, owner, &source, NULL), STATUS_OK);
    return self;
}

static void sample_destroy(struct sample *self)
{
    if (self->weight != NULL) cpu_weight_destroy(self->weight);
    free(self->values);
    free(self->bytes);
}

static const struct cpu_compute *compilations[2];

static uint32_t list_compilations(void)
{
    compilations[0] = &cpu_compute_portable;
    compilations[1] = cpu_compute_best();
    return compilations[1] == compilations[0] ? 1 : 2;
}

static uint32_t write_launches(const struct cpu_compute *compute, const struct operation *op,
                               struct cpu_launch launches[CPU_LAUNCHES_MAX])
{
    if (op->kind == OPERATION_LINEAR) return cpu_linear_launches_with(compute, op, launches);
    if (op->kind == OPERATION_ATTENTION) return cpu_attention_launches_with(compute, op, launches);
    return cpu_convolution_launches_with(compute, op, launches);
}

// Runs all items of an operation, the last first. Workspace and scratch begin as NaN.
static void run_operation(const struct cpu_compute *compute, struct operation *op, void **bindings)
{
    struct cpu_launch launches[CPU_LAUNCHES_MAX];
    uint64_t workspace_bytes = cpu_workspace_bytes(&device, op);
    uint32_t count = write_launches(compute, op, launches);
    uint8_t *arena = aligned_alloc(128, (workspace_bytes + 255) / 128 * 128);
    assert_non_null(arena);
    memset(arena, 0xff, workspace_bytes);
    op->workspace = (struct value){.place = VALUE_ARENA, .bytes = workspace_bytes};
    struct cpu_run run = {.arena = arena, .bindings = bindings};
    for (uint32_t i = 0; i < count; i++) {
        uint64_t scratch_bytes = (launches[i].scratch_bytes + 127) / 64 * 64;
        void *scratch = aligned_alloc(64, scratch_bytes);
        assert_non_null(scratch);
        for (uint32_t item = launches[i].items; item > 0; item--) {
            memset(scratch, 0xff, scratch_bytes);
            launches[i].run(op, &run, item - 1, scratch);
        }
        free(scratch);
    }
    free(arena);
}

static struct value slot(uint32_t number)
{
    return (struct value){.place = VALUE_SLOT, .slot = number};
}

// Fails unless |got - wanted| <= tolerance * scale everywhere; scale is the rms of wanted, or 1.
static void check_close(const float *got, const double *wanted, size_t count, double tolerance,
                        const char *what)
{
    double squares = 0;
    for (size_t i = 0; i < count; i++) squares += wanted[i] * wanted[i];
    double scale = sqrt(squares / (double)count);
    if (scale < 1) scale = 1;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)got[i] - wanted[i]);
        if (difference <= tolerance * scale) continue;
        fail_msg("%s: element %zu of %zu is %.9g, not %.9g", what, i, count, (double)got[i],
                 wanted[i]);
    }
}

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
    for (uint32_t i = 0; i < list_compilations(); i++) {
        for (size_t j = 0; j < sizeof cases / sizeof cases[0]; j++) {
            check_linear(compilations[i], &cases[j]);
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
    for (uint32_t i = 0; i < list_compilations(); i++) {
        float expected[K];
        alone.rows = 1;
        alone.low_rank_count = 1;
        paths[0].row_begin = 0;
        run_rows(compilations[i], &alone, input, expected);
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
                run_rows(compilations[i], &alone, input, output);
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
    enum { C = 40, K = 96, ROWS = 21, RANK = 19, PART = 32, COLUMN = 35, ROW = 4, COUNT = 9 };
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
    for (uint32_t i = 0; i < list_compilations(); i++) {
        run_rows(compilations[i], &linear, input, output);
        check_close(output, wanted, ROWS * K, 2e-6, compilations[i]->name);
    }
    free(output);
    free(input);
    sample_destroy(&up);
    sample_destroy(&down);
    sample_destroy(&weight);
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
    struct linear linear = {.input = slot(SLOT_INPUT),
                            .output = slot(SLOT_OUTPUT),
                            .rows = ROWS,
                            .c = 1,
                            .k = 1,
                            .weight = weight};
    for (uint32_t i = 0; i < list_compilations(); i++) {
        for (int kind = ACTIVATION_QUICK_GELU; kind <= ACTIVATION_GELU; kind++) {
            linear.activation = (enum activation)kind;
            run_rows(compilations[i], &linear, input, output);
            for (int j = 0; j < ROWS; j++) {
                double x = (double)input[j];
                double wanted = activate(x, (enum activation)kind);
                // erf within 2e-7 is GELU within |x| 1e-7. The sigmoid is relative, but its
                // exponent is rounded to its own size.
                double bound = kind == ACTIVATION_GELU
                                   ? fabs(x) * 1.2e-7 + 2e-7 * fabs(wanted)
                                   : (6e-7 + 1.3e-7 * fabs(x)) * fabs(wanted) + 1e-37;
                if (fabs((double)output[j] - wanted) <= bound) continue;
                fail_msg("%s: activation %d of %.9g is %.9g, not %.9g", compilations[i]->name, kind,
                         x, (double)output[j], wanted);
            }
        }
    }
    free(output);
    free(input);
    cpu_weight_destroy(weight);
}

// ---------------------------------------------------------------------------------------------
// Convolution

struct convolution_case {
    uint32_t n, h, w, c, k, side, stride;
    bool upsample, norm, residual;
    uint32_t shortcut_c;
    enum dtype dtype;
};

struct convolution_data {
    uint32_t oh, ow;
    struct sample weight, bias, gamma, beta, shortcut_weight;
    float *input, *output, *residual, *shortcut;
    double *in_statistics, *statistics;
    double *normalized;  // the input after norm and SiLU
    double *wanted;
};

static uint32_t groups_of(const struct convolution_case *test)
{
    return test->c % 8 == 0 ? 8 : 1;
}

// Statistics of [pixels, channels]: means, then M2.
static void take_statistics(const float *input, uint32_t pixels, uint32_t channels, double *out)
{
    for (uint32_t c = 0; c < channels; c++) {
        double mean = 0;
        double m2 = 0;
        for (uint32_t i = 0; i < pixels; i++) mean += (double)input[(size_t)i * channels + c];
        mean /= pixels;
        for (uint32_t i = 0; i < pixels; i++) {
            double delta = (double)input[(size_t)i * channels + c] - mean;
            m2 += delta * delta;
        }
        out[c] = mean;
        out[channels + c] = m2;
    }
}

// GroupNorm by its definition, on the values themselves.
static void normalize_image(const struct convolution_case *test,
                            const struct convolution_data *data, const float *input, double *out)
{
    uint32_t pixels = test->h * test->w;
    uint32_t width = test->c / groups_of(test);
    for (uint32_t first = 0; first < test->c; first += width) {
        double sum = 0;
        double squares = 0;
        for (uint32_t i = 0; i < pixels * width; i++) {
            sum += (double)input[(size_t)(i / width) * test->c + first + i % width];
        }
        double mean = sum / ((double)pixels * width);
        for (uint32_t i = 0; i < pixels * width; i++) {
            double delta = (double)input[(size_t)(i / width) * test->c + first + i % width] - mean;
            squares += delta * delta;
        }
        double root = sqrt(squares / ((double)pixels * width) + 1e-6);
        for (uint32_t i = 0; i < pixels * width; i++) {
            uint32_t c = first + i % width;
            size_t at = (size_t)(i / width) * test->c + c;
            double y = ((double)input[at] - mean) / root * (double)data->gamma.values[c] +
                       (double)data->beta.values[c];
            out[at] = y / (1 + exp(-y));
        }
    }
}

static double convolve(const struct convolution_case *test, const struct convolution_data *data,
                       size_t image, uint32_t y, uint32_t x, uint32_t k)
{
    uint32_t scale = test->upsample ? 2 : 1;
    int pad = test->side == 3 && test->stride == 1 ? 1 : 0;
    double sum = 0;
    for (int i = 0; i < (int)test->side; i++) {
        for (int j = 0; j < (int)test->side; j++) {
            int yy = (int)(y * test->stride) + i - pad;
            int xx = (int)(x * test->stride) + j - pad;
            if (yy < 0 || xx < 0 || yy >= (int)(test->h * scale) || xx >= (int)(test->w * scale)) {
                continue;
            }
            size_t pixel =
                (image * test->h + (uint32_t)yy / scale) * test->w + (uint32_t)xx / scale;
            for (uint32_t c = 0; c < test->c; c++) {
                size_t tap =
                    (((size_t)k * test->c + c) * test->side + (size_t)i) * test->side + (size_t)j;
                sum += data->normalized[pixel * test->c + c] * (double)data->weight.values[tap];
            }
        }
    }
    return sum;
}

static void convolve_all(const struct convolution_case *test, struct convolution_data *data)
{
    size_t at = 0;
    for (size_t pixel = 0; pixel < (size_t)test->n * data->oh * data->ow; pixel++) {
        size_t image = pixel / ((size_t)data->oh * data->ow);
        uint32_t y = (uint32_t)(pixel / data->ow % data->oh);
        uint32_t x = (uint32_t)(pixel % data->ow);
        for (uint32_t k = 0; k < test->k; k++, at++) {
            double sum = convolve(test, data, image, y, x, k) + (double)data->bias.values[k];
            if (test->residual) sum += (double)data->residual[at];
            for (uint32_t c = 0; c < test->shortcut_c; c++) {
                sum += (double)data->shortcut[pixel * test->shortcut_c + c] *
                       (double)data->shortcut_weight.values[(size_t)k * test->shortcut_c + c];
            }
            data->wanted[at] = sum;
        }
    }
}

static void data_create(struct convolution_data *data, const struct convolution_case *test,
                        float offset)
{
    *data = (struct convolution_data){.oh = test->h, .ow = test->w};
    if (test->upsample) data->oh *= 2, data->ow *= 2;
    if (test->stride == 2) data->oh = (test->h - 2) / 2 + 1, data->ow = (test->w - 2) / 2 + 1;
    uint32_t c = test->c;
    uint32_t k = test->k;
    uint32_t extra = test->shortcut_c != 0 ? test->shortcut_c : 1;
    size_t pixels_in = (size_t)test->n * test->h * test->w;
    size_t pixels_out = (size_t)test->n * data->oh * data->ow;
    data->weight =
        sample_create(WEIGHT_CONVOLUTION, test->dtype, (uint32_t[4]){k, c, test->side, test->side});
    data->shortcut_weight =
        sample_create(WEIGHT_CONVOLUTION, test->dtype, (uint32_t[4]){k, extra, 1, 1});
    data->bias = sample_create(WEIGHT_VECTOR, test->dtype, (uint32_t[4]){k, 0, 0, 0});
    data->gamma = sample_create(WEIGHT_VECTOR, test->dtype, (uint32_t[4]){c, 0, 0, 0});
    data->beta = sample_create(WEIGHT_VECTOR, test->dtype, (uint32_t[4]){c, 0, 0, 0});
    data->input = random_floats(pixels_in * c);
    data->residual = random_floats(pixels_out * k);
    data->shortcut = random_floats(pixels_out * extra);
    data->output = random_floats(pixels_out * k);
    data->normalized = malloc(pixels_in * c * sizeof(double));
    data->wanted = malloc(pixels_out * k * sizeof(double));
    data->in_statistics = malloc((size_t)2 * test->n * c * sizeof(double));
    data->statistics = malloc((size_t)2 * test->n * k * sizeof(double));
    assert_non_null(data->normalized);
    assert_non_null(data->wanted);
    for (size_t i = 0; i < pixels_in * c; i++) data->input[i] += offset;
    for (size_t i = 0; i < pixels_in * c; i++) data->normalized[i] = (double)data->input[i];
    for (uint32_t i = 0; i < test->n; i++) {
        size_t start = (size_t)i * test->h * test->w * c;
        take_statistics(data->input + start, test->h * test->w, c,
                        data->in_statistics + (size_t)2 * i * c);
        if (test->norm) normalize_image(test, data, data->input + start, data->normalized + start);
    }
}

static void data_destroy(struct convolution_data *data)
{
    sample_destroy(&data->weight);
    sample_destroy(&data->bias);
    sample_destroy(&data->gamma);
    sample_destroy(&data->beta);
    sample_destroy(&data->shortcut_weight);
    free(data->input);
    free(data->output);
    free(data->residual);
    free(data->shortcut);
    free(data->normalized);
    free(data->wanted);
    free(data->in_statistics);
    free(data->statistics);
}

static struct operation convolution_of(const struct convolution_case *test,
                                       const struct convolution_data *data)
{
    struct operation op = {.kind = OPERATION_CONVOLUTION};
    op.convolution = (struct convolution){
        .input = slot(SLOT_INPUT),
        .n = test->n,
        .h = test->h,
        .w = test->w,
        .c = test->c,
        .output = slot(SLOT_OUTPUT),
        .k = test->k,
        .weight = data->weight.weight,
        .bias = data->bias.weight,
        .stride = test->stride,
        .upsample = test->upsample,
        .statistics = slot(SLOT_STATISTICS),
    };
    if (test->norm) {
        op.convolution.norm = (struct normalization){.statistics = slot(SLOT_IN_STATISTICS),
                                                     .gamma = data->gamma.weight,
                                                     .beta = data->beta.weight,
                                                     .groups = groups_of(test),
                                                     .epsilon = 1e-6f,
                                                     .silu = true};
    }
    if (test->residual) op.convolution.residual = slot(SLOT_RESIDUAL);
    if (test->shortcut_c != 0) {
        op.convolution.shortcut = slot(SLOT_SHORTCUT);
        op.convolution.shortcut_c = test->shortcut_c;
        op.convolution.shortcut_weight = data->shortcut_weight.weight;
    }
    return op;
}

static void check_statistics(const struct convolution_case *test,
                             const struct convolution_data *data, const char *what)
{
    uint32_t pixels = data->oh * data->ow;
    double *expected = malloc((size_t)2 * test->k * sizeof expected[0]);
    assert_non_null(expected);
    for (uint32_t i = 0; i < test->n; i++) {
        const double *got = data->statistics + (size_t)2 * i * test->k;
        take_statistics(data->output + (size_t)i * pixels * test->k, pixels, test->k, expected);
        for (uint32_t k = 0; k < test->k; k++) {
            double mean = expected[k];
            double m2 = expected[test->k + k];
            if (fabs(got[k] - mean) > 2e-6 * (fabs(mean) + sqrt(m2 / pixels))) {
                fail_msg("%s: mean of channel %u is %.9g, not %.9g", what, k, got[k], mean);
            }
            double bound = 1e-5 * m2 + 1e-9 * pixels;
            if (fabs(got[test->k + k] - m2) > bound) {
                fail_msg("%s: M2 of channel %u is %.9g, not %.9g", what, k, got[test->k + k], m2);
            }
        }
    }
    free(expected);
}

static void check_convolution(const struct convolution_case *test, float offset, double tolerance)
{
    struct convolution_data data;
    data_create(&data, test, offset);
    convolve_all(test, &data);
    struct operation op = convolution_of(test, &data);
    void *bindings[] = {data.input,    data.output,        data.residual,
                        data.shortcut, data.in_statistics, data.statistics};
    for (uint32_t i = 0; i < list_compilations(); i++) {
        char what[160];
        snprintf(what, sizeof what, "%s [%u, %u, %u, %u] -> %u, %ux%u, stride %u%s%s",
                 compilations[i]->name, test->n, test->h, test->w, test->c, test->k, test->side,
                 test->side, test->stride, test->upsample ? ", upsample" : "",
                 test->norm ? ", norm" : "");
        run_operation(compilations[i], &op, bindings);
        check_close(data.output, data.wanted, (size_t)test->n * data.oh * data.ow * test->k,
                    tolerance, what);
        check_statistics(test, &data, what);
    }
    data_destroy(&data);
}

static void the_direct_way_is_the_sum_in_double(void **state)
{
    (void)state;
    static const struct convolution_case cases[] = {
        {1, 1, 1, 1, 1, 3, 1, false, false, false, 0, DTYPE_F32},
        {1, 5, 7, 3, 16, 3, 1, false, false, false, 0, DTYPE_F16},
        {2, 19, 13, 4, 32, 3, 1, false, false, true, 0, DTYPE_F16},
        {1, 18, 26, 16, 3, 3, 1, false, true, false, 0, DTYPE_BF16},
        {1, 9, 11, 13, 21, 3, 1, false, true, true, 5, DTYPE_F32},
        {2, 17, 27, 304, 3, 3, 1, false, true, true, 0, DTYPE_F32},
        {1, 7, 9, 5, 7, 3, 1, true, false, false, 0, DTYPE_F16},
        {1, 33, 14, 24, 8, 3, 1, false, false, false, 0, DTYPE_BF16},
        {1, 16, 18, 24, 40, 3, 2, false, false, false, 0, DTYPE_F16},
        {1, 17, 19, 32, 16, 3, 2, false, false, false, 0, DTYPE_F16},
        {1, 6, 5, 20, 12, 3, 1, true, false, false, 0, DTYPE_F16},
        {2, 9, 13, 8, 8, 1, 1, false, false, false, 0, DTYPE_F32},
        {1, 11, 10, 48, 144, 1, 1, false, true, false, 0, DTYPE_F16},
        {1, 4, 4, 160, 48, 3, 1, false, true, true, 160, DTYPE_F16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_convolution(&cases[i], 0, 4e-6);
    }
}

static void winograd_is_the_sum_in_double(void **state)
{
    (void)state;
    static const struct convolution_case cases[] = {
        {1, 8, 8, 32, 32, 3, 1, false, false, false, 0, DTYPE_F32},
        {2, 13, 17, 32, 48, 3, 1, false, true, true, 0, DTYPE_F16},
        {1, 30, 29, 160, 32, 3, 1, false, true, false, 64, DTYPE_BF16},
        {1, 10, 9, 32, 32, 3, 1, true, false, false, 0, DTYPE_F32},
        {2, 14, 8, 48, 80, 3, 1, true, true, false, 0, DTYPE_F16},
        {1, 70, 60, 32, 32, 3, 1, true, false, false, 0, DTYPE_F16},
        {1, 60, 44, 32, 32, 3, 1, false, true, true, 16, DTYPE_F16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_convolution(&cases[i], 0, 1e-5);
    }
}

static void a_large_mean_spoils_neither_norm_nor_statistics(void **state)
{
    (void)state;
    static const struct convolution_case cases[] = {
        {1, 12, 12, 16, 16, 3, 1, false, true, false, 0, DTYPE_F32},
        {1, 12, 12, 32, 32, 3, 1, false, true, false, 0, DTYPE_F32},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_convolution(&cases[i], 1000.0f, 1e-5);
    }
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
    for (uint32_t i = 0; i < list_compilations(); i++) {
        run_operation(compilations[i], &op, bindings);
        check_close(output, wanted, rows * width, 2e-6, compilations[i]->name);
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
        cmocka_unit_test(the_activations_are_exact_to_a_few_units),
        cmocka_unit_test(the_direct_way_is_the_sum_in_double),
        cmocka_unit_test(winograd_is_the_sum_in_double),
        cmocka_unit_test(a_large_mean_spoils_neither_norm_nor_statistics),
        cmocka_unit_test(attention_is_the_softmax_in_double),
        cmocka_unit_test(a_weight_that_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
