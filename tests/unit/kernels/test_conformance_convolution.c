// test_conformance_convolution.c - convolution of every device against the formula in float64
// (oracle.h), over NaN and between guards, as chain.h runs it.

#include "tests/unit/kernels/chain.h"
#include "tests/unit/kernels/subjects.h"

static const struct convolution_case convolutions[] = {
    {.n = 1, .h = 1, .w = 1, .c = 1, .k = 1, .r = 1},
    {.n = 1, .h = 1, .w = 1, .c = 1, .k = 1, .r = 3, .bias = true},
    {.n = 1, .h = 1, .w = 1, .c = 5, .k = 7, .r = 3, .groups = 5, .silu = true},
    {.n = 1, .h = 1, .w = 17, .c = 4, .k = 3, .r = 3, .bias = true},
    {.n = 1, .h = 13, .w = 1, .c = 3, .k = 4, .r = 3, .residual = RESIDUAL_APART},
    {.n = 2, .h = 5, .w = 7, .c = 9, .k = 10, .r = 1, .bias = true, .residual = RESIDUAL_ALIAS},
    {.n = 1, .h = 4, .w = 4, .c = 16, .k = 16, .r = 3, .groups = 4, .bias = true},
    {.n = 2, .h = 6, .w = 9, .c = 12, .k = 20, .r = 3, .groups = 3, .silu = true, .bias = true},
    {.n = 1,
     .h = 8,
     .w = 8,
     .c = 32,
     .k = 32,
     .r = 3,
     .groups = 32,
     .silu = true,
     .bias = true,
     .residual = RESIDUAL_ALIAS},
    {.n = 1,
     .h = 9,
     .w = 11,
     .c = 33,
     .k = 31,
     .r = 3,
     .groups = 11,
     .silu = true,
     .bias = true,
     .residual = RESIDUAL_APART},
    {.n = 1,
     .h = 7,
     .w = 10,
     .c = 40,
     .k = 64,
     .r = 3,
     .groups = 8,
     .silu = true,
     .shortcut_c = 24,
     .bias = true},
    {.n = 2,
     .h = 5,
     .w = 5,
     .c = 64,
     .k = 24,
     .r = 3,
     .groups = 32,
     .silu = true,
     .shortcut_c = 3,
     .residual = RESIDUAL_ALIAS},
    {.n = 1, .h = 2, .w = 2, .c = 8, .k = 8, .r = 3, .stride = 2, .bias = true},
    {.n = 1, .h = 3, .w = 5, .c = 6, .k = 9, .r = 3, .stride = 2},
    {.n = 2, .h = 11, .w = 8, .c = 17, .k = 16, .r = 3, .stride = 2, .bias = true},
    {.n = 1, .h = 16, .w = 18, .c = 32, .k = 48, .r = 3, .stride = 2, .bias = true},
    {.n = 1, .h = 1, .w = 1, .c = 8, .k = 8, .r = 3, .upsample = true, .bias = true},
    {.n = 1, .h = 3, .w = 5, .c = 7, .k = 5, .r = 3, .upsample = true},
    {.n = 2, .h = 6, .w = 7, .c = 32, .k = 32, .r = 3, .upsample = true, .bias = true},
    {.n = 1,
     .h = 9,
     .w = 9,
     .c = 24,
     .k = 40,
     .r = 3,
     .upsample = true,
     .bias = true,
     .dtype = DTYPE_BF16},
    {.n = 1,
     .h = 4,
     .w = 17,
     .c = 40,
     .k = 24,
     .r = 3,
     .upsample = true,
     .groups = 8,
     .silu = true,
     .bias = true,
     .residual = RESIDUAL_APART},
    {.n = 2,
     .h = 5,
     .w = 10,
     .c = 9,
     .k = 34,
     .r = 3,
     .upsample = true,
     .groups = 3,
     .silu = true,
     .shortcut_c = 11,
     .bias = true,
     .residual = RESIDUAL_ALIAS,
     .parts = 2},
    {.n = 1, .h = 6, .w = 6, .c = 4, .k = 320, .r = 3, .bias = true, .dtype = DTYPE_F16},
    {.n = 1,
     .h = 5,
     .w = 6,
     .c = 320,
     .k = 4,
     .r = 3,
     .groups = 32,
     .silu = true,
     .bias = true,
     .dtype = DTYPE_BF16},
    {.n = 1, .h = 9, .w = 13, .c = 320, .k = 160, .r = 3, .groups = 32, .silu = true, .bias = true},
    {.n = 1, .h = 6, .w = 5, .c = 512, .k = 8, .r = 1, .groups = 32, .bias = true},
    {.n = 1, .h = 20, .w = 21, .c = 128, .k = 3, .r = 3, .groups = 32, .silu = true, .bias = true},
    {.n = 1, .h = 25, .w = 26, .c = 3, .k = 16, .r = 3, .bias = true},
    {.n = 3,
     .h = 4,
     .w = 3,
     .c = 48,
     .k = 96,
     .r = 1,
     .groups = 16,
     .dtype = DTYPE_F16,
     .parts = 3,
     .bias = true},
    {.n = 1, .h = 6, .w = 6, .c = 16, .k = 24, .r = 3, .dtype = DTYPE_BF16, .parts = 2},
    {.n = 1, .h = 32, .w = 33, .c = 16, .k = 16, .r = 3, .groups = 4, .bias = true, .mean = 1000},
    {.n = 2, .h = 16, .w = 16, .c = 8, .k = 8, .r = 1, .groups = 2, .silu = true, .mean = -1000},
    {.n = 1,
     .h = 12,
     .w = 12,
     .c = 32,
     .k = 32,
     .r = 3,
     .groups = 32,
     .silu = true,
     .bias = true,
     .mean = 1000,
     .residual = RESIDUAL_ALIAS,
     .shortcut_c = 8},
    {.n = 1, .h = 1, .w = 1, .c = 64, .k = 64, .r = 1, .groups = 2, .mean = 1000, .bias = true},
};
#define CONVOLUTIONS (sizeof convolutions / sizeof convolutions[0])

