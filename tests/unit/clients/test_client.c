// test_client.c - libluna against a daemon that does as it is told.

#include "clients/c/luna.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/test.h"
#include "tests/unit/clients/fake_daemon.h"

#define LATENT_DIMS                                                                                \
    {                                                                                              \
        1, 4, 8, 8                                                                                 \
    }  // 1 KiB of f32
#define LARGE_DIMS                                                                                 \
    {                                                                                              \
        1, 4, 256, 128                                                                             \
    }  // 512 KiB of f32

static const struct bytes nothing = {NULL, 0};

// Answers DECODE_LATENT with an image f32 [1] that is the sum of the latent's bytes; into the room
// when there is one.
static void answer_sum(struct fake_request *request)
{
    struct fake_daemon *fake = request->daemon;
    uint32_t payload = 0;
    const luna_Tensor *latent = codec_find_tensor(&request->header, "latent", &payload);
    assert_non_null(latent);
    const uint8_t *bytes = latent->where == luna_Where_SHARED
                               ? fake->pool + latent->shared.slot % 4 * (FAKE_POOL_BYTES / 4)
                               : request->payloads[payload].data;
    float sum = 0.0f;
    for (uint64_t i = 0; i < latent->bytes; i++) sum += bytes[i];

    luna_Header header;
    codec_start_reply(&request->header, &header);
    const luna_ImageReply body = {.tiles = 1, .device = "cpu"};
    const luna_Tensor *room = codec_find_room(&request->header, "image");
    luna_Tensor *image = &header.tensors[header.tensors_count++];
    *image = (luna_Tensor){.name = "image", .dtype = luna_Dtype_F32, .dims_count = 1, .bytes = 4};
    image->dims[0] = 1;
    if (room == NULL) {
        struct bytes frame = {&sum, sizeof sum};
        fake_reply(request, &header, luna_ImageReply_fields, &body, frame);
        return;
    }
    image->where = luna_Where_SHARED;
    image->has_shared = true;
    image->shared = room->shared;
    memcpy(fake->pool + room->shared.slot % 4 * (FAKE_POOL_BYTES / 4), &sum, sizeof sum);
    fake_reply(request, &header, luna_ImageReply_fields, &body, nothing);
}

static void answer_nothing(struct fake_request *request)
{
    (void)request;
}

static void answer_the_second_time(struct fake_request *request)
{
    if (request->before > 0) answer_sum(request);
}

// Ends the lease session, as a daemon that dies.
static void fake_end_leases(struct fake_daemon *self)
{
    shutdown(atomic_load(&self->lease_session), SHUT_RDWR);
}

static void end_leases_then_answer(struct fake_request *request)
{
    if (request->before > 0) {
        answer_sum(request);
    } else {
        fake_end_leases(request->daemon);
    }
}

static void refuse_twice_then_answer(struct fake_request *request)
{
    if (request->before < 2) {
        fake_fail(request, luna_Code_RESOURCE_EXHAUSTED, "the queue is full", 10);
    } else {
        answer_sum(request);
    }
}

static void refuse_for_a_minute(struct fake_request *request)
{
    fake_fail(request, luna_Code_UNAVAILABLE, "come back later", 60000);
}

static void tell_progress_then_answer(struct fake_request *request)
{
    luna_Header header;
    codec_start_reply(&request->header, &header);
    header.kind = luna_Kind_PROGRESS;
    assert_true(request->header.want_progress);
    for (header.progress_done = 1; header.progress_done <= 3; header.progress_done++) {
        header.progress_total = 3;
        fake_reply(request, &header, NULL, NULL, nothing);
    }
    answer_sum(request);
}

static void answer_with_a_short_frame(struct fake_request *request)
{
    luna_Header header;
    codec_start_reply(&request->header, &header);
    header.tensors_count = 1;
    header.tensors[0] =
        (luna_Tensor){.name = "image", .dtype = luna_Dtype_F32, .dims_count = 1, .bytes = 4};
    header.tensors[0].dims[0] = 1;
    fake_reply(request, &header, luna_ImageReply_fields, &(luna_ImageReply){0},
               (struct bytes){"abc", 3});
}

