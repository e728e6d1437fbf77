// What the lease manager promises of device memory, with the test in the place of clients, an
// executor and the router.

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "actors/packet.h"
#include "actors/post.h"
#include "actors/topology.h"
#include "messages/codec.h"
#include "messages/letter.h"
#include "runtime/actor.h"
#include "runtime/channel.h"
#include "runtime/socket.h"
#include "tests/test.h"

#define WAIT_MS 20000
#define UNIT_BYTES (UINT64_C(2) << 20)
#define CARD "GPU-1"

struct fixture {
    char folder[64];        // of the sockets
    char path[96];          // lease.sock
    struct config *config;  // defaults
    struct clock clock;     // of the actor
    void *zmq;              // context
    void *router;           // PAIR
    void *events;           // PULL
    struct actor *leases;   // runs
    int executor;           // its connection, introduced
    int client;             // another
};

static int connect_to(const struct fixture *self, const char *name)
{
    int channel = -1;
    assert_int_equal(packet_connect(&channel, self->folder, name), STATUS_OK);
    return channel;
}

// ---- the client's side

static struct bytes packet_of(const void *data, uint64_t size)
{
    return (struct bytes){.data = data, .size = size};
}

static void ask(int client, const luna_LeaseRequest *request)
{
    uint8_t buffer[luna_LeaseRequest_size];
    struct codec_buffer encoded = {buffer, sizeof buffer, 0};
    assert_int_equal(codec_encode(luna_LeaseRequest_fields, request, &encoded, NULL), STATUS_OK);
    const struct channel_descriptors none = {.count = 0};
    assert_int_equal(channel_send(client, packet_of(buffer, encoded.size), &none), STATUS_OK);
}

static void ask_for(int client, uint64_t bytes, const char *device)
{
    luna_LeaseRequest request = {.acquire_bytes = bytes};
    strcpy(request.device, device);
    ask(client, &request);
}

static bool can_read(int channel, int wait_ms)
{
    struct pollfd entry = {.fd = channel, .events = POLLIN};
    return poll(&entry, 1, wait_ms) == 1;
}

static luna_LeaseReply reply_of(int client)
{
    uint8_t buffer[luna_LeaseReply_size];
    size_t size = 0;
    luna_LeaseReply reply = luna_LeaseReply_init_zero;
    assert_true(can_read(client, WAIT_MS));
    assert_int_equal(channel_receive(client, buffer, sizeof buffer, &size, NULL), STATUS_OK);
    assert_int_equal(codec_decode(luna_LeaseReply_fields, packet_of(buffer, size), &reply, NULL),
                     STATUS_OK);
    return reply;
}

static luna_LeaseRequest release_of(const luna_LeaseReply *lease)
{
    return (luna_LeaseRequest){.release_pool = lease->pool,
                               .release_slot = lease->slot,
                               .release_generation = lease->generation};
}

// Connects as the executor of CARD; returns when the lease manager knows it, which only a question
// tells.
static void introduce(struct fixture *self)
{
    luna_Letter letter = {.which_letter = luna_Letter_device_tag};
    strcpy(letter.letter.device.name, "cuda:0");
    strcpy(letter.letter.device.uuid, CARD);
    self->executor = connect_to(self, SOCKET_POOLS);
    assert_int_equal(packet_send_letter(self->executor, &letter, -1), STATUS_OK);
    int client = connect_to(self, SOCKET_LEASES);
    luna_Code code = luna_Code_NOT_FOUND;
    while (code == luna_Code_NOT_FOUND) {
        ask_for(client, UINT64_MAX, CARD);
        code = reply_of(client).code;
    }
    assert_int_equal(code, luna_Code_INVALID_ARGUMENT);
    close(client);
}

