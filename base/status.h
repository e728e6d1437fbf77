// status.h - the one vocabulary of failure. Zero is success; every other value names its cause.
//
// Names, meanings and numbers are those that gRPC made common, so that a client in any language
// already knows them. The same numbers travel in the header of every reply.

#ifndef BASE_STATUS_H
#define BASE_STATUS_H

enum status {
    STATUS_OK = 0,
    STATUS_CANCELLED = 1,            // the client took the request back
    STATUS_INVALID_ARGUMENT = 3,     // the request can never work, whatever the daemon's state
    STATUS_DEADLINE_EXCEEDED = 4,    // time ran out before an answer was ready
    STATUS_NOT_FOUND = 5,            // a name or hash that the daemon does not know
    STATUS_PERMISSION_DENIED = 7,    // known caller, not allowed to do this
    STATUS_RESOURCE_EXHAUSTED = 8,   // a bound is reached; retry_after_ms says when to come back
    STATUS_FAILED_PRECONDITION = 9,  // the daemon's state forbids it until somebody changes that
    STATUS_UNIMPLEMENTED = 12,       // an honest "not yet"
    STATUS_INTERNAL = 13,            // our fault, or the machine's
    STATUS_UNAVAILABLE = 14,      // nobody can serve it just now; the same request may work later
    STATUS_UNAUTHENTICATED = 16,  // unknown caller
};

// Returns the status's name as people type it, "INVALID_ARGUMENT"; "UNKNOWN" for a number that is
// none of ours.
// Thread:    any.
const char *status_name(enum status status);

#endif  // BASE_STATUS_H
