// test_child.c - children start with what they were given, end when they must, and are seen to end.
// The program is its own child: main looks at its first argument.

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/channel.h"
#include "runtime/child.h"
#include "runtime/loop.h"
#include "runtime/signals.h"
#include "tests/test.h"

static void wait_for(int descriptor)
{
    struct pollfd entry = {.fd = descriptor, .events = POLLIN};
    assert_int_equal(poll(&entry, 1, 20000), 1);
}

static int count_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    if (directory == NULL) return -1;
    int count = 0;
    const struct dirent *entry = NULL;
    while ((entry = readdir(directory)) != NULL) count += entry->d_name[0] != '.';
    closedir(directory);
    return count - 1;  // without the directory's own
}

// --- What the children do

// Waits for the end of the parent, which its channel tells.
static int child_wait(void)
{
    struct pollfd entry = {.fd = CHILD_CHANNEL, .events = POLLIN};
    char packet[16];
    size_t size = 0;
    if (channel_send(CHILD_CHANNEL, (struct bytes){"up", 2}, NULL) != STATUS_OK) return 10;
    while (true) {
        if (poll(&entry, 1, 20000) != 1) return 11;
        enum status status = channel_receive(CHILD_CHANNEL, packet, sizeof packet, &size, NULL);
        if (status == STATUS_CANCELLED) return 0;
        if (status != STATUS_OK) return 12;
        if (memcmp(packet, "exit 7", 6) == 0) return 7;
    }
}

// Tells what it has: descriptors, signals, the content of the first given descriptor.
static int child_report(void)
{
    char text[256];
    char given[16] = "";
    sigset_t blocked;
    struct sigaction action;
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    sigaction(SIGPIPE, NULL, &action);
    if (read(CHILD_FIRST_DESCRIPTOR, given, sizeof given - 1) < 0) return 10;
    char nothing = 0;
    int length = snprintf(text, sizeof text, "%d %d %d %d %s", count_descriptors(),
                          sigismember(&blocked, SIGTERM), action.sa_handler == SIG_IGN,
                          (int)read(0, &nothing, 1), given);
    return channel_send(CHILD_CHANNEL, (struct bytes){text, (uint64_t)length}, NULL) == STATUS_OK
               ? 0
               : 11;
}

// Is a parent itself: starts a child that waits, tells its number, and waits to be killed.
static int child_parent(void)
{
    char program[] = "test";
    char word[] = "wait";
    char *argv[] = {program, word, NULL};
    struct child_options options = {
        .argv = argv, .descriptors = (const int[]){4}, .descriptor_count = 1};
    struct child *child = NULL;
    if (child_spawn(&child, &options, NULL) != STATUS_OK) return 10;
    return child_wait();
}

// --- The parent's side

static struct child *spawn_with(const char *word, const int *descriptors, uint32_t count)
{
    char program[] = "test";
    char *argument = strdup(word);
    char *argv[] = {program, argument, NULL};
    struct child_options options = {
        .argv = argv, .descriptors = descriptors, .descriptor_count = count};
    struct child *child = NULL;
    struct error error = {0};
    enum status status = child_spawn(&child, &options, &error);
    free(argument);
    if (status != STATUS_OK) fail_msg("%s", error.message);
    return child;
}

// Waits for the packet with which a child says that it is up.
static void wait_until_up(struct child *child)
{
    char packet[8];
    size_t size = 0;
    wait_for(child_channel(child));
    assert_int_equal(channel_receive(child_channel(child), packet, sizeof packet, &size, NULL),
                     STATUS_OK);
    assert_int_equal(size, 2);
}

static void an_exit_status_comes_back(void **state)
{
    (void)state;
    struct child_exit ended = {0};
    struct child *child = spawn_with("wait", NULL, 0);
    wait_until_up(child);
    assert_false(child_has_ended(child, &ended));
    assert_false(is_readable(child_descriptor(child)));
    assert_int_equal(channel_send(child_channel(child), (struct bytes){"exit 7", 6}, NULL),
                     STATUS_OK);
    wait_for(child_descriptor(child));
    assert_true(child_has_ended(child, &ended));
    assert_false(ended.is_signalled);
    assert_int_equal(ended.status, 7);
    assert_true(child_has_ended(child, &ended));  // again, from memory
    assert_int_equal(ended.status, 7);
    child_signal(child, SIGKILL);  // reaches nobody
    child_destroy(&child);
    assert_null(child);
    child_destroy(&child);
}

static void a_signal_comes_back(void **state)
{
    (void)state;
    struct child_exit ended = {0};
    struct child *child = spawn_with("wait", NULL, 0);
    wait_until_up(child);
    child_signal(child, SIGTERM);
    wait_for(child_descriptor(child));
    assert_true(child_has_ended(child, &ended));
    assert_true(ended.is_signalled);
    assert_int_equal(ended.status, SIGTERM);
    child_destroy(&child);
}

