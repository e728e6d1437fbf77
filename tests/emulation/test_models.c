// test_models.c - a whole small VAE and a whole small CLIP on the emulated device against the CPU:
// the CPU's numbers within the bars of the storage type, and the same bytes every time.

#include "models/vae/vae.h"
#include "tests/unit/models/text_bench.h"

#define VAE_GOLDEN LUNA_SOURCE_DIR "/tests/golden/vae/"

// Largest difference, relative to the largest value. Faithful: what the CPU is held to. In 16 bits:
// sixteen half units in the last place, for errors that some ten layers add up.
static double bar_of(enum dtype storage)
{
    if (storage == DTYPE_F16) return 16 * 0x1p-11;
    return storage == DTYPE_BF16 ? 16 * 0x1p-8 : 2e-4;
}

struct storage {
    const char *device;
    bool fast;
    enum dtype type;
};

static const struct storage storages[] = {{"emulated", false, DTYPE_F32},
                                          {"emulated", true, DTYPE_BF16},
                                          {"emulated:f16", true, DTYPE_F16}};
#define STORAGES (sizeof storages / sizeof storages[0])

static double distance(const float *got, const float *want, uint64_t count)
{
    double worst = 0;
    double largest = 0;
    for (uint64_t i = 0; i < count; i++) {
        double here = fabs((double)got[i] - (double)want[i]);
        if (!(here <= worst)) worst = here;
        largest = fmax(largest, fabs((double)want[i]));
    }
    return worst / largest;
}

static struct device *open_with(const char *name, bool fast)
{
    struct error error;
    struct device *device = NULL;
    struct device_options options = {.name = name, .threads = 2, .precision_fast = fast};
    expect_ok(device_open(&device, &options, &error), &error);
    return device;
}

// ---------------------------------------------------------------------------------------------
// VAE

// The model "two" of tests/golden/make_vae.py and what it is made of.
struct vae_files {
    struct tensor_table *weights, *cases;
    struct vae_config config;
};

static uint32_t number_at(const struct tensor *of, uint32_t index)
{
    assert_int_equal(of->dtype, DTYPE_I32);
    assert_true(index < of->dims[0]);
    return load_u32((const uint8_t *)of->data + 4 * (size_t)index);
}

static struct vae_files open_files(const char *name)
{
    struct vae_files self = {.weights = NULL};
    struct error error;
    char path[512];
    snprintf(path, sizeof path, VAE_GOLDEN "%s.safetensors", name);
    expect_ok(tensor_table_open(&self.weights, path, NULL, &error), &error);
    snprintf(path, sizeof path, VAE_GOLDEN "%s.cases.safetensors", name);
    expect_ok(tensor_table_open(&self.cases, path, NULL, &error), &error);
    const struct tensor *numbers = tensor_table_find(self.cases, "config");
    assert_non_null(numbers);
    self.config = (struct vae_config){.levels = number_at(numbers, 0),
                                      .blocks_per_level = number_at(numbers, 9),
                                      .latent_channels = number_at(numbers, 10),
                                      .image_channels = 3,
                                      .groups = number_at(numbers, 11),
                                      .encoder = true,
                                      .decoder = true,
                                      .quant_conv = number_at(numbers, 12) != 0,
                                      .post_quant_conv = number_at(numbers, 13) != 0,
                                      .mid_attention = number_at(numbers, 14) != 0};
    for (uint32_t i = 0; i < self.config.levels; i++) {
        self.config.block_channels[i] = number_at(numbers, 1 + i);
    }
    return self;
}

static void close_files(struct vae_files *self)
{
    tensor_table_release(&self->cases);
    tensor_table_release(&self->weights);
}

// Runs one request on a device of its own; the caller frees what it returns.
static float *run_vae(const struct vae_files *files, const struct storage *storage,
                      const struct vae_request *request, uint64_t *count)
{
    struct error error;
    struct vae_plan plan;
    struct lane *lane = NULL;
    struct vae *vae = NULL;
    struct program *program = NULL;
    struct device *device = open_with(storage->device, storage->fast);
    expect_ok(lane_create(&lane, device, &error), &error);
    expect_ok(vae_create(&vae, device, files->weights, &files->config, &error), &error);
    expect_ok(vae_plan(vae, request, &plan, &error), &error);
    expect_ok(vae_program(vae, &plan, &program, &error), &error);
    expect_ok(lane_reserve(lane, plan.peak_bytes, &error), &error);
    float *in = malloc(plan.input_bytes);
    float *out = malloc(plan.output_bytes);
    assert_non_null(in);
    assert_non_null(out);
    for (uint64_t i = 0; i < plan.input_bytes / sizeof *in; i++) {
        in[i] = (float)(i * 2654435761u % 1000) / 1000;
    }
    struct vae_found found;
    lane_run(lane, program, (void *const[]){in, out, &found}, VAE_SLOTS);
    expect_ok(lane_collect(lane, &error), &error);
    assert_int_equal(lane_marks(lane), plan.tiles);
    assert_int_equal(found.not_finite_input + found.not_finite_output, 0);
    *count = plan.output_bytes / sizeof *out;
    free(in);
    program_destroy(&program);
    vae_destroy(&vae);
    lane_destroy(&lane);
    device_close(&device);
    return out;
}

