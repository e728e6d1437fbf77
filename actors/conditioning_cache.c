// conditioning_cache.c - a hash table of chains, and one list through all entries in order of use.
//
//     newest <-> ... <-> oldest          by use; what goes first is at its end
//     chains[hash & mask] -> entry ...   by key
//
// The hash is keyed with random bytes, so that nobody can make keys that all fall into one chain.
// A frame that libzmq received may be a small part of a larger buffer that lives as long as the
// frame does; so small frames are copied, and the bytes that are counted are those that are held.

#include "actors/conditioning_cache.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#define CHAINS 4096u             // a power of two
#define SHARED_BYTES_MIN 16384u  // of a frame that is shared and not copied

_Static_assert((CHAINS & (CHAINS - 1)) == 0, "a hash is masked to a chain");
_Static_assert(sizeof(uint64_t) == crypto_shorthash_BYTES, "a hash is one number");

struct entry {
    struct entry *next_in_chain;  // of the same hash bits
    struct entry *newer;          // by use; NULL for the newest
    struct entry *older;          // by use; NULL for the oldest
    uint64_t hash;                // of the key
    uint64_t model;               // that answered
    uint64_t bytes;               // of the entry, its frames and its key
    struct message frames;        // header, body, payloads
    uint64_t key_bytes;           // of key
    uint8_t key[];                // as it was put
};

struct conditioning_cache {
    uint64_t bytes_max;                           // fixed at creation
    uint64_t bytes;                               // of all entries
    uint64_t entries;                             // how many
    uint64_t hits, misses;                        // since creation
    struct entry *newest, *oldest;                // ends of the list by use
    uint8_t hash_key[crypto_shorthash_KEYBYTES];  // random
    struct entry *chains[CHAINS];                 // by hash
};

void conditioning_cache_check(const struct conditioning_cache *self)
{
    assert(self != NULL);
    uint64_t entries = 0, bytes = 0, chained = 0;
    const struct entry *newer = NULL;
    for (const struct entry *at = self->newest; at != NULL; newer = at, at = at->older) {
        assert(at->newer == newer);
        assert(at->bytes == sizeof *at + at->key_bytes + message_bytes(&at->frames));
        entries += 1;
        bytes += at->bytes;
    }
    assert(self->oldest == newer);
    for (uint32_t i = 0; i < CHAINS; i++) {
        for (const struct entry *at = self->chains[i]; at != NULL; at = at->next_in_chain) {
            assert((at->hash & (CHAINS - 1)) == i);
            chained += 1;
        }
    }
    assert(entries == self->entries);
    assert(chained == self->entries);
    assert(bytes == self->bytes);
    assert(bytes <= self->bytes_max);
}

enum status conditioning_cache_create(struct conditioning_cache **out, uint64_t bytes_max,
                                      struct error *error)
{
    assert(out != NULL);
    if (sodium_init() < 0) {
        return error_set(error, STATUS_INTERNAL, "the hash library does not start");
    }
    struct conditioning_cache *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the cache of encodings");
    }
    self->bytes_max = bytes_max;
    crypto_shorthash_keygen(self->hash_key);
    *out = self;
    return STATUS_OK;
}

// ---- entries

static uint64_t hash_of(const struct conditioning_cache *self, struct bytes key)
{
    uint8_t hash[crypto_shorthash_BYTES];
    crypto_shorthash(hash, key.data, key.size, self->hash_key);
    return load_u64(hash);
}

static struct entry *find(const struct conditioning_cache *self, struct bytes key, uint64_t hash)
{
    struct entry *entry = self->chains[hash & (CHAINS - 1)];
    while (entry != NULL && (entry->hash != hash || entry->key_bytes != key.size ||
                             memcmp(entry->key, key.data, key.size) != 0)) {
        entry = entry->next_in_chain;
    }
    return entry;
}

static void unlink_use(struct conditioning_cache *self, struct entry *entry)
{
    if (entry->newer != NULL)
        entry->newer->older = entry->older;
    else
        self->newest = entry->older;
    if (entry->older != NULL)
        entry->older->newer = entry->newer;
    else
        self->oldest = entry->newer;
}

