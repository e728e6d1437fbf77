// test_stack_desk.c - jobs get their stacks: what is shared is made once, what is used stays, what
// nobody needs goes.

#include "actors/stack_desk.h"

#include <stdlib.h>
#include <string.h>

#include "actors/residents.h"
#include "tests/test.h"

#define GRANTS_MAX 64

// An adapter and a stack of the fake models/text: small blocks that say what they are.
struct fake_adapter {
    uint8_t content;  // of its hash
    bool changed;     // its file was
    bool high;        // can only be merged
};
struct fake_stack {
    uint32_t count;
    bool merged;
};

struct fake {
    struct stack_desk *desk;
    uint32_t fetches, merges, stops, adapters, stacks;  // counts; the last two live now
    struct stack_fetch fetch;                           // the order that is out
    struct stack_merge merge;                           // likewise
    uint64_t free_bytes;                                // of the device
    uint64_t adapter_bytes, merged_bytes;               // as booked
    uint32_t grants;
    struct stack_grant grant[GRANTS_MAX];
};

static uint32_t live_adapters, live_stacks;

static const struct text_model *const model = (const struct text_model *)&live_adapters;

static void on_fetch(void *context, const struct stack_fetch *order)
{
    struct fake *self = context;
    self->fetches += 1;
    self->fetch = *order;
}

static void on_merge(void *context, const struct stack_merge *order)
{
    struct fake *self = context;
    self->merges += 1;
    self->merge = *order;
}

static void on_stop(void *context)
{
    struct fake *self = context;
    self->stops += 1;
}

static void on_grant(void *context, const struct stack_grant *grant)
{
    struct fake *self = context;
    assert_true(self->grants < GRANTS_MAX);
    self->grant[self->grants++] = *grant;
}

static bool on_admit(void *context, uint64_t bytes)
{
    const struct fake *self = context;
    return bytes <= self->free_bytes;
}

static void on_book(void *context, uint64_t adapter_bytes, uint64_t merged_bytes)
{
    struct fake *self = context;
    self->adapter_bytes = adapter_bytes;
    self->merged_bytes = merged_bytes;
}

static bool is_unchanged(const struct text_adapter *adapter)
{
    return !((const struct fake_adapter *)adapter)->changed;
}

static bool must_merge(const struct text_stack_entry *entries, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (((const struct fake_adapter *)entries[i].adapter)->high) return true;
    }
    return false;
}

static uint64_t bytes_when_merged(const struct text_model *of,
                                  const struct text_stack_entry *entries, uint32_t count)
{
    (void)of;
    (void)entries;
    return 100u * count;
}

static struct text_stack *new_stack(uint32_t count, bool merged)
{
    struct fake_stack *stack = calloc(1, sizeof *stack);
    assert_non_null(stack);
    *stack = (struct fake_stack){.count = count, .merged = merged};
    live_stacks += 1;
    return (struct text_stack *)stack;
}

static enum status apply(struct text_stack **out, const struct stack_merge *order,
                         struct error *error)
{
    (void)error;
    *out = new_stack(order->count, false);
    return STATUS_OK;
}

static void end_adapter(struct text_adapter *adapter)
{
    live_adapters -= 1;
    free(adapter);
}

static void end_stack(struct text_stack *stack)
{
    live_stacks -= 1;
    free(stack);
}

static const struct stack_desk_calls calls = {.fetch = on_fetch,
                                              .merge = on_merge,
                                              .stop_merge = on_stop,
                                              .grant = on_grant,
                                              .admit = on_admit,
                                              .book = on_book,
                                              .unchanged = is_unchanged,
                                              .must_merge = must_merge,
                                              .merged_bytes = bytes_when_merged,
                                              .apply = apply,
                                              .end_adapter = end_adapter,
                                              .end_stack = end_stack};

static void begin(struct fake *self, bool merged)
{
    const struct stack_limits limits = {.adapter_bytes = 40, .merged_bytes = 250, .merged = merged};
    *self = (struct fake){.free_bytes = 1000000};
    live_adapters = 0;
    live_stacks = 0;
    assert_int_equal(stack_desk_create(&self->desk, &limits, &calls, self, NULL), STATUS_OK);
    stack_desk_check(self->desk);
}

