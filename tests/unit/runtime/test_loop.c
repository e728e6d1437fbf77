// test_loop.c - nothing waits for ever and nobody starves; and four ways to get it wrong, which do.

#include <event2/event.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

#include "runtime/loop.h"
#include "runtime/message.h"
#include "tests/test.h"

enum { MESSAGES = 200000 };

// --- A thread that sends numbered messages.

struct producer {
    void *zmq;             // context
    const char *endpoint;  // to connect to
    int messages;          // to send; 0: until stopped
    atomic_bool stop;      // said by the test
    atomic_int sent;       // so far
    pthread_t thread;      // its own
};

static void *produce(void *arg)
{
    struct producer *self = arg;
    void *socket = zmq_socket(self->zmq, ZMQ_PUSH);
    int linger = -1;
    int timeout_ms = 20;
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(socket, ZMQ_SNDTIMEO, &timeout_ms, sizeof timeout_ms);
    zmq_connect(socket, self->endpoint);
    int number = 0;
    while (!atomic_load(&self->stop) && (self->messages == 0 || number < self->messages)) {
        if (zmq_send(socket, &number, sizeof number, 0) != sizeof number) continue;
        number++;
        atomic_store(&self->sent, number);
    }
    zmq_close(socket);
    return NULL;
}

static void start_producer(struct producer *self, void *zmq, const char *endpoint, int messages)
{
    *self = (struct producer){.zmq = zmq, .endpoint = endpoint, .messages = messages};
    assert_int_equal(pthread_create(&self->thread, NULL, produce, self), 0);
}

static void stop_producer(struct producer *self)
{
    atomic_store(&self->stop, true);
    pthread_join(self->thread, NULL);
}

// Waits until nothing more fits: on inproc the two ends' bounds, 1000 each, add up.
static void wait_until_stuck(const struct producer *self)
{
    while (atomic_load(&self->sent) < 2000) sched_yield();
}

// --- A consumer with a loop and a 10 ms timer.

struct consumer {
    void *zmq;                  // context
    void *socket;               // PULL
    struct loop *loop;          // it runs on
    struct loop_socket *watch;  // on socket
    struct loop_timer *timer;   // 10 ms
    struct loop_timer *limit;   // ends a run that would not end
    struct event *naive;        // of the wrong ways
    int received;               // messages
    int wanted;                 // stop there; 0: never
    int ticks;                  // of timer
    int ticks_wanted;           // stop there; 0: never
    int work_us;                // spent on each message
    uint64_t last_tick_ns;      // when timer fired last
    uint64_t longest_gap_ns;    // between ticks
    bool limit_reached;         // limit fired
};

static void burn(int microseconds)
{
    uint64_t until = clock_ns(clock_system()) + (uint64_t)microseconds * 1000u;
    while (clock_ns(clock_system()) < until) continue;
}

static bool receive_one(struct consumer *self)
{
    int number = 0;
    if (zmq_recv(self->socket, &number, sizeof number, ZMQ_DONTWAIT) < 0) return false;
    assert_int_equal(number, self->received);
    self->received++;
    if (self->work_us > 0) burn(self->work_us);
    if (self->received == self->wanted) loop_stop(self->loop);
    return true;
}

static void on_readable(void *arg)
{
    for (unsigned i = 0; i < LOOP_BATCH_MAX && receive_one(arg); i++) continue;
}

static void on_tick(void *arg)
{
    struct consumer *self = arg;
    uint64_t now_ns = clock_ns(clock_system());
    if (self->ticks > 0 && now_ns - self->last_tick_ns > self->longest_gap_ns) {
        self->longest_gap_ns = now_ns - self->last_tick_ns;
    }
    self->last_tick_ns = now_ns;
    self->ticks++;
    if (self->ticks == self->ticks_wanted) loop_stop(self->loop);
}

static void on_limit(void *arg)
{
    struct consumer *self = arg;
    self->limit_reached = true;
    loop_stop(self->loop);
}

