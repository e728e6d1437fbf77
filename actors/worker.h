// worker.h - what vae_worker and clip_worker have in common: their sockets, their mailbox, their
// lane.
//
// A worker is one actor with one compute lane. Its thread never computes: it reads letters,
// prepares programs, starts the lane and hears of its end by a descriptor, so heartbeats and
// cancellations are served while the lane runs. The mailbox is bounded by the credit that the
// router keeps.
//
//     idle --work()--> asks the executor for memory --granted()--> has the lane take it
//          --granted()--> runs the lane --ran()--> idle
//
// The two kinds supply those three functions and nothing else.

#ifndef ACTORS_WORKER_H
#define ACTORS_WORKER_H

#include "actors/executor.h"
#include "messages/letter.h"
#include "runtime/message.h"

#define WORKER_JOBS_MAX 64u

struct worker;
struct worker_reply;

// Device memory of a client that a job reads or writes, borrowed from the executor.
struct worker_loan {
    uint32_t pool;    // number
    uint64_t bytes;   // of memory
    uint8_t *memory;  // of the device; NULL while it is awaited
};

// A job in the mailbox or in hand.
struct worker_job {
    uint64_t number;                           // the router's; 0 for a free entry
    uint64_t order;                            // of arrival
    uint64_t deadline_ns;                      // when nobody waits for it any more
    uint64_t started_ns;                       // when work on it began; 0 before
    uint32_t queue_ms;                         // spent waiting before it came here
    bool in_hand;                              // being worked on, not in the mailbox
    bool cancelled;                            // nobody wants the answer
    bool overtakes;                            // goes before the others of the mailbox
    uint64_t pool_offsets[CODEC_TENSORS_MAX];  // see luna_Job
    uint32_t stack_count;                      // adapters of its stack; 0: it has none
    luna_StackEntry stack[STACK_MAX];          // as the LoRA store resolved them
    bool waits_for_stack;                      // the executor was asked and has not answered
    bool stack_owed;                           // to be given back when the job is forgotten
    struct stack_grant grant;                  // the stack, once it does not wait
    uint32_t loans_count, loans_awaited;       // of loans; the job waits for the latter
    struct worker_loan loans[CODEC_TENSORS_MAX];
    luna_Header header;        // as the client sent it
    union codec_request body;  // likewise
    struct message frames;     // header, body, payloads
    uint64_t frame_bytes;      // of tensors that came or went in frames
    uint64_t shared_bytes;     // in shared memory
    uint64_t device_bytes;     // in device memory
};

struct worker_calls {
    luna_Group group;  // of the service
    uint32_t credit;   // that Ready announces

    enum status (*create)(struct worker *worker, struct error *error);  // sets worker->own
    void (*destroy)(struct worker *worker);

    // The worker is idle and jobs may wait: take some with worker_next and begin.
    void (*work)(struct worker *worker);
    // The executor's answer to worker_reserve, and once more the end of worker_take_arena. bytes:
    // what it may have at most when it was not granted; capacity: what the device could ever give.
    void (*granted)(struct worker *worker, bool granted, uint64_t bytes, uint64_t capacity);
    // The lane has ended.
    void (*ran)(struct worker *worker, const struct error *error);
};

// What the last run did when, for the jobs that want to know.
struct worker_trace {
    const struct program *program;  // that runs and is traced; NULL: none
    uint64_t begun_ns;              // when it began
    char *text;                     // of the run that ended; NULL: none
    uint64_t bytes;                 // of text
};

struct worker {
    const struct actor_context *context;  // as actor.h gives it
    struct worker_arguments arguments;    // as the executor gave them
    const struct worker_calls *calls;     // of its kind
    void *own;                            // state of its kind
    void *data, *control, *executor;      // DEALER, all three
    struct loop_socket *watches[3];       // in that order
    struct loop_descriptor *lane_watch;   // end of the lane's run
    struct loop_timer *beat;              // heartbeat and progress
    struct lane *lane;                    // the one
    struct pool_map *pools;               // shared memory of clients
    struct worker_job jobs[WORKER_JOBS_MAX];
    uint64_t jobs_seen;                // order of the next one
    uint64_t early[WORKER_JOBS_MAX];   // numbers that were cancelled before they came; 0: none
    uint32_t early_next;               // the place of the next one
    uint64_t jobs_done;                // counted as progress
    bool busy;                         // between work() taking a job and worker_idle()
    bool running;                      // the lane runs
    uint64_t growing_bytes;            // that the lane's arena is to have; 0: it does not grow
    bool draining;                     // takes nothing new
    uint64_t reserved_bytes;           // granted by the executor
    uint64_t idle_since_ns;            // when it had nothing to do
    uint32_t marks_told, marks_total;  // steps of the running program
    bool lane_is_traced;               // it keeps the times of operations
    struct worker_trace trace;         // of the last run
};

