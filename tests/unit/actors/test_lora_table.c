// What the LoRA store's table of contents, names and room promises.

#include "actors/lora_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/test.h"

#define MB (UINT64_C(1) << 20)

struct fixture {
    struct lora_table *table;  // 100 MB, 8 entries, threshold 0.8, time to live 10 s
    struct error error;        // of the last call that failed
    uint64_t now_ns;           // grows with every use
};

static int setup(void **state)
{
    const struct lora_limits limits = {
        .bytes_max = 100 * MB, .threshold = 0.8, .entries_max = 8, .time_to_live_ns = 10000000000u};
    struct fixture *self = calloc(1, sizeof *self);
    assert_non_null(self);
    assert_int_equal(lora_table_create(&self->table, &limits, &self->error), STATUS_OK);
    *state = self;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *self = *state;
    lora_table_check(self->table);
    lora_table_destroy(&self->table);
    free(self);
    return 0;
}

static struct hash hash_of(uint8_t number)
{
    struct hash hash;
    memset(hash.value, number, sizeof hash.value);
    return hash;
}

static struct lora_content *add(struct fixture *self, uint8_t number, uint64_t bytes)
{
    struct lora_facts facts = {.has_hash = true, .hash = hash_of(number), .file_bytes = bytes};
    facts.encoder_hash = hash_of((uint8_t)(number + 100));
    struct lora_content *content = NULL;
    self->now_ns += 1000;
    assert_int_equal(lora_table_add(self->table, &facts, self->now_ns, &content, &self->error),
                     STATUS_OK);
    if (bytes > 0) lora_table_load(self->table, content, bytes, 1.0);
    lora_table_check(self->table);
    return content;
}

static void use(struct fixture *self, struct lora_content *content)
{
    self->now_ns += 1000;
    lora_table_use(self->table, content, true, self->now_ns);
}

static void a_content_is_found_by_either_hash(void **state)
{
    struct fixture *self = *state;
    struct lora_content *a = add(self, 1, MB);
    struct hash hash = hash_of(1);
    assert_ptr_equal(lora_table_find(self->table, &hash), a);
    hash = hash_of(101);
    assert_ptr_equal(lora_table_find(self->table, &hash), a);
    assert_ptr_equal(lora_table_find_encoder(self->table, &hash), a);
    assert_null(lora_table_find_exact(self->table, &hash));
    hash = hash_of(2);
    assert_null(lora_table_find(self->table, &hash));
}

static void of_two_with_the_same_encoder_tensors_the_resident_one_is_found(void **state)
{
    struct fixture *self = *state;
    struct lora_content *away = add(self, 1, 0);
    struct lora_content *here = add(self, 2, MB);
    away->facts.encoder_hash = here->facts.encoder_hash;
    assert_ptr_equal(lora_table_find(self->table, &here->facts.encoder_hash), here);
    lora_table_unload(self->table, here, true);
    assert_non_null(lora_table_find(self->table, &here->facts.encoder_hash));
    assert_null(lora_table_find_encoder(self->table, &here->facts.encoder_hash));
}

static void an_upload_that_was_evicted_in_use_is_not_found_but_stays(void **state)
{
    struct fixture *self = *state;
    struct lora_content *a = add(self, 1, MB);
    struct hash hash = hash_of(1);
    lora_table_hold(self->table, a);
    a->doomed = true;
    assert_null(lora_table_find(self->table, &hash));
    assert_ptr_equal(lora_table_find_exact(self->table, &hash), a);
    assert_ptr_equal(lora_table_find_encoder(self->table, &a->facts.encoder_hash), a);
    assert_false(lora_table_forget(self->table, a));
    // A file of the directories is there all the same.
    a->files = 1;
    assert_ptr_equal(lora_table_find(self->table, &hash), a);
    a->files = 0;
    lora_table_release(self->table, a);
}

static void the_least_recently_used_goes_first_and_not_what_is_held_or_pinned(void **state)
{
    struct fixture *self = *state;
    struct lora_content *a = add(self, 1, MB);
    struct lora_content *b = add(self, 2, MB);
    struct lora_content *c = add(self, 3, MB);
    use(self, a);
    assert_ptr_equal(lora_table_victim(self->table), b);
    lora_table_hold(self->table, b);
    assert_ptr_equal(lora_table_victim(self->table), c);
    assert_int_equal(lora_table_pin(self->table, c, 1000, &self->error), STATUS_OK);
    assert_ptr_equal(lora_table_victim(self->table), a);
    lora_table_hold(self->table, a);
    assert_null(lora_table_victim(self->table));
    lora_table_release(self->table, a);
    lora_table_release(self->table, b);
    assert_ptr_equal(lora_table_victim(self->table), b);
    assert_true(lora_table_unpin(self->table, c, 1000));
}

