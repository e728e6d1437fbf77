// pair.h - an actor and a thread of its own that may take its time (disk, hashing, merging): orders
// and answers on an inproc PAIR.
//
// Both ends are of one process and one build, so an order is a struct in one frame. The actor binds
// before it starts the thread, the thread connects; either may write at any time.

#ifndef ACTORS_PAIR_H
#define ACTORS_PAIR_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/actor.h"

// One end. All zero: closed.
struct pair {
    void *socket;               // PAIR
    struct loop_socket *watch;  // of socket
};

struct pair_end {
    const char *address;               // inproc://...
    bool binds;                        // else connects
    void (*on_readable)(void *state);  // reads with pair_receive
    void *state;                       // handed to it
};

// Opens an end and watches it on the actor's loop.
// Errors:    those of socket_open, socket_bind, socket_connect, loop_add_socket; what was opened is
//            closed with pair_close.
// Thread:    the actor's.
enum status pair_open(struct pair *self, const struct actor_context *context,
                      const struct pair_end *end, struct error *error);

// Closes an end; messages that nobody read go with it. Allowed on a closed one.
// Thread:    the actor's.
void pair_close(struct pair *self);

// Sends a struct.
// Errors:    those of message_send: RESOURCE_EXHAUSTED when the edge is full.
// Thread:    the actor's.
enum status pair_send(struct pair *self, const void *value, size_t bytes);

// Receives a struct without waiting; false when there is none.
// Thread:    the actor's.
bool pair_receive(struct pair *self, void *value, size_t bytes);

// True when something waits to be read: somebody would like what runs to end.
// Thread:    the actor's.
bool pair_has_message(const struct pair *self);

#endif  // ACTORS_PAIR_H
