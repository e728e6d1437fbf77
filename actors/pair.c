// pair.c - see pair.h.

#include "actors/pair.h"

#include <assert.h>
#include <string.h>
#include <zmq.h>

#include "runtime/message.h"
#include "runtime/socket.h"

enum status pair_open(struct pair *self, const struct actor_context *context,
                      const struct pair_end *end, struct error *error)
{
    assert(self != NULL && self->socket == NULL);
    assert(end != NULL);
    enum status status = socket_open(&self->socket, context->zmq, EDGE_LANE, error);
    if (status != STATUS_OK) return status;
    status = end->binds ? socket_bind(self->socket, end->address, error)
                        : socket_connect(self->socket, end->address, error);
    if (status != STATUS_OK) return status;
    return loop_add_socket(context->loop, self->socket, false, end->on_readable, end->state,
                           &self->watch, error);
}

void pair_close(struct pair *self)
{
    assert(self != NULL);
    loop_socket_remove(&self->watch);
    socket_close(&self->socket);
}

enum status pair_send(struct pair *self, const void *value, size_t bytes)
{
    assert(self->socket != NULL);
    assert(value != NULL);
    struct message message;
    message_init(&message);
    enum status status = message_append(&message, (struct bytes){.data = value, .size = bytes});
    if (status == STATUS_OK) status = loop_socket_send(self->watch, &message);
    message_clear(&message);
    return status;
}

bool pair_receive(struct pair *self, void *value, size_t bytes)
{
    assert(self != NULL);
    assert(value != NULL);
    struct message message;
    message_init(&message);
    if (self->socket == NULL || message_receive(&message, self->socket) != STATUS_OK) return false;
    assert(message_frame(&message, 0).size == bytes);
    memcpy(value, message_frame(&message, 0).data, bytes);
    message_clear(&message);
    return true;
}

bool pair_has_message(const struct pair *self)
{
    assert(self->socket != NULL);
    int events = 0;
    size_t size = sizeof events;
    if (zmq_getsockopt(self->socket, ZMQ_EVENTS, &events, &size) != 0) return true;
    return (events & ZMQ_POLLIN) != 0;
}
