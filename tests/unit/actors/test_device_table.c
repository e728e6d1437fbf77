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
    return device_table_report(table, bytes, &made, 0);
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

static void who_is_expected_and_does_not_come_is_silent(void **state)
{
    (void)state;
    struct device_table table = {.count = 0};
    luna_ExecutorExpected expected = {.pid = 7, .epoch = 1};
    text_set(expected.name, sizeof expected.name, "cpu");
    device_table_expect(&table, &expected, 0);
    for (uint64_t now_ms = 250; now_ms < 1000; now_ms += 250) {
        assert_null(device_table_find_silent(&table, now_ms, 1000));
    }
    const struct device_entry *silent = device_table_find_silent(&table, 1000, 1000);
    assert_non_null(silent);
    assert_int_equal(silent->report.executor_pid, 7);
    // It comes after all, on a connection of its own.
    assert_true(tell(&table, "aaaaa", "cpu", 1));
    assert_int_equal(table.count, 1);
    device_table_expect(&table, &expected, 0);
    assert_int_equal(table.count, 1);
    assert_int_equal(device_table_find_name(&table, "cpu")->length, 5);
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

static void say(struct device_table *table, const char *connection, const char *name,
                uint64_t now_ms)
{
    const luna_DeviceReport made = report(name, 1);
    struct bytes bytes = {.data = connection, .size = strlen(connection)};
    device_table_report(table, bytes, &made, now_ms);
}

// Asks each 200 ms from one time to another; how often somebody was silent, the last one in *out.
static uint32_t watch(struct device_table *table, uint64_t from_ms, uint64_t to_ms,
                      struct device_entry **out)
{
    uint32_t found = 0;
    for (uint64_t now_ms = from_ms; now_ms <= to_ms; now_ms += 200) {
        struct device_entry *silent = device_table_find_silent(table, now_ms, 5000);
        if (silent == NULL) continue;
        *out = silent;
        found += 1;
    }
    return found;
}

static void an_executor_that_stands_still_is_found_once_each_time(void **state)
{
    (void)state;
    struct device_table table = {.count = 0};
    struct device_entry *silent = NULL;
    watch(&table, 99000, 100000, &silent);
    say(&table, "aaaaa", "cpu", 100000);
    say(&table, "bbbbb", "cuda:0", 100000);
    assert_int_equal(watch(&table, 100000, 104000, &silent), 0);
    say(&table, "bbbbb", "cuda:0", 104000);
    assert_int_equal(watch(&table, 104200, 105000, &silent), 1);
    assert_string_equal(silent->report.name, "cpu");
    say(&table, "bbbbb", "cuda:0", 105000);
    assert_int_equal(watch(&table, 105200, 109800, &silent), 0);
    assert_int_equal(watch(&table, 110000, 110000, &silent), 1);
}

static void a_pause_of_ones_own_is_nobodys_silence(void **state)
{
    (void)state;
    struct device_table table = {.count = 0};
    struct device_entry *silent = NULL;
    watch(&table, 99000, 100000, &silent);
    say(&table, "aaaaa", "cpu", 100000);
    watch(&table, 100000, 101000, &silent);
    assert_null(device_table_find_silent(&table, 130000, 5000));
    assert_int_equal(watch(&table, 130200, 134800, &silent), 0);
    assert_int_equal(watch(&table, 135000, 135000, &silent), 1);
}

static void devices_serve_what_the_configuration_says(void **state)
{
    (void)state;
    struct config_service service = {.devices = {.count = 0}};
    assert_true(device_serves(&service, "cpu", true));
    service.devices = (struct config_list){.count = 2, .items = {"cuda:0", "cuda:1"}};
    service.clip_devices = (struct config_list){.count = 1, .items = {"cpu"}};
    assert_true(device_serves(&service, "cuda:1", true));
    assert_false(device_serves(&service, "cpu", true));
    assert_true(device_serves(&service, "cpu", false));
    assert_false(device_serves(&service, "cuda:0", false));
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
        cmocka_unit_test(who_is_expected_and_does_not_come_is_silent),
        cmocka_unit_test(late_news_of_a_death_removes_no_successor),
        cmocka_unit_test(a_full_table_and_a_strange_connection_are_left_aside),
        cmocka_unit_test(an_executor_that_stands_still_is_found_once_each_time),
        cmocka_unit_test(a_pause_of_ones_own_is_nobodys_silence),
        cmocka_unit_test(devices_serve_what_the_configuration_says),
        cmocka_unit_test(texts_are_cut_at_a_characters_border),
        cmocka_unit_test(an_event_knows_its_time_topic_and_actor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
