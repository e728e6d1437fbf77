// safetensors.c - the reader: 8 bytes of length, a JSON header, and the tensors' bytes end to end.
//
// The order of belief: the length is compared with the file; the header's structure is counted in
// one pass over its bytes (nesting, objects, commas), so that the JSON library cannot be made to
// build more than a small multiple of what an honest header needs; every entry is checked by
// itself; then all together must tile the data without holes, overlaps or a tail. Tensor bytes are
// never touched.

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "models/files/table.h"

#define LENGTH_BYTES 8u
#define HEADER_BYTES_MAX (100u * 1000u * 1000u)  // the format's own limit
#define NESTING_MAX 3u                           // header, tensor, shape
#define COMMAS_PER_OBJECT 16u                    // 3 fields, up to 8 dims, 2 offsets
#define METADATA_MAX 20000u                      // pairs; trainers write hundreds

// Counts structure outside strings. Malformed JSON passes here and fails in the JSON library.
static enum status check_structure(const char *text, uint64_t bytes, struct error *error)
{
    uint64_t nesting = 0;
    uint64_t objects = 0;
    uint64_t commas = 0;
    bool quoted = false;
    for (uint64_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (quoted && c == '\\') {
            i += 1;
        } else if (c == '"') {
            quoted = !quoted;
        } else if (quoted) {
            continue;
        } else if (c == '{' || c == '[') {
            objects += c == '{';
            nesting += 1;
            if (nesting > NESTING_MAX) {
                return error_set(error, STATUS_INVALID_ARGUMENT, "its header nests deeper than %u",
                                 NESTING_MAX);
            }
        } else if (c == '}' || c == ']') {
            nesting -= nesting > 0;
        } else if (c == ',') {
            commas += 1;
        }
    }
    if (objects > TABLE_TENSORS_MAX + 2) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "it has more than %u tensors",
                         TABLE_TENSORS_MAX);
    }
    if (commas > objects * COMMAS_PER_OBJECT + METADATA_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "its header has %llu values for %llu objects", (unsigned long long)commas,
                         (unsigned long long)objects);
    }
    return STATUS_OK;
}

// Reads a JSON array of integers that are not negative; false for anything else.
static bool read_numbers(const json_t *array, uint64_t *out, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(array, i);
        if (!json_is_integer(item) || json_integer_value(item) < 0) return false;
        out[i] = (uint64_t)json_integer_value(item);
    }
    return true;
}

// Fills everything of tensor but its name from one entry; data points into data.
static enum status read_entry(const char *name, const json_t *entry, struct bytes data,
                              struct tensor *tensor, struct error *error)
{
    const json_t *dtype = json_object_get(entry, "dtype");
    const json_t *shape = json_object_get(entry, "shape");
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (!json_is_object(entry) || json_object_size(entry) != 3 || !json_is_string(dtype) ||
        !json_is_array(shape) || !json_is_array(offsets)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%.200s\" is not an object of dtype, shape and data_offsets",
                         name);
    }
    tensor->dtype = dtype_from_name(json_string_value(dtype), json_string_length(dtype));
    if (tensor->dtype == DTYPE_NONE) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%.200s\" has the unknown dtype \"%.40s\"", name,
                         json_string_value(dtype));
    }
    if (json_array_size(shape) > TENSOR_RANK_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%.200s\" has %zu dimensions, at most %u", name,
                         json_array_size(shape), TENSOR_RANK_MAX);
    }
    uint64_t range[2] = {0, 0};
    tensor->rank = (uint32_t)json_array_size(shape);
    if (!read_numbers(shape, tensor->dims, tensor->rank) || json_array_size(offsets) != 2 ||
        !read_numbers(offsets, range, 2)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%.200s\": shape and data_offsets must be whole numbers, not "
                         "negative, and two of the latter",
                         name);
    }
    if (range[0] > range[1] || range[1] > data.size) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%.200s\" lies at %llu to %llu of %llu bytes of data", name,
                         (unsigned long long)range[0], (unsigned long long)range[1],
                         (unsigned long long)data.size);
    }
    tensor->data = (const uint8_t *)data.data + range[0];
    tensor->bytes = range[1] - range[0];
    return table_check_size(name, tensor, error);
}

static enum status check_metadata(json_t *metadata, struct error *error)
{
    const char *key = NULL;
    json_t *value = NULL;
    if (!json_is_object(metadata)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "__metadata__ is not an object");
    }
    json_object_foreach(metadata, key, value)
    {
        if (json_is_string(value)) continue;
        return error_set(error, STATUS_INVALID_ARGUMENT, "__metadata__ \"%.100s\" is not a string",
                         key);
    }
    return STATUS_OK;
}

static int compare_places(const void *a, const void *b)
{
    const struct tensor *left = a;
    const struct tensor *right = b;
    if (left->data != right->data) {
        return (uintptr_t)left->data < (uintptr_t)right->data ? -1 : 1;
    }
    return left->bytes < right->bytes ? -1 : left->bytes > right->bytes;
}

