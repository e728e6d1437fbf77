// counters.h - the numbers that an actor keeps about itself: counters that grow and gauges that
// move.
//
// One actor owns a registry and is the only one to touch it; what others see is a copy that it
// sends.

#ifndef RUNTIME_COUNTERS_H
#define RUNTIME_COUNTERS_H

#include <stdbool.h>
#include <stdint.h>

#define COUNTERS_MAX 64u          // of one actor
#define COUNTER_LABELS_BYTES 96u  // with the NUL

// One number; its address stays.
struct counter {
    const char *name;                   // "luna_requests_total"; a literal
    char labels[COUNTER_LABELS_BYTES];  // "op=\"vae\""; ""
    bool is_gauge;                      // may go down
    double value;                       // now
};

// An actor's numbers, in the order of their registration; {0} is an empty one.
struct counters {
    uint32_t count;                        // of entries
    struct counter entries[COUNTERS_MAX];  // the first count
};

// Finds the number with that name and those labels, a new one at 0 when there is none yet; NULL
// when there is no room, so that strangers' labels cannot grow it without end.
// Ownership: name is kept, labels are copied; the result is the registry's.
// Thread:    the owner's.
struct counter *counters_find(struct counters *self, const char *name, const char *labels,
                              bool is_gauge);

// Adds to a counter, or moves a gauge. A NULL counter, which found no room, is allowed.
// Thread:    the owner's.
void counter_add(struct counter *self, double by);
void counter_set(struct counter *self, double value);

#endif  // RUNTIME_COUNTERS_H
