// process.h - the daemon's child processes: how the supervisor tells them what they are.
//
// A child finds the channel to the supervisor as descriptor 3 and the configuration, as text in
// sealed memory, as 4; the core finds its listening sockets from 5 on. The rest are words of its
// command line.

#ifndef ACTORS_PROCESS_H
#define ACTORS_PROCESS_H

#include <stdint.h>

#include "base/error.h"
#include "runtime/child.h"
#include "runtime/config.h"
#include "runtime/log.h"

#define PROCESS_CORE_WORD "core-process"
#define PROCESS_EXECUTOR_WORD "executor-process"
#define PROCESS_CONFIG_DESCRIPTOR CHILD_FIRST_DESCRIPTOR
#define PROCESS_LISTENERS_MAX 8u

// luna core-process PRIVATE_DIRECTORY LEASE_PATH SUPERVISOR_PID STARTED_NS [ENDPOINT...]
// Returns:   the exit status.
// Thread:    the main thread of its process.
int core_process_main(int argc, char **argv);

// luna executor-process PRIVATE_DIRECTORY DEVICE EPOCH
// Returns and thread as above.
int executor_process_main(int argc, char **argv);

// Puts the configuration's text into sealed memory that process_read_config reads.
// Ownership: the caller closes *out.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status process_write_config(const struct config *config, int *out, struct error *error);

// Reads it in the child.
// Ownership: the caller owns *out.
// Errors:    those of config_load.
// Thread:    the main thread.
enum status process_read_config(struct config **out, struct error *error);

// The log of a process, at the level that the configuration gives its name (which is borrowed).
// Thread:    any, as everything that follows.
struct log process_log(const struct config *config, const char *name);

// Reads a decimal number that is all of text; false for anything else.
bool process_number(const char *text, uint64_t *out);

// Where the LoRA store's socket for clients lies: beside that of the leases, with a name that is no
// longer. "" for "".
void process_loras_path(char *out, size_t out_bytes, const char *lease_path);

// Says on stderr why a process cannot start.
void process_say_error(const struct error *error);

#endif  // ACTORS_PROCESS_H