static void set_up(struct consumer *self)
{
    *self = (struct consumer){.zmq = zmq_ctx_new()};
    self->socket = zmq_socket(self->zmq, ZMQ_PULL);
    int linger = 0;
    zmq_setsockopt(self->socket, ZMQ_LINGER, &linger, sizeof linger);
    assert_int_equal(zmq_bind(self->socket, "inproc://consumer"), 0);
    assert_int_equal(loop_create(&self->loop, clock_system(), NULL), STATUS_OK);
}

static void watch(struct consumer *self, uint32_t limit_ms)
{
    assert_int_equal(
        loop_add_socket(self->loop, self->socket, false, on_readable, self, &self->watch, NULL),
        STATUS_OK);
    assert_int_equal(loop_add_timer(self->loop, 10, 10, on_tick, self, &self->timer, NULL),
                     STATUS_OK);
    assert_int_equal(loop_add_timer(self->loop, limit_ms, 0, on_limit, self, &self->limit, NULL),
                     STATUS_OK);
}

static void tear_down(struct consumer *self)
{
    loop_destroy(&self->loop);
    assert_null(self->loop);
    zmq_close(self->socket);
    zmq_ctx_term(self->zmq);
}

// What this thread had of the processor.
static uint64_t thread_cpu_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void all_messages_arrive_while_the_timer_keeps_its_count(void **state)
{
    (void)state;
    struct consumer consumer;
    struct producer producer;
    set_up(&consumer);
    watch(&consumer, 60000);
    consumer.wanted = MESSAGES;
    consumer.work_us = 3;
    start_producer(&producer, consumer.zmq, "inproc://consumer", MESSAGES);
    uint64_t start_ns = clock_ns(clock_system());
    uint64_t start_worked_ns = thread_cpu_ns();
    loop_run(consumer.loop);
    uint64_t worked_periods = (thread_cpu_ns() - start_worked_ns) / 10000000u;
    uint64_t periods = (clock_ns(clock_system()) - start_ns) / 10000000u;
    stop_producer(&producer);

    assert_false(consumer.limit_reached);
    assert_int_equal(consumer.received, MESSAGES);
    // 600 ms of work at least. While others have the processor whole periods are lost, but most of
    // those in which the loop works are not.
    assert_true(periods >= 60);
    assert_in_range(consumer.ticks, worked_periods / 2, periods);
    tear_down(&consumer);
}

static void a_flood_without_end_lets_the_timer_run(void **state)
{
    (void)state;
    struct consumer consumer;
    struct producer producer;
    set_up(&consumer);
    watch(&consumer, 60000);
    consumer.ticks_wanted = 50;
    start_producer(&producer, consumer.zmq, "inproc://consumer", 0);
    loop_run(consumer.loop);
    stop_producer(&producer);
    assert_false(consumer.limit_reached);
    assert_int_equal(consumer.ticks, 50);
    assert_true(consumer.received > 1000);
    tear_down(&consumer);
}

// --- The four wrong ways. Each shows that the trap is real, so that nobody steps into it again.

static void wrong_one_per_event(evutil_socket_t descriptor, short what, void *arg)
{
    (void)descriptor;
    (void)what;
    receive_one(arg);
}

static void wrong_batch_without_a_second_look(evutil_socket_t descriptor, short what, void *arg)
{
    (void)descriptor;
    (void)what;
    on_readable(arg);
}

static void wrong_until_empty(evutil_socket_t descriptor, short what, void *arg)
{
    (void)descriptor;
    (void)what;
    struct consumer *self = arg;
    uint64_t end_ns = clock_ns(clock_system()) + 1000000000u;  // else the test would not end
    while (clock_ns(clock_system()) < end_ns && receive_one(arg)) continue;
    if (clock_ns(clock_system()) >= end_ns) loop_stop(self->loop);
}

