// prompt.h - "a (red:1.2) fox" to weighted segments, as ComfyUI reads it.
//
// (x) multiplies the weight by 1.1; (x:1.2) replaces it, whatever surrounds it; \( and \) are plain
// parentheses; what does not pair up is text.

#ifndef MODELS_TEXT_PROMPT_H
#define MODELS_TEXT_PROMPT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

struct prompt_segment {
    struct bytes text;  // UTF-8, never empty, in the prompt's memory
    double weight;      // finite or not
};

struct prompt {
    struct prompt_segment *items;  // in order of the text
    uint32_t count;                // segments in use
    uint32_t capacity;             // segments there is room for
    char *text;                    // what the segments point into
};

// Splits text (UTF-8) into segments, in linear time whatever its parentheses. With disable_weights
// the whole text is one segment of weight 1.
// Ownership: the caller clears *out, which keeps nothing of text.
// Errors:    INVALID_ARGUMENT for a text above 1 GiB; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status prompt_parse(struct prompt *out, struct bytes text, bool disable_weights,
                         struct error *error);

// Frees what prompt_parse made. All zero is allowed.
// Thread:    the owner's.
void prompt_clear(struct prompt *self);

#endif  // MODELS_TEXT_PROMPT_H
