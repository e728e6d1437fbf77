// host_arena.h - the arena of a lane whose device computes in host memory.

#ifndef KERNELS_HOST_ARENA_H
#define KERNELS_HOST_ARENA_H

#include <stdint.h>

#include "base/error.h"

struct host_arena {
    uint8_t *data;   // mapped pages, NULL when there are none
    uint64_t bytes;  // mapped, a multiple of the page size
};

// Makes the arena at least bytes large, with a guard page behind it. The content is kept; what is
// new reads as zero.
// Errors:    RESOURCE_EXHAUSTED, the arena is as it was.
// Thread:    the owner's.
enum status host_arena_grow(struct host_arena *self, uint64_t bytes, struct error *error);

// Gives all pages back to the system.
// Thread:    the owner's.
void host_arena_release(struct host_arena *self);

#endif  // KERNELS_HOST_ARENA_H
