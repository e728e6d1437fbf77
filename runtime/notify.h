// notify.h - tells systemd how the service is doing, when it wants to know.
//
// The protocol is one datagram of NAME=VALUE lines to the socket that NOTIFY_SOCKET names.

#ifndef RUNTIME_NOTIFY_H
#define RUNTIME_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

// Sends state, such as "READY=1", "STOPPING=1" or "WATCHDOG=1\nSTATUS=2 workers". socket_name is
// the value of NOTIFY_SOCKET; NULL: nobody wants to know. False when it did not get there, which is
// no reason to stop.
// Thread:    any.
bool notify_send(const char *socket_name, const char *state);

// Sends "RELOADING=1" with the time that systemd wants to see; "READY=1" ends it.
// Thread:    any.
bool notify_reloading(const char *socket_name);

// How often "WATCHDOG=1" is due, half of what WATCHDOG_USEC says; 0: never. watchdog_usec and
// watchdog_pid are the values of the two variables, or NULL.
// Thread:    any.
uint32_t notify_watchdog_ms(const char *watchdog_usec, const char *watchdog_pid);

#endif  // RUNTIME_NOTIFY_H
