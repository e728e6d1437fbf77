// executor.h - what an executor and its workers tell each other, inside one process.
//
// They are of one build and one address space, so a message is a struct in one frame; pointers in
// it are borrowed as said at each. The executor binds EXECUTOR_ADDRESS as ROUTER, each worker
// connects a DEALER.

#ifndef ACTORS_EXECUTOR_H
#define ACTORS_EXECUTOR_H

#include "actors/stack_desk.h"
#include "actors/topology.h"
#include "kernels/kernels.h"
#include "messages/actors.pb.h"
#include "models/text/text.h"
#include "models/vae/vae.h"
#include "runtime/actor.h"

#define EXECUTOR_ADDRESS "inproc://executor"
#define LOADER_ADDRESS "inproc://loader"

// The networks of one service on this device. Immutable; lives while a worker uses it.
struct loaded {
    luna_Group group;                      // which of the two pointers is set
    struct vae *vae;                       // with VAE
    struct text_model *text;               // with TEXT
    struct text_embeddings *embeddings;    // with TEXT; may be NULL
    struct model_description description;  // of the model's files
    uint64_t bytes;                        // that it holds
    // What the networks read from, by part; NULL: not of this group.
    struct tensor_table *tables[MODEL_PART_COUNT];
};

// What a worker is started with.
struct worker_arguments {
    const struct executor_arguments *executor;  // of its process
    struct device *device;                      // whose lane it runs
    const char *device_name;                    // "cpu"
    uint64_t id;                                // executor epoch << 16 | number
    const char *model;                          // name
    const struct loaded *loaded;                // borrowed while the worker lives
};

extern const struct actor_kind vae_worker_kind;  // arguments: struct worker_arguments
extern const struct actor_kind clip_worker_kind;

enum executor_letter_kind {
    EXECUTOR_RESERVE,     // worker: I need an arena of bytes in all; 0 gives it back
    EXECUTOR_RESERVED,    // executor: granted says whether; bytes is what it may have at most
    EXECUTOR_FELL_SHORT,  // worker: bytes were granted and did not suffice; I have capacity now
    EXECUTOR_RETIRED,     // worker: nothing runs any more, I said Goodbye to the router
    EXECUTOR_BROKEN,      // worker: the device failed for good (a sticky error); end the process
    EXECUTOR_WANT_STACK,  // worker: a job's stack, a struct stack_question in a second frame
    EXECUTOR_STACK,       // executor: it, a struct stack_grant in a second frame
    EXECUTOR_STACK_PROGRESS,  // executor: what your jobs wait for is being made
    EXECUTOR_GIVE_BACK,       // worker: job needs its stack no more
    EXECUTOR_BORROW,          // worker: job reads or writes the loan of this pool
    EXECUTOR_LENT,            // executor: memory of bytes is it; NULL: it is none of this device
    EXECUTOR_RETURN,          // worker: job does so no more; only what was lent
};

struct executor_letter {
    enum executor_letter_kind kind;  // see above
    uint64_t worker;                 // whose
    uint64_t bytes;                  // see kind
    uint64_t job;                    // GIVE_BACK, BORROW, LENT
    uint32_t pool;                   // BORROW, LENT, RETURN
    void *memory;                    // LENT: of the device, borrowed until RETURN
    uint64_t capacity;  // RESERVED: what the device could ever give, everything else idle
    bool granted;       // RESERVED
};

// What the loader is asked, and answers with the same struct.
struct loader_letter {
    luna_ModelDefinition definition;  // files and embeddings
    luna_Group group;                 // what to load
    bool is_plan;                     // or only to say what it is going to hold
    uint64_t plan_bytes;              // answer, with is_plan
    struct loaded
        *loaded;         // answer: the networks, the executor's from then on; NULL when it failed
    struct error error;  // answer: why
    bool is_hash;        // answer: a content id, found in the background
    char hash_vae[65];   // with is_hash; "" when the model has none
    char hash_text[65];  // with is_hash
};

// What the loader is started with.
struct loader_arguments {
    struct device *const *devices;     // for the weights, by group
    const struct torch_reader *torch;  // for torch files
};

extern const struct actor_kind loader_kind;

// Frees the networks; nobody uses them any more. NULL is allowed.
// Thread:    the executor's.
void loaded_destroy(struct loaded **self_p);

// Asked before a job: a file that was cut short under its mapping would end the process.
// Errors:    FAILED_PRECONDITION names a file that is not what it was when it was loaded.
// Thread:    any.
enum status loaded_check(const struct loaded *self, struct error *error);

#endif  // ACTORS_EXECUTOR_H