static void wrong_activates_itself(evutil_socket_t descriptor, short what, void *arg)
{
    (void)descriptor;
    (void)what;
    struct consumer *self = arg;
    on_readable(arg);
    int events = 0;
    size_t size = sizeof events;
    zmq_getsockopt(self->socket, ZMQ_EVENTS, &events, &size);
    if (events & ZMQ_POLLIN) event_active(self->naive, EV_READ, 0);
    if (self->received >= 20000) loop_stop(self->loop);
}

// Runs a wrong way until it stops itself, or 300 ms.
static void run_wrong(struct consumer *self, event_callback_fn callback)
{
    int descriptor = -1;
    size_t size = sizeof descriptor;
    zmq_getsockopt(self->socket, ZMQ_FD, &descriptor, &size);
    self->naive =
        event_new(loop_base(self->loop), descriptor, EV_READ | EV_PERSIST, callback, self);
    event_add(self->naive, NULL);
    assert_int_equal(loop_add_timer(self->loop, 10, 10, on_tick, self, &self->timer, NULL),
                     STATUS_OK);
    assert_int_equal(loop_add_timer(self->loop, 300, 0, on_limit, self, &self->limit, NULL),
                     STATUS_OK);
    loop_run(self->loop);
    event_free(self->naive);
}

static void one_message_per_event_is_stuck_for_ever(void **state)
{
    (void)state;
    struct consumer consumer;
    struct producer producer;
    set_up(&consumer);
    start_producer(&producer, consumer.zmq, "inproc://consumer", MESSAGES);
    wait_until_stuck(&producer);
    run_wrong(&consumer, wrong_one_per_event);
    assert_true(consumer.limit_reached);
    assert_in_range(consumer.received, 1, 100);  // of the thousand that wait
    assert_true(atomic_load(&producer.sent) >= 2000);
    stop_producer(&producer);
    tear_down(&consumer);
}

static void a_batch_without_a_second_look_is_stuck_for_ever(void **state)
{
    (void)state;
    struct consumer consumer;
    struct producer producer;
    set_up(&consumer);
    start_producer(&producer, consumer.zmq, "inproc://consumer", MESSAGES);
    wait_until_stuck(&producer);
    run_wrong(&consumer, wrong_batch_without_a_second_look);
    assert_true(consumer.limit_reached);
    assert_in_range(consumer.received, 64, 960);
    assert_true(atomic_load(&producer.sent) >= 2000);
    stop_producer(&producer);
    tear_down(&consumer);
}

static void receiving_until_empty_starves_the_timer(void **state)
{
    (void)state;
    struct consumer consumer;
    struct producer producer;
    set_up(&consumer);
    consumer.work_us = 20;  // slower than the producer: never empty
    start_producer(&producer, consumer.zmq, "inproc://consumer", 0);
    wait_until_stuck(&producer);
    run_wrong(&consumer, wrong_until_empty);
    assert_true(consumer.ticks <= 50);  // of 100
    stop_producer(&producer);
    tear_down(&consumer);
}

static void activating_oneself_starves_the_timer(void **state)
{
    (void)state;
    struct consumer consumer;
    struct producer producer;
    set_up(&consumer);
    consumer.work_us = 20;
    start_producer(&producer, consumer.zmq, "inproc://consumer", 0);
    wait_until_stuck(&producer);
    run_wrong(&consumer, wrong_activates_itself);
    assert_true(consumer.received >= 20000);  // 400 ms
    assert_int_equal(consumer.ticks, 0);
    stop_producer(&producer);
    tear_down(&consumer);
}

// --- Removal, termination, touch.

static void on_readable_remove(void *arg)
{
    struct consumer *self = arg;
    assert_true(receive_one(self));
    loop_socket_remove(&self->watch);
    zmq_close(self->socket);
    self->socket = NULL;
}

