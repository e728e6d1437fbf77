// policy.c - what the scaler knows: tables of devices, models and lanes; policy_step.c decides over
// them.
//
// A lane is a worker, or a spawn under way (worker 0) until its Up or Down. A model that the
// registry took back stays in its entry while lanes name it.

#include "actors/policy.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "actors/policy_state.h"

#define BACKOFF_MS_MAX 30000u
#define BACKOFF_MEMORY_MS_MAX 2000u  // memory comes and goes, a bad file stays bad

static void copy_text(char *out, size_t out_bytes, const char *text)
{
    assert(out_bytes > 0);
    snprintf(out, out_bytes, "%s", text);
}

enum status policy_create(struct policy **out, const struct policy_settings *settings,
                          struct error *error)
{
    assert(out != NULL);
    assert(settings != NULL);
    struct policy *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the scaler's tables");
    }
    self->settings = *settings;
    *out = self;
    return STATUS_OK;
}

void policy_destroy(struct policy **self_p)
{
    assert(self_p != NULL);
    free(*self_p);
    *self_p = NULL;
}

const struct policy_settings *policy_settings(const struct policy *self)
{
    assert(self != NULL);
    return &self->settings;
}

void policy_change(struct policy *self, const struct policy_settings *settings)
{
    assert(self != NULL);
    assert(settings != NULL);
    self->settings = *settings;
}

// The model's index; POLICY_MODELS_MAX when it is unknown.
static uint32_t find_model(const struct policy *self, const char *name)
{
    for (uint32_t i = 0; i < POLICY_MODELS_MAX; i++) {
        if (self->models[i].used && strcmp(self->models[i].told.name, name) == 0) return i;
    }
    return POLICY_MODELS_MAX;
}

// The device's index; UINT32_MAX when it is unknown.
static uint32_t find_device(const struct policy *self, const char *name)
{
    for (uint32_t i = 0; i < self->devices_count; i++) {
        if (strcmp(self->devices[i].told.name, name) == 0) return i;
    }
    return UINT32_MAX;
}

// The model's index, taken in when it is new; POLICY_MODELS_MAX when the table is full.
static uint32_t take_model(struct policy *self, const char *name)
{
    uint32_t index = find_model(self, name);
    if (index < POLICY_MODELS_MAX) return index;
    for (index = 0; index < POLICY_MODELS_MAX; index++) {
        struct policy_model_state *model = &self->models[index];
        if (model->used) continue;
        *model = (struct policy_model_state){.used = true};
        copy_text(model->told.name, sizeof model->told.name, name);
        break;
    }
    return index;
}

static uint32_t take_device(struct policy *self, const char *name)
{
    uint32_t index = find_device(self, name);
    if (index != UINT32_MAX || self->devices_count == POLICY_DEVICES_MAX) return index;
    index = self->devices_count;
    self->devices_count += 1;
    self->devices[index] = (struct policy_device_state){.alive = false};
    copy_text(self->devices[index].told.name, POLICY_DEVICE_BYTES, name);
    return index;
}

// What an executor said its networks take, for the next time that they are not loaded there.
static void keep_weights(struct policy *self, struct policy_key key, uint32_t device,
                         uint64_t weights_bytes)
{
    assert(device < POLICY_DEVICES_MAX);
    if (weights_bytes > 0) self->models[key.model].exact_bytes[device][key.group] = weights_bytes;
}

// Another executor may have another type of storage.
static void forget_weights(struct policy *self, uint32_t device)
{
    assert(device < POLICY_DEVICES_MAX);
    for (uint32_t i = 0; i < POLICY_MODELS_MAX; i++) {
        memset(self->models[i].exact_bytes[device], 0, sizeof self->models[i].exact_bytes[device]);
    }
}

uint64_t policy_weights_bytes(const struct policy *self, struct policy_key key, uint32_t device)
{
    assert(device < POLICY_DEVICES_MAX);
    const struct policy_model_state *model = &self->models[key.model];
    uint64_t exact_bytes = model->exact_bytes[device][key.group];
    return exact_bytes > 0 ? exact_bytes : model->told.weights_bytes[key.group];
}

// Drops the device's lanes but those of one epoch, which a worker's number tells; 0 drops all.
static void drop_lanes(struct policy *self, uint32_t device, uint64_t except_epoch)
{
    for (uint32_t i = 0; i < POLICY_WORKERS_MAX; i++) {
        struct policy_lane *lane = &self->lanes[i];
        if (!lane->used || lane->device != device) continue;
        if (except_epoch == 0 || lane->worker >> 16 != except_epoch) lane->used = false;
    }
}

