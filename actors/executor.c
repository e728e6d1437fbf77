// executor.c - one device: its ledger, its models, its workers.
//
// The scaler says what to spawn and what to retire, the registry which files a model name stands
// for. Nothing here computes or reads files: the loader does that, and the workers run lanes.
// Networks are loaded once and shared by const pointer with all workers of their service; they stay
// loaded after the last worker retired, until the memory is wanted elsewhere.

#include "actors/executor.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "actors/event.h"
#include "actors/ledger.h"
#include "actors/post.h"
#include "actors/torch_child.h"
#include "runtime/socket.h"
#include "runtime/system_memory.h"

#define EXECUTOR_MODELS_MAX 64u
#define EXECUTOR_WORKERS_MAX 16u
#define EXECUTOR_REPORT_MS 1000u
#define EXECUTOR_DEFINITION_MS 5000u  // that a worker waits for its model's definition

// A model name as the registry defined it, and its networks once a worker needed them.
struct model_entry {
    luna_ModelDefinition definition;   // name "" for a free entry
    struct loaded *loaded[3];          // by group; NULL: not loaded
    bool loading[3];                   // the loader works on it
    uint64_t used_ns[3];               // when a worker used it last
    char hash_vae[65], hash_text[65];  // content ids, once known
};

struct worker_entry {
    uint64_t id;              // 0 for a free entry
    struct actor *actor;      // NULL while its networks load
    luna_Service service;     // group and model
    uint64_t reserved_bytes;  // of its arena
    uint64_t spawned_ns;      // when the scaler asked for it
    bool retiring;            // told to drain
};

struct executor {
    const struct actor_context *context;  // as actor.h gives it
    struct executor_arguments arguments;  // as the process gave them
    struct actor_host host;               // for the workers
    struct device *device;                // the one
    struct ledger ledger;                 // its memory
    struct torch_reader torch;            // for the loader
    struct actor *loader;                 // reads files
    void *loader_pair;                    // to it
    void *scaler, *registry;              // DEALER
    void *workers_router;                 // ROUTER, from the workers
    struct loop_socket *watches[4];       // scaler, registry, workers, loader
    struct loop_timer *report;            // DeviceReport each second
    struct model_entry models[EXECUTOR_MODELS_MAX];
    struct worker_entry workers[EXECUTOR_WORKERS_MAX];
    uint32_t workers_started;  // low 16 bits of the next worker's id
};

enum executor_watch {
    WATCH_SCALER,
    WATCH_REGISTRY,
    WATCH_WORKERS,
    WATCH_LOADER,
};

static uint64_t now_ns(const struct executor *self)
{
    return clock_ns(loop_clock(self->context->loop));
}

static void tell(struct executor *self, enum executor_watch to, const luna_Letter *letter)
{
    void *socket = to == WATCH_SCALER ? self->scaler : self->registry;
    enum status status = post_letter(socket, letter, NULL);
    loop_socket_touch(self->watches[to]);
    if (status != STATUS_OK) {
        log_event(self->context->log, LOG_WARNING, "letter.dropped", "letter=%d status=%s",
                  (int)letter->which_letter, status_name(status));
    }
}

// ---- memory

static void read_system_memory(struct executor *self)
{
    struct system_memory memory;
    if (system_memory_read(&memory) != STATUS_OK) return;
    self->ledger.system_free = memory.available_bytes;
    self->ledger.total_bytes = memory.total_bytes;
    uint64_t limit = self->ledger.limit_bytes;
    if (limit != 0 && limit < memory.total_bytes) self->ledger.total_bytes = limit;
}

static void report_device(struct executor *self)
{
    luna_Letter letter = {.which_letter = luna_Letter_device_tag};
    luna_DeviceReport *report = &letter.letter.device;
    text_set(report->name, sizeof report->name, self->arguments.device);
    text_set(report->label, sizeof report->label, device_info(self->device)->label);
    report->executor_pid = (uint32_t)getpid();
    report->epoch = self->arguments.epoch;
    report->memory_total_bytes = self->ledger.total_bytes;
    report->memory_free_bytes = ledger_free(&self->ledger);
    report->weights_bytes = self->ledger.weights_bytes;
    report->reserved_bytes = self->ledger.reserved_bytes;
    tell(self, WATCH_SCALER, &letter);
    tell(self, WATCH_REGISTRY, &letter);
}

