// lease.h - the client's end of shared memory: a session at the lease socket, the pools mapped.
//
// The session is the connection: when it ends, for whatever reason, all its leases end. Packets and
// rules are in messages/luna.proto at LeaseRequest.

#ifndef CLIENTS_C_LEASE_H
#define CLIENTS_C_LEASE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct client_leases;

// Memory that this client holds.
struct client_lease {
    uint32_t pool;        // as the daemon numbers them
    uint32_t slot;        // in the pool
    uint32_t generation;  // of the slot
    uint8_t *data;        // first byte, mapped
    uint64_t bytes;       // at data
};

// Opens a session at the socket that ATTACH named.
// Ownership: on success the caller owns *out.
// Errors:    UNAVAILABLE, RESOURCE_EXHAUSTED.
// Thread:    any; the session then belongs to one thread.
enum status client_leases_create(struct client_leases **out, const char *path, struct error *error);

// Ends the session: its leases end and its mappings go. A NULL *self_p is allowed.
void client_leases_destroy(struct client_leases **self_p);

// False once the daemon has ended the session, or a packet was not as it should be.
bool client_leases_alive(struct client_leases *self);

// True when no lease is held, so that nobody looks at the mappings.
bool client_leases_idle(const struct client_leases *self);

// Asks for bytes (above 0) of shared memory.
// Errors:    what the daemon answered; UNAVAILABLE when the session has ended.
enum status client_leases_acquire(struct client_leases *self, uint64_t bytes,
                                  struct client_lease *out, struct error *error);

// Gives a lease back; its memory must not be touched any more. A session that has ended is no
// error: the lease ended with it.
void client_leases_release(struct client_leases *self, const struct client_lease *lease);

#endif  // CLIENTS_C_LEASE_H