static void a_callback_may_remove_and_close_its_own_socket(void **state)
{
    (void)state;
    struct consumer consumer;
    set_up(&consumer);
    void *push = zmq_socket(consumer.zmq, ZMQ_PUSH);
    zmq_connect(push, "inproc://consumer");
    for (int i = 0; i < 10; i++) zmq_send(push, &i, sizeof i, 0);
    assert_int_equal(loop_add_socket(consumer.loop, consumer.socket, false, on_readable_remove,
                                     &consumer, &consumer.watch, NULL),
                     STATUS_OK);
    consumer.ticks_wanted = 3;
    assert_int_equal(loop_add_timer(consumer.loop, 0, 1, on_tick, &consumer, &consumer.timer, NULL),
                     STATUS_OK);
    loop_run(consumer.loop);
    assert_null(consumer.watch);
    assert_int_equal(consumer.received, 1);
    int linger = 0;
    zmq_setsockopt(push, ZMQ_LINGER, &linger, sizeof linger);
    zmq_close(push);
    loop_destroy(&consumer.loop);
    zmq_ctx_term(consumer.zmq);
}

// Two sockets; whoever is called first removes the other.
struct rivals {
    struct loop *loop;               // both are on
    void *sockets[2];                // PULL
    struct loop_socket *watches[2];  // on them
    int calls;                       // of both callbacks
};

static void remove_rival(struct rivals *self, int other)
{
    self->calls++;
    int number = 0;
    zmq_recv(self->sockets[1 - other], &number, sizeof number, ZMQ_DONTWAIT);
    loop_socket_remove(&self->watches[other]);
    zmq_close(self->sockets[other]);
    self->sockets[other] = NULL;
    loop_stop(self->loop);
}

static void on_first(void *arg)
{
    remove_rival(arg, 1);
}

static void on_second(void *arg)
{
    remove_rival(arg, 0);
}

static void a_callback_may_remove_another_socket_that_waits_as_well(void **state)
{
    (void)state;
    void *zmq = zmq_ctx_new();
    void *push = zmq_socket(zmq, ZMQ_PUSH);
    const char *const endpoints[2] = {"inproc://first", "inproc://second"};
    struct rivals rivals = {0};
    assert_int_equal(loop_create(&rivals.loop, clock_system(), NULL), STATUS_OK);
    for (int i = 0; i < 2; i++) {
        rivals.sockets[i] = zmq_socket(zmq, ZMQ_PULL);
        zmq_bind(rivals.sockets[i], endpoints[i]);
        zmq_connect(push, endpoints[i]);
        assert_int_equal(loop_add_socket(rivals.loop, rivals.sockets[i], false,
                                         i == 0 ? on_first : on_second, &rivals, &rivals.watches[i],
                                         NULL),
                         STATUS_OK);
    }
    for (int i = 0; i < 2; i++) zmq_send(push, &i, sizeof i, 0);
    loop_run(rivals.loop);
    assert_int_equal(rivals.calls, 1);
    loop_destroy(&rivals.loop);
    for (int i = 0; i < 2; i++) {
        if (rivals.sockets[i] != NULL) zmq_close(rivals.sockets[i]);
    }
    zmq_close(push);
    zmq_ctx_term(zmq);
}

static void shut_context_down(void *arg)
{
    struct consumer *self = arg;
    zmq_ctx_shutdown(self->zmq);
}

static void the_loop_ends_when_its_context_is_terminated(void **state)
{
    (void)state;
    struct consumer consumer;
    struct loop_timer *timer = NULL;
    set_up(&consumer);
    watch(&consumer, 10000);
    assert_int_equal(
        loop_add_timer(consumer.loop, 5, 0, shut_context_down, &consumer, &timer, NULL), STATUS_OK);
    loop_run(consumer.loop);
    assert_false(consumer.limit_reached);
    tear_down(&consumer);
}

