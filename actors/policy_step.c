// policy_step.c - the decisions of the policy; policy.h holds the rules, policy.c the tables,
// policy_place.c weighs devices.
//
// One step looks at each service once, beginning with the one whose turn it is, services without a
// worker before those that want one more. It first asks whether one worker is too many, then
// whether one is missing, then where it could go.

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "actors/policy_state.h"

#define STARVING_MS 5000u          // without a worker, until those who wait are answered
#define REFUSAL_EVERY_MS 5000u     // the same refusal is told again
#define SPAWN_PATIENCE_MS 300000u  // for an executor that neither starts a worker nor says why

// Why a worker is wanted.
struct want {
    const char *signal;  // NULL: none is
    double value;
    double threshold;
};

static struct policy_demand_state *demand_of(struct policy *self, struct policy_key key)
{
    return &self->models[key.model].demand[key.group];
}

// A decision about a service with everything that its kind does not set left empty.
static struct policy_decision decide(const struct policy *self, struct policy_key key,
                                     enum policy_action action, struct want want)
{
    struct policy_decision decision = {.action = action,
                                       .group = key.group,
                                       .signal = want.signal,
                                       .value = want.value,
                                       .threshold = want.threshold,
                                       .margin_bytes = policy_margin_bytes(self, UINT32_MAX),
                                       .workers = policy_count(self, key, UINT32_MAX).live};
    memcpy(decision.model, self->models[key.model].told.name, sizeof decision.model);
    return decision;
}

static void set_place(struct policy_decision *decision, const struct policy *self,
                      struct policy_place place)
{
    decision->free_bytes = place.free_bytes;
    decision->plan_bytes = place.plan_bytes;
    if (place.device == UINT32_MAX) return;
    decision->margin_bytes = policy_margin_bytes(self, place.device);
    memcpy(decision->device, self->devices[place.device].told.name, sizeof decision->device);
}

// ---- one worker too many

// The service's worker that came last; NULL when there is none.
static struct policy_lane *youngest_lane(struct policy *self, struct policy_key key,
                                         uint32_t device)
{
    struct policy_lane *youngest = NULL;
    for (uint32_t i = 0; i < POLICY_WORKERS_MAX; i++) {
        struct policy_lane *lane = &self->lanes[i];
        if (!lane->used || lane->worker == 0 || lane->retiring) continue;
        if (lane->model != key.model || lane->group != key.group) continue;
        if (device != UINT32_MAX && lane->device != device) continue;
        if (youngest == NULL || lane->since_ms >= youngest->since_ms) youngest = lane;
    }
    return youngest;
}

static struct policy_decision retire(struct policy *self, struct policy_key key,
                                     struct policy_lane *lane, struct want want)
{
    assert(!lane->retiring);
    assert(lane->worker != 0);
    lane->retiring = true;
    struct policy_decision decision = decide(self, key, POLICY_RETIRE, want);
    decision.worker = lane->worker;
    memcpy(decision.device, self->devices[lane->device].told.name, sizeof decision.device);
    return decision;
}

// Nobody works and nobody waits, as far as the router told.
static bool is_idle(const struct policy_demand_state *demand)
{
    return demand->told.depth == 0 && demand->told.running == 0;
}

// How long fewer jobs than workers were there, all workers being up.
static uint64_t spare_ms(const struct policy_demand_state *demand, const struct policy_lane *lane,
                         uint32_t workers, uint64_t now_ms)
{
    uint32_t load = workers < POLICY_LOAD_MAX ? workers : POLICY_LOAD_MAX;
    uint64_t busy_ms = demand->load_ms[load];
    uint64_t since_ms = busy_ms > lane->since_ms ? busy_ms : lane->since_ms;
    return now_ms > since_ms ? now_ms - since_ms : 0;
}

