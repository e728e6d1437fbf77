// tokenizer.h - text to CLIP's token ids, exactly as Hugging Face's CLIPTokenizer (the Python one,
// of transformers below 5, without ftfy) makes them.

#ifndef MODELS_TEXT_TOKENIZER_H
#define MODELS_TEXT_TOKENIZER_H

#include "base/bytes.h"
#include "base/error.h"
#include "models/text/bpe.h"
#include "models/text/unicode.h"

// Scratch memory of one user, kept between texts; the vocabulary is constant data. All zero is a
// valid one.
struct tokenizer {
    struct code_points cleaned;   // without controls, blanks as spaces, ideographs apart
    struct code_points composed;  // the same in NFC
    struct code_points words;     // lower case, one space between words
    struct {
        uint8_t *items;     // UTF-8 of the word that is encoded
        uint32_t count;     // bytes in use
        uint32_t capacity;  // bytes there is room for
    } word;                 // one match of the pattern
    struct bpe bpe;         // its symbols
};

// Frees the scratch memory.
// Thread:    the owner's.
void tokenizer_clear(struct tokenizer *self);

// Appends the ids of a text, without start, end and padding. Time O(n log n).
// Errors:    INVALID_ARGUMENT for invalid UTF-8; RESOURCE_EXHAUSTED.
// Thread:    the owner's.
enum status tokenizer_encode(struct tokenizer *self, struct bytes text, struct token_ids *out,
                             struct error *error);

#endif  // MODELS_TEXT_TOKENIZER_H
