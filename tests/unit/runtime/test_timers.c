// test_timers.c - timers keep their time, whatever callbacks take; descriptors call while readable.

#include <sys/eventfd.h>
#include <unistd.h>

#include "runtime/loop.h"
#include "tests/test.h"

static void burn(int microseconds)
{
    uint64_t until = clock_ns(clock_system()) + (uint64_t)microseconds * 1000u;
    while (clock_ns(clock_system()) < until) continue;
}

struct clockwork {
    struct loop *loop;              // it runs on
    struct loop_timer *timers[3];   // see the tests
    struct loop_descriptor *watch;  // on descriptor
    int descriptor;                 // eventfd
    int calls;                      // of callbacks
    uint64_t called_ns;             // the last time
};

static void on_restart(void *arg)
{
    struct clockwork *self = arg;
    self->calls++;
    if (self->calls < 3) {
        loop_timer_restart(self->timers[0], 1);
    } else {
        loop_timer_remove(&self->timers[0]);
        loop_timer_restart(self->timers[1], 0);
        loop_timer_remove(&self->timers[1]);      // due at once, never called
        loop_timer_restart(self->timers[2], 20);  // time enough for a removed one to fire
    }
}

static void on_never(void *arg)
{
    (void)arg;
    fail_msg("a removed timer fired");
}

static void on_stop(void *arg)
{
    struct clockwork *self = arg;
    self->called_ns = clock_ns(clock_system());
    loop_stop(self->loop);
}

static void timers_can_be_restarted_and_removed_by_their_callbacks(void **state)
{
    (void)state;
    struct clockwork work = {0};
    assert_int_equal(loop_create(&work.loop, clock_system(), NULL), STATUS_OK);
    loop_add_timer(work.loop, 0, 0, on_restart, &work, &work.timers[0], NULL);
    loop_add_timer(work.loop, 3600000, 0, on_never, &work, &work.timers[1], NULL);
    loop_add_timer(work.loop, 3600000, 0, on_stop, &work, &work.timers[2], NULL);
    loop_run(work.loop);
    assert_int_equal(work.calls, 3);
    assert_null(work.timers[0]);
    assert_null(work.timers[1]);
    loop_timer_remove(&work.timers[2]);
    loop_timer_remove(&work.timers[2]);  // NULL is allowed
    loop_destroy(&work.loop);
}

static void a_timer_never_fires_early(void **state)
{
    (void)state;
    struct clockwork work = {0};
    assert_int_equal(loop_create(&work.loop, clock_system(), NULL), STATUS_OK);
    uint64_t start_ns = clock_ns(clock_system());
    loop_add_timer(work.loop, 7, 0, on_stop, &work, &work.timers[0], NULL);
    loop_run(work.loop);
    assert_true(work.called_ns - start_ns >= 7000000u);
    loop_destroy(&work.loop);
}

static void on_slow_restart(void *arg)
{
    struct clockwork *self = arg;
    if (self->calls++ == 0) {
        burn(20000);
        self->called_ns = clock_ns(clock_system());
        loop_timer_restart(self->timers[0], 10);
    } else {
        self->called_ns = clock_ns(clock_system()) - self->called_ns;
        loop_stop(self->loop);
    }
}

static void on_busy(void *arg)
{
    (void)arg;
}

static void a_timer_started_by_a_slow_callback_does_not_fire_early(void **state)
{
    (void)state;
    // Something else keeps the loop turning, so that it looks at its timers all the time.
    struct clockwork work = {.descriptor = eventfd(1, EFD_CLOEXEC)};
    assert_int_equal(loop_create(&work.loop, clock_system(), NULL), STATUS_OK);
    assert_int_equal(
        loop_add_descriptor(work.loop, work.descriptor, on_busy, &work, &work.watch, NULL),
        STATUS_OK);
    loop_add_timer(work.loop, 0, 0, on_slow_restart, &work, &work.timers[0], NULL);
    loop_run(work.loop);
    assert_true(work.called_ns >= 10000000u);
    loop_destroy(&work.loop);
    close(work.descriptor);
}

