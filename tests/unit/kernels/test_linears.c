// test_linears.c - a row of a linear has its bytes whatever rows are beside it, and a library that
// makes the products of a GPU makes those that our kernels make.

#include "tests/unit/kernels/subjects.h"

#define ROWS 400u  // more than one block of a library, split or not

#ifdef LUNA_TEST_CARD
#define SHAPES                                                                                     \
    {                                                                                              \
        {64, 64}, {192, 64}, {2304, 768}, {1280, 1280}, {5120, 1280},                              \
        {                                                                                          \
            1280, 5120                                                                             \
        }                                                                                          \
    }
#else
#define SHAPES                                                                                     \
    {                                                                                              \
        {64, 64}, {192, 64}, {40, 520},                                                            \
        {                                                                                          \
            136, 256                                                                               \
        }                                                                                          \
    }
#endif

static const struct shape {
    uint32_t k, c;
} shapes[] = SHAPES;

static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};

// One linear: what it is made of.
struct linear_case {
    struct shape shape;
    enum dtype type;  // of the weights
    bool has_bias, has_paths;
};

// Some number from -1 to 1, the same for the same place.
static float number(uint64_t i, uint32_t seed)
{
    uint64_t mixed = (i + 1) * UINT64_C(0x9e3779b97f4a7c15) + seed * UINT64_C(0xbf58476d1ce4e5b9);
    return (float)(mixed >> 40) / 8388608.0f - 1.0f;
}

static float *numbers(struct rig *rig, uint64_t count, uint32_t seed)
{
    float *values = rig_own(rig, malloc(count * sizeof *values));
    for (uint64_t i = 0; i < count; i++) values[i] = number(i, seed);
    return values;
}

static struct weight *matrix(struct rig *rig, const struct linear_case *with, struct shape shape,
                             uint32_t seed)
{
    uint64_t count = (uint64_t)shape.k * shape.c;
    struct weight_source source = {
        .form = WEIGHT_MATRIX, .dtype = with->type, .dims = {shape.k, shape.c}, .parts_count = 1};
    return rig_weight(rig, source, numbers(rig, count, seed), count);
}

// An adapter on all rows but the first three of all; the rows here are `count` from `first` on.
static uint32_t add_paths(struct rig *rig, const struct linear_case *with, uint32_t first,
                          uint32_t count, struct low_rank *paths)
{
    if (!with->has_paths) return 0;
    struct shape shape = with->shape;
    struct weight *down = matrix(rig, with, (struct shape){4, shape.c}, 5);
    struct weight *up = matrix(rig, with, (struct shape){shape.k, 4}, 6);
    uint32_t begin = first < 3 ? 3 - first : 0;  // rows 3 to the last
    if (begin >= count) return 0;
    paths[0] = (struct low_rank){.row_begin = begin,
                                 .row_count = count - begin,
                                 .column_count = shape.k,
                                 .rank = 4,
                                 .down = down,
                                 .up = up,
                                 .scale = 0.5f};
    return 1;
}

// Rows `first` to `first + count` of the case; the caller frees them.
static float *run_rows(struct device *device, const struct linear_case *with, uint32_t first,
                       uint32_t count)
{
    struct rig rig;
    struct low_rank paths[1];
    struct shape shape = with->shape;
    rig_begin(&rig, device);
    float *input = rig_own(&rig, malloc((uint64_t)count * shape.c * sizeof *input));
    for (uint64_t i = 0; i < (uint64_t)count * shape.c; i++) {
        input[i] = number((uint64_t)first * shape.c + i, 1);
    }
    struct linear op = {.rows = count, .c = shape.c, .k = shape.k};
    op.input = rig_load(&rig, input, count, shape.c);
    op.weight = matrix(&rig, with, shape, 2);
    if (with->has_bias) op.bias = rig_vector(&rig, numbers(&rig, shape.k, 3), shape.k);
    op.activation = ACTIVATION_QUICK_GELU;
    op.output = rig_tensor(&rig, count, shape.k);
    op.low_rank_count = add_paths(&rig, with, first, count, paths);
    op.low_rank = op.low_rank_count > 0 ? paths : NULL;
    program_linear(rig.program, &op);
    float *stored = rig_store(&rig, op.output, (uint64_t)count * shape.k);
    rig_run(&rig);
    float *result = malloc((uint64_t)count * shape.k * sizeof *result);
    assert_non_null(result);
    memcpy(result, stored, (uint64_t)count * shape.k * sizeof *result);
    rig_end(&rig);
    return result;
}

