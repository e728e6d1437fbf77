// client.c - the connection: one DEALER socket, and a session for shared memory beside it.
//
// The socket queues only towards a daemon that is there (ZMQ_IMMEDIATE): without one a request
// waits in its call, where its deadline is, and not in a queue that nobody looks at.

#include "clients/c/client.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define LINGER_MS 200               // for the cancel of a call that timed out just before the end
#define HEARTBEAT_MS 5000           // after which a silent network is noticed ...
#define HEARTBEAT_TIMEOUT_MS 15000  // ... when nothing came for so long
#define RECONNECT_MS 50
#define RECONNECT_MS_MAX 1000
#define QUEUE_MESSAGES 16  // of each direction, in the socket
#define ATTACH_TIMEOUT_MS 2000u
#define ATTACH_AGAIN_NS UINT64_C(5000000000)

static bool set_int(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value) == 0;
}

static bool set_options(void *socket, bool local)
{
    bool set = set_int(socket, ZMQ_LINGER, LINGER_MS) && set_int(socket, ZMQ_IMMEDIATE, 1) &&
               set_int(socket, ZMQ_SNDHWM, QUEUE_MESSAGES) &&
               set_int(socket, ZMQ_RCVHWM, QUEUE_MESSAGES) &&
               set_int(socket, ZMQ_RECONNECT_IVL, RECONNECT_MS) &&
               set_int(socket, ZMQ_RECONNECT_IVL_MAX, RECONNECT_MS_MAX);
    if (!set || local) return set;
    return set_int(socket, ZMQ_IPV6, 1) && set_int(socket, ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS) &&
           set_int(socket, ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS);
}

static enum status set_keys(void *socket, const struct luna_client_options *options,
                            struct error *error)
{
    const struct {
        const char *what;
        int option;
        const char *key;
    } keys[] = {{"server", ZMQ_CURVE_SERVERKEY, options->server_key},
                {"public", ZMQ_CURVE_PUBLICKEY, options->public_key},
                {"secret", ZMQ_CURVE_SECRETKEY, options->secret_key}};
    if (options->server_key == NULL) return STATUS_OK;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        bool whole = keys[i].key != NULL && strlen(keys[i].key) == LUNA_KEY_BYTES;
        if (whole && zmq_setsockopt(socket, keys[i].option, keys[i].key, LUNA_KEY_BYTES) == 0) {
            continue;
        }
        return error_set(error, STATUS_INVALID_ARGUMENT, "the %s key is not %u characters of Z85",
                         keys[i].what, LUNA_KEY_BYTES);
    }
    return STATUS_OK;
}

static enum status open_socket(struct luna_client *self, const struct luna_client_options *options,
                               struct error *error)
{
    bool local = strncmp(self->endpoint, "ipc://", 6) == 0;
    self->may_lease = local && !options->frames_only;
    self->context = zmq_ctx_new();
    if (self->context != NULL) self->socket = zmq_socket(self->context, ZMQ_DEALER);
    if (self->socket == NULL || !set_options(self->socket, local)) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no socket: %s", zmq_strerror(errno));
    }
    enum status status = set_keys(self->socket, options, error);
    if (status != STATUS_OK) return status;
    if (zmq_connect(self->socket, self->endpoint) != 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "endpoint %s: %s", self->endpoint,
                         zmq_strerror(errno));
    }
    return STATUS_OK;
}

static enum status say_hello(struct luna_client *self, uint32_t connect_ms, struct error *error)
{
    struct luna_answer *answer = NULL;
    const struct luna_request request = {
        .operation = luna_Operation_PING,
        .timeout_ms = connect_ms > 0 ? connect_ms : LUNA_CONNECT_MS_DEFAULT,
    };
    enum status status = luna_client_call(self, &request, &answer, error);
    if (status == STATUS_DEADLINE_EXCEEDED) {
        return error_set(error, STATUS_UNAVAILABLE, "nobody answers at %s", self->endpoint);
    }
    if (status != STATUS_OK) return status;
    const luna_PingReply *hello = answer->body;
    self->hello = *hello;
    luna_answer_destroy(&answer);
    return STATUS_OK;
}

