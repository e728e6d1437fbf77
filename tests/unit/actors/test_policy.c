// What the scaler's rules promise, each on a clock that the test turns.

#include "actors/policy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/test.h"

#define MB (1024ull * 1024)
#define EPOCH 3u

struct fixture {
    struct policy *policy;            // with one device "cpu" and one model "m" that offers both
    struct policy_settings settings;  // as at the start
    uint64_t now_ms;                  // the time
    struct policy_decision decisions[64];  // of the last step
    uint32_t count;                        // of them
    struct error error;                    // of the last call that failed
};

static void tell_device(struct fixture *self, const char *name, uint64_t epoch, uint64_t free_bytes)
{
    struct policy_device device = {.epoch = epoch, .memory_free_bytes = free_bytes};
    snprintf(device.name, sizeof device.name, "%s", name);
    assert_int_equal(policy_tell_device(self->policy, &device, &self->error), STATUS_OK);
}

static void tell_model(struct fixture *self, const char *name, uint64_t weights_bytes,
                       const char *loaded_on)
{
    struct policy_model model = {.offers = {true, true},
                                 .weights_bytes = {weights_bytes, weights_bytes}};
    snprintf(model.name, sizeof model.name, "%s", name);
    if (loaded_on != NULL) {
        snprintf(model.loaded_on[0], sizeof model.loaded_on[0], "%s", loaded_on);
        model.loaded_count = 1;
    }
    assert_int_equal(policy_tell_model(self->policy, &model, &self->error), STATUS_OK);
}

static int setup(void **state)
{
    struct fixture *self = calloc(1, sizeof *self);
    assert_non_null(self);
    self->settings = (struct policy_settings){.serves = {true, true},
                                              .limits = {{0, 2}, {0, 2}},
                                              .queue_threshold = 2,
                                              .scale_up_delay_ms = 1000,
                                              .idle_timeout_ms = 30000,
                                              .margin_bytes = 512 * MB};
    self->now_ms = 1000000;
    assert_int_equal(policy_create(&self->policy, &self->settings, &self->error), STATUS_OK);
    tell_device(self, "cpu", EPOCH, 8192 * MB);
    tell_model(self, "m", 1000 * MB, NULL);
    *state = self;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *self = *state;
    policy_destroy(&self->policy);
    free(self);
    return 0;
}

static void demand(struct fixture *self, const char *model, uint32_t depth, uint32_t running)
{
    struct policy_demand told = {.depth = depth, .running = running, .needs_bytes = 100 * MB};
    policy_tell_demand(self->policy, POLICY_VAE, model, &told, self->now_ms);
}

static struct policy_worker worker_of(uint64_t number, const char *model, const char *device)
{
    struct policy_worker worker = {.worker = number, .group = POLICY_VAE};
    snprintf(worker.model, sizeof worker.model, "%s", model);
    snprintf(worker.device, sizeof worker.device, "%s", device);
    return worker;
}

static uint64_t number(uint64_t epoch, uint64_t of)
{
    return epoch << 16 | of;
}

static void up(struct fixture *self, uint64_t of, const char *model)
{
    struct policy_worker worker = worker_of(number(EPOCH, of), model, "cpu");
    assert_int_equal(policy_tell_worker_up(self->policy, &worker, self->now_ms, &self->error),
                     STATUS_OK);
}

static void down(struct fixture *self, uint64_t of, const char *model, enum status code)
{
    struct policy_worker worker = worker_of(of == 0 ? 0 : number(EPOCH, of), model, "cpu");
    policy_tell_worker_down(self->policy, &worker, code, "the file is broken", self->now_ms);
}

// The executor has said what the model's weights take, by a worker that was not to be.
static void tell_weights(struct fixture *self, const char *model, uint64_t bytes)
{
    struct policy_worker worker = worker_of(number(EPOCH, 99), model, "cpu");
    worker.weights_bytes = bytes;
    policy_tell_worker_down(self->policy, &worker, STATUS_OK, "retired", self->now_ms);
}

// Moves the time and takes one step.
static uint32_t step(struct fixture *self, uint64_t by_ms)
{
    self->now_ms += by_ms;
    self->count = policy_step(self->policy, self->now_ms, self->decisions, 64);
    return self->count;
}

static void expect(struct fixture *self, uint64_t by_ms, enum policy_action action,
                   const char *signal)
{
    assert_int_equal(step(self, by_ms), 1);
    assert_int_equal(self->decisions[0].action, action);
    assert_string_equal(self->decisions[0].signal, signal);
}

static void expect_nothing(struct fixture *self, uint64_t by_ms)
{
    assert_int_equal(step(self, by_ms), 0);
}

static struct policy_service service(struct fixture *self, const char *model,
                                     enum policy_group group)
{
    for (uint32_t i = 0; i < policy_service_count(self->policy); i++) {
        struct policy_service found = policy_service_at(self->policy, i);
        if (found.group == group && strcmp(found.model, model) == 0) return found;
    }
    fail_msg("no service of model %s", model);
    return (struct policy_service){.workers = 0};
}

// A first worker of "m" is there and two jobs are more than it can do.
static void start_busy(struct fixture *self)
{
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    up(self, 1, "m");
}

