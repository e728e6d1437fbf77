// monitor.c - the actor that knows the last state of everything, and tells it.
//
// Everybody else pushes: reports, notices, counts, events. Events go out at once, numbered; the
// full state goes out once a second and to each subscriber that comes. Nothing waits for the
// monitor: what finds its queue full is dropped by the sender, and the next report makes up for it.

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "actors/ask.h"
#include "actors/event.h"
#include "actors/post.h"
#include "actors/topology.h"
#include "runtime/actor.h"
#include "runtime/socket.h"

// With XPUB_MANUAL, what is sent behind a new subscription goes to that subscriber alone. Not in
// zmq.h of 4.3.4 without its draft interface.
#ifndef ZMQ_XPUB_MANUAL_LAST_VALUE
#define ZMQ_XPUB_MANUAL_LAST_VALUE 98
#endif

#define STATUS_TOPIC "status"
#define STATUS_EVERY_MS 1000u
#define MODELS_MAX 128u
#define SERVICES_MAX 256u
#define DEVICES_MAX 8u
#define SUBSCRIPTION_BYTES_MAX 64u

struct monitor {
    const struct actor_context *context;        // as actor.h gives it
    const struct config *config;                // of the daemon
    uint64_t started_ns;                        // of the daemon
    uint32_t pid;                               // of the daemon
    void *sink;                                 // PULL: letters of everybody
    void *router;                               // PAIR: STATUS asked and answered
    void *publish;                              // XPUB; NULL when it is off
    struct loop_socket *watch_sink;             // of sink
    struct loop_socket *watch_router;           // of router
    struct loop_socket *watch_publish;          // of publish
    struct loop_timer *tick;                    // the status of each second
    uint64_t sequence;                          // of the last event
    bool draining;                              // nothing new is accepted
    luna_RequestCounts requests;                // as the router told last
    luna_TransportCounts transport;             // as the router told last, with the count of leases
    luna_LoraTotals loras;                      // as the LoRA store told last
    char gpus[384];                             // what the supervisor found
    uint32_t devices_count;                     // entries of devices
    luna_DeviceStatus devices[DEVICES_MAX];     // as the scaler told last
    uint32_t services_count;                    // entries of services
    luna_ServiceStatus services[SERVICES_MAX];  // as the scaler told last
    uint32_t models_count;                      // entries of models
    luna_Model models[MODELS_MAX];              // as the registry told last
};

// ---- the state

static void on_device(struct monitor *self, const luna_DeviceReport *report)
{
    uint32_t i = 0;
    while (i < self->devices_count && strcmp(self->devices[i].name, report->name) != 0) i += 1;
    if (i == DEVICES_MAX) return;
    luna_DeviceStatus *device = &self->devices[i];
    text_set(device->name, sizeof device->name, report->name);
    text_set(device->label, sizeof device->label, report->label);
    device->executor_pid = report->executor_pid;
    device->memory_total_bytes = report->memory_total_bytes;
    device->memory_free_bytes = report->memory_free_bytes;
    device->weights_bytes = report->weights_bytes;
    device->reserved_bytes = report->reserved_bytes;
    device->lent_bytes = report->lent_bytes;
    text_set(device->driver, sizeof device->driver, report->driver);
    text_set(device->uuid, sizeof device->uuid, report->uuid);
    text_set(device->compute_capability, sizeof device->compute_capability,
             report->compute_capability);
    if (i == self->devices_count) self->devices_count += 1;
}

static void on_gpus(struct monitor *self, const luna_GpuNotice *notice)
{
    if (notice->unasked) {
        text_set(self->gpus, sizeof self->gpus, "not looked for, the configuration names none");
    } else if (notice->count == 0) {
        snprintf(self->gpus, sizeof self->gpus, "none: %.370s", notice->message);
    } else {
        snprintf(self->gpus, sizeof self->gpus, "%u, %s%s%.250s", notice->count, notice->driver,
                 notice->message[0] != '\0' ? "; " : "", notice->message);
    }
}

