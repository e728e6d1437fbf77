// images.c - `luna encode` and `luna decode`: pictures, latents, and the files they live in.
//
// Readers of files map them. Standard input, which may be a pipe, is copied into memory that has a
// descriptor and so can be mapped like a file; what it holds is told by its first bytes, for want
// of a suffix.

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clients/cli/cli.h"

#define PIXELS_MAX (UINT64_C(1) << 28)

// What a command reads, whichever file it came from.
struct input {
    int copy;                    // of stdin; -1: a file was named
    char copy_path[32];          // to open it by
    struct image picture;        // of a PNG or JPEG
    struct tensor_table *table;  // of a safetensors file
    struct luna_tensor tensor;   // the one to send, in one of the two
};

static void input_free(struct input *self)
{
    image_free(&self->picture);
    tensor_table_release(&self->table);
    if (self->copy >= 0) close(self->copy);
}

// Replaces the path "-" by one of a copy of stdin.
static enum status find_path(struct input *self, const char **path, struct error *error)
{
    if (strcmp(*path, "-") != 0) return STATUS_OK;
    enum status status = cli_copy_stdin(&self->copy, error);
    if (status != STATUS_OK) return status;
    snprintf(self->copy_path, sizeof self->copy_path, "/proc/self/fd/%d", self->copy);
    *path = self->copy_path;
    return STATUS_OK;
}

// A safetensors file begins with the length of its header, and then the header's brace.
static bool is_safetensors(const struct input *self, const char *path)
{
    char first[9] = "";
    if (self->copy < 0) return cli_has_suffix(path, ".safetensors");
    return pread(self->copy, first, sizeof first, 0) == (ssize_t)sizeof first && first[8] == '{';
}

static enum status use_tensor(struct input *out, const struct tensor *tensor, const char *name,
                              struct error *error)
{
    if (tensor->rank < 3 || tensor->rank > 4) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%s\" has %u dimensions, not 3 or 4", tensor->name, tensor->rank);
    }
    out->tensor = (struct luna_tensor){.name = name, .dtype = tensor->dtype, .rank = tensor->rank};
    memcpy(out->tensor.dims, tensor->dims, tensor->rank * sizeof tensor->dims[0]);
    out->tensor.data = tensor->data;
    out->tensor.bytes = tensor->bytes;
    return STATUS_OK;
}

static enum status read_image(struct input *out, const char *path, struct error *error)
{
    enum status status = find_path(out, &path, error);
    if (status != STATUS_OK) return status;
    if (!is_safetensors(out, path)) {
        status = image_read(&out->picture, path, PIXELS_MAX, error);
        if (status != STATUS_OK) return status;
        const struct image *picture = &out->picture;
        out->tensor = (struct luna_tensor){.name = "image", .dtype = picture->dtype, .rank = 4};
        const uint64_t dims[4] = {1, picture->h, picture->w, picture->c};
        memcpy(out->tensor.dims, dims, sizeof dims);
        out->tensor.data = picture->pixels;
        out->tensor.bytes = picture->bytes;
        return STATUS_OK;
    }
    status = tensor_table_open(&out->table, path, NULL, error);
    if (status != STATUS_OK) return status;
    const struct tensor *tensor = tensor_table_find(out->table, "image");
    if (tensor == NULL)
        return error_set(error, STATUS_INVALID_ARGUMENT, "%s has no tensor \"image\"", path);
    return use_tensor(out, tensor, "image", error);
}

static enum status read_latent(struct input *out, const char *path, struct error *error)
{
    enum status status = find_path(out, &path, error);
    if (status == STATUS_OK) status = tensor_table_open(&out->table, path, NULL, error);
    if (status != STATUS_OK) return status;
    const struct tensor *tensor = tensor_table_find(out->table, "latent");
    if (tensor == NULL)
        tensor = tensor_table_find(out->table, "latent_tensor");  // as ComfyUI names it
    if (tensor == NULL) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "%s has no tensor \"latent\" or \"latent_tensor\"", path);
    }
    return use_tensor(out, tensor, "latent", error);
}

