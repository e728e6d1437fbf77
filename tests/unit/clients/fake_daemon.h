// fake_daemon.h - a daemon for tests of clients: a ROUTER in a thread that answers as the test
// says.
//
// It listens on ipc in a folder of its own and answers PING by itself; every other request goes to
// the test's function, on the fake's thread, with the number of times that its id came before. With
// leases it has a lease socket too, over a pool of 4 MiB.

#ifndef TESTS_UNIT_CLIENTS_FAKE_DAEMON_H
#define TESTS_UNIT_CLIENTS_FAKE_DAEMON_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include "messages/codec.h"
#include "tests/test.h"

#define FAKE_POOL_BYTES (4u << 20)
#define FAKE_PAYLOADS_MAX 8u
#define FAKE_CHUNK_BYTES 200000u  // of LORA_PUT and LORA_GET: below what goes in shared memory

struct fake_daemon;

// One message of a client.
struct fake_request {
    struct fake_daemon *daemon;                // that got it
    luna_Header header;                        // decoded and checked
    struct bytes body;                         // as it came
    uint32_t payloads_count;                   // of payloads
    struct bytes payloads[FAKE_PAYLOADS_MAX];  // as they came
    uint32_t before;                           // times that the same id came before
    zmq_msg_t route;                           // back to the client
};

struct fake_daemon {
    char folder[32];                        // made for this fake
    char endpoint[64];                      // ipc://FOLDER/luna.sock
    char lease_path[64];                    // FOLDER/lease.sock
    const char *adapters;                   // the adapter socket's path; NULL: there is none
    void (*answer)(struct fake_request *);  // the test's
    void *context;                          // of ZeroMQ
    void *router;                           // bound; the thread's
    void *stop;                             // PAIR that ends the thread
    void *end;                              // its other end; the thread's
    pthread_t thread;                       // that serves
    uint8_t last_id[CODEC_ID_BYTES];        // of the last request that was no PING, CANCEL, ATTACH
    uint32_t last_count;                    // times that it came
    _Atomic uint32_t requests;              // that were no PING, CANCEL, ATTACH
    _Atomic uint32_t cancels;               // CANCEL of last_id
    _Atomic uint32_t order;                 // see fake_in_order
    bool has_leases;                        // there is a lease socket
    uint8_t *pool;                          // mapped
    int pool_fd;                            // memfd
    int lease_listener;                     // AF_UNIX
    _Atomic int lease_session;              // the last connection; -1
    pthread_t lease_thread;                 // that serves it
    _Atomic uint32_t granted;               // leases
    _Atomic uint32_t held;                  // leases not given back
};

// ThreadSanitizer does not see that a message orders what its two ends do. Called before and after
// each request by a test that looks at what its answer function left.
static inline void fake_in_order(struct fake_daemon *self)
{
    atomic_fetch_add(&self->order, 1);
}

// Sends an answer: header and body of a type, and one payload unless it is NULL.
static void fake_reply(struct fake_request *request, const luna_Header *header,
                       const pb_msgdesc_t *type, const void *body, struct bytes payload)
{
    void *router = request->daemon->router;
    fake_in_order(request->daemon);
    uint8_t head[CODEC_HEADER_BYTES_MAX];
    uint8_t content[1024];
    struct error error = {0};
    struct codec_buffer head_out = {head, sizeof head, 0};
    struct codec_buffer content_out = {content, sizeof content, 0};
    if (codec_encode_header(header, &head_out, &error) != STATUS_OK) fail_msg("%s", error.message);
    if (type != NULL) {
        assert_int_equal(codec_encode(type, body, &content_out, &error), STATUS_OK);
    }
    int more = payload.data != NULL ? ZMQ_SNDMORE : 0;
    zmq_send(router, zmq_msg_data(&request->route), zmq_msg_size(&request->route), ZMQ_SNDMORE);
    zmq_send(router, head, (size_t)head_out.size, ZMQ_SNDMORE);
    zmq_send(router, content, (size_t)content_out.size, more);
    if (more != 0) zmq_send(router, payload.data, (size_t)payload.size, 0);
}

// Sends a refusal.
static void fake_fail(struct fake_request *request, luna_Code code, const char *message,
                      uint32_t retry_after_ms)
{
    luna_Header header;
    codec_start_reply(&request->header, &header);
    header.code = code;
    header.retry_after_ms = retry_after_ms;
    strcpy(header.message, message);
    fake_reply(request, &header, NULL, NULL, (struct bytes){NULL, 0});
}

