// loop.c - a libevent loop that does not lose ZeroMQ's wake-ups; loop.h holds the contract.
//
// A socket has two events:
//
//     ready   its descriptor, level-triggered. It says only that commands arrived.
//     again   a timer of zero length: "ask once more, after one pass through epoll".
//
// Both end in socket_check, the one place that asks for ZMQ_EVENTS. When the answer is "nothing",
// the mailbox is empty and passive and the descriptor is sure to fire for the next change. In every
// other case `again` is scheduled before the loop sleeps. It is a timer and not event_active(),
// because libevent goes on with activated events for ever without a look at epoll or the timers.
//
// Priorities: 0 for control sockets' descriptors and timers, 1 for everything else, the re-checks
// of control sockets included. So a control message overtakes waiting data, and a flood of them
// does not: what is left after the first budget queues up with the rest.
//
// A callback may remove anything. What it removes is gone from libevent at once; only the socket
// whose callback is on the stack is freed later, by socket_check.

#include "runtime/loop.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/queue.h>
#include <unistd.h>
#include <zmq.h>

#include "runtime/message.h"

enum priority { PRIORITY_URGENT, PRIORITY_NORMAL, PRIORITY_COUNT };

struct loop_socket {
    LIST_ENTRY(loop_socket) link;    // in loop->sockets
    struct loop *loop;               // whose it is
    void *socket;                    // the caller's
    struct event *ready;             // fires when commands arrived
    struct event *again;             // fires after one pass through epoll
    void (*on_readable)(void *arg);  // the caller's
    void *arg;                       // its argument
    uint32_t rest_us;                // asked for by the last callback; over when `again` fires
    bool is_calling;                 // its callback is on the stack
    bool is_removed;                 // by its own callback; socket_check frees it
};

struct loop_descriptor {
    LIST_ENTRY(loop_descriptor) link;  // in loop->descriptors
    struct event *ready;               // fires while readable
    void (*on_readable)(void *arg);    // the caller's
    void *arg;                         // its argument
};

struct loop_timer {
    LIST_ENTRY(loop_timer) link;  // in loop->timers
    struct event *event;          // fires once; started again for every period
    uint64_t due_us;              // when it fires next, by the machine's clock
    uint32_t period_ms;           // 0: once
    void (*on_time)(void *arg);   // the caller's
    void *arg;                    // its argument
};

struct loop {
    struct event_base *base;                   // libevent's
    const struct clock *clock;                 // for loop_clock only
    LIST_HEAD(, loop_socket) sockets;          // that are registered
    LIST_HEAD(, loop_descriptor) descriptors;  // that are registered
    LIST_HEAD(, loop_timer) timers;            // that are registered
    bool is_running;                           // loop_run is on the stack
    bool is_stopping;                          // loop_stop was called
};

// True when as many descriptors can be had as libevent opens for one base (epoll, a timer, a pair
// for signals). It ends the process when it gets the first and not the last, so that is asked
// before.
static bool descriptors_suffice(void)
{
    int probes[5];
    const int count = sizeof probes / sizeof probes[0];
    bool suffice = true;
    for (int i = 0; i < count; i++) {
        probes[i] = eventfd(0, EFD_CLOEXEC);
        if (probes[i] < 0) suffice = false;
    }
    for (int i = 0; i < count; i++) {
        if (probes[i] >= 0) close(probes[i]);
    }
    return suffice;
}

enum status loop_create(struct loop **out, const struct clock *clock, struct error *error)
{
    assert(out != NULL);
    assert(clock != NULL);
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    struct event_config *config = event_config_new();
    struct loop *self = calloc(1, sizeof *self);
    if (config == NULL || self == NULL || !descriptors_suffice()) goto done;

    // The default timer is coarse (4 ms late). One thread: no locks. libevent's cached time is that
    // of before the callbacks: after a long one, timers would start early and fire late.
    event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER);
    event_config_set_flag(config, EVENT_BASE_FLAG_NO_CACHE_TIME);
    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
    event_config_set_flag(config, EVENT_BASE_FLAG_IGNORE_ENV);
    self->base = event_base_new_with_config(config);
    if (self->base == NULL) goto done;
    if (event_base_priority_init(self->base, PRIORITY_COUNT) != 0) goto done;
    self->clock = clock;

    status = STATUS_OK;
    *out = self;
    self = NULL;

done:
    loop_destroy(&self);
    if (config != NULL) event_config_free(config);
    if (status != STATUS_OK) error_set(error, status, "no descriptors or memory for an event loop");
    return status;
}

void loop_destroy(struct loop **self_p)
{
    assert(self_p != NULL);
    struct loop *self = *self_p;
    if (self == NULL) return;

    assert(!self->is_running);
    struct loop_socket *socket = NULL;
    while ((socket = LIST_FIRST(&self->sockets)) != NULL) loop_socket_remove(&socket);
    struct loop_descriptor *descriptor = NULL;
    while ((descriptor = LIST_FIRST(&self->descriptors)) != NULL) {
        loop_descriptor_remove(&descriptor);
    }
    struct loop_timer *timer = NULL;
    while ((timer = LIST_FIRST(&self->timers)) != NULL) loop_timer_remove(&timer);
    if (self->base != NULL) event_base_free(self->base);
    free(self);
    *self_p = NULL;
}

