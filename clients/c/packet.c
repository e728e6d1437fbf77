// packet.c - SOCK_SEQPACKET over AF_UNIX with a limit on time; at most one descriptor a packet.

#include "clients/c/packet.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/text.h"

#define ANSWER_S_MAX 2  // seconds that an exchange may take

_Static_assert(luna_LeaseReply_size <= CLIENT_PACKET_BYTES_MAX, "leases fit");
_Static_assert(luna_AdapterReply_size <= CLIENT_PACKET_BYTES_MAX, "adapters fit");

enum status client_packet_connect(int *out, const char *path, struct error *error)
{
    assert(out != NULL);
    assert(path != NULL);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        return error_set(error, STATUS_UNAVAILABLE, "the path of the daemon's socket is too long");
    }
    text_set(address.sun_path, sizeof address.sun_path, path);

    const struct timeval limit = {.tv_sec = ANSWER_S_MAX};
    int made = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (made < 0 || setsockopt(made, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0 ||
        setsockopt(made, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0 ||
        connect(made, (const struct sockaddr *)&address, sizeof address) != 0) {
        error_set(error, STATUS_UNAVAILABLE, "the daemon's socket: %s", strerror(errno));
        if (made >= 0) close(made);
        return STATUS_UNAVAILABLE;
    }
    *out = made;
    return STATUS_OK;
}

// Receives one packet and the descriptor beside it, if there is one (else -1).
static bool receive(int socket, struct client_packet *packet)
{
    uint8_t data[CLIENT_PACKET_BYTES_MAX];
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {data, sizeof data};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t size = 0;
    do {
        size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    } while (size < 0 && errno == EINTR);
    if (size <= 0) return false;

    int descriptor = -1;
    struct cmsghdr *extra = CMSG_FIRSTHDR(&message);
    if (extra != NULL && extra->cmsg_level == SOL_SOCKET && extra->cmsg_type == SCM_RIGHTS &&
        extra->cmsg_len == CMSG_LEN(sizeof(int))) {
        memcpy(&descriptor, CMSG_DATA(extra), sizeof(int));
    }
    bool complete = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
    struct bytes frame = {data, (uint64_t)size};
    if (complete && codec_decode(packet->reply_type, frame, packet->reply, NULL) == STATUS_OK) {
        packet->descriptor = descriptor;
        return true;
    }
    if (descriptor >= 0) close(descriptor);
    return false;
}

bool client_packet_exchange(int socket, struct client_packet *packet)
{
    assert(socket >= 0);
    assert(packet != NULL);
    uint8_t data[CLIENT_PACKET_BYTES_MAX];
    struct codec_buffer encoded = {data, sizeof data, 0};
    packet->descriptor = -1;
    return codec_encode(packet->request_type, packet->request, &encoded, NULL) == STATUS_OK &&
           send(socket, data, (size_t)encoded.size, MSG_NOSIGNAL) == (ssize_t)encoded.size &&
           receive(socket, packet);
}