// The youngest whose device keeps another, or is not where the tensors of jobs lie; NULL when there
// is none.
static struct policy_lane *spare_lane(struct policy *self, struct policy_key key, uint64_t now_ms)
{
    struct policy_lane *spare = NULL;
    for (uint32_t i = 0; i < self->devices_count; i++) {
        struct policy_lane *lane = youngest_lane(self, key, i);
        if (lane == NULL) continue;
        if (policy_is_wished(self, key, i, now_ms) && policy_count(self, key, i).live == 1) {
            continue;
        }
        if (spare == NULL || lane->since_ms >= spare->since_ms) spare = lane;
    }
    return spare;
}

static bool retire_one(struct policy *self, struct policy_key key, uint64_t now_ms,
                       struct policy_decision *out)
{
    const struct policy_demand_state *demand = demand_of(self, key);
    struct policy_lane *lane = youngest_lane(self, key, UINT32_MAX);
    if (lane == NULL || !is_idle(demand)) return false;

    uint32_t live = policy_count(self, key, UINT32_MAX).live;
    const struct policy_limits *limits = &self->settings.limits[key.group];
    bool offered = policy_offers(self, key);
    uint64_t spare = spare_ms(demand, lane, live, now_ms);
    struct want want = {NULL, 0, 0};
    if (!offered) {
        want = (struct want){"model_removed", live, 0};
    } else if (live > limits->workers_max) {
        want = (struct want){"workers_max", live, limits->workers_max};
    } else if (live > limits->workers_min && spare >= self->settings.idle_timeout_ms) {
        want = (struct want){"idle_s", (double)spare / 1000.0,
                             (double)self->settings.idle_timeout_ms / 1000.0};
        lane = spare_lane(self, key, now_ms);
    }
    if (want.signal == NULL || lane == NULL) return false;

    *out = retire(self, key, lane, want);
    snprintf(out->message, sizeof out->message, "worker %llu of %s \"%s\" retires",
             (unsigned long long)out->worker, policy_group_name(key.group), out->model);
    return true;
}

// ---- one worker missing

static struct want find_want(const struct policy *self, struct policy_key key, uint64_t now_ms)
{
    const struct policy_demand_state *demand = &self->models[key.model].demand[key.group];
    const struct policy_limits *limits = &self->settings.limits[key.group];
    struct policy_lanes lanes = policy_count(self, key, UINT32_MAX);
    if (lanes.pending > 0) return (struct want){NULL, 0, 0};
    if (lanes.live < limits->workers_min) {
        return (struct want){"workers_min", lanes.live, limits->workers_min};
    }
    if (lanes.live == 0 && demand->told.depth > 0) {
        return (struct want){"queue_depth", demand->told.depth, 1};
    }
    if (!demand->over || lanes.live >= limits->workers_max ||
        now_ms - demand->over_since_ms < self->settings.scale_up_delay_ms) {
        return (struct want){NULL, 0, 0};
    }
    if (demand->told.depth >= self->settings.queue_threshold) {
        return (struct want){"queue_depth", demand->told.depth, self->settings.queue_threshold};
    }
    uint64_t age_ms = demand->told.age_ms + (now_ms - demand->told_ms);
    return (struct want){"queue_age_ms", (double)age_ms, self->settings.scale_up_delay_ms};
}

// Answers those who wait for a service that has nobody; they are gone from its queue then.
static struct policy_decision answer(struct policy *self, struct policy_key key, enum status code,
                                     uint32_t retry_after_ms)
{
    assert(code != STATUS_OK);
    struct policy_demand_state *demand = demand_of(self, key);
    struct want want = {"queue_depth", demand->told.depth, 0};
    struct policy_decision decision = decide(self, key, POLICY_ANSWER, want);
    decision.code = code;
    decision.retry_after_ms = retry_after_ms;
    demand->told.depth = 0;
    demand->starving = false;
    return decision;
}

static bool has_nobody_but_waiters(const struct policy *self, struct policy_key key)
{
    struct policy_lanes lanes = policy_count(self, key, UINT32_MAX);
    return lanes.live + lanes.pending == 0 &&
           self->models[key.model].demand[key.group].told.depth > 0;
}

