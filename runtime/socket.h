// socket.h - ZeroMQ sockets as the table of edges wants them, and their addresses.
//
//     socket_open(&self->data, context->zmq, EDGE_WORKER_DATA_PEER, error);
//     socket_ipc_endpoint(endpoint, sizeof endpoint, private_directory, SOCKET_ROUTER_DATA);
//     socket_connect(self->data, endpoint, error);

#ifndef RUNTIME_SOCKET_H
#define RUNTIME_SOCKET_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "runtime/edges.h"

// Bytes of the longest endpoint, its NUL included; an ipc path has at most 107.
#define SOCKET_ENDPOINT_BYTES 320u

// Creates the process's one ZeroMQ context: two I/O threads, no endless linger, sockets_max sockets
// (0: the library's default).
// Ownership: the caller ends it with socket_context_destroy.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status socket_context_create(void **out, uint32_t sockets_max, struct error *error);

// Terminates the context; returns when all its sockets are closed and have lingered. NULL is
// allowed.
// Thread:    any.
void socket_context_destroy(void **zmq_p);

// Opens one end of an edge with all its options, not yet bound or connected.
// Ownership: the caller ends it with socket_close.
// Errors:    RESOURCE_EXHAUSTED; FAILED_PRECONDITION when libzmq lacks an option that the edge
// cannot
//            do without.
// Thread:    any; the socket is that thread's from then on.
enum status socket_open(void **out, void *zmq, enum edge edge, struct error *error);

// Closes the socket, which nothing watches any more. NULL is allowed.
// Thread:    the socket's.
void socket_close(void **socket_p);

// Limits the frames that come in; for edges whose bound is configured. Before bind or connect.
// Errors:    INTERNAL.
// Thread:    the socket's.
enum status socket_limit_frames(void *socket, uint64_t frame_bytes_max, struct error *error);

// Binds or connects.
// Errors:    FAILED_PRECONDITION when the address is in use or cannot be had, INVALID_ARGUMENT when
// it
//            is none. A connection to an ipc or tcp address that nobody answers is no error.
// Thread:    the socket's.
enum status socket_bind(void *socket, const char *endpoint, struct error *error);
enum status socket_connect(void *socket, const char *endpoint, struct error *error);

// Accepts connections on a descriptor that somebody else has bound to endpoint and listens on
// (ZMQ_USE_FD). Several may be adopted.
// Ownership: libzmq closes the descriptor from then on, also on failure.
// Errors:    FAILED_PRECONDITION.
// Thread:    the socket's.
enum status socket_adopt(void *socket, int descriptor, const char *endpoint, struct error *error);

// Writes "ipc://DIRECTORY/NAME". A path that is too long for a socket is found by bind and connect.
// Thread:    any.
void socket_ipc_endpoint(char *out, size_t out_bytes, const char *directory, const char *name);

#endif  // RUNTIME_SOCKET_H
