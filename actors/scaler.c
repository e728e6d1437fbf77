// scaler.c - the actor around the policy: letters in, policy_step, letters out.
//
// It hears demand from the router, models from the registry, devices and workers from the
// executors, deaths from the core. After each batch of letters, and at least every 200 ms while
// there is anything to watch, it takes steps until nothing is left to decide. Every decision is an
// event that names its signal.

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "actors/ask.h"
#include "actors/device_table.h"
#include "actors/event.h"
#include "actors/policy.h"
#include "actors/post.h"
#include "actors/topology.h"
#include "base/patience.h"
#include "runtime/actor.h"
#include "runtime/socket.h"

#define TICK_MS 200u
#define DECISIONS_MAX 32u
// An executor that this scaler meets first has this long to say which workers it has; until then
// nothing is decided.
#define INTRODUCTION_MS 50u
// An executor reports each second from its event loop, which never waits; one that says nothing for
// so long stands still, and ends like a dead one.
#define SILENCE_MS (5000u * PATIENCE)
#define MEGABYTE UINT64_C(1048576)

enum scaler_socket {
    SCALER_EXECUTORS,
    SCALER_ROUTER,
    SCALER_REGISTRY,
    SCALER_CORE,
    SCALER_SOCKETS
};

struct scaler {
    const struct actor_context *context;              // as actor.h gives it
    const struct config *config;                      // of the daemon
    void *sockets[SCALER_SOCKETS];                    // see enum scaler_socket
    struct loop_socket *watches[SCALER_SOCKETS];      // in the same order
    void *events;                                     // PUSH, never read
    struct loop_timer *tick;                          // steps without letters
    struct policy *policy;                            // decides
    struct device_table devices;                      // executors
    luna_ServiceNotice notices[POLICY_SERVICES_MAX];  // as told last, by place in the policy's list
    uint32_t notices_count;                           // of them
    uint64_t decide_after_ms;                         // an executor is about to introduce itself
    uint64_t events_dropped;                          // the monitor's queue was full
};

static uint64_t now_ms(const struct scaler *self)
{
    return clock_ms(loop_clock(self->context->loop));
}

static luna_Group to_letter_group(enum policy_group group)
{
    return group == POLICY_VAE ? luna_Group_VAE : luna_Group_TEXT;
}

// False for a group that is none.
static bool from_letter_group(luna_Group group, enum policy_group *out)
{
    if (group != luna_Group_VAE && group != luna_Group_TEXT) return false;
    *out = group == luna_Group_VAE ? POLICY_VAE : POLICY_TEXT;
    return true;
}

// ---- letters out

static void post(struct scaler *self, enum scaler_socket to, const luna_Letter *letter)
{
    assert(to != SCALER_EXECUTORS);
    if (post_letter(self->sockets[to], letter, NULL) != STATUS_OK) {
        log_event(self->context->log, LOG_WARNING, "letter.dropped", "to=%d letter=%d", (int)to,
                  (int)letter->which_letter);
    }
    loop_socket_touch(self->watches[to]);
}

static enum status post_to_executor(struct scaler *self, struct bytes connection,
                                    const luna_Letter *letter)
{
    enum status status = post_letter_to(self->sockets[SCALER_EXECUTORS], connection, letter, NULL);
    loop_socket_touch(self->watches[SCALER_EXECUTORS]);
    return status;
}

static void post_event(struct scaler *self, const luna_Letter *letter)
{
    if (post_letter(self->events, letter, NULL) != STATUS_OK) self->events_dropped += 1;
}