// ---- models

static struct model_entry *find_model(struct executor *self, const char *name)
{
    for (uint32_t i = 0; i < EXECUTOR_MODELS_MAX; i++) {
        if (strcmp(self->models[i].definition.name, name) == 0) return &self->models[i];
    }
    return NULL;
}

static uint32_t users_of(const struct executor *self, const char *model, luna_Group group)
{
    uint32_t users = 0;
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        const struct worker_entry *worker = &self->workers[i];
        if (worker->id == 0 || strcmp(worker->service.model, model) != 0) continue;
        users += group == luna_Group_GROUP_NONE || worker->service.group == group;
    }
    return users;
}

static uint64_t model_bytes(const struct model_entry *model)
{
    uint64_t bytes = 0;
    for (int group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
        if (model->loaded[group] != NULL) bytes += model->loaded[group]->bytes;
    }
    return bytes;
}

// Tells the registry how a model stands on this device.
static void tell_model(struct executor *self, const struct model_entry *model,
                       const struct error *error)
{
    luna_Letter letter = {.which_letter = luna_Letter_model_loaded_tag};
    luna_ModelLoaded *loaded = &letter.letter.model_loaded;
    memcpy(loaded->name, model->definition.name, sizeof loaded->name);
    text_set(loaded->device, sizeof loaded->device, self->arguments.device);
    loaded->bytes = model_bytes(model);
    loaded->unloaded =
        model->loaded[luna_Group_VAE] == NULL && model->loaded[luna_Group_TEXT] == NULL;
    memcpy(loaded->hash_vae, model->hash_vae, sizeof loaded->hash_vae);
    memcpy(loaded->hash_text, model->hash_text, sizeof loaded->hash_text);
    loaded->users = users_of(self, model->definition.name, luna_Group_GROUP_NONE);
    if (error != NULL) {
        loaded->code = (luna_Code)error->status;
        text_set(loaded->message, sizeof loaded->message, error->message);
    }
    tell(self, WATCH_REGISTRY, &letter);
}

static void unload(struct executor *self, struct model_entry *model, luna_Group group)
{
    assert(users_of(self, model->definition.name, group) == 0);
    if (model->loaded[group] == NULL) return;
    ledger_weights(&self->ledger, model->loaded[group]->bytes, 0);
    loaded_destroy(&model->loaded[group]);
    read_system_memory(self);
    tell_model(self, model, NULL);
}

// Unloads the least recently used networks that no worker uses; false when there are none.
static bool evict_one(struct executor *self)
{
    struct model_entry *oldest = NULL;
    luna_Group oldest_group = luna_Group_GROUP_NONE;
    for (uint32_t i = 0; i < EXECUTOR_MODELS_MAX; i++) {
        struct model_entry *model = &self->models[i];
        for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
            if (model->loaded[group] == NULL || users_of(self, model->definition.name, group) > 0)
                continue;
            if (oldest != NULL && model->used_ns[group] >= oldest->used_ns[oldest_group]) continue;
            oldest = model;
            oldest_group = group;
        }
    }
    if (oldest == NULL) return false;
    log_event(self->context->log, LOG_INFO, "model.evicted", "model=%s bytes=%lu",
              oldest->definition.name, (unsigned long)oldest->loaded[oldest_group]->bytes);
    unload(self, oldest, oldest_group);
    return true;
}

static void ask_loader(struct executor *self, struct model_entry *model, luna_Group group)
{
    if (model->loading[group]) return;
    struct loader_letter letter = {.definition = model->definition, .group = group};
    struct message message;
    message_init(&message);
    enum status status =
        message_append(&message, (struct bytes){.data = &letter, .size = sizeof letter});
    if (status == STATUS_OK) status = message_send(&message, self->loader_pair);
    message_clear(&message);
    loop_socket_touch(self->watches[WATCH_LOADER]);
    model->loading[group] = status == STATUS_OK;
}

