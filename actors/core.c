// core.c - the core process: starts its actors in order, and stands between them and the
// supervisor.
//
//     supervisor --channel--> core's main thread --PAIR--> router, scaler
//
//     DrainAll   -> the router drains and says Drained, which goes back
//     ChildDown  -> DeviceDown to router and scaler
//     StopAll    -> the actors are stopped in reverse order, exit 0
//     KillChild, StopAll, DrainAll of the router go to the supervisor
//
// auth comes first, since a socket that clients reach lets nobody in without it; the router comes
// last, since with it requests are answered. When the channel ends, the supervisor is dead, and the
// core ends too.

#include <assert.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "actors/packet.h"
#include "actors/post.h"
#include "actors/process.h"
#include "actors/topology.h"
#include "messages/letter.h"
#include "runtime/actor.h"
#include "runtime/channel.h"
#include "runtime/socket.h"

#define ACTORS 7u

struct core {
    struct config *config;                         // of the daemon
    struct core_arguments arguments;               // of the actors
    const char *endpoints[PROCESS_LISTENERS_MAX];  // of the listeners
    int descriptors[PROCESS_LISTENERS_MAX];        // of the listeners
    char loras_path[SOCKET_ENDPOINT_BYTES];        // of SOCKET_LORAS
    struct log log;                                // of the main thread
    void *zmq;                                     // context
    struct loop *loop;                             // of the main thread
    struct actor *actors[ACTORS];                  // in the order of their start
    void *router;                                  // PAIR
    void *scaler;                                  // PAIR
    void *events;                                  // PUSH, never read
    struct loop_socket *watch_router;              // of router
    struct loop_socket *watch_scaler;              // of scaler
    struct loop_descriptor *watch_channel;         // of the supervisor's channel
    int exit_status;                               // of the process
};

static void to_supervisor(struct core *self, const luna_Letter *letter)
{
    enum status status = packet_send_letter(CHILD_CHANNEL, letter, -1);
    if (status == STATUS_OK) return;
    log_event(&self->log, LOG_ERROR, "letter.dropped", "to=supervisor letter=%d why=%s",
              (int)letter->which_letter, status_name(status));
}

static void to_actor(struct core *self, void *socket, struct loop_socket *watch,
                     const luna_Letter *letter)
{
    if (post_letter(socket, letter, NULL) != STATUS_OK) {
        log_event(&self->log, LOG_ERROR, "letter.dropped", "to=%s letter=%d",
                  socket == self->router ? "router" : "scaler", (int)letter->which_letter);
    }
    loop_socket_touch(watch);
}

static void to_router(struct core *self, const luna_Letter *letter)
{
    to_actor(self, self->router, self->watch_router, letter);
}

static void to_scaler(struct core *self, const luna_Letter *letter)
{
    to_actor(self, self->scaler, self->watch_scaler, letter);
}

static void drain(struct core *self)
{
    luna_Letter letter = {.which_letter = luna_Letter_drain_all_tag};
    to_router(self, &letter);
    post_letter(self->events, &letter, NULL);
}

static void on_child_down(struct core *self, const luna_ChildDown *down)
{
    luna_Letter letter = {.which_letter = luna_Letter_device_down_tag};
    memcpy(letter.letter.device_down.name, down->name, sizeof letter.letter.device_down.name);
    letter.letter.device_down.epoch = down->epoch;
    letter.letter.device_down.given_up = down->given_up;
    to_router(self, &letter);
    to_scaler(self, &letter);
}

static void on_supervisor_letter(struct core *self, const luna_Letter *letter)
{
    switch (letter->which_letter) {
    case luna_Letter_drain_all_tag:
        drain(self);
        break;
    case luna_Letter_child_down_tag:
        on_child_down(self, &letter->letter.child_down);
        break;
    case luna_Letter_executor_expected_tag:
        to_scaler(self, letter);
        break;
    case luna_Letter_gpu_notice_tag:
        post_letter(self->events, letter, NULL);
        break;
    case luna_Letter_stop_all_tag:
        loop_stop(self->loop);
        break;
    default:
        log_event(&self->log, LOG_WARNING, "letter.unexpected", "from=supervisor letter=%d",
                  (int)letter->which_letter);
    }
}

static void on_channel(void *state)
{
    struct core *self = state;
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        luna_Letter letter;
        enum status status = packet_receive_letter(CHILD_CHANNEL, &letter);
        if (status == STATUS_UNAVAILABLE) return;
        if (status == STATUS_OK) {
            on_supervisor_letter(self, &letter);
            continue;
        }
        log_event(&self->log, LOG_ERROR, "supervisor.lost", "why=%s", status_name(status));
        self->exit_status = 1;
        loop_stop(self->loop);
        return;
    }
}

static void on_router_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    (void)frames;
    struct core *self = state;
    bool drains = letter->which_letter == luna_Letter_drain_all_tag ||
                  letter->which_letter == luna_Letter_stop_all_tag;
    luna_Letter drain_all = {.which_letter = luna_Letter_drain_all_tag};
    if (drains) post_letter(self->events, &drain_all, NULL);
    to_supervisor(self, letter);
}

static void on_router(void *state)
{
    struct core *self = state;
    post_each(self->router, on_router_letter, self);
}

// The scaler says which devices have reported.
static void on_scaler_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    (void)frames;
    to_supervisor(state, letter);
}

