// counters.c - a small array, searched from its start; counters.h holds the contract.

#include "runtime/counters.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

struct counter *counters_find(struct counters *self, const char *name, const char *labels,
                              bool is_gauge)
{
    assert(self != NULL);
    assert(name != NULL);
    assert(labels != NULL);
    assert(self->count <= COUNTERS_MAX);
    for (uint32_t i = 0; i < self->count; i++) {
        struct counter *entry = &self->entries[i];
        if (strcmp(entry->name, name) != 0 || strcmp(entry->labels, labels) != 0) continue;
        assert(entry->is_gauge == is_gauge);
        return entry;
    }
    size_t length = strlen(labels);
    if (self->count == COUNTERS_MAX || length >= COUNTER_LABELS_BYTES) return NULL;
    struct counter *added = &self->entries[self->count++];
    *added = (struct counter){.name = name, .is_gauge = is_gauge};
    memcpy(added->labels, labels, length + 1);
    return added;
}

void counter_add(struct counter *self, double by)
{
    if (self == NULL) return;
    assert(self->is_gauge || by >= 0);
    self->value += by;
}

void counter_set(struct counter *self, double value)
{
    if (self == NULL) return;
    assert(self->is_gauge);
    self->value = value;
}
