// embedding_select.c - which tensors of a file are the embedding: five habits of five trainers.
//
// In this order: "string_to_param" of one dictionary; a list of dictionaries, of which all tensors
// of the encoder's width count; "clip_l" or "clip_g"; "bundle_emb." files, which hold one of those
// under a longer name; else the first tensor. A table keeps its tensors in order of names, so that
// "the first" is the first name.

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/embeddings.h"

#define EMBEDDING_WIDTH_MAX 4096u
#define SUFFIX_BYTES 32u
#define TENSORS_MAX 4096u  // of one embedding; a list is searched once a dictionary

// Collects the vectors of the tensors that were chosen.
struct selection {
    struct embedding_vectors vectors;  // so far
    bool found;                        // a tensor was taken
    struct error *error;               // where to tell the first failure
    enum status status;                // the first failure, or OK
};

static void fail(struct selection *self, const struct tensor *tensor, const char *why)
{
    if (self->status != STATUS_OK) return;
    self->status =
        error_set(self->error, STATUS_INVALID_ARGUMENT, "tensor \"%.80s\" %s", tensor->name, why);
}

// Appends the rows of one tensor; one dimension is one row.
static void take(struct selection *self, const struct tensor *tensor)
{
    if (self->status != STATUS_OK) return;
    if (tensor->rank == 0 || tensor->transposed || !dtype_is_real(tensor->dtype)) {
        fail(self, tensor, "holds no vectors of F32, F16 or BF16");
        return;
    }
    uint64_t width = tensor->dims[tensor->rank - 1];
    uint64_t rows = 1;
    for (uint32_t i = 0; i + 1 < tensor->rank && rows <= EMBEDDING_VECTORS_MAX; i++) {
        if (tensor->dims[i] > EMBEDDING_VECTORS_MAX) rows = EMBEDDING_VECTORS_MAX + 1;
        rows *= tensor->dims[i];
    }
    struct embedding_vectors *vectors = &self->vectors;
    if (width == 0 || width > EMBEDDING_WIDTH_MAX ||
        rows > EMBEDDING_VECTORS_MAX - vectors->count) {
        fail(self, tensor, "has too many or too wide vectors, or none");
        return;
    }
    if (self->found && width != vectors->width) {
        fail(self, tensor, "has another width than the one before");
        return;
    }
    uint64_t before = (uint64_t)vectors->count * width;
    float *grown = realloc(vectors->values, (before + rows * width + 1) * sizeof *grown);
    if (grown == NULL) {
        self->status = error_set(self->error, STATUS_RESOURCE_EXHAUSTED,
                                 "no memory for %llu vectors", (unsigned long long)rows);
        return;
    }
    dtype_convert(grown + before, DTYPE_F32, tensor->data, tensor->dtype, rows * width);
    *vectors = (struct embedding_vectors){
        .values = grown, .count = vectors->count + (uint32_t)rows, .width = (uint32_t)width};
    self->found = true;
}

static bool has_ends(const char *name, const char *prefix, const char *suffix)
{
    size_t length = strlen(name);
    size_t suffix_length = strlen(suffix);
    if (strncmp(name, prefix, strlen(prefix)) != 0) return false;
    return length >= suffix_length && strcmp(name + length - suffix_length, suffix) == 0;
}

static void take_first(struct selection *self, const struct tensor_table *table, const char *prefix)
{
    for (uint32_t i = 0; !self->found && i < tensor_table_count(table); i++) {
        const struct tensor *tensor = tensor_table_at(table, i);
        if (has_ends(tensor->name, prefix, "")) {
            take(self, tensor);
            return;
        }
    }
}

static void take_bundle(struct selection *self, const struct tensor_table *table,
                        const char *suffix)
{
    if (self->found) return;
    for (uint32_t i = 0; i < tensor_table_count(table); i++) {
        const struct tensor *tensor = tensor_table_at(table, i);
        if (has_ends(tensor->name, "bundle_emb.", suffix)) take(self, tensor);
    }
}

// The index of a list's dictionary in front of a name, "12.x"; -1 when the name is no list's.
static int64_t list_index(const char *name)
{
    int64_t index = 0;
    const char *at = name;
    for (; *at >= '0' && *at <= '9' && at - name < 9; at++) index = index * 10 + (*at - '0');
    return at > name && *at == '.' ? index : -1;
}

static bool holds_list(const struct tensor_table *table)
{
    for (uint32_t i = 0; i < tensor_table_count(table); i++) {
        if (list_index(tensor_table_at(table, i)->name) < 0) return false;
    }
    return tensor_table_count(table) > 0;
}

// A list's tensors in order of their dictionaries, not of their names ("10." sorts before "2.").
static void take_list(struct selection *self, const struct tensor_table *table, uint32_t width)
{
    uint32_t count = tensor_table_count(table);
    for (int64_t last = -1;;) {
        int64_t next = INT64_MAX;
        for (uint32_t i = 0; i < count; i++) {
            int64_t index = list_index(tensor_table_at(table, i)->name);
            if (index > last && index < next) next = index;
        }
        if (next == INT64_MAX || self->status != STATUS_OK) return;
        for (uint32_t i = 0; i < count; i++) {
            const struct tensor *tensor = tensor_table_at(table, i);
            bool fits = tensor->rank > 0 && tensor->dims[tensor->rank - 1] == width;
            if (fits && list_index(tensor->name) == next) take(self, tensor);
        }
        last = next;
    }
}

enum status embedding_select(const struct tensor_table *table, const char *key, uint32_t width,
                             struct embedding_vectors *out, struct error *error)
{
    assert(table != NULL);
    assert(key != NULL);
    assert(out != NULL);

    if (tensor_table_count(table) > TENSORS_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "it has %u tensors, an embedding at most %u", tensor_table_count(table),
                         TENSORS_MAX);
    }
    char suffix[SUFFIX_BYTES];
    snprintf(suffix, sizeof suffix, ".%s", key);
    struct selection self = {.error = error, .status = STATUS_OK};
    bool is_list = holds_list(table);
    take_first(&self, table, "string_to_param.");
    if (!self.found && is_list) take_list(&self, table, width);
    const struct tensor *keyed = tensor_table_find(table, key);
    if (!self.found && !is_list && keyed != NULL) take(&self, keyed);
    if (!is_list) {
        take_bundle(&self, table, ".string_to_param.*");
        take_bundle(&self, table, suffix);
        take_first(&self, table, "");
    }
    if (self.status == STATUS_OK && !self.found) {
        self.status =
            error_set(error, STATUS_INVALID_ARGUMENT, "it has no vectors of width %u", width);
    }
    if (self.status != STATUS_OK) {
        free(self.vectors.values);
        return self.status;
    }
    *out = self.vectors;
    return STATUS_OK;
}
