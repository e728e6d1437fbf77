// graph_key.h - everything that the launches of a program depend on, as numbers that can be
// compared: two programs of one key become the same launches, to the last argument, in an arena at
// the same address.

#ifndef KERNELS_CUDA_GRAPH_KEY_H
#define KERNELS_CUDA_GRAPH_KEY_H

#include "kernels/device.h"

struct graph_key {
    uint64_t *words;     // count of them
    uint32_t count;      // written
    uint32_t room;       // of words
    uint64_t hash;       // of them
    bool is_incomplete;  // an operation that is none of a text's, or no memory
};

// Writes the key of a finished program; false for one that has none. It may hold an older key, and
// is given back by graph_key_clear whatever happens.
// Thread:    any.
bool graph_key_write(struct graph_key *self, const struct program *program);

// Thread:    any; they only read.
bool graph_key_is(const struct graph_key *self, const struct graph_key *other);

// Frees it. All zeros are allowed.
// Thread:    any.
void graph_key_clear(struct graph_key *self);

#endif  // KERNELS_CUDA_GRAPH_KEY_H