void loop_run(struct loop *self)
{
    assert(self != NULL);
    assert(!self->is_running);
    self->is_running = true;
    if (!self->is_stopping) {
        int failed = event_base_loop(self->base, EVLOOP_NO_EXIT_ON_EMPTY);
        assert(failed == 0);
    }
    self->is_stopping = false;
    self->is_running = false;
}

void loop_stop(struct loop *self)
{
    assert(self != NULL);
    self->is_stopping = true;
    event_base_loopbreak(self->base);
}

const struct clock *loop_clock(const struct loop *self)
{
    assert(self != NULL);
    return self->clock;
}

struct event_base *loop_base(struct loop *self)
{
    assert(self != NULL);
    return self->base;
}

// Makes an event with a priority; NULL when memory ran out.
static struct event *new_event(struct loop *self, int descriptor, short what,
                               enum priority priority, event_callback_fn callback, void *arg)
{
    struct event *event = event_new(self->base, descriptor, what, callback, arg);
    if (event == NULL) return NULL;
    int failed = event_priority_set(event, (int)priority);
    assert(failed == 0);
    return event;
}

static enum status exhausted(struct error *error)
{
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for an event");
}

// --- Sockets

static void socket_free(struct loop_socket *self)
{
    assert(!self->is_calling);
    free(self);
}

// Calls the owner; false when it removed the socket, which is gone then.
static bool socket_call(struct loop_socket *self)
{
    assert(!self->is_calling);
    self->is_calling = true;
    self->on_readable(self->arg);
    self->is_calling = false;
    if (!self->is_removed) return true;
    socket_free(self);
    return false;
}

static void look_again(struct loop_socket *self, uint32_t after_us)
{
    const struct timeval after = {.tv_usec = (suseconds_t)after_us};
    int failed = event_add(self->again, &after);
    assert(failed == 0);  // the heap has had its place since the socket was registered
}

void loop_socket_rest(struct loop_socket *self, uint32_t rest_us)
{
    assert(self != NULL);
    assert(self->is_calling);
    assert(rest_us < 1000000);
    self->rest_us = rest_us;
}

void loop_socket_touch(struct loop_socket *self)
{
    assert(self != NULL);
    assert(!self->is_removed);
    if (!event_pending(self->again, EV_TIMEOUT, NULL)) look_again(self, 0);
}

// One callback, then the others: behind a socket on which a client floods the answers of workers
// would wait for as many callbacks as it gets in a row. During a rest, too, the socket is asked for
// its events, or its descriptor would stay readable.
static void socket_check(evutil_socket_t descriptor, short what, void *arg)
{
    (void)descriptor;
    (void)what;
    struct loop_socket *self = arg;
    int events = 0;
    size_t size = sizeof events;
    if (zmq_getsockopt(self->socket, ZMQ_EVENTS, &events, &size) == 0) {
        if (self->rest_us > 0 && event_pending(self->again, EV_TIMEOUT, NULL)) return;
        self->rest_us = 0;
        if ((events & ZMQ_POLLIN) == 0) return;  // and the descriptor is armed
        if (!socket_call(self)) return;
        if (self->rest_us > 0) {
            look_again(self, self->rest_us);
            return;
        }
    } else if (errno != EINTR) {
        assert(errno == ETERM);  // ENOTSOCK: closed without loop_socket_remove
        event_del(self->ready);
        loop_stop(self->loop);
        return;
    }
    loop_socket_touch(self);
}

enum status loop_add_socket(struct loop *self, void *zmq_socket, bool control,
                            void (*on_readable)(void *arg), void *arg, struct loop_socket **out,
                            struct error *error)
{
    assert(self != NULL);
    assert(zmq_socket != NULL);
    assert(on_readable != NULL);
    assert(out != NULL);

    int descriptor = -1;
    size_t size = sizeof descriptor;
    if (zmq_getsockopt(zmq_socket, ZMQ_FD, &descriptor, &size) != 0) {
        return error_set(error, STATUS_INTERNAL, "socket has no descriptor: %s",
                         zmq_strerror(errno));
    }
    struct loop_socket *added = calloc(1, sizeof *added);
    if (added == NULL) return exhausted(error);
    added->loop = self;
    added->socket = zmq_socket;
    added->on_readable = on_readable;
    added->arg = arg;
    LIST_INSERT_HEAD(&self->sockets, added, link);
    const struct timeval at_once = {0, 0};
    added->ready = new_event(self, descriptor, EV_READ | EV_PERSIST,
                             control ? PRIORITY_URGENT : PRIORITY_NORMAL, socket_check, added);
    added->again = new_event(self, -1, 0, PRIORITY_NORMAL, socket_check, added);
    if (added->ready == NULL || added->again == NULL || event_add(added->ready, NULL) != 0 ||
        event_add(added->again, &at_once) != 0) {
        loop_socket_remove(&added);
        return exhausted(error);
    }
    *out = added;
    return STATUS_OK;
}

