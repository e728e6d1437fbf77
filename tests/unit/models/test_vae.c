// Tests of models/vae/vae.h: the network is diffusers' to the bit that float32 allows, tiled or
// not, and a plan keeps what it promises. The references are made by tests/golden/make_vae.py.

#include "tests/unit/models/vae_kit.h"

#include <math.h>

#include "base/clock.h"

// Bars: largest difference of images 0..1, and of latents relative to the largest value.
#define IMAGE_BAR 1e-4
#define LATENT_BAR 2e-4

static struct vae_request request_of(const struct tensor_table *cases, const char *name)
{
    const struct tensor *options = tensor(cases, name, ".options");
    const struct tensor *input = tensor(cases, name, ".input");
    bool decode = integer(options, 0) != 0;
    return (struct vae_request){.direction = decode ? VAE_DECODE : VAE_ENCODE,
                                .n = (uint32_t)input->dims[0],
                                .h = (uint32_t)input->dims[decode ? 2 : 1],
                                .w = (uint32_t)input->dims[decode ? 3 : 2],
                                .c = (uint32_t)input->dims[decode ? 1 : 3],
                                .input_dtype = input->dtype,
                                .output_dtype = DTYPE_F32,
                                .tiling = (enum vae_tiling)integer(options, 1),
                                .tile = integer(options, 2),
                                .overlap = integer(options, 3),
                                .passes = integer(options, 4),
                                .raw = integer(options, 5) != 0};
}

// The largest difference between an output [n, a, b, c] and the reference, which kept every step-th
// row and column of it; rows and columns are a and b of pixels, b and c of latents.
static double difference(const float *out, const uint64_t dims[4], const struct tensor *reference,
                         uint32_t step, bool decode)
{
    double worst = 0;
    double largest = 0;
    uint64_t sa = decode ? step : 1;
    uint64_t sb = step;
    uint64_t sc = decode ? 1 : step;
    uint64_t at = 0;
    for (uint64_t n = 0; n < dims[0]; n++) {
        for (uint64_t a = 0; a < dims[1]; a += sa) {
            for (uint64_t b = 0; b < dims[2]; b += sb) {
                for (uint64_t c = 0; c < dims[3]; c += sc) {
                    double want = (double)real(reference, at++);
                    double got = (double)out[((n * dims[1] + a) * dims[2] + b) * dims[3] + c];
                    if (!(fabs(got - want) <= worst)) worst = fabs(got - want);
                    if (fabs(want) > largest) largest = fabs(want);
                }
            }
        }
    }
    assert_int_equal(at * 4, reference->bytes);
    return decode ? worst : worst / largest;
}

static void check_case(const struct bench *self, const char *device, const char *model,
                       const char *name)
{
    struct vae_request request = request_of(self->cases, name);
    struct vae_plan plan;
    double begin = (double)clock_ns(clock_system());
    float *out = run(self, &request, tensor(self->cases, name, ".input")->data, &plan);
    double seconds = ((double)clock_ns(clock_system()) - begin) / 1e9;
    bool decode = request.direction == VAE_DECODE;
    const uint64_t pixels[4] = {plan.output_n, plan.output_h, plan.output_w, plan.output_c};
    const uint64_t latents[4] = {plan.output_n, plan.output_c, plan.output_h, plan.output_w};
    double distance = (double)real(tensor(self->cases, name, ".distance"), 0);
    double bar = decode ? IMAGE_BAR : LATENT_BAR;
    if (bar < 2 * distance) bar = 2 * distance;
    double got = difference(out, decode ? pixels : latents, tensor(self->cases, name, ".output"),
                            integer(tensor(self->cases, name, ".options"), 6), decode);
    free(out);
    printf("%-10s %-10s %-24s off by %.1e (bar %.1e, torch %.1e), %u tiles, %.1f MiB, %.2f s\n",
           device, model, name, got, bar, distance, plan.tiles, (double)plan.peak_bytes / (1 << 20),
           seconds);
    assert_int_equal(plan.tiled, request.tiling == VAE_TILING_ALWAYS);
    assert_true(got <= bar);
}

