// supervisor.c - one loop over pidfds, channels, signals and timers; supervisor.h holds the
// contract.
//
//              +-- dies ----------> wait 0.1 s, 0.2 s, ... --> started again, alone
//     RUNNING -+
//              +-- dies too often > core: exit 1;  executor: given up, its services fail
//
//     RUNNING --SIGTERM, Shutdown--> DRAINING --Drained, or 30 s--> STOPPING
//     STOPPING --all are gone, or 5 s and SIGKILL--> the end
//     RUNNING --SIGHUP--> RELOADING --Drained, or 30 s--> the core is started again: RUNNING
//
// It has no ZeroMQ context and no models, so that it has nothing to crash on. Its children hold one
// end of a channel each; when it dies they see that end and end too. Numbers of executors (epochs)
// only grow.

#include "actors/supervisor.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "actors/devices.h"
#include "actors/event.h"
#include "actors/packet.h"
#include "actors/probe.h"
#include "runtime/loop.h"
#include "runtime/notify.h"
#include "runtime/signals.h"

#define CHILDREN_MAX (1u + DEVICE_TABLE_MAX)
#define DRAIN_MS_MAX 30000u
#define STOP_MS_MAX 5000u
#define REPORT_MS_MAX 1000u  // that the first line waits for devices behind the core's ready
#define NUMBER_BYTES 24u

enum supervisor_state { RUNNING, RELOADING, DRAINING, STOPPING };

struct supervised {
    struct supervisor *owner;               // back to the supervisor
    char name[32];                          // "core", or the device
    bool is_core;                           // else an executor
    struct child *child;                    // NULL while it does not run
    uint64_t epoch;                         // of an executor
    bool was_ready;                         // at least once
    bool is_ready;                          // now
    bool has_reported;                      // an executor: its device, to the core, at least once
    bool given_up;                          // nobody starts it again
    struct restart restart;                 // how often it died of late
    struct loop_descriptor *watch_end;      // of its pidfd
    struct loop_descriptor *watch_channel;  // of its channel
    struct loop_timer *again;               // starts it again
};

struct supervisor {
    const struct supervisor_options *options;  // borrowed
    struct config **config_p;                  // in force
    struct log log;                            // its own
    struct loop *loop;                         // the main thread's
    enum supervisor_state state;               // see the picture above
    uint64_t epochs;                           // the last one given out
    bool ready_told;                           // the first line was written
    luna_GpuNotice gpus;                       // what was found when CUDA devices were looked for
    int exit_status;                           // of the daemon
    uint32_t count;                            // entries of children
    struct supervised children[CHILDREN_MAX];  // the core first
    struct loop_descriptor *watch_signals;     // of options->signals
    struct loop_timer *limit;                  // of draining, reloading and stopping
    struct loop_timer *watchdog;               // systemd's; NULL: none
};

static struct supervised *core_of(struct supervisor *self)
{
    assert(self->children[0].is_core);
    return &self->children[0];
}

static bool send_to(struct supervised *child, const luna_Letter *letter)
{
    if (child->child == NULL) return false;
    enum status status = packet_send_letter(child_channel(child->child), letter, -1);
    if (status == STATUS_OK) return true;
    log_event(&child->owner->log, LOG_WARNING, "letter.dropped", "to=%s letter=%d why=%s",
              child->name, (int)letter->which_letter, status_name(status));
    return false;
}

// ---- start

static enum status spawn_core(struct supervised *child, int config_descriptor, struct error *error)
{
    struct supervisor *self = child->owner;
    const struct supervisor_options *options = self->options;
    char program[] = "luna";
    char word[] = PROCESS_CORE_WORD;
    char directory[SOCKET_ENDPOINT_BYTES];
    char lease_path[SOCKET_ENDPOINT_BYTES];
    char pid[NUMBER_BYTES];
    char started[NUMBER_BYTES];
    char endpoints[PROCESS_LISTENERS_MAX][SOCKET_ENDPOINT_BYTES];
    char *argv[7 + PROCESS_LISTENERS_MAX] = {program, word, directory, lease_path, pid, started};
    int descriptors[1 + PROCESS_LISTENERS_MAX] = {config_descriptor};
    text_set(directory, sizeof directory, options->private_directory);
    text_set(lease_path, sizeof lease_path, options->lease_path);
    snprintf(pid, sizeof pid, "%ld", (long)getpid());
    snprintf(started, sizeof started, "%llu", (unsigned long long)options->started_ns);
    for (uint32_t i = 0; i < options->listeners_count; i++) {
        text_set(endpoints[i], sizeof endpoints[i], options->listeners[i].endpoint);
        argv[6 + i] = endpoints[i];
        descriptors[1 + i] = options->listeners[i].descriptor;
    }
    const struct child_options spawn = {
        .argv = argv, .descriptors = descriptors, .descriptor_count = 1 + options->listeners_count};
    return child_spawn(&child->child, &spawn, error);
}

