// registry_state.h - the registry's private state, shared by its three files and nobody else.
//
//     registry.c        the actor: names, files, executors, what others are told
//     registry_loads.c  which device holds which networks, and who waits for that
//     registry_asks.c   what clients ask

#ifndef ACTORS_REGISTRY_STATE_H
#define ACTORS_REGISTRY_STATE_H

#include "actors/ask.h"
#include "actors/device_table.h"
#include "actors/pair.h"
#include "actors/registry_lane.h"
#include "runtime/socket.h"

#define REGISTRY_MODELS_MAX 128u
// At a start the configuration's models and those that clients had registered; later, what clients
// ask for at once.
#define REGISTRY_OPENINGS_MAX (CONFIG_MODELS_MAX + REGISTRY_MODELS_MAX)
#define REGISTRY_WAITS_MAX 64u

// A model on one device.
struct presence {
    char device[32];             // name
    uint32_t users;              // workers there
    bool has_vae, has_text;      // networks that the executor holds
    bool wants_vae, wants_text;  // networks that it was told to load and has not told about since
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
    struct lane_order order;                      // as it was opened, to open it again
    bool is_client;                               // a client registered it
    uint32_t presences_count;                     // entries of presences
    struct presence presences[DEVICE_TABLE_MAX];  // devices that hold it, or are to
};

// A model whose files are being opened.
struct opening {
    struct lane_order order;  // as it was sent; ticket 0: the entry is free
    char name[64];            // of the model
    bool is_client;           // a client registered it, now or before the core died
    bool asked;               // by a client, who waits for the answer
    bool loads;               // with asked: the client wants it loaded
    struct ask ask;           // with asked
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
    struct pair lane_pair;                           // to the lane
    void *events;                                    // PUSH, never read
    char store_path[SOCKET_ENDPOINT_BYTES];          // what clients registered; see model_store.h
    struct loop_socket *watch_executors;             // of executors
    struct loop_socket *watch_router;                // of router
    struct loop_socket *watch_scaler;                // of scaler
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

// An event about the model, for people and the log; device may be "".
void registry_tell_event(struct registry *self, const char *topic, const struct entry *entry,
                         const char *device, const struct error *told);

// Posts a letter to the executor behind a connection.
void registry_post_to_executor(struct registry *self, struct bytes connection,
                               const luna_Letter *letter);

// Answers with the model, or, when error is not NULL, with that.
void registry_answer(struct registry *self, const struct ask *ask, const struct entry *entry,
                     const struct error *error);

// Sends the order, whose files are set; the caller says in the opening what is to follow.
// Errors:    RESOURCE_EXHAUSTED.
enum status registry_start_opening(struct registry *self, const char *name,
                                   const struct lane_order *order, struct opening **out,
                                   struct error *error);

// registry_loads.c

// True when some device holds something of it.
bool registry_is_loaded(const struct entry *entry);

// True when the device may hold it: has_vae, has_text or a load under way.
bool presence_is_loading(const struct presence *presence);
bool presence_is_loaded(const struct presence *presence);

// Has every network of the model loaded on a device that serves it; answers the ask then.
// Errors:    UNAVAILABLE when no device is there, RESOURCE_EXHAUSTED; the ask is still to be
//            answered.
enum status registry_load(struct registry *self, const struct ask *ask, struct entry *entry,
                          struct error *error);

// Answers the ask once no device holds the model any more.
// Errors:    RESOURCE_EXHAUSTED; the ask is still to be answered.
enum status registry_unload(struct registry *self, const struct ask *ask, struct entry *entry,
                            struct error *error);

// What an executor told.
void registry_on_loaded(struct registry *self, const luna_ModelLoaded *loaded);

// The device's executor is another one, or none: it holds nothing.
void registry_forget_device(struct registry *self, const char *device);

// registry_asks.c: a letter of the router with a client's request behind it.
void registry_on_ask(struct registry *self, const luna_Ask *letter, const struct message *frames);

#endif  // ACTORS_REGISTRY_STATE_H
