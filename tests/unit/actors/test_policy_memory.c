// test_policy_memory.c - what the scaler does where memory is short, and what it takes weights to
// need.

#include "tests/unit/actors/policy_kit.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
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
        TEST(many_models_that_want_the_last_memory_get_it_in_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
