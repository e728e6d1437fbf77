// conditioning_key.c - written twice: once to count the bytes, once to write them.
//
// Every part of variable length has its length in front, so that no two requests can make the same
// bytes of different parts.

#include "actors/conditioning_key.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

// Where the key is written; data is NULL while its bytes are counted.
struct writer {
    uint8_t *data;   // or NULL
    uint64_t bytes;  // so far
};

static void put_bytes(struct writer *writer, const void *data, uint64_t size)
{
    if (writer->data != NULL && size > 0) memcpy(writer->data + writer->bytes, data, size);
    writer->bytes += size;
}

static void put_number(struct writer *writer, uint64_t value)
{
    uint8_t bytes[8];
    store_u64(bytes, value);
    put_bytes(writer, bytes, sizeof bytes);
}

static void put_part(struct writer *writer, const void *data, uint64_t size)
{
    put_number(writer, size);
    put_bytes(writer, data, size);
}

static void put_float(struct writer *writer, float value)
{
    uint32_t bits = 0;
    memcpy(&bits, &value, sizeof bits);
    put_number(writer, bits);
}

bool conditioning_is_adapter(const luna_EncodeText *body, const luna_Tensor *tensor)
{
    assert(body != NULL);
    assert(tensor != NULL);
    for (uint32_t i = 0; i < body->loras_count; i++) {
        const char *name = body->loras[i].tensor;
        if (name[0] != '\0' && strcmp(name, tensor->name) == 0) return true;
    }
    return false;
}

static bool names_embedding(struct bytes text)
{
    static const char word[] = "embedding:";
    const uint64_t length = sizeof word - 1;
    const char *at = text.data;
    for (uint64_t i = 0; i + length <= text.size; i++) {
        if (strncasecmp(at + i, word, length) == 0) return true;
    }
    return false;
}

bool conditioning_may_keep(const luna_Header *header, const luna_EncodeText *body,
                           const struct message *frames)
{
    assert(header != NULL);
    assert(frames != NULL);
    bool is_text = header->operation == luna_Operation_ENCODE_TEXT;
    if (!is_text && header->operation != luna_Operation_ENCODE_TOKENS) return false;
    uint32_t payload = 0;
    for (uint32_t i = 0; i < header->tensors_count; i++) {
        const luna_Tensor *tensor = &header->tensors[i];
        if (tensor->room) continue;
        bool in_frame = tensor->where == luna_Where_FRAME;
        payload += in_frame;
        if (conditioning_is_adapter(body, tensor)) continue;
        if (!in_frame) return false;
        if (is_text && names_embedding(message_frame(frames, 1 + payload))) return false;
    }
    return true;
}

static void put_stack(struct writer *writer, const struct conditioning_request *request)
{
    put_number(writer, request->body->loras_count);
    for (uint32_t i = 0; i < request->body->loras_count; i++) {
        const luna_StackEntry *entry = &request->stack[i];
        const char *name = request->body->loras[i].reference;
        put_part(writer, name, strlen(name));
        put_part(writer, entry->encoder_hash.bytes, entry->encoder_hash.size);
        put_float(writer, entry->strength_l);
        put_float(writer, entry->strength_g);
        put_number(writer, entry->keys_other);
    }
}

static void put_tensors(struct writer *writer, const struct conditioning_request *request)
{
    uint32_t payload = 0;
    for (uint32_t i = 0; i < request->header->tensors_count; i++) {
        const luna_Tensor *tensor = &request->header->tensors[i];
        if (tensor->room) continue;
        payload += tensor->where == luna_Where_FRAME;
        if (conditioning_is_adapter(request->body, tensor)) continue;
        struct bytes frame = message_frame(request->frames, 1 + payload);
        put_part(writer, tensor->name, strlen(tensor->name));
        put_number(writer, (uint64_t)tensor->dtype);
        put_number(writer, tensor->dims_count);
        for (uint32_t dim = 0; dim < tensor->dims_count; dim++)
            put_number(writer, tensor->dims[dim]);
        put_part(writer, frame.data, frame.size);
    }
}

static void put_request(struct writer *writer, const struct conditioning_request *request)
{
    put_number(writer, request->model);
    put_number(writer, (uint64_t)request->header->operation);
    put_number(writer, (uint64_t)(int64_t)request->body->clip_skip);
    put_number(writer, request->body->disable_weights);
    put_number(writer, (uint64_t)request->body->output);
    put_number(writer, request->merged);
    put_stack(writer, request);
    put_tensors(writer, request);
}

enum status conditioning_key_make(const struct conditioning_request *request, void **out,
                                  uint64_t *bytes)
{
    assert(request != NULL);
    assert(out != NULL);
    assert(request->body->loras_count == 0 || request->stack != NULL);
    struct writer writer = {.data = NULL};
    put_request(&writer, request);
    const uint64_t size = writer.bytes;
    writer = (struct writer){.data = malloc(size)};
    if (writer.data == NULL) return STATUS_RESOURCE_EXHAUSTED;
    put_request(&writer, request);
    assert(writer.bytes == size);
    *out = writer.data;
    *bytes = size;
    return STATUS_OK;
}
