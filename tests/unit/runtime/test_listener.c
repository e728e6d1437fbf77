// test_listener.c - addresses that are ours alone, and sockets as the table of edges wants them.

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include "runtime/listener.h"
#include "runtime/message.h"
#include "runtime/socket.h"
#include "tests/test.h"

struct folder {
    char path[64];       // of the folder
    char endpoint[128];  // ipc://PATH/a.sock
};

static int make_folder(void **state)
{
    struct folder *self = calloc(1, sizeof *self);
    snprintf(self->path, sizeof self->path, "%s/luna-listen-XXXXXX", P_tmpdir);
    *state = self;
    if (mkdtemp(self->path) == NULL) return -1;
    snprintf(self->endpoint, sizeof self->endpoint, "ipc://%s/a.sock", self->path);
    return 0;
}

static int remove_folder(void **state)
{
    struct folder *self = *state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", self->path);
    int failed = system(command);
    free(self);
    return failed;
}

static void port_zero_becomes_the_port_that_was_found(void **state)
{
    (void)state;
    struct listener first = {.descriptor = -1, .lock = -1};
    struct listener second = {.descriptor = -1, .lock = -1};
    struct error error = {0};
    assert_int_equal(listener_open(&first, "tcp://127.0.0.1:0", &error), STATUS_OK);
    assert_memory_equal(first.endpoint, "tcp://127.0.0.1:", 16);
    assert_string_not_equal(first.endpoint, "tcp://127.0.0.1:0");
    assert_true(fcntl(first.descriptor, F_GETFD) & FD_CLOEXEC);
    assert_true(fcntl(first.descriptor, F_GETFL) & O_NONBLOCK);
    int reuse = 0;
    socklen_t size = sizeof reuse;
    assert_int_equal(getsockopt(first.descriptor, SOL_SOCKET, SO_REUSEADDR, &reuse, &size), 0);
    assert_true(reuse);

    assert_int_equal(listener_open(&second, first.endpoint, &error), STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(error.message, first.endpoint));
    assert_non_null(strstr(error.message, "Address already in use"));
    assert_int_equal(second.descriptor, -1);
    char endpoint[SOCKET_ENDPOINT_BYTES];
    memcpy(endpoint, first.endpoint, sizeof endpoint);
    listener_close(&first);
    assert_int_equal(listener_open(&second, endpoint, &error), STATUS_OK);
    listener_close(&second);
    listener_close(&second);
}

