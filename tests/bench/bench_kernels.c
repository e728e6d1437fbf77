// bench_kernels.c - how fast the kernels of a CPU are, layer by layer, against its own FMA peak.
//
//     bench_kernels [--json FILE] [threads [filter]]    every layer whose name contains filter
//
// The layers are those of the SDXL VAE at 512 pixels, decoder and encoder, and of CLIP-L and
// OpenCLIP-bigG. Before a layer is timed, a small version of it is compared with the device
// "reference". Each line gives the median of several runs, in direct-equivalent GFLOP/s (2 x MAC of
// the plain algorithm), and the share of the peak that was measured just before and after it. Where
// others use the machine too, the last two columns say more: the same in CPU time instead of wall
// time. Winograd may pass 100 %. At the end some layers run with one thread and with all of them,
// in turns: what the threads are worth.

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "kernels/kernels.h"

#define RUNS_MAX 15u
#define THREADS_MAX 64u
// Channels of the latent that the layers' inputs are made of.
#define SEED_CHANNELS 8u
// A layer is run at least this often, and then until this much time has passed.
#define RUNS_MIN 3u
#define LAYER_NS 400000000u

enum layer_kind { LAYER_CONVOLUTION, LAYER_LINEAR, LAYER_ATTENTION };

struct layer {
    const char *name;
    enum layer_kind kind;
    uint32_t h, w;      // of the input; a linear has h rows, an attention h tokens in w texts
    uint32_t c, k;      // channels in and out; heads and width of a head
    uint32_t side;      // of the filter
    bool upsample;      // nearest 2x in front
    bool norm;          // GroupNorm and SiLU of the input
    bool residual;      // is added
    uint32_t shortcut;  // channels of a 1x1 shortcut, or 0
    uint32_t decodes;   // of this layer in one decode to 512 x 512
    uint32_t encodes;   // of this layer in one encode of 512 x 512
    bool halve;         // stride 2
};

#define CONV(name, size, c, k, side, decodes, encodes)                                             \
    {                                                                                              \
        name, LAYER_CONVOLUTION, size, size, c, k, side, false, true, false, 0, decodes, encodes,  \
            false                                                                                  \
    }
#define LAST(name, size, c, k, shortcut, decodes, encodes)                                         \
    {                                                                                              \
        name, LAYER_CONVOLUTION, size, size, c, k, 3, false, true, (shortcut) == 0, shortcut,      \
            decodes, encodes, false                                                                \
    }
#define UP(name, size, c)                                                                          \
    {                                                                                              \
        name, LAYER_CONVOLUTION, size, size, c, c, 3, true, false, false, 0, 1, 0, false           \
    }
#define DOWN(name, size, c)                                                                        \
    {                                                                                              \
        name, LAYER_CONVOLUTION, size, size, c, c, 3, false, false, false, 0, 0, 1, true           \
    }
#define END(name, size, c, k, side, decodes, encodes)                                              \
    {                                                                                              \
        name, LAYER_CONVOLUTION, size, size, c, k, side, false, false, false, 0, decodes, encodes, \
            false                                                                                  \
    }
#define ATTENTION(name, tokens, texts, heads, width, count)                                        \
    {                                                                                              \
        name, LAYER_ATTENTION, tokens, texts, heads, width, 0, false, false, false, 0, count,      \
            count, false                                                                           \
    }
#define LINEAR(name, rows, c, k)                                                                   \
    {                                                                                              \
        name, LAYER_LINEAR, rows, 1, c, k, 1, false, false, false, 0, 0, 0, false                  \
    }