// Answers at once where no worker can come: none is allowed, the last failed, every device is given
// up.
static bool answer_hopeless(struct policy *self, struct policy_key key, uint64_t now_ms,
                            struct policy_decision *out)
{
    struct policy_demand_state *demand = demand_of(self, key);
    if (!has_nobody_but_waiters(self, key)) return false;
    if (self->settings.limits[key.group].workers_max == 0) {
        *out = answer(self, key, STATUS_FAILED_PRECONDITION, 0);
        snprintf(out->message, sizeof out->message, "no workers are allowed for %s: the limit is 0",
                 policy_group_name(key.group));
        return true;
    }
    if (demand->code != STATUS_OK && demand->code != STATUS_RESOURCE_EXHAUSTED &&
        now_ms < demand->retry_ms) {
        *out = answer(self, key, demand->code, (uint32_t)(demand->retry_ms - now_ms));
        memcpy(out->message, demand->message, sizeof out->message);
        return true;
    }
    uint32_t given_up = 0;
    uint32_t serving = 0;
    for (uint32_t i = 0; i < self->devices_count; i++) {
        if (self->devices[i].told.refuses[key.group]) continue;
        serving += 1;
        given_up += self->devices[i].given_up;
    }
    if (given_up == 0 || given_up < serving) return false;
    *out = answer(self, key, STATUS_UNAVAILABLE, REFUSAL_EVERY_MS);
    snprintf(out->message, sizeof out->message,
             "the executor of every device died too often and is not started again");
    return true;
}

// ---- no memory

static bool somebody_retires_on(const struct policy *self, uint32_t device)
{
    for (uint32_t i = 0; i < POLICY_WORKERS_MAX; i++) {
        const struct policy_lane *lane = &self->lanes[i];
        if (lane->used && lane->retiring && lane->device == device) return true;
    }
    return false;
}

// Finds the worker on the device whose service has been idle longest, at least for idle_ms.
static struct policy_lane *find_victim(struct policy *self, struct policy_key wanting,
                                       uint32_t device, uint64_t idle_ms, uint64_t now_ms)
{
    struct policy_lane *victim = NULL;
    uint64_t longest_ms = 0;
    for (uint32_t i = 0; i < POLICY_SERVICES_MAX; i++) {
        struct policy_key key = {i / POLICY_GROUP_COUNT, i % POLICY_GROUP_COUNT};
        if (key.model == wanting.model && key.group == wanting.group) continue;
        const struct policy_demand_state *demand = demand_of(self, key);
        struct policy_lane *lane = youngest_lane(self, key, device);
        if (lane == NULL || !is_idle(demand)) continue;
        uint32_t live = policy_count(self, key, UINT32_MAX).live;
        if (live <= self->settings.limits[key.group].workers_min) continue;
        uint64_t spare = spare_ms(demand, lane, 1, now_ms);
        if (spare < idle_ms || (victim != NULL && spare <= longest_ms)) continue;
        victim = lane;
        longest_ms = spare;
    }
    return victim;
}

// Memory lacks at the best place: lets an idle worker of another service go there. False when there
// is none, or when even all of this daemon's memory there would not do.
static bool make_room(struct policy *self, struct policy_key key, struct policy_place place,
                      uint64_t now_ms, struct policy_decision *out)
{
    const struct policy_device *told = &self->devices[place.device].told;
    struct policy_place emptied = place;
    emptied.free_bytes += told->used_bytes;
    if (!policy_may_fit(self, emptied)) return false;
    bool is_first = policy_count(self, key, UINT32_MAX).live == 0;
    uint64_t idle_ms = is_first ? 0 : self->settings.scale_up_delay_ms;
    struct policy_lane *victim = find_victim(self, key, place.device, idle_ms, now_ms);
    if (victim == NULL) return false;

    struct want want = {"memory_free_bytes", (double)place.free_bytes,
                        (double)(place.plan_bytes + policy_margin_bytes(self, place.device))};
    struct policy_key victim_key = {victim->model, victim->group};
    *out = retire(self, victim_key, victim, want);
    set_place(out, self, place);
    snprintf(out->message, sizeof out->message,
             "worker %llu of %s \"%.63s\" retires: its memory is wanted for %s \"%.63s\"",
             (unsigned long long)out->worker, policy_group_name(victim_key.group), out->model,
             policy_group_name(key.group), self->models[key.model].told.name);
    return true;
}

