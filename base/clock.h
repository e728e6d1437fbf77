// clock.h - monotonic time that tests can turn.
//
// Whoever measures or waits gets a struct clock from its creator and asks nobody else. Production
// code passes clock_system(); a test makes its own with clock_manual() and moves it.

#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdatomic.h>
#include <stdint.h>

struct clock {
    _Atomic uint64_t manual_ns;  // the time of a manual clock
    int is_manual;               // 0: ask the operating system
};

// The machine's monotonic clock (CLOCK_MONOTONIC); one constant object for everybody.
// Ownership: the caller must not free it.
// Thread:    any.
const struct clock *clock_system(void);

// A clock that stands at start_ns until clock_advance moves it.
// Thread:    any.
struct clock clock_manual(uint64_t start_ns);

// Moves a manual clock forward. It is a programmer's error on the system's clock.
// Thread:    any.
void clock_advance(struct clock *self, uint64_t by_ns);

// Now, in nanoseconds, microseconds-free: the origin is arbitrary and never goes back.
// Thread:    any.
uint64_t clock_ns(const struct clock *self);

// Now, in whole milliseconds.
// Thread:    any.
uint64_t clock_ms(const struct clock *self);

#endif  // BASE_CLOCK_H