static const struct layer layers[] = {
    CONV("conv 512>512 @64 first", 64, 512, 512, 3, 5, 4),
    LAST("conv 512>512 @64 last", 64, 512, 512, 0, 5, 4),
    UP("up 512 @64>128", 64, 512),
    CONV("conv 512>512 @128 first", 128, 512, 512, 3, 3, 1),
    LAST("conv 512>512 @128 last", 128, 512, 512, 0, 3, 1),
    UP("up 512 @128>256", 128, 512),
    CONV("conv 512>256 @256 first", 256, 512, 256, 3, 1, 0),
    LAST("conv 256>256 @256 shortcut 512", 256, 256, 256, 512, 1, 0),
    CONV("conv 256>256 @256 first", 256, 256, 256, 3, 2, 1),
    LAST("conv 256>256 @256 last", 256, 256, 256, 0, 2, 1),
    UP("up 256 @256>512", 256, 256),
    CONV("conv 256>128 @512 first", 512, 256, 128, 3, 1, 0),
    LAST("conv 128>128 @512 shortcut 256", 512, 128, 128, 256, 1, 0),
    CONV("conv 128>128 @512 first", 512, 128, 128, 3, 2, 2),
    LAST("conv 128>128 @512 last", 512, 128, 128, 0, 2, 2),
    END("conv_in 4>512 @64", 64, 4, 512, 3, 1, 0),
    CONV("conv_out 128>3 @512", 512, 128, 3, 3, 1, 0),
    END("1x1 post_quant 4>4 @64", 64, 4, 4, 1, 1, 0),
    END("conv_in 3>128 @512", 512, 3, 128, 3, 0, 1),
    DOWN("down 128 @512>256", 512, 128),
    CONV("conv 128>256 @256 first", 256, 128, 256, 3, 0, 1),
    LAST("conv 256>256 @256 shortcut 128", 256, 256, 256, 128, 0, 1),
    DOWN("down 256 @256>128", 256, 256),
    CONV("conv 256>512 @128 first", 128, 256, 512, 3, 0, 1),
    LAST("conv 512>512 @128 shortcut 256", 128, 512, 512, 256, 0, 1),
    DOWN("down 512 @128>64", 128, 512),
    CONV("conv_out 512>8 @64", 64, 512, 8, 3, 0, 1),
    END("1x1 quant 8>8 @64", 64, 8, 8, 1, 0, 1),
    CONV("1x1 qkv 512>1536 @64", 64, 512, 1536, 1, 1, 1),
    {"1x1 out 512>512 @64", LAYER_CONVOLUTION, 64, 64, 512, 512, 1, false, false, true, 0, 1, 1,
     false},
    ATTENTION("attention 4096 x 512", 4096, 1, 1, 512, 1),
    ATTENTION("attention causal 77 x 12 x 64", 77, 1, 12, 64, 0),
    ATTENTION("attention causal 77 x 20 x 64", 77, 1, 20, 64, 0),
    ATTENTION("attention causal 8x 77 x 20 x 64", 77, 8, 20, 64, 0),
    LINEAR("clip_l 77 x 768>2304", 77, 768, 2304),
    LINEAR("clip_l 77 x 768>768", 77, 768, 768),
    LINEAR("clip_l 77 x 768>3072", 77, 768, 3072),
    LINEAR("clip_l 77 x 3072>768", 77, 3072, 768),
    LINEAR("clip_l 154 x 768>2304", 154, 768, 2304),
    LINEAR("clip_l 154 x 768>768", 154, 768, 768),
    LINEAR("clip_l 154 x 768>3072", 154, 768, 3072),
    LINEAR("clip_l 154 x 3072>768", 154, 3072, 768),
    LINEAR("clip_l 616 x 768>2304", 616, 768, 2304),
    LINEAR("clip_l 616 x 768>768", 616, 768, 768),
    LINEAR("clip_l 616 x 768>3072", 616, 768, 3072),
    LINEAR("clip_l 616 x 3072>768", 616, 3072, 768),
    LINEAR("big_g 77 x 1280>3840", 77, 1280, 3840),
    LINEAR("big_g 77 x 1280>1280", 77, 1280, 1280),
    LINEAR("big_g 77 x 1280>5120", 77, 1280, 5120),
    LINEAR("big_g 77 x 5120>1280", 77, 5120, 1280),
    LINEAR("big_g 154 x 1280>3840", 154, 1280, 3840),
    LINEAR("big_g 154 x 1280>1280", 154, 1280, 1280),
    LINEAR("big_g 154 x 1280>5120", 154, 1280, 5120),
    LINEAR("big_g 154 x 5120>1280", 154, 5120, 1280),
    LINEAR("big_g 616 x 1280>3840", 616, 1280, 3840),
    LINEAR("big_g 616 x 1280>1280", 616, 1280, 1280),
    LINEAR("big_g 616 x 1280>5120", 616, 1280, 5120),
    LINEAR("big_g 616 x 5120>1280", 616, 5120, 1280),
};
#define LAYERS (sizeof layers / sizeof layers[0])

