// registry.c - the actor that owns the names of models: which files, what they offer, where they
// are loaded.
//
//     client --Ask--> router --> registry --order--> registry lane (disk)
//                                   |  <--result--
//                                   |--ModelDefinition, LoadModel--> executors
//                                   |  <--ModelLoaded--
//                                   +--ModelNotice--> router, scaler, monitor
//
// A name is known to the others once its headers have been read; a model of the configuration that
// cannot be opened is kept as failed, one that a client wanted to register is refused. The
// generation is a digest of the files as they were opened: the same files have the same one, also
// after the core was restarted. What clients registered is kept in a file until the daemon ends, so
// that it outlives a core that dies.

#include "actors/registry_state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "actors/event.h"
#include "actors/model_store.h"
#include "actors/post.h"
#include "actors/topology.h"
#include "runtime/socket.h"

#define START_MS_MAX 1000u     // that the start waits for the configuration's models
#define RESTART_MS_MAX 10000u  // and for those that clients registered, whom nobody else awaits

struct entry *registry_find(struct registry *self, const char *name)
{
    for (uint32_t i = 0; i < self->count; i++) {
        if (strcmp(self->models[i].model.name, name) == 0) return &self->models[i];
    }
    return NULL;
}

// ---- what others are told

// The model as clients see it.
luna_Model registry_public_model(const struct entry *entry)
{
    luna_Model model = entry->model;
    const size_t devices_max = sizeof model.loaded_on / sizeof model.loaded_on[0];
    const char *state = model.message[0] != '\0' ? "failed" : "registered";
    for (uint32_t i = 0; i < entry->presences_count; i++) {
        const struct presence *presence = &entry->presences[i];
        model.users += presence->users;
        if (!presence_is_loaded(presence)) {
            if (model.loaded_on_count == 0) state = "loading";
            continue;
        }
        state = "loaded";
        if (model.loaded_on_count == devices_max) continue;
        text_set(model.loaded_on[model.loaded_on_count], sizeof model.loaded_on[0],
                 presence->device);
        model.loaded_on_count += 1;
    }
    text_set(model.state, sizeof model.state, state);
    return model;
}

void registry_tell_notice(struct registry *self, const struct entry *entry)
{
    luna_Letter letter = {.which_letter = luna_Letter_model_notice_tag};
    luna_ModelNotice *notice = &letter.letter.model_notice;
    const struct config_models *models = &self->config->models;
    notice->has_model = true;
    notice->model = registry_public_model(entry);
    notice->weights_vae_bytes = entry->weights_vae_bytes;
    notice->weights_text_bytes = entry->weights_text_bytes;
    notice->is_default_vae =
        notice->model.offers_vae && strcmp(models->default_vae, notice->model.name) == 0;
    notice->is_default_text =
        notice->model.offers_text && strcmp(models->default_text, notice->model.name) == 0;
    enum status to_router = post_letter(self->router, &letter, NULL);
    enum status to_scaler = post_letter(self->scaler, &letter, NULL);
    post_letter(self->events, &letter, NULL);
    if (to_router != STATUS_OK || to_scaler != STATUS_OK) {
        log_event(self->context->log, LOG_ERROR, "notice.lost", "model=%s router=%s scaler=%s",
                  notice->model.name, status_name(to_router), status_name(to_scaler));
    }
    // Before they are watched they are read from the start anyway.
    if (self->watch_router != NULL) loop_socket_touch(self->watch_router);
    if (self->watch_scaler != NULL) loop_socket_touch(self->watch_scaler);
}

void registry_tell_event(struct registry *self, const char *topic, const struct entry *entry,
                         const char *device, const struct error *told)
{
    assert(told->message[0] != '\0');
    luna_Letter letter = event_make(topic, "registry", told->message);
    luna_Event *event = &letter.letter.event;
    text_set(event->model, sizeof event->model, entry->model.name);
    text_set(event->device, sizeof event->device, device);
    event->code = (luna_Code)told->status;
    post_letter(self->events, &letter, NULL);
    log_event(self->context->log, told->status == STATUS_OK ? LOG_INFO : LOG_WARNING, topic,
              "model=%s device=%s code=%s why=%s", entry->model.name, device,
              status_name(told->status), told->message);
}