static uint32_t check_all(const struct bench *self, const char *device, const char *model)
{
    uint32_t cases = 0;
    for (uint32_t i = 0; i < tensor_table_count(self->cases); i++) {
        char name[64];
        snprintf(name, sizeof name, "%s", tensor_table_at(self->cases, i)->name);
        char *end = strstr(name, ".options");
        if (end == NULL) continue;
        *end = '\0';
        check_case(self, device, model, name);
        cases++;
    }
    return cases;
}

// What every device must compute, with every golden model.
static void check_device(const char *device)
{
    static const char *const models[] = {"two", "four", "sixteen", "outliers"};
    uint32_t cases = 0;
    for (uint32_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        struct bench bench = open_golden(device, models[i]);
        cases += check_all(&bench, device, models[i]);
        close_bench(&bench);
    }
    assert_true(cases >= 20);
}

static void the_reference_device_computes_what_diffusers_does(void **state)
{
    (void)state;
    check_device("reference");
}

static void the_cpu_computes_what_diffusers_does(void **state)
{
    (void)state;
    check_device("cpu");
}

static void the_model_that_ships_encodes_and_decodes_the_picture(void **state)
{
    (void)state;
    struct bench bench = open_bench("cpu", DEMO_WEIGHTS, GOLDEN "demo.cases.safetensors");
    assert_int_equal(check_all(&bench, "cpu", "demo"), 2);
    close_bench(&bench);
}

// make_vae.py --real writes models of SDXL's size; too large to keep, too slow to run every time.
static void a_model_of_real_size_computes_what_diffusers_does(void **state)
{
    (void)state;
    const char *folder = getenv("LUNA_REAL_DIR");
    if (folder == NULL) skip();
    static const char *const models[] = {"real_f16", "real_f32", "real_outliers"};
    for (uint32_t i = 0; i < 3; i++) {
        char weights[512];
        char cases[512];
        snprintf(weights, sizeof weights, "%s/%s.safetensors", folder, models[i]);
        snprintf(cases, sizeof cases, "%s/%s.cases.safetensors", folder, models[i]);
        struct bench bench = open_bench("cpu", weights, cases);
        assert_true(check_all(&bench, "cpu", models[i]) >= 2);
        close_bench(&bench);
    }
}

// ---------------------------------------------------------------------------------------------
// Plans

static void assert_refused(const struct bench *self, const struct vae_request *request,
                           enum status expected, const char *message)
{
    struct vae_plan plan = {.tiles = 77};
    struct error error = {0};
    assert_int_equal(vae_plan(self->vae, request, &plan, &error), expected);
    assert_string_equal(error.message, message);
    assert_int_equal(plan.tiles, 77);
}

static void an_image_is_cropped_to_whole_latents_in_its_middle(void **state)
{
    struct bench bench = open_golden("cpu", "four");
    (void)state;
    struct vae_request request = encode_request(1, 8 * 5 + 7, 8 * 3 + 2);
    struct vae_plan plan = plan_of(&bench, &request);
    assert_int_equal(plan.crop_y, 3);
    assert_int_equal(plan.crop_x, 1);
    assert_int_equal(plan.h, 40);
    assert_int_equal(plan.w, 24);
    assert_int_equal(plan.output_h, 5);
    assert_int_equal(plan.output_w, 3);
    assert_int_equal(plan.output_c, 4);
    assert_int_equal(plan.input_bytes, 47 * 26 * 3 * 4);
    assert_int_equal(plan.output_bytes, 5 * 3 * 4 * 4);
    close_bench(&bench);
}