// Those that run with one thread and with all.
static const char *const scaled[] = {"conv 512>512 @64 last", "up 512 @64>128",
                                     "conv 256>256 @256 first", "conv 128>128 @512 last",
                                     "big_g 154 x 5120>1280"};

static void must(enum status status, const struct error *error, const char *what)
{
    if (status == STATUS_OK) return;
    fprintf(stderr, "%s: %s\n", what, error->message);
    exit(1);
}

static uint64_t now_ns(void)
{
    return clock_ns(clock_system());
}

// CPU time of all threads of this process.
static uint64_t busy_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void *memory(size_t bytes)
{
    void *block = calloc(1, bytes);
    if (block != NULL) return block;
    fprintf(stderr, "no memory for %zu bytes\n", bytes);
    exit(1);
}

static uint64_t random_state = 88172645463325252u;

static float random_float(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (float)(random_state >> 40) / 8388608.0f - 1.0f;
}

// ---------------------------------------------------------------------------------------------
// The peak

#if defined(__x86_64__)

#include <immintrin.h>

// GFLOP/s of one thread that does nothing but multiply and add in registers.
__attribute__((target("avx2,fma"))) static double peak_of_thread(void)
{
    enum { ROUNDS = 150000, CHAINS = 12, REPEATS = 8 };
    double best = 0;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        __m256 sums[CHAINS];
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) sums[i] = _mm256_set1_ps((float)i);
        __m256 factor = _mm256_set1_ps(0.999f);
        uint64_t start = now_ns();
        for (int round = 0; round < ROUNDS; round++) {
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; i++) {
                __asm__ volatile("vfmadd213ps %1, %1, %0" : "+x"(sums[i]) : "x"(factor));
            }
        }
        double flops = (double)ROUNDS * CHAINS * 16;
        best = fmax(best, flops / (double)(now_ns() - start));
    }
    return best;
}

#else

static double peak_of_thread(void)
{
    return NAN;
}

#endif

static void *peak_thread(void *result)
{
    *(double *)result = peak_of_thread();
    return NULL;
}

static double measure_peak(uint32_t threads)
{
    pthread_t ids[THREADS_MAX];
    double peaks[THREADS_MAX] = {0};
    double sum = 0;
    for (uint32_t i = 0; i < threads; i++) {
        if (pthread_create(&ids[i], NULL, peak_thread, &peaks[i]) != 0) exit(1);
    }
    for (uint32_t i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        sum += peaks[i];
    }
    return sum;
}

// ---------------------------------------------------------------------------------------------
// One layer on one device

struct bench {
    struct device *device;
    struct lane *lane;
    struct weight *weights[16];  // of the layer
    void *parts[16];             // their bytes
    uint32_t weights_count;
    float *latent;  // [SEED_CHANNELS, h, w]
    float *result;  // what the layer left
    size_t result_floats;
};

