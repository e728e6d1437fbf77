// executor_process.c - the process of one device: its executor, and the channel to the supervisor.
//
// It ends when the supervisor says so or is gone (0), and when its executor ends by itself because
// the device is broken for good (1): then it is started again.

#include <assert.h>
#include <stdlib.h>
#include <unistd.h>

#include "actors/packet.h"
#include "actors/process.h"
#include "actors/topology.h"
#include "runtime/actor.h"
#include "runtime/socket.h"

struct executor_process {
    struct config *config;                   // of the daemon
    struct executor_arguments arguments;     // of the executor
    struct log log;                          // of the main thread
    void *zmq;                               // context
    struct loop *loop;                       // of the main thread
    struct actor *executor;                  // starts its workers itself
    struct loop_descriptor *watch_channel;   // of the supervisor's channel
    struct loop_descriptor *watch_executor;  // of the executor's end
    int exit_status;                         // of the process
};

static void on_channel(void *state)
{
    struct executor_process *self = state;
    luna_Letter letter;
    enum status status = packet_receive_letter(CHILD_CHANNEL, &letter);
    if (status == STATUS_UNAVAILABLE) return;
    if (status == STATUS_OK && letter.which_letter != luna_Letter_stop_all_tag) return;
    loop_stop(self->loop);
}

static void on_executor(void *state)
{
    struct executor_process *self = state;
    if (!actor_has_ended(self->executor)) return;
    log_event(&self->log, LOG_ERROR, "executor.ended", "device=%s", self->arguments.device);
    self->exit_status = 1;
    loop_stop(self->loop);
}

static enum status start(struct executor_process *self, int argc, char **argv, struct error *error)
{
    if (argc != 5 || !process_number(argv[4], &self->arguments.epoch)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%s is started by luna serve, not by hand",
                         PROCESS_EXECUTOR_WORD);
    }
    enum status status = process_read_config(&self->config, error);
    if (status != STATUS_OK) return status;
    self->arguments.config = self->config;
    self->arguments.private_directory = argv[2];
    self->arguments.device = argv[3];
    self->log = process_log(self->config, "executor");
    status = loop_create(&self->loop, clock_system(), error);
    if (status == STATUS_OK) status = socket_context_create(&self->zmq, 0, error);
    const struct actor_host host = {.zmq = self->zmq,
                                    .clock = clock_system(),
                                    .log = &self->log,
                                    .levels = &self->config->service.log_levels};
    if (status == STATUS_OK) {
        status = actor_start(&self->executor, &executor_kind, &host, &self->arguments, error);
    }
    if (status == STATUS_OK) {
        status = loop_add_descriptor(self->loop, CHILD_CHANNEL, on_channel, self,
                                     &self->watch_channel, error);
    }
    if (status == STATUS_OK) {
        status = loop_add_descriptor(self->loop, actor_descriptor(self->executor), on_executor,
                                     self, &self->watch_executor, error);
    }
    return status;
}

static void stop(struct executor_process *self)
{
    loop_descriptor_remove(&self->watch_executor);
    loop_descriptor_remove(&self->watch_channel);
    actor_stop(&self->executor);
    socket_context_destroy(&self->zmq);
    loop_destroy(&self->loop);
    config_destroy(&self->config);
}

int executor_process_main(int argc, char **argv)
{
    assert(argc >= 2);
    struct executor_process self = {.exit_status = 0};
    struct error error = {0};
    if (start(&self, argc, argv, &error) != STATUS_OK) {
        process_say_error(&error);
        self.exit_status = 1;
    } else {
        luna_Letter letter = {.which_letter = luna_Letter_child_ready_tag};
        letter.letter.child_ready.pid = (uint32_t)getpid();
        packet_send_letter(CHILD_CHANNEL, &letter, -1);
        loop_run(self.loop);
    }
    stop(&self);
    return self.exit_status;
}
