// lora_lane.h - the LoRA store's threads that may wait: they walk folders, open, hash, write, read.
//
// Orders are structs in the first frame of an inproc PAIR, bytes that are to be written are the
// second; the store binds lora_lane_address, a lane connects, and answers each order with one
// result, in order. A result owns what it brings (descriptors, files found, bytes read): it comes
// as the memory of its frame, and whoever takes something out leaves -1 or NULL in its place. What
// is still in it when the frame goes is closed and freed, also when nobody received it.

#ifndef ACTORS_LORA_LANE_H
#define ACTORS_LORA_LANE_H

#include <stdatomic.h>

#include "actors/lora_scan.h"
#include "runtime/actor.h"
#include "runtime/message.h"

#define LORA_LANES 2u  // so that one slow file holds up half of them

enum lora_order_kind {
    LORA_SCAN,    // walk the directories
    LORA_LOAD,    // open a file of theirs, describe it, hash it unless its facts are known
    LORA_WRITE,   // write bytes to an upload at offset
    LORA_FINISH,  // all bytes are there: seal, describe and hash an upload
    LORA_TAKE,    // WRITE and FINISH at once, into memory that the lane makes
    LORA_READ,    // bytes of a file at offset
    LORA_CLOSE,   // close descriptors, which may take long for memory
};

struct lora_order {
    enum lora_order_kind kind;
    uint64_t ticket;                // comes back with the result
    bool has_lane;                  // it is for this lane; else for the one that is least busy:
    uint32_t lane;                  // below LORA_LANES
    char name[LORA_PATH_BYTES];     // LOAD: path below the directory; else what messages call it
    const char *directory;          // LOAD
    bool known;                     // LOAD: facts are those of the file with this identity
    struct lora_identity identity;  // LOAD with known; READ of a file: refuse when it changed
    struct lora_facts facts;        // LOAD with known
    int descriptor;                 // WRITE, FINISH: borrowed until the result; READ, CLOSE: owned
    int second;                     // CLOSE: owned, or -1
    bool check_identity;            // READ
    uint64_t offset, bytes;         // WRITE, READ
    bool shared;                    // WRITE, TAKE: the bytes are in a pool, not in a frame:
    uint32_t pool;                  // number
    uint64_t pool_offset;           // of the first byte
    bool encoder_only;              // TAKE: nobody needs the hash over all tensors
};

struct lora_result {
    enum lora_order_kind kind;      // of the order
    uint64_t ticket;                // of the order
    struct error error;             // status OK: the rest is set
    struct lora_facts facts;        // LOAD, FINISH, TAKE
    struct lora_identity identity;  // LOAD: as it was opened
    int file;                       // LOAD, TAKE: owned; FINISH: -1, it is the order's
    int encoder;                    // LOAD, FINISH, TAKE of a torch file: owned; else -1
    double load_ms;                 // of this order
    struct lora_scan scan;          // SCAN: owned
    void *data;                     // READ: owned, malloc'ed
    uint64_t data_bytes;            // of data
};

struct lora_lane_arguments {
    const struct core_arguments *core;  // of the actors
    uint32_t index;                     // below LORA_LANES
    int inotify;                        // for the folders of a scan; -1
    const _Atomic bool *stop;           // set: give up what takes long
};

// Writes the address of a lane.
// Thread:    any.
void lora_lane_address(char out[64], uint32_t index);

// The result in a frame that a lane sent, borrowed until the message is cleared.
// Thread:    that of the receiver.
struct lora_result *lora_lane_result(struct message *message);

// arguments: struct lora_lane_arguments
extern const struct actor_kind lora_lane_kind;

#endif  // ACTORS_LORA_LANE_H