static const struct weight *make_source(struct bench *self, struct weight_source source)
{
    const uint32_t *dims = source.dims;
    size_t count = (size_t)dims[0] * dims[1] * dims[2] * dims[3];
    float *values = memory(count * sizeof values[0]);
    float scale = 0.1f;
    if (source.form != WEIGHT_VECTOR) scale = 1.7f / sqrtf((float)(dims[1] * dims[2] * dims[3]));
    source.dtype = DTYPE_F16;
    source.parts_count = 1;
    for (size_t i = 0; i < count; i++) values[i] = random_float() * scale;
    void *part = memory(count * 2);
    dtype_convert(part, DTYPE_F16, values, DTYPE_F32, count);
    free(values);
    source.parts[0] = part;
    struct error error;
    uint32_t index = self->weights_count++;
    assert(index < 16);
    self->parts[index] = part;
    must(weight_create(&self->weights[index], self->device, &source, &error), &error, "weight");
    return self->weights[index];
}

static const struct weight *make_weight(struct bench *self, enum weight_form form, uint32_t k,
                                        uint32_t c, uint32_t side)
{
    return make_source(self, (struct weight_source){.form = form, .dims = {k, c, side, side}});
}

static const struct weight *make_filters(struct bench *self, const struct layer *layer)
{
    const struct weight_source source = {.form = WEIGHT_CONVOLUTION,
                                         .dims = {layer->k, layer->c, layer->side, layer->side},
                                         .upsample = layer->upsample};
    return make_source(self, source);
}

static const struct weight *make_vector(struct bench *self, uint32_t k)
{
    return make_weight(self, WEIGHT_VECTOR, k, 1, 1);
}

// What programs of one layer have in common: the same values at the same places of the arena.
struct shape {
    uint32_t oh, ow;          // of the output
    uint32_t input_c;         // channels of the input
    struct value slot;        // the latent
    struct value seed;        // [1, h, w, SEED_CHANNELS]
    struct value input;       // of the layer
    struct value statistics;  // of the input
    struct value shortcut;    // [oh, ow, shortcut]
    struct value output;      // of the layer
    struct value written;     // statistics of the output
    uint64_t input_rows;      // pixels of the input
};

static struct shape make_shape(struct program *program, const struct layer *layer)
{
    struct shape shape = {.oh = layer->h, .ow = layer->w, .input_c = layer->c};
    uint32_t k = layer->k;
    if (layer->upsample) shape.oh *= 2, shape.ow *= 2;
    if (layer->halve) shape.oh = (layer->h - 2) / 2 + 1, shape.ow = (layer->w - 2) / 2 + 1;
    if (layer->kind == LAYER_ATTENTION) {
        shape.input_c = 3 * layer->c * layer->k;
        k = layer->c * layer->k;
    }
    uint32_t h = layer->h;
    uint32_t w = layer->w;
    shape.slot = program_slot(program, 0, (uint64_t)h * w * SEED_CHANNELS * sizeof(float));
    shape.seed = program_tensor(program, 1, h, w, SEED_CHANNELS);
    shape.input = program_tensor(program, 1, h, w, shape.input_c);
    shape.statistics = program_statistics(program, 1, h, w, shape.input_c);
    shape.output = program_tensor(program, 1, shape.oh, shape.ow, k);
    shape.written = program_statistics(program, 1, shape.oh, shape.ow, k);
    if (layer->shortcut != 0) {
        shape.shortcut = program_tensor(program, 1, shape.oh, shape.ow, layer->shortcut);
    }
    return shape;
}

// Fills the input, with its statistics, and the shortcut's input from the latent.
static void add_filling(struct program *program, const struct layer *layer,
                        const struct shape *shape, const struct weight *const spread[2])
{
    program_latent_load(
        program, &(struct latent_load){.source = shape->slot,
                                       .dtype = DTYPE_F32,
                                       .channels = SEED_CHANNELS,
                                       .window = {layer->h, layer->w, 0, 0, layer->h, layer->w},
                                       .output = shape->seed});
    struct convolution op = {.input = shape->seed,
                             .n = 1,
                             .h = layer->h,
                             .w = layer->w,
                             .c = SEED_CHANNELS,
                             .output = shape->input,
                             .k = shape->input_c,
                             .weight = spread[0],
                             .stride = 1,
                             .statistics = shape->statistics};
    program_convolution(program, &op);
    if (layer->shortcut == 0) return;
    op.output = shape->shortcut;
    op.k = layer->shortcut;
    op.weight = spread[1];
    op.statistics = (struct value){.place = VALUE_NONE};
    program_convolution(program, &op);
}