// Frees the entry of a model that was taken back once no lane names it.
static void free_model_if_unused(struct policy *self, uint32_t index)
{
    assert(index < POLICY_MODELS_MAX);
    if (self->models[index].known) return;
    for (uint32_t i = 0; i < POLICY_WORKERS_MAX; i++) {
        if (self->lanes[i].used && self->lanes[i].model == index) return;
    }
    self->models[index].used = false;
}

enum status policy_tell_device(struct policy *self, const struct policy_device *device,
                               struct error *error)
{
    assert(self != NULL);
    assert(device != NULL);
    uint32_t index = take_device(self, device->name);
    if (index == UINT32_MAX) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "more than %u devices",
                         POLICY_DEVICES_MAX);
    }
    struct policy_device_state *state = &self->devices[index];
    // The last words of an executor that is known to be dead.
    if (state->down_epoch != 0 && state->down_epoch == device->epoch) return STATUS_OK;
    if (state->told.epoch != device->epoch) {
        drop_lanes(self, index, device->epoch);
        forget_weights(self, index);
    }
    state->told = *device;
    state->alive = true;
    state->given_up = false;
    return STATUS_OK;
}

void policy_tell_device_down(struct policy *self, const char *name, uint64_t epoch, bool given_up)
{
    assert(self != NULL);
    assert(name != NULL);
    uint32_t index = take_device(self, name);
    if (index == UINT32_MAX) return;
    struct policy_device_state *state = &self->devices[index];
    // Epochs grow: an older executor's death is old news, a newer one may die before it reported.
    if (epoch < state->told.epoch) return;
    state->alive = false;
    state->given_up = given_up;
    state->down_epoch = epoch;
    drop_lanes(self, index, 0);
    for (uint32_t i = 0; i < POLICY_MODELS_MAX; i++) free_model_if_unused(self, i);
}

void policy_tell_device_silent(struct policy *self, const char *name)
{
    assert(self != NULL);
    assert(name != NULL);
    uint32_t index = find_device(self, name);
    if (index == UINT32_MAX) return;
    self->devices[index].alive = false;
    for (uint32_t i = 0; i < POLICY_WORKERS_MAX; i++) {
        struct policy_lane *lane = &self->lanes[i];
        if (lane->used && lane->worker == 0 && lane->device == index) lane->used = false;
    }
}

enum status policy_tell_model(struct policy *self, const struct policy_model *model,
                              struct error *error)
{
    assert(self != NULL);
    assert(model != NULL);
    assert(model->loaded_count <= POLICY_DEVICES_MAX);
    uint32_t index = take_model(self, model->name);
    if (index == POLICY_MODELS_MAX) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "more than %u models",
                         POLICY_MODELS_MAX);
    }
    struct policy_model_state *state = &self->models[index];
    bool is_same =
        memcmp(state->told.weights_bytes, model->weights_bytes, sizeof model->weights_bytes) == 0;
    if (!is_same) memset(state->exact_bytes, 0, sizeof state->exact_bytes);  // other files
    state->known = true;
    state->told = *model;
    return STATUS_OK;
}

void policy_tell_model_removed(struct policy *self, const char *name)
{
    assert(self != NULL);
    assert(name != NULL);
    uint32_t index = find_model(self, name);
    if (index == POLICY_MODELS_MAX) return;
    self->models[index].known = false;
    free_model_if_unused(self, index);
}

void policy_tell_demand(struct policy *self, enum policy_group group, const char *model,
                        const struct policy_demand *demand, uint64_t now_ms)
{
    assert(self != NULL);
    assert(group < POLICY_GROUP_COUNT);
    assert(demand->devices_count <= POLICY_DEVICES_MAX);
    uint32_t index = find_model(self, model);
    if (index == POLICY_MODELS_MAX) return;
    struct policy_demand_state *state = &self->models[index].demand[group];
    state->told = *demand;
    state->told_ms = now_ms;
    if (demand->depth == 0) state->starving = false;
    for (uint32_t i = 0; i < demand->devices_count; i++) {
        uint32_t device = find_device(self, demand->devices[i].name);
        if (device == UINT32_MAX) continue;
        policy_hear_wish(self, (struct policy_key){index, group}, device, &demand->devices[i],
                         now_ms);
    }
    policy_observe(self, (struct policy_key){index, group}, now_ms);
}

