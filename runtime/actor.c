// actor.c - a thread, its loop, and two eventfds; actor.h holds the contract.
//
//     starter                                 actor
//     actor_start   -- pthread_create ------> loop_create, kind->create
//                   <------------ said ------ "ready", or the error
//     actor_drain   -- wanted, command -----> kind->drain ... actor_drained
//                   <------------ said ------ has_drained
//     actor_stop    -- wanted, command -----> the loop ends; kind->destroy
//                   <------- pthread_join --
//
// `said` counts 1 for "ready", which actor_start takes back; what is written later stays, so that
// the descriptor is readable from then on. The thread runs with all signals blocked: they are the
// main thread's. The command's event has the highest priority, so a busy actor still hears it.

#include "runtime/actor.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum wanted { WANTED_RUN, WANTED_DRAIN, WANTED_STOP };

struct actor {
    const struct actor_kind *kind;  // what it is
    const void *arguments;          // of create; NULL once it has returned
    struct actor_context context;   // what it gets
    struct log log;                 // with its name and level
    const struct clock *clock;      // of its loop
    pthread_t thread;               // its own, as the starter knows it
    pthread_t self_thread;          // the same, as the actor knows it
    bool has_thread;                // thread is to be joined
    int command;                    // eventfd: look at wanted
    int said;                       // eventfd: ready, drained, ended
    atomic_int wanted;              // enum wanted; only grows
    atomic_bool has_drained;        // actor_drained was called
    atomic_bool has_ended;          // the state is destroyed
    bool was_told_to_drain;         // kind->drain was called; the actor's thread only
    void *state;                    // the kind's; the actor's thread only
    enum status status;             // of create; written before said, read after it
    struct error error;             // its reason
};

// Adds 1 to an eventfd. The counter cannot overflow: nobody writes more than a few times.
static void post(int descriptor)
{
    const uint64_t one = 1;
    ssize_t written = write(descriptor, &one, sizeof one);
    assert(written == sizeof one);
}

// Takes the counter of an eventfd, waiting until it is not zero.
static void take(int descriptor)
{
    uint64_t count = 0;
    ssize_t got = 0;
    do {
        got = read(descriptor, &count, sizeof count);
    } while (got < 0 && errno == EINTR);
    assert(got == sizeof count);
    assert(count > 0);
}

static void on_command(evutil_socket_t descriptor, short what, void *arg)
{
    (void)what;
    struct actor *self = arg;
    take(descriptor);
    int wanted = atomic_load(&self->wanted);
    assert(wanted == WANTED_DRAIN || wanted == WANTED_STOP);
    if (!self->was_told_to_drain && wanted == WANTED_DRAIN) {
        self->was_told_to_drain = true;
        if (self->kind->drain != NULL) {
            self->kind->drain(self->state);
        } else {
            actor_drained(self);
        }
    }
    if (wanted == WANTED_STOP) loop_stop(self->context.loop);
}

// Creates the loop and the state, and says so.
static enum status set_up(struct actor *self, struct event **command_event)
{
    enum status status = loop_create(&self->context.loop, self->clock, &self->error);
    if (status != STATUS_OK) return status;
    *command_event = event_new(loop_base(self->context.loop), self->command, EV_READ | EV_PERSIST,
                               on_command, self);
    if (*command_event == NULL || event_priority_set(*command_event, 0) != 0 ||
        event_add(*command_event, NULL) != 0) {
        return error_set(&self->error, STATUS_RESOURCE_EXHAUSTED, "no memory for an event");
    }
    return self->kind->create(&self->state, &self->context, self->arguments, &self->error);
}

static void *actor_main(void *arg)
{
    struct actor *self = arg;
    self->self_thread = pthread_self();
    pthread_setname_np(self->self_thread, self->kind->name);
    struct event *command_event = NULL;
    enum status status = set_up(self, &command_event);
    bool is_up = status == STATUS_OK;
    self->status = status;
    self->arguments = NULL;
    if (is_up) {
        post(self->said);
        loop_run(self->context.loop);
        if (self->kind->destroy != NULL) self->kind->destroy(self->state);
    }
    if (command_event != NULL) event_free(command_event);
    loop_destroy(&self->context.loop);
    atomic_store(&self->has_ended, true);
    post(self->said);  // after a failed set_up this is what actor_start waits for
    return NULL;
}