static void a_child_has_what_it_was_given_and_nothing_else(void **state)
{
    (void)state;
    int ends[2];
    int leaked = dup(0);  // without close-on-exec
    char text[256];
    size_t size = 0;
    sigset_t blocked;
    sigset_t before;
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], "given", 5), 5);
    sigfillset(&blocked);
    sigprocmask(SIG_SETMASK, &blocked, &before);
    signal(SIGPIPE, SIG_IGN);
    struct child *child = spawn_with("report", &ends[0], 1);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &before, NULL);
    wait_for(child_channel(child));
    assert_int_equal(channel_receive(child_channel(child), text, sizeof text - 1, &size, NULL),
                     STATUS_OK);
    text[size] = '\0';
    assert_string_equal(text, "5 0 0 0 given");  // 0, 1, 2, channel, pipe
    child_destroy(&child);
    close(leaked);
    close(ends[0]);
    close(ends[1]);
}

static void a_program_that_is_not_there_is_no_child(void **state)
{
    (void)state;
    char program[] = "nothing";
    char *argv[] = {program, NULL};
    struct child_options options = {.program = "/nonexistent/nothing", .argv = argv};
    struct child *child = NULL;
    struct error error = {0};
    int before = count_descriptors();
    assert_int_equal(child_spawn(&child, &options, &error), STATUS_NOT_FOUND);
    assert_string_equal(error.message, "cannot start nothing: No such file or directory");
    options.program = "/etc/passwd";
    assert_int_equal(child_spawn(&child, &options, &error), STATUS_PERMISSION_DENIED);
    assert_null(child);
    assert_int_equal(count_descriptors(), before);
}

static void children_end_when_their_parent_is_killed(void **state)
{
    (void)state;
    int ends[2];
    char byte = 0;
    assert_int_equal(pipe(ends), 0);
    // The grandchild holds the pipe's end; when both are dead, the pipe says so.
    struct child *child = spawn_with("parent", &ends[1], 1);
    close(ends[1]);
    wait_until_up(child);
    assert_false(is_readable(ends[0]));
    child_signal(child, SIGKILL);
    wait_for(ends[0]);
    assert_int_equal(read(ends[0], &byte, 1), 0);
    close(ends[0]);
    child_destroy(&child);
}

static void destroying_a_child_kills_and_reaps_it(void **state)
{
    (void)state;
    int before = count_descriptors();
    struct child *child = spawn_with("wait", NULL, 0);
    pid_t pid = child_pid(child);
    child_destroy(&child);
    assert_int_equal(kill(pid, 0), -1);
    assert_int_equal(errno, ESRCH);
    assert_int_equal(count_descriptors(), before);
}

enum { MANY = 20 };

struct family {
    struct loop *loop;                      // watches them
    struct child *children[MANY];           // all of them
    struct loop_descriptor *watches[MANY];  // on their descriptors
    int ended;                              // so far
};

static void on_child(void *arg)
{
    struct family *self = arg;
    for (int i = 0; i < MANY; i++) {
        struct child_exit ended = {0};
        if (self->children[i] == NULL || !child_has_ended(self->children[i], &ended)) continue;
        assert_true(ended.is_signalled);
        assert_int_equal(ended.status, SIGKILL);
        loop_descriptor_remove(&self->watches[i]);
        child_destroy(&self->children[i]);
        self->ended++;
    }
    if (self->ended == MANY) loop_stop(self->loop);
}

static void twenty_children_killed_at_once_are_all_noticed(void **state)
{
    (void)state;
    struct family family = {0};
    int before = count_descriptors();
    assert_int_equal(loop_create(&family.loop, clock_system(), NULL), STATUS_OK);
    for (int i = 0; i < MANY; i++) {
        family.children[i] = spawn_with("wait", NULL, 0);
        assert_int_equal(loop_add_descriptor(family.loop, child_descriptor(family.children[i]),
                                             on_child, &family, &family.watches[i], NULL),
                         STATUS_OK);
    }
    for (int i = 0; i < MANY; i++) wait_until_up(family.children[i]);
    for (int i = 0; i < MANY; i++) child_signal(family.children[i], SIGKILL);
    loop_run(family.loop);
    assert_int_equal(family.ended, MANY);
    loop_destroy(&family.loop);
    assert_int_equal(count_descriptors(), before);
}

// --- Channels