static void add_convolution(struct bench *self, struct program *program, const struct layer *layer,
                            const struct shape *shape)
{
    struct convolution op = {
        .input = shape->input,
        .n = 1,
        .h = layer->h,
        .w = layer->w,
        .c = layer->c,
        .output = shape->output,
        .k = layer->k,
        .weight = make_filters(self, layer),
        .bias = make_vector(self, layer->k),
        .stride = layer->halve ? 2 : 1,
        .upsample = layer->upsample,
        .statistics = shape->written,
    };
    if (layer->norm) {
        op.norm = (struct normalization){.statistics = shape->statistics,
                                         .gamma = make_vector(self, layer->c),
                                         .beta = make_vector(self, layer->c),
                                         .groups = layer->c % 32 == 0 ? 32 : 1,
                                         .epsilon = 1e-6f,
                                         .silu = layer->side == 3};
    }
    if (layer->residual) op.residual = shape->output;
    if (layer->shortcut != 0) {
        op.shortcut = shape->shortcut;
        op.shortcut_c = layer->shortcut;
        op.shortcut_weight = make_weight(self, WEIGHT_CONVOLUTION, layer->k, layer->shortcut, 1);
    }
    program_convolution(program, &op);
}

static void add_attention(struct program *program, const struct layer *layer,
                          const struct shape *shape)
{
    uint64_t width = (uint64_t)layer->c * layer->k;
    struct attention op = {.q = shape->input,
                           .k = shape->input,
                           .v = shape->input,
                           .q_stride = shape->input_c,
                           .k_stride = shape->input_c,
                           .v_stride = shape->input_c,
                           .output = shape->output,
                           .batch = layer->w,
                           .tokens = layer->h,
                           .heads = layer->c,
                           .head_width = layer->k,
                           .scale = 1.0f / sqrtf((float)layer->k),
                           .causal = layer->c > 1};
    op.k.offset += width * sizeof(float);
    op.k.bytes -= width * sizeof(float);
    op.v.offset += 2 * width * sizeof(float);
    op.v.bytes -= 2 * width * sizeof(float);
    program_attention(program, &op);
}

static void add_layer(struct bench *self, struct program *program, const struct layer *layer,
                      const struct shape *shape)
{
    if (layer->kind == LAYER_CONVOLUTION) {
        add_convolution(self, program, layer, shape);
    } else if (layer->kind == LAYER_ATTENTION) {
        add_attention(program, layer, shape);
    } else {
        program_linear(
            program,
            &(struct linear){.input = shape->input,
                             .rows = layer->h,
                             .c = layer->c,
                             .output = shape->output,
                             .k = layer->k,
                             .weight = make_weight(self, WEIGHT_MATRIX, layer->k, layer->c, 1),
                             .bias = make_vector(self, layer->k),
                             .activation =
                                 layer->k == 4 * layer->c ? ACTIVATION_GELU : ACTIVATION_NONE});
    }
}

struct times {
    uint64_t wall_ns;  // from start to end
    uint64_t busy_ns;  // CPU time of all threads
};

// Runs a program and returns how long it took.
static struct times run_program(struct bench *self, const struct program *program)
{
    struct error error;
    void *bindings[2] = {self->latent, self->result};
    must(lane_reserve(self->lane, program_peak_bytes(program), &error), &error, "arena");
    struct times start = {now_ns(), busy_ns()};
    lane_run(self->lane, program, bindings, 2);
    must(lane_collect(self->lane, &error), &error, "run");
    return (struct times){now_ns() - start.wall_ns, busy_ns() - start.busy_ns};
}

static struct program *begin_program(struct bench *self)
{
    struct program *program = NULL;
    struct error error;
    must(program_create(&program, self->device, &error), &error, "program");
    return program;
}

