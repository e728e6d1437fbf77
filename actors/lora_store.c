// lora_store.c - the actor that owns adapters: files of the directories, uploads, one-shots.
//
//     client --Ask--> router ------------> LoRA store --order--> lanes (disk, hashing, torch child)
//     router --ResolveStack, ReleaseStack---->|  <--result--
//     executor --adapters.sock--> descriptor  |--DropAdapter--> executors
//     local client --lora.sock--> descriptor  +--LoraTotals, Event--> monitor
//
// A content comes in by a lane's result, in one place (lora_store_adopt), and goes in one
// (lora_store_unload). What a running request holds is doomed at most: it goes with its last
// request. Room is made before it is needed: whenever something came in and the bytes are above the
// threshold, the least recently used go.

#include "actors/lora_state.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "actors/event.h"
#include "actors/post.h"
#include "base/text.h"
#include "runtime/socket.h"

#define HOUSEKEEPING_MS 1000u
#define TELL_AFTER_MS 100u

uint64_t lora_store_now(const struct lora_store *self)
{
    assert(self != NULL);
    return clock_ns(loop_clock(self->context->loop));
}

// ---- what others are told

void lora_store_event(struct lora_store *self, const char *topic, const char *message,
                      const char *signal, double value, double threshold)
{
    luna_Letter letter = event_make(topic, "lora-store", message);
    luna_Event *event = &letter.letter.event;
    text_set(event->signal, sizeof event->signal, signal);
    event->value = value;
    event->threshold = threshold;
    post_letter(self->events, &letter, NULL);
    log_event(self->context->log, LOG_INFO, topic, "%s", message);
}

static void on_tell(void *state)
{
    struct lora_store *self = state;
    const struct lora_counts counts = lora_table_counts(self->table);
    luna_Letter letter = {.which_letter = luna_Letter_lora_totals_tag};
    lora_asks_fill_totals(self, &counts, &letter.letter.lora_totals);
    post_letter(self->events, &letter, NULL);
}

void lora_store_changed(struct lora_store *self)
{
    loop_timer_restart(self->tell, TELL_AFTER_MS);
    loop_timer_restart(self->trim, 0);
}

static void tell_drop(struct lora_store *self, const struct hash *encoder_hash)
{
    // Another content may have the same tensors for the encoders.
    if (lora_table_find_encoder(self->table, encoder_hash) != NULL) return;
    luna_Letter letter = {.which_letter = luna_Letter_drop_adapter_tag};
    letter.letter.drop_adapter.encoder_hash.size = sizeof encoder_hash->value;
    memcpy(letter.letter.drop_adapter.encoder_hash.bytes, encoder_hash->value,
           sizeof encoder_hash->value);
    for (uint32_t i = 0; i < LORA_EXECUTORS_MAX; i++) {
        const struct lora_executor *executor = &self->executors[i];
        if (executor->device[0] == '\0') continue;
        const struct bytes to = {executor->connection, executor->connection_bytes};
        enum status status = post_letter_to(self->executors_socket, to, &letter, NULL);
        if (status != STATUS_OK) {
            log_event(self->context->log, LOG_DEBUG, "letter.dropped", "device=%s why=%s",
                      executor->device, status_name(status));
        }
    }
    loop_socket_touch(self->watch_executors);
}

// ---- contents that come and go

void lora_store_close(struct lora_store *self, int a, int b)
{
    if (a < 0 && b < 0) return;
    struct lora_order order = {.kind = LORA_CLOSE, .descriptor = a, .second = b};
    if (lora_store_order(self, &order, NULL, NULL, NULL) == STATUS_OK) return;
    if (a >= 0) close(a);
    if (b >= 0) close(b);
}

// What people call a content.
static void name_content(struct lora_store *self, const struct lora_content *content,
                         char out[LORA_NAME_BYTES])
{
    const struct lora_file *file =
        content->facts.has_hash ? lora_files_find_hash(self->files, &content->facts.hash) : NULL;
    if (file != NULL) {
        lora_files_name(self->files, file, out);
        return;
    }
    for (uint32_t i = 0; i < lora_table_names(self->table); i++) {
        const struct lora_alias *alias = lora_table_name_at(self->table, i);
        if (alias->content != content) continue;
        text_set(out, LORA_NAME_BYTES, alias->name);
        return;
    }
    hash_to_hex(content->facts.has_hash ? &content->facts.hash : &content->facts.encoder_hash, out);
}

