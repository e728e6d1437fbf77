// clock.c - the system's monotonic clock, or one that a test turns.

#include "base/clock.h"

#include <assert.h>
#include <time.h>

const struct clock *clock_system(void)
{
    static const struct clock clock = {.is_manual = 0};
    return &clock;
}

struct clock clock_manual(uint64_t start_ns)
{
    return (struct clock){.manual_ns = start_ns, .is_manual = 1};
}

void clock_advance(struct clock *self, uint64_t by_ns)
{
    assert(self != NULL);
    assert(self->is_manual);
    atomic_fetch_add(&self->manual_ns, by_ns);
}

uint64_t clock_ns(const struct clock *self)
{
    assert(self != NULL);
    if (self->is_manual) return atomic_load(&self->manual_ns);
    struct timespec now;
    int failed = clock_gettime(CLOCK_MONOTONIC, &now);
    assert(!failed);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t clock_ms(const struct clock *self)
{
    return clock_ns(self) / 1000000u;
}
