// ledger.h - the one book of a device's memory: what is held, what may still be promised.
//
// The margin, so many bytes that stay free, is for who comes to stay: a worker that is spawned,
// weights that are loaded, memory that is lent to a client leave it free. The arena of a job may
// use it: it goes back soon, and a job that is there already shall not fail for the sake of one
// that may come. So the margin is looked at where those are admitted, and not in this book.
//
// What a GPU's driver takes for itself, for its context, our kernels and the graphs of texts, is in
// no entry and under no limit, but neither is it promised: what the driver says is free lacks it.
// Measured it cannot be, for others take and give back memory at the same time. Graphs come when
// their lane has long been admitted, out of the margin; so a lane's have a bound (kernels/cuda/
// graphs.h), and where there is no memory left for one, the text runs without. Pinned memory of the
// host, 16 MiB for a card and 16 MiB for a lane of texts, is in no entry either.
//
// Plain arithmetic without a system call of its own, so that every decision can be tested: the
// executor feeds it with what the system says is free, and asks before anything large is allocated.

#ifndef ACTORS_LEDGER_H
#define ACTORS_LEDGER_H

#include <stdbool.h>
#include <stdint.h>

struct ledger {
    uint64_t total_bytes;     // of the device, or the configured limit if that is less
    uint64_t limit_bytes;     // configured; 0: none
    uint64_t system_free;     // as the system or the driver tells it, all processes counted
    uint64_t weights_bytes;   // held for weights
    uint64_t reserved_bytes;  // held for arenas, and for weights that are being loaded
    uint64_t stack_bytes;     // held for adapters and merged copies
    uint64_t lent_bytes;      // held by clients
    uint64_t promise_max;  // no more is promised at once, because more was and did not hold; 0: any
};

// Weights, arenas, what loads, adapters, copies and loans together.
// Thread:    any; it only reads.
uint64_t ledger_held(const struct ledger *self);

// What may still be promised: what the system has free, but never more than the limit leaves.
// Thread:    any; it only reads.
uint64_t ledger_free(const struct ledger *self);

// What an arena could get if no other arena were held and no weights but wanted_weights. What
// clients hold is theirs.
// Thread:    any; it only reads.
uint64_t ledger_capacity(const struct ledger *self, uint64_t wanted_weights);

// True when more is held than the limit allows: weights took more than they were planned to.
// Thread:    any; it only reads.
bool ledger_is_overdrawn(const struct ledger *self);

// Books a change from before to after bytes; reserve only promises what ledger_free covers and says
// so.
// Thread:    the owner's.
bool ledger_reserve(struct ledger *self, uint64_t before, uint64_t after);
void ledger_weights(struct ledger *self, uint64_t before, uint64_t after);

// A promise of an arena did not hold, whatever the system said is free: until ledger_trust none is
// larger than three quarters of it. ledger_offer is what an arena could get once so many idle bytes
// were given back. What is free stays free for others.
// Thread:    the owner's.
uint64_t ledger_offer(const struct ledger *self, uint64_t idle_bytes);
void ledger_distrust(struct ledger *self, uint64_t bytes);
void ledger_trust(struct ledger *self);

// Books a loan to a client where ledger_free covers it and says so, and its end.
// Thread:    the owner's.
bool ledger_lend(struct ledger *self, uint64_t bytes);
void ledger_take_back(struct ledger *self, uint64_t bytes);

// Books what adapters and merged copies hold now; whoever adds some asked ledger_free before.
// Thread:    the owner's.
void ledger_stacks(struct ledger *self, uint64_t after);

#endif  // ACTORS_LEDGER_H
