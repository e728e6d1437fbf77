// bench_instructions.c - each hot kernel once, in a small fixed case, for a counter of
// instructions.
//
//     bench_instructions        runs all cases; instructions.py runs it under valgrind
//     bench_instructions names  prints their names, in the order in which they run
//
// The items of a case run one after another in this thread, without a pool, inside of run_case(),
// which is where callgrind counts: so a count depends on the code alone, not on the machine, its
// load or its processor (the AVX2 bodies are taken, whatever the processor likes best).

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/compute.h"

#define OWNED_MAX 16u

// Slots of every case.
enum { SLOT_INPUT, SLOT_OUTPUT, SLOT_STATISTICS, SLOT_NORM, SLOTS };

struct bench {
    struct operation op;                // the case
    void *bindings[SLOTS];              // its memory
    struct weight *weights[OWNED_MAX];  // made for it
    uint32_t weights_count;             // how many
    void *owned[OWNED_MAX];             // memory to free
    uint32_t owned_count;               // how many
    struct low_rank path;               // of the linear that has one
};

static void *own(struct bench *self, size_t bytes)
{
    assert(self->owned_count < OWNED_MAX);
    void *memory = aligned_alloc(128, (bytes + 255) / 128 * 128);
    if (memory == NULL) exit(1);
    self->owned[self->owned_count++] = memory;
    return memory;
}

