// registry_state.h - the registry's private state, shared by registry.c (the actor) and
// registry_asks.c (what clients ask of it) and nobody else.

#ifndef ACTORS_REGISTRY_STATE_H
#define ACTORS_REGISTRY_STATE_H

#include "actors/ask.h"
#include "actors/device_table.h"
#include "actors/registry_lane.h"

#define REGISTRY_MODELS_MAX 128u
#define REGISTRY_OPENINGS_MAX                                                                      \
    96u  // the configuration's models and those that clients register meanwhile
#define REGISTRY_WAITS_MAX 64u

_Static_assert(REGISTRY_OPENINGS_MAX > CONFIG_MODELS_MAX,
               "all the configuration's models are opened at once");

struct loaded_on {
    char device[32];  // name
    uint32_t users;   // workers there
};

struct entry {
    bool opened;           // the files are known; false: the model failed
    luna_Model model;      // as clients see it, but loaded_on, users and state
    uint32_t files_count;  // of files
    struct model_file files[REGISTRY_FILES_MAX];  // as they were opened
    struct model_file embeddings;                 // path "" when there is none
    uint64_t generation;                          // digest of files and embeddings
    uint64_t weights_vae_bytes;                   // of the parts
    uint64_t weights_text_bytes;                  // see there
    uint32_t loaded_count;                        // entries of loaded
    struct loaded_on loaded[DEVICE_TABLE_MAX];    // devices that hold it
    bool loading;                                 // an executor was told to load it
};

// A model whose files are being opened.
struct opening {
    uint64_t ticket;       // of the order; 0: the entry is free
    char name[64];         // of the model
    uint32_t files_count;  // of the order
    bool asked;            // by a client, who waits for the answer
    struct ask ask;        // with asked
};

// A client who waits for a model to be loaded, or unloaded.
struct wait {
    bool used;       // the entry is one
    char name[64];   // of the model
    bool unload;     // waits for its end
    struct ask ask;  // to be answered
};

struct registry {
    const struct actor_context *context;             // as actor.h gives it
    const struct config *config;                     // of the daemon
    void *executors;                                 // ROUTER
    void *router;                                    // PAIR
    void *scaler;                                    // PAIR
    void *lane_socket;                               // PAIR
    void *events;                                    // PUSH, never read
    struct loop_socket *watch_executors;             // of executors
    struct loop_socket *watch_router;                // of router
    struct loop_socket *watch_scaler;                // of scaler
    struct loop_socket *watch_lane;                  // of lane_socket
    struct actor *lane;                              // reads headers
    struct device_table devices;                     // executors
    uint64_t tickets;                                // the last one given out
    uint32_t openings_count;                         // entries of openings in use
    struct opening openings[REGISTRY_OPENINGS_MAX];  // in no order
    struct wait waits[REGISTRY_WAITS_MAX];           // in no order
    uint32_t count;                                  // entries of models
    struct entry models[REGISTRY_MODELS_MAX];        // in the order in which they were registered
};

// The model of that name; NULL when there is none.
struct entry *registry_find(struct registry *self, const char *name);

// The model as clients see it.
luna_Model registry_public_model(const struct entry *entry);

// Tells router, scaler and monitor how the model stands.
void registry_tell_notice(struct registry *self, const struct entry *entry);

// Posts a letter to the executor behind a connection.
void registry_post_to_executor(struct registry *self, struct bytes connection,
                               const luna_Letter *letter);

// Answers with the model, or, when error is not NULL, with that.
void registry_answer(struct registry *self, const struct ask *ask, const struct entry *entry,
                     const struct error *error);

// Sends the order whose files are set; the caller sets the opening's ask.
// Errors:    RESOURCE_EXHAUSTED.
enum status registry_start_opening(struct registry *self, const char *name,
                                   struct lane_order *order, struct opening **out,
                                   struct error *error);

// registry_asks.c: a letter of the router with a client's request behind it.
void registry_on_ask(struct registry *self, const luna_Ask *letter, const struct message *frames);

#endif  // ACTORS_REGISTRY_STATE_H
