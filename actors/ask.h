// ask.h - requests that the router hands to another actor of the core, and their answers.
//
// An Ask comes with the client's frames (header, body); its Answer goes back with the frames of the
// reply.

#ifndef ACTORS_ASK_H
#define ACTORS_ASK_H

#include "messages/actors.pb.h"
#include "messages/codec.h"
#include "runtime/message.h"

struct ask {
    uint64_t job;        // of the router; comes back with the answer
    bool admin;          // the client's role
    luna_Header header;  // of the request
};

// Reads the request behind an Ask.
// Errors:    those of codec_decode_header and codec_decode_request; out->job is set all the same.
// Thread:    any.
enum status ask_read(const luna_Ask *letter, const struct message *frames, struct ask *out,
                     union codec_request *request, struct error *error);

// Answers with a body of a type (luna_..._fields), or, when error is not NULL, with that error and
// no body.
// Errors:    those of message_send.
// Thread:    the socket's.
enum status ask_answer(void *socket, const struct ask *ask, const pb_msgdesc_t *type,
                       const void *body, const struct error *error);

// Answers with a body and one tensor in a frame: that of *payload, which is empty afterwards, sent
// or not.
// Errors:    those of message_send.
// Thread:    the socket's.
enum status ask_answer_tensor(void *socket, const struct ask *ask, const pb_msgdesc_t *type,
                              const void *body, const luna_Tensor *tensor, struct message *payload);

#endif  // ACTORS_ASK_H
