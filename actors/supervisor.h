// supervisor.h - starts the core and the executors, watches them by pidfd, and starts them again.

#ifndef ACTORS_SUPERVISOR_H
#define ACTORS_SUPERVISOR_H

#include <stdbool.h>
#include <stdint.h>

#include "actors/process.h"
#include "runtime/listener.h"

// What the daemon runs with. Everything is borrowed and lives as long as supervisor_run.
struct supervisor_options {
    const char *private_directory;     // for the sockets between the processes
    const char *lease_path;            // "" when there is no ipc address
    const struct listener *listeners;  // in the order of listen.requests
    uint32_t listeners_count;          // at most PROCESS_LISTENERS_MAX
    uint64_t started_ns;               // of the daemon, on the system's clock
    int signals;                       // descriptor of SIGTERM, SIGINT, SIGHUP (runtime/signals.h)
    const char *notify_socket;         // of systemd; NULL: none

    // Reads the configuration again.
    // Ownership: the caller owns *out.
    enum status (*reload)(void *context, struct config **out, struct error *error);
    void *context;  // of reload
};

// Runs the daemon until it has ended.
// Ownership: *config_p may be replaced by one that reload gave; the caller destroys what is there
// at the end.
// Returns:   0 after a drain that a signal or a client asked for; 1 when it could not start, when
//            the core was given up, and after a second signal.
// Thread:    the main thread of a process that has no other.
int supervisor_run(struct config **config_p, const struct supervisor_options *options);

#endif  // ACTORS_SUPERVISOR_H