static void messages_that_came_before_the_loop_knew_the_socket_are_seen(void **state)
{
    (void)state;
    struct consumer consumer;
    set_up(&consumer);
    void *push = zmq_socket(consumer.zmq, ZMQ_PUSH);
    zmq_connect(push, "inproc://consumer");
    int number = 0;
    zmq_send(push, &number, sizeof number, 0);
    int events = 0;
    size_t size = sizeof events;
    zmq_getsockopt(consumer.socket, ZMQ_EVENTS, &events, &size);  // takes the wake-up away
    assert_true(events & ZMQ_POLLIN);
    consumer.wanted = 1;
    watch(&consumer, 10000);
    loop_run(consumer.loop);
    assert_false(consumer.limit_reached);
    assert_int_equal(consumer.received, 1);
    zmq_close(push);
    tear_down(&consumer);
}

enum { ROUNDS = 30 };

// A PAIR socket that sends from a timer, outside its own callback.
struct talker {
    struct loop *loop;          // it runs on
    void *socket;               // PAIR
    void *peer;                 // the other end
    struct loop_socket *watch;  // on socket
    struct loop_timer *timer;   // sends
    int received;               // on socket
    int sent;                   // from the timer
    bool late;                  // a message had not come when the next one was sent
};

static void on_talker(void *arg)
{
    struct talker *self = arg;
    char text[8];
    while (zmq_recv(self->socket, text, sizeof text, ZMQ_DONTWAIT) >= 0) self->received++;
}

static void on_talker_time(void *arg)
{
    struct talker *self = arg;
    if (self->received != self->sent) self->late = true;
    if (self->sent == ROUNDS) {
        loop_stop(self->loop);
        return;
    }
    // The peer's message arrives; the send that follows takes its wake-up away. libzmq looks for
    // commands on a send only a million cycles after the last time, hence the timer's period.
    zmq_send(self->peer, "x", 1, 0);
    self->sent++;
    struct message message;
    message_init(&message);
    assert_int_equal(message_append(&message, (struct bytes){"y", 1}), STATUS_OK);
    assert_int_equal(loop_socket_send(self->watch, &message), STATUS_OK);
    char text[8];
    zmq_recv(self->peer, text, sizeof text, 0);
}

static void a_send_outside_the_callback_loses_no_wake_up(void **state)
{
    (void)state;
    struct talker talker = {0};
    void *zmq = zmq_ctx_new();
    talker.socket = zmq_socket(zmq, ZMQ_PAIR);
    talker.peer = zmq_socket(zmq, ZMQ_PAIR);
    zmq_bind(talker.socket, "inproc://talker");
    zmq_connect(talker.peer, "inproc://talker");
    assert_int_equal(loop_create(&talker.loop, clock_system(), NULL), STATUS_OK);
    assert_int_equal(
        loop_add_socket(talker.loop, talker.socket, true, on_talker, &talker, &talker.watch, NULL),
        STATUS_OK);
    assert_int_equal(
        loop_add_timer(talker.loop, 10, 10, on_talker_time, &talker, &talker.timer, NULL),
        STATUS_OK);
    loop_run(talker.loop);
    assert_int_equal(talker.received, ROUNDS);
    assert_false(talker.late);
    loop_destroy(&talker.loop);
    zmq_close(talker.socket);
    zmq_close(talker.peer);
    zmq_ctx_term(zmq);
}

// --- Control before data.

struct lanes {
    struct loop *loop;  // both are on
    void *control;      // PULL
    void *data;         // PULL
    char order[8];      // who was called
    size_t calls;       // of both
};

static void note(struct lanes *self, void *socket, char who)
{
    char text[8];
    if (zmq_recv(socket, text, sizeof text, ZMQ_DONTWAIT) < 0) return;
    self->order[self->calls++] = who;
    if (self->calls == 2) loop_stop(self->loop);
}

static void on_control(void *arg)
{
    struct lanes *self = arg;
    note(self, self->control, 'c');
}

static void on_data(void *arg)
{
    struct lanes *self = arg;
    note(self, self->data, 'd');
}

static void *pull_from(void *zmq, void *push, const char *endpoint)
{
    void *socket = zmq_socket(zmq, ZMQ_PULL);
    zmq_bind(socket, endpoint);
    zmq_connect(push, endpoint);
    return socket;
}