static void tell_evicted(struct lora_store *self, const struct lora_content *content,
                         uint64_t bytes, const char *why)
{
    char name[LORA_NAME_BYTES];
    char message[256];
    const struct config_lora *config = &self->config->lora;
    name_content(self, content, name);
    snprintf(message, sizeof message, "LoRA \"%.100s\" of %llu bytes goes: %.100s", name,
             (unsigned long long)bytes, why);
    const struct lora_counts counts = lora_table_counts(self->table);
    lora_store_event(self, "lora.evicted", message, "lora_bytes",
                     (double)(counts.bytes + counts.reserved_bytes + bytes),
                     config->cleanup_threshold * (double)(config->memory_limit_mb << 20));
}

void lora_store_unload(struct lora_store *self, struct lora_content *content, const char *why,
                       bool evicted)
{
    assert(content->resident);
    assert(content->holds == 0);
    const uint64_t bytes = content->memory_bytes;
    const struct hash encoder_hash = content->facts.encoder_hash;
    lora_table_unload(self->table, content, evicted);
    lora_store_close(self, content->file, content->encoder);
    content->file = -1;
    content->encoder = -1;
    if (evicted) tell_evicted(self, content, bytes, why);
    lora_table_forget(self->table, content);
    tell_drop(self, &encoder_hash);
    loop_timer_restart(self->tell, TELL_AFTER_MS);
}

void lora_store_release(struct lora_store *self, struct lora_content *content)
{
    lora_table_release(self->table, content);
    if (content->holds > 0) return;
    if (content->resident && (content->doomed || content->one_shot)) {
        lora_store_unload(self, content, "its last request ended", !content->one_shot);
    } else if (!content->resident) {
        lora_table_forget(self->table, content);
    }
}

void lora_store_doom(struct lora_store *self, struct lora_content *content, const char *why)
{
    assert(content->resident);
    if (content->holds > 0) {
        content->doomed = true;
    } else {
        lora_store_unload(self, content, why, true);
    }
}

enum status lora_store_make_room(struct lora_store *self, const char *name, uint64_t bytes,
                                 struct error *error)
{
    enum status status = lora_table_check_size(self->table, name, bytes, error);
    if (status != STATUS_OK) return status;
    while (!lora_table_fits(self->table, bytes)) {
        struct lora_content *victim = lora_table_victim(self->table);
        if (victim == NULL) {
            error_set(error, STATUS_RESOURCE_EXHAUSTED,
                      "no room for LoRA \"%.128s\" of %llu bytes: all others are pinned or in use",
                      name, (unsigned long long)bytes);
            error->retry_after_ms = 200;
            return STATUS_RESOURCE_EXHAUSTED;
        }
        lora_store_unload(self, victim, "room for another", true);
    }
    return STATUS_OK;
}

// Takes the descriptors out of a result.
static void take_files(struct lora_content *content, struct lora_result *result,
                       const struct lora_adoption *how)
{
    content->file = result->file;
    content->encoder = result->encoder;
    content->in_memory = how->in_memory;
    content->identity = result->identity;
    result->file = -1;
    result->encoder = -1;
    // Nobody asks for the whole file of a one-shot.
    if (how->one_shot && content->encoder >= 0) {
        result->file = content->file;
        content->file = content->encoder;
        content->encoder = -1;
    }
}

// It is here already: newer descriptors of a file replace older ones, which may be of one that was
// written in place.
static void refresh(struct lora_store *self, struct lora_content *content,
                    struct lora_result *result, const struct lora_adoption *how)
{
    content->doomed = false;
    content->uploaded = content->uploaded || how->uploaded;
    if (content->in_memory || how->in_memory) return;
    lora_store_close(self, content->file, content->encoder);
    take_files(content, result, how);
    content->facts.file_bytes = result->facts.file_bytes;
    content->facts.torch = result->facts.torch;
}

