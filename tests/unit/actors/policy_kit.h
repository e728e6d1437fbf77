// policy_kit.h - what the scaler is told and what it decides, on a clock that the test turns.

#ifndef TESTS_UNIT_ACTORS_POLICY_KIT_H
#define TESTS_UNIT_ACTORS_POLICY_KIT_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "actors/policy.h"
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

static inline void tell_device(struct fixture *self, const char *name, uint64_t epoch,
                               uint64_t free_bytes)
{
    struct policy_device device = {.epoch = epoch, .memory_free_bytes = free_bytes};
    snprintf(device.name, sizeof device.name, "%s", name);
    assert_int_equal(policy_tell_device(self->policy, &device, &self->error), STATUS_OK);
}

static inline void tell_model(struct fixture *self, const char *name, uint64_t weights_bytes,
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

static inline int setup(void **state)
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

static inline int teardown(void **state)
{
    struct fixture *self = *state;
    policy_destroy(&self->policy);
    free(self);
    return 0;
}

static inline void demand(struct fixture *self, const char *model, uint32_t depth, uint32_t running)
{
    struct policy_demand told = {.depth = depth, .running = running, .needs_bytes = 100 * MB};
    policy_tell_demand(self->policy, POLICY_VAE, model, &told, self->now_ms);
}

static inline struct policy_worker worker_of(uint64_t number, const char *model, const char *device)
{
    struct policy_worker worker = {.worker = number, .group = POLICY_VAE};
    snprintf(worker.model, sizeof worker.model, "%s", model);
    snprintf(worker.device, sizeof worker.device, "%s", device);
    return worker;
}

static inline uint64_t number(uint64_t epoch, uint64_t of)
{
    return epoch << 16 | of;
}

static inline void up(struct fixture *self, uint64_t of, const char *model)
{
    struct policy_worker worker = worker_of(number(EPOCH, of), model, "cpu");
    assert_int_equal(policy_tell_worker_up(self->policy, &worker, self->now_ms, &self->error),
                     STATUS_OK);
}

static inline void down(struct fixture *self, uint64_t of, const char *model, enum status code)
{
    struct policy_worker worker = worker_of(of == 0 ? 0 : number(EPOCH, of), model, "cpu");
    policy_tell_worker_down(self->policy, &worker, code, "the file is broken", self->now_ms);
}

// The executor has said what the model's weights take, by a worker that was not to be.
static inline void tell_weights(struct fixture *self, const char *model, uint64_t bytes)
{
    struct policy_worker worker = worker_of(number(EPOCH, 99), model, "cpu");
    worker.weights_bytes = bytes;
    policy_tell_worker_down(self->policy, &worker, STATUS_OK, "retired", self->now_ms);
}

// Moves the time and takes one step.
static inline uint32_t step(struct fixture *self, uint64_t by_ms)
{
    self->now_ms += by_ms;
    self->count = policy_step(self->policy, self->now_ms, self->decisions, 64);
    return self->count;
}

static inline void expect(struct fixture *self, uint64_t by_ms, enum policy_action action,
                          const char *signal)
{
    assert_int_equal(step(self, by_ms), 1);
    assert_int_equal(self->decisions[0].action, action);
    assert_string_equal(self->decisions[0].signal, signal);
}

static inline void expect_nothing(struct fixture *self, uint64_t by_ms)
{
    assert_int_equal(step(self, by_ms), 0);
}

static inline struct policy_service service(struct fixture *self, const char *model,
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
static inline void start_busy(struct fixture *self)
{
    demand(self, "m", 1, 0);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    up(self, 1, "m");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

#endif  // TESTS_UNIT_ACTORS_POLICY_KIT_H
