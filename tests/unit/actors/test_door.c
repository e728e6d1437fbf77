// Who may come in, who has to wait, who is told when a guest goes.

#include "actors/door.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "messages/luna.pb.h"
#include "tests/test.h"

#define QUIET_MS 100u

static const struct log silent = {.actor = "test", .level = LOG_ERROR, .descriptor = -1};

struct house {
    struct actor_context context;
    struct loop_timer *quiet;  // ends a run
    struct door door;
    char directory[64];
    char clients_path[96], own_path[96];
    uint32_t clients_served, own_served, gone;
    uint64_t last_gone;         // number of the guest
    struct door_guest *paused;  // who asked for it
    uint64_t paused_number;     // of that guest
};

// "p": is paused. "x": is to go. "d": gets a descriptor with the reply.
static bool serve_client(void *state, struct door_guest *guest, struct bytes packet)
{
    struct house *self = state;
    const char what = *(const char *)packet.data;
    self->clients_served += 1;
    loop_timer_restart(self->quiet, QUIET_MS);
    if (what == 'x') return false;
    if (what == 'p') {
        door_pause(guest);
        self->paused = guest;
        self->paused_number = guest->number;
        return true;
    }
    const luna_LeaseReply reply = {.slot = 0};
    const int descriptor = what == 'd' ? STDERR_FILENO : -1;
    return door_reply(guest, luna_LeaseReply_fields, &reply, descriptor) == STATUS_OK;
}

static bool serve_own(void *state, struct door_guest *guest, struct bytes packet)
{
    struct house *self = state;
    (void)packet;
    assert_false(guest->is_client);
    self->own_served += 1;
    return true;
}

static void on_gone(void *state, struct door_guest *guest)
{
    struct house *self = state;
    self->gone += 1;
    loop_timer_restart(self->quiet, QUIET_MS);
    self->last_gone = guest->number;
}

static void on_quiet(void *state)
{
    loop_stop(((struct house *)state)->context.loop);
}

// Serves until for a while nobody has said anything or gone.
static void serve(struct house *self)
{
    loop_timer_restart(self->quiet, QUIET_MS);
    loop_run(self->context.loop);
}

static int set_up(void **state)
{
    struct house *self = calloc(1, sizeof *self);
    assert_non_null(self);
    self->context.log = &silent;
    assert_int_equal(loop_create(&self->context.loop, clock_system(), NULL), STATUS_OK);
    assert_int_equal(
        loop_add_timer(self->context.loop, QUIET_MS, 0, on_quiet, self, &self->quiet, NULL),
        STATUS_OK);
    snprintf(self->directory, sizeof self->directory, "%s/luna-door-XXXXXX", P_tmpdir);
    assert_non_null(mkdtemp(self->directory));
    snprintf(self->clients_path, sizeof self->clients_path, "%s/clients", self->directory);
    snprintf(self->own_path, sizeof self->own_path, "%s/own", self->directory);
    const struct door_actor actor = {.state = self,
                                     .serve_client = serve_client,
                                     .serve_own = serve_own,
                                     .gone = on_gone,
                                     .refused = "test.refused"};
    door_init(&self->door, &self->context, &actor);
    assert_int_equal(door_open(&self->door, self->clients_path, self->own_path, NULL), STATUS_OK);
    *state = self;
    return 0;
}

static int tear_down(void **state)
{
    struct house *self = *state;
    door_close(&self->door);
    assert_int_equal(access(self->clients_path, F_OK), -1);
    assert_int_equal(access(self->own_path, F_OK), -1);
    loop_timer_remove(&self->quiet);
    loop_destroy(&self->context.loop);
    assert_int_equal(rmdir(self->directory), 0);
    free(self);
    return 0;
}

static int come(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int guest = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_true(guest >= 0);
    assert_int_equal(connect(guest, (const struct sockaddr *)&address, sizeof address), 0);
    return guest;
}

static void say(int guest, const char *what)
{
    assert_int_equal(send(guest, what, strlen(what), MSG_NOSIGNAL), strlen(what));
}

