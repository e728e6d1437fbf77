// gpu_run.c - one device, driven by lines: what tests/gpu/gpu.py asks of a card, of the emulator or
// of the CPU, with the same words for each.
//
//     gpu_run DEVICE faithful|fast THREADS FILE...
//
// The files are one model with a VAE, with encoders, or with both. The first line out is
// {"ready": LABEL}; then for each line in, one JSON object out, {"error": STATUS, "message": WHY}
// when it cannot be done, after which the next line may:
//
//     load                         puts the weights on the device
//     decode H W TYPE RUNS IN OUT  f32 latent [1,c,H,W] to the image; TYPE is f32, u8, or raw: f32
//                                  before the clamp
//     encode H W RUNS IN OUT       f32 image [1,H,W,3] to f32 latent
//     prompt RUNS IN OUT           IN holds a prompt and, on the next line, a negative; OUT gets
//                                  cond and pooled of one, then of the other, f32
//     trace on|off                 from now on an answer to a run tells its time by operation and
//     by
//                                  launch too
//     reserve BYTES                takes device memory, to leave less for others
//     compare A B                  two files of f32: how far A is from B
//     drop                         gives weights and arena back
//     arm N                        the N-th device allocation from now on fails (0: none); needs
//                                  gpu_oom.so
//     count                        allocations since arm, and how many are held
//
// A run is timed from lane_run to lane_collect: copies in and out are in it. RUNS of them follow a
// first one that is not counted; the last one must give the bytes of the first.

#include <assert.h>
#include <dlfcn.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/clock.h"
#include "models/model.h"
#include "models/text/text.h"
#include "models/vae/vae.h"

#define LINE_BYTES 2048
#define WORDS_MAX 8u
#define RUNS_MAX 1000u
#define LAUNCHES_MAX 8192u

struct bench {
    struct device *device;      // opened at the start
    struct lane *lane;          // of the device
    struct model *model;        // the files
    struct vae *vae;            // after load, when the model has one
    struct text_model *text;    // likewise
    void *input, *output;       // of the verb that runs; freed behind it
    struct program *program;    // likewise
    struct text_job *job;       // likewise
    struct text_batch *batch;   // likewise
    bool is_traced;             // after "trace on"
    double times_ms[RUNS_MAX];  // of the runs of one verb
};

// A line, split.
struct command {
    char *words[WORDS_MAX];  // the verb first
    uint32_t count;          // of words
};

static double ms_since(uint64_t begin_ns)
{
    return (double)(clock_ns(clock_system()) - begin_ns) / 1e6;
}

static uint32_t number(const struct command *command, uint32_t index)
{
    return (uint32_t)strtoul(command->words[index], NULL, 10);
}

// ---------------------------------------------------------------------------------------------
// Files

static enum status read_file(const char *path, void **out, uint64_t *bytes, struct error *error)
{
    FILE *file = fopen(path, "rb");
    void *data = NULL;
    bool good = file != NULL && fseek(file, 0, SEEK_END) == 0;
    long length = good ? ftell(file) : -1;
    good = length >= 0 && fseek(file, 0, SEEK_SET) == 0;
    if (good) data = malloc((size_t)length + 1);
    good = data != NULL && fread(data, 1, (size_t)length, file) == (size_t)length;
    if (file != NULL) fclose(file);
    if (!good) {
        free(data);
        return error_set(error, STATUS_NOT_FOUND, "%s cannot be read", path);
    }
    ((char *)data)[length] = '\0';
    *out = data;
    *bytes = (uint64_t)length;
    return STATUS_OK;
}

static enum status append(FILE *file, const void *data, uint64_t bytes, struct error *error)
{
    if (file != NULL && fwrite(data, 1, bytes, file) == bytes) return STATUS_OK;
    return error_set(error, STATUS_INTERNAL, "the output cannot be written");
}

static enum status write_file(const char *path, const void *data, uint64_t bytes,
                              struct error *error)
{
    FILE *file = fopen(path, "wb");
    enum status status = append(file, data, bytes, error);
    if (file != NULL) fclose(file);
    return status;
}

// ---------------------------------------------------------------------------------------------
// Runs

