// router_jobs.c - a job's way: checked, admitted, pinned, resolved, queued, run, answered once,
// forgotten.

#include "actors/router_state.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "actors/conditioning_key.h"
#include "actors/event.h"
#include "actors/post.h"

const char *router_operation_name(uint32_t operation)
{
    const char *name = codec_operation_name((luna_Operation)operation);
    return name != NULL ? name : "?";
}

// ---- events

void router_event(struct router *self, const char *topic, const struct job *job,
                  const struct error *error, uint32_t execute_ms)
{
    char text[sizeof((luna_Event *)0)->message] = "";
    if (error != NULL) {
        text_set(text, sizeof text, error->message);
    } else if (job != NULL) {
        snprintf(text, sizeof text, "%s is done, in %u ms", router_operation_name(job->operation),
                 execute_ms);
    }
    luna_Letter letter = event_make(topic, "router", text);
    luna_Event *event = &letter.letter.event;
    if (error != NULL) event->code = (luna_Code)error->status;
    if (job != NULL) {
        text_set(event->operation, sizeof event->operation, router_operation_name(job->operation));
        if (job->entry.service < JOB_SERVICES_MAX) {
            text_set(event->model, sizeof event->model, self->services[job->entry.service].model);
        }
        event->id.size = JOB_ID_BYTES;
        memcpy(event->id.bytes, job->id, JOB_ID_BYTES);
        event->worker = job->worker;
        uint64_t waited_until = job->started_ns != 0 ? job->started_ns : router_now(self);
        event->queue_ms = (uint32_t)((waited_until - job->arrived_ns) / 1000000u);
        event->execute_ms = execute_ms;
    }
    if (post_letter(self->events, &letter, NULL) != STATUS_OK) self->events_dropped += 1;
}

// ---- the end of a job

static bool is_waiting(const struct job *job)
{
    return job->state == JOB_PINNING || job->state == JOB_RESOLVING || job->state == JOB_WAITING;
}

void router_wait(struct router *self, struct job *job, enum job_state state)
{
    if (!is_waiting(job)) {
        self->waiting += 1;
        self->waiting_bytes += job->bytes;
    }
    job->state = state;
    assert(is_waiting(job));
}

static void end_waiting(struct router *self, struct job *job, enum job_state state)
{
    if (is_waiting(job)) {
        assert(self->waiting > 0);
        self->waiting -= 1;
        self->waiting_bytes -= job->bytes;
    }
    job->state = state;
    assert(!is_waiting(job));
}

static void forget(struct router *self, struct job *job)
{
    router_release_stack(self, job);
    if (job->pinned) {
        luna_Letter letter = {.which_letter = luna_Letter_unpin_leases_tag};
        letter.letter.unpin_leases.job = job->number;
        router_post(self, ROUTER_LEASES, &letter, NULL);
    }
    if (job->entry.queued) job_queue_remove(self->queue, &job->entry);
    if (job->state == JOB_WAITING && job->entry.alone) self->alone_waiting -= 1;
    if (job->ask_to != 0) self->asked_bytes -= job->bytes;
    end_waiting(self, job, JOB_ASKED);
    assert(self->users[job->user].jobs > 0);
    self->users[job->user].jobs -= 1;
    self->counts_changed = true;
    job_table_remove(self->jobs, job);
}

void router_fail(struct router *self, struct job *job, const struct error *error)
{
    assert(error->status != STATUS_OK);
    if (job->state == JOB_RUNNING) router_recall(self, job);
    luna_Header reply = luna_Header_init_zero;
    luna_Header asked = luna_Header_init_zero;
    memcpy(asked.id.bytes, job->id, JOB_ID_BYTES);
    asked.id.size = JOB_ID_BYTES;
    asked.operation = (luna_Operation)job->operation;
    codec_start_reply(&asked, &reply);
    codec_set_error(&reply, error);
    router_send_reply(self, &job->route, &reply, (struct bytes){.data = NULL, .size = 0});
    if (error->status == STATUS_CANCELLED)
        self->counts.cancelled += 1;
    else
        self->counts.failed += 1;
    router_event(self, "request.failed", job, error, 0);
    forget(self, job);
}

void router_finish(struct router *self, struct job *job, struct message *reply)
{
    assert(job->state != JOB_RUNNING);
    router_send(self, &job->route, reply);
    forget(self, job);
}

