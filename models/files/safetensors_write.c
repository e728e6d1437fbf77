// safetensors_write.c - the writer: the header is built in memory, the tensors go out as they are.
//
// Tensors lie in the order given; the header is padded with spaces so that the data begins at a
// multiple of 8.

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "models/files/table.h"

static enum status write_all(int descriptor, const void *data, uint64_t bytes, struct error *error)
{
    const uint8_t *at = data;
    while (bytes > 0) {
        ssize_t count = write(descriptor, at, bytes);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return error_set(error, STATUS_INTERNAL, "write: %s", strerror(errno));
        at += count;
        bytes -= (uint64_t)count;
    }
    return STATUS_OK;
}

static enum status tensor_bytes(const struct tensor_write *tensor, uint64_t *out,
                                struct error *error)
{
    uint64_t bytes = 0;
    if (tensor->rank > TENSOR_RANK_MAX || dtype_bytes(tensor->dtype) == 0 ||
        !checked_product(tensor->dims, tensor->rank, &bytes) ||
        !checked_multiply(bytes, dtype_bytes(tensor->dtype), &bytes)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%.200s\" cannot be written: rank %u, dtype %s", tensor->name,
                         tensor->rank, dtype_name(tensor->dtype));
    }
    *out = bytes;
    return STATUS_OK;
}

// Adds one tensor's entry to the header and moves *offset behind it.
static enum status add_entry(json_t *header, const struct tensor_write *tensor, uint64_t *offset,
                             struct error *error)
{
    uint64_t bytes = 0;
    uint64_t end = 0;
    enum status status = tensor_bytes(tensor, &bytes, error);
    if (status != STATUS_OK) return status;
    if (strcmp(tensor->name, "__metadata__") == 0 ||
        json_object_get(header, tensor->name) != NULL) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "tensor \"%.200s\" comes twice",
                         tensor->name);
    }
    if (!checked_add(*offset, bytes, &end) || end > INT64_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "tensor \"%.200s\" ends beyond 2^63",
                         tensor->name);
    }
    json_t *shape = json_array();
    for (uint32_t i = 0; i < tensor->rank; i++) {
        json_array_append_new(shape, json_integer((json_int_t)tensor->dims[i]));
    }
    json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(tensor->dtype), "shape",
                              shape, "data_offsets", (json_int_t)*offset, (json_int_t)end);
    if (json_object_set_new(header, tensor->name, entry) != 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%.200s\": its name is not valid UTF-8", tensor->name);
    }
    *offset = end;
    return STATUS_OK;
}

static enum status add_metadata(json_t *header, const char *const *metadata, struct error *error)
{
    if (metadata == NULL || metadata[0] == NULL) return STATUS_OK;
    json_t *object = json_object();
    json_object_set_new(header, "__metadata__", object);
    for (size_t i = 0; metadata[i] != NULL; i += 2) {
        assert(metadata[i + 1] != NULL);
        if (json_object_set_new(object, metadata[i], json_string(metadata[i + 1])) != 0) {
            return error_set(error, STATUS_INVALID_ARGUMENT,
                             "metadata \"%.100s\" is not valid UTF-8", metadata[i]);
        }
    }
    return STATUS_OK;
}

// Writes the length and the header, padded to a multiple of 8.
static enum status write_header(int descriptor, const json_t *header, struct error *error)
{
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    uint8_t length[8];
    char *padded = NULL;
    char *text = json_dumps(header, JSON_COMPACT);
    if (text == NULL) goto done;
    size_t bytes = strlen(text);
    size_t padded_bytes = round_up(bytes, 8);
    padded = malloc(padded_bytes);
    if (padded == NULL) goto done;
    memset(padded, ' ', padded_bytes);
    memcpy(padded, text, bytes);
    store_u64(length, padded_bytes);
    status = write_all(descriptor, length, sizeof length, error);
    if (status == STATUS_OK) status = write_all(descriptor, padded, padded_bytes, error);

done:
    free(padded);
    free(text);
    if (status == STATUS_RESOURCE_EXHAUSTED) error_set(error, status, "no memory for a header");
    return status;
}

enum status safetensors_write(int descriptor, const struct tensor_write *tensors, uint32_t count,
                              const char *const *metadata, struct error *error)
{
    assert(descriptor >= 0);
    assert(tensors != NULL || count == 0);
    uint64_t offset = 0;
    json_t *header = json_object();
    enum status status = add_metadata(header, metadata, error);
    for (uint32_t i = 0; i < count && status == STATUS_OK; i++) {
        status = add_entry(header, &tensors[i], &offset, error);
    }
    if (status == STATUS_OK) status = write_header(descriptor, header, error);
    for (uint32_t i = 0; i < count && status == STATUS_OK; i++) {
        uint64_t bytes = 0;
        status = tensor_bytes(&tensors[i], &bytes, error);
        if (status == STATUS_OK) status = write_all(descriptor, tensors[i].data, bytes, error);
    }
    json_decref(header);
    return status;
}