enum status lora_store_adopt(struct lora_store *self, struct lora_result *result,
                             const struct lora_adoption *how, struct lora_content **out,
                             struct error *error)
{
    assert(result->error.status == STATUS_OK);
    const struct lora_facts *facts = &result->facts;
    struct lora_content *content = how->one_shot
                                       ? lora_table_find_encoder(self->table, &facts->encoder_hash)
                                       : lora_table_find_exact(self->table, &facts->hash);
    if (content != NULL && content->resident) {
        if (!how->one_shot) refresh(self, content, result, how);
        *out = content;
        return STATUS_OK;
    }
    const uint64_t bytes = how->in_memory ? facts->file_bytes : facts->description.bytes_encoder;
    // What is not resident may be forgotten while room is made, but not what is held.
    if (content != NULL) lora_table_hold(self->table, content);
    enum status status = lora_store_make_room(self, how->name, bytes, error);
    if (content != NULL) lora_table_release(self->table, content);
    if (status == STATUS_OK && content == NULL) {
        status = lora_table_add(self->table, facts, lora_store_now(self), &content, error);
    }
    if (status != STATUS_OK) return status;
    assert(content != NULL);
    if (how->uploaded) content->owner = how->user;
    content->facts.file_bytes = facts->file_bytes;
    content->facts.torch = facts->torch;
    content->uploaded = content->uploaded || how->uploaded;
    content->one_shot = how->one_shot;
    take_files(content, result, how);
    lora_table_load(self->table, content, bytes, result->load_ms);
    content->used_ns = lora_store_now(self);
    lora_store_changed(self);
    *out = content;
    return STATUS_OK;
}

static void on_trim(void *state)
{
    struct lora_store *self = state;
    struct lora_content *victim = NULL;
    while ((victim = lora_table_trim(self->table)) != NULL) {
        lora_store_unload(self, victim, "least recently used above the threshold", true);
    }
}

static void on_housekeeping(void *state)
{
    struct lora_store *self = state;
    struct lora_content *victim = NULL;
    while ((victim = lora_table_expired(self->table, lora_store_now(self))) != NULL) {
        lora_store_unload(self, victim, "not used for its time to live", true);
    }
    lora_uploads_drop(self, false);
    on_trim(self);
}

// ---- lanes

static struct lora_flight *unused_flight(struct lora_store *self)
{
    for (uint32_t i = 0; i < LORA_FLIGHTS_MAX; i++) {
        if (self->flights[i].ticket == 0) return &self->flights[i];
    }
    return NULL;
}

static uint32_t least_busy(const struct lora_store *self)
{
    uint32_t lane = 0;
    for (uint32_t i = 1; i < LORA_LANES; i++) {
        if (self->lane_loads[i] < self->lane_loads[lane]) lane = i;
    }
    return lane;
}

// Tells an order where the bytes of a tensor are; returns the frame that has them, UINT32_MAX for
// shared memory.
static uint32_t load_cargo(struct lora_order *order, const struct lora_cargo *cargo)
{
    uint32_t payload = 0;
    const luna_Tensor *tensor = codec_find_tensor(cargo->header, cargo->tensor, &payload);
    assert(tensor != NULL);
    size_t at = (size_t)(tensor - cargo->header->tensors);
    order->bytes = tensor->bytes;
    order->shared = payload == UINT32_MAX;
    if (!order->shared) return 2 + payload;  // behind header and body
    order->pool = tensor->shared.pool;
    order->pool_offset = at < cargo->pool_offsets_count ? cargo->pool_offsets[at] : 0;
    return UINT32_MAX;
}

