// test_real_size.c - the networks at the sizes that people use: SDXL's VAE, CLIP-L and bigG, with
// weights and references of tests/golden/make_real.py. Only the pixels are few.

#include "tests/test.h"

#include <math.h>
#include <stdio.h>

#include <jansson.h>

#include "base/clock.h"
#include "models/text/text.h"
#include "models/vae/vae.h"
#include "tests/unit/models/text_weights.h"

#define GOLDEN LUNA_SOURCE_DIR "/tests/golden/real/"

// Bars: largest difference of pixels, and of anything else relative to its standard deviation (the
// promise is relative to the largest value, which an outlier would make worth little). Where
// torch's float32 is farther than half of that from float64, twice its distance.
#define IMAGE_BAR 1e-4
#define RELATIVE_BAR 2e-4

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

// What all tests share.
struct bench {
    struct device *device;       // the CPU with two threads
    struct lane *lane;           // of the device
    struct tensor_table *cases;  // the references
};

static void expect_ok(enum status status, const struct error *error)
{
    if (status != STATUS_OK) fail_msg("%s: %s", status_name(status), error->message);
}

static double seconds_since(uint64_t begin_ns)
{
    return (double)(clock_ns(clock_system()) - begin_ns) / 1e9;
}

static int open_shared(void **state)
{
    struct bench *self = calloc(1, sizeof *self);
    struct error error;
    assert_non_null(self);
    struct device_options options = {.name = "cpu", .threads = 2};
    expect_ok(device_open(&self->device, &options, &error), &error);
    expect_ok(lane_create(&self->lane, self->device, &error), &error);
    expect_ok(tensor_table_open(&self->cases, GOLDEN "cases.safetensors", NULL, &error), &error);
    *state = self;
    return 0;
}

static int close_shared(void **state)
{
    struct bench *self = *state;
    tensor_table_release(&self->cases);
    lane_destroy(&self->lane);
    device_close(&self->device);
    free(self);
    return 0;
}

static const float *find_floats(const struct bench *self, const char *name, const char *suffix,
                                uint64_t *count)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", name, suffix);
    const struct tensor *tensor = tensor_table_find(self->cases, full);
    if (tensor == NULL) fail_msg("no tensor %s", full);
    assert_int_equal(tensor->dtype, DTYPE_F32);
    *count = tensor->bytes / sizeof(float);
    return tensor->data;
}

// Compares an output with the values that its reference kept, and its largest value with the
// largest of all.
static void expect_close(const struct bench *self, const char *name, const float *found,
                         uint64_t found_count, double bar)
{
    uint64_t facts_count = 0;
    uint64_t count = 0;
    const float *facts = find_floats(self, name, "facts", &facts_count);
    const float *values = find_floats(self, name, "values", &count);
    assert_int_equal(facts_count, 4);
    uint64_t stride = (uint64_t)facts[0];
    double unit = bar == RELATIVE_BAR ? (double)facts[2] : 1;
    double distance = (double)facts[3];
    assert_int_equal(count, (found_count + stride - 1) / stride);

    double worst = 0;
    double largest = 0;
    for (uint64_t i = 0; i < count; i++) {
        double here = fabs((double)found[i * stride] - (double)values[i]);
        if (!(here <= worst)) worst = here;
    }
    for (uint64_t i = 0; i < found_count; i++) {
        if (!(fabs((double)found[i]) <= largest)) largest = fabs((double)found[i]);
    }
    if (bar < 2 * distance) bar = 2 * distance;
    printf("%-22s off by %.1e, torch's float32 by %.1e, bar %.1e\n", name, worst / unit, distance,
           bar);
    assert_true(worst <= bar * unit);
    assert_true(fabs(largest - (double)facts[1]) <= bar * unit);
}

// ---------------------------------------------------------------------------------------------
// The VAE

static const struct vae_config sdxl_vae = {.levels = 4,
                                           .block_channels = {128, 256, 512, 512},
                                           .blocks_per_level = 2,
                                           .latent_channels = 4,
                                           .image_channels = 3,
                                           .groups = 32,
                                           .encoder = true,
                                           .decoder = true,
                                           .quant_conv = true,
                                           .post_quant_conv = true,
                                           .mid_attention = true};

static float *noise(const char *name, uint64_t count, struct golden_rule rule)
{
    float *out = malloc(count * sizeof *out);
    assert_non_null(out);
    struct tensor view = {.dtype = DTYPE_F32, .data = out};
    golden_fill(&view, name, 0, count, rule);
    return out;
}

