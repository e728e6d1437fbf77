// reply_cache.h - the last answers, for clients that ask again because an answer was lost on the
// way.
//
// Bounded in entries, bytes and age; the oldest go first. Answers are kept as shared frames, so
// keeping one costs no copy.

#ifndef ACTORS_REPLY_CACHE_H
#define ACTORS_REPLY_CACHE_H

#include "actors/job_table.h"

struct reply_cache;

// Ownership: the caller owns *out.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    one, as all here.
enum status reply_cache_create(struct reply_cache **out, uint32_t entries_max, uint64_t bytes_max,
                               uint64_t age_max_ns, struct error *error);
void reply_cache_destroy(struct reply_cache **self_p);

// Keeps the frames of an answer (header, body, payloads; shared, *reply is unchanged). An answer
// larger than the whole cache is not kept.
void reply_cache_put(struct reply_cache *self, uint32_t user, const uint8_t id[JOB_ID_BYTES],
                     uint64_t digest, struct message *reply, uint64_t now_ns);

// Appends the frames kept for (user, id) to *out and returns true; *digest is that of the request.
bool reply_cache_get(struct reply_cache *self, uint32_t user, const uint8_t id[JOB_ID_BYTES],
                     uint64_t now_ns, uint64_t *digest, struct message *out);

// Forgets what is too old, and everything of a user whose index will be somebody else's.
void reply_cache_expire(struct reply_cache *self, uint64_t now_ns);
void reply_cache_forget_user(struct reply_cache *self, uint32_t user);

#endif  // ACTORS_REPLY_CACHE_H