static int setup(void **state)
{
    static const struct log silent = {.actor = "test", .level = LOG_ERROR, .descriptor = 2};
    static char *const no_environment[] = {NULL};
    struct fixture *self = calloc(1, sizeof *self);
    struct error error = {0};
    assert_non_null(self);
    snprintf(self->folder, sizeof self->folder, "%s/luna-test-XXXXXX", P_tmpdir);
    assert_non_null(mkdtemp(self->folder));
    snprintf(self->path, sizeof self->path, "%s/" SOCKET_LEASES, self->folder);
    const struct config_sources sources = {.etc = "none", .environment = no_environment};
    assert_int_equal(config_load(&self->config, &sources, &error), STATUS_OK);
    self->clock = clock_manual(1000000000u);
    assert_int_equal(socket_context_create(&self->zmq, 0, &error), STATUS_OK);
    assert_int_equal(socket_open(&self->router, self->zmq, EDGE_ROUTER_LEASES, &error), STATUS_OK);
    assert_int_equal(socket_bind(self->router, ADDRESS_ROUTER_LEASES, &error), STATUS_OK);
    assert_int_equal(socket_open(&self->events, self->zmq, EDGE_EVENTS_SINK, &error), STATUS_OK);
    assert_int_equal(socket_bind(self->events, ADDRESS_EVENTS, &error), STATUS_OK);
    const struct core_arguments arguments = {.config = self->config,
                                             .private_directory = self->folder,
                                             .lease_path = self->path,
                                             .loras_path = ""};
    const struct actor_host host = {.zmq = self->zmq, .clock = &self->clock, .log = &silent};
    assert_int_equal(actor_start(&self->leases, &leases_kind, &host, &arguments, &error),
                     STATUS_OK);
    introduce(self);
    self->client = connect_to(self, SOCKET_LEASES);
    *state = self;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *self = *state;
    actor_stop(&self->leases);
    socket_close(&self->router);
    socket_close(&self->events);
    socket_context_destroy(&self->zmq);
    config_destroy(&self->config);
    if (self->executor >= 0) close(self->executor);
    if (self->client >= 0) close(self->client);
    assert_int_equal(rmdir(self->folder), 0);  // the sockets are gone
    free(self);
    return 0;
}

// ---- the executor's side

static luna_Letter hear(const struct fixture *self, pb_size_t kind)
{
    luna_Letter letter;
    assert_true(can_read(self->executor, WAIT_MS));
    assert_int_equal(packet_receive_letter(self->executor, &letter), STATUS_OK);
    assert_int_equal(letter.which_letter, kind);
    return letter;
}

static void answer_with(const struct fixture *self, uint32_t pool, luna_Code code,
                        const char *message, int hold)
{
    luna_Letter letter = {.which_letter = luna_Letter_memory_lent_tag};
    luna_MemoryLent *lent = &letter.letter.memory_lent;
    lent->pool = pool;
    lent->code = code;
    strcpy(lent->message, message);
    lent->handle.size = 64;
    memset(lent->handle.bytes, (int)(pool & 0xff), 64);
    assert_int_equal(packet_send_letter(self->executor, &letter, hold), STATUS_OK);
}

static void answer(const struct fixture *self, uint32_t pool, luna_Code code, const char *message)
{
    answer_with(self, pool, code, message, -1);
}

// A lease of one unit, from question to reply.
static luna_LeaseReply lease(const struct fixture *self, int client)
{
    ask_for(client, UNIT_BYTES - 5, CARD);
    luna_Letter asked = hear(self, luna_Letter_lend_memory_tag);
    assert_int_equal(asked.letter.lend_memory.bytes, UNIT_BYTES);
    answer(self, asked.letter.lend_memory.pool, luna_Code_OK, "");
    luna_LeaseReply reply = reply_of(client);
    assert_int_equal(reply.code, luna_Code_OK);
    assert_int_equal(reply.pool, asked.letter.lend_memory.pool);
    assert_int_equal(reply.bytes, UNIT_BYTES);
    assert_int_equal(reply.handle.size, 64);
    assert_int_equal(reply.handle.bytes[63], reply.pool & 0xff);
    return reply;
}

// ---- the router's side

static luna_PinAnswer pin(const struct fixture *self, const luna_LeaseReply *lease, uint64_t bytes,
                          bool device)
{
    luna_Letter letter = {.which_letter = luna_Letter_pin_lease_tag};
    luna_PinLease *asked = &letter.letter.pin_lease;
    struct message message;
    asked->user = (uint32_t)geteuid();
    asked->has_shared = true;
    asked->shared = (luna_SharedRef){lease->pool, lease->slot, lease->generation, 256};
    asked->bytes = bytes;
    asked->job = 9;
    asked->device = device;
    assert_int_equal(post_letter(self->router, &letter, NULL), STATUS_OK);
    zmq_pollitem_t entry = {.socket = self->router, .events = ZMQ_POLLIN};
    assert_int_equal(zmq_poll(&entry, 1, WAIT_MS), 1);
    message_init(&message);
    assert_int_equal(message_receive(&message, self->router), STATUS_OK);
    assert_true(post_read(&message, &letter));
    message_clear(&message);
    assert_int_equal(letter.which_letter, luna_Letter_pin_answer_tag);
    return letter.letter.pin_answer;
}

