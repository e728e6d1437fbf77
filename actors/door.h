// door.h - two sockets of this machine on which an actor of the core answers: one that clients
// connect to, one for Luna's own processes, whose user has to be the daemon's.
//
// A packet is one request (packet.h) and gets one reply, which may bring a descriptor. So may a
// packet of Luna's own processes. A connection is a guest: whatever the actor keeps for it ends
// with it.

#ifndef ACTORS_DOOR_H
#define ACTORS_DOOR_H

#include <pb.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "runtime/actor.h"
#include "runtime/socket.h"

#define DOOR_GUESTS_MAX 256u
#define DOOR_OWN_KEPT 64u  // guests that clients leave to Luna's own processes

struct door_guest {
    struct door *door;              // back to it
    int socket;                     // -1: the entry is free
    struct loop_descriptor *watch;  // of socket; NULL while the guest waits
    uint64_t number;                // above 0, never used again
    uint32_t uid;                   // of the peer
    bool is_client;                 // else a process of Luna's
    int passed;  // came with the packet being served, closed after that; -1: none
    void *data;  // the actor's; NULL at first
};

struct door_actor {
    void *state;                                                      // handed to all of these
    bool (*serve_client)(void *, struct door_guest *, struct bytes);  // false: the guest is to go
    bool (*serve_own)(void *, struct door_guest *, struct bytes);     // the same
    void (*gone)(void *, struct door_guest *);                        // may be NULL
    const char *refused;                                              // event of the log
};

struct door_listener {
    int socket;                        // -1: none
    struct loop_descriptor *watch;     // of socket
    char path[SOCKET_ENDPOINT_BYTES];  // to be removed at the end
};

struct door {
    const struct actor_context *context;  // as actor.h gives it
    struct door_actor actor;              // whom to ask
    struct door_listener clients, own;
    uint64_t guests_made;
    struct door_guest guests[DOOR_GUESTS_MAX];
};

// Makes a door on which nobody listens yet.
// Thread:    the actor's.
void door_init(struct door *self, const struct actor_context *context,
               const struct door_actor *actor);

// Listens at both paths; "" for clients_path: there are none.
// Errors:    those of packet_listen and loop_add_descriptor; what was opened is closed with
//            door_close.
// Thread:    the actor's.
enum status door_open(struct door *self, const char *clients_path, const char *own_path,
                      struct error *error);

// Closes everything, without telling the actor that guests are gone, and removes the paths. Allowed
// after door_init.
// Thread:    the actor's.
void door_close(struct door *self);

// Sends a reply, with a copy of descriptor unless that is -1. Field 1 of every reply is its code.
// Errors:    those of codec_encode and channel_send.
// Thread:    the actor's.
enum status door_reply(struct door_guest *guest, const pb_msgdesc_t *fields, const void *reply,
                       int descriptor);

// Reads nothing more from a guest until door_resume.
// Thread:    the actor's.
void door_pause(struct door_guest *guest);

// Reads on; a guest for whom that fails goes.
// Thread:    the actor's.
void door_resume(struct door_guest *guest);

// Ends a guest's connection and tells the actor.
// Thread:    the actor's.
void door_dismiss(struct door_guest *guest);

// The place of a guest, for door_find.
// Thread:    the actor's.
uint32_t door_place(const struct door_guest *guest);

// The guest of that number at that place; NULL when it has gone.
// Thread:    the actor's.
struct door_guest *door_find(struct door *self, uint32_t place, uint64_t number);

#endif  // ACTORS_DOOR_H
