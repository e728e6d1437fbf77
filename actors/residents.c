// residents.c - one list in order of use. A device holds a few hundred of them, and a look-up
// compares a key of 32 bytes or more, so there is no second way to find one.

#include "actors/residents.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct residents {
    void (*end)(void *context, void *value);  // of a value
    void *context;                            // handed to it
    struct resident *newest, *oldest;         // ends of the list by use
    uint64_t bytes;                           // of all
    uint32_t count;                           // of them
};

void residents_check(const struct residents *self)
{
    assert(self != NULL);
    uint64_t bytes = 0;
    uint32_t count = 0;
    const struct resident *newer = NULL;
    for (const struct resident *at = self->newest; at != NULL; newer = at, at = at->older) {
        assert(at->newer == newer);
        assert((at->value != NULL) == (at->state == RESIDENT_READY));
        assert(at->uses > 0 || at->state != RESIDENT_WANTED);
        assert(at->uses > 0 || at->state == RESIDENT_MAKING || (at->keep && !at->doomed));
        bytes += at->bytes;
        count += 1;
    }
    assert(self->oldest == newer);
    assert(bytes == self->bytes);
    assert(count == self->count);
}

enum status residents_create(struct residents **out, void (*end)(void *context, void *value),
                             void *context, struct error *error)
{
    assert(out != NULL);
    assert(end != NULL);
    struct residents *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a table of residents");
    }
    self->end = end;
    self->context = context;
    *out = self;
    return STATUS_OK;
}

static void unlink_use(struct residents *self, struct resident *resident)
{
    if (resident->newer != NULL)
        resident->newer->older = resident->older;
    else
        self->newest = resident->older;
    if (resident->older != NULL)
        resident->older->newer = resident->newer;
    else
        self->oldest = resident->newer;
}

static void link_newest(struct residents *self, struct resident *resident)
{
    resident->newer = NULL;
    resident->older = self->newest;
    if (self->newest != NULL)
        self->newest->newer = resident;
    else
        self->oldest = resident;
    self->newest = resident;
}

static void remove_resident(struct residents *self, struct resident *resident)
{
    assert(resident->uses == 0);
    assert(self->count > 0);
    assert(self->bytes >= resident->bytes);
    unlink_use(self, resident);
    assert(self->oldest != resident);
    assert(self->newest != resident);
    self->bytes -= resident->bytes;
    self->count -= 1;
    void *value = resident->value;
    free(resident);
    if (value != NULL) self->end(self->context, value);  // which may come back to this table
}

void residents_destroy(struct residents **self_p)
{
    assert(self_p != NULL);
    struct residents *self = *self_p;
    if (self == NULL) return;
    while (self->oldest != NULL) remove_resident(self, self->oldest);
    assert(self->bytes == 0);
    free(self);
    *self_p = NULL;
}

struct resident *residents_find(struct residents *self, const void *model, struct bytes key)
{
    assert(self != NULL);
    for (struct resident *at = self->newest; at != NULL; at = at->older) {
        bool same = !at->doomed && at->model == model && at->key_bytes == key.size &&
                    memcmp(at->key, key.data, key.size) == 0;
        if (same) return at;
    }
    return NULL;
}

struct resident *residents_add(struct residents *self, const void *model, struct bytes key)
{
    assert(self != NULL);
    assert(key.size > 0);
    assert(residents_find(self, model, key) == NULL);
    struct resident *resident = malloc(sizeof *resident + key.size);
    if (resident == NULL) return NULL;
    *resident = (struct resident){.model = model, .uses = 1, .key_bytes = key.size};
    memcpy(resident->key, key.data, key.size);
    link_newest(self, resident);
    self->count += 1;
    return resident;
}

void residents_weigh(struct residents *self, struct resident *resident, uint64_t bytes)
{
    assert(self != NULL);
    assert(self->bytes >= resident->bytes);
    self->bytes = self->bytes - resident->bytes + bytes;
    resident->bytes = bytes;
}

void residents_ready(struct residents *self, struct resident *resident, void *value, uint64_t bytes)
{
    assert(resident->state == RESIDENT_MAKING);
    assert(value != NULL);
    resident->state = RESIDENT_READY;
    resident->value = value;
    residents_weigh(self, resident, bytes);
}

static void end_if_unused(struct residents *self, struct resident *resident)
{
    if (resident->uses > 0 || resident->state == RESIDENT_MAKING) return;
    bool stays = resident->state == RESIDENT_READY && resident->keep && !resident->doomed;
    if (!stays) remove_resident(self, resident);
}

void residents_hold(struct residents *self, struct resident *resident)
{
    assert(self != NULL);
    resident->uses += 1;
    unlink_use(self, resident);
    link_newest(self, resident);
}

void residents_release(struct residents *self, struct resident *resident)
{
    assert(self != NULL);
    assert(resident->uses > 0);
    resident->uses -= 1;
    end_if_unused(self, resident);
}

void residents_settle(struct residents *self, struct resident *resident)
{
    assert(self != NULL);
    assert(resident->state != RESIDENT_MAKING);
    end_if_unused(self, resident);
}

void residents_doom(struct residents *self, struct resident *resident)
{
    assert(self != NULL);
    resident->doomed = true;
    end_if_unused(self, resident);
}

bool residents_evict_one(struct residents *self)
{
    assert(self != NULL);
    for (struct resident *at = self->oldest; at != NULL; at = at->newer) {
        // What was removed is in the list no more, which the analyzer cannot see.
        if (at->uses > 0 || at->state != RESIDENT_READY) continue;  // NOLINT(clang-analyzer-*)
        remove_resident(self, at);
        return true;
    }
    return false;
}

void residents_make_room(struct residents *self, uint64_t bytes, uint64_t bytes_max)
{
    assert(self != NULL);
    while (self->bytes + bytes > bytes_max && residents_evict_one(self)) continue;
}

struct resident *residents_newest(struct residents *self)
{
    assert(self != NULL);
    return self->newest;
}

uint64_t residents_bytes(const struct residents *self)
{
    assert(self != NULL);
    return self->bytes;
}

uint32_t residents_count(const struct residents *self)
{
    assert(self != NULL);
    return self->count;
}