bool router_cancel(struct router *self, uint32_t user, const uint8_t id[JOB_ID_BYTES])
{
    struct job *job = job_table_find(self->jobs, user, id);
    if (job == NULL) return false;
    struct error error;
    error_set(&error, STATUS_CANCELLED, "cancelled by the client");
    router_fail(self, job, &error);
    return true;
}

void router_expire(struct router *self)
{
    uint64_t now = router_now(self);
    struct job *next = NULL;
    for (struct job *job = job_table_first(self->jobs); job != NULL; job = next) {
        next = job->next;
        if (now < job->deadline_ns) continue;
        struct error error;
        error_set(&error, STATUS_DEADLINE_EXCEEDED, "no answer within %lu ms: the request was %s",
                  (unsigned long)((job->deadline_ns - job->arrived_ns) / 1000000u),
                  job->state == JOB_RUNNING ? "running" : "waiting");
        router_fail(self, job, &error);
    }
}

// ---- admission

static const luna_ModelNotice *find_model(const struct router *self, luna_Group group,
                                          const char *name)
{
    const luna_ModelNotice *only = NULL;
    uint32_t offering = 0;
    for (uint32_t i = 0; i < self->models_count; i++) {
        const luna_ModelNotice *notice = &self->models[i];
        if (name[0] != '\0') {
            if (strcmp(notice->model.name, name) == 0) return notice;
            continue;
        }
        bool is_vae = group == luna_Group_VAE;
        if (is_vae ? notice->is_default_vae : notice->is_default_text) return notice;
        if (is_vae ? notice->model.offers_vae : notice->model.offers_text) {
            only = notice;
            offering += 1;
        }
    }
    return offering == 1 ? only : NULL;
}

static enum status resolve_service(struct router *self, const luna_Header *header, uint32_t *out,
                                   struct error *error)
{
    bool is_vae = header->operation == luna_Operation_ENCODE_IMAGE ||
                  header->operation == luna_Operation_DECODE_LATENT;
    luna_Group group = is_vae ? luna_Group_VAE : luna_Group_TEXT;
    enum service_type type = self->config->service.type;
    if (type == SERVICE_VAE && !is_vae) {
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "this daemon serves the VAE only (service.type = vae)");
    }
    if (type == SERVICE_CLIP && is_vae) {
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "this daemon serves text only (service.type = clip)");
    }
    const luna_ModelNotice *notice = find_model(self, group, header->model);
    if (notice == NULL && header->model[0] != '\0') {
        return error_set(error, STATUS_NOT_FOUND, "model \"%s\" is not known here", header->model);
    }
    if (notice == NULL) {
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "no model or several models offer %s, and none is the default: name one",
                         is_vae ? "vae" : "text");
    }
    if (is_vae ? !notice->model.offers_vae : !notice->model.offers_text) {
        return error_set(error, STATUS_FAILED_PRECONDITION, "model \"%s\" (%s) does not offer %s",
                         notice->model.name, notice->model.kind, is_vae ? "vae" : "text");
    }
    *out = router_service(self, group, notice->model.name, true);
    if (*out == JOB_SERVICES_MAX) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "%u services are in use, no more fit",
                         JOB_SERVICES_MAX);
    }
    return STATUS_OK;
}

// What a job is planned to cost (fairness) and how much of a worker it takes (credit).
static void plan_cost(const luna_Header *header, const union codec_request *body,
                      struct job_entry *entry)
{
    uint64_t pixels = 0;
    uint64_t text_bytes = 0;
    for (uint32_t i = 0; i < header->tensors_count; i++) {
        const luna_Tensor *tensor = &header->tensors[i];
        if (tensor->room) continue;
        if (router_encodes(header) && conditioning_is_adapter(&body->encode_text, tensor)) continue;
        if (header->operation == luna_Operation_ENCODE_IMAGE && tensor->dims_count == 4) {
            pixels += tensor->dims[0] * tensor->dims[1] * tensor->dims[2];
        } else if (header->operation == luna_Operation_DECODE_LATENT && tensor->dims_count >= 3) {
            uint64_t latents =
                tensor->dims[tensor->dims_count - 1] * tensor->dims[tensor->dims_count - 2];
            pixels += latents * 64u * (tensor->dims_count == 4 ? tensor->dims[0] : 1);
        } else {
            text_bytes += 75u + tensor->bytes;
        }
    }
    // An image of 512 x 512 costs 64; a row of 77 tokens (some 300 bytes of text, for two encoders)
    // costs 2.
    uint64_t rows = 2 * (1 + text_bytes / 300u);
    bool is_image = pixels > 0;
    uint64_t cost = is_image ? 1 + pixels / 4096u : rows;
    entry->cost = cost > UINT32_MAX / 2 ? UINT32_MAX / 2 : (uint32_t)cost;
    entry->credit = is_image ? 1 : rows > 64 ? 64 : (uint32_t)rows;
}

