// serve.h - the daemon's processes: the one door through which the command line starts them.

#ifndef ACTORS_SERVE_H
#define ACTORS_SERVE_H

// Runs `luna serve`: reads the configuration, listens, starts the core and the executors, watches
// and restarts them, and ends on SIGTERM or SIGINT after everything that runs has been answered.
// argv are the words behind "serve".
// Returns:   the exit status: 0, 1 (could not start, said on stderr), 2 (wrong usage).
// Thread:    the main thread of a process that has no other.
int serve_main(int argc, char **argv);

// Runs one child of the daemon (core, executor, torch file reader) when argv say that this process
// is one.
// Returns:   the exit status, or -1 when it is none.
// Thread:    as above; called first thing in main().
int serve_child_main(int argc, char **argv);

#endif  // ACTORS_SERVE_H