// ---- lazy start

static void nothing_happens_without_work(void **state)
{
    struct fixture *self = *state;
    for (int i = 0; i < 100; i++) expect_nothing(self, 1000);
    assert_int_equal(service(self, "m", POLICY_VAE).state, POLICY_IDLE);
}

static void the_first_job_spawns_at_once_and_only_one(void **state)
{
    struct fixture *self = *state;
    demand(self, "m", 5, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    const struct policy_decision *spawn = &self->decisions[0];
    assert_string_equal(spawn->model, "m");
    assert_string_equal(spawn->device, "cpu");
    assert_int_equal(spawn->group, POLICY_VAE);
    assert_int_equal(spawn->workers, 1);
    assert_int_equal(spawn->plan_bytes, 1100 * MB);
    assert_int_equal(spawn->free_bytes, 8192 * MB);
    assert_int_equal(spawn->margin_bytes, 512 * MB);
    assert_int_equal(service(self, "m", POLICY_VAE).state, POLICY_LOADING);
    for (int i = 0; i < 20; i++) expect_nothing(self, 1000);
}

static void a_margin_that_is_auto_is_each_device_s_own(void **state)
{
    struct fixture *self = *state;
    self->settings.margin_bytes = POLICY_MARGIN_AUTO;
    policy_change(self->policy, &self->settings);
    struct policy_device gpu = {.name = "cuda:0",
                                .epoch = EPOCH + 1,
                                .memory_free_bytes = 9000 * MB,
                                .margin_bytes = 7950 * MB};
    struct policy_device cpu = {
        .name = "cpu", .epoch = EPOCH, .memory_free_bytes = 1700 * MB, .margin_bytes = 512 * MB};
    assert_int_equal(policy_tell_device(self->policy, &gpu, &self->error), STATUS_OK);
    assert_int_equal(policy_tell_device(self->policy, &cpu, &self->error), STATUS_OK);
    // 9000 MB lack 50 beside the GPU's margin, 1700 MB do beside the processor's.
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    assert_string_equal(self->decisions[0].device, "cpu");
    assert_int_equal(self->decisions[0].margin_bytes, 512 * MB);
}

static void a_worker_that_came_makes_its_service_serve(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    struct policy_service vae = service(self, "m", POLICY_VAE);
    assert_int_equal(vae.state, POLICY_SERVING);
    assert_int_equal(vae.workers, 1);
    assert_string_equal(vae.device, "cpu");
    assert_int_equal(service(self, "m", POLICY_TEXT).state, POLICY_IDLE);
}

static void demand_for_an_unknown_model_changes_nothing(void **state)
{
    struct fixture *self = *state;
    demand(self, "nobody", 5, 0);
    expect_nothing(self, 10000);
}

static void a_group_that_the_node_does_not_serve_is_no_service(void **state)
{
    struct fixture *self = *state;
    self->settings.serves[POLICY_VAE] = false;
    policy_change(self->policy, &self->settings);
    assert_int_equal(policy_service_count(self->policy), 1);
    demand(self, "m", 5, 0);
    expect_nothing(self, 10000);
}

static void without_a_device_work_waits(void **state)
{
    struct fixture *self = *state;
    policy_tell_device_down(self->policy, "cpu", EPOCH, false);
    demand(self, "m", 1, 0);
    expect_nothing(self, 10000);
    tell_device(self, "cpu", EPOCH + 1, 8192 * MB);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
}

static void min_workers_are_kept_up_without_work(void **state)
{
    struct fixture *self = *state;
    self->settings.limits[POLICY_VAE] = (struct policy_limits){2, 3};
    policy_change(self->policy, &self->settings);
    expect(self, 0, POLICY_SPAWN, "workers_min");
    expect_nothing(self, 0);
    up(self, 1, "m");
    expect(self, 0, POLICY_SPAWN, "workers_min");
    up(self, 2, "m");
    for (int i = 0; i < 10; i++) expect_nothing(self, 60000);
    down(self, 1, "m", STATUS_OK);
    expect(self, 0, POLICY_SPAWN, "workers_min");
}

// ---- scaling up

static void a_long_queue_spawns_one_more_after_the_delay(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 2, 1);
    expect_nothing(self, 0);
    expect_nothing(self, 999);
    expect(self, 1, POLICY_SPAWN, "queue_depth");
    assert_true(self->decisions[0].value == 2.0);
    assert_true(self->decisions[0].threshold == 2.0);
    assert_int_equal(self->decisions[0].workers, 2);
}

static void a_queue_that_was_short_for_a_moment_starts_the_delay_again(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 2, 1);
    expect_nothing(self, 900);
    demand(self, "m", 0, 1);
    demand(self, "m", 2, 1);
    expect_nothing(self, 900);
    expect(self, 100, POLICY_SPAWN, "queue_depth");
}

static void one_old_job_spawns_one_more_by_its_age(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 1, 1);
    expect_nothing(self, 999);
    expect_nothing(self, 1);
    expect_nothing(self, 999);
    expect(self, 1, POLICY_SPAWN, "queue_age_ms");
    assert_true(self->decisions[0].value == 2000.0);
    assert_true(self->decisions[0].threshold == 1000.0);
}

