// event.c - makes events; event.h holds the contract.

#include "actors/event.h"

#include <assert.h>
#include <string.h>
#include <time.h>

uint64_t event_time_unix_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

luna_Letter event_make(const char *topic, const char *actor, const char *message)
{
    assert(strlen(topic) < sizeof((luna_Event *)NULL)->topic);
    assert(strlen(actor) < sizeof((luna_Event *)NULL)->actor);
    luna_Letter letter = {.which_letter = luna_Letter_event_tag};
    luna_Event *event = &letter.letter.event;
    event->time_unix_ms = event_time_unix_ms();
    text_set(event->topic, sizeof event->topic, topic);
    text_set(event->actor, sizeof event->actor, actor);
    text_set(event->message, sizeof event->message, message);
    return letter;
}