static void on_definition(struct executor *self, const luna_ModelDefinition *definition)
{
    struct model_entry *model = find_model(self, definition->name);
    if (model != NULL && model->definition.generation == definition->generation) return;
    if (model == NULL) model = find_model(self, "");
    if (model == NULL) {
        log_event(self->context->log, LOG_ERROR, "model.refused", "model=%s limit=%u",
                  definition->name, EXECUTOR_MODELS_MAX);
        return;
    }
    // Other files under a known name: workers of the old ones finish with what they hold.
    for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
        if (model->loaded[group] != NULL && users_of(self, definition->name, group) == 0) {
            unload(self, model, group);
        }
    }
    model->definition = *definition;
    model->hash_vae[0] = '\0';
    model->hash_text[0] = '\0';
    // Those that the scaler wanted before the registry told what the name stands for.
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        const struct worker_entry *worker = &self->workers[i];
        bool waits = worker->id != 0 && worker->actor == NULL &&
                     strcmp(worker->service.model, definition->name) == 0;
        if (waits) ask_loader(self, model, worker->service.group);
    }
}

// ---- workers

static void tell_worker_down(struct executor *self, const struct worker_entry *worker,
                             const struct error *error, const char *reason)
{
    luna_Letter letter = {.which_letter = luna_Letter_worker_down_tag};
    luna_WorkerDown *down = &letter.letter.worker_down;
    down->worker = worker->id;
    down->has_service = true;
    down->service = worker->service;
    text_set(down->device, sizeof down->device, self->arguments.device);
    text_set(down->reason, sizeof down->reason, error != NULL ? error->message : reason);
    down->failed_to_start = error != NULL;
    down->code = error != NULL ? (luna_Code)error->status : luna_Code_OK;
    tell(self, WATCH_SCALER, &letter);
}

static void tell_worker_up(struct executor *self, const struct worker_entry *worker)
{
    luna_Letter letter = {.which_letter = luna_Letter_worker_up_tag};
    letter.letter.worker_up.worker = worker->id;
    letter.letter.worker_up.has_service = true;
    letter.letter.worker_up.service = worker->service;
    text_set(letter.letter.worker_up.device, sizeof letter.letter.worker_up.device,
             self->arguments.device);
    tell(self, WATCH_SCALER, &letter);
}

static void remove_worker(struct executor *self, struct worker_entry *worker)
{
    actor_stop(&worker->actor);
    ledger_reserve(&self->ledger, worker->reserved_bytes, 0);
    memset(worker, 0, sizeof *worker);
    read_system_memory(self);
}

static void fail_worker(struct executor *self, struct worker_entry *worker,
                        const struct error *error)
{
    log_event(self->context->log, LOG_ERROR, "worker.failed", "worker=%lu model=%s why=%s",
              (unsigned long)worker->id, worker->service.model, error->message);
    tell_worker_down(self, worker, error, NULL);
    remove_worker(self, worker);
}

static void start_worker(struct executor *self, struct worker_entry *worker,
                         struct model_entry *model)
{
    const struct worker_arguments arguments = {
        .executor = &self->arguments,
        .device = self->device,
        .device_name = self->arguments.device,
        .id = worker->id,
        .model = worker->service.model,
        .loaded = model->loaded[worker->service.group],
    };
    const struct actor_kind *kind =
        worker->service.group == luna_Group_VAE ? &vae_worker_kind : &clip_worker_kind;
    struct error error;
    if (actor_start(&worker->actor, kind, &self->host, &arguments, &error) != STATUS_OK) {
        fail_worker(self, worker, &error);
        return;
    }
    model->used_ns[worker->service.group] = now_ns(self);
    tell_worker_up(self, worker);
    tell_model(self, model, NULL);
}

