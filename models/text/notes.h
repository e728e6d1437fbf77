// notes.h - what a client should know about a request that succeeded.

#ifndef MODELS_TEXT_NOTES_H
#define MODELS_TEXT_NOTES_H

#include <stdint.h>

// The most notes of one job, and bytes of the longest (its NUL included): those of a reply.
#define NOTES_MAX 16u
#define NOTE_BYTES_MAX 191u

struct notes {
    char text[NOTES_MAX * NOTE_BYTES_MAX];  // one note a line, no line feed at the end; "" for none
    uint32_t used;                          // bytes of text
    uint32_t count;                         // notes, those left out not counted
};

// Adds a line, unless it is there already or there are too many. Bytes that are not printable are
// escaped.
// Thread:    the owner's.
void notes_add(struct notes *self, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif  // MODELS_TEXT_NOTES_H
