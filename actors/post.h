// post.h - sending and reading letters (messages/actors.proto) on the edges between actors.

#ifndef ACTORS_POST_H
#define ACTORS_POST_H

#include "messages/actors.pb.h"
#include "runtime/message.h"

// Sends a letter, and behind it the frames of *frames (may be NULL), which is empty afterwards,
// sent or not.
// Errors:    those of message_send.
// Thread:    the socket's.
enum status post_letter(void *socket, const luna_Letter *letter, struct message *frames);

// The same to one peer of a ROUTER socket.
enum status post_letter_to(void *socket, struct bytes connection, const luna_Letter *letter,
                           struct message *frames);

// Reads the first frame as a letter and takes it away. False, with the message as it was, when it
// is none.
// Thread:    any.
bool post_read(struct message *message, luna_Letter *out);

// Receives at most LOOP_BATCH_MAX letters without waiting and hands each to on_letter, with the
// frames behind it, which it may take. What is no letter is dropped. on_letter leaves the socket
// open.
// Thread:    the socket's.
void post_each(void *socket,
               void (*on_letter)(void *state, const luna_Letter *letter, struct message *frames),
               void *state);

// The same on a ROUTER socket; from names the connection as post_letter_to wants it.
void post_each_from(void *socket,
                    void (*on_letter)(void *state, struct bytes from, const luna_Letter *letter,
                                      struct message *frames),
                    void *state);

#endif  // ACTORS_POST_H
