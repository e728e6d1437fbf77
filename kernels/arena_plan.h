// arena_plan.h - where the values of a program lie in the arena, decided while it is built.

#ifndef KERNELS_ARENA_PLAN_H
#define KERNELS_ARENA_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct arena_plan;

// The largest arena that a plan accepts, in bytes; more than any machine has.
#define ARENA_BYTES_MAX (UINT64_C(1) << 46)

// Creates an empty plan.
// Ownership: on success the caller owns *out; on failure *out is untouched.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status arena_plan_create(struct arena_plan **out, struct error *error);

// Destroys the plan. NULL is allowed.
// Thread:    the owner's.
void arena_plan_destroy(struct arena_plan **self_p);

// Takes the lowest gap of at least bytes (one or more) and writes its offset, a multiple of
// ARENA_ALIGNMENT.
// Errors:    INVALID_ARGUMENT beyond ARENA_BYTES_MAX; RESOURCE_EXHAUSTED for the plan itself.
// Thread:    the owner's.
enum status arena_plan_take(struct arena_plan *self, uint64_t bytes, uint64_t *offset,
                            struct error *error);

// Gives back what begins at offset. It is a programmer's error if nothing live begins there.
// Thread:    the owner's.
void arena_plan_give(struct arena_plan *self, uint64_t offset);

// True when offset .. offset + bytes lies inside one live block, as it was asked for.
// Thread:    the owner's.
bool arena_plan_holds(const struct arena_plan *self, uint64_t offset, uint64_t bytes);

// The end of the highest block that ever lived, in bytes: the arena that the program needs.
// Thread:    the owner's.
uint64_t arena_plan_peak_bytes(const struct arena_plan *self);

// The bytes of all blocks that live now.
// Thread:    the owner's.
uint64_t arena_plan_live_bytes(const struct arena_plan *self);

#endif  // KERNELS_ARENA_PLAN_H