static void a_request_that_can_never_work_is_refused_by_its_value(void **state)
{
    const struct bench *self = *state;
    struct vae_request request = decode_request(1, 8, 8);
    request.c = 5;
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT,
                   "latent has 5 channels, the model takes 4");
    request = encode_request(1, 8, 8);
    request.c = 2;
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT,
                   "image has 2 channels, the model takes 3, or 4 with alpha");
    request.c = 5;
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT,
                   "image has 5 channels, the model takes 3, or 4 with alpha");
    request = encode_request(1, 8, 1);
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT, "image of 8 x 1 is below 2 x 2");
    request = decode_request(0, 8, 8);
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT, "a batch of 0 latents");
    request = decode_request(1, 0, 8);
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT, "latent of 0 x 8 is below 1 x 1");
    request = decode_request(1, 8, UINT32_MAX);
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT,
                   "latent of 8 x 4294967295 is above 32768 x 32768");
    request = decode_request(UINT32_MAX, 32768, 32768);
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT,
                   "a batch of 4294967295 times 32768 x 32768 is too large");
    request = decode_request(40000, 1, 1);
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT,
                   "40000 images of 1 tiles are more than 16384 tiles in one request");
    request = decode_request(1, 8, 8);
    request.passes = 2;
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT, "passes is 2, it may be 1 or 3");
    request.passes = 3;
    request.tile = 64;
    request.overlap = 64;
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT,
                   "overlap of 64 is not below the tile of 64");
}

static void types_that_cannot_be_are_refused(void **state)
{
    const struct bench *self = *state;
    struct vae_request request = decode_request(1, 8, 8);
    request.input_dtype = DTYPE_U8;
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT,
                   "the latent cannot be U8, only F32, F16 or BF16");
    request = decode_request(1, 8, 8);
    request.output_dtype = DTYPE_F64;
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT,
                   "the image cannot be F64, only F32, F16, BF16 or U8");
    request.output_dtype = DTYPE_U8;
    request.raw = true;
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT, "raw pixels cannot be U8");
    request = encode_request(1, 8, 8);
    request.output_dtype = DTYPE_U8;
    assert_refused(self, &request, STATUS_INVALID_ARGUMENT,
                   "the latent cannot be U8, only F32, F16 or BF16");
}

static void an_image_within_one_tile_is_not_tiled(void **state)
{
    const struct bench *self = *state;
    struct vae_request request = decode_request(3, 16, 16);
    request.tiling = VAE_TILING_ALWAYS;
    request.tile = 64;
    struct vae_plan plan = plan_of(self, &request);
    assert_false(plan.tiled);
    assert_int_equal(plan.tiles, 3);
    assert_string_equal(plan.tiled_why, "");
    request.h = 17;
    plan = plan_of(self, &request);
    assert_true(plan.tiled);
    assert_string_equal(plan.tiled_why, "asked for");
    assert_int_equal(plan.request.overlap, 16);
    assert_int_equal(plan.request.passes, 3);
}

static void auto_tiles_only_what_does_not_fit_and_says_why(void **state)
{
    const struct bench *self = *state;
    struct vae_request request = decode_request(1, 600, 600);
    struct vae_plan whole = plan_of(self, &request);
    assert_false(whole.tiled);

    request.tiling = VAE_TILING_AUTO;
    assert_false(plan_of(self, &request).tiled);
    request.bytes_max = whole.peak_bytes;
    assert_false(plan_of(self, &request).tiled);
    request.bytes_max = whole.peak_bytes - 1;
    struct vae_plan first = plan_of(self, &request);
    assert_true(first.tiled);
    assert_int_equal(first.request.tile, 512);
    assert_int_equal(first.request.overlap, 64);
    assert_true(first.peak_bytes <= request.bytes_max);
    char why[64];
    snprintf(why, sizeof why, "whole needs %u MiB of %u",
             (unsigned)((whole.peak_bytes + (1 << 20) - 1) >> 20),
             (unsigned)(request.bytes_max >> 20));
    assert_string_equal(first.tiled_why, why);

    request.bytes_max = first.peak_bytes - 1;
    struct vae_plan second = plan_of(self, &request);
    assert_true(second.request.tile < 512);
    assert_true(second.peak_bytes < first.peak_bytes);
}

static void the_estimate_is_an_upper_one_and_not_far_off(void **state)
{
    (void)state;
    struct bench bench = open_bench("cpu", DEMO_WEIGHTS, GOLDEN "demo.cases.safetensors");
    for (uint32_t size = 8; size <= 2048; size *= 2) {
        for (uint32_t i = 0; i < 4; i++) {
            bool decode = i % 2 == 0;
            struct vae_request request =
                decode ? decode_request(1, size / 8, size / 4) : encode_request(1, size, 2 * size);
            if (decode) request.c = 16;
            request.tiling = i < 2 ? VAE_TILING_NEVER : VAE_TILING_ALWAYS;
            uint64_t peak_bytes = plan_of(&bench, &request).peak_bytes;
            uint64_t estimate_bytes = vae_estimate_bytes(&bench.config, &request);
            assert_true(estimate_bytes >= peak_bytes);
            assert_true(estimate_bytes <= peak_bytes + peak_bytes / 2 + (36u << 20));
        }
    }
    close_bench(&bench);
}

