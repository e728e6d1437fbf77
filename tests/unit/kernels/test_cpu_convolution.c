// test_cpu_convolution.c - the CPU's convolutions, in each of their compilations, against sums in
// double, and the statistics that they leave.

#include "tests/test.h"

#include "kernels/cpu/convolution_plan.h"
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
    double *magnitude;  // of each output: the sum of what it adds up, without signs
    double *in_statistics, *statistics;
    double *normalized;  // the input after norm and SiLU
    double *wanted;
};

static uint32_t groups_of(const struct convolution_case *test)
{
    return test->c % 8 == 0 ? 8 : 1;
}

// Statistics of [pixels, channels]: means, then M2, then, as floats, the lowest and the highest.
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
        float *extremes = (float *)(out + (size_t)2 * channels);
        extremes[c] = extremes[channels + c] = input[c];
        for (uint32_t i = 0; i < pixels; i++) {
            extremes[c] = fminf(extremes[c], input[(size_t)i * channels + c]);
            extremes[channels + c] = fmaxf(extremes[channels + c], input[(size_t)i * channels + c]);
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
                       size_t image, uint32_t y, uint32_t x, uint32_t k, double *magnitude)
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
                double product =
                    data->normalized[pixel * test->c + c] * (double)data->weight.values[tap];
                sum += product;
                *magnitude += fabs(product);
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
            double magnitude = fabs((double)data->bias.values[k]);
            double sum = (double)data->bias.values[k];
            sum += convolve(test, data, image, y, x, k, &magnitude);
            if (test->residual) sum += (double)data->residual[at];
            if (test->residual) magnitude += fabs((double)data->residual[at]);
            for (uint32_t c = 0; c < test->shortcut_c; c++) {
                sum += (double)data->shortcut[pixel * test->shortcut_c + c] *
                       (double)data->shortcut_weight.values[(size_t)k * test->shortcut_c + c];
            }
            data->wanted[at] = sum;
            data->magnitude[at] = magnitude;
        }
    }
}

