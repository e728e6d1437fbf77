// leases_state.h - the lease manager's private state, shared by its two files and nobody else.
//
//     leases.c          pools of shared memory, clients, workers, the router
//     leases_devices.c  pools of device memory, and the executors that lend it

#ifndef ACTORS_LEASES_STATE_H
#define ACTORS_LEASES_STATE_H

#include "actors/door.h"
#include "actors/lease_table.h"
#include "actors/loan_limits.h"
#include "messages/letter.h"
#include "runtime/shared_memory.h"

#define LEASES_SHARED_MAX 16u  // pools of shared memory: one a uid
#define LEASES_POOLS_MAX (LEASES_SHARED_MAX + LOANS_HELD_MAX)
#define LEASES_DEVICES_MAX 8u  // as many as a status tells

enum loan_state {
    LOAN_NONE,   // the pool is shared memory
    LOAN_ASKED,  // the executor has not answered; the client's connection rests
    LOAN_LENT,   // the client has its handle
    LOAN_VOID,   // the executor is gone, and the memory with it; the client still names it
};

struct pool {
    uint32_t number;              // 0: the entry is free
    uint32_t uid;                 // whose
    struct shared_memory memory;  // mapped, never touched here
    uint32_t sessions;            // connections that use it
    struct lease_table *table;    // who holds what
    // Of device memory, which has one lease and one session:
    enum loan_state loan;  // else LOAN_NONE
    uint64_t bytes;        // of the memory
    uint64_t session;      // the client's number ...
    uint32_t place;        // ... and place at the door
    uint64_t executor;     // number of the executor's connection
};

// An executor that lends memory of its device.
struct lender {
    struct door_guest *guest;  // its connection; NULL: the entry is free
    char name[32];             // "cuda:0"
    char uuid[48];             // "GPU-..."
};

struct leases {
    const struct actor_context *context;        // as actor.h gives it
    void *router;                               // PAIR
    struct loop_socket *watch_router;           // of router
    void *events;                               // PUSH, never read
    struct door door;                           // clients, workers and executors
    struct loop_timer *tell;                    // counts to the monitor
    uint64_t pool_bytes;                        // of a new pool of shared memory
    uint32_t pool_number;                       // of the pool made last
    struct pool pools[LEASES_POOLS_MAX];        // shared memory first, each kind in no order
    struct lender lenders[LEASES_DEVICES_MAX];  // in no order
};

// Frees an entry of pools and what it holds; a free one is allowed.
void leases_close_pool(struct pool *pool);
// The pool of that number, or NULL.
struct pool *leases_find_pool(struct leases *self, uint32_t number);
// A number for a new pool.
uint32_t leases_next_number(struct leases *self);
// The monitor will be told the counts.
void leases_changed(struct leases *self);

// A client asks for memory of the device that the request names. With OK the reply comes later, and
// nothing is read of the client until then.
// Errors:    INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED, UNAVAILABLE.
enum status leases_acquire_loan(struct leases *self, struct door_guest *guest,
                                const luna_LeaseRequest *request, struct error *error);
// A client gives its lease of device memory back.
// Errors:    NOT_FOUND.
enum status leases_release_loan(struct leases *self, struct door_guest *guest,
                                const luna_LeaseRequest *request, struct error *error);
// A client is gone; returns how many leases of device memory it had.
uint32_t leases_end_loans(struct leases *self, const struct door_guest *guest);
// Gives device memory back that nobody uses any more; other pools are left as they are.
void leases_trim_loan(struct leases *self, struct pool *pool);
// Name of the device that lent a pool; NULL for shared memory, and when its executor is gone.
const char *leases_device_of(struct leases *self, const struct pool *pool);
// What an executor says; false for what none says.
bool leases_hear_lender(struct leases *self, struct door_guest *guest, const luna_Letter *letter);
// Its connection has ended.
void leases_forget_lender(struct leases *self, const struct door_guest *guest);

#endif  // ACTORS_LEASES_STATE_H