static void serve_lease(struct fake_daemon *self, int session, const luna_LeaseRequest *request)
{
    luna_LeaseReply reply = luna_LeaseReply_init_zero;
    bool first = false;
    if (request->acquire_bytes > 0) {
        uint32_t number = atomic_fetch_add(&self->granted, 1);
        first = number == 0;
        atomic_fetch_add(&self->held, 1);
        reply.pool = 7;
        reply.pool_bytes = FAKE_POOL_BYTES;
        reply.slot = number;
        reply.generation = number + 1;
        reply.offset = (number % 4) * (FAKE_POOL_BYTES / 4);
        reply.bytes = FAKE_POOL_BYTES / 4;
    } else {
        reply.slot = request->release_slot;
        if (request->release_generation == request->release_slot + 1) {
            atomic_fetch_sub(&self->held, 1);
        }
    }
    uint8_t packet[luna_LeaseReply_size];
    struct codec_buffer encoded = {packet, sizeof packet, 0};
    assert_int_equal(codec_encode(luna_LeaseReply_fields, &reply, &encoded, NULL), STATUS_OK);
    if (encoded.size == 0) encoded.size = (uint64_t)snprintf((char *)packet, 3, "\x08%c", 0);
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec part = {packet, (size_t)encoded.size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (first) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *extra = CMSG_FIRSTHDR(&message);
        extra->cmsg_level = SOL_SOCKET;
        extra->cmsg_type = SCM_RIGHTS;
        extra->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(extra), &self->pool_fd, sizeof(int));
    }
    sendmsg(session, &message, MSG_NOSIGNAL);
}

static void *serve_leases(void *argument)
{
    struct fake_daemon *self = argument;
    int session = -1;
    while ((session = accept(self->lease_listener, NULL, NULL)) >= 0) {
        atomic_store(&self->lease_session, session);
        while (true) {
            uint8_t packet[256];
            luna_LeaseRequest request;
            ssize_t size = recv(session, packet, sizeof packet, 0);
            if (size <= 0) break;
            struct bytes frame = {packet, (uint64_t)size};
            assert_int_equal(codec_decode(luna_LeaseRequest_fields, frame, &request, NULL),
                             STATUS_OK);
            serve_lease(self, session, &request);
        }
        atomic_store(&self->lease_session, -1);
        close(session);
    }
    return NULL;
}