static void tell_decision(struct scaler *self, const struct policy_decision *decision)
{
    static const char *const topics[] = {"scaling.up", "scaling.down", "scaling.refused", "error"};
    assert((size_t)decision->action < sizeof topics / sizeof topics[0]);
    luna_Letter letter = event_make(topics[decision->action], "scaler", decision->message);
    luna_Event *event = &letter.letter.event;
    text_set(event->operation, sizeof event->operation, policy_group_name(decision->group));
    text_set(event->model, sizeof event->model, decision->model);
    text_set(event->device, sizeof event->device, decision->device);
    text_set(event->signal, sizeof event->signal, decision->signal);
    event->worker = decision->worker;
    event->code = (luna_Code)decision->code;
    event->value = decision->value;
    event->threshold = decision->threshold;
    event->free_bytes = decision->free_bytes;
    event->plan_bytes = decision->plan_bytes;
    event->margin_bytes = decision->margin_bytes;
    event->workers = decision->workers;
    post_event(self, &letter);
    log_event(self->context->log, decision->action == POLICY_ANSWER ? LOG_WARNING : LOG_INFO,
              topics[decision->action],
              "operation=%s model=%s device=%s signal=%s value=%g threshold=%g",
              policy_group_name(decision->group), decision->model, decision->device,
              decision->signal, decision->value, decision->threshold);
}

static void spawn(struct scaler *self, const struct policy_decision *decision)
{
    luna_Letter letter = {.which_letter = luna_Letter_spawn_tag};
    luna_Service *service = &letter.letter.spawn.service;
    letter.letter.spawn.has_service = true;
    letter.letter.spawn.margin_bytes = decision->margin_bytes;
    service->group = to_letter_group(decision->group);
    text_set(service->model, sizeof service->model, decision->model);
    struct device_entry *entry = device_table_find_name(&self->devices, decision->device);
    enum status status = STATUS_UNAVAILABLE;
    if (entry != NULL) {
        status = post_to_executor(self, device_entry_connection(entry), &letter);
    }
    if (status != STATUS_OK) policy_tell_device_silent(self->policy, decision->device);
}

static void retire(struct scaler *self, const struct policy_decision *decision)
{
    luna_Letter letter = {.which_letter = luna_Letter_retire_tag};
    letter.letter.retire.worker = decision->worker;
    struct device_entry *entry = device_table_find_name(&self->devices, decision->device);
    if (entry != NULL) post_to_executor(self, device_entry_connection(entry), &letter);
}

static void fill_notice(const struct policy_service *service, luna_ServiceNotice *out)
{
    luna_ServiceStatus *status = &out->status;
    out->has_status = true;
    text_set(status->operation, sizeof status->operation, policy_group_name(service->group));
    text_set(status->model, sizeof status->model, service->model);
    text_set(status->device, sizeof status->device, service->device);
    status->workers = service->workers;
    status->workers_busy =
        service->demand.running < service->workers ? service->demand.running : service->workers;
    status->workers_min = service->workers_min;
    status->workers_max = service->workers_max;
    status->queue_depth = service->demand.depth;
    status->queue_age_seconds = service->demand.age_ms / 1000.0;
    status->requests_total = service->demand.requests_total;
    text_set(status->state, sizeof status->state, policy_state_name(service->state));
    text_set(out->message, sizeof out->message, service->message);
}

// The router takes no number from a notice without a code, so it gets those with one only.
static void answer_waiting(struct scaler *self, const struct policy_decision *decision)
{
    luna_Letter letter = {.which_letter = luna_Letter_service_notice_tag};
    luna_ServiceNotice *notice = &letter.letter.service_notice;
    notice->has_status = true;
    text_set(notice->status.operation, sizeof notice->status.operation,
             policy_group_name(decision->group));
    text_set(notice->status.model, sizeof notice->status.model, decision->model);
    text_set(notice->status.state, sizeof notice->status.state, policy_state_name(POLICY_FAILED));
    notice->code = (luna_Code)decision->code;
    notice->retry_after_ms = decision->retry_after_ms;
    text_set(notice->message, sizeof notice->message, decision->message);
    post(self, SCALER_ROUTER, &letter);
}

static bool is_worth_telling_router(const luna_ServiceNotice *before, const luna_ServiceNotice *now)
{
    return strcmp(before->status.state, now->status.state) != 0 ||
           strcmp(before->status.model, now->status.model) != 0 ||
           before->status.workers != now->status.workers;
}

