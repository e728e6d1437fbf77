// door.c - see door.h.

#include "actors/door.h"

#include <assert.h>
#include <unistd.h>

#include "actors/packet.h"
#include "base/text.h"
#include "messages/codec.h"
#include "messages/letter.h"
#include "messages/luna.pb.h"
#include "runtime/channel.h"

_Static_assert(luna_LeaseReply_size <= LETTER_BYTES_MAX, "a reply fits where letters do");
_Static_assert(luna_AdapterReply_size <= LETTER_BYTES_MAX, "a reply fits where letters do");

// ---- guests

void door_dismiss(struct door_guest *guest)
{
    struct door *self = guest->door;
    assert(guest->socket >= 0);
    loop_descriptor_remove(&guest->watch);
    close(guest->socket);
    guest->socket = -1;
    if (self->actor.gone != NULL) self->actor.gone(self->actor.state, guest);
}

uint32_t door_place(const struct door_guest *guest)
{
    return (uint32_t)(guest - guest->door->guests);
}

struct door_guest *door_find(struct door *self, uint32_t place, uint64_t number)
{
    assert(place < DOOR_GUESTS_MAX);
    struct door_guest *guest = &self->guests[place];
    return guest->socket >= 0 && guest->number == number ? guest : NULL;
}

enum status door_reply(struct door_guest *guest, const pb_msgdesc_t *fields, const void *reply,
                       int descriptor)
{
    uint8_t buffer[LETTER_BYTES_MAX];
    struct codec_buffer encoded = {.data = buffer, .capacity = sizeof buffer};
    enum status status = codec_encode(fields, reply, &encoded, NULL);
    if (status != STATUS_OK) return status;
    // A reply of defaults only would be an empty packet, which means the end: it says its code.
    static const uint8_t ok[] = {0x08, luna_Code_OK};
    struct bytes packet = {.data = buffer, .size = encoded.size};
    if (packet.size == 0) packet = (struct bytes){.data = ok, .size = sizeof ok};
    const struct channel_descriptors passed = {.count = descriptor >= 0 ? 1 : 0,
                                               .descriptors = {descriptor}};
    return channel_send(guest->socket, packet, &passed);
}

static void on_packets(void *state)
{
    struct door_guest *guest = state;
    struct door *self = guest->door;
    const uint64_t number = guest->number;
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        uint8_t buffer[LETTER_BYTES_MAX];
        struct bytes packet = {.data = buffer};
        struct channel_descriptors passed = {.count = 0};
        enum status status = channel_receive(guest->socket, buffer, sizeof buffer, &packet.size,
                                             guest->is_client ? NULL : &passed);
        if (status == STATUS_UNAVAILABLE) return;
        guest->passed = passed.count > 0 ? passed.descriptors[0] : -1;
        bool served = status == STATUS_OK &&
                      (guest->is_client ? self->actor.serve_client
                                        : self->actor.serve_own)(self->actor.state, guest, packet);
        channel_close_descriptors(&passed);
        bool is_gone = door_find(self, door_place(guest), number) == NULL;
        if (!is_gone) guest->passed = -1;
        if (!is_gone && !served) door_dismiss(guest);
        if (is_gone || !served || guest->watch == NULL) return;
    }
}

void door_pause(struct door_guest *guest)
{
    loop_descriptor_remove(&guest->watch);
}

void door_resume(struct door_guest *guest)
{
    assert(guest->socket >= 0);
    if (guest->watch != NULL) return;
    if (loop_add_descriptor(guest->door->context->loop, guest->socket, on_packets, guest,
                            &guest->watch, NULL) != STATUS_OK) {
        door_dismiss(guest);
    }
}

// ---- who comes

static struct door_guest *unused_guest(struct door *self, bool is_client)
{
    const uint32_t count = is_client ? DOOR_GUESTS_MAX - DOOR_OWN_KEPT : DOOR_GUESTS_MAX;
    for (uint32_t i = 0; i < count; i++) {
        if (self->guests[i].socket < 0) return &self->guests[i];
    }
    return NULL;
}

// Takes the socket when it is STATUS_OK.
static enum status admit(struct door *self, int socket, uint32_t uid, bool is_client,
                         struct error *error)
{
    if (!is_client && uid != (uint32_t)geteuid()) {
        return error_set(error, STATUS_PERMISSION_DENIED, "uid %u is not the daemon's", uid);
    }
    struct door_guest *guest = unused_guest(self, is_client);
    if (guest == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no place for one more connection");
    }
    self->guests_made += 1;
    *guest = (struct door_guest){.door = self,
                                 .socket = socket,
                                 .number = self->guests_made,
                                 .uid = uid,
                                 .is_client = is_client,
                                 .passed = -1};
    enum status status =
        loop_add_descriptor(self->context->loop, socket, on_packets, guest, &guest->watch, error);
    if (status != STATUS_OK) guest->socket = -1;
    return status;
}

static void accept_all(struct door *self, const struct door_listener *listener)
{
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        int socket = -1;
        uint32_t uid = 0;
        struct error error = {0};
        if (packet_accept(listener->socket, &socket, &uid, &error) != STATUS_OK) return;
        if (admit(self, socket, uid, listener == &self->clients, &error) == STATUS_OK) continue;
        log_event(self->context->log, LOG_WARNING, self->actor.refused, "uid=%u reason=\"%s\"", uid,
                  error.message);
        close(socket);
    }
}

static void on_clients(void *state)
{
    struct door *self = state;
    accept_all(self, &self->clients);
}

static void on_own(void *state)
{
    struct door *self = state;
    accept_all(self, &self->own);
}

// ---- life

static enum status listen_at(struct door *self, struct door_listener *listener, const char *path,
                             struct error *error)
{
    text_set(listener->path, sizeof listener->path, path);
    enum status status = packet_listen(&listener->socket, listener->path, error);
    if (status != STATUS_OK) return status;
    return loop_add_descriptor(self->context->loop, listener->socket,
                               listener == &self->clients ? on_clients : on_own, self,
                               &listener->watch, error);
}

static void close_listener(struct door_listener *listener)
{
    loop_descriptor_remove(&listener->watch);
    if (listener->socket < 0) return;
    close(listener->socket);
    listener->socket = -1;
    unlink(listener->path);
}

void door_init(struct door *self, const struct actor_context *context,
               const struct door_actor *actor)
{
    assert(self != NULL);
    assert(actor != NULL && actor->serve_client != NULL && actor->serve_own != NULL);
    *self = (struct door){
        .context = context, .actor = *actor, .clients = {.socket = -1}, .own = {.socket = -1}};
    for (uint32_t i = 0; i < DOOR_GUESTS_MAX; i++) self->guests[i].socket = -1;
}

enum status door_open(struct door *self, const char *clients_path, const char *own_path,
                      struct error *error)
{
    assert(self != NULL);
    enum status status = listen_at(self, &self->own, own_path, error);
    if (status != STATUS_OK || clients_path[0] == '\0') return status;
    return listen_at(self, &self->clients, clients_path, error);
}

void door_close(struct door *self)
{
    assert(self != NULL);
    for (uint32_t i = 0; i < DOOR_GUESTS_MAX; i++) {
        if (self->guests[i].socket < 0) continue;
        loop_descriptor_remove(&self->guests[i].watch);
        close(self->guests[i].socket);
        self->guests[i].socket = -1;
    }
    close_listener(&self->clients);
    close_listener(&self->own);
}