enum status luna_client_create(struct luna_client **out, const struct luna_client_options *options,
                               struct error *error)
{
    assert(out != NULL);
    static const struct luna_client_options defaults = {0};
    if (options == NULL) options = &defaults;
    struct luna_client *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "out of memory");

    enum status status = luna_find_endpoint(options->endpoint, self->endpoint, error);
    if (status == STATUS_OK) status = open_socket(self, options, error);
    if (status == STATUS_OK) status = say_hello(self, options->connect_ms, error);
    if (status != STATUS_OK) goto done;
    *out = self;
    self = NULL;

done:
    luna_client_destroy(&self);
    return status;
}

void luna_client_destroy(struct luna_client **self_p)
{
    assert(self_p != NULL);
    struct luna_client *self = *self_p;
    if (self == NULL) return;
    assert(self->leases == NULL || client_leases_idle(self->leases));  // no answer is left
    client_leases_destroy(&self->leases);
    if (self->socket != NULL) zmq_close(self->socket);
    while (self->context != NULL && zmq_ctx_term(self->context) != 0) assert(errno == EINTR);
    free(self);
    *self_p = NULL;
}

const char *luna_client_endpoint(const struct luna_client *self)
{
    assert(self != NULL);
    return self->endpoint;
}

const luna_PingReply *luna_client_hello(const struct luna_client *self)
{
    assert(self != NULL);
    return &self->hello;
}

void client_attach(struct luna_client *self)
{
    assert(self != NULL);
    if (!self->may_lease) return;
    if (self->leases != NULL) {
        if (client_leases_alive(self->leases) || !client_leases_idle(self->leases)) return;
        client_leases_destroy(&self->leases);
    }
    uint64_t now = clock_ns(clock_system());
    if (now < self->attach_ns) return;
    self->attach_ns = now + ATTACH_AGAIN_NS;

    struct luna_answer *answer = NULL;
    const struct luna_request request = {.operation = luna_Operation_ATTACH,
                                         .timeout_ms = ATTACH_TIMEOUT_MS};
    if (luna_client_call(self, &request, &answer, NULL) != STATUS_OK) return;
    const luna_AttachReply *reply = answer->body;
    self->lease_bytes_min = reply->bytes_min;
    // Without a session everything goes in frames: why there is none is nobody's concern here.
    if (client_leases_create(&self->leases, reply->path, NULL) != STATUS_OK) self->leases = NULL;
    luna_answer_destroy(&answer);
}

bool client_receive(struct luna_client *self, struct client_frames *out)
{
    assert(self != NULL);
    assert(out != NULL);
    bool more = true;
    out->count = 0;
    while (more) {
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        // The parts of a message arrive together: only the first can be missing.
        if (zmq_msg_recv(&frame, self->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&frame);
            break;
        }
        more = zmq_msg_more(&frame);
        bool delimiter = out->count == 0 && more && zmq_msg_size(&frame) == 0;
        if (delimiter || out->count == CLIENT_FRAMES_MAX) {
            zmq_msg_close(&frame);
        } else {
            zmq_msg_init(&out->frames[out->count]);
            zmq_msg_move(&out->frames[out->count++], &frame);
            zmq_msg_close(&frame);
        }
    }
    return out->count > 0;
}

void client_frames_clear(struct client_frames *self)
{
    assert(self != NULL);
    for (uint32_t i = 0; i < self->count; i++) zmq_msg_close(&self->frames[i]);
    self->count = 0;
}

void client_frames_move(struct client_frames *to, struct client_frames *from)
{
    assert(to != NULL && to->count == 0);
    assert(from != NULL);
    for (uint32_t i = 0; i < from->count; i++) {
        zmq_msg_init(&to->frames[i]);
        zmq_msg_move(&to->frames[i], &from->frames[i]);
    }
    to->count = from->count;
    client_frames_clear(from);
}

struct bytes client_frame(struct client_frames *self, uint32_t index)
{
    assert(index < self->count);
    return (struct bytes){zmq_msg_data(&self->frames[index]), zmq_msg_size(&self->frames[index])};
}
