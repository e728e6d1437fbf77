// loop.h - one libevent loop for one thread, with ZeroMQ sockets, descriptors, timers and signals.
//
// A ZeroMQ descriptor is edge-triggered behind one's back: it fires when the socket's command
// mailbox goes from empty to not empty, and any call on the socket may swallow that. So the loop
// never goes back to sleep unless the last thing done on a socket was to ask for its events and get
// none, or a re-check is scheduled. After a send or receive outside a socket's own callback, call
// loop_socket_touch(). Every callback gets a budget and then lets timers and other sockets run.

#ifndef RUNTIME_LOOP_H
#define RUNTIME_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/error.h"

struct loop;
struct loop_socket;
struct loop_descriptor;
struct loop_timer;
struct event_base;

// Messages that a socket's callback should take at most before it returns.
#define LOOP_BATCH_MAX 64u

// Creates a loop that runs on the calling thread.
// Ownership: the caller owns *out. Errors: RESOURCE_EXHAUSTED. Thread: the owner's, as everything
// here.
enum status loop_create(struct loop **out, const struct clock *clock, struct error *error);

// Destroys the loop with everything registered on it. Sockets and descriptors stay their owners'.
void loop_destroy(struct loop **self_p);

// Runs until loop_stop.
void loop_run(struct loop *self);

// Makes loop_run return after the current callback.
void loop_stop(struct loop *self);

// The clock and the event_base (for evhttp and the like).
const struct clock *loop_clock(const struct loop *self);
struct event_base *loop_base(struct loop *self);

// Calls on_readable whenever messages wait: it receives at most LOOP_BATCH_MAX of them without
// waiting. It may remove the socket. control sockets are served before others.
// Ownership: the loop owns *out until loop_socket_remove; the ZeroMQ socket stays the caller's,
// which
//            removes it here before closing it.
enum status loop_add_socket(struct loop *self, void *zmq_socket, bool control,
                            void (*on_readable)(void *arg), void *arg, struct loop_socket **out,
                            struct error *error);
void loop_socket_remove(struct loop_socket **self_p);

// Schedules a re-check after zmq calls made outside the socket's own callback.
void loop_socket_touch(struct loop_socket *self);

// Calls on_readable while the descriptor is readable (level-triggered).
enum status loop_add_descriptor(struct loop *self, int descriptor, void (*on_readable)(void *arg),
                                void *arg, struct loop_descriptor **out, struct error *error);
void loop_descriptor_remove(struct loop_descriptor **self_p);

// Calls on_time after delay_ms, and every period_ms after that when period_ms is above 0. A timer
// may be removed or restarted from its own callback. Millisecond precision.
enum status loop_add_timer(struct loop *self, uint32_t delay_ms, uint32_t period_ms,
                           void (*on_time)(void *arg), void *arg, struct loop_timer **out,
                           struct error *error);
void loop_timer_restart(struct loop_timer *self, uint32_t delay_ms);
void loop_timer_remove(struct loop_timer **self_p);

#endif  // RUNTIME_LOOP_H