static void check_convolution(struct device **devices, size_t i, const struct subject_group *group)
{
    struct dice dice = {seed_of_run() + i};
    struct convolution_data data;
    struct oracle oracle = {.count = 0};
    float *before = NULL;
    make_convolution(&data, &convolutions[i], &dice, group->storage);
    uint64_t count = data.out_rows * data.op.k;
    for (size_t s = group->first; s < group->end; s++) {
        char what[80];
        snprintf(what, sizeof what, "convolution %zu on %s, %s", i, subjects[s].name,
                 dtype_name(group->storage));
        float *both = run_convolution(devices[s], &convolutions[i], &data);
        // The first run has rounded the weights to their type.
        if (oracle.count == 0) oracle = oracle_convolve(&data.op);
        oracle_compare(&oracle, both, what);
        snprintf(what, sizeof what, "statistics of convolution %zu on %s, %s", i, subjects[s].name,
                 dtype_name(group->storage));
        check_probe(&data, both, what);
        check_repeat(s, &before, both, 2 * count, what);
    }
    free(before);
    oracle_free(&oracle);
    free_convolution(&data);
}

// Whether a kernel for convolutions of 16 bits is chosen by its name: nothing else is to be seen.
static bool is_chosen_alone(void)
{
    return getenv("LUNA_CUDA_CONVOLUTION") != NULL;
}

static void every_convolution_is_right(void **state)
{
    FOR_EACH_GROUP(group)
    {
        if (is_chosen_alone() && group.storage == DTYPE_F32) continue;
        for (size_t i = 0; i < CONVOLUTIONS; i++) check_convolution(*state, i, &group);
    }
}

