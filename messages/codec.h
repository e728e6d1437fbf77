// codec.h - between frames and structs: what comes in is checked here, once, before anything is
// allocated.
//
// Nobody else calls nanopb. It accepts what a daemon must not: strings that are not UTF-8 or hold a
// NUL, numbers that no enum has, an empty frame as a message of defaults. So a struct that these
// functions return with OK keeps every promise of messages/luna.proto, with defaults filled in.
//
//     luna_Header header;
//     struct error error = {0};
//     if (codec_decode_header(frame, &header, &error) != STATUS_OK) {
//         codec_peek_header(frame, &header);      // whom to answer, as far as it can be read
//         ...
//     }
//     codec_check_frames(&header, sizes, count, message_bytes_max, &error);
//     codec_decode_request(&header, body, &request, &error);

#ifndef MESSAGES_CODEC_H
#define MESSAGES_CODEC_H

#include <stdbool.h>
#include <stdint.h>

#include <pb.h>

#include "base/bytes.h"
#include "base/dtype.h"
#include "base/error.h"
#include "base/status.h"
#include "messages/luna.pb.h"

#define CODEC_MAJOR 1u
#define CODEC_MINOR 0u
#define CODEC_ID_BYTES 16u
#define CODEC_TRACE_TENSOR "trace"  // of an answer to who set want_trace
#define CODEC_TENSORS_MAX 8u
#define CODEC_TIMEOUT_MS_DEFAULT 120000u
#define CODEC_PRIORITY_MAX 100

// Bytes of the longest header or body that is read, unknown fields of newer minors included.
#define CODEC_FRAME_BYTES_MAX 65535u

// Bytes that the longest header and the longest body take when we write them.
#define CODEC_HEADER_BYTES_MAX luna_Header_size
#define CODEC_BODY_BYTES_MAX luna_ModelListReply_size
_Static_assert(CODEC_HEADER_BYTES_MAX <= CODEC_FRAME_BYTES_MAX, "we read what we write");
_Static_assert(CODEC_BODY_BYTES_MAX <= CODEC_FRAME_BYTES_MAX, "we read what we write");
_Static_assert(CODEC_BODY_BYTES_MAX >= luna_Status_size, "the longest body");
_Static_assert(CODEC_BODY_BYTES_MAX >= luna_EncodeText_size, "the longest body");
_Static_assert(CODEC_BODY_BYTES_MAX >= luna_LoraListReply_size, "the longest body");

// Where an encoder writes.
struct codec_buffer {
    void *data;         // the caller's
    uint64_t capacity;  // bytes at data
    uint64_t size;      // bytes written, set on success
};

// Limits that are configured, not part of the protocol.
struct codec_limits {
    uint64_t text_bytes_max;    // of one text
    uint64_t image_pixels_max;  // of all images of a request
};

// The body of a request, by its header's operation.
union codec_request {
    luna_EncodeImage encode_image;      // ENCODE_IMAGE
    luna_DecodeLatent decode_latent;    // DECODE_LATENT
    luna_EncodeText encode_text;        // ENCODE_TEXT, ENCODE_TOKENS
    luna_Tokenize tokenize;             // TOKENIZE
    luna_LoraPut lora_put;              // LORA_PUT
    luna_LoraName lora_name;            // LORA_HAS, LORA_PIN, LORA_UNPIN, LORA_EVICT
    luna_LoraGet lora_get;              // LORA_GET
    luna_ModelRegister model_register;  // MODEL_REGISTER
    luna_ModelName model_name;          // MODEL_LOAD, MODEL_UNLOAD
    luna_Page page;                     // LORA_LIST, MODEL_LIST
    luna_Cancel cancel;                 // CANCEL
    luna_Limits limits;                 // LIMITS
    luna_Empty empty;                   // all others
};

// Reads a header of either direction and checks all that can be checked without its payloads; see
// messages/luna.proto for the rules. A request without timeout_ms gets the default; a timeout of 0
// is valid here (its answer is DEADLINE_EXCEEDED, which the caller gives).
// Errors:    FAILED_PRECONDITION with the supported range for another major version, UNIMPLEMENTED
//            for an operation of a newer minor, INVALID_ARGUMENT for everything else.
// Thread:    any.
enum status codec_decode_header(struct bytes frame, luna_Header *out, struct error *error);

