// executor_stacks.h - stacks on this device: the desk decides, two threads make, workers borrow.

#ifndef ACTORS_EXECUTOR_STACKS_H
#define ACTORS_EXECUTOR_STACKS_H

#include "actors/executor.h"

struct executor;
struct executor_stacks;

// Connects to the LoRA store and starts the threads.
// Ownership: the caller owns *out; the executor outlives it.
// Errors:    those of actor_start and of sockets.
// Thread:    the executor's, as all here.
enum status executor_stacks_create(struct executor_stacks **out, struct executor *executor,
                                   struct error *error);

// Ends the threads and everything that was made; no worker is left. NULL is allowed.
void executor_stacks_destroy(struct executor_stacks **self_p);

// A job wants its stack; its worker is answered with EXECUTOR_STACK.
void executor_stacks_ask(struct executor_stacks *self, const struct stack_question *question);

// A job needs its stack no more; all jobs of a worker do not.
void executor_stacks_give_back(struct executor_stacks *self, uint64_t worker, uint64_t job);
void executor_stacks_forget_worker(struct executor_stacks *self, uint64_t worker);

// Ends the copy or adapter that nobody used for the longest time; false when there is none.
bool executor_stacks_evict_one(struct executor_stacks *self);

// Ends what was made for networks that are about to go. False when something is still being made
// for them: then executor_release is called once more when that is over.
bool executor_stacks_forget_model(struct executor_stacks *self, struct loaded *loaded);

// Tells the LoRA store what is held.
void executor_stacks_report(struct executor_stacks *self);

#endif  // ACTORS_EXECUTOR_STACKS_H