static bool is_same(const luna_ServiceNotice *before, const luna_ServiceNotice *now)
{
    const luna_ServiceStatus *a = &before->status;
    const luna_ServiceStatus *b = &now->status;
    return !is_worth_telling_router(before, now) && strcmp(a->operation, b->operation) == 0 &&
           strcmp(a->device, b->device) == 0 && strcmp(before->message, now->message) == 0 &&
           a->workers_busy == b->workers_busy && a->workers_min == b->workers_min &&
           a->workers_max == b->workers_max && a->queue_depth == b->queue_depth &&
           a->queue_age_seconds == b->queue_age_seconds && a->requests_total == b->requests_total;
}

// Tells services that changed: everything to the monitor, state and workers to the router too.
static void tell_services(struct scaler *self)
{
    uint32_t count = policy_service_count(self->policy);
    assert(count <= POLICY_SERVICES_MAX);
    for (uint32_t i = 0; i < count; i++) {
        struct policy_service service = policy_service_at(self->policy, i);
        luna_Letter letter = {.which_letter = luna_Letter_service_notice_tag};
        luna_ServiceNotice *notice = &letter.letter.service_notice;
        luna_ServiceNotice *last = &self->notices[i];
        fill_notice(&service, notice);
        bool is_new = i >= self->notices_count;
        if (!is_new && is_same(last, notice)) continue;
        post_event(self, &letter);
        if (is_new || is_worth_telling_router(last, notice)) post(self, SCALER_ROUTER, &letter);
        *last = *notice;
    }
    self->notices_count = count;
}

// Decides and does until nothing is left to decide. A policy that never came to rest would stop at
// the bound.
static void step(struct scaler *self)
{
    bool waits = now_ms(self) < self->decide_after_ms;
    for (uint32_t round = 0; !waits && round < POLICY_WORKERS_MAX; round++) {
        struct policy_decision decisions[DECISIONS_MAX];
        uint32_t count = policy_step(self->policy, now_ms(self), decisions, DECISIONS_MAX);
        for (uint32_t i = 0; i < count; i++) {
            tell_decision(self, &decisions[i]);
            if (decisions[i].action == POLICY_SPAWN) spawn(self, &decisions[i]);
            if (decisions[i].action == POLICY_RETIRE) retire(self, &decisions[i]);
            if (decisions[i].action == POLICY_ANSWER) answer_waiting(self, &decisions[i]);
        }
        if (count == 0) break;
    }
    tell_services(self);
}

static void check_silence(struct scaler *self)
{
    const struct device_entry *silent =
        device_table_find_silent(&self->devices, now_ms(self), SILENCE_MS);
    if (silent == NULL) return;
    luna_Letter letter = {.which_letter = luna_Letter_kill_child_tag};
    luna_KillChild *kill = &letter.letter.kill_child;
    kill->pid = silent->report.executor_pid;
    snprintf(kill->reason, sizeof kill->reason, "it has not reported for %u s", SILENCE_MS / 1000u);
    post(self, SCALER_CORE, &letter);
    log_event(self->context->log, LOG_ERROR, "executor.silent", "pid=%u device=%s silence_ms=%u",
              kill->pid, silent->report.name, SILENCE_MS);
    char message[160];
    snprintf(message, sizeof message, "the executor of %s has not reported for %u s and is killed",
             silent->report.name, SILENCE_MS / 1000u);
    letter = event_make("error", "scaler", message);
    luna_Event *event = &letter.letter.event;
    text_set(event->device, sizeof event->device, silent->report.name);
    event->code = luna_Code_UNAVAILABLE;
    post_event(self, &letter);
}

static void on_tick(void *state)
{
    check_silence(state);
    step(state);
}

// ---- letters of executors

static void log_error(struct scaler *self, const char *what, const struct error *error)
{
    log_event(self->context->log, LOG_ERROR, what, "why=%s", error->message);
}

