// loan_lane.h - the executor's thread that makes loans: it allocates device memory, zeroes it and
// waits for the device.
//
// Orders and answers on an inproc pair, a struct in one frame; an order comes back as the answer.

#ifndef ACTORS_LOAN_LANE_H
#define ACTORS_LOAN_LANE_H

#include "kernels/kernels.h"
#include "runtime/actor.h"

#define LOAN_LANE_ADDRESS "inproc://loans"

struct loan_letter {
    uint32_t pool;              // whose
    uint64_t bytes;             // order: as device_lend takes them
    struct device_loan memory;  // answer: the receiver's; its memory is NULL: see error
    struct error error;         // answer: why not
};

struct loan_lane_arguments {
    struct device *device;  // that lends
};

extern const struct actor_kind loan_lane_kind;  // arguments: struct loan_lane_arguments

#endif  // ACTORS_LOAN_LANE_H