static void what_is_no_address_is_refused(void **state)
{
    (void)state;
    struct listener listener = {.descriptor = -1, .lock = -1};
    const char *const wrong[] = {"udp://127.0.0.1:1", "tcp://127.0.0.1", "tcp://:1", "tcp://a:",
                                 "ipc://relative",    "ipc://",          "",         "tcp://1.2:x"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(listener_open(&listener, wrong[i], NULL), STATUS_INVALID_ARGUMENT);
    }
    char path[200] = "ipc:///";
    memset(path + 7, 'x', 120);
    assert_int_equal(listener_open(&listener, path, NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(listener_open(&listener, "ipc:///nonexistent/a.sock", NULL),
                     STATUS_FAILED_PRECONDITION);
}

static void an_ipc_socket_is_for_its_user_only_and_goes_when_it_is_closed(void **state)
{
    const struct folder *folder = *state;
    struct listener listener = {.descriptor = -1, .lock = -1};
    struct stat found;
    umask(0);
    assert_int_equal(listener_open(&listener, folder->endpoint, NULL), STATUS_OK);
    umask(022);
    assert_int_equal(stat(folder->endpoint + 6, &found), 0);
    assert_true(S_ISSOCK(found.st_mode));
    assert_int_equal(found.st_mode & 0777, 0600);
    listener_close(&listener);
    assert_int_equal(rmdir(folder->path), 0);  // nothing is left in it
    assert_int_equal(mkdir(folder->path, 0700), 0);
}

static void a_living_daemons_socket_is_never_taken(void **state)
{
    const struct folder *folder = *state;
    struct listener first = {.descriptor = -1, .lock = -1};
    struct listener second = {.descriptor = -1, .lock = -1};
    struct error error = {0};
    char expected[300];
    assert_int_equal(listener_open(&first, folder->endpoint, NULL), STATUS_OK);
    assert_int_equal(listener_open(&second, folder->endpoint, &error), STATUS_FAILED_PRECONDITION);
    snprintf(expected, sizeof expected, "another luna (pid %ld) listens on %s", (long)getpid(),
             folder->endpoint);
    assert_string_equal(error.message, expected);
    assert_int_equal(access(folder->endpoint + 6, F_OK), 0);
    listener_close(&first);
    assert_int_equal(listener_open(&second, folder->endpoint, &error), STATUS_OK);
    listener_close(&second);
}

static void a_dead_daemons_socket_is_replaced(void **state)
{
    const struct folder *folder = *state;
    struct listener listener = {.descriptor = -1, .lock = -1};
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) _exit(listener_open(&listener, folder->endpoint, NULL) == STATUS_OK ? 0 : 1);
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(access(folder->endpoint + 6, F_OK), 0);
    assert_int_equal(listener_open(&listener, folder->endpoint, NULL), STATUS_OK);
    listener_close(&listener);
}

static void a_file_in_the_way_is_not_removed(void **state)
{
    const struct folder *folder = *state;
    struct listener listener = {.descriptor = -1, .lock = -1};
    struct error error = {0};
    fclose(fopen(folder->endpoint + 6, "w"));
    assert_int_equal(listener_open(&listener, folder->endpoint, &error),
                     STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(error.message, "exists and is no socket"));
    assert_int_equal(access(folder->endpoint + 6, F_OK), 0);
}

static void a_runtime_directory_that_others_could_change_is_refused(void **state)
{
    const struct folder *folder = *state;
    char path[128];
    struct stat found;
    struct error error = {0};
    snprintf(path, sizeof path, "%s/run", folder->path);
    assert_int_equal(runtime_directory_create(path, NULL), STATUS_OK);
    assert_int_equal(stat(path, &found), 0);
    assert_int_equal(found.st_mode & 0777, 0700);
    assert_int_equal(runtime_directory_create(path, NULL), STATUS_OK);
    assert_int_equal(chmod(path, 0777), 0);
    assert_int_equal(runtime_directory_create(path, &error), STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(error.message, "has mode 777"));
    snprintf(path, sizeof path, "%s/link", folder->path);
    assert_int_equal(symlink(folder->path, path), 0);
    assert_int_equal(runtime_directory_create(path, NULL), STATUS_FAILED_PRECONDITION);
    assert_int_equal(runtime_directory_create("/nonexistent/run", NULL),
                     STATUS_FAILED_PRECONDITION);
    if (geteuid() == 0) {
        snprintf(path, sizeof path, "%s/run", folder->path);
        assert_int_equal(chmod(path, 0700), 0);
        assert_int_equal(chown(path, 12345, 0), 0);
        assert_int_equal(runtime_directory_create(path, &error), STATUS_FAILED_PRECONDITION);
        assert_non_null(strstr(error.message, "belongs to uid 12345"));
    }
}

static void private_directories_of_dead_daemons_are_removed(void **state)
{
    const struct folder *folder = *state;
    char stale[128], own[128], living[128];
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        char path[128];
        struct listener listener;
        if (private_directory_create(path, sizeof path, folder->path, NULL) != STATUS_OK) _exit(1);
        strcat(path, "/data.sock");
        char endpoint[140];
        snprintf(endpoint, sizeof endpoint, "ipc://%s", path);
        _exit(listener_open(&listener, endpoint, NULL) == STATUS_OK ? 0 : 2);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    snprintf(stale, sizeof stale, "%s/private-%ld/data.sock.lock", folder->path, (long)pid);
    assert_int_equal(unlink(stale), 0);
    snprintf(stale, sizeof stale, "%s/private-%ld", folder->path, (long)pid);
    snprintf(living, sizeof living, "%s/private-1", folder->path);
    assert_int_equal(mkdir(living, 0700), 0);
    assert_int_equal(access(stale, F_OK), 0);

    assert_int_equal(private_directory_create(own, sizeof own, folder->path, NULL), STATUS_OK);
    assert_int_equal(access(stale, F_OK), -1);
    assert_int_equal(access(living, F_OK), 0);
    assert_int_equal(access(own, F_OK), 0);
    char file[192];
    snprintf(file, sizeof file, "%s/models", own);
    int descriptor = open(file, O_WRONLY | O_CREAT, 0600);
    assert_true(descriptor >= 0);
    close(descriptor);
    private_directory_remove(own);
    assert_int_equal(access(own, F_OK), -1);
    private_directory_remove(own);

    char longer[110];
    memset(longer, 'x', sizeof longer);
    longer[0] = '/';
    longer[sizeof longer - 1] = '\0';
    assert_int_equal(private_directory_create(own, sizeof own, longer, NULL),
                     STATUS_INVALID_ARGUMENT);
}

// --- Sockets

static int option(void *socket, int name)
{
    int value = -1;
    size_t size = sizeof value;
    assert_int_equal(zmq_getsockopt(socket, name, &value, &size), 0);
    return value;
}

static void every_end_of_the_table_opens_with_its_bounds(void **state)
{
    (void)state;
    void *zmq = NULL;
    assert_int_equal(socket_context_create(&zmq, 0, NULL), STATUS_OK);
    for (int i = 0; i < EDGE_COUNT; i++) {
        const struct edge_end *end = edge_end((enum edge)i);
        void *socket = NULL;
        assert_int_equal(socket_open(&socket, zmq, (enum edge)i, NULL), STATUS_OK);
        assert_int_equal(option(socket, ZMQ_TYPE), end->type);
        assert_int_equal(option(socket, ZMQ_SNDHWM), end->messages_max);
        assert_int_equal(option(socket, ZMQ_RCVHWM), end->messages_max);
        assert_true(end->messages_max > 0);
        assert_int_equal(option(socket, ZMQ_LINGER), end->linger_ms);
        char domain[32] = "";
        size_t size = sizeof domain;
        assert_int_equal(zmq_getsockopt(socket, ZMQ_ZAP_DOMAIN, domain, &size), 0);
        assert_string_equal(domain, end->zap_domain != NULL ? end->zap_domain : "");
        int64_t frame_bytes_max = 0;
        size = sizeof frame_bytes_max;
        assert_int_equal(zmq_getsockopt(socket, ZMQ_MAXMSGSIZE, &frame_bytes_max, &size), 0);
        assert_int_equal(frame_bytes_max,
                         end->frame_bytes_max > 0 ? (int64_t)end->frame_bytes_max : -1);
        socket_close(&socket);
        assert_null(socket);
    }
    socket_context_destroy(&zmq);
    assert_null(zmq);
}

static void whoever_connects_from_outside_is_asked_for(void **state)
{
    (void)state;
    const enum edge outside[] = {EDGE_CLIENTS,        EDGE_PUBLISH, EDGE_WORKER_DATA,
                                 EDGE_WORKER_CONTROL, EDGE_SCALER,  EDGE_REGISTRY};
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++) {
        assert_non_null(edge_end(outside[i])->zap_domain);
        assert_true(edge_end(outside[i])->binds);
    }
}

