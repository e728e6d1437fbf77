// tensors.c - the table every reader fills: names, order, counts. See table.h.

#include "models/files/tensors.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "models/files/table.h"

enum status table_create(struct tensor_table **out, uint32_t count_max, uint64_t names_bytes_max,
                         struct error *error)
{
    assert(out != NULL);
    assert(count_max <= TABLE_TENSORS_MAX);
    struct tensor_table *self = calloc(1, sizeof *self);
    if (self == NULL) goto no_memory;
    atomic_init(&self->uses, 1);
    self->map = FILE_MAP_NONE;
    self->count_max = count_max;
    self->names_bytes_max = names_bytes_max;
    self->tensors = calloc(count_max + 1u, sizeof *self->tensors);
    self->names = malloc(names_bytes_max + 1);
    if (self->tensors == NULL || self->names == NULL) goto no_memory;
    *out = self;
    return STATUS_OK;

no_memory:
    tensor_table_release(&self);
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a table of %u tensors",
                     count_max);
}

static enum status check_name(const char *name, size_t length, struct error *error)
{
    if (length > TABLE_NAME_BYTES_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "a tensor's name has %zu bytes, at most %u", length, TABLE_NAME_BYTES_MAX);
    }
    bool control = false;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c < 0x20 || c == 0x7f) control = true;
    }
    if (control || !utf8_valid((struct bytes){name, length})) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "tensor \"%.200s\": its name is not %s",
                         name, control ? "free of control characters" : "valid UTF-8");
    }
    return STATUS_OK;
}

enum status table_add(struct tensor_table *self, const struct tensor *tensor, struct error *error)
{
    assert(self != NULL);
    assert(tensor != NULL);
    assert(self->count < self->count_max);
    size_t length = strlen(tensor->name);
    enum status status = check_name(tensor->name, length, error);
    if (status != STATUS_OK) return status;
    assert(length + 1 <= self->names_bytes_max - self->names_bytes);

    char *name = self->names + self->names_bytes;
    memcpy(name, tensor->name, length + 1);
    self->names_bytes += length + 1;
    self->tensors[self->count] = *tensor;
    self->tensors[self->count].name = name;
    self->count += 1;
    return STATUS_OK;
}

static int compare_names(const void *a, const void *b)
{
    const struct tensor *left = a;
    const struct tensor *right = b;
    return strcmp(left->name, right->name);
}

enum status table_finish(struct tensor_table *self, struct error *error)
{
    assert(self != NULL);
    qsort(self->tensors, self->count, sizeof *self->tensors, compare_names);
    for (uint32_t i = 1; i < self->count; i++) {
        if (strcmp(self->tensors[i - 1].name, self->tensors[i].name) != 0) continue;
        return error_set(error, STATUS_INVALID_ARGUMENT, "tensor \"%.200s\" comes twice",
                         self->tensors[i].name);
    }
    return STATUS_OK;
}

enum status table_check_size(const char *name, const struct tensor *tensor, struct error *error)
{
    assert(tensor != NULL);
    assert(tensor->rank <= TENSOR_RANK_MAX);
    uint64_t wanted = 0;
    bool fits = checked_product(tensor->dims, tensor->rank, &wanted) &&
                checked_multiply(wanted, dtype_bytes(tensor->dtype), &wanted);
    if (fits && wanted == tensor->bytes) return STATUS_OK;
    if (!fits) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%.200s\": the product of its dimensions overflows", name);
    }
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "tensor \"%.200s\" has %llu bytes, its shape and dtype need %llu", name,
                     (unsigned long long)tensor->bytes, (unsigned long long)wanted);
}

enum status tensor_table_from_tensors(struct tensor_table **out, const struct tensor *tensors,
                                      uint32_t count, struct tensor_table *const *sources,
                                      uint32_t sources_count, struct error *error)
{
    assert(out != NULL);
    assert(tensors != NULL || count == 0);
    if (count > TABLE_TENSORS_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%u tensors, at most %u", count,
                         TABLE_TENSORS_MAX);
    }
    uint64_t names_bytes = 0;
    for (uint32_t i = 0; i < count; i++) names_bytes += strlen(tensors[i].name) + 1;

    struct tensor_table *self = NULL;
    enum status status = table_create(&self, count, names_bytes, error);
    if (status != STATUS_OK) goto done;
    assert(self != NULL);
    self->sources = calloc(sources_count + 1u, sizeof *self->sources);
    if (self->sources == NULL) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a table");
        goto done;
    }
    for (uint32_t i = 0; i < sources_count; i++) {
        self->sources[i] = tensor_table_share(sources[i]);
        self->sources_count = i + 1;
    }
    for (uint32_t i = 0; i < count; i++) {
        status = table_add(self, &tensors[i], error);
        if (status != STATUS_OK) goto done;
    }
    status = table_finish(self, error);
    if (status != STATUS_OK) goto done;
    *out = self;
    self = NULL;

done:
    tensor_table_release(&self);
    return status;
}

struct tensor_table *tensor_table_share(struct tensor_table *self)
{
    assert(self != NULL);
    uint32_t before = atomic_fetch_add_explicit(&self->uses, 1, memory_order_relaxed);
    assert(before > 0);
    (void)before;
    return self;
}

void tensor_table_release(struct tensor_table **self_p)
{
    assert(self_p != NULL);
    struct tensor_table *self = *self_p;
    *self_p = NULL;
    if (self == NULL) return;
    uint32_t before = atomic_fetch_sub_explicit(&self->uses, 1, memory_order_acq_rel);
    assert(before > 0);
    if (before > 1) return;

    for (uint32_t i = 0; i < self->sources_count; i++) tensor_table_release(&self->sources[i]);
    free(self->sources);
    file_map_close(&self->map);
    json_decref(self->metadata);
    free(self->names);
    free(self->tensors);
    free(self);
}

uint32_t tensor_table_count(const struct tensor_table *self)
{
    assert(self != NULL);
    return self->count;
}

const struct tensor *tensor_table_at(const struct tensor_table *self, uint32_t index)
{
    assert(self != NULL);
    assert(index < self->count);
    return &self->tensors[index];
}

const struct tensor *tensor_table_find(const struct tensor_table *self, const char *name)
{
    assert(self != NULL);
    assert(name != NULL);
    struct tensor key = {.name = name};
    return bsearch(&key, self->tensors, self->count, sizeof *self->tensors, compare_names);
}

const char *tensor_table_metadata(const struct tensor_table *self, const char *key)
{
    assert(self != NULL);
    assert(key != NULL);
    return json_string_value(json_object_get(self->metadata, key));
}

// The file behind the table that is not as it was; NULL when all are.
static const struct file_map *changed_file(const struct tensor_table *self)
{
    if (!file_map_unchanged(&self->map)) return &self->map;
    const struct file_map *changed = NULL;
    for (uint32_t i = 0; i < self->sources_count && changed == NULL; i++) {
        changed = changed_file(self->sources[i]);
    }
    return changed;
}

bool tensor_table_unchanged(const struct tensor_table *self)
{
    assert(self != NULL);
    return changed_file(self) == NULL;
}

enum status tensor_table_check_unchanged(const struct tensor_table *self, struct error *error)
{
    assert(self != NULL);
    const struct file_map *changed = changed_file(self);
    if (changed == NULL) return STATUS_OK;
    return error_set(error, STATUS_FAILED_PRECONDITION,
                     "file \"%s\" was changed in place after it was loaded: unload the model, "
                     "put the file right, and load it again",
                     changed->name);
}