static struct device *open_subject(const struct subject *subject, const char *linears)
{
    struct device_options options = {
        .name = subject->name, .threads = subject->threads, .precision_fast = subject->fast};
    setenv("LUNA_CUDA_LINEARS", linears, 1);
    struct device *device = open_device_with(&options);
    unsetenv("LUNA_CUDA_LINEARS");
    return device;
}

static void check_rows(struct device *device, const struct linear_case *with)
{
    static const struct {
        uint32_t first, count;
    } parts[] = {{0, 1}, {77, 154}, {50, 350}};
    float *whole = run_rows(device, with, 0, ROWS);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        float *part = run_rows(device, with, parts[i].first, parts[i].count);
        uint64_t count = (uint64_t)parts[i].count * with->shape.k;
        if (memcmp(part, whole + (uint64_t)parts[i].first * with->shape.k, count * sizeof *part)) {
            fail_msg("%s, %s, [%u, %u]: rows %u to %u have other bytes than among %u",
                     device_info(device)->label, dtype_name(with->type), with->shape.k,
                     with->shape.c, parts[i].first, parts[i].first + parts[i].count, ROWS);
        }
        free(part);
    }
    free(whole);
}

// A fast device makes its own type of any.
static size_t types_of(const struct subject *subject)
{
    return subject->fast ? 1 : sizeof types / sizeof types[0];
}

static void check_device(struct device *device, const struct subject *subject)
{
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (size_t j = 0; j < types_of(subject); j++) {
            struct linear_case with = {.shape = shapes[i],
                                       .type = types[j],
                                       .has_bias = (i + j) % 2 == 0,
                                       .has_paths = i == 0};
            check_rows(device, &with);
        }
    }
}

static void a_row_has_its_bytes_whatever_rows_are_beside_it(void **state)
{
    (void)state;
    for (size_t i = 0; i < SUBJECTS; i++) {
        if (is_repeat(i)) continue;
        struct device *device = open_subject(&subjects[i], "own");
        check_device(device, &subjects[i]);
        device_close(&device);
    }
}

// ---------------------------------------------------------------------------------------------
// Operations one behind the other

#define CHAIN_ROWS 83u
#define CHAIN_WIDTH 72u
#define CHAIN_INNER 200u

// A layer of a text without its attention, and the norm and linear of the next one.
struct chain {
    struct rig rig;                        //
    struct linear_case with;               // what the weights are
    struct weight *gamma, *beta, *biases;  // [CHAIN_WIDTH], [CHAIN_INNER]
    struct value spare;                    // that nobody reads
    bool is_interrupted;                   // something else is done between any two
};

// Ends an operation: what follows is not the one behind it.
static void interrupt(struct chain *self)
{
    if (!self->is_interrupted) return;
    program_clear(self->rig.program, &(struct clear){.output = self->spare, .bytes = 4});
}

static struct value add_norm(struct chain *self, struct value input, uint32_t width)
{
    struct value output = program_tensor(self->rig.program, 1, 1, CHAIN_ROWS, width);
    program_layer_norm(self->rig.program, &(struct layer_norm){.input = input,
                                                               .output = output,
                                                               .rows = CHAIN_ROWS,
                                                               .width = width,
                                                               .gamma = self->gamma,
                                                               .beta = self->beta,
                                                               .epsilon = 1e-5f});
    interrupt(self);
    return output;
}

