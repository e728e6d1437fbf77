// bpe.h - byte-pair encoding of one word.

#ifndef MODELS_TEXT_BPE_H
#define MODELS_TEXT_BPE_H

#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"

// A list of token ids that grows.
struct token_ids {
    int32_t *items;     // owned; free() it
    uint32_t count;     // ids in use
    uint32_t capacity;  // ids there is room for
};

// One symbol of the word while it is merged.
struct bpe_symbol {
    int32_t id;         // in the vocabulary
    uint32_t merged;    // what it and the next one make; 0: nothing, or it is no more
    uint32_t previous;  // index of the neighbour, UINT32_MAX at the ends
    uint32_t next;      // likewise
};

// Scratch memory, kept between words. All zero is a valid one.
struct bpe {
    struct {
        struct bpe_symbol *items;  // one a byte of the word
        uint32_t capacity;         // symbols there is room for
    } symbols;                     // the word
    struct {
        uint64_t *items;    // rank << 32 | index of the left symbol; a binary heap, smallest first
        uint32_t count;     // pairs waiting; some are stale
        uint32_t capacity;  // pairs there is room for
    } heap;                 // what may be merged
};

// Frees the scratch memory.
// Thread:    the owner's.
void bpe_clear(struct bpe *self);

// Appends the tokens of a word: at most one a byte, none for an empty one. Time O(n log n).
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    the owner's.
enum status bpe_encode(struct bpe *self, struct bytes word, struct token_ids *out);

#endif  // MODELS_TEXT_BPE_H
