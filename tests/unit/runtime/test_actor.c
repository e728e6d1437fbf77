// test_actor.c - created means ready; drained, then stopped; nothing stays behind.

#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "runtime/actor.h"
#include "tests/test.h"

static const struct log silent = {.actor = "test", .level = LOG_DEBUG, .descriptor = -1};

static struct actor_host host(void)
{
    return (struct actor_host){.clock = clock_system(), .log = &silent};
}

static int count_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    assert_non_null(directory);
    int count = 0;
    while (readdir(directory) != NULL) count++;
    closedir(directory);
    return count;
}

static bool wait_until_readable(int descriptor)
{
    struct pollfd entry = {.fd = descriptor, .events = POLLIN};
    return poll(&entry, 1, 10000) == 1;
}

// What the test and its actor know of each other; read by the test after the actor's thread is
// joined or has answered.
struct probe {
    struct actor_context context;  // copied by create
    pthread_t creator;             // thread of create
    pthread_t destroyer;           // thread of destroy
    int drains;                    // calls of drain
    int destroys;                  // calls of destroy
    bool ends_at_once;             // create stops its own loop
    bool drains_later;             // drain answers from a timer
    struct loop_timer *timer;      // for drains_later
    char thread_name[32];          // as the system knows it
    sigset_t blocked;              // signals
    enum log_level level;          // of its log
};

static enum status probe_create(void **state, const struct actor_context *context,
                                const void *arguments, struct error *error)
{
    (void)error;
    struct probe *probe = *(struct probe *const *)arguments;
    probe->context = *context;
    probe->creator = pthread_self();
    probe->level = context->log->level;
    pthread_getname_np(pthread_self(), probe->thread_name, sizeof probe->thread_name);
    pthread_sigmask(SIG_SETMASK, NULL, &probe->blocked);
    if (probe->ends_at_once) loop_stop(context->loop);
    *state = probe;
    return STATUS_OK;
}

static void probe_destroy(void *state)
{
    struct probe *probe = state;
    probe->destroyer = pthread_self();
    probe->destroys++;
}

static void on_drained(void *arg)
{
    struct probe *probe = arg;
    loop_timer_remove(&probe->timer);
    actor_drained(probe->context.actor);
    actor_drained(probe->context.actor);  // harmless
}

static void probe_drain(void *state)
{
    struct probe *probe = state;
    probe->drains++;
    if (!probe->drains_later) return;
    enum status status =
        loop_add_timer(probe->context.loop, 1, 0, on_drained, probe, &probe->timer, NULL);
    assert_int_equal(status, STATUS_OK);
}

static const struct actor_kind probe_kind = {"probe", probe_create, probe_destroy, probe_drain};

static void an_actor_is_ready_when_start_returns(void **state)
{
    (void)state;
    struct log_levels levels = {.level = LOG_INFO, .count = 1, .actors = {{"probe", LOG_WARNING}}};
    struct actor_host here = host();
    here.levels = &levels;
    struct probe probe = {0};
    struct probe *probe_p = &probe;
    struct actor *actor = NULL;
    assert_int_equal(actor_start(&actor, &probe_kind, &here, &probe_p, NULL), STATUS_OK);
    assert_ptr_equal(probe.context.actor, actor);
    assert_string_equal(probe.thread_name, "probe");
    assert_int_equal(probe.level, LOG_WARNING);
    assert_false(pthread_equal(probe.creator, pthread_self()));
    assert_true(sigismember(&probe.blocked, SIGTERM));
    assert_false(actor_is_drained(actor));
    assert_false(is_readable(actor_descriptor(actor)));
    sigset_t here_blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &here_blocked);
    assert_false(sigismember(&here_blocked, SIGTERM));

    actor_stop(&actor);
    assert_null(actor);
    assert_int_equal(probe.destroys, 1);
    assert_int_equal(probe.drains, 0);
    assert_true(pthread_equal(probe.creator, probe.destroyer));
    actor_stop(&actor);  // NULL is allowed
}

static enum status refuse(void **state, const struct actor_context *context, const void *arguments,
                          struct error *error)
{
    (void)state;
    (void)context;
    return error_set(error, STATUS_NOT_FOUND, "no %s here", (const char *)arguments);
}

