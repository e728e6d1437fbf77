// bench_peer.c - our side of tests/bench/peers.py: runs what a line on stdin asks for, and tells
// how long it took.
//
//     bench_peer THREADS FILE...
//
// The files are one model with a VAE, CLIP-L and bigG. When all of it is loaded, "ready" and the
// milliseconds that opening the files, the VAE and the encoders took. Then a line for each line:
//
//     decode H W IN OUT     f32 latent [1,4,H,W] to f32 image [1,8H,8W,3]
//     encode H W IN OUT     f32 image [1,H,W,3] to f32 latent
//     text ROWS 77 IN OUT   i32 tokens [2,ROWS,77] of CLIP-L and bigG, ROWS 1 or an even number, to
//                           for each row f32 [77,2048] and [1280]
//     release 0 0 - -       gives the arena back
//
// The answer is "MS ARENA": milliseconds of one run without reading and writing the files, and the
// arena in bytes.

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "models/model.h"
#include "models/text/text.h"
#include "models/vae/vae.h"

#define TOKENS 77u
#define PATH_BYTES 512
#define JOBS_MAX 8u

struct bench {
    struct device *device;
    struct lane *lane;
    struct model *model;
    struct vae *vae;
    struct text_model *text;
};

// A line of stdin.
struct command {
    char verb[16];
    uint32_t h, w;
    char in[PATH_BYTES], out[PATH_BYTES];
};

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "bench_peer: %s: %s\n", what, why);
    exit(1);
}

static void check(enum status status, const struct error *error)
{
    if (status != STATUS_OK) fail(status_name(status), error->message);
}

static double ms_since(uint64_t begin_ns)
{
    return (double)(clock_ns(clock_system()) - begin_ns) / 1e6;
}

static void *read_file(const char *path, uint64_t bytes)
{
    FILE *file = fopen(path, "rb");
    void *data = malloc(bytes);
    if (file == NULL || data == NULL) fail(path, "cannot be read");
    if (fread(data, 1, bytes, file) != bytes) fail(path, "is too short");
    fclose(file);
    return data;
}

static void append(FILE *file, const void *data, uint64_t bytes)
{
    if (file == NULL || fwrite(data, 1, bytes, file) != bytes) fail("output", "cannot be written");
}

static double run_lane(const struct bench *self, const struct program *program,
                       void *const *bindings, uint32_t bindings_count)
{
    struct error error = {0};
    check(lane_reserve(self->lane, program_peak_bytes(program), &error), &error);
    uint64_t begin_ns = clock_ns(clock_system());
    lane_run(self->lane, program, bindings, bindings_count);
    check(lane_collect(self->lane, &error), &error);
    return ms_since(begin_ns);
}

static double run_image(const struct bench *self, const struct command *command)
{
    bool decode = strcmp(command->verb, "decode") == 0;
    struct error error = {0};
    struct vae_plan plan;
    struct program *program = NULL;
    struct vae_request request = {.direction = decode ? VAE_DECODE : VAE_ENCODE,
                                  .n = 1,
                                  .h = command->h,
                                  .w = command->w,
                                  .c = decode ? 4 : 3,
                                  .input_dtype = DTYPE_F32,
                                  .output_dtype = DTYPE_F32,
                                  .tiling = VAE_TILING_NEVER};
    check(vae_plan(self->vae, &request, &plan, &error), &error);
    check(vae_program(self->vae, &plan, &program, &error), &error);
    void *input = read_file(command->in, plan.input_bytes);
    void *output = malloc(plan.output_bytes);
    if (output == NULL) fail("output", "no memory");
    struct vae_found found;
    double ms = run_lane(self, program, (void *const[]){input, output, &found}, VAE_SLOTS);
    FILE *file = fopen(command->out, "wb");
    append(file, output, plan.output_bytes);
    fclose(file);
    program_destroy(&program);
    free(input);
    free(output);
    return ms;
}

static void write_text(struct text_job *const *jobs, const char *path, uint32_t rows)
{
    FILE *file = fopen(path, "wb");
    for (uint32_t i = 0; i < rows; i++) {
        struct text_output output = text_job_output(jobs[i / 2], i % 2);
        append(file, output.cond, (uint64_t)output.tokens * output.width * sizeof(float));
        append(file, output.pooled, output.pooled_width * sizeof(float));
    }
    fclose(file);
}

