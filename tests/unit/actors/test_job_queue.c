// test_job_queue.c - what users may expect of the order in which their jobs are served.

#include "actors/job_queue.h"

#include <stdlib.h>

#include "tests/test.h"

static struct job_queue *new_queue(void)
{
    struct job_queue *queue = NULL;
    assert_int_equal(job_queue_create(&queue, NULL), STATUS_OK);
    return queue;
}

static struct job_entry *take(struct job_queue *queue, uint64_t now_ns)
{
    struct job_entry *entry = job_queue_peek(queue, 0, now_ns, 0);
    if (entry != NULL) job_queue_take(queue, entry);
    return entry;
}

static void one_user_is_served_in_order_of_arrival(void **state)
{
    (void)state;
    struct job_queue *queue = new_queue();
    struct job_entry jobs[4] = {0};
    for (int i = 0; i < 4; i++) {
        jobs[i].cost = 1;
        job_queue_push(queue, &jobs[i], (uint64_t)i);
    }
    assert_int_equal(job_queue_depth(queue, 0), 4);
    for (int i = 0; i < 4; i++) assert_ptr_equal(take(queue, 10), &jobs[i]);
    assert_null(take(queue, 10));
    job_queue_destroy(&queue);
}

static void a_flooding_user_gets_no_more_than_its_share(void **state)
{
    (void)state;
    struct job_queue *queue = new_queue();
    struct job_entry flood[100] = {0}, polite[3] = {0};
    for (int i = 0; i < 100; i++) {
        flood[i].cost = 1;
        job_queue_push(queue, &flood[i], 0);
    }
    for (int i = 0; i < 50; i++) assert_int_equal(take(queue, 1)->user, 0);
    for (int i = 0; i < 3; i++) {
        polite[i].user = (uint32_t)i + 1;
        polite[i].flow = (uint32_t)i + 1;
        polite[i].cost = 1;
        job_queue_push(queue, &polite[i], 2);
    }
    int others = 0;
    for (int i = 0; i < 6; i++) others += take(queue, 3)->user != 0;
    assert_int_equal(others, 3);  // all three within the next six
    job_queue_destroy(&queue);
}

static void shares_are_measured_in_cost_and_not_in_jobs(void **state)
{
    (void)state;
    struct job_queue *queue = new_queue();
    struct job_entry large[20] = {0}, small[200] = {0};
    for (int i = 0; i < 20; i++) {
        large[i].cost = 10;
        job_queue_push(queue, &large[i], 0);
    }
    for (int i = 0; i < 200; i++) {
        small[i].cost = 1;
        small[i].user = 1;
        small[i].flow = 1;
        job_queue_push(queue, &small[i], 0);
    }
    uint32_t work[2] = {0, 0};
    for (int i = 0; i < 110; i++) {
        struct job_entry *entry = take(queue, 1);
        work[entry->user] += entry->cost;
    }
    assert_in_range(work[0], 90, 110);
    assert_in_range(work[1], 90, 110);
    job_queue_destroy(&queue);
}

static void connections_of_one_user_share_alike(void **state)
{
    (void)state;
    struct job_queue *queue = new_queue();
    struct job_entry jobs[40] = {0};
    for (uint32_t i = 0; i < 40; i++) {
        jobs[i].cost = 1;
        jobs[i].flow = i < 30 ? 1 : 2;
        job_queue_push(queue, &jobs[i], 0);
    }
    uint32_t served[3] = {0};
    for (int i = 0; i < 20; i++) served[take(queue, 1)->flow] += 1;
    assert_int_equal(served[1], 10);
    assert_int_equal(served[2], 10);
    job_queue_destroy(&queue);
}

static void priority_orders_one_flow_and_age_overtakes_it(void **state)
{
    (void)state;
    struct job_queue *queue = new_queue();
    struct job_entry old = {.cost = 1}, urgent = {.cost = 1, .priority = 5};
    job_queue_push(queue, &old, 0);
    job_queue_push(queue, &urgent, 0);
    assert_ptr_equal(job_queue_peek(queue, 0, 1, 0), &urgent);
    job_queue_remove(queue, &urgent);
    urgent.enqueued_ns = 0;
    job_queue_push(queue, &urgent, 10000000000u);
    assert_ptr_equal(job_queue_peek(queue, 0, 10000000001u, 0),
                     &old);  // ten seconds beat five points
    job_queue_destroy(&queue);
}