static void on_send_both(void *arg)
{
    void **push = arg;
    zmq_send(push[0], "d", 1, 0);
    zmq_send(push[1], "c", 1, 0);
}

static void control_is_served_before_data_that_came_first(void **state)
{
    (void)state;
    void *zmq = zmq_ctx_new();
    void *push[2] = {zmq_socket(zmq, ZMQ_PUSH), zmq_socket(zmq, ZMQ_PUSH)};
    struct lanes lanes = {0};
    struct loop_socket *watch = NULL;
    struct loop_timer *timer = NULL;
    lanes.data = pull_from(zmq, push[0], "inproc://data");
    lanes.control = pull_from(zmq, push[1], "inproc://control");
    assert_int_equal(loop_create(&lanes.loop, clock_system(), NULL), STATUS_OK);
    assert_int_equal(loop_add_socket(lanes.loop, lanes.data, false, on_data, &lanes, &watch, NULL),
                     STATUS_OK);
    assert_int_equal(
        loop_add_socket(lanes.loop, lanes.control, true, on_control, &lanes, &watch, NULL),
        STATUS_OK);
    assert_int_equal(loop_add_timer(lanes.loop, 5, 0, on_send_both, push, &timer, NULL), STATUS_OK);
    loop_run(lanes.loop);
    assert_string_equal(lanes.order, "cd");
    loop_destroy(&lanes.loop);
    zmq_close(lanes.data);
    zmq_close(lanes.control);
    zmq_close(push[0]);
    zmq_close(push[1]);
    zmq_ctx_term(zmq);
}

struct flooded {
    struct loop *loop;     // both are on
    void *control;         // PULL
    void *control_push;    // refills it
    void *data;            // PULL
    int control_received;  // messages
    int data_received;     // messages
    void *data_push;       // fills it
    bool data_is_sent;     // it was
};

static void send_text(void *socket, const char *text)
{
    struct message message;
    message_init(&message);
    assert_int_equal(message_append(&message, (struct bytes){text, strlen(text)}), STATUS_OK);
    assert_int_equal(message_send(&message, socket), STATUS_OK);
}

// Takes a batch and puts as many back: control is never empty.
static void on_flooded_control(void *arg)
{
    struct flooded *self = arg;
    char text[8];
    for (unsigned i = 0; i < LOOP_BATCH_MAX; i++) {
        if (zmq_recv(self->control, text, sizeof text, ZMQ_DONTWAIT) < 0) break;
        send_text(self->control_push, "c");
        self->control_received++;
    }
    if (!self->data_is_sent && self->control_received > 2000) {
        for (int i = 0; i < 100; i++) zmq_send(self->data_push, "d", 1, 0);
        self->data_is_sent = true;
    }
    if (self->control_received >= 2000000) loop_stop(self->loop);
}

static void on_flooded_data(void *arg)
{
    struct flooded *self = arg;
    char text[8];
    while (zmq_recv(self->data, text, sizeof text, ZMQ_DONTWAIT) >= 0) self->data_received++;
    if (self->data_received == 100) loop_stop(self->loop);
}

static void a_flood_of_control_lets_data_through(void **state)
{
    (void)state;
    struct flooded flooded = {0};
    struct loop_socket *watch_control = NULL;
    struct loop_socket *watch_data = NULL;
    void *zmq = zmq_ctx_new();
    void *push = zmq_socket(zmq, ZMQ_PUSH);
    flooded.control_push = zmq_socket(zmq, ZMQ_PUSH);
    flooded.data = pull_from(zmq, push, "inproc://data");
    flooded.control = pull_from(zmq, flooded.control_push, "inproc://control");
    assert_int_equal(loop_create(&flooded.loop, clock_system(), NULL), STATUS_OK);
    assert_int_equal(loop_add_socket(flooded.loop, flooded.control, true, on_flooded_control,
                                     &flooded, &watch_control, NULL),
                     STATUS_OK);
    assert_int_equal(loop_add_socket(flooded.loop, flooded.data, false, on_flooded_data, &flooded,
                                     &watch_data, NULL),
                     STATUS_OK);
    for (int i = 0; i < 500; i++) zmq_send(flooded.control_push, "c", 1, 0);
    flooded.data_push = push;
    loop_run(flooded.loop);
    assert_int_equal(flooded.data_received, 100);
    loop_destroy(&flooded.loop);
    int linger = 0;
    zmq_setsockopt(flooded.control_push, ZMQ_LINGER, &linger, sizeof linger);
    zmq_close(flooded.control_push);
    zmq_close(push);
    zmq_close(flooded.control);
    zmq_close(flooded.data);
    zmq_ctx_term(zmq);
}

