// test_conformance_linear.c - linear and layer norm of every device against the formulas in float64
// (oracle.h), over NaN and between guards.

#include "tests/unit/kernels/oracle.h"
#include "tests/unit/kernels/subjects.h"

// ---------------------------------------------------------------------------------------------
// Linear

#define PATHS_MAX 3u

struct linear_case {
    uint32_t rows, c, k;
    bool bias;
    enum activation activation;
    enum residual residual;
    enum dtype dtype;                     // 0 means f32
    uint32_t parts;                       // 0 means 1
    struct oracle_path paths[PATHS_MAX];  // rank 0: none; down and up are made for each
};

static const struct linear_case linears[] = {
    {.rows = 1, .c = 1, .k = 1},
    {.rows = 1, .c = 768, .k = 768, .bias = true},
    {.rows = 77, .c = 64, .k = 3, .bias = true, .activation = ACTIVATION_QUICK_GELU},
    {.rows = 77, .c = 100, .k = 130, .bias = true, .residual = RESIDUAL_ALIAS},
    {.rows = 5, .c = 7, .k = 9, .residual = RESIDUAL_APART, .activation = ACTIVATION_GELU},
    {.rows = 13, .c = 320, .k = 320, .bias = true, .dtype = DTYPE_F16},
    {.rows = 78, .c = 96, .k = 8, .dtype = DTYPE_BF16, .activation = ACTIVATION_GELU, .bias = true},
    {.rows = 154, .c = 128, .k = 384, .bias = true, .dtype = DTYPE_F16, .parts = 3},
    {.rows = 20, .c = 33, .k = 45, .bias = true, .parts = 3, .dtype = DTYPE_BF16},
    {.rows = 64, .c = 1280, .k = 32, .bias = true, .activation = ACTIVATION_QUICK_GELU},
    {.rows = 10, .c = 40, .k = 48, .bias = true, .paths = {{0, 10, 0, 48, 4, 0.5f, NULL, NULL}}},
    {.rows = 30,
     .c = 64,
     .k = 96,
     .bias = true,
     .dtype = DTYPE_F16,
     .parts = 3,
     .activation = ACTIVATION_GELU,
     .residual = RESIDUAL_APART,
     .paths = {{3, 9, 32, 32, 8, 1.5f, NULL, NULL},
               {3, 20, 0, 32, 1, -0.7f, NULL, NULL},
               {29, 1, 95, 1, 16, 2, NULL, NULL}}},
    {.rows = 77,
     .c = 72,
     .k = 100,
     .dtype = DTYPE_BF16,
     .residual = RESIDUAL_ALIAS,
     .paths = {{0, 77, 7, 60, 5, 1, NULL, NULL}, {11, 60, 0, 100, 64, 0.1f, NULL, NULL}}},
};
#define LINEARS (sizeof linears / sizeof linears[0])

struct linear_data {
    struct oracle_linear op;                 // points into what follows
    struct oracle_path paths[PATHS_MAX];     // as in the case
    float *x, *weight, *bias, *residual;     // as in struct oracle_linear
    float *down[PATHS_MAX], *up[PATHS_MAX];  // of the adapters
};

static void make_linear(struct linear_data *self, const struct linear_case *c, struct dice *dice,
                        enum dtype storage)
{
    float sigma = (float)(1 / sqrt((double)c->c));
    memset(self, 0, sizeof *self);
    self->x = dice_array(dice, (uint64_t)c->rows * c->c, 0, 1);
    self->weight = dice_array(dice, (uint64_t)c->k * c->c, 0, 2 * sigma);
    self->bias = dice_array(dice, c->k, 0, 1);
    self->residual = dice_array(dice, (uint64_t)c->rows * c->k, 0, 1);
    self->op = (struct oracle_linear){.rows = c->rows, .c = c->c, .k = c->k};
    self->op.activation = c->activation;
    self->op.input = self->x;
    self->op.weight = self->weight;
    self->op.bias = c->bias ? self->bias : NULL;
    self->op.residual = c->residual == RESIDUAL_NONE ? NULL : self->residual;
    self->op.paths = self->paths;
    self->op.storage = storage;
    round_all(self->x, (uint64_t)c->rows * c->c, storage);
    round_all(self->weight, (uint64_t)c->k * c->c, storage);
    round_all(self->residual, (uint64_t)c->rows * c->k, storage);
    for (uint32_t i = 0; i < PATHS_MAX && c->paths[i].rank > 0; i++) {
        self->paths[i] = c->paths[i];
        uint64_t rank = c->paths[i].rank;
        self->down[i] = dice_array(dice, rank * c->c, 0, sigma);
        self->up[i] = dice_array(dice, c->paths[i].column_count * rank, 0, 1);
        round_all(self->down[i], rank * c->c, storage);
        round_all(self->up[i], c->paths[i].column_count * rank, storage);
        self->paths[i].down = self->down[i];
        self->paths[i].up = self->up[i];
        self->op.paths_count++;
    }
}