static void who_waits_for_a_closed_place_holds_up_nobody_else(void **state)
{
    (void)state;
    struct job_queue *queue = new_queue();
    struct job_entry jobs[4] = {{.cost = 1, .place = 2},
                                {.cost = 1, .place = 1},
                                {.cost = 1, .place = 2},
                                {.cost = 1, .place = JOB_ANYWHERE}};
    for (int i = 0; i < 4; i++) job_queue_push(queue, &jobs[i], 0);
    assert_ptr_equal(job_queue_peek(queue, 0, 1, 1u << 2), &jobs[1]);
    assert_ptr_equal(job_queue_peek(queue, 0, 1, 1u << 1 | 1u << 2), &jobs[3]);
    assert_int_equal(job_queue_depth_at(queue, 0, 2), 2);
    assert_int_equal(job_queue_depth_at(queue, 0, 3), 0);
    job_queue_take(queue, &jobs[3]);
    job_queue_take(queue, &jobs[1]);
    assert_null(job_queue_peek(queue, 0, 1, 1u << 2));
    assert_ptr_equal(take(queue, 1), &jobs[0]);  // in order once it is open
    assert_ptr_equal(take(queue, 1), &jobs[2]);
    job_queue_destroy(&queue);
}

static void a_returned_job_goes_first_and_is_not_charged_twice(void **state)
{
    (void)state;
    struct job_queue *queue = new_queue();
    struct job_entry first = {.cost = 100}, second = {.cost = 1, .user = 1, .flow = 1};
    job_queue_push(queue, &first, 0);
    job_queue_push(queue, &second, 0);
    assert_ptr_equal(take(queue, 1), &first);
    first.returned = true;
    job_queue_push(queue, &first, 5);
    assert_int_equal(first.enqueued_ns, 0);
    assert_ptr_equal(take(queue, 6), &first);
    struct job_entry third = {.cost = 1};
    job_queue_push(queue, &third, 7);
    assert_ptr_equal(take(queue, 8), &second);
    assert_ptr_equal(take(queue, 8), &third);
    job_queue_destroy(&queue);
}

static void who_must_run_alone_goes_before_all_that_wait_for_it(void **state)
{
    (void)state;
    struct job_queue *queue = new_queue();
    struct job_entry suspect = {.cost = 1, .returned = true, .alone = true};
    struct job_entry held = {.cost = 1, .returned = true, .priority = 9};  // for want of memory
    struct job_entry urgent = {.cost = 1, .user = 1, .flow = 1, .priority = 100};
    job_queue_push(queue, &urgent, 0);
    job_queue_push(queue, &suspect, 1);
    job_queue_push(queue, &held, 2);
    assert_ptr_equal(take(queue, 3), &suspect);
    assert_ptr_equal(take(queue, 3), &held);
    assert_ptr_equal(take(queue, 3), &urgent);
    job_queue_destroy(&queue);
}

static void a_newcomer_overtakes_what_a_flood_was_given_and_has_not_begun(void **state)
{
    (void)state;
    struct job_queue *queue = new_queue();
    struct job_entry flood[4] = {0}, first = {.user = 1, .flow = 1, .cost = 1};
    struct job_entry second = first, mate = {.flow = 2, .cost = 1};
    for (int i = 0; i < 4; i++) {
        flood[i].cost = 1;
        job_queue_push(queue, &flood[i], 0);
    }
    take(queue, 1);
    struct job_entry *prefetched = take(queue, 1);
    job_queue_push(queue, &first, 2);
    assert_true(job_queue_overtakes(queue, &first, prefetched));
    assert_false(job_queue_overtakes(queue, &flood[3], prefetched));  // of its own flow
    assert_ptr_equal(take(queue, 3), &first);
    job_queue_push(queue, &second, 4);
    assert_false(job_queue_overtakes(queue, &second, prefetched));  // it has had its share
    job_queue_push(queue, &mate, 4);
    assert_true(job_queue_overtakes(queue, &mate, prefetched));  // another connection
    prefetched->returned = true;
    assert_false(job_queue_overtakes(queue, &mate, prefetched));
    job_queue_destroy(&queue);
}

static void idleness_saves_nothing_up(void **state)
{
    (void)state;
    struct job_queue *queue = new_queue();
    struct job_entry busy[100] = {0}, late[100] = {0};
    for (int i = 0; i < 100; i++) {
        busy[i].cost = 1;
        late[i].cost = 1;
        late[i].user = 1;
        late[i].flow = 1;
        job_queue_push(queue, &busy[i], 0);
    }
    for (int i = 0; i < 50; i++) take(queue, 1);
    for (int i = 0; i < 100; i++) job_queue_push(queue, &late[i], 2);
    uint32_t served[2] = {0};
    for (int i = 0; i < 20; i++) served[take(queue, 3)->user] += 1;
    assert_in_range(served[0], 9, 11);
    job_queue_destroy(&queue);
}

