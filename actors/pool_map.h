// pool_map.h - a worker's mappings of the clients' shared memory.
//
// A pool is fetched once, by descriptor, from the lease manager's private socket, and stays mapped.
// Only ranges that the router named are touched: it had them pinned by the lease manager first.

#ifndef ACTORS_POOL_MAP_H
#define ACTORS_POOL_MAP_H

#include <stdint.h>

#include "base/error.h"

struct pool_map;

// Ownership: the caller owns *out. Nothing is connected yet.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    one, as everything here.
enum status pool_map_create(struct pool_map **out, const char *private_directory,
                            struct error *error);

// Unmaps everything. NULL is allowed.
void pool_map_destroy(struct pool_map **self_p);

// The address of bytes at offset in a pool, which is fetched (a round trip of less than a
// millisecond) and mapped at first use.
// Ownership: borrowed until the map is destroyed.
// Errors:    UNAVAILABLE when the lease manager does not answer, INTERNAL when the pool is not what
//            was said.
enum status pool_map_find(struct pool_map *self, uint32_t pool, uint64_t offset, uint64_t bytes,
                          void **out, struct error *error);

#endif  // ACTORS_POOL_MAP_H