static void on_service(struct monitor *self, const luna_ServiceStatus *status)
{
    uint32_t i = 0;
    while (i < self->services_count &&
           (strcmp(self->services[i].model, status->model) != 0 ||
            strcmp(self->services[i].operation, status->operation) != 0)) {
        i += 1;
    }
    if (i == SERVICES_MAX) return;
    self->services[i] = *status;
    if (i == self->services_count) self->services_count += 1;
}

static void drop_services(struct monitor *self, const char *model)
{
    for (uint32_t i = self->services_count; i > 0; i--) {
        if (strcmp(self->services[i - 1].model, model) != 0) continue;
        self->services_count -= 1;
        self->services[i - 1] = self->services[self->services_count];
    }
}

static void on_model(struct monitor *self, const luna_ModelNotice *notice)
{
    uint32_t i = 0;
    while (i < self->models_count && strcmp(self->models[i].name, notice->model.name) != 0) i += 1;
    if (notice->removed) {
        drop_services(self, notice->model.name);
        if (i == self->models_count) return;
        self->models_count -= 1;
        self->models[i] = self->models[self->models_count];
        return;
    }
    if (i == MODELS_MAX) return;
    self->models[i] = notice->model;
    if (i == self->models_count) self->models_count += 1;
}

static const char *type_name(enum service_type type)
{
    return type == SERVICE_FULL ? "full" : type == SERVICE_VAE ? "vae" : "clip";
}

static void fill_status(const struct monitor *self, luna_Status *out)
{
    *out = (luna_Status)luna_Status_init_zero;
    uint64_t up_ns = clock_ns(loop_clock(self->context->loop)) - self->started_ns;
    text_set(out->version, sizeof out->version, LUNA_VERSION);
    text_set(out->service_type, sizeof out->service_type, type_name(self->config->service.type));
    text_set(out->state, sizeof out->state, self->draining ? "draining" : "ready");
    out->pid = self->pid;
    out->uptime_seconds = (double)up_ns / 1e9;
    out->has_requests = true;
    out->requests = self->requests;
    out->has_transport = true;
    out->transport = self->transport;
    out->has_loras = true;
    out->loras = self->loras;
    text_set(out->gpus, sizeof out->gpus, self->gpus);
    out->loras.limit_bytes = self->config->lora.memory_limit_mb << 20;

    const size_t devices_max = sizeof out->devices / sizeof out->devices[0];
    const size_t services_max = sizeof out->services / sizeof out->services[0];
    const size_t models_max = sizeof out->models / sizeof out->models[0];
    for (uint32_t i = 0; i < self->devices_count && i < devices_max; i++) {
        out->devices[out->devices_count++] = self->devices[i];
    }
    for (uint32_t i = 0; i < self->services_count && i < services_max; i++) {
        out->services[out->services_count++] = self->services[i];
    }
    for (uint32_t i = 0; i < self->models_count && i < models_max; i++) {
        out->models[out->models_count++] = self->models[i];
    }
}

// ---- telling

static void publish(struct monitor *self, const char *topic, const pb_msgdesc_t *type,
                    const void *body)
{
    if (self->publish == NULL) return;
    uint8_t *data = malloc(CODEC_BODY_BYTES_MAX);
    struct codec_buffer encoded = {.data = data, .capacity = CODEC_BODY_BYTES_MAX};
    struct message message;
    message_init(&message);
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    if (data != NULL) status = codec_encode(type, body, &encoded, NULL);
    if (status == STATUS_OK) {
        status = message_append(&message, (struct bytes){.data = topic, .size = strlen(topic)});
    }
    if (status == STATUS_OK) {
        status = message_append(&message, (struct bytes){.data = data, .size = encoded.size});
    }
    if (status == STATUS_OK) status = message_send(&message, self->publish);
    if (status != STATUS_OK) {
        log_event(self->context->log, LOG_WARNING, "publish.failed", "topic=%s why=%s", topic,
                  status_name(status));
    }
    message_clear(&message);
    free(data);
    loop_socket_touch(self->watch_publish);
}