static void finish(struct fake *self)
{
    stack_desk_check(self->desk);
    stack_desk_destroy(&self->desk);
    assert_int_equal(live_adapters, 0);
    assert_int_equal(live_stacks, 0);
}

// Asks for a stack of contents, one a letter: small ones are low-rank, capitals have to be merged;
// a digit behind makes the one before it a one-shot.
static void ask(struct fake *self, uint64_t job, const char *contents)
{
    struct stack_question question = {.worker = 1 + job / 100, .job = job, .model = model};
    for (const char *at = contents; *at != '\0'; at++) {
        luna_StackEntry *entry = &question.entries[question.count];
        if (*at >= '0' && *at <= '9') {
            question.entries[question.count - 1].one_shot = true;
            continue;
        }
        question.count += 1;
        if (*at == '-') continue;  // disabled
        entry->encoder_hash.size = 32;
        memset(entry->encoder_hash.bytes, *at, 32);
        entry->strength_l = 1.0f;
        entry->bytes = *at == '.' ? 0 : 10;  // nothing of an encoder in it
    }
    assert_int_equal(stack_desk_ask(self->desk, &question), STATUS_OK);
    stack_desk_check(self->desk);
}

static void fetched(struct fake *self)
{
    uint8_t content = self->fetch.hash.value[0];
    struct fake_adapter *adapter = calloc(1, sizeof *adapter);
    assert_non_null(adapter);
    *adapter = (struct fake_adapter){.content = content, .high = content < 'a'};
    live_adapters += 1;
    stack_desk_fetched(self->desk, (struct text_adapter *)adapter, 10, NULL);
    stack_desk_check(self->desk);
}

static void merged(struct fake *self)
{
    stack_desk_merged(self->desk, new_stack(self->merge.count, true), 100u * self->merge.count,
                      NULL);
    stack_desk_check(self->desk);
}

static void give_back(struct fake *self, uint64_t job)
{
    stack_desk_give_back(self->desk, 1 + job / 100, job);
    stack_desk_check(self->desk);
}

static const struct stack_grant *last(const struct fake *self)
{
    assert_true(self->grants > 0);
    return &self->grant[self->grants - 1];
}

static void a_stack_is_granted_when_its_adapters_are_there(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    ask(&fake, 1, "ab");
    assert_int_equal(fake.fetches, 1);
    fetched(&fake);
    assert_int_equal(fake.grants, 0);
    assert_int_equal(fake.fetches, 2);
    fetched(&fake);
    assert_int_equal(fake.grants, 1);
    assert_int_equal(last(&fake)->job, 1);
    assert_int_equal(last(&fake)->error.status, STATUS_OK);
    assert_false(last(&fake)->merged);
    assert_int_equal(((const struct fake_stack *)last(&fake)->stack)->count, 2);
    give_back(&fake, 1);
    assert_int_equal(live_stacks, 0);
    assert_int_equal(live_adapters, 2);  // they stay for the next one
    ask(&fake, 2, "ba");
    assert_int_equal(fake.grants, 2);
    assert_int_equal(fake.fetches, 2);
    finish(&fake);
}

static void two_jobs_that_ask_at_once_load_it_once(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    ask(&fake, 1, "a");
    ask(&fake, 101, "a");
    fetched(&fake);
    assert_int_equal(fake.fetches, 1);
    assert_int_equal(fake.grants, 2);
    assert_ptr_equal(fake.grant[0].adapters[0], fake.grant[1].adapters[0]);
    finish(&fake);
}

static void entries_that_do_not_count_keep_their_places(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    ask(&fake, 1, "-.a");
    fetched(&fake);
    assert_int_equal(last(&fake)->count, 3);
    assert_null(last(&fake)->adapters[0]);
    assert_null(last(&fake)->adapters[1]);
    assert_non_null(last(&fake)->adapters[2]);
    assert_int_equal(last(&fake)->places[0], UINT32_MAX);
    assert_int_equal(last(&fake)->places[2], 0);
    ask(&fake, 2, "-.");
    assert_int_equal(fake.grants, 2);
    assert_null(last(&fake)->stack);
    finish(&fake);
}