// Rows 2 i and, where there is one, 2 i + 1 as prompt and negative of a request.
static struct text_job *create_job(const struct bench *self, const int32_t *ids, uint32_t rows,
                                   uint32_t i)
{
    static const enum model_part parts[] = {MODEL_CLIP_L, MODEL_CLIP_G};
    struct text_tokens_request request = {0};
    for (uint32_t part = 0; part < 2; part++) {
        for (uint32_t row = 2 * i; row < rows && row < 2 * i + 2; row++) {
            request.tokens[parts[part]][row % 2] =
                (struct text_tokens){ids + ((size_t)part * rows + row) * TOKENS, NULL, 1, TOKENS};
        }
    }
    struct error error = {0};
    struct text_job *job = NULL;
    check(text_job_create_from_tokens(&job, self->text, &request, &error), &error);
    return job;
}

// The whole way from tokens to conditioning counts.
static double run_text(const struct bench *self, const struct command *command)
{
    uint32_t rows = command->h;
    if (rows < 1 || rows > 2 * JOBS_MAX || (rows > 1 && rows % 2 != 0)) {
        fail("rows", "1, or an even number of at most 16");
    }
    int32_t *ids = read_file(command->in, 2 * rows * TOKENS * sizeof *ids);
    struct error error = {0};
    struct text_job *jobs[JOBS_MAX] = {NULL};
    struct text_batch *batch = NULL;
    uint32_t jobs_count = (rows + 1) / 2;
    uint32_t count = 0;
    uint64_t begin_ns = clock_ns(clock_system());
    for (uint32_t i = 0; i < jobs_count; i++) jobs[i] = create_job(self, ids, rows, i);
    check(text_batch_create(&batch, self->text, jobs, jobs_count, &error), &error);
    void *const *bindings = text_batch_bindings(batch, &count);
    run_lane(self, text_batch_program(batch), bindings, count);
    text_batch_finish(batch);
    double ms = ms_since(begin_ns);
    write_text(jobs, command->out, rows);
    text_batch_destroy(&batch);
    for (uint32_t i = 0; i < jobs_count; i++) text_job_destroy(&jobs[i]);
    free(ids);
    return ms;
}

static void open_all(struct bench *self, uint32_t threads, const char *const *paths, uint32_t count)
{
    struct error error = {0};
    struct device_options options = {.name = "cpu", .threads = threads};
    check(device_open(&self->device, &options, &error), &error);
    check(lane_create(&self->lane, self->device, &error), &error);
    uint64_t begin_ns = clock_ns(clock_system());
    check(model_open(&self->model, paths, count, NULL, &error), &error);
    double open_ms = ms_since(begin_ns);
    const struct model_description *description = model_describe(self->model);
    if (!description->has[MODEL_VAE] || description->text != TEXT_SDXL) {
        fail(description->kind, "VAE, CLIP-L and bigG are needed");
    }
    struct tensor_table *tables[MODEL_PART_COUNT];
    for (int i = 0; i < MODEL_PART_COUNT; i++) {
        tables[i] = model_tensors(self->model, (enum model_part)i);
    }
    begin_ns = clock_ns(clock_system());
    check(vae_create(&self->vae, self->device, tables[MODEL_VAE], &description->vae, &error),
          &error);
    double vae_ms = ms_since(begin_ns);
    begin_ns = clock_ns(clock_system());
    check(text_model_create(&self->text, self->device, tables, description, NULL, &error), &error);
    printf("ready %.3f %.3f %.3f\n", open_ms, vae_ms, ms_since(begin_ns));
}

static double obey(const struct bench *self, const struct command *command)
{
    if (strcmp(command->verb, "text") == 0) return run_text(self, command);
    if (strcmp(command->verb, "release") == 0) {
        lane_release(self->lane);
        return 0;
    }
    return run_image(self, command);
}

int main(int argc, char **argv)
{
    struct bench bench = {0};
    if (argc < 3) {
        fprintf(stderr, "usage: bench_peer THREADS FILE...\n");
        return 2;
    }
    open_all(&bench, (uint32_t)strtoul(argv[1], NULL, 10), (const char *const *)argv + 2,
             (uint32_t)argc - 2);
    fflush(stdout);
    char line[2 * PATH_BYTES];
    struct command command;
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (sscanf(line, "%15s %u %u %511s %511s", command.verb, &command.h, &command.w, command.in,
                   command.out) != 5) {
            fail(line, "is no command");
        }
        double ms = obey(&bench, &command);
        printf("%.3f %llu\n", ms, (unsigned long long)lane_arena_bytes(bench.lane));
        fflush(stdout);
    }
    text_model_destroy(&bench.text);
    vae_destroy(&bench.vae);
    model_close(&bench.model);
    lane_destroy(&bench.lane);
    device_close(&bench.device);
    return 0;
}