// Runs a program once, not counted, and then `runs` times.
static enum status run_often(struct bench *self, const struct program *program,
                             void *const *bindings, uint32_t count, uint32_t runs,
                             struct error *error)
{
    enum status status = lane_reserve(self->lane, program_peak_bytes(program), error);
    for (uint32_t i = 0; i <= runs && i <= RUNS_MAX && status == STATUS_OK; i++) {
        uint64_t begin_ns = clock_ns(clock_system());
        lane_run(self->lane, program, bindings, count);
        status = lane_collect(self->lane, error);
        if (i > 0) self->times_ms[i - 1] = ms_since(begin_ns);
    }
    return status;
}

static enum status repeat_image(struct bench *self, const struct vae_plan *plan, uint32_t runs,
                                struct error *error)
{
    void *first = malloc(plan->output_bytes);
    self->output = calloc(1, plan->output_bytes);
    enum status status = STATUS_OK;
    if (first == NULL || self->output == NULL) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the output");
        goto done;
    }
    struct vae_found found;
    void *bindings[VAE_SLOTS] = {self->input, first, &found};
    status = run_often(self, self->program, bindings, VAE_SLOTS, 0, error);
    bindings[VAE_SLOT_OUTPUT] = self->output;
    if (status == STATUS_OK) {
        status = run_often(self, self->program, bindings, VAE_SLOTS, runs, error);
    }
    if (status == STATUS_OK && memcmp(first, self->output, plan->output_bytes) != 0) {
        status = error_set(error, STATUS_INTERNAL, "the same run gave other bytes");
    }

done:
    free(first);
    return status;
}

// Adds an operation or a launch to the others of its name.
static void add_time(json_t *kinds, const char *name, uint64_t ns, uint64_t operations)
{
    json_t *entry = json_object_get(kinds, name);
    double ms = json_real_value(json_object_get(entry, "ms"));
    json_int_t count = json_integer_value(json_object_get(entry, "count"));
    json_int_t before = json_integer_value(json_object_get(entry, "operations"));
    json_object_set_new(kinds, name,
                        json_pack("{s:f, s:I, s:I}", "ms", ms + (double)ns / 1e6, "count",
                                  count + 1, "operations", before + (json_int_t)operations));
}

// Where the time of the last run went, by the device's own clock: operation by operation...
static json_t *kernels_json(const struct bench *self, const struct program *program)
{
    uint32_t count = program_operations_count(program);
    uint64_t *ends_ns = calloc((size_t)count + 1, sizeof *ends_ns);
    json_t *kernels = json_object();
    uint32_t known = ends_ns == NULL ? 0 : lane_times(self->lane, ends_ns, count);
    for (uint32_t i = 0; i < known; i++) {
        struct operation_facts facts = program_operation(program, i);
        add_time(kernels, facts.name, ends_ns[i + 1] - ends_ns[i], facts.floating_point_operations);
    }
    free(ends_ns);
    return kernels;
}

// ... and launch by launch.
static json_t *launches_json(const struct bench *self)
{
    struct lane_launch *launches = calloc(LAUNCHES_MAX, sizeof *launches);
    json_t *kinds = json_object();
    uint32_t known = launches == NULL ? 0 : lane_launches(self->lane, launches, LAUNCHES_MAX);
    for (uint32_t i = 0; i < known; i++) {
        add_time(kinds, launches[i].name, launches[i].end_ns - launches[i].begin_ns, 0);
    }
    free(launches);
    return kinds;
}

static json_t *times_json(const struct bench *self, const struct program *program, uint32_t runs)
{
    json_t *times = json_array();
    for (uint32_t i = 0; i < runs && i < RUNS_MAX; i++) {
        json_array_append_new(times, json_real(self->times_ms[i]));
    }
    json_t *answer =
        json_pack("{s:o, s:I}", "ms", times, "arena", (json_int_t)lane_arena_bytes(self->lane));
    if (self->is_traced) {
        json_object_set_new(answer, "kernels", kernels_json(self, program));
        json_object_set_new(answer, "launches", launches_json(self));
    }
    return answer;
}

