// lease_table.h - who holds which bytes of one pool of shared memory.
//
// A pool is cut into units of 64 KiB; a slot is a run of units with a number and a generation that
// grows each time the slot is given out. A slot is held by the session that acquired it (a client's
// connection) and by the jobs that pinned it, and is free again when all of them have let go. The
// table is the authority: nothing in the shared memory itself is ever believed.
//
// Pure bookkeeping: no descriptors, no sockets.

#ifndef ACTORS_LEASE_TABLE_H
#define ACTORS_LEASE_TABLE_H

#include <stdint.h>

#include "base/error.h"

#define LEASE_UNIT_BYTES 65536u
#define LEASE_SLOTS_MAX 1024u  // of one pool
#define LEASE_PINS_MAX 4096u   // of one pool: 256 jobs with 16 tensors each

struct lease_table;

// What a client gets, and what it names again in a request.
struct lease {
    uint32_t slot;        // number of the slot
    uint32_t generation;  // above 0; of this holding of the slot
    uint64_t offset;      // of the slot's first byte in the pool
    uint64_t bytes;       // of the slot: what was asked for, rounded up to units
};

// Bytes that a request names: within a slot.
struct lease_range {
    uint32_t slot;        // as in struct lease
    uint32_t generation;  // as in struct lease
    uint64_t offset;      // from the start of the slot
    uint64_t bytes;       // above 0
};

// Creates the table of an empty pool of pool_bytes, a multiple of LEASE_UNIT_BYTES above 0.
// Ownership: on success the caller owns *out.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any; one thread at a time from then on, as everything here.
enum status lease_table_create(struct lease_table **out, uint64_t pool_bytes, struct error *error);

// Destroys the table, whatever is still held. A NULL *self_p is allowed.
void lease_table_destroy(struct lease_table **self_p);

// Gives the first run of units that is long enough to a session (above 0).
// Errors:    INVALID_ARGUMENT for 0 bytes and for more than the pool has; RESOURCE_EXHAUSTED when
//            slots or units run out now.
enum status lease_table_acquire(struct lease_table *self, uint64_t session, uint64_t bytes,
                                struct lease *out, struct error *error);

// Takes the session's hold of a slot away.
// Errors:    NOT_FOUND when the session does not hold the slot in that generation.
enum status lease_table_release(struct lease_table *self, uint64_t session, uint32_t slot,
                                uint32_t generation, struct error *error);

// Takes all holds of a session away; returns how many slots it held.
uint32_t lease_table_end_session(struct lease_table *self, uint64_t session);

// Holds the slot of a range for a job (above 0) until lease_table_unpin. *pool_offset gets the
// place of the range's first byte in the pool.
// Errors:    NOT_FOUND for a slot that is free or of another generation; INVALID_ARGUMENT for a
//            range that leaves the slot; RESOURCE_EXHAUSTED when there are too many pins.
enum status lease_table_pin(struct lease_table *self, uint64_t job, const struct lease_range *range,
                            uint64_t *pool_offset, struct error *error);

// Takes all pins of a job away; returns how many there were.
uint32_t lease_table_unpin(struct lease_table *self, uint64_t job);

// Slots that are held by anybody, and their bytes.
uint32_t lease_table_slots(const struct lease_table *self);
uint64_t lease_table_bytes(const struct lease_table *self);

// Asserts everything that must hold: slots are sorted, inside the pool and do not overlap; a held
// slot has a holder; each pin names a held slot.
void lease_table_check(const struct lease_table *self);

#endif  // ACTORS_LEASE_TABLE_H
