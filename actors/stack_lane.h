// stack_lane.h - the executor's threads that may take their time over stacks: one fetches adapters,
// one merges copies.
//
// One order at a time on an inproc pair, a struct in one frame; it comes back as the answer. While
// it merges, a lane says every half second that it goes on, and any letter that comes means: stop.

#ifndef ACTORS_STACK_LANE_H
#define ACTORS_STACK_LANE_H

#include "actors/stack_desk.h"
#include "runtime/actor.h"

#define STACK_FETCH_ADDRESS "inproc://stack-fetch"
#define STACK_MERGE_ADDRESS "inproc://stack-merge"

enum stack_letter_kind {
    STACK_FETCH,     // order: fetch and understand an adapter; answer: adapter, bytes, or error
    STACK_MERGE,     // order: merge a copy; answer: stack, bytes, or error
    STACK_STOP,      // order: give up what you merge; not answered
    STACK_PROGRESS,  // said in between
};

struct stack_letter {
    enum stack_letter_kind kind;   // see above
    struct stack_fetch fetch;      // with FETCH
    struct stack_merge merge;      // with MERGE
    struct text_adapter *adapter;  // answer to FETCH: the receiver's; NULL: see error
    struct text_stack *stack;      // answer to MERGE: the receiver's; NULL: see error
    uint64_t bytes;                // answer: that it holds
    struct error error;            // answer: why not
};

struct stack_lane_arguments {
    const char *private_directory;  // where the LoRA store listens for executors
    const char *address;            // of the pair, which the executor has bound
};

extern const struct actor_kind stack_lane_kind;  // arguments: struct stack_lane_arguments

#endif  // ACTORS_STACK_LANE_H
