// stack_desk_state.h - the desk's private state, shared by its two files and nobody else.
//
//     stack_desk.c    questions in, orders answered, what goes
//     stack_turn.c    how far each question can be taken now

#ifndef ACTORS_STACK_DESK_STATE_H
#define ACTORS_STACK_DESK_STATE_H

#include "actors/residents.h"
#include "actors/stack_desk.h"

enum want_state {
    WANT_ADAPTERS,  // some are not there
    WANT_LINE,      // needs a merged copy
    WANT_MERGING,   // it is being made
    WANT_GRANTED,   // the job has its stack
};

// A question and what it holds.
struct want {
    struct want *next;                     // in order of arrival
    uint64_t number;                       // grows
    uint64_t worker, job;                  // whose
    const struct text_model *model;        // see struct stack_question
    enum want_state state;                 // see above
    struct resident *adapters[STACK_MAX];  // one use each; NULL where nothing is to be fetched
    struct resident *merged;               // one use; NULL before
    struct text_stack *functional;         // owned; NULL for a merged one
    uint32_t count;                        // of entries
    luna_StackEntry entries[];             // as asked
};

// The value of a resident of the table of copies.
struct merged_copy {
    struct text_stack *stack;  // owned
    struct stack_desk *desk;   // whose adapters it holds
    uint32_t count;            // of parts
    struct resident *parts[];  // one use each
};

// One adapter of a merged copy, in the key of the copy.
struct key_part {
    uint8_t hash[32];
    float strength_l, strength_g;
};
_Static_assert(sizeof(struct key_part) == 40, "no padding in a key");

struct stack_desk {
    struct stack_limits limits;            // fixed at creation
    const struct stack_desk_calls *calls;  // the owner's
    void *context;                         // handed to them
    struct want *wants;                    // oldest first
    uint64_t wants_seen;                   // number of the last one
    struct residents *adapters;            // values: struct text_adapter
    struct residents *copies;              // values: struct merged_copy
    struct resident *fetching;             // the order that is out; one use
    struct resident *merging;              // likewise
    struct merged_copy *unborn;            // of merging: the parts it holds already
    bool stop_sent;                        // of merging
    bool turning;                          // turn() is on the stack
};

// Takes every question that has no answer yet as far as it goes, oldest first.
// Thread:    the desk's, as all here.
void stack_desk_turn(struct stack_desk *self);

// Answers a question: the job has its stack.
void stack_desk_grant(struct stack_desk *self, struct want *want);

// Answers a question with an error and forgets it. needs_bytes: memory that is missing now.
void stack_desk_refuse(struct stack_desk *self, struct want *want, uint32_t entry,
                       const struct error *error, uint64_t needs_bytes);

// Forgets a question and lets go of everything that it holds.
void stack_desk_remove(struct stack_desk *self, struct want *want);

// Ends a copy, or what was begun of one, and lets go of its adapters.
void stack_desk_drop_copy(struct merged_copy *copy);

// Tells the owner what is held.
void stack_desk_tell_books(struct stack_desk *self);

#endif  // ACTORS_STACK_DESK_STATE_H