static void bench_create(struct bench *self, struct device *device, const struct layer *layer)
{
    struct error error;
    *self = (struct bench){.device = device};
    must(lane_create(&self->lane, device, &error), &error, "lane");
    size_t latent_floats = (size_t)layer->h * layer->w * SEED_CHANNELS;
    self->latent = memory(latent_floats * sizeof(float));
    random_state = 88172645463325252u;
    for (size_t i = 0; i < latent_floats; i++) self->latent[i] = random_float();
    uint32_t k = layer->kind == LAYER_ATTENTION ? layer->c * layer->k : layer->k;
    self->result_floats = (size_t)layer->h * layer->w * k * (layer->upsample ? 4 : 1);
    if (layer->halve) self->result_floats = (size_t)(layer->h / 2) * (layer->w / 2) * k;
    self->result = memory(self->result_floats * sizeof(float));
}

static void bench_destroy(struct bench *self)
{
    lane_destroy(&self->lane);
    for (uint32_t i = 0; i < self->weights_count; i++) {
        weight_destroy(&self->weights[i]);
        free(self->parts[i]);
    }
    free(self->latent);
    free(self->result);
}

// Fills the input, runs the layer and stores its result. Returns the program that runs the layer
// alone: the arena keeps the input from program to program.
static struct program *bench_prepare(struct bench *self, const struct layer *layer)
{
    struct error error;
    struct program *first = begin_program(self);
    struct program *again = begin_program(self);
    struct shape shape = make_shape(first, layer);
    const struct weight *spread[2] = {
        make_weight(self, WEIGHT_CONVOLUTION, shape.input_c, SEED_CHANNELS, 1), NULL};
    if (layer->shortcut != 0) {
        spread[1] = make_weight(self, WEIGHT_CONVOLUTION, layer->shortcut, SEED_CHANNELS, 1);
    }
    add_filling(first, layer, &shape, spread);
    if (layer->residual) program_clear(first, &(struct clear){shape.output, shape.output.bytes});
    add_layer(self, first, layer, &shape);
    struct value slot = program_slot(first, 1, self->result_floats * sizeof(float));
    program_store(first, &(struct store){shape.output, slot, self->result_floats});
    must(program_finish(first, &error), &error, layer->name);
    run_program(self, first);
    program_destroy(&first);

    shape = make_shape(again, layer);
    add_layer(self, again, layer, &shape);
    must(program_finish(again, &error), &error, layer->name);
    return again;
}

// Runs the layer at least RUNS_MIN times and until LAYER_NS have passed; returns how often.
static uint32_t bench_time(struct bench *self, const struct program *program, struct times *times)
{
    uint32_t runs = 0;
    uint64_t start = now_ns();
    while (runs < RUNS_MAX && (runs < RUNS_MIN || now_ns() - start < LAYER_NS)) {
        times[runs++] = run_program(self, program);
    }
    return runs;
}

static int compare_walls(const void *a, const void *b)
{
    const struct times *x = a;
    const struct times *y = b;
    return x->wall_ns < y->wall_ns ? -1 : x->wall_ns > y->wall_ns;
}

static int compare_busies(const void *a, const void *b)
{
    const struct times *x = a;
    const struct times *y = b;
    return x->busy_ns < y->busy_ns ? -1 : x->busy_ns > y->busy_ns;
}

