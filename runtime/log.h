// log.h - one line per event on stderr: time, level, actor, event, key=value.
//
//     log_event(log, LOG_INFO, "worker.up", "worker=%lu device=%s", worker, device);
//     2026-01-31T12:00:00.123Z info router worker.up worker=3 device=cpu

#ifndef RUNTIME_LOG_H
#define RUNTIME_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level {
    LOG_ERROR,
    LOG_WARNING,
    LOG_INFO,
    LOG_DEBUG,
};

struct log {
    const char *actor;     // whose lines these are
    enum log_level level;  // of the least important line that is written
    int descriptor;        // where to; -1: nowhere
};

#define LOG_ACTORS_MAX 16u   // actors with a level of their own; there are eleven kinds
#define LOG_ACTOR_BYTES 16u  // of an actor's name, NUL included; a thread's name has as many

// Who says how much.
struct log_levels {
    enum log_level level;  // of everybody else
    uint32_t count;        // of actors
    struct log_level_of_actor {
        char actor[LOG_ACTOR_BYTES];  // its name
        enum log_level level;         // its own level
    } actors[LOG_ACTORS_MAX];
};

// Writes one line with one write(2); control characters and bytes that are not UTF-8 are escaped,
// and a line above 2 KiB is cut. Lines of less importance than the log's level cost a comparison.
// errno stays as it was.
// Thread:    any.
void log_event(const struct log *log, enum log_level level, const char *event, const char *format,
               ...) __attribute__((format(printf, 4, 5)));

// The level of the named actor.
// Thread:    any.
enum log_level log_level_of(const struct log_levels *levels, const char *actor);

// "error", "warning", "info" or "debug".
// Thread:    any.
const char *log_level_name(enum log_level level);

// The level with that name; false, *out untouched, when there is none.
// Thread:    any.
bool log_level_from_name(const char *name, enum log_level *out);

#endif  // RUNTIME_LOG_H
