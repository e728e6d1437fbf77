// packet.c - one letter a packet; packet.h holds the contract.

#include "actors/packet.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "messages/letter.h"
#include "runtime/channel.h"

_Static_assert(LETTER_BYTES_MAX <= CHANNEL_PACKET_BYTES_MAX, "a letter fits");

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
    uint32_t peer_uid = 0;
    uint32_t peer_pid = 0;
    if (channel_peer(connection, &peer_uid, &peer_pid) != STATUS_OK) {
        close(connection);
        return error_set(error, STATUS_UNAVAILABLE, "the peer cannot be told");
    }
    *out = connection;
    *uid = peer_uid;
    return STATUS_OK;
}

enum status packet_send_letter(int channel, const luna_Letter *letter, int descriptor)
{
    uint8_t buffer[LETTER_BYTES_MAX];
    struct codec_buffer encoded = {.data = buffer, .capacity = sizeof buffer};
    enum status status = letter_encode(letter, &encoded, NULL);
    if (status != STATUS_OK) return status;
    const struct channel_descriptors passed = {.count = descriptor >= 0 ? 1 : 0,
                                               .descriptors = {descriptor}};
    return channel_send(channel, (struct bytes){.data = buffer, .size = encoded.size}, &passed);
}

enum status packet_connect(int *out, const char *directory, const char *name)
{
    assert(out != NULL);
    assert(directory != NULL);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length = snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", directory, name);
    if (length < 0 || (size_t)length >= sizeof address.sun_path) return STATUS_INVALID_ARGUMENT;
    int channel = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (channel < 0) return STATUS_RESOURCE_EXHAUSTED;
    if (connect(channel, (const struct sockaddr *)&address, sizeof address) != 0) {
        close(channel);
        return STATUS_UNAVAILABLE;
    }
    *out = channel;
    return STATUS_OK;
}

enum status packet_ask(const char *directory, const char *name, int wait_ms, luna_Letter *letter,
                       int *descriptor)
{
    assert(letter != NULL);
    assert(descriptor != NULL);
    uint8_t buffer[LETTER_BYTES_MAX];
    size_t size = 0;
    int channel = -1;
    struct channel_descriptors passed = {.count = 0};
    enum status status = packet_connect(&channel, directory, name);
    if (status != STATUS_OK) return status;
    status = packet_send_letter(channel, letter, -1);
    struct pollfd wait = {.fd = channel, .events = POLLIN};
    if (status == STATUS_OK && poll(&wait, 1, wait_ms) != 1) status = STATUS_UNAVAILABLE;
    if (status == STATUS_OK)
        status = channel_receive(channel, buffer, sizeof buffer, &size, &passed);
    if (status == STATUS_OK)
        status = letter_decode((struct bytes){.data = buffer, .size = size}, letter, NULL);
    if (status == STATUS_OK) {
        *descriptor = passed.count == 1 ? passed.descriptors[0] : -1;
        if (passed.count == 1) passed.count = 0;
    } else {
        status = STATUS_UNAVAILABLE;
    }
    channel_close_descriptors(&passed);
    close(channel);
    return status;
}

enum status packet_receive_letter(int channel, luna_Letter *out)
{
    assert(out != NULL);
    uint8_t buffer[LETTER_BYTES_MAX];
    size_t size = 0;
    enum status status = channel_receive(channel, buffer, sizeof buffer, &size, NULL);
    if (status != STATUS_OK) return status;
    return letter_decode((struct bytes){.data = buffer, .size = size}, out, NULL);
}