static void one_shots_go_with_their_job(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    ask(&fake, 1, "a1");
    fetched(&fake);
    give_back(&fake, 1);
    assert_int_equal(live_adapters, 0);
    ask(&fake, 2, "A1");
    fetched(&fake);
    merged(&fake);
    assert_true(last(&fake)->merged);
    give_back(&fake, 2);
    assert_int_equal(live_adapters, 0);
    assert_int_equal(live_stacks, 0);
    assert_int_equal(fake.adapter_bytes + fake.merged_bytes, 0);
    ask(&fake, 3, "b1");
    ask(&fake, 4, "b");
    fetched(&fake);
    give_back(&fake, 3);
    give_back(&fake, 4);
    assert_int_equal(live_adapters, 1);  // for it has a name too
    finish(&fake);
}

static void the_least_recently_used_adapter_makes_room(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    const char *const contents[] = {"a", "b", "c", "d"};
    for (uint64_t i = 0; i < 4; i++) {
        ask(&fake, i, contents[i]);
        fetched(&fake);
        give_back(&fake, i);
    }
    assert_int_equal(fake.adapter_bytes, 40);
    ask(&fake, 5, "a");
    ask(&fake, 6, "e");
    fetched(&fake);
    assert_int_equal(fake.adapter_bytes, 40);
    ask(&fake, 7, "b");
    assert_int_equal(fake.fetches, 6);  // b went
    fetched(&fake);
    ask(&fake, 8, "d");
    assert_int_equal(fake.fetches, 6);
    finish(&fake);
}

static void what_cannot_be_loaded_is_refused_by_its_entry(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    ask(&fake, 1, "-ab");
    struct error error;
    error_set(&error, STATUS_INVALID_ARGUMENT, "rank 0");
    stack_desk_fetched(fake.desk, NULL, 0, &error);
    stack_desk_check(fake.desk);
    assert_int_equal(fake.grants, 1);
    assert_int_equal(last(&fake)->error.status, STATUS_INVALID_ARGUMENT);
    assert_int_equal(last(&fake)->entry, 1);
    assert_int_equal(fake.adapter_bytes, 0);
    finish(&fake);
}

static void who_asks_while_a_load_fails_gets_another_try(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    ask(&fake, 1, "a");
    ask(&fake, 2, "a");  // after the order was given
    struct error error;
    error_set(&error, STATUS_NOT_FOUND, "gone");
    stack_desk_fetched(fake.desk, NULL, 0, &error);
    assert_int_equal(fake.grants, 1);
    assert_int_equal(last(&fake)->job, 1);
    assert_int_equal(fake.fetches, 2);
    fetched(&fake);
    assert_int_equal(last(&fake)->job, 2);
    assert_int_equal(last(&fake)->error.status, STATUS_OK);
    finish(&fake);
}

static void a_file_that_changed_is_not_used(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    ask(&fake, 1, "a");
    fetched(&fake);
    struct fake_adapter *adapter = (struct fake_adapter *)(uintptr_t)last(&fake)->adapters[0];
    adapter->changed = true;
    ask(&fake, 2, "a");
    assert_int_equal(last(&fake)->error.status, STATUS_FAILED_PRECONDITION);
    assert_int_equal(last(&fake)->entry, 0);
    ask(&fake, 3, "a");
    assert_int_equal(fake.fetches, 2);  // it is read again
    fetched(&fake);
    assert_int_equal(last(&fake)->job, 3);
    assert_int_equal(last(&fake)->error.status, STATUS_OK);
    finish(&fake);
}

static void a_copy_is_made_once_and_shared(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    ask(&fake, 1, "A");
    ask(&fake, 101, "A");
    fetched(&fake);
    assert_int_equal(fake.merges, 1);
    merged(&fake);
    assert_int_equal(fake.grants, 2);
    assert_true(last(&fake)->merged);
    assert_ptr_equal(fake.grant[0].stack, fake.grant[1].stack);
    give_back(&fake, 1);
    give_back(&fake, 101);
    assert_int_equal(live_stacks, 1);
    ask(&fake, 2, "A");
    assert_int_equal(fake.merges, 1);
    assert_int_equal(fake.grants, 3);
    finish(&fake);
}

