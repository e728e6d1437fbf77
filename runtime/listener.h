// listener.h - the daemon's directories and listening sockets, made by the supervisor, so that they
// outlive the core.

#ifndef RUNTIME_LISTENER_H
#define RUNTIME_LISTENER_H

#include <stddef.h>

#include "base/error.h"
#include "runtime/socket.h"

// A bound and listening socket, ready for socket_adopt.
struct listener {
    int descriptor;                        // owned; -1: none
    int lock;                              // flock on the ipc path's lock file; -1: none
    char endpoint[SOCKET_ENDPOINT_BYTES];  // as bound: with the port that was chosen for port 0
};

// Makes the directory, mode 0700, if it is not there; and checks that it is ours alone to write.
// Errors:    FAILED_PRECONDITION when it is somebody else's, no directory, or cannot be made.
// Thread:    any.
enum status runtime_directory_create(const char *path, struct error *error);

// Makes RUNTIME/private-PID, mode 0700, for what is between this daemon's processes, and
// removes those that dead daemons left there.
// Ownership: the caller ends it with private_directory_remove.
// Errors:    as runtime_directory_create; INVALID_ARGUMENT when the path is too long for sockets.
// Thread:    any.
enum status private_directory_create(char *out, size_t out_bytes, const char *runtime_directory,
                                     struct error *error);

// Removes the directory with the sockets and files in it.
// Thread:    any.
void private_directory_remove(const char *path);

// Binds and listens. tcp://HOST:PORT takes addresses, names, and * for all of IPv4; ipc://PATH
// makes a socket that only this user can connect to, removes one that a dead daemon left, and never
// takes one from a living daemon.
// Ownership: the caller ends *out with listener_close.
// Errors:    FAILED_PRECONDITION when the address is in use, by whom as far as known, or cannot be
//            had; INVALID_ARGUMENT when it is none.
// Thread:    any.
enum status listener_open(struct listener *out, const char *endpoint, struct error *error);

// Closes the descriptor and removes an ipc path. One that was never opened ({-1, -1}) is allowed.
// Thread:    any.
void listener_close(struct listener *self);

#endif  // RUNTIME_LISTENER_H
