// call.c - one request from its first sending to its one answer.
//
// A call is a small state machine over three times: when to send next, when to give up, and now. It
// sends when the first has come and a daemon is connected; it reads whatever arrives and drops what
// belongs to calls that are over. Because the daemon knows a request by its id, sending it again is
// always safe: after a lost connection, a restarted daemon, or a refusal that asked to wait.

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/text.h"
#include "clients/c/client.h"

#define MS UINT64_C(1000000)  // nanoseconds
#define RESEND_MS_FIRST 1000u
#define RESEND_MS_MAX 4000u
#define STOP_CHECK_MS 100u  // at most so long after request->stop was set

struct call {
    struct luna_client *client;                     // that makes it
    const struct luna_request *request;             // the caller's
    luna_Header header;                             // as it is sent
    uint8_t *body;                                  // encoded
    uint64_t body_bytes;                            // at body
    struct client_lease leases[CODEC_TENSORS_MAX];  // by tensor of header; bytes 0: none
    uint64_t deadline_ns;                           // when to give up
    uint64_t send_ns;                               // when to send
    uint32_t resend_ms;                             // until the sending after that
    bool sent;                                      // at least once
};

static uint64_t now_ns(void)
{
    return clock_ns(clock_system());
}

static enum status fill_tensor(luna_Tensor *out, const struct luna_tensor *in, struct error *error)
{
    if (strlen(in->name) >= sizeof out->name || in->rank > 8) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%s\" of rank %" PRIu32 ": name or rank is beyond the limit",
                         in->name, in->rank);
    }
    text_set(out->name, sizeof out->name, in->name);
    out->dtype = (luna_Dtype)in->dtype;
    out->dims_count = (pb_size_t)in->rank;
    memcpy(out->dims, in->dims, in->rank * sizeof in->dims[0]);
    if (checked_product(in->dims, in->rank, &out->bytes) &&
        checked_multiply(out->bytes, dtype_bytes(in->dtype), &out->bytes)) {
        return STATUS_OK;
    }
    return error_set(error, STATUS_INVALID_ARGUMENT, "tensor \"%s\" has more than 2^64 bytes",
                     in->name);
}

static enum status fill_header(struct call *self, struct error *error)
{
    const struct luna_request *request = self->request;
    luna_Header *header = &self->header;
    *header = (luna_Header)luna_Header_init_zero;
    header->major = CODEC_MAJOR;
    header->minor = CODEC_MINOR;
    header->kind = luna_Kind_REQUEST;
    header->operation = request->operation;
    header->has_timeout_ms = true;
    header->priority = request->priority;
    header->want_progress = request->on_progress != NULL;
    header->may_tile = request->may_tile;
    header->want_trace = request->want_trace;
    header->id.size = CODEC_ID_BYTES;
    if (getrandom(header->id.bytes, CODEC_ID_BYTES, 0) != CODEC_ID_BYTES) {
        return error_set(error, STATUS_INTERNAL, "no random bytes: %s", strerror(errno));
    }
    const char *model = request->model != NULL ? request->model : "";
    if (strlen(model) >= sizeof header->model) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "the model's name \"%s\" is too long",
                         model);
    }
    text_set(header->model, sizeof header->model, model);
    if (request->inputs_count > CODEC_TENSORS_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%" PRIu32 " tensors, at most %u",
                         request->inputs_count, CODEC_TENSORS_MAX);
    }
    for (uint32_t i = 0; i < request->inputs_count; i++) {
        enum status status = fill_tensor(&header->tensors[i], &request->inputs[i], error);
        if (status != STATUS_OK) return status;
    }
    header->tensors_count = (pb_size_t)request->inputs_count;
    return STATUS_OK;
}

