// router_clients.c - requests in, answers out: what clients may say, and how they hear back.

#include "actors/router_state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "actors/event.h"
#include "actors/post.h"

// Messages of clients that are read at once, and the pause after them: it grows with the queue to
// this at a quarter of what may wait, and is hardly a delay for those who come behind a flood.
#define CLIENTS_BATCH 16u
#define CLIENTS_REST_US_MAX 4000u

// ---- answers out

void router_send(struct router *self, const struct route *route, struct message *frames)
{
    assert(route->length > 0);
    struct message message;
    message_init(&message);
    enum status status =
        message_append(&message, (struct bytes){.data = route->connection, .size = route->length});
    if (status == STATUS_OK && route->delimiter) {
        status = message_append(&message, (struct bytes){.data = "", .size = 0});
    }
    for (uint32_t i = 0; status == STATUS_OK && i < frames->count; i++) {
        status = message_append_shared(&message, frames, i);
    }
    // A client that is gone, or does not read, loses this message; it may ask again with the same
    // id.
    if (status == STATUS_OK) status = message_send(&message, self->sockets[ROUTER_CLIENTS]);
    if (status != STATUS_OK) {
        log_event(self->context->log, LOG_DEBUG, "answer.dropped", "status=%s",
                  status_name(status));
    }
    message_clear(&message);
    message_clear(frames);
    loop_socket_touch(self->watches[ROUTER_CLIENTS]);
}

void router_send_reply(struct router *self, const struct route *route, const luna_Header *header,
                       struct bytes body)
{
    uint8_t buffer[CODEC_HEADER_BYTES_MAX];
    struct codec_buffer encoded = {.data = buffer, .capacity = sizeof buffer};
    struct message frames;
    message_init(&frames);
    enum status status = codec_encode_header(header, &encoded, NULL);
    if (status == STATUS_OK) {
        status = message_append(&frames, (struct bytes){.data = buffer, .size = encoded.size});
    }
    if (status == STATUS_OK) status = message_append(&frames, body);
    if (status == STATUS_OK) router_send(self, route, &frames);
    message_clear(&frames);
}

void router_refuse(struct router *self, const struct request *request, const struct error *error)
{
    luna_Header reply;
    codec_start_reply(&request->header, &reply);
    codec_set_error(&reply, error);
    router_send_reply(self, &request->route, &reply, (struct bytes){.data = NULL, .size = 0});
    self->counts.failed += 1;
    self->counts_changed = true;
}

// ---- who asks

static uint32_t uid_of(const char *name)
{
    if (strncmp(name, "uid:", 4) != 0) return UINT32_MAX;
    return (uint32_t)strtoul(name + 4, NULL, 10);
}

static void fill_user(const struct router *self, struct user *user, const char *name)
{
    *user = (struct user){.uid = uid_of(name)};
    text_set(user->name, sizeof user->name, name);
    user->shared = strcmp(name, "tcp") == 0;
    user->admin = user->uid == self->own_uid;
    if (user->shared) user->admin = self->config->security.loopback_admin;
}

// The index of the user behind a message; JOB_USERS_MAX when the table is full of users with jobs.
static uint32_t find_user(struct router *self, struct message *message)
{
    // The id frame loses its metadata at random in libzmq 4.3.4; the last frame has it.
    const char *name = zmq_msg_gets(&message->frames[message->count - 1], "User-Id");
    if (name == NULL) name = "tcp";
    uint32_t oldest = JOB_USERS_MAX;
    for (uint32_t i = 0; i < JOB_USERS_MAX; i++) {
        struct user *user = &self->users[i];
        if (user->name[0] != '\0' && strcmp(user->name, name) == 0) {
            user->seen_ns = router_now(self);
            return i;
        }
        if (user->jobs > 0) continue;
        if (oldest == JOB_USERS_MAX || user->seen_ns < self->users[oldest].seen_ns) oldest = i;
    }
    if (oldest == JOB_USERS_MAX) return oldest;
    reply_cache_forget_user(self->replies, oldest);
    fill_user(self, &self->users[oldest], name);
    self->users[oldest].seen_ns = router_now(self);
    return oldest;
}

// ---- requests that the router answers itself

static void answer_ping(struct router *self, const struct request *request)
{
    luna_PingReply ping = luna_PingReply_init_zero;
    text_set(ping.version, sizeof ping.version, LUNA_VERSION);
    ping.major = CODEC_MAJOR;
    ping.minor_max = CODEC_MINOR;
    ping.message_bytes_max = self->config->limits.message_bytes_max;
    ping.text_bytes_max = self->config->limits.text_bytes_max;
    ping.image_pixels_max = self->config->limits.image_pixels_max;
    ping.chunk_bytes = 8u << 20;
    ping.stack_max = self->config->lora.stack_max;
    text_set(ping.state, sizeof ping.state, self->draining ? "draining" : "ready");

    uint8_t buffer[luna_PingReply_size];
    struct codec_buffer encoded = {.data = buffer, .capacity = sizeof buffer};
    enum status status = codec_encode(luna_PingReply_fields, &ping, &encoded, NULL);
    assert(status == STATUS_OK);
    luna_Header reply;
    codec_start_reply(&request->header, &reply);
    router_send_reply(self, &request->route, &reply,
                      (struct bytes){.data = buffer, .size = encoded.size});
}