// Starts the thread with all signals blocked.
static enum status start_thread(struct actor *self, struct error *error)
{
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    int failure = pthread_sigmask(SIG_SETMASK, &all, &before);
    assert(failure == 0);
    failure = pthread_create(&self->thread, NULL, actor_main, self);
    self->has_thread = failure == 0;
    int restored = pthread_sigmask(SIG_SETMASK, &before, NULL);
    assert(restored == 0);
    if (failure == 0) return STATUS_OK;
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no thread for actor %s: %s",
                     self->kind->name, strerror(failure));
}

// Frees what there is; the thread is joined or never was.
static void release(struct actor *self)
{
    assert(!self->has_thread);
    if (self->command >= 0) close(self->command);
    if (self->said >= 0) close(self->said);
    free(self);
}

static void join(struct actor *self)
{
    if (!self->has_thread) return;
    int failure = pthread_join(self->thread, NULL);
    assert(failure == 0);
    self->has_thread = false;
}

static struct actor *allocate(const struct actor_kind *kind, const struct actor_host *host,
                              const void *arguments)
{
    struct actor *self = calloc(1, sizeof *self);
    if (self == NULL) return NULL;
    self->kind = kind;
    self->arguments = arguments;
    self->clock = host->clock;
    self->log = *host->log;
    self->log.actor = kind->name;
    if (host->levels != NULL) self->log.level = log_level_of(host->levels, kind->name);
    self->context = (struct actor_context){.actor = self, .zmq = host->zmq, .log = &self->log};
    self->command = eventfd(0, EFD_CLOEXEC);
    self->said = eventfd(0, EFD_CLOEXEC);
    return self;
}

enum status actor_start(struct actor **out, const struct actor_kind *kind,
                        const struct actor_host *host, const void *arguments, struct error *error)
{
    assert(out != NULL);
    assert(kind != NULL);
    assert(kind->create != NULL);
    assert(strlen(kind->name) < LOG_ACTOR_BYTES);
    assert(host != NULL);
    assert(host->clock != NULL);
    assert(host->log != NULL);

    struct actor *self = allocate(kind, host, arguments);
    if (self == NULL || self->command < 0 || self->said < 0) {
        if (self != NULL) release(self);
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no descriptors or memory for actor %s",
                         kind->name);
    }
    enum status status = start_thread(self, error);
    if (status != STATUS_OK) {
        release(self);
        return status;
    }
    take(self->said);
    status = self->status;
    if (status != STATUS_OK) {
        join(self);
        if (error != NULL) *error = self->error;
        release(self);
        return status;
    }
    // The counter is one: an end that was said before Ready was heard went with it, so say it
    // again.
    if (actor_is_drained(self)) post(self->said);
    *out = self;
    return STATUS_OK;
}

// Tells the actor what is wanted of it; a wish never goes back.
static void want(struct actor *self, enum wanted wanted)
{
    if (atomic_load(&self->wanted) >= (int)wanted) return;
    atomic_store(&self->wanted, (int)wanted);
    post(self->command);
}

void actor_drain(struct actor *self)
{
    assert(self != NULL);
    assert(self->has_thread);
    want(self, WANTED_DRAIN);
}

int actor_descriptor(const struct actor *self)
{
    assert(self != NULL);
    assert(self->said >= 0);
    return self->said;
}

bool actor_is_drained(struct actor *self)
{
    assert(self != NULL);
    return atomic_load(&self->has_drained) || atomic_load(&self->has_ended);
}

bool actor_has_ended(struct actor *self)
{
    assert(self != NULL);
    return atomic_load(&self->has_ended);
}

void actor_stop(struct actor **self_p)
{
    assert(self_p != NULL);
    struct actor *self = *self_p;
    if (self == NULL) return;

    want(self, WANTED_STOP);
    join(self);
    assert(atomic_load(&self->has_ended));
    release(self);
    *self_p = NULL;
}

void actor_drained(struct actor *self)
{
    assert(self != NULL);
    assert(pthread_equal(pthread_self(), self->self_thread));
    if (atomic_exchange(&self->has_drained, true)) return;
    post(self->said);
}