static struct value add_linear(struct chain *self, struct value input, struct shape shape,
                               struct value residual)
{
    struct program *program = self->rig.program;
    struct linear op = {.input = input, .rows = CHAIN_ROWS, .c = shape.c, .k = shape.k};
    op.output = program_tensor(program, 1, 1, CHAIN_ROWS, shape.k);
    op.weight = matrix(&self->rig, &self->with, shape, shape.k);
    op.bias = shape.k == CHAIN_INNER ? self->biases : NULL;
    op.activation = shape.k == CHAIN_INNER ? ACTIVATION_GELU : ACTIVATION_NONE;
    op.residual = residual;
    program_linear(program, &op);
    program_release(program, input);
    interrupt(self);
    return op.output;
}

// Two outputs of the chain, one behind the other; the caller frees them.
static float *run_chain(struct device *device, enum dtype type, bool is_interrupted)
{
    const uint64_t count = (uint64_t)CHAIN_ROWS * CHAIN_WIDTH;
    const struct value none = {.place = VALUE_NONE};
    struct chain self = {.with = {.type = type}, .is_interrupted = is_interrupted};
    rig_begin(&self.rig, device);
    self.gamma = rig_vector(&self.rig, numbers(&self.rig, CHAIN_WIDTH, 7), CHAIN_WIDTH);
    self.beta = rig_vector(&self.rig, numbers(&self.rig, CHAIN_WIDTH, 8), CHAIN_WIDTH);
    self.biases = rig_vector(&self.rig, numbers(&self.rig, CHAIN_INNER, 9), CHAIN_INNER);
    self.spare = program_bytes(self.rig.program, 4);
    struct value x = rig_load(&self.rig, numbers(&self.rig, count, 10), CHAIN_ROWS, CHAIN_WIDTH);
    struct value y = add_norm(&self, x, CHAIN_WIDTH);
    y = add_linear(&self, y, (struct shape){CHAIN_INNER, CHAIN_WIDTH}, none);
    x = add_linear(&self, y, (struct shape){CHAIN_WIDTH, CHAIN_INNER}, x);
    program_mark(self.rig.program);
    y = add_norm(&self, x, CHAIN_WIDTH);
    y = add_linear(&self, y, (struct shape){CHAIN_WIDTH, CHAIN_WIDTH}, none);
    const float *first = rig_store(&self.rig, x, count);
    const float *second = rig_store(&self.rig, y, count);
    rig_run(&self.rig);
    float *result = malloc(2 * count * sizeof *result);
    assert_non_null(result);
    memcpy(result, first, count * sizeof *result);
    memcpy(result + count, second, count * sizeof *result);
    rig_end(&self.rig);
    return result;
}

// On a GPU a linear makes the norm behind it, and either the operand of the linear behind it.
static void what_is_done_for_those_behind_has_the_same_bytes(void **state)
{
    (void)state;
    for (size_t i = 0; i < SUBJECTS; i++) {
        if (is_repeat(i)) continue;
        struct device *device = open_subject(&subjects[i], "own");
        for (size_t j = 0; j < types_of(&subjects[i]); j++) {
            float *at_once = run_chain(device, types[j], false);
            float *apart = run_chain(device, types[j], true);
            assert_memory_equal(at_once, apart, 2ull * CHAIN_ROWS * CHAIN_WIDTH * sizeof *apart);
            free(at_once);
            free(apart);
        }
        device_close(&device);
    }
}

#ifdef LUNA_TEST_GPU

static void check_linears(const char *linears)
{
    for (size_t i = 0; i < SUBJECTS; i++) {
        struct device *device = open_subject(&subjects[i], linears);
        print_message("%s\n", device_info(device)->note);
        check_device(device, &subjects[i]);
        device_close(&device);
    }
}

static bool has_wgmma(void)
{
    struct device *device = open_subject(&subjects[0], "own");
    bool has = strcmp(device_info(device)->capability, "9.0") == 0;
    device_close(&device);
    return has;
}

static void by_a_library_too(void **state)
{
    (void)state;
    check_linears("cublaslt");
}

static void by_wgmma_too(void **state)
{
    (void)state;
    if (!has_wgmma()) skip();
    check_linears("wgmma");
}

