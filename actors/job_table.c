// job_table.c - a pool of jobs, two hash tables over it and one list through it.

#include "actors/job_table.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct job_table {
    struct job *pool;      // jobs_max of them
    uint32_t jobs_max;     // fixed at creation
    uint32_t count;        // in use
    struct job *free;      // list through next
    struct job *first;     // all in use, newest first
    uint64_t last_number;  // given out
    uint32_t mask;         // buckets - 1
    struct job **by_key;   // chains
    struct job **by_number;
};

// Finalizer of splitmix64 (Steele, Lea, Flood 2014).
static uint64_t mix(uint64_t value)
{
    value ^= value >> 30;
    value *= 0xbf58476d1ce4e5b9u;
    value ^= value >> 27;
    value *= 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

static uint64_t digest_bytes(struct bytes bytes, uint64_t seed)
{
    const uint8_t *at = bytes.data;
    uint64_t left = bytes.size;
    uint64_t lanes[4] = {seed, seed ^ 0x9e3779b97f4a7c15u, ~seed, seed + bytes.size};
    for (; left >= 32; left -= 32, at += 32) {
        for (int i = 0; i < 4; i++) {
            uint64_t word = (lanes[i] ^ load_u64(at + 8 * i)) * 0xff51afd7ed558ccdu;
            lanes[i] = word ^ word >> 29;
        }
    }
    uint8_t tail[32] = {0};
    if (left > 0) memcpy(tail, at, left);
    uint64_t sum = bytes.size;
    for (int i = 0; i < 4; i++) sum = mix(sum ^ lanes[i] ^ load_u64(tail + 8 * i));
    return sum;
}

uint64_t message_digest(const struct message *message, uint32_t first, uint64_t seed)
{
    for (uint32_t i = first; i < message->count; i++) {
        seed = digest_bytes(message_frame(message, i), seed);
    }
    return seed;
}

enum status job_table_create(struct job_table **out, uint32_t jobs_max, uint64_t first_number,
                             struct error *error)
{
    assert(out != NULL);
    assert(jobs_max >= 1);
    assert(first_number >= 1);
    uint32_t buckets = 16;
    while (buckets < 2 * jobs_max && buckets < 1u << 20) buckets *= 2;

    struct job_table *self = calloc(1, sizeof *self);
    if (self == NULL) goto no_memory;
    self->pool = calloc(jobs_max, sizeof *self->pool);
    self->by_key = calloc(buckets, sizeof *self->by_key);
    self->by_number = calloc(buckets, sizeof *self->by_number);
    if (self->pool == NULL || self->by_key == NULL || self->by_number == NULL) goto no_memory;
    self->jobs_max = jobs_max;
    self->last_number = first_number - 1;
    self->mask = buckets - 1;
    for (uint32_t i = jobs_max; i-- > 0;) {
        self->pool[i].next = self->free;
        self->free = &self->pool[i];
    }
    *out = self;
    return STATUS_OK;

no_memory:
    job_table_destroy(&self);
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for %u jobs", jobs_max);
}

void job_table_destroy(struct job_table **self_p)
{
    assert(self_p != NULL);
    struct job_table *self = *self_p;
    if (self == NULL) return;
    for (struct job *job = self->first; job != NULL; job = job->next) {
        message_clear(&job->frames);
        free(job->stack);
    }
    free(self->pool);
    free(self->by_key);
    free(self->by_number);
    free(self);
    *self_p = NULL;
}

static struct job **key_bucket(struct job_table *self, uint32_t user,
                               const uint8_t id[JOB_ID_BYTES])
{
    uint64_t hash = mix(load_u64(id) ^ mix(load_u64(id + 8) + user));
    return &self->by_key[hash & self->mask];
}

static struct job **number_bucket(struct job_table *self, uint64_t number)
{
    return &self->by_number[number & self->mask];
}

struct job *job_table_add(struct job_table *self, uint32_t user, const uint8_t id[JOB_ID_BYTES])
{
    assert(self != NULL);
    assert(job_table_find(self, user, id) == NULL);
    struct job *job = self->free;
    if (job == NULL) return NULL;
    self->free = job->next;

    memset(job, 0, sizeof *job);
    message_init(&job->frames);
    job->user = user;
    memcpy(job->id, id, JOB_ID_BYTES);
    job->number = ++self->last_number;
    struct job **bucket = key_bucket(self, user, id);
    job->next_by_key = *bucket;
    *bucket = job;
    bucket = number_bucket(self, job->number);
    job->next_by_number = *bucket;
    *bucket = job;
    job->next = self->first;
    if (self->first != NULL) self->first->previous = job;
    self->first = job;
    self->count += 1;
    return job;
}

void job_table_remove(struct job_table *self, struct job *job)
{
    assert(self != NULL);
    assert(!job->entry.queued);
    assert(self->count > 0);

    struct job **link = key_bucket(self, job->user, job->id);
    while (*link != job) link = &(*link)->next_by_key;
    *link = job->next_by_key;
    link = number_bucket(self, job->number);
    while (*link != job) link = &(*link)->next_by_number;
    *link = job->next_by_number;
    if (job->previous != NULL)
        job->previous->next = job->next;
    else
        self->first = job->next;
    if (job->next != NULL) job->next->previous = job->previous;
    message_clear(&job->frames);
    free(job->stack);
    job->stack = NULL;
    job->number = 0;
    job->next = self->free;
    self->free = job;
    self->count -= 1;
}

struct job *job_table_find(struct job_table *self, uint32_t user, const uint8_t id[JOB_ID_BYTES])
{
    assert(self != NULL);
    struct job *job = *key_bucket(self, user, id);
    while (job != NULL && (job->user != user || memcmp(job->id, id, JOB_ID_BYTES) != 0)) {
        job = job->next_by_key;
    }
    return job;
}

struct job *job_table_find_number(struct job_table *self, uint64_t number)
{
    assert(self != NULL);
    struct job *job = *number_bucket(self, number);
    while (job != NULL && job->number != number) job = job->next_by_number;
    return job;
}

struct job *job_table_first(struct job_table *self)
{
    assert(self != NULL);
    return self->first;
}

uint32_t job_table_count(const struct job_table *self)
{
    assert(self != NULL);
    return self->count;
}
