// finder.c - see finder.h.

#include "models/finder.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status finder_begin(struct finder *self, uint32_t count_max)
{
    assert(self != NULL);
    assert(self->table != NULL);
    self->count_max = count_max;
    self->tensors = calloc(count_max, sizeof *self->tensors);
    self->names = calloc(count_max, sizeof *self->names);
    if (self->tensors != NULL && self->names != NULL) return STATUS_OK;
    finder_end(self);
    return error_set(self->error, STATUS_RESOURCE_EXHAUSTED, "no memory for %u names", count_max);
}

void finder_end(struct finder *self)
{
    assert(self != NULL);
    free(self->tensors);
    free(self->names);
    self->tensors = NULL;
    self->names = NULL;
}

struct name name_of(const char *format, ...)
{
    struct name name;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(name.text, sizeof name.text, format, arguments);
    va_end(arguments);
    assert(length >= 0);
    assert((size_t)length < sizeof name.text);
    return name;
}

const struct tensor *finder_look(const struct finder *self, const char *format, ...)
{
    char name[FINDER_NAME_BYTES];
    va_list arguments;
    size_t length = strlen(self->prefix);
    assert(length < sizeof name);
    memcpy(name, self->prefix, length);
    va_start(arguments, format);
    vsnprintf(name + length, sizeof name - length, format, arguments);
    va_end(arguments);
    return tensor_table_find(self->table, name);
}

static void miss(struct finder *self, const char *file)
{
    if (self->missing < FINDER_NAMED_MAX) {
        snprintf(self->missing_names[self->missing], FINDER_NAME_BYTES, "%s%s", self->prefix, file);
    }
    self->missing += 1;
}

// "[64, 3, 3, 3]"
static const char *shape_text(const uint64_t *dims, uint32_t rank, char out[96])
{
    size_t used = (size_t)snprintf(out, 96, "[");
    for (uint32_t i = 0; i < rank && used < 70; i++) {
        used += (size_t)snprintf(out + used, 96 - used, "%s%llu", i > 0 ? ", " : "",
                                 (unsigned long long)dims[i]);
    }
    snprintf(out + used, 96 - used, "]");
    return out;
}

static bool shape_fits(const struct tensor *tensor, const struct wanted *wanted)
{
    bool squeezed =
        wanted->squeeze && tensor->rank == 4 && tensor->dims[2] == 1 && tensor->dims[3] == 1;
    if (tensor->rank != wanted->rank && !squeezed) return false;
    return memcmp(tensor->dims, wanted->dims, wanted->rank * sizeof wanted->dims[0]) == 0;
}

static void reject(struct finder *self, const struct tensor *tensor, const struct wanted *wanted)
{
    char has[96];
    char needs[96];
    if (self->status != STATUS_OK) return;
    if (!dtype_is_real(tensor->dtype)) {
        self->status = error_set(self->error, STATUS_INVALID_ARGUMENT,
                                 "%s: tensor \"%s\" is %s, supported are F32, F16 and BF16",
                                 self->what, tensor->name, dtype_name(tensor->dtype));
        return;
    }
    self->status = error_set(self->error, STATUS_INVALID_ARGUMENT,
                             "%s: tensor \"%s\" has the shape %s, needed is %s", self->what,
                             tensor->name, shape_text(tensor->dims, tensor->rank, has),
                             shape_text(wanted->dims, wanted->rank, needs));
}

void finder_add(struct finder *self, const char *canonical, const char *file,
                const struct tensor *tensor, const struct wanted *wanted)
{
    assert(wanted->rank >= 1);
    assert(wanted->rank <= 4);
    if (tensor == NULL) {
        miss(self, file);
        return;
    }
    if (!dtype_is_real(tensor->dtype) || !shape_fits(tensor, wanted)) {
        reject(self, tensor, wanted);
        return;
    }
    assert(self->count < self->count_max);
    struct tensor *view = &self->tensors[self->count];
    char *name = self->names[self->count];
    *view = *tensor;
    view->rank = wanted->rank;
    memset(view->dims, 0, sizeof view->dims);
    memcpy(view->dims, wanted->dims, wanted->rank * sizeof wanted->dims[0]);
    snprintf(name, FINDER_NAME_BYTES, "%s", canonical);
    view->name = name;
    self->count += 1;
}

void finder_need(struct finder *self, const char *canonical, const char *file,
                 const struct wanted *wanted)
{
    if (file == NULL) file = canonical;
    finder_add(self, canonical, file, finder_look(self, "%s", file), wanted);
}

void finder_need_pair(struct finder *self, const char *canonical, const char *file,
                      const struct wanted *weight)
{
    if (file == NULL) file = canonical;
    struct wanted bias = {.rank = 1, .dims = {weight->dims[0]}};
    finder_need(self, name_of("%s.weight", canonical).text, name_of("%s.weight", file).text,
                weight);
    finder_need(self, name_of("%s.bias", canonical).text, name_of("%s.bias", file).text, &bias);
}

enum status finder_table(struct finder *self, struct tensor_table *source,
                         struct tensor_table **out)
{
    if (self->missing > 0) {
        char list[FINDER_NAMED_MAX * (FINDER_NAME_BYTES + 2)] = "";
        size_t used = 0;
        for (uint32_t i = 0; i < self->missing && i < FINDER_NAMED_MAX; i++) {
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i > 0 ? ", " : "",
                                     self->missing_names[i]);
        }
        return error_set(self->error, STATUS_INVALID_ARGUMENT,
                         "%s is incomplete, it lacks %u of its tensors: %s%s", self->what,
                         self->missing, list, self->missing > FINDER_NAMED_MAX ? ", ..." : "");
    }
    if (self->status != STATUS_OK) return self->status;
    return tensor_table_from_tensors(out, self->tensors, self->count, &source, 1, self->error);
}
