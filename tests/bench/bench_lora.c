// bench_lora.c - what adapters cost: CLIP-L and bigG at real size with random float16 weights, and
// eight adapters of rank 32 on all their linears.
//
//     bench_lora [PAIRS [SWITCHES [THREADS]]]      21 pairs, 50 switches, one thread a core
//
// Every run goes the whole way from a prompt to conditioning, and every prompt is a new one. What
// is compared runs in turns; a ratio is the median of the ratios of neighbours, so that what else
// the machine does strikes both sides. The table goes to stderr, one object of JSON to stdout,
// which bench_lora.py completes with PyTorch's side.

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "models/text/stack.h"
#include "models/text/text.h"

#define RANK 32u
#define STACKS 8u
#define PAIRS_MAX 1000u
#define NAME_BYTES 112u
#define DRAWN 4096u  // different random numbers

struct random {
    uint64_t state;
    uint16_t drawn[DRAWN];  // float16, about -1 to 1
};

// A list of tensors whose elements are random.
struct model_tensors {
    struct tensor *items;
    uint32_t count, capacity;
    struct tensor_table *table;
};

struct bench {
    struct random random;
    struct device *device;
    struct lane *lane;
    struct model_tensors tensors[MODEL_PART_COUNT];
    struct model_tensors adapter_tensors[STACKS];
    struct text_model *model;
    struct text_adapter *adapters[STACKS];
    uint64_t prompts;  // made so far
};

static const struct clip_config clip_l = {.layers = 12,
                                          .width = 768,
                                          .heads = 12,
                                          .mlp_width = 3072,
                                          .vocabulary = 49408,
                                          .tokens = 77,
                                          .quick_gelu = true};
static const struct clip_config clip_g = {.layers = 32,
                                          .width = 1280,
                                          .heads = 20,
                                          .mlp_width = 5120,
                                          .vocabulary = 49408,
                                          .tokens = 77,
                                          .projection = 1280};

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "bench_lora: %s: %s\n", what, why);
    exit(1);
}

static void check(enum status status, const struct error *error)
{
    if (status != STATUS_OK) fail(status_name(status), error->message);
}

// A moment or a duration.
struct times {
    double wall_ms, cpu_ms;  // cpu: of all threads of the process
};

static struct times now(void)
{
    struct timespec cpu;
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu) != 0) fail("clock", "no processor time");
    return (struct times){(double)clock_ns(clock_system()) / 1e6,
                          (double)cpu.tv_sec * 1e3 + (double)cpu.tv_nsec / 1e6};
}

static struct times since(struct times begin)
{
    struct times end = now();
    return (struct times){end.wall_ms - begin.wall_ms, end.cpu_ms - begin.cpu_ms};
}

// ---------------------------------------------------------------------------------------------
// Weights

static uint64_t next_random(struct random *self)
{
    self->state ^= self->state << 13;
    self->state ^= self->state >> 7;
    self->state ^= self->state << 17;
    return self->state;
}

static void random_start(struct random *self)
{
    self->state = 0x9E3779B97F4A7C15u;
    for (uint32_t i = 0; i < DRAWN; i++) {
        self->drawn[i] = f32_to_f16((float)(next_random(self) >> 40) / 8388608.0f - 1.0f);
    }
}

// A float16 with its exponent lowered by `shift`; what would be below the smallest is zero.
static uint16_t scaled(uint16_t value, uint32_t shift)
{
    uint32_t exponent = value >> 10 & 31u;
    return exponent <= shift ? 0 : (uint16_t)(value - (shift << 10));
}