void loop_socket_remove(struct loop_socket **self_p)
{
    assert(self_p != NULL);
    struct loop_socket *self = *self_p;
    if (self == NULL) return;

    assert(!self->is_removed);
    if (self->ready != NULL) event_free(self->ready);
    if (self->again != NULL) event_free(self->again);
    LIST_REMOVE(self, link);
    self->is_removed = true;
    if (!self->is_calling) socket_free(self);
    *self_p = NULL;
}

enum status loop_socket_send(struct loop_socket *self, struct message *message)
{
    assert(self != NULL);
    assert(message != NULL);
    enum status status = message_send(message, self->socket);
    loop_socket_touch(self);
    return status;
}

// --- Descriptors

static void descriptor_check(evutil_socket_t descriptor, short what, void *arg)
{
    (void)descriptor;
    (void)what;
    const struct loop_descriptor *self = arg;
    self->on_readable(self->arg);  // may have freed self
}

enum status loop_add_descriptor(struct loop *self, int descriptor, void (*on_readable)(void *arg),
                                void *arg, struct loop_descriptor **out, struct error *error)
{
    assert(self != NULL);
    assert(descriptor >= 0);
    assert(on_readable != NULL);
    assert(out != NULL);

    struct loop_descriptor *added = calloc(1, sizeof *added);
    if (added == NULL) return exhausted(error);
    added->on_readable = on_readable;
    added->arg = arg;
    LIST_INSERT_HEAD(&self->descriptors, added, link);
    added->ready =
        new_event(self, descriptor, EV_READ | EV_PERSIST, PRIORITY_NORMAL, descriptor_check, added);
    if (added->ready == NULL || event_add(added->ready, NULL) != 0) {
        loop_descriptor_remove(&added);
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "cannot watch descriptor %d",
                         descriptor);
    }
    *out = added;
    return STATUS_OK;
}

void loop_descriptor_remove(struct loop_descriptor **self_p)
{
    assert(self_p != NULL);
    struct loop_descriptor *self = *self_p;
    if (self == NULL) return;

    if (self->ready != NULL) event_free(self->ready);
    LIST_REMOVE(self, link);
    free(self);
    *self_p = NULL;
}

// --- Timers

static uint64_t now_us(void)
{
    return clock_ns(clock_system()) / 1000u;
}

// Starts the event so that it fires at due_us.
static void timer_start(struct loop_timer *self)
{
    uint64_t now = now_us();
    uint64_t wait_us = self->due_us > now ? self->due_us - now : 0;
    const struct timeval wait = {.tv_sec = (time_t)(wait_us / 1000000u),
                                 .tv_usec = (suseconds_t)(wait_us % 1000000u)};
    int failed = event_add(self->event, &wait);
    assert(failed == 0);  // the heap has had its place since the timer was made
}

static void timer_check(evutil_socket_t descriptor, short what, void *arg)
{
    (void)descriptor;
    (void)what;
    struct loop_timer *self = arg;
    if (self->period_ms > 0) {
        uint64_t period_us = (uint64_t)self->period_ms * 1000u;
        uint64_t now = now_us();
        self->due_us += period_us;
        if (self->due_us <= now) self->due_us += (now - self->due_us) / period_us * period_us;
        if (self->due_us <= now) self->due_us += period_us;
        timer_start(self);
    }
    self->on_time(self->arg);  // may have freed self
}

enum status loop_add_timer(struct loop *self, uint32_t delay_ms, uint32_t period_ms,
                           void (*on_time)(void *arg), void *arg, struct loop_timer **out,
                           struct error *error)
{
    assert(self != NULL);
    assert(on_time != NULL);
    assert(out != NULL);

    struct loop_timer *added = calloc(1, sizeof *added);
    if (added == NULL) return exhausted(error);
    added->period_ms = period_ms;
    added->on_time = on_time;
    added->arg = arg;
    LIST_INSERT_HEAD(&self->timers, added, link);
    added->event = new_event(self, -1, 0, PRIORITY_URGENT, timer_check, added);
    const struct timeval later = {.tv_sec = 3600};
    if (added->event == NULL || event_add(added->event, &later) != 0) {
        loop_timer_remove(&added);
        return exhausted(error);
    }
    loop_timer_restart(added, delay_ms);
    *out = added;
    return STATUS_OK;
}

void loop_timer_restart(struct loop_timer *self, uint32_t delay_ms)
{
    assert(self != NULL);
    assert(self->event != NULL);
    self->due_us = now_us() + (uint64_t)delay_ms * 1000u;
    timer_start(self);
}

void loop_timer_remove(struct loop_timer **self_p)
{
    assert(self_p != NULL);
    struct loop_timer *self = *self_p;
    if (self == NULL) return;

    if (self->event != NULL) event_free(self->event);
    LIST_REMOVE(self, link);
    free(self);
    *self_p = NULL;
}