static void publish_status(struct monitor *self)
{
    luna_Status *status = malloc(sizeof *status);
    if (status == NULL) return;
    fill_status(self, status);
    publish(self, STATUS_TOPIC, luna_Status_fields, status);
    free(status);
}

static void on_event(struct monitor *self, const luna_Event *told)
{
    luna_Event event = *told;
    self->sequence += 1;
    event.sequence = self->sequence;
    if (event.time_unix_ms == 0) event.time_unix_ms = event_time_unix_ms();
    publish(self, event.topic, luna_Event_fields, &event);
}

static void on_tick(void *state)
{
    publish_status(state);
}

// ---- letters

static void on_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    (void)frames;
    struct monitor *self = state;
    switch (letter->which_letter) {
    case luna_Letter_event_tag:
        on_event(self, &letter->letter.event);
        break;
    case luna_Letter_service_notice_tag:
        on_service(self, &letter->letter.service_notice.status);
        break;
    case luna_Letter_device_tag:
        on_device(self, &letter->letter.device);
        break;
    case luna_Letter_model_notice_tag:
        on_model(self, &letter->letter.model_notice);
        break;
    case luna_Letter_request_counts_tag:
        self->requests = letter->letter.request_counts;
        break;
    case luna_Letter_transport_counts_tag:
        self->transport.frame_bytes = letter->letter.transport_counts.frame_bytes;
        self->transport.shared_bytes = letter->letter.transport_counts.shared_bytes;
        self->transport.device_bytes = letter->letter.transport_counts.device_bytes;
        break;
    case luna_Letter_lease_counts_tag:
        self->transport.leases = letter->letter.lease_counts.leases;
        break;
    case luna_Letter_lora_totals_tag:
        self->loras = letter->letter.lora_totals;
        break;
    case luna_Letter_gpu_notice_tag:
        on_gpus(self, &letter->letter.gpu_notice);
        break;
    case luna_Letter_drain_all_tag:
        self->draining = true;
        publish_status(self);
        break;
    default:
        log_event(self->context->log, LOG_WARNING, "letter.unexpected", "letter=%d",
                  (int)letter->which_letter);
    }
}

static void on_sink(void *state)
{
    struct monitor *self = state;
    post_each(self->sink, on_letter, self);
}

static void on_ask(struct monitor *self, const luna_Ask *letter, const struct message *frames)
{
    struct ask ask;
    struct error error = {0};
    union codec_request request;
    luna_Status *body = malloc(sizeof *body);
    enum status status = ask_read(letter, frames, &ask, &request, &error);
    if (status == STATUS_OK && body == NULL) {
        status = error_set(&error, STATUS_RESOURCE_EXHAUSTED, "no memory for a status");
    }
    if (status == STATUS_OK && ask.header.operation != luna_Operation_STATUS) {
        status = error_set(&error, STATUS_UNIMPLEMENTED, "the monitor knows STATUS only");
    }
    if (status == STATUS_OK) fill_status(self, body);
    ask_answer(self->router, &ask, luna_Status_fields, body, status == STATUS_OK ? NULL : &error);
    free(body);
}

static void on_router_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    if (letter->which_letter == luna_Letter_ask_tag) on_ask(state, &letter->letter.ask, frames);
}

static void on_router(void *state)
{
    struct monitor *self = state;
    // What was told before the question is in the answer.
    on_sink(self);
    loop_socket_touch(self->watch_sink);
    post_each(self->router, on_router_letter, self);
}

