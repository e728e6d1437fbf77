// test_conditioning_cache.c - what is asked again is answered with the same bytes; nothing else is.

#include "actors/conditioning_cache.h"
#include "actors/conditioning_key.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/test.h"

#define LARGE 20000u  // bytes of a frame that is shared

static struct bytes key_of(const char *text)
{
    return (struct bytes){.data = text, .size = strlen(text)};
}

// An answer with a body and one payload of so many bytes of a value.
static void make_answer(struct message *out, uint8_t value, uint64_t bytes)
{
    uint8_t *payload = malloc(bytes);
    assert_non_null(payload);
    memset(payload, value, bytes);
    message_init(out);
    assert_int_equal(message_append(out, key_of("header")), STATUS_OK);
    assert_int_equal(message_append(out, key_of("body")), STATUS_OK);
    assert_int_equal(message_append(out, (struct bytes){.data = payload, .size = bytes}),
                     STATUS_OK);
    free(payload);
}

static void put(struct conditioning_cache *cache, const char *key, uint8_t value, uint64_t bytes)
{
    struct message answer;
    make_answer(&answer, value, bytes);
    conditioning_cache_put(cache, key_of(key), 1, &answer);
    message_clear(&answer);
    conditioning_cache_check(cache);
}

// The value that a key's answer is made of; -1 when there is none.
static int value_of(struct conditioning_cache *cache, const char *key)
{
    const struct message *answer = conditioning_cache_find(cache, key_of(key));
    conditioning_cache_check(cache);
    if (answer == NULL) return -1;
    assert_int_equal(answer->count, 3);
    return *(const uint8_t *)message_frame(answer, 2).data;
}

static struct conditioning_cache *new_cache(uint64_t bytes_max)
{
    struct conditioning_cache *cache = NULL;
    assert_int_equal(conditioning_cache_create(&cache, bytes_max, NULL), STATUS_OK);
    conditioning_cache_check(cache);
    return cache;
}

static void an_answer_is_found_by_its_whole_key(void **state)
{
    (void)state;
    struct conditioning_cache *cache = new_cache(1u << 20);
    put(cache, "a cat", 1, 100);
    put(cache, "a cat ", 2, LARGE);
    assert_int_equal(value_of(cache, "a cat"), 1);
    assert_int_equal(value_of(cache, "a cat "), 2);
    assert_int_equal(value_of(cache, "a ca"), -1);
    struct conditioning_counts counts = conditioning_cache_counts(cache);
    assert_int_equal(counts.entries, 2);
    assert_int_equal(counts.hits, 2);
    assert_int_equal(counts.misses, 1);
    conditioning_cache_destroy(&cache);
    assert_null(cache);
}

static void a_large_tensor_is_not_copied(void **state)
{
    (void)state;
    struct conditioning_cache *cache = new_cache(1u << 20);
    struct message answer;
    make_answer(&answer, 7, LARGE);
    const void *payload = message_frame(&answer, 2).data;
    conditioning_cache_put(cache, key_of("a"), 1, &answer);
    const struct message *found = conditioning_cache_find(cache, key_of("a"));
    assert_non_null(found);
    assert_ptr_equal(message_frame(found, 2).data, payload);
    message_clear(&answer);
    assert_int_equal(value_of(cache, "a"), 7);
    conditioning_cache_destroy(&cache);
}

static void the_least_recently_used_goes_first(void **state)
{
    (void)state;
    struct conditioning_cache *cache = new_cache(70000);  // room for three
    put(cache, "a", 1, LARGE);
    put(cache, "b", 2, LARGE);
    put(cache, "c", 3, LARGE);
    assert_int_equal(value_of(cache, "a"), 1);
    put(cache, "d", 4, LARGE);
    assert_int_equal(value_of(cache, "b"), -1);
    assert_int_equal(value_of(cache, "a"), 1);
    assert_int_equal(value_of(cache, "c"), 3);
    assert_int_equal(value_of(cache, "d"), 4);
    conditioning_cache_destroy(&cache);
}

static void what_does_not_fit_drives_nothing_out(void **state)
{
    (void)state;
    struct conditioning_cache *cache = new_cache(50000);
    put(cache, "a", 1, LARGE);
    put(cache, "b", 2, 50000);
    assert_int_equal(value_of(cache, "a"), 1);
    assert_int_equal(value_of(cache, "b"), -1);
    assert_true(conditioning_cache_counts(cache).bytes <= 50000);
    conditioning_cache_destroy(&cache);
}