static void the_bytes_of_a_flow_are_those_of_its_waiting_jobs(void **state)
{
    (void)state;
    struct job_queue *queue = new_queue();
    struct job_entry jobs[3] = {{.cost = 1, .flow = 5, .bytes = 100},
                                {.cost = 1, .flow = 5, .bytes = 20, .service = 1},
                                {.cost = 1, .flow = 6, .bytes = 3}};
    for (int i = 0; i < 3; i++) job_queue_push(queue, &jobs[i], 0);
    assert_int_equal(job_queue_flow_bytes(queue, 5), 120);
    assert_int_equal(job_queue_flow_bytes(queue, 6), 3);
    job_queue_remove(queue, &jobs[1]);
    assert_int_equal(job_queue_flow_bytes(queue, 5), 100);
    while (take(queue, 1) != NULL) continue;
    assert_int_equal(job_queue_flow_bytes(queue, 5), 0);
    assert_int_equal(job_queue_flow_bytes(queue, 6), 0);
    job_queue_destroy(&queue);
}

// Adds `each` for one flow until it is refused; returns what it has then.
static uint64_t flood(uint64_t each, uint64_t others, uint64_t limit)
{
    uint64_t own = 0;
    while (job_queue_may_add(own, each, own + others, limit)) own += each;
    return own;
}

static void whoever_floods_leaves_room_to_others(void **state)
{
    (void)state;
    assert_in_range(flood(1, 0, 256), 220, 226);
    assert_in_range(flood(1 << 20, 0, UINT64_C(2) << 30), UINT64_C(1790) << 20,
                    UINT64_C(1793) << 20);
    // Beside one who has all that he may, a second one gets seven eighths of the rest.
    assert_in_range(flood(1, 224, 256), 25, 30);
}

static void nobody_gets_more_than_there_is(void **state)
{
    (void)state;
    assert_true(job_queue_may_add(0, 100, 0, 100));
    assert_false(job_queue_may_add(0, 101, 0, 100));
    assert_false(job_queue_may_add(0, 1, 100, 100));
    assert_false(job_queue_may_add(0, 1, 101, 100));
    assert_false(job_queue_may_add(0, UINT64_MAX, 1, 100));
}

static void any_mix_of_calls_keeps_depth_and_loses_nothing(void **state)
{
    (void)state;
    struct job_queue *queue = new_queue();
    enum { JOBS = 64 };
    struct job_entry jobs[JOBS] = {0};
    uint32_t depth = 0;
    srand(7);
    for (int step = 0; step < 20000; step++) {
        struct job_entry *job = &jobs[rand() % JOBS];
        if (job->queued) {
            job_queue_remove(queue, job);
            depth -= 1;
        } else if (rand() % 3 == 0 && job_queue_depth(queue, 0) > 0) {
            assert_non_null(take(queue, (uint64_t)step));
            depth -= 1;
        } else {
            *job = (struct job_entry){.cost = 1 + (uint32_t)rand() % 9,
                                      .user = (uint32_t)rand() % 4,
                                      .flow = (uint32_t)rand() % 8,
                                      .returned = rand() % 5 == 0};
            job_queue_push(queue, job, (uint64_t)step);
            depth += 1;
        }
        assert_int_equal(job_queue_depth(queue, 0), depth);
    }
    while (take(queue, 30000) != NULL) depth -= 1;
    assert_int_equal(depth, 0);
    job_queue_destroy(&queue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_user_is_served_in_order_of_arrival),
        cmocka_unit_test(a_flooding_user_gets_no_more_than_its_share),
        cmocka_unit_test(shares_are_measured_in_cost_and_not_in_jobs),
        cmocka_unit_test(connections_of_one_user_share_alike),
        cmocka_unit_test(priority_orders_one_flow_and_age_overtakes_it),
        cmocka_unit_test(who_waits_for_a_closed_place_holds_up_nobody_else),
        cmocka_unit_test(a_returned_job_goes_first_and_is_not_charged_twice),
        cmocka_unit_test(who_must_run_alone_goes_before_all_that_wait_for_it),
        cmocka_unit_test(a_newcomer_overtakes_what_a_flood_was_given_and_has_not_begun),
        cmocka_unit_test(idleness_saves_nothing_up),
        cmocka_unit_test(the_bytes_of_a_flow_are_those_of_its_waiting_jobs),
        cmocka_unit_test(whoever_floods_leaves_room_to_others),
        cmocka_unit_test(nobody_gets_more_than_there_is),
        cmocka_unit_test(any_mix_of_calls_keeps_depth_and_loses_nothing),
    };
    return cmocka_run_group_tests_name("job_queue", tests, NULL, NULL);
}