// Reads from a header that may be broken whom to answer: version, kind, id, operation; everything
// else is zero. Returns whether there was an id; without one *out carries 16 zero bytes.
// Thread:    any.
bool codec_peek_header(struct bytes frame, luna_Header *out);

// Checks as codec_decode_header does and writes the header; CODEC_HEADER_BYTES_MAX always suffice.
// Errors:    those of codec_decode_header; RESOURCE_EXHAUSTED when the buffer is too small.
// Thread:    any.
enum status codec_encode_header(const luna_Header *header, struct codec_buffer *out,
                                struct error *error);

// Checks that the payload frames are those that the header's tensors announce: as many, each of the
// announced size, in all at most message_bytes_max.
// Errors:    INVALID_ARGUMENT.
// Thread:    any.
enum status codec_check_frames(const luna_Header *header, const uint64_t *sizes, uint32_t count,
                               uint64_t message_bytes_max, struct error *error);

// Finds an input tensor (of a request) or an output (of an answer) by name; NULL when there is
// none. *payload, unless NULL, becomes its payload's number, or UINT32_MAX when its bytes are in
// shared memory or device memory.
// Ownership: borrowed from the header.
// Thread:    any.
const luna_Tensor *codec_find_tensor(const luna_Header *header, const char *name,
                                     uint32_t *payload);

// Finds the room that a request offers for the answer's tensor of this name; NULL for none.
// Ownership: borrowed from the header.
// Thread:    any.
const luna_Tensor *codec_find_room(const luna_Header *header, const char *name);

// Reads the body of a request and checks it together with the header's tensors: those that the
// operation takes are there, with the ranks and types it takes, and no others. Fills in defaults:
// tile, overlap, passes, output; multiplier and scalings 1; strength_l and strength_g from
// strength. On failure the content of *out is not to be used.
// Errors:    INVALID_ARGUMENT; UNIMPLEMENTED for a number that is no operation.
// Thread:    any.
enum status codec_decode_request(const luna_Header *header, struct bytes frame,
                                 union codec_request *out, struct error *error);

// Checks a request's texts and images against the configured limits.
// Errors:    INVALID_ARGUMENT that names both sizes.
// Thread:    any.
enum status codec_check_limits(const luna_Header *header, const struct codec_limits *limits,
                               struct error *error);

// Reads any message of messages/luna.proto or actors.proto (type is luna_…_fields): well formed,
// strings valid, nothing else checked. On failure the content of *out is not to be used.
// Errors:    INVALID_ARGUMENT.
// Thread:    any.
enum status codec_decode(const pb_msgdesc_t *type, struct bytes frame, void *out,
                         struct error *error);

// Writes any message; luna_…_size bytes always suffice.
// Errors:    INVALID_ARGUMENT for a string that is not UTF-8, RESOURCE_EXHAUSTED when the buffer is
//            too small.
// Thread:    any.
enum status codec_encode(const pb_msgdesc_t *type, const void *message, struct codec_buffer *out,
                         struct error *error);

// The types of an operation's bodies; NULL for a number that is no operation.
// Thread:    any.
const pb_msgdesc_t *codec_request_type(luna_Operation operation);
const pb_msgdesc_t *codec_reply_type(luna_Operation operation);

// The operation's name as in messages/luna.proto, "ENCODE_IMAGE"; NULL for a number that is none.
// Thread:    any.
const char *codec_operation_name(luna_Operation operation);

// True for a name that a model or a tensor may have: letters, digits, and . _ - inside; 1 to 63
// bytes.
// Thread:    any.
bool codec_name_valid(const char *name);

// Makes the header of the final answer to a request: code OK, no tensors.
// Thread:    any.
void codec_start_reply(const luna_Header *request, luna_Header *out);

// Copies an error into an answer, and out of one; codec_get_error returns the answer's status.
// Thread:    any.
void codec_set_error(luna_Header *answer, const struct error *error);
enum status codec_get_error(const luna_Header *answer, struct error *error);

#endif  // MESSAGES_CODEC_H