static void the_first_answer_to_a_key_stays(void **state)
{
    (void)state;
    struct conditioning_cache *cache = new_cache(1u << 20);
    put(cache, "a", 1, 100);
    put(cache, "a", 2, 100);
    assert_int_equal(value_of(cache, "a"), 1);
    assert_int_equal(conditioning_cache_counts(cache).entries, 1);
    conditioning_cache_destroy(&cache);
}

static void a_cache_that_is_off_keeps_and_counts_nothing(void **state)
{
    (void)state;
    struct conditioning_cache *cache = new_cache(0);
    put(cache, "a", 1, 100);
    assert_int_equal(value_of(cache, "a"), -1);
    struct conditioning_counts counts = conditioning_cache_counts(cache);
    assert_int_equal(counts.entries + counts.hits + counts.misses, 0);
    conditioning_cache_destroy(&cache);
}

static void a_model_that_changes_takes_its_answers_along(void **state)
{
    (void)state;
    struct conditioning_cache *cache = new_cache(1u << 20);
    struct message answer;
    make_answer(&answer, 9, LARGE);
    conditioning_cache_put(cache, key_of("other"), 2, &answer);
    message_clear(&answer);
    for (int i = 0; i < 20; i++) {
        char key[16];
        snprintf(key, sizeof key, "key %d", i);
        put(cache, key, (uint8_t)i, 50);
    }
    conditioning_cache_forget(cache, 1);
    conditioning_cache_check(cache);
    assert_int_equal(conditioning_cache_counts(cache).entries, 1);
    assert_int_equal(value_of(cache, "key 3"), -1);
    assert_int_equal(value_of(cache, "other"), 9);
    conditioning_cache_destroy(&cache);
}

static void its_bytes_stay_below_the_limit_whatever_comes(void **state)
{
    (void)state;
    struct conditioning_cache *cache = new_cache(200000);
    for (uint32_t i = 0; i < 2000; i++) {
        char key[32];
        snprintf(key, sizeof key, "%u", i * 7919u % 300u);
        put(cache, key, (uint8_t)i, 10 + i * 4241u % 30000u);
    }
    assert_true(conditioning_cache_counts(cache).bytes <= 200000);
    conditioning_cache_destroy(&cache);
}

// ---- keys

struct asked {
    luna_Header header;
    luna_EncodeText body;
    luna_StackEntry stack[2];
    struct message frames;
    uint64_t model;
    bool merged;
};

static void add_text(struct asked *asked, const char *name, const char *text)
{
    luna_Tensor *tensor = &asked->header.tensors[asked->header.tensors_count];
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    tensor->dtype = luna_Dtype_U8;
    tensor->dims_count = 1;
    tensor->dims[0] = strlen(text);
    tensor->bytes = strlen(text);
    asked->header.tensors_count += 1;
    assert_int_equal(message_append(&asked->frames, key_of(text)), STATUS_OK);
}

static struct asked ask(const char *prompt)
{
    struct asked asked = {.model = 1};
    asked.header.operation = luna_Operation_ENCODE_TEXT;
    asked.body.output = luna_Dtype_F32;
    message_init(&asked.frames);
    message_append(&asked.frames, key_of("header"));
    message_append(&asked.frames, key_of("body"));
    add_text(&asked, "prompt", prompt);
    return asked;
}

static void add_adapter(struct asked *asked, const char *name, uint8_t content)
{
    uint32_t index = asked->body.loras_count;
    snprintf(asked->body.loras[index].reference, sizeof asked->body.loras[index].reference, "%s",
             name);
    asked->stack[index].encoder_hash.size = 32;
    memset(asked->stack[index].encoder_hash.bytes, content, 32);
    asked->stack[index].strength_l = 1.0f;
    asked->stack[index].strength_g = 1.0f;
    asked->body.loras_count += 1;
}

static bool same_key(struct asked *a, struct asked *b)
{
    void *keys[2] = {NULL, NULL};
    uint64_t bytes[2] = {0, 0};
    struct asked *asked[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        const struct conditioning_request request = {.model = asked[i]->model,
                                                     .merged = asked[i]->merged,
                                                     .header = &asked[i]->header,
                                                     .body = &asked[i]->body,
                                                     .frames = &asked[i]->frames,
                                                     .stack = asked[i]->stack};
        assert_int_equal(conditioning_key_make(&request, &keys[i], &bytes[i]), STATUS_OK);
        assert_true(conditioning_may_keep(request.header, request.body, request.frames));
    }
    bool same = bytes[0] == bytes[1] && memcmp(keys[0], keys[1], bytes[0]) == 0;
    free(keys[0]);
    free(keys[1]);
    message_clear(&a->frames);
    message_clear(&b->frames);
    return same;
}