static void on_device_report(struct scaler *self, struct bytes connection,
                             const luna_DeviceReport *report)
{
    bool is_new = device_table_report(&self->devices, connection, report, now_ms(self));
    if (is_new) {
        luna_Letter who = {.which_letter = luna_Letter_who_tag};
        post_to_executor(self, connection, &who);
        self->decide_after_ms = now_ms(self) + INTRODUCTION_MS;
        loop_timer_restart(self->tick, INTRODUCTION_MS);
    }
    struct error error = {0};
    struct policy_device device = {.epoch = report->epoch,
                                   .memory_free_bytes = report->memory_free_bytes,
                                   .used_bytes = report->weights_bytes + report->reserved_bytes -
                                                 report->lent_bytes,
                                   .margin_bytes = report->margin_bytes};
    text_set(device.name, sizeof device.name, report->name);
    const struct config_service *service = &self->config->service;
    device.refuses[POLICY_VAE] = !device_serves(service, report->name, true);
    device.refuses[POLICY_TEXT] = !device_serves(service, report->name, false);
    if (policy_tell_device(self->policy, &device, &error) != STATUS_OK) {
        log_error(self, "device.refused", &error);
    }
    luna_Letter letter = {.which_letter = luna_Letter_device_tag};
    letter.letter.device = *report;
    post_event(self, &letter);
    // The supervisor waits for each device once before it says that the daemon is ready.
    if (is_new) post(self, SCALER_CORE, &letter);
}

// False for a worker of a group that is none.
static bool read_worker(uint64_t number, const luna_Service *service, const char *device,
                        struct policy_worker *out)
{
    *out = (struct policy_worker){.worker = number};
    if (!from_letter_group(service->group, &out->group)) return false;
    text_set(out->model, sizeof out->model, service->model);
    text_set(out->device, sizeof out->device, device);
    return true;
}

static void tell_worker_event(struct scaler *self, const char *topic,
                              const struct policy_worker *worker, enum status code,
                              const char *message)
{
    luna_Letter letter = event_make(topic, "scaler", message);
    luna_Event *event = &letter.letter.event;
    text_set(event->operation, sizeof event->operation, policy_group_name(worker->group));
    text_set(event->model, sizeof event->model, worker->model);
    text_set(event->device, sizeof event->device, worker->device);
    event->worker = worker->worker;
    event->code = (luna_Code)code;
    post_event(self, &letter);
}

static void on_worker_up(struct scaler *self, const luna_WorkerUp *up)
{
    struct policy_worker worker;
    struct error error = {0};
    if (up->worker == 0 || !read_worker(up->worker, &up->service, up->device, &worker)) return;
    worker.weights_bytes = up->weights_bytes;
    if (policy_tell_worker_up(self->policy, &worker, now_ms(self), &error) != STATUS_OK) {
        log_error(self, "worker.refused", &error);
        return;
    }
    char message[192];
    snprintf(message, sizeof message, "a worker for %s \"%s\" is up on %s",
             policy_group_name(worker.group), worker.model, worker.device);
    tell_worker_event(self, "worker.up", &worker, STATUS_OK, message);
}

static void on_worker_down(struct scaler *self, const luna_WorkerDown *down)
{
    struct policy_worker worker;
    if (!read_worker(down->worker, &down->service, down->device, &worker)) return;
    worker.weights_bytes = down->weights_bytes;
    enum status code = STATUS_OK;
    if (down->failed_to_start) {
        code = down->code == luna_Code_OK ? STATUS_INTERNAL : (enum status)down->code;
    }
    policy_tell_worker_down(self->policy, &worker, code, down->reason, now_ms(self));
    tell_worker_event(self, "worker.down", &worker, code, down->reason);
}

static void on_executor_letter(void *state, struct bytes connection, const luna_Letter *letter,
                               struct message *frames)
{
    (void)frames;
    struct scaler *self = state;
    if (letter->which_letter == luna_Letter_device_tag) {
        on_device_report(self, connection, &letter->letter.device);
        return;
    }
    if (device_table_find(&self->devices, connection) == NULL) {
        luna_Letter who = {.which_letter = luna_Letter_who_tag};
        post_to_executor(self, connection, &who);
        return;
    }
    if (letter->which_letter == luna_Letter_worker_up_tag) {
        on_worker_up(self, &letter->letter.worker_up);
    } else if (letter->which_letter == luna_Letter_worker_down_tag) {
        on_worker_down(self, &letter->letter.worker_down);
    }
}