static void answer_attach(struct router *self, const struct request *request)
{
    struct error error;
    if (self->users[request->user].uid == UINT32_MAX || self->arguments.lease_path[0] == '\0') {
        error_set(&error, STATUS_FAILED_PRECONDITION,
                  "shared memory needs a client on this machine that connects over ipc");
        router_refuse(self, request, &error);
        return;
    }
    luna_AttachReply attach = luna_AttachReply_init_zero;
    text_set(attach.path, sizeof attach.path, self->arguments.lease_path);
    text_set(attach.adapters, sizeof attach.adapters, self->arguments.loras_path);
    attach.bytes_min = 256u << 10;
    uint8_t buffer[luna_AttachReply_size];
    struct codec_buffer encoded = {.data = buffer, .capacity = sizeof buffer};
    enum status status = codec_encode(luna_AttachReply_fields, &attach, &encoded, NULL);
    assert(status == STATUS_OK);
    luna_Header reply;
    codec_start_reply(&request->header, &reply);
    router_send_reply(self, &request->route, &reply,
                      (struct bytes){.data = buffer, .size = encoded.size});
}

static void answer_empty(struct router *self, const struct request *request)
{
    luna_Header reply;
    codec_start_reply(&request->header, &reply);
    router_send_reply(self, &request->route, &reply, (struct bytes){.data = NULL, .size = 0});
}

static void answer_cancel(struct router *self, const struct request *request,
                          const luna_Cancel *cancel)
{
    if (router_cancel(self, request->user, cancel->id.bytes)) {
        answer_empty(self, request);
        return;
    }
    char id[2 * JOB_ID_BYTES + 1];
    for (uint32_t i = 0; i < JOB_ID_BYTES; i++)
        snprintf(id + 2 * i, 3, "%02x", cancel->id.bytes[i]);
    struct error error;
    error_set(&error, STATUS_NOT_FOUND, "no request of yours with id %s is waiting or running", id);
    router_refuse(self, request, &error);
}

static void start_drain(struct router *self, const struct request *request, bool stop)
{
    self->draining = true;
    answer_empty(self, request);
    luna_Letter letter = {.which_letter =
                              stop ? luna_Letter_stop_all_tag : luna_Letter_drain_all_tag};
    router_post(self, ROUTER_CORE, &letter, NULL);
}

static bool needs_admin(luna_Operation operation)
{
    switch (operation) {
    case luna_Operation_LORA_SCAN:
    case luna_Operation_MODEL_REGISTER:
    case luna_Operation_MODEL_UNLOAD:
    case luna_Operation_DRAIN:
    case luna_Operation_SHUTDOWN:
    case luna_Operation_LIMITS:
        return true;
    default:
        return false;
    }
}

// ---- requests in

static void dispatch_request(struct router *self, struct request *request,
                             const union codec_request *body)
{
    switch (request->header.operation) {
    case luna_Operation_PING:
        answer_ping(self, request);
        return;
    case luna_Operation_ATTACH:
        answer_attach(self, request);
        return;
    case luna_Operation_CANCEL:
        answer_cancel(self, request, &body->cancel);
        return;
    case luna_Operation_DRAIN:
        start_drain(self, request, false);
        return;
    case luna_Operation_SHUTDOWN:
        start_drain(self, request, true);
        return;
    case luna_Operation_STATUS:
        router_tell_counts(self);  // the monitor reads it before the question
        router_ask(self, request, ROUTER_MONITOR);
        return;
    case luna_Operation_LIMITS:
        router_ask(self, request, ROUTER_SCALER);
        return;
    case luna_Operation_MODEL_REGISTER:
    case luna_Operation_MODEL_LOAD:
    case luna_Operation_MODEL_UNLOAD:
    case luna_Operation_MODEL_LIST:
        router_ask(self, request, ROUTER_REGISTRY);
        return;
    case luna_Operation_LORA_PUT:
    case luna_Operation_LORA_HAS:
    case luna_Operation_LORA_GET:
    case luna_Operation_LORA_LIST:
    case luna_Operation_LORA_SCAN:
    case luna_Operation_LORA_PIN:
    case luna_Operation_LORA_UNPIN:
    case luna_Operation_LORA_EVICT:
        router_ask(self, request, ROUTER_LORAS);
        return;
    case luna_Operation_LORA_STATS:
        router_tell_cache(self);  // the store reads it before the question
        router_ask(self, request, ROUTER_LORAS);
        return;
    default:
        router_submit(self, request, body);
    }
}

