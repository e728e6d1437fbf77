// requests.h - headers and frames that the tests of messages/ start from.

#ifndef TESTS_UNIT_MESSAGES_REQUESTS_H
#define TESTS_UNIT_MESSAGES_REQUESTS_H

#include <string.h>

#include "messages/codec.h"

static inline struct bytes bytes_of(const void *data, uint64_t size)
{
    return (struct bytes){data, size};
}

// A request with id 0, 1, ... 15 and no tensors.
static inline luna_Header request_of(luna_Operation operation)
{
    luna_Header header = luna_Header_init_zero;
    header.major = CODEC_MAJOR;
    header.kind = luna_Kind_REQUEST;
    header.operation = operation;
    header.id.size = CODEC_ID_BYTES;
    for (uint8_t i = 0; i < CODEC_ID_BYTES; i++) header.id.bytes[i] = i;
    return header;
}

// Appends a tensor whose bytes fit its shape; up to four dimensions, the first 0 ends them.
static inline luna_Tensor *add_tensor(luna_Header *header, const char *name, luna_Dtype dtype,
                                      const uint64_t dims[4])
{
    luna_Tensor *tensor = &header->tensors[header->tensors_count++];
    strcpy(tensor->name, name);
    tensor->dtype = dtype;
    tensor->bytes = dtype_bytes((enum dtype)dtype);
    for (uint32_t i = 0; i < 4 && dims[i] > 0; i++) {
        tensor->dims[tensor->dims_count++] = dims[i];
        tensor->bytes *= dims[i];
    }
    return tensor;
}

// DECODE_LATENT of f32 [1,4,8,8].
static inline luna_Header latent_request(void)
{
    luna_Header header = request_of(luna_Operation_DECODE_LATENT);
    add_tensor(&header, "latent", luna_Dtype_F32, (uint64_t[]){1, 4, 8, 8});
    return header;
}

#endif  // TESTS_UNIT_MESSAGES_REQUESTS_H
