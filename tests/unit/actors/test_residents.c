// test_residents.c - what a device holds is held while it is used, and goes when room is wanted.

#include "actors/residents.h"

#include <stdlib.h>
#include <string.h>

#include "tests/test.h"

static int ended;  // values that went

static void on_end(void *context, void *value)
{
    (void)context;
    ended += 1;
    free(value);
}

static struct residents *new_table(void)
{
    struct residents *table = NULL;
    ended = 0;
    assert_int_equal(residents_create(&table, on_end, NULL, NULL), STATUS_OK);
    residents_check(table);
    return table;
}

static struct bytes key_of(const char *text)
{
    return (struct bytes){.data = text, .size = strlen(text)};
}

// One that is made of so many bytes and used once.
static struct resident *make(struct residents *table, const char *key, uint64_t bytes, bool keep)
{
    struct resident *resident = residents_add(table, table, key_of(key));
    assert_non_null(resident);
    resident->keep = keep;
    resident->state = RESIDENT_MAKING;
    residents_ready(table, resident, malloc(1), bytes);
    residents_check(table);
    return resident;
}

static void it_stays_when_nobody_uses_it(void **state)
{
    (void)state;
    struct residents *table = new_table();
    struct resident *a = make(table, "a", 10, true);
    residents_release(table, a);
    assert_ptr_equal(residents_find(table, table, key_of("a")), a);
    assert_null(residents_find(table, &ended, key_of("a")));  // another model's
    assert_int_equal(residents_bytes(table), 10);
    residents_destroy(&table);
    assert_int_equal(ended, 1);
}

static void it_goes_with_its_last_use_when_it_was_made_for_one(void **state)
{
    (void)state;
    struct residents *table = new_table();
    struct resident *a = make(table, "a", 10, false);
    residents_hold(table, a);
    residents_release(table, a);
    assert_int_equal(ended, 0);
    residents_release(table, a);
    residents_check(table);
    assert_int_equal(ended, 1);
    assert_int_equal(residents_bytes(table), 0);
    residents_destroy(&table);
}

static void what_is_doomed_is_found_by_nobody_and_lives_while_it_is_used(void **state)
{
    (void)state;
    struct residents *table = new_table();
    struct resident *a = make(table, "a", 10, true);
    residents_doom(table, a);
    assert_null(residents_find(table, table, key_of("a")));
    assert_int_equal(ended, 0);
    struct resident *other = make(table, "a", 20, true);
    assert_ptr_not_equal(other, a);
    residents_release(table, a);
    residents_check(table);
    assert_int_equal(ended, 1);
    residents_release(table, other);
    residents_doom(table, other);
    assert_int_equal(ended, 2);
    residents_destroy(&table);
}

static void the_least_recently_used_goes_first_and_nothing_that_is_used(void **state)
{
    (void)state;
    struct residents *table = new_table();
    struct resident *a = make(table, "a", 1, true);
    struct resident *b = make(table, "b", 2, true);
    struct resident *c = make(table, "c", 4, true);
    residents_release(table, b);
    residents_release(table, c);
    residents_hold(table, b);
    residents_release(table, b);
    assert_true(residents_evict_one(table));
    assert_null(residents_find(table, table, key_of("c")));
    assert_true(residents_evict_one(table));
    assert_false(residents_evict_one(table));
    assert_int_equal(residents_bytes(table), 1);
    residents_release(table, a);
    residents_destroy(&table);
    assert_int_equal(ended, 3);
}

static void what_is_being_made_outlives_those_who_asked(void **state)
{
    (void)state;
    struct residents *table = new_table();
    struct resident *a = residents_add(table, table, key_of("a"));
    a->keep = true;
    a->state = RESIDENT_MAKING;
    residents_weigh(table, a, 10);
    residents_release(table, a);
    residents_check(table);
    assert_false(residents_evict_one(table));
    residents_ready(table, a, malloc(1), 12);
    residents_settle(table, a);
    assert_int_equal(residents_count(table), 1);
    assert_int_equal(residents_bytes(table), 12);
    struct resident *b = residents_add(table, table, key_of("b"));
    residents_release(table, b);  // nobody made it, nobody wants it
    assert_int_equal(residents_count(table), 1);
    residents_destroy(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_stays_when_nobody_uses_it),
        cmocka_unit_test(it_goes_with_its_last_use_when_it_was_made_for_one),
        cmocka_unit_test(what_is_doomed_is_found_by_nobody_and_lives_while_it_is_used),
        cmocka_unit_test(the_least_recently_used_goes_first_and_nothing_that_is_used),
        cmocka_unit_test(what_is_being_made_outlives_those_who_asked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
