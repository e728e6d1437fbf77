// test_policy_failures.c - workers that fail to start, and devices that die.

#include "tests/unit/actors/policy_kit.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
