// text.c - `luna text` and `luna tokenize`.

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "clients/cli/adapter.h"

#define ROOM_BYTES_MAX (UINT64_C(64) << 20)

// What `luna text` needs from the first word to the file.
struct encoding {
    luna_EncodeText body;         // the request's
    struct luna_tensor texts[4];  // its inputs
    struct luna_room rooms[2];    // for its answer
    struct luna_request request;  // of the above
    struct stack stack;           // --lora
};

static void print_notes(const luna_TextReply *reply, const struct stack *stack)
{
    for (uint32_t i = 0; i < reply->notes_count; i++) {
        char note[sizeof reply->notes[0] + sizeof stack->entries[0].said];
        text_set(note, sizeof note, reply->notes[i]);
        stack_retell(stack, note, sizeof note);
        fprintf(stderr, "luna: note: %s\n", note);
    }
    if (reply->not_finite_output) fprintf(stderr, "luna: note: the answer holds NaN or infinity\n");
}

// Room for the conditioning of a text: n bytes make at most n tokens, and a full chunk of 75 holds
// at least 68 of them; 2048 is the width of SDXL's two encoders side by side.
static struct luna_room room_for(const char *name, const char *text, const char *text_2,
                                 enum dtype dtype)
{
    size_t length = strlen(text);
    if (text_2 != NULL && strlen(text_2) > length) length = strlen(text_2);
    uint64_t bytes = (uint64_t)(1 + length / 68) * 77 * 2048 * dtype_bytes(dtype);
    return (struct luna_room){.name = name,
                              .bytes = bytes < ROOM_BYTES_MAX ? bytes : ROOM_BYTES_MAX};
}

static uint32_t add_texts(const struct cli_options *options, struct luna_tensor texts[4])
{
    uint32_t count = 0;
    texts[count++] = luna_text("prompt", options->words[0]);
    if (options->prompt_2 != NULL) texts[count++] = luna_text("prompt_2", options->prompt_2);
    if (options->negative != NULL) texts[count++] = luna_text("negative", options->negative);
    return count;
}

// The sizes that a UNet's conditioning wants travel in the file's metadata (the encoders do not use
// them), and so does what the adapters did.
static enum status write_encoding(const struct cli_options *options, const struct stack *stack,
                                  const struct luna_answer *answer, const char *path,
                                  struct error *error)
{
    struct tensor_write tensors[CODEC_TENSORS_MAX];
    for (uint32_t i = 0; i < answer->tensors_count; i++) {
        const struct luna_tensor *tensor = &answer->tensors[i];
        tensors[i] = (struct tensor_write){
            .name = tensor->name, .dtype = tensor->dtype, .rank = tensor->rank};
        memcpy(tensors[i].dims, tensor->dims, tensor->rank * sizeof tensor->dims[0]);
        tensors[i].data = tensor->data;
    }
    char size[32], crop[32], target[32];
    char *loras = NULL;
    const char *metadata[9];
    uint32_t count = 0;
    snprintf(size, sizeof size, "%ux%u", options->size[0], options->size[1]);
    snprintf(crop, sizeof crop, "%u,%u", options->crop[0], options->crop[1]);
    snprintf(target, sizeof target, "%ux%u", options->target[0], options->target[1]);
    if (options->has_size) {
        metadata[count++] = "size";
        metadata[count++] = size;
    }
    if (options->has_crop) {
        metadata[count++] = "crop";
        metadata[count++] = crop;
    }
    if (options->has_target) {
        metadata[count++] = "target";
        metadata[count++] = target;
    }
    if (stack->count > 0) {
        json_t *uses = stack_json(stack, answer->body);
        loras = json_dumps(uses, JSON_COMPACT | JSON_REAL_PRECISION(9));
        json_decref(uses);
    }
    if (loras != NULL) {
        metadata[count++] = "loras";
        metadata[count++] = loras;
    }
    metadata[count] = NULL;
    enum status status = cli_write_tensors(path, tensors, answer->tensors_count, metadata, error);
    free(loras);
    return status;
}