static enum status fill_body(struct call *self, struct error *error)
{
    const pb_msgdesc_t *type = codec_request_type(self->request->operation);
    if (type == NULL || self->request->body == NULL) return STATUS_OK;  // an empty frame
    self->body = malloc(CODEC_BODY_BYTES_MAX);
    if (self->body == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    struct codec_buffer encoded = {self->body, CODEC_BODY_BYTES_MAX, 0};
    enum status status = codec_encode(type, self->request->body, &encoded, error);
    self->body_bytes = encoded.size;
    return status;
}

static bool wants_lease(const struct call *self, uint64_t bytes)
{
    struct client_leases *leases = self->client->leases;
    return leases != NULL && bytes > 0 && bytes >= self->client->lease_bytes_min &&
           client_leases_alive(leases);
}

// Gets shared memory for the tensor at index of the header; false when it has to go without.
static bool lease(struct call *self, uint32_t index, uint64_t bytes)
{
    if (!wants_lease(self, bytes)) return false;
    struct client_lease *got = &self->leases[index];
    if (client_leases_acquire(self->client->leases, bytes, got, NULL) != STATUS_OK) return false;
    luna_Tensor *tensor = &self->header.tensors[index];
    tensor->where = luna_Where_SHARED;
    tensor->has_shared = true;
    tensor->shared = (luna_SharedRef){got->pool, got->slot, got->generation, 0};
    return true;
}

static void release_leases(struct call *self)
{
    for (uint32_t i = 0; i < CODEC_TENSORS_MAX; i++) {
        if (self->leases[i].bytes == 0) continue;
        client_leases_release(self->client->leases, &self->leases[i]);
        self->leases[i].bytes = 0;
    }
}

// Large inputs are copied into shared memory and large outputs get room there.
static void share(struct call *self)
{
    const struct luna_request *request = self->request;
    luna_Header *header = &self->header;
    for (uint32_t i = 0; i < request->inputs_count; i++) {
        luna_Tensor *tensor = &header->tensors[i];
        if (lease(self, i, tensor->bytes)) {
            memcpy(self->leases[i].data, request->inputs[i].data, (size_t)tensor->bytes);
        }
    }
    for (uint32_t i = 0; i < request->rooms_count; i++) {
        uint32_t index = header->tensors_count;
        const struct luna_room *room = &request->rooms[i];
        if (index == CODEC_TENSORS_MAX || strlen(room->name) >= sizeof header->tensors[0].name) {
            return;
        }
        if (!lease(self, index, room->bytes)) continue;
        text_set(header->tensors[index].name, sizeof header->tensors[index].name, room->name);
        header->tensors[index].room = true;
        header->tensors[index].bytes = room->bytes;
        header->tensors_count++;
    }
}

// The session ended (the daemon was restarted): what was shared goes in frames from now on.
static void unshare(struct call *self)
{
    release_leases(self);
    self->header.tensors_count = (pb_size_t)self->request->inputs_count;
    for (uint32_t i = 0; i < self->header.tensors_count; i++) {
        self->header.tensors[i].where = luna_Where_FRAME;
        self->header.tensors[i].has_shared = false;
    }
}

static bool holds_leases(const struct call *self)
{
    for (uint32_t i = 0; i < CODEC_TENSORS_MAX; i++) {
        if (self->leases[i].bytes > 0) return true;
    }
    return false;
}

// Sends one frame; 0, or the error's number. Only a message's first frame can meet a full queue.
static int send_frame(void *socket, const void *data, uint64_t bytes, bool more)
{
    zmq_msg_t frame;
    if (zmq_msg_init_size(&frame, (size_t)bytes) != 0) return ENOMEM;
    if (bytes > 0) memcpy(zmq_msg_data(&frame), data, (size_t)bytes);
    if (zmq_msg_send(&frame, socket, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)) >= 0) return 0;
    int number = errno;
    zmq_msg_close(&frame);
    return number;
}