enum status lora_store_order(struct lora_store *self, struct lora_order *order,
                             const struct lora_cargo *cargo, struct lora_flight **out,
                             struct error *error)
{
    assert(!order->has_lane || order->lane < LORA_LANES);
    struct lora_flight *flight = unused_flight(self);
    const uint32_t lane = order->has_lane ? order->lane : least_busy(self);
    const uint32_t frame = cargo != NULL ? load_cargo(order, cargo) : UINT32_MAX;
    order->ticket = self->tickets + 1;
    struct message message;
    message_init(&message);
    enum status status = flight != NULL ? STATUS_OK : STATUS_RESOURCE_EXHAUSTED;
    if (status == STATUS_OK) {
        status = message_append(&message, (struct bytes){.data = order, .size = sizeof *order});
    }
    if (status == STATUS_OK && frame != UINT32_MAX) {
        status = message_append_shared(&message, cargo->frames, frame);
    }
    if (status == STATUS_OK) status = loop_socket_send(self->lane_pairs[lane].watch, &message);
    message_clear(&message);
    if (status != STATUS_OK) {
        error_set(error, STATUS_RESOURCE_EXHAUSTED, "the LoRA store has too much to do");
        if (error != NULL) error->retry_after_ms = 100;
        return STATUS_RESOURCE_EXHAUSTED;
    }
    assert(flight != NULL);
    self->tickets = order->ticket;
    self->lane_loads[lane] += 1;
    *flight = (struct lora_flight){.ticket = order->ticket, .lane = lane, .kind = order->kind};
    if (out != NULL) *out = flight;
    return STATUS_OK;
}

static void on_result(struct lora_store *self, const struct lora_flight *flight,
                      struct lora_result *result)
{
    switch (flight->kind) {
    case LORA_SCAN:
        lora_want_on_scan(self, flight, result);
        return;
    case LORA_LOAD:
        lora_want_on_load(self, flight, result);
        return;
    case LORA_WRITE:
        lora_uploads_on_write(self, flight->ask, result);
        return;
    case LORA_FINISH:
        lora_uploads_on_finish(self, flight->ask, result);
        return;
    case LORA_TAKE:
        if (flight->stack != NULL) {
            lora_stacks_on_take(self, flight, result);
        } else {
            lora_uploads_on_take(self, flight->ask, result);
        }
        return;
    case LORA_READ:
        lora_asks_on_read(self, flight->ask, result);
        return;
    case LORA_CLOSE:
        return;
    }
    assert(!"a flight of no kind");
}

static void take_result(struct lora_store *self, struct lora_result *result)
{
    for (uint32_t i = 0; i < LORA_FLIGHTS_MAX; i++) {
        if (self->flights[i].ticket != result->ticket) continue;
        const struct lora_flight flight = self->flights[i];
        assert(flight.kind == result->kind);
        assert(self->lane_loads[flight.lane] > 0);
        self->lane_loads[flight.lane] -= 1;
        self->flights[i].ticket = 0;
        on_result(self, &flight, result);
        return;
    }
    assert(!"a result without an order");
}

static void read_lane(struct lora_store *self, uint32_t lane)
{
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        struct message message;
        message_init(&message);
        if (message_receive(&message, self->lane_pairs[lane].socket) != STATUS_OK) return;
        take_result(self, lora_lane_result(&message));
        message_clear(&message);
    }
    loop_socket_touch(self->lane_pairs[lane].watch);  // the callback may be the other lane's
}

static void on_lane(void *state)
{
    for (uint32_t i = 0; i < LORA_LANES; i++) read_lane(state, i);
}

// ---- letters

static void on_router_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    struct lora_store *self = state;
    switch (letter->which_letter) {
    case luna_Letter_ask_tag:
        lora_asks_on_ask(self, &letter->letter.ask, frames);
        break;
    case luna_Letter_resolve_stack_tag:
        lora_stacks_on_resolve(self, &letter->letter.resolve_stack, frames);
        break;
    case luna_Letter_release_stack_tag:
        lora_stacks_on_release(self, letter->letter.release_stack.job);
        break;
    case luna_Letter_cache_counts_tag:
        self->cache = letter->letter.cache_counts;
        break;
    default:
        log_event(self->context->log, LOG_WARNING, "letter.unexpected", "from=router letter=%d",
                  (int)letter->which_letter);
    }
}

static void on_router(void *state)
{
    struct lora_store *self = state;
    post_each(self->router, on_router_letter, self);
}