static void answer_with_memory_that_was_not_offered(struct fake_request *request)
{
    luna_Header header;
    codec_start_reply(&request->header, &header);
    header.tensors_count = 1;
    header.tensors[0] =
        (luna_Tensor){.name = "image", .dtype = luna_Dtype_F32, .dims_count = 1, .bytes = 4};
    header.tensors[0].dims[0] = 1;
    header.tensors[0].where = luna_Where_SHARED;
    header.tensors[0].has_shared = true;
    header.tensors[0].shared = (luna_SharedRef){7, 99, 100, 0};
    fake_reply(request, &header, luna_ImageReply_fields, &(luna_ImageReply){0}, nothing);
}

static struct luna_client *connect_to(const struct fake_daemon *fake)
{
    struct luna_client *client = NULL;
    struct error error = {0};
    const struct luna_client_options options = {.endpoint = fake->endpoint};
    if (luna_client_create(&client, &options, &error) != STATUS_OK) fail_msg("%s", error.message);
    return client;
}

// Decodes a latent of these dimensions whose bytes are all 1; *sum becomes what came back.
static enum status decode(struct luna_client *client, const uint64_t dims[4],
                          struct luna_request request, float *sum, struct error *error)
{
    const struct luna_room room = {"image", 512 * 1024};
    struct luna_tensor latent = {.name = "latent", .dtype = DTYPE_F32, .rank = 4};
    uint64_t bytes = 4;
    for (uint32_t i = 0; i < 4; i++) bytes *= latent.dims[i] = dims[i];
    void *data = malloc((size_t)bytes);
    assert_non_null(data);
    memset(data, 1, (size_t)bytes);
    latent.data = data;
    request.operation = luna_Operation_DECODE_LATENT;
    request.inputs = &latent;
    request.inputs_count = 1;
    request.rooms = &room;
    request.rooms_count = 1;

    struct luna_answer *answer = NULL;
    enum status status = luna_client_call(client, &request, &answer, error);
    if (status == STATUS_OK) {
        const luna_ImageReply *body = answer->body;
        const struct luna_tensor *image = luna_answer_tensor(answer, "image");
        assert_string_equal(body->device, "cpu");
        assert_non_null(image);
        assert_int_equal(image->bytes, sizeof *sum);
        memcpy(sum, image->data, sizeof *sum);
        assert_null(luna_answer_tensor(answer, "latent"));
    }
    luna_answer_destroy(&answer);
    free(data);
    return status;
}

// Decodes LATENT_DIMS against a fake that answers so, and returns the status.
static enum status try_once(void (*answer)(struct fake_request *), struct luna_request request,
                            struct error *error, uint32_t *requests)
{
    struct fake_daemon fake;
    float sum = 0.0f;
    fake_daemon_start(&fake, answer, false);
    struct luna_client *client = connect_to(&fake);
    enum status status = decode(client, (const uint64_t[])LATENT_DIMS, request, &sum, error);
    luna_client_destroy(&client);
    fake_daemon_stop(&fake);
    assert_true(status != STATUS_OK || sum == 1024.0f);
    *requests = atomic_load(&fake.requests);
    return status;
}

static void a_tensor_goes_out_and_one_comes_back(void **state)
{
    (void)state;
    uint32_t requests = 0;
    struct error error = {0};
    assert_int_equal(try_once(answer_sum, (struct luna_request){0}, &error, &requests), STATUS_OK);
    assert_int_equal(requests, 1);
}

static void a_client_knows_whom_it_speaks_to(void **state)
{
    (void)state;
    struct fake_daemon fake;
    fake_daemon_start(&fake, answer_nothing, false);
    struct luna_client *client = connect_to(&fake);
    assert_string_equal(luna_client_endpoint(client), fake.endpoint);
    assert_string_equal(luna_client_hello(client)->version, "0.1.0");
    luna_client_destroy(&client);
    assert_null(client);
    luna_client_destroy(&client);
    fake_daemon_stop(&fake);
}

static void nobody_at_the_endpoint_is_unavailable(void **state)
{
    (void)state;
    struct luna_client *client = NULL;
    struct error error = {0};
    struct luna_client_options options = {.endpoint = "ipc:///nonexistent/luna.sock",
                                          .connect_ms = 50};
    assert_int_equal(luna_client_create(&client, &options, &error), STATUS_UNAVAILABLE);
    assert_string_equal(error.message, "nobody answers at ipc:///nonexistent/luna.sock");
    options.endpoint = "http://localhost";
    assert_int_equal(luna_client_create(&client, &options, &error), STATUS_INVALID_ARGUMENT);
    options.endpoint = "tcp://127.0.0.1:1";
    options.server_key = "too short";
    assert_int_equal(luna_client_create(&client, &options, &error), STATUS_INVALID_ARGUMENT);
    assert_null(client);
}

