// executor_state.h - the executor's private state, shared by its five files and nobody else.
//
//     executor.c          the actor: creation, device, letters of scaler and registry
//     executor_models.c   names, files, networks; what is loaded and what goes
//     executor_workers.c  workers: spawn, memory for their arenas, retirement
//     executor_stacks.c   adapters and merged copies
//     executor_loans.c    device memory for clients

#ifndef ACTORS_EXECUTOR_STATE_H
#define ACTORS_EXECUTOR_STATE_H

#include "actors/executor.h"
#include "actors/executor_loans.h"
#include "actors/executor_stacks.h"
#include "actors/ledger.h"
#include "actors/pair.h"

#define EXECUTOR_MODELS_MAX 64u
#define EXECUTOR_WORKERS_MAX 16u
#define EXECUTOR_LOOK_MS 250u       // between looks at the memory of a GPU
#define EXECUTOR_LOOKS_A_REPORT 4u  // a report each second, whatever changed
#define EXECUTOR_REPORT_MS (EXECUTOR_LOOKS_A_REPORT * EXECUTOR_LOOK_MS)
#define EXECUTOR_CHANGE_BYTES (UINT64_C(16) << 20)  // that are reported at once
#define EXECUTOR_DEFINITION_MS 5000u  // that a worker waits for its model's definition
#define EXECUTOR_MEMORY_MS 100u       // that what the system said of its memory holds
#define EXECUTOR_MARGIN_CPU_MB 512u   // where the configuration says auto
#define EXECUTOR_MARGIN_GPU_MB 2048u  // likewise
#define EXECUTOR_DISTRUST_MS 2000u    // that a promise that did not hold makes others smaller
#define EXECUTOR_CONNECTION_BYTES 8u  // of a worker, as the ROUTER names it: five

// A model name as the registry defined it, and its networks once a worker needed them.
struct model_entry {
    luna_ModelDefinition definition;   // name "" for a free entry
    struct loaded *loaded[3];          // by group; NULL: not loaded
    bool loading[3];                   // the loader works on it
    bool is_second_try[3];             // memory lacked in spite of the plan, once
    uint64_t promised_bytes[3];        // reserved for it while it loads
    uint64_t planned_bytes[3];         // what the device says it takes; 0: was not asked yet
    uint64_t wanted_bytes[3];          // to load it: as planned, or more where that was too little
    uint64_t used_ns[3];               // when a worker used it last, or it was loaded
    char hash_vae[65], hash_text[65];  // content ids, once known
};

struct worker_entry {
    uint64_t id;              // 0 for a free entry
    struct actor *actor;      // NULL while its networks load
    struct loaded *loaded;    // that it runs; its model's, or of older files that only it keeps
    luna_Service service;     // group and model
    uint64_t reserved_bytes;  // of its arena
    uint64_t spawned_ns;      // when the scaler asked for it
    bool retiring;            // told to drain
    // Its connection; connection_bytes is 0 before its first letter.
    uint8_t connection[EXECUTOR_CONNECTION_BYTES];
    uint32_t connection_bytes;
};

struct executor {
    const struct actor_context *context;  // as actor.h gives it
    struct executor_arguments arguments;  // as the process gave them
    struct actor_host host;               // for the workers
    struct device *devices[3];            // the one, by group: two where their precisions differ
    bool is_gpu;                          // it has memory of its own
    struct ledger ledger;                 // its memory
    uint64_t margin_bytes;                // that stay free when weights are loaded
    uint64_t own_margin_bytes;            // where the configuration says auto
    uint64_t distrusted_ns;               // when a promise did not hold last; 0: all did of late
    uint64_t memory_read_ns;              // when the system was asked last; 0: ask again
    struct torch_reader torch;            // for the loader
    struct executor_stacks *stacks;       // adapters and merged copies
    struct executor_loans *loans;         // device memory for clients; NULL: the device has none
    struct actor *loader;                 // reads files
    struct pair loader_pair;              // to it
    void *scaler, *registry;              // DEALER
    void *workers_router;                 // ROUTER, from the workers
    struct loop_socket *watches[3];       // scaler, registry, workers
    struct loop_timer *report;            // looks; DeviceReport each second, and at changes
    uint32_t looks;                       // at the memory of a GPU
    uint64_t told_free_bytes;             // in the last report
    struct model_entry models[EXECUTOR_MODELS_MAX];
    struct worker_entry workers[EXECUTOR_WORKERS_MAX];
    uint32_t workers_started;  // low 16 bits of the next worker's id
};