static void on_spawn(struct executor *self, const luna_Service *service)
{
    struct worker_entry *worker = NULL;
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX && worker == NULL; i++) {
        if (self->workers[i].id == 0) worker = &self->workers[i];
    }
    self->workers_started += 1;
    struct worker_entry unborn = {.id = self->arguments.epoch << 16 |
                                        (self->workers_started & 0xffffu)};
    unborn.service = *service;
    struct model_entry *model = find_model(self, service->model);
    struct error error;
    assert(service->model[0] != '\0');
    if (worker == NULL) {
        error_set(&error, STATUS_RESOURCE_EXHAUSTED, "device %s has %u workers, no more fit",
                  self->arguments.device, EXECUTOR_WORKERS_MAX);
        tell_worker_down(self, &unborn, &error, NULL);
        return;
    }
    *worker = unborn;
    worker->spawned_ns = now_ns(self);
    if (model == NULL) return;  // the registry's letter is under way, on another socket
    if (model->loaded[service->group] != NULL)
        start_worker(self, worker, model);
    else
        ask_loader(self, model, service->group);
}

// Workers whose model nobody defines.
static void expire_workers(struct executor *self)
{
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        struct worker_entry *worker = &self->workers[i];
        bool waits = worker->id != 0 && worker->actor == NULL &&
                     find_model(self, worker->service.model) == NULL;
        if (!waits || now_ns(self) - worker->spawned_ns < EXECUTOR_DEFINITION_MS * 1000000ull) {
            continue;
        }
        struct error error;
        error_set(&error, STATUS_UNAVAILABLE, "device %s has not heard of model \"%s\" yet",
                  self->arguments.device, worker->service.model);
        fail_worker(self, worker, &error);
    }
}

static void on_report(void *state)
{
    struct executor *self = state;
    read_system_memory(self);
    report_device(self);
    expire_workers(self);
}

static struct worker_entry *find_worker(struct executor *self, uint64_t id)
{
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX && id != 0; i++) {
        if (self->workers[i].id == id) return &self->workers[i];
    }
    return NULL;
}

static void on_retire(struct executor *self, uint64_t id)
{
    struct worker_entry *worker = find_worker(self, id);
    if (worker == NULL || worker->actor == NULL || worker->retiring) return;
    worker->retiring = true;
    actor_drain(worker->actor);
}

static void on_retired(struct executor *self, struct worker_entry *worker)
{
    struct model_entry *model = find_model(self, worker->service.model);
    if (model != NULL) model->used_ns[worker->service.group] = now_ns(self);
    tell_worker_down(self, worker, NULL, "retired");
    remove_worker(self, worker);
    if (model != NULL) tell_model(self, model, NULL);
    report_device(self);
}

// ---- letters

static void on_loader(void *state)
{
    struct executor *self = state;
    struct message message;
    struct loader_letter letter;
    message_init(&message);
    if (message_receive(&message, self->loader_pair) != STATUS_OK) return;
    struct bytes frame = message_frame(&message, 0);
    assert(frame.size == sizeof letter);
    memcpy(&letter, frame.data, sizeof letter);
    message_clear(&message);

    struct model_entry *model = find_model(self, letter.definition.name);
    bool current = model != NULL && model->definition.generation == letter.definition.generation;
    if (letter.is_hash) {
        if (!current) return;
        memcpy(model->hash_vae, letter.hash_vae, sizeof model->hash_vae);
        memcpy(model->hash_text, letter.hash_text, sizeof model->hash_text);
        tell_model(self, model, NULL);
        return;
    }
    if (model != NULL) model->loading[letter.group] = false;
    if (!current) {  // the name got other files meanwhile: load those
        loaded_destroy(&letter.loaded);
        if (model != NULL && users_of(self, letter.definition.name, letter.group) > 0) {
            ask_loader(self, model, letter.group);
        }
        return;
    }
    if (letter.loaded != NULL) {
        model->loaded[letter.group] = letter.loaded;
        ledger_weights(&self->ledger, 0, letter.loaded->bytes);
        read_system_memory(self);
        bool more = model->loading[luna_Group_VAE] || model->loading[luna_Group_TEXT];
        if (!more) tell_model(self, model, NULL);
    } else {
        tell_model(self, model, &letter.error);
    }
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        struct worker_entry *worker = &self->workers[i];
        bool waits = worker->id != 0 && worker->actor == NULL &&
                     worker->service.group == letter.group &&
                     strcmp(worker->service.model, letter.definition.name) == 0;
        if (!waits) continue;
        if (letter.loaded != NULL)
            start_worker(self, worker, model);
        else
            fail_worker(self, worker, &letter.error);
    }
    report_device(self);
}

