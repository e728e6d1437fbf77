// router.c - the actor that owns the job table: every request passes through it, and nothing else
// does.
//
// It never computes and never waits. A job stays in the table until its one answer has been given;
// sending it to a worker proves nothing, so a dead worker costs time and never a request. Clients
// and workers are told apart by socket: clients may say anything, workers are ours.

#include "actors/router_state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "actors/post.h"
#include "runtime/socket.h"

uint64_t router_now(const struct router *self)
{
    return clock_ns(loop_clock(self->context->loop));
}

enum status router_post(struct router *self, enum router_socket to, const luna_Letter *letter,
                        struct message *frames)
{
    assert(to >= ROUTER_CORE);
    assert(to < ROUTER_SOCKETS);
    enum status status = post_letter(self->sockets[to], letter, frames);
    loop_socket_touch(
        self->watches[to]);  // sending may have swallowed the signal of something to read
    return status;
}

void router_count_tensor(struct router *self, const luna_Tensor *tensor)
{
    if (tensor->room) return;
    if (tensor->where == luna_Where_SHARED)
        self->transport.shared_bytes += tensor->bytes;
    else
        self->transport.frame_bytes += tensor->bytes;
    self->counts_changed = true;
}

void router_count_payloads(struct router *self, const struct message *frames)
{
    for (uint32_t i = 2; i < frames->count; i++)
        self->transport.frame_bytes += message_frame(frames, i).size;
    self->counts_changed = true;
}

// ---- letters of the core's other actors

static bool knows_model(const struct router *self, const char *name)
{
    for (uint32_t i = 0; i < self->models_count; i++) {
        if (strcmp(self->models[i].model.name, name) == 0) return true;
    }
    return false;
}

// Reads clients once every configured model was told, opened or failed: what they sent meanwhile
// waits, so that neither a start nor a core that died turns a good request into "not known here".
static void open_to_clients(struct router *self)
{
    if (self->watches[ROUTER_CLIENTS] != NULL) return;
    bool patient = router_now(self) - self->created_ns < ROUTER_OPEN_MS * UINT64_C(1000000);
    for (uint32_t i = 0; patient && i < self->config->model_count; i++) {
        if (!knows_model(self, self->config->model[i].name)) return;
    }
    struct error error;
    if (loop_add_socket(self->context->loop, self->sockets[ROUTER_CLIENTS], false,
                        router_on_clients, self, &self->watches[ROUTER_CLIENTS],
                        &error) != STATUS_OK) {
        log_event(self->context->log, LOG_ERROR, "clients.unread", "why=%s", error.message);
    }
}

static void on_model_notice(struct router *self, const luna_ModelNotice *notice)
{
    uint32_t index = 0;
    while (index < self->models_count &&
           strcmp(self->models[index].model.name, notice->model.name) != 0) {
        index += 1;
    }
    if (notice->removed) {
        if (index < self->models_count) router_lose_model(self, index);
        return;
    }
    if (index == ROUTER_MODELS_MAX) return;
    router_see_model(self, index, notice);
    open_to_clients(self);
}

static void on_service_notice(struct router *self, const luna_ServiceNotice *notice)
{
    if (notice->code == luna_Code_OK) return;
    bool is_vae = strcmp(notice->status.operation, "vae") == 0;
    uint32_t service = router_service(self, is_vae ? luna_Group_VAE : luna_Group_TEXT,
                                      notice->status.model, false);
    if (service == JOB_SERVICES_MAX) return;
    struct error error;
    error_set(&error, (enum status)notice->code, "%s", notice->message);
    error.retry_after_ms = notice->retry_after_ms;
    struct job_entry *entry = NULL;
    while ((entry = job_queue_peek(self->queue, service, router_now(self), 0)) != NULL) {
        router_fail(self, (struct job *)entry, &error);
    }
    self->services[service].needs_bytes = 0;
}

static void on_answer(struct router *self, uint64_t number, struct message *frames)
{
    struct job *job = job_table_find_number(self->jobs, number);
    if (job == NULL || job->state != JOB_ASKED) {
        message_clear(frames);
        return;
    }
    router_count_payloads(self, frames);
    router_finish(self, job, frames);
}

static void on_core_letter(struct router *self, const luna_Letter *letter)
{
    switch (letter->which_letter) {
    case luna_Letter_drain_all_tag:
        self->draining = true;
        self->drained_told = false;  // a client's drain may have told it to nobody who waited
        break;
    case luna_Letter_device_down_tag:
        router_device_down(self, letter->letter.device_down.epoch);
        break;
    default:
        log_event(self->context->log, LOG_WARNING, "letter.unexpected", "edge=core letter=%d",
                  (int)letter->which_letter);
    }
}

