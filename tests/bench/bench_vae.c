// bench_vae.c - how long a VAE takes on the CPU, whole and tiled, and how much arena.
//
//     bench_vae MODEL.safetensors [--threads N] [--plan] SIZE...
//
// For each size (pixels of a square image) one line for encode and one for decode: the best of
// three runs, direct-convolution GFLOP/s, the arena, and the time that planning and building took.
// --plan runs nothing: it prints the plans alone, of three passes too.

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "models/model.h"
#include "models/vae/vae.h"

#define RUNS 3u

struct bench {
    struct device *device;
    struct lane *lane;
    struct model *model;
    struct vae *vae;
    bool plan_only;
};

static void check(enum status status, const struct error *error)
{
    if (status == STATUS_OK) return;
    fprintf(stderr, "bench_vae: %s: %s\n", status_name(status), error->message);
    exit(1);
}

static double seconds_since(uint64_t begin_ns)
{
    return (double)(clock_ns(clock_system()) - begin_ns) / 1e9;
}

static void *allocate(uint64_t bytes)
{
    void *memory = calloc(1, bytes);
    if (memory == NULL) exit(1);
    return memory;
}

// The same noise for everybody, in -1..1.
static void fill(float *out, uint64_t count)
{
    uint32_t state = 1;
    for (uint64_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        out[i] = (float)(state >> 8) / 8388608.0f - 1;
    }
}

static double best_seconds(const struct bench *self, const struct vae_plan *plan,
                           const struct program *program)
{
    struct error error = {0};
    check(lane_reserve(self->lane, plan->peak_bytes, &error), &error);
    float *input = allocate(plan->input_bytes);
    void *output = allocate(plan->output_bytes);
    fill(input, plan->input_bytes / sizeof *input);
    double best = 0;
    for (uint32_t i = 0; i < RUNS; i++) {
        uint64_t begin_ns = clock_ns(clock_system());
        struct vae_found found;
        lane_run(self->lane, program, (void *const[]){input, output, &found}, VAE_SLOTS);
        check(lane_collect(self->lane, &error), &error);
        double seconds = seconds_since(begin_ns);
        if (i == 0 || seconds < best) best = seconds;
    }
    free(input);
    free(output);
    return best;
}

static void measure(const struct bench *self, const struct vae_request *request, const char *what,
                    uint32_t size)
{
    struct error error = {0};
    struct vae_plan plan;
    struct program *program = NULL;
    uint64_t begin_ns = clock_ns(clock_system());
    check(vae_plan(self->vae, request, &plan, &error), &error);
    double plan_seconds = seconds_since(begin_ns);
    begin_ns = clock_ns(clock_system());
    check(vae_program(self->vae, &plan, &program, &error), &error);
    double build_seconds = seconds_since(begin_ns);
    double gflop = (double)program_operations(program) / 1e9;
    const struct vae_config *config = &model_describe(self->model)->vae;
    uint64_t estimate_bytes = vae_estimate_bytes(config, request);
    printf("%s %5u  %4u tiles  %8.1f GFLOP  arena %8.1f MiB (estimate %8.1f)  plan %6.2f ms  "
           "build %6.2f ms",
           what, size, plan.tiles, gflop, (double)plan.peak_bytes / (1 << 20),
           (double)estimate_bytes / (1 << 20), plan_seconds * 1e3, build_seconds * 1e3);
    if (!self->plan_only) {
        double seconds = best_seconds(self, &plan, program);
        printf("  %7.3f s  %6.1f GFLOP/s", seconds, gflop / seconds);
    }
    printf("\n");
    fflush(stdout);
    program_destroy(&program);
}

static void measure_size(const struct bench *self, uint32_t size)
{
    const struct vae_config *config = &model_describe(self->model)->vae;
    uint32_t latent = size >> (config->levels - 1);
    struct vae_request decode = {.direction = VAE_DECODE,
                                 .n = 1,
                                 .h = latent,
                                 .w = latent,
                                 .c = config->latent_channels,
                                 .input_dtype = DTYPE_F32,
                                 .output_dtype = DTYPE_F32,
                                 .tiling = VAE_TILING_NEVER,
                                 .overlap = UINT32_MAX};
    struct vae_request encode = decode;
    encode.direction = VAE_ENCODE;
    encode.h = encode.w = size;
    encode.c = config->image_channels;
    if (config->encoder) measure(self, &encode, "encode", size);
    if (config->decoder) measure(self, &decode, "decode", size);
    if (!self->plan_only) return;
    encode.tiling = decode.tiling = VAE_TILING_ALWAYS;
    if (config->encoder) measure(self, &encode, "encode, three passes", size);
    if (config->decoder) measure(self, &decode, "decode, three passes", size);
}

static void open_all(struct bench *self, const char *path, uint32_t threads)
{
    struct error error = {0};
    check(device_open(&self->device, &(struct device_options){.name = "cpu", .threads = threads},
                      &error),
          &error);
    check(lane_create(&self->lane, self->device, &error), &error);
    check(model_open(&self->model, &path, 1, NULL, &error), &error);
    if (!model_describe(self->model)->has[MODEL_VAE]) {
        fprintf(stderr, "bench_vae: %s holds no VAE\n", path);
        exit(1);
    }
    uint64_t begin_ns = clock_ns(clock_system());
    check(vae_create(&self->vae, self->device, model_tensors(self->model, MODEL_VAE),
                     &model_describe(self->model)->vae, &error),
          &error);
    const struct device_info *info = device_info(self->device);
    printf("%s, %u threads; weights ready in %.3f s, %.1f MiB\n", info->label, info->threads,
           seconds_since(begin_ns), (double)vae_bytes(self->vae) / (1 << 20));
}

int main(int argc, char **argv)
{
    struct bench bench = {0};
    uint32_t threads = 0;
    int at = 2;
    for (; at < argc && argv[at][0] == '-'; at++) {
        if (strcmp(argv[at], "--plan") == 0) bench.plan_only = true;
        if (strcmp(argv[at], "--threads") == 0 && at + 1 < argc) {
            threads = (uint32_t)strtoul(argv[++at], NULL, 10);
        }
    }
    if (argc < 3 || at >= argc) {
        fprintf(stderr, "usage: bench_vae MODEL.safetensors [--threads N] [--plan] SIZE...\n");
        return 2;
    }
    open_all(&bench, argv[1], threads);
    for (; at < argc; at++) measure_size(&bench, (uint32_t)strtoul(argv[at], NULL, 10));
    vae_destroy(&bench.vae);
    model_close(&bench.model);
    lane_destroy(&bench.lane);
    device_close(&bench.device);
    return 0;
}