static void check_request(const struct vae_files *files, const struct vae_request *request,
                          const char *what)
{
    uint64_t count = 0;
    const struct storage cpu = {.device = "cpu"};
    float *want = run_vae(files, &cpu, request, &count);
    for (size_t i = 0; i < STORAGES; i++) {
        float *got = run_vae(files, &storages[i], request, &count);
        float *again = run_vae(files, &storages[i], request, &count);
        double off = distance(got, want, count);
        print_message("%s, %s: off by %.1e\n", what, dtype_name(storages[i].type), off);
        assert_memory_equal(got, again, count * sizeof *got);
        assert_true(off <= bar_of(storages[i].type));
        free(got);
        free(again);
    }
    free(want);
}

static void a_whole_vae_encodes_and_decodes_as_on_the_cpu(void **state)
{
    (void)state;
    struct vae_files files = open_files("two");
    struct vae_request request = {.direction = VAE_DECODE,
                                  .n = 1,
                                  .h = 7,
                                  .w = 9,
                                  .c = files.config.latent_channels,
                                  .input_dtype = DTYPE_F32,
                                  .output_dtype = DTYPE_F32,
                                  .tiling = VAE_TILING_NEVER,
                                  .overlap = UINT32_MAX};
    check_request(&files, &request, "decode");
    request.direction = VAE_ENCODE;
    request.h = 24;
    request.w = 16;
    request.c = 3;
    check_request(&files, &request, "encode");
    close_files(&files);
}

static void tiles_of_a_vae_are_blended_as_on_the_cpu(void **state)
{
    (void)state;
    struct vae_files files = open_files("two");
    struct vae_request request = {.direction = VAE_DECODE,
                                  .n = 1,
                                  .h = 12,
                                  .w = 20,
                                  .c = files.config.latent_channels,
                                  .input_dtype = DTYPE_F32,
                                  .output_dtype = DTYPE_F32,
                                  .tiling = VAE_TILING_ALWAYS,
                                  .tile = 8,
                                  .overlap = 2,
                                  .passes = 1};
    check_request(&files, &request, "tiled decode");
    close_files(&files);
}

// ---------------------------------------------------------------------------------------------
// CLIP

// SDXL's two encoders in small, with weights of one type.
static void check_text(enum dtype weights)
{
    struct encoders *encoders = encoders_open(weights);
    struct text_request request = prompt_request("a (red:1.2) fox, <seven> jumps over");
    struct bench cpu = open_bench(encoders, "cpu", "sdxl");
    struct text_job *want = make_job(&cpu, &request);
    run_jobs(&cpu, &want, 1);
    struct text_output a = text_job_output(want, 0);
    struct bench emulated = open_bench(encoders, "emulated", "sdxl");
    struct text_job *got = make_job(&emulated, &request);
    run_jobs(&emulated, &got, 1);
    struct text_output b = text_job_output(got, 0);
    assert_int_equal(a.tokens, b.tokens);
    double cond = distance(b.cond, a.cond, (uint64_t)a.tokens * a.width);
    double pooled = distance(b.pooled, a.pooled, a.pooled_width);
    print_message("text, %s weights: off by %.1e, pooled %.1e\n", dtype_name(weights), cond,
                  pooled);
    assert_true(cond <= bar_of(DTYPE_F32));
    assert_true(pooled <= bar_of(DTYPE_F32));
    text_job_destroy(&got);
    text_job_destroy(&want);
    close_bench(&emulated);
    close_bench(&cpu);
    encoders_close(encoders);
}

static void a_whole_clip_is_faithful_with_weights_of_every_type(void **state)
{
    (void)state;
    check_text(DTYPE_F16);
    check_text(DTYPE_BF16);
    check_text(DTYPE_F32);
}

// ---------------------------------------------------------------------------------------------
// What they hold is known before

// On a device with memory of its own the driver counts too.
static void expect_used(const struct device *device, uint64_t bytes)
{
    struct device_memory memory;
    if (!device_has_memory(device)) return;
    assert_int_equal(device_memory(device, &memory, NULL), STATUS_OK);
    assert_int_equal(memory.used_bytes, bytes);
}