static void add_listed(struct golden_weights *weights, const json_t *entry)
{
    const char *name = json_string_value(json_array_get(entry, 0));
    const json_t *dims = json_array_get(entry, 1);
    struct golden_rule rule = {
        .scale = ldexpf(1, (int)json_integer_value(json_array_get(entry, 2))),
        .offset = (float)json_integer_value(json_array_get(entry, 3)),
    };
    struct tensor shape = {.rank = (uint32_t)json_array_size(dims)};
    for (uint32_t i = 0; i < shape.rank; i++) {
        shape.dims[i] = (uint64_t)json_integer_value(json_array_get(dims, i));
    }
    golden_add(weights, name, name, &shape, rule);
}

// Gives one row of a tensor another scale.
static void change_listed(struct golden_weights *weights, const json_t *entry)
{
    const char *name = json_string_value(json_array_get(entry, 0));
    uint64_t row = (uint64_t)json_integer_value(json_array_get(entry, 1));
    int exponent = (int)json_integer_value(json_array_get(entry, 2));
    for (uint32_t i = 0; i < weights->count; i++) {
        const struct tensor *tensor = &weights->tensors[i];
        if (strcmp(tensor->name, name) != 0) continue;
        uint64_t columns = tensor->bytes / dtype_bytes(tensor->dtype) / tensor->dims[0];
        golden_fill(tensor, name, row * columns, columns,
                    (struct golden_rule){ldexpf(1, exponent), 0});
        return;
    }
    fail_msg("no tensor %s", name);
}

static struct golden_weights open_vae_weights(bool with_outliers)
{
    json_error_t json_error;
    json_t *listing = json_load_file(GOLDEN "vae.json", 0, &json_error);
    if (listing == NULL) fail_msg("vae.json: %s", json_error.text);
    struct golden_weights weights = {.dtype = DTYPE_F16};
    size_t index;
    json_t *entry;
    json_array_foreach(json_object_get(listing, "tensors"), index, entry)
    {
        add_listed(&weights, entry);
    }
    if (with_outliers) {
        json_array_foreach(json_object_get(listing, "outliers"), index, entry)
        {
            change_listed(&weights, entry);
        }
    }
    json_decref(listing);
    golden_finish(&weights);
    return weights;
}

static void run_vae(const struct bench *self, const struct vae *vae,
                    const struct vae_request *request, float *input, const char *name)
{
    struct error error;
    struct vae_plan plan;
    struct program *program = NULL;
    expect_ok(vae_plan(vae, request, &plan, &error), &error);
    expect_ok(vae_program(vae, &plan, &program, &error), &error);
    expect_ok(lane_reserve(self->lane, plan.peak_bytes, &error), &error);
    float *output = malloc(plan.output_bytes);
    assert_non_null(output);
    struct vae_found found;
    lane_run(self->lane, program, (void *const[]){input, output, &found}, VAE_SLOTS);
    expect_ok(lane_collect(self->lane, &error), &error);
    program_destroy(&program);
    assert_int_equal(found.not_finite_input + found.not_finite_output, 0);
    bool is_image = request->direction == VAE_DECODE;
    expect_close(self, name, output, plan.output_bytes / sizeof *output,
                 is_image ? IMAGE_BAR : RELATIVE_BAR);
    free(output);
}

static void check_vae(const struct bench *self, bool with_outliers)
{
    static const char *const names[2][3] = {
        {"vae.plain.raw", "vae.plain.image", "vae.plain.latent"},
        {"vae.outliers.raw", "vae.outliers.image", "vae.outliers.latent"}};
    struct error error;
    uint64_t begin_ns = clock_ns(clock_system());
    struct golden_weights weights = open_vae_weights(with_outliers);
    printf("weights of the VAE made in %.1f s\n", seconds_since(begin_ns));
    begin_ns = clock_ns(clock_system());
    struct vae *vae = NULL;
    expect_ok(vae_create(&vae, self->device, weights.table, &sdxl_vae, &error), &error);
    assert_true(vae_bytes(vae) >= UINT64_C(83650000) * 2);
    struct vae_request request = {.direction = VAE_DECODE,
                                  .n = 1,
                                  .h = 16,
                                  .w = 24,
                                  .c = 4,
                                  .input_dtype = DTYPE_F32,
                                  .output_dtype = DTYPE_F32,
                                  .tiling = VAE_TILING_NEVER,
                                  .raw = true};
    float *latent = noise("latent", 4 * 16 * 24, (struct golden_rule){2, 0});
    float *image = noise("image", 128 * 192 * 3, (struct golden_rule){0.5f, 0.5f});
    run_vae(self, vae, &request, latent, names[with_outliers][0]);
    request.raw = false;
    run_vae(self, vae, &request, latent, names[with_outliers][1]);
    request = (struct vae_request){.direction = VAE_ENCODE,
                                   .n = 1,
                                   .h = 128,
                                   .w = 192,
                                   .c = 3,
                                   .input_dtype = DTYPE_F32,
                                   .output_dtype = DTYPE_F32,
                                   .tiling = VAE_TILING_NEVER};
    run_vae(self, vae, &request, image, names[with_outliers][2]);
    printf("and run in %.1f s\n", seconds_since(begin_ns));
    free(image);
    free(latent);
    vae_destroy(&vae);
    golden_close(&weights);
}

