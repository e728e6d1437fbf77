// What a pool's table of leases promises.

#include "actors/lease_table.h"

#include <stdlib.h>

#include "tests/test.h"

#define POOL_BYTES (16ull * LEASE_UNIT_BYTES)

struct fixture {
    struct lease_table *table;  // of POOL_BYTES
    struct error error;         // of the last call that failed
};

static int setup(void **state)
{
    struct fixture *self = calloc(1, sizeof *self);
    assert_non_null(self);
    assert_int_equal(lease_table_create(&self->table, POOL_BYTES, &self->error), STATUS_OK);
    *state = self;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *self = *state;
    lease_table_check(self->table);
    lease_table_destroy(&self->table);
    free(self);
    return 0;
}

static struct lease acquire(struct fixture *self, uint64_t session, uint64_t bytes)
{
    struct lease lease = {0};
    assert_int_equal(lease_table_acquire(self->table, session, bytes, &lease, &self->error),
                     STATUS_OK);
    lease_table_check(self->table);
    return lease;
}

static enum status pin(struct fixture *self, uint64_t job, struct lease lease, uint64_t offset,
                       uint64_t bytes)
{
    struct lease_range range = {lease.slot, lease.generation, offset, bytes};
    uint64_t at = 0;
    enum status status = lease_table_pin(self->table, job, &range, &at, &self->error);
    if (status == STATUS_OK) assert_int_equal(at, lease.offset + offset);
    lease_table_check(self->table);
    return status;
}

static void leases_do_not_overlap_and_are_rounded_up_to_units(void **state)
{
    struct fixture *self = *state;
    struct lease a = acquire(self, 1, 1);
    struct lease b = acquire(self, 1, LEASE_UNIT_BYTES + 1);
    assert_int_equal(a.bytes, LEASE_UNIT_BYTES);
    assert_int_equal(b.bytes, 2 * LEASE_UNIT_BYTES);
    assert_int_equal(a.offset, 0);
    assert_int_equal(b.offset, LEASE_UNIT_BYTES);
    assert_int_equal(lease_table_slots(self->table), 2);
    assert_int_equal(lease_table_bytes(self->table), 3 * LEASE_UNIT_BYTES);
}