// --- A socket that rests.

enum { REST_US = 20000, REST_BATCH = 3 };

struct rester {
    struct consumer consumer;  // what it receives
    uint64_t ended_ns;         // the last batch
    int batches;               // so far
    bool too_early;            // called during a rest
};

static void on_rester(void *arg)
{
    struct rester *self = arg;
    uint64_t now_ns = clock_ns(clock_system());
    if (self->batches > 0 && now_ns - self->ended_ns < REST_US * 1000u) self->too_early = true;
    for (int i = 0; i < REST_BATCH; i++) {
        if (!receive_one(&self->consumer)) return;
    }
    self->batches += 1;
    self->ended_ns = clock_ns(clock_system());
    loop_socket_rest(self->consumer.watch, REST_US);
    loop_socket_touch(self->consumer.watch);  // as a send would: ends no rest
}

static void a_socket_that_rests_is_left_alone_and_forgets_nothing(void **state)
{
    (void)state;
    struct rester self = {.batches = 0};
    struct consumer *consumer = &self.consumer;
    set_up(consumer);
    consumer->wanted = 5 * REST_BATCH;
    assert_int_equal(loop_add_socket(consumer->loop, consumer->socket, false, on_rester, &self,
                                     &consumer->watch, NULL),
                     STATUS_OK);
    assert_int_equal(
        loop_add_timer(consumer->loop, 60000, 0, on_limit, consumer, &consumer->limit, NULL),
        STATUS_OK);
    struct producer producer;  // of a flood: there is always more
    start_producer(&producer, consumer->zmq, "inproc://consumer", 0);
    wait_until_stuck(&producer);
    uint64_t cpu_ns = thread_cpu_ns();
    loop_run(consumer->loop);
    cpu_ns = thread_cpu_ns() - cpu_ns;
    stop_producer(&producer);
    assert_false(consumer->limit_reached);
    assert_int_equal(self.batches, 5);
    assert_false(self.too_early);
    assert_true(cpu_ns < 4 * REST_US * 1000u / 2);  // it slept
    tear_down(consumer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_messages_arrive_while_the_timer_keeps_its_count),
        cmocka_unit_test(a_flood_without_end_lets_the_timer_run),
        cmocka_unit_test(one_message_per_event_is_stuck_for_ever),
        cmocka_unit_test(a_batch_without_a_second_look_is_stuck_for_ever),
        cmocka_unit_test(receiving_until_empty_starves_the_timer),
        cmocka_unit_test(activating_oneself_starves_the_timer),
        cmocka_unit_test(a_callback_may_remove_and_close_its_own_socket),
        cmocka_unit_test(a_callback_may_remove_another_socket_that_waits_as_well),
        cmocka_unit_test(the_loop_ends_when_its_context_is_terminated),
        cmocka_unit_test(messages_that_came_before_the_loop_knew_the_socket_are_seen),
        cmocka_unit_test(a_send_outside_the_callback_loses_no_wake_up),
        cmocka_unit_test(control_is_served_before_data_that_came_first),
        cmocka_unit_test(a_flood_of_control_lets_data_through),
        cmocka_unit_test(a_socket_that_rests_is_left_alone_and_forgets_nothing),
    };
    return cmocka_run_group_tests_name("loop", tests, NULL, NULL);
}
