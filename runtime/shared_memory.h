// shared_memory.h - sealed memory that processes share by descriptor.
//
// The seals keep the size: nobody who holds the descriptor can cut it short, and so no reader dies
// of SIGBUS. The content stays everybody's who may write: copy what is to be believed.

#ifndef RUNTIME_SHARED_MEMORY_H
#define RUNTIME_SHARED_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

// A mapped piece of shared memory.
struct shared_memory {
    int descriptor;  // owned; -1: none
    uint64_t bytes;  // of the mapping
    void *address;   // of the mapping; NULL: none
};

// Creates, seals and maps bytes (above 0, whole pages are used). name is for /proc only.
// Ownership: the caller ends *out with shared_memory_destroy.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status shared_memory_create(struct shared_memory *out, const char *name, uint64_t bytes,
                                 struct error *error);

// Maps a descriptor that came from elsewhere, after checking that it is memory of exactly
// expected_bytes (0: any size) and at most bytes_max, whose size is sealed.
// Ownership: *out owns the descriptor on success; it stays the caller's otherwise.
// Errors:    INVALID_ARGUMENT for anything that is not such memory; PERMISSION_DENIED when it may
// not
//            be written; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status shared_memory_map(struct shared_memory *out, int descriptor, uint64_t expected_bytes,
                              uint64_t bytes_max, bool is_writable, struct error *error);

// Makes a descriptor of the same memory that can only be read.
// Ownership: the caller closes *out.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status shared_memory_read_only(const struct shared_memory *self, int *out,
                                    struct error *error);

// The address of a range, or NULL when any of it lies outside.
// Thread:    any.
void *shared_memory_range(const struct shared_memory *self, uint64_t offset, uint64_t bytes);

// Unmaps and closes. One that was never made ({.descriptor = -1}) is allowed.
// Thread:    any; nobody may use the mapping any more.
void shared_memory_destroy(struct shared_memory *self);

#endif  // RUNTIME_SHARED_MEMORY_H
