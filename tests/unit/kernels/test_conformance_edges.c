// test_conformance_edges.c - numbers that are none, on every device: what they reach and what they
// must not; and denormals, which the CPU takes for zero.

#include "base/clock.h"
#include "tests/unit/kernels/subjects.h"

static struct weight *new_weight(struct rig *rig, enum weight_form form, const uint32_t dims[4],
                                 float *values, uint64_t count)
{
    struct weight_source source = {.form = form, .dtype = DTYPE_F32, .parts_count = 1};
    memcpy(source.dims, dims, sizeof source.dims);
    return rig_weight(rig, source, values, count);
}

static const float bad[] = {NAN, INFINITY, -INFINITY};
#define BAD (sizeof bad / sizeof bad[0])

// Fails unless just the elements that `reached` names are not finite.
static void expect_reach(const float *y, uint64_t count, bool (*reached)(uint64_t),
                         const char *what)
{
    for (uint64_t i = 0; i < count; i++) {
        if ((bool)isfinite(y[i]) != reached(i)) continue;
        fail_msg("%s: element %llu is %g", what, (unsigned long long)i, (double)y[i]);
    }
}

// ---------------------------------------------------------------------------------------------
// Linear and layer norm: a row is on its own

enum { ROWS = 20, WIDTH = 40, BAD_ROW = 7 };

static bool is_bad_row(uint64_t element)
{
    return element / WIDTH == BAD_ROW;
}

static void a_bad_number_stays_in_its_row(void **state)
{
    struct device **devices = *state;
    for (size_t i = 0; i < SUBJECTS * BAD; i++) {
        struct dice dice = {seed_of_run()};
        struct rig rig;
        const char *name = subjects[i / BAD].name;
        rig_begin(&rig, devices[i / BAD]);
        float *x = rig_own(&rig, dice_array(&dice, ROWS * WIDTH, 0, 1));
        float *w = rig_own(&rig, dice_array(&dice, WIDTH * WIDTH, 0, 0.2f));
        float *ones = rig_own(&rig, dice_array(&dice, WIDTH, 1, 0.1f));
        x[BAD_ROW * WIDTH + 5] = bad[i % BAD];
        struct value input = rig_load(&rig, x, ROWS, WIDTH);
        struct linear op = {.input = input, .rows = ROWS, .c = WIDTH, .k = WIDTH};
        op.output = rig_tensor(&rig, ROWS, WIDTH);
        op.weight = new_weight(&rig, WEIGHT_MATRIX, (uint32_t[4]){WIDTH, WIDTH}, w, WIDTH * WIDTH);
        program_linear(rig.program, &op);
        struct layer_norm norm = {.input = input, .rows = ROWS, .width = WIDTH, .epsilon = 1e-5f};
        norm.output = rig_tensor(&rig, ROWS, WIDTH);
        norm.gamma = norm.beta = rig_vector(&rig, ones, WIDTH);
        program_layer_norm(rig.program, &norm);
        const float *product = rig_store(&rig, op.output, ROWS * WIDTH);
        const float *normed = rig_store(&rig, norm.output, ROWS * WIDTH);
        rig_run(&rig);
        expect_reach(product, ROWS * WIDTH, is_bad_row, name);
        expect_reach(normed, ROWS * WIDTH, is_bad_row, name);
        rig_end(&rig);
    }
}

// ---------------------------------------------------------------------------------------------
// Attention: a query is on its own, a key is seen by the tokens behind it

enum { TOKENS = 19, HEADS = 2, HEAD = 16, LINE = HEADS * HEAD };

static bool is_bad_query(uint64_t element)
{
    return element / LINE == BAD_ROW && element % LINE < HEAD;
}

static bool sees_bad_key(uint64_t element)
{
    return element / LINE >= BAD_ROW && element % LINE < HEAD;
}

static void attend(struct device *device, float number, uint32_t at, bool (*reached)(uint64_t),
                   const char *what)
{
    struct dice dice = {seed_of_run()};
    struct rig rig;
    rig_begin(&rig, device);
    float *x = rig_own(&rig, dice_array(&dice, TOKENS * 3 * LINE, 0, 1));
    x[BAD_ROW * 3 * LINE + at] = number;
    struct attention op = {.batch = 1, .tokens = TOKENS, .heads = HEADS, .head_width = HEAD};
    op.q = op.k = op.v = rig_load(&rig, x, TOKENS, 3 * LINE);
    uint64_t element = op.q.bytes / (TOKENS * 3 * LINE);
    op.k.offset += LINE * element;
    op.k.bytes -= LINE * element;
    op.v.offset += 2 * LINE * element;
    op.v.bytes -= 2 * LINE * element;
    op.q_stride = op.k_stride = op.v_stride = 3 * LINE;
    op.scale = 0.25f;
    op.causal = true;
    op.output = rig_tensor(&rig, TOKENS, LINE);
    program_attention(rig.program, &op);
    const float *y = rig_store(&rig, op.output, TOKENS * LINE);
    rig_run(&rig);
    expect_reach(y, TOKENS * LINE, reached, what);
    rig_end(&rig);
}

