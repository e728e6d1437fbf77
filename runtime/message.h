// message.h - a multipart ZeroMQ message as one object.
//
// Terms: a message is sent and received whole; it is made of frames; the frames behind header and
// body are payloads. A frame's bytes are immutable once sent: on inproc the receiver gets the very
// same memory.

#ifndef RUNTIME_MESSAGE_H
#define RUNTIME_MESSAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <zmq.h>

#include "base/bytes.h"
#include "base/error.h"

// Frames of the longest message that any actor handles: route, delimiter, letter, header, body, 8
// payloads. A received message with more is read to its end and reported as too long.
#define MESSAGE_FRAMES_MAX 16u

struct message {
    uint32_t count;  // frames in use
    bool overlong;   // received with more than MESSAGE_FRAMES_MAX frames; the rest is dropped
    zmq_msg_t frames[MESSAGE_FRAMES_MAX];  // the first count are initialised
};

// Makes an empty message.
// Thread:    any.
void message_init(struct message *self);

// Releases all frames; the message is empty afterwards.
// Thread:    any.
void message_clear(struct message *self);

// Appends a frame that holds a copy of the bytes.
// Errors:    RESOURCE_EXHAUSTED when memory or frames run out.
enum status message_append(struct message *self, struct bytes bytes);

// Appends a frame that takes over malloc'ed memory; release is called (any thread) when nobody
// needs it.
// Ownership: the memory belongs to the frame on success, and stays the caller's otherwise.
enum status message_append_owned(struct message *self, void *data, uint64_t size,
                                 void (*release)(void *data, void *hint), void *hint);

// Appends another message's frame without copying its bytes.
enum status message_append_shared(struct message *self, struct message *other, uint32_t index);

// Puts a copy of the bytes in front of all frames.
enum status message_prepend(struct message *self, struct bytes bytes);

// Takes the first frame away (released).
void message_drop_first(struct message *self);

// The bytes of a frame, borrowed until the message changes; index is below count.
struct bytes message_frame(const struct message *self, uint32_t index);

// A connection's metadata, such as "User-Id" or "Peer-Address", borrowed until the message changes;
// NULL when it has none. Asks the last frame, because libzmq 4.3.4 loses those of the first.
const char *message_property(const struct message *self, const char *name);

// Moves all frames of one message to another, which was empty.
void message_move(struct message *to, struct message *from);

// Sends without waiting. On success the message is empty; otherwise it is untouched.
// Errors:    RESOURCE_EXHAUSTED when the peer's queue is full (EAGAIN), UNAVAILABLE when there is
// no
//            such peer (EHOSTUNREACH), INTERNAL otherwise.
// Thread:    the socket's.
enum status message_send(struct message *self, void *socket);

// Receives one whole message into an empty *self, without waiting.
// Errors:    UNAVAILABLE when nothing waits, INTERNAL otherwise.
// Thread:    the socket's.
enum status message_receive(struct message *self, void *socket);

// Sum of the frames' bytes.
// Thread:    any.
uint64_t message_bytes(const struct message *self);

#endif  // RUNTIME_MESSAGE_H