static void packets_carry_descriptors(void **state)
{
    (void)state;
    int ends[2], pipe_ends[2];
    char text[16];
    size_t size = 0;
    struct channel_descriptors passed = {0};
    assert_int_equal(channel_pair(ends, NULL), STATUS_OK);
    assert_int_equal(pipe(pipe_ends), 0);
    struct channel_descriptors sent = {.count = 2, .descriptors = {pipe_ends[0], pipe_ends[1]}};
    assert_int_equal(channel_receive(ends[1], text, sizeof text, &size, &passed),
                     STATUS_UNAVAILABLE);
    assert_int_equal(channel_send(ends[0], (struct bytes){"pipe", 4}, &sent), STATUS_OK);
    channel_close_descriptors(&sent);
    assert_int_equal(channel_receive(ends[1], text, sizeof text, &size, &passed), STATUS_OK);
    assert_int_equal(size, 4);
    assert_int_equal(passed.count, 2);
    assert_true(fcntl(passed.descriptors[0], F_GETFD) & FD_CLOEXEC);
    assert_int_equal(write(passed.descriptors[1], "x", 1), 1);
    assert_int_equal(read(passed.descriptors[0], text, 1), 1);
    channel_close_descriptors(&passed);

    uint32_t uid = 0, pid = 0;
    assert_int_equal(channel_peer(ends[0], &uid, &pid), STATUS_OK);
    assert_int_equal(uid, geteuid());
    assert_int_equal(pid, getpid());
    close(ends[0]);
    close(ends[1]);
}

static void packets_have_bounds(void **state)
{
    (void)state;
    int ends[2];
    size_t size = 0;
    char *large = calloc(1, CHANNEL_PACKET_BYTES_MAX + 1);
    assert_int_equal(channel_pair(ends, NULL), STATUS_OK);
    assert_int_equal(
        channel_send(ends[0], (struct bytes){large, CHANNEL_PACKET_BYTES_MAX + 1}, NULL),
        STATUS_INVALID_ARGUMENT);
    assert_int_equal(channel_send(ends[0], (struct bytes){large, 0}, NULL),
                     STATUS_INVALID_ARGUMENT);
    enum status status = STATUS_OK;
    int sent = 0;
    for (; sent < 1000 && status == STATUS_OK; sent++) {
        status = channel_send(ends[0], (struct bytes){large, CHANNEL_PACKET_BYTES_MAX}, NULL);
    }
    assert_int_equal(status, STATUS_RESOURCE_EXHAUSTED);
    assert_true(sent > 2);
    assert_int_equal(channel_receive(ends[1], large, CHANNEL_PACKET_BYTES_MAX, &size, NULL),
                     STATUS_OK);
    assert_int_equal(size, CHANNEL_PACKET_BYTES_MAX);
    free(large);
    close(ends[0]);
    close(ends[1]);
}

static void what_is_too_long_is_dropped_with_its_descriptors(void **state)
{
    (void)state;
    int ends[2];
    char text[4];
    size_t size = 0;
    int before = count_descriptors();
    struct channel_descriptors passed = {0};
    assert_int_equal(channel_pair(ends, NULL), STATUS_OK);
    struct channel_descriptors sent = {.count = 1, .descriptors = {ends[0]}};
    assert_int_equal(channel_send(ends[0], (struct bytes){"12345", 5}, &sent), STATUS_OK);
    assert_int_equal(channel_send(ends[0], (struct bytes){"1", 1}, &sent), STATUS_OK);
    assert_int_equal(channel_receive(ends[1], text, sizeof text, &size, &passed),
                     STATUS_INVALID_ARGUMENT);
    assert_int_equal(passed.count, 0);
    assert_int_equal(channel_receive(ends[1], text, sizeof text, &size, NULL), STATUS_OK);
    close(ends[0]);
    assert_int_equal(channel_receive(ends[1], text, sizeof text, &size, NULL), STATUS_CANCELLED);
    assert_int_equal(channel_send(ends[1], (struct bytes){"1", 1}, NULL), STATUS_UNAVAILABLE);
    close(ends[1]);
    assert_int_equal(count_descriptors(), before);
}

static void more_descriptors_than_fit_are_refused_and_closed(void **state)
{
    (void)state;
    int ends[2];
    char text[4];
    size_t size = 0;
    struct channel_descriptors passed = {0};
    enum { TOO_MANY = 12 };
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int) * TOO_MANY)];
    } control = {0};
    assert_int_equal(channel_pair(ends, NULL), STATUS_OK);
    int before = count_descriptors();
    struct iovec part = {.iov_base = text, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof(int) * TOO_MANY);
    for (int i = 0; i < TOO_MANY; i++) {
        memcpy(CMSG_DATA(&control.header) + (size_t)i * sizeof(int), &ends[0], sizeof(int));
    }
    assert_int_equal(sendmsg(ends[0], &message, 0), 1);
    assert_int_equal(channel_receive(ends[1], text, sizeof text, &size, &passed),
                     STATUS_INVALID_ARGUMENT);
    assert_int_equal(passed.count, 0);
    assert_int_equal(count_descriptors(), before);
    close(ends[0]);
    close(ends[1]);
}

