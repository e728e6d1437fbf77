// conditioning_cache.h - answers to text requests that were computed before.
//
// Encoding text is a pure function, so an answer is known by what was asked: the key holds all of
// it (conditioning_key.h), and is compared whole, not only its hash. Bounded in bytes, keys and
// overhead counted; the least recently used goes first. Answers are kept as frames that are shared,
// so neither keeping one nor finding it copies a tensor.
//
// An entry belongs to a model as it was when the answer was computed. Whoever sees that model
// change takes all its entries away.

#ifndef ACTORS_CONDITIONING_CACHE_H
#define ACTORS_CONDITIONING_CACHE_H

#include "runtime/message.h"

struct conditioning_cache;

struct conditioning_counts {
    uint64_t entries;      // now
    uint64_t bytes;        // of them, keys and overhead too
    uint64_t limit_bytes;  // of bytes; 0: the cache is off
    uint64_t hits;         // since creation
    uint64_t misses;       // likewise
};

// Makes a cache of bytes_max; 0 makes one that keeps nothing, finds nothing and counts nothing.
// Ownership: the caller owns *out.
// Errors:    RESOURCE_EXHAUSTED; INTERNAL when the hash library does not start.
// Thread:    one, as all here.
enum status conditioning_cache_create(struct conditioning_cache **out, uint64_t bytes_max,
                                      struct error *error);

// NULL is allowed.
void conditioning_cache_destroy(struct conditioning_cache **self_p);

// The answer to a key (header, body, payloads), or NULL; counted as a hit or a miss.
// Ownership: borrowed until the next call; its frames may be shared.
struct message *conditioning_cache_find(struct conditioning_cache *self, struct bytes key);

// Keeps an answer; what is known already, or does not fit at all, is left alone.
// Ownership: *answer stays the caller's; its large frames are shared, small ones and the key
// copied.
void conditioning_cache_put(struct conditioning_cache *self, struct bytes key, uint64_t model,
                            struct message *answer);

// Forgets every answer of a model.
void conditioning_cache_forget(struct conditioning_cache *self, uint64_t model);

// How it stands.
struct conditioning_counts conditioning_cache_counts(const struct conditioning_cache *self);

// Asserts every invariant; for tests.
void conditioning_cache_check(const struct conditioning_cache *self);

#endif  // ACTORS_CONDITIONING_CACHE_H
