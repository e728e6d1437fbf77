// test_conformance.c - convolution, linear, attention and layer norm of every device against the
// formulas in float64 (oracle.h), over NaN and between guards.
//
// A convolution is tested as a chain, because only a convolution can leave the statistics that the
// next one's norm needs:
//
//     x -- copy, 1x1 identity, leaves statistics --> x -- the case --> y -- probe, 1x1 identity
//                                                                         with norm, no SiLU --> z
//
// Identity is exact in any order of summation, so the case sees x itself and the probe shows the
// statistics that the case left.

#include "tests/unit/kernels/oracle.h"
#include "tests/unit/kernels/subjects.h"

// True where no device of this program transforms convolutions.
#ifdef LUNA_TEST_GPU
#define IS_DIRECT true
#else
#define IS_DIRECT false
#endif

enum residual { RESIDUAL_NONE, RESIDUAL_APART, RESIDUAL_ALIAS };

// ---------------------------------------------------------------------------------------------
// Convolution

struct convolution_case {
    uint32_t n, h, w, c, k, r;
    uint32_t stride;         // 0 means 1
    bool upsample;           //
    uint32_t groups;         // 0: no norm
    bool silu;               //
    enum residual residual;  //
    uint32_t shortcut_c;     // 0: none
    bool bias;               //
    enum dtype dtype;        // of the weights; 0 means f32
    uint32_t parts;          // 0 means 1
    float mean;              // of x
};

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

// The numbers of a case, the same for every device.
struct convolution_data {
    struct oracle_convolution op;            // points into what follows
    float *x, *weight, *bias, *residual;     // as in struct oracle_convolution
    float *gamma, *beta, *shortcut;          // as there
    float *shortcut_weight, *shortcut_bias;  // as there
    uint64_t out_rows;                       // n x oh x ow
    uint32_t probe_groups;                   // of the probe
};

static void make_convolution(struct convolution_data *self, const struct convolution_case *c,
                             struct dice *dice, enum dtype storage)
{
    uint64_t taps = (uint64_t)c->c * c->r * c->r;
    float sigma = (float)(1 / sqrt((double)taps));
    struct oracle_convolution *op = &self->op;
    *op = (struct oracle_convolution){.n = c->n, .h = c->h, .w = c->w, .c = c->c, .k = c->k};
    op->r = c->r;
    op->stride = c->stride == 0 ? 1 : c->stride;
    op->upsample = c->upsample;
    op->groups = c->groups;
    op->silu = c->silu;
    op->epsilon = 1e-6f;
    op->shortcut_c = c->shortcut_c;
    self->out_rows = (uint64_t)c->n * oracle_side(op, c->h) * oracle_side(op, c->w);
    self->x = dice_array(dice, (uint64_t)c->n * c->h * c->w * c->c, c->mean, 1);
    self->weight = dice_array(dice, c->k * taps, 0, sigma);
    self->bias = dice_array(dice, c->k, 0.5f * c->mean, 1);
    self->gamma = dice_array(dice, c->c, 1, 0.5f);
    self->beta = dice_array(dice, c->c, 0, 0.5f);
    self->residual = dice_array(dice, self->out_rows * c->k, 0, 1);
    self->shortcut = dice_array(dice, self->out_rows * c->shortcut_c + 1, 0, 1);
    self->shortcut_weight = dice_array(dice, (uint64_t)c->k * c->shortcut_c + 1, 0, 0.3f);
    self->shortcut_bias = dice_array(dice, c->k, 0, 1);
    self->probe_groups = c->k % 8 == 0 ? c->k / 8 : 1;
    round_all(self->x, (uint64_t)c->n * c->h * c->w * c->c, storage);
    // Weights that a device adds before it rounds them stay as a file of float32 may have them.
    if (!c->upsample) round_all(self->weight, c->k * taps, storage);
    round_all(self->residual, self->out_rows * c->k, storage);
    round_all(self->shortcut, self->out_rows * c->shortcut_c, storage);
    round_all(self->shortcut_weight, (uint64_t)c->k * c->shortcut_c, storage);
    op->storage = storage;
    op->is_direct = IS_DIRECT;
    op->input = self->x;
    op->weight = self->weight;
    op->bias = c->bias ? self->bias : NULL;
    op->gamma = self->gamma;
    op->beta = self->beta;
    op->residual = c->residual == RESIDUAL_NONE ? NULL : self->residual;
    op->shortcut = self->shortcut;
    op->shortcut_weight = self->shortcut_weight;
    op->shortcut_bias = c->shortcut_c > 0 && c->bias ? self->shortcut_bias : NULL;
}