static bool is_news(const struct policy_demand_state *demand, const struct policy_decision *refusal,
                    uint64_t now_ms)
{
    return demand->refused_signal == NULL || strcmp(demand->refused_signal, refusal->signal) != 0 ||
           demand->refused_plan_bytes != refusal->plan_bytes ||
           now_ms - demand->refused_ms >= REFUSAL_EVERY_MS;
}

// Says why no worker comes: as an event now and then, and to those who wait once they starve.
static bool refuse(struct policy *self, struct policy_key key, struct policy_place place,
                   uint64_t now_ms, struct policy_decision *out)
{
    struct policy_demand_state *demand = demand_of(self, key);
    struct want want = {"memory_free_bytes", (double)place.free_bytes,
                        (double)(place.plan_bytes + policy_margin_bytes(self, place.device))};
    struct policy_decision refusal = decide(self, key, POLICY_REFUSE, want);
    set_place(&refusal, self, place);
    // Where memory seemed to do and did not, the executor's own words are in demand->message.
    bool seemed_to_fit = policy_fits(self, place);
    snprintf(refusal.message, sizeof refusal.message,
             "no worker for %s \"%s\" on %s: %llu MB free, %llu MB needed and %llu MB margin",
             policy_group_name(key.group), refusal.model, refusal.device,
             (unsigned long long)(place.free_bytes >> 20),
             (unsigned long long)(place.plan_bytes >> 20),
             (unsigned long long)(refusal.margin_bytes >> 20));
    if (seemed_to_fit) {
        memcpy(refusal.message, demand->message, sizeof refusal.message);
    } else {
        memcpy(demand->message, refusal.message, sizeof demand->message);
    }

    bool waiting = has_nobody_but_waiters(self, key);
    if (waiting && !demand->starving) demand->starving_since_ms = now_ms;
    demand->starving = waiting;
    if (waiting && now_ms - demand->starving_since_ms >= STARVING_MS) {
        *out = answer(self, key, STATUS_RESOURCE_EXHAUSTED, STARVING_MS);
        set_place(out, self, place);
        out->signal = want.signal;
        out->value = want.value;
        out->threshold = want.threshold;
        memcpy(out->message, refusal.message, sizeof out->message);
        return true;
    }
    if (!is_news(demand, &refusal, now_ms)) return false;
    demand->refused_signal = want.signal;
    demand->refused_plan_bytes = refusal.plan_bytes;
    demand->refused_ms = now_ms;
    *out = refusal;
    return true;
}

static bool spawn(struct policy *self, struct policy_key key, struct want want,
                  struct policy_place place, uint64_t now_ms, struct policy_decision *out)
{
    uint32_t index = 0;
    while (index < POLICY_WORKERS_MAX && self->lanes[index].used) index += 1;
    if (index == POLICY_WORKERS_MAX) return false;
    *out = decide(self, key, POLICY_SPAWN, want);
    out->workers += 1;
    set_place(out, self, place);
    snprintf(out->message, sizeof out->message, "one more worker for %s \"%s\" on %s",
             policy_group_name(key.group), out->model, out->device);
    self->lanes[index] = (struct policy_lane){.used = true,
                                              .group = key.group,
                                              .model = key.model,
                                              .device = place.device,
                                              .since_ms = now_ms,
                                              .plan_bytes = place.plan_bytes};
    return true;
}