static void free_linear(struct linear_data *self)
{
    for (uint32_t i = 0; i < PATHS_MAX; i++) {
        free(self->down[i]);
        free(self->up[i]);
    }
    free(self->x);
    free(self->weight);
    free(self->bias);
    free(self->residual);
}

static struct weight *new_matrix(struct rig *rig, float *values, const uint32_t dims[2],
                                 enum dtype dtype, uint32_t parts)
{
    struct weight_source source = {.form = WEIGHT_MATRIX,
                                   .dtype = dtype == DTYPE_NONE ? DTYPE_F32 : dtype,
                                   .parts_count = parts == 0 ? 1 : parts};
    source.dims[0] = dims[0] / source.parts_count;
    source.dims[1] = dims[1];
    return rig_weight(rig, source, values, (uint64_t)dims[0] * dims[1]);
}

static struct weight *new_bias(struct rig *rig, const struct linear_case *c, float *values)
{
    struct weight_source source = {.form = WEIGHT_VECTOR,
                                   .dtype = c->dtype == DTYPE_NONE ? DTYPE_F32 : c->dtype,
                                   .parts_count = c->parts == 0 ? 1 : c->parts};
    source.dims[0] = c->k / source.parts_count;
    return rig_weight(rig, source, values, c->k);
}

// Runs rows row_begin .. row_begin + rows of the case as a linear of their own.
static float *run_linear(struct device *device, const struct linear_case *c,
                         struct linear_data *data, uint32_t row_begin, uint32_t rows)
{
    struct rig rig;
    struct low_rank paths[PATHS_MAX] = {{.rank = 0}};
    rig_begin(&rig, device);
    const float *residual = data->residual + (uint64_t)row_begin * c->k;
    struct linear op = {.rows = rows, .c = c->c, .k = c->k, .activation = c->activation};
    op.input = rig_load(&rig, data->x + (uint64_t)row_begin * c->c, rows, c->c);
    op.output = rig_tensor(&rig, rows, c->k);
    if (c->residual != RESIDUAL_NONE) op.residual = rig_load(&rig, residual, rows, c->k);
    if (c->residual == RESIDUAL_ALIAS) op.output = op.residual;
    op.weight = new_matrix(&rig, data->weight, (uint32_t[2]){c->k, c->c}, c->dtype, c->parts);
    if (c->bias) op.bias = new_bias(&rig, c, data->bias);
    for (uint32_t i = 0; i < data->op.paths_count; i++) {
        const struct oracle_path *path = &data->paths[i];
        paths[i].row_begin = path->row_begin;
        paths[i].row_count = path->row_count;
        paths[i].column_begin = path->column_begin;
        paths[i].column_count = path->column_count;
        paths[i].rank = path->rank;
        paths[i].scale = path->scale;
        paths[i].down = new_matrix(&rig, data->down[i], (uint32_t[2]){path->rank, c->c},
                                   i == 0 ? DTYPE_F16 : DTYPE_F32, 1);
        paths[i].up = new_matrix(&rig, data->up[i], (uint32_t[2]){path->column_count, path->rank},
                                 i == 0 ? DTYPE_BF16 : DTYPE_F32, 1);
    }
    op.low_rank = paths;
    op.low_rank_count = data->op.paths_count;
    program_linear(rig.program, &op);
    uint64_t bytes = (uint64_t)rows * c->k * sizeof(float);
    const float *memory = rig_store(&rig, op.output, (uint64_t)rows * c->k);
    rig_run(&rig);
    float *y = malloc(bytes);
    assert_non_null(y);
    memcpy(y, memory, bytes);
    rig_end(&rig);
    return y;
}

static void check_linear(struct device **devices, size_t i, const struct subject_group *group)
{
    struct dice dice = {seed_of_run() + 100 + i};
    struct linear_data data;
    struct oracle oracle = {.count = 0};
    float *before = NULL;
    make_linear(&data, &linears[i], &dice, group->storage);
    for (size_t s = group->first; s < group->end; s++) {
        char what[80];
        snprintf(what, sizeof what, "linear %zu on %s, %s", i, subjects[s].name,
                 dtype_name(group->storage));
        float *y = run_linear(devices[s], &linears[i], &data, 0, linears[i].rows);
        if (oracle.count == 0) oracle = oracle_multiply(&data.op);
        oracle_compare(&oracle, y, what);
        check_repeat(s, &before, y, oracle.count, what);
    }
    free(before);
    oracle_free(&oracle);
    free_linear(&data);
}

