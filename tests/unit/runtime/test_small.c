// test_small.c - log lines, and what systemd is told.

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "runtime/log.h"
#include "runtime/notify.h"
#include "tests/test.h"

// --- Log

struct logged {
    int ends[2];      // of a pipe
    struct log log;   // to it
    char text[8192];  // what came
};

static struct logged open_log(enum log_level level)
{
    struct logged self = {.log = {.actor = "router", .level = level}};
    assert_int_equal(pipe2(self.ends, O_NONBLOCK), 0);
    self.log.descriptor = self.ends[1];
    return self;
}

// The text so far, without the times.
static const char *read_log(struct logged *self)
{
    ssize_t got = read(self->ends[0], self->text, sizeof self->text - 1);
    self->text[got > 0 ? got : 0] = '\0';
    return got > 25 ? self->text + 25 : self->text;
}

static void close_log(struct logged *self)
{
    close(self->ends[0]);
    close(self->ends[1]);
}

static void a_line_has_time_level_actor_event_and_values(void **state)
{
    (void)state;
    struct logged logged = open_log(LOG_INFO);
    log_event(&logged.log, LOG_INFO, "worker.up", "worker=%d device=%s", 3, "cpu");
    assert_string_equal(read_log(&logged), "info router worker.up worker=3 device=cpu\n");
    assert_int_equal(logged.text[10], 'T');
    assert_int_equal(logged.text[23], 'Z');
    log_event(&logged.log, LOG_ERROR, "end", "%s", "");
    assert_string_equal(read_log(&logged), "error router end\n");
    close_log(&logged);
}

static void unimportant_lines_are_not_written(void **state)
{
    (void)state;
    struct logged logged = open_log(LOG_WARNING);
    log_event(&logged.log, LOG_INFO, "x", "y");
    log_event(&logged.log, LOG_DEBUG, "x", "y");
    assert_string_equal(read_log(&logged), "");
    log_event(&logged.log, LOG_WARNING, "x", "y");
    assert_string_equal(read_log(&logged), "warning router x y\n");
    close_log(&logged);
    logged.log.descriptor = -1;
    log_event(&logged.log, LOG_ERROR, "x", "y");
}

static void nothing_that_is_logged_breaks_the_line(void **state)
{
    (void)state;
    struct logged logged = open_log(LOG_INFO);
    log_event(&logged.log, LOG_INFO, "x", "name=%s", "a\nb\x1b[31m\xff");
    assert_string_equal(read_log(&logged), "info router x name=a\\x0ab\\x1b[31m\\xff\n");
    char huge[5000];
    memset(huge, 'h', sizeof huge - 1);
    huge[sizeof huge - 1] = '\0';
    log_event(&logged.log, LOG_INFO, "x", "%s", huge);
    read_log(&logged);
    size_t length = strlen(logged.text);
    assert_true(length <= 2048);
    assert_string_equal(logged.text + length - 5, "h...\n");
    close_log(&logged);
}

static void levels_have_names_and_actors_may_have_their_own(void **state)
{
    (void)state;
    struct log_levels levels = {.level = LOG_INFO, .count = 1, .actors = {{"router", LOG_DEBUG}}};
    assert_int_equal(log_level_of(&levels, "router"), LOG_DEBUG);
    assert_int_equal(log_level_of(&levels, "route"), LOG_INFO);
    for (int i = LOG_ERROR; i <= LOG_DEBUG; i++) {
        enum log_level level = LOG_ERROR;
        assert_true(log_level_from_name(log_level_name((enum log_level)i), &level));
        assert_int_equal(level, i);
    }
    enum log_level level = LOG_DEBUG;
    assert_false(log_level_from_name("INFO", &level));
    assert_int_equal(level, LOG_DEBUG);
}

// --- Notify

// A socket as systemd's; its name is in name.
static int open_notified(const char *name, bool is_abstract)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    memcpy(address.sun_path, name, length);
    if (is_abstract) address.sun_path[0] = '\0';
    int descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    assert_int_equal(bind(descriptor, (struct sockaddr *)&address, size), 0);
    return descriptor;
}

static void systemd_is_told_by_path_and_by_abstract_name(void **state)
{
    (void)state;
    char path[64], name[64], text[128];
    snprintf(path, sizeof path, "%s/luna-notify-%ld", P_tmpdir, (long)getpid());
    snprintf(name, sizeof name, "@luna-notify-%ld", (long)getpid());
    int by_path = open_notified(path, false);
    int by_name = open_notified(name, true);
    assert_true(notify_send(path, "READY=1"));
    assert_int_equal(read(by_path, text, sizeof text), 7);
    assert_memory_equal(text, "READY=1", 7);
    assert_true(notify_reloading(name));
    ssize_t got = read(by_name, text, sizeof text - 1);
    assert_true(got > 27);
    text[got] = '\0';
    assert_memory_equal(text, "RELOADING=1\nMONOTONIC_USEC=", 27);
    assert_true(atoll(text + 27) > 0);
    close(by_path);
    close(by_name);
    unlink(path);
}

static void nobody_is_told_when_nobody_wants_to_know(void **state)
{
    (void)state;
    char longer[200];
    memset(longer, '/', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    assert_false(notify_send(NULL, "READY=1"));
    assert_false(notify_send("", "READY=1"));
    assert_false(notify_send("relative", "READY=1"));
    assert_false(notify_send("/nonexistent/notify", "READY=1"));
    assert_false(notify_send(longer, "READY=1"));
}

static void the_watchdog_is_fed_twice_in_its_time(void **state)
{
    (void)state;
    char own[16], other[16];
    snprintf(own, sizeof own, "%ld", (long)getpid());
    snprintf(other, sizeof other, "%ld", (long)getppid());
    assert_int_equal(notify_watchdog_ms("10000000", own), 5000);
    assert_int_equal(notify_watchdog_ms("10000000", NULL), 5000);
    assert_int_equal(notify_watchdog_ms("10000000", other), 0);
    assert_int_equal(notify_watchdog_ms(NULL, own), 0);
    assert_int_equal(notify_watchdog_ms("0", NULL), 0);
    assert_int_equal(notify_watchdog_ms("x", NULL), 0);
    assert_int_equal(notify_watchdog_ms("1", NULL), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_has_time_level_actor_event_and_values),
        cmocka_unit_test(unimportant_lines_are_not_written),
        cmocka_unit_test(nothing_that_is_logged_breaks_the_line),
        cmocka_unit_test(levels_have_names_and_actors_may_have_their_own),
        cmocka_unit_test(systemd_is_told_by_path_and_by_abstract_name),
        cmocka_unit_test(nobody_is_told_when_nobody_wants_to_know),
        cmocka_unit_test(the_watchdog_is_fed_twice_in_its_time),
    };
    return cmocka_run_group_tests_name("small", tests, NULL, NULL);
}
