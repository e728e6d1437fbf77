// lora_socket.c - descriptors of adapters over AF_UNIX.
//
//     executor --adapters.sock--> by encoder hash: safetensors of the encoders' tensors at least
//     client   --lora.sock------> by name or hash: the whole file
//
// Memory of ours is sealed and files are open for reading only, so that whoever gets a descriptor
// can map it and cannot write it. A client's connection has one request at a time: the next is read
// when the answer was sent.

#include "actors/lora_state.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "actors/packet.h"
#include "base/text.h"
#include "messages/letter.h"
#include "messages/loras.h"
#include "runtime/channel.h"
#include "runtime/socket.h"

#define EXECUTORS_KEPT 64u  // connections that clients leave to executors

static void close_connection(struct lora_connection *connection)
{
    assert(connection->socket >= 0);
    loop_descriptor_remove(&connection->watch);
    close(connection->socket);
    connection->socket = -1;
}

// ---- executors

static bool serve_executor(struct lora_connection *connection, struct bytes frame)
{
    struct lora_store *self = connection->owner;
    luna_Letter letter;
    struct hash hash;
    if (letter_decode(frame, &letter, NULL) != STATUS_OK) return false;
    if (letter.which_letter != luna_Letter_adapter_fetch_tag) return false;
    if (letter.letter.adapter_fetch.encoder_hash.size != sizeof hash.value) return false;
    memcpy(hash.value, letter.letter.adapter_fetch.encoder_hash.bytes, sizeof hash.value);
    struct lora_content *content = lora_table_find_encoder(self->table, &hash);
    letter = (luna_Letter){.which_letter = luna_Letter_adapter_fetched_tag};
    luna_AdapterFetched *fetched = &letter.letter.adapter_fetched;
    int descriptor = -1;
    if (content != NULL) {
        descriptor = content->encoder >= 0 ? content->encoder : content->file;
        struct lora_identity identity = {.size = 0};
        lora_scan_identify(descriptor, &identity);
        fetched->bytes = identity.size;
    } else {
        fetched->code = luna_Code_NOT_FOUND;
        text_set(fetched->message, sizeof fetched->message, "the adapter is not resident any more");
    }
    return packet_send_letter(connection->socket, &letter, descriptor) == STATUS_OK;
}

// ---- clients

static bool send_reply(struct lora_connection *connection, const luna_AdapterReply *reply,
                       int descriptor)
{
    uint8_t buffer[luna_AdapterReply_size];
    struct codec_buffer encoded = {.data = buffer, .capacity = sizeof buffer};
    if (codec_encode(luna_AdapterReply_fields, reply, &encoded, NULL) != STATUS_OK) return false;
    const struct channel_descriptors passed = {.count = descriptor >= 0 ? 1 : 0,
                                               .descriptors = {descriptor}};
    const struct bytes packet = {.data = buffer, .size = encoded.size};
    return channel_send(connection->socket, packet, &passed) == STATUS_OK;
}

static bool send_error(struct lora_connection *connection, const struct error *error)
{
    luna_AdapterReply reply = {.code = (luna_Code)error->status};
    text_set(reply.message, sizeof reply.message, error->message);
    return send_reply(connection, &reply, -1);
}

static void on_connection(void *state);

static void on_found(struct lora_store *self, struct lora_want *want,
                     const struct lora_target *target, const struct error *error)
{
    struct lora_connection *connection = &self->connections[want->index];
    // It may have been closed meanwhile, and its entry be another's.
    if (connection->socket < 0 || connection->number != want->key) return;
    bool sent = false;
    if (target == NULL) {
        sent = send_error(connection, error);
    } else {
        luna_AdapterReply reply = {.has_lora = true, .bytes = target->content->facts.file_bytes};
        target->content->used_ns = lora_store_now(self);
        lora_asks_describe(self, target, NULL, &reply.lora);
        sent = send_reply(connection, &reply, target->content->file);
    }
    if (sent && connection->watch == NULL) {
        sent = loop_add_descriptor(self->context->loop, connection->socket, on_connection,
                                   connection, &connection->watch, NULL) == STATUS_OK;
    }
    if (!sent) close_connection(connection);
}