static void the_estimate_of_sdxl_covers_what_was_measured(void **state)
{
    (void)state;
    const struct vae_config sdxl = {.levels = 4,
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
    // Peaks of the CPU's plans in MiB, as bench_vae --plan printed them.
    static const struct {
        uint32_t size, decode_mib, encode_mib;
    } measured[] = {{64, 149, 40}, {256, 200, 75}, {512, 553, 259}, {1024, 2209, 1036}};
    for (uint32_t i = 0; i < sizeof measured / sizeof measured[0]; i++) {
        uint32_t size = measured[i].size;
        struct vae_request decode = decode_request(1, size / 8, size / 8);
        struct vae_request encode = encode_request(1, size, size);
        uint64_t decode_mib = vae_estimate_bytes(&sdxl, &decode) >> 20;
        uint64_t encode_mib = vae_estimate_bytes(&sdxl, &encode) >> 20;
        assert_in_range(decode_mib, measured[i].decode_mib, measured[i].decode_mib * 4 / 3 + 32);
        assert_in_range(encode_mib, measured[i].encode_mib, measured[i].encode_mib * 4 / 3 + 32);
    }
}

static void a_large_tiled_plan_is_quick_and_has_the_peak_of_its_program(void **state)
{
    (void)state;
    struct bench bench = open_bench("cpu", DEMO_WEIGHTS, GOLDEN "demo.cases.safetensors");
    struct vae_request request = decode_request(1, 256, 256);
    request.c = 16;
    request.tiling = VAE_TILING_ALWAYS;
    uint64_t begin_ns = clock_ns(clock_system());
    struct vae_plan plan = plan_of(&bench, &request);
    assert_true(clock_ns(clock_system()) - begin_ns < UINT64_C(1000000000));
    assert_int_equal(plan.tiles, 91);

    struct program *program = NULL;
    struct error error = {0};
    assert_ok(vae_program(bench.vae, &plan, &program, &error), &error);
    assert_int_equal(program_peak_bytes(program), plan.peak_bytes);
    assert_int_equal(program_marks(program), 91);
    program_destroy(&program);
    close_bench(&bench);
}

static void what_does_not_even_fit_in_tiles_says_what_it_needs(void **state)
{
    const struct bench *self = *state;
    struct vae_request request = decode_request(1, 600, 600);
    request.tiling = VAE_TILING_AUTO;
    request.bytes_max = 3u << 20;
    struct vae_plan plan = {0};
    struct error error = {0};
    assert_int_equal(vae_plan(self->vae, &request, &plan, &error), STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(error.message, "needs "));
    assert_non_null(strstr(error.message, " MiB, 3 are free"));
}

static void a_batch_gives_the_bytes_of_its_images_alone(void **state)
{
    const struct bench *self = *state;
    struct vae_request request = decode_request(3, 20, 26);
    request.tiling = VAE_TILING_ALWAYS;
    request.tile = 24;
    request.overlap = 6;
    struct vae_plan plan;
    float latent[3 * 4 * 20 * 26];
    for (uint32_t i = 0; i < sizeof latent / sizeof latent[0]; i++) {
        latent[i] = sinf((float)i * 0.37f) * 2;
    }
    uint8_t *batch = run(self, &request, latent, &plan);
    uint64_t image_bytes = plan.output_bytes / 3;
    request.n = 1;
    for (uint32_t i = 0; i < 3; i++) {
        struct vae_plan one_plan;
        uint8_t *one = run(self, &request, latent + (size_t)i * 4 * 20 * 26, &one_plan);
        assert_int_equal(one_plan.peak_bytes, plan.peak_bytes);
        assert_memory_equal(one, batch + i * image_bytes, image_bytes);
        free(one);
    }
    free(batch);
}

static void half_precision_is_rounded_at_the_border_alone(void **state)
{
    const struct bench *self = *state;
    enum { COUNT = 4 * 6 * 5 };
    float latent[COUNT];
    uint16_t halves[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        halves[i] = f32_to_f16(sinf((float)i * 0.53f));
        latent[i] = f16_to_f32(halves[i]);
    }
    struct vae_request request = decode_request(1, 6, 5);
    struct vae_plan plan;
    float *pixels = run(self, &request, latent, &plan);
    request.input_dtype = DTYPE_F16;
    request.output_dtype = DTYPE_BF16;
    uint16_t *rounded = run(self, &request, halves, &plan);
    for (uint64_t i = 0; i < plan.output_bytes / 2; i++) {
        assert_int_equal(rounded[i], f32_to_bf16(pixels[i]));
    }
    free(rounded);
    free(pixels);
}

static void an_image_that_does_not_fit_is_encoded_in_smaller_tiles(void **state)
{
    const struct bench *self = *state;
    struct vae_request request = encode_request(1, 300, 260);
    struct vae_plan plan;
    float *image = calloc(300 * 260 * 3, sizeof *image);
    assert_non_null(image);
    float *whole = run(self, &request, image, &plan);
    uint64_t whole_bytes = plan.peak_bytes;
    request.tiling = VAE_TILING_AUTO;
    request.bytes_max = whole_bytes / 2;
    float *tiled = run(self, &request, image, &plan);
    assert_true(plan.tiled);
    assert_true(plan.peak_bytes <= request.bytes_max);
    assert_true(plan.request.tile < 512);
    assert_true(plan.request.overlap < plan.request.tile / 2);
    assert_int_equal(plan.output_bytes, 4 * 150 * 130 * 4);
    for (uint64_t i = 0; i < plan.output_bytes / 4; i++) assert_true(isfinite(tiled[i]));
    free(tiled);
    free(whole);
    free(image);
}

static void eight_bit_pixels_are_the_rounded_ones(void **state)
{
    const struct bench *self = *state;
    float latent[4 * 9 * 7];
    for (uint32_t i = 0; i < sizeof latent / sizeof latent[0]; i++) {
        latent[i] = cosf((float)i * 0.71f);
    }
    struct vae_request request = decode_request(1, 9, 7);
    struct vae_plan plan;
    float *real_pixels = run(self, &request, latent, &plan);
    request.output_dtype = DTYPE_U8;
    uint8_t *pixels = run(self, &request, latent, &plan);
    for (uint64_t i = 0; i < plan.output_bytes; i++) {
        assert_int_equal(pixels[i], (int)lrintf(real_pixels[i] * 255));
    }
    free(pixels);
    free(real_pixels);
}

// ---------------------------------------------------------------------------------------------
// Models

// A table with the tensors of another whose names begin with one of two prefixes.
static struct tensor_table *table_of(struct tensor_table *from, const char *a, const char *b)
{
    struct tensor *tensors = calloc(tensor_table_count(from), sizeof *tensors);
    assert_non_null(tensors);
    uint32_t count = 0;
    for (uint32_t i = 0; i < tensor_table_count(from); i++) {
        const struct tensor *at = tensor_table_at(from, i);
        bool wanted = strncmp(at->name, a, strlen(a)) == 0 || strncmp(at->name, b, strlen(b)) == 0;
        if (wanted) tensors[count++] = *at;
    }
    struct tensor_table *table = NULL;
    struct error error = {0};
    assert_ok(tensor_table_from_tensors(&table, tensors, count, &from, 1, &error), &error);
    free(tensors);
    return table;
}

// The model of the shared bench, but with one half of it.
static struct bench open_half(const struct bench *self, bool encoder)
{
    struct tensor_table *half = encoder ? table_of(self->weights, "encoder.", "quant_conv.")
                                        : table_of(self->weights, "decoder.", "post_quant_conv.");
    struct bench bench = *self;
    bench.vae = NULL;
    bench.config.encoder = bench.config.quant_conv = encoder;
    bench.config.decoder = bench.config.post_quant_conv = !encoder;
    struct error error = {0};
    assert_ok(vae_create(&bench.vae, self->device, half, &bench.config, &error), &error);
    tensor_table_release(&half);
    assert_true(vae_bytes(bench.vae) > 0);
    assert_true(vae_bytes(bench.vae) < vae_bytes(self->vae));
    return bench;
}

static void a_decoder_without_encoder_decodes_and_says_that_it_cannot_encode(void **state)
{
    struct bench bench = open_half(*state, false);
    check_case(&bench, "cpu", "decoder", "decode");
    struct vae_request request = encode_request(1, 8, 8);
    assert_refused(&bench, &request, STATUS_FAILED_PRECONDITION, "the model has no encoder");
    vae_destroy(&bench.vae);
}

static void an_encoder_without_decoder_encodes_and_says_that_it_cannot_decode(void **state)
{
    struct bench bench = open_half(*state, true);
    check_case(&bench, "cpu", "encoder", "encode_alpha");
    struct vae_request request = decode_request(1, 8, 8);
    assert_refused(&bench, &request, STATUS_FAILED_PRECONDITION, "the model has no decoder");
    vae_destroy(&bench.vae);
}

static void assert_no_vae(const struct bench *self, struct tensor_table *tensors,
                          const struct vae_config *config, const char *message)
{
    struct vae *vae = NULL;
    struct error error = {0};
    assert_int_equal(vae_create(&vae, self->device, tensors, config, &error),
                     STATUS_INVALID_ARGUMENT);
    assert_null(vae);
    assert_non_null(strstr(error.message, message));
}

static void a_model_that_contradicts_its_tensors_is_refused_by_name(void **state)
{
    const struct bench *self = *state;
    struct tensor_table *half = table_of(self->weights, "decoder.", "decoder.");
    assert_no_vae(self, half, &self->config, "tensor \"encoder.conv_in.weight\" is missing");
    tensor_table_release(&half);

    struct vae_config config = self->config;
    config.block_channels[0] = 32;
    assert_no_vae(
        self, self->weights, &config,
        "tensor \"encoder.conv_in.weight\" is [8, 3, 3, 3], the model needs [32, 3, 3, 3]");
    config = self->config;
    config.levels = 9;
    assert_no_vae(self, self->weights, &config, "the model has 9 levels, it may be 1 to 8");
    config = self->config;
    config.groups = 3;
    assert_no_vae(self, self->weights, &config, "3 groups");
    config = self->config;
    config.image_channels = 1;
    assert_no_vae(self, self->weights, &config, "1 image channels");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_reference_device_computes_what_diffusers_does),
        cmocka_unit_test(the_cpu_computes_what_diffusers_does),
        cmocka_unit_test(the_model_that_ships_encodes_and_decodes_the_picture),
        cmocka_unit_test(a_model_of_real_size_computes_what_diffusers_does),
        cmocka_unit_test(an_image_is_cropped_to_whole_latents_in_its_middle),
        cmocka_unit_test(a_request_that_can_never_work_is_refused_by_its_value),
        cmocka_unit_test(types_that_cannot_be_are_refused),
        cmocka_unit_test(an_image_within_one_tile_is_not_tiled),
        cmocka_unit_test(auto_tiles_only_what_does_not_fit_and_says_why),
        cmocka_unit_test(the_estimate_is_an_upper_one_and_not_far_off),
        cmocka_unit_test(the_estimate_of_sdxl_covers_what_was_measured),
        cmocka_unit_test(a_large_tiled_plan_is_quick_and_has_the_peak_of_its_program),
        cmocka_unit_test(what_does_not_even_fit_in_tiles_says_what_it_needs),
        cmocka_unit_test(a_batch_gives_the_bytes_of_its_images_alone),
        cmocka_unit_test(half_precision_is_rounded_at_the_border_alone),
        cmocka_unit_test(an_image_that_does_not_fit_is_encoded_in_smaller_tiles),
        cmocka_unit_test(eight_bit_pixels_are_the_rounded_ones),
        cmocka_unit_test(a_decoder_without_encoder_decodes_and_says_that_it_cannot_encode),
        cmocka_unit_test(an_encoder_without_decoder_encodes_and_says_that_it_cannot_decode),
        cmocka_unit_test(a_model_that_contradicts_its_tensors_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
