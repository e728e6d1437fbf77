// ledger.c - see ledger.h. The system's figure already lacks what we hold; the limit does not.

#include "actors/ledger.h"

#include <assert.h>
#include <stddef.h>

uint64_t ledger_held(const struct ledger *self)
{
    assert(self != NULL);
    return self->weights_bytes + self->reserved_bytes + self->stack_bytes + self->lent_bytes;
}

uint64_t ledger_free(const struct ledger *self)
{
    assert(self != NULL);
    uint64_t left = self->system_free;
    if (self->limit_bytes == 0) return left;
    uint64_t held = ledger_held(self);
    uint64_t below_limit = held < self->limit_bytes ? self->limit_bytes - held : 0;
    return below_limit < left ? below_limit : left;
}

uint64_t ledger_capacity(const struct ledger *self, uint64_t wanted_weights)
{
    assert(self != NULL);
    uint64_t all = self->system_free + ledger_held(self);
    if (self->limit_bytes != 0 && self->limit_bytes < all) all = self->limit_bytes;
    all = self->lent_bytes < all ? all - self->lent_bytes : 0;
    return wanted_weights < all ? all - wanted_weights : 0;
}

bool ledger_is_overdrawn(const struct ledger *self)
{
    assert(self != NULL);
    return self->limit_bytes != 0 && ledger_held(self) > self->limit_bytes;
}

bool ledger_reserve(struct ledger *self, uint64_t before, uint64_t after)
{
    assert(self != NULL);
    assert(self->reserved_bytes >= before);
    if (after > before) {
        uint64_t more = after - before;
        if (more > ledger_free(self)) return false;
        self->system_free -= more;  // until the system is asked again
    }
    self->reserved_bytes = self->reserved_bytes - before + after;
    return true;
}

uint64_t ledger_offer(const struct ledger *self, uint64_t idle_bytes)
{
    assert(self != NULL);
    uint64_t left = ledger_free(self) + idle_bytes;
    return self->promise_max != 0 && self->promise_max < left ? self->promise_max : left;
}

void ledger_distrust(struct ledger *self, uint64_t bytes)
{
    assert(self != NULL);
    assert(bytes > 0);
    uint64_t most = bytes - bytes / 4 < bytes ? bytes - bytes / 4 : 1;
    if (self->promise_max == 0 || most < self->promise_max) self->promise_max = most;
}

void ledger_trust(struct ledger *self)
{
    assert(self != NULL);
    self->promise_max = 0;
}

void ledger_weights(struct ledger *self, uint64_t before, uint64_t after)
{
    assert(self != NULL);
    assert(self->weights_bytes >= before);
    self->weights_bytes = self->weights_bytes - before + after;
}

bool ledger_lend(struct ledger *self, uint64_t bytes)
{
    assert(self != NULL);
    assert(bytes > 0);
    if (bytes > ledger_free(self)) return false;
    self->system_free -= bytes;  // until the system is asked again
    self->lent_bytes += bytes;
    return true;
}

void ledger_take_back(struct ledger *self, uint64_t bytes)
{
    assert(self != NULL);
    assert(self->lent_bytes >= bytes);
    self->lent_bytes -= bytes;
}

void ledger_stacks(struct ledger *self, uint64_t after)
{
    assert(self != NULL);
    if (after > self->stack_bytes) {
        uint64_t more = after - self->stack_bytes;
        self->system_free -= more < self->system_free ? more : self->system_free;
    }
    self->stack_bytes = after;
}