static void unpin(const struct fixture *self)
{
    luna_Letter letter = {.which_letter = luna_Letter_unpin_leases_tag};
    letter.letter.unpin_leases.job = 9;
    assert_int_equal(post_letter(self->router, &letter, NULL), STATUS_OK);
}

// ---- the tests

static void memory_goes_back_when_neither_client_nor_job_has_it(void **state)
{
    struct fixture *self = *state;
    luna_LeaseReply first = lease(self, self->client);
    luna_PinAnswer pinned = pin(self, &first, 1000, true);
    assert_int_equal(pinned.code, luna_Code_OK);
    assert_int_equal(pinned.pool_offset, 256);
    luna_LeaseRequest release = release_of(&first);
    ask(self->client, &release);
    assert_int_equal(reply_of(self->client).code, luna_Code_OK);
    luna_LeaseReply second = lease(self, self->client);  // the executor heard of nothing else
    assert_true(second.pool != first.pool);
    unpin(self);
    assert_int_equal(hear(self, luna_Letter_take_back_memory_tag).letter.take_back_memory.pool,
                     first.pool);
    close(self->client);
    self->client = -1;
    assert_int_equal(hear(self, luna_Letter_take_back_memory_tag).letter.take_back_memory.pool,
                     second.pool);
}

static void what_is_pinned_has_to_be_what_the_request_says(void **state)
{
    struct fixture *self = *state;
    luna_LeaseReply mine = lease(self, self->client);
    assert_int_equal(pin(self, &mine, 1000, false).code, luna_Code_INVALID_ARGUMENT);
    assert_int_equal(pin(self, &mine, UNIT_BYTES, true).code, luna_Code_INVALID_ARGUMENT);
    assert_int_equal(pin(self, &mine, UNIT_BYTES - 256, true).code, luna_Code_OK);
    ask_for(self->client, 1000, "");
    luna_LeaseReply host = reply_of(self->client);
    assert_int_equal(host.code, luna_Code_OK);
    assert_int_equal(pin(self, &host, 1000, true).code, luna_Code_INVALID_ARGUMENT);
    assert_int_equal(pin(self, &host, 1000, false).code, luna_Code_OK);
}

static void an_executor_that_ends_refuses_who_waits_and_voids_what_it_lent(void **state)
{
    struct fixture *self = *state;
    luna_LeaseReply lent = lease(self, self->client);
    int other = connect_to(self, SOCKET_LEASES);
    ask_for(other, 1, CARD);
    hear(self, luna_Letter_lend_memory_tag);
    close(self->executor);
    self->executor = -1;
    luna_LeaseReply refused = reply_of(other);
    assert_int_equal(refused.code, luna_Code_UNAVAILABLE);
    assert_non_null(strstr(refused.message, "cuda:0"));
    luna_PinAnswer pinned = pin(self, &lent, 1000, true);
    assert_int_equal(pinned.code, luna_Code_NOT_FOUND);
    assert_memory_equal(pinned.message, "device lease ", strlen("device lease "));
    ask_for(other, 1, CARD);
    refused = reply_of(other);
    assert_int_equal(refused.code, luna_Code_NOT_FOUND);
    assert_non_null(strstr(refused.message, CARD));
    introduce(self);  // another one
    luna_LeaseRequest release = release_of(&lent);
    ask(self->client, &release);
    assert_int_equal(reply_of(self->client).code, luna_Code_OK);
    lease(self, self->client);  // and nothing that it never lent was asked back
    close(other);
}

static void a_client_that_ends_while_it_waits_gets_nothing_and_keeps_nothing(void **state)
{
    struct fixture *self = *state;
    ask_for(self->client, 1, CARD);
    uint32_t pool = hear(self, luna_Letter_lend_memory_tag).letter.lend_memory.pool;
    close(self->client);
    self->client = -1;
    answer(self, pool, luna_Code_OK, "");
    assert_int_equal(hear(self, luna_Letter_take_back_memory_tag).letter.take_back_memory.pool,
                     pool);
    int other = connect_to(self, SOCKET_LEASES);
    lease(self, other);
    close(other);
}

