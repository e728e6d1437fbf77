// executor_loans.h - device memory that clients hold, by CUDA IPC.
//
// The lease manager of the core says what to lend and what to take back; this side owns the memory.
// A worker borrows a loan for a job, and nothing is freed before the last has returned it and the
// client has closed it, whatever becomes of the core.

#ifndef ACTORS_EXECUTOR_LOANS_H
#define ACTORS_EXECUTOR_LOANS_H

#include "base/error.h"

struct executor;
struct executor_letter;
struct executor_loans;

// Ownership: the caller owns *out; executor outlives it. Nothing is connected yet.
// Errors:    RESOURCE_EXHAUSTED, those of pair_open and actor_start.
// Thread:    the executor's, as everything here.
enum status executor_loans_create(struct executor_loans **out, struct executor *executor,
                                  struct error *error);

// Takes everything back; no worker runs any more. NULL is allowed.
void executor_loans_destroy(struct executor_loans **self_p);

// Connects to the lease manager where that is not done: again and again, for cores come and go.
void executor_loans_look(struct executor_loans *self);

// Makes the answer of EXECUTOR_BORROW. self may be NULL: then there is nothing to be had.
void executor_loans_borrow(struct executor_loans *self, struct executor_letter *letter);

// A worker does not use the loan of that pool any more, which it had borrowed.
void executor_loans_return(struct executor_loans *self, uint32_t pool);

#endif  // ACTORS_EXECUTOR_LOANS_H