static void nobody_is_spawned_above_max(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 50, 2);
    expect_nothing(self, 0);
    expect(self, 1000, POLICY_SPAWN, "queue_depth");
    up(self, 2, "m");
    for (int i = 0; i < 20; i++) {
        demand(self, "m", 50, 4);
        expect_nothing(self, 1000);
    }
}

static void another_device_comes_before_a_second_lane(void **state)
{
    struct fixture *self = *state;
    tell_device(self, "cpu:1", 9, 4096 * MB);
    start_busy(self);
    assert_string_equal(self->decisions[0].device, "cpu");
    demand(self, "m", 2, 1);
    step(self, 0);
    expect(self, 1000, POLICY_SPAWN, "queue_depth");
    assert_string_equal(self->decisions[0].device, "cpu:1");
}

static void a_second_lane_is_taken_where_the_other_device_is_full(void **state)
{
    struct fixture *self = *state;
    tell_device(self, "cpu:1", 9, 100 * MB);
    start_busy(self);
    demand(self, "m", 2, 1);
    step(self, 0);
    expect(self, 1000, POLICY_SPAWN, "queue_depth");
    assert_string_equal(self->decisions[0].device, "cpu");
}

static void a_second_lane_on_one_device_needs_no_second_copy_of_the_weights(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 2, 1);
    step(self, 0);
    expect(self, 1000, POLICY_SPAWN, "queue_depth");
    assert_int_equal(self->decisions[0].plan_bytes, 100 * MB);
}

static void weights_that_are_loaded_are_not_planned_again(void **state)
{
    struct fixture *self = *state;
    tell_model(self, "m", 1000 * MB, "cpu");
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    assert_int_equal(self->decisions[0].plan_bytes, 100 * MB);
}

// ---- retiring

static void an_idle_worker_retires_after_the_timeout(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 0, 1);
    expect_nothing(self, 60000);
    demand(self, "m", 0, 0);
    expect_nothing(self, 29999);
    expect(self, 1, POLICY_RETIRE, "idle_s");
    assert_int_equal(self->decisions[0].worker, number(EPOCH, 1));
    assert_string_equal(self->decisions[0].device, "cpu");
    assert_int_equal(self->decisions[0].workers, 0);
    assert_true(self->decisions[0].threshold == 30.0);
    expect_nothing(self, 1000);
    down(self, 1, "m", STATUS_OK);
    assert_int_equal(service(self, "m", POLICY_VAE).state, POLICY_IDLE);
}

static void a_worker_that_works_never_retires(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    for (int i = 0; i < 100; i++) {
        demand(self, "m", 0, 1);
        expect_nothing(self, 30000);
    }
}

static void a_job_in_between_starts_the_timeout_again(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 0, 0);
    expect_nothing(self, 29000);
    demand(self, "m", 0, 1);
    demand(self, "m", 0, 0);
    expect_nothing(self, 29000);
    expect(self, 1000, POLICY_RETIRE, "idle_s");
}

static void the_second_worker_retires_when_one_was_enough_for_the_timeout(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    up(self, 2, "m");
    demand(self, "m", 0, 2);
    for (int i = 0; i < 29; i++) {
        step(self, 1000);
        demand(self, "m", 0, 1);
        demand(self, "m", 0, 0);
        assert_int_equal(self->count, 0);
    }
    expect(self, 2000, POLICY_RETIRE, "idle_s");
    assert_int_equal(self->decisions[0].worker, number(EPOCH, 2));
    down(self, 2, "m", STATUS_OK);
    expect_nothing(self, 1000);
}

static void two_idle_workers_retire_one_after_the_other(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    up(self, 2, "m");
    demand(self, "m", 0, 0);
    expect(self, 30000, POLICY_RETIRE, "idle_s");
    assert_int_equal(self->decisions[0].worker, number(EPOCH, 2));
    expect(self, 0, POLICY_RETIRE, "idle_s");
    assert_int_equal(self->decisions[0].worker, number(EPOCH, 1));
    expect_nothing(self, 1000);
}

static void nobody_retires_below_min(void **state)
{
    struct fixture *self = *state;
    self->settings.limits[POLICY_VAE] = (struct policy_limits){1, 2};
    policy_change(self->policy, &self->settings);
    step(self, 0);
    up(self, 1, "m");
    up(self, 2, "m");
    demand(self, "m", 0, 0);
    expect(self, 30000, POLICY_RETIRE, "idle_s");
    down(self, 2, "m", STATUS_OK);
    for (int i = 0; i < 10; i++) expect_nothing(self, 30000);
}

static void a_worker_that_came_late_gets_its_whole_timeout(void **state)
{
    struct fixture *self = *state;
    demand(self, "m", 1, 0);
    step(self, 0);
    demand(self, "m", 0, 0);
    expect_nothing(self, 40000);
    up(self, 1, "m");
    expect_nothing(self, 29999);
    expect(self, 1, POLICY_RETIRE, "idle_s");
}

