// packet.h - one exchange at a socket of the daemon beside ZeroMQ: a packet asks, a packet answers,
// and a descriptor may come with it.
//
// Every exchange is short and local, so it blocks, with a limit: whoever does not answer in time is
// given up.

#ifndef CLIENTS_C_PACKET_H
#define CLIENTS_C_PACKET_H

#include <stdbool.h>

#include "messages/codec.h"

#define CLIENT_PACKET_BYTES_MAX 4096u  // of the longest packet, unknown fields included

struct client_packet {
    const pb_msgdesc_t *request_type;  // luna_…_fields of request
    const void *request;               // to send
    const pb_msgdesc_t *reply_type;    // luna_…_fields of reply
    void *reply;                       // filled in
    int descriptor;                    // out: that came with the answer; -1: none
};

// Connects to a socket that ATTACH named.
// Ownership: on success the caller closes *out.
// Errors:    UNAVAILABLE.
// Thread:    any.
enum status client_packet_connect(int *out, const char *path, struct error *error);

// Sends a packet and receives its answer; false when that did not work out: the socket is then of
// no more use.
// Ownership: on success the caller closes packet->descriptor, if it is not -1.
// Thread:    one at a time for a socket.
bool client_packet_exchange(int socket, struct client_packet *packet);

#endif  // CLIENTS_C_PACKET_H