static void order_makes_another_copy(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, true);
    ask(&fake, 1, "ab");
    fetched(&fake);
    fetched(&fake);
    merged(&fake);
    give_back(&fake, 1);
    ask(&fake, 2, "ba");
    assert_int_equal(fake.merges, 2);
    merged(&fake);
    assert_int_equal(fake.merged_bytes, 200);  // the other had to go
    finish(&fake);
}

static void a_stack_above_the_limit_is_refused_with_both_numbers(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, true);
    ask(&fake, 1, "abc");
    for (int i = 0; i < 3; i++) fetched(&fake);
    assert_int_equal(last(&fake)->error.status, STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(last(&fake)->error.message, "300"));
    assert_non_null(strstr(last(&fake)->error.message, "250"));
    assert_int_equal(last(&fake)->needs_bytes, 0);
    finish(&fake);
}

static void memory_that_is_missing_now_is_named(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, true);
    fake.free_bytes = 50;
    ask(&fake, 1, "a");
    fetched(&fake);
    assert_int_equal(last(&fake)->needs_bytes, 100);
    fake.free_bytes = 5;
    ask(&fake, 2, "b");
    assert_int_equal(last(&fake)->needs_bytes, 10);
    finish(&fake);
}

static void who_waits_for_room_is_not_passed(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, true);
    ask(&fake, 1, "ab");
    fetched(&fake);
    fetched(&fake);
    merged(&fake);
    assert_int_equal(fake.grants, 1);
    ask(&fake, 2, "ba");  // has to wait for the room of the first
    ask(&fake, 3, "ab");  // is there, but it came later
    assert_int_equal(fake.grants, 1);
    give_back(&fake, 1);
    assert_int_equal(fake.merges, 2);
    merged(&fake);
    assert_int_equal(fake.grants, 2);
    assert_int_equal(last(&fake)->job, 2);
    give_back(&fake, 2);
    assert_int_equal(fake.merges, 3);
    merged(&fake);
    assert_int_equal(last(&fake)->job, 3);
    finish(&fake);
}

static void a_merge_that_nobody_wants_is_stopped(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, true);
    ask(&fake, 1, "a");
    ask(&fake, 2, "a");
    fetched(&fake);
    give_back(&fake, 1);
    assert_int_equal(fake.stops, 0);
    give_back(&fake, 2);
    assert_int_equal(fake.stops, 1);
    ask(&fake, 3, "a");  // before it has stopped
    struct error error;
    error_set(&error, STATUS_CANCELLED, "stopped");
    stack_desk_merged(fake.desk, NULL, 0, &error);
    stack_desk_check(fake.desk);
    assert_int_equal(fake.merges, 2);
    merged(&fake);
    assert_int_equal(fake.grants, 1);
    assert_int_equal(last(&fake)->job, 3);
    finish(&fake);
}

static void what_the_store_dropped_goes_when_nobody_uses_it(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    ask(&fake, 1, "A");
    fetched(&fake);
    merged(&fake);
    struct hash hash;
    memset(hash.value, 'A', sizeof hash.value);
    stack_desk_drop(fake.desk, &hash);
    stack_desk_check(fake.desk);
    assert_int_equal(live_adapters, 1);
    assert_int_equal(live_stacks, 1);
    ask(&fake, 2, "A");
    assert_int_equal(fake.fetches, 2);  // another one: the old is known to nobody
    give_back(&fake, 1);
    assert_int_equal(live_adapters, 0);
    assert_int_equal(live_stacks, 0);
    finish(&fake);
}

