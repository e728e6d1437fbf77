// chunks.c - the last chunk is the open one: its tokens are those since the last multiple of
// length.

#include "models/text/chunks.h"

#include <assert.h>
#include <stdlib.h>

#include "models/text/array.h"
#include "models/text/vocabulary.h"

#define GROUP_LARGE 8u  // tokens; from here on a group may be split

static enum status append(struct chunks *self, struct text_token token)
{
    if (!ARRAY_RESERVE(self, (uint64_t)self->count + 1)) return STATUS_RESOURCE_EXHAUSTED;
    self->items[self->count++] = token;
    return STATUS_OK;
}

static enum status open_chunk(struct chunks *self)
{
    assert(self->count % self->length == 0);
    if (self->count / self->length >= CHUNKS_MAX) return STATUS_INVALID_ARGUMENT;
    return append(self, (struct text_token){.id = VOCABULARY_START, .weight = 1.0});
}

enum status chunks_begin(struct chunks *self, uint32_t length, int32_t pad)
{
    assert(self != NULL);
    assert(self->count == 0);
    assert(length >= 3);
    self->length = length;
    self->pad = pad;
    return open_chunk(self);
}

enum status chunks_end(struct chunks *self)
{
    assert(self != NULL);
    assert(self->count % self->length != 0);
    enum status status = append(self, (struct text_token){.id = VOCABULARY_END, .weight = 1.0});
    while (status == STATUS_OK && self->count % self->length != 0) {
        status = append(self, (struct text_token){.id = self->pad, .weight = 1.0});
    }
    return status;
}

enum status chunks_add(struct chunks *self, const struct text_token *group, uint32_t count)
{
    assert(self != NULL);
    assert(group != NULL || count == 0);
    assert(self->count % self->length != 0);

    bool is_large = count >= GROUP_LARGE;
    enum status status = STATUS_OK;
    for (uint32_t done = 0; status == STATUS_OK && done < count;) {
        uint32_t room = self->length - 1 - self->count % self->length;
        uint32_t left = count - done;
        bool fits = left <= room;
        // A small group that is wider than a chunk of a tiny encoder must be split all the same.
        bool splits = is_large || count > self->length - 2;
        uint32_t taken = fits ? left : splits ? room : 0;
        for (uint32_t i = 0; status == STATUS_OK && i < taken; i++) {
            status = append(self, group[done++]);
        }
        if (fits || status != STATUS_OK) continue;
        status = chunks_end(self);
        if (status == STATUS_OK) status = open_chunk(self);
    }
    return status;
}

enum status chunks_add_empty(struct chunks *self)
{
    enum status status = open_chunk(self);
    return status == STATUS_OK ? chunks_end(self) : status;
}
