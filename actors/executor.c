// executor.c - one device: its ledger, its models, its workers.
//
// The scaler says what to spawn and what to retire, the registry which files a model name stands
// for. Nothing here computes or reads files: the loader does that, and the workers run lanes.
// Networks are loaded once and shared by const pointer with all workers of their service.

#include "actors/executor_state.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "actors/devices.h"
#include "actors/event.h"
#include "actors/post.h"
#include "actors/torch_child.h"
#include "runtime/socket.h"
#include "runtime/system_memory.h"

uint64_t executor_now(const struct executor *self)
{
    return clock_ns(loop_clock(self->context->loop));
}

void executor_tell(struct executor *self, enum executor_watch to, const luna_Letter *letter)
{
    void *socket = to == WATCH_SCALER ? self->scaler : self->registry;
    enum status status = post_letter(socket, letter, NULL);
    loop_socket_touch(self->watches[to]);
    if (status != STATUS_OK) {
        log_event(self->context->log, LOG_WARNING, "letter.dropped", "letter=%d status=%s",
                  (int)letter->which_letter, status_name(status));
    }
}

void executor_end_broken(struct executor *self, const char *why)
{
    log_event(self->context->log, LOG_ERROR, "device.broken", "device=%s why=\"%s\"",
              self->arguments.device, why);
    _exit(1);  // nothing can be saved in this process; the supervisor starts another
}

// What is promised and not yet taken is not free, whatever the driver says.
static void read_device_memory(struct executor *self)
{
    struct device_memory memory = {.total_bytes = 0};
    uint64_t used_bytes = 0;
    struct error error;
    for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
        if (group > luna_Group_VAE && self->devices[group] == self->devices[group - 1]) continue;
        if (device_memory(self->devices[group], &memory, &error) != STATUS_OK) {
            executor_end_broken(self, error.message);
        }
        used_bytes += memory.used_bytes;
    }
    uint64_t held_bytes = ledger_held(&self->ledger);
    uint64_t promised_bytes = held_bytes > used_bytes ? held_bytes - used_bytes : 0;
    self->ledger.system_free =
        memory.free_bytes > promised_bytes ? memory.free_bytes - promised_bytes : 0;
    self->ledger.total_bytes = memory.total_bytes;
}

static bool read_system_memory(struct executor *self)
{
    struct system_memory memory;
    if (system_memory_read(&memory) != STATUS_OK) return false;
    self->ledger.system_free = memory.available_bytes;
    self->ledger.total_bytes = memory.total_bytes;
    return true;
}

void executor_read_memory(struct executor *self)
{
    uint64_t now = executor_now(self);
    bool is_recent = self->memory_read_ns != 0 &&
                     now - self->memory_read_ns < EXECUTOR_MEMORY_MS * UINT64_C(1000000);
    if (is_recent) return;
    if (self->is_gpu) {
        read_device_memory(self);
    } else if (!read_system_memory(self)) {
        return;
    }
    self->memory_read_ns = now;
    uint64_t limit = self->ledger.limit_bytes;
    if (limit != 0 && limit < self->ledger.total_bytes) self->ledger.total_bytes = limit;
}

void executor_forget_memory(struct executor *self)
{
    self->memory_read_ns = 0;
}

void executor_describe(struct executor *self, luna_DeviceReport *report)
{
    executor_read_memory(self);
    *report = (luna_DeviceReport)luna_DeviceReport_init_zero;
    text_set(report->name, sizeof report->name, self->arguments.device);
    const struct device_info *info = device_info(self->devices[luna_Group_VAE]);
    text_set(report->label, sizeof report->label, info->label);
    text_set(report->driver, sizeof report->driver, info->driver);
    text_set(report->uuid, sizeof report->uuid, info->uuid);
    text_set(report->compute_capability, sizeof report->compute_capability, info->capability);
    report->margin_bytes = self->own_margin_bytes;
    report->executor_pid = (uint32_t)getpid();
    report->epoch = self->arguments.epoch;
    report->memory_total_bytes = self->ledger.total_bytes;
    report->memory_free_bytes = ledger_free(&self->ledger);
    report->weights_bytes = self->ledger.weights_bytes + self->ledger.stack_bytes;
    report->reserved_bytes = self->ledger.reserved_bytes + self->ledger.lent_bytes;
    report->lent_bytes = self->ledger.lent_bytes;
}

void executor_report(struct executor *self)
{
    luna_Letter letter = {.which_letter = luna_Letter_device_tag};
    executor_describe(self, &letter.letter.device);
    self->told_free_bytes = letter.letter.device.memory_free_bytes;
    executor_tell(self, WATCH_SCALER, &letter);
    executor_tell(self, WATCH_REGISTRY, &letter);
}

// Others on the same card come and go without a word.
static bool has_changed(struct executor *self)
{
    executor_read_memory(self);
    uint64_t now = ledger_free(&self->ledger);
    uint64_t before = self->told_free_bytes;
    return (now > before ? now - before : before - now) >= EXECUTOR_CHANGE_BYTES;
}

