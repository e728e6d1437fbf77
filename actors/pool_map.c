// pool_map.c - one question and one answer on the lease manager's private socket for each new pool.

#include "actors/pool_map.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "actors/packet.h"
#include "actors/topology.h"
#include "runtime/shared_memory.h"

#define POOLS_MAX 32u
#define ANSWER_MS 1000

struct entry {
    uint32_t pool;                // number
    uint64_t used;                // when it was needed last, in calls
    struct shared_memory memory;  // of the pool
};

struct pool_map {
    char *directory;  // where the lease manager listens
    uint64_t calls;   // so far
    uint32_t count;   // entries in use
    struct entry entries[POOLS_MAX];
};

enum status pool_map_create(struct pool_map **out, const char *private_directory,
                            struct error *error)
{
    assert(out != NULL);
    assert(private_directory != NULL);
    struct pool_map *self = calloc(1, sizeof *self);
    if (self != NULL) self->directory = strdup(private_directory);
    if (self == NULL || self->directory == NULL) {
        free(self);
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a map of pools");
    }
    *out = self;
    return STATUS_OK;
}

void pool_map_destroy(struct pool_map **self_p)
{
    assert(self_p != NULL);
    struct pool_map *self = *self_p;
    if (self == NULL) return;
    for (uint32_t i = 0; i < self->count; i++) shared_memory_destroy(&self->entries[i].memory);
    free(self->directory);
    free(self);
    *self_p = NULL;
}

// Asks for one pool's descriptor.
static enum status ask(const struct pool_map *self, uint32_t pool, luna_PoolAnswer *answer,
                       int *descriptor)
{
    luna_Letter letter = {.which_letter = luna_Letter_pool_request_tag};
    letter.letter.pool_request.pool = pool;
    int got = -1;
    enum status status = packet_ask(self->directory, SOCKET_POOLS, ANSWER_MS, &letter, &got);
    if (status != STATUS_OK) return status;
    if (letter.which_letter != luna_Letter_pool_answer_tag || got < 0) {
        if (got >= 0) close(got);
        return STATUS_UNAVAILABLE;
    }
    *answer = letter.letter.pool_answer;
    *descriptor = got;
    return STATUS_OK;
}

// A place for a new mapping. When all are taken, the one that was used longest ago goes: its pool
// belongs to a core or a client that is gone, for no job names 32 pools.
static struct entry *make_room(struct pool_map *self)
{
    if (self->count < POOLS_MAX) {
        self->count += 1;
        return &self->entries[self->count - 1];
    }
    struct entry *oldest = &self->entries[0];
    for (uint32_t i = 1; i < self->count; i++) {
        if (self->entries[i].used < oldest->used) oldest = &self->entries[i];
    }
    shared_memory_destroy(&oldest->memory);
    return oldest;
}

static enum status fetch(struct pool_map *self, uint32_t pool, struct entry **out,
                         struct error *error)
{
    luna_PoolAnswer answer;
    int descriptor = -1;
    if (ask(self, pool, &answer, &descriptor) != STATUS_OK || answer.code != luna_Code_OK) {
        if (descriptor >= 0) close(descriptor);
        return error_set(error, STATUS_UNAVAILABLE, "the lease manager did not hand out pool %u",
                         pool);
    }
    struct shared_memory memory;
    enum status status =
        shared_memory_map(&memory, descriptor, answer.bytes, UINT64_MAX, true, error);
    if (status != STATUS_OK) {
        close(descriptor);
        return status;
    }
    struct entry *entry = make_room(self);
    entry->pool = pool;
    entry->memory = memory;
    *out = entry;
    return STATUS_OK;
}

enum status pool_map_find(struct pool_map *self, uint32_t pool, uint64_t offset, uint64_t bytes,
                          void **out, struct error *error)
{
    assert(self != NULL);
    assert(out != NULL);
    struct entry *found = NULL;
    for (uint32_t i = 0; i < self->count && found == NULL; i++) {
        if (self->entries[i].pool == pool) found = &self->entries[i];
    }
    if (found == NULL) {
        enum status status = fetch(self, pool, &found, error);
        if (status != STATUS_OK) return status;
    }
    assert(found != NULL);
    self->calls += 1;
    found->used = self->calls;
    void *address = shared_memory_range(&found->memory, offset, bytes);
    if (address == NULL) {
        return error_set(error, STATUS_INTERNAL, "a lease of %lu bytes at %lu lies outside pool %u",
                         (unsigned long)bytes, (unsigned long)offset, pool);
    }
    *out = address;
    return STATUS_OK;
}
