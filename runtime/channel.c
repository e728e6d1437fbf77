// channel.c - sendmsg and recvmsg, with what may go wrong sorted; channel.h holds the contract.

#include "runtime/channel.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

// Room for the largest set of descriptors, aligned as the kernel wants it.
union control {
    struct cmsghdr header;                                          // for its alignment
    char bytes[CMSG_SPACE(sizeof(int) * CHANNEL_DESCRIPTORS_MAX)];  // of the whole
};

enum status channel_pair(int ends[2], struct error *error)
{
    assert(ends != NULL);
    int made[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, made) != 0) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no channel: %s", strerror(errno));
    }
    ends[0] = made[0];
    ends[1] = made[1];
    return STATUS_OK;
}

static void put_descriptors(struct msghdr *message, union control *control,
                            const struct channel_descriptors *passed)
{
    size_t size = passed->count * sizeof passed->descriptors[0];
    memset(control, 0, sizeof *control);
    message->msg_control = control->bytes;
    message->msg_controllen = CMSG_SPACE(size);
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(header), passed->descriptors, size);
}

enum status channel_send(int channel, struct bytes packet, const struct channel_descriptors *passed)
{
    assert(channel >= 0);
    assert(passed == NULL || passed->count <= CHANNEL_DESCRIPTORS_MAX);
    if (packet.size == 0 || packet.size > CHANNEL_PACKET_BYTES_MAX) return STATUS_INVALID_ARGUMENT;

    struct iovec part = {.iov_base = (void *)(uintptr_t)packet.data, .iov_len = packet.size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    union control control;
    if (passed != NULL && passed->count > 0) put_descriptors(&message, &control, passed);
    ssize_t sent = -1;
    do {
        sent = sendmsg(channel, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent >= 0) return STATUS_OK;
    switch (errno) {
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
    case ETOOMANYREFS:
        return STATUS_RESOURCE_EXHAUSTED;
    case EPIPE:
    case ECONNRESET:
    case ENOTCONN:
        return STATUS_UNAVAILABLE;
    default:
        return STATUS_INTERNAL;
    }
}

// Collects what came with a packet; what does not fit is closed.
static void get_descriptors(struct msghdr *message, struct channel_descriptors *out)
{
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header != NULL;
         header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int descriptor = -1;
            memcpy(&descriptor, CMSG_DATA(header) + i * sizeof descriptor, sizeof descriptor);
            if (out->count < CHANNEL_DESCRIPTORS_MAX) {
                out->descriptors[out->count++] = descriptor;
            } else {
                close(descriptor);
            }
        }
    }
}

enum status channel_receive(int channel, void *buffer, size_t buffer_bytes, size_t *packet_bytes,
                            struct channel_descriptors *passed)
{
    assert(channel >= 0);
    assert(buffer != NULL);
    assert(packet_bytes != NULL);

    struct iovec part = {.iov_base = buffer, .iov_len = buffer_bytes};
    union control control;
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t got = -1;
    do {
        got = recvmsg(channel, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        if (errno == EAGAIN) return STATUS_UNAVAILABLE;
        return errno == ECONNRESET ? STATUS_CANCELLED : STATUS_INTERNAL;
    }
    struct channel_descriptors came = {0};
    get_descriptors(&message, &came);
    enum status status = got == 0 ? STATUS_CANCELLED : STATUS_OK;  // no packet is empty
    if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) status = STATUS_INVALID_ARGUMENT;
    if (status == STATUS_OK) {
        *packet_bytes = (size_t)got;
        if (passed != NULL) {
            *passed = came;
            came.count = 0;
        }
    }
    channel_close_descriptors(&came);
    return status;
}

void channel_close_descriptors(struct channel_descriptors *self)
{
    assert(self != NULL);
    assert(self->count <= CHANNEL_DESCRIPTORS_MAX);
    for (uint32_t i = 0; i < self->count; i++) close(self->descriptors[i]);
    self->count = 0;
}

enum status channel_peer(int channel, uint32_t *uid, uint32_t *pid)
{
    assert(uid != NULL);
    assert(pid != NULL);
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(channel, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return STATUS_INTERNAL;
    *uid = peer.uid;
    *pid = (uint32_t)peer.pid;
    return STATUS_OK;
}
