// test_policy.c - whom the scaler spawns and retires, and when.

#include "tests/unit/actors/policy_kit.h"

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
        TEST(full_tables_are_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