static void a_model_is_left_alone_while_something_of_it_is_used(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    ask(&fake, 1, "A");
    assert_false(stack_desk_forget_model(fake.desk, model));
    fetched(&fake);
    assert_false(stack_desk_forget_model(fake.desk, model));
    merged(&fake);
    assert_false(stack_desk_forget_model(fake.desk, model));
    stack_desk_forget_worker(fake.desk, 1);
    stack_desk_check(fake.desk);
    assert_true(stack_desk_forget_model(fake.desk, model));
    assert_int_equal(live_adapters + live_stacks, 0);
    finish(&fake);
}

static void a_worker_that_ends_lets_go_of_everything(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    ask(&fake, 1, "a1");
    ask(&fake, 2, "b1");
    assert_true(stack_desk_waits(fake.desk, 1));
    fetched(&fake);
    stack_desk_forget_worker(fake.desk, 1);
    assert_false(stack_desk_waits(fake.desk, 1));
    fetched(&fake);  // it was under way
    assert_int_equal(live_adapters, 0);
    finish(&fake);
}

static void room_for_others_is_made_of_copies_first(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    ask(&fake, 1, "A");
    fetched(&fake);
    merged(&fake);
    assert_false(stack_desk_evict_one(fake.desk));
    give_back(&fake, 1);
    assert_true(stack_desk_evict_one(fake.desk));
    assert_int_equal(live_stacks, 0);
    assert_int_equal(live_adapters, 1);
    assert_true(stack_desk_evict_one(fake.desk));
    assert_int_equal(live_adapters, 0);
    assert_false(stack_desk_evict_one(fake.desk));
    finish(&fake);
}

static void thousands_of_jobs_in_any_order_leave_nothing_behind(void **state)
{
    (void)state;
    struct fake fake;
    begin(&fake, false);
    static const char *const stacks[] = {"a", "A", "ab", "B1", "c1", "Ab", "-", "d", "aA"};
    uint32_t random = 12345;
    uint32_t fetches_seen = 0, merges_seen = 0;
    for (uint64_t i = 0; i < 20000; i++) {
        random = random * 1664525u + 1013904223u;
        uint32_t what = random >> 16;
        fake.grants = 0;
        if (what % 3 == 0)
            ask(&fake, i, stacks[what / 3 % 9]);
        else
            stack_desk_give_back(fake.desk, 1 + (i - what % 50) / 100, i - what % 50);
        if (fake.fetches != fetches_seen && what % 5 == 0) {
            fetches_seen += 1;
            fetched(&fake);
        }
        if (fake.merges != merges_seen && what % 7 == 0) {
            merges_seen += 1;
            merged(&fake);
        }
        if (i % 100 == 99 && i >= 200) stack_desk_forget_worker(fake.desk, 1 + (i - 200) / 100);
        stack_desk_check(fake.desk);
        assert_true(fake.merged_bytes <= 250);
    }
    finish(&fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stack_is_granted_when_its_adapters_are_there),
        cmocka_unit_test(two_jobs_that_ask_at_once_load_it_once),
        cmocka_unit_test(entries_that_do_not_count_keep_their_places),
        cmocka_unit_test(one_shots_go_with_their_job),
        cmocka_unit_test(the_least_recently_used_adapter_makes_room),
        cmocka_unit_test(what_cannot_be_loaded_is_refused_by_its_entry),
        cmocka_unit_test(who_asks_while_a_load_fails_gets_another_try),
        cmocka_unit_test(a_file_that_changed_is_not_used),
        cmocka_unit_test(a_copy_is_made_once_and_shared),
        cmocka_unit_test(order_makes_another_copy),
        cmocka_unit_test(a_stack_above_the_limit_is_refused_with_both_numbers),
        cmocka_unit_test(memory_that_is_missing_now_is_named),
        cmocka_unit_test(who_waits_for_room_is_not_passed),
        cmocka_unit_test(a_merge_that_nobody_wants_is_stopped),
        cmocka_unit_test(what_the_store_dropped_goes_when_nobody_uses_it),
        cmocka_unit_test(a_model_is_left_alone_while_something_of_it_is_used),
        cmocka_unit_test(a_worker_that_ends_lets_go_of_everything),
        cmocka_unit_test(room_for_others_is_made_of_copies_first),
        cmocka_unit_test(thousands_of_jobs_in_any_order_leave_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