static void on_executors(void *state)
{
    struct scaler *self = state;
    post_each_from(self->sockets[SCALER_EXECUTORS], on_executor_letter, self);
    step(self);
}

// ---- letters of the core's other actors

static void on_model_notice(struct scaler *self, const luna_ModelNotice *notice)
{
    if (notice->removed) {
        policy_tell_model_removed(self->policy, notice->model.name);
        return;
    }
    struct policy_model model = {
        .offers = {notice->model.offers_vae, notice->model.offers_text},
        .weights_bytes = {notice->weights_vae_bytes, notice->weights_text_bytes}};
    text_set(model.name, sizeof model.name, notice->model.name);
    for (uint32_t i = 0; i < notice->model.loaded_on_count; i++) {
        if (model.loaded_count == POLICY_DEVICES_MAX) break;
        text_set(model.loaded_on[model.loaded_count], POLICY_DEVICE_BYTES,
                 notice->model.loaded_on[i]);
        model.loaded_count += 1;
    }
    struct error error = {0};
    if (policy_tell_model(self->policy, &model, &error) != STATUS_OK) {
        log_error(self, "model.refused", &error);
    }
}

static void on_demand(struct scaler *self, const luna_Demand *demand)
{
    _Static_assert(sizeof demand->devices / sizeof demand->devices[0] <= POLICY_DEVICES_MAX,
                   "the policy has room for what the router tells");
    enum policy_group group = POLICY_VAE;
    if (!from_letter_group(demand->service.group, &group)) return;
    struct policy_demand told = {.depth = demand->depth,
                                 .age_ms = demand->age_ms,
                                 .running = demand->running,
                                 .needs_bytes = demand->needs_bytes,
                                 .requests_total = demand->requests_total,
                                 .devices_count = demand->devices_count};
    for (uint32_t i = 0; i < told.devices_count; i++) {
        struct policy_device_demand *device = &told.devices[i];
        text_set(device->name, sizeof device->name, demand->devices[i].device);
        device->jobs_total = demand->devices[i].jobs_total;
        device->depth = demand->devices[i].depth;
    }
    policy_tell_demand(self->policy, group, demand->service.model, &told, now_ms(self));
}

static void on_device_down(struct scaler *self, const luna_DeviceDown *down)
{
    device_table_remove(&self->devices, down->name, down->epoch);
    policy_tell_device_down(self->policy, down->name, down->epoch, down->given_up);
    luna_Letter letter = {.which_letter = luna_Letter_device_down_tag};
    letter.letter.device_down = *down;
    post(self, SCALER_REGISTRY, &letter);
}

// ---- LIMITS

static enum status apply_limits(struct policy_settings *settings, const luna_Limits *limits,
                                struct error *error)
{
    struct policy_limits *vae = &settings->limits[POLICY_VAE];
    struct policy_limits *text = &settings->limits[POLICY_TEXT];
    if (limits->has_vae_workers_min) vae->workers_min = limits->vae_workers_min;
    if (limits->has_vae_workers_max) vae->workers_max = limits->vae_workers_max;
    if (limits->has_clip_workers_min) text->workers_min = limits->clip_workers_min;
    if (limits->has_clip_workers_max) text->workers_max = limits->clip_workers_max;
    if (limits->has_memory_margin_mb) {
        settings->margin_bytes = limits->memory_margin_mb * MEGABYTE;
    }
    for (int i = 0; i < POLICY_GROUP_COUNT; i++) {
        const struct policy_limits *group = &settings->limits[i];
        const char *name = i == POLICY_VAE ? "vae_workers" : "clip_workers";
        if (group->workers_max > 64) {
            return error_set(error, STATUS_INVALID_ARGUMENT, "%s: max is %u, at most 64", name,
                             group->workers_max);
        }
        if (group->workers_min > group->workers_max) {
            return error_set(error, STATUS_INVALID_ARGUMENT, "%s: min is %u, max is %u", name,
                             group->workers_min, group->workers_max);
        }
    }
    return STATUS_OK;
}

