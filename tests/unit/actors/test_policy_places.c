// Which device gets a worker where the tensors of jobs lie on one.

#include "tests/unit/actors/policy_kit.h"

#define OTHER_EPOCH 9u

// So many jobs of "m" came whose tensors lie on the device, and `depth` of them wait.
static void tell_place(struct fixture *self, const char *device, uint64_t jobs_total,
                       uint32_t depth)
{
    struct policy_demand told = {.depth = depth, .needs_bytes = 100 * MB, .devices_count = 1};
    told.devices[0].jobs_total = jobs_total;
    told.devices[0].depth = depth;
    snprintf(told.devices[0].name, sizeof told.devices[0].name, "%s", device);
    policy_tell_demand(self->policy, POLICY_VAE, "m", &told, self->now_ms);
}

static void up_there(struct fixture *self, uint64_t of, const char *device, uint64_t epoch)
{
    struct policy_worker worker = worker_of(number(epoch, of), "m", device);
    assert_int_equal(policy_tell_worker_up(self->policy, &worker, self->now_ms, &self->error),
                     STATUS_OK);
}

// A worker on "cpu", and another device with so much memory.
static void start_with_two(struct fixture *self, uint64_t free_bytes)
{
    tell_device(self, "cpu:1", OTHER_EPOCH, free_bytes);
    start_busy(self);
    assert_string_equal(self->decisions[0].device, "cpu");
    demand(self, "m", 0, 0);
    expect_nothing(self, 0);
}

// Jobs for the other device come over the delay.
static void wish_for_the_other(struct fixture *self)
{
    tell_place(self, "cpu:1", 1, 0);
    expect_nothing(self, 1000);
    tell_place(self, "cpu:1", 2, 0);
}

static void the_first_worker_comes_where_the_tensors_lie(void **state)
{
    struct fixture *self = *state;
    tell_device(self, "cpu:1", OTHER_EPOCH, 4096 * MB);
    tell_place(self, "cpu:1", 1, 1);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    assert_string_equal(self->decisions[0].device, "cpu:1");
}

static void the_first_worker_comes_elsewhere_where_memory_lacks_there(void **state)
{
    struct fixture *self = *state;
    tell_device(self, "cpu:1", OTHER_EPOCH, 100 * MB);
    tell_place(self, "cpu:1", 1, 1);
    expect(self, 0, POLICY_SPAWN, "queue_depth");
    assert_string_equal(self->decisions[0].device, "cpu");
}

static void a_wish_that_lasts_gets_a_worker_beside_the_one_elsewhere(void **state)
{
    struct fixture *self = *state;
    start_with_two(self, 4096 * MB);
    wish_for_the_other(self);
    expect(self, 0, POLICY_SPAWN, "device_wanted_s");
    assert_string_equal(self->decisions[0].device, "cpu:1");
    assert_true(self->decisions[0].value == 1.0);
    assert_true(self->decisions[0].threshold == 1.0);
    assert_int_equal(self->decisions[0].workers, 2);
    tell_place(self, "cpu:1", 9, 0);
    expect_nothing(self, 5000);  // it is under way
    up_there(self, 1, "cpu:1", OTHER_EPOCH);
    tell_place(self, "cpu:1", 10, 0);
    expect_nothing(self, 5000);
}

static void one_job_is_no_wish_that_lasts(void **state)
{
    struct fixture *self = *state;
    start_with_two(self, 4096 * MB);
    tell_place(self, "cpu:1", 1, 0);
    expect_nothing(self, 1000);
    tell_place(self, "cpu:1", 1, 0);  // said again
    expect_nothing(self, 1000);
}

static void jobs_that_come_too_seldom_are_no_wish_that_lasts(void **state)
{
    struct fixture *self = *state;
    start_with_two(self, 4096 * MB);
    self->settings.limits[POLICY_VAE].workers_min = 1;  // that none retires
    policy_change(self->policy, &self->settings);
    for (uint64_t i = 1; i < 5; i++) {
        tell_place(self, "cpu:1", i, 0);
        expect_nothing(self, 30000);
    }
}

static void a_wish_gets_nobody_above_max(void **state)
{
    struct fixture *self = *state;
    self->settings.limits[POLICY_VAE].workers_max = 1;
    policy_change(self->policy, &self->settings);
    start_with_two(self, 4096 * MB);
    wish_for_the_other(self);
    expect_nothing(self, 5000);
}

static void a_wish_gets_nobody_where_the_configuration_keeps_the_group_off(void **state)
{
    struct fixture *self = *state;
    struct policy_device device = {
        .epoch = OTHER_EPOCH, .memory_free_bytes = 4096 * MB, .refuses = {[POLICY_VAE] = true}};
    start_with_two(self, 4096 * MB);
    snprintf(device.name, sizeof device.name, "cpu:1");
    assert_int_equal(policy_tell_device(self->policy, &device, &self->error), STATUS_OK);
    wish_for_the_other(self);
    expect_nothing(self, 5000);
}

static void a_wish_is_refused_where_memory_lacks_and_granted_when_there_is_some(void **state)
{
    struct fixture *self = *state;
    start_with_two(self, 900 * MB);
    wish_for_the_other(self);
    expect(self, 0, POLICY_REFUSE, "memory_free_bytes");
    assert_string_equal(self->decisions[0].device, "cpu:1");
    expect_nothing(self, 1000);  // told once
    tell_device(self, "cpu:1", OTHER_EPOCH, 4096 * MB);
    expect(self, 0, POLICY_SPAWN, "device_wanted_s");
}

