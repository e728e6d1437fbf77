// packet.c - sendmsg and recvmsg with SCM_RIGHTS; packet.h holds the contract.

#include "actors/packet.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "messages/letter.h"

_Static_assert(LETTER_BYTES_MAX <= PACKET_BYTES_MAX, "a letter fits");

// Room for one descriptor beside a packet.
union control {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
};

enum status packet_listen(int *out, const char *path, struct error *error)
{
    assert(out != NULL);
    assert(path != NULL);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        return error_set(error, STATUS_FAILED_PRECONDITION, "socket path \"%s\" is too long", path);
    }
    memcpy(address.sun_path, path, strlen(path));
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    unlink(path);
    bool bound = listener >= 0 &&
                 bind(listener, (const struct sockaddr *)&address, sizeof address) == 0 &&
                 chmod(path, 0600) == 0 && listen(listener, SOMAXCONN) == 0;
    if (!bound) {
        int failed = errno;
        if (listener >= 0) close(listener);
        return error_set(error, STATUS_FAILED_PRECONDITION, "cannot listen on \"%s\": %s", path,
                         strerror(failed));
    }
    *out = listener;
    return STATUS_OK;
}

enum status packet_accept(int listener, int *out, uint32_t *uid, struct error *error)
{
    assert(out != NULL);
    assert(uid != NULL);
    int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (connection < 0) {
        enum status status = errno == EMFILE || errno == ENFILE || errno == ENOMEM
                                 ? STATUS_RESOURCE_EXHAUSTED
                                 : STATUS_UNAVAILABLE;
        return error_set(error, status, "accept: %s", strerror(errno));
    }
    struct ucred peer = {.pid = 0};
    socklen_t size = sizeof peer;
    if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
        close(connection);
        return error_set(error, STATUS_UNAVAILABLE, "the peer cannot be told");
    }
    *out = connection;
    *uid = peer.uid;
    return STATUS_OK;
}

enum status packet_send(int socket, struct bytes bytes, int descriptor)
{
    assert(socket >= 0);
    assert(bytes.size > 0);
    union {
        const void *data;
        void *base;
    } borrowed = {.data = bytes.data};
    struct iovec part = {.iov_base = borrowed.base, .iov_len = bytes.size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    union control control;
    memset(&control, 0, sizeof control);
    if (descriptor >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof descriptor);
        memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
    }
    ssize_t sent = 0;
    do {
        sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent < 0 && errno == EINTR);
    if (sent >= 0) return STATUS_OK;
    return errno == EAGAIN || errno == ENOBUFS ? STATUS_RESOURCE_EXHAUSTED : STATUS_UNAVAILABLE;
}

// The descriptor that came with a message; -1 when none did.
static int take_descriptor(struct msghdr *message)
{
    int descriptor = -1;
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof descriptor)) {
        memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
    }
    return descriptor;
}

enum status packet_receive(int socket, struct packet *out)
{
    assert(socket >= 0);
    assert(out != NULL);
    struct iovec part = {.iov_base = out->data, .iov_len = sizeof out->data};
    union control control;
    memset(&control, 0, sizeof control);
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t got = 0;
    do {
        got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    out->size = 0;
    out->descriptor = -1;
    if (got < 0) return errno == ECONNRESET ? STATUS_OK : STATUS_UNAVAILABLE;
    out->descriptor = take_descriptor(&message);
    out->size = (uint64_t)got;
    if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0) return STATUS_OK;
    if (out->descriptor >= 0) close(out->descriptor);
    out->descriptor = -1;
    return STATUS_INVALID_ARGUMENT;
}

enum status packet_send_letter(int socket, const luna_Letter *letter, int descriptor)
{
    uint8_t buffer[LETTER_BYTES_MAX];
    struct codec_buffer encoded = {.data = buffer, .capacity = sizeof buffer};
    enum status status = letter_encode(letter, &encoded, NULL);
    if (status != STATUS_OK) return status;
    return packet_send(socket, (struct bytes){.data = buffer, .size = encoded.size}, descriptor);
}
