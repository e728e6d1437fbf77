// router_places.c - jobs whose tensors lie on a device: what they want, and when they cannot have
// it there.
//
// Such a job waits for a worker on its device while there is one of its service, and while there is
// none at all: then the scaler, who hears where tensors lie, starts the first one there if it can.
// Where workers are on other devices only, nobody waits for what may never come: the client is told
// that its lease is none here, brings its tensors by the host, and any worker takes them. So it is
// too where its own device lacks memory for the job and another may have it. Meanwhile the scaler
// has heard what was wanted, and may have a worker there when the next one comes.

#include "actors/router_state.h"

#include <assert.h>
#include <string.h>

#include "base/text.h"

uint32_t router_place(struct router *self, const char *device)
{
    assert(device[0] != '\0');
    for (uint32_t i = JOB_ANYWHERE + 1; i < JOB_PLACES_MAX; i++) {
        if (self->places[i][0] == '\0') text_set(self->places[i], sizeof self->places[i], device);
        if (strcmp(self->places[i], device) == 0) return i;
    }
    return JOB_ANYWHERE;
}

bool router_serves(const struct worker *worker, uint32_t service)
{
    return worker->id != 0 && worker->service == service && !worker->draining;
}

void router_count_place(struct router *self, const struct job_entry *entry)
{
    assert(entry->service < JOB_SERVICES_MAX);
    assert(entry->place < JOB_PLACES_MAX);
    if (entry->place != JOB_ANYWHERE) self->services[entry->service].placed[entry->place] += 1;
}

void router_tell_places(const struct router *self, uint32_t service, luna_Demand *demand)
{
    assert(service < JOB_SERVICES_MAX);
    assert(demand->devices_count == 0);
    for (uint32_t i = JOB_ANYWHERE + 1; i < JOB_PLACES_MAX; i++) {
        uint64_t jobs_total = self->services[service].placed[i];
        if (jobs_total == 0) continue;
        if (demand->devices_count == sizeof demand->devices / sizeof demand->devices[0]) return;
        luna_DeviceDemand *device = &demand->devices[demand->devices_count++];
        text_set(device->device, sizeof device->device, self->places[i]);
        device->jobs_total = jobs_total;
        device->depth = job_queue_depth_at(self->queue, service, i);
    }
}

// Workers of the entry's service: on its device, and on others.
static void count_workers(const struct router *self, const struct job_entry *entry, uint32_t *there,
                          uint32_t *elsewhere)
{
    *there = 0;
    *elsewhere = 0;
    for (uint32_t i = 0; i < ROUTER_WORKERS_MAX; i++) {
        const struct worker *worker = &self->workers[i];
        if (!router_serves(worker, entry->service)) continue;
        *there += worker->place == entry->place;
        *elsewhere += worker->place != entry->place;
    }
}

uint32_t router_place_of(const struct router *self, const struct job_entry *entry)
{
    uint32_t there = 0, elsewhere = 0;
    count_workers(self, entry, &there, &elsewhere);
    return there > 0 ? entry->place : JOB_ANYWHERE;
}

// The client knows a lost lease by the words "device lease".
static void refer_to_host(struct router *self, struct job *job, const char *why)
{
    struct error error;
    error_set(&error, STATUS_NOT_FOUND, "device lease of %s: %s; bring the tensors by the host",
              self->places[job->entry.place], why);
    router_fail(self, job, &error);
}

bool router_is_astray(const struct router *self, const struct job_entry *entry)
{
    if (entry->place == JOB_ANYWHERE) return false;
    uint32_t there = 0, elsewhere = 0;
    count_workers(self, entry, &there, &elsewhere);
    return there == 0 && elsewhere > 0;
}

void router_turn_away(struct router *self, struct job *job)
{
    assert(job->entry.place != JOB_ANYWHERE);
    refer_to_host(self, job, "no worker for this request is there");
}

bool router_lacks_memory_there(struct router *self, struct job *job)
{
    if (job->entry.place == JOB_ANYWHERE) return false;
    uint32_t there = 0, elsewhere = 0;
    count_workers(self, &job->entry, &there, &elsewhere);
    if (elsewhere == 0) return false;
    refer_to_host(self, job, "it lacks memory for this request, another device may have it");
    return true;
}