static void start_leases(struct fake_daemon *self)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, self->lease_path);
    self->pool_fd = memfd_create("pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(self->pool_fd, FAKE_POOL_BYTES), 0);
    assert_int_equal(fcntl(self->pool_fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    self->pool = mmap(NULL, FAKE_POOL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, self->pool_fd, 0);
    assert_ptr_not_equal(self->pool, MAP_FAILED);
    self->lease_listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(self->lease_listener, (const struct sockaddr *)&address, sizeof address),
                     0);
    assert_int_equal(listen(self->lease_listener, 4), 0);
    assert_int_equal(pthread_create(&self->lease_thread, NULL, serve_leases, self), 0);
}

static void answer_self(struct fake_request *request)
{
    struct fake_daemon *self = request->daemon;
    luna_Header header;
    codec_start_reply(&request->header, &header);
    if (request->header.operation == luna_Operation_PING) {
        luna_PingReply ping = luna_PingReply_init_zero;
        strcpy(ping.version, "0.1.0");
        ping.chunk_bytes = FAKE_CHUNK_BYTES;
        fake_reply(request, &header, luna_PingReply_fields, &ping, (struct bytes){NULL, 0});
    } else if (request->header.operation == luna_Operation_ATTACH && self->has_leases) {
        luna_AttachReply attach = luna_AttachReply_init_zero;
        strcpy(attach.path, self->lease_path);
        attach.bytes_min = 262144;
        if (self->adapters != NULL) strcpy(attach.adapters, self->adapters);
        fake_reply(request, &header, luna_AttachReply_fields, &attach, (struct bytes){NULL, 0});
    } else {
        fake_fail(request, luna_Code_UNIMPLEMENTED, "not in this test", 0);
    }
}

static void take(struct fake_request *request)
{
    struct fake_daemon *self = request->daemon;
    fake_in_order(self);
    switch (request->header.operation) {
    case luna_Operation_PING:
    case luna_Operation_ATTACH:
        answer_self(request);
        return;
    case luna_Operation_CANCEL:
        if (request->body.size == 2 + CODEC_ID_BYTES &&
            memcmp((const uint8_t *)request->body.data + 2, self->last_id, CODEC_ID_BYTES) == 0) {
            atomic_fetch_add(&self->cancels, 1);
        }
        return;
    default:
        break;
    }
    if (memcmp(self->last_id, request->header.id.bytes, CODEC_ID_BYTES) != 0) self->last_count = 0;
    memcpy(self->last_id, request->header.id.bytes, CODEC_ID_BYTES);
    request->before = self->last_count++;
    atomic_fetch_add(&self->requests, 1);
    self->answer(request);
}

static void receive(struct fake_daemon *self)
{
    zmq_msg_t frames[2 + FAKE_PAYLOADS_MAX];
    uint32_t count = 0;
    struct fake_request request = {.daemon = self};
    struct error error = {0};
    zmq_msg_init(&request.route);
    assert_true(zmq_msg_recv(&request.route, self->router, 0) >= 0);
    do {
        assert_true(count < 2 + FAKE_PAYLOADS_MAX);
        zmq_msg_init(&frames[count]);
        assert_true(zmq_msg_recv(&frames[count], self->router, 0) >= 0);
    } while (zmq_msg_more(&frames[count++]));
    struct bytes parts[2 + FAKE_PAYLOADS_MAX];
    uint64_t sizes[2 + FAKE_PAYLOADS_MAX];
    for (uint32_t i = 0; i < count; i++) {
        parts[i] = (struct bytes){zmq_msg_data(&frames[i]), zmq_msg_size(&frames[i])};
        sizes[i] = parts[i].size;
    }
    assert_true(count >= 2);
    assert_int_equal(codec_decode_header(parts[0], &request.header, &error), STATUS_OK);
    assert_int_equal(codec_check_frames(&request.header, sizes + 2, count - 2, UINT64_MAX, &error),
                     STATUS_OK);
    request.body = parts[1];
    request.payloads_count = count - 2;
    memcpy(request.payloads, parts + 2, (count - 2) * sizeof parts[0]);
    take(&request);
    zmq_msg_close(&request.route);
    while (count > 0) zmq_msg_close(&frames[--count]);
}

static void *serve(void *argument)
{
    struct fake_daemon *self = argument;
    zmq_pollitem_t items[2] = {{.socket = self->router, .events = ZMQ_POLLIN},
                               {.socket = self->end, .events = ZMQ_POLLIN}};
    while (zmq_poll(items, 2, -1) >= 0 && (items[1].revents & ZMQ_POLLIN) == 0) {
        if (items[0].revents & ZMQ_POLLIN) receive(self);
    }
    return NULL;
}

// Starts a fake. Whatever fails here fails the test.
static void fake_daemon_start(struct fake_daemon *self, void (*answer)(struct fake_request *),
                              bool with_leases)
{
    const int none = 0;
    *self = (struct fake_daemon){.answer = answer, .has_leases = with_leases, .lease_session = -1};
    strcpy(self->folder, P_tmpdir "/luna-test-XXXXXX");
    assert_non_null(mkdtemp(self->folder));
    snprintf(self->endpoint, sizeof self->endpoint, "ipc://%s/luna.sock", self->folder);
    snprintf(self->lease_path, sizeof self->lease_path, "%s/lease.sock", self->folder);
    if (with_leases) start_leases(self);
    self->context = zmq_ctx_new();
    self->router = zmq_socket(self->context, ZMQ_ROUTER);
    self->stop = zmq_socket(self->context, ZMQ_PAIR);
    self->end = zmq_socket(self->context, ZMQ_PAIR);
    zmq_setsockopt(self->router, ZMQ_LINGER, &none, sizeof none);
    assert_int_equal(zmq_bind(self->router, self->endpoint), 0);
    assert_int_equal(zmq_bind(self->stop, "inproc://stop"), 0);
    assert_int_equal(zmq_connect(self->end, "inproc://stop"), 0);
    assert_int_equal(pthread_create(&self->thread, NULL, serve, self), 0);
}

// Ends the threads and removes the folder.
static void fake_daemon_stop(struct fake_daemon *self)
{
    char path[80];
    zmq_send(self->stop, "", 0, 0);
    pthread_join(self->thread, NULL);
    zmq_close(self->end);
    zmq_close(self->stop);
    zmq_close(self->router);
    zmq_ctx_term(self->context);
    if (self->has_leases) {
        shutdown(self->lease_listener, SHUT_RDWR);
        pthread_join(self->lease_thread, NULL);
        close(self->lease_listener);
        munmap(self->pool, FAKE_POOL_BYTES);
        close(self->pool_fd);
        unlink(self->lease_path);
    }
    snprintf(path, sizeof path, "%s/luna.sock", self->folder);
    unlink(path);
    rmdir(self->folder);
}

#endif  // TESTS_UNIT_CLIENTS_FAKE_DAEMON_H