// What all the edges inside the core may carry to the router.
static void on_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    struct router *self = state;
    switch (letter->which_letter) {
    case luna_Letter_model_notice_tag:
        on_model_notice(self, &letter->letter.model_notice);
        break;
    case luna_Letter_service_notice_tag:
        on_service_notice(self, &letter->letter.service_notice);
        break;
    case luna_Letter_answer_tag:
        on_answer(self, letter->letter.answer.job, frames);
        break;
    case luna_Letter_stack_resolved_tag:
        router_on_resolved(self, &letter->letter.stack_resolved);
        break;
    default:
        on_core_letter(self, letter);
    }
}

static void on_core(void *state)
{
    struct router *self = state;
    post_each(self->sockets[ROUTER_CORE], on_letter, self);
}

static void on_scaler(void *state)
{
    struct router *self = state;
    post_each(self->sockets[ROUTER_SCALER], on_letter, self);
}

static void on_registry(void *state)
{
    struct router *self = state;
    post_each(self->sockets[ROUTER_REGISTRY], on_letter, self);
}

static void on_loras(void *state)
{
    struct router *self = state;
    post_each(self->sockets[ROUTER_LORAS], on_letter, self);
}

static void on_monitor(void *state)
{
    struct router *self = state;
    post_each(self->sockets[ROUTER_MONITOR], on_letter, self);
}

// ---- the timer

void router_tell_counts(struct router *self)
{
    if (!self->counts_changed) return;
    self->counts_changed = false;
    self->counts.queued = self->waiting;
    luna_Letter letter = {.which_letter = luna_Letter_request_counts_tag};
    letter.letter.request_counts = self->counts;
    post_letter(self->events, &letter, NULL);
    letter = (luna_Letter){.which_letter = luna_Letter_transport_counts_tag};
    letter.letter.transport_counts = self->transport;
    post_letter(self->events, &letter, NULL);
}

static void on_tick(void *state)
{
    struct router *self = state;
    uint64_t now = router_now(self);
    open_to_clients(self);
    router_expire(self);
    router_check_workers(self);
    reply_cache_expire(self->replies, now);
    for (uint32_t i = 0; i < JOB_SERVICES_MAX; i++) {
        struct service *service = &self->services[i];
        if (service->group == luna_Group_GROUP_NONE) continue;
        if (job_queue_depth(self->queue, i) > 0) router_dispatch(self, i);
        router_tell_demand(self, i, false);
    }
    router_tell_counts(self);
    if (now - self->cache_told_ns >= ROUTER_CACHE_TOLD_MS * UINT64_C(1000000))
        router_tell_cache(self);
    bool idle = job_table_count(self->jobs) == 0;
    if (self->draining && idle && !self->drained_told) {
        luna_Letter letter = {.which_letter = luna_Letter_drained_tag};
        self->drained_told = router_post(self, ROUTER_CORE, &letter, NULL) == STATUS_OK;
    }
    loop_timer_restart(self->tick, idle ? ROUTER_TICK_IDLE_MS : ROUTER_TICK_BUSY_MS);
}

// ---- life

