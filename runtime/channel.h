// channel.h - packets with descriptors over AF_UNIX, between processes of one machine.
//
// A channel is a SOCK_SEQPACKET socket: a packet arrives whole or not at all, and the end of the
// peer is an event. Nothing here waits.

#ifndef RUNTIME_CHANNEL_H
#define RUNTIME_CHANNEL_H

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

#define CHANNEL_PACKET_BYTES_MAX 65536u
#define CHANNEL_DESCRIPTORS_MAX 8u  // of one packet

// Descriptors that travel with a packet.
struct channel_descriptors {
    uint32_t count;                            // in use
    int descriptors[CHANNEL_DESCRIPTORS_MAX];  // the first count
};

// Makes two connected ends, both closed by exec.
// Ownership: the caller closes both.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status channel_pair(int ends[2], struct error *error);

// Sends one packet of 1 to CHANNEL_PACKET_BYTES_MAX bytes; passed may be NULL.
// Ownership: the descriptors stay the caller's; the peer gets duplicates.
// Errors:    INVALID_ARGUMENT for a size that no packet has; RESOURCE_EXHAUSTED when the peer does
// not
//            read; UNAVAILABLE when it is gone; INTERNAL.
// Thread:    any.
enum status channel_send(int channel, struct bytes packet,
                         const struct channel_descriptors *passed);

// Receives one packet into buffer. passed may be NULL: then descriptors that come are closed.
// Ownership: the caller closes what is in *passed. They are closed by exec.
// Errors:    UNAVAILABLE when nothing waits; CANCELLED when the peer is gone and everything it sent
//            has been read; INVALID_ARGUMENT for a packet that is longer than the buffer, or has
//            more descriptors than fit (it is dropped whole); INTERNAL.
// Thread:    any.
enum status channel_receive(int channel, void *buffer, size_t buffer_bytes, size_t *packet_bytes,
                            struct channel_descriptors *passed);

// Closes all descriptors and empties the set.
// Thread:    any.
void channel_close_descriptors(struct channel_descriptors *self);

// Who was at the other end when it connected.
// Errors:    INTERNAL.
// Thread:    any.
enum status channel_peer(int channel, uint32_t *uid, uint32_t *pid);

#endif  // RUNTIME_CHANNEL_H
