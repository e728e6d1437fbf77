// reply_cache.c - a ring of answers in order of time; looked up by a scan from the newest.
//
// Look-ups happen for every new request, so each entry's id is compared by its first eight bytes
// before anything else; a thousand entries are a few microseconds, and a hash over them would be
// one more table.

#include "actors/reply_cache.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    uint64_t key;              // first half of the id
    uint8_t id[JOB_ID_BYTES];  // the client's
    uint32_t user;             // index; UINT32_MAX once forgotten
    uint64_t digest;           // of the request
    uint64_t at_ns;            // when it was answered
    uint64_t bytes;            // of the frames
    struct message frames;     // header, body, payloads
};

struct reply_cache {
    struct entry *ring;    // entries_max slots
    uint32_t entries_max;  // fixed at creation
    uint32_t first;        // slot of the oldest
    uint32_t count;        // live slots from there
    uint64_t bytes;        // of all frames
    uint64_t bytes_max;    // bound of bytes
    uint64_t age_max_ns;   // bound of age
};

enum status reply_cache_create(struct reply_cache **out, uint32_t entries_max, uint64_t bytes_max,
                               uint64_t age_max_ns, struct error *error)
{
    assert(out != NULL);
    assert(entries_max >= 1);
    struct reply_cache *self = calloc(1, sizeof *self);
    if (self != NULL) self->ring = calloc(entries_max, sizeof *self->ring);
    if (self == NULL || self->ring == NULL) {
        free(self);
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the reply cache");
    }
    self->entries_max = entries_max;
    self->bytes_max = bytes_max;
    self->age_max_ns = age_max_ns;
    *out = self;
    return STATUS_OK;
}

static void drop_oldest(struct reply_cache *self)
{
    assert(self->count > 0);
    struct entry *entry = &self->ring[self->first];
    assert(self->bytes >= entry->bytes);
    self->bytes -= entry->bytes;
    message_clear(&entry->frames);
    self->first = (self->first + 1) % self->entries_max;
    self->count -= 1;
}

void reply_cache_destroy(struct reply_cache **self_p)
{
    assert(self_p != NULL);
    struct reply_cache *self = *self_p;
    if (self == NULL) return;
    while (self->count > 0) drop_oldest(self);
    free(self->ring);
    free(self);
    *self_p = NULL;
}

void reply_cache_put(struct reply_cache *self, uint32_t user, const uint8_t id[JOB_ID_BYTES],
                     uint64_t digest, struct message *reply, uint64_t now_ns)
{
    assert(self != NULL);
    uint64_t bytes = message_bytes(reply);
    if (bytes > self->bytes_max) return;
    while (self->count == self->entries_max ||
           (self->count > 0 && self->bytes + bytes > self->bytes_max)) {
        drop_oldest(self);
    }
    struct entry *entry = &self->ring[(self->first + self->count) % self->entries_max];
    *entry = (struct entry){
        .key = load_u64(id), .user = user, .digest = digest, .at_ns = now_ns, .bytes = bytes};
    memcpy(entry->id, id, JOB_ID_BYTES);
    message_init(&entry->frames);
    for (uint32_t i = 0; i < reply->count; i++) {
        if (message_append_shared(&entry->frames, reply, i) != STATUS_OK) {
            message_clear(&entry->frames);
            return;
        }
    }
    self->bytes += bytes;
    self->count += 1;
}

bool reply_cache_get(struct reply_cache *self, uint32_t user, const uint8_t id[JOB_ID_BYTES],
                     uint64_t now_ns, uint64_t *digest, struct message *out)
{
    assert(self != NULL);
    uint64_t key = load_u64(id);
    for (uint32_t i = self->count; i-- > 0;) {
        struct entry *entry = &self->ring[(self->first + i) % self->entries_max];
        if (entry->key != key || entry->user != user || memcmp(entry->id, id, JOB_ID_BYTES) != 0)
            continue;
        if (now_ns - entry->at_ns > self->age_max_ns) return false;
        for (uint32_t frame = 0; frame < entry->frames.count; frame++) {
            if (message_append_shared(out, &entry->frames, frame) != STATUS_OK) return false;
        }
        *digest = entry->digest;
        return true;
    }
    return false;
}

void reply_cache_expire(struct reply_cache *self, uint64_t now_ns)
{
    assert(self != NULL);
    while (self->count > 0 && now_ns - self->ring[self->first].at_ns > self->age_max_ns)
        drop_oldest(self);
}

void reply_cache_forget_user(struct reply_cache *self, uint32_t user)
{
    assert(self != NULL);
    for (uint32_t i = 0; i < self->count; i++) {
        struct entry *entry = &self->ring[(self->first + i) % self->entries_max];
        if (entry->user == user) entry->user = UINT32_MAX;
    }
}
