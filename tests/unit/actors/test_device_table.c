// Who is behind a connection, and the texts of events.

#include "actors/device_table.h"

#include <stdio.h>
#include <string.h>

#include "actors/event.h"
#include "tests/test.h"

static luna_DeviceReport report(const char *name, uint64_t epoch)
{
    luna_DeviceReport made = luna_DeviceReport_init_zero;
    text_set(made.name, sizeof made.name, name);
    made.epoch = epoch;
    return made;
}

static bool tell(struct device_table *table, const char *connection, const char *name,
                 uint64_t epoch)
{
    const luna_DeviceReport made = report(name, epoch);
    struct bytes bytes = {.data = connection, .size = strlen(connection)};
    return device_table_report(table, bytes, &made);
}

static void a_device_is_new_once(void **state)
{
    (void)state;
    struct device_table table = {.count = 0};
    assert_true(tell(&table, "aaaaa", "cpu", 1));
    assert_false(tell(&table, "aaaaa", "cpu", 1));
    assert_int_equal(table.count, 1);
}

static void a_new_executor_takes_its_predecessors_entry(void **state)
{
    (void)state;
    struct device_table table = {.count = 0};
    tell(&table, "aaaaa", "cpu", 1);
    assert_true(tell(&table, "bbbbb", "cpu", 2));
    assert_int_equal(table.count, 1);
    assert_null(device_table_find(&table, (struct bytes){.data = "aaaaa", .size = 5}));
    struct device_entry *entry =
        device_table_find(&table, (struct bytes){.data = "bbbbb", .size = 5});
    assert_non_null(entry);
    assert_int_equal(entry->report.epoch, 2);
    assert_ptr_equal(device_table_find_name(&table, "cpu"), entry);
}

static void late_news_of_a_death_removes_no_successor(void **state)
{
    (void)state;
    struct device_table table = {.count = 0};
    tell(&table, "bbbbb", "cpu", 2);
    tell(&table, "ccccc", "cpu:1", 3);
    device_table_remove(&table, "cpu", 1);
    assert_int_equal(table.count, 2);
    device_table_remove(&table, "cpu", 2);
    assert_int_equal(table.count, 1);
    assert_null(device_table_find_name(&table, "cpu"));
    assert_non_null(device_table_find_name(&table, "cpu:1"));
}

static void a_full_table_and_a_strange_connection_are_left_aside(void **state)
{
    (void)state;
    struct device_table table = {.count = 0};
    char name[16];
    for (uint32_t i = 0; i <= DEVICE_TABLE_MAX; i++) {
        snprintf(name, sizeof name, "cpu:%u", i);
        assert_int_equal(tell(&table, name, name, i + 1), i < DEVICE_TABLE_MAX);
    }
    assert_int_equal(table.count, DEVICE_TABLE_MAX);
    assert_false(tell(&table, "", "cpu:0", 99));
    assert_false(tell(&table, "a connection of more than 32 bytes", "cpu:0", 99));
}

static void texts_are_cut_at_a_characters_border(void **state)
{
    (void)state;
    char text[6];
    text_set(text, sizeof text, "abc");
    assert_string_equal(text, "abc");
    text_set(text, sizeof text, "abcdefgh");
    assert_string_equal(text, "abcde");
    text_set(text, sizeof text, "abcd\xc3\xa4");
    assert_string_equal(text, "abcd");
    text_set(text, sizeof text, "abc\xc3\xa4");
    assert_string_equal(text, "abc\xc3\xa4");
    text_set(text, sizeof text, "ab\xe2\x82\xac\xe2\x82\xac");
    assert_string_equal(text, "ab\xe2\x82\xac");
    text_set(text, sizeof text, "");
    assert_string_equal(text, "");
}

static void an_event_knows_its_time_topic_and_actor(void **state)
{
    (void)state;
    luna_Letter letter = event_make("scaling.up", "scaler", "one more");
    assert_int_equal(letter.which_letter, luna_Letter_event_tag);
    assert_string_equal(letter.letter.event.topic, "scaling.up");
    assert_string_equal(letter.letter.event.actor, "scaler");
    assert_string_equal(letter.letter.event.message, "one more");
    assert_true(letter.letter.event.time_unix_ms > 1500000000000u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_is_new_once),
        cmocka_unit_test(a_new_executor_takes_its_predecessors_entry),
        cmocka_unit_test(late_news_of_a_death_removes_no_successor),
        cmocka_unit_test(a_full_table_and_a_strange_connection_are_left_aside),
        cmocka_unit_test(texts_are_cut_at_a_characters_border),
        cmocka_unit_test(an_event_knows_its_time_topic_and_actor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