static enum status spawn_executor(struct supervised *child, int config_descriptor,
                                  struct error *error)
{
    struct supervisor *self = child->owner;
    char program[] = "luna";
    char word[] = PROCESS_EXECUTOR_WORD;
    char directory[SOCKET_ENDPOINT_BYTES];
    char device[sizeof child->name];
    char epoch[NUMBER_BYTES];
    char *argv[] = {program, word, directory, device, epoch, NULL};
    self->epochs += 1;
    child->epoch = self->epochs;
    text_set(directory, sizeof directory, self->options->private_directory);
    text_set(device, sizeof device, child->name);
    snprintf(epoch, sizeof epoch, "%llu", (unsigned long long)child->epoch);
    const struct child_options spawn = {
        .argv = argv, .descriptors = &config_descriptor, .descriptor_count = 1};
    return child_spawn(&child->child, &spawn, error);
}

static void tell_ready(struct supervisor *self, bool at_any_rate);
static void on_end(void *state);
static void on_channel(void *state);

static enum status start_child(struct supervised *child, struct error *error)
{
    assert(child->child == NULL);
    struct supervisor *self = child->owner;
    int config_descriptor = -1;
    enum status status = process_write_config(*self->config_p, &config_descriptor, error);
    if (status != STATUS_OK) return status;
    status = child->is_core ? spawn_core(child, config_descriptor, error)
                            : spawn_executor(child, config_descriptor, error);
    close(config_descriptor);
    if (status != STATUS_OK) return status;
    status = loop_add_descriptor(self->loop, child_descriptor(child->child), on_end, child,
                                 &child->watch_end, error);
    if (status == STATUS_OK) {
        status = loop_add_descriptor(self->loop, child_channel(child->child), on_channel, child,
                                     &child->watch_channel, error);
    }
    if (status != STATUS_OK) return status;
    log_event(&self->log, LOG_INFO, "child.started", "name=%s pid=%ld epoch=%lu", child->name,
              (long)child_pid(child->child), (unsigned long)child->epoch);
    return STATUS_OK;
}

// ---- end

static void forget_child(struct supervised *child)
{
    loop_descriptor_remove(&child->watch_end);
    loop_descriptor_remove(&child->watch_channel);
    child_destroy(&child->child);
    child->is_ready = false;
}

static bool all_are_gone(const struct supervisor *self)
{
    for (uint32_t i = 0; i < self->count; i++) {
        if (self->children[i].child != NULL) return false;
    }
    return true;
}

// Tells every child to end; who is not gone in time is killed.
static void stop_all(struct supervisor *self)
{
    self->state = STOPPING;
    luna_Letter letter = {.which_letter = luna_Letter_stop_all_tag};
    for (uint32_t i = 0; i < self->count; i++) send_to(&self->children[i], &letter);
    loop_timer_restart(self->limit, STOP_MS_MAX);
    if (all_are_gone(self)) loop_stop(self->loop);
}

static void start_drain(struct supervisor *self, enum supervisor_state state)
{
    assert(state == DRAINING || state == RELOADING);
    luna_Letter letter = {.which_letter = luna_Letter_drain_all_tag};
    bool was_draining = self->state == RELOADING;
    self->state = state;
    if (state == DRAINING) notify_send(self->options->notify_socket, "STOPPING=1");
    loop_timer_restart(self->limit, DRAIN_MS_MAX);
    if (was_draining || send_to(core_of(self), &letter)) return;
    if (state == DRAINING) stop_all(self);
}

// Lets the core end, so that it is started again with the configuration in force.
static void replace_core(struct supervisor *self)
{
    luna_Letter letter = {.which_letter = luna_Letter_stop_all_tag};
    if (!send_to(core_of(self), &letter) && core_of(self)->child != NULL) {
        child_signal(core_of(self)->child, SIGKILL);
    }
    loop_timer_restart(self->limit, STOP_MS_MAX);
}

static void kill_all(struct supervisor *self)
{
    for (uint32_t i = 0; i < self->count; i++) {
        if (self->children[i].child != NULL) child_signal(self->children[i].child, SIGKILL);
    }
}