// Numbers around zero that depend on their place alone.
static float *numbers(struct bench *self, size_t count)
{
    float *values = own(self, count * sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = (float)(i * 2654435761u % 2048) / 1024.0f - 1.0f;
    return values;
}

static struct value slot(struct bench *self, uint32_t number, size_t floats)
{
    self->bindings[number] = numbers(self, floats);
    return (struct value){.place = VALUE_SLOT, .slot = number, .bytes = floats * sizeof(float)};
}

static const struct weight *weight(struct bench *self, enum weight_form form, uint32_t k,
                                   uint32_t c, uint32_t side)
{
    struct weight_source source = {
        .form = form, .dtype = DTYPE_F16, .dims = {k, c, side, side}, .parts_count = 1};
    size_t count = (size_t)k * c * side * side;
    uint8_t *bytes = own(self, count * 2);
    dtype_convert(bytes, DTYPE_F16, numbers(self, count), DTYPE_F32, count);
    source.parts[0] = bytes;
    assert(self->weights_count < OWNED_MAX);
    struct weight **place = &self->weights[self->weights_count++];
    struct error error;
    if (cpu_weight_create(place, NULL, &source, &error) != STATUS_OK) exit(1);
    return *place;
}

// ---------------------------------------------------------------------------------------------
// The cases

static void make_linear(struct bench *self, uint32_t rows, uint32_t c, uint32_t k)
{
    self->op.kind = OPERATION_LINEAR;
    self->op.linear = (struct linear){.input = slot(self, SLOT_INPUT, (size_t)rows * c),
                                      .rows = rows,
                                      .c = c,
                                      .output = slot(self, SLOT_OUTPUT, (size_t)rows * k),
                                      .k = k,
                                      .weight = weight(self, WEIGHT_MATRIX, k, c, 1),
                                      .bias = weight(self, WEIGHT_VECTOR, k, 1, 1)};
}

static void linear_plain(struct bench *self)
{
    make_linear(self, 77, 512, 96);
    self->op.linear.residual = self->op.linear.output;
}

static void linear_gelu(struct bench *self)
{
    make_linear(self, 77, 256, 96);
    self->op.linear.activation = ACTIVATION_GELU;
}

static void linear_quick_gelu(struct bench *self)
{
    make_linear(self, 77, 256, 96);
    self->op.linear.activation = ACTIVATION_QUICK_GELU;
}

static void linear_low_rank(struct bench *self)
{
    make_linear(self, 77, 256, 96);
    self->path = (struct low_rank){.row_count = 77,
                                   .column_count = 96,
                                   .rank = 16,
                                   .down = weight(self, WEIGHT_MATRIX, 16, 256, 1),
                                   .up = weight(self, WEIGHT_MATRIX, 96, 16, 1),
                                   .scale = 0.5f};
    self->op.linear.low_rank = &self->path;
    self->op.linear.low_rank_count = 1;
}

static void make_attention(struct bench *self, uint32_t tokens, uint32_t heads, uint32_t width)
{
    uint32_t line = heads * width;
    struct value qkv = slot(self, SLOT_INPUT, (size_t)tokens * 3 * line);
    self->op.kind = OPERATION_ATTENTION;
    self->op.attention = (struct attention){.q = qkv,
                                            .k = qkv,
                                            .v = qkv,
                                            .q_stride = 3 * line,
                                            .k_stride = 3 * line,
                                            .v_stride = 3 * line,
                                            .output = slot(self, SLOT_OUTPUT, tokens * line),
                                            .batch = 1,
                                            .tokens = tokens,
                                            .heads = heads,
                                            .head_width = width,
                                            .scale = 0.125f};
    self->op.attention.k.offset += line * sizeof(float);
    self->op.attention.v.offset += 2 * line * sizeof(float);
}

static void attention_text(struct bench *self)
{
    make_attention(self, 77, 3, 64);
    self->op.attention.causal = true;
}

static void attention_image(struct bench *self)
{
    make_attention(self, 200, 1, 256);
}

static void make_convolution(struct bench *self, uint32_t size, uint32_t c, uint32_t k,
                             uint32_t side)
{
    self->op.kind = OPERATION_CONVOLUTION;
    self->op.convolution =
        (struct convolution){.input = slot(self, SLOT_INPUT, (size_t)size * size * c),
                             .n = 1,
                             .h = size,
                             .w = size,
                             .c = c,
                             .output = slot(self, SLOT_OUTPUT, (size_t)4 * size * size * k),
                             .k = k,
                             .weight = weight(self, WEIGHT_CONVOLUTION, k, c, side),
                             .bias = weight(self, WEIGHT_VECTOR, k, 1, 1),
                             .stride = 1};
}

// Means of 0, variances of 1, from -1 to 1: about what numbers() makes.
static void add_norm(struct bench *self)
{
    struct convolution *op = &self->op.convolution;
    struct value statistics = slot(self, SLOT_NORM, (size_t)6 * op->c);
    double *moments = self->bindings[SLOT_NORM];
    float *extremes = (float *)(moments + (size_t)2 * op->c);
    for (uint32_t i = 0; i < op->c; i++) {
        moments[i] = 0;
        moments[op->c + i] = (double)op->h * op->w;
        extremes[i] = -1;
        extremes[op->c + i] = 1;
    }
    op->norm = (struct normalization){.statistics = statistics,
                                      .gamma = weight(self, WEIGHT_VECTOR, op->c, 1, 1),
                                      .beta = weight(self, WEIGHT_VECTOR, op->c, 1, 1),
                                      .groups = op->c / 8,
                                      .epsilon = 1e-6f,
                                      .silu = true};
}

static void add_rest(struct bench *self)
{
    struct convolution *op = &self->op.convolution;
    op->residual = op->output;
    op->statistics = slot(self, SLOT_STATISTICS, (size_t)6 * op->k);
}

static void winograd(struct bench *self)
{
    make_convolution(self, 28, 64, 64, 3);
    add_norm(self);
    add_rest(self);
}

static void winograd_upsample(struct bench *self)
{
    make_convolution(self, 18, 64, 64, 3);
    self->op.convolution.upsample = true;
    self->op.convolution.statistics = slot(self, SLOT_STATISTICS, 6 * 64);
}

static void direct_bright(struct bench *self)
{
    make_convolution(self, 64, 32, 32, 3);
    add_rest(self);
    ((float *)self->bindings[SLOT_INPUT])[4000] = 3e5f;
}

static void direct_stride(struct bench *self)
{
    make_convolution(self, 33, 64, 64, 3);
    self->op.convolution.stride = 2;
}

static void direct_first(struct bench *self)
{
    make_convolution(self, 24, 4, 64, 3);
    add_rest(self);
}

static void direct_last(struct bench *self)
{
    make_convolution(self, 28, 64, 3, 3);
    add_norm(self);
}

static void direct_point(struct bench *self)
{
    make_convolution(self, 24, 64, 96, 1);
    add_norm(self);
    self->op.convolution.norm.silu = false;
}

static void norm_of_layer(struct bench *self)
{
    self->op.kind = OPERATION_LAYER_NORM;
    self->op.layer_norm = (struct layer_norm){.input = slot(self, SLOT_INPUT, 77 * 768),
                                              .output = slot(self, SLOT_OUTPUT, 77 * 768),
                                              .rows = 77,
                                              .width = 768,
                                              .gamma = weight(self, WEIGHT_VECTOR, 768, 1, 1),
                                              .beta = weight(self, WEIGHT_VECTOR, 768, 1, 1),
                                              .epsilon = 1e-5f};
}

static void pixels_out(struct bench *self)
{
    self->op.kind = OPERATION_PIXELS_STORE;
    self->op.pixels_store = (struct pixels_store){.input = slot(self, SLOT_INPUT, 96 * 96 * 3),
                                                  .clamp = true,
                                                  .h = 96,
                                                  .w = 96,
                                                  .output = slot(self, SLOT_OUTPUT, 96 * 96 * 3),
                                                  .dtype = DTYPE_U8};
}

static const struct {
    const char *name;
    void (*make)(struct bench *self);
} cases[] = {
    {"linear_plain", linear_plain},
    {"linear_gelu", linear_gelu},
    {"linear_quick_gelu", linear_quick_gelu},
    {"linear_low_rank", linear_low_rank},
    {"attention_text", attention_text},
    {"attention_image", attention_image},
    {"winograd", winograd},
    {"winograd_upsample", winograd_upsample},
    {"direct_bright", direct_bright},
    {"direct_stride", direct_stride},
    {"direct_first", direct_first},
    {"direct_last", direct_last},
    {"direct_point", direct_point},
    {"layer_norm", norm_of_layer},
    {"pixels_store", pixels_out},
};
#define CASES (sizeof cases / sizeof cases[0])

// ---------------------------------------------------------------------------------------------

// One launch and the memory that it runs in.
struct prepared {
    struct cpu_launch launches[CPU_LAUNCHES_MAX];
    uint32_t count;  // of launches
    void *scratch;   // as large as any of them asks for
};

// What is counted; callgrind knows it by its name.
__attribute__((noinline)) static void
run_case(const struct operation *op, const struct cpu_run *run, const struct prepared *prepared)
{
    for (uint32_t i = 0; i < prepared->count; i++) {
        const struct cpu_launch *launch = &prepared->launches[i];
        for (uint32_t item = 0; item < launch->items; item++) {
            launch->run(op, run, item, prepared->scratch);
        }
    }
}

static void run(const struct cpu_compute *compute, void (*make)(struct bench *self))
{
    struct bench bench = {.owned_count = 0};
    struct prepared prepared = {.count = 0};
    make(&bench);
    struct value workspace = {.place = VALUE_ARENA};
    workspace.bytes = cpu_workspace_bytes(&(struct device){.class = NULL}, &bench.op);
    bench.op.workspace = workspace;
    prepared.count = cpu_launches(compute, &bench.op, prepared.launches);
    uint64_t scratch_bytes = 0;
    for (uint32_t i = 0; i < prepared.count; i++) {
        uint64_t bytes = prepared.launches[i].scratch_bytes;
        if (bytes > scratch_bytes) scratch_bytes = bytes;
    }
    prepared.scratch = own(&bench, scratch_bytes);
    struct cpu_run where = {.arena = own(&bench, workspace.bytes), .bindings = bench.bindings};
    memset(where.arena, 0, workspace.bytes);
    run_case(&bench.op, &where, &prepared);
    for (uint32_t i = 0; i < bench.weights_count; i++) cpu_weight_destroy(bench.weights[i]);
    for (uint32_t i = 0; i < bench.owned_count; i++) free(bench.owned[i]);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "names") == 0) {
        for (size_t i = 0; i < CASES; i++) puts(cases[i].name);
        return 0;
    }
    if (argc > 1) {
        fprintf(stderr, "usage: bench_instructions [names]\n");
        return 2;
    }
#if defined(__x86_64__)
    for (size_t i = 0; i < CASES; i++) run(&cpu_compute_avx2, cases[i].make);
#else
    for (size_t i = 0; i < CASES; i++) run(&cpu_compute_portable, cases[i].make);
#endif
    return 0;
}