// Everything about a request that can be checked without knowing the models.
static enum status check_request(struct router *self, struct request *request,
                                 union codec_request *body, struct error *error)
{
    struct message *message = request->message;
    uint32_t first = request->first;
    enum status status =
        codec_decode_header(message_frame(message, first), &request->header, error);
    if (status != STATUS_OK) {
        request->has_id = codec_peek_header(message_frame(message, first), &request->header);
        return status;
    }
    request->has_id = true;
    if (request->header.kind != luna_Kind_REQUEST) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "kind is %d, clients send REQUEST (1)",
                         (int)request->header.kind);
    }
    if (message->overlong || message->count > first + 2 + CODEC_TENSORS_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "message has more than %u payload frames",
                         CODEC_TENSORS_MAX);
    }
    if (message->count < first + 2) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "message has no body frame behind its header");
    }
    uint64_t sizes[CODEC_TENSORS_MAX];
    uint32_t payloads = message->count - first - 2;
    for (uint32_t i = 0; i < payloads; i++) sizes[i] = message_frame(message, first + 2 + i).size;
    status = codec_check_frames(&request->header, sizes, payloads,
                                self->config->limits.message_bytes_max, error);
    if (status != STATUS_OK) return status;
    status = codec_decode_request(&request->header, message_frame(message, first + 1), body, error);
    if (status != STATUS_OK) return status;
    const struct codec_limits limits = {.text_bytes_max = self->config->limits.text_bytes_max,
                                        .image_pixels_max = self->config->limits.image_pixels_max};
    status = codec_check_limits(&request->header, &limits, error);
    if (status != STATUS_OK) return status;
    if (request->header.timeout_ms == 0) {
        return error_set(error, STATUS_DEADLINE_EXCEEDED, "the timeout is 0 ms");
    }
    if (needs_admin(request->header.operation) && !self->users[request->user].admin) {
        return error_set(error, STATUS_PERMISSION_DENIED, "%s is for admins; you are \"%s\"",
                         codec_operation_name(request->header.operation),
                         self->users[request->user].name);
    }
    return STATUS_OK;
}

// Finds the route and the header's frame; false for what no client of ours would send.
static bool read_route(struct request *request)
{
    const struct message *message = request->message;
    if (message->count < 2) return false;
    struct bytes connection = message_frame(message, 0);
    if (connection.size == 0 || connection.size > ROUTE_BYTES_MAX) return false;
    request->route.length = (uint8_t)connection.size;
    memcpy(request->route.connection, connection.data, connection.size);
    request->route.delimiter = message_frame(message, 1).size == 0;
    request->first = request->route.delimiter ? 2 : 1;
    return message->count > request->first;
}

static void on_request(struct router *self, struct message *message)
{
    struct request request = {.message = message};
    if (!read_route(&request)) {
        self->malformed += 1;
        log_event(self->context->log, LOG_WARNING, "request.malformed", "frames=%u count=%lu",
                  message->count, (unsigned long)self->malformed);
        return;
    }
    struct error error = {.status = STATUS_OK};
    union codec_request body;
    self->counts.total += 1;
    request.user = find_user(self, message);
    if (request.user == JOB_USERS_MAX) {
        codec_peek_header(message_frame(message, request.first), &request.header);
        error_set(&error, STATUS_RESOURCE_EXHAUSTED, "%u users have requests here, no more fit",
                  JOB_USERS_MAX);
        error.retry_after_ms = 1000;
    } else {
        check_request(self, &request, &body, &error);
    }
    if (error.status != STATUS_OK) {
        router_event(self, "request.failed", NULL, &error, 0);
        router_refuse(self, &request, &error);
        return;
    }
    dispatch_request(self, &request, &body);
}

// How long clients are left alone for what waits already.
static uint32_t rest_us(const struct router *self)
{
    uint64_t us =
        UINT64_C(4) * CLIENTS_REST_US_MAX * self->waiting / self->config->limits.queue_requests_max;
    return us < CLIENTS_REST_US_MAX ? (uint32_t)us : CLIENTS_REST_US_MAX;
}

// Reads about as fast as requests are done: what a client sends at once waits in the sockets, which
// holds the client back, instead of being refused here and sent again. Others come between its
// messages, for a socket takes from its connections in turn.
void router_on_clients(void *state)
{
    struct router *self = state;
    for (uint32_t i = 0; i < CLIENTS_BATCH; i++) {
        struct message message;
        message_init(&message);
        if (message_receive(&message, self->sockets[ROUTER_CLIENTS]) != STATUS_OK) return;
        on_request(self, &message);
        message_clear(&message);
    }
    loop_socket_rest(self->watches[ROUTER_CLIENTS], rest_us(self));
}