static void on_executor_letter(void *state, struct bytes from, const luna_Letter *letter,
                               struct message *frames)
{
    (void)frames;
    struct lora_store *self = state;
    if (letter->which_letter != luna_Letter_adapter_counts_tag) return;
    const luna_AdapterCounts *counts = &letter->letter.adapter_counts;
    struct lora_executor *entry = NULL;
    for (uint32_t i = LORA_EXECUTORS_MAX; i > 0; i--) {
        struct lora_executor *executor = &self->executors[i - 1];
        bool is_same = strcmp(executor->device, counts->device) == 0;
        bool is_free = executor->device[0] == '\0';
        if (is_same || (is_free && (entry == NULL || entry->device[0] == '\0'))) entry = executor;
    }
    if (entry == NULL || counts->device[0] == '\0' || from.size > sizeof entry->connection) return;
    text_set(entry->device, sizeof entry->device, counts->device);
    memcpy(entry->connection, from.data, from.size);
    entry->connection_bytes = (uint8_t)from.size;
    entry->counts = *counts;
}

static void on_executors(void *state)
{
    struct lora_store *self = state;
    post_each_from(self->executors_socket, on_executor_letter, self);
}

static void on_inotify(void *state)
{
    lora_want_watch(state);
}

static void on_rescan(void *state)
{
    lora_want_scan(state);
}

// ---- life