static void on_limit(void *state)
{
    struct supervisor *self = state;
    if (self->state == RUNNING) {
        tell_ready(self, true);
        return;
    }
    log_event(&self->log, LOG_WARNING, "patience.lost", "state=%d", (int)self->state);
    if (self->state == DRAINING) {
        stop_all(self);
    } else if (self->state == STOPPING) {
        kill_all(self);
    } else if (core_of(self)->child != NULL) {
        child_signal(core_of(self)->child, SIGKILL);
    }
}

static void tell_child_down(struct supervised *child, long pid, const struct child_exit *ended)
{
    luna_Letter letter = {.which_letter = luna_Letter_child_down_tag};
    luna_ChildDown *down = &letter.letter.child_down;
    text_set(down->name, sizeof down->name, child->name);
    down->pid = (uint32_t)pid;
    down->epoch = child->epoch;
    down->status = ended->status;
    down->signalled = ended->is_signalled;
    down->given_up = child->given_up;
    bool listens = core_of(child->owner)->is_ready && child->owner->state != STOPPING;
    if (listens) send_to(core_of(child->owner), &letter);
}

static void tell_expected(struct supervised *child)
{
    luna_Letter letter = {.which_letter = luna_Letter_executor_expected_tag};
    luna_ExecutorExpected *expected = &letter.letter.executor_expected;
    text_set(expected->name, sizeof expected->name, child->name);
    expected->pid = (uint32_t)child_pid(child->child);
    expected->epoch = child->epoch;
    send_to(core_of(child->owner), &letter);
}

static void give_up(struct supervised *child)
{
    struct supervisor *self = child->owner;
    child->given_up = true;
    log_event(&self->log, LOG_ERROR, "child.given_up", "name=%s restarts=%u period_s=%u",
              child->name, (*self->config_p)->limits.restarts_max,
              (*self->config_p)->limits.restarts_period_s);
    if (!child->is_core) return;
    fprintf(stderr, "luna: the core process %s\n",
            child->was_ready ? "died too often" : "could not start");
    self->exit_status = 1;
    stop_all(self);
}

static void start_again(void *state)
{
    struct supervised *child = state;
    struct error error = {0};
    if (child->child != NULL || child->given_up || child->owner->state >= DRAINING) return;
    if (start_child(child, &error) == STATUS_OK) return;
    process_say_error(&error);
    forget_child(child);
    uint32_t delay_ms = 0;
    if (restart_next(&child->restart, &delay_ms)) {
        loop_timer_restart(child->again, delay_ms);
    } else {
        give_up(child);
    }
}

static void plan_restart(struct supervised *child)
{
    struct supervisor *self = child->owner;
    uint32_t delay_ms = 0;
    // The core's orderly end for a reload is no death; one that never became ready will not the
    // next time either.
    if (child->is_core && self->state == RELOADING) {
        self->state = RUNNING;
        loop_timer_restart(child->again, 0);
    } else if (!(child->is_core && !child->was_ready) && restart_next(&child->restart, &delay_ms)) {
        loop_timer_restart(child->again, delay_ms);
    } else {
        give_up(child);
    }
}

static void on_end(void *state)
{
    struct supervised *child = state;
    struct supervisor *self = child->owner;
    struct child_exit ended;
    if (!child_has_ended(child->child, &ended)) return;
    long pid = (long)child_pid(child->child);
    on_channel(child);  // its last letters
    if (child->child != NULL) forget_child(child);
    log_event(&self->log, self->state == RUNNING ? LOG_ERROR : LOG_INFO, "child.ended",
              "name=%s pid=%ld %s=%d", child->name, pid, ended.is_signalled ? "signal" : "status",
              ended.status);
    if (self->state == DRAINING && child->is_core) stop_all(self);
    if (self->state < DRAINING) plan_restart(child);
    if (!child->is_core) tell_child_down(child, pid, &ended);
    if (self->state == STOPPING && all_are_gone(self)) loop_stop(self->loop);
}

// ---- letters

// Writes the first line, once requests are answered and every device that lives is there.
static void tell_ready(struct supervisor *self, bool at_any_rate)
{
    if (self->ready_told || !core_of(self)->is_ready) return;
    for (uint32_t i = 1; i < self->count; i++) {
        const struct supervised *child = &self->children[i];
        bool is_known = child->has_reported || child->restart.count > 0 || child->given_up;
        if (!is_known && !at_any_rate) return;
    }
    self->ready_told = true;
    printf("luna: ready");
    for (uint32_t i = 0; i < self->options->listeners_count; i++) {
        printf(" %s", self->options->listeners[i].endpoint);
    }
    printf("\n");
    fflush(stdout);
    notify_send(self->options->notify_socket, "READY=1");
}

