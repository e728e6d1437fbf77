// pool.h - the compute threads of a CPU device, which all its lanes share.

#ifndef KERNELS_CPU_POOL_H
#define KERNELS_CPU_POOL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/cpu/launch.h"

struct pool;

// How an operation becomes launches: cpu_convolution_launches and its like.
typedef uint32_t pool_launches(const struct operation *op, struct cpu_launch out[CPU_LAUNCHES_MAX]);

// One run of one program. The owner fills the first block before pool_start and leaves everything
// alone until the end; the counters are there to be read at any time.
struct pool_job {
    const struct program *program;  // to run
    pool_launches *launches;        // how
    struct cpu_run run;             // where its memory is
    int descriptor;                 // eventfd, written once when the run has ended

    struct pool_job *next;                     // behind this one among those that run
    uint32_t operation_index;                  // the operation that runs now
    struct cpu_launch list[CPU_LAUNCHES_MAX];  // its launches
    uint32_t list_count;                       // how many
    uint32_t list_index;                       // the one that threads take items of
    uint32_t threads;                          // threads that are in it now
    bool is_running;                           // between pool_start and the end
    bool is_favoured;                          // threads look here first
    enum status status;                        // how the last run ended

    _Atomic bool is_cancelled;   // no more items, please
    _Atomic uint64_t next_item;  // of the launch; beyond its items when they are all taken
    _Atomic uint64_t progress;   // items and operations done, over all runs
    _Atomic uint32_t marks;      // passed in this run
};

// Starts threads (one or more) that wait for work, with all signals blocked.
// Ownership: on success the caller owns *out.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status pool_create(struct pool **out, uint32_t threads, struct error *error);

// Ends the threads. No job runs. NULL is allowed.
// Thread:    the owner's.
void pool_destroy(struct pool **self_p);

// Gives every thread the private memory that the program's launches ask for; threads take it over
// before they run an item of a job that is started later.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status pool_prepare(struct pool *self, const struct program *program, pool_launches *launches,
                         struct error *error);

// Runs the job; its descriptor tells the end. The job was prepared for.
// Ownership: the job stays the caller's and stays where it is until pool_end.
// Thread:    any.
void pool_start(struct pool *self, struct pool_job *job);

// Lets threads that look for work join this job before others, or no longer; stays for later runs.
// Thread:    any.
void pool_favour(struct pool *self, struct pool_job *job, bool favoured);

// Asks a job to stop. Nothing happens to one that does not run.
// Thread:    any.
void pool_cancel(struct pool *self, struct pool_job *job);

// Waits until the job has ended and no thread looks at it any more; returns how it ended.
// Thread:    the one that started it.
enum status pool_end(struct pool *self, struct pool_job *job);

#endif  // KERNELS_CPU_POOL_H
