// inputs.c - the tensors that each operation takes, as messages/luna.proto lists them.
//
// Every operation has a function that says whether it knows an input by its name and whether that
// input has the right rank and type. What must be there is asked for by name afterwards.

#include "messages/inputs.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"

#define TOKENS_PER_CHUNK 77u
#define NEGATIVE "negative."
#define ONE_SHOT "lora."  // what the tensors of adapters begin with

static const char *const text_names[] = {"prompt", "prompt_2", "negative", "negative_2"};
static const char *const token_names[] = {"l", "g", "h"};  // encoders

static enum status refuse(const luna_Tensor *tensor, const char *wanted, struct error *error)
{
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "tensor \"%s\" is %s of rank %u; it has to be %s", tensor->name,
                     dtype_name((enum dtype)tensor->dtype), (unsigned)tensor->dims_count, wanted);
}

static enum status unknown(const luna_Header *header, const luna_Tensor *tensor,
                           struct error *error)
{
    return error_set(error, STATUS_INVALID_ARGUMENT, "%s takes no tensor \"%s\"",
                     codec_operation_name(header->operation), tensor->name);
}

static enum status need(const luna_Header *header, const char *name, struct error *error)
{
    if (codec_find_tensor(header, name, NULL) != NULL) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT, "%s needs a tensor \"%s\"",
                     codec_operation_name(header->operation), name);
}

static enum status check_image(const luna_Header *header, const luna_Tensor *tensor,
                               struct error *error)
{
    if (strcmp(tensor->name, "image") != 0) return unknown(header, tensor, error);
    bool type = dtype_is_real((enum dtype)tensor->dtype) || tensor->dtype == luna_Dtype_U8;
    bool shape = tensor->dims_count == 4 && (tensor->dims[3] == 3 || tensor->dims[3] == 4);
    if (type && shape) return STATUS_OK;
    return refuse(tensor, "[N,H,W,C] with C 3 or 4 in U8, F32, F16 or BF16", error);
}

static enum status check_latent(const luna_Header *header, const luna_Tensor *tensor,
                                struct error *error)
{
    if (strcmp(tensor->name, "latent") != 0) return unknown(header, tensor, error);
    bool shape = tensor->dims_count == 3 || tensor->dims_count == 4;
    if (dtype_is_real((enum dtype)tensor->dtype) && shape) return STATUS_OK;
    return refuse(tensor, "[N,C,h,w] or [C,h,w] in F32, F16 or BF16", error);
}

static enum status check_text(const luna_Header *header, const luna_Tensor *tensor,
                              struct error *error)
{
    // TOKENIZE has no negative texts: the first two names are its own.
    size_t names = header->operation == luna_Operation_TOKENIZE ? 2 : 4;
    for (size_t i = 0; i < names; i++) {
        if (strcmp(tensor->name, text_names[i]) != 0) continue;
        if (tensor->dtype == luna_Dtype_U8 && tensor->dims_count == 1) return STATUS_OK;
        return refuse(tensor, "UTF-8 in U8 of rank 1", error);
    }
    return unknown(header, tensor, error);
}

// Writes the name of the tensor that has to come with this one ("l.ids" and "l.weights") to twin
// and returns its element type; DTYPE_NONE for a name that is none of ours.
static luna_Dtype token_name(const char *name, char twin[32])
{
    const char *rest = name;
    if (strncmp(rest, NEGATIVE, strlen(NEGATIVE)) == 0) rest += strlen(NEGATIVE);
    for (size_t i = 0; i < sizeof token_names / sizeof token_names[0]; i++) {
        size_t length = strlen(token_names[i]);
        if (strncmp(rest, token_names[i], length) != 0) continue;
        bool ids = strcmp(rest + length, ".ids") == 0;
        if (!ids && strcmp(rest + length, ".weights") != 0) continue;
        size_t stem = (size_t)(rest - name) + length;
        memcpy(twin, name, stem);
        snprintf(twin + stem, 32 - stem, "%s", ids ? ".weights" : ".ids");
        return ids ? luna_Dtype_I32 : luna_Dtype_F64;
    }
    return luna_Dtype_DTYPE_NONE;
}

static enum status check_tokens(const luna_Header *header, const luna_Tensor *tensor,
                                struct error *error)
{
    char twin[32] = "";
    luna_Dtype dtype = token_name(tensor->name, twin);
    if (dtype == luna_Dtype_DTYPE_NONE) return unknown(header, tensor, error);
    if (tensor->dtype != dtype || tensor->dims_count != 2 || tensor->dims[1] != TOKENS_PER_CHUNK) {
        return refuse(tensor, "[chunks,77], I32 for ids and F64 for weights", error);
    }
    const luna_Tensor *other = codec_find_tensor(header, twin, NULL);
    if (other == NULL) return need(header, twin, error);
    if (other->dims_count == 2 && other->dims[0] == tensor->dims[0]) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "tensors \"%s\" and \"%s\" have different shapes", tensor->name, twin);
}