static int send_payloads(struct call *self, uint32_t payloads)
{
    int number = 0;
    for (uint32_t i = 0; i < self->request->inputs_count && number == 0; i++) {
        const luna_Tensor *tensor = &self->header.tensors[i];
        if (tensor->where != luna_Where_FRAME) continue;
        payloads--;
        number = send_frame(self->client->socket, self->request->inputs[i].data, tensor->bytes,
                            payloads > 0);
    }
    return number;
}

// Sends the request with the time that is left. A socket that takes nothing now is asked again.
static enum status send_request(struct call *self, struct error *error)
{
    uint8_t buffer[CODEC_HEADER_BYTES_MAX];
    struct codec_buffer encoded = {buffer, sizeof buffer, 0};
    uint64_t now = now_ns();
    if (holds_leases(self) && !client_leases_alive(self->client->leases)) unshare(self);
    uint64_t left_ms = self->deadline_ns > now ? (self->deadline_ns - now + MS - 1) / MS : 1;
    self->header.timeout_ms = (uint32_t)left_ms;
    enum status status = codec_encode_header(&self->header, &encoded, error);
    if (status != STATUS_OK) return status;

    uint32_t payloads = 0;
    for (uint32_t i = 0; i < self->header.tensors_count; i++) {
        payloads += self->header.tensors[i].where == luna_Where_FRAME;
    }
    void *socket = self->client->socket;
    int number = send_frame(socket, buffer, encoded.size, true);
    if (number == EAGAIN) return STATUS_OK;
    if (number == 0) number = send_frame(socket, self->body, self->body_bytes, payloads > 0);
    if (number == 0) number = send_payloads(self, payloads);
    if (number != 0) {
        return error_set(error, number == ENOMEM ? STATUS_RESOURCE_EXHAUSTED : STATUS_INTERNAL,
                         "the request cannot be sent: %s", zmq_strerror(number));
    }
    self->sent = true;
    self->send_ns = now + self->resend_ms * MS;
    self->resend_ms = self->resend_ms * 2 < RESEND_MS_MAX ? self->resend_ms * 2 : RESEND_MS_MAX;
    return STATUS_OK;
}

// Takes the request back; whether the daemon hears it is not waited for.
static void send_cancel(struct call *self)
{
    uint8_t head[CODEC_HEADER_BYTES_MAX];
    uint8_t body[luna_Cancel_size];
    struct codec_buffer head_out = {head, sizeof head, 0};
    struct codec_buffer body_out = {body, sizeof body, 0};
    luna_Header header = luna_Header_init_zero;
    luna_Cancel cancel = luna_Cancel_init_zero;
    if (!self->sent) return;
    header.major = CODEC_MAJOR;
    header.kind = luna_Kind_REQUEST;
    header.operation = luna_Operation_CANCEL;
    header.id = self->header.id;
    header.id.bytes[0] ^= 0x80;  // another id, as random as the first
    cancel.id.size = self->header.id.size;
    memcpy(cancel.id.bytes, self->header.id.bytes, sizeof cancel.id.bytes);
    if (codec_encode_header(&header, &head_out, NULL) != STATUS_OK) return;
    if (codec_encode(luna_Cancel_fields, &cancel, &body_out, NULL) != STATUS_OK) return;
    if (send_frame(self->client->socket, head, head_out.size, true) != 0) return;
    send_frame(self->client->socket, body, body_out.size, false);
}

// True when a refusal is worth waiting for; sets the time of the next sending.
static bool retries(struct call *self, const luna_Header *header)
{
    bool may =
        header->code == luna_Code_RESOURCE_EXHAUSTED || header->code == luna_Code_UNAVAILABLE;
    uint64_t at = now_ns() + header->retry_after_ms * MS;
    if (!may || header->retry_after_ms == 0 || at >= self->deadline_ns) return false;
    self->send_ns = at;
    self->resend_ms = RESEND_MS_FIRST;
    return true;
}