static enum status open_clients(struct router *self, struct error *error)
{
    const struct core_arguments *arguments = &self->arguments;
    enum status status =
        socket_open(&self->sockets[ROUTER_CLIENTS], self->context->zmq, EDGE_CLIENTS, error);
    if (status != STATUS_OK) return status;
    int64_t frame_bytes_max = (int64_t)self->config->limits.message_bytes_max;
    zmq_setsockopt(self->sockets[ROUTER_CLIENTS], ZMQ_MAXMSGSIZE, &frame_bytes_max,
                   sizeof frame_bytes_max);
    for (uint32_t i = 0; i < arguments->listen_count; i++) {
        status = socket_adopt(self->sockets[ROUTER_CLIENTS], arguments->listen_descriptors[i],
                              arguments->listen_endpoints[i], error);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

static enum status open_core_edges(struct router *self, struct error *error)
{
    const struct {
        void **socket;
        enum edge edge;
        const char *address;
    } edges[] = {
        {&self->sockets[ROUTER_CORE], EDGE_ROUTER_CORE, ADDRESS_ROUTER_CORE},
        {&self->sockets[ROUTER_SCALER], EDGE_ROUTER_SCALER, ADDRESS_ROUTER_SCALER},
        {&self->sockets[ROUTER_REGISTRY], EDGE_ROUTER_REGISTRY, ADDRESS_ROUTER_REGISTRY},
        {&self->sockets[ROUTER_LEASES], EDGE_ROUTER_LEASES, ADDRESS_ROUTER_LEASES},
        {&self->sockets[ROUTER_LORAS], EDGE_ROUTER_STORE, ADDRESS_ROUTER_LORAS},
        {&self->sockets[ROUTER_MONITOR], EDGE_ROUTER_MONITOR, ADDRESS_ROUTER_MONITOR},
    };
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++) {
        enum status status = socket_open(edges[i].socket, self->context->zmq, edges[i].edge, error);
        if (status == STATUS_OK) status = socket_bind(*edges[i].socket, edges[i].address, error);
        if (status != STATUS_OK) return status;
    }
    enum status status = socket_open(&self->events, self->context->zmq, EDGE_EVENTS, error);
    if (status != STATUS_OK) return status;
    return socket_connect(self->events, ADDRESS_EVENTS, error);
}

static enum status open_workers(struct router *self, struct error *error)
{
    char endpoint[SOCKET_ENDPOINT_BYTES];
    enum status status =
        socket_open(&self->sockets[ROUTER_DATA], self->context->zmq, EDGE_WORKER_DATA, error);
    if (status != STATUS_OK) return status;
    socket_ipc_endpoint(endpoint, sizeof endpoint, self->arguments.private_directory,
                        SOCKET_ROUTER_DATA);
    status = socket_bind(self->sockets[ROUTER_DATA], endpoint, error);
    if (status != STATUS_OK) return status;
    status =
        socket_open(&self->sockets[ROUTER_CONTROL], self->context->zmq, EDGE_WORKER_CONTROL, error);
    if (status != STATUS_OK) return status;
    socket_ipc_endpoint(endpoint, sizeof endpoint, self->arguments.private_directory,
                        SOCKET_ROUTER_CONTROL);
    return socket_bind(self->sockets[ROUTER_CONTROL], endpoint, error);
}

static enum status watch_all(struct router *self, struct error *error)
{
    const struct {
        bool control;
        void (*on_readable)(void *state);
    } watches[ROUTER_SOCKETS] = {
        [ROUTER_DATA] = {true, router_on_data},  [ROUTER_CONTROL] = {true, router_on_control},
        [ROUTER_CORE] = {true, on_core},         [ROUTER_SCALER] = {true, on_scaler},
        [ROUTER_REGISTRY] = {true, on_registry}, [ROUTER_LEASES] = {false, router_on_leases},
        [ROUTER_LORAS] = {false, on_loras},      [ROUTER_MONITOR] = {false, on_monitor},
    };
    for (int i = ROUTER_CLIENTS + 1; i < ROUTER_SOCKETS; i++) {
        enum status status =
            loop_add_socket(self->context->loop, self->sockets[i], watches[i].control,
                            watches[i].on_readable, self, &self->watches[i], error);
        if (status != STATUS_OK) return status;
    }
    open_to_clients(self);
    return loop_add_timer(self->context->loop, ROUTER_TICK_IDLE_MS, 0, on_tick, self, &self->tick,
                          error);
}

static void router_destroy(void *state)
{
    struct router *self = state;
    if (self == NULL) return;
    loop_timer_remove(&self->tick);
    for (struct job *job = self->jobs != NULL ? job_table_first(self->jobs) : NULL; job != NULL;
         job = job->next) {
        if (job->entry.queued) job_queue_remove(self->queue, &job->entry);
        router_release_stack(self, job);
    }
    for (int i = 0; i < ROUTER_SOCKETS; i++) {
        loop_socket_remove(&self->watches[i]);
        socket_close(&self->sockets[i]);
    }
    socket_close(&self->events);
    job_table_destroy(&self->jobs);
    job_queue_destroy(&self->queue);
    reply_cache_destroy(&self->replies);
    conditioning_cache_destroy(&self->conditioning);
    free(self);
}

static enum status router_create(void **state, const struct actor_context *context,
                                 const void *arguments, struct error *error)
{
    assert(state != NULL);
    assert(arguments != NULL);
    struct router *self = calloc(1, sizeof *self);
    if (self == NULL)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the router");
    self->context = context;
    self->arguments = *(const struct core_arguments *)arguments;
    self->config = self->arguments.config;
    self->created_ns = router_now(self);
    self->own_uid = (uint32_t)geteuid();
    self->counts_changed = true;

    uint32_t jobs_max =
        self->config->limits.queue_requests_max + ROUTER_WORKERS_MAX * ROUTER_FLIGHTS_MAX;
    enum status status = job_table_create(&self->jobs, jobs_max, router_now(self), error);
    if (status == STATUS_OK) status = job_queue_create(&self->queue, error);
    if (status == STATUS_OK) {
        status = reply_cache_create(&self->replies, 1024, UINT64_C(64) << 20, UINT64_C(60000000000),
                                    error);
    }
    if (status == STATUS_OK) {
        status = conditioning_cache_create(&self->conditioning,
                                           self->config->cache_conditioning_mb << 20, error);
    }
    if (status == STATUS_OK) status = open_core_edges(self, error);
    if (status == STATUS_OK) status = open_workers(self, error);
    if (status == STATUS_OK) status = open_clients(self, error);
    if (status == STATUS_OK) status = watch_all(self, error);
    if (status != STATUS_OK) {
        router_destroy(self);
        return status;
    }
    *state = self;
    return STATUS_OK;
}

static void router_drain(void *state)
{
    struct router *self = state;
    self->draining = true;
    loop_timer_restart(self->tick, 0);
}

const struct actor_kind router_kind = {"router", router_create, router_destroy, router_drain};