// Adds [rows, columns], or [columns] for rows 0: random times 2^-shift, or one for a gamma.
static void add_tensor(struct bench *self, struct model_tensors *list, const char *name,
                       uint64_t rows, uint64_t columns, uint32_t shift)
{
    if (list->count == list->capacity) {
        list->capacity = list->capacity == 0 ? 1024 : 2 * list->capacity;
        list->items = realloc(list->items, list->capacity * sizeof *list->items);
        if (list->items == NULL) fail("weights", "no memory");
    }
    uint64_t count = rows == 0 ? columns : rows * columns;
    uint16_t *data = malloc(count * sizeof *data);
    char *copy = strdup(name);
    if (data == NULL || copy == NULL) fail("weights", "no memory");
    bool is_gamma = strstr(name, "norm") != NULL && strstr(name, "weight") != NULL;
    for (uint64_t i = 0; i < count; i++) {
        uint16_t drawn = self->random.drawn[next_random(&self->random) % DRAWN];
        data[i] = is_gamma ? f32_to_f16(1.0f) : scaled(drawn, shift);
    }
    list->items[list->count++] = (struct tensor){.name = copy,
                                                 .dtype = DTYPE_F16,
                                                 .rank = rows == 0 ? 1 : 2,
                                                 .dims = {rows == 0 ? columns : rows, columns},
                                                 .data = data,
                                                 .bytes = count * sizeof *data};
}

static void finish_tensors(struct model_tensors *list)
{
    struct error error = {0};
    check(tensor_table_from_tensors(&list->table, list->items, list->count, NULL, 0, &error),
          &error);
}

static void clear_tensors(struct model_tensors *list)
{
    tensor_table_release(&list->table);
    for (uint32_t i = 0; i < list->count; i++) {
        union {
            const void *constant;
            void *data;
        } name = {.constant = list->items[i].name}, data = {.constant = list->items[i].data};
        free(name.data);
        free(data.data);
    }
    free(list->items);
}

static const char *const linears[] = {"self_attn.q_proj",   "self_attn.k_proj", "self_attn.v_proj",
                                      "self_attn.out_proj", "mlp.fc1",          "mlp.fc2"};
#define LINEARS (sizeof linears / sizeof linears[0])

static void linear_dims(const struct clip_config *config, size_t linear, uint64_t *k, uint64_t *c)
{
    *k = linear == 4 ? config->mlp_width : config->width;
    *c = linear == 5 ? config->mlp_width : config->width;
}

static void add_layer(struct bench *self, struct model_tensors *list,
                      const struct clip_config *config, uint32_t layer)
{
    static const char *const norms[] = {"layer_norm1.weight", "layer_norm1.bias",
                                        "layer_norm2.weight", "layer_norm2.bias"};
    char name[NAME_BYTES];
    for (size_t i = 0; i < sizeof norms / sizeof norms[0]; i++) {
        snprintf(name, sizeof name, "text_model.encoder.layers.%u.%s", layer, norms[i]);
        add_tensor(self, list, name, 0, config->width, 6);
    }
    for (size_t i = 0; i < LINEARS; i++) {
        uint64_t k = 0;
        uint64_t c = 0;
        linear_dims(config, i, &k, &c);
        snprintf(name, sizeof name, "text_model.encoder.layers.%u.%s.weight", layer, linears[i]);
        add_tensor(self, list, name, k, c, 5);
        snprintf(name, sizeof name, "text_model.encoder.layers.%u.%s.bias", layer, linears[i]);
        add_tensor(self, list, name, 0, k, 6);
    }
}

static void make_encoder(struct bench *self, enum model_part part, const struct clip_config *config)
{
    struct model_tensors *list = &self->tensors[part];
    add_tensor(self, list, "text_model.embeddings.token_embedding.weight", config->vocabulary,
               config->width, 5);
    add_tensor(self, list, "text_model.embeddings.position_embedding.weight", config->tokens,
               config->width, 5);
    for (uint32_t i = 0; i < config->layers; i++) add_layer(self, list, config, i);
    add_tensor(self, list, "text_model.final_layer_norm.weight", 0, config->width, 0);
    add_tensor(self, list, "text_model.final_layer_norm.bias", 0, config->width, 6);
    if (config->projection > 0) {
        add_tensor(self, list, "text_projection.weight", config->projection, config->width, 5);
    }
    finish_tensors(list);
}