// Reads one message that waits. True when the call is over: *status is then its end.
static bool read_message(struct call *self, struct luna_answer **out, enum status *status,
                         struct error *error)
{
    struct client_frames frames;
    luna_Header header;
    bool over = false;
    if (!client_receive(self->client, &frames)) return false;
    bool ours = codec_decode_header(client_frame(&frames, 0), &header, NULL) == STATUS_OK &&
                memcmp(header.id.bytes, self->header.id.bytes, CODEC_ID_BYTES) == 0;
    if (ours && header.kind == luna_Kind_PROGRESS) {
        if (self->request->on_progress != NULL) {
            self->request->on_progress(self->request->context, header.progress_done,
                                       header.progress_total);
        }
    } else if (ours && header.kind == luna_Kind_REPLY && header.code != luna_Code_OK) {
        over = !retries(self, &header);
        if (over) *status = codec_get_error(&header, error);
    } else if (ours && header.kind == luna_Kind_REPLY) {
        header.operation = self->header.operation;
        *status = client_answer_create(out, self->client, &header, &frames, self->leases, error);
        over = true;
    }
    client_frames_clear(&frames);
    return over;
}

// Sleeps until something arrives, the socket takes a message that is due, or the next time comes.
static void wait_event(struct call *self, uint64_t now)
{
    bool due = now >= self->send_ns;
    uint64_t until = due || self->deadline_ns < self->send_ns ? self->deadline_ns : self->send_ns;
    uint64_t wait_ms = until > now ? (until - now + MS - 1) / MS : 0;
    if (self->request->stop != NULL && wait_ms > STOP_CHECK_MS) wait_ms = STOP_CHECK_MS;
    zmq_pollitem_t item = {.socket = self->client->socket,
                           .events = (short)(ZMQ_POLLIN | (due ? ZMQ_POLLOUT : 0))};
    zmq_poll(&item, 1, (long)wait_ms);  // an interruption is a look around like any other
}

static enum status run(struct call *self, struct luna_answer **out, struct error *error)
{
    enum status status = STATUS_OK;
    while (true) {
        if (self->request->stop != NULL && *self->request->stop != 0) {
            send_cancel(self);
            return error_set(error, STATUS_CANCELLED, "interrupted");
        }
        uint64_t now = now_ns();
        if (now >= self->deadline_ns) {
            send_cancel(self);
            return error_set(error, STATUS_DEADLINE_EXCEEDED, "no answer from %s in time",
                             self->client->endpoint);
        }
        if (now >= self->send_ns) status = send_request(self, error);
        if (status != STATUS_OK) return status;
        if (read_message(self, out, &status, error)) return status;
        wait_event(self, now);
    }
}

enum status luna_client_call(struct luna_client *self, const struct luna_request *request,
                             struct luna_answer **out, struct error *error)
{
    assert(self != NULL);
    assert(request != NULL);
    assert(out != NULL);
    uint32_t timeout_ms = request->timeout_ms > 0 ? request->timeout_ms : CODEC_TIMEOUT_MS_DEFAULT;
    uint64_t now = now_ns();
    struct call call = {.client = self,
                        .request = request,
                        .deadline_ns = now + timeout_ms * MS,
                        .send_ns = now,
                        .resend_ms = RESEND_MS_FIRST};
    uint64_t largest = 0;
    enum status status = fill_header(&call, error);
    if (status == STATUS_OK) status = fill_body(&call, error);
    if (status != STATUS_OK) goto done;

    for (uint32_t i = 0; i < request->inputs_count; i++) {
        if (call.header.tensors[i].bytes > largest) largest = call.header.tensors[i].bytes;
    }
    for (uint32_t i = 0; i < request->rooms_count; i++) {
        if (request->rooms[i].bytes > largest) largest = request->rooms[i].bytes;
    }
    if (largest >= LUNA_SHARED_BYTES_MIN) {
        client_attach(self);
        share(&call);
    }
    status = run(&call, out, error);

done:
    release_leases(&call);
    free(call.body);
    return status;
}