static void images_of_a_batch_do_not_know_each_other(void **state)
{
    struct device **devices = *state;
    const struct convolution_case batches[] = {
        {.n = 3, .h = 9, .w = 7, .c = 32, .k = 40, .r = 3, .groups = 8, .silu = true, .bias = true},
        {.n = 3, .h = 5, .w = 6, .c = 40, .k = 24, .r = 3, .upsample = true, .bias = true},
        {.n = 3, .h = 8, .w = 8, .c = 20, .k = 36, .r = 3, .stride = 2, .bias = true},
        {.n = 3, .h = 3, .w = 5, .c = 24, .k = 33, .r = 1, .groups = 4}};
    for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++) {
        struct dice dice = {seed_of_run() + i};
        struct convolution_data data;
        make_convolution(&data, &batches[i], &dice, DTYPE_F32);
        uint64_t count = data.out_rows / 3 * data.op.k;
        for (size_t s = 0; s < SUBJECTS; s++) {
            if (is_chosen_alone() && subjects[s].storage == DTYPE_F32) continue;
            struct convolution_case alone = batches[i];
            struct convolution_data third = data;
            float *whole = run_convolution(devices[s], &batches[i], &data);
            alone.n = 1;
            third.op.n = 1;
            third.out_rows /= 3;
            third.x = data.x + 2ull * alone.h * alone.w * alone.c;
            float *part = run_convolution(devices[s], &alone, &third);
            assert_memory_equal(part, whole + 2 * count, count * sizeof *part);
            assert_memory_equal(part + count, whole + 5 * count, count * sizeof *part);
            free(whole);
            free(part);
        }
        free_convolution(&data);
    }
}

// Half a unit in the last place of x.
static double half_unit(double x, enum dtype storage)
{
    int exponent = 0;
    frexp(x, &exponent);
    if (storage == DTYPE_F16) return fmax(ldexp(1, exponent - 12), 0x1p-25);
    return ldexp(1, exponent - (storage == DTYPE_BF16 ? 9 : 25));
}

// An image of 3x3 pixels, all zeros but for a 1 in the middle: each output around it is the sum of
// those weights whose taps see the middle.
#define LIT 37u

static void check_sums(struct device *device, const struct subject *subject)
{
    enum { C = 40, K = 24, OUTPUTS = 36 * K };
    struct dice dice = {seed_of_run()};
    struct rig rig;
    rig_begin(&rig, device);
    float *x = rig_own(&rig, calloc((size_t)9 * C, sizeof *x));
    float *w = rig_own(&rig, dice_array(&dice, (uint64_t)K * C * 9, 0, 1));
    x[4 * C + LIT] = 1;
    struct convolution op = {.n = 1, .h = 3, .w = 3, .c = C, .k = K, .stride = 1, .upsample = true};
    op.input = rig_load(&rig, x, 9, C);
    op.output = rig_tensor(&rig, 36, K);
    op.weight = new_taps(&rig, w, (struct weight_source){.dims = {K, C, 3, 3}, .upsample = true});
    program_convolution(rig.program, &op);
    const float *y = rig_store(&rig, op.output, OUTPUTS);
    rig_run(&rig);
    for (uint32_t at = 0; at < OUTPUTS; at++) {
        double sum = 0;
        double magnitude = IS_DIRECT ? 0 : WINOGRAD_GAIN * 9;
        for (uint32_t tap = 0; tap < 9; tap++) {
            uint32_t row = (at / K / 6 + tap / 3 + 1) / 2;
            uint32_t column = (at / K % 6 + tap % 3 + 1) / 2;
            double factor = (double)w[(at % K * C + LIT) * 9 + tap];
            if (row != 2 || column != 2) continue;
            sum += factor;
            magnitude += fabs(factor);
        }
        double bound = half_unit(sum, subject->storage) + 4 * U * magnitude;
        if (fabs((double)y[at] - sum) <= bound) continue;
        fail_msg("%s, %s: output %u is %.9g, the sum of its weights %.9g +- %.3g", subject->name,
                 dtype_name(subject->storage), at, (double)y[at], sum, bound);
    }
    rig_end(&rig);
}

static void sums_of_upsampling_weights_are_rounded_once(void **state)
{
    struct device **devices = *state;
    for (size_t s = 0; s < SUBJECTS; s++) {
        if (is_chosen_alone() && subjects[s].storage == DTYPE_F32) continue;
        check_sums(devices[s], &subjects[s]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_convolution_is_right),
        cmocka_unit_test(images_of_a_batch_do_not_know_each_other),
        cmocka_unit_test(sums_of_upsampling_weights_are_rounded_once),
    };
    return cmocka_run_group_tests_name("conformance, convolution", tests, subjects_open,
                                       subjects_close);
}