static uint32_t flow_of(const struct router *self, uint32_t user, const struct route *route)
{
    if (!self->users[user].shared) return user;
    uint32_t hash = 2166136261u;  // FNV-1a
    for (uint32_t i = 0; i < route->length; i++) hash = (hash ^ route->connection[i]) * 16777619u;
    return JOB_USERS_MAX + hash % (JOB_FLOWS_MAX - JOB_USERS_MAX);
}

// Neither all places nor all bytes are for one.
static enum status check_share(struct router *self, uint32_t flow, uint64_t bytes,
                               struct error *error)
{
    uint32_t places = self->config->limits.queue_requests_max;
    uint32_t own = job_queue_flow_depth(self->queue, flow);
    if (self->waiting < places && !job_queue_may_add(own, 1, self->waiting, places)) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                         "%u of your requests are waiting; the last %u of %u places are for others",
                         own, places - self->waiting, places);
    }
    uint64_t limit = self->config->limits.queue_bytes_max;
    uint64_t own_bytes = job_queue_flow_bytes(self->queue, flow);
    bool fits = self->waiting_bytes <= limit && bytes <= limit - self->waiting_bytes;
    if (fits && !job_queue_may_add(own_bytes, bytes, self->waiting_bytes, limit)) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                         "your waiting requests hold %lu bytes, %lu more leave too few of %lu for "
                         "others",
                         (unsigned long)own_bytes, (unsigned long)bytes, (unsigned long)limit);
    }
    return STATUS_OK;
}

static enum status check_room(struct router *self, uint32_t service, uint32_t flow, uint64_t bytes,
                              struct error *error)
{
    const struct service *entry = &self->services[service];
    uint64_t each_ms = entry->execute_ns_mean / 1000000u;
    uint64_t wait_ms = each_ms * job_queue_depth(self->queue, service) / 2;
    uint32_t retry_ms = wait_ms < 20 ? 20 : wait_ms > 5000 ? 5000 : (uint32_t)wait_ms;
    if (check_share(self, flow, bytes, error) != STATUS_OK) {
        error->retry_after_ms = retry_ms;
        return STATUS_RESOURCE_EXHAUSTED;
    }
    if (self->waiting >= self->config->limits.queue_requests_max) {
        error_set(error, STATUS_RESOURCE_EXHAUSTED, "%u requests are waiting, the limit is %u",
                  self->waiting, self->config->limits.queue_requests_max);
        error->retry_after_ms = retry_ms;
        return STATUS_RESOURCE_EXHAUSTED;
    }
    if (self->waiting_bytes + bytes > self->config->limits.queue_bytes_max) {
        error_set(error, STATUS_RESOURCE_EXHAUSTED,
                  "waiting requests hold %lu bytes, %lu more exceed the limit of %lu",
                  (unsigned long)self->waiting_bytes, (unsigned long)bytes,
                  (unsigned long)self->config->limits.queue_bytes_max);
        error->retry_after_ms = retry_ms;
        return STATUS_RESOURCE_EXHAUSTED;
    }
    return STATUS_OK;
}

static uint64_t request_digest(const struct request *request)
{
    const luna_Header *header = &request->header;
    uint64_t seed = (uint64_t)header->operation;
    for (uint32_t i = 0; header->model[i] != '\0'; i++)
        seed = seed * 1099511628211u + (uint8_t)header->model[i];
    for (uint32_t i = 0; i < header->tensors_count; i++) {
        const luna_Tensor *tensor = &header->tensors[i];
        seed = seed * 1099511628211u + tensor->bytes;
        seed = seed * 1099511628211u + (uint64_t)tensor->dtype;
        for (uint32_t dim = 0; dim < tensor->dims_count; dim++)
            seed = seed * 1099511628211u + tensor->dims[dim];
    }
    return message_digest(request->message, request->first + 1, seed);
}

// A request whose id is known: the same request again is answered once, another one is refused.
// Returns true when the message needs nothing more.
static bool handle_repeat(struct router *self, struct request *request, uint64_t digest)
{
    struct error error;
    struct job *job = job_table_find(self->jobs, request->user, request->header.id.bytes);
    uint64_t known = 0;
    struct message cached;
    message_init(&cached);
    if (job != NULL) {
        known = job->digest;
        if (known == digest) job->route = request->route;
    } else if (reply_cache_get(self->replies, request->user, request->header.id.bytes,
                               router_now(self), &known, &cached)) {
        if (known == digest) router_send(self, &request->route, &cached);
    } else {
        message_clear(&cached);
        return false;
    }
    message_clear(&cached);
    if (known != digest) {
        error_set(&error, STATUS_INVALID_ARGUMENT, "this id was used for another request");
        router_refuse(self, request, &error);
    }
    return true;
}

