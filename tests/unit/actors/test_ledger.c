// The one book of a device's memory, in numbers that fit a head.

#include "actors/ledger.h"

#include "actors/executor_state.h"
#include "kernels/cuda/graphs.h"
#include "tests/test.h"

// A service may have two lanes of texts unless the configuration says otherwise.
_Static_assert(2 * GRAPHS_BYTES_MAX <= ((uint64_t)EXECUTOR_MARGIN_GPU_MB << 20) / 3,
               "graphs leave most of the margin to others");

static void what_is_free_is_the_lesser_of_system_and_limit(void **state)
{
    (void)state;
    struct ledger ledger = {.system_free = 100, .limit_bytes = 0};
    assert_int_equal(ledger_free(&ledger), 100);
    ledger.limit_bytes = 60;
    assert_int_equal(ledger_free(&ledger), 60);
    ledger_weights(&ledger, 0, 50);
    assert_int_equal(ledger_free(&ledger), 10);
    ledger.system_free = 5;
    assert_int_equal(ledger_free(&ledger), 5);
}

static void more_than_is_free_is_not_promised(void **state)
{
    (void)state;
    struct ledger ledger = {.system_free = 1000, .limit_bytes = 100};
    assert_true(ledger_reserve(&ledger, 0, 70));
    assert_false(ledger_reserve(&ledger, 0, 31));
    assert_true(ledger_reserve(&ledger, 0, 30));
    assert_int_equal(ledger_free(&ledger), 0);
    assert_true(ledger_reserve(&ledger, 70, 0));
    assert_int_equal(ledger_free(&ledger), 70);
}

static void a_promise_counts_until_the_system_is_asked_again(void **state)
{
    (void)state;
    struct ledger ledger = {.system_free = 100};
    assert_true(ledger_reserve(&ledger, 0, 60));
    assert_false(ledger_reserve(&ledger, 0, 60));
    ledger.system_free = 100;
    assert_true(ledger_reserve(&ledger, 0, 60));
}

static void weights_that_took_more_than_the_limit_are_found(void **state)
{
    (void)state;
    struct ledger ledger = {.system_free = 1000, .limit_bytes = 100};
    assert_true(ledger_reserve(&ledger, 0, 40));
    assert_true(ledger_reserve(&ledger, 40, 0));
    ledger_weights(&ledger, 0, 100);
    assert_false(ledger_is_overdrawn(&ledger));
    ledger_weights(&ledger, 0, 1);
    assert_true(ledger_is_overdrawn(&ledger));
    assert_int_equal(ledger_free(&ledger), 0);
    ledger.limit_bytes = 0;
    assert_false(ledger_is_overdrawn(&ledger));
}

static void capacity_is_what_all_but_the_own_weights_could_give(void **state)
{
    (void)state;
    struct ledger ledger = {.system_free = 100, .weights_bytes = 50, .reserved_bytes = 20};
    assert_int_equal(ledger_capacity(&ledger, 30), 140);
    ledger.limit_bytes = 90;
    assert_int_equal(ledger_capacity(&ledger, 30), 60);
    assert_int_equal(ledger_capacity(&ledger, 91), 0);
}

static void a_promise_that_did_not_hold_makes_those_that_follow_smaller(void **state)
{
    (void)state;
    struct ledger ledger = {.system_free = 1000};
    assert_true(ledger_reserve(&ledger, 0, 600));
    ledger_reserve(&ledger, 600, 0);
    ledger.system_free = 1000;
    ledger_distrust(&ledger, 600);
    assert_int_equal(ledger_offer(&ledger, 0), 450);
    assert_int_equal(ledger_free(&ledger), 1000);  // what the system says is told as it is
    assert_true(ledger_reserve(&ledger, 0, 450));
    ledger_distrust(&ledger, 800);  // a larger one says nothing new
    assert_int_equal(ledger_offer(&ledger, 0), 450);
    ledger_distrust(&ledger, 200);
    assert_int_equal(ledger_offer(&ledger, 0), 150);
    assert_int_equal(ledger_offer(&ledger, 500), 150);
    assert_int_equal(ledger_capacity(&ledger, 0), 1000);
    ledger_trust(&ledger);
    assert_int_equal(ledger_offer(&ledger, 0), 550);
    assert_int_equal(ledger_offer(&ledger, 500), 1050);  // with what is idle
}

static void what_clients_hold_is_neither_free_nor_to_be_had(void **state)
{
    (void)state;
    struct ledger ledger = {.system_free = 100, .weights_bytes = 50};
    assert_false(ledger_lend(&ledger, 101));
    assert_true(ledger_lend(&ledger, 40));
    assert_int_equal(ledger_free(&ledger), 60);
    assert_int_equal(ledger_held(&ledger), 90);
    assert_int_equal(ledger_capacity(&ledger, 10), 100);
    ledger.limit_bytes = 100;
    assert_int_equal(ledger_free(&ledger), 10);
    assert_int_equal(ledger_capacity(&ledger, 10), 50);
    assert_false(ledger_lend(&ledger, 11));
    ledger_take_back(&ledger, 40);
    assert_int_equal(ledger_held(&ledger), 50);
    assert_int_equal(ledger_capacity(&ledger, 10), 90);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_clients_hold_is_neither_free_nor_to_be_had),
        cmocka_unit_test(what_is_free_is_the_lesser_of_system_and_limit),
        cmocka_unit_test(more_than_is_free_is_not_promised),
        cmocka_unit_test(a_promise_counts_until_the_system_is_asked_again),
        cmocka_unit_test(weights_that_took_more_than_the_limit_are_found),
        cmocka_unit_test(capacity_is_what_all_but_the_own_weights_could_give),
        cmocka_unit_test(a_promise_that_did_not_hold_makes_those_that_follow_smaller),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
