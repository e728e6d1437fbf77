// gpu_model.c - writes what tests/gpu/gpu.py measures with: models whose weights follow from their
// names, so that no weights have to be carried, and noise for inputs.
//
//     gpu_model vae VAE.JSON [outliers] OUT     SDXL's VAE, as tests/golden/make_real.py makes it
//     gpu_model clip_l|clip_g real|small OUT    an encoder, as tests/golden/make_text.py makes it
//     gpu_model noise NAME COUNT SCALE OFFSET OUT   float32 numbers
//
// Weights are fp16, files safetensors. Real encoders are CLIP-L and bigG; the small ones have three
// layers of their kind.

#include "tests/test.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include <jansson.h>

#include "tests/unit/models/text_weights.h"

static int usage(void)
{
    fprintf(stderr, "usage: gpu_model vae VAE.JSON [outliers] OUT\n"
                    "       gpu_model clip_l|clip_g real|small OUT\n"
                    "       gpu_model noise NAME COUNT SCALE OFFSET OUT\n");
    return 2;
}

// ---------------------------------------------------------------------------------------------
// Files

static int create(const char *path)
{
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor < 0) fail_msg("%s cannot be written", path);
    return descriptor;
}

// Writes all tensors in order; part is "clip_l" or NULL, and tells which encoder it is.
static void write_weights(const struct golden_weights *weights, const char *part, const char *path)
{
    struct error error;
    struct tensor_write *list = calloc(weights->count, sizeof *list);
    assert_non_null(list);
    for (uint32_t i = 0; i < weights->count; i++) {
        const struct tensor *from = &weights->tensors[i];
        list[i] = (struct tensor_write){
            .name = from->name, .dtype = from->dtype, .rank = from->rank, .data = from->data};
        memcpy(list[i].dims, from->dims, sizeof list[i].dims);
    }
    const char *const metadata[] = {"luna.encoder", part == NULL ? "" : part + strlen("clip_"),
                                    NULL};
    int descriptor = create(path);
    enum status status =
        safetensors_write(descriptor, list, weights->count, part == NULL ? NULL : metadata, &error);
    if (status != STATUS_OK) fail_msg("%s: %s", path, error.message);
    if (close(descriptor) != 0) fail_msg("%s is not whole", path);
    free(list);
}

// ---------------------------------------------------------------------------------------------
// The VAE

static struct golden_rule rule_of(const json_t *exponent, const json_t *offset)
{
    return (struct golden_rule){.scale = ldexpf(1, (int)json_integer_value(exponent)),
                                .offset = (float)json_integer_value(offset)};
}

static void add_listed(struct golden_weights *weights, const json_t *entry)
{
    const char *name = json_string_value(json_array_get(entry, 0));
    const json_t *dims = json_array_get(entry, 1);
    struct tensor shape = {.rank = (uint32_t)json_array_size(dims)};
    for (uint32_t i = 0; i < shape.rank; i++) {
        shape.dims[i] = (uint64_t)json_integer_value(json_array_get(dims, i));
    }
    golden_add(weights, name, name, &shape,
               rule_of(json_array_get(entry, 2), json_array_get(entry, 3)));
}

// Gives one row of a tensor another scale.
static void change_listed(struct golden_weights *weights, const json_t *entry)
{
    const char *name = json_string_value(json_array_get(entry, 0));
    uint64_t row = (uint64_t)json_integer_value(json_array_get(entry, 1));
    for (uint32_t i = 0; i < weights->count; i++) {
        const struct tensor *tensor = &weights->tensors[i];
        if (strcmp(tensor->name, name) != 0) continue;
        uint64_t columns = tensor->bytes / dtype_bytes(tensor->dtype) / tensor->dims[0];
        golden_fill(tensor, name, row * columns, columns, rule_of(json_array_get(entry, 2), NULL));
        return;
    }
    fail_msg("no tensor %s", name);
}

static void make_vae(const char *listing_path, bool with_outliers, const char *path)
{
    json_error_t why;
    json_t *listing = json_load_file(listing_path, 0, &why);
    if (listing == NULL) fail_msg("%s: %s", listing_path, why.text);
    struct golden_weights weights = {.dtype = DTYPE_F16};
    size_t index;
    json_t *entry;
    json_array_foreach(json_object_get(listing, "tensors"), index, entry)
    {
        add_listed(&weights, entry);
    }
    json_array_foreach(json_object_get(listing, "outliers"), index, entry)
    {
        if (with_outliers) change_listed(&weights, entry);
    }
    json_decref(listing);
    write_weights(&weights, NULL, path);
    golden_close(&weights);
}

// ---------------------------------------------------------------------------------------------
// Encoders and noise

static void make_encoder(const char *part, bool real, const char *path)
{
    struct clip_config config = {.vocabulary = 49408, .tokens = 77};
    bool wide = strcmp(part, "clip_g") == 0;
    config.width = real ? (wide ? 1280 : 768) : (wide ? 128 : 64);
    config.layers = real ? (wide ? 32 : 12) : 3;
    config.heads = config.width / 64;
    config.mlp_width = 4 * config.width;
    config.projection = wide ? config.width : 0;
    config.quick_gelu = !wide;
    struct golden_encoder *encoder = golden_encoder_open(part, config, DTYPE_F16);
    if (wide) clip_transpose_last(&encoder->weights);  // back: Hugging Face's names are written
    write_weights(&encoder->weights, part, path);
    golden_encoder_close(&encoder);
}

static void make_noise(char *const *words)
{
    uint64_t count = strtoull(words[1], NULL, 10);
    struct golden_rule rule = {strtof(words[2], NULL), strtof(words[3], NULL)};
    struct tensor view = {.dtype = DTYPE_F32, .data = malloc(count * sizeof(float))};
    assert_non_null(view.data);
    golden_fill(&view, words[0], 0, count, rule);
    FILE *file = fdopen(create(words[4]), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(view.data, sizeof(float), count, file), count);
    assert_int_equal(fclose(file), 0);
    free(golden_elements(&view));
}

int main(int argc, char **argv)
{
    if (argc < 2) return usage();
    const char *what = argv[1];
    if (strcmp(what, "vae") == 0 && (argc == 4 || argc == 5)) {
        make_vae(argv[2], argc == 5, argv[argc - 1]);
    } else if (strncmp(what, "clip_", 5) == 0 && argc == 4) {
        make_encoder(what, strcmp(argv[2], "real") == 0, argv[3]);
    } else if (strcmp(what, "noise") == 0 && argc == 7) {
        make_noise(argv + 2);
    } else {
        return usage();
    }
    return 0;
}