static void start_returns_the_reason_of_a_failed_create(void **state)
{
    (void)state;
    static const struct actor_kind kind = {"refuser", refuse, NULL, NULL};
    struct actor_host here = host();
    struct actor *actor = NULL;
    struct error error = {0};
    int before = count_descriptors();
    assert_int_equal(actor_start(&actor, &kind, &here, "spoon", &error), STATUS_NOT_FOUND);
    assert_null(actor);
    assert_int_equal(error.status, STATUS_NOT_FOUND);
    assert_string_equal(error.message, "no spoon here");
    assert_int_equal(actor_start(&actor, &kind, &here, "spoon", NULL), STATUS_NOT_FOUND);
    assert_int_equal(count_descriptors(), before);
}

// The limit below which so many descriptors are free, whatever the parent has left open.
static rlim_t limit_with_room(int room)
{
    int limit = 0;
    while (is_open(limit) || room > 0) {
        if (!is_open(limit)) room -= 1;
        limit += 1;
    }
    return (rlim_t)limit;
}

static void start_says_when_descriptors_run_out(void **state)
{
    (void)state;
    struct actor_host here = host();
    struct probe probe = {0};
    struct probe *probe_p = &probe;
    for (int room = 0; room <= 12; room++) {
        struct actor *actor = NULL;
        struct error error = {0};
        int open_before = count_descriptors();
        rlim_t before = limit_descriptors(limit_with_room(room));
        enum status status = actor_start(&actor, &probe_kind, &here, &probe_p, &error);
        limit_descriptors(before);
        assert_int_equal(status, room < 7 ? STATUS_RESOURCE_EXHAUSTED : STATUS_OK);
        actor_stop(&actor);
        assert_int_equal(count_descriptors(), open_before);
    }
}

static void a_drain_is_answered_when_nothing_runs_any_more(void **state)
{
    (void)state;
    struct actor_host here = host();
    struct probe probe = {.drains_later = true};
    struct probe *probe_p = &probe;
    struct actor *actor = NULL;
    assert_int_equal(actor_start(&actor, &probe_kind, &here, &probe_p, NULL), STATUS_OK);
    actor_drain(actor);
    actor_drain(actor);  // once is enough
    assert_true(wait_until_readable(actor_descriptor(actor)));
    assert_true(actor_is_drained(actor));
    assert_false(actor_has_ended(actor));
    actor_stop(&actor);
    assert_int_equal(probe.drains, 1);
    assert_int_equal(probe.destroys, 1);
}

static void an_actor_without_a_drain_is_drained_at_once(void **state)
{
    (void)state;
    static const struct actor_kind kind = {"probe", probe_create, probe_destroy, NULL};
    struct actor_host here = host();
    struct probe probe = {0};
    struct probe *probe_p = &probe;
    struct actor *actor = NULL;
    assert_int_equal(actor_start(&actor, &kind, &here, &probe_p, NULL), STATUS_OK);
    actor_drain(actor);
    assert_true(wait_until_readable(actor_descriptor(actor)));
    assert_true(actor_is_drained(actor));
    actor_stop(&actor);
}

static void a_stop_does_not_wait_for_a_drain(void **state)
{
    (void)state;
    struct actor_host here = host();
    struct probe probe = {.drains_later = false};
    struct probe *probe_p = &probe;
    struct actor *actor = NULL;
    assert_int_equal(actor_start(&actor, &probe_kind, &here, &probe_p, NULL), STATUS_OK);
    actor_drain(actor);  // never answered
    actor_stop(&actor);
    assert_int_equal(probe.destroys, 1);
}

static void an_actor_that_ends_by_itself_is_noticed(void **state)
{
    (void)state;
    struct actor_host here = host();
    struct probe probe = {.ends_at_once = true};
    struct probe *probe_p = &probe;
    struct actor *actor = NULL;
    assert_int_equal(actor_start(&actor, &probe_kind, &here, &probe_p, NULL), STATUS_OK);
    assert_true(wait_until_readable(actor_descriptor(actor)));
    assert_true(actor_has_ended(actor));
    assert_true(actor_is_drained(actor));
    assert_int_equal(probe.destroys, 1);
    actor_drain(actor);  // nobody hears it
    actor_stop(&actor);
    assert_int_equal(probe.destroys, 1);
}