static void add_pair(struct bench *self, struct model_tensors *list, const char *stem, uint64_t k,
                     uint64_t c)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.lora_down.weight", stem);
    add_tensor(self, list, name, RANK, c, 5);
    snprintf(name, sizeof name, "%s.lora_up.weight", stem);
    add_tensor(self, list, name, k, RANK, 6);
}

static void add_adapted(struct bench *self, struct model_tensors *list, uint32_t number,
                        const struct clip_config *config)
{
    for (uint32_t i = 0; i < config->layers * LINEARS; i++) {
        char stem[NAME_BYTES - 20];
        uint64_t k = 0;
        uint64_t c = 0;
        linear_dims(config, i % LINEARS, &k, &c);
        snprintf(stem, sizeof stem, "lora_te%u_text_model_encoder_layers_%u_%s", number,
                 (unsigned)(i / LINEARS), linears[i % LINEARS]);
        for (char *at = stem; *at != '\0'; at++) *at = *at == '.' ? '_' : *at;
        add_pair(self, list, stem, k, c);
    }
}

static void open_all(struct bench *self, uint32_t threads)
{
    struct error error = {0};
    struct device_options options = {.name = "cpu", .threads = threads};
    struct model_description description = {.kind = "sdxl", .text = TEXT_SDXL};
    struct tensor_table *tables[MODEL_PART_COUNT] = {NULL};
    check(device_open(&self->device, &options, &error), &error);
    check(lane_create(&self->lane, self->device, &error), &error);
    random_start(&self->random);
    description.clip[MODEL_CLIP_L] = clip_l;
    description.clip[MODEL_CLIP_G] = clip_g;
    for (int i = MODEL_CLIP_L; i <= MODEL_CLIP_G; i++) {
        if (i == MODEL_CLIP_H) continue;
        make_encoder(self, (enum model_part)i, &description.clip[i]);
        description.has[i] = true;
        tables[i] = self->tensors[i].table;
    }
    check(text_model_create(&self->model, self->device, tables, &description, NULL, &error),
          &error);
    for (uint32_t i = 0; i < STACKS; i++) {
        add_adapted(self, &self->adapter_tensors[i], 1, &clip_l);
        add_adapted(self, &self->adapter_tensors[i], 2, &clip_g);
        finish_tensors(&self->adapter_tensors[i]);
        check(text_adapter_create(&self->adapters[i], self->model, self->adapter_tensors[i].table,
                                  &error),
              &error);
    }
}

static void close_all(struct bench *self)
{
    for (uint32_t i = 0; i < STACKS; i++) {
        text_adapter_destroy(&self->adapters[i]);
        clear_tensors(&self->adapter_tensors[i]);
    }
    text_model_destroy(&self->model);
    for (uint32_t i = 0; i < MODEL_PART_COUNT; i++) clear_tensors(&self->tensors[i]);
    lane_destroy(&self->lane);
    device_close(&self->device);
}

// ---------------------------------------------------------------------------------------------
// Runs

static struct text_stack *make_stack(const struct bench *self, uint32_t adapter, bool merged)
{
    struct error error = {0};
    struct text_stack *stack = NULL;
    struct text_stack_entry entry = {.adapter = self->adapters[adapter]};
    for (uint32_t i = 0; i < MODEL_PART_COUNT; i++) entry.strength[i] = 0.8f;
    struct text_stack_options options = {.merged = merged};
    check(text_stack_create(&stack, self->model, &entry, 1, &options, &error), &error);
    return stack;
}

static struct text_job *new_job(struct bench *self, const struct text_stack *stack)
{
    char prompt[64];
    struct error error = {0};
    struct text_job *job = NULL;
    int length = snprintf(prompt, sizeof prompt, "a photo of cat number %llu, best quality",
                          (unsigned long long)self->prompts++);
    struct text_request request = {.prompt = {prompt, (uint64_t)length}};
    check(text_job_create(&job, self->model, &request, &error), &error);
    text_job_apply(job, stack);
    return job;
}

