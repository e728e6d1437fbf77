// tensors_hash.c - the content hash: one BLAKE2b-256 over the canonical form of all tensors.
//
// Bytes of files are read with pread(2) into one buffer: a file that is cut short meanwhile is an
// error and not a SIGBUS, and hashing 6 GB leaves no resident mapping behind. A transposed tensor
// is turned first, so that the same weights have the same hash in OpenCLIP's and in Hugging Face's
// files.

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "models/files/table.h"

#define CHUNK_BYTES (1u << 20)

struct hashing {
    crypto_generichash_state state;  // what was hashed so far
    uint8_t *chunk;                  // CHUNK_BYTES
    bool (*should_stop)(void *);     // or NULL
    void *context;                   // for should_stop
};

static void hash_bytes(struct hashing *self, const void *data, uint64_t bytes)
{
    if (bytes > 0) crypto_generichash_update(&self->state, data, bytes);
}

static void hash_u32(struct hashing *self, uint32_t value)
{
    uint8_t bytes[4];
    store_u32(bytes, value);
    hash_bytes(self, bytes, sizeof bytes);
}

static void hash_u64(struct hashing *self, uint64_t value)
{
    uint8_t bytes[8];
    store_u64(bytes, value);
    hash_bytes(self, bytes, sizeof bytes);
}

// The file whose mapping holds data; NULL when it lies in memory of the caller.
static const struct file_map *find_map(const struct tensor_table *table, const uint8_t *data)
{
    const struct file_map *map = &table->map;
    if (map->data != NULL && data >= map->data && data < map->data + map->bytes) return map;
    for (uint32_t i = 0; i < table->sources_count; i++) {
        map = find_map(table->sources[i], data);
        if (map != NULL) return map;
    }
    return NULL;
}

static enum status copy(const struct file_map *map, const uint8_t *data, void *out, uint64_t bytes)
{
    if (map != NULL) return file_map_read(map, (uint64_t)(data - map->data), out, bytes, NULL);
    if (bytes > 0) memcpy(out, data, bytes);
    return STATUS_OK;
}

static enum status hash_data(struct hashing *self, const struct file_map *map,
                             const struct tensor *tensor)
{
    const uint8_t *data = tensor->data;
    for (uint64_t done = 0; done < tensor->bytes;) {
        uint64_t bytes = tensor->bytes - done < CHUNK_BYTES ? tensor->bytes - done : CHUNK_BYTES;
        if (self->should_stop != NULL && self->should_stop(self->context)) return STATUS_CANCELLED;
        enum status status = copy(map, data + done, self->chunk, bytes);
        if (status != STATUS_OK) return status;
        hash_bytes(self, self->chunk, bytes);
        done += bytes;
    }
    return STATUS_OK;
}

// memory: [dims[1], dims[0]] -> hashed as [dims[0], dims[1]].
static enum status hash_transposed(struct hashing *self, const struct file_map *map,
                                   const struct tensor *tensor)
{
    assert(tensor->rank == 2);
    uint64_t rows = tensor->dims[0];
    uint64_t columns = tensor->dims[1];
    uint64_t element = dtype_bytes(tensor->dtype);
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    uint8_t *whole = malloc(tensor->bytes + 1);
    uint8_t *row = malloc(columns * element + 1);
    if (whole == NULL || row == NULL) goto done;
    status = copy(map, tensor->data, whole, tensor->bytes);
    if (status != STATUS_OK) goto done;
    for (uint64_t i = 0; i < rows; i++) {
        for (uint64_t j = 0; j < columns; j++) {
            memcpy(row + j * element, whole + (j * rows + i) * element, element);
        }
        hash_bytes(self, row, columns * element);
    }

done:
    free(row);
    free(whole);
    return status;
}

static enum status hash_tensor(struct hashing *self, const struct tensor_table *table,
                               const struct tensor *tensor)
{
    const char *dtype = dtype_name(tensor->dtype);
    hash_u32(self, (uint32_t)strlen(tensor->name));
    hash_bytes(self, tensor->name, strlen(tensor->name));
    hash_u32(self, (uint32_t)strlen(dtype));
    hash_bytes(self, dtype, strlen(dtype));
    hash_u32(self, tensor->rank);
    for (uint32_t i = 0; i < tensor->rank; i++) hash_u64(self, tensor->dims[i]);
    hash_u64(self, tensor->bytes);
    const struct file_map *map = find_map(table, tensor->data);
    if (tensor->transposed) return hash_transposed(self, map, tensor);
    return hash_data(self, map, tensor);
}

enum status tensor_table_hash(const struct tensor_table *self, bool (*should_stop)(void *),
                              void *context, struct hash *out)
{
    assert(self != NULL);
    assert(out != NULL);
    struct hashing hashing = {.should_stop = should_stop, .context = context};
    enum status status = STATUS_OK;
    if (sodium_init() < 0) return STATUS_INTERNAL;  // picks the code for this processor; repeatable
    hashing.chunk = malloc(CHUNK_BYTES);
    if (hashing.chunk == NULL) return STATUS_RESOURCE_EXHAUSTED;
    crypto_generichash_init(&hashing.state, NULL, 0, sizeof out->value);
    for (uint32_t i = 0; i < self->count && status == STATUS_OK; i++) {
        status = hash_tensor(&hashing, self, &self->tensors[i]);
    }
    free(hashing.chunk);
    if (status != STATUS_OK) return status;
    crypto_generichash_final(&hashing.state, out->value, sizeof out->value);
    return STATUS_OK;
}