static void on_ready(struct supervised *child)
{
    struct supervisor *self = child->owner;
    child->is_ready = true;
    child->was_ready = true;
    if (!child->is_core) return;
    luna_Letter letter = {.which_letter = luna_Letter_gpu_notice_tag};
    letter.letter.gpu_notice = self->gpus;
    send_to(child, &letter);
    if (self->ready_told) {
        notify_send(self->options->notify_socket, "READY=1");
    } else {
        loop_timer_restart(self->limit, REPORT_MS_MAX);
        tell_ready(self, false);
    }
    // A core that comes later does not know who will never come, and who should.
    for (uint32_t i = 1; i < self->count; i++) {
        const struct child_exit unknown = {.status = 0};
        if (self->children[i].given_up) tell_child_down(&self->children[i], 0, &unknown);
        if (self->children[i].is_ready) tell_expected(&self->children[i]);
    }
}

static void on_kill(struct supervisor *self, const luna_KillChild *kill)
{
    for (uint32_t i = 1; i < self->count; i++) {
        struct supervised *child = &self->children[i];
        if (child->child == NULL || (uint32_t)child_pid(child->child) != kill->pid) continue;
        log_event(&self->log, LOG_ERROR, "child.killed", "name=%s pid=%u why=%s", child->name,
                  kill->pid, kill->reason);
        child_signal(child->child, SIGKILL);
        return;
    }
    log_event(&self->log, LOG_WARNING, "kill.unknown", "pid=%u", kill->pid);
}

static void on_device(struct supervisor *self, const char *name)
{
    for (uint32_t i = 1; i < self->count; i++) {
        struct supervised *child = &self->children[i];
        if (strcmp(child->name, name) == 0) child->has_reported = true;
    }
    tell_ready(self, false);
}

static void on_core_letter(struct supervisor *self, const luna_Letter *letter)
{
    switch (letter->which_letter) {
    case luna_Letter_device_tag:
        on_device(self, letter->letter.device.name);
        break;
    case luna_Letter_drained_tag:
        if (self->state == DRAINING) stop_all(self);
        if (self->state == RELOADING) replace_core(self);
        break;
    case luna_Letter_kill_child_tag:
        on_kill(self, &letter->letter.kill_child);
        break;
    case luna_Letter_stop_all_tag:
        if (self->state < DRAINING) start_drain(self, DRAINING);
        break;
    case luna_Letter_drain_all_tag:
        break;
    default:
        log_event(&self->log, LOG_WARNING, "letter.unexpected", "from=core letter=%d",
                  (int)letter->which_letter);
    }
}

static void on_channel(void *state)
{
    struct supervised *child = state;
    for (uint32_t i = 0; child->child != NULL && i < LOOP_BATCH_MAX; i++) {
        luna_Letter letter;
        enum status status = packet_receive_letter(child_channel(child->child), &letter);
        if (status == STATUS_UNAVAILABLE) return;
        if (status != STATUS_OK) {
            // Closed: its end follows. A child that lives on without a channel is of no use to
            // anybody.
            loop_descriptor_remove(&child->watch_channel);
            child_signal(child->child, SIGKILL);
            return;
        }
        if (letter.which_letter == luna_Letter_child_ready_tag) {
            on_ready(child);
        } else if (child->is_core) {
            on_core_letter(child->owner, &letter);
        }
    }
}

// ---- signals

static void say_changes(const struct config *before, const struct config *after)
{
    struct config_change changes[CONFIG_CHANGES_MAX + 2 * CONFIG_MODELS_MAX];
    uint32_t count = config_compare(before, after, changes);
    for (uint32_t i = 0; i < count; i++) {
        if (changes[i].is_live) continue;
        fprintf(stderr, "luna: %s takes effect when the daemon is started again\n", changes[i].key);
    }
}

// Takes a new configuration into force, or keeps the old one and says why.
static void reload(struct supervisor *self)
{
    struct config *config = NULL;
    struct error error = {0};
    notify_reloading(self->options->notify_socket);
    if (self->options->reload(self->options->context, &config, &error) != STATUS_OK) {
        fprintf(stderr, "luna: the configuration stays as it was: %s: %s\n",
                status_name(error.status), error.message);
        notify_send(self->options->notify_socket, "READY=1");
        return;
    }
    say_changes(*self->config_p, config);
    config_destroy(self->config_p);
    *self->config_p = config;
    for (uint32_t i = 0; i < self->count; i++) restart_reset(&self->children[i].restart);
    log_event(&self->log, LOG_INFO, "config.reloaded", "models=%u", config->model_count);
    if (self->state == RUNNING && core_of(self)->is_ready) start_drain(self, RELOADING);
}