// The lane of a worker, else of a spawn under way for the same service and device, else NULL.
static struct policy_lane *find_lane(struct policy *self, const struct policy_worker *worker,
                                     struct policy_key key, uint32_t device)
{
    struct policy_lane *pending = NULL;
    for (uint32_t i = 0; i < POLICY_WORKERS_MAX; i++) {
        struct policy_lane *lane = &self->lanes[i];
        if (!lane->used) continue;
        if (worker->worker != 0 && lane->worker == worker->worker) return lane;
        if (lane->worker == 0 && lane->model == key.model && lane->group == key.group &&
            lane->device == device) {
            pending = lane;
        }
    }
    return pending;
}

static struct policy_lane *unused_lane(struct policy *self)
{
    for (uint32_t i = 0; i < POLICY_WORKERS_MAX; i++) {
        if (!self->lanes[i].used) return &self->lanes[i];
    }
    return NULL;
}

enum status policy_tell_worker_up(struct policy *self, const struct policy_worker *worker,
                                  uint64_t now_ms, struct error *error)
{
    assert(self != NULL);
    assert(worker->worker != 0);
    assert(worker->group < POLICY_GROUP_COUNT);
    uint32_t device = take_device(self, worker->device);
    struct policy_key key = {take_model(self, worker->model), worker->group};
    if (device == UINT32_MAX || key.model == POLICY_MODELS_MAX) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "too many devices or models");
    }
    struct policy_lane *lane = find_lane(self, worker, key, device);
    if (lane == NULL) lane = unused_lane(self);
    if (lane == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "more than %u workers",
                         POLICY_WORKERS_MAX);
    }
    keep_weights(self, key, device, worker->weights_bytes);
    if (lane->used && lane->worker == worker->worker) return STATUS_OK;
    *lane = (struct policy_lane){.used = true,
                                 .worker = worker->worker,
                                 .group = key.group,
                                 .model = key.model,
                                 .device = device,
                                 .since_ms = now_ms};
    struct policy_demand_state *demand = &self->models[key.model].demand[key.group];
    demand->failures = 0;
    demand->retry_ms = 0;
    demand->code = STATUS_OK;
    demand->message[0] = '\0';
    demand->starving = false;
    demand->refused_signal = NULL;
    return STATUS_OK;
}

static void note_failure(struct policy_demand_state *demand, enum status code, const char *reason,
                         uint64_t now_ms)
{
    assert(code != STATUS_OK);
    uint32_t doublings = demand->failures < 5 ? demand->failures : 5;
    uint32_t backoff_ms = 1000u << doublings;
    uint32_t backoff_ms_max =
        code == STATUS_RESOURCE_EXHAUSTED ? BACKOFF_MEMORY_MS_MAX : BACKOFF_MS_MAX;
    if (backoff_ms > backoff_ms_max) backoff_ms = backoff_ms_max;
    demand->failures += 1;
    demand->retry_ms = now_ms + backoff_ms;
    demand->code = code;
    copy_text(demand->message, sizeof demand->message, reason);
}

void policy_tell_worker_down(struct policy *self, const struct policy_worker *worker,
                             enum status code, const char *reason, uint64_t now_ms)
{
    assert(self != NULL);
    assert(worker->group < POLICY_GROUP_COUNT);
    assert(reason != NULL);
    uint32_t device = find_device(self, worker->device);
    struct policy_key key = {find_model(self, worker->model), worker->group};
    if (device == UINT32_MAX || key.model == POLICY_MODELS_MAX) return;
    struct policy_lane *lane = find_lane(self, worker, key, device);
    bool was_up = lane != NULL && lane->worker != 0;
    keep_weights(self, key, device, worker->weights_bytes);
    // A worker that this policy never heard of takes no other spawn's lane with it when it ends
    // well.
    if (lane != NULL && (was_up || code != STATUS_OK)) lane->used = false;
    if (code != STATUS_OK) {
        struct policy_demand_state *demand = &self->models[key.model].demand[key.group];
        note_failure(demand, code, reason, now_ms);
        demand->wishes[device].last_ms = 0;
    }
    free_model_if_unused(self, key.model);
}

struct policy_lanes policy_count(const struct policy *self, struct policy_key key, uint32_t device)
{
    struct policy_lanes lanes = {0};
    for (uint32_t i = 0; i < POLICY_WORKERS_MAX; i++) {
        const struct policy_lane *lane = &self->lanes[i];
        if (!lane->used || lane->model != key.model || lane->group != key.group) continue;
        if (device != UINT32_MAX && lane->device != device) continue;
        lanes.pending += lane->worker == 0;
        lanes.up += lane->worker != 0;
        lanes.live += lane->worker != 0 && !lane->retiring;
    }
    return lanes;
}