void registry_post_to_executor(struct registry *self, struct bytes connection,
                               const luna_Letter *letter)
{
    enum status status = post_letter_to(self->executors, connection, letter, NULL);
    if (status != STATUS_OK) {
        log_event(self->context->log, LOG_WARNING, "letter.dropped", "letter=%d why=%s",
                  (int)letter->which_letter, status_name(status));
    }
    if (self->watch_executors != NULL) loop_socket_touch(self->watch_executors);
}

static void tell_definition(struct registry *self, struct bytes connection,
                            const struct entry *entry)
{
    if (!entry->opened) return;
    luna_Letter letter = {.which_letter = luna_Letter_model_definition_tag};
    luna_ModelDefinition *definition = &letter.letter.model_definition;
    text_set(definition->name, sizeof definition->name, entry->model.name);
    text_set(definition->embeddings, sizeof definition->embeddings, entry->embeddings.path);
    definition->generation = entry->generation;
    definition->offers_vae = entry->model.offers_vae;
    definition->offers_text = entry->model.offers_text;
    definition->weights_vae_bytes = entry->weights_vae_bytes;
    definition->weights_text_bytes = entry->weights_text_bytes;
    for (uint32_t i = 0; i < entry->files_count; i++) {
        text_set(definition->files[i], sizeof definition->files[i], entry->files[i].path);
        definition->files_count += 1;
    }
    registry_post_to_executor(self, connection, &letter);
}

static void tell_definition_to_all(struct registry *self, const struct entry *entry)
{
    for (uint32_t i = 0; i < self->devices.count; i++) {
        tell_definition(self, device_entry_connection(&self->devices.entries[i]), entry);
    }
}

void registry_answer(struct registry *self, const struct ask *ask, const struct entry *entry,
                     const struct error *error)
{
    assert(entry != NULL || error != NULL);
    luna_ModelReply reply = luna_ModelReply_init_zero;
    if (error == NULL) {
        reply.has_model = true;
        reply.model = registry_public_model(entry);
    }
    ask_answer(self->router, ask, luna_ModelReply_fields, &reply, error);
    if (self->watch_router != NULL) loop_socket_touch(self->watch_router);
}

// ---- opening

static uint64_t digest_bytes(uint64_t digest, const void *data, size_t size)
{
    const uint8_t *bytes = data;
    for (size_t i = 0; i < size; i++) digest = (digest ^ bytes[i]) * UINT64_C(1099511628211);
    return digest;
}

static uint64_t digest_number(uint64_t digest, uint64_t number)
{
    uint8_t bytes[8];
    store_u64(bytes, number);
    return digest_bytes(digest, bytes, sizeof bytes);
}

static uint64_t digest_file(uint64_t digest, const struct model_file *file)
{
    digest = digest_bytes(digest, file->path, strlen(file->path) + 1);
    digest = digest_number(digest, file->device);
    digest = digest_number(digest, file->inode);
    digest = digest_number(digest, file->size);
    return digest_number(digest, file->modified_ns);
}

static uint64_t generation_of(const struct lane_result *result, uint32_t files_count)
{
    uint64_t digest = UINT64_C(14695981039346656037);
    for (uint32_t i = 0; i < files_count; i++) digest = digest_file(digest, &result->files[i]);
    return digest_file(digest, &result->embeddings);
}

enum status registry_start_opening(struct registry *self, const char *name,
                                   const struct lane_order *order, struct opening **out,
                                   struct error *error)
{
    assert(order->files_count >= 1);
    struct opening *opening = NULL;
    for (uint32_t i = 0; opening == NULL && i < REGISTRY_OPENINGS_MAX; i++) {
        if (self->openings[i].order.ticket == 0) opening = &self->openings[i];
    }
    if (opening == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "%u models are being opened already",
                         REGISTRY_OPENINGS_MAX);
    }
    struct lane_order sent = *order;
    sent.ticket = self->tickets + 1;
    enum status status = pair_send(&self->lane_pair, &sent, sizeof sent);
    if (status != STATUS_OK) return error_set(error, status, "the registry's lane takes no order");
    self->tickets = sent.ticket;
    self->openings_count += 1;
    *opening = (struct opening){.order = sent};
    text_set(opening->name, sizeof opening->name, name);
    *out = opening;
    return STATUS_OK;
}

static struct entry *take_entry(struct registry *self, const char *name)
{
    struct entry *entry = registry_find(self, name);
    if (entry != NULL || self->count == REGISTRY_MODELS_MAX) return entry;
    entry = &self->models[self->count];
    self->count += 1;
    memset(entry, 0, sizeof *entry);
    text_set(entry->model.name, sizeof entry->model.name, name);
    return entry;
}