// From new prompts to the conditioning of all of them; stacks[i] may be NULL.
static struct times run(struct bench *self, struct text_stack *const *stacks, uint32_t count)
{
    struct text_job *jobs[STACKS];
    struct text_batch *batch = NULL;
    struct error error = {0};
    uint32_t bindings_count = 0;
    struct times begin = now();
    for (uint32_t i = 0; i < count; i++) jobs[i] = new_job(self, stacks[i]);
    check(text_batch_create(&batch, self->model, jobs, count, &error), &error);
    const struct program *program = text_batch_program(batch);
    check(lane_reserve(self->lane, program_peak_bytes(program), &error), &error);
    void *const *bindings = text_batch_bindings(batch, &bindings_count);
    lane_run(self->lane, program, bindings, bindings_count);
    check(lane_collect(self->lane, &error), &error);
    text_batch_finish(batch);
    struct times took = since(begin);
    text_batch_destroy(&batch);
    for (uint32_t i = 0; i < count; i++) text_job_destroy(&jobs[i]);
    return took;
}

// One request with an adapter, its stack made anew.
static struct times run_switched(struct bench *self, uint32_t adapter)
{
    struct times begin = now();
    struct text_stack *stack = make_stack(self, adapter, false);
    run(self, &stack, 1);
    struct times took = since(begin);
    text_stack_destroy(&stack);
    return took;
}

// ---------------------------------------------------------------------------------------------
// Comparisons

struct pairs {
    struct times a[PAIRS_MAX], b[PAIRS_MAX];
    uint32_t count;
};

struct comparison {
    struct times a, b;        // medians
    double ratio, ratio_cpu;  // medians of b / a
    uint32_t pairs;
};

static int compare_doubles(const void *left, const void *right)
{
    double a = *(const double *)left;
    double b = *(const double *)right;
    return (a > b) - (a < b);
}

