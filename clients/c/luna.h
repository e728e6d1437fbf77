// luna.h - libluna, the C client: one connection, one request at a time, answers when they are
// there.
//
//     struct luna_client *client = NULL;
//     luna_client_create(&client, NULL, &error);
//     luna_DecodeLatent body = luna_DecodeLatent_init_zero;
//     struct luna_request request = {.operation = luna_Operation_DECODE_LATENT, .body = &body,
//     ...}; struct luna_answer *answer = NULL; if (luna_client_call(client, &request, &answer,
//     &error) == STATUS_OK) {
//         const struct luna_tensor *image = luna_answer_tensor(answer, "image");
//         ...
//     }
//     luna_answer_destroy(&answer);
//     luna_client_destroy(&client);
//
// A call sends its request again, under the same id, after 1, 2, 4 and then every 4 seconds until
// its deadline; the daemon answers an id once. It waits and tries again when the daemon asks for
// that (retry_after_ms). At its deadline it takes the request back. Large tensors travel in shared
// memory when the daemon is on the same machine, and in frames when that does not work out: the
// caller does not see which.

#ifndef CLIENTS_C_LUNA_H
#define CLIENTS_C_LUNA_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/error.h"
#include "messages/codec.h"

#define LUNA_ENDPOINT_BYTES 256u  // of the longest endpoint, its NUL included
#define LUNA_CONNECT_MS_DEFAULT 3000u
#define LUNA_SHARED_BYTES_MIN 262144u  // tensors below go in frames
#define LUNA_KEY_BYTES 40u             // of a CURVE key as text (Z85)

struct luna_client;

struct luna_client_options {
    const char *endpoint;    // "tcp://…" or "ipc://…"; NULL: found as luna_find_endpoint does
    uint32_t connect_ms;     // how long to wait for a daemon; 0: LUNA_CONNECT_MS_DEFAULT
    bool frames_only;        // no shared memory
    const char *server_key;  // CURVE, Z85: the daemon's public key; NULL: no CURVE
    const char *public_key;  // the client's own pair; with server_key
    const char *secret_key;  // as public_key
};

// A tensor of a request or of an answer: row-major, little-endian.
struct luna_tensor {
    const char *name;  // "image"
    enum dtype dtype;  // one of those that messages know
    uint32_t rank;     // dimensions in use
    uint64_t dims[8];  // each above 0; a text may be [0]
    const void *data;  // no alignment is promised; may be NULL when there are no bytes
    uint64_t bytes;    // of an answer's tensor; a request's follow from dtype and dims
};

// Room for an answer's tensor whose size is known beforehand, so that it may come in shared memory.
struct luna_room {
    const char *name;  // of the answer's tensor
    uint64_t bytes;    // that it will need at most
};

struct luna_request {
    luna_Operation operation;  // what to do
    const void *body;          // luna_…, codec_request_type(operation); NULL: all defaults
    const char *model;         // NULL or "": the only one, or the default
    uint32_t timeout_ms;       // 0: CODEC_TIMEOUT_MS_DEFAULT
    int32_t priority;          // -100 to 100
    bool may_tile;             // tiling = auto may choose tiles
    bool want_trace;           // a tensor "trace" comes where there is one, see luna.proto
    const struct luna_tensor *inputs;  // inputs_count of them
    uint32_t inputs_count;             // inputs and rooms: at most 8 together
    const struct luna_room *rooms;     // rooms_count of them
    uint32_t rooms_count;              // see inputs_count
    // Called for every progress message, on the caller's thread, within the call; NULL: not wanted.
    void (*on_progress)(void *context, uint32_t done, uint32_t total);
    void *context;                      // of on_progress
    const volatile sig_atomic_t *stop;  // becoming non-zero cancels the call; NULL: never
};

struct luna_answer {
    luna_Header header;                             // as received
    const void *body;                               // luna_…, codec_reply_type(operation)
    uint32_t tensors_count;                         // of tensors
    struct luna_tensor tensors[CODEC_TENSORS_MAX];  // valid until luna_answer_destroy
};

// Finds where the daemon listens: explicit (may be NULL), $LUNA_ENDPOINT, the user's socket if it
// exists, the system's, else tcp://127.0.0.1:19283.
// Errors:    INVALID_ARGUMENT for an endpoint that is neither tcp:// nor ipc://, or too long.
// Thread:    any, while nobody changes the environment.
enum status luna_find_endpoint(const char *explicit, char out[LUNA_ENDPOINT_BYTES],
                               struct error *error);

// Connects and waits until the daemon has answered a ping. options may be NULL.
// Ownership: on success the caller owns *out; nothing of options is kept.
// Errors:    UNAVAILABLE when nobody answers at the endpoint; INVALID_ARGUMENT for a bad endpoint
// or
//            key; FAILED_PRECONDITION when the daemon speaks another major version;
//            RESOURCE_EXHAUSTED.
// Thread:    any; the client then belongs to one thread at a time.
enum status luna_client_create(struct luna_client **out, const struct luna_client_options *options,
                               struct error *error);

// Closes the connection, after the client's answers are destroyed. A NULL *self_p is allowed.
void luna_client_destroy(struct luna_client **self_p);

// The endpoint in use; what the daemon said of itself when it was connected.
// Ownership: borrowed, until the client is destroyed.
const char *luna_client_endpoint(const struct luna_client *self);
const luna_PingReply *luna_client_hello(const struct luna_client *self);

// Sends a request and waits for its answer.
// Ownership: on success the caller owns *out; nothing of request is needed afterwards.
// Errors:    what the daemon answered; INVALID_ARGUMENT for a request that breaks a rule of the
//            protocol; DEADLINE_EXCEEDED when time ran out (the request is then taken back);
//            CANCELLED through request->stop; INTERNAL for an answer that cannot be read.
// Thread:    the client's.
enum status luna_client_call(struct luna_client *self, const struct luna_request *request,
                             struct luna_answer **out, struct error *error);

// Releases an answer and its tensors, before the client goes. A NULL *self_p is allowed.
// Thread:    the client's.
void luna_answer_destroy(struct luna_answer **self_p);

// The answer's tensor of this name; NULL when there is none.
// Ownership: borrowed from the answer.
const struct luna_tensor *luna_answer_tensor(const struct luna_answer *self, const char *name);

// A text as an input.
// Ownership: name and text are borrowed.
// Thread:    any.
struct luna_tensor luna_text(const char *name, const char *text);

#endif  // CLIENTS_C_LUNA_H