// The margin in force: the largest of the devices' own where the configuration says auto.
static uint64_t margin_bytes(const struct scaler *self)
{
    uint64_t margin = policy_settings(self->policy)->margin_bytes;
    if (margin != POLICY_MARGIN_AUTO) return margin;
    margin = 0;
    for (uint32_t i = 0; i < self->devices.count; i++) {
        uint64_t own = self->devices.entries[i].report.margin_bytes;
        if (own > margin) margin = own;
    }
    return margin;
}

static luna_Limits limits_of(const struct scaler *self)
{
    const struct policy_settings *settings = policy_settings(self->policy);
    return (luna_Limits){.has_vae_workers_min = true,
                         .vae_workers_min = settings->limits[POLICY_VAE].workers_min,
                         .has_vae_workers_max = true,
                         .vae_workers_max = settings->limits[POLICY_VAE].workers_max,
                         .has_clip_workers_min = true,
                         .clip_workers_min = settings->limits[POLICY_TEXT].workers_min,
                         .has_clip_workers_max = true,
                         .clip_workers_max = settings->limits[POLICY_TEXT].workers_max,
                         .has_memory_margin_mb = true,
                         .memory_margin_mb = (uint32_t)(margin_bytes(self) / MEGABYTE)};
}

static void on_ask(struct scaler *self, const luna_Ask *letter, const struct message *frames)
{
    struct ask ask;
    struct error error = {0};
    union codec_request request;
    struct policy_settings settings = *policy_settings(self->policy);
    enum status status = ask_read(letter, frames, &ask, &request, &error);
    if (status == STATUS_OK && ask.header.operation != luna_Operation_LIMITS) {
        status = error_set(&error, STATUS_UNIMPLEMENTED, "the scaler knows LIMITS only");
    }
    if (status == STATUS_OK && !ask.admin) {
        status = error_set(&error, STATUS_PERMISSION_DENIED, "LIMITS is for admins");
    }
    if (status == STATUS_OK) status = apply_limits(&settings, &request.limits, &error);
    if (status == STATUS_OK) policy_change(self->policy, &settings);
    luna_Limits limits = limits_of(self);
    ask_answer(self->sockets[SCALER_ROUTER], &ask, luna_Limits_fields, &limits,
               status == STATUS_OK ? NULL : &error);
    loop_socket_touch(self->watches[SCALER_ROUTER]);
}

static void on_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    struct scaler *self = state;
    switch (letter->which_letter) {
    case luna_Letter_demand_tag:
        on_demand(self, &letter->letter.demand);
        break;
    case luna_Letter_model_notice_tag:
        on_model_notice(self, &letter->letter.model_notice);
        break;
    case luna_Letter_device_down_tag:
        on_device_down(self, &letter->letter.device_down);
        break;
    case luna_Letter_executor_expected_tag:
        device_table_expect(&self->devices, &letter->letter.executor_expected, now_ms(self));
        break;
    case luna_Letter_ask_tag:
        on_ask(self, &letter->letter.ask, frames);
        break;
    default:
        log_event(self->context->log, LOG_WARNING, "letter.unexpected", "letter=%d",
                  (int)letter->which_letter);
    }
}

static void read_pair(struct scaler *self, enum scaler_socket from)
{
    post_each(self->sockets[from], on_letter, self);
    step(self);
}

static void on_router(void *state)
{
    read_pair(state, SCALER_ROUTER);
}

static void on_registry(void *state)
{
    read_pair(state, SCALER_REGISTRY);
}

static void on_core(void *state)
{
    read_pair(state, SCALER_CORE);
}

// ---- life

