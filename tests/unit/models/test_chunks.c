// test_chunks.c - how groups of tokens fill rows of 77.

#include "models/text/chunks.h"
#include "tests/unit/models/text_kit.h"

#define LENGTH 77u
#define START 49406
#define END 49407

// Adds a group of `count` equal tokens.
static void add_group(struct chunks *chunks, int32_t id, uint32_t count)
{
    struct text_token group[256];
    assert_true(count <= 256);
    for (uint32_t i = 0; i < count; i++) group[i] = (struct text_token){.id = id, .weight = 1.5};
    assert_int_equal(chunks_add(chunks, group, count), STATUS_OK);
}

static struct chunks begin_chunks(int32_t pad)
{
    struct chunks chunks = {0};
    assert_int_equal(chunks_begin(&chunks, LENGTH, pad), STATUS_OK);
    return chunks;
}

// Where a token stands first at or after a position; count when nowhere.
static uint32_t find_id(const struct chunks *chunks, int32_t id, uint32_t at)
{
    while (at < chunks->count && chunks->items[at].id != id) at += 1;
    return at;
}

static uint32_t count_id(const struct chunks *chunks, int32_t id)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < chunks->count; i++) count += chunks->items[i].id == id;
    return count;
}

static void an_empty_text_is_one_padded_chunk(void **state)
{
    (void)state;
    struct chunks chunks = begin_chunks(0);
    assert_int_equal(chunks_end(&chunks), STATUS_OK);
    assert_int_equal(chunks.count, LENGTH);
    assert_int_equal(chunks.items[0].id, START);
    assert_int_equal(chunks.items[1].id, END);
    for (uint32_t i = 2; i < LENGTH; i++) assert_int_equal(chunks.items[i].id, 0);
    for (uint32_t i = 0; i < LENGTH; i++) assert_true(chunks.items[i].weight == 1.0);
    free(chunks.items);
}

static void seventy_five_tokens_fill_one_chunk_exactly(void **state)
{
    (void)state;
    struct chunks chunks = begin_chunks(0);
    add_group(&chunks, 5, 75);
    assert_int_equal(chunks_end(&chunks), STATUS_OK);
    assert_int_equal(chunks.count, LENGTH);
    assert_int_equal(chunks.items[75].id, 5);
    assert_int_equal(chunks.items[76].id, END);
    free(chunks.items);
}

static void a_large_group_is_split_where_the_chunk_is_full(void **state)
{
    (void)state;
    struct chunks chunks = begin_chunks(0);
    add_group(&chunks, 5, 70);
    add_group(&chunks, 6, 8);
    assert_int_equal(chunks_end(&chunks), STATUS_OK);
    assert_int_equal(chunks.count, 2 * LENGTH);
    assert_int_equal(find_id(&chunks, 6, 0), 71);
    assert_int_equal(chunks.items[75].id, 6);
    assert_int_equal(chunks.items[76].id, END);
    assert_int_equal(chunks.items[78].id, 6);
    assert_int_equal(chunks.items[80].id, 6);
    assert_int_equal(chunks.items[81].id, END);
    free(chunks.items);
}

static void a_small_group_moves_to_the_next_chunk_whole(void **state)
{
    (void)state;
    struct chunks chunks = begin_chunks(0);
    add_group(&chunks, 5, 70);
    add_group(&chunks, 6, 7);
    assert_int_equal(chunks_end(&chunks), STATUS_OK);
    assert_int_equal(chunks.count, 2 * LENGTH);
    assert_int_equal(chunks.items[71].id, END);
    assert_int_equal(chunks.items[72].id, 0);
    assert_int_equal(find_id(&chunks, 6, 0), LENGTH + 1);
    assert_int_equal(count_id(&chunks, 6), 7);
    free(chunks.items);
}

static void a_large_groups_tail_stays_large(void **state)
{
    (void)state;
    struct chunks chunks = begin_chunks(0);
    add_group(&chunks, 5, 74);
    add_group(&chunks, 6, 8);    // one token, then a tail of seven
    add_group(&chunks, 7, 156);  // 68 of them, 75, and a tail of 13
    assert_int_equal(chunks_end(&chunks), STATUS_OK);
    assert_int_equal(chunks.count, 4 * LENGTH);
    assert_int_equal(chunks.items[75].id, 6);
    assert_int_equal(chunks.items[LENGTH + 7].id, 6);
    assert_int_equal(chunks.items[LENGTH + 8].id, 7);
    assert_int_equal(chunks.items[3 * LENGTH + 13].id, 7);
    assert_int_equal(chunks.items[3 * LENGTH + 14].id, END);
    assert_int_equal(count_id(&chunks, 7), 156);
    free(chunks.items);
}

static void a_large_group_may_find_no_room_at_all(void **state)
{
    (void)state;
    struct chunks chunks = begin_chunks(END);
    add_group(&chunks, 5, 75);
    add_group(&chunks, 6, 9);
    assert_int_equal(chunks_end(&chunks), STATUS_OK);
    assert_int_equal(chunks.count, 2 * LENGTH);
    assert_int_equal(chunks.items[76].id, END);
    assert_int_equal(chunks.items[LENGTH].id, START);
    assert_int_equal(find_id(&chunks, 6, 0), LENGTH + 1);
    assert_true(chunks.items[LENGTH + 9].weight == 1.5);
    assert_true(chunks.items[LENGTH + 10].weight == 1.0);
    free(chunks.items);
}

static void empty_groups_change_nothing_and_empty_chunks_can_follow(void **state)
{
    (void)state;
    struct chunks chunks = begin_chunks(0);
    assert_int_equal(chunks_add(&chunks, NULL, 0), STATUS_OK);
    add_group(&chunks, 5, 1);
    assert_int_equal(chunks_end(&chunks), STATUS_OK);
    assert_int_equal(chunks_add_empty(&chunks), STATUS_OK);
    assert_int_equal(chunks.count, 2 * LENGTH);
    assert_int_equal(chunks.items[LENGTH].id, START);
    assert_int_equal(chunks.items[LENGTH + 1].id, END);
    free(chunks.items);
}

static void too_many_chunks_are_refused(void **state)
{
    (void)state;
    struct chunks chunks = begin_chunks(0);
    struct text_token group[75] = {{0}};
    enum status status = STATUS_OK;
    uint32_t groups = 0;
    for (; status == STATUS_OK && groups < 2 * CHUNKS_MAX; groups++) {
        status = chunks_add(&chunks, group, 75);
    }
    assert_int_equal(status, STATUS_INVALID_ARGUMENT);
    assert_int_equal(groups, CHUNKS_MAX + 1);
    free(chunks.items);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_text_is_one_padded_chunk),
        cmocka_unit_test(seventy_five_tokens_fill_one_chunk_exactly),
        cmocka_unit_test(a_large_group_is_split_where_the_chunk_is_full),
        cmocka_unit_test(a_small_group_moves_to_the_next_chunk_whole),
        cmocka_unit_test(a_large_groups_tail_stays_large),
        cmocka_unit_test(a_large_group_may_find_no_room_at_all),
        cmocka_unit_test(empty_groups_change_nothing_and_empty_chunks_can_follow),
        cmocka_unit_test(too_many_chunks_are_refused),
    };
    return cmocka_run_group_tests_name("chunks", tests, NULL, NULL);
}
