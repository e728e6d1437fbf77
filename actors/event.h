// event.h - events for the monitor and, through it, for everybody who subscribes.

#ifndef ACTORS_EVENT_H
#define ACTORS_EVENT_H

#include <stddef.h>

#include "messages/actors.pb.h"

// Copies text to a field of bytes, cut at a character's border when it is too long.
// Thread:    any.
void text_set(char *out, size_t bytes, const char *text);

// A letter with an event of this topic, said by actor, at this moment.
// Thread:    any.
luna_Letter event_make(const char *topic, const char *actor, const char *message);

// The wall clock, milliseconds since 1970.
// Thread:    any.
uint64_t event_time_unix_ms(void);

#endif  // ACTORS_EVENT_H