// The largest difference to the reference on a small version of the layer, over the rms.
static double check_layer(struct device *device, struct device *reference,
                          const struct layer *layer)
{
    struct layer small = *layer;
    struct bench benches[2];
    small.h = small.h < 16 ? small.h : layer->kind == LAYER_ATTENTION ? 150 : 16;
    if (layer->kind == LAYER_CONVOLUTION) small.h = 9, small.w = 13;
    if (layer->kind == LAYER_ATTENTION && small.w > 2) small.w = 2;
    for (int i = 0; i < 2; i++) {
        bench_create(&benches[i], i == 0 ? device : reference, &small);
        struct program *program = bench_prepare(&benches[i], &small);
        program_destroy(&program);
    }
    double squares = 0;
    double largest = 0;
    for (size_t i = 0; i < benches[0].result_floats; i++) {
        double wanted = (double)benches[1].result[i];
        squares += wanted * wanted;
        largest = fmax(largest, fabs((double)benches[0].result[i] - wanted));
    }
    double rms = sqrt(squares / (double)benches[0].result_floats);
    for (int i = 0; i < 2; i++) bench_destroy(&benches[i]);
    return largest / rms;
}

// What all lines are measured on and written to.
struct report {
    struct device *device;     // all threads
    struct device *single;     // one thread
    struct device *reference;  // to compare with
    uint32_t threads;          // of device
    FILE *json;                // or NULL
    double decode_s[2];        // wall and CPU time of one decode's layers
    double encode_s[2];        // likewise
    uint32_t layers_count;     // written to json
};

static void check_or_exit(const struct report *self, const struct layer *layer, double *error)
{
    *error = check_layer(self->device, self->reference, layer);
    if (*error < 5e-5) return;
    fprintf(stderr, "%s: differs from the reference by %.2g\n", layer->name, *error);
    exit(1);
}

// Checks, times and prints one layer.
static void report_layer(struct report *self, const struct layer *layer)
{
    double error = 0;
    check_or_exit(self, layer, &error);
    struct bench bench;
    struct times times[RUNS_MAX];
    bench_create(&bench, self->device, layer);
    struct program *program = bench_prepare(&bench, layer);
    double operations = (double)program_operations(program);
    double peak = measure_peak(self->threads);
    uint32_t runs = bench_time(&bench, program, times);
    peak = (peak + measure_peak(self->threads)) / 2;
    program_destroy(&program);
    bench_destroy(&bench);
    qsort(times, runs, sizeof times[0], compare_busies);
    double busy_ns = (double)times[runs / 2].busy_ns;
    double busy = operations * self->threads / busy_ns;
    qsort(times, runs, sizeof times[0], compare_walls);
    double wall_ns = (double)times[runs / 2].wall_ns;
    double best_ns = (double)times[0].wall_ns;
    double speed = operations / wall_ns;
    const double spent_s[2] = {wall_ns * 1e-9, busy_ns * 1e-9};
    for (int i = 0; i < 2; i++) self->decode_s[i] += spent_s[i] * layer->decodes;
    for (int i = 0; i < 2; i++) self->encode_s[i] += spent_s[i] * layer->encodes;
    printf("%-34s %8.1e %9.2f %9.2f %7.1f %5.0f %% %7.1f %5.0f %%\n", layer->name, error,
           wall_ns * 1e-6, best_ns * 1e-6, speed, speed / peak * 100, busy, busy / peak * 100);
    fflush(stdout);
    if (self->json == NULL) return;
    fprintf(self->json,
            "%s  {\"layer\": \"%s\", \"error\": %.3g, \"median_ms\": %.4f, \"best_ms\": %.4f, "
            "\"cpu_ms\": %.4f, \"gflops\": %.2f, \"peak_gflops\": %.2f, \"runs\": %u}",
            self->layers_count++ > 0 ? ",\n" : "", layer->name, error, wall_ns * 1e-6,
            best_ns * 1e-6, busy_ns * 1e-6, speed, peak, runs);
}