static void a_lower_max_retires_the_worker_that_is_too_many(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    up(self, 2, "m");
    demand(self, "m", 0, 1);
    self->settings.limits[POLICY_VAE].workers_max = 1;
    policy_change(self->policy, &self->settings);
    expect_nothing(self, 1000);
    demand(self, "m", 0, 0);
    expect(self, 0, POLICY_RETIRE, "workers_max");
    expect_nothing(self, 1000);
}

static void a_model_that_was_taken_back_keeps_no_workers(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 0, 0);
    policy_tell_model_removed(self->policy, "m");
    assert_int_equal(policy_service_count(self->policy), 0);
    expect(self, 0, POLICY_RETIRE, "model_removed");
    down(self, 1, "m", STATUS_OK);
    expect_nothing(self, 100000);
}

// ---- memory

static void without_memory_nobody_is_spawned_and_the_refusal_is_told_once(void **state)
{
    struct fixture *self = *state;
    tell_device(self, "cpu", EPOCH, 1611 * MB);
    tell_weights(self, "m", 1000 * MB);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_REFUSE, "memory_free_bytes");
    assert_int_equal(self->decisions[0].free_bytes, 1611 * MB);
    assert_int_equal(self->decisions[0].plan_bytes, 1100 * MB);
    assert_int_equal(self->decisions[0].margin_bytes, 512 * MB);
    assert_true(self->decisions[0].threshold == (double)(1612 * MB));
    for (int i = 0; i < 4; i++) expect_nothing(self, 1000);
    tell_device(self, "cpu", EPOCH, 1612 * MB);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
}

static void those_who_starve_are_answered_after_five_seconds(void **state)
{
    struct fixture *self = *state;
    tell_device(self, "cpu", EPOCH, 100 * MB);
    demand(self, "m", 3, 0);
    expect(self, 0, POLICY_REFUSE, "memory_free_bytes");
    expect_nothing(self, 4999);
    expect(self, 1, POLICY_ANSWER, "memory_free_bytes");
    assert_int_equal(self->decisions[0].code, STATUS_RESOURCE_EXHAUSTED);
    assert_true(self->decisions[0].retry_after_ms > 0);
    assert_non_null(strstr(self->decisions[0].message, "100 MB free"));
    expect_nothing(self, 1000);
}

static void nobody_starves_while_a_worker_is_there(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    tell_device(self, "cpu", EPOCH, 100 * MB);
    uint32_t refusals = 0;
    for (int i = 0; i < 20; i++) {
        demand(self, "m", 9, 1);
        step(self, 1000);
        for (uint32_t k = 0; k < self->count; k++) {
            assert_int_equal(self->decisions[k].action, POLICY_REFUSE);
            refusals += 1;
        }
    }
    assert_in_range(refusals, 2, 5);
}

static void a_spawn_under_way_takes_its_memory_already(void **state)
{
    struct fixture *self = *state;
    tell_model(self, "n", 1000 * MB, NULL);
    tell_weights(self, "m", 1000 * MB);
    tell_weights(self, "n", 1000 * MB);
    tell_device(self, "cpu", EPOCH, 2 * 1612 * MB - 513 * MB);
    demand(self, "m", 1, 0);
    demand(self, "n", 1, 0);
    assert_int_equal(step(self, 0), 2);
    uint32_t spawns = 0;
    for (int i = 0; i < 2; i++) spawns += self->decisions[i].action == POLICY_SPAWN;
    assert_int_equal(spawns, 1);
}

static void the_configured_limit_counts_like_memory(void **state)
{
    struct fixture *self = *state;
    self->settings.memory_limit_bytes = 1500 * MB;
    policy_change(self->policy, &self->settings);
    tell_weights(self, "m", 1000 * MB);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_REFUSE, "memory_free_bytes");
    assert_int_equal(self->decisions[0].free_bytes, 1500 * MB);
    self->settings.memory_limit_bytes = 2000 * MB;
    policy_change(self->policy, &self->settings);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
}

static void set_used(struct fixture *self, uint64_t free_bytes, uint64_t used_bytes)
{
    struct policy_device device = {
        .name = "cpu", .epoch = EPOCH, .memory_free_bytes = free_bytes, .used_bytes = used_bytes};
    assert_int_equal(policy_tell_device(self->policy, &device, &self->error), STATUS_OK);
}

static void an_idle_worker_of_another_model_makes_room(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 0, 0);
    tell_model(self, "m", 1000 * MB, "cpu");
    tell_model(self, "n", 1000 * MB, NULL);
    set_used(self, 1000 * MB, 1100 * MB);
    demand(self, "n", 1, 0);
    expect(self, 0, POLICY_RETIRE, "memory_free_bytes");
    assert_int_equal(self->decisions[0].worker, number(EPOCH, 1));
    assert_string_equal(self->decisions[0].model, "m");
    expect_nothing(self, 10);
    down(self, 1, "m", STATUS_OK);
    // What "m" left loaded counts as free, but never more than the executor says that it uses.
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    assert_string_equal(self->decisions[0].model, "n");
    assert_int_equal(self->decisions[0].free_bytes, 2100 * MB);
}

