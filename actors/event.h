// event.h - events for the monitor and, through it, for everybody who subscribes.

#ifndef ACTORS_EVENT_H
#define ACTORS_EVENT_H

#include <stddef.h>

#include "base/text.h"
#include "messages/actors.pb.h"

// A letter with an event of this topic, said by actor, at this moment.
// Thread:    any.
luna_Letter event_make(const char *topic, const char *actor, const char *message);

// The wall clock, milliseconds since 1970.
// Thread:    any.
uint64_t event_time_unix_ms(void);

#endif  // ACTORS_EVENT_H