// Lets or does not let connections in, until the context ends.
struct doorman {
    void *zap;         // REP
    const char *code;  // of every answer
    pthread_t thread;  // its own
};

static void *guard_door(void *arg)
{
    struct doorman *self = arg;
    struct message request;
    message_init(&request);
    zmq_pollitem_t item = {.socket = self->zap, .events = ZMQ_POLLIN};
    while (zmq_poll(&item, 1, -1) >= 0) {
        if (message_receive(&request, self->zap) != STATUS_OK) break;
        struct bytes id = message_frame(&request, 1);
        zmq_send(self->zap, "1.0", 3, ZMQ_SNDMORE);
        zmq_send(self->zap, id.data, id.size, ZMQ_SNDMORE);
        zmq_send(self->zap, self->code, 3, ZMQ_SNDMORE);
        zmq_send(self->zap, "text", 4, ZMQ_SNDMORE);
        zmq_send(self->zap, "somebody", 8, ZMQ_SNDMORE);
        zmq_send(self->zap, "", 0, 0);
        message_clear(&request);
    }
    socket_close(&self->zap);
    return NULL;
}

// What a client that sends one message to an adopted listener brings about.
struct visit {
    bool arrived;   // the message did, within the time
    char user[16];  // as auth named it
};

static struct visit visit(const char *endpoint, const char *code)
{
    struct listener listener = {.descriptor = -1, .lock = -1};
    struct doorman doorman = {.code = code};
    struct visit result = {0};
    void *zmq = NULL;
    void *router = NULL;
    assert_int_equal(listener_open(&listener, endpoint, NULL), STATUS_OK);
    assert_int_equal(socket_context_create(&zmq, 0, NULL), STATUS_OK);
    if (code != NULL) {
        assert_int_equal(socket_open(&doorman.zap, zmq, EDGE_ZAP, NULL), STATUS_OK);
        assert_int_equal(socket_bind(doorman.zap, "inproc://zeromq.zap.01", NULL), STATUS_OK);
        assert_int_equal(pthread_create(&doorman.thread, NULL, guard_door, &doorman), 0);
    }
    assert_int_equal(socket_open(&router, zmq, EDGE_CLIENTS, NULL), STATUS_OK);
    assert_int_equal(socket_adopt(router, dup(listener.descriptor), listener.endpoint, NULL),
                     STATUS_OK);
    void *client = zmq_socket(zmq, ZMQ_DEALER);
    int linger = 0;
    zmq_setsockopt(client, ZMQ_LINGER, &linger, sizeof linger);
    assert_int_equal(socket_connect(client, listener.endpoint, NULL), STATUS_OK);
    assert_int_equal(zmq_send(client, "hello", 5, 0), 5);
    zmq_pollitem_t item = {.socket = router, .events = ZMQ_POLLIN};
    bool may_arrive = code != NULL && strcmp(code, "200") == 0;
    if (zmq_poll(&item, 1, may_arrive ? 10000 : 300) == 1) {
        struct message message;
        message_init(&message);
        assert_int_equal(message_receive(&message, router), STATUS_OK);
        assert_int_equal(message.count, 2);
        result.arrived = true;
        snprintf(result.user, sizeof result.user, "%s", message_property(&message, "User-Id"));
        message_clear(&message);
    }
    socket_close(&client);
    socket_close(&router);
    zmq_ctx_shutdown(zmq);
    if (code != NULL) pthread_join(doorman.thread, NULL);
    socket_context_destroy(&zmq);
    listener_close(&listener);
    return result;
}