// Room for an answer counts: it must not be given to somebody else while a worker writes into it.
static bool uses_leases(const luna_Header *header)
{
    for (uint32_t i = 0; i < header->tensors_count; i++) {
        if (header->tensors[i].where != luna_Where_FRAME) return true;
    }
    return false;
}

// Makes the job; the message's frames from the header on move into it.
static struct job *add_job(struct router *self, struct request *request, uint64_t digest)
{
    struct job *job = job_table_add(self->jobs, request->user, request->header.id.bytes);
    if (job == NULL) return NULL;
    job->digest = digest;
    job->operation = (uint32_t)request->header.operation;
    job->route = request->route;
    job->want_progress = request->header.want_progress;
    job->admin = self->users[request->user].admin;
    job->arrived_ns = router_now(self);
    job->deadline_ns = job->arrived_ns + (uint64_t)request->header.timeout_ms * 1000000u;
    job->entry.service = JOB_SERVICES_MAX;
    for (uint32_t i = 0; i < request->first; i++) message_drop_first(request->message);
    message_move(&job->frames, request->message);
    job->bytes = message_bytes(&job->frames);
    self->users[request->user].jobs += 1;
    self->counts_changed = true;
    return job;
}

static void pin_leases(struct router *self, struct job *job, const luna_Header *header)
{
    for (uint32_t i = 0; i < header->tensors_count; i++) {
        const luna_Tensor *tensor = &header->tensors[i];
        if (tensor->where == luna_Where_FRAME) continue;
        luna_Letter letter = {.which_letter = luna_Letter_pin_lease_tag};
        luna_PinLease *pin = &letter.letter.pin_lease;
        pin->user = self->users[job->user].uid;
        pin->shared = tensor->shared;
        pin->bytes = tensor->bytes;
        pin->job = job->number;
        pin->tensor = i;
        pin->device = tensor->where == luna_Where_DEVICE;
        pin->has_shared = true;
        job->pinned = true;
        job->pins_pending += 1;
        if (router_post(self, ROUTER_LEASES, &letter, NULL) != STATUS_OK) {
            struct error error;
            error_set(&error, STATUS_INTERNAL, "the lease manager's queue is full");
            router_fail(self, job, &error);
            return;
        }
    }
}

static void post_ask(struct router *self, struct job *job)
{
    end_waiting(self, job, JOB_ASKED);
    luna_Letter letter = {.which_letter = luna_Letter_ask_tag};
    letter.letter.ask.job = job->number;
    letter.letter.ask.admin = job->admin;
    letter.letter.ask.user = self->users[job->user].uid;
    letter.letter.ask.pool_offsets_count = CODEC_TENSORS_MAX;
    memcpy(letter.letter.ask.pool_offsets, job->pool_offsets, sizeof job->pool_offsets);
    if (router_post(self, (enum router_socket)job->ask_to, &letter, &job->frames) == STATUS_OK)
        return;
    struct error error;
    error_set(&error, STATUS_RESOURCE_EXHAUSTED, "too many requests of this kind are waiting");
    error.retry_after_ms = 100;
    router_fail(self, job, &error);
}

// The job's leases are pinned, or it has none: what comes next?
static void go_on(struct router *self, struct job *job)
{
    if (job->ask_to != 0)
        post_ask(self, job);
    else if (job->loras > 0)
        router_resolve(self, job);
    else
        router_enqueue(self, job);
}

static void on_pin_answer(struct router *self, const luna_PinAnswer *answer)
{
    struct job *job = job_table_find_number(self->jobs, answer->job);
    if (job == NULL || job->state != JOB_PINNING) return;
    if (answer->code != luna_Code_OK) {
        struct error error;
        error_set(&error, (enum status)answer->code, "%s", answer->message);
        router_fail(self, job, &error);
        return;
    }
    assert(job->pins_pending > 0);
    assert(answer->tensor < CODEC_TENSORS_MAX);
    job->pool_offsets[answer->tensor] = answer->pool_offset;
    job->pins_pending -= 1;
    // With tensors on two devices it is none's, as whoever gets it says.
    if (answer->device[0] != '\0') job->entry.place = router_place(self, answer->device);
    if (job->pins_pending == 0) go_on(self, job);
}