// Called at 10 ms, blocks until 45, is late for 20, and due again at 50.
static void on_slow_tick(void *arg)
{
    struct clockwork *self = arg;
    self->calls++;
    self->called_ns = clock_ns(clock_system());
    if (self->calls == 1) burn(35000);
    if (self->calls == 3) loop_stop(self->loop);
}

static void periods_that_were_missed_are_left_out(void **state)
{
    (void)state;
    struct clockwork work = {0};
    assert_int_equal(loop_create(&work.loop, clock_system(), NULL), STATUS_OK);
    uint64_t start_ns = clock_ns(clock_system());
    loop_add_timer(work.loop, 10, 10, on_slow_tick, &work, &work.timers[0], NULL);
    loop_run(work.loop);
    assert_true(work.called_ns - start_ns >= 50000000u);
    loop_destroy(&work.loop);
}

static void a_millisecond_can_be_as_short_as_one(void **state)
{
    (void)state;
    struct clockwork work = {0};
    uint64_t shortest_ns = UINT64_MAX;
    assert_int_equal(loop_create(&work.loop, clock_system(), NULL), STATUS_OK);
    loop_add_timer(work.loop, 0, 0, on_stop, &work, &work.timers[0], NULL);
    for (int i = 0; i < 50; i++) {  // the best of many: others may have the processor
        uint64_t start_ns = clock_ns(clock_system());
        loop_timer_restart(work.timers[0], 1);
        loop_run(work.loop);
        uint64_t taken_ns = work.called_ns - start_ns;
        if (taken_ns < shortest_ns) shortest_ns = taken_ns;
    }
    assert_in_range(shortest_ns, 1000000, 1800000);
    loop_destroy(&work.loop);
}

static void on_descriptor(void *arg)
{
    struct clockwork *self = arg;
    self->calls++;
    if (self->calls < 3) return;  // level-triggered: it comes back
    loop_descriptor_remove(&self->watch);
    loop_stop(self->loop);
}

static void a_descriptor_calls_until_it_is_read_or_removed(void **state)
{
    (void)state;
    struct clockwork work = {.descriptor = eventfd(1, EFD_CLOEXEC)};
    assert_int_equal(loop_create(&work.loop, clock_system(), NULL), STATUS_OK);
    assert_int_equal(
        loop_add_descriptor(work.loop, work.descriptor, on_descriptor, &work, &work.watch, NULL),
        STATUS_OK);
    loop_run(work.loop);
    assert_int_equal(work.calls, 3);
    assert_null(work.watch);
    loop_destroy(&work.loop);
    assert_true(is_open(work.descriptor));
    close(work.descriptor);
}

static void a_loop_that_was_stopped_before_it_ran_returns_at_once(void **state)
{
    (void)state;
    struct clockwork work = {0};
    struct clock clock = clock_manual(5);
    assert_int_equal(loop_create(&work.loop, &clock, NULL), STATUS_OK);
    assert_ptr_equal(loop_clock(work.loop), &clock);
    loop_add_timer(work.loop, 0, 0, on_stop, &work, &work.timers[0], NULL);
    loop_stop(work.loop);
    loop_run(work.loop);
    assert_int_equal(work.called_ns, 0);
    loop_run(work.loop);  // and then it runs
    assert_true(work.called_ns > 0);
    loop_destroy(&work.loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(timers_can_be_restarted_and_removed_by_their_callbacks),
        cmocka_unit_test(a_timer_never_fires_early),
        cmocka_unit_test(a_timer_started_by_a_slow_callback_does_not_fire_early),
        cmocka_unit_test(periods_that_were_missed_are_left_out),
        cmocka_unit_test(a_millisecond_can_be_as_short_as_one),
        cmocka_unit_test(a_descriptor_calls_until_it_is_read_or_removed),
        cmocka_unit_test(a_loop_that_was_stopped_before_it_ran_returns_at_once),
    };
    return cmocka_run_group_tests_name("timers", tests, NULL, NULL);
}