static void fail_opening(struct registry *self, const struct opening *opening,
                         const struct error *error)
{
    if (opening->asked) {
        registry_answer(self, &opening->ask, NULL, error);
        return;
    }
    struct entry *entry = take_entry(self, opening->name);
    if (entry == NULL || entry->opened) return;
    entry->order = opening->order;
    entry->is_client = opening->is_client;
    text_set(entry->model.message, sizeof entry->model.message, error->message);
    registry_tell_event(self, "error", entry, "", error);
    registry_tell_notice(self, entry);
}

// Keeps what clients registered, so that it outlives a core that dies. Small and in the runtime
// directory, which is memory: it is written here and not by the lane.
static void store_models(struct registry *self)
{
    struct error error;
    struct model_store_entry *entries = calloc(REGISTRY_MODELS_MAX, sizeof *entries);
    uint32_t count = 0;
    enum status status = STATUS_OK;
    if (entries == NULL) {
        status = error_set(&error, STATUS_RESOURCE_EXHAUSTED, "no memory for the list of models");
    }
    for (uint32_t i = 0; entries != NULL && i < self->count; i++) {
        if (!self->models[i].is_client) continue;
        entries[count].order = self->models[i].order;
        text_set(entries[count].name, sizeof entries[count].name, self->models[i].model.name);
        count += 1;
    }
    if (status == STATUS_OK) status = model_store_write(self->store_path, entries, count, &error);
    free(entries);
    if (status == STATUS_OK) return;
    log_event(self->context->log, LOG_ERROR, "models.unsaved", "why=%s", error.message);
}

// The entry with what the lane found; presences stay, for executors tell what they hold.
static void fill_entry(struct entry *entry, const struct opening *opening,
                       const struct lane_result *result)
{
    luna_Model model = result->model;
    memcpy(model.name, entry->model.name, sizeof model.name);
    entry->opened = true;
    entry->model = model;
    entry->files_count = opening->order.files_count;
    entry->embeddings = result->embeddings;
    entry->weights_vae_bytes = result->weights_vae_bytes;
    entry->weights_text_bytes = result->weights_text_bytes;
    memcpy(entry->files, result->files, sizeof entry->files);
}

static void finish_opening(struct registry *self, const struct opening *opening,
                           const struct lane_result *result)
{
    struct error error = {0};
    struct entry *entry = take_entry(self, opening->name);
    if (entry == NULL) {
        error_set(&error, STATUS_RESOURCE_EXHAUSTED, "%u models are registered, no more fit",
                  REGISTRY_MODELS_MAX);
        fail_opening(self, opening, &error);
        return;
    }
    entry->order = opening->order;
    entry->is_client = opening->is_client;
    uint64_t generation = generation_of(result, opening->order.files_count);
    if (!entry->opened || entry->generation != generation) {
        fill_entry(entry, opening, result);
        entry->generation = generation;
        tell_definition_to_all(self, entry);
        registry_tell_notice(self, entry);
        log_event(self->context->log, LOG_INFO, "model.registered", "model=%s kind=%s bytes=%lu",
                  entry->model.name, entry->model.kind, (unsigned long)entry->model.bytes);
    }
    if (opening->asked && !opening->loads) {
        store_models(self);
        registry_answer(self, &opening->ask, entry, NULL);
    } else if (opening->loads && registry_load(self, &opening->ask, entry, &error) != STATUS_OK) {
        registry_answer(self, &opening->ask, NULL, &error);
    }
}

static void on_result(struct registry *self, const struct lane_result *result)
{
    for (uint32_t i = 0; i < REGISTRY_OPENINGS_MAX; i++) {
        struct opening *opening = &self->openings[i];
        if (opening->order.ticket != result->ticket) continue;
        if (result->error.status == STATUS_OK) {
            finish_opening(self, opening, result);
        } else {
            fail_opening(self, opening, &result->error);
        }
        opening->order.ticket = 0;
        self->openings_count -= 1;
        return;
    }
    assert(!"a result without an order");
}

static void on_lane(void *state)
{
    struct registry *self = state;
    struct lane_result result;
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        if (!pair_receive(&self->lane_pair, &result, sizeof result)) return;
        on_result(self, &result);
    }
}

// ---- executors

