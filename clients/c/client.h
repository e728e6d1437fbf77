// client.h - what the files of libluna share.

#ifndef CLIENTS_C_CLIENT_H
#define CLIENTS_C_CLIENT_H

#include <zmq.h>

#include "clients/c/lease.h"
#include "clients/c/luna.h"

// Frames of the longest answer: header, body, payloads.
#define CLIENT_FRAMES_MAX (2u + CODEC_TENSORS_MAX)

struct luna_client {
    void *context;                       // of ZeroMQ, this client's own
    void *socket;                        // DEALER
    char endpoint[LUNA_ENDPOINT_BYTES];  // connected to
    bool may_lease;                      // ipc, and not refused by the caller
    uint64_t attach_ns;                  // before this time no new session is tried
    uint64_t lease_bytes_min;            // smaller tensors go in frames
    struct client_leases *leases;        // NULL: no session
    luna_PingReply hello;                // of the daemon, when it was connected
};

// An answer as it came in.
struct client_frames {
    uint32_t count;                       // of frames, initialised
    zmq_msg_t frames[CLIENT_FRAMES_MAX];  // header, body, payloads
};

// An answer with what it stands on; luna_answer is what the caller sees.
struct client_answer {
    struct luna_answer answer;                      // first: the caller's pointer is ours
    struct luna_client *client;                     // that holds the leases
    struct client_frames frames;                    // payloads point into them
    void *body;                                     // decoded
    uint32_t leases_count;                          // of leases
    struct client_lease leases[CODEC_TENSORS_MAX];  // rooms that the answer used or might have used
};

// Receives one message into *out, without waiting; false when there is none. Frames beyond
// CLIENT_FRAMES_MAX are dropped, and so is an empty first frame.
bool client_receive(struct luna_client *self, struct client_frames *out);

// Releases the frames.
void client_frames_clear(struct client_frames *self);

// Moves all frames to *to, which had none.
void client_frames_move(struct client_frames *to, struct client_frames *from);

// The bytes of a frame, borrowed.
struct bytes client_frame(struct client_frames *self, uint32_t index);

// Makes sure that there is a session at the lease socket, if there can be one; asks at most every
// few seconds.
void client_attach(struct luna_client *self);

// Makes an answer of the frames behind a checked header. Rooms are the leases that the request
// offered, index by index as in its header; bytes 0 where there was none.
// Ownership: on success *out owns frames and rooms (which are then empty); otherwise they stay the
//            caller's.
// Errors:    INTERNAL for an answer that breaks the protocol; RESOURCE_EXHAUSTED.
enum status client_answer_create(struct luna_answer **out, struct luna_client *client,
                                 const luna_Header *header, struct client_frames *frames,
                                 struct client_lease rooms[CODEC_TENSORS_MAX], struct error *error);

#endif  // CLIENTS_C_CLIENT_H
