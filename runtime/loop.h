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
struct message;

// Messages that a socket's callback should take at most before it returns.
#define LOOP_BATCH_MAX 64u

// Creates a loop that runs on the calling thread.
// Ownership: the caller owns *out.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    the owner's, as everything here.
enum status loop_create(struct loop **out, const struct clock *clock, struct error *error);

// Destroys the loop with everything registered on it, which nobody may touch afterwards. Sockets
// and descriptors stay their owners'. It must not run.
void loop_destroy(struct loop **self_p);

// Runs until loop_stop, or until the ZeroMQ context of one of its sockets is being terminated.
void loop_run(struct loop *self);

// Makes loop_run return after the current callback; called before loop_run, at once.
void loop_stop(struct loop *self);

// The clock and the event_base (for evhttp and the like).
const struct clock *loop_clock(const struct loop *self);
struct event_base *loop_base(struct loop *self);

// Calls on_readable whenever messages wait: it receives at most LOOP_BATCH_MAX of them without
// waiting. It may remove this socket and others. control sockets are served before others.
// Ownership: the loop owns *out until loop_socket_remove; the ZeroMQ socket stays the caller's, who
//            removes it here before closing it.
// Errors:    RESOURCE_EXHAUSTED.
enum status loop_add_socket(struct loop *self, void *zmq_socket, bool control,
                            void (*on_readable)(void *arg), void *arg, struct loop_socket **out,
                            struct error *error);
void loop_socket_remove(struct loop_socket **self_p);

// Called from the socket's own callback: it is not called again for rest_us, below a second.
// Messages wait where they are, and behind them whoever sends more: a receiver that rests slows
// its senders down without a word.
void loop_socket_rest(struct loop_socket *self, uint32_t rest_us);

// Schedules a re-check after zmq calls made outside the socket's own callback.
void loop_socket_touch(struct loop_socket *self);

// message_send on the socket, and the touch that belongs to it.
enum status loop_socket_send(struct loop_socket *self, struct message *message);

// Calls on_readable while the descriptor is readable (level-triggered). It may remove the
// descriptor, and does so before closing it.
// Errors:    RESOURCE_EXHAUSTED.
enum status loop_add_descriptor(struct loop *self, int descriptor, void (*on_readable)(void *arg),
                                void *arg, struct loop_descriptor **out, struct error *error);
void loop_descriptor_remove(struct loop_descriptor **self_p);

// Calls on_time after delay_ms, and every period_ms after that when period_ms is above 0: at the
// same distance whatever the callbacks take; periods that were missed altogether are left out. A
// timer may be removed or restarted from its own callback. The time is the machine's, whatever
// clock the loop was given: that one is for those who ask loop_clock().
// Errors:    RESOURCE_EXHAUSTED.
enum status loop_add_timer(struct loop *self, uint32_t delay_ms, uint32_t period_ms,
                           void (*on_time)(void *arg), void *arg, struct loop_timer **out,
                           struct error *error);
void loop_timer_restart(struct loop_timer *self, uint32_t delay_ms);
void loop_timer_remove(struct loop_timer **self_p);

#endif  // RUNTIME_LOOP_H
