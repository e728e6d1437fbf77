// array.h - the one way in which this folder's lists grow.

#ifndef MODELS_TEXT_ARRAY_H
#define MODELS_TEXT_ARRAY_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/checked.h"

// Makes room for `needed` items in *items_p, which holds *capacity_p of item_bytes each, at least
// doubling it, so that appending costs constant time on average.
// Ownership: *items_p belongs to the caller, who frees it with free().
// Errors:    false when memory ran out; the list stays as it is.
static inline bool array_reserve(void **items_p, uint32_t *capacity_p, uint64_t needed,
                                 size_t item_bytes)
{
    assert(items_p != NULL);
    assert(item_bytes > 0);
    if (needed <= *capacity_p) return true;
    uint64_t capacity = (uint64_t)*capacity_p * 2 > needed ? (uint64_t)*capacity_p * 2 : needed;
    if (capacity < 16) capacity = 16;
    uint64_t bytes = 0;
    if (capacity > UINT32_MAX || !checked_multiply(capacity, item_bytes, &bytes)) return false;
    void *grown = realloc(*items_p, bytes);
    if (grown == NULL) return false;
    *items_p = grown;
    *capacity_p = (uint32_t)capacity;
    return true;
}

// The same for a list with the fields items and capacity.
#define ARRAY_RESERVE(list, needed)                                                                \
    array_reserve((void **)&(list)->items, &(list)->capacity, (needed), sizeof *(list)->items)

#endif  // MODELS_TEXT_ARRAY_H