static bool is_one_shot(const luna_Header *header, const luna_Tensor *tensor)
{
    bool takes = header->operation == luna_Operation_ENCODE_TEXT ||
                 header->operation == luna_Operation_ENCODE_TOKENS;
    return takes && strncmp(tensor->name, ONE_SHOT, strlen(ONE_SHOT)) == 0;
}

// An adapter's file.
static enum status check_lora_file(const luna_Tensor *tensor, struct error *error)
{
    if (tensor->dtype != luna_Dtype_U8 || tensor->dims_count != 1) {
        return refuse(tensor, "a file's bytes in U8 of rank 1", error);
    }
    if (tensor->bytes > 0) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT, "tensor \"%s\" is an empty file",
                     tensor->name);
}

static enum status check_input(const luna_Header *header, const luna_Tensor *tensor,
                               struct error *error)
{
    if (is_one_shot(header, tensor)) return check_lora_file(tensor, error);
    switch (header->operation) {
    case luna_Operation_LORA_PUT:
        if (strcmp(tensor->name, "file") != 0) return unknown(header, tensor, error);
        return check_lora_file(tensor, error);
    case luna_Operation_ENCODE_IMAGE:
        return check_image(header, tensor, error);
    case luna_Operation_DECODE_LATENT:
        return check_latent(header, tensor, error);
    case luna_Operation_ENCODE_TEXT:
    case luna_Operation_TOKENIZE:
        return check_text(header, tensor, error);
    case luna_Operation_ENCODE_TOKENS:
        return check_tokens(header, tensor, error);
    default:
        return unknown(header, tensor, error);
    }
}

static enum status check_needed(const luna_Header *header, struct error *error)
{
    bool negative = codec_find_tensor(header, "negative_2", NULL) != NULL;
    switch (header->operation) {
    case luna_Operation_ENCODE_IMAGE:
        return need(header, "image", error);
    case luna_Operation_DECODE_LATENT:
        return need(header, "latent", error);
    case luna_Operation_ENCODE_TEXT:
    case luna_Operation_TOKENIZE:
        if (negative && need(header, "negative", error) != STATUS_OK) break;
        return need(header, "prompt", error);
    case luna_Operation_ENCODE_TOKENS:
        for (size_t i = 0; i < sizeof token_names / sizeof token_names[0]; i++) {
            char name[32] = "";
            snprintf(name, sizeof name, "%s.ids", token_names[i]);
            if (codec_find_tensor(header, name, NULL) != NULL) return STATUS_OK;
        }
        return need(header, "l.ids", error);
    default:
        return STATUS_OK;
    }
    return STATUS_INVALID_ARGUMENT;
}

enum status codec_check_inputs(const luna_Header *header, struct error *error)
{
    assert(header != NULL);
    assert(header->kind == luna_Kind_REQUEST);
    for (uint32_t i = 0; i < header->tensors_count; i++) {
        if (header->tensors[i].room) continue;
        enum status status = check_input(header, &header->tensors[i], error);
        if (status != STATUS_OK) return status;
    }
    return check_needed(header, error);
}

static enum status check_text_limit(const luna_Tensor *tensor, uint64_t bytes_max,
                                    struct error *error)
{
    if (tensor->bytes <= bytes_max) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "text \"%s\" has %" PRIu64 " bytes, at most %" PRIu64 " are taken",
                     tensor->name, tensor->bytes, bytes_max);
}

static enum status check_image_limit(const luna_Tensor *tensor, uint64_t pixels_max,
                                     struct error *error)
{
    // N * H * W; the header's own check has shown that the product fits.
    uint64_t pixels = 0;
    if (checked_product(tensor->dims, 3, &pixels) && pixels <= pixels_max) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "image has %" PRIu64 " pixels, at most %" PRIu64 " are taken", pixels,
                     pixels_max);
}

enum status codec_check_limits(const luna_Header *header, const struct codec_limits *limits,
                               struct error *error)
{
    assert(header != NULL);
    assert(limits != NULL);
    bool text = header->operation == luna_Operation_ENCODE_TEXT ||
                header->operation == luna_Operation_TOKENIZE;
    bool image = header->operation == luna_Operation_ENCODE_IMAGE;
    for (uint32_t i = 0; i < header->tensors_count; i++) {
        const luna_Tensor *tensor = &header->tensors[i];
        enum status status = STATUS_OK;
        if (tensor->room) continue;
        if (is_one_shot(header, tensor)) continue;
        if (text) status = check_text_limit(tensor, limits->text_bytes_max, error);
        if (image) status = check_image_limit(tensor, limits->image_pixels_max, error);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}