// Says what the names stand for to an executor that is new, or that met a new core.
static void introduce(struct registry *self, struct bytes connection)
{
    for (uint32_t i = 0; i < self->count; i++) {
        tell_definition(self, connection, &self->models[i]);
    }
}

static void on_device_report(struct registry *self, struct bytes connection,
                             const luna_DeviceReport *report)
{
    uint64_t now_ms = clock_ms(loop_clock(self->context->loop));
    if (!device_table_report(&self->devices, connection, report, now_ms)) return;
    registry_forget_device(self, report->name);
    introduce(self, connection);
    luna_Letter who = {.which_letter = luna_Letter_who_tag};
    registry_post_to_executor(self, connection, &who);
}

static void on_executor_letter(void *state, struct bytes connection, const luna_Letter *letter,
                               struct message *frames)
{
    (void)frames;
    struct registry *self = state;
    if (letter->which_letter == luna_Letter_device_tag) {
        on_device_report(self, connection, &letter->letter.device);
    } else if (letter->which_letter == luna_Letter_who_tag) {
        introduce(self, connection);
    } else if (device_table_find(&self->devices, connection) == NULL) {
        luna_Letter who = {.which_letter = luna_Letter_who_tag};
        registry_post_to_executor(self, connection, &who);
    } else if (letter->which_letter == luna_Letter_model_loaded_tag) {
        registry_on_loaded(self, &letter->letter.model_loaded);
    }
}

static void on_executors(void *state)
{
    struct registry *self = state;
    post_each_from(self->executors, on_executor_letter, self);
}

// ---- letters of the router

static void on_router_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    if (letter->which_letter == luna_Letter_ask_tag)
        registry_on_ask(state, &letter->letter.ask, frames);
}

static void on_router(void *state)
{
    struct registry *self = state;
    post_each(self->router, on_router_letter, self);
}

// ---- letters of the scaler

static void on_device_down(struct registry *self, const luna_DeviceDown *down)
{
    const struct device_entry *device = device_table_find_name(&self->devices, down->name);
    if (device == NULL || device->report.epoch != down->epoch) return;  // another lives there now
    device_table_remove(&self->devices, down->name, down->epoch);
    registry_forget_device(self, down->name);
}

static void on_scaler_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    (void)frames;
    if (letter->which_letter == luna_Letter_device_down_tag)
        on_device_down(state, &letter->letter.device_down);
}

static void on_scaler(void *state)
{
    struct registry *self = state;
    post_each(self->scaler, on_scaler_letter, self);
}

// ---- life

static enum status open_sockets(struct registry *self, const char *private_directory,
                                struct error *error)
{
    char endpoint[SOCKET_ENDPOINT_BYTES];
    socket_ipc_endpoint(endpoint, sizeof endpoint, private_directory, SOCKET_REGISTRY);
    const struct {
        void **socket;
        enum edge edge;
        const char *address;
        bool binds;
    } ends[] = {
        {&self->events, EDGE_EVENTS, ADDRESS_EVENTS, false},
        {&self->router, EDGE_ROUTER_REGISTRY, ADDRESS_ROUTER_REGISTRY, false},
        {&self->scaler, EDGE_REGISTRY_SCALER, ADDRESS_REGISTRY_SCALER, true},
        {&self->executors, EDGE_REGISTRY, endpoint, true},
    };
    enum status status = STATUS_OK;
    for (size_t i = 0; status == STATUS_OK && i < sizeof ends / sizeof ends[0]; i++) {
        status = socket_open(ends[i].socket, self->context->zmq, ends[i].edge, error);
        if (status != STATUS_OK) break;
        status = ends[i].binds ? socket_bind(*ends[i].socket, ends[i].address, error)
                               : socket_connect(*ends[i].socket, ends[i].address, error);
    }
    return status;
}

static enum status watch_all(struct registry *self, struct error *error)
{
    const struct {
        void *socket;
        void (*on_readable)(void *state);
        struct loop_socket **watch;
    } watches[] = {
        {self->executors, on_executors, &self->watch_executors},
        {self->router, on_router, &self->watch_router},
        {self->scaler, on_scaler, &self->watch_scaler},
    };
    enum status status = STATUS_OK;
    for (size_t i = 0; status == STATUS_OK && i < sizeof watches / sizeof watches[0]; i++) {
        status = loop_add_socket(self->context->loop, watches[i].socket, false,
                                 watches[i].on_readable, self, watches[i].watch, error);
    }
    return status;
}