static void print_reply(const struct cli_options *options, const struct luna_answer *answer,
                        const char *output)
{
    const luna_ImageReply *reply = answer->body;
    const struct luna_tensor *tensor = &answer->tensors[0];
    if (reply->not_finite_input) fprintf(stderr, "luna: note: the input holds NaN or infinity\n");
    if (reply->not_finite_output)
        fprintf(stderr, "luna: note: the model's output held NaN or infinity\n");
    if (reply->tiled && !options->json) {
        fprintf(stderr, "luna: note: tiled, %u tiles (%s)\n", reply->tiles, reply->tiled_why);
    }
    if (!options->json) return;
    json_t *shape = json_array();
    for (uint32_t i = 0; i < tensor->rank; i++) {
        json_array_append_new(shape, json_integer((json_int_t)tensor->dims[i]));
    }
    cli_print_json(json_pack("{s:s, s:o, s:b, s:s, s:i, s:b, s:b, s:i, s:i, s:s}", "output", output,
                             "shape", shape, "tiled", reply->tiled, "tiled_why", reply->tiled_why,
                             "tiles", (int)reply->tiles, "not_finite_input",
                             reply->not_finite_input, "not_finite_output", reply->not_finite_output,
                             "queue_ms", (int)reply->queue_ms, "execute_ms", (int)reply->execute_ms,
                             "device", reply->device));
}

static enum status write_tensor(const char *path, const struct luna_tensor *tensor,
                                struct error *error)
{
    struct tensor_write write = {
        .name = tensor->name, .dtype = tensor->dtype, .rank = tensor->rank};
    memcpy(write.dims, tensor->dims, tensor->rank * sizeof tensor->dims[0]);
    write.data = tensor->data;
    return cli_write_tensors(path, &write, 1, NULL, error);
}

// "name.png" for one picture, "name-0.png" … for several.
static void picture_path(char *out, size_t bytes, const char *path, uint64_t index, uint64_t count)
{
    const char *dot = strrchr(path, '.');
    if (count == 1 || dot == NULL)
        snprintf(out, bytes, "%s", path);
    else
        snprintf(out, bytes, "%.*s-%lu%s", (int)(dot - path), path, (unsigned long)index, dot);
}

static enum status write_picture(const char *path, const struct image *picture,
                                 enum image_format format, struct error *error)
{
    bool is_stdout = strcmp(path, "-") == 0;
    int descriptor =
        is_stdout ? STDOUT_FILENO : open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor < 0) return error_set(error, STATUS_INTERNAL, "%s: %s", path, strerror(errno));
    enum status status = image_write(descriptor, picture, format, error);
    if (!is_stdout && close(descriptor) != 0 && status == STATUS_OK) {
        status = error_set(error, STATUS_INTERNAL, "%s: %s", path, strerror(errno));
    }
    return status;
}