static void a_request_without_an_answer_is_sent_again_with_the_same_id(void **state)
{
    (void)state;
    uint32_t requests = 0;
    struct error error = {0};
    assert_int_equal(try_once(answer_the_second_time, (struct luna_request){0}, &error, &requests),
                     STATUS_OK);
    assert_int_equal(requests, 2);
}

static void a_refusal_that_asks_to_wait_is_waited_for(void **state)
{
    (void)state;
    uint32_t requests = 0;
    struct error error = {0};
    assert_int_equal(
        try_once(refuse_twice_then_answer, (struct luna_request){0}, &error, &requests), STATUS_OK);
    assert_int_equal(requests, 3);
}

static void a_refusal_beyond_the_deadline_is_the_answer(void **state)
{
    (void)state;
    uint32_t requests = 0;
    struct error error = {0};
    assert_int_equal(
        try_once(refuse_for_a_minute, (struct luna_request){.timeout_ms = 5000}, &error, &requests),
        STATUS_UNAVAILABLE);
    assert_string_equal(error.message, "come back later");
    assert_int_equal(error.retry_after_ms, 60000);
}

static void a_call_that_runs_out_of_time_takes_its_request_back(void **state)
{
    (void)state;
    struct fake_daemon fake;
    struct error error = {0};
    float sum = 0.0f;
    fake_daemon_start(&fake, answer_nothing, false);
    struct luna_client *client = connect_to(&fake);
    const struct luna_request request = {.timeout_ms = 50};
    assert_int_equal(decode(client, (const uint64_t[])LATENT_DIMS, request, &sum, &error),
                     STATUS_DEADLINE_EXCEEDED);
    struct luna_answer *answer = NULL;
    const struct luna_request ping = {.operation = luna_Operation_PING};
    assert_int_equal(luna_client_call(client, &ping, &answer, &error), STATUS_OK);
    assert_int_equal(atomic_load(&fake.cancels), 1);  // it came before the ping
    luna_answer_destroy(&answer);
    luna_client_destroy(&client);
    fake_daemon_stop(&fake);
}

static void a_signal_ends_a_call(void **state)
{
    (void)state;
    volatile sig_atomic_t stop = 1;
    uint32_t requests = 0;
    struct error error = {0};
    assert_int_equal(
        try_once(answer_nothing, (struct luna_request){.stop = &stop}, &error, &requests),
        STATUS_CANCELLED);
}

struct told {
    uint32_t count;        // progress messages
    uint32_t done, total;  // of the last
};

static void on_progress(void *context, uint32_t done, uint32_t total)
{
    struct told *told = context;
    assert_int_equal(done, told->done + 1);
    told->count++;
    told->done = done;
    told->total = total;
}

static void progress_is_told_before_the_answer(void **state)
{
    (void)state;
    struct told told = {0};
    uint32_t requests = 0;
    struct error error = {0};
    const struct luna_request request = {.on_progress = on_progress, .context = &told};
    assert_int_equal(try_once(tell_progress_then_answer, request, &error, &requests), STATUS_OK);
    assert_int_equal(told.count, 3);
    assert_int_equal(told.total, 3);
}

static void an_answer_that_does_not_hold_what_it_says_is_internal(void **state)
{
    (void)state;
    uint32_t requests = 0;
    struct error error = {0};
    const struct luna_request request = {0};
    assert_int_equal(try_once(answer_with_a_short_frame, request, &error, &requests),
                     STATUS_INTERNAL);
    assert_non_null(strstr(error.message, "\"image\" says 4 bytes, its frame has 3"));
    assert_int_equal(try_once(answer_with_memory_that_was_not_offered, request, &error, &requests),
                     STATUS_INTERNAL);
    assert_non_null(strstr(error.message, "no room of ours"));
}

static void a_request_that_breaks_a_rule_is_not_sent(void **state)
{
    (void)state;
    uint32_t requests = 0;
    struct error error = {0};
    assert_int_equal(
        try_once(answer_sum, (struct luna_request){.priority = 101}, &error, &requests),
        STATUS_INVALID_ARGUMENT);
    assert_int_equal(
        try_once(answer_sum, (struct luna_request){.model = "../x"}, &error, &requests),
        STATUS_INVALID_ARGUMENT);
    assert_int_equal(requests, 0);
}

