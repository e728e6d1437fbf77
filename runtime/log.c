// log.c - a line is built on the stack and leaves with one write, so that lines of several threads
// and processes that share stderr do not mix.

#include "runtime/log.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/text.h"

#define LINE_BYTES 2048u

static const char *const level_names[] = {"error", "warning", "info", "debug"};
_Static_assert(sizeof level_names / sizeof level_names[0] == LOG_DEBUG + 1,
               "every level has a name");

// Writes "TIME LEVEL ACTOR EVENT " and returns its length.
static size_t format_prefix(char *line, const struct log *log, enum log_level level,
                            const char *event)
{
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm utc;
    gmtime_r(&now.tv_sec, &utc);
    char time_text[32];
    size_t length = strftime(time_text, sizeof time_text, "%Y-%m-%dT%H:%M:%S", &utc);
    assert(length > 0);
    int written = snprintf(line, LINE_BYTES, "%s.%03ldZ %s %s %.64s ", time_text,
                           now.tv_nsec / 1000000, log_level_name(level), log->actor, event);
    assert(written > 0);
    assert((size_t)written < LINE_BYTES / 2);
    return (size_t)written;
}

void log_event(const struct log *log, enum log_level level, const char *event, const char *format,
               ...)
{
    assert(log != NULL);
    assert(event != NULL);
    if (level > log->level || log->descriptor < 0) return;

    int saved_errno = errno;
    char text[LINE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);

    char line[LINE_BYTES];
    size_t used = format_prefix(line, log, level, event);
    text_copy_printable(line + used, sizeof line - used - 1, text);
    used += strlen(line + used);
    while (used > 0 && line[used - 1] == ' ') used--;
    line[used] = '\n';
    ssize_t written = write(log->descriptor, line, used + 1);
    (void)written;  // there is nowhere to complain
    errno = saved_errno;
}

enum log_level log_level_of(const struct log_levels *levels, const char *actor)
{
    assert(levels != NULL);
    assert(actor != NULL);
    assert(levels->count <= LOG_ACTORS_MAX);
    for (uint32_t i = 0; i < levels->count; i++) {
        if (strcmp(levels->actors[i].actor, actor) == 0) return levels->actors[i].level;
    }
    return levels->level;
}

const char *log_level_name(enum log_level level)
{
    assert((unsigned)level <= LOG_DEBUG);
    return level_names[level];
}

bool log_level_from_name(const char *name, enum log_level *out)
{
    assert(name != NULL);
    assert(out != NULL);
    for (int i = 0; i <= LOG_DEBUG; i++) {
        if (strcmp(level_names[i], name) != 0) continue;
        *out = (enum log_level)i;
        return true;
    }
    return false;
}