static void a_wish_makes_no_worker_of_another_service_go(void **state)
{
    struct fixture *self = *state;
    start_with_two(self, 900 * MB);
    struct policy_device device = {
        .name = "cpu:1", .epoch = OTHER_EPOCH, .memory_free_bytes = 900 * MB};
    device.used_bytes = 4000 * MB;
    assert_int_equal(policy_tell_device(self->policy, &device, &self->error), STATUS_OK);
    tell_model(self, "idle", 3000 * MB, "cpu:1");
    struct policy_worker worker = worker_of(number(OTHER_EPOCH, 7), "idle", "cpu:1");
    assert_int_equal(policy_tell_worker_up(self->policy, &worker, self->now_ms, &self->error),
                     STATUS_OK);
    wish_for_the_other(self);
    expect(self, 0, POLICY_REFUSE, "memory_free_bytes");
    expect_nothing(self, 3000);
}

static void a_start_that_failed_ends_the_wish(void **state)
{
    struct fixture *self = *state;
    start_with_two(self, 4096 * MB);
    wish_for_the_other(self);
    expect(self, 0, POLICY_SPAWN, "device_wanted_s");
    struct policy_worker worker = worker_of(0, "m", "cpu:1");
    policy_tell_worker_down(self->policy, &worker, STATUS_RESOURCE_EXHAUSTED, "full", self->now_ms);
    expect_nothing(self, 5000);
    tell_place(self, "cpu:1", 3, 0);
    expect_nothing(self, 1000);
    tell_place(self, "cpu:1", 4, 0);
    expect(self, 0, POLICY_SPAWN, "device_wanted_s");
}

static void the_worker_where_tensors_lie_stays_and_the_spare_one_retires(void **state)
{
    struct fixture *self = *state;
    start_with_two(self, 4096 * MB);
    wish_for_the_other(self);
    expect(self, 0, POLICY_SPAWN, "device_wanted_s");
    up_there(self, 1, "cpu:1", OTHER_EPOCH);
    for (uint64_t i = 0; i < 29; i++) {
        tell_place(self, "cpu:1", 3 + i, 1);
        tell_place(self, "cpu:1", 3 + i, 0);
        expect_nothing(self, 1000);
    }
    expect(self, 1000, POLICY_RETIRE, "idle_s");
    assert_int_equal(self->decisions[0].worker, number(EPOCH, 1));
    down(self, 1, "m", STATUS_OK);
    tell_place(self, "cpu:1", 40, 1);
    tell_place(self, "cpu:1", 40, 0);
    expect_nothing(self, 29999);
    expect(self, 1, POLICY_RETIRE, "idle_s");  // nobody comes any more
    assert_int_equal(self->decisions[0].worker, number(OTHER_EPOCH, 1));
}

static void workers_that_are_all_wanted_where_they_are_stay(void **state)
{
    struct fixture *self = *state;
    start_with_two(self, 4096 * MB);
    up_there(self, 1, "cpu:1", OTHER_EPOCH);
    for (uint64_t i = 1; i < 60; i++) {
        tell_place(self, "cpu", i, 0);
        tell_place(self, "cpu:1", i, 0);
        expect_nothing(self, 1000);
    }
}

static void those_who_wait_for_a_device_get_a_second_lane_there(void **state)
{
    struct fixture *self = *state;
    start_with_two(self, 4096 * MB);
    tell_place(self, "cpu", 5, 5);
    expect_nothing(self, 0);
    expect(self, 1000, POLICY_SPAWN, "queue_depth");
    assert_string_equal(self->decisions[0].device, "cpu");
}

static void those_who_wait_for_any_device_get_the_other_one(void **state)
{
    struct fixture *self = *state;
    start_with_two(self, 4096 * MB);
    tell_place(self, "cpu", 5, 5);
    tell_place(self, "cpu", 5, 0);
    demand(self, "m", 5, 1);
    expect_nothing(self, 0);
    expect(self, 1000, POLICY_SPAWN, "queue_depth");
    assert_string_equal(self->decisions[0].device, "cpu:1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_first_worker_comes_where_the_tensors_lie),
        TEST(the_first_worker_comes_elsewhere_where_memory_lacks_there),
        TEST(a_wish_that_lasts_gets_a_worker_beside_the_one_elsewhere),
        TEST(one_job_is_no_wish_that_lasts),
        TEST(jobs_that_come_too_seldom_are_no_wish_that_lasts),
        TEST(a_wish_gets_nobody_above_max),
        TEST(a_wish_gets_nobody_where_the_configuration_keeps_the_group_off),
        TEST(a_wish_is_refused_where_memory_lacks_and_granted_when_there_is_some),
        TEST(a_wish_makes_no_worker_of_another_service_go),
        TEST(a_start_that_failed_ends_the_wish),
        TEST(the_worker_where_tensors_lie_stays_and_the_spare_one_retires),
        TEST(workers_that_are_all_wanted_where_they_are_stay),
        TEST(those_who_wait_for_a_device_get_a_second_lane_there),
        TEST(those_who_wait_for_any_device_get_the_other_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
