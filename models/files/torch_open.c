// torch_open.c - the parent's side of a torch file: believes nothing of the listing that the child
// sent. See torch_zip.h for its form.

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "models/files/table.h"
#include "models/files/torch_zip.h"

// Tied weights may share bytes, but a small file must not claim terabytes for somebody to hash.
#define SHARING_MAX 4u

struct listing_reader {
    const uint8_t *at;   // what was not read yet
    uint64_t left;       // bytes of it
    uint64_t file_left;  // bytes that tensors may still claim
};

static bool take(struct listing_reader *self, uint64_t bytes, const uint8_t **out)
{
    if (bytes > self->left) return false;
    *out = self->at;
    self->at += bytes;
    self->left -= bytes;
    return true;
}

static bool take_u32(struct listing_reader *self, uint32_t *out)
{
    const uint8_t *at = NULL;
    if (!take(self, 4, &at)) return false;
    *out = load_u32(at);
    return true;
}

static bool take_u64(struct listing_reader *self, uint64_t *out)
{
    const uint8_t *at = NULL;
    if (!take(self, 8, &at)) return false;
    *out = load_u64(at);
    return true;
}

// Reads one entry; name gets its NUL. False when the listing is malformed.
static bool take_entry(struct listing_reader *self, char name[TABLE_NAME_BYTES_MAX + 1],
                       struct tensor *tensor, uint64_t *offset)
{
    uint32_t length = 0;
    uint32_t dtype = 0;
    const uint8_t *text = NULL;
    if (!take_u32(self, &length) || length > TABLE_NAME_BYTES_MAX) return false;
    if (!take(self, length, &text) || memchr(text, 0, length) != NULL) return false;
    memcpy(name, text, length);
    name[length] = '\0';
    if (!take_u32(self, &dtype) || dtype == DTYPE_NONE || dtype >= DTYPE_COUNT) return false;
    if (!take_u32(self, &tensor->rank) || tensor->rank > TENSOR_RANK_MAX) return false;
    for (uint32_t i = 0; i < tensor->rank; i++) {
        if (!take_u64(self, &tensor->dims[i])) return false;
    }
    tensor->name = name;
    tensor->dtype = (enum dtype)dtype;
    return take_u64(self, offset) && take_u64(self, &tensor->bytes);
}

static enum status read_listing(struct tensor_table *table, uint32_t count,
                                struct listing_reader *in, const struct file_map *map,
                                struct error *error)
{
    for (uint32_t i = 0; i < count; i++) {
        char name[TABLE_NAME_BYTES_MAX + 1];
        struct tensor tensor = {.name = NULL};
        uint64_t offset = 0;
        uint64_t end = 0;
        if (!take_entry(in, name, &tensor, &offset)) {
            return error_set(error, STATUS_INVALID_ARGUMENT, "the listing's tensor %u is malformed",
                             i);
        }
        enum status status = table_check_size(name, &tensor, error);
        if (status != STATUS_OK) return status;
        if (!checked_add(offset, tensor.bytes, &end) || end > map->bytes ||
            tensor.bytes > in->file_left) {
            return error_set(error, STATUS_INVALID_ARGUMENT,
                             "tensor \"%.200s\" claims %llu bytes at %llu of a file of %llu", name,
                             (unsigned long long)tensor.bytes, (unsigned long long)offset,
                             (unsigned long long)map->bytes);
        }
        in->file_left -= tensor.bytes;
        tensor.data = map->data + offset;
        status = table_add(table, &tensor, error);
        if (status != STATUS_OK) return status;
    }
    return table_finish(table, error);
}

static enum status parse_listing(struct tensor_table **out, struct bytes listing,
                                 struct file_map *map, struct error *error)
{
    struct listing_reader in = {.at = listing.data, .left = listing.size};
    uint32_t magic = 0;
    uint32_t count = 0;
    struct tensor_table *table = NULL;
    if (!checked_multiply(map->bytes, SHARING_MAX, &in.file_left)) in.file_left = UINT64_MAX;
    if (!take_u32(&in, &magic) || !take_u32(&in, &count) || magic != TORCH_LISTING_MAGIC ||
        count > TABLE_TENSORS_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "the listing is malformed");
    }
    enum status status = table_create(&table, count, listing.size, error);
    if (status == STATUS_OK) status = read_listing(table, count, &in, map, error);
    if (status == STATUS_OK && in.left != 0) {
        status = error_set(error, STATUS_INVALID_ARGUMENT, "the listing has %llu bytes too many",
                           (unsigned long long)in.left);
    }
    if (status == STATUS_OK) {
        table->map = *map;
        *map = FILE_MAP_NONE;
        *out = table;
        table = NULL;
    }
    tensor_table_release(&table);
    return status;
}

enum status torch_open(struct tensor_table **out, struct file_map *map,
                       const struct torch_reader *reader, struct error *error)
{
    assert(reader != NULL);
    assert(reader->list != NULL);
    struct bytes listing = {NULL, 0};
    enum status status = reader->list(reader->context, map->descriptor, &listing, error);
    if (status != STATUS_OK) return status;
    status = parse_listing(out, listing, map, error);
    free((void *)(uintptr_t)listing.data);
    return status;
}
