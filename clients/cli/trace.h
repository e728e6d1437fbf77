// trace.h - what a bench collects for Chrome's trace viewer: the daemon's events of every answer,
// and the clients' own beside them.

#ifndef CLIENTS_CLI_TRACE_H
#define CLIENTS_CLI_TRACE_H

#include "clients/cli/cli.h"

struct trace;

// Creates an empty trace.
// Ownership: the caller owns the result; NULL when there is no memory.
// Thread:    any; trace_add may be called by several at once.
struct trace *trace_create(void);

// Destroys it. NULL is allowed.
void trace_destroy(struct trace **self_p);

// Takes in what an answer brought, if it brought anything, and the client's part: a request of this
// name from begin_ns to end_ns, of the client of that number.
void trace_add(struct trace *self, const struct luna_answer *answer, const char *name,
               uint32_t client, const uint64_t times_ns[2]);

// Writes it to path.
// Errors:    INTERNAL when the file cannot be written.
enum status trace_write(const struct trace *self, const char *path, struct error *error);

#endif  // CLIENTS_CLI_TRACE_H
