// error.c - formats messages so that nothing a client sent can break a line, a terminal or a
// protobuf.

#include "base/error.h"

#include <assert.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

// Length of the UTF-8 sequence at text, 1 to 4, or 0 when it is malformed or a control character.
static size_t printable_sequence(const unsigned char *text)
{
    if (text[0] >= 0x20 && text[0] < 0x7f) return 1;
    size_t length = 0;
    if (text[0] >= 0xc2 && text[0] <= 0xdf)
        length = 2;
    else if (text[0] >= 0xe0 && text[0] <= 0xef)
        length = 3;
    else if (text[0] >= 0xf0 && text[0] <= 0xf4)
        length = 4;
    if (length == 0) return 0;
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80) return 0;
    }
    if (text[0] == 0xc2 && text[1] < 0xa0) return 0;  // C1 controls
    if (text[0] == 0xe0 && text[1] < 0xa0) return 0;  // overlong
    if (text[0] == 0xed && text[1] > 0x9f) return 0;  // surrogates
    if (text[0] == 0xf0 && text[1] < 0x90) return 0;  // overlong
    if (text[0] == 0xf4 && text[1] > 0x8f) return 0;  // above U+10FFFF
    return length;
}

// Copies text to out (ERROR_MESSAGE_BYTES), escaping what cannot be printed, cutting what is too
// long.
static void copy_printable(char *out, const char *text)
{
    const size_t limit = ERROR_MESSAGE_BYTES - 1;
    const unsigned char *in = (const unsigned char *)text;
    size_t used = 0;
    size_t before_dots = 0;  // the last border at which "..." still fits
    while (*in != '\0') {
        size_t length = printable_sequence(in);
        size_t wanted = length > 0 ? length : 4;
        if (used + wanted > limit) {
            memcpy(out + before_dots, "...", 4);
            return;
        }
        if (length > 0) {
            memcpy(out + used, in, length);
        } else {
            static const char digits[] = "0123456789abcdef";
            const char escaped[4] = {'\\', 'x', digits[*in >> 4], digits[*in & 15]};
            memcpy(out + used, escaped, sizeof escaped);
        }
        used += wanted;
        in += length > 0 ? length : 1;
        if (used + 3 <= limit) before_dots = used;
    }
    out[used] = '\0';
}

enum status error_set(struct error *error, enum status status, const char *format, ...)
{
    assert(format != NULL);
    if (error == NULL) return status;

    char text[4 * ERROR_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    error->status = status;
    error->retry_after_ms = 0;
    copy_printable(error->message, text);
    return status;
}

enum status error_prefix(struct error *error, const char *format, ...)
{
    assert(format != NULL);
    if (error == NULL) return STATUS_INTERNAL;

    char text[3 * ERROR_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    char whole[4 * ERROR_MESSAGE_BYTES + 8];
    snprintf(whole, sizeof whole, "%s: %s", text, error->message);
    copy_printable(error->message, whole);
    return error->status;
}