static void a_pool_can_be_leased_whole_and_no_more(void **state)
{
    struct fixture *self = *state;
    struct lease all = acquire(self, 1, POOL_BYTES);
    struct lease more = {.slot = 77};
    assert_int_equal(lease_table_acquire(self->table, 2, 1, &more, &self->error),
                     STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(more.slot, 77);
    assert_int_equal(lease_table_release(self->table, 1, all.slot, all.generation, &self->error),
                     STATUS_OK);
    acquire(self, 2, POOL_BYTES);
}

static void sizes_that_no_pool_has_are_refused(void **state)
{
    struct fixture *self = *state;
    struct lease lease;
    assert_int_equal(lease_table_acquire(self->table, 1, 0, &lease, &self->error),
                     STATUS_INVALID_ARGUMENT);
    assert_int_equal(lease_table_acquire(self->table, 1, POOL_BYTES + 1, &lease, &self->error),
                     STATUS_INVALID_ARGUMENT);
    assert_int_equal(lease_table_acquire(self->table, 1, UINT64_MAX, &lease, &self->error),
                     STATUS_INVALID_ARGUMENT);
}

static void the_first_gap_that_is_long_enough_is_taken(void **state)
{
    struct fixture *self = *state;
    acquire(self, 1, 2 * LEASE_UNIT_BYTES);
    struct lease b = acquire(self, 1, 1 * LEASE_UNIT_BYTES);
    acquire(self, 1, 2 * LEASE_UNIT_BYTES);
    struct lease d = acquire(self, 1, 3 * LEASE_UNIT_BYTES);
    acquire(self, 1, 1);
    lease_table_release(self->table, 1, b.slot, b.generation, &self->error);
    lease_table_release(self->table, 1, d.slot, d.generation, &self->error);
    lease_table_check(self->table);
    assert_int_equal(acquire(self, 2, 2 * LEASE_UNIT_BYTES).offset, d.offset);
    assert_int_equal(acquire(self, 2, 1).offset, b.offset);
}

static void neighbours_that_came_back_become_one_gap(void **state)
{
    struct fixture *self = *state;
    struct lease parts[4];
    for (int i = 0; i < 4; i++) parts[i] = acquire(self, 1, 4 * LEASE_UNIT_BYTES);
    for (int i = 1; i < 3; i++) {
        lease_table_release(self->table, 1, parts[i].slot, parts[i].generation, &self->error);
    }
    assert_int_equal(acquire(self, 1, 8 * LEASE_UNIT_BYTES).offset, parts[1].offset);
}

static void an_old_generation_is_refused(void **state)
{
    struct fixture *self = *state;
    struct lease old = acquire(self, 1, 1);
    lease_table_release(self->table, 1, old.slot, old.generation, &self->error);
    assert_int_equal(pin(self, 9, old, 0, 1), STATUS_NOT_FOUND);
    struct lease young = {0};
    do {
        young = acquire(self, 1, 1);
        if (young.slot != old.slot) {
            lease_table_release(self->table, 1, young.slot, young.generation, &self->error);
        }
    } while (young.slot != old.slot);
    assert_int_not_equal(young.generation, old.generation);
    assert_int_equal(pin(self, 9, old, 0, 1), STATUS_NOT_FOUND);
    assert_int_equal(pin(self, 9, young, 0, 1), STATUS_OK);
}

static void only_the_holder_gives_a_lease_back_and_only_once(void **state)
{
    struct fixture *self = *state;
    struct lease lease = acquire(self, 1, 1);
    assert_int_equal(
        lease_table_release(self->table, 2, lease.slot, lease.generation, &self->error),
        STATUS_NOT_FOUND);
    assert_int_equal(
        lease_table_release(self->table, 1, lease.slot, lease.generation, &self->error), STATUS_OK);
    assert_int_equal(
        lease_table_release(self->table, 1, lease.slot, lease.generation, &self->error),
        STATUS_NOT_FOUND);
    assert_int_equal(lease_table_release(self->table, 1, UINT32_MAX, 1, &self->error),
                     STATUS_NOT_FOUND);
}

static void a_session_ends_with_all_its_leases_and_no_others(void **state)
{
    struct fixture *self = *state;
    acquire(self, 1, 1);
    struct lease other = acquire(self, 2, 1);
    acquire(self, 1, 1);
    assert_int_equal(lease_table_end_session(self->table, 1), 2);
    assert_int_equal(lease_table_end_session(self->table, 1), 0);
    lease_table_check(self->table);
    assert_int_equal(lease_table_slots(self->table), 1);
    assert_int_equal(pin(self, 9, other, 0, 1), STATUS_OK);
}

static void a_pinned_slot_outlives_its_session(void **state)
{
    struct fixture *self = *state;
    struct lease lease = acquire(self, 1, POOL_BYTES);
    assert_int_equal(pin(self, 9, lease, 0, 4), STATUS_OK);
    assert_int_equal(lease_table_end_session(self->table, 1), 1);
    lease_table_check(self->table);
    struct lease more;
    assert_int_equal(lease_table_acquire(self->table, 2, 1, &more, &self->error),
                     STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(lease_table_unpin(self->table, 9), 1);
    assert_int_equal(lease_table_slots(self->table), 0);
    acquire(self, 2, 1);
}

static void a_slot_is_held_until_the_last_of_its_pins_goes(void **state)
{
    struct fixture *self = *state;
    struct lease lease = acquire(self, 1, LEASE_UNIT_BYTES);
    assert_int_equal(pin(self, 8, lease, 0, 4), STATUS_OK);
    assert_int_equal(pin(self, 9, lease, 4, 4), STATUS_OK);
    assert_int_equal(pin(self, 9, lease, 8, 4), STATUS_OK);
    lease_table_release(self->table, 1, lease.slot, lease.generation, &self->error);
    assert_int_equal(lease_table_unpin(self->table, 9), 2);
    assert_int_equal(lease_table_slots(self->table), 1);
    assert_int_equal(lease_table_unpin(self->table, 8), 1);
    assert_int_equal(lease_table_slots(self->table), 0);
    assert_int_equal(lease_table_unpin(self->table, 8), 0);
}

static void a_range_that_leaves_its_slot_is_refused(void **state)
{
    struct fixture *self = *state;
    struct lease lease = acquire(self, 1, LEASE_UNIT_BYTES);
    acquire(self, 1, LEASE_UNIT_BYTES);
    assert_int_equal(pin(self, 9, lease, 0, LEASE_UNIT_BYTES), STATUS_OK);
    assert_int_equal(pin(self, 9, lease, LEASE_UNIT_BYTES - 1, 1), STATUS_OK);
    assert_int_equal(pin(self, 9, lease, 1, LEASE_UNIT_BYTES), STATUS_INVALID_ARGUMENT);
    assert_int_equal(pin(self, 9, lease, LEASE_UNIT_BYTES, 1), STATUS_INVALID_ARGUMENT);
    assert_int_equal(pin(self, 9, lease, 0, 0), STATUS_INVALID_ARGUMENT);
    assert_int_equal(pin(self, 9, lease, 2, UINT64_MAX), STATUS_INVALID_ARGUMENT);
    assert_int_equal(lease_table_unpin(self->table, 9), 2);
}

static void slots_run_out_before_they_are_reused_wrongly(void **state)
{
    (void)state;
    struct error error;
    struct lease_table *table = NULL;
    assert_int_equal(
        lease_table_create(&table, (LEASE_SLOTS_MAX + 1ull) * LEASE_UNIT_BYTES, &error), STATUS_OK);
    struct lease lease = {0};
    for (uint32_t i = 0; i < LEASE_SLOTS_MAX; i++) {
        assert_int_equal(lease_table_acquire(table, 1, 1, &lease, &error), STATUS_OK);
    }
    lease_table_check(table);
    assert_int_equal(lease_table_acquire(table, 1, 1, &lease, &error), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(lease_table_end_session(table, 1), LEASE_SLOTS_MAX);
    lease_table_check(table);
    lease_table_destroy(&table);
}

static void pins_run_out_with_an_answer(void **state)
{
    struct fixture *self = *state;
    struct lease lease = acquire(self, 1, 1);
    struct lease_range range = {lease.slot, lease.generation, 0, 1};
    uint64_t at = 0;
    for (uint32_t i = 0; i < LEASE_PINS_MAX; i++) {
        assert_int_equal(lease_table_pin(self->table, 1 + i % 7, &range, &at, &self->error),
                         STATUS_OK);
    }
    assert_int_equal(lease_table_pin(self->table, 1, &range, &at, &self->error),
                     STATUS_RESOURCE_EXHAUSTED);
    uint32_t unpinned = 0;
    for (uint64_t job = 1; job <= 7; job++) unpinned += lease_table_unpin(self->table, job);
    assert_int_equal(unpinned, LEASE_PINS_MAX);
}

// A long random life against the table's own invariants and a count kept beside it.
static void a_long_random_life_keeps_all_invariants(void **state)
{
    struct fixture *self = *state;
    struct lease held[64] = {{0}};
    uint32_t seed = 1;
    for (uint32_t step = 0; step < 20000; step++) {
        seed = seed * 1664525u + 1013904223u;
        uint32_t index = seed >> 26;
        uint64_t session = 1 + index % 3;
        if (held[index].generation == 0) {
            uint64_t bytes = 1 + (seed >> 8) % (3 * LEASE_UNIT_BYTES);
            struct lease lease = {0};
            if (lease_table_acquire(self->table, session, bytes, &lease, &self->error) != STATUS_OK)
                continue;
            held[index] = lease;
            if (seed & 4096) assert_int_equal(pin(self, 1 + index, lease, 0, bytes), STATUS_OK);
        } else {
            assert_int_equal(lease_table_release(self->table, session, held[index].slot,
                                                 held[index].generation, &self->error),
                             STATUS_OK);
            lease_table_unpin(self->table, 1 + index);
            held[index].generation = 0;
        }
        lease_table_check(self->table);
    }
    for (uint64_t session = 1; session <= 3; session++) {
        lease_table_end_session(self->table, session);
    }
    for (uint64_t job = 1; job <= 64; job++) lease_table_unpin(self->table, job);
    assert_int_equal(lease_table_slots(self->table), 0);
    assert_int_equal(lease_table_bytes(self->table), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(leases_do_not_overlap_and_are_rounded_up_to_units),
        TEST(a_pool_can_be_leased_whole_and_no_more),
        TEST(sizes_that_no_pool_has_are_refused),
        TEST(the_first_gap_that_is_long_enough_is_taken),
        TEST(neighbours_that_came_back_become_one_gap),
        TEST(an_old_generation_is_refused),
        TEST(only_the_holder_gives_a_lease_back_and_only_once),
        TEST(a_session_ends_with_all_its_leases_and_no_others),
        TEST(a_pinned_slot_outlives_its_session),
        TEST(a_slot_is_held_until_the_last_of_its_pins_goes),
        TEST(a_range_that_leaves_its_slot_is_refused),
        TEST(slots_run_out_before_they_are_reused_wrongly),
        TEST(pins_run_out_with_an_answer),
        TEST(a_long_random_life_keeps_all_invariants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