static void check_vae_plan(struct device *device, struct tensor_table *table,
                           const struct vae_config *config)
{
    struct error error;
    struct vae *vae = NULL;
    uint64_t planned = 0;
    expect_ok(vae_weights_plan(&planned, device, table, config, &error), &error);
    expect_used(device, 0);
    expect_ok(vae_create(&vae, device, table, config, &error), &error);
    assert_true(planned > 0);
    assert_int_equal(vae_bytes(vae), planned);
    expect_used(device, planned);
    vae_destroy(&vae);
}

static void check_text_plan(struct device *device, struct encoders *encoders, enum text_kind kind)
{
    struct error error;
    struct model_description description = {.kind = "text", .text = kind};
    struct tensor_table *tables[MODEL_PART_COUNT] = {NULL};
    struct text_model *model = NULL;
    uint64_t planned = 0;
    for (int part = MODEL_CLIP_L; part < MODEL_PART_COUNT; part++) {
        description.has[part] = true;
        description.clip[part] = encoders->parts[part]->config;
        tables[part] = encoders->parts[part]->weights.table;
    }
    expect_ok(text_model_plan(&planned, device, tables, &description, &error), &error);
    expect_used(device, 0);
    expect_ok(text_model_create(&model, device, tables, &description, NULL, &error), &error);
    assert_true(planned > 0);
    assert_int_equal(text_model_bytes(model), planned);
    expect_used(device, planned);
    text_model_destroy(&model);
    tables[MODEL_CLIP_L] = NULL;
    tables[MODEL_CLIP_H] = NULL;
    assert_int_equal(text_model_plan(&planned, device, tables, &description, &error),
                     kind == TEXT_REFINER ? STATUS_OK : STATUS_INVALID_ARGUMENT);
}

// The same tensors in another type; the memory of their elements is the caller's.
static struct tensor_table *convert_table(const struct tensor_table *from, enum dtype dtype,
                                          void **memory)
{
    uint32_t count = tensor_table_count(from);
    struct tensor *tensors = calloc(count, sizeof *tensors);
    uint64_t bytes = 0;
    struct tensor_table *table = NULL;
    struct error error;
    assert_non_null(tensors);
    for (uint32_t i = 0; i < count; i++) bytes += tensor_table_at(from, i)->bytes * 2;
    *memory = malloc(bytes);
    assert_non_null(*memory);
    uint8_t *at = *memory;
    for (uint32_t i = 0; i < count; i++) {
        const struct tensor *source = tensor_table_at(from, i);
        uint64_t elements = source->bytes / dtype_bytes(source->dtype);
        tensors[i] = *source;
        tensors[i].dtype = dtype;
        tensors[i].bytes = elements * dtype_bytes(dtype);
        tensors[i].data = at;
        dtype_convert(at, dtype, source->data, source->dtype, elements);
        at += tensors[i].bytes;
    }
    expect_ok(tensor_table_from_tensors(&table, tensors, count, NULL, 0, &error), &error);
    free(tensors);
    return table;
}

static void the_plan_of_weights_is_what_they_take_to_the_byte(void **state)
{
    (void)state;
    static const struct storage devices[] = {{"reference", false, DTYPE_F32},
                                             {"cpu", false, DTYPE_F32},
                                             {"emulated", false, DTYPE_F32},
                                             {"emulated", true, DTYPE_BF16},
                                             {"emulated:f16", true, DTYPE_F16}};
    static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    static const enum text_kind text_kinds[] = {TEXT_SD1, TEXT_SDXL, TEXT_REFINER};
    struct vae_files files = open_files("two");
    struct encoders *encoders[2] = {encoders_open(DTYPE_F32), encoders_open(DTYPE_F16)};
    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++) {
        struct device *device = open_with(devices[i].device, devices[i].fast);
        for (size_t j = 0; j < sizeof types / sizeof types[0]; j++) {
            void *memory = NULL;
            struct tensor_table *table = convert_table(files.weights, types[j], &memory);
            check_vae_plan(device, table, &files.config);
            tensor_table_release(&table);
            free(memory);
        }
        for (size_t j = 0; j < sizeof text_kinds / sizeof text_kinds[0]; j++) {
            check_text_plan(device, encoders[0], text_kinds[j]);
            check_text_plan(device, encoders[1], text_kinds[j]);
        }
        device_close(&device);
    }
    encoders_close(encoders[0]);
    encoders_close(encoders[1]);
    close_files(&files);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_vae_encodes_and_decodes_as_on_the_cpu),
        cmocka_unit_test(tiles_of_a_vae_are_blended_as_on_the_cpu),
        cmocka_unit_test(a_whole_clip_is_faithful_with_weights_of_every_type),
        cmocka_unit_test(the_plan_of_weights_is_what_they_take_to_the_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