static void on_leases_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    (void)frames;
    if (letter->which_letter == luna_Letter_pin_answer_tag)
        on_pin_answer(state, &letter->letter.pin_answer);
}

void router_on_leases(void *state)
{
    struct router *self = state;
    post_each(self->sockets[ROUTER_LEASES], on_leases_letter, self);
}

void router_enqueue(struct router *self, struct job *job)
{
    uint32_t service = job->entry.service;
    router_count_place(self, &job->entry);
    if (router_is_astray(self, &job->entry)) {
        router_turn_away(self, job);
        router_tell_demand(self, service, true);
        return;
    }
    router_wait(self, job, JOB_WAITING);
    if (job->entry.alone) self->alone_waiting += 1;
    job_queue_push(self->queue, &job->entry, router_now(self));
    router_dispatch(self, service);
    router_tell_demand(self, service, false);
}

// Pins what the request has in shared memory and on devices, first of all.
static void set_out(struct router *self, struct job *job, const luna_Header *header)
{
    if (!uses_leases(header)) {
        go_on(self, job);
        return;
    }
    router_wait(self, job, JOB_PINNING);
    pin_leases(self, job, header);
}

void router_submit(struct router *self, struct request *request, const union codec_request *body)
{
    struct error error = {.status = STATUS_OK};
    uint32_t service = JOB_SERVICES_MAX;
    uint64_t digest = request_digest(request);
    if (handle_repeat(self, request, digest)) return;
    if (self->draining) {
        error_set(&error, STATUS_UNAVAILABLE, "the daemon is draining");
        error.retry_after_ms = 1000;
    }
    if (error.status == STATUS_OK) resolve_service(self, &request->header, &service, &error);
    uint64_t keep_model = 0;
    if (error.status == STATUS_OK && router_encodes(&request->header)) {
        keep_model =
            router_plan_keeping(self, request, &body->encode_text, self->services[service].model);
    }
    struct job *job = error.status == STATUS_OK ? add_job(self, request, digest) : NULL;
    if (job == NULL) {
        if (error.status == STATUS_OK)
            error_set(&error, STATUS_RESOURCE_EXHAUSTED, "the job table is full");
        router_event(self, "request.failed", NULL, &error, 0);
        router_refuse(self, request, &error);
        return;
    }
    job->entry.service = service;
    job->entry.user = job->user;
    job->entry.bytes = job->bytes;
    job->entry.flow = flow_of(self, request->user, &request->route);
    job->entry.priority = request->header.priority;
    job->keep_model = keep_model;
    if (router_encodes(&request->header)) job->loras = body->encode_text.loras_count;
    plan_cost(&request->header, body, &job->entry);
    if (job->loras == 0 && router_answer_known(self, job)) return;
    if (check_room(self, service, job->entry.flow, job->bytes, &error) != STATUS_OK) {
        router_fail(self, job, &error);
        return;
    }
    self->services[service].requests_total += 1;
    set_out(self, job, &request->header);
}

void router_ask(struct router *self, struct request *request, enum router_socket to)
{
    struct error error;
    if (job_table_find(self->jobs, request->user, request->header.id.bytes) != NULL) {
        error_set(&error, STATUS_INVALID_ARGUMENT,
                  "this id is in use by a request that is not answered yet");
        router_refuse(self, request, &error);
        return;
    }
    uint64_t bytes_max = self->config->limits.queue_bytes_max;
    uint64_t bytes = message_bytes(request->message);
    struct job *job = NULL;
    if (bytes <= bytes_max && self->asked_bytes <= bytes_max - bytes) {
        job = add_job(self, request, 0);
        error_set(&error, STATUS_RESOURCE_EXHAUSTED, "the job table is full");
    } else {
        error_set(&error, STATUS_RESOURCE_EXHAUSTED,
                  "requests of this kind hold %lu bytes, %lu more exceed the limit of %lu",
                  (unsigned long)self->asked_bytes, (unsigned long)bytes, (unsigned long)bytes_max);
    }
    if (job == NULL) {
        error.retry_after_ms = 100;
        router_refuse(self, request, &error);
        return;
    }
    job->ask_to = to;
    self->asked_bytes += job->bytes;
    for (uint32_t i = 0; i < request->header.tensors_count; i++)
        router_count_tensor(self, &request->header.tensors[i]);
    set_out(self, job, &request->header);
}