static void open_one(struct registry *self, const char *name, const struct lane_order *order,
                     bool is_client)
{
    struct opening *opening = NULL;
    struct error error = {0};
    if (registry_start_opening(self, name, order, &opening, &error) == STATUS_OK) {
        assert(opening != NULL);
        opening->is_client = is_client;
        return;
    }
    log_event(self->context->log, LOG_ERROR, "model.lost", "model=%s why=%s", name, error.message);
}

static void open_configured(struct registry *self)
{
    for (uint32_t i = 0; i < self->config->model_count; i++) {
        const struct config_model *model = &self->config->model[i];
        struct lane_order order = {.embeddings_anywhere = true};
        for (uint32_t k = 0; k < model->files.count && k < REGISTRY_FILES_MAX; k++) {
            text_set(order.files[k], sizeof order.files[k], model->files.items[k]);
            order.files_count += 1;
        }
        text_set(order.embeddings, sizeof order.embeddings, model->embeddings);
        open_one(self, model->name, &order, false);
    }
}

// What clients registered with a core that is gone. A name that the configuration has too stays
// what the client made of it.
static uint32_t open_stored(struct registry *self)
{
    struct error error;
    struct model_store_entry *entries = calloc(REGISTRY_MODELS_MAX, sizeof *entries);
    uint32_t count = 0;
    if (entries == NULL) return 0;
    if (model_store_read(self->store_path, entries, REGISTRY_MODELS_MAX, &count, &error) !=
        STATUS_OK) {
        log_event(self->context->log, LOG_ERROR, "models.lost", "why=%s", error.message);
    }
    for (uint32_t i = 0; i < count; i++) open_one(self, entries[i].name, &entries[i].order, true);
    free(entries);
    return count;
}

// Waits a moment for the models that are being opened, so that requests find them when the core is
// ready.
static void await_openings(struct registry *self, uint32_t milliseconds_max)
{
    const struct clock *clock = loop_clock(self->context->loop);
    uint64_t end_ms = clock_ms(clock) + milliseconds_max;
    uint64_t now_ms = clock_ms(clock);
    while (self->openings_count > 0 && now_ms < end_ms) {
        zmq_pollitem_t item = {.socket = self->lane_pair.socket, .events = ZMQ_POLLIN};
        zmq_poll(&item, 1, (long)(end_ms - now_ms));
        on_lane(self);
        now_ms = clock_ms(clock);
    }
}

static void registry_destroy(void *state)
{
    struct registry *self = state;
    if (self == NULL) return;
    actor_stop(&self->lane);
    struct loop_socket **watches[] = {&self->watch_executors, &self->watch_router,
                                      &self->watch_scaler};
    for (size_t i = 0; i < sizeof watches / sizeof watches[0]; i++) loop_socket_remove(watches[i]);
    pair_close(&self->lane_pair);
    void **sockets[] = {&self->executors, &self->router, &self->scaler, &self->events};
    for (size_t i = 0; i < sizeof sockets / sizeof sockets[0]; i++) socket_close(sockets[i]);
    free(self);
}

static enum status registry_create(void **state, const struct actor_context *context,
                                   const void *arguments, struct error *error)
{
    assert(state != NULL);
    assert(arguments != NULL);
    const struct core_arguments *core = arguments;
    struct registry *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the registry");
    }
    self->context = context;
    self->config = core->config;
    snprintf(self->store_path, sizeof self->store_path, "%s/%s", core->private_directory,
             MODEL_STORE_NAME);
    const struct actor_host host = {
        .zmq = context->zmq, .clock = loop_clock(context->loop), .log = context->log};
    const struct pair_end lane = {
        .address = REGISTRY_LANE_ADDRESS, .binds = true, .on_readable = on_lane, .state = self};
    enum status status = open_sockets(self, core->private_directory, error);
    if (status == STATUS_OK) status = pair_open(&self->lane_pair, context, &lane, error);
    if (status == STATUS_OK) {
        status = actor_start(&self->lane, &registry_lane_kind, &host, core, error);
    }
    if (status == STATUS_OK) {
        open_configured(self);
        bool is_restart = open_stored(self) > 0;
        await_openings(self, is_restart ? RESTART_MS_MAX : START_MS_MAX);
        status = watch_all(self, error);
    }
    if (status != STATUS_OK) {
        registry_destroy(self);
        return status;
    }
    *state = self;
    return STATUS_OK;
}

const struct actor_kind registry_kind = {"registry", registry_create, registry_destroy, NULL};