static struct policy_settings settings_of(const struct config *config)
{
    const struct config_scaling *scaling = &config->scaling;
    uint64_t margin_mb = scaling->memory_margin_mb;
    uint64_t limit_mb = config->service.memory_limit_mb;
    if (limit_mb == CONFIG_AUTO) limit_mb = 0;
    return (struct policy_settings){
        .serves = {config->service.type != SERVICE_CLIP, config->service.type != SERVICE_VAE},
        .limits = {{scaling->vae_workers.min, scaling->vae_workers.max},
                   {scaling->clip_workers.min, scaling->clip_workers.max}},
        .queue_threshold = scaling->queue_threshold,
        .scale_up_delay_ms = scaling->scale_up_delay_ms,
        .idle_timeout_ms = scaling->idle_timeout_s * 1000u,
        .margin_bytes = margin_mb == CONFIG_AUTO ? POLICY_MARGIN_AUTO : margin_mb * MEGABYTE,
        .memory_limit_bytes = limit_mb * MEGABYTE};
}

static enum status open_sockets(struct scaler *self, const char *private_directory,
                                struct error *error)
{
    char endpoint[SOCKET_ENDPOINT_BYTES];
    socket_ipc_endpoint(endpoint, sizeof endpoint, private_directory, SOCKET_SCALER);
    const struct {
        void **socket;
        enum edge edge;
        const char *address;
        bool binds;
    } ends[] = {
        {&self->events, EDGE_EVENTS, ADDRESS_EVENTS, false},
        {&self->sockets[SCALER_EXECUTORS], EDGE_SCALER, endpoint, true},
        {&self->sockets[SCALER_ROUTER], EDGE_ROUTER_SCALER, ADDRESS_ROUTER_SCALER, false},
        {&self->sockets[SCALER_REGISTRY], EDGE_REGISTRY_SCALER, ADDRESS_REGISTRY_SCALER, false},
        {&self->sockets[SCALER_CORE], EDGE_SCALER_CORE, ADDRESS_SCALER_CORE, true},
    };
    enum status status = STATUS_OK;
    for (size_t i = 0; status == STATUS_OK && i < sizeof ends / sizeof ends[0]; i++) {
        status = socket_open(ends[i].socket, self->context->zmq, ends[i].edge, error);
        if (status != STATUS_OK) break;
        status = ends[i].binds ? socket_bind(*ends[i].socket, ends[i].address, error)
                               : socket_connect(*ends[i].socket, ends[i].address, error);
    }
    return status;
}

static enum status watch_all(struct scaler *self, struct error *error)
{
    void (*const handlers[SCALER_SOCKETS])(void *state) = {[SCALER_EXECUTORS] = on_executors,
                                                           [SCALER_ROUTER] = on_router,
                                                           [SCALER_REGISTRY] = on_registry,
                                                           [SCALER_CORE] = on_core};
    for (int i = 0; i < SCALER_SOCKETS; i++) {
        enum status status =
            loop_add_socket(self->context->loop, self->sockets[i], i == SCALER_CORE, handlers[i],
                            self, &self->watches[i], error);
        if (status != STATUS_OK) return status;
    }
    return loop_add_timer(self->context->loop, TICK_MS, TICK_MS, on_tick, self, &self->tick, error);
}

static void scaler_destroy(void *state)
{
    struct scaler *self = state;
    if (self == NULL) return;
    loop_timer_remove(&self->tick);
    for (int i = 0; i < SCALER_SOCKETS; i++) {
        loop_socket_remove(&self->watches[i]);
        socket_close(&self->sockets[i]);
    }
    socket_close(&self->events);
    policy_destroy(&self->policy);
    free(self);
}

static enum status scaler_create(void **state, const struct actor_context *context,
                                 const void *arguments, struct error *error)
{
    assert(state != NULL);
    assert(arguments != NULL);
    const struct core_arguments *core = arguments;
    struct scaler *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the scaler");
    }
    self->context = context;
    self->config = core->config;
    const struct policy_settings settings = settings_of(core->config);
    enum status status = policy_create(&self->policy, &settings, error);
    if (status == STATUS_OK) status = open_sockets(self, core->private_directory, error);
    if (status == STATUS_OK) status = watch_all(self, error);
    if (status != STATUS_OK) {
        scaler_destroy(self);
        return status;
    }
    *state = self;
    return STATUS_OK;
}

const struct actor_kind scaler_kind = {"scaler", scaler_create, scaler_destroy, NULL};