static void a_worker_that_works_makes_no_room(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    tell_model(self, "n", 1000 * MB, NULL);
    set_used(self, 1000 * MB, 1100 * MB);
    demand(self, "m", 0, 1);
    demand(self, "n", 1, 0);
    expect(self, 0, POLICY_REFUSE, "memory_free_bytes");
    assert_string_equal(self->decisions[0].model, "n");
}

static void min_workers_make_no_room(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 0, 0);
    tell_model(self, "n", 1000 * MB, NULL);
    self->settings.limits[POLICY_VAE].workers_min = 1;
    policy_change(self->policy, &self->settings);
    set_used(self, 1000 * MB, 1100 * MB);
    demand(self, "n", 1, 0);
    expect(self, 0, POLICY_REFUSE, "memory_free_bytes");
}

static void nobody_makes_room_that_would_not_be_enough(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 0, 0);
    tell_model(self, "n", 100000 * MB, NULL);
    set_used(self, 1000 * MB, 1100 * MB);
    demand(self, "n", 1, 0);
    expect(self, 0, POLICY_REFUSE, "memory_free_bytes");
}

static void the_longest_idle_makes_room_first(void **state)
{
    struct fixture *self = *state;
    tell_model(self, "a", 100 * MB, "cpu");
    tell_model(self, "b", 100 * MB, "cpu");
    up(self, 1, "a");
    up(self, 2, "b");
    demand(self, "b", 0, 1);
    demand(self, "b", 0, 0);
    self->now_ms += 1000;
    demand(self, "a", 0, 1);
    demand(self, "a", 0, 0);
    self->now_ms += 1000;
    set_used(self, 1000 * MB, 1200 * MB);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_RETIRE, "memory_free_bytes");
    assert_string_equal(self->decisions[0].model, "b");
}

static void one_more_worker_takes_no_room_from_a_service_that_just_worked(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    tell_model(self, "n", 1000 * MB, NULL);
    up(self, 2, "n");
    set_used(self, 300 * MB, 2200 * MB);
    for (int i = 0; i < 5; i++) {
        demand(self, "m", 5, 1);
        demand(self, "n", 0, 1);
        demand(self, "n", 0, 0);
        step(self, 500);
        for (uint32_t k = 0; k < self->count; k++) {
            assert_int_equal(self->decisions[k].action, POLICY_REFUSE);
        }
    }
    expect(self, 1000, POLICY_RETIRE, "memory_free_bytes");
    assert_string_equal(self->decisions[0].model, "n");
}

// ---- weights on a device of another type

static void weights_that_may_take_half_are_tried_where_the_file_s_size_does_not_fit(void **state)
{
    struct fixture *self = *state;
    tell_device(self, "cpu", EPOCH, 1111 * MB);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_REFUSE, "memory_free_bytes");  // not even the half
    tell_device(self, "cpu", EPOCH, 1112 * MB);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    assert_int_equal(self->decisions[0].plan_bytes, 1100 * MB);
    struct policy_worker worker = worker_of(number(EPOCH, 1), "m", "cpu");
    worker.weights_bytes = 500 * MB;
    assert_int_equal(policy_tell_worker_up(self->policy, &worker, self->now_ms, &self->error),
                     STATUS_OK);
    demand(self, "m", 0, 0);
    expect(self, 30000, POLICY_RETIRE, "idle_s");
    down(self, 1, "m", STATUS_OK);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    assert_int_equal(self->decisions[0].plan_bytes, 600 * MB);
}

static void an_executor_that_refuses_says_what_is_planned_from_then_on(void **state)
{
    struct fixture *self = *state;
    tell_device(self, "cpu", EPOCH, 1700 * MB);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    struct policy_worker worker = worker_of(number(EPOCH, 1), "m", "cpu");
    worker.weights_bytes = 2000 * MB;  // half precision in the file, full here
    policy_tell_worker_down(self->policy, &worker, STATUS_RESOURCE_EXHAUSTED, "no", self->now_ms);
    expect(self, 0, POLICY_REFUSE, "memory_free_bytes");
    assert_int_equal(self->decisions[0].plan_bytes, 2100 * MB);
    expect_nothing(self, 3000);
    tell_device(self, "cpu", EPOCH, 2612 * MB);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    // Other files, another executor: nothing is known of them.
    down(self, 0, "m", STATUS_RESOURCE_EXHAUSTED);
    tell_model(self, "m", 1001 * MB, NULL);
    expect(self, 10000, POLICY_SPAWN, "queue_depth");
    assert_int_equal(self->decisions[0].plan_bytes, 1101 * MB);
}

static void an_idle_worker_makes_room_for_weights_that_may_take_half(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 0, 0);
    tell_model(self, "n", 3000 * MB, NULL);
    set_used(self, 100 * MB, 2011 * MB);
    demand(self, "n", 1, 0);
    expect(self, 0, POLICY_REFUSE, "memory_free_bytes");
    set_used(self, 100 * MB, 2012 * MB);
    expect(self, 0, POLICY_RETIRE, "memory_free_bytes");
    assert_string_equal(self->decisions[0].model, "m");
}