enum executor_watch {
    WATCH_SCALER,
    WATCH_REGISTRY,
    WATCH_WORKERS,
};

// Now, on the actor's clock.
uint64_t executor_now(const struct executor *self);
// What is told of the device.
void executor_describe(struct executor *self, luna_DeviceReport *out);
// Sends a letter to the scaler or the registry; one that does not fit is dropped and logged.
void executor_tell(struct executor *self, enum executor_watch to, const luna_Letter *letter);
// Asks the system, or the driver of a GPU, what is free, for the ledger, unless it was asked a
// moment ago. A broken GPU ends the process.
void executor_read_memory(struct executor *self);
// Ends the process: the device works no more in it, and another may do better.
_Noreturn void executor_end_broken(struct executor *self, const char *why);
// Memory was given back: what the system said does not hold any more.
void executor_forget_memory(struct executor *self);
// Tells scaler and registry how the device stands.
void executor_report(struct executor *self);

// NULL when the name is not known; "" finds a free entry.
struct model_entry *executor_find_model(struct executor *self, const char *name);
// Workers of a model, of one group or (GROUP_NONE) of both.
uint32_t executor_users(const struct executor *self, const char *model, luna_Group group);
uint64_t executor_model_bytes(const struct model_entry *model);
// Tells the registry how a model stands here; error may be NULL.
void executor_tell_model(struct executor *self, const struct model_entry *model,
                         const struct error *error);
// Ends an idle merged copy or adapter, or unloads the least recently used networks that no worker
// uses; false when there are none.
bool executor_evict_one(struct executor *self);
// Of networks that no worker uses.
uint64_t executor_idle_bytes(const struct executor *self);
// Reserves the memory and has the network loaded, where that is not under way.
// Errors:    RESOURCE_EXHAUSTED names what is free, what is needed, and the margin.
enum status executor_ask_loader(struct executor *self, struct model_entry *model, luna_Group group,
                                struct error *error);
// The loaded networks of a worker that is gone: they go too where no model's name stands for them
// any more.
void executor_release(struct executor *self, struct loaded *loaded);
// What the registry says.
void executor_define_model(struct executor *self, const luna_ModelDefinition *definition);
void executor_load_model(struct executor *self, const luna_LoadModel *letter);
void executor_unload_model(struct executor *self, const char *name);
// What the loader answers.
void executor_on_loader(void *state);

// What the scaler says.
void executor_spawn(struct executor *self, const luna_Spawn *letter);
void executor_retire(struct executor *self, uint64_t id);
void executor_tell_worker_up(struct executor *self, const struct worker_entry *worker);
void executor_start_worker(struct executor *self, struct worker_entry *worker,
                           struct model_entry *model);
// Removes a worker that never came up, and says why.
void executor_fail_worker(struct executor *self, struct worker_entry *worker,
                          const struct error *error);
// Fails all that wait for the networks.
void executor_fail_waiting(struct executor *self, const char *model, luna_Group group,
                           const struct error *error);
// Ends all workers, at once.
void executor_stop_workers(struct executor *self);
// Fails workers that wait too long for their model's definition.
void executor_expire_workers(struct executor *self);
// Sends a letter to a worker, and behind it a frame (may be NULL).
void executor_answer_worker(struct executor *self, const struct executor_letter *letter,
                            const struct bytes *frame);
// What workers ask.
void executor_on_workers(void *state);

#endif  // ACTORS_EXECUTOR_STATE_H