// The emulator's library is made of our kernels: what surrounds it must not change a bit, but that
// it adds up each part of a split input for itself. On a card the sums have another order.
static double bar_of(enum dtype storage, enum dtype type)
{
    if (storage == DTYPE_F32 && type != DTYPE_F32) return 4e-6;
#ifdef LUNA_TEST_CARD
    if (storage == DTYPE_F32) return 4e-6;
    return storage == DTYPE_F16 ? 2e-3 : 2e-2;
#else
    return 0;
#endif
}

static void check_pair(struct device *own, struct device *other, const struct linear_case *with,
                       double bar)
{
    float *a = run_rows(own, with, 0, ROWS);
    float *b = run_rows(other, with, 0, ROWS);
    double worst = 0;
    double largest = 0;
    for (uint64_t i = 0; i < (uint64_t)ROWS * with->shape.k; i++) {
        double off = fabs((double)a[i] - (double)b[i]);
        if (!(off <= worst)) worst = off;
        largest = fmax(largest, fabs((double)a[i]));
    }
    if (!(worst <= bar * largest)) {
        fail_msg("%s, [%u, %u]: off by %g of %g", dtype_name(with->type), with->shape.k,
                 with->shape.c, worst, largest);
    }
    free(a);
    free(b);
}

static void check_same(const char *linears)
{
    for (size_t i = 0; i < SUBJECTS; i++) {
        struct device *own = open_subject(&subjects[i], "own");
        struct device *other = open_subject(&subjects[i], linears);
        for (size_t j = 0; j < sizeof shapes / sizeof shapes[0]; j++) {
            for (size_t k = 0; k < types_of(&subjects[i]); k++) {
                struct linear_case with = {.shape = shapes[j],
                                           .type = types[k],
                                           .has_bias = (j + k) % 2 == 1,
                                           .has_paths = j == 0};
                check_pair(own, other, &with, bar_of(subjects[i].storage, types[k]));
            }
        }
        device_close(&other);
        device_close(&own);
    }
}

static void a_library_makes_the_products_of_our_kernels(void **state)
{
    (void)state;
    check_same("cublaslt");
}

static void wgmma_makes_the_products_of_mma(void **state)
{
    (void)state;
    if (!has_wgmma()) skip();
    check_same("wgmma");
}

static void who_makes_the_products_is_said_and_what_is_none_is_refused(void **state)
{
    (void)state;
    struct device *device = NULL;
    struct error error;
    struct device_options options = {.name = subjects[0].name};
    setenv("LUNA_CUDA_LINEARS", "mine", 1);
    assert_int_equal(device_open(&device, &options, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "LUNA_CUDA_LINEARS is \"mine\""));
    setenv("LUNA_CUDA_LINEARS", "cublaslt", 1);
    const char *before = getenv("LUNA_CUBLASLT");
    char path[512];
    snprintf(path, sizeof path, "%s", before != NULL ? before : "");
    setenv("LUNA_CUBLASLT", "/nowhere/libcublasLt.so", 1);
    device = open_device_with(&options);
    assert_non_null(strstr(device_info(device)->note, "linears by our own kernels: "));
    assert_non_null(strstr(device_info(device)->note, "/nowhere/libcublasLt.so"));
    device_close(&device);
    unsetenv("LUNA_CUBLASLT");
    if (path[0] != '\0') setenv("LUNA_CUBLASLT", path, 1);
    unsetenv("LUNA_CUDA_LINEARS");
    device = open_device_with(&options);
    assert_string_equal(device_info(device)->note, "");
    device_close(&device);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_row_has_its_bytes_whatever_rows_are_beside_it),
        cmocka_unit_test(what_is_done_for_those_behind_has_the_same_bytes),
#ifdef LUNA_TEST_GPU
        cmocka_unit_test(by_a_library_too),
        cmocka_unit_test(by_wgmma_too),
        cmocka_unit_test(a_library_makes_the_products_of_our_kernels),
        cmocka_unit_test(wgmma_makes_the_products_of_mma),
        cmocka_unit_test(who_makes_the_products_is_said_and_what_is_none_is_refused),
#endif
    };
    choose_tests();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