// The answer is u8 [n,h,w,3].
static enum status write_pictures(const char *path, const struct luna_tensor *tensor,
                                  struct error *error)
{
    enum image_format format =
        cli_has_suffix(path, ".jpg") || cli_has_suffix(path, ".jpeg") ? IMAGE_JPEG : IMAGE_PNG;
    uint64_t each = tensor->dims[1] * tensor->dims[2] * 3;
    for (uint64_t i = 0; i < tensor->dims[0]; i++) {
        struct image picture = {
            .h = (uint32_t)tensor->dims[1], .w = (uint32_t)tensor->dims[2], .c = 3};
        picture.dtype = DTYPE_U8;
        picture.bytes = each;
        picture.pixels = (uint8_t *)(uintptr_t)tensor->data + i * each;
        char name[4096];
        picture_path(name, sizeof name, path, i, tensor->dims[0]);
        enum status status = write_picture(name, &picture, format, error);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

// The bytes that the answer will have, when the client can know; 0 when it cannot.
static uint64_t decoded_bytes(const struct luna_tensor *latent, enum dtype dtype)
{
    uint64_t pixels = 64;
    for (uint32_t i = 0; i < latent->rank; i++) {
        if (i + 3 == latent->rank) continue;  // channels
        if (__builtin_mul_overflow(pixels, latent->dims[i], &pixels)) return 0;
    }
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(pixels, 3u * dtype_bytes(dtype), &bytes)) return 0;
    return bytes;
}

static enum cli_exit run_image(const struct cli_options *options, struct luna_request *request,
                               const char *output, bool as_picture)
{
    struct luna_client *client = NULL;
    struct luna_answer *answer = NULL;
    struct error error;
    enum cli_exit result = EXIT_DONE;
    request->may_tile = options->tiling == luna_Tiling_TILING_AUTO;
    enum status status = cli_connect(options, &client, &error);
    if (status != STATUS_OK) {
        result = cli_error(&error);
        return status == STATUS_UNAVAILABLE ? EXIT_NOBODY : result;
    }
    status = cli_call(options, client, request, &answer, &error);
    if (status == STATUS_OK && answer->tensors_count != 1) {
        status = error_set(&error, STATUS_INTERNAL, "the answer has %u tensors, not 1",
                           answer->tensors_count);
    }
    if (status == STATUS_OK) {
        status = as_picture ? write_pictures(output, &answer->tensors[0], &error)
                            : write_tensor(output, &answer->tensors[0], &error);
    }
    if (status == STATUS_OK)
        print_reply(options, answer, output);
    else
        result = cli_error(&error);
    luna_answer_destroy(&answer);
    luna_client_destroy(&client);
    return result;
}

enum cli_exit command_encode(const struct cli_options *options)
{
    if (options->words_count != 1) return cli_usage(options, "one IMAGE is wanted");
    const char *output = options->output != NULL ? options->output : "latent.safetensors";
    if (options->json && strcmp(output, "-") == 0)
        return cli_usage(options, "--json and -o - both want stdout");
    struct input input = {.copy = -1};
    struct error error;
    enum cli_exit result = EXIT_ANSWERED_ERROR;
    if (read_image(&input, options->words[0], &error) != STATUS_OK) {
        result = cli_error(&error);
    } else {
        luna_EncodeImage body = {.tiling = options->tiling, .output = (luna_Dtype)options->dtype};
        body.has_tile = options->has_tile;
        body.tile = options->tile;
        body.has_overlap = options->has_overlap;
        body.overlap = options->overlap;
        body.has_passes = options->passes != 0;
        body.passes = options->passes;
        struct luna_request request = {.operation = luna_Operation_ENCODE_IMAGE, .body = &body};
        request.inputs = &input.tensor;
        request.inputs_count = 1;
        // A latent of 16 channels in float32 is 64 bytes for 64 pixels: never more than one byte a
        // pixel element.
        const struct luna_room room = {.name = "latent", .bytes = input.tensor.bytes};
        request.rooms = &room;
        request.rooms_count = room.bytes >= LUNA_SHARED_BYTES_MIN ? 1 : 0;
        result = run_image(options, &request, output, false);
    }
    input_free(&input);
    return result;
}

enum cli_exit command_decode(const struct cli_options *options)
{
    if (options->words_count != 1) return cli_usage(options, "one LATENT is wanted");
    const char *output = options->output != NULL ? options->output : "image.png";
    if (options->json && strcmp(output, "-") == 0)
        return cli_usage(options, "--json and -o - both want stdout");
    bool as_picture = cli_has_suffix(output, ".png") || cli_has_suffix(output, ".jpg") ||
                      cli_has_suffix(output, ".jpeg");
    struct input input = {.copy = -1};
    struct error error;
    enum cli_exit result = EXIT_ANSWERED_ERROR;
    if (read_latent(&input, options->words[0], &error) != STATUS_OK) {
        result = cli_error(&error);
    } else {
        enum dtype dtype = as_picture                     ? DTYPE_U8
                           : options->dtype != DTYPE_NONE ? options->dtype
                                                          : DTYPE_F32;
        luna_DecodeLatent body = {.tiling = options->tiling, .output = (luna_Dtype)dtype};
        body.has_tile = options->has_tile;
        body.tile = options->tile;
        body.has_overlap = options->has_overlap;
        body.overlap = options->overlap;
        body.has_passes = options->passes != 0;
        body.passes = options->passes;
        struct luna_request request = {.operation = luna_Operation_DECODE_LATENT, .body = &body};
        request.inputs = &input.tensor;
        request.inputs_count = 1;
        const struct luna_room room = {.name = "image",
                                       .bytes = decoded_bytes(&input.tensor, dtype)};
        request.rooms = &room;
        request.rooms_count = room.bytes >= LUNA_SHARED_BYTES_MIN ? 1 : 0;
        result = run_image(options, &request, output, as_picture);
    }
    input_free(&input);
    return result;
}