static void above_the_threshold_they_go_until_it_is_below(void **state)
{
    struct fixture *self = *state;
    struct lora_content *a = add(self, 1, 30 * MB);
    struct lora_content *b = add(self, 2, 30 * MB);
    add(self, 3, 20 * MB);
    assert_null(lora_table_trim(self->table));  // exactly 0.8
    add(self, 4, 10 * MB);
    assert_ptr_equal(lora_table_trim(self->table), a);
    lora_table_unload(self->table, a, true);
    assert_null(lora_table_trim(self->table));
    lora_table_reserve(self->table, 25 * MB);
    assert_ptr_equal(lora_table_trim(self->table), b);
    lora_table_unreserve(self->table, 25 * MB);
    assert_int_equal(lora_table_counts(self->table).evictions, 1);
}

static void the_only_one_above_the_threshold_stays(void **state)
{
    struct fixture *self = *state;
    struct lora_content *large = add(self, 1, 90 * MB);
    assert_null(lora_table_trim(self->table));
    add(self, 2, MB);
    assert_ptr_equal(lora_table_trim(self->table), large);
}

static void one_that_is_larger_than_the_limit_is_told_both_sizes(void **state)
{
    struct fixture *self = *state;
    assert_int_equal(lora_table_check_size(self->table, "x", 100 * MB, &self->error), STATUS_OK);
    assert_int_equal(lora_table_check_size(self->table, "x", 100 * MB + 1, &self->error),
                     STATUS_RESOURCE_EXHAUSTED);
    assert_string_equal(self->error.message,
                        "LoRA \"x\" takes 104857601 bytes, the store holds at most 104857600");
}

static void room_is_counted_in_bytes_and_in_entries_uploads_included(void **state)
{
    struct fixture *self = *state;
    add(self, 1, 60 * MB);
    assert_true(lora_table_fits(self->table, 40 * MB));
    assert_false(lora_table_fits(self->table, 40 * MB + 1));
    assert_false(lora_table_fits(self->table, UINT64_MAX));
    lora_table_reserve(self->table, 40 * MB);
    assert_false(lora_table_fits(self->table, 1));
    lora_table_unreserve(self->table, 40 * MB);
    for (uint8_t i = 2; i < 8; i++) add(self, i, 1);
    assert_true(lora_table_fits(self->table, 1));
    lora_table_reserve(self->table, 1);
    assert_false(lora_table_fits(self->table, 0));
    lora_table_unreserve(self->table, 1);
}

static void what_is_not_used_for_its_time_to_live_is_expired(void **state)
{
    struct fixture *self = *state;
    struct lora_content *a = add(self, 1, MB);
    uint64_t then = a->used_ns + 10000000000u;
    assert_null(lora_table_expired(self->table, then - 1));
    assert_ptr_equal(lora_table_expired(self->table, then), a);
    lora_table_hold(self->table, a);
    assert_null(lora_table_expired(self->table, then));
    lora_table_release(self->table, a);
}

static void pins_are_counted_by_user_and_only_their_own_are_taken_away(void **state)
{
    struct fixture *self = *state;
    struct lora_content *a = add(self, 1, MB);
    assert_int_equal(lora_table_pin(self->table, a, 7, &self->error), STATUS_OK);
    assert_int_equal(lora_table_pin(self->table, a, 7, &self->error), STATUS_OK);
    assert_false(lora_table_unpin(self->table, a, 8));
    assert_int_equal(lora_table_pin(self->table, a, 8, &self->error), STATUS_OK);
    assert_int_equal(lora_content_pins(a), 3);
    assert_int_equal(lora_table_counts(self->table).pinned, 1);
    for (uint32_t user = 10; user < 10 + LORA_PINS_MAX - 2; user++) {
        assert_int_equal(lora_table_pin(self->table, a, user, &self->error), STATUS_OK);
    }
    assert_int_equal(lora_table_pin(self->table, a, 99, &self->error), STATUS_RESOURCE_EXHAUSTED);
    assert_true(lora_table_unpin(self->table, a, 7));
    assert_true(lora_table_unpin(self->table, a, 7));
    assert_false(lora_table_unpin(self->table, a, 7));
}

static void a_name_moves_for_its_owner_and_for_admins_only(void **state)
{
    struct fixture *self = *state;
    struct lora_content *a = add(self, 1, MB);
    struct lora_content *b = add(self, 2, MB);
    assert_int_equal(lora_table_name(self->table, "style", 7, false, a, &self->error), STATUS_OK);
    assert_int_equal(lora_table_name(self->table, "other", 7, false, a, &self->error), STATUS_OK);
    assert_ptr_equal(lora_table_find_name(self->table, "style")->content, a);
    assert_int_equal(lora_table_name(self->table, "style", 8, false, b, &self->error),
                     STATUS_PERMISSION_DENIED);
    assert_int_equal(lora_table_name(self->table, "style", 8, false, a, &self->error), STATUS_OK);
    assert_int_equal(lora_table_find_name(self->table, "style")->owner, 7);
    assert_int_equal(lora_table_name(self->table, "style", 7, false, b, &self->error), STATUS_OK);
    assert_ptr_equal(lora_table_find_name(self->table, "style")->content, b);
    assert_int_equal(a->aliases, 1);
    assert_int_equal(lora_table_name(self->table, "style", 9, true, a, &self->error), STATUS_OK);
    lora_table_check(self->table);
    lora_table_unname(self->table, "other");
    assert_null(lora_table_find_name(self->table, "other"));
    lora_table_unname_all(self->table, a);
    assert_int_equal(lora_table_names(self->table), 0);
}

