// test_cpu_convolution.c - the CPU's convolutions, in each of their compilations, against sums in
// double, and the statistics that they leave.

#include "tests/test.h"

#include "tests/unit/kernels/cpu_kit.h"

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
    for (uint32_t i = 0; i < compilations_count(); i++) {
        char what[160];
        snprintf(what, sizeof what, "%s [%u, %u, %u, %u] -> %u, %ux%u, stride %u%s%s",
                 compilation(i)->name, test->n, test->h, test->w, test->c, test->k, test->side,
                 test->side, test->stride, test->upsample ? ", upsample" : "",
                 test->norm ? ", norm" : "");
        run_operation(compilation(i), &op, bindings);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_direct_way_is_the_sum_in_double),
        cmocka_unit_test(winograd_is_the_sum_in_double),
        cmocka_unit_test(a_large_mean_spoils_neither_norm_nor_statistics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