// The size of the packet that waits, 0 for the end, -1 when nothing waits.
static ssize_t hear(int guest)
{
    char buffer[256];
    return recv(guest, buffer, sizeof buffer, MSG_DONTWAIT);
}

static void a_reply_of_defaults_is_a_packet_all_the_same(void **state)
{
    struct house *self = *state;
    int guest = come(self->clients_path);
    say(guest, "a");
    say(guest, "b");
    serve(self);
    assert_int_equal(self->clients_served, 2);
    assert_int_equal(hear(guest), 2);
    assert_int_equal(hear(guest), 2);
    close(guest);
    serve(self);
    assert_int_equal(self->gone, 1);
}

static void a_descriptor_comes_with_its_reply(void **state)
{
    struct house *self = *state;
    int guest = come(self->clients_path);
    say(guest, "d");
    serve(self);
    char buffer[64];
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec part = {.iov_base = buffer, .iov_len = sizeof buffer};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    assert_int_equal(recvmsg(guest, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC), 2);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    assert_non_null(header);
    assert_int_equal(header->cmsg_type, SCM_RIGHTS);
    int passed = -1;
    memcpy(&passed, CMSG_DATA(header), sizeof passed);
    close(passed);
    close(guest);
}

static void who_is_not_served_goes_and_his_place_is_anothers(void **state)
{
    struct house *self = *state;
    int guest = come(self->clients_path);
    say(guest, "x");
    say(guest, "a");  // not looked at any more
    serve(self);
    assert_int_equal(self->clients_served, 1);
    assert_int_equal(self->gone, 1);
    assert_null(door_find(&self->door, 0, self->last_gone));
    errno = 0;
    assert_true(hear(guest) <= 0);
    assert_int_not_equal(errno, EAGAIN);
    close(guest);
    int next = come(self->clients_path);
    serve(self);
    assert_non_null(door_find(&self->door, 0, self->last_gone + 1));
    assert_null(door_find(&self->door, 0, self->last_gone));
    close(next);
}

static void a_paused_guest_waits_and_others_do_not(void **state)
{
    struct house *self = *state;
    int waits = come(self->clients_path), other = come(self->clients_path);
    say(waits, "p");
    say(waits, "a");
    say(other, "a");
    serve(self);
    assert_int_equal(self->clients_served, 2);
    assert_int_equal(hear(waits), -1);
    assert_int_equal(hear(other), 2);
    struct door_guest *guest =
        door_find(&self->door, door_place(self->paused), self->paused_number);
    assert_ptr_equal(guest, self->paused);
    door_resume(guest);
    serve(self);
    assert_int_equal(hear(waits), 2);
    close(waits);
    close(other);
}

static void clients_leave_places_to_the_daemons_own(void **state)
{
    struct house *self = *state;
    int guests[DOOR_GUESTS_MAX];
    for (uint32_t i = 0; i < DOOR_GUESTS_MAX; i++) {
        guests[i] = come(self->clients_path);
        say(guests[i], "a");
    }
    serve(self);
    assert_int_equal(self->clients_served, DOOR_GUESTS_MAX - DOOR_OWN_KEPT);
    assert_int_equal(hear(guests[0]), 2);
    assert_true(hear(guests[DOOR_GUESTS_MAX - 1]) <= 0);
    int own = come(self->own_path);
    say(own, "a");
    serve(self);
    assert_int_equal(self->own_served, 1);
    for (uint32_t i = 0; i < DOOR_GUESTS_MAX; i++) close(guests[i]);
    close(own);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_reply_of_defaults_is_a_packet_all_the_same, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_descriptor_comes_with_its_reply, set_up, tear_down),
        cmocka_unit_test_setup_teardown(who_is_not_served_goes_and_his_place_is_anothers, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_paused_guest_waits_and_others_do_not, set_up, tear_down),
        cmocka_unit_test_setup_teardown(clients_leave_places_to_the_daemons_own, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
