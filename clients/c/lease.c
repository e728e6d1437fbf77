// lease.c - one packet asks, one answers; the first answer that names a pool brings its descriptor.
//
// Every exchange is short and local, so it blocks, with a limit: a session whose other end does not
// answer in time is over, and its user goes on with frames. Nothing that a packet says is used
// before it is checked against the size of what was mapped, and a pool that could be shrunk behind
// our back (a read would then be a SIGBUS) is not mapped at all.

#include "clients/c/lease.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/text.h"
#include "messages/codec.h"

#define POOLS_MAX 8u
#define ANSWER_S_MAX 2  // seconds that an exchange may take

struct pool {
    uint32_t number;  // as the daemon numbers them
    uint64_t bytes;   // mapped
    uint8_t *data;    // first byte
};

struct client_leases {
    int fd;                        // of the session; -1 when it has ended
    uint32_t held;                 // leases that were acquired and not released
    uint32_t pools_count;          // of pools
    struct pool pools[POOLS_MAX];  // mapped, in order of their appearance
};

static void end_session(struct client_leases *self)
{
    if (self->fd >= 0) close(self->fd);
    self->fd = -1;
}

enum status client_leases_create(struct client_leases **out, const char *path, struct error *error)
{
    assert(out != NULL);
    assert(path != NULL);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        return error_set(error, STATUS_UNAVAILABLE, "the lease socket's path is too long");
    }
    text_set(address.sun_path, sizeof address.sun_path, path);

    enum status status = STATUS_OK;
    const struct timeval limit = {.tv_sec = ANSWER_S_MAX};
    struct client_leases *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    self->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (self->fd < 0 || setsockopt(self->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0 ||
        setsockopt(self->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0 ||
        connect(self->fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        status = error_set(error, STATUS_UNAVAILABLE, "lease socket: %s", strerror(errno));
        goto done;
    }
    *out = self;
    self = NULL;

done:
    client_leases_destroy(&self);
    return status;
}

void client_leases_destroy(struct client_leases **self_p)
{
    assert(self_p != NULL);
    struct client_leases *self = *self_p;
    if (self == NULL) return;
    end_session(self);
    for (uint32_t i = 0; i < self->pools_count; i++) {
        munmap(self->pools[i].data, (size_t)self->pools[i].bytes);
    }
    free(self);
    *self_p = NULL;
}

bool client_leases_alive(struct client_leases *self)
{
    assert(self != NULL);
    if (self->fd < 0) return false;
    // Between exchanges nothing is to be read: an end of file is what makes it readable.
    struct pollfd entry = {.fd = self->fd, .events = POLLIN};
    if (poll(&entry, 1, 0) != 0) end_session(self);
    return self->fd >= 0;
}

bool client_leases_idle(const struct client_leases *self)
{
    assert(self != NULL);
    return self->held == 0;
}

// Receives one packet and the descriptor beside it, if there is one (else -1).
static bool receive(struct client_leases *self, luna_LeaseReply *out, int *descriptor)
{
    uint8_t packet[luna_LeaseReply_size + 64];
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {packet, sizeof packet};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t size = 0;
    do {
        size = recvmsg(self->fd, &message, MSG_CMSG_CLOEXEC);
    } while (size < 0 && errno == EINTR);
    if (size <= 0) return false;

    *descriptor = -1;
    struct cmsghdr *extra = CMSG_FIRSTHDR(&message);
    if (extra != NULL && extra->cmsg_level == SOL_SOCKET && extra->cmsg_type == SCM_RIGHTS &&
        extra->cmsg_len == CMSG_LEN(sizeof(int))) {
        memcpy(descriptor, CMSG_DATA(extra), sizeof(int));
    }
    bool complete = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
    struct bytes frame = {packet, (uint64_t)size};
    if (complete && codec_decode(luna_LeaseReply_fields, frame, out, NULL) == STATUS_OK) {
        return true;
    }
    if (*descriptor >= 0) close(*descriptor);
    return false;
}

// Sends one packet and receives its answer; false when the session is over.
static bool exchange(struct client_leases *self, const luna_LeaseRequest *request,
                     luna_LeaseReply *reply, int *descriptor)
{
    uint8_t packet[luna_LeaseRequest_size];
    struct codec_buffer encoded = {packet, sizeof packet, 0};
    bool sent = codec_encode(luna_LeaseRequest_fields, request, &encoded, NULL) == STATUS_OK &&
                send(self->fd, packet, (size_t)encoded.size, MSG_NOSIGNAL) == (ssize_t)encoded.size;
    if (sent && receive(self, reply, descriptor)) return true;
    end_session(self);
    return false;
}

// Maps a pool's descriptor; it must be as large as said, and sealed against shrinking.
static bool map_pool(struct client_leases *self, const luna_LeaseReply *reply, int descriptor)
{
    struct stat entry;
    int seals = fcntl(descriptor, F_GET_SEALS);
    if (self->pools_count == POOLS_MAX || reply->pool_bytes == 0) return false;
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) return false;
    if (fstat(descriptor, &entry) != 0 || (uint64_t)entry.st_size < reply->pool_bytes) return false;
    void *data =
        mmap(NULL, (size_t)reply->pool_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (data == MAP_FAILED) return false;
    self->pools[self->pools_count++] = (struct pool){reply->pool, reply->pool_bytes, data};
    return true;
}

static const struct pool *find_pool(const struct client_leases *self, uint32_t number)
{
    for (uint32_t i = 0; i < self->pools_count; i++) {
        if (self->pools[i].number == number) return &self->pools[i];
    }
    return NULL;
}

enum status client_leases_acquire(struct client_leases *self, uint64_t bytes,
                                  struct client_lease *out, struct error *error)
{
    assert(self != NULL);
    assert(bytes > 0);
    int descriptor = -1;
    uint64_t end = 0;
    luna_LeaseReply reply;
    const luna_LeaseRequest request = {.acquire_bytes = bytes};
    if (!client_leases_alive(self) || !exchange(self, &request, &reply, &descriptor)) {
        return error_set(error, STATUS_UNAVAILABLE, "the session at the lease socket has ended");
    }
    bool known = find_pool(self, reply.pool) != NULL;
    if (descriptor >= 0 && !known) known = map_pool(self, &reply, descriptor);
    if (descriptor >= 0) close(descriptor);
    if (reply.code != luna_Code_OK) {
        return error_set(error, (enum status)reply.code, "%s", reply.message);
    }

    const struct pool *pool = find_pool(self, reply.pool);
    if (!known || pool == NULL || reply.bytes < bytes ||
        !checked_add(reply.offset, reply.bytes, &end) || end > pool->bytes) {
        end_session(self);
        return error_set(error, STATUS_UNAVAILABLE,
                         "the lease is not within a pool that is mapped");
    }
    *out = (struct client_lease){reply.pool, reply.slot, reply.generation,
                                 pool->data + reply.offset, reply.bytes};
    self->held++;
    return STATUS_OK;
}

void client_leases_release(struct client_leases *self, const struct client_lease *lease)
{
    assert(self != NULL);
    assert(lease != NULL);
    assert(self->held > 0);
    self->held--;
    int descriptor = -1;
    luna_LeaseReply reply;
    const luna_LeaseRequest request = {.release_slot = lease->slot,
                                       .release_generation = lease->generation};
    if (!client_leases_alive(self) || !exchange(self, &request, &reply, &descriptor)) return;
    if (descriptor >= 0) close(descriptor);
}