static void on_look(void *state)
{
    struct executor *self = state;
    if (self->loans != NULL) executor_loans_look(self->loans);
    bool is_due = !self->is_gpu || self->looks % EXECUTOR_LOOKS_A_REPORT == 0;
    self->looks += 1;
    if (!is_due && !has_changed(self)) return;
    uint64_t distrust_ns = EXECUTOR_DISTRUST_MS * UINT64_C(1000000);
    if (self->distrusted_ns != 0 && executor_now(self) - self->distrusted_ns >= distrust_ns) {
        ledger_trust(&self->ledger);
        self->distrusted_ns = 0;
    }
    executor_report(self);
    executor_stacks_report(self->stacks);
    executor_expire_workers(self);
}

static void introduce(struct executor *self)
{
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        if (self->workers[i].id != 0 && self->workers[i].actor != NULL)
            executor_tell_worker_up(self, &self->workers[i]);
    }
    for (uint32_t i = 0; i < EXECUTOR_MODELS_MAX; i++) {
        if (executor_model_bytes(&self->models[i]) > 0)
            executor_tell_model(self, &self->models[i], NULL);
    }
}

static void on_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    (void)frames;
    struct executor *self = state;
    switch (letter->which_letter) {
    case luna_Letter_spawn_tag:
        executor_spawn(self, &letter->letter.spawn);
        break;
    case luna_Letter_retire_tag:
        executor_retire(self, letter->letter.retire.worker);
        break;
    case luna_Letter_who_tag:
        introduce(self);
        break;
    case luna_Letter_model_definition_tag:
        executor_define_model(self, &letter->letter.model_definition);
        break;
    case luna_Letter_load_model_tag:
        executor_load_model(self, &letter->letter.load_model);
        break;
    case luna_Letter_unload_model_tag:
        executor_unload_model(self, letter->letter.unload_model.name);
        break;
    default:
        log_event(self->context->log, LOG_WARNING, "letter.unexpected", "letter=%d",
                  (int)letter->which_letter);
    }
}

static void on_scaler(void *state)
{
    struct executor *self = state;
    post_each(self->scaler, on_letter, self);
}

static void on_registry(void *state)
{
    struct executor *self = state;
    post_each(self->registry, on_letter, self);
}

static enum status open_edges(struct executor *self, struct error *error)
{
    char endpoint[SOCKET_ENDPOINT_BYTES];
    const struct {
        void **socket;
        enum edge edge;
        const char *file;
    } remote[] = {
        {&self->scaler, EDGE_SCALER_PEER, SOCKET_SCALER},
        {&self->registry, EDGE_REGISTRY_PEER, SOCKET_REGISTRY},
    };
    enum status status =
        socket_open(&self->workers_router, self->context->zmq, EDGE_EXECUTOR, error);
    if (status == STATUS_OK) status = socket_bind(self->workers_router, EXECUTOR_ADDRESS, error);
    const struct pair_end loader = {
        .address = LOADER_ADDRESS, .binds = true, .on_readable = executor_on_loader, .state = self};
    if (status == STATUS_OK) status = pair_open(&self->loader_pair, self->context, &loader, error);
    for (size_t i = 0; status == STATUS_OK && i < sizeof remote / sizeof remote[0]; i++) {
        status = socket_open(remote[i].socket, self->context->zmq, remote[i].edge, error);
        socket_ipc_endpoint(endpoint, sizeof endpoint, self->arguments.private_directory,
                            remote[i].file);
        if (status == STATUS_OK) status = socket_connect(*remote[i].socket, endpoint, error);
    }
    return status;
}

static enum status watch_edges(struct executor *self, struct error *error)
{
    struct loop *loop = self->context->loop;
    enum status status = loop_add_socket(loop, self->scaler, true, on_scaler, self,
                                         &self->watches[WATCH_SCALER], error);
    if (status == STATUS_OK) {
        status = loop_add_socket(loop, self->registry, true, on_registry, self,
                                 &self->watches[WATCH_REGISTRY], error);
    }
    if (status == STATUS_OK) {
        status = loop_add_socket(loop, self->workers_router, false, executor_on_workers, self,
                                 &self->watches[WATCH_WORKERS], error);
    }
    if (status == STATUS_OK) {
        uint32_t period_ms = self->is_gpu ? EXECUTOR_LOOK_MS : EXECUTOR_REPORT_MS;
        status = loop_add_timer(loop, 1, period_ms, on_look, self, &self->report, error);
    }
    return status;
}

