// error.c - formats messages so that nothing a client sent can break a line, a terminal or a
// protobuf.

#include "base/error.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/text.h"

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
    text_copy_printable(error->message, sizeof error->message, text);
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
    text_copy_printable(error->message, sizeof error->message, whole);
    return error->status;
}
