// arena_plan.c - first fit over the live blocks, which are kept sorted by offset.
//
//     0        128           512                 1024
//     | block 0 | gap         | block 1           | ...        peak: the highest end so far
//
// Operations run in the order in which they were built, so a block that is given back may be taken
// again by whatever is built later: live ranges in program order are live ranges in time. A network
// keeps a dozen blocks alive at once, so every call walks the array.

#include "kernels/arena_plan.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/device.h"

struct block {
    uint64_t offset;  // from the start of the arena, a multiple of ARENA_ALIGNMENT
    uint64_t bytes;   // as asked for; the block ends at the next multiple of ARENA_ALIGNMENT
};

struct arena_plan {
    struct block *blocks;  // the live ones, by offset
    uint32_t count;        // live blocks
    uint32_t capacity;     // of blocks
    uint64_t peak_bytes;   // the highest end of a block so far
};

enum status arena_plan_create(struct arena_plan **out, struct error *error)
{
    assert(out != NULL);
    struct arena_plan *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a plan of the arena");
    }
    *out = self;
    return STATUS_OK;
}

void arena_plan_destroy(struct arena_plan **self_p)
{
    assert(self_p != NULL);
    struct arena_plan *self = *self_p;
    if (self == NULL) return;
    free(self->blocks);
    free(self);
    *self_p = NULL;
}

static uint64_t block_end(const struct block *block)
{
    return round_up(block->offset + block->bytes, ARENA_ALIGNMENT);
}

static bool make_room(struct arena_plan *self)
{
    if (self->count < self->capacity) return true;
    uint32_t capacity = self->capacity == 0 ? 32 : 2 * self->capacity;
    struct block *blocks = realloc(self->blocks, capacity * sizeof *blocks);
    if (blocks == NULL) return false;
    self->blocks = blocks;
    self->capacity = capacity;
    return true;
}

enum status arena_plan_take(struct arena_plan *self, uint64_t bytes, uint64_t *offset,
                            struct error *error)
{
    assert(self != NULL);
    assert(bytes > 0);
    if (bytes > ARENA_BYTES_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "a value of %llu bytes is beyond the largest arena, %llu bytes",
                         (unsigned long long)bytes, (unsigned long long)ARENA_BYTES_MAX);
    }
    if (!make_room(self)) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a plan of the arena");
    }
    uint32_t index = 0;  // of the block that the new one goes in front of
    uint64_t start = 0;  // of the gap in front of that block
    while (index < self->count && self->blocks[index].offset - start < bytes) {
        start = block_end(&self->blocks[index]);
        index++;
    }
    struct block block = {.offset = start, .bytes = bytes};
    if (block_end(&block) > ARENA_BYTES_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "the arena would grow to %llu bytes, at most %llu are possible",
                         (unsigned long long)block_end(&block),
                         (unsigned long long)ARENA_BYTES_MAX);
    }
    memmove(&self->blocks[index + 1], &self->blocks[index],
            (self->count - index) * sizeof self->blocks[0]);
    self->blocks[index] = block;
    self->count++;
    if (block_end(&block) > self->peak_bytes) self->peak_bytes = block_end(&block);
    *offset = start;
    return STATUS_OK;
}

// The index of the last block that begins at or below offset; count when there is none.
static uint32_t find(const struct arena_plan *self, uint64_t offset)
{
    uint32_t found = self->count;
    for (uint32_t i = 0; i < self->count && self->blocks[i].offset <= offset; i++) found = i;
    return found;
}

void arena_plan_give(struct arena_plan *self, uint64_t offset)
{
    assert(self != NULL);
    uint32_t index = find(self, offset);
    assert(index < self->count);                   // nothing lives there: released twice?
    assert(self->blocks[index].offset == offset);  // a part of a value cannot be released
    memmove(&self->blocks[index], &self->blocks[index + 1],
            (self->count - index - 1) * sizeof self->blocks[0]);
    self->count--;
}

bool arena_plan_holds(const struct arena_plan *self, uint64_t offset, uint64_t bytes)
{
    assert(self != NULL);
    uint32_t index = find(self, offset);
    if (index == self->count) return false;
    uint64_t skipped = offset - self->blocks[index].offset;
    return skipped <= self->blocks[index].bytes && bytes <= self->blocks[index].bytes - skipped;
}

uint64_t arena_plan_peak_bytes(const struct arena_plan *self)
{
    assert(self != NULL);
    return self->peak_bytes;
}

uint64_t arena_plan_live_bytes(const struct arena_plan *self)
{
    assert(self != NULL);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < self->count; i++) bytes += self->blocks[i].bytes;
    return bytes;
}
