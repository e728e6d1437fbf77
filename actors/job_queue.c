// job_queue.c - one list a service in order of arrival; the next job is found by one pass over it.
//
// A pass costs a few nanoseconds an entry and the router bounds the entries (queue_requests_max),
// so a cleverer structure would only be harder to read. Virtual times are kept per service, user
// and flow.

#include "actors/job_queue.h"

#include <assert.h>
#include <stdlib.h>

struct service {
    struct job_entry *first;        // in order of arrival; returned ones in front
    struct job_entry *last;         // NULL when empty
    uint32_t depth;                 // entries in the list
    uint64_t clock;                 // virtual time of the last user served
    uint64_t users[JOB_USERS_MAX];  // virtual time of each user
    uint32_t users_waiting[JOB_USERS_MAX];
    uint64_t flows[JOB_FLOWS_MAX];  // virtual time of each flow
    uint32_t flows_waiting[JOB_FLOWS_MAX];
    uint64_t user_clocks[JOB_USERS_MAX];  // virtual time of the user's last flow served
};

struct job_queue {
    struct service *services[JOB_SERVICES_MAX];  // made at first use
    uint32_t waiting[JOB_FLOWS_MAX];             // of each flow, over all services
    uint64_t bytes[JOB_FLOWS_MAX];               // of those
};

enum status job_queue_create(struct job_queue **out, struct error *error)
{
    assert(out != NULL);
    struct job_queue *self = calloc(1, sizeof *self);
    if (self == NULL)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the job queue");
    // A service's tables are some kilobytes; all are made here so that pushing cannot fail.
    for (uint32_t i = 0; i < JOB_SERVICES_MAX; i++) {
        self->services[i] = calloc(1, sizeof *self->services[i]);
        if (self->services[i] == NULL) {
            job_queue_destroy(&self);
            return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the job queue");
        }
    }
    *out = self;
    return STATUS_OK;
}

void job_queue_destroy(struct job_queue **self_p)
{
    assert(self_p != NULL);
    if (*self_p == NULL) return;
    for (uint32_t i = 0; i < JOB_SERVICES_MAX; i++) free((*self_p)->services[i]);
    free(*self_p);
    *self_p = NULL;
}

static struct service *service_of(const struct job_queue *self, const struct job_entry *entry)
{
    assert(entry->service < JOB_SERVICES_MAX);
    assert(entry->user < JOB_USERS_MAX);
    assert(entry->flow < JOB_FLOWS_MAX);
    return self->services[entry->service];
}

static void link_last(struct service *service, struct job_entry *entry)
{
    entry->previous = service->last;
    entry->next = NULL;
    if (service->last != NULL)
        service->last->next = entry;
    else
        service->first = entry;
    service->last = entry;
}

static void link_first(struct service *service, struct job_entry *entry)
{
    entry->previous = NULL;
    entry->next = service->first;
    if (service->first != NULL)
        service->first->previous = entry;
    else
        service->last = entry;
    service->first = entry;
}

void job_queue_push(struct job_queue *self, struct job_entry *entry, uint64_t now_ns)
{
    assert(self != NULL);
    assert(!entry->queued);
    assert(entry->cost >= 1);
    assert(entry->place < JOB_PLACES_MAX);

    struct service *service = service_of(self, entry);
    if (entry->returned) {
        link_first(service, entry);
    } else {
        entry->enqueued_ns = now_ns;
        link_last(service, entry);
    }
    if (service->users_waiting[entry->user] == 0 && service->users[entry->user] < service->clock) {
        service->users[entry->user] = service->clock;
    }
    uint64_t user_clock = service->user_clocks[entry->user];
    if (service->flows_waiting[entry->flow] == 0 && service->flows[entry->flow] < user_clock) {
        service->flows[entry->flow] = user_clock;
    }
    service->users_waiting[entry->user] += 1;
    service->flows_waiting[entry->flow] += 1;
    service->depth += 1;
    self->waiting[entry->flow] += 1;
    self->bytes[entry->flow] += entry->bytes;
    entry->queued = true;
}

void job_queue_remove(struct job_queue *self, struct job_entry *entry)
{
    assert(self != NULL);
    assert(entry->queued);

    struct service *service = service_of(self, entry);
    assert(service->depth > 0);
    if (entry->previous != NULL)
        entry->previous->next = entry->next;
    else
        service->first = entry->next;
    if (entry->next != NULL)
        entry->next->previous = entry->previous;
    else
        service->last = entry->previous;
    service->users_waiting[entry->user] -= 1;
    service->flows_waiting[entry->flow] -= 1;
    service->depth -= 1;
    self->waiting[entry->flow] -= 1;
    self->bytes[entry->flow] -= entry->bytes;
    entry->next = NULL;
    entry->previous = NULL;
    entry->queued = false;
}