static void sdxls_vae_computes_what_diffusers_does(void **state)
{
    if (SANITIZED) skip();
    check_vae(*state, false);
}

static void activations_of_two_hundred_thousand_change_nothing(void **state)
{
    if (SANITIZED) skip();
    check_vae(*state, true);
}

// ---------------------------------------------------------------------------------------------
// Texts

static void run_text(const struct bench *self, const struct text_model *model, const char *kind,
                     const struct text_request *request)
{
    static const char *const which[] = {"prompt", "negative"};
    struct error error;
    struct text_job *job = NULL;
    struct text_batch *batch = NULL;
    uint32_t count = 0;
    expect_ok(text_job_create(&job, model, request, &error), &error);
    expect_ok(text_batch_create(&batch, model, &job, 1, &error), &error);
    const struct program *program = text_batch_program(batch);
    expect_ok(lane_reserve(self->lane, program_peak_bytes(program), &error), &error);
    void *const *bindings = text_batch_bindings(batch, &count);
    lane_run(self->lane, program, bindings, count);
    expect_ok(lane_collect(self->lane, &error), &error);
    text_batch_finish(batch);
    for (uint32_t i = 0; i < 2; i++) {
        char name[64];
        struct text_output output = text_job_output(job, i);
        snprintf(name, sizeof name, "%s.%s.cond", kind, which[i]);
        expect_close(self, name, output.cond, (uint64_t)output.tokens * output.width, RELATIVE_BAR);
        snprintf(name, sizeof name, "%s.%s.pooled", kind, which[i]);
        expect_close(self, name, output.pooled, output.pooled_width, RELATIVE_BAR);
    }
    text_batch_destroy(&batch);
    text_job_destroy(&job);
}

static struct text_request request_of(const char *prompt, const char *negative)
{
    return (struct text_request){.prompt = {prompt, strlen(prompt)},
                                 .negative = {negative, strlen(negative)},
                                 .has_negative = true};
}

static void check_text(const struct bench *self, struct model_description *description,
                       struct tensor_table *const tables[MODEL_PART_COUNT],
                       const struct text_request *request)
{
    struct error error;
    struct text_model *model = NULL;
    uint64_t begin_ns = clock_ns(clock_system());
    expect_ok(text_model_create(&model, self->device, tables, description, NULL, &error), &error);
    run_text(self, model, description->kind, request);
    printf("%s in %.1f s\n", description->kind, seconds_since(begin_ns));
    text_model_destroy(&model);
}

static void clip_l_and_big_g_compute_what_transformers_does(void **state)
{
    if (SANITIZED) skip();
    static const struct clip_config narrow = {.layers = 12,
                                              .width = 768,
                                              .heads = 12,
                                              .mlp_width = 3072,
                                              .vocabulary = 49408,
                                              .tokens = 77,
                                              .quick_gelu = true};
    static const struct clip_config wide = {.layers = 32,
                                            .width = 1280,
                                            .heads = 20,
                                            .mlp_width = 5120,
                                            .vocabulary = 49408,
                                            .tokens = 77,
                                            .projection = 1280};
    uint64_t begin_ns = clock_ns(clock_system());
    struct golden_encoder *l = golden_encoder_open("clip_l", narrow, DTYPE_F16);
    struct golden_encoder *g = golden_encoder_open("clip_g", wide, DTYPE_F16);
    printf("weights of the encoders made in %.1f s\n", seconds_since(begin_ns));
    struct tensor_table *tables[MODEL_PART_COUNT] = {
        [MODEL_CLIP_L] = l->weights.table, [MODEL_CLIP_G] = g->weights.table};
    struct model_description description = {
        .kind = "sdxl",
        .text = TEXT_SDXL,
        .has = {[MODEL_CLIP_L] = true, [MODEL_CLIP_G] = true},
        .clip = {[MODEL_CLIP_L] = narrow, [MODEL_CLIP_G] = wide}};
    struct text_request request = request_of("a photo of a (red:1.3) fox", "blurry, (ugly)");
    check_text(*state, &description, tables, &request);
    description.kind = "sd1";
    description.text = TEXT_SD1;
    description.has[MODEL_CLIP_G] = false;
    request = request_of("a (cat:1.2) on a mat", "a ((dog))");
    check_text(*state, &description, tables, &request);
    golden_encoder_close(&g);
    golden_encoder_close(&l);
}

int main(void)
{
    if (SANITIZED) printf("real sizes are for release builds: nothing runs under sanitizers\n");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sdxls_vae_computes_what_diffusers_does),
        cmocka_unit_test(activations_of_two_hundred_thousand_change_nothing),
        cmocka_unit_test(clip_l_and_big_g_compute_what_transformers_does),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