static enum status run_image(struct bench *self, const struct vae_request *request,
                             const struct command *command, json_t **answer, struct error *error)
{
    uint32_t at = command->count - 3;  // RUNS IN OUT
    uint64_t bytes = 0;
    struct vae_plan plan;
    if (self->vae == NULL) return error_set(error, STATUS_FAILED_PRECONDITION, "no VAE is loaded");
    enum status status = vae_plan(self->vae, request, &plan, error);
    if (status == STATUS_OK) status = vae_program(self->vae, &plan, &self->program, error);
    if (status == STATUS_OK) {
        status = read_file(command->words[at + 1], &self->input, &bytes, error);
    }
    if (status == STATUS_OK && bytes != plan.input_bytes) {
        status = error_set(error, STATUS_INVALID_ARGUMENT, "the input has %llu bytes, not %llu",
                           (unsigned long long)bytes, (unsigned long long)plan.input_bytes);
    }
    if (status == STATUS_OK) status = repeat_image(self, &plan, number(command, at), error);
    if (status == STATUS_OK) {
        status = write_file(command->words[at + 2], self->output, plan.output_bytes, error);
    }
    if (status != STATUS_OK) return status;
    *answer = times_json(self, self->program, number(command, at));
    json_object_set_new(*answer, "operations",
                        json_integer((json_int_t)program_operations(self->program)));
    return STATUS_OK;
}

static enum status decode(struct bench *self, const struct command *command, json_t **answer,
                          struct error *error)
{
    const char *type = command->words[3];
    struct vae_request request = {.direction = VAE_DECODE,
                                  .n = 1,
                                  .h = number(command, 1),
                                  .w = number(command, 2),
                                  .c = model_describe(self->model)->vae.latent_channels,
                                  .input_dtype = DTYPE_F32,
                                  .output_dtype = DTYPE_F32,
                                  .tiling = VAE_TILING_NEVER,
                                  .overlap = UINT32_MAX,
                                  .raw = strcmp(type, "raw") == 0};
    if (strcmp(type, "u8") == 0) request.output_dtype = DTYPE_U8;
    return run_image(self, &request, command, answer, error);
}

static enum status encode(struct bench *self, const struct command *command, json_t **answer,
                          struct error *error)
{
    struct vae_request request = {.direction = VAE_ENCODE,
                                  .n = 1,
                                  .h = number(command, 1),
                                  .w = number(command, 2),
                                  .c = 3,
                                  .input_dtype = DTYPE_F32,
                                  .output_dtype = DTYPE_F32,
                                  .tiling = VAE_TILING_NEVER,
                                  .overlap = UINT32_MAX};
    return run_image(self, &request, command, answer, error);
}

static enum status write_text(const struct bench *self, const char *path, struct error *error)
{
    FILE *file = fopen(path, "wb");
    enum status status = STATUS_OK;
    for (uint32_t i = 0; i < 2 && status == STATUS_OK; i++) {
        struct text_output output = text_job_output(self->job, i);
        uint64_t count = (uint64_t)output.tokens * output.width;
        status = append(file, output.cond, count * sizeof(float), error);
        if (status == STATUS_OK) {
            status = append(file, output.pooled, output.pooled_width * sizeof(float), error);
        }
    }
    if (file != NULL) fclose(file);
    return status;
}

static enum status prompt(struct bench *self, const struct command *command, json_t **answer,
                          struct error *error)
{
    uint64_t bytes = 0;
    uint32_t count = 0;
    uint32_t runs = number(command, 1);
    if (self->text == NULL) {
        return error_set(error, STATUS_FAILED_PRECONDITION, "no encoders are loaded");
    }
    enum status status = read_file(command->words[2], &self->input, &bytes, error);
    if (status != STATUS_OK) return status;
    const char *text = self->input;
    size_t first = strcspn(text, "\n");
    const char *rest = text + first + (text[first] == '\n');
    struct text_request request = {
        .prompt = {text, first}, .negative = {rest, strcspn(rest, "\n")}, .has_negative = true};
    status = text_job_create(&self->job, self->text, &request, error);
    if (status == STATUS_OK) {
        status = text_batch_create(&self->batch, self->text, &self->job, 1, error);
    }
    if (status != STATUS_OK) return status;
    void *const *bindings = text_batch_bindings(self->batch, &count);
    status = run_often(self, text_batch_program(self->batch), bindings, count, runs, error);
    if (status != STATUS_OK) return status;
    text_batch_finish(self->batch);
    *answer = times_json(self, text_batch_program(self->batch), runs);
    return write_text(self, command->words[3], error);
}

static enum status trace(struct bench *self, const struct command *command, struct error *error)
{
    bool is_kept = strcmp(command->words[1], "on") == 0;
    enum status status = lane_trace(self->lane, is_kept, error);
    if (status == STATUS_OK) self->is_traced = is_kept;
    return status;
}