static void free_convolution(struct convolution_data *self)
{
    float *all[] = {self->x,        self->weight,          self->bias,
                    self->residual, self->gamma,           self->beta,
                    self->shortcut, self->shortcut_weight, self->shortcut_bias};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

// The source has dims of all parts together; no dtype means f32, no parts one.
static struct weight *new_taps(struct rig *rig, float *values, struct weight_source source)
{
    uint64_t count = 1;
    for (int i = 0; i < 4; i++) count *= source.dims[i];
    source.form = WEIGHT_CONVOLUTION;
    if (source.dtype == DTYPE_NONE) source.dtype = DTYPE_F32;
    if (source.parts_count == 0) source.parts_count = 1;
    source.dims[0] /= source.parts_count;
    return rig_weight(rig, source, values, count);
}

static struct weight *new_identity(struct rig *rig, uint32_t c)
{
    float *ones = rig_own(rig, calloc((uint64_t)c * c, sizeof *ones));
    for (uint64_t i = 0; i < c; i++) ones[i * c + i] = 1;
    return new_taps(rig, ones, (struct weight_source){.dims = {c, c, 1, 1}});
}

static struct value guarded_statistics(struct rig *rig, const uint32_t dims[4])
{
    rig_guard(rig);
    struct value value = program_statistics(rig->program, dims[0], dims[1], dims[2], dims[3]);
    rig_guard(rig);
    return value;
}

// Appends an identity convolution of [n, h, w, c] to convolution, which the caller may have given a
// norm or statistics.
static void append_identity(struct rig *rig, struct convolution op, const uint32_t dims[4])
{
    op.n = dims[0];
    op.h = dims[1];
    op.w = dims[2];
    op.c = dims[3];
    op.k = dims[3];
    op.stride = 1;
    op.weight = new_identity(rig, dims[3]);
    program_convolution(rig->program, &op);
}

static void set_norm(struct rig *rig, struct convolution_data *data, const struct value *x,
                     struct convolution *op)
{
    const uint32_t dims[4] = {op->n, op->h, op->w, op->c};
    op->input = rig_tensor(rig, op->n * op->h * op->w, op->c);
    op->norm.statistics = guarded_statistics(rig, dims);
    op->norm.gamma = rig_vector(rig, data->gamma, op->c);
    op->norm.beta = rig_vector(rig, data->beta, op->c);
    op->norm.groups = data->op.groups;
    op->norm.epsilon = data->op.epsilon;
    op->norm.silu = data->op.silu;
    append_identity(
        rig,
        (struct convolution){.input = *x, .output = op->input, .statistics = op->norm.statistics},
        dims);
}

static struct value append_probe(struct rig *rig, const struct convolution_data *data,
                                 const struct convolution *main)
{
    const uint32_t dims[4] = {main->n, oracle_side(&data->op, main->h),
                              oracle_side(&data->op, main->w), main->k};
    float *ones = rig_own(rig, malloc(main->k * sizeof *ones));
    float *zeros = rig_own(rig, calloc(main->k, sizeof *zeros));
    for (uint32_t i = 0; i < main->k; i++) ones[i] = 1;
    struct convolution probe = {.input = main->output};
    probe.output = rig_tensor(rig, (uint32_t)data->out_rows, main->k);
    probe.norm.statistics = main->statistics;
    probe.norm.gamma = rig_vector(rig, ones, main->k);
    probe.norm.beta = rig_vector(rig, zeros, main->k);
    probe.norm.groups = data->probe_groups;
    probe.norm.epsilon = 1e-6f;
    append_identity(rig, probe, dims);
    return probe.output;
}

// Builds the chain and runs it: y and z are [n, oh, ow, k] each, one behind the other.
static float *run_convolution(struct device *device, const struct convolution_case *c,
                              struct convolution_data *data)
{
    struct rig rig;
    rig_begin(&rig, device);
    uint32_t rows = (uint32_t)data->out_rows;
    struct value x = rig_load(&rig, data->x, c->n * c->h * c->w, c->c);
    struct convolution op = {.n = c->n, .h = c->h, .w = c->w, .c = c->c, .k = c->k};
    op.stride = data->op.stride;
    op.upsample = c->upsample;
    op.input = x;
    if (c->groups > 0) set_norm(&rig, data, &x, &op);
    op.weight = new_taps(&rig, data->weight,
                         (struct weight_source){.dims = {c->k, c->c, c->r, c->r},
                                                .dtype = c->dtype,
                                                .parts_count = c->parts,
                                                .upsample = c->upsample});
    if (c->bias) op.bias = rig_vector(&rig, data->bias, c->k);
    op.output = rig_tensor(&rig, rows, c->k);
    if (c->residual != RESIDUAL_NONE) op.residual = rig_load(&rig, data->residual, rows, c->k);
    if (c->residual == RESIDUAL_ALIAS) op.output = op.residual;
    if (c->shortcut_c > 0) {
        op.shortcut = rig_load(&rig, data->shortcut, rows, c->shortcut_c);
        op.shortcut_c = c->shortcut_c;
        op.shortcut_weight = new_taps(
            &rig, data->shortcut_weight,
            (struct weight_source){.dims = {c->k, c->shortcut_c, 1, 1}, .dtype = c->dtype});
        if (c->bias) op.shortcut_bias = rig_vector(&rig, data->shortcut_bias, c->k);
    }
    op.statistics = guarded_statistics(&rig, (uint32_t[4]){c->n, oracle_side(&data->op, c->h),
                                                           oracle_side(&data->op, c->w), c->k});
    program_convolution(rig.program, &op);
    struct value z = append_probe(&rig, data, &op);
    const float *y_memory = rig_store(&rig, op.output, data->out_rows * c->k);
    const float *z_memory = rig_store(&rig, z, data->out_rows * c->k);
    rig_run(&rig);
    uint64_t count = data->out_rows * c->k;
    float *both = malloc(2 * count * sizeof *both);
    assert_non_null(both);
    memcpy(both, y_memory, count * sizeof *both);
    memcpy(both + count, z_memory, count * sizeof *both);
    rig_end(&rig);
    return both;
}

// The probe is exact but for its norm: what it gives is y as a convolution's norm sees it.
static void check_probe(const struct convolution_data *data, const float *both, const char *what)
{
    struct oracle_convolution probe = {.n = data->op.n, .c = data->op.k, .k = data->op.k};
    uint64_t count = data->out_rows * data->op.k;
    float *ones = malloc(data->op.k * sizeof *ones);
    float *zeros = calloc(data->op.k, sizeof *zeros);
    assert_non_null(ones);
    assert_non_null(zeros);
    for (uint32_t i = 0; i < data->op.k; i++) ones[i] = 1;
    probe.h = oracle_side(&data->op, data->op.h);
    probe.w = oracle_side(&data->op, data->op.w);
    probe.groups = data->probe_groups;
    probe.epsilon = 1e-6f;
    probe.storage = data->op.storage;
    probe.input = both;
    probe.gamma = ones;
    probe.beta = zeros;
    struct oracle oracle = oracle_normalized(&probe);
    oracle_compare(&oracle, both + count, what);
    oracle_free(&oracle);
    free(ones);
    free(zeros);
}

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
// Attention

struct attention_case {
    uint32_t batch, tokens, heads, head_width;
    bool causal;
    uint32_t padding;  // elements behind q, k, v in a row
    float sigma;       // of q, k, v; large makes the softmax sharp
};

static const struct attention_case attentions[] = {
    {1, 1, 1, 1, false, 0, 1},     {1, 1, 2, 8, true, 0, 1},     {1, 7, 1, 5, false, 3, 1},
    {2, 77, 5, 64, true, 0, 1},    {3, 77, 2, 64, true, 32, 4},  {1, 33, 3, 40, false, 1, 2},
    {1, 130, 1, 512, false, 0, 1}, {2, 65, 1, 512, false, 8, 2}, {1, 200, 1, 32, true, 0, 1},
    {1, 257, 1, 128, false, 0, 3},
};
#define ATTENTIONS (sizeof attentions / sizeof attentions[0])

static float *run_attention(struct device *device, const struct oracle_attention *a, uint32_t batch)
{
    struct rig rig;
    rig_begin(&rig, device);
    uint32_t width = a->heads * a->head_width;
    uint64_t rows = (uint64_t)batch * a->tokens;
    struct value qkv = rig_load(&rig, a->qkv, (uint32_t)rows, a->stride);
    struct attention op = {.batch = batch, .tokens = a->tokens, .heads = a->heads};
    op.head_width = a->head_width;
    op.scale = a->scale;
    op.causal = a->causal;
    op.q_stride = op.k_stride = op.v_stride = a->stride;
    op.q = op.k = op.v = qkv;
    uint32_t element = device_info(device)->activation_bytes;
    op.k.offset += width * element;
    op.k.bytes -= width * element;
    op.v.offset += 2 * width * element;
    op.v.bytes -= 2 * width * element;
    op.output = rig_tensor(&rig, (uint32_t)rows, width);
    program_attention(rig.program, &op);
    const float *memory = rig_store(&rig, op.output, rows * width);
    rig_run(&rig);
    float *y = malloc(rows * width * sizeof *y);
    assert_non_null(y);
    memcpy(y, memory, rows * width * sizeof *y);
    rig_end(&rig);
    return y;
}

static struct oracle oracle_of_attention(const struct oracle_attention *op)
{
    uint64_t rows = (uint64_t)op->batch * op->tokens;
    struct oracle oracle = oracle_new(rows * op->heads * op->head_width);
    for (uint64_t row = 0; row < rows; row++) {
        for (uint32_t head = 0; head < op->heads; head++) oracle_attend(op, row, head, &oracle);
    }
    oracle_round(&oracle, op->storage);
    return oracle;
}

static void check_attention(struct device **devices, size_t i, const struct subject_group *group)
{
    const struct attention_case *c = &attentions[i];
    struct dice dice = {seed_of_run() + 200 + i};
    uint32_t stride = 3 * c->heads * c->head_width + c->padding;
    uint64_t elements = (uint64_t)c->batch * c->tokens * stride;
    float *qkv = dice_array(&dice, elements, 0, c->sigma);
    round_all(qkv, elements, group->storage);
    struct oracle_attention op = {.batch = c->batch, .tokens = c->tokens, .heads = c->heads};
    op.head_width = c->head_width;
    op.stride = stride;
    op.scale = (float)(1 / sqrt((double)c->head_width));
    op.causal = c->causal;
    op.qkv = qkv;
    op.storage = group->storage;
    struct oracle oracle = oracle_of_attention(&op);
    float *before = NULL;
    for (size_t s = group->first; s < group->end; s++) {
        char what[80];
        snprintf(what, sizeof what, "attention %zu on %s, %s", i, subjects[s].name,
                 dtype_name(group->storage));
        float *y = run_attention(devices[s], &op, c->batch);
        oracle_compare(&oracle, y, what);
        if (c->batch > 1) {
            float *first = run_attention(devices[s], &op, 1);
            assert_memory_equal(first, y, oracle.count / c->batch * sizeof *y);
            free(first);
        }
        check_repeat(s, &before, y, oracle.count, what);
    }
    free(before);
    oracle_free(&oracle);
    free(qkv);
}

static void every_attention_is_right(void **state)
{
    FOR_EACH_GROUP(group)
    {
        for (size_t i = 0; i < ATTENTIONS; i++) check_attention(*state, i, &group);
    }
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
    const struct CMUnitTest convolutions_alone[] = {
        cmocka_unit_test(every_convolution_is_right),
        cmocka_unit_test(images_of_a_batch_do_not_know_each_other),
        cmocka_unit_test(sums_of_upsampling_weights_are_rounded_once),
    };
    const struct CMUnitTest others[] = {
        cmocka_unit_test(every_linear_is_right),
        cmocka_unit_test(rows_of_a_batch_do_not_know_each_other),
        cmocka_unit_test(every_attention_is_right),
        cmocka_unit_test(every_layer_norm_is_right),
    };
    int failed = cmocka_run_group_tests_name("convolutions", convolutions_alone, subjects_open,
                                             subjects_close);
    if (is_chosen_alone()) return failed;
    return failed +
           cmocka_run_group_tests_name("conformance", others, subjects_open, subjects_close);
}