static void a_device_that_fits_comes_before_one_that_may(void **state)
{
    struct fixture *self = *state;
    tell_device(self, "cpu", EPOCH, 1600 * MB);
    tell_device(self, "gpu", EPOCH + 1, 1612 * MB);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    assert_string_equal(self->decisions[0].device, "gpu");
}

static void idle_weights_make_as_much_room_as_they_take(void **state)
{
    struct fixture *self = *state;
    tell_model(self, "n", 1000 * MB, "cpu");
    tell_weights(self, "n", 500 * MB);
    tell_weights(self, "m", 1000 * MB);
    set_used(self, 100 * MB, 3000 * MB);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_REFUSE, "memory_free_bytes");
    assert_int_equal(self->decisions[0].free_bytes, 1600 * MB);  // 500 for images, 1000 for texts
}

// ---- failures

static void a_worker_that_failed_to_start_answers_those_who_wait(void **state)
{
    struct fixture *self = *state;
    demand(self, "m", 2, 0);
    step(self, 0);
    down(self, 0, "m", STATUS_INVALID_ARGUMENT);
    expect(self, 0, POLICY_ANSWER, "queue_depth");
    assert_int_equal(self->decisions[0].code, STATUS_INVALID_ARGUMENT);
    assert_string_equal(self->decisions[0].message, "the file is broken");
    assert_int_equal(self->decisions[0].retry_after_ms, 1000);
    assert_int_equal(service(self, "m", POLICY_VAE).state, POLICY_FAILED);
    expect_nothing(self, 5000);
}

static void the_next_try_comes_later_each_time_and_success_forgets(void **state)
{
    struct fixture *self = *state;
    const uint32_t waits_ms[] = {1000, 2000, 4000, 8000, 16000, 30000, 30000};
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    for (uint32_t i = 0; i < 7; i++) {
        down(self, 0, "m", STATUS_INTERNAL);
        demand(self, "m", 1, 0);
        expect(self, waits_ms[i] - 1, POLICY_ANSWER, "queue_depth");
        assert_int_equal(self->decisions[0].retry_after_ms, 1);
        demand(self, "m", 1, 0);
        expect(self, 1, POLICY_SPAWN, "queue_depth");
    }
    up(self, 1, "m");
    down(self, 1, "m", STATUS_OK);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    down(self, 0, "m", STATUS_INTERNAL);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_ANSWER, "queue_depth");
    assert_int_equal(self->decisions[0].retry_after_ms, 1000);
}

static void a_second_worker_that_failed_answers_nobody(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 5, 1);
    step(self, 0);
    expect(self, 1000, POLICY_SPAWN, "queue_depth");
    down(self, 0, "m", STATUS_INTERNAL);
    expect_nothing(self, 500);
    expect(self, 500, POLICY_SPAWN, "queue_depth");
    assert_int_equal(service(self, "m", POLICY_VAE).state, POLICY_SERVING);
}

static void a_start_that_lacked_memory_makes_room_instead_of_answering(void **state)
{
    struct fixture *self = *state;
    tell_model(self, "n", 1000 * MB, NULL);
    up(self, 1, "n");
    demand(self, "n", 0, 0);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    down(self, 0, "m", STATUS_RESOURCE_EXHAUSTED);
    expect(self, 0, POLICY_RETIRE, "memory_free_bytes");
    assert_string_equal(self->decisions[0].model, "n");
    down(self, 1, "n", STATUS_OK);
    expect(self, 1000, POLICY_SPAWN, "queue_depth");
}

static void an_executor_that_never_answers_a_spawn_counts_as_failure(void **state)
{
    struct fixture *self = *state;
    demand(self, "m", 1, 0);
    step(self, 0);
    expect_nothing(self, 299999);
    expect(self, 1, POLICY_ANSWER, "queue_depth");
    assert_int_equal(self->decisions[0].code, STATUS_DEADLINE_EXCEEDED);
}

static void no_workers_allowed_is_an_answer(void **state)
{
    struct fixture *self = *state;
    self->settings.limits[POLICY_VAE].workers_max = 0;
    policy_change(self->policy, &self->settings);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_ANSWER, "queue_depth");
    assert_int_equal(self->decisions[0].code, STATUS_FAILED_PRECONDITION);
}

// ---- devices that die

static void a_dead_device_takes_its_workers_and_spawns_with_it(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    demand(self, "m", 2, 1);
    step(self, 0);
    expect(self, 1000, POLICY_SPAWN, "queue_depth");
    policy_tell_device_down(self->policy, "cpu", EPOCH, false);
    assert_int_equal(service(self, "m", POLICY_VAE).workers, 0);
    assert_int_equal(service(self, "m", POLICY_VAE).state, POLICY_IDLE);
    expect_nothing(self, 0);
    tell_device(self, "cpu", EPOCH + 1, 8192 * MB);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
}

static void the_last_words_of_a_dead_executor_bring_nobody_back(void **state)
{
    struct fixture *self = *state;
    policy_tell_device_down(self->policy, "cpu", EPOCH, false);
    tell_device(self, "cpu", EPOCH, 8192 * MB);
    demand(self, "m", 1, 0);
    expect_nothing(self, 1000);
}

