// lease.c - one packet asks, one answers; the first answer that names a pool brings its descriptor.
//
// A session whose other end does not answer in time is over, and its user goes on with frames.
// Nothing that a packet says is used before it is checked against the size of what was mapped, and
// a pool that could be shrunk behind our back (a read would then be a SIGBUS) is not mapped at all.

#include "clients/c/lease.h"

#include <assert.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "clients/c/packet.h"

#define POOLS_MAX 8u

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
    struct client_leases *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    self->fd = -1;
    enum status status = client_packet_connect(&self->fd, path, error);
    if (status != STATUS_OK) goto done;
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

// Sends one packet and receives its answer; false when the session is over.
static bool exchange(struct client_leases *self, const luna_LeaseRequest *request,
                     luna_LeaseReply *reply, int *descriptor)
{
    struct client_packet packet = {.request_type = luna_LeaseRequest_fields,
                                   .request = request,
                                   .reply_type = luna_LeaseReply_fields,
                                   .reply = reply};
    if (!client_packet_exchange(self->fd, &packet)) {
        end_session(self);
        return false;
    }
    *descriptor = packet.descriptor;
    return true;
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