static void a_refusal_reaches_the_client_and_counts_for_nothing(void **state)
{
    struct fixture *self = *state;
    for (uint32_t i = 0; i < 20; i++) {  // more than one user may have
        ask_for(self->client, UNIT_BYTES, CARD);
        uint32_t pool = hear(self, luna_Letter_lend_memory_tag).letter.lend_memory.pool;
        answer(self, pool + 1, luna_Code_OK, "");  // never asked for
        answer(self, pool, luna_Code_RESOURCE_EXHAUSTED, "3 MB are free");
        luna_LeaseReply reply = reply_of(self->client);
        assert_int_equal(reply.code, luna_Code_RESOURCE_EXHAUSTED);
        assert_string_equal(reply.message, "3 MB are free");
    }
}

// True when all have closed the other end of a channel on which nothing is said.
static bool has_ended(int hold, int wait_ms)
{
    char byte;
    return can_read(hold, wait_ms) && recv(hold, &byte, sizeof byte, MSG_DONTWAIT) == 0;
}

static void the_executors_descriptor_is_the_clients_alone(void **state)
{
    struct fixture *self = *state;
    int ends[2];
    assert_int_equal(channel_pair(ends, NULL), STATUS_OK);
    ask_for(self->client, UNIT_BYTES, CARD);
    luna_Letter asked = hear(self, luna_Letter_lend_memory_tag);
    assert_int_equal(asked.letter.lend_memory.user, geteuid());
    answer_with(self, asked.letter.lend_memory.pool, luna_Code_OK, "", ends[1]);
    close(ends[1]);
    uint8_t buffer[luna_LeaseReply_size];
    size_t size = 0;
    struct channel_descriptors passed = {.count = 0};
    assert_true(can_read(self->client, WAIT_MS));
    assert_int_equal(channel_receive(self->client, buffer, sizeof buffer, &size, &passed),
                     STATUS_OK);
    assert_int_equal(passed.count, 1);
    lease(self, self->client);  // the lease manager has done with the first
    assert_false(has_ended(ends[0], 0));
    actor_stop(&self->leases);
    assert_false(has_ended(ends[0], 0));
    channel_close_descriptors(&passed);
    assert_true(has_ended(ends[0], WAIT_MS));
    close(ends[0]);
}

static void a_descriptor_that_no_client_waits_for_is_closed(void **state)
{
    struct fixture *self = *state;
    int ends[2];
    assert_int_equal(channel_pair(ends, NULL), STATUS_OK);
    ask_for(self->client, 1, CARD);
    uint32_t pool = hear(self, luna_Letter_lend_memory_tag).letter.lend_memory.pool;
    answer_with(self, pool + 1, luna_Code_OK, "", ends[1]);  // never asked for
    close(ends[1]);
    assert_true(has_ended(ends[0], WAIT_MS));
    close(ends[0]);
    answer(self, pool, luna_Code_OK, "");
    assert_int_equal(reply_of(self->client).code, luna_Code_OK);
}

static void a_user_has_a_quota_whatever_the_connection(void **state)
{
    struct fixture *self = *state;
    int clients[8];
    for (uint32_t i = 0; i < 8; i++) {
        clients[i] = connect_to(self, SOCKET_LEASES);
        lease(self, clients[i]);
    }
    ask_for(self->client, 1, CARD);
    luna_LeaseReply reply = reply_of(self->client);
    assert_int_equal(reply.code, luna_Code_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(reply.message, "8 leases of device memory are yours"));
    ask_for(self->client, UINT64_MAX, CARD);
    reply = reply_of(self->client);
    assert_int_equal(reply.code, luna_Code_INVALID_ARGUMENT);
    assert_non_null(strstr(reply.message, "18446744073709551615"));
    close(clients[0]);
    hear(self, luna_Letter_take_back_memory_tag);
    lease(self, self->client);
    for (uint32_t i = 1; i < 8; i++) close(clients[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(memory_goes_back_when_neither_client_nor_job_has_it, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(what_is_pinned_has_to_be_what_the_request_says, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(
            an_executor_that_ends_refuses_who_waits_and_voids_what_it_lent, setup, teardown),
        cmocka_unit_test_setup_teardown(
            a_client_that_ends_while_it_waits_gets_nothing_and_keeps_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_refusal_reaches_the_client_and_counts_for_nothing, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(the_executors_descriptor_is_the_clients_alone, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_descriptor_that_no_client_waits_for_is_closed, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_user_has_a_quota_whatever_the_connection, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