// The tensors must tile the data: no hole, no overlap, nothing behind the last one.
static enum status check_tiling(struct tensor_table *table, struct bytes data, struct error *error)
{
    const uint8_t *end = data.data;
    qsort(table->tensors, table->count, sizeof *table->tensors, compare_places);
    for (uint32_t i = 0; i < table->count; i++) {
        const struct tensor *tensor = &table->tensors[i];
        const uint8_t *begin = tensor->data;
        if (begin != end) {
            return error_set(error, STATUS_INVALID_ARGUMENT,
                             "tensor \"%.200s\" begins at %llu, the one before it ends at %llu",
                             tensor->name, (unsigned long long)(begin - (const uint8_t *)data.data),
                             (unsigned long long)(end - (const uint8_t *)data.data));
        }
        end = begin + tensor->bytes;
    }
    uint64_t used = (uint64_t)(end - (const uint8_t *)data.data);
    if (used == data.size) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT, "%llu bytes follow the last tensor",
                     (unsigned long long)(data.size - used));
}

static enum status read_entries(struct tensor_table *table, json_t *header, struct bytes data,
                                struct error *error)
{
    const char *name = NULL;
    json_t *entry = NULL;
    json_object_foreach(header, name, entry)
    {
        enum status status = STATUS_OK;
        struct tensor tensor = {.name = name};
        if (strcmp(name, "__metadata__") == 0) {
            status = check_metadata(entry, error);
            if (status == STATUS_OK) table->metadata = json_incref(entry);
        } else {
            status = read_entry(name, entry, data, &tensor, error);
            if (status == STATUS_OK) status = table_add(table, &tensor, error);
        }
        if (status != STATUS_OK) return status;
    }
    enum status status = check_tiling(table, data, error);
    return status == STATUS_OK ? table_finish(table, error) : status;
}

// Header text and the data that follows it become a table.
static enum status parse(struct tensor_table **out, struct bytes text, struct bytes data,
                         struct error *error)
{
    struct tensor_table *table = NULL;
    json_t *header = NULL;
    json_error_t where;
    enum status status = STATUS_OK;
    if (text.size == 0 || *(const char *)text.data != '{') {
        return error_set(error, STATUS_INVALID_ARGUMENT, "its header does not begin with {");
    }
    status = check_structure(text.data, text.size, error);
    if (status != STATUS_OK) goto done;
    header = json_loadb(text.data, text.size, JSON_REJECT_DUPLICATES, &where);
    if (header == NULL) {
        status = error_set(error, STATUS_INVALID_ARGUMENT, "its header at byte %d: %s",
                           where.position, where.text);
        goto done;
    }
    size_t entries = json_object_size(header);
    if (entries > TABLE_TENSORS_MAX + 1) {
        status = error_set(error, STATUS_INVALID_ARGUMENT, "it has %zu tensors, at most %u",
                           entries, TABLE_TENSORS_MAX);
        goto done;
    }
    // A name and its NUL need no more bytes than the same name in quotes, escaped or not.
    uint32_t tensors_max = entries < TABLE_TENSORS_MAX ? (uint32_t)entries : TABLE_TENSORS_MAX;
    status = table_create(&table, tensors_max, text.size, error);
    if (status == STATUS_OK) status = read_entries(table, header, data, error);
    if (status != STATUS_OK) goto done;
    *out = table;
    table = NULL;

done:
    json_decref(header);
    tensor_table_release(&table);
    return status;
}

// Compares the length that the file claims for its header with the file.
static enum status check_length(const uint8_t *start, uint64_t file_bytes, uint64_t *out,
                                struct error *error)
{
    uint64_t length = load_u64(start);
    if (length > HEADER_BYTES_MAX || length > file_bytes - LENGTH_BYTES) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "its header claims %llu bytes, the file has %llu and the limit is %u",
                         (unsigned long long)length, (unsigned long long)file_bytes,
                         HEADER_BYTES_MAX);
    }
    *out = length;
    return STATUS_OK;
}

enum status tensor_table_from_bytes(struct tensor_table **out, struct bytes safetensors,
                                    struct error *error)
{
    assert(out != NULL);
    const uint8_t *start = safetensors.data;
    uint64_t length = 0;
    if (safetensors.size < LENGTH_BYTES) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%llu bytes are no safetensors file",
                         (unsigned long long)safetensors.size);
    }
    enum status status = check_length(start, safetensors.size, &length, error);
    if (status != STATUS_OK) return status;
    const uint8_t *data = start + LENGTH_BYTES + length;
    return parse(out, (struct bytes){start + LENGTH_BYTES, length},
                 (struct bytes){data, safetensors.size - LENGTH_BYTES - length}, error);
}

enum status safetensors_open(struct tensor_table **out, struct file_map *map, struct error *error)
{
    assert(out != NULL);
    assert(map != NULL);
    uint8_t start[LENGTH_BYTES];
    uint64_t length = 0;
    char *text = NULL;
    enum status status = STATUS_OK;
    if (map->bytes < LENGTH_BYTES) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%llu bytes are no safetensors file",
                         (unsigned long long)map->bytes);
    }
    status = file_map_read(map, 0, start, sizeof start, error);
    if (status == STATUS_OK) status = check_length(start, map->bytes, &length, error);
    if (status != STATUS_OK) goto done;
    text = malloc(length + 1);
    if (text == NULL) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a header of %llu bytes",
                           (unsigned long long)length);
        goto done;
    }
    status = file_map_read(map, LENGTH_BYTES, text, length, error);
    if (status != STATUS_OK) goto done;
    struct bytes data = {map->data + LENGTH_BYTES + length, map->bytes - LENGTH_BYTES - length};
    status = parse(out, (struct bytes){text, length}, data, error);
    if (status != STATUS_OK) goto done;
    (*out)->map = *map;
    *map = FILE_MAP_NONE;

done:
    free(text);
    return status;
}
