// test_tokenizer.c - the ids are those of transformers' CLIPTokenizer, and no text takes long.

#include "models/text/tokenizer.h"
#include "tests/unit/models/text_kit.h"

// What a quadratic step would need for 64 KB is above it, also on a slow machine; what is measured
// in a release build is near 10 ms.
#define HOSTILE_MS_MAX 1500.0

static void expect_ids(struct tokenizer *tokenizer, struct bytes text, const json_t *ids)
{
    struct token_ids found = {0};
    struct error error;
    assert_int_equal(tokenizer_encode(tokenizer, text, &found, &error), STATUS_OK);
    bool equal = found.count == json_array_size(ids);
    for (uint32_t i = 0; equal && i < found.count; i++) {
        equal = found.items[i] == json_integer_value(json_array_get(ids, i));
    }
    if (!equal) fail_msg("\"%.*s\" has other ids", (int)text.size, (const char *)text.data);
    free(found.items);
}

static void ids_are_those_of_the_reference(void **state)
{
    (void)state;
    struct tokenizer tokenizer = {0};
    json_t *list = golden_list("tokens.json");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        expect_ids(&tokenizer, json_bytes(json_array_get(entry, 0)), json_array_get(entry, 1));
    }
    json_decref(list);
    tokenizer_clear(&tokenizer);
}

static void well_known_texts_have_their_ids(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"a photo of a cat", "[320,1125,539,320,2368]"},
        {"A Photo  of\na CAT", "[320,1125,539,320,2368]"},
        {"masterpiece, best quality, 1girl", "[12066,267,949,3027,267,272,1611]"},
        {"photo-realistic", "[1125,268,16157]"},
        {"it's don't we'll", "[585,568,847,713,649,1342]"},
        {"cat!!!", "[2368,995]"},
        {"2024", "[273,271,273,275]"},
        {"1.5", "[272,269,276]"},
        {"a BREAK b", "[320,2568,321]"},
        {"(literal)", "[263,24269,264]"},
        {"café", "[15304]"},
        {"e\u0301", "[4166]"},
        {"naïve", "[1097,35689,563]"},
        {"日本語", "[37156,19277,361,34002,508]"},
        {"猫と犬", "[163,234,360,4813,357,163,232,361]"},
        {"\u200bzero", "[5848]"},
        {"Łódź", "[40419,8891,67,129,374]"},
        {"ß", "[127,509]"},
        {"🐱", "[22979]"},
        {"emoji 🐱👍", "[16327,35710,4201]"},
        {"<lora:foo:1>", "[283,2179,320,281,23435,281,272,285]"},
        {"8k, hdr, f/1.8, 50mm", "[279,330,267,28065,267,325,270,272,269,279,267,276,271,2848]"},
        {"<|endoftext|> x", "[49407,343]"},
        {"a_b-c", "[320,318,321,268,322]"},
        {"", "[]"},
        {"   ", "[]"},
        {"!!", "[748]"},
        {"½ cup", "[33613,1937]"},
        {"İstanbul", "[328,16384,11231]"},
    };
    struct tokenizer tokenizer = {0};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        json_t *ids = json_loads(rows[i][1], 0, NULL);
        assert_non_null(ids);
        expect_ids(&tokenizer, text_of(rows[i][0]), ids);
        json_decref(ids);
    }
    tokenizer_clear(&tokenizer);
}

static void no_text_of_64_kib_takes_long(void **state)
{
    (void)state;
    static const char *const patterns[] = {
        "a", "ab", "th", "'", "<|", "!?", "a b ", "日", "🐱", "Σ'", "İ", "\u1f82", " ", "antidis",
    };
    struct tokenizer tokenizer = {0};
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        struct bytes text = repeated(patterns[i], 65536 / strlen(patterns[i]));
        struct token_ids ids = {0};
        double begin = cpu_ms();
        assert_int_equal(tokenizer_encode(&tokenizer, text, &ids, NULL), STATUS_OK);
        assert_true(cpu_ms() - begin < HOSTILE_MS_MAX);
        free(ids.items);
        bytes_free(text);
    }
    tokenizer_clear(&tokenizer);
}

static void combining_marks_in_the_wrong_order_are_sorted_quickly(void **state)
{
    (void)state;
    struct bytes above = repeated("\u0315", 16384);
    struct bytes below = repeated("\u0316", 16384);
    char *text = malloc(above.size + below.size);
    assert_non_null(text);
    memcpy(text, above.data, above.size);
    memcpy(text + above.size, below.data, below.size);
    struct tokenizer tokenizer = {0};
    struct token_ids found = {0}, expected = {0};
    double begin = cpu_ms();
    struct bytes both = {text, above.size + below.size};
    assert_int_equal(tokenizer_encode(&tokenizer, both, &found, NULL), STATUS_OK);
    assert_true(cpu_ms() - begin < HOSTILE_MS_MAX);

    memcpy(text, below.data, below.size);
    memcpy(text + below.size, above.data, above.size);
    assert_int_equal(tokenizer_encode(&tokenizer, both, &expected, NULL), STATUS_OK);
    assert_int_equal(found.count, expected.count);
    assert_memory_equal(found.items, expected.items, found.count * sizeof *found.items);
    free(found.items);
    free(expected.items);
    free(text);
    bytes_free(above);
    bytes_free(below);
    tokenizer_clear(&tokenizer);
}

static void invalid_utf8_is_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {"a\xff", "\xc3", "\xed\xa0\x80", "\xc0\xaf",
                                        "\xf4\x90\x80\x80"};
    struct tokenizer tokenizer = {0};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct token_ids ids = {0};
        struct error error;
        assert_int_equal(tokenizer_encode(&tokenizer, text_of(texts[i]), &ids, &error),
                         STATUS_INVALID_ARGUMENT);
        free(ids.items);
    }
    tokenizer_clear(&tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_those_of_the_reference),
        cmocka_unit_test(well_known_texts_have_their_ids),
        cmocka_unit_test(no_text_of_64_kib_takes_long),
        cmocka_unit_test(combining_marks_in_the_wrong_order_are_sorted_quickly),
        cmocka_unit_test(invalid_utf8_is_refused),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
