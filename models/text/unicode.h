// unicode.h - what Python does to strings, where the tokenizer's result depends on it.

#ifndef MODELS_TEXT_UNICODE_H
#define MODELS_TEXT_UNICODE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

// A list of code points that grows.
struct code_points {
    int32_t *items;     // owned; free() it
    uint32_t count;     // code points in use
    uint32_t capacity;  // code points there is room for
};

// Appends one; false when memory ran out.
// Thread:    any.
bool code_points_append(struct code_points *self, int32_t code);

// General category L*, and N*: \p{L} and \p{N} of Python's regex.
// Thread:    any.
bool unicode_is_letter(int32_t code);
bool unicode_is_number(int32_t code);

// Category C* (controls, formats, private, unassigned) without tab, line feed and carriage return.
// Thread:    any.
bool unicode_is_control(int32_t code);

// Category Zs: a space of whatever width.
// Thread:    any.
bool unicode_is_blank(int32_t code);

// What str.split, str.strip and float() take for white space.
// Thread:    any.
bool unicode_is_space(int32_t code);

// The value of a decimal digit of any script, or -1.
// Thread:    any.
int32_t unicode_decimal(int32_t code);

// Appends the canonical composition (NFC) of count code points to *out, in linear time whatever the
// combining marks.
// Errors:    RESOURCE_EXHAUSTED; INVALID_ARGUMENT for what is no code point.
// Thread:    any.
enum status unicode_compose(const int32_t *text, uint32_t count, struct code_points *out);

// Appends the word as str.lower makes it: one to one but for U+0130 and the final sigma.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status unicode_lower(const int32_t *word, uint32_t count, struct code_points *out);

#endif  // MODELS_TEXT_UNICODE_H