static void a_device_that_cannot_be_reached_gets_spawns_when_it_reports_again(void **state)
{
    struct fixture *self = *state;
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    policy_tell_device_silent(self->policy, "cpu");
    expect_nothing(self, 1000);
    tell_device(self, "cpu", EPOCH, 8192 * MB);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
}

static void late_news_of_an_old_death_kills_no_successor(void **state)
{
    struct fixture *self = *state;
    tell_device(self, "cpu", EPOCH + 1, 8192 * MB);
    policy_tell_device_down(self->policy, "cpu", EPOCH, false);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
}

static void a_new_epoch_forgets_the_old_workers_but_not_its_own(void **state)
{
    struct fixture *self = *state;
    start_busy(self);
    struct policy_worker young = worker_of(number(EPOCH + 1, 1), "m", "cpu");
    policy_tell_worker_up(self->policy, &young, self->now_ms, &self->error);
    assert_int_equal(service(self, "m", POLICY_VAE).workers, 2);
    tell_device(self, "cpu", EPOCH + 1, 8192 * MB);
    assert_int_equal(service(self, "m", POLICY_VAE).workers, 1);
}

static void a_device_given_up_fails_its_services(void **state)
{
    struct fixture *self = *state;
    policy_tell_device_down(self->policy, "cpu", EPOCH, true);
    assert_int_equal(service(self, "m", POLICY_VAE).state, POLICY_FAILED);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_ANSWER, "queue_depth");
    assert_int_equal(self->decisions[0].code, STATUS_UNAVAILABLE);
}

static void an_executor_that_dies_before_it_reported_is_down_too(void **state)
{
    struct fixture *self = *state;
    policy_tell_device_down(self->policy, "cpu", EPOCH, false);
    policy_tell_device_down(self->policy, "cpu", EPOCH + 1, true);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_ANSWER, "queue_depth");
    assert_int_equal(service(self, "m", POLICY_VAE).state, POLICY_FAILED);
}

static void one_device_given_up_of_two_fails_nothing(void **state)
{
    struct fixture *self = *state;
    tell_device(self, "cpu:1", 9, 8192 * MB);
    policy_tell_device_down(self->policy, "cpu", EPOCH, true);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    assert_string_equal(self->decisions[0].device, "cpu:1");
}

static void tell_refusing(struct fixture *self, const char *name, enum policy_group group)
{
    struct policy_device device = {.epoch = 9, .memory_free_bytes = 99999 * MB};
    device.refuses[group] = true;
    snprintf(device.name, sizeof device.name, "%s", name);
    assert_int_equal(policy_tell_device(self->policy, &device, &self->error), STATUS_OK);
}

static void a_device_gets_no_group_that_the_configuration_keeps_off_it(void **state)
{
    struct fixture *self = *state;
    tell_refusing(self, "cuda:0", POLICY_VAE);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    assert_string_equal(self->decisions[0].device, "cpu");
}

static void devices_that_do_not_serve_a_group_give_it_no_hope(void **state)
{
    struct fixture *self = *state;
    tell_refusing(self, "cuda:0", POLICY_VAE);
    policy_tell_device_down(self->policy, "cpu", EPOCH, true);
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_ANSWER, "queue_depth");
    assert_int_equal(self->decisions[0].code, STATUS_UNAVAILABLE);
}

static void workers_of_a_core_that_restarted_are_taken_in_again(void **state)
{
    struct fixture *self = *state;
    struct policy_worker worker = worker_of(number(EPOCH, 7), "later", "cpu");
    policy_tell_worker_up(self->policy, &worker, self->now_ms, &self->error);
    policy_tell_worker_up(self->policy, &worker, self->now_ms, &self->error);
    tell_model(self, "later", 1000 * MB, "cpu");
    assert_int_equal(service(self, "later", POLICY_VAE).workers, 1);
    demand(self, "later", 1, 0);
    expect_nothing(self, 0);
}

// ---- limits of the tables

static void full_tables_are_answers(void **state)
{
    struct fixture *self = *state;
    char name[32];
    for (uint32_t i = 1; i < POLICY_MODELS_MAX; i++) {
        snprintf(name, sizeof name, "model-%u", i);
        tell_model(self, name, MB, NULL);
    }
    struct policy_model model = {.name = "one too many"};
    assert_int_equal(policy_tell_model(self->policy, &model, &self->error),
                     STATUS_RESOURCE_EXHAUSTED);
    policy_tell_model_removed(self->policy, "model-1");
    assert_int_equal(policy_tell_model(self->policy, &model, &self->error), STATUS_OK);
    for (uint64_t i = 0; i < POLICY_WORKERS_MAX; i++) up(self, i + 1, "m");
    struct policy_worker worker = worker_of(number(EPOCH, 9999), "m", "cpu");
    assert_int_equal(policy_tell_worker_up(self->policy, &worker, 0, &self->error),
                     STATUS_RESOURCE_EXHAUSTED);
    for (uint32_t i = 1; i < POLICY_DEVICES_MAX; i++) {
        snprintf(name, sizeof name, "cpu:%u", i);
        tell_device(self, name, 1, MB);
    }
    struct policy_device device = {.name = "cpu:99"};
    assert_int_equal(policy_tell_device(self->policy, &device, &self->error),
                     STATUS_RESOURCE_EXHAUSTED);
}

