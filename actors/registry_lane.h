// registry_lane.h - the registry's thread that may wait for the disk: it opens models and says what
// they are.
//
// Orders and results are structs in one frame of an inproc PAIR; both ends are of one process. The
// registry binds REGISTRY_LANE_ADDRESS, the lane connects, and answers each order with one result,
// in order.

#ifndef ACTORS_REGISTRY_LANE_H
#define ACTORS_REGISTRY_LANE_H

#include "actors/model_path.h"
#include "messages/actors.pb.h"
#include "runtime/actor.h"
#include "runtime/config.h"

#define REGISTRY_LANE_ADDRESS "inproc://registry-lane"
#define REGISTRY_FILES_MAX CONFIG_MODEL_FILES_MAX

// What is to be opened.
struct lane_order {
    uint64_t ticket;                                   // comes back with the result
    uint32_t files_count;                              // 1 to REGISTRY_FILES_MAX
    char files[REGISTRY_FILES_MAX][MODEL_PATH_BYTES];  // as people named them
    char embeddings[MODEL_PATH_BYTES];                 // folder; ""
    bool embeddings_anywhere;                          // the configuration names it, not a client
};

// What it is.
struct lane_result {
    uint64_t ticket;                              // of the order
    struct error error;                           // status OK: the rest is set
    struct model_file files[REGISTRY_FILES_MAX];  // as they were when they were opened
    struct model_file embeddings;                 // path "" when there is none
    luna_Model model;                             // kind, offers, bytes
    uint64_t weights_vae_bytes;                   // of the parts
    uint64_t weights_text_bytes;                  // see there
};

// arguments: struct core_arguments
extern const struct actor_kind registry_lane_kind;

#endif  // ACTORS_REGISTRY_LANE_H