// Sorts the values.
static double median(double *values, uint32_t count)
{
    qsort(values, count, sizeof *values, compare_doubles);
    return count % 2 == 1 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static struct times median_times(const struct times *times, uint32_t count)
{
    double wall_ms[PAIRS_MAX];
    double cpu_ms[PAIRS_MAX];
    for (uint32_t i = 0; i < count; i++) wall_ms[i] = times[i].wall_ms;
    for (uint32_t i = 0; i < count; i++) cpu_ms[i] = times[i].cpu_ms;
    return (struct times){median(wall_ms, count), median(cpu_ms, count)};
}

static struct comparison compare(const struct pairs *pairs)
{
    struct times ratios[PAIRS_MAX];
    for (uint32_t i = 0; i < pairs->count; i++) {
        ratios[i] = (struct times){pairs->b[i].wall_ms / pairs->a[i].wall_ms,
                                   pairs->b[i].cpu_ms / pairs->a[i].cpu_ms};
    }
    struct times ratio = median_times(ratios, pairs->count);
    return (struct comparison){.a = median_times(pairs->a, pairs->count),
                               .b = median_times(pairs->b, pairs->count),
                               .ratio = ratio.wall_ms,
                               .ratio_cpu = ratio.cpu_ms,
                               .pairs = pairs->count};
}

// Requests without adapters (a) and each with its own (b), in turns first and second.
static struct comparison compare_functional(struct bench *self, uint32_t count,
                                            uint32_t pairs_count)
{
    static struct text_stack *const none[STACKS] = {NULL};
    struct text_stack *stacks[STACKS];
    struct pairs pairs = {.count = pairs_count};
    for (uint32_t i = 0; i < STACKS; i++) stacks[i] = make_stack(self, i, false);
    run(self, none, count);
    run(self, stacks, count);
    for (uint32_t i = 0; i < pairs_count; i++) {
        if (i % 2 == 0) pairs.a[i] = run(self, none, count);
        pairs.b[i] = run(self, stacks, count);
        if (i % 2 == 1) pairs.a[i] = run(self, none, count);
    }
    for (uint32_t i = 0; i < STACKS; i++) text_stack_destroy(&stacks[i]);
    return compare(&pairs);
}

// The same adapter as before (a) and another one (b): A A B B A A B B ...
static struct comparison compare_switching(struct bench *self, uint32_t pairs_count)
{
    struct pairs pairs = {.count = pairs_count};
    run_switched(self, 1);
    for (uint32_t i = 0; i < pairs_count; i++) {
        pairs.b[i] = run_switched(self, i % 2);
        pairs.a[i] = run_switched(self, i % 2);
    }
    return compare(&pairs);
}

struct merging {
    struct times make, run;  // once; of a request with the merged stack
    uint64_t bytes;          // of copies
};

static struct merging measure_merging(struct bench *self)
{
    struct times begin = now();
    struct text_stack *stack = make_stack(self, 0, true);
    struct merging out = {.make = since(begin), .bytes = text_stack_bytes(stack)};
    run(self, &stack, 1);
    out.run = run(self, &stack, 1);
    text_stack_destroy(&stack);
    return out;
}

static void print_row(const char *what, const struct comparison *row)
{
    fprintf(stderr, "%-42s %9.1f %9.1f %7.3f %9.1f %9.1f %7.3f %6u\n", what, row->a.wall_ms,
            row->b.wall_ms, row->ratio, row->a.cpu_ms, row->b.cpu_ms, row->ratio_cpu, row->pairs);
}

static void print_json(const char *key, const struct comparison *row)
{
    printf("\"%s\": {\"a_ms\": %.3f, \"b_ms\": %.3f, \"ratio\": %.5f, \"a_cpu_ms\": %.3f, "
           "\"b_cpu_ms\": %.3f, \"ratio_cpu\": %.5f, \"pairs\": %u}, ",
           key, row->a.wall_ms, row->b.wall_ms, row->ratio, row->a.cpu_ms, row->b.cpu_ms,
           row->ratio_cpu, row->pairs);
}

static uint32_t read_count(const char *text)
{
    unsigned long count = strtoul(text, NULL, 10);
    if (count < 1 || count > PAIRS_MAX) fail(text, "is no number of pairs");
    return (uint32_t)count;
}

int main(int argc, char **argv)
{
    static struct bench bench;
    uint32_t pairs = argc > 1 ? read_count(argv[1]) : 21;
    uint32_t switches = argc > 2 ? read_count(argv[2]) : 50;
    open_all(&bench, argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 0);
    const struct device_info *info = device_info(bench.device);
    fprintf(stderr, "%s, %u threads\n%-42s %9s %9s %7s %9s %9s %7s %6s\n", info->label,
            info->threads, "", "a ms", "b ms", "b / a", "a cpu ms", "b cpu ms", "b / a", "pairs");
    struct comparison one = compare_functional(&bench, 1, pairs);
    print_row("1 request: none, rank 32 on all linears", &one);
    struct comparison eight = compare_functional(&bench, STACKS, pairs);
    print_row("8 requests: none, 8 stacks", &eight);
    struct comparison switching = compare_switching(&bench, switches);
    print_row("1 request: same stack, switched", &switching);
    struct merging merging = measure_merging(&bench);
    fprintf(stderr, "merged: made in %.0f ms, %llu MiB; a request with it %.1f ms\n",
            merging.make.wall_ms, (unsigned long long)(merging.bytes >> 20), merging.run.wall_ms);
    printf("{\"device\": \"%s\", \"threads\": %u, ", info->label, info->threads);
    print_json("functional", &one);
    print_json("stacks", &eight);
    print_json("switching", &switching);
    printf("\"throughput\": %.5f, \"merged\": {\"make_ms\": %.3f, \"run_ms\": %.3f, "
           "\"bytes\": %llu}}\n",
           1 / eight.ratio, merging.make.wall_ms, merging.run.wall_ms,
           (unsigned long long)merging.bytes);
    close_all(&bench);
    return 0;
}