static void an_adopted_listener_lets_in_whom_auth_accepts(void **state)
{
    const struct folder *folder = *state;
    struct visit tcp = visit("tcp://127.0.0.1:0", "200");
    struct visit ipc = visit(folder->endpoint, "200");
    assert_true(tcp.arrived);
    assert_true(ipc.arrived);
    assert_string_equal(tcp.user, "somebody");
    assert_string_equal(ipc.user, "somebody");
}

static void nobody_gets_in_whom_auth_refuses_or_while_there_is_no_auth(void **state)
{
    const struct folder *folder = *state;
    assert_false(visit("tcp://127.0.0.1:0", "400").arrived);
    assert_false(visit("tcp://127.0.0.1:0", NULL).arrived);
    assert_false(visit(folder->endpoint, NULL).arrived);
}

static void wrong_endpoints_are_told(void **state)
{
    (void)state;
    void *zmq = NULL;
    void *socket = NULL;
    void *other = NULL;
    struct error error = {0};
    char endpoint[64];
    assert_int_equal(socket_context_create(&zmq, 100, NULL), STATUS_OK);
    assert_int_equal(socket_open(&socket, zmq, EDGE_ROUTER_CORE, NULL), STATUS_OK);
    assert_int_equal(socket_open(&other, zmq, EDGE_ROUTER_CORE, NULL), STATUS_OK);
    assert_int_equal(socket_bind(socket, "inproc://x", NULL), STATUS_OK);
    assert_int_equal(socket_bind(other, "inproc://x", &error), STATUS_FAILED_PRECONDITION);
    assert_string_equal(error.message, "cannot bind inproc://x: Address already in use");
    assert_int_equal(socket_connect(other, "nonsense", &error), STATUS_INVALID_ARGUMENT);
    assert_int_equal(socket_connect(other, "inproc://x", &error), STATUS_OK);
    socket_ipc_endpoint(endpoint, sizeof endpoint, "/run/luna/private-1", "data.sock");
    assert_string_equal(endpoint, "ipc:///run/luna/private-1/data.sock");
    socket_close(&socket);
    socket_close(&other);
    socket_context_destroy(&zmq);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(port_zero_becomes_the_port_that_was_found),
        cmocka_unit_test(what_is_no_address_is_refused),
        cmocka_unit_test_setup_teardown(
            an_ipc_socket_is_for_its_user_only_and_goes_when_it_is_closed, make_folder,
            remove_folder),
        cmocka_unit_test_setup_teardown(a_living_daemons_socket_is_never_taken, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(a_dead_daemons_socket_is_replaced, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(a_file_in_the_way_is_not_removed, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(a_runtime_directory_that_others_could_change_is_refused,
                                        make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(private_directories_of_dead_daemons_are_removed,
                                        make_folder, remove_folder),
        cmocka_unit_test(every_end_of_the_table_opens_with_its_bounds),
        cmocka_unit_test(whoever_connects_from_outside_is_asked_for),
        cmocka_unit_test_setup_teardown(an_adopted_listener_lets_in_whom_auth_accepts, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(nobody_gets_in_whom_auth_refuses_or_while_there_is_no_auth,
                                        make_folder, remove_folder),
        cmocka_unit_test(wrong_endpoints_are_told),
    };
    return cmocka_run_group_tests_name("listener", tests, NULL, NULL);
}