static void what_is_forgotten_takes_its_names_along(void **state)
{
    struct fixture *self = *state;
    struct lora_content *a = add(self, 1, MB);
    struct lora_content *b = add(self, 2, MB);
    lora_table_name(self->table, "a", 7, false, a, &self->error);
    lora_table_name(self->table, "b", 7, false, b, &self->error);
    assert_false(lora_table_forget(self->table, a));  // resident
    lora_table_unload(self->table, a, true);
    assert_true(lora_table_forget(self->table, a));
    assert_null(lora_table_find_name(self->table, "a"));
    assert_ptr_equal(lora_table_find_name(self->table, "b")->content, b);
    assert_int_equal(lora_table_count(self->table), 1);
}

static void hits_misses_and_times_are_counted(void **state)
{
    struct fixture *self = *state;
    struct lora_content *a = add(self, 1, 0);
    for (uint32_t i = 1; i <= 100; i++) {
        lora_table_load(self->table, a, MB, (double)i);
        lora_table_use(self->table, a, false, i);
        lora_table_use(self->table, a, true, i);
        lora_table_unload(self->table, a, i % 2 == 0);
    }
    const struct lora_counts counts = lora_table_counts(self->table);
    assert_int_equal(counts.hits, 100);
    assert_int_equal(counts.misses, 100);
    assert_int_equal(counts.loads, 100);
    assert_int_equal(counts.evictions, 50);
    assert_true(counts.load_ms_p50 == 50.0);
    assert_true(counts.load_ms_p99 == 99.0);
    assert_int_equal(counts.entries, 0);
    assert_int_equal(counts.bytes, 0);
    assert_int_equal(a->uses, 200);
    assert_int_equal(a->hits, 100);
}

// Whatever is done in whatever order, everything that must hold holds.
static void a_long_random_life_keeps_every_promise(void **state)
{
    struct fixture *self = *state;
    struct lora_content *contents[8];
    uint32_t random = 12345;
    for (uint8_t i = 0; i < 8; i++) contents[i] = add(self, (uint8_t)(i + 1), 0);
    for (uint32_t step = 0; step < 20000; step++) {
        random = random * 1664525u + 1013904223u;
        struct lora_content *content = contents[random >> 24 & 7];
        char name[8];
        snprintf(name, sizeof name, "n%u", random >> 20 & 7);
        switch (random >> 28 & 7) {
        case 0:
            if (!content->resident && lora_table_fits(self->table, 11 * MB)) {
                lora_table_load(self->table, content, 11 * MB, 1.0);
            }
            break;
        case 1:
            if (content->resident && content->holds == 0) {
                lora_table_unload(self->table, content, true);
            }
            break;
        case 2:
            lora_table_hold(self->table, content);
            break;
        case 3:
            if (content->holds > 0) lora_table_release(self->table, content);
            break;
        case 4:
            lora_table_name(self->table, name, random & 1, false, content, &self->error);
            break;
        case 5:
            lora_table_unname(self->table, name);
            break;
        case 6:
            lora_table_pin(self->table, content, random & 15, &self->error);
            break;
        default:
            lora_table_unpin(self->table, content, random & 15);
        }
        lora_table_check(self->table);
        const struct lora_content *victim = lora_table_victim(self->table);
        if (victim != NULL) assert_true(victim->holds == 0 && victim->pins_count == 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_content_is_found_by_either_hash, setup, teardown),
        cmocka_unit_test_setup_teardown(
            of_two_with_the_same_encoder_tensors_the_resident_one_is_found, setup, teardown),
        cmocka_unit_test_setup_teardown(an_upload_that_was_evicted_in_use_is_not_found_but_stays,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(
            the_least_recently_used_goes_first_and_not_what_is_held_or_pinned, setup, teardown),
        cmocka_unit_test_setup_teardown(above_the_threshold_they_go_until_it_is_below, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(the_only_one_above_the_threshold_stays, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_is_larger_than_the_limit_is_told_both_sizes, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(room_is_counted_in_bytes_and_in_entries_uploads_included,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_not_used_for_its_time_to_live_is_expired, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(pins_are_counted_by_user_and_only_their_own_are_taken_away,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(a_name_moves_for_its_owner_and_for_admins_only, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(what_is_forgotten_takes_its_names_along, setup, teardown),
        cmocka_unit_test_setup_teardown(hits_misses_and_times_are_counted, setup, teardown),
        cmocka_unit_test_setup_teardown(a_long_random_life_keeps_every_promise, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