static void large_tensors_go_and_come_in_shared_memory(void **state)
{
    (void)state;
    struct fake_daemon fake;
    struct error error = {0};
    fake_daemon_start(&fake, answer_sum, true);
    struct luna_client *client = connect_to(&fake);
    for (int i = 0; i < 3; i++) {
        float sum = 0.0f;
        assert_int_equal(
            decode(client, (const uint64_t[])LARGE_DIMS, (struct luna_request){0}, &sum, &error),
            STATUS_OK);
        assert_true(sum == 524288.0f);
    }
    assert_int_equal(atomic_load(&fake.granted), 6);  // an input and a room each
    assert_int_equal(atomic_load(&fake.held), 0);
    luna_client_destroy(&client);
    fake_daemon_stop(&fake);
}

static void without_a_lease_socket_large_tensors_go_in_frames(void **state)
{
    (void)state;
    struct fake_daemon fake;
    struct error error = {0};
    float sum = 0.0f;
    fake_daemon_start(&fake, answer_sum, false);
    struct luna_client *client = connect_to(&fake);
    assert_int_equal(
        decode(client, (const uint64_t[])LARGE_DIMS, (struct luna_request){0}, &sum, &error),
        STATUS_OK);
    assert_true(sum == 524288.0f);
    luna_client_destroy(&client);
    fake_daemon_stop(&fake);
}

static void when_the_session_ends_the_same_request_goes_out_again_in_frames(void **state)
{
    (void)state;
    struct fake_daemon fake;
    struct error error = {0};
    float sum = 0.0f;
    fake_daemon_start(&fake, end_leases_then_answer, true);
    struct luna_client *client = connect_to(&fake);
    assert_int_equal(
        decode(client, (const uint64_t[])LARGE_DIMS, (struct luna_request){0}, &sum, &error),
        STATUS_OK);
    assert_true(sum == 524288.0f);
    assert_int_equal(atomic_load(&fake.requests), 2);
    assert_int_equal(fake.last_count, 2);  // the same id
    luna_client_destroy(&client);
    fake_daemon_stop(&fake);
}

static void the_endpoint_is_found_in_the_order_of_the_contract(void **state)
{
    (void)state;
    char found[LUNA_ENDPOINT_BYTES];
    char longest[LUNA_ENDPOINT_BYTES + 1];
    struct error error = {0};
    setenv("LUNA_ENDPOINT", "tcp://there:1", 1);
    assert_int_equal(luna_find_endpoint("ipc:///here", found, &error), STATUS_OK);
    assert_string_equal(found, "ipc:///here");
    assert_int_equal(luna_find_endpoint(NULL, found, &error), STATUS_OK);
    assert_string_equal(found, "tcp://there:1");
    memset(longest, 'x', sizeof longest);
    memcpy(longest, "ipc://", 6);
    longest[LUNA_ENDPOINT_BYTES] = '\0';
    assert_int_equal(luna_find_endpoint(longest, found, &error), STATUS_INVALID_ARGUMENT);
    setenv("LUNA_ENDPOINT", "there", 1);
    assert_int_equal(luna_find_endpoint(NULL, found, &error), STATUS_INVALID_ARGUMENT);
    unsetenv("LUNA_ENDPOINT");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tensor_goes_out_and_one_comes_back),
        cmocka_unit_test(a_client_knows_whom_it_speaks_to),
        cmocka_unit_test(nobody_at_the_endpoint_is_unavailable),
        cmocka_unit_test(a_request_without_an_answer_is_sent_again_with_the_same_id),
        cmocka_unit_test(a_refusal_that_asks_to_wait_is_waited_for),
        cmocka_unit_test(a_refusal_beyond_the_deadline_is_the_answer),
        cmocka_unit_test(a_call_that_runs_out_of_time_takes_its_request_back),
        cmocka_unit_test(a_signal_ends_a_call),
        cmocka_unit_test(progress_is_told_before_the_answer),
        cmocka_unit_test(an_answer_that_does_not_hold_what_it_says_is_internal),
        cmocka_unit_test(a_request_that_breaks_a_rule_is_not_sent),
        cmocka_unit_test(large_tensors_go_and_come_in_shared_memory),
        cmocka_unit_test(without_a_lease_socket_large_tensors_go_in_frames),
        cmocka_unit_test(when_the_session_ends_the_same_request_goes_out_again_in_frames),
        cmocka_unit_test(the_endpoint_is_found_in_the_order_of_the_contract),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