static void the_same_question_has_the_same_key(void **state)
{
    (void)state;
    struct asked a = ask("a cat"), b = ask("a cat");
    memset(b.header.id.bytes, 7, sizeof b.header.id.bytes);
    b.header.priority = 5;
    b.header.want_progress = true;
    b.header.tensors[1] = (luna_Tensor){.name = "cond", .room = true, .bytes = 1000};
    b.header.tensors_count += 1;
    assert_true(same_key(&a, &b));
}

static void whatever_changes_the_answer_changes_the_key(void **state)
{
    (void)state;
    for (int what = 0; what < 12; what++) {
        struct asked a = ask("a cat"), b = ask(what == 0 ? "a Cat" : "a cat");
        add_adapter(&a, "style", 1);
        add_adapter(&b, what == 1 ? "stile" : "style", what == 2 ? 2 : 1);
        if (what == 3) b.stack[0].strength_l = 0.5f;
        if (what == 4) b.stack[0].strength_g = 0.5f;
        if (what == 5) add_adapter(&b, "more", 3);
        if (what == 6) b.body.clip_skip = 2;
        if (what == 7) b.body.disable_weights = true;
        if (what == 8) b.body.output = luna_Dtype_F16;
        if (what == 9) b.model = 2;
        if (what == 10) b.merged = true;
        if (what == 11) add_text(&b, "negative", "");
        assert_false(same_key(&a, &b));
    }
}

static void the_order_of_a_stack_matters(void **state)
{
    (void)state;
    struct asked a = ask("x"), b = ask("x");
    add_adapter(&a, "one", 1);
    add_adapter(&a, "two", 2);
    add_adapter(&b, "two", 2);
    add_adapter(&b, "one", 1);
    assert_false(same_key(&a, &b));
}

static void texts_do_not_run_into_each_other(void **state)
{
    (void)state;
    struct asked a = ask("ab"), b = ask("a");
    add_text(&a, "negative", "c");
    add_text(&b, "negative", "bc");
    assert_false(same_key(&a, &b));
}

static void the_file_of_a_one_shot_adapter_is_known_by_its_content(void **state)
{
    (void)state;
    struct asked a = ask("x"), b = ask("x");
    add_adapter(&a, "mine", 1);
    add_adapter(&b, "mine", 1);
    snprintf(a.body.loras[0].tensor, sizeof a.body.loras[0].tensor, "lora.0");
    snprintf(b.body.loras[0].tensor, sizeof b.body.loras[0].tensor, "lora.0");
    add_text(&a, "lora.0", "the file");
    add_text(&b, "lora.0", "");  // taken out by the router
    assert_true(same_key(&a, &b));
}

static bool may_keep(struct asked *asked)
{
    bool may = conditioning_may_keep(&asked->header, &asked->body, &asked->frames);
    message_clear(&asked->frames);
    return may;
}

static void texts_with_embeddings_or_in_shared_memory_are_not_kept(void **state)
{
    (void)state;
    struct asked plain = ask("a cat"), first = ask("embedding:x"), last = ask("a Embedding:");
    struct asked negative = ask("a cat"), shared = ask("a cat"), tokens = ask("a cat");
    add_text(&negative, "negative", "ugly, embedding:bad ");
    shared.header.tensors[0].where = luna_Where_SHARED;
    tokens.header.operation = luna_Operation_TOKENIZE;
    assert_true(may_keep(&plain));
    assert_false(may_keep(&first));
    assert_false(may_keep(&last));
    assert_false(may_keep(&negative));
    assert_false(may_keep(&shared));
    assert_false(may_keep(&tokens));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_answer_is_found_by_its_whole_key),
        cmocka_unit_test(a_large_tensor_is_not_copied),
        cmocka_unit_test(the_least_recently_used_goes_first),
        cmocka_unit_test(what_does_not_fit_drives_nothing_out),
        cmocka_unit_test(the_first_answer_to_a_key_stays),
        cmocka_unit_test(a_cache_that_is_off_keeps_and_counts_nothing),
        cmocka_unit_test(a_model_that_changes_takes_its_answers_along),
        cmocka_unit_test(its_bytes_stay_below_the_limit_whatever_comes),
        cmocka_unit_test(the_same_question_has_the_same_key),
        cmocka_unit_test(whatever_changes_the_answer_changes_the_key),
        cmocka_unit_test(the_order_of_a_stack_matters),
        cmocka_unit_test(texts_do_not_run_into_each_other),
        cmocka_unit_test(the_file_of_a_one_shot_adapter_is_known_by_its_content),
        cmocka_unit_test(texts_with_embeddings_or_in_shared_memory_are_not_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
