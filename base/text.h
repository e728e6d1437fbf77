// text.h - what may be shown: text that breaks no line, no terminal and no protobuf.

#ifndef BASE_TEXT_H
#define BASE_TEXT_H

#include <stddef.h>

// Copies text to out, NUL included, at most out_bytes bytes. Control characters and bytes that are
// not UTF-8 are written as \xNN; what is too long is cut at a character's border and ends in "...".
// out_bytes is at least 4.
// Thread:    any.
void text_copy_printable(char *out, size_t out_bytes, const char *text);

// Copies text to a field of out_bytes bytes, the rest of it zeros; cut at a character's border when
// it is too long. out and text may be the same.
// Thread:    any.
void text_set(char *out, size_t out_bytes, const char *text);

#endif  // BASE_TEXT_H
