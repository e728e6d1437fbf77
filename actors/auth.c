// auth.c - who may connect: the ZAP handler (ZeroMQ RFC 27) of the process's context.
//
// Every bound socket names a domain, so libzmq asks here before a peer's first message is seen. The
// answer names the user, and the router reads that name from each message. Two domains exist:
// CLIENTS (ipc: the peer's uid; tcp: only from loopback while CURVE is off) and WORKERS (the
// daemon's own uid). The handler answers every request at once; a handler that is gone refuses
// everybody.

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "actors/topology.h"
#include "runtime/actor.h"
#include "runtime/message.h"
#include "runtime/socket.h"

#define ZAP_ADDRESS "inproc://zeromq.zap.01"
#define ZAP_FRAMES_MIN 6u

struct auth {
    const struct actor_context *context;  // as actor.h gives it
    void *zap;                            // REP
    struct loop_socket *watch;            // of zap
    uint64_t refused;                     // connections
};

struct verdict {
    const char *code;  // "200", "400"
    const char *text;  // for people
    char user[64];     // User-Id
};

static bool frame_is(const struct message *message, uint32_t index, const char *text)
{
    struct bytes frame = message_frame(message, index);
    return frame.size == strlen(text) && memcmp(frame.data, text, frame.size) == 0;
}

// The uid in an ipc peer's address, "localhost:UID:GID:PID"; false for any other address.
static bool read_uid(struct bytes address, uint32_t *out)
{
    static const char prefix[] = "localhost:";
    char text[64];
    if (address.size <= sizeof prefix || address.size >= sizeof text) return false;
    memcpy(text, address.data, address.size);
    text[address.size] = '\0';
    char *end = text + sizeof prefix - 1;
    if (strncmp(text, prefix, sizeof prefix - 1) != 0 || *end < '0' || *end > '9') return false;
    unsigned long uid = strtoul(end, &end, 10);
    if (*end != ':' || uid >= UINT32_MAX) return false;
    *out = (uint32_t)uid;
    return true;
}

static bool is_loopback(struct bytes address)
{
    const char *text = address.data;
    return (address.size >= 4 && memcmp(text, "127.", 4) == 0) ||
           (address.size == 3 && memcmp(text, "::1", 3) == 0) ||
           (address.size >= 11 && memcmp(text, "::ffff:127.", 11) == 0);
}

static struct verdict judge(const struct message *request)
{
    struct verdict verdict = {.code = "400", .text = "not allowed"};
    uint32_t uid = 0;
    bool local = read_uid(message_frame(request, 3), &uid);
    if (!frame_is(request, 5, "NULL")) {
        verdict.text = "this mechanism is not configured";
        return verdict;
    }
    if (frame_is(request, 2, SOCKET_DOMAIN_WORKERS)) {
        if (!local || uid != (uint32_t)geteuid()) return verdict;
    } else if (!frame_is(request, 2, SOCKET_DOMAIN_CLIENTS)) {
        verdict.text = "unknown domain";
        return verdict;
    } else if (!local && !is_loopback(message_frame(request, 3))) {
        verdict.text = "only loopback may connect while curve is off";
        return verdict;
    }
    verdict.code = "200";
    verdict.text = "OK";
    if (local)
        snprintf(verdict.user, sizeof verdict.user, "uid:%u", uid);
    else
        snprintf(verdict.user, sizeof verdict.user, "tcp");
    return verdict;
}

static void answer(struct auth *self, struct message *request)
{
    struct verdict verdict = {.code = "500", .text = "malformed request"};
    bool readable = request->count >= ZAP_FRAMES_MIN && frame_is(request, 0, "1.0");
    if (readable) verdict = judge(request);
    if (strcmp(verdict.code, "200") != 0) {
        self->refused += 1;
        log_event(self->context->log, LOG_WARNING, "connection.refused", "why=%s count=%lu",
                  verdict.text, (unsigned long)self->refused);
    }
    const struct bytes id =
        request->count >= 2 ? message_frame(request, 1) : (struct bytes){.data = "", .size = 0};
    const struct bytes frames[] = {
        {.data = "1.0", .size = 3},
        id,
        {.data = verdict.code, .size = strlen(verdict.code)},
        {.data = verdict.text, .size = strlen(verdict.text)},
        {.data = verdict.user, .size = strlen(verdict.user)},
        {.data = "", .size = 0},
    };
    struct message reply;
    message_init(&reply);
    enum status status = STATUS_OK;
    for (size_t i = 0; status == STATUS_OK && i < sizeof frames / sizeof frames[0]; i++) {
        status = message_append(&reply, frames[i]);
    }
    if (status == STATUS_OK) message_send(&reply, self->zap);
    message_clear(&reply);
}

static void on_zap(void *state)
{
    struct auth *self = state;
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        struct message request;
        message_init(&request);
        if (message_receive(&request, self->zap) != STATUS_OK) return;
        answer(self, &request);
        message_clear(&request);
    }
}

static void auth_destroy(void *state)
{
    struct auth *self = state;
    if (self == NULL) return;
    loop_socket_remove(&self->watch);
    socket_close(&self->zap);
    free(self);
}

static enum status auth_create(void **state, const struct actor_context *context,
                               const void *arguments, struct error *error)
{
    assert(state != NULL);
    assert(context != NULL);
    (void)arguments;
    struct auth *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for auth");
    self->context = context;
    enum status status = socket_open(&self->zap, context->zmq, EDGE_ZAP, error);
    if (status == STATUS_OK) status = socket_bind(self->zap, ZAP_ADDRESS, error);
    if (status == STATUS_OK) {
        status = loop_add_socket(context->loop, self->zap, true, on_zap, self, &self->watch, error);
    }
    if (status != STATUS_OK) {
        auth_destroy(self);
        return status;
    }
    *state = self;
    return STATUS_OK;
}

const struct actor_kind auth_kind = {"auth", auth_create, auth_destroy, NULL};
