// error.h - a status with the sentence that explains it to the person who caused it.
//
// A function that can fail for reasons worth telling takes a struct error * as its last parameter
// and returns the status it wrote there:
//
//     if (channels != model->latent_channels) {
//         return error_set(error, STATUS_INVALID_ARGUMENT, "latent has %u channels, model \"%s\"
//         takes %u",
//                          channels, name, model->latent_channels);
//     }
//
// The sentence names what was wrong and with what value, starts in lower case, has no full stop,
// and leaks no path outside the configured folders.

#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <stdint.h>

#include "base/status.h"

// Bytes of the longest message, its NUL included. It fits the header of a reply.
#define ERROR_MESSAGE_BYTES 384u

struct error {
    enum status status;       // STATUS_OK in an error that nothing has happened to yet
    uint32_t retry_after_ms;  // with RESOURCE_EXHAUSTED and UNAVAILABLE: when to come back
    char message[ERROR_MESSAGE_BYTES];  // valid UTF-8, control characters escaped
};

// Writes status and the formatted message to *error, whose earlier content is lost, and returns
// status. A NULL error only returns status. Bytes that are not printable UTF-8 are written as \xNN,
// and a message that is too long is cut at a character's border and ends in "...".
// Thread:    any.
enum status error_set(struct error *error, enum status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

// The same, with "WHAT: " in front of the message that *error already holds; status stays.
// Thread:    any.
enum status error_prefix(struct error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif  // BASE_ERROR_H
