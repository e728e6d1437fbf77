// bench_kernels.c - how fast the kernels of a CPU are, layer by layer, against its own FMA peak.
//
//     bench_kernels [threads [filter]]      every layer whose name contains filter
//
// The layers are the convolutions, attention and 1x1 products of the SDXL VAE's decoder at 512
// pixels and the linears of CLIP-L and OpenCLIP-bigG. Before a layer is timed, a small version of
// it is compared with the device "reference". Each line gives the median of several runs, in
// direct-equivalent GFLOP/s (2 x MAC of the plain algorithm), and the share of the peak that was
// measured just before and after it. Where others use the machine too, the last two columns say
// more: the same in CPU time instead of wall time. Winograd may pass 100 %.

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
    uint32_t count;     // of this layer in one decode of 512 x 512
};

#define CONV(name, size, c, k, side, count)                                                        \
    {                                                                                              \
        name, LAYER_CONVOLUTION, size, size, c, k, side, false, true, false, 0, count              \
    }
#define LAST(name, size, c, k, shortcut, count)                                                    \
    {                                                                                              \
        name, LAYER_CONVOLUTION, size, size, c, k, 3, false, true, (shortcut) == 0, shortcut,      \
            count                                                                                  \
    }
#define UP(name, size, c)                                                                          \
    {                                                                                              \
        name, LAYER_CONVOLUTION, size, size, c, c, 3, true, false, false, 0, 1                     \
    }
#define LINEAR(name, rows, c, k)                                                                   \
    {                                                                                              \
        name, LAYER_LINEAR, rows, 1, c, k, 1, false, false, false, 0, 0                            \
    }

static const struct layer layers[] = {
    CONV("conv 512>512 @64 first", 64, 512, 512, 3, 5),
    LAST("conv 512>512 @64 last", 64, 512, 512, 0, 5),
    UP("up 512 @64>128", 64, 512),
    CONV("conv 512>512 @128 first", 128, 512, 512, 3, 3),
    LAST("conv 512>512 @128 last", 128, 512, 512, 0, 3),
    UP("up 512 @128>256", 128, 512),
    CONV("conv 512>256 @256 first", 256, 512, 256, 3, 1),
    LAST("conv 256>256 @256 shortcut", 256, 256, 256, 512, 1),
    CONV("conv 256>256 @256 first", 256, 256, 256, 3, 2),
    LAST("conv 256>256 @256 last", 256, 256, 256, 0, 2),
    UP("up 256 @256>512", 256, 256),
    CONV("conv 256>128 @512 first", 512, 256, 128, 3, 1),
    LAST("conv 128>128 @512 shortcut", 512, 128, 128, 256, 1),
    CONV("conv 128>128 @512 first", 512, 128, 128, 3, 2),
    LAST("conv 128>128 @512 last", 512, 128, 128, 0, 2),
    {"conv_in 4>512 @64", LAYER_CONVOLUTION, 64, 64, 4, 512, 3, false, false, false, 0, 1},
    CONV("conv_out 128>3 @512", 512, 128, 3, 3, 1),
    CONV("1x1 qkv 512>1536 @64", 64, 512, 1536, 1, 1),
    {"1x1 out 512>512 @64", LAYER_CONVOLUTION, 64, 64, 512, 512, 1, false, false, true, 0, 1},
    {"attention 4096 x 512", LAYER_ATTENTION, 4096, 1, 1, 512, 0, false, false, false, 0, 1},
    {"attention causal 77 x 12 x 64", LAYER_ATTENTION, 77, 1, 12, 64, 0, false, false, false, 0, 0},
    {"attention causal 8x 77 x 20 x 64", LAYER_ATTENTION, 77, 8, 20, 64, 0, false, false, false, 0,
     0},
    LINEAR("clip_l 77 x 768>2304", 77, 768, 2304),
    LINEAR("clip_l 77 x 768>768", 77, 768, 768),
    LINEAR("clip_l 77 x 768>3072", 77, 768, 3072),
    LINEAR("clip_l 77 x 3072>768", 77, 3072, 768),
    LINEAR("clip_l 154 x 768>3072", 154, 768, 3072),
    LINEAR("clip_l 154 x 3072>768", 154, 3072, 768),
    LINEAR("clip_l 616 x 768>3072", 616, 768, 3072),
    LINEAR("clip_l 616 x 3072>768", 616, 3072, 768),
    LINEAR("big_g 77 x 1280>3840", 77, 1280, 3840),
    LINEAR("big_g 77 x 1280>1280", 77, 1280, 1280),
    LINEAR("big_g 77 x 1280>5120", 77, 1280, 5120),
    LINEAR("big_g 77 x 5120>1280", 77, 5120, 1280),
    LINEAR("big_g 154 x 1280>5120", 154, 1280, 5120),
    LINEAR("big_g 154 x 5120>1280", 154, 5120, 1280),
    LINEAR("big_g 616 x 1280>5120", 616, 1280, 5120),
    LINEAR("big_g 616 x 5120>1280", 616, 5120, 1280),
};

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

