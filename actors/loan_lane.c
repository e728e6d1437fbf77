// loan_lane.c - see loan_lane.h. One order after the other: a driver that is long about memory is
// so for all.

#include "actors/loan_lane.h"

#include <assert.h>
#include <stdlib.h>

#include "actors/pair.h"

struct loan_lane {
    struct device *device;  // that lends
    struct pair pair;       // to the executor
};

static void on_letter(void *state)
{
    struct loan_lane *self = state;
    struct loan_letter letter;
    if (!pair_receive(&self->pair, &letter, sizeof letter)) return;
    letter.error.status = device_lend(self->device, letter.bytes, &letter.memory, &letter.error);
    enum status status = pair_send(&self->pair, &letter, sizeof letter);
    assert(status == STATUS_OK);  // the executor has fewer loans than the edge has room
}

static void loan_lane_destroy(void *state)
{
    struct loan_lane *self = state;
    if (self == NULL) return;
    pair_close(&self->pair);
    free(self);
}

static enum status loan_lane_create(void **state, const struct actor_context *context,
                                    const void *arguments, struct error *error)
{
    assert(state != NULL);
    assert(arguments != NULL);
    struct loan_lane *self = calloc(1, sizeof *self);
    if (self == NULL)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a lane of loans");
    self->device = ((const struct loan_lane_arguments *)arguments)->device;
    const struct pair_end end = {
        .address = LOAN_LANE_ADDRESS, .on_readable = on_letter, .state = self};
    enum status status = pair_open(&self->pair, context, &end, error);
    if (status != STATUS_OK) {
        loan_lane_destroy(self);
        return status;
    }
    *state = self;
    return STATUS_OK;
}

const struct actor_kind loan_lane_kind = {"loan_lane", loan_lane_create, loan_lane_destroy, NULL};