static void link_newest(struct conditioning_cache *self, struct entry *entry)
{
    entry->newer = NULL;
    entry->older = self->newest;
    if (self->newest != NULL)
        self->newest->newer = entry;
    else
        self->oldest = entry;
    self->newest = entry;
}

static void remove_entry(struct conditioning_cache *self, struct entry *entry)
{
    assert(self->entries > 0);
    assert(self->bytes >= entry->bytes);
    struct entry **link = &self->chains[entry->hash & (CHAINS - 1)];
    while (*link != entry) link = &(*link)->next_in_chain;
    *link = entry->next_in_chain;
    unlink_use(self, entry);
    self->entries -= 1;
    self->bytes -= entry->bytes;
    message_clear(&entry->frames);
    free(entry);
}

void conditioning_cache_destroy(struct conditioning_cache **self_p)
{
    assert(self_p != NULL);
    struct conditioning_cache *self = *self_p;
    if (self == NULL) return;
    while (self->oldest != NULL) remove_entry(self, self->oldest);
    assert(self->bytes == 0);
    free(self);
    *self_p = NULL;
}

static enum status keep_frames(struct message *to, struct message *from)
{
    enum status status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < from->count; i++) {
        struct bytes frame = message_frame(from, i);
        status = frame.size >= SHARED_BYTES_MIN ? message_append_shared(to, from, i)
                                                : message_append(to, frame);
    }
    return status;
}

static struct entry *create_entry(struct bytes key, struct message *answer)
{
    struct entry *entry = malloc(sizeof *entry + key.size);
    if (entry == NULL) return NULL;
    *entry = (struct entry){.key_bytes = key.size};
    memcpy(entry->key, key.data, key.size);
    message_init(&entry->frames);
    if (keep_frames(&entry->frames, answer) != STATUS_OK) {
        message_clear(&entry->frames);
        free(entry);
        return NULL;
    }
    entry->bytes = sizeof *entry + key.size + message_bytes(answer);
    return entry;
}

// ---- questions

struct message *conditioning_cache_find(struct conditioning_cache *self, struct bytes key)
{
    assert(self != NULL);
    assert(key.size > 0);
    if (self->bytes_max == 0) return NULL;
    struct entry *entry = find(self, key, hash_of(self, key));
    if (entry == NULL) {
        self->misses += 1;
        return NULL;
    }
    self->hits += 1;
    unlink_use(self, entry);
    link_newest(self, entry);
    return &entry->frames;
}

void conditioning_cache_put(struct conditioning_cache *self, struct bytes key, uint64_t model,
                            struct message *answer)
{
    assert(self != NULL);
    assert(key.size > 0);
    uint64_t bytes = sizeof(struct entry) + key.size + message_bytes(answer);
    if (bytes > self->bytes_max) return;
    uint64_t hash = hash_of(self, key);
    if (find(self, key, hash) != NULL) return;
    struct entry *entry = create_entry(key, answer);
    if (entry == NULL) return;  // a cache may do without
    while (self->bytes + bytes > self->bytes_max) remove_entry(self, self->oldest);
    entry->hash = hash;
    entry->model = model;
    entry->next_in_chain = self->chains[hash & (CHAINS - 1)];
    self->chains[hash & (CHAINS - 1)] = entry;
    link_newest(self, entry);
    self->entries += 1;
    self->bytes += bytes;
}

void conditioning_cache_forget(struct conditioning_cache *self, uint64_t model)
{
    assert(self != NULL);
    struct entry *older = NULL;
    for (struct entry *entry = self->newest; entry != NULL; entry = older) {
        older = entry->older;
        if (entry->model == model) remove_entry(self, entry);
    }
}

struct conditioning_counts conditioning_cache_counts(const struct conditioning_cache *self)
{
    assert(self != NULL);
    return (struct conditioning_counts){.entries = self->entries,
                                        .bytes = self->bytes,
                                        .limit_bytes = self->bytes_max,
                                        .hits = self->hits,
                                        .misses = self->misses};
}