// --- The restart policy

static void restarts_wait_twice_as_long_each_time(void **state)
{
    (void)state;
    struct clock clock = clock_manual(1000000000);
    struct restart restart = restart_policy(&clock, 10, 60000);
    const uint32_t expected[] = {100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000, 10000};
    uint32_t delay_ms = 0;
    for (size_t i = 0; i < 10; i++) {
        assert_true(restart_next(&restart, &delay_ms));
        assert_int_equal(delay_ms, expected[i]);
        clock_advance(&clock, 1000000);
    }
    assert_false(restart_next(&restart, &delay_ms));
}

static void five_restarts_of_a_burst_of_seven_are_allowed(void **state)
{
    (void)state;
    struct clock clock = clock_manual(0);
    struct restart restart = restart_policy(&clock, 5, 60000);
    uint32_t delay_ms = 0;
    int allowed = 0;
    for (int i = 0; i < 7; i++) allowed += restart_next(&restart, &delay_ms);
    assert_int_equal(allowed, 5);
    clock_advance(&clock, 3600000000000u);
    assert_false(restart_next(&restart, &delay_ms));  // given up is given up
    restart_reset(&restart);
    assert_true(restart_next(&restart, &delay_ms));
    assert_int_equal(delay_ms, RESTART_DELAY_MS_MIN);
}

static void rare_deaths_are_restarted_for_ever(void **state)
{
    (void)state;
    struct clock clock = clock_manual(0);
    struct restart restart = restart_policy(&clock, 5, 60000);
    uint32_t delay_ms = 0;
    for (int i = 0; i < 100; i++) {
        assert_true(restart_next(&restart, &delay_ms));
        assert_int_equal(delay_ms, RESTART_DELAY_MS_MIN);  // each lived long enough
        clock_advance(&clock, 12100000000u);
    }
    clock_advance(&clock, 60000000000u);
    assert_true(restart_next(&restart, &delay_ms));
    assert_int_equal(delay_ms, RESTART_DELAY_MS_MIN);
}

static void an_intensity_of_zero_restarts_nothing(void **state)
{
    (void)state;
    struct clock clock = clock_manual(0);
    struct restart restart = restart_policy(&clock, 0, 60000);
    uint32_t delay_ms = 77;
    assert_false(restart_next(&restart, &delay_ms));
    assert_int_equal(delay_ms, 77);
}

static void signals_arrive_at_a_descriptor(void **state)
{
    (void)state;
    const int wanted[] = {SIGUSR1, SIGHUP};
    int descriptor = -1;
    assert_int_equal(signals_open(&descriptor, wanted, 2, NULL), STATUS_OK);
    assert_int_equal(signals_take(descriptor), 0);
    raise(SIGHUP);
    assert_true(is_readable(descriptor));
    assert_int_equal(signals_take(descriptor), SIGHUP);
    assert_int_equal(signals_take(descriptor), 0);
    close(descriptor);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "wait") == 0) return child_wait();
    if (argc > 1 && strcmp(argv[1], "report") == 0) return child_report();
    if (argc > 1 && strcmp(argv[1], "parent") == 0) return child_parent();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_exit_status_comes_back),
        cmocka_unit_test(a_signal_comes_back),
        cmocka_unit_test(a_child_has_what_it_was_given_and_nothing_else),
        cmocka_unit_test(a_program_that_is_not_there_is_no_child),
        cmocka_unit_test(children_end_when_their_parent_is_killed),
        cmocka_unit_test(destroying_a_child_kills_and_reaps_it),
        cmocka_unit_test(twenty_children_killed_at_once_are_all_noticed),
        cmocka_unit_test(packets_carry_descriptors),
        cmocka_unit_test(packets_have_bounds),
        cmocka_unit_test(what_is_too_long_is_dropped_with_its_descriptors),
        cmocka_unit_test(more_descriptors_than_fit_are_refused_and_closed),
        cmocka_unit_test(restarts_wait_twice_as_long_each_time),
        cmocka_unit_test(five_restarts_of_a_burst_of_seven_are_allowed),
        cmocka_unit_test(rare_deaths_are_restarted_for_ever),
        cmocka_unit_test(an_intensity_of_zero_restarts_nothing),
        cmocka_unit_test(signals_arrive_at_a_descriptor),
    };
    return cmocka_run_group_tests_name("child", tests, NULL, NULL);
}