static int64_t aged_priority(const struct job_entry *entry, uint64_t now_ns)
{
    uint64_t waited_s = (now_ns - entry->enqueued_ns) / 1000000000u;
    return entry->priority + JOB_AGEING_PER_SECOND * (int64_t)waited_s;
}

// True when a goes before b, which stands earlier in the list.
static bool goes_before(const struct service *service, const struct job_entry *a,
                        const struct job_entry *b, uint64_t now_ns)
{
    if (a->alone != b->alone) return a->alone;
    if (a->returned != b->returned) return a->returned;
    if (service->users[a->user] != service->users[b->user]) {
        return service->users[a->user] < service->users[b->user];
    }
    if (a->user != b->user) return false;
    if (service->flows[a->flow] != service->flows[b->flow]) {
        return service->flows[a->flow] < service->flows[b->flow];
    }
    if (a->flow != b->flow) return false;
    return aged_priority(a, now_ns) > aged_priority(b, now_ns);
}

struct job_entry *job_queue_peek(struct job_queue *self, uint32_t service_index, uint64_t now_ns,
                                 uint64_t closed)
{
    assert(self != NULL);
    assert(service_index < JOB_SERVICES_MAX);
    const struct service *service = self->services[service_index];
    struct job_entry *best = NULL;
    for (struct job_entry *entry = service->first; entry != NULL; entry = entry->next) {
        if ((closed >> entry->place & 1) != 0) continue;
        if (best == NULL || goes_before(service, entry, best, now_ns)) best = entry;
    }
    return best;
}

void job_queue_take(struct job_queue *self, struct job_entry *entry)
{
    assert(self != NULL);
    struct service *service = service_of(self, entry);
    job_queue_remove(self, entry);
    if (entry->returned) return;  // it was charged when it was taken first
    entry->user_time = service->users[entry->user];
    entry->flow_time = service->flows[entry->flow];
    service->clock = entry->user_time;
    service->user_clocks[entry->user] = entry->flow_time;
    service->users[entry->user] += entry->cost;
    service->flows[entry->flow] += entry->cost;
}

bool job_queue_overtakes(const struct job_queue *self, const struct job_entry *waiting,
                         const struct job_entry *taken)
{
    assert(self != NULL);
    assert(waiting->queued);
    assert(!taken->queued);
    assert(waiting->service == taken->service);
    const struct service *service = service_of(self, waiting);
    if (taken->returned) return false;
    if (waiting->user != taken->user) return service->users[waiting->user] <= taken->user_time;
    return waiting->flow != taken->flow && service->flows[waiting->flow] <= taken->flow_time;
}

uint32_t job_queue_depth(const struct job_queue *self, uint32_t service)
{
    assert(self != NULL);
    assert(service < JOB_SERVICES_MAX);
    return self->services[service]->depth;
}

uint32_t job_queue_depth_at(const struct job_queue *self, uint32_t service, uint32_t place)
{
    assert(self != NULL);
    assert(service < JOB_SERVICES_MAX);
    assert(place < JOB_PLACES_MAX);
    uint32_t depth = 0;
    for (const struct job_entry *entry = self->services[service]->first; entry != NULL;
         entry = entry->next) {
        depth += entry->place == place;
    }
    return depth;
}

uint32_t job_queue_flow_depth(const struct job_queue *self, uint32_t flow)
{
    assert(self != NULL);
    assert(flow < JOB_FLOWS_MAX);
    return self->waiting[flow];
}

uint64_t job_queue_flow_bytes(const struct job_queue *self, uint32_t flow)
{
    assert(self != NULL);
    assert(flow < JOB_FLOWS_MAX);
    return self->bytes[flow];
}

bool job_queue_may_add(uint64_t own, uint64_t more, uint64_t waiting, uint64_t limit)
{
    if (waiting > limit || more > limit - waiting) return false;
    return own / 7 <= limit - waiting - more;
}

uint64_t job_queue_oldest_ns(const struct job_queue *self, uint32_t service)
{
    assert(self != NULL);
    assert(service < JOB_SERVICES_MAX);
    uint64_t oldest = 0;
    for (struct job_entry *entry = self->services[service]->first; entry != NULL;
         entry = entry->next) {
        if (oldest == 0 || entry->enqueued_ns < oldest) oldest = entry->enqueued_ns;
    }
    return oldest;
}
