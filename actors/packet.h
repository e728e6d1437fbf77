// packet.h - packets over AF_UNIX, SOCK_SEQPACKET: how letters and descriptors travel beside
// ZeroMQ.

#ifndef ACTORS_PACKET_H
#define ACTORS_PACKET_H

#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"
#include "messages/actors.pb.h"

#define PACKET_BYTES_MAX 8192u

// What was received.
struct packet {
    uint8_t data[PACKET_BYTES_MAX];  // the packet
    uint64_t size;                   // of it; 0: the peer has closed
    int descriptor;                  // that came with it, the receiver's; -1: none
};

// Binds a path, whatever lay there before, and listens. The socket's mode is 0600.
// Ownership: the caller closes *out.
// Errors:    FAILED_PRECONDITION.
// Thread:    any.
enum status packet_listen(int *out, const char *path, struct error *error);

// Accepts a connection that waits, without waiting; says whose process is at the other end.
// Ownership: the caller closes *out.
// Errors:    UNAVAILABLE when none waits; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status packet_accept(int listener, int *out, uint32_t *uid, struct error *error);

// Sends one packet, and with descriptor (not -1) a copy of that, without waiting.
// Errors:    RESOURCE_EXHAUSTED when the peer does not read; UNAVAILABLE when it is gone.
// Thread:    any.
enum status packet_send(int socket, struct bytes bytes, int descriptor);

// Receives one packet without waiting. size 0: the peer has closed.
// Ownership: the caller closes out->descriptor.
// Errors:    UNAVAILABLE when nothing waits; INVALID_ARGUMENT for a packet that is too long.
// Thread:    any.
enum status packet_receive(int socket, struct packet *out);

// The same with a letter in the packet.
// Errors:    and those of letter_encode.
enum status packet_send_letter(int socket, const luna_Letter *letter, int descriptor);

#endif  // ACTORS_PACKET_H
