// notes.c - error.h's formatter makes the lines: it escapes what clients should not print.

#include "models/text/notes.h"

#include <assert.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

static bool has_line(const struct notes *self, const char *line, size_t length)
{
    for (const char *at = self->text; *at != '\0';) {
        size_t here = strcspn(at, "\n");
        if (here == length && memcmp(at, line, length) == 0) return true;
        at += here;
        if (*at == '\n') at += 1;
    }
    return false;
}

void notes_add(struct notes *self, const char *format, ...)
{
    assert(self != NULL);
    assert(format != NULL);
    char raw[ERROR_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(raw, sizeof raw, format, arguments);
    va_end(arguments);

    struct error line;
    error_set(&line, STATUS_OK, "%s", raw);
    size_t length = strlen(line.message);
    if (length > NOTE_BYTES_MAX - 1) {  // cut in front of a character
        length = NOTE_BYTES_MAX - 1;
        while (length > 0 && (line.message[length] & 0xC0) == 0x80) length -= 1;
    }
    if (self->count == NOTES_MAX || has_line(self, line.message, length)) return;
    if (self->count > 0) self->text[self->used++] = '\n';
    memcpy(self->text + self->used, line.message, length);
    self->used += (uint32_t)length;
    self->text[self->used] = '\0';
    self->count += 1;
}