bool policy_offers(const struct policy *self, struct policy_key key)
{
    assert(key.model < POLICY_MODELS_MAX);
    assert(key.group < POLICY_GROUP_COUNT);
    const struct policy_model_state *model = &self->models[key.model];
    return model->used && model->known && model->told.offers[key.group] &&
           self->settings.serves[key.group];
}

bool policy_loaded(const struct policy *self, uint32_t model, uint32_t device)
{
    const struct policy_model *told = &self->models[model].told;
    for (uint32_t i = 0; i < told->loaded_count; i++) {
        if (strcmp(told->loaded_on[i], self->devices[device].told.name) == 0) return true;
    }
    return false;
}

void policy_observe(struct policy *self, struct policy_key key, uint64_t now_ms)
{
    struct policy_demand_state *demand = &self->models[key.model].demand[key.group];
    uint64_t load = (uint64_t)demand->told.depth + demand->told.running;
    uint64_t top = load < POLICY_LOAD_MAX ? load : POLICY_LOAD_MAX;
    for (uint64_t k = 1; k <= top; k++) demand->load_ms[k] = now_ms;

    uint64_t age_ms = demand->told.age_ms + (now_ms - demand->told_ms);
    bool over = demand->told.depth >= self->settings.queue_threshold ||
                age_ms >= self->settings.scale_up_delay_ms;
    over = over && demand->told.depth > 0;
    if (over && !demand->over) demand->over_since_ms = now_ms;
    demand->over = over;
}

uint32_t policy_service_count(const struct policy *self)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < POLICY_SERVICES_MAX; i++) {
        struct policy_key key = {i / POLICY_GROUP_COUNT, i % POLICY_GROUP_COUNT};
        count += policy_offers(self, key);
    }
    return count;
}

static const char *first_device(const struct policy *self, struct policy_key key)
{
    for (uint32_t i = 0; i < self->devices_count; i++) {
        struct policy_lanes lanes = policy_count(self, key, i);
        if (lanes.up + lanes.pending > 0) return self->devices[i].told.name;
    }
    return "";
}

static bool all_given_up(const struct policy *self)
{
    for (uint32_t i = 0; i < self->devices_count; i++) {
        if (!self->devices[i].given_up) return false;
    }
    return self->devices_count > 0;
}

static enum policy_state state_of(const struct policy *self, struct policy_key key,
                                  struct policy_lanes lanes)
{
    if (all_given_up(self)) return POLICY_FAILED;
    if (lanes.up > 0) return POLICY_SERVING;
    if (lanes.pending > 0) return POLICY_LOADING;
    return self->models[key.model].demand[key.group].failures > 0 ? POLICY_FAILED : POLICY_IDLE;
}

struct policy_service policy_service_at(const struct policy *self, uint32_t index)
{
    assert(self != NULL);
    struct policy_key key = {0, POLICY_VAE};
    for (uint32_t i = 0; i < POLICY_SERVICES_MAX; i++) {
        key = (struct policy_key){i / POLICY_GROUP_COUNT, i % POLICY_GROUP_COUNT};
        if (!policy_offers(self, key)) continue;
        if (index == 0) break;
        index -= 1;
    }
    assert(policy_offers(self, key));
    const struct policy_demand_state *demand = &self->models[key.model].demand[key.group];
    struct policy_lanes lanes = policy_count(self, key, UINT32_MAX);
    return (struct policy_service){.group = key.group,
                                   .model = self->models[key.model].told.name,
                                   .device = first_device(self, key),
                                   .workers = lanes.up,
                                   .workers_min = self->settings.limits[key.group].workers_min,
                                   .workers_max = self->settings.limits[key.group].workers_max,
                                   .demand = demand->told,
                                   .state = state_of(self, key, lanes),
                                   .code = demand->code,
                                   .message = demand->message};
}

const char *policy_group_name(enum policy_group group)
{
    assert(group < POLICY_GROUP_COUNT);
    return group == POLICY_VAE ? "vae" : "text";
}

const char *policy_state_name(enum policy_state state)
{
    static const char *const names[] = {"idle", "loading", "serving", "failed"};
    assert((uint32_t)state < sizeof names / sizeof names[0]);
    return names[state];
}