static void on_reserve(struct executor *self, struct worker_entry *worker,
                       struct executor_letter *letter)
{
    const struct model_entry *model = find_model(self, worker->service.model);
    const struct loaded *own = model != NULL ? model->loaded[worker->service.group] : NULL;
    read_system_memory(self);
    bool granted = ledger_reserve(&self->ledger, worker->reserved_bytes, letter->bytes);
    while (!granted && evict_one(self)) {
        granted = ledger_reserve(&self->ledger, worker->reserved_bytes, letter->bytes);
    }
    letter->kind = EXECUTOR_RESERVED;
    letter->granted = granted;
    letter->capacity = ledger_capacity(&self->ledger, own != NULL ? own->bytes : 0);
    if (granted)
        worker->reserved_bytes = letter->bytes;
    else
        letter->bytes = worker->reserved_bytes + ledger_free(&self->ledger);
}

static void on_worker_letter(struct executor *self, struct message *message)
{
    struct executor_letter letter;
    if (message->count != 2 || message_frame(message, 1).size != sizeof letter) return;
    memcpy(&letter, message_frame(message, 1).data, sizeof letter);
    struct worker_entry *worker = find_worker(self, letter.worker);
    if (worker == NULL) return;
    switch (letter.kind) {
    case EXECUTOR_RESERVE: {
        on_reserve(self, worker, &letter);
        struct message answer;
        message_init(&answer);
        enum status status = message_append(&answer, message_frame(message, 0));
        if (status == STATUS_OK) {
            status =
                message_append(&answer, (struct bytes){.data = &letter, .size = sizeof letter});
        }
        if (status == STATUS_OK) message_send(&answer, self->workers_router);
        message_clear(&answer);
        report_device(self);
        return;
    }
    case EXECUTOR_RETIRED:
        on_retired(self, worker);
        return;
    case EXECUTOR_BROKEN:
        log_event(self->context->log, LOG_ERROR, "device.broken", "device=%s worker=%lu",
                  self->arguments.device, (unsigned long)worker->id);
        _exit(1);  // nothing can be saved in this process; the supervisor starts another
    case EXECUTOR_RESERVED:
        return;
    }
}

static void on_workers(void *state)
{
    struct executor *self = state;
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        struct message message;
        message_init(&message);
        if (message_receive(&message, self->workers_router) != STATUS_OK) return;
        on_worker_letter(self, &message);
        message_clear(&message);
    }
}

static void introduce(struct executor *self)
{
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        if (self->workers[i].id != 0 && self->workers[i].actor != NULL)
            tell_worker_up(self, &self->workers[i]);
    }
    for (uint32_t i = 0; i < EXECUTOR_MODELS_MAX; i++) {
        if (model_bytes(&self->models[i]) > 0) tell_model(self, &self->models[i], NULL);
    }
}

static void on_unload(struct executor *self, const char *name)
{
    struct model_entry *model = find_model(self, name);
    if (model == NULL || name[0] == '\0') return;
    for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
        if (users_of(self, name, group) == 0) unload(self, model, group);
    }
    report_device(self);
}

static void on_load(struct executor *self, const char *name)
{
    struct model_entry *model = find_model(self, name);
    if (model == NULL || name[0] == '\0') return;
    for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
        bool offers =
            group == luna_Group_VAE ? model->definition.offers_vae : model->definition.offers_text;
        if (offers && model->loaded[group] == NULL) ask_loader(self, model, group);
    }
}

static void on_letter(struct executor *self, const luna_Letter *letter)
{
    switch (letter->which_letter) {
    case luna_Letter_spawn_tag:
        on_spawn(self, &letter->letter.spawn.service);
        break;
    case luna_Letter_retire_tag:
        on_retire(self, letter->letter.retire.worker);
        break;
    case luna_Letter_who_tag:
        introduce(self);
        break;
    case luna_Letter_model_definition_tag:
        on_definition(self, &letter->letter.model_definition);
        break;
    case luna_Letter_load_model_tag:
        on_load(self, letter->letter.load_model.name);
        break;
    case luna_Letter_unload_model_tag:
        on_unload(self, letter->letter.unload_model.name);
        break;
    default:
        log_event(self->context->log, LOG_WARNING, "letter.unexpected", "letter=%d",
                  (int)letter->which_letter);
    }
}