static bool spawn_one(struct policy *self, struct policy_key key, struct want want, uint64_t now_ms,
                      struct policy_decision *out)
{
    const struct policy_demand_state *demand = demand_of(self, key);
    bool backs_off = now_ms < demand->retry_ms;
    if (backs_off && demand->code != STATUS_RESOURCE_EXHAUSTED) return false;
    struct policy_place place = policy_find_place(self, key, now_ms);
    if (place.device == UINT32_MAX) return false;
    // A worker that failed for lack of memory shows that the plan was too low: room is made all the
    // same.
    if (!backs_off && policy_may_fit(self, place))
        return spawn(self, key, want, place, now_ms, out);
    if (somebody_retires_on(self, place.device)) return false;
    if (make_room(self, key, place, now_ms, out)) return true;
    return refuse(self, key, place, now_ms, out);
}

// Spawns where the tensors of jobs lie, which workers elsewhere serve by the host meanwhile: so
// nobody has to go for it.
static bool spawn_wished(struct policy *self, struct policy_key key, uint64_t now_ms,
                         struct policy_decision *out)
{
    struct policy_lanes lanes = policy_count(self, key, UINT32_MAX);
    if (lanes.pending > 0 || lanes.live >= self->settings.limits[key.group].workers_max) {
        return false;
    }
    if (now_ms < demand_of(self, key)->retry_ms) return false;
    struct policy_place place = policy_find_wished(self, key, now_ms);
    if (place.device == UINT32_MAX) return false;
    struct want want = {"device_wanted_s", (double)policy_wish_ms(self, key, place.device) / 1000.0,
                        (double)self->settings.scale_up_delay_ms / 1000.0};
    if (policy_may_fit(self, place)) return spawn(self, key, want, place, now_ms, out);
    return refuse(self, key, place, now_ms, out);
}

// ---- the step

static void lose_patience(struct policy *self, uint64_t now_ms)
{
    for (uint32_t i = 0; i < POLICY_WORKERS_MAX; i++) {
        const struct policy_lane *lane = &self->lanes[i];
        if (!lane->used || lane->worker != 0 || now_ms - lane->since_ms < SPAWN_PATIENCE_MS) {
            continue;
        }
        struct policy_worker worker = {.group = lane->group};
        memcpy(worker.model, self->models[lane->model].told.name, sizeof worker.model);
        memcpy(worker.device, self->devices[lane->device].told.name, sizeof worker.device);
        policy_tell_worker_down(self, &worker, STATUS_DEADLINE_EXCEEDED,
                                "the executor did not start a worker within 300 s", now_ms);
    }
}

static bool step_service(struct policy *self, struct policy_key key, bool first_worker,
                         uint64_t now_ms, struct policy_decision *out)
{
    if (!self->models[key.model].used) return false;
    bool has_worker = policy_count(self, key, UINT32_MAX).live > 0;
    if (has_worker == first_worker) return false;
    policy_observe(self, key, now_ms);
    if (has_worker && retire_one(self, key, now_ms, out)) return true;
    if (!policy_offers(self, key)) return false;
    if (answer_hopeless(self, key, now_ms, out)) return true;
    struct want want = find_want(self, key, now_ms);
    if (want.signal != NULL) return spawn_one(self, key, want, now_ms, out);
    return has_worker && spawn_wished(self, key, now_ms, out);
}

uint32_t policy_step(struct policy *self, uint64_t now_ms, struct policy_decision *out,
                     uint32_t out_max)
{
    assert(self != NULL);
    assert(out != NULL);
    assert(out_max > 0);
    lose_patience(self, now_ms);
    uint32_t count = 0;
    for (uint32_t pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < POLICY_SERVICES_MAX && count < out_max; i++) {
            uint32_t model = (self->turn + i / POLICY_GROUP_COUNT) % POLICY_MODELS_MAX;
            struct policy_key key = {model, i % POLICY_GROUP_COUNT};
            if (step_service(self, key, pass == 0, now_ms, &out[count])) count += 1;
        }
    }
    self->turn = (self->turn + 1) % POLICY_MODELS_MAX;
    return count;
}
