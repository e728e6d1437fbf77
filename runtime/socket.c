// socket.c - options are applied from one list, by what the end's row says; socket.h holds the
// contract.
//
// What is never set, and why: ROUTING_ID (a crashed peer would shadow its successor), HANDOVER (who
// knows an id could take it), XPUB_NODROP (one slow subscriber would stop the monitor).

#include "runtime/socket.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "base/patience.h"

// Not in zmq.h of 4.3.4 without its draft interface, and understood by it all the same.
#ifndef ZMQ_ZAP_ENFORCE_DOMAIN
#define ZMQ_ZAP_ENFORCE_DOMAIN 93
#endif

#define IO_THREADS 2  // so that bulk on one socket does not delay control on another
#define HANDSHAKE_MS 3000
#define HEARTBEAT_MS 1000
#define HEARTBEAT_LOST_MS (3000 * PATIENCE)
#define RECONNECT_MS 20
#define RECONNECT_MS_MAX 1000

enum status socket_context_create(void **out, uint32_t sockets_max, struct error *error)
{
    assert(out != NULL);
    assert(sockets_max <= 65535);
    void *zmq = zmq_ctx_new();
    if (zmq == NULL) goto failed;
    if (zmq_ctx_set(zmq, ZMQ_IO_THREADS, IO_THREADS) != 0) goto failed;
    if (zmq_ctx_set(zmq, ZMQ_BLOCKY, 0) != 0) goto failed;
    if (sockets_max > 0 && zmq_ctx_set(zmq, ZMQ_MAX_SOCKETS, (int)sockets_max) != 0) goto failed;
    *out = zmq;
    return STATUS_OK;

failed:
    socket_context_destroy(&zmq);
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no ZeroMQ context: %s",
                     zmq_strerror(errno));
}

void socket_context_destroy(void **zmq_p)
{
    assert(zmq_p != NULL);
    if (*zmq_p == NULL) return;
    int failed = 0;
    do {
        failed = zmq_ctx_term(*zmq_p);
    } while (failed != 0 && errno == EINTR);
    assert(failed == 0);
    *zmq_p = NULL;
}

static bool set_integer(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value) == 0;
}

// Without the domain and its enforcement an absent auth actor would let everybody in.
static bool set_domain(void *socket, const char *domain)
{
    return zmq_setsockopt(socket, ZMQ_ZAP_DOMAIN, domain, strlen(domain)) == 0 &&
           set_integer(socket, ZMQ_ZAP_ENFORCE_DOMAIN, 1) &&
           set_integer(socket, ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS);
}

// Finds peers on machines that are gone.
static bool set_heartbeat(void *socket)
{
    return set_integer(socket, ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS) &&
           set_integer(socket, ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_LOST_MS) &&
           set_integer(socket, ZMQ_HEARTBEAT_TTL, HEARTBEAT_LOST_MS) &&
           set_integer(socket, ZMQ_TCP_KEEPALIVE, 1);
}

static bool set_options(void *socket, const struct edge_end *end)
{
    int messages_max = (int)end->messages_max;
    if (!set_integer(socket, ZMQ_LINGER, (int)end->linger_ms)) return false;
    if (!set_integer(socket, ZMQ_SNDHWM, messages_max)) return false;
    if (!set_integer(socket, ZMQ_RCVHWM, messages_max)) return false;
    if (end->frame_bytes_max > 0 &&
        socket_limit_frames(socket, end->frame_bytes_max, NULL) != STATUS_OK) {
        return false;
    }
    // Without it an answer to a peer that is gone, or full, is dropped in silence.
    if (end->type == ZMQ_ROUTER && !set_integer(socket, ZMQ_ROUTER_MANDATORY, 1)) return false;
    if (!end->binds && !(set_integer(socket, ZMQ_RECONNECT_IVL, RECONNECT_MS) &&
                         set_integer(socket, ZMQ_RECONNECT_IVL_MAX, RECONNECT_MS_MAX))) {
        return false;
    }
    if (end->zap_domain == NULL) return true;
    if (!set_domain(socket, end->zap_domain)) return false;
    return strcmp(end->zap_domain, SOCKET_DOMAIN_CLIENTS) != 0 || set_heartbeat(socket);
}

