// log.h - one line per event on stderr: time, level, actor, event, key=value.
//
//     log_event(log, LOG_INFO, "worker.up", "worker=%lu device=%s", worker, device);
//     2026-01-31T12:00:00.123Z info router worker.up worker=3 device=cpu

#ifndef RUNTIME_LOG_H
#define RUNTIME_LOG_H

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

// Writes one line with one write(2); values of %s are the caller's to keep on one line, control
// characters are escaped. Lines of less importance than the log's level cost a comparison.
// Thread:    any.
void log_event(const struct log *log, enum log_level level, const char *event, const char *format,
               ...) __attribute__((format(printf, 4, 5)));

#endif  // RUNTIME_LOG_H