static void two_hundred_actors_leave_no_descriptor_behind(void **state)
{
    (void)state;
    enum { ACTORS = 200 };
    static struct probe probes[ACTORS];
    struct actor *actors[ACTORS] = {NULL};
    struct actor_host here = host();
    int before = count_descriptors();
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < ACTORS; i++) {
            struct probe *probe_p = &probes[i];
            *probe_p = (struct probe){.drains_later = true};
            assert_int_equal(actor_start(&actors[i], &probe_kind, &here, &probe_p, NULL),
                             STATUS_OK);
        }
        for (int i = 0; i < ACTORS; i++) actor_drain(actors[i]);
        for (int i = 0; i < ACTORS; i++) {
            assert_true(wait_until_readable(actor_descriptor(actors[i])));
            actor_stop(&actors[i]);
            assert_int_equal(probes[i].destroys, 1);
        }
        assert_int_equal(count_descriptors(), before);
    }
}

// An actor that echoes what it is sent.
struct echo {
    void *socket;               // PAIR
    struct loop_socket *watch;  // on it
};

static void on_echo(void *arg)
{
    struct echo *echo = arg;
    char text[16];
    int length = zmq_recv(echo->socket, text, sizeof text, ZMQ_DONTWAIT);
    if (length > 0) zmq_send(echo->socket, text, (size_t)length, ZMQ_DONTWAIT);
}

static enum status echo_create(void **state, const struct actor_context *context,
                               const void *arguments, struct error *error)
{
    struct echo *echo = calloc(1, sizeof *echo);
    echo->socket = zmq_socket(context->zmq, ZMQ_PAIR);
    if (zmq_bind(echo->socket, arguments) != 0) {
        zmq_close(echo->socket);
        free(echo);
        return error_set(error, STATUS_INTERNAL, "no %s", (const char *)arguments);
    }
    *state = echo;
    return loop_add_socket(context->loop, echo->socket, false, on_echo, echo, &echo->watch, error);
}

static void echo_destroy(void *state)
{
    struct echo *echo = state;
    loop_socket_remove(&echo->watch);
    zmq_close(echo->socket);
    free(echo);
}

static void an_actor_answers_messages_from_the_moment_it_is_created(void **state)
{
    (void)state;
    static const struct actor_kind kind = {"echo", echo_create, echo_destroy, NULL};
    struct actor_host here = host();
    here.zmq = zmq_ctx_new();
    struct actor *actor = NULL;
    assert_int_equal(actor_start(&actor, &kind, &here, "inproc://echo", NULL), STATUS_OK);
    void *socket = zmq_socket(here.zmq, ZMQ_PAIR);
    assert_int_equal(zmq_connect(socket, "inproc://echo"), 0);
    for (int i = 0; i < 1000; i++) {
        char answer[16];
        assert_int_equal(zmq_send(socket, &i, sizeof i, 0), sizeof i);
        assert_int_equal(zmq_recv(socket, answer, sizeof answer, 0), sizeof i);
        assert_memory_equal(answer, &i, sizeof i);
    }
    zmq_close(socket);
    actor_stop(&actor);
    zmq_ctx_term(here.zmq);
}

static void an_actor_ends_when_its_context_is_terminated(void **state)
{
    (void)state;
    static const struct actor_kind kind = {"echo", echo_create, echo_destroy, NULL};
    struct actor_host here = host();
    here.zmq = zmq_ctx_new();
    struct actor *actor = NULL;
    assert_int_equal(actor_start(&actor, &kind, &here, "inproc://echo", NULL), STATUS_OK);
    zmq_ctx_term(here.zmq);  // returns because the actor closes its socket
    assert_true(wait_until_readable(actor_descriptor(actor)));
    assert_true(actor_has_ended(actor));
    actor_stop(&actor);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_actor_is_ready_when_start_returns),
        cmocka_unit_test(start_returns_the_reason_of_a_failed_create),
        cmocka_unit_test(start_says_when_descriptors_run_out),
        cmocka_unit_test(a_drain_is_answered_when_nothing_runs_any_more),
        cmocka_unit_test(an_actor_without_a_drain_is_drained_at_once),
        cmocka_unit_test(a_stop_does_not_wait_for_a_drain),
        cmocka_unit_test(an_actor_that_ends_by_itself_is_noticed),
        cmocka_unit_test(two_hundred_actors_leave_no_descriptor_behind),
        cmocka_unit_test(an_actor_answers_messages_from_the_moment_it_is_created),
        cmocka_unit_test(an_actor_ends_when_its_context_is_terminated),
    };
    return cmocka_run_group_tests_name("actor", tests, NULL, NULL);
}
