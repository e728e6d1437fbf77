// message.c - frames in a fixed array; message.h holds the contract.
//
// A send works on references (zmq_msg_copy counts, it does not copy) and gives up the originals
// only after the last frame is on its way: libzmq may refuse in the middle of a message when the
// peer dies there (it rolls back what it has), and the caller then still has the whole message.

#include "runtime/message.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

// EINTR without a wait means a signal in that very instant, or a context that a fork inherited and
// that will never answer anything else. So it is retried, but not for ever.
#define INTERRUPTIONS_MAX 16

// ThreadSanitizer cannot see that a message orders what its sender and its receiver do: libzmq is
// not instrumented. So builds with it say so, for all messages of the process together.
#ifdef __SANITIZE_THREAD__
void __tsan_acquire(void *address);
void __tsan_release(void *address);
static char hand_over;

// Its lock-free pipes order memory with atomics that are not seen either. The same as tsan.supp of
// the tests, for the daemon's own processes.
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "race:libzmq.so\n";
}

#define BEFORE_SEND() __tsan_release(&hand_over)
#define AFTER_RECEIVE() __tsan_acquire(&hand_over)
#else
#define BEFORE_SEND() (void)0
#define AFTER_RECEIVE() (void)0
#endif

void message_init(struct message *self)
{
    assert(self != NULL);
    self->count = 0;
    self->overlong = false;
}

void message_clear(struct message *self)
{
    assert(self != NULL);
    assert(self->count <= MESSAGE_FRAMES_MAX);
    for (uint32_t i = 0; i < self->count; i++) {
        int failed = zmq_msg_close(&self->frames[i]);
        assert(!failed);
    }
    message_init(self);
}

enum status message_append(struct message *self, struct bytes bytes)
{
    assert(self != NULL);
    assert(self->count <= MESSAGE_FRAMES_MAX);
    assert(bytes.data != NULL || bytes.size == 0);
    if (self->count == MESSAGE_FRAMES_MAX) return STATUS_RESOURCE_EXHAUSTED;

    zmq_msg_t *frame = &self->frames[self->count];
    if (zmq_msg_init_size(frame, bytes.size) != 0) return STATUS_RESOURCE_EXHAUSTED;
    if (bytes.size > 0) memcpy(zmq_msg_data(frame), bytes.data, bytes.size);
    self->count++;
    return STATUS_OK;
}

enum status message_append_owned(struct message *self, void *data, uint64_t size,
                                 void (*release)(void *data, void *hint), void *hint)
{
    assert(self != NULL);
    assert(data != NULL);
    assert(release != NULL);
    if (self->count >= MESSAGE_FRAMES_MAX) return STATUS_RESOURCE_EXHAUSTED;

    zmq_msg_t *frame = &self->frames[self->count];
    if (zmq_msg_init_data(frame, data, size, release, hint) != 0) {
        return STATUS_RESOURCE_EXHAUSTED;
    }
    self->count++;
    return STATUS_OK;
}

enum status message_append_shared(struct message *self, struct message *other, uint32_t index)
{
    assert(self != NULL);
    assert(other != NULL);
    assert(index < other->count);
    if (self->count >= MESSAGE_FRAMES_MAX) return STATUS_RESOURCE_EXHAUSTED;

    zmq_msg_t *frame = &self->frames[self->count];
    zmq_msg_init(frame);
    if (zmq_msg_copy(frame, &other->frames[index]) != 0) {
        zmq_msg_close(frame);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    self->count++;
    return STATUS_OK;
}

enum status message_prepend(struct message *self, struct bytes bytes)
{
    enum status status = message_append(self, bytes);
    if (status != STATUS_OK) return status;