static void a_bad_query_spoils_one_token_and_a_bad_key_those_that_see_it(void **state)
{
    struct device **devices = *state;
    for (size_t s = 0; s < SUBJECTS; s++) {
        attend(devices[s], NAN, 3, is_bad_query, subjects[s].name);
        attend(devices[s], NAN, LINE + 3, sees_bad_key, subjects[s].name);
    }
}

// ---------------------------------------------------------------------------------------------
// Convolution: a pixel reaches as far as the filter

enum { SIDE = 12, CHANNELS = 32, BAD_Y = 5, BAD_X = 8 };

static bool is_near(uint64_t element)
{
    int pixel = (int)(element / CHANNELS);
    return abs(pixel / SIDE - BAD_Y) <= 1 && abs(pixel % SIDE - BAD_X) <= 1;
}

static void a_bad_pixel_spoils_nine(void **state)
{
    struct device **devices = *state;
    for (size_t i = 0; i < SUBJECTS * BAD; i++) {
        struct dice dice = {seed_of_run()};
        struct rig rig;
        rig_begin(&rig, devices[i / BAD]);
        uint64_t taps = (uint64_t)CHANNELS * CHANNELS * 9;
        float *x = rig_own(&rig, dice_array(&dice, SIDE * SIDE * CHANNELS, 0, 1));
        float *w = rig_own(&rig, dice_array(&dice, taps, 0, 0.1f));
        x[(BAD_Y * SIDE + BAD_X) * CHANNELS + 4] = bad[i % BAD];
        struct convolution op = {.n = 1, .h = SIDE, .w = SIDE, .c = CHANNELS, .k = CHANNELS};
        op.input = rig_load(&rig, x, SIDE * SIDE, CHANNELS);
        op.output = rig_tensor(&rig, SIDE * SIDE, CHANNELS);
        op.stride = 1;
        op.weight =
            new_weight(&rig, WEIGHT_CONVOLUTION, (uint32_t[4]){CHANNELS, CHANNELS, 3, 3}, w, taps);
        program_convolution(rig.program, &op);
        const float *y = rig_store(&rig, op.output, SIDE * SIDE * CHANNELS);
        rig_run(&rig);
        expect_reach(y, SIDE * SIDE * CHANNELS, is_near, subjects[i / BAD].name);
        rig_end(&rig);
    }
}

// ---------------------------------------------------------------------------------------------
// Denormals on the CPU

// The time of a linear [96, 256] of one number, with weights of 1; y is its first output.
static uint64_t multiply(struct device *device, float number, float *y)
{
    enum { R = 96, C = 256 };
    struct rig rig;
    rig_begin(&rig, device);
    float *x = rig_own(&rig, malloc(R * C * sizeof *x));
    float *w = rig_own(&rig, malloc(C * C * sizeof *w));
    for (int i = 0; i < R * C; i++) x[i] = number;
    for (int i = 0; i < C * C; i++) w[i] = 1;
    struct linear op = {.rows = R, .c = C, .k = C};
    op.input = rig_load(&rig, x, R, C);
    op.output = rig_tensor(&rig, R, C);
    op.weight = new_weight(&rig, WEIGHT_MATRIX, (uint32_t[4]){C, C}, w, C * C);
    for (int i = 0; i < 8; i++) program_linear(rig.program, &op);
    const float *memory = rig_store(&rig, op.output, R * C);
    uint64_t begin_ns = clock_ns(clock_system());
    rig_run(&rig);
    uint64_t elapsed_ns = clock_ns(clock_system()) - begin_ns;
    for (int i = 0; i < R * C; i++) assert_true(memory[i] == memory[0]);
    *y = memory[0];
    rig_end(&rig);
    return elapsed_ns;
}

static void denormals_are_zeros_and_cost_nothing(void **state)
{
    (void)state;
    static const char *const names[] = {"cpu", "cpu:plain"};
    for (size_t i = 0; i < 2; i++) {
        struct device *device = open_device(names[i], 3);
        uint64_t normal_ns = UINT64_MAX;
        uint64_t denormal_ns = UINT64_MAX;
        for (int turn = 0; turn < 4; turn++) {
            float y = 0;
            uint64_t ns = multiply(device, 1, &y);
            assert_true(y == 256.0f);
            if (ns < normal_ns) normal_ns = ns;
            ns = multiply(device, 1e-40f, &y);
            assert_true(y == 0);
            if (ns < denormal_ns) denormal_ns = ns;
        }
        if (denormal_ns > 10 * normal_ns) {
            fail_msg("%s: %llu ns with denormals, %llu without", names[i],
                     (unsigned long long)denormal_ns, (unsigned long long)normal_ns);
        }
        device_close(&device);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bad_number_stays_in_its_row),
        cmocka_unit_test(a_bad_query_spoils_one_token_and_a_bad_key_those_that_see_it),
        cmocka_unit_test(a_bad_pixel_spoils_nine),
        cmocka_unit_test(denormals_are_zeros_and_cost_nothing),
    };
    return cmocka_run_group_tests_name("edges", tests, subjects_open, subjects_close);
}