// Runs a layer with one thread and with all, in turns; the ratio of the medians.
static double report_scaling(const struct report *self, const struct layer *layer)
{
    struct bench benches[2];
    struct program *programs[2];
    struct times times[2][RUNS_MAX];
    for (int i = 0; i < 2; i++) {
        bench_create(&benches[i], i == 0 ? self->single : self->device, layer);
        programs[i] = bench_prepare(&benches[i], layer);
    }
    uint32_t runs = 0;
    uint64_t start = now_ns();
    while (runs < RUNS_MAX && (runs < RUNS_MIN || now_ns() - start < 2 * LAYER_NS)) {
        for (int i = 0; i < 2; i++) times[i][runs] = run_program(&benches[i], programs[i]);
        runs++;
    }
    for (int i = 0; i < 2; i++) {
        qsort(times[i], runs, sizeof times[i][0], compare_walls);
        program_destroy(&programs[i]);
        bench_destroy(&benches[i]);
    }
    double one_ns = (double)times[0][runs / 2].wall_ns;
    double all_ns = (double)times[1][runs / 2].wall_ns;
    printf("%-34s %9.2f ms with 1 thread, %9.2f with %u: %.2f times\n", layer->name, one_ns * 1e-6,
           all_ns * 1e-6, self->threads, one_ns / all_ns);
    return one_ns / all_ns;
}

static bool is_scaled(const struct layer *layer)
{
    for (size_t i = 0; i < sizeof scaled / sizeof scaled[0]; i++) {
        if (strcmp(layer->name, scaled[i]) == 0) return true;
    }
    return false;
}

static void report_all(struct report *self, const char *filter)
{
    double peak = measure_peak(self->threads);
    printf("%s, %u threads\n", device_info(self->device)->label, self->threads);
    printf("FMA peak %.1f GFLOP/s\n", peak);
    printf("%-34s %8s %9s %9s %7s %7s %7s %7s\n", "layer", "error", "median ms", "best ms", "GF/s",
           "peak", "busy", "peak");
    if (self->json != NULL) {
        fprintf(self->json, "{\"device\": \"%s\", \"threads\": %u, \"peak_gflops\": %.2f,\n",
                device_info(self->device)->label, self->threads, peak);
        fprintf(self->json, " \"layers\": [\n");
    }
    for (size_t i = 0; i < LAYERS; i++) {
        if (strstr(layers[i].name, filter) != NULL) report_layer(self, &layers[i]);
    }
    double least = INFINITY;
    for (size_t i = 0; self->threads > 1 && i < LAYERS; i++) {
        if (strstr(layers[i].name, filter) == NULL || !is_scaled(&layers[i])) continue;
        least = fmin(least, report_scaling(self, &layers[i]));
    }
    printf("sum over the layers of 512 x 512: decode %.2f s, CPU time %.2f s; encode %.2f s, CPU "
           "time %.2f s\n",
           self->decode_s[0], self->decode_s[1], self->encode_s[0], self->encode_s[1]);
    if (self->json == NULL) return;
    fprintf(self->json,
            "],\n \"decode_s\": %.4f, \"encode_s\": %.4f, \"scaling_least\": ", self->decode_s[0],
            self->encode_s[0]);
    fprintf(self->json, isfinite(least) ? "%.3f}\n" : "null}\n", least);
}

static struct device *open_named(const char *name, uint32_t threads)
{
    struct device *device = NULL;
    struct error error;
    struct device_options options = {.name = name, .threads = threads};
    must(device_open(&device, &options, &error), &error, name);
    return device;
}

int main(int argc, char **argv)
{
    struct report report = {.json = NULL};
    int at = 1;
    if (argc > 2 && strcmp(argv[1], "--json") == 0) {
        report.json = fopen(argv[2], "w");
        at = 3;
    }
    report.threads = argc > at ? (uint32_t)strtoul(argv[at], NULL, 10) : 2;
    if (report.threads < 1 || report.threads > THREADS_MAX) {
        fprintf(stderr, "usage: bench_kernels [--json FILE] [threads 1..%u [filter]]\n",
                THREADS_MAX);
        return 2;
    }
    report.device = open_named("cpu", report.threads);
    report.single = open_named("cpu", 1);
    report.reference = open_named("reference", 1);
    report_all(&report, argc > at + 1 ? argv[at + 1] : "");
    if (report.json != NULL) fclose(report.json);
    device_close(&report.reference);
    device_close(&report.single);
    device_close(&report.device);
    return 0;
}
