// signals.h - signals as a descriptor, for the one thread that takes them.

#ifndef RUNTIME_SIGNALS_H
#define RUNTIME_SIGNALS_H

#include <stdint.h>

#include "base/error.h"

// Blocks the signals in the calling thread, and in those that it creates from now on, and makes a
// descriptor that is readable while one of them waits.
// Ownership: the caller closes *out.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    the main thread, before there is any other.
enum status signals_open(int *out, const int *signals, uint32_t count, struct error *error);

// The number of a signal that waits, or 0.
// Thread:    one at a time.
int signals_take(int descriptor);

#endif  // RUNTIME_SIGNALS_H