static void on_signal(void *state)
{
    struct supervisor *self = state;
    int signal = 0;
    while ((signal = signals_take(self->options->signals)) != 0) {
        log_event(&self->log, LOG_INFO, "signal", "number=%d state=%d", signal, (int)self->state);
        if (signal == SIGHUP) {
            if (self->state == RUNNING) reload(self);
        } else if (self->state < DRAINING) {
            start_drain(self, DRAINING);
        } else {
            self->exit_status = 1;
            kill_all(self);
            loop_stop(self->loop);
        }
    }
}

static void on_watchdog(void *state)
{
    struct supervisor *self = state;
    notify_send(self->options->notify_socket, "WATCHDOG=1");
}

// ---- life

// Looks for CUDA devices where the configuration wants any, and says which devices get executors.
static enum status find_devices(struct supervisor *self, struct device_list *out,
                                struct error *error)
{
    struct device_list named;
    enum status status = devices_named(*self->config_p, &named, error);
    if (status != STATUS_OK) return status;
    self->gpus = (luna_GpuNotice){.unasked = true};
    if (devices_need_probe(&named)) {
        probe_gpus(&self->gpus);
        log_event(&self->log, LOG_INFO, "gpus.found", "count=%u driver=\"%s\" why=\"%s\"",
                  self->gpus.count, self->gpus.driver, self->gpus.message);
    }
    return devices_choose(*self->config_p, &named, &self->gpus, out, error);
}

static enum status add_child(struct supervisor *self, const char *name, bool is_core,
                             struct error *error)
{
    assert(self->count < CHILDREN_MAX);
    const struct config_limits *limits = &(*self->config_p)->limits;
    struct supervised *child = &self->children[self->count];
    self->count += 1;
    *child = (struct supervised){.owner = self, .is_core = is_core};
    text_set(child->name, sizeof child->name, name);
    child->restart = restart_policy(clock_system(), limits->restarts_max,
                                    UINT64_C(1000) * limits->restarts_period_s);
    // Armed only when the child has died; until then it stands far away, and does nothing if it
    // fires.
    return loop_add_timer(self->loop, UINT32_MAX / 2, 0, start_again, child, &child->again, error);
}

static enum status start(struct supervisor *self, struct error *error)
{
    struct device_list devices = {.count = 0};
    enum status status = find_devices(self, &devices, error);
    if (status == STATUS_OK) status = loop_create(&self->loop, clock_system(), error);
    if (status == STATUS_OK) {
        status = loop_add_descriptor(self->loop, self->options->signals, on_signal, self,
                                     &self->watch_signals, error);
    }
    if (status == STATUS_OK) {
        status = loop_add_timer(self->loop, UINT32_MAX / 2, 0, on_limit, self, &self->limit, error);
    }
    uint32_t watchdog_ms = notify_watchdog_ms(getenv("WATCHDOG_USEC"), getenv("WATCHDOG_PID"));
    if (status == STATUS_OK && watchdog_ms > 0) {
        status = loop_add_timer(self->loop, watchdog_ms, watchdog_ms, on_watchdog, self,
                                &self->watchdog, error);
    }
    if (status == STATUS_OK) status = add_child(self, "core", true, error);
    for (uint32_t i = 0; status == STATUS_OK && i < devices.count; i++) {
        status = add_child(self, devices.names[i], false, error);
    }
    for (uint32_t i = 0; status == STATUS_OK && i < self->count; i++) {
        status = start_child(&self->children[i], error);
    }
    return status;
}

int supervisor_run(struct config **config_p, const struct supervisor_options *options)
{
    assert(config_p != NULL);
    assert(options != NULL);
    assert(options->listeners_count <= PROCESS_LISTENERS_MAX);
    struct supervisor self = {.options = options, .config_p = config_p};
    struct error error = {0};
    self.log = process_log(*config_p, "supervisor");
    if (start(&self, &error) == STATUS_OK) {
        loop_run(self.loop);
    } else {
        process_say_error(&error);
        self.exit_status = 1;
    }
    for (uint32_t i = 0; i < self.count; i++) {
        loop_timer_remove(&self.children[i].again);
        forget_child(&self.children[i]);
    }
    loop_timer_remove(&self.watchdog);
    loop_timer_remove(&self.limit);
    loop_descriptor_remove(&self.watch_signals);
    loop_destroy(&self.loop);
    return self.exit_status;
}