static void print_encoding(const struct stack *stack, const struct luna_answer *answer,
                           const char *path)
{
    const luna_TextReply *reply = answer->body;
    json_t *shapes = json_object();
    json_t *notes = json_array();
    for (uint32_t i = 0; i < answer->tensors_count; i++) {
        json_t *shape = json_array();
        for (uint32_t d = 0; d < answer->tensors[i].rank; d++) {
            json_array_append_new(shape, json_integer((json_int_t)answer->tensors[i].dims[d]));
        }
        json_object_set_new(shapes, answer->tensors[i].name, shape);
    }
    for (uint32_t i = 0; i < reply->notes_count; i++)
        json_array_append_new(notes, json_string(reply->notes[i]));
    cli_print_json(json_pack("{s:s, s:o, s:o, s:o, s:b, s:b, s:i, s:i, s:i, s:s}", "output", path,
                             "shapes", shapes, "notes", notes, "loras", stack_json(stack, reply),
                             "loras_merged", (int)reply->loras_merged, "cached", (int)reply->cached,
                             "rows", (int)reply->rows, "queue_ms", (int)reply->queue_ms,
                             "execute_ms", (int)reply->execute_ms, "device", reply->device));
}

static void fill_encoding(const struct cli_options *options, struct encoding *out)
{
    enum dtype dtype = options->dtype != DTYPE_NONE ? options->dtype : DTYPE_F32;
    out->body.clip_skip = options->clip_skip;
    out->body.output = (luna_Dtype)options->dtype;
    out->rooms[0] = room_for("cond", options->words[0], options->prompt_2, dtype);
    out->request = (struct luna_request){.operation = luna_Operation_ENCODE_TEXT,
                                         .body = &out->body,
                                         .inputs = out->texts,
                                         .inputs_count = add_texts(options, out->texts),
                                         .rooms = out->rooms,
                                         .rooms_count = 1};
    if (options->negative != NULL) {
        out->rooms[out->request.rooms_count++] =
            room_for("negative_cond", options->negative, NULL, dtype);
    }
    stack_fill(&out->stack, options, &out->body);
}

// What is missing is said by the first word: a model, or a LoRA.
static bool lacks_lora(enum status status, const struct error *error)
{
    static const char lora[] = "LoRA ";
    return status == STATUS_NOT_FOUND && strncmp(error->message, lora, sizeof lora - 1) == 0;
}

// Asks; when an adapter is not found, puts those of this machine and asks once more.
static enum status encode(const struct cli_options *options, struct encoding *encoding,
                          struct luna_client *client, struct luna_answer **answer,
                          struct error *error)
{
    enum status put = STATUS_OK;
    fill_encoding(options, encoding);
    enum status status = cli_call(options, client, &encoding->request, answer, error);
    if (!lacks_lora(status, error)) return status;
    struct error missing = *error;
    if (!stack_put(&encoding->stack, options, client, &put, error)) {
        if (put == STATUS_OK) stack_explain(&encoding->stack, &missing);
        if (put == STATUS_OK) *error = missing;
        return put == STATUS_OK ? status : put;
    }
    fill_encoding(options, encoding);
    return cli_call(options, client, &encoding->request, answer, error);
}

static enum cli_exit run_text(const struct cli_options *options, struct encoding *encoding,
                              const char *output)
{
    struct error error;
    struct luna_client *client = NULL;
    struct luna_answer *answer = NULL;
    if (stack_read(&encoding->stack, options, &error) != STATUS_OK) return cli_error(&error);
    enum cli_exit result = cli_open(options, &client);
    if (result != EXIT_DONE) return result;
    if (encode(options, encoding, client, &answer, &error) != STATUS_OK) {
        stack_retell(&encoding->stack, error.message, sizeof error.message);
        result = cli_error(&error);
        goto done;
    }
    assert(answer != NULL);
    print_notes(answer->body, &encoding->stack);
    if (write_encoding(options, &encoding->stack, answer, output, &error) != STATUS_OK)
        result = cli_error(&error);
    else if (options->json)
        print_encoding(&encoding->stack, answer, output);

done:
    luna_answer_destroy(&answer);
    luna_client_destroy(&client);
    return result;
}

