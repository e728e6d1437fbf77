// packet.h - letters between processes: on channels (runtime/channel.h), and who listens for them.

#ifndef ACTORS_PACKET_H
#define ACTORS_PACKET_H

#include <stdint.h>

#include "base/error.h"
#include "messages/actors.pb.h"

// Binds a path, whatever lay there before, and listens for channels. The socket's mode is 0600.
// Ownership: the caller closes *out.
// Errors:    FAILED_PRECONDITION.
// Thread:    any.
enum status packet_listen(int *out, const char *path, struct error *error);

// Accepts a connection that waits, without waiting; says whose process is at the other end.
// Ownership: the caller closes *out.
// Errors:    UNAVAILABLE when none waits; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status packet_accept(int listener, int *out, uint32_t *uid, struct error *error);

// Sends a letter in one packet, and with descriptor (not -1) a copy of that.
// Errors:    those of letter_encode and channel_send.
// Thread:    any.
enum status packet_send_letter(int channel, const luna_Letter *letter, int descriptor);

// Connects to who listens at directory/name.
// Ownership: the caller closes *out.
// Errors:    UNAVAILABLE when nobody listens, RESOURCE_EXHAUSTED, INVALID_ARGUMENT for a path that
//            is too long for a socket.
// Thread:    any.
enum status packet_connect(int *out, const char *directory, const char *name);

// Asks who listens at directory/name one question, and waits at most wait_ms for the answer. A
// connection of its own, so that a listener that was restarted is no special case.
// Ownership: the caller closes *descriptor, which is -1 when the answer brought none.
// Errors:    UNAVAILABLE when nobody listens or answers in time, RESOURCE_EXHAUSTED,
//            INVALID_ARGUMENT for a path that is too long for a socket.
// Thread:    any that may wait.
enum status packet_ask(const char *directory, const char *name, int wait_ms, luna_Letter *letter,
                       int *descriptor);

// Receives a letter. Descriptors that come with it are closed.
// Errors:    those of channel_receive and letter_decode.
// Thread:    any.
enum status packet_receive_letter(int channel, luna_Letter *out);

#endif  // ACTORS_PACKET_H