static enum status start_lanes(struct lora_store *self, struct error *error)
{
    const struct actor_host host = {.zmq = self->context->zmq,
                                    .clock = loop_clock(self->context->loop),
                                    .log = self->context->log,
                                    .levels = &self->config->service.log_levels};
    for (uint32_t i = 0; i < LORA_LANES; i++) {
        char address[64];
        lora_lane_address(address, i);
        const struct pair_end end = {
            .address = address, .binds = true, .on_readable = on_lane, .state = self};
        enum status status = pair_open(&self->lane_pairs[i], self->context, &end, error);
        const struct lora_lane_arguments arguments = {
            .core = &self->core, .index = i, .inotify = self->inotify, .stop = &self->stop};
        if (status == STATUS_OK) {
            status = actor_start(&self->lanes[i], &lora_lane_kind, &host, &arguments, error);
        }
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

static enum status start_timers(struct lora_store *self, struct error *error)
{
    const struct {
        uint32_t delay_ms, period_ms;
        void (*on_time)(void *);
        struct loop_timer **timer;
    } timers[] = {
        {HOUSEKEEPING_MS, HOUSEKEEPING_MS, on_housekeeping, &self->housekeeping},
        {TELL_AFTER_MS, 0, on_tell, &self->tell},
        {TELL_AFTER_MS, 0, on_trim, &self->trim},
        {0, 0, on_rescan, &self->rescan},
    };
    for (size_t i = 0; i < sizeof timers / sizeof timers[0]; i++) {
        enum status status =
            loop_add_timer(self->context->loop, timers[i].delay_ms, timers[i].period_ms,
                           timers[i].on_time, self, timers[i].timer, error);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

static enum status open_sockets(struct lora_store *self, struct error *error)
{
    void *zmq = self->context->zmq;
    struct loop *loop = self->context->loop;
    char endpoint[SOCKET_ENDPOINT_BYTES];
    socket_ipc_endpoint(endpoint, sizeof endpoint, self->core.private_directory, SOCKET_LORA_STORE);
    enum status status = socket_open(&self->events, zmq, EDGE_EVENTS, error);
    if (status == STATUS_OK) status = socket_connect(self->events, ADDRESS_EVENTS, error);
    if (status == STATUS_OK) {
        status = socket_open(&self->executors_socket, zmq, EDGE_STORE, error);
    }
    if (status == STATUS_OK) status = socket_bind(self->executors_socket, endpoint, error);
    if (status == STATUS_OK) status = socket_open(&self->router, zmq, EDGE_ROUTER_STORE, error);
    if (status == STATUS_OK) status = socket_connect(self->router, ADDRESS_ROUTER_LORAS, error);
    if (status != STATUS_OK) return status;
    status = loop_add_socket(loop, self->executors_socket, false, on_executors, self,
                             &self->watch_executors, error);
    if (status != STATUS_OK) return status;
    return loop_add_socket(loop, self->router, true, on_router, self, &self->watch_router, error);
}

static enum status create_parts(struct lora_store *self, struct error *error)
{
    const struct config_lora *config = &self->config->lora;
    const struct lora_limits limits = {.bytes_max = config->memory_limit_mb << 20,
                                       .threshold = config->cleanup_threshold,
                                       .entries_max = config->entries_max,
                                       .time_to_live_ns = config->time_to_live_s * 1000000000u};
    enum status status = lora_table_create(&self->table, &limits, error);
    if (status != STATUS_OK) return status;
    status = lora_files_create(&self->files, config->directories.items, config->directories.count,
                               error);
    if (status != STATUS_OK) return status;
    self->inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (self->inotify < 0) {
        log_event(self->context->log, LOG_WARNING, "inotify.failed", "why=%s", strerror(errno));
        return STATUS_OK;
    }
    return loop_add_descriptor(self->context->loop, self->inotify, on_inotify, self,
                               &self->watch_inotify, error);
}

static void close_contents(struct lora_store *self)
{
    if (self->table == NULL) return;
    for (uint32_t i = 0; i < lora_table_count(self->table); i++) {
        const struct lora_content *content = lora_table_at(self->table, i);
        if (content->file >= 0) close(content->file);
        if (content->encoder >= 0) close(content->encoder);
    }
}

static void free_flights(struct lora_store *self)
{
    for (uint32_t i = 0; i < LORA_FLIGHTS_MAX; i++) {
        if (self->flights[i].ticket != 0) free(self->flights[i].ask);
    }
    for (uint32_t i = 0; i < LORA_SCAN_ASKS_MAX; i++) free(self->scan_asks[i]);
    for (uint32_t i = 0; i < self->stacks_count; i++) free(self->stacks[i]);
}

static void lora_store_destroy(void *state)
{
    struct lora_store *self = state;
    if (self == NULL) return;
    atomic_store(&self->stop, true);
    for (uint32_t i = 0; i < LORA_LANES; i++) actor_stop(&self->lanes[i]);
    door_close(&self->door);
    lora_want_free_all(self);
    free_flights(self);
    lora_uploads_drop(self, true);
    loop_descriptor_remove(&self->watch_inotify);
    if (self->inotify >= 0) close(self->inotify);
    loop_timer_remove(&self->housekeeping);
    loop_timer_remove(&self->tell);
    loop_timer_remove(&self->trim);
    loop_timer_remove(&self->rescan);
    loop_socket_remove(&self->watch_router);
    loop_socket_remove(&self->watch_executors);
    for (uint32_t i = 0; i < LORA_LANES; i++) pair_close(&self->lane_pairs[i]);
    socket_close(&self->router);
    socket_close(&self->executors_socket);
    socket_close(&self->events);
    close_contents(self);
    lora_files_destroy(&self->files);
    lora_table_destroy(&self->table);
    free(self);
}

static enum status lora_store_create(void **state, const struct actor_context *context,
                                     const void *arguments, struct error *error)
{
    assert(state != NULL);
    assert(arguments != NULL);
    struct lora_store *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the LoRA store");
    }
    self->context = context;
    self->core = *(const struct core_arguments *)arguments;
    self->config = self->core.config;
    self->inotify = -1;
    lora_socket_init(self);
    for (uint32_t i = 0; i < LORA_UPLOADS_MAX; i++) self->uploads[i].descriptor = -1;
    enum status status = create_parts(self, error);
    if (status == STATUS_OK) status = start_timers(self, error);
    if (status == STATUS_OK) status = open_sockets(self, error);
    if (status == STATUS_OK) status = lora_socket_listen(self, error);
    if (status == STATUS_OK) status = start_lanes(self, error);
    if (status != STATUS_OK) {
        lora_store_destroy(self);
        return status;
    }
    *state = self;
    return STATUS_OK;
}

const struct actor_kind lora_store_kind = {"lora-store", lora_store_create, lora_store_destroy,
                                           NULL};