// Frees what one verb made.
static void clear(struct bench *self)
{
    text_batch_destroy(&self->batch);
    text_job_destroy(&self->job);
    program_destroy(&self->program);
    free(self->input);
    free(self->output);
    self->input = self->output = NULL;
}

// ---------------------------------------------------------------------------------------------
// Weights and memory

static void drop(struct bench *self)
{
    text_model_destroy(&self->text);
    vae_destroy(&self->vae);
    lane_release(self->lane);
}

static enum status load(struct bench *self, json_t **answer, struct error *error)
{
    const struct model_description *description = model_describe(self->model);
    struct tensor_table *tables[MODEL_PART_COUNT];
    enum status status = STATUS_OK;
    uint64_t begin_ns = clock_ns(clock_system());
    for (int i = 0; i < MODEL_PART_COUNT; i++) {
        tables[i] = model_tensors(self->model, (enum model_part)i);
    }
    drop(self);
    if (description->has[MODEL_VAE]) {
        status = vae_create(&self->vae, self->device, tables[MODEL_VAE], &description->vae, error);
    }
    if (status == STATUS_OK && description->text != TEXT_NONE) {
        status = text_model_create(&self->text, self->device, tables, description, NULL, error);
    }
    if (status != STATUS_OK) return status;
    uint64_t bytes = self->vae == NULL ? 0 : vae_bytes(self->vae);
    if (self->text != NULL) bytes += text_model_bytes(self->text);
    *answer = json_pack("{s:f, s:I}", "ms", ms_since(begin_ns), "bytes", (json_int_t)bytes);
    return STATUS_OK;
}

// A function of gpu_oom.so, which stands in front of the driver when it is preloaded.
static enum status shim(const char *name, uint64_t argument, uint64_t *out, struct error *error)
{
    uint64_t (*function)(uint64_t argument) = NULL;
    void *symbol = dlsym(RTLD_DEFAULT, name);
    if (symbol == NULL) {
        return error_set(error, STATUS_FAILED_PRECONDITION, "gpu_oom.so is not preloaded");
    }
    memcpy(&function, &symbol, sizeof function);  // what POSIX promises of dlsym
    *out = function(argument);
    return STATUS_OK;
}

static enum status count(json_t **answer, struct error *error)
{
    uint64_t calls = 0;
    uint64_t held = 0;
    enum status status = shim("gpu_oom_calls", 0, &calls, error);
    if (status == STATUS_OK) status = shim("gpu_oom_held", 0, &held, error);
    if (status == STATUS_OK) {
        *answer = json_pack("{s:I, s:I}", "calls", (json_int_t)calls, "held", (json_int_t)held);
    }
    return status;
}

// ---------------------------------------------------------------------------------------------
// Numbers

// Largest and root mean square difference, and the same of b alone. NaN is as far as can be.
static json_t *distance(const float *a, const float *b, uint64_t count)
{
    double worst = 0, largest = 0, squares = 0, sizes = 0, sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        double here = fabs((double)a[i] - (double)b[i]);
        if (isnan(here)) here = 1e300;
        worst = fmax(worst, here);
        largest = fmax(largest, fabs((double)b[i]));
        squares += fmin(here, 1e100) * fmin(here, 1e100);
        sizes += (double)b[i] * (double)b[i];
        sum += (double)b[i];
    }
    double mean = sum / (double)count;
    return json_pack("{s:f, s:f, s:f, s:f, s:I}", "worst", worst, "largest", largest, "rms",
                     sqrt(squares / (double)count), "deviation",
                     sqrt(fmax(0, sizes / (double)count - mean * mean)), "count",
                     (json_int_t)count);
}

static enum status compare(const struct command *command, json_t **answer, struct error *error)
{
    void *a = NULL;
    void *b = NULL;
    uint64_t a_bytes = 0;
    uint64_t b_bytes = 0;
    enum status status = read_file(command->words[1], &a, &a_bytes, error);
    if (status == STATUS_OK) status = read_file(command->words[2], &b, &b_bytes, error);
    if (status == STATUS_OK && (a_bytes != b_bytes || a_bytes < sizeof(float))) {
        status = error_set(error, STATUS_INVALID_ARGUMENT, "%llu bytes beside %llu",
                           (unsigned long long)a_bytes, (unsigned long long)b_bytes);
    }
    if (status == STATUS_OK) *answer = distance(a, b, a_bytes / sizeof(float));
    free(a);
    free(b);
    return status;
}