// A subscription is one frame: 1 or 0 and the topic's first bytes. It is put in force here; whoever
// wants the status gets the last one at once.
static void on_subscription(struct monitor *self, struct bytes frame)
{
    const uint8_t *bytes = frame.data;
    if (frame.size == 0 || frame.size > SUBSCRIPTION_BYTES_MAX || bytes[0] > 1) return;
    size_t length = (size_t)frame.size - 1;
    bool joins = bytes[0] == 1;
    int failed =
        zmq_setsockopt(self->publish, joins ? ZMQ_SUBSCRIBE : ZMQ_UNSUBSCRIBE, bytes + 1, length);
    bool wants_status =
        length <= strlen(STATUS_TOPIC) && memcmp(bytes + 1, STATUS_TOPIC, length) == 0;
    if (failed == 0 && joins && wants_status) publish_status(self);
}

static void on_publish(void *state)
{
    struct monitor *self = state;
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        struct message message;
        message_init(&message);
        if (message_receive(&message, self->publish) != STATUS_OK) return;
        on_subscription(self, message_frame(&message, 0));
        message_clear(&message);
    }
}

// ---- life

static enum status open_publish(struct monitor *self, struct error *error)
{
    const char *address = self->config->listen.events;
    if (address[0] == '\0') return STATUS_OK;
    enum status status = socket_open(&self->publish, self->context->zmq, EDGE_PUBLISH, error);
    if (status != STATUS_OK) return status;
    int yes = 1;
    if (zmq_setsockopt(self->publish, ZMQ_XPUB_MANUAL_LAST_VALUE, &yes, sizeof yes) != 0) {
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "libzmq refuses XPUB_MANUAL_LAST_VALUE: %s", zmq_strerror(errno));
    }
    status = socket_bind(self->publish, address, error);
    if (status != STATUS_OK) return status;
    return loop_add_socket(self->context->loop, self->publish, false, on_publish, self,
                           &self->watch_publish, error);
}

static enum status open_sockets(struct monitor *self, struct error *error)
{
    enum status status = socket_open(&self->sink, self->context->zmq, EDGE_EVENTS_SINK, error);
    if (status == STATUS_OK) status = socket_bind(self->sink, ADDRESS_EVENTS, error);
    if (status == STATUS_OK) {
        status = socket_open(&self->router, self->context->zmq, EDGE_ROUTER_MONITOR, error);
    }
    if (status == STATUS_OK) status = socket_connect(self->router, ADDRESS_ROUTER_MONITOR, error);
    if (status != STATUS_OK) return status;
    struct loop *loop = self->context->loop;
    status = loop_add_socket(loop, self->sink, false, on_sink, self, &self->watch_sink, error);
    if (status != STATUS_OK) return status;
    return loop_add_socket(loop, self->router, true, on_router, self, &self->watch_router, error);
}

static void monitor_destroy(void *state)
{
    struct monitor *self = state;
    if (self == NULL) return;
    loop_timer_remove(&self->tick);
    loop_socket_remove(&self->watch_publish);
    loop_socket_remove(&self->watch_router);
    loop_socket_remove(&self->watch_sink);
    socket_close(&self->publish);
    socket_close(&self->router);
    socket_close(&self->sink);
    free(self);
}

static enum status monitor_create(void **state, const struct actor_context *context,
                                  const void *arguments, struct error *error)
{
    assert(state != NULL);
    assert(arguments != NULL);
    const struct core_arguments *core = arguments;
    struct monitor *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the monitor");
    }
    self->context = context;
    self->config = core->config;
    self->started_ns = core->started_ns;
    self->pid = core->supervisor_pid;
    enum status status = open_sockets(self, error);
    if (status == STATUS_OK) status = open_publish(self, error);
    if (status == STATUS_OK) {
        status = loop_add_timer(context->loop, STATUS_EVERY_MS, STATUS_EVERY_MS, on_tick, self,
                                &self->tick, error);
    }
    if (status != STATUS_OK) {
        monitor_destroy(self);
        return status;
    }
    *state = self;
    return STATUS_OK;
}

const struct actor_kind monitor_kind = {"monitor", monitor_create, monitor_destroy, NULL};
