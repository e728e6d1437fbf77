// actor.h - one thread with one loop, its own sockets and private state, and an address.
//
// Created means ready: actor_start returns after the new actor has said it is up, or with the
// reason why not. The end has two phases: actor_drain (nothing new starts, what runs finishes; the
// actor tells when) and actor_stop (its loop ends, its state is destroyed, the thread is joined).
//
//     static const struct actor_kind router_kind = {"router", router_create, router_destroy,
//                                                   router_drain};
//     actor_start(&actor, &router_kind, &host, &arguments, &error);
//     ... actor_drain(actor); ... actor_stop(&actor);

#ifndef RUNTIME_ACTOR_H
#define RUNTIME_ACTOR_H

#include <stdbool.h>

#include "base/error.h"
#include "runtime/log.h"
#include "runtime/loop.h"

struct actor;

// What every actor gets from its host, for its whole life.
struct actor_context {
    struct actor *actor;    // itself, for actor_drained
    struct loop *loop;      // its own, running on its own thread
    void *zmq;              // the process's one ZeroMQ context
    const struct log *log;  // with its name and level
};

struct actor_kind {
    const char *name;  // thread name and log name, at most 15 characters

    // Creates the state and registers handlers on context->loop. Runs on the actor's thread.
    // Ownership: arguments are borrowed until it returns; *state goes to destroy.
    // Errors:    any; actor_start returns them.
    enum status (*create)(void **state, const struct actor_context *context, const void *arguments,
                          struct error *error);

    // Undoes create. Runs on the actor's thread after its loop has ended.
    void (*destroy)(void *state);

    // Starts to drain; the actor calls actor_drained when nothing runs any more. NULL: nothing to
    // wait for.
    void (*drain)(void *state);
};

// Where actors live: one per process.
struct actor_host {
    void *zmq;                        // context
    const struct clock *clock;        // for all loops
    const struct log *log;            // parent of the actors' logs
    const struct log_levels *levels;  // actors' own levels; NULL: the parent's for all
};

// Starts an actor and waits until it is ready.
// Ownership: the caller owns *out until actor_stop; kind, and what host points to, are borrowed
// until
//            then.
// Errors:    whatever create returned; RESOURCE_EXHAUSTED.
// Thread:    any; the caller's thread drives the actor from then on.
enum status actor_start(struct actor **out, const struct actor_kind *kind,
                        const struct actor_host *host, const void *arguments, struct error *error);

// Asks the actor to drain, and does not wait.
// Thread:    the starter's.
void actor_drain(struct actor *self);

// Becomes readable when the actor has drained, or has ended by itself, and stays so. Poll it,
// nothing else.
// Thread:    the starter's.
int actor_descriptor(const struct actor *self);

// True once the actor has called actor_drained, or has ended: nothing runs in it any more.
// Thread:    the starter's.
bool actor_is_drained(struct actor *self);

// True once the actor's loop has ended by itself and its state is destroyed. actor_stop is still
// due.
// Thread:    the starter's.
bool actor_has_ended(struct actor *self);

// Ends the actor and waits for its thread. NULL is allowed.
// Thread:    the starter's.
void actor_stop(struct actor **self_p);

// Said by the actor itself when nothing runs any more.
// Thread:    the actor's.
void actor_drained(struct actor *self);

#endif  // RUNTIME_ACTOR_H
