// ledger.c - see ledger.h. The system's figure already lacks what we hold; the limit does not.

#include "actors/ledger.h"

#include <assert.h>
#include <stddef.h>

static uint64_t held_bytes(const struct ledger *self)
{
    return self->weights_bytes + self->reserved_bytes + self->stack_bytes;
}

uint64_t ledger_free(const struct ledger *self)
{
    assert(self != NULL);
    if (self->limit_bytes == 0) return self->system_free;
    uint64_t held = held_bytes(self);
    uint64_t left = held < self->limit_bytes ? self->limit_bytes - held : 0;
    return left < self->system_free ? left : self->system_free;
}

uint64_t ledger_capacity(const struct ledger *self, uint64_t wanted_weights)
{
    assert(self != NULL);
    uint64_t held = held_bytes(self);
    uint64_t all = self->system_free + held;
    if (self->limit_bytes != 0 && self->limit_bytes < all) all = self->limit_bytes;
    return wanted_weights < all ? all - wanted_weights : 0;
}

bool ledger_is_overdrawn(const struct ledger *self)
{
    assert(self != NULL);
    return self->limit_bytes != 0 && held_bytes(self) > self->limit_bytes;
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

void ledger_weights(struct ledger *self, uint64_t before, uint64_t after)
{
    assert(self != NULL);
    assert(self->weights_bytes >= before);
    self->weights_bytes = self->weights_bytes - before + after;
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