static const struct weight *make_weight(struct bench *self, enum weight_form form, uint32_t k,
                                        uint32_t c, uint32_t side)
{
    size_t count = (size_t)k * c * side * side;
    struct weight_source source = {
        .form = form, .dtype = DTYPE_F16, .dims = {k, c, side, side}, .parts_count = 1};
    float *values = memory(count * sizeof values[0]);
    float scale = form == WEIGHT_VECTOR ? 0.1f : 1.7f / sqrtf((float)(c * side * side));
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
        .weight = make_weight(self, WEIGHT_CONVOLUTION, layer->k, layer->c, layer->side),
        .bias = make_vector(self, layer->k),
        .stride = 1,
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
        program_linear(program,
                       &(struct linear){
                           .input = shape->input,
                           .rows = layer->h,
                           .c = layer->c,
                           .output = shape->output,
                           .k = layer->k,
                           .weight = make_weight(self, WEIGHT_MATRIX, layer->k, layer->c, 1),
                           .bias = make_vector(self, layer->k),
                           .activation = layer->k > layer->c ? ACTIVATION_GELU : ACTIVATION_NONE});
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

// Fills the input, runs the layer and stores its result; then runs the layer alone, up to runs_max
// times. Returns how often; the arena keeps the input from program to program.
static uint32_t bench_run(struct bench *self, const struct layer *layer, struct times *times,
                          uint32_t runs_max, uint64_t *operations)
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

    shape = make_shape(again, layer);
    add_layer(self, again, layer, &shape);
    must(program_finish(again, &error), &error, layer->name);
    *operations = program_operations(again);
    uint32_t runs = 0;
    uint64_t start = now_ns();
    while (runs < runs_max && (runs < RUNS_MIN || now_ns() - start < LAYER_NS)) {
        times[runs++] = run_program(self, again);
    }
    program_destroy(&again);
    program_destroy(&first);
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
    uint64_t operations = 0;
    small.h = small.h < 16 ? small.h : layer->kind == LAYER_ATTENTION ? 150 : 16;
    if (layer->kind == LAYER_CONVOLUTION) small.h = 9, small.w = 13;
    if (layer->kind == LAYER_ATTENTION && small.w > 2) small.w = 2;
    for (int i = 0; i < 2; i++) {
        bench_create(&benches[i], i == 0 ? device : reference, &small);
        bench_run(&benches[i], &small, NULL, 0, &operations);
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

// Prints one line and returns the time of one run, in seconds; adds to the CPU time of a decode.
static double bench_layer(struct device *device, struct device *reference,
                          const struct layer *layer, uint32_t threads, double *busy_s)
{
    double error = check_layer(device, reference, layer);
    if (!(error < 5e-5)) {
        fprintf(stderr, "%s: differs from the reference by %.2g\n", layer->name, error);
        exit(1);
    }
    struct bench bench;
    struct times times[RUNS_MAX];
    uint64_t operations = 0;
    bench_create(&bench, device, layer);
    double peak = measure_peak(threads);
    uint32_t runs = bench_run(&bench, layer, times, RUNS_MAX, &operations);
    peak = (peak + measure_peak(threads)) / 2;
    bench_destroy(&bench);
    qsort(times, runs, sizeof times[0], compare_busies);
    double busy = (double)operations * threads / (double)times[runs / 2].busy_ns;
    *busy_s += (double)times[runs / 2].busy_ns * 1e-9 * layer->count;
    qsort(times, runs, sizeof times[0], compare_walls);
    double median_ns = (double)times[runs / 2].wall_ns;
    double speed = (double)operations / median_ns;
    printf("%-34s %8.1e %9.2f %9.2f %7.1f %5.0f %% %7.1f %5.0f %%\n", layer->name, error,
           median_ns * 1e-6, (double)times[0].wall_ns * 1e-6, speed, speed / peak * 100, busy,
           busy / peak * 100);
    fflush(stdout);
    return median_ns * 1e-9;
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
    uint32_t threads = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 2;
    const char *filter = argc > 2 ? argv[2] : "";
    if (threads < 1 || threads > THREADS_MAX) {
        fprintf(stderr, "usage: bench_kernels [threads 1..%u [filter]]\n", THREADS_MAX);
        return 2;
    }
    struct device *device = open_named("cpu", threads);
    struct device *reference = open_named("reference", 1);
    printf("%s, %u threads\n", device_info(device)->label, threads);
    printf("FMA peak %.1f GFLOP/s\n", measure_peak(threads));
    printf("%-34s %8s %9s %9s %7s %7s %7s %7s\n", "layer", "error", "median ms", "best ms", "GF/s",
           "peak", "busy", "peak");
    double decode_s = 0;
    double busy_s = 0;
    for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++) {
        if (strstr(layers[i].name, filter) == NULL) continue;
        decode_s += layers[i].count * bench_layer(device, reference, &layers[i], threads, &busy_s);
    }
    printf("sum over the layers of one decode of 512 x 512: %.2f s, CPU time %.2f s\n", decode_s,
           busy_s);
    device_close(&reference);
    device_close(&device);
    return 0;
}
