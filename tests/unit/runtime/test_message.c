// test_message.c - what senders and receivers of multipart messages may rely on.

#include <string.h>

#include "runtime/message.h"
#include "tests/test.h"

static struct bytes text(const char *string)
{
    return (struct bytes){string, strlen(string)};
}

static void assert_frame(const struct message *message, uint32_t index, const char *expected)
{
    struct bytes frame = message_frame(message, index);
    assert_int_equal(frame.size, strlen(expected));
    assert_memory_equal(frame.data, expected, frame.size);
}

// Two connected sockets of one context.
struct pair {
    void *zmq;
    void *left;
    void *right;
};

static struct pair connect_pair(int left_type, int right_type, int messages_max)
{
    struct pair pair = {.zmq = zmq_ctx_new()};
    pair.left = zmq_socket(pair.zmq, left_type);
    pair.right = zmq_socket(pair.zmq, right_type);
    int linger = 0;
    int mandatory = 1;
    zmq_setsockopt(pair.left, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(pair.right, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(pair.left, ZMQ_SNDHWM, &messages_max, sizeof messages_max);
    zmq_setsockopt(pair.right, ZMQ_RCVHWM, &messages_max, sizeof messages_max);
    if (left_type == ZMQ_ROUTER) {
        zmq_setsockopt(pair.left, ZMQ_ROUTER_MANDATORY, &mandatory, sizeof mandatory);
    }
    assert_int_equal(zmq_bind(pair.left, "inproc://pair"), 0);
    assert_int_equal(zmq_connect(pair.right, "inproc://pair"), 0);
    return pair;
}

static void disconnect_pair(struct pair *pair)
{
    zmq_close(pair->left);
    zmq_close(pair->right);
    zmq_ctx_term(pair->zmq);
}

static void frames_arrive_in_the_order_they_were_appended(void **state)
{
    (void)state;
    struct pair pair = connect_pair(ZMQ_PAIR, ZMQ_PAIR, 10);
    struct message sent;
    struct message received;
    message_init(&sent);
    message_init(&received);
    assert_int_equal(message_append(&sent, text("header")), STATUS_OK);
    assert_int_equal(message_append(&sent, (struct bytes){NULL, 0}), STATUS_OK);
    assert_int_equal(message_append(&sent, text("body")), STATUS_OK);
    assert_int_equal(message_bytes(&sent), 10);

    assert_int_equal(message_receive(&received, pair.right), STATUS_UNAVAILABLE);
    assert_int_equal(message_send(&sent, pair.left), STATUS_OK);
    assert_int_equal(sent.count, 0);
    assert_int_equal(message_receive(&received, pair.right), STATUS_OK);
    assert_int_equal(received.count, 3);
    assert_false(received.overlong);
    assert_frame(&received, 0, "header");
    assert_frame(&received, 1, "");
    assert_frame(&received, 2, "body");
    message_clear(&received);
    disconnect_pair(&pair);
}

static void prepend_and_drop_first_move_all_other_frames(void **state)
{
    (void)state;
    char large[100];
    memset(large, 'x', sizeof large);
    struct message message;
    message_init(&message);
    assert_int_equal(message_prepend(&message, text("c")), STATUS_OK);
    assert_int_equal(message_append(&message, (struct bytes){large, sizeof large}), STATUS_OK);
    assert_int_equal(message_prepend(&message, text("b")), STATUS_OK);
    assert_int_equal(message_prepend(&message, text("a")), STATUS_OK);
    assert_frame(&message, 0, "a");
    assert_frame(&message, 1, "b");
    assert_frame(&message, 2, "c");
    assert_int_equal(message_frame(&message, 3).size, sizeof large);

    message_drop_first(&message);
    assert_int_equal(message.count, 3);
    assert_frame(&message, 0, "b");
    struct message other;
    message_init(&other);
    message_move(&other, &message);
    assert_int_equal(message.count, 0);
    assert_frame(&other, 1, "c");
    message_drop_first(&other);
    message_drop_first(&other);
    message_drop_first(&other);
    assert_int_equal(other.count, 0);
}

static void a_message_with_all_its_frames_takes_no_more(void **state)
{
    (void)state;
    struct message message;
    message_init(&message);
    char owned[4] = "own";
    for (uint32_t i = 0; i < MESSAGE_FRAMES_MAX; i++) {
        assert_int_equal(message_append(&message, text("f")), STATUS_OK);
    }
    assert_int_equal(message_append(&message, text("f")), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(message_prepend(&message, text("f")), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(message_append_shared(&message, &message, 0), STATUS_RESOURCE_EXHAUSTED);
    void (*never)(void *data, void *hint) = (void (*)(void *, void *))(uintptr_t)1;
    assert_int_equal(message_append_owned(&message, owned, 4, never, NULL),
                     STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(message.count, MESSAGE_FRAMES_MAX);
    message_clear(&message);
    message_clear(&message);
}

static void a_longer_message_is_read_to_its_end_and_reported(void **state)
{
    (void)state;
    struct pair pair = connect_pair(ZMQ_PAIR, ZMQ_PAIR, 10);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(zmq_send(pair.left, "f", 1, i < 99 ? ZMQ_SNDMORE : 0), 1);
    }
    assert_int_equal(zmq_send(pair.left, "next", 4, 0), 4);
    struct message message;
    message_init(&message);
    assert_int_equal(message_receive(&message, pair.right), STATUS_OK);
    assert_true(message.overlong);
    assert_int_equal(message.count, MESSAGE_FRAMES_MAX);
    message_clear(&message);
    assert_int_equal(message_receive(&message, pair.right), STATUS_OK);
    assert_false(message.overlong);
    assert_frame(&message, 0, "next");
    message_clear(&message);
    disconnect_pair(&pair);
}

static void release_once(void *data, void *hint)
{
    (void)data;
    *(int *)hint += 1;
}

static void shared_and_owned_frames_are_the_same_memory_until_the_last_user(void **state)
{
    (void)state;
    struct pair pair = connect_pair(ZMQ_PAIR, ZMQ_PAIR, 10);
    static char payload[1000];
    int released = 0;
    struct message kept;
    struct message sent;
    struct message received;
    message_init(&kept);
    message_init(&sent);
    message_init(&received);
    assert_int_equal(message_append_owned(&kept, payload, sizeof payload, release_once, &released),
                     STATUS_OK);
    assert_int_equal(message_append_shared(&sent, &kept, 0), STATUS_OK);
    assert_int_equal(message_send(&sent, pair.left), STATUS_OK);
    assert_int_equal(message_receive(&received, pair.right), STATUS_OK);
    assert_ptr_equal(message_frame(&received, 0).data, payload);
    message_clear(&kept);
    assert_int_equal(released, 0);
    message_clear(&received);
    assert_int_equal(released, 1);
    disconnect_pair(&pair);
}

static void refused_messages_stay_whole(void **state)
{
    (void)state;
    struct pair pair = connect_pair(ZMQ_ROUTER, ZMQ_DEALER, 2);
    struct message message;
    message_init(&message);
    assert_int_equal(message_append(&message, text("nobody")), STATUS_OK);
    assert_int_equal(message_append(&message, text("body")), STATUS_OK);
    assert_int_equal(message_send(&message, pair.left), STATUS_UNAVAILABLE);
    assert_int_equal(message.count, 2);
    assert_frame(&message, 0, "nobody");
    message_clear(&message);

    assert_int_equal(message_append(&message, text("hello")), STATUS_OK);
    assert_int_equal(message_send(&message, pair.right), STATUS_OK);
    assert_int_equal(message_receive(&message, pair.left), STATUS_OK);
    assert_int_equal(message.count, 2);
    struct message route;
    message_init(&route);
    message_move(&route, &message);

    int accepted = 0;
    enum status status = STATUS_OK;
    for (int i = 0; i < 100 && status == STATUS_OK; i++) {
        message_clear(&message);
        assert_int_equal(message_append_shared(&message, &route, 0), STATUS_OK);
        assert_int_equal(message_append(&message, text("answer")), STATUS_OK);
        status = message_send(&message, pair.left);
        if (status == STATUS_OK) accepted++;
    }
    assert_int_equal(status, STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(message.count, 2);
    assert_frame(&message, 1, "answer");
    message_clear(&message);
    for (int i = 0; i < accepted; i++) {
        assert_int_equal(message_receive(&message, pair.right), STATUS_OK);
        assert_int_equal(message.count, 1);
        assert_frame(&message, 0, "answer");
        message_clear(&message);
    }
    assert_int_equal(message_receive(&message, pair.right), STATUS_UNAVAILABLE);
    message_clear(&route);
    disconnect_pair(&pair);
}

static void a_queue_that_was_read_takes_more_at_once(void **state)
{
    (void)state;
    struct pair pair = connect_pair(ZMQ_PAIR, ZMQ_PAIR, 4);
    struct message message;
    message_init(&message);
    for (int i = 0; i < 10000; i++) {
        assert_int_equal(message_append(&message, text("x")), STATUS_OK);
        assert_int_equal(message_send(&message, pair.left), STATUS_OK);
        assert_int_equal(message_receive(&message, pair.right), STATUS_OK);
        message_clear(&message);
    }
    disconnect_pair(&pair);
}

static void sockets_of_a_terminated_context_answer_internal(void **state)
{
    (void)state;
    struct pair pair = connect_pair(ZMQ_PAIR, ZMQ_PAIR, 2);
    zmq_ctx_shutdown(pair.zmq);
    struct message message;
    message_init(&message);
    assert_int_equal(message_receive(&message, pair.right), STATUS_INTERNAL);
    assert_int_equal(message_append(&message, text("body")), STATUS_OK);
    assert_int_equal(message_send(&message, pair.right), STATUS_INTERNAL);
    assert_int_equal(message.count, 1);
    message_clear(&message);
    disconnect_pair(&pair);
}

static void properties_name_the_connection(void **state)
{
    (void)state;
    void *zmq = zmq_ctx_new();
    void *pull = zmq_socket(zmq, ZMQ_PULL);
    void *push = zmq_socket(zmq, ZMQ_PUSH);
    char endpoint[64];
    size_t size = sizeof endpoint;
    assert_int_equal(zmq_bind(pull, "tcp://127.0.0.1:*"), 0);
    assert_int_equal(zmq_getsockopt(pull, ZMQ_LAST_ENDPOINT, endpoint, &size), 0);
    assert_int_equal(zmq_connect(push, endpoint), 0);
    assert_int_equal(zmq_send(push, "x", 1, 0), 1);
    zmq_pollitem_t item = {.socket = pull, .events = ZMQ_POLLIN};
    assert_int_equal(zmq_poll(&item, 1, 10000), 1);

    struct message message;
    message_init(&message);
    assert_null(message_property(&message, "Socket-Type"));
    assert_int_equal(message_receive(&message, pull), STATUS_OK);
    assert_string_equal(message_property(&message, "Socket-Type"), "PUSH");
    assert_null(message_property(&message, "User-Id-Of-Nobody"));
    message_clear(&message);
    zmq_close(pull);
    zmq_close(push);
    zmq_ctx_term(zmq);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_arrive_in_the_order_they_were_appended),
        cmocka_unit_test(prepend_and_drop_first_move_all_other_frames),
        cmocka_unit_test(a_message_with_all_its_frames_takes_no_more),
        cmocka_unit_test(a_longer_message_is_read_to_its_end_and_reported),
        cmocka_unit_test(shared_and_owned_frames_are_the_same_memory_until_the_last_user),
        cmocka_unit_test(refused_messages_stay_whole),
        cmocka_unit_test(a_queue_that_was_read_takes_more_at_once),
        cmocka_unit_test(sockets_of_a_terminated_context_answer_internal),
        cmocka_unit_test(properties_name_the_connection),
    };
    return cmocka_run_group_tests_name("message", tests, NULL, NULL);
}
