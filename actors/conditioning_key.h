// conditioning_key.h - all that the answer to a text request depends on, as one string of bytes.
//
//     model's number | operation, options, merged | stack: name, content, strengths ... | texts ...
//
// Two requests with the same key get the same answer, byte by byte: notes and names of adapters
// are part of an answer, so names are part of the key.

#ifndef ACTORS_CONDITIONING_KEY_H
#define ACTORS_CONDITIONING_KEY_H

#include "messages/actors.pb.h"
#include "messages/codec.h"
#include "runtime/message.h"

// A request whose key is wanted. All borrowed.
struct conditioning_request {
    uint64_t model;                // of the model as it is now
    bool merged;                   // lora.execution
    const luna_Header *header;     // ENCODE_TEXT or ENCODE_TOKENS
    const luna_EncodeText *body;   // as codec_decode_request gives it
    const struct message *frames;  // header, body, payloads
    const luna_StackEntry *stack;  // resolved, body->loras_count of them
};

// True when the answer to a request may be kept: a text request whose texts or tokens came in
// frames (others may change while they are looked at) and name no embedding, whose file might be
// another one next time.
// Thread:    any.
bool conditioning_may_keep(const luna_Header *header, const luna_EncodeText *body,
                           const struct message *frames);

// Writes the key of a request for which conditioning_may_keep said yes.
// Ownership: the caller frees *out with free().
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status conditioning_key_make(const struct conditioning_request *request, void **out,
                                  uint64_t *bytes);

// True for a tensor of the request that holds an adapter.
// Thread:    any.
bool conditioning_is_adapter(const luna_EncodeText *body, const luna_Tensor *tensor);

#endif  // ACTORS_CONDITIONING_KEY_H