// ---------------------------------------------------------------------------------------------
// Lines

static enum status obey(struct bench *self, const struct command *command, json_t **answer,
                        struct error *error)
{
    static const struct {
        const char *verb;
        uint32_t words;
    } verbs[] = {{"load", 1},    {"drop", 1},   {"count", 1},   {"arm", 2},    {"trace", 2},
                 {"reserve", 2}, {"prompt", 4}, {"compare", 3}, {"encode", 6}, {"decode", 7}};
    uint64_t argument = command->count < 2 ? 0 : strtoull(command->words[1], NULL, 10);
    uint64_t ignored = 0;
    const char *verb = command->words[0];
    size_t at = 0;
    while (at < sizeof verbs / sizeof verbs[0] && strcmp(verbs[at].verb, verb) != 0) at++;
    if (at == sizeof verbs / sizeof verbs[0] || verbs[at].words != command->count) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "\"%s\" is no command of %u words", verb,
                         command->count);
    }
    if (strcmp(verb, "load") == 0) return load(self, answer, error);
    if (strcmp(verb, "count") == 0) return count(answer, error);
    if (strcmp(verb, "arm") == 0) return shim("gpu_oom_arm", argument, &ignored, error);
    if (strcmp(verb, "trace") == 0) return trace(self, command, error);
    if (strcmp(verb, "prompt") == 0) return prompt(self, command, answer, error);
    if (strcmp(verb, "compare") == 0) return compare(command, answer, error);
    if (strcmp(verb, "encode") == 0) return encode(self, command, answer, error);
    if (strcmp(verb, "decode") == 0) return decode(self, command, answer, error);
    if (strcmp(verb, "reserve") == 0) {
        lane_release(self->lane);
        return lane_reserve(self->lane, argument, error);
    }
    drop(self);
    return STATUS_OK;
}

static void answer_line(struct bench *self, char *line)
{
    struct command command = {.count = 0};
    struct error error = {.status = STATUS_OK};
    json_t *answer = NULL;
    char *rest = NULL;
    char *word = strtok_r(line, " \n", &rest);
    for (; word != NULL && command.count < WORDS_MAX; word = strtok_r(NULL, " \n", &rest)) {
        command.words[command.count++] = word;
    }
    if (command.count == 0) return;
    enum status status = obey(self, &command, &answer, &error);
    clear(self);
    if (status != STATUS_OK) {
        json_decref(answer);
        answer = json_pack("{s:s, s:s}", "error", status_name(status), "message", error.message);
    }
    if (answer == NULL) answer = json_object();
    json_dumpf(answer, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(answer);
}

static enum status open_all(struct bench *self, char **words, int count, struct error *error)
{
    struct device_options options = {.name = words[0],
                                     .precision_fast = strcmp(words[1], "fast") == 0,
                                     .threads = (uint32_t)strtoul(words[2], NULL, 10)};
    enum status status =
        model_open(&self->model, (const char *const *)words + 3, (uint32_t)count - 3, NULL, error);
    if (status == STATUS_OK) status = device_open(&self->device, &options, error);
    if (status == STATUS_OK) status = lane_create(&self->lane, self->device, error);
    return status;
}

int main(int argc, char **argv)
{
    struct error error = {.status = STATUS_OK};
    char line[LINE_BYTES];
    if (argc < 5) {
        fprintf(stderr, "usage: gpu_run DEVICE faithful|fast THREADS FILE...\n");
        return 2;
    }
    struct bench *self = calloc(1, sizeof *self);
    if (self == NULL) return 1;
    enum status status = open_all(self, argv + 1, argc - 1, &error);
    if (status == STATUS_OK) {
        json_t *ready = json_pack("{s:s}", "ready", device_info(self->device)->label);
        json_dumpf(ready, stdout, JSON_COMPACT);
        json_decref(ready);
        putchar('\n');
        fflush(stdout);
        while (fgets(line, sizeof line, stdin) != NULL) answer_line(self, line);
        drop(self);
    } else {
        fprintf(stderr, "gpu_run: %s: %s\n", status_name(status), error.message);
    }
    lane_destroy(&self->lane);
    device_close(&self->device);
    model_close(&self->model);
    free(self);
    return status == STATUS_OK ? 0 : 1;
}