enum cli_exit command_text(const struct cli_options *options)
{
    if (options->words_count != 1) return cli_usage(options, "one PROMPT is wanted");
    const char *output = options->output != NULL ? options->output : "cond.safetensors";
    if (options->json && strcmp(output, "-") == 0)
        return cli_usage(options, "--json and -o - both want stdout");
    struct error error;
    struct encoding *encoding = calloc(1, sizeof *encoding);
    if (encoding == NULL) {
        error_set(&error, STATUS_RESOURCE_EXHAUSTED, "out of memory");
        return cli_error(&error);
    }
    enum cli_exit result = run_text(options, encoding, output);
    stack_end(&encoding->stack);
    free(encoding);
    return result;
}

// [[[id, weight], … 77], … chunks] of one encoder; NULL when the answer lacks it.
static json_t *chunks_json(const struct luna_answer *answer, char letter)
{
    char name[16];
    snprintf(name, sizeof name, "%c.ids", letter);
    const struct luna_tensor *ids = luna_answer_tensor(answer, name);
    snprintf(name, sizeof name, "%c.weights", letter);
    const struct luna_tensor *weights = luna_answer_tensor(answer, name);
    if (ids == NULL || weights == NULL || ids->rank != 2 || weights->rank != 2) return NULL;
    uint64_t count = ids->dims[0] * ids->dims[1];
    if (ids->dtype != DTYPE_I32 || weights->dtype != DTYPE_F64 || ids->bytes != 4 * count ||
        weights->bytes != 8 * count) {
        return NULL;
    }
    json_t *chunks = json_array();
    for (uint64_t chunk = 0; chunk < ids->dims[0]; chunk++) {
        json_t *tokens = json_array();
        for (uint64_t i = chunk * ids->dims[1]; i < (chunk + 1) * ids->dims[1]; i++) {
            double weight = 0;
            memcpy(&weight, (const uint8_t *)weights->data + 8 * i, sizeof weight);
            int32_t id = (int32_t)load_u32((const uint8_t *)ids->data + 4 * i);
            json_t *value = json_real(weight);
            if (value == NULL) value = json_null();  // JSON knows neither NaN nor infinity
            json_array_append_new(tokens, json_pack("[i, o]", id, value));
        }
        json_array_append_new(chunks, tokens);
    }
    return chunks;
}

enum cli_exit command_tokenize(const struct cli_options *options)
{
    if (options->words_count != 1) return cli_usage(options, "one PROMPT is wanted");
    struct luna_tensor texts[4];
    struct luna_request request = {.operation = luna_Operation_TOKENIZE, .inputs = texts};
    request.inputs_count = add_texts(options, texts);
    struct luna_client *client = NULL;
    struct luna_answer *answer = NULL;
    struct error error;
    enum cli_exit result = cli_open(options, &client);
    if (result == EXIT_DONE && cli_call(options, client, &request, &answer, &error) != STATUS_OK)
        result = cli_error(&error);
    if (result == EXIT_DONE) {
        const struct stack none = {.count = 0};
        print_notes(answer->body, &none);
        json_t *encoders = json_object();
        for (const char *letter = "lgh"; *letter != '\0'; letter++) {
            json_t *chunks = chunks_json(answer, *letter);
            const char name[2] = {*letter, '\0'};
            if (chunks != NULL) json_object_set_new(encoders, name, chunks);
        }
        json_dumpf(encoders, stdout, JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(17));
        putchar('\n');
        json_decref(encoders);
    }
    luna_answer_destroy(&answer);
    luna_client_destroy(&client);
    return result;
}
