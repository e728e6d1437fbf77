// job_queue.h - which waiting job goes next: fair between users, then between a user's flows, then
// by priority with ageing, then first come first served.
//
// Fairness is start-time fair queueing at two levels (Goyal, Vin, Cheng 1997): each user, and
// within a user each flow (a connection, where many people share one user), has a virtual time that
// grows by the cost of what was taken; the smallest goes next, and whoever comes back from idleness
// starts at the virtual time of the moment, so that nobody saves up a burst. Every service is
// scheduled for itself. Jobs that come back from a dead worker are served before everything else.
//
//     struct job_entry entry = {.service = 0, .user = 3, .flow = 17, .cost = 16, .credit = 1};
//     job_queue_push(queue, &entry, now_ns);
//     struct job_entry *next = job_queue_take(queue, 0, credit_free, now_ns);

#ifndef ACTORS_JOB_QUEUE_H
#define ACTORS_JOB_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

// Bounds of the tables behind the virtual times.
#define JOB_SERVICES_MAX 128u
#define JOB_USERS_MAX 64u
#define JOB_FLOWS_MAX 1024u

// Where a job may have to run: a number from 1 to 63 that the queue compares with nothing.
#define JOB_PLACES_MAX 64u
#define JOB_ANYWHERE 0u

// A second of waiting is worth so many points of priority.
#define JOB_AGEING_PER_SECOND 1

// What the queue needs to know of a job; embedded in the router's struct job.
struct job_entry {
    uint32_t service;    // below JOB_SERVICES_MAX
    uint32_t user;       // below JOB_USERS_MAX
    uint32_t flow;       // below JOB_FLOWS_MAX; of that user
    uint32_t cost;       // planned work, at least 1; what fairness is measured in
    uint32_t credit;     // of a worker that it takes
    uint32_t place;      // below JOB_PLACES_MAX: where it should run
    uint64_t bytes;      // of memory that it holds while it waits
    int32_t priority;    // higher first among one flow's jobs
    bool returned;       // came back from a dead worker, or for want of memory
    bool alone;          // must run with nobody beside it: goes before all, for all wait for it
    uint64_t user_time;  // virtual times of its user and its flow when it was taken
    uint64_t flow_time;
    uint64_t enqueued_ns;    // when it was pushed first; set by push unless returned
    struct job_entry *next;  // links of the queue; NULL and unqueued outside
    struct job_entry *previous;
    bool queued;  // is in a queue
};

struct job_queue;

// Ownership: the caller owns *out, and every entry always.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    one, as all here.
enum status job_queue_create(struct job_queue **out, struct error *error);

// Destroys the queue; entries still in it are forgotten. NULL is allowed.
void job_queue_destroy(struct job_queue **self_p);

// Adds an entry that is in no queue.
void job_queue_push(struct job_queue *self, struct job_entry *entry, uint64_t now_ns);

// Takes an entry out, wherever it stands.
void job_queue_remove(struct job_queue *self, struct job_entry *entry);

// The entry of a service that goes next, still queued; NULL when none waits. Entries of a place
// whose bit is set in closed are passed over.
struct job_entry *job_queue_peek(struct job_queue *self, uint32_t service, uint64_t now_ns,
                                 uint64_t closed);

// Takes the entry that job_queue_peek names and charges its user and flow.
void job_queue_take(struct job_queue *self, struct job_entry *entry);

// True when `waiting` would have been taken before `taken`, had it been there at that time, and
// they are of different flows: it may overtake it where that has not begun.
bool job_queue_overtakes(const struct job_queue *self, const struct job_entry *waiting,
                         const struct job_entry *taken);

// How many wait for a service, and the enqueued_ns of the oldest (0 when none waits).
uint32_t job_queue_depth(const struct job_queue *self, uint32_t service);
uint64_t job_queue_oldest_ns(const struct job_queue *self, uint32_t service);

// How many of these have that place.
uint32_t job_queue_depth_at(const struct job_queue *self, uint32_t service, uint32_t place);

// How many of a flow wait, for whatever service, and their bytes.
uint32_t job_queue_flow_depth(const struct job_queue *self, uint32_t flow);
uint64_t job_queue_flow_bytes(const struct job_queue *self, uint32_t flow);

// True when a flow that has `own` waiting may add `more`, where `waiting` wait in all and `limit`
// may: it gets seven for each one that is still free then (a dynamic threshold: Choudhury and Hahne
// 1998), so that whoever floods leaves room to those who do not. Requests, or bytes.
bool job_queue_may_add(uint64_t own, uint64_t more, uint64_t waiting, uint64_t limit);

#endif  // ACTORS_JOB_QUEUE_H
