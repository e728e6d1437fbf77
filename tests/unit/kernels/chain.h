// chain.h - a convolution of the conformance suite: a case, its numbers, and how a device runs it.
//
// It is tested as a chain, because only a convolution can leave the statistics that the next one's
// norm needs:
//
//     x -- copy, 1x1 identity, leaves statistics --> x -- the case --> y -- probe, 1x1 identity
//                                                                         with norm, no SiLU --> z
//
// Identity is exact in any order of summation, so the case sees x itself and the probe shows the
// statistics that the case left.

#ifndef TESTS_UNIT_KERNELS_CHAIN_H
#define TESTS_UNIT_KERNELS_CHAIN_H

#include "tests/unit/kernels/oracle.h"

// True where no device of this program transforms convolutions.
#ifdef LUNA_TEST_GPU
#define IS_DIRECT true
#else
#define IS_DIRECT false
#endif

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

// The numbers of a case, the same for every device.
struct convolution_data {
    struct oracle_convolution op;            // points into what follows
    float *x, *weight, *bias, *residual;     // as in struct oracle_convolution
    float *gamma, *beta, *shortcut;          // as there
    float *shortcut_weight, *shortcut_bias;  // as there
    uint64_t out_rows;                       // n x oh x ow
    uint32_t probe_groups;                   // of the probe
};

static inline void make_convolution(struct convolution_data *self, const struct convolution_case *c,
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

static inline void free_convolution(struct convolution_data *self)
{
    float *all[] = {self->x,        self->weight,          self->bias,
                    self->residual, self->gamma,           self->beta,
                    self->shortcut, self->shortcut_weight, self->shortcut_bias};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

// The source has dims of all parts together; no dtype means f32, no parts one.
static inline struct weight *new_taps(struct rig *rig, float *values, struct weight_source source)
{
    uint64_t count = 1;
    for (int i = 0; i < 4; i++) count *= source.dims[i];
    source.form = WEIGHT_CONVOLUTION;
    if (source.dtype == DTYPE_NONE) source.dtype = DTYPE_F32;
    if (source.parts_count == 0) source.parts_count = 1;
    source.dims[0] /= source.parts_count;
    return rig_weight(rig, source, values, count);
}

static inline struct weight *new_identity(struct rig *rig, uint32_t c)
{
    float *ones = rig_own(rig, calloc((uint64_t)c * c, sizeof *ones));
    for (uint64_t i = 0; i < c; i++) ones[i * c + i] = 1;
    return new_taps(rig, ones, (struct weight_source){.dims = {c, c, 1, 1}});
}

static inline struct value guarded_statistics(struct rig *rig, const uint32_t dims[4])
{
    rig_guard(rig);
    struct value value = program_statistics(rig->program, dims[0], dims[1], dims[2], dims[3]);
    rig_guard(rig);
    return value;
}

// Appends an identity convolution of [n, h, w, c] to convolution, which the caller may have given a
// norm or statistics.
static inline void append_identity(struct rig *rig, struct convolution op, const uint32_t dims[4])
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

static inline void set_norm(struct rig *rig, struct convolution_data *data, const struct value *x,
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

static inline struct value append_probe(struct rig *rig, const struct convolution_data *data,
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
static inline float *run_convolution(struct device *device, const struct convolution_case *c,
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
static inline void check_probe(const struct convolution_data *data, const float *both,
                               const char *what)
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

#endif  // TESTS_UNIT_KERNELS_CHAIN_H