// What follows from the input: its statistics, and how the convolution sees it.
static void data_take_input(struct convolution_data *data, const struct convolution_case *test)
{
    size_t image = (size_t)test->h * test->w * test->c;
    for (size_t i = 0; i < test->n * image; i++) data->normalized[i] = (double)data->input[i];
    for (uint32_t i = 0; i < test->n; i++) {
        size_t start = i * image;
        take_statistics(data->input + start, test->h * test->w, test->c,
                        data->in_statistics + (size_t)3 * i * test->c);
        if (test->norm) normalize_image(test, data, data->input + start, data->normalized + start);
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
    data->magnitude = malloc(pixels_out * k * sizeof(double));
    data->in_statistics = malloc((size_t)3 * test->n * c * sizeof(double));
    data->statistics = malloc((size_t)3 * test->n * k * sizeof(double));
    assert_non_null(data->normalized);
    assert_non_null(data->wanted);
    assert_non_null(data->magnitude);
    for (size_t i = 0; i < pixels_in * c; i++) data->input[i] += offset;
    data_take_input(data, test);
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
    free(data->magnitude);
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
    double *expected = malloc((size_t)3 * test->k * sizeof expected[0]);
    assert_non_null(expected);
    for (uint32_t i = 0; i < test->n; i++) {
        const double *got = data->statistics + (size_t)3 * i * test->k;
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
            const float *range = (const float *)(got + (size_t)2 * test->k) + k;
            const float *wanted = (const float *)(expected + (size_t)2 * test->k) + k;
            if (range[0] != wanted[0] || range[test->k] != wanted[test->k]) {
                fail_msg("%s: channel %u is %g to %g, not %g to %g", what, k, (double)range[0],
                         (double)range[test->k], (double)wanted[0], (double)wanted[test->k]);
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

// ---------------------------------------------------------------------------------------------
// Bright pixels

// True when an image went the direct way.
static bool went_direct(struct operation *op, const uint8_t *arena, void **bindings, uint32_t image)
{
    struct convolution_plan plan = cpu_convolution_plan(&op->convolution);
    uint8_t *workspace = malloc(plan.workspace_bytes);
    assert_non_null(workspace);
    memcpy(workspace, arena, plan.workspace_bytes);
    struct cpu_run run = {.arena = workspace, .bindings = bindings};
    bool direct = cpu_image_is_direct(op, &run, &plan, image);
    free(workspace);
    return direct;
}

// Fails unless every output is as near as a plain sum of its own products comes.
static void check_locally(const struct convolution_data *data, size_t begin, size_t end,
                          const char *what)
{
    for (size_t i = begin; i < end; i++) {
        double difference = fabs((double)data->output[i] - data->wanted[i]);
        if (difference <= 1e-6 * data->magnitude[i]) continue;
        fail_msg("%s: element %zu is %.9g, not %.9g, of summands of %.3g together", what, i,
                 (double)data->output[i], data->wanted[i], data->magnitude[i]);
    }
}

// Of two images the second has bright pixels: it alone goes the direct way, and what the bright
// pixels do not reach keeps its precision.
static void check_bright(const struct convolution_case *test, uint32_t side, float size)
{
    struct convolution_data data;
    data_create(&data, test, 0);
    size_t image = (size_t)test->h * test->w * test->c;
    for (uint32_t i = 0; i < side * side; i++) {
        size_t pixel = (size_t)(11 + i / side) * test->w + 7 + i % side;
        for (uint32_t c = 0; c < test->c; c++) {
            data.input[image + pixel * test->c + c] = random_float() > 0 ? size : -size;
        }
    }
    data_take_input(&data, test);
    convolve_all(test, &data);
    struct operation op = convolution_of(test, &data);
    void *bindings[] = {data.input,    data.output,        data.residual,
                        data.shortcut, data.in_statistics, data.statistics};
    size_t half = (size_t)data.oh * data.ow * test->k;
    for (uint32_t i = 0; i < compilations_count(); i++) {
        char what[160];
        snprintf(what, sizeof what, "%s [%u, %u, %u, %u]%s, %u x %u pixels of %g",
                 compilation(i)->name, test->n, test->h, test->w, test->c,
                 test->upsample ? ", upsample" : "", side, side, (double)size);
        uint8_t *arena = run_operation_and_keep(compilation(i), &op, bindings);
        if (went_direct(&op, arena, bindings, 0)) fail_msg("%s: image 0 needs not", what);
        if (!went_direct(&op, arena, bindings, 1)) fail_msg("%s: image 1 needs to", what);
        if (!test->norm) check_locally(&data, half, 2 * half, what);
        check_close(data.output, data.wanted, half, 1e-5, what);
        check_statistics(test, &data, what);
        free(arena);
    }
    data_destroy(&data);
}

static void bright_pixels_do_not_spoil_their_neighbours(void **state)
{
    (void)state;
    static const struct convolution_case raw = {2, 33,    40,    32,   32, 3,
                                                1, false, false, true, 0,  DTYPE_F16};
    static const struct convolution_case up = {2, 33,   40,    32,    48, 3,
                                               1, true, false, false, 0,  DTYPE_F16};
    static const float sizes[] = {300, 1e4f, 3e5f};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        check_bright(&raw, 1, sizes[i]);
        check_bright(&up, 1, sizes[i]);
        check_bright(&raw, 2, sizes[i]);
    }
}

static void a_bright_pixel_is_known_behind_its_norm(void **state)
{
    (void)state;
    static const struct convolution_case normed = {2, 64,    60,   32,    32, 3,
                                                   1, false, true, false, 0,  DTYPE_F16};
    check_bright(&normed, 1, 3e5f);
}

// Channels that are large everywhere leave the errors in proportion: nothing needs the direct way.
static void bright_channels_stay_with_winograd(void **state)
{
    (void)state;
    static const struct convolution_case cases[] = {
        {1, 33, 40, 32, 32, 3, 1, false, false, false, 0, DTYPE_F16},
        {1, 33, 40, 32, 32, 3, 1, true, false, false, 0, DTYPE_F16},
        {1, 33, 40, 32, 32, 3, 1, false, true, false, 0, DTYPE_F16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct convolution_data data;
        data_create(&data, &cases[i], 0);
        for (size_t at = 5; at < (size_t)33 * 40 * 32; at += 32) data.input[at] *= 3e5f;
        data_take_input(&data, &cases[i]);
        convolve_all(&cases[i], &data);
        struct operation op = convolution_of(&cases[i], &data);
        void *bindings[] = {data.input,    data.output,        data.residual,
                            data.shortcut, data.in_statistics, data.statistics};
        for (uint32_t j = 0; j < compilations_count(); j++) {
            uint8_t *arena = run_operation_and_keep(compilation(j), &op, bindings);
            assert_false(went_direct(&op, arena, bindings, 0));
            check_close(data.output, data.wanted, (size_t)data.oh * data.ow * cases[i].k, 2e-5,
                        compilation(j)->name);
            free(arena);
        }
        data_destroy(&data);
    }
}

// So large that several items look at the input: each of them counts.
static void a_bright_pixel_is_found_in_every_band(void **state)
{
    (void)state;
    enum { H = 1040, W = 512, C = 32 };
    struct sample taps = sample_create(WEIGHT_CONVOLUTION, DTYPE_F16, (uint32_t[4]){C, C, 3, 3});
    float *input = random_floats((size_t)H * W * C);
    float *output = random_floats((size_t)H * W * C);
    void *bindings[] = {input, output};
    struct operation op = {.kind = OPERATION_CONVOLUTION};
    op.convolution = (struct convolution){
        .input = slot(SLOT_INPUT), .n = 1, .h = H, .w = W, .c = C, .output = slot(SLOT_OUTPUT)};
    op.convolution.k = C;
    op.convolution.stride = 1;
    op.convolution.weight = taps.weight;
    assert_int_equal(cpu_convolution_plan(&op.convolution).range_bands, 3);
    const struct cpu_compute *best = compilation(compilations_count() > 1 ? 1 : 0);
    for (uint32_t i = 0; i <= 3; i++) {
        size_t pixel = (size_t)H * W / 3 * i + 77;
        if (i < 3) input[pixel * C + 31] = 3e5f;
        uint8_t *arena = run_operation_and_keep(best, &op, bindings);
        assert_int_equal(went_direct(&op, arena, bindings, 0), i < 3);
        free(arena);
        if (i < 3) input[pixel * C + 31] = 0;
    }
    free(input);
    free(output);
    sample_destroy(&taps);
}

// What is no number reaches as far as the filter, not as far as a tile.
static void one_nan_spoils_nine_outputs(void **state)
{
    (void)state;
    static const struct convolution_case test = {1, 20,    24,    32,    32, 3,
                                                 1, false, false, false, 0,  DTYPE_F16};
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct convolution_data data;
        data_create(&data, &test, 0);
        data.input[((size_t)10 * 24 + 13) * 32 + 3] = bad[i];
        struct operation op = convolution_of(&test, &data);
        void *bindings[] = {data.input,    data.output,        data.residual,
                            data.shortcut, data.in_statistics, data.statistics};
        for (uint32_t j = 0; j < compilations_count(); j++) {
            run_operation(compilation(j), &op, bindings);
            for (int pixel = 0; pixel < 20 * 24; pixel++) {
                bool reached = abs(pixel / 24 - 10) <= 1 && abs(pixel % 24 - 13) <= 1;
                for (int k = 0; k < 32; k++) {
                    assert_int_equal(isfinite(data.output[pixel * 32 + k]), !reached);
                }
            }
        }
        data_destroy(&data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_direct_way_is_the_sum_in_double),
        cmocka_unit_test(winograd_is_the_sum_in_double),
        cmocka_unit_test(a_large_mean_spoils_neither_norm_nor_statistics),
        cmocka_unit_test(bright_pixels_do_not_spoil_their_neighbours),
        cmocka_unit_test(a_bright_pixel_is_known_behind_its_norm),
        cmocka_unit_test(bright_channels_stay_with_winograd),
        cmocka_unit_test(a_bright_pixel_is_found_in_every_band),
        cmocka_unit_test(one_nan_spoils_nine_outputs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
