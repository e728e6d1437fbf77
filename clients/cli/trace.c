// trace.c - a JSON document that grows under a lock; trace.h holds the contract. Answers come from
// a daemon, so what they bring is read as JSON and left out when it is none.

#include "clients/cli/trace.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#define EVENTS_MAX 1000000u  // more than a viewer takes

struct trace {
    pthread_mutex_t lock;  // guards events
    json_t *events;        // array
};

struct trace *trace_create(void)
{
    struct trace *self = calloc(1, sizeof *self);
    if (self == NULL) return NULL;
    pthread_mutex_init(&self->lock, NULL);
    self->events = json_array();
    return self;
}

void trace_destroy(struct trace **self_p)
{
    struct trace *self = *self_p;
    if (self == NULL) return;
    json_decref(self->events);
    pthread_mutex_destroy(&self->lock);
    free(self);
    *self_p = NULL;
}

void trace_add(struct trace *self, const struct luna_answer *answer, const char *name,
               uint32_t client, const uint64_t times_ns[2])
{
    const struct luna_tensor *tensor = luna_answer_tensor(answer, CODEC_TRACE_TENSOR);
    json_t *told = NULL;
    if (tensor != NULL) told = json_loadb(tensor->data, tensor->bytes, 0, NULL);
    json_t *own =
        json_pack("{s:s, s:s, s:s, s:f, s:f, s:i, s:i}", "name", name, "cat", "request", "ph", "X",
                  "ts", (double)times_ns[0] / 1e3, "dur", (double)(times_ns[1] - times_ns[0]) / 1e3,
                  "pid", (int)getpid(), "tid", (int)client);
    pthread_mutex_lock(&self->lock);
    if (json_array_size(self->events) < EVENTS_MAX) {
        if (json_is_array(told)) json_array_extend(self->events, told);
        json_array_append(self->events, own);
    }
    pthread_mutex_unlock(&self->lock);
    json_decref(told);
    json_decref(own);
}

enum status trace_write(const struct trace *self, const char *path, struct error *error)
{
    json_t *document =
        json_pack("{s:O, s:s}", "traceEvents", self->events, "displayTimeUnit", "ms");
    int failed = document == NULL ? -1 : json_dump_file(document, path, JSON_COMPACT);
    json_decref(document);
    if (failed == 0) return STATUS_OK;
    return error_set(error, STATUS_INTERNAL, "the trace cannot be written to %s", path);
}