static void on_scaler(void *state)
{
    struct core *self = state;
    post_each(self->scaler, on_scaler_letter, self);
}

// ---- life

static enum status start_actors(struct core *self, struct error *error)
{
    const struct actor_kind *const kinds[ACTORS] = {&auth_kind,       &monitor_kind, &leases_kind,
                                                    &lora_store_kind, &scaler_kind,  &registry_kind,
                                                    &router_kind};
    const struct actor_host host = {.zmq = self->zmq,
                                    .clock = clock_system(),
                                    .log = &self->log,
                                    .levels = &self->config->service.log_levels};
    for (uint32_t i = 0; i < ACTORS; i++) {
        enum status status =
            actor_start(&self->actors[i], kinds[i], &host, &self->arguments, error);
        if (status != STATUS_OK) return error_prefix(error, "%s", kinds[i]->name);
    }
    return STATUS_OK;
}

static enum status open_edges(struct core *self, struct error *error)
{
    const struct {
        void **socket;
        enum edge edge;
        const char *address;
    } ends[] = {{&self->router, EDGE_ROUTER_CORE, ADDRESS_ROUTER_CORE},
                {&self->scaler, EDGE_SCALER_CORE, ADDRESS_SCALER_CORE},
                {&self->events, EDGE_EVENTS, ADDRESS_EVENTS}};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        enum status status = socket_open(ends[i].socket, self->zmq, ends[i].edge, error);
        if (status == STATUS_OK) status = socket_connect(*ends[i].socket, ends[i].address, error);
        if (status != STATUS_OK) return status;
    }
    enum status status = loop_add_socket(self->loop, self->router, true, on_router, self,
                                         &self->watch_router, error);
    if (status != STATUS_OK) return status;
    status = loop_add_socket(self->loop, self->scaler, true, on_scaler, self, &self->watch_scaler,
                             error);
    if (status != STATUS_OK) return status;
    return loop_add_descriptor(self->loop, CHILD_CHANNEL, on_channel, self, &self->watch_channel,
                               error);
}

static enum status read_arguments(struct core *self, int argc, char **argv, struct error *error)
{
    uint64_t pid = 0;
    uint64_t started_ns = 0;
    bool valid = argc >= 6 && argc <= 6 + (int)PROCESS_LISTENERS_MAX &&
                 process_number(argv[4], &pid) && process_number(argv[5], &started_ns) &&
                 pid <= UINT32_MAX;
    if (!valid) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%s is started by luna serve, not by hand",
                         PROCESS_CORE_WORD);
    }
    uint32_t listeners = (uint32_t)argc - 6;
    for (uint32_t i = 0; i < listeners; i++) {
        self->endpoints[i] = argv[6 + i];
        self->descriptors[i] = PROCESS_CONFIG_DESCRIPTOR + 1 + (int)i;
    }
    process_loras_path(self->loras_path, sizeof self->loras_path, argv[3]);
    self->arguments = (struct core_arguments){.private_directory = argv[2],
                                              .lease_path = argv[3],
                                              .loras_path = self->loras_path,
                                              .listen_descriptors = self->descriptors,
                                              .listen_endpoints = self->endpoints,
                                              .listen_count = listeners,
                                              .supervisor_pid = (uint32_t)pid,
                                              .started_ns = started_ns};
    return STATUS_OK;
}

static enum status start(struct core *self, int argc, char **argv, struct error *error)
{
    enum status status = read_arguments(self, argc, argv, error);
    if (status == STATUS_OK) status = process_read_config(&self->config, error);
    if (status != STATUS_OK) return status;
    self->arguments.config = self->config;
    self->log = process_log(self->config, "core");
    status = loop_create(&self->loop, clock_system(), error);
    if (status == STATUS_OK) status = socket_context_create(&self->zmq, 0, error);
    // Connected first, so that nothing is lost that an actor says while the others start.
    if (status == STATUS_OK) status = open_edges(self, error);
    if (status == STATUS_OK) status = start_actors(self, error);
    return status;
}

static void stop(struct core *self)
{
    loop_descriptor_remove(&self->watch_channel);
    loop_socket_remove(&self->watch_router);
    loop_socket_remove(&self->watch_scaler);
    for (uint32_t i = ACTORS; i > 0; i--) actor_stop(&self->actors[i - 1]);
    socket_close(&self->router);
    socket_close(&self->scaler);
    socket_close(&self->events);
    socket_context_destroy(&self->zmq);
    loop_destroy(&self->loop);
    config_destroy(&self->config);
}

int core_process_main(int argc, char **argv)
{
    assert(argc >= 2);
    struct core self = {.exit_status = 0};
    struct error error = {0};
    // Messages are made by one thread and freed by another. With an arena a thread, what one freed
    // is of no use to the others, and the process grows by megabytes while it holds no more than
    // before.
    mallopt(M_ARENA_MAX, 1);
    if (start(&self, argc, argv, &error) != STATUS_OK) {
        process_say_error(&error);
        self.exit_status = 1;
    } else {
        luna_Letter letter = {.which_letter = luna_Letter_child_ready_tag};
        letter.letter.child_ready.pid = (uint32_t)getpid();
        to_supervisor(&self, &letter);
        loop_run(self.loop);
    }
    stop(&self);
    return self.exit_status;
}