enum status socket_open(void **out, void *zmq, enum edge edge, struct error *error)
{
    assert(out != NULL);
    assert(zmq != NULL);
    const struct edge_end *end = edge_end(edge);
    void *socket = zmq_socket(zmq, end->type);
    if (socket == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no socket for edge %s: %s", end->name,
                         zmq_strerror(errno));
    }
    if (!set_options(socket, end)) {
        error_set(error, STATUS_FAILED_PRECONDITION, "libzmq refuses an option of edge %s: %s",
                  end->name, zmq_strerror(errno));
        socket_close(&socket);
        return STATUS_FAILED_PRECONDITION;
    }
    *out = socket;
    return STATUS_OK;
}

void socket_close(void **socket_p)
{
    assert(socket_p != NULL);
    if (*socket_p == NULL) return;
    int failed = zmq_close(*socket_p);
    assert(failed == 0);
    *socket_p = NULL;
}

enum status socket_limit_frames(void *socket, uint64_t frame_bytes_max, struct error *error)
{
    assert(socket != NULL);
    assert(frame_bytes_max > 0);
    assert(frame_bytes_max <= INT64_MAX);
    int64_t limit = (int64_t)frame_bytes_max;
    if (zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &limit, sizeof limit) == 0) return STATUS_OK;
    return error_set(error, STATUS_INTERNAL, "cannot limit frames to %lu bytes: %s",
                     (unsigned long)frame_bytes_max, zmq_strerror(errno));
}

// Says why an endpoint cannot be had.
static enum status refuse(struct error *error, const char *verb, const char *endpoint)
{
    bool is_malformed = errno == EINVAL || errno == EPROTONOSUPPORT || errno == ENAMETOOLONG ||
                        errno == ENOCOMPATPROTO;
    return error_set(error, is_malformed ? STATUS_INVALID_ARGUMENT : STATUS_FAILED_PRECONDITION,
                     "cannot %s %s: %s", verb, endpoint, zmq_strerror(errno));
}

enum status socket_bind(void *socket, const char *endpoint, struct error *error)
{
    assert(socket != NULL);
    assert(endpoint != NULL);
    if (zmq_bind(socket, endpoint) == 0) return STATUS_OK;
    return refuse(error, "bind", endpoint);
}

enum status socket_connect(void *socket, const char *endpoint, struct error *error)
{
    assert(socket != NULL);
    assert(endpoint != NULL);
    if (zmq_connect(socket, endpoint) == 0) return STATUS_OK;
    return refuse(error, "connect to", endpoint);
}

enum status socket_adopt(void *socket, int descriptor, const char *endpoint, struct error *error)
{
    assert(socket != NULL);
    assert(descriptor >= 0);
    assert(endpoint != NULL);
    bool is_adopted =
        set_integer(socket, ZMQ_USE_FD, descriptor) && zmq_bind(socket, endpoint) == 0;
    int failure = errno;
    bool is_reset = set_integer(socket, ZMQ_USE_FD, -1);  // the next bind makes its own
    assert(is_reset);
    if (is_adopted) return STATUS_OK;
    close(descriptor);
    return error_set(error, STATUS_FAILED_PRECONDITION, "cannot listen on %s: %s", endpoint,
                     zmq_strerror(failure));
}

void socket_ipc_endpoint(char *out, size_t out_bytes, const char *directory, const char *name)
{
    assert(out != NULL);
    assert(directory != NULL);
    assert(name != NULL);
    int length = snprintf(out, out_bytes, "ipc://%s/%s", directory, name);
    assert(length > 0);
    assert((size_t)length < out_bytes);
}
