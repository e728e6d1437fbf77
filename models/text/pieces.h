// pieces.h - a prompt as the groups that chunking must know: runs of token ids, and embeddings.

#ifndef MODELS_TEXT_PIECES_H
#define MODELS_TEXT_PIECES_H

#include "models/text/notes.h"
#include "models/text/text.h"
#include "models/text/tokenizer.h"

struct piece {
    bool is_embedding;  // else a run of ids
    uint32_t begin;     // of the ids; or the index of the embedding's file
    uint32_t count;     // ids
    double weight;      // of all of them
};

struct pieces {
    struct piece *items;   // in order of the text
    uint32_t count;        // pieces in use
    uint32_t capacity;     // pieces there is room for
    struct token_ids ids;  // what the runs point into
};

// Reads a prompt: weights, embeddings (looked for where embeddings is not NULL), tokens. Names that
// are not found are told in notes.
// Ownership: the caller clears *self, which was all zero, on failure too.
// Errors:    INVALID_ARGUMENT for invalid UTF-8; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status pieces_read(struct pieces *self, struct bytes text, bool disable_weights,
                        const struct text_embeddings *embeddings, struct notes *notes,
                        struct error *error);

// Frees what pieces_read made.
// Thread:    the owner's.
void pieces_clear(struct pieces *self);

#endif  // MODELS_TEXT_PIECES_H