// create and destroy of struct actor_kind, for both kinds.
enum status worker_create(void **state, const struct worker_calls *calls,
                          const struct actor_context *context, const void *arguments,
                          struct error *error);
void worker_destroy(void *state);
void worker_drain(void *state);

// The first job of the mailbox, now in hand: one that overtakes, else the oldest; NULL when none
// waits. Jobs that were cancelled or whose time has run out are answered on the way.
struct worker_job *worker_next(struct worker *self);

// Says something to the executor, and behind it a frame (may be NULL).
void worker_tell_executor(struct worker *self, const struct executor_letter *letter,
                          const struct bytes *frame);

// Asks the executor for the stack of a job that just came; the job waits until it is there.
void worker_ask_stack(struct worker *self, struct worker_job *job);

// The executor's answer: the job may be taken now, or it is answered.
void worker_take_stack(struct worker *self, const struct stack_grant *grant);

// The stack of a job is not used any more; a number that has none is no fault.
void worker_give_back_stack(struct worker *self, uint64_t job);

// Asks the executor for the device memory that a job's tensors are in; a job without any does not
// wait. Its answer; the job may be taken when all have come, or it is answered. What a job has goes
// back.
void worker_borrow(struct worker *self, struct worker_job *job);
void worker_take_loan(struct worker *self, const struct executor_letter *letter);
void worker_return_loans(struct worker *self, struct worker_job *job);

// Where a tensor's bytes in device memory are; index: of the tensor.
// Errors:    INTERNAL when they are not within the loan.
enum status worker_loan_address(const struct worker_job *job, uint32_t index, void **out,
                                struct error *error);

// The job of that number, NULL when it is over.
struct worker_job *worker_find_job(struct worker *self, uint64_t number);

// Asks the executor for an arena of bytes; granted() is called with the answer.
void worker_reserve(struct worker *self, uint64_t bytes);

// Takes the arena that was granted. False when the lane has to make it first: granted() is called
// once more, when it is there, or with what there is when the device has less than its ledger said.
bool worker_take_arena(struct worker *self, uint64_t bytes);

// A run is about to begin; it has ended, its program still lives; an answer of a job of that run is
// about to go; nothing of it is wanted any more. Whether anything is kept, the jobs in hand say.
void worker_trace_begin(struct worker *self, const struct program *program);
void worker_trace_end(struct worker *self);
void worker_trace_add(struct worker *self, struct worker_reply *reply);
void worker_trace_drop(struct worker *self);

// Starts the lane; ran() is called at its end, unless the device broke: then this process ends and
// its jobs are given out again. A run whose jobs were all cancelled meanwhile ends as cancelled.
void worker_run(struct worker *self, const struct program *program, void *const *bindings,
                uint32_t count);

// Nothing is in hand any more: looks for more work, after this callback has returned.
void worker_idle(struct worker *self);

// An answer in the making.
struct worker_reply {
    struct worker_job *job;   // that is answered
    luna_Header header;       // with the tensors so far
    struct message payloads;  // of its tensors that travel in frames
};
void worker_reply_start(struct worker_reply *reply, struct worker_job *job);
// Gives up an answer that was started; the job is still to be answered.
void worker_reply_drop(struct worker_reply *reply);

// Answers the job with a body of a type (luna_..._fields) and forgets it. The reply is consumed.
void worker_answer(struct worker *self, struct worker_reply *reply, const pb_msgdesc_t *type,
                   const void *body);
// Answers the job with an error and forgets it.
void worker_fail(struct worker *self, struct worker_job *job, const struct error *error);

// Gives a job back to the router: needs_bytes are missing just now.
void worker_postpone(struct worker *self, struct worker_job *job, uint64_t needs_bytes);

// Milliseconds since work on the job began.
uint32_t worker_execute_ms(const struct worker *self, const struct worker_job *job);

// The bytes of a request's tensor, in its frame or in shared memory; or in device memory, which its
// header says: then only a lane may read them.
// Errors:    INVALID_ARGUMENT when there is none of this name, INTERNAL when the pool cannot be
// mapped.
enum status worker_input(struct worker *self, struct worker_job *job, const char *name,
                         const luna_Tensor **tensor, struct bytes *out, struct error *error);

// Where an answer's tensor goes: into the room that the request offers in shared or device memory,
// or new memory.
struct worker_output {
    void *data;           // bytes large
    uint64_t bytes;       // of the tensor
    luna_Where where;     // data is; but for FRAME it is the client's room
    luna_SharedRef room;  // of the client
};
enum status worker_output_open(struct worker *self, struct worker_job *job, const char *name,
                               uint64_t bytes, struct worker_output *out, struct error *error);
// Adds the tensor to the answer; memory that is not shared becomes a payload. out is empty
// afterwards.
enum status worker_output_add(struct worker_reply *reply, struct worker_output *output,
                              const luna_Tensor *tensor, struct error *error);
void worker_output_drop(struct worker_output *output);

#endif  // ACTORS_WORKER_H