static void many_models_that_want_the_last_memory_get_it_in_turn(void **state)
{
    struct fixture *self = *state;
    char name[32];
    tell_device(self, "cpu", EPOCH, 1612 * MB);
    uint32_t first[4] = {0};
    for (int round = 0; round < 512; round++) {
        for (uint32_t i = 0; i < 4; i++) {
            snprintf(name, sizeof name, "turn-%u", i);
            tell_model(self, name, 1000 * MB, NULL);
            demand(self, name, 1, 0);
        }
        step(self, 100);
        for (uint32_t k = 0; k < self->count; k++) {
            if (self->decisions[k].action != POLICY_SPAWN) continue;
            first[self->decisions[k].model[5] - '0'] += 1;
            down(self, 0, self->decisions[k].model, STATUS_RESOURCE_EXHAUSTED);
        }
        self->now_ms += 30000;
    }
    for (uint32_t i = 0; i < 4; i++) assert_true(first[i] > 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(nothing_happens_without_work),
        TEST(the_first_job_spawns_at_once_and_only_one),
        TEST(a_margin_that_is_auto_is_each_device_s_own),
        TEST(a_worker_that_came_makes_its_service_serve),
        TEST(demand_for_an_unknown_model_changes_nothing),
        TEST(a_group_that_the_node_does_not_serve_is_no_service),
        TEST(without_a_device_work_waits),
        TEST(min_workers_are_kept_up_without_work),
        TEST(a_long_queue_spawns_one_more_after_the_delay),
        TEST(a_queue_that_was_short_for_a_moment_starts_the_delay_again),
        TEST(one_old_job_spawns_one_more_by_its_age),
        TEST(nobody_is_spawned_above_max),
        TEST(another_device_comes_before_a_second_lane),
        TEST(a_second_lane_is_taken_where_the_other_device_is_full),
        TEST(a_second_lane_on_one_device_needs_no_second_copy_of_the_weights),
        TEST(weights_that_are_loaded_are_not_planned_again),
        TEST(an_idle_worker_retires_after_the_timeout),
        TEST(a_worker_that_works_never_retires),
        TEST(a_job_in_between_starts_the_timeout_again),
        TEST(the_second_worker_retires_when_one_was_enough_for_the_timeout),
        TEST(two_idle_workers_retire_one_after_the_other),
        TEST(nobody_retires_below_min),
        TEST(a_worker_that_came_late_gets_its_whole_timeout),
        TEST(a_lower_max_retires_the_worker_that_is_too_many),
        TEST(a_model_that_was_taken_back_keeps_no_workers),
        TEST(without_memory_nobody_is_spawned_and_the_refusal_is_told_once),
        TEST(those_who_starve_are_answered_after_five_seconds),
        TEST(nobody_starves_while_a_worker_is_there),
        TEST(a_spawn_under_way_takes_its_memory_already),
        TEST(the_configured_limit_counts_like_memory),
        TEST(an_idle_worker_of_another_model_makes_room),
        TEST(a_worker_that_works_makes_no_room),
        TEST(min_workers_make_no_room),
        TEST(nobody_makes_room_that_would_not_be_enough),
        TEST(the_longest_idle_makes_room_first),
        TEST(one_more_worker_takes_no_room_from_a_service_that_just_worked),
        TEST(weights_that_may_take_half_are_tried_where_the_file_s_size_does_not_fit),
        TEST(an_executor_that_refuses_says_what_is_planned_from_then_on),
        TEST(an_idle_worker_makes_room_for_weights_that_may_take_half),
        TEST(a_device_that_fits_comes_before_one_that_may),
        TEST(idle_weights_make_as_much_room_as_they_take),
        TEST(a_worker_that_failed_to_start_answers_those_who_wait),
        TEST(the_next_try_comes_later_each_time_and_success_forgets),
        TEST(a_second_worker_that_failed_answers_nobody),
        TEST(a_start_that_lacked_memory_makes_room_instead_of_answering),
        TEST(an_executor_that_never_answers_a_spawn_counts_as_failure),
        TEST(no_workers_allowed_is_an_answer),
        TEST(a_dead_device_takes_its_workers_and_spawns_with_it),
        TEST(the_last_words_of_a_dead_executor_bring_nobody_back),
        TEST(a_device_that_cannot_be_reached_gets_spawns_when_it_reports_again),
        TEST(late_news_of_an_old_death_kills_no_successor),
        TEST(a_new_epoch_forgets_the_old_workers_but_not_its_own),
        TEST(a_device_given_up_fails_its_services),
        TEST(an_executor_that_dies_before_it_reported_is_down_too),
        TEST(one_device_given_up_of_two_fails_nothing),
        TEST(a_device_gets_no_group_that_the_configuration_keeps_off_it),
        TEST(devices_that_do_not_serve_a_group_give_it_no_hope),
        TEST(workers_of_a_core_that_restarted_are_taken_in_again),
        TEST(full_tables_are_answers),
        TEST(many_models_that_want_the_last_memory_get_it_in_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
