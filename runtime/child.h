// child.h - a child process: started by exec, watched by pidfd, held by a lifeline.
//
// The child finds its end of a channel (channel.h) as descriptor 3 and what else it was given from
// 4 on; every other descriptor above 2 is closed. When the channel says that its peer is gone, the
// parent has ended, and so must the child.

#ifndef RUNTIME_CHILD_H
#define RUNTIME_CHILD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/clock.h"
#include "base/error.h"

#define CHILD_CHANNEL 3            // the child's end of the channel
#define CHILD_FIRST_DESCRIPTOR 4   // of those it was given
#define CHILD_DESCRIPTORS_MAX 16u  // it can be given

struct child;

struct child_options {
    const char *program;        // path; NULL: this program again
    char *const *argv;          // NULL at the end
    char *const *environment;   // NULL at the end; NULL: this process's own
    const int *descriptors;     // that the child gets, as CHILD_FIRST_DESCRIPTOR and up
    uint32_t descriptor_count;  // at most CHILD_DESCRIPTORS_MAX
};

// How a child ended.
struct child_exit {
    bool is_signalled;  // by a signal
    int status;         // exit status, or the signal's number
};

// Starts a child in a process group of its own, with no signal blocked or ignored, stdin empty and
// stdout going where stderr goes.
// Ownership: the caller ends *out with child_destroy. The descriptors stay the caller's.
// Errors:    RESOURCE_EXHAUSTED; NOT_FOUND or PERMISSION_DENIED when the program cannot be run.
// Thread:    any.
enum status child_spawn(struct child **out, const struct child_options *options,
                        struct error *error);

// Becomes readable when the child has ended. Poll it, nothing else.
// Thread:    the owner's.
int child_descriptor(const struct child *self);

// The parent's end of the channel.
// Thread:    the owner's.
int child_channel(const struct child *self);

// Its process id.
// Thread:    the owner's.
pid_t child_pid(const struct child *self);

// True, with *out, when the child has ended; never waits. The first time, it is reaped.
// Thread:    the owner's.
bool child_has_ended(struct child *self, struct child_exit *out);

// Sends a signal; one that has ended gets none, whoever has its number now.
// Thread:    the owner's.
void child_signal(struct child *self, int signal);

// Kills the child if it still runs, reaps it and forgets it. NULL is allowed.
// Thread:    the owner's.
void child_destroy(struct child **self_p);

// --- When to start it again

#define RESTARTS_MAX 1024u           // largest intensity
#define RESTART_DELAY_MS_MIN 100u    // after a death out of the blue
#define RESTART_DELAY_MS_MAX 10000u  // twice as long each time in a series of deaths, up to this
#define RESTART_SERIES_MS 2000u      // a child that lived longer than this ends a series

// Deaths of late; a plain value, made by restart_policy.
struct restart {
    const struct clock *clock;        // tells when
    uint32_t restarts_max;            // within period_ms
    uint64_t period_ms;               // over which restarts count
    uint64_t times_ms[RESTARTS_MAX];  // of the last restarts, a ring
    uint64_t count;                   // restarts ever; the ring's end
    uint64_t started_ms;              // when the last restart was due
    uint32_t delay_ms;                // of the last restart
    bool has_given_up;                // until restart_reset
};

// At most restarts_max (up to RESTARTS_MAX) restarts in any period_ms.
// Ownership: clock is borrowed for the value's life.
// Thread:    one at a time.
struct restart restart_policy(const struct clock *clock, uint32_t restarts_max, uint64_t period_ms);

// Called when the child has died: true, with the time to wait, when it may be started again; false
// from then on when it died too often.
// Thread:    one at a time.
bool restart_next(struct restart *self, uint32_t *delay_ms);

// Forgets everything, because somebody repaired something.
// Thread:    one at a time.
void restart_reset(struct restart *self);

#endif  // RUNTIME_CHILD_H