static void read_letters(struct executor *self, void *socket)
{
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        struct message message;
        luna_Letter letter;
        message_init(&message);
        if (message_receive(&message, socket) != STATUS_OK) return;
        if (post_read(&message, &letter)) on_letter(self, &letter);
        message_clear(&message);
    }
}

static void on_scaler(void *state)
{
    struct executor *self = state;
    read_letters(self, self->scaler);
}

static void on_registry(void *state)
{
    struct executor *self = state;
    read_letters(self, self->registry);
}

// ---- life

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
    if (status == STATUS_OK)
        status = socket_open(&self->loader_pair, self->context->zmq, EDGE_LANE, error);
    if (status == STATUS_OK) status = socket_bind(self->loader_pair, LOADER_ADDRESS, error);
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
        status = loop_add_socket(loop, self->workers_router, false, on_workers, self,
                                 &self->watches[WATCH_WORKERS], error);
    }
    if (status == STATUS_OK) {
        status = loop_add_socket(loop, self->loader_pair, false, on_loader, self,
                                 &self->watches[WATCH_LOADER], error);
    }
    if (status == STATUS_OK) {
        status = loop_add_timer(loop, 1, EXECUTOR_REPORT_MS, on_report, self, &self->report, error);
    }
    return status;
}

static enum status open_device(struct executor *self, struct error *error)
{
    const struct config_service *service = &self->arguments.config->service;
    bool all_threads = service->threads == CONFIG_AUTO;
    bool no_limit = service->memory_limit_mb == CONFIG_AUTO;
    const struct device_options options = {
        .name = self->arguments.device,
        .threads = all_threads ? 0 : (uint32_t)service->threads,
    };
    self->ledger.limit_bytes = no_limit ? 0 : service->memory_limit_mb << 20;
    read_system_memory(self);
    return device_open(&self->device, &options, error);
}

static void executor_destroy(void *state)
{
    struct executor *self = state;
    if (self == NULL) return;
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) actor_stop(&self->workers[i].actor);
    actor_stop(&self->loader);
    // An answer of the loader that nobody read may carry networks.
    struct message message;
    message_init(&message);
    while (self->loader_pair != NULL && message_receive(&message, self->loader_pair) == STATUS_OK) {
        struct loader_letter letter;
        memcpy(&letter, message_frame(&message, 0).data, sizeof letter);
        if (!letter.is_hash) loaded_destroy(&letter.loaded);
        message_clear(&message);
    }
    loop_timer_remove(&self->report);
    for (size_t i = 0; i < sizeof self->watches / sizeof self->watches[0]; i++) {
        loop_socket_remove(&self->watches[i]);
    }
    socket_close(&self->scaler);
    socket_close(&self->registry);
    socket_close(&self->workers_router);
    socket_close(&self->loader_pair);
    for (uint32_t i = 0; i < EXECUTOR_MODELS_MAX; i++) {
        loaded_destroy(&self->models[i].loaded[luna_Group_VAE]);
        loaded_destroy(&self->models[i].loaded[luna_Group_TEXT]);
    }
    device_close(&self->device);
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
    enum status status = open_device(self, error);
    if (status == STATUS_OK) status = open_edges(self, error);
    if (status == STATUS_OK) {
        const struct loader_arguments loader = {.device = self->device, .torch = &self->torch};
        status = actor_start(&self->loader, &loader_kind, &self->host, &loader, error);
    }
    if (status == STATUS_OK) status = watch_edges(self, error);
    if (status != STATUS_OK) {
        executor_destroy(self);
        return status;
    }
    *state = self;
    return STATUS_OK;
}

const struct actor_kind executor_kind = {"executor", executor_create, executor_destroy, NULL};