// A GPU computes images in bf16 and texts faithfully where the configuration does not say; a
// processor is always faithful.
static enum status open_group(struct executor *self, luna_Group group, struct error *error)
{
    const struct config *config = self->arguments.config;
    bool all_threads = config->service.threads == CONFIG_AUTO;
    enum precision_choice precision =
        group == luna_Group_VAE ? config_vae_precision(config) : config_clip_precision(config);
    if (precision == PRECISION_AUTO) {
        precision = group == luna_Group_VAE ? PRECISION_BF16 : PRECISION_F32;
    }
    bool is_fast = self->is_gpu && precision != PRECISION_F32;
    char name[DEVICE_NAME_BYTES + sizeof ":bf16"];
    const char *storage = precision == PRECISION_F16 ? ":f16" : ":bf16";
    snprintf(name, sizeof name, "%s%s", self->arguments.device, is_fast ? storage : "");
    struct device *other = self->devices[luna_Group_VAE];
    if (other != NULL && strcmp(device_info(other)->name, name) == 0) {
        self->devices[group] = other;
        return STATUS_OK;
    }
    const struct device_options options = {
        .name = name,
        .threads = all_threads ? 0 : (uint32_t)config->service.threads,
        .precision_fast = is_fast,
    };
    return device_open(&self->devices[group], &options, error);
}

static enum status open_devices(struct executor *self, struct error *error)
{
    const struct config *config = self->arguments.config;
    bool no_limit = config->service.memory_limit_mb == CONFIG_AUTO;
    self->is_gpu = strcmp(self->arguments.device, "cpu") != 0;
    self->own_margin_bytes =
        (uint64_t)(self->is_gpu ? EXECUTOR_MARGIN_GPU_MB : EXECUTOR_MARGIN_CPU_MB) << 20;
    bool is_auto = config->scaling.memory_margin_mb == CONFIG_AUTO;
    self->margin_bytes = is_auto ? self->own_margin_bytes : config->scaling.memory_margin_mb << 20;
    self->ledger.limit_bytes = no_limit ? 0 : config->service.memory_limit_mb << 20;
    enum status status = open_group(self, luna_Group_VAE, error);
    if (status == STATUS_OK) status = open_group(self, luna_Group_TEXT, error);
    if (status == STATUS_OK) executor_read_memory(self);
    return status;
}

static void close_devices(struct executor *self)
{
    bool is_one = self->devices[luna_Group_VAE] == self->devices[luna_Group_TEXT];
    device_close(&self->devices[luna_Group_VAE]);
    if (!is_one) device_close(&self->devices[luna_Group_TEXT]);
}

static void executor_destroy(void *state)
{
    struct executor *self = state;
    if (self == NULL) return;
    executor_stop_workers(self);
    executor_loans_destroy(&self->loans);
    executor_stacks_destroy(&self->stacks);
    actor_stop(&self->loader);
    // An answer of the loader that nobody read may carry networks.
    struct loader_letter letter;
    while (pair_receive(&self->loader_pair, &letter, sizeof letter)) {
        if (!letter.is_hash) loaded_destroy(&letter.loaded);
    }
    loop_timer_remove(&self->report);
    for (size_t i = 0; i < sizeof self->watches / sizeof self->watches[0]; i++) {
        loop_socket_remove(&self->watches[i]);
    }
    socket_close(&self->scaler);
    socket_close(&self->registry);
    socket_close(&self->workers_router);
    pair_close(&self->loader_pair);
    for (uint32_t i = 0; i < EXECUTOR_MODELS_MAX; i++) {
        loaded_destroy(&self->models[i].loaded[luna_Group_VAE]);
        loaded_destroy(&self->models[i].loaded[luna_Group_TEXT]);
    }
    close_devices(self);
    free(self);
}

static enum status executor_create(void **state, const struct actor_context *context,
                                   const void *arguments, struct error *error)
{
    assert(state != NULL);
    assert(arguments != NULL);
    struct executor *self = calloc(1, sizeof *self);
    if (self == NULL)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the executor");
    self->context = context;
    self->arguments = *(const struct executor_arguments *)arguments;
    self->host = (struct actor_host){
        .zmq = context->zmq, .clock = loop_clock(context->loop), .log = context->log};
    torch_child_reader(&self->torch);
    enum status status = open_devices(self, error);
    if (status == STATUS_OK) status = open_edges(self, error);
    if (status == STATUS_OK) {
        const struct loader_arguments loader = {.devices = self->devices, .torch = &self->torch};
        status = actor_start(&self->loader, &loader_kind, &self->host, &loader, error);
    }
    if (status == STATUS_OK) status = executor_stacks_create(&self->stacks, self, error);
    if (status == STATUS_OK && self->is_gpu) {
        status = executor_loans_create(&self->loans, self, error);
    }
    if (status == STATUS_OK) status = watch_edges(self, error);
    if (status != STATUS_OK) {
        executor_destroy(self);
        return status;
    }
    log_event(context->log, LOG_INFO, "device.opened", "device=%s label=\"%s\"",
              self->arguments.device, device_info(self->devices[luna_Group_VAE])->label);
    const char *note = device_info(self->devices[luna_Group_TEXT])->note;
    if (note[0] != '\0') {
        log_event(context->log, LOG_INFO, "device.note", "device=%s note=\"%s\"",
                  self->arguments.device, note);
    }
    *state = self;
    return STATUS_OK;
}

const struct actor_kind executor_kind = {"executor", executor_create, executor_destroy, NULL};