static void every_linear_is_right(void **state)
{
    FOR_EACH_GROUP(group)
    {
        for (size_t i = 0; i < LINEARS; i++) check_linear(*state, i, &group);
    }
}

static void rows_of_a_batch_do_not_know_each_other(void **state)
{
    struct device **devices = *state;
    const struct linear_case batch = {.rows = 154,
                                      .c = 200,
                                      .k = 72,
                                      .bias = true,
                                      .dtype = DTYPE_F16,
                                      .activation = ACTIVATION_GELU};
    struct dice dice = {seed_of_run()};
    struct linear_data data;
    make_linear(&data, &batch, &dice, DTYPE_F32);
    for (size_t s = 0; s < SUBJECTS; s++) {
        float *whole = run_linear(devices[s], &batch, &data, 0, 154);
        const uint32_t parts[][2] = {{0, 77}, {77, 77}, {5, 1}, {100, 13}, {150, 4}};
        for (size_t i = 0; i < 5; i++) {
            float *part = run_linear(devices[s], &batch, &data, parts[i][0], parts[i][1]);
            assert_memory_equal(part, whole + (uint64_t)parts[i][0] * batch.k,
                                (uint64_t)parts[i][1] * batch.k * sizeof *part);
            free(part);
        }
        free(whole);
    }
    free_linear(&data);
}

// ---------------------------------------------------------------------------------------------
// Layer norm

struct layer_norm_case {
    uint32_t rows, width;
    float mean;
    bool in_place;
};

static const struct layer_norm_case layer_norms[] = {
    {1, 1, 0, false}, {1, 3, 5, true},      {77, 768, 0, false},     {154, 1280, 0, true},
    {9, 37, 1, true}, {5, 100, 1000, true}, {3, 1280, -1000, false},
};
#define LAYER_NORMS (sizeof layer_norms / sizeof layer_norms[0])

static float *run_layer_norm(struct device *device, const struct layer_norm_case *c,
                             float *arrays[3])
{
    struct rig rig;
    rig_begin(&rig, device);
    uint64_t count = (uint64_t)c->rows * c->width;
    struct layer_norm op = {.rows = c->rows, .width = c->width, .epsilon = 1e-5f};
    op.output = rig_tensor(&rig, c->rows, c->width);
    op.input = rig_load(&rig, arrays[0], c->rows, c->width);
    if (c->in_place) op.output = op.input;
    op.gamma = rig_vector(&rig, arrays[1], c->width);
    op.beta = rig_vector(&rig, arrays[2], c->width);
    program_layer_norm(rig.program, &op);
    const float *memory = rig_store(&rig, op.output, count);
    rig_run(&rig);
    float *y = malloc(count * sizeof *y);
    assert_non_null(y);
    memcpy(y, memory, count * sizeof *y);
    rig_end(&rig);
    return y;
}

// A row is an image of one pixel with one group: the formula and the bound are those of GroupNorm.
static void check_layer_norm(struct device **devices, size_t i, const struct subject_group *group)
{
    const struct layer_norm_case *c = &layer_norms[i];
    struct dice dice = {seed_of_run() + 300 + i};
    uint64_t count = (uint64_t)c->rows * c->width;
    float *arrays[3] = {dice_array(&dice, count, c->mean, 1), dice_array(&dice, c->width, 1, 0.5f),
                        dice_array(&dice, c->width, 0, 0.5f)};
    round_all(arrays[0], count, group->storage);
    struct oracle_convolution op = {.n = c->rows, .h = 1, .w = 1, .c = c->width, .groups = 1};
    op.epsilon = 1e-5f;
    op.input = arrays[0];
    op.gamma = arrays[1];
    op.beta = arrays[2];
    struct oracle oracle = oracle_normalized(&op);
    oracle_round(&oracle, group->storage);
    float *before = NULL;
    for (size_t s = group->first; s < group->end; s++) {
        char what[80];
        snprintf(what, sizeof what, "layer norm %zu on %s, %s", i, subjects[s].name,
                 dtype_name(group->storage));
        float *y = run_layer_norm(devices[s], c, arrays);
        oracle_compare(&oracle, y, what);
        check_repeat(s, &before, y, oracle.count, what);
    }
    free(before);
    oracle_free(&oracle);
    for (int j = 0; j < 3; j++) free(arrays[j]);
}

static void every_layer_norm_is_right(void **state)
{
    FOR_EACH_GROUP(group)
    {
        for (size_t i = 0; i < LAYER_NORMS; i++) check_layer_norm(*state, i, &group);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_linear_is_right),
        cmocka_unit_test(rows_of_a_batch_do_not_know_each_other),
        cmocka_unit_test(every_layer_norm_is_right),
    };
    return cmocka_run_group_tests_name("conformance, linear", tests, subjects_open, subjects_close);
}
