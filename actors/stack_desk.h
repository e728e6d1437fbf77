// stack_desk.h - how the stacks that jobs ask for come about on a device: which adapters are
// fetched, which copies are merged, in which order, and when a job may use its own.
//
//     asked --> adapters there? --fetch--> all there --> functional: made at once --> granted
//                                             \--> in line --> room? --merge--> granted
//
// What two jobs need is made once. A stack that was merged is kept by its adapters, strengths and
// order. Jobs that need merging stand in line: while the first of them waits for room, nobody
// behind it gets a copy that is there, so that its turn comes.
//
// No threads, files or sockets here: orders go out by calls and are answered by calls.

#ifndef ACTORS_STACK_DESK_H
#define ACTORS_STACK_DESK_H

#include "messages/actors.pb.h"
#include "models/text/stack.h"

#define STACK_MAX 64u  // entries of a request
_Static_assert(STACK_MAX == sizeof((luna_Job *)NULL)->stack / sizeof(luna_StackEntry),
               "a job's entries fit");

// A job that wants its stack.
struct stack_question {
    uint64_t worker;                     // that has the job
    uint64_t job;                        // number
    const struct text_model *model;      // whose stack it is
    uint32_t count;                      // of entries
    luna_StackEntry entries[STACK_MAX];  // as the LoRA store resolved them
};

// The answer. Everything it points to lives until the job is given back.
struct stack_grant {
    uint64_t worker, job;                            // as asked
    struct error error;                              // other than OK: there is no stack
    uint64_t needs_bytes;                            // with an error: memory that is missing now
    uint32_t entry;                                  // that the error is about; or UINT32_MAX
    const struct text_stack *stack;                  // NULL: no entry counts
    bool merged;                                     // it is made of copies
    uint32_t count;                                  // of entries
    const struct text_adapter *adapters[STACK_MAX];  // NULL: without any tensor of an encoder
    uint32_t places[STACK_MAX];                      // of each in stack; or UINT32_MAX
};

// Orders.
struct stack_fetch {
    struct hash hash;                // of the encoder tensors
    const struct text_model *model;  // that they are understood for
};
struct stack_merge {
    const struct text_model *model;              // whose weights
    uint32_t count;                              // of entries
    struct text_stack_entry entries[STACK_MAX];  // those that count, in order
};

struct stack_desk_calls {
    // One order of each kind at a time; answered with stack_desk_fetched and stack_desk_merged.
    void (*fetch)(void *context, const struct stack_fetch *order);
    void (*merge)(void *context, const struct stack_merge *order);
    void (*stop_merge)(void *context);  // nobody wants it any more; it is answered all the same
    void (*grant)(void *context, const struct stack_grant *grant);
    // True when so many more bytes may be held.
    bool (*admit)(void *context, uint64_t bytes);
    // Told what is held after each change.
    void (*book)(void *context, uint64_t adapter_bytes, uint64_t merged_bytes);
    // What models/text and models/lora do.
    bool (*unchanged)(const struct text_adapter *adapter);
    bool (*must_merge)(const struct text_stack_entry *entries, uint32_t count);
    uint64_t (*merged_bytes)(const struct text_model *model, const struct text_stack_entry *entries,
                             uint32_t count);
    enum status (*apply)(struct text_stack **out, const struct stack_merge *order,
                         struct error *error);
    void (*end_adapter)(struct text_adapter *adapter);
    void (*end_stack)(struct text_stack *stack);
};

struct stack_limits {
    uint64_t adapter_bytes;  // on this device
    uint64_t merged_bytes;   // likewise
    bool merged;             // every stack is merged
};

struct stack_desk;

// Ownership: the caller owns *out; calls and context outlive it.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    one, as all here.
enum status stack_desk_create(struct stack_desk **out, const struct stack_limits *limits,
                              const struct stack_desk_calls *calls, void *context,
                              struct error *error);

// Ends all adapters and copies; the threads that made them have ended. NULL is allowed.
void stack_desk_destroy(struct stack_desk **self_p);

// A job asks; it is granted or refused by a call, now or later, unless it is given back before.
// Errors:    RESOURCE_EXHAUSTED: it was not even noted.
enum status stack_desk_ask(struct stack_desk *self, const struct stack_question *question);

// A job needs its stack no more, granted or not; an unknown one is no fault.
void stack_desk_give_back(struct stack_desk *self, uint64_t worker, uint64_t job);

// So do all jobs of a worker.
void stack_desk_forget_worker(struct stack_desk *self, uint64_t worker);

// The answer to fetch: the adapter, or NULL and why not.
// Ownership: the desk's.
void stack_desk_fetched(struct stack_desk *self, struct text_adapter *adapter, uint64_t bytes,
                        const struct error *error);

// The answer to merge, likewise.
void stack_desk_merged(struct stack_desk *self, struct text_stack *stack, uint64_t bytes,
                       const struct error *error);

// The store dropped an adapter: it goes, and copies with it in them go, when nobody uses them.
void stack_desk_drop(struct stack_desk *self, const struct hash *hash);

// Ends the copy, or else the adapter, that nobody used for the longest time; false when all are
// used.
bool stack_desk_evict_one(struct stack_desk *self);

// Ends all that was made for a model; false when something of it is used or being made.
bool stack_desk_forget_model(struct stack_desk *self, const struct text_model *model);

// True when a worker has a job that waits for something that is being made.
bool stack_desk_waits(const struct stack_desk *self, uint64_t worker);

struct stack_counts {
    uint64_t adapters, adapter_bytes;  // held
    uint64_t merged, merged_bytes;     // likewise
};
// Thread:    as all here.
struct stack_counts stack_desk_counts(const struct stack_desk *self);

// Asserts every invariant; for tests.
void stack_desk_check(const struct stack_desk *self);

#endif  // ACTORS_STACK_DESK_H