    zmq_msg_t added;
    zmq_msg_init(&added);
    zmq_msg_move(&added, &self->frames[self->count - 1]);
    for (uint32_t i = self->count - 1; i > 0; i--) {
        zmq_msg_move(&self->frames[i], &self->frames[i - 1]);
    }
    zmq_msg_move(&self->frames[0], &added);
    zmq_msg_close(&added);
    return STATUS_OK;
}

void message_drop_first(struct message *self)
{
    assert(self != NULL);
    assert(self->count > 0);
    assert(self->count <= MESSAGE_FRAMES_MAX);
    for (uint32_t i = 0; i + 1 < self->count; i++) {
        zmq_msg_move(&self->frames[i], &self->frames[i + 1]);  // releases what was there
    }
    self->count--;
    zmq_msg_close(&self->frames[self->count]);
}

struct bytes message_frame(const struct message *self, uint32_t index)
{
    assert(self != NULL);
    assert(index < self->count);
    // zmq_msg_data does not write, its prototype merely lacks the const.
    zmq_msg_t *frame = (zmq_msg_t *)(uintptr_t)&self->frames[index];
    return (struct bytes){zmq_msg_data(frame), zmq_msg_size(frame)};
}

const char *message_property(const struct message *self, const char *name)
{
    assert(self != NULL);
    assert(name != NULL);
    if (self->count == 0) return NULL;
    return zmq_msg_gets(&self->frames[self->count - 1], name);
}

void message_move(struct message *to, struct message *from)
{
    assert(to != from);
    assert(to->count == 0);
    for (uint32_t i = 0; i < from->count; i++) {
        zmq_msg_init(&to->frames[i]);
        zmq_msg_move(&to->frames[i], &from->frames[i]);
    }
    to->count = from->count;
    to->overlong = from->overlong;
    message_clear(from);
}

// zmq_msg_send or zmq_msg_recv without waiting; returns 0 or an errno.
static int transfer(int (*call)(zmq_msg_t *frame, void *socket, int flags), zmq_msg_t *frame,
                    void *socket, int flags)
{
    for (int i = 0; i < INTERRUPTIONS_MAX; i++) {
        if (call(frame, socket, flags | ZMQ_DONTWAIT) >= 0) return 0;
        if (errno != EINTR) return errno;
    }
    return EINTR;
}

// Makes libzmq hear that the peer has taken messages. A send does so by itself only about once in a
// millisecond, and answers EAGAIN in between although there is room.
static void refresh(void *socket)
{
    int events = 0;
    size_t size = sizeof events;
    zmq_getsockopt(socket, ZMQ_EVENTS, &events, &size);
}

enum status message_send(struct message *self, void *socket)
{
    assert(self != NULL);
    assert(socket != NULL);
    assert(self->count > 0);
    assert(self->count <= MESSAGE_FRAMES_MAX);

    int failure = 0;
    for (uint32_t i = 0; i < self->count && failure == 0; i++) {
        zmq_msg_t reference;
        zmq_msg_init(&reference);
        BEFORE_SEND();
        failure = zmq_msg_copy(&reference, &self->frames[i]) == 0 ? 0 : errno;
        int flags = i + 1 < self->count ? ZMQ_SNDMORE : 0;
        if (failure == 0) failure = transfer(zmq_msg_send, &reference, socket, flags);
        if (failure == EAGAIN && i == 0) {
            refresh(socket);
            failure = transfer(zmq_msg_send, &reference, socket, flags);
        }
        zmq_msg_close(&reference);
    }
    switch (failure) {
    case 0:
        message_clear(self);
        return STATUS_OK;
    case EAGAIN:
    case ENOMEM:
        return STATUS_RESOURCE_EXHAUSTED;
    case EHOSTUNREACH:
        return STATUS_UNAVAILABLE;
    default:
        return STATUS_INTERNAL;
    }
}

// Receives one frame behind those that *self has, or lets it go when there is no room.
static int receive_frame(struct message *self, void *socket, bool *more)
{
    zmq_msg_t frame;
    zmq_msg_init(&frame);
    int failure = transfer(zmq_msg_recv, &frame, socket, 0);
    if (failure == 0) {
        AFTER_RECEIVE();
        *more = zmq_msg_more(&frame) != 0;
        if (self->count < MESSAGE_FRAMES_MAX) {
            zmq_msg_init(&self->frames[self->count]);
            zmq_msg_move(&self->frames[self->count], &frame);
            self->count++;
        } else {
            self->overlong = true;
        }
    }
    zmq_msg_close(&frame);
    return failure;
}

enum status message_receive(struct message *self, void *socket)
{
    assert(self != NULL);
    assert(socket != NULL);
    assert(self->count == 0);

    self->overlong = false;
    bool more = false;
    int failure = receive_frame(self, socket, &more);
    if (failure == EAGAIN) return STATUS_UNAVAILABLE;
    while (failure == 0 && more) failure = receive_frame(self, socket, &more);
    if (failure == 0) return STATUS_OK;
    message_clear(self);
    return STATUS_INTERNAL;
}

uint64_t message_bytes(const struct message *self)
{
    assert(self != NULL);
    assert(self->count <= MESSAGE_FRAMES_MAX);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < self->count; i++) sum += zmq_msg_size(&self->frames[i]);
    return sum;
}
