// notify.c - one datagram; notify.h holds the contract.

#include "runtime/notify.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"

bool notify_send(const char *socket_name, const char *state)
{
    assert(state != NULL);
    if (socket_name == NULL) return false;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(socket_name);
    bool is_valid = socket_name[0] == '/' || socket_name[0] == '@';
    if (!is_valid || length < 2 || length >= sizeof address.sun_path) return false;
    memcpy(address.sun_path, socket_name, length);
    if (socket_name[0] == '@') address.sun_path[0] = '\0';  // the abstract namespace

    int descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0) return false;
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    ssize_t sent = sendto(descriptor, state, strlen(state), MSG_NOSIGNAL | MSG_DONTWAIT,
                          (const struct sockaddr *)&address, size);
    close(descriptor);
    return sent == (ssize_t)strlen(state);
}

bool notify_reloading(const char *socket_name)
{
    char state[64];
    snprintf(state, sizeof state, "RELOADING=1\nMONOTONIC_USEC=%llu",
             (unsigned long long)(clock_ns(clock_system()) / 1000u));
    return notify_send(socket_name, state);
}

uint32_t notify_watchdog_ms(const char *watchdog_usec, const char *watchdog_pid)
{
    if (watchdog_usec == NULL) return 0;
    if (watchdog_pid != NULL && strtoll(watchdog_pid, NULL, 10) != getpid()) return 0;
    errno = 0;
    unsigned long long usec = strtoull(watchdog_usec, NULL, 10);
    if (errno != 0 || usec == 0) return 0;
    unsigned long long period_ms = usec / 2000u;
    if (period_ms == 0) return 1;
    return period_ms < UINT32_MAX ? (uint32_t)period_ms : UINT32_MAX;
}
