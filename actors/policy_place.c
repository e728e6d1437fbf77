// policy_place.c - where one more worker of a service could go: the memory that speaks for and
// against each device, and the wish of clients whose tensors lie there.
//
// A wish is there as long as jobs whose tensors lie on a device come no further apart than the
// idle timeout. It weighs less than memory, more than an even spread: a worker anywhere else gets
// these jobs by the host only.

#include <assert.h>

#include "actors/policy_state.h"

static uint64_t minus(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

uint64_t policy_margin_bytes(const struct policy *self, uint32_t device)
{
    if (self->settings.margin_bytes != POLICY_MARGIN_AUTO) return self->settings.margin_bytes;
    return device == UINT32_MAX ? 0 : self->devices[device].told.margin_bytes;
}

// ---- wishes

void policy_hear_wish(struct policy *self, struct policy_key key, uint32_t device,
                      const struct policy_device_demand *told, uint64_t now_ms)
{
    assert(device < POLICY_DEVICES_MAX);
    struct policy_wish *wish = &self->models[key.model].demand[key.group].wishes[device];
    wish->depth = told->depth;
    if (wish->jobs_total == told->jobs_total) return;
    wish->jobs_total = told->jobs_total;
    if (!policy_is_wished(self, key, device, now_ms)) wish->since_ms = now_ms;
    wish->last_ms = now_ms;
}

bool policy_is_wished(const struct policy *self, struct policy_key key, uint32_t device,
                      uint64_t now_ms)
{
    assert(device < POLICY_DEVICES_MAX);
    const struct policy_wish *wish = &self->models[key.model].demand[key.group].wishes[device];
    return wish->last_ms != 0 && now_ms - wish->last_ms < self->settings.idle_timeout_ms;
}

uint64_t policy_wish_ms(const struct policy *self, struct policy_key key, uint32_t device)
{
    assert(device < POLICY_DEVICES_MAX);
    const struct policy_wish *wish = &self->models[key.model].demand[key.group].wishes[device];
    return minus(wish->last_ms, wish->since_ms);
}

// True where one more worker would serve wishes: the first there, or one for those who wait there
// and are more than all others.
static bool serves_wishes(const struct policy *self, struct policy_key key, uint32_t device,
                          uint32_t lanes, uint64_t now_ms)
{
    const struct policy_demand_state *demand = &self->models[key.model].demand[key.group];
    if (lanes == 0) return policy_is_wished(self, key, device, now_ms);
    return demand->wishes[device].depth > demand->told.depth / 2;
}

// ---- memory

static bool has_lane_on(const struct policy *self, uint32_t model, uint32_t device)
{
    for (uint32_t i = 0; i < POLICY_WORKERS_MAX; i++) {
        const struct policy_lane *lane = &self->lanes[i];
        if (lane->used && lane->model == model && lane->device == device) return true;
    }
    return false;
}

// Weights on the device that nobody uses, other than the model's own.
static uint64_t idle_weights_bytes(const struct policy *self, uint32_t device, uint32_t except)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < POLICY_MODELS_MAX; i++) {
        const struct policy_model_state *model = &self->models[i];
        if (!model->used || !model->known || i == except) continue;
        if (!policy_loaded(self, i, device) || has_lane_on(self, i, device)) continue;
        for (int g = 0; g < POLICY_GROUP_COUNT; g++) {
            bytes +=
                policy_weights_bytes(self, (struct policy_key){i, (enum policy_group)g}, device);
        }
    }
    return bytes;
}

static uint64_t pending_bytes(const struct policy *self, uint32_t device)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < POLICY_WORKERS_MAX; i++) {
        const struct policy_lane *lane = &self->lanes[i];
        if (lane->used && lane->worker == 0 && lane->device == device) bytes += lane->plan_bytes;
    }
    return bytes;
}

static struct policy_place look_at(const struct policy *self, struct policy_key key,
                                   uint32_t device, uint64_t now_ms)
{
    const struct policy_device *told = &self->devices[device].told;
    const struct policy_model_state *model = &self->models[key.model];
    struct policy_lanes lanes = policy_count(self, key, device);
    struct policy_place place = {.device = device, .lanes = lanes.up + lanes.pending};
    place.serves_wishes = serves_wishes(self, key, device, place.lanes, now_ms);

    uint64_t limit_bytes = self->settings.memory_limit_bytes;
    place.free_bytes = told->memory_free_bytes;
    if (limit_bytes > 0 && minus(limit_bytes, told->used_bytes) < place.free_bytes) {
        place.free_bytes = minus(limit_bytes, told->used_bytes);
    }
    // Weights are in used_bytes, so what idle models hold is never more than that.
    uint64_t idle_bytes = idle_weights_bytes(self, device, key.model);
    place.free_bytes += idle_bytes < told->used_bytes ? idle_bytes : told->used_bytes;
    place.free_bytes = minus(place.free_bytes, pending_bytes(self, device));

    bool loaded = place.lanes > 0 || policy_loaded(self, key.model, device);
    place.plan_bytes = loaded ? 0 : policy_weights_bytes(self, key, device);
    if (model->exact_bytes[device][key.group] == 0) place.guess_bytes = place.plan_bytes;
    place.plan_bytes += model->demand[key.group].told.needs_bytes;
    return place;
}

bool policy_fits(const struct policy *self, struct policy_place place)
{
    return place.free_bytes >= place.plan_bytes &&
           place.free_bytes - place.plan_bytes >= policy_margin_bytes(self, place.device);
}

bool policy_may_fit(const struct policy *self, struct policy_place place)
{
    place.plan_bytes -= place.guess_bytes / 2;
    return policy_fits(self, place);
}

// True when a is the better place: one that fits, or may, then one that serves wishes, then with
// fewer lanes, then with more memory.
static bool is_better(const struct policy *self, struct policy_place a, struct policy_place b)
{
    if (b.device == UINT32_MAX) return true;
    if (policy_fits(self, a) != policy_fits(self, b)) return policy_fits(self, a);
    if (policy_may_fit(self, a) != policy_may_fit(self, b)) return policy_may_fit(self, a);
    if (a.serves_wishes != b.serves_wishes) return a.serves_wishes;
    if (a.lanes != b.lanes) return a.lanes < b.lanes;
    return minus(a.free_bytes, a.plan_bytes) > minus(b.free_bytes, b.plan_bytes);
}

static bool may_serve(const struct policy *self, struct policy_key key, uint32_t device)
{
    return self->devices[device].alive && !self->devices[device].told.refuses[key.group];
}

struct policy_place policy_find_place(const struct policy *self, struct policy_key key,
                                      uint64_t now_ms)
{
    assert(key.model < POLICY_MODELS_MAX);
    struct policy_place best = {.device = UINT32_MAX};
    for (uint32_t i = 0; i < self->devices_count; i++) {
        if (!may_serve(self, key, i)) continue;
        struct policy_place place = look_at(self, key, i, now_ms);
        if (is_better(self, place, best)) best = place;
    }
    return best;
}

struct policy_place policy_find_wished(const struct policy *self, struct policy_key key,
                                       uint64_t now_ms)
{
    assert(key.model < POLICY_MODELS_MAX);
    struct policy_place best = {.device = UINT32_MAX};
    for (uint32_t i = 0; i < self->devices_count; i++) {
        if (!may_serve(self, key, i) || !policy_is_wished(self, key, i, now_ms)) continue;
        if (policy_wish_ms(self, key, i) < self->settings.scale_up_delay_ms) continue;
        struct policy_place place = look_at(self, key, i, now_ms);
        if (place.lanes == 0 && is_better(self, place, best)) best = place;
    }
    return best;
}