// False when the connection is to be closed.
static bool serve_client(struct lora_connection *connection, struct bytes frame)
{
    struct lora_store *self = connection->owner;
    luna_AdapterRequest request = luna_AdapterRequest_init_zero;
    struct error error = {0};
    enum status status = codec_decode(luna_AdapterRequest_fields, frame, &request, &error);
    if (status == STATUS_OK) status = codec_check_lora_reference(request.reference, &error);
    if (status != STATUS_OK) return send_error(connection, &error);
    struct lora_want want = {.load = true,
                             .exact = true,
                             .done = on_found,
                             .key = connection->number,
                             .index = (uint32_t)(connection - self->connections)};
    text_set(want.reference, sizeof want.reference, request.reference);
    // Not read until it is answered.
    loop_descriptor_remove(&connection->watch);
    lora_want_start(self, &want);
    return true;
}

// ---- connections

static void on_connection(void *state)
{
    struct lora_connection *connection = state;
    const uint64_t number = connection->number;
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        uint8_t buffer[LETTER_BYTES_MAX];
        size_t size = 0;
        enum status status =
            channel_receive(connection->socket, buffer, sizeof buffer, &size, NULL);
        if (status == STATUS_UNAVAILABLE) return;
        struct bytes frame = {.data = buffer, .size = size};
        bool served =
            status == STATUS_OK && (connection->is_client ? serve_client(connection, frame)
                                                          : serve_executor(connection, frame));
        bool gone = connection->socket < 0 || connection->number != number;
        if (gone) return;
        if (!served) {
            close_connection(connection);
            return;
        }
        if (connection->watch == NULL) return;
    }
}

// Clients leave some for executors.
static struct lora_connection *unused_connection(struct lora_store *self, bool is_client)
{
    const uint32_t count = is_client ? LORA_CONNECTIONS_MAX - EXECUTORS_KEPT : LORA_CONNECTIONS_MAX;
    for (uint32_t i = 0; i < count; i++) {
        if (self->connections[i].socket < 0) return &self->connections[i];
    }
    return NULL;
}

static void accept_all(struct lora_store *self, int listener, bool is_client)
{
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        int socket = -1;
        uint32_t uid = 0;
        struct error error = {0};
        if (packet_accept(listener, &socket, &uid, &error) != STATUS_OK) return;
        struct lora_connection *connection = unused_connection(self, is_client);
        bool allowed = connection != NULL && (is_client || uid == (uint32_t)geteuid());
        if (allowed) {
            self->connections_made += 1;
            *connection = (struct lora_connection){.owner = self,
                                                   .socket = socket,
                                                   .is_client = is_client,
                                                   .user = uid,
                                                   .number = self->connections_made};
            allowed = loop_add_descriptor(self->context->loop, socket, on_connection, connection,
                                          &connection->watch, &error) == STATUS_OK;
            if (!allowed) connection->socket = -1;
        }
        if (allowed) continue;
        log_event(self->context->log, LOG_WARNING, "adapters.refused", "uid=%u", uid);
        close(socket);
    }
}

static void on_clients(void *state)
{
    struct lora_store *self = state;
    accept_all(self, self->clients_listener, true);
}

static void on_executors(void *state)
{
    struct lora_store *self = state;
    accept_all(self, self->executors_listener, false);
}

enum status lora_socket_listen(struct lora_store *self, struct error *error)
{
    struct loop *loop = self->context->loop;
    snprintf(self->executors_path, sizeof self->executors_path, "%s/%s",
             self->core.private_directory, SOCKET_ADAPTERS);
    text_set(self->clients_path, sizeof self->clients_path, self->core.loras_path);
    enum status status = packet_listen(&self->executors_listener, self->executors_path, error);
    if (status == STATUS_OK) {
        status = loop_add_descriptor(loop, self->executors_listener, on_executors, self,
                                     &self->watch_executors_listener, error);
    }
    if (status != STATUS_OK || self->clients_path[0] == '\0') return status;
    status = packet_listen(&self->clients_listener, self->clients_path, error);
    if (status != STATUS_OK) return status;
    return loop_add_descriptor(loop, self->clients_listener, on_clients, self,
                               &self->watch_clients_listener, error);
}

void lora_socket_close(struct lora_store *self)
{
    for (uint32_t i = 0; i < LORA_CONNECTIONS_MAX; i++) {
        if (self->connections[i].socket >= 0) close_connection(&self->connections[i]);
    }
    loop_descriptor_remove(&self->watch_executors_listener);
    loop_descriptor_remove(&self->watch_clients_listener);
    if (self->executors_listener >= 0) {
        close(self->executors_listener);
        unlink(self->executors_path);
    }
    if (self->clients_listener >= 0) {
        close(self->clients_listener);
        unlink(self->clients_path);
    }
}
