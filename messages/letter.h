// letter.h - what Luna's own actors and processes say to each other (messages/actors.proto).

#ifndef MESSAGES_LETTER_H
#define MESSAGES_LETTER_H

#include "messages/actors.pb.h"
#include "messages/codec.h"

// Bytes that the longest letter takes.
#define LETTER_BYTES_MAX luna_Letter_size
_Static_assert(LETTER_BYTES_MAX <= 8192, "a letter is small enough for a stack");

// Writes a letter; LETTER_BYTES_MAX always suffice.
// Errors:    INVALID_ARGUMENT for a string that is not UTF-8, RESOURCE_EXHAUSTED when the buffer is
//            too small.
// Thread:    any.
enum status letter_encode(const luna_Letter *letter, struct codec_buffer *out, struct error *error);

// Reads a letter of a known kind. On failure the content of *out is not to be used.
// Errors:    INVALID_ARGUMENT.
// Thread:    any.
enum status letter_decode(struct bytes frame, luna_Letter *out, struct error *error);

#endif  // MESSAGES_LETTER_H
