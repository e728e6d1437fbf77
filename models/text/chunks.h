// chunks.h - tokens to rows: every chunk opens with a start token, ends with an end token, and is
// padded to the encoder's length.

#ifndef MODELS_TEXT_CHUNKS_H
#define MODELS_TEXT_CHUNKS_H

#include <stdbool.h>
#include <stdint.h>

#include "models/text/text.h"

// The most rows that one text may become for one encoder.
#define CHUNKS_MAX 1024u

struct chunks {
    struct text_token *items;  // count tokens, owned; free() it
    uint32_t count;            // tokens so far, the chunks that are closed padded
    uint32_t capacity;         // tokens there is room for
    uint32_t length;           // tokens a chunk
    int32_t pad;               // the token that fills a chunk
};

// Opens the first chunk of `length` tokens (3 or more) in a list that is all zero.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    the owner's.
enum status chunks_begin(struct chunks *self, uint32_t length, int32_t pad);

// Adds the tokens of one piece of text or of one embedding. 8 or more are split where a chunk is
// full; fewer stay together.
// Errors:    INVALID_ARGUMENT beyond CHUNKS_MAX chunks; RESOURCE_EXHAUSTED.
// Thread:    the owner's.
enum status chunks_add(struct chunks *self, const struct text_token *group, uint32_t count);

// Closes the last chunk.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    the owner's.
enum status chunks_end(struct chunks *self);

// Appends a chunk without content. The last one is closed. Errors as chunks_add.
// Thread:    the owner's.
enum status chunks_add_empty(struct chunks *self);

#endif  // MODELS_TEXT_CHUNKS_H
