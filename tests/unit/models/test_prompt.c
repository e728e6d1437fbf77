// test_prompt.c - parentheses and weights are read as ComfyUI reads them, in linear time.

#include "models/text/prompt.h"

#include <math.h>

#include "models/text/number.h"
#include "tests/unit/models/text_kit.h"

#define HOSTILE_MS_MAX 1000.0

static bool same_number(double a, double b)
{
    if (isnan(a) || isnan(b)) return isnan(a) && isnan(b);
    return memcmp(&a, &b, sizeof a) == 0;
}

// Reads what Python's float.hex writes.
static double hex_number(const json_t *text)
{
    return strtod(json_string_value(text), NULL);
}

static void numbers_are_those_of_python(void **state)
{
    (void)state;
    json_t *list = golden_list("numbers.json");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        const json_t *expected = json_array_get(entry, 1);
        struct bytes text = json_bytes(json_array_get(entry, 0));
        double found = 42.0;
        bool valid = number_parse(text, &found);
        if (valid == json_is_null(expected)) fail_msg("entry %zu: %d", i, valid);
        if (valid && !same_number(found, hex_number(expected))) fail_msg("entry %zu: %a", i, found);
        if (!valid) assert_true(found == 42.0);
    }
    json_decref(list);
}

static void segments_are_those_of_the_reference(void **state)
{
    (void)state;
    json_t *list = golden_list("prompts.json");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        const json_t *expected = json_array_get(entry, 1);
        struct bytes text = json_bytes(json_array_get(entry, 0));
        struct prompt prompt = {0};
        assert_int_equal(prompt_parse(&prompt, text, false, NULL), STATUS_OK);
        if (prompt.count != json_array_size(expected)) fail_msg("entry %zu: %u", i, prompt.count);
        for (uint32_t j = 0; j < prompt.count; j++) {
            const json_t *segment = json_array_get(expected, j);
            struct bytes segment_text = json_bytes(json_array_get(segment, 0));
            assert_int_equal(prompt.items[j].text.size, segment_text.size);
            assert_memory_equal(prompt.items[j].text.data, segment_text.data, segment_text.size);
            double weight = hex_number(json_array_get(segment, 1));
            if (!same_number(prompt.items[j].weight, weight)) fail_msg("entry %zu: weight", i);
        }
        prompt_clear(&prompt);
    }
    json_decref(list);
}

static void well_known_prompts_have_their_weights(void **state)
{
    (void)state;
    static const struct {
        const char *prompt;
        const char *texts[5];
        double weights[5];
    } rows[] = {
        {"a (b) c", {"a ", "b", " c"}, {1, 1.1, 1}},
        {"((a))", {"a"}, {1.2100000000000002}},
        {"(a:1.3)", {"a"}, {1.3}},
        {"((a:1.3))", {"a"}, {1.3}},
        {"((a):1.3)", {"a"}, {1.4300000000000002}},
        {"(a:0)", {"a"}, {0}},
        {"a) (b", {"a) (b"}, {1}},
        {"(a", {"(a"}, {1}},
        {"((a)", {"(a"}, {1.1}},
        {"(:1.2)", {":1.2"}, {1.1}},
        {"(a:b:1.2)", {"a:b"}, {1.2}},
        {"(embedding:foo:1.2)", {"embedding:foo"}, {1.2}},
        {"(embedding:foo)", {"embedding:foo"}, {1.1}},
        {"(embedding:123)", {"embedding"}, {123}},
        {"(a:)", {"a:"}, {1.1}},
        {"(a: 1.2 )", {"a"}, {1.2}},
        {"(a:nan)", {"a"}, {(double)NAN}},
        {"(a:-1)", {"a"}, {-1}},
        {"(a:1_0)", {"a"}, {10}},
        {"(a:1e1)", {"a"}, {10}},
        {"[a]", {"[a]"}, {1}},
        {"\\(a\\)", {"(a)"}, {1}},
        {"\\\\(a)", {"\\(a)"}, {1}},
        {"(a:1.2, b)", {"a:1.2, b"}, {1.1}},
        {"()", {NULL}, {0}},
        {"(())", {NULL}, {0}},
        {"x ((((y (z:6) w:100)))) q", {"x ", "y ", "z", " w", " q"}, {1, 100, 6, 100, 1}},
        {"a:1.2", {"a:1.2"}, {1}},
        {")a(b)", {")a(b)"}, {1}},
        {"(a))b(c)", {"a", ")b(c)"}, {1.1, 1}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct prompt prompt = {0};
        assert_int_equal(prompt_parse(&prompt, text_of(rows[i].prompt), false, NULL), STATUS_OK);
        uint32_t count = 0;
        while (count < 5 && rows[i].texts[count] != NULL) count += 1;
        assert_int_equal(prompt.count, count);
        for (uint32_t j = 0; j < count; j++) {
            assert_int_equal(prompt.items[j].text.size, strlen(rows[i].texts[j]));
            assert_memory_equal(prompt.items[j].text.data, rows[i].texts[j],
                                strlen(rows[i].texts[j]));
            assert_true(same_number(prompt.items[j].weight, rows[i].weights[j]));
        }
        prompt_clear(&prompt);
    }
}

static void disabled_weights_leave_one_plain_text(void **state)
{
    (void)state;
    struct prompt prompt = {0};
    assert_int_equal(prompt_parse(&prompt, text_of("a (b:2) \\(c\\)"), true, NULL), STATUS_OK);
    assert_int_equal(prompt.count, 1);
    assert_int_equal(prompt.items[0].text.size, strlen("a (b:2) (c)"));
    assert_memory_equal(prompt.items[0].text.data, "a (b:2) (c)", strlen("a (b:2) (c)"));
    assert_true(prompt.items[0].weight == 1.0);
    prompt_clear(&prompt);
}

static void no_nesting_takes_long(void **state)
{
    (void)state;
    static const char *const parts[][3] = {
        {"(", "a", ")"},  {"(", "", ""},           {"", "", ")"},       {"(a:", "", "1)"},
        {"((", "a", ")"}, {"(", ":11111111", ")"}, {"(a)", "", ""},     {"(", "a:1 2", ")"},
        {")", "", "("},   {"(:", "", ")"},         {"(a:1.1)", "", ""}, {"((a)", "", ")"},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        struct bytes front = repeated(parts[i][0], 250000);
        struct bytes back = repeated(parts[i][2], 250000);
        size_t middle = strlen(parts[i][1]);
        char *text = malloc(front.size + middle + back.size + 1);
        assert_non_null(text);
        memcpy(text, front.data, front.size);
        memcpy(text + front.size, parts[i][1], middle);
        memcpy(text + front.size + middle, back.data, back.size);
        struct prompt prompt = {0};
        double begin = cpu_ms();
        struct bytes all = {text, front.size + middle + back.size};
        assert_int_equal(prompt_parse(&prompt, all, false, NULL), STATUS_OK);
        assert_true(cpu_ms() - begin < HOSTILE_MS_MAX);
        prompt_clear(&prompt);
        free(text);
        bytes_free(front);
        bytes_free(back);
    }
}

static void deep_nesting_multiplies_all_the_way(void **state)
{
    (void)state;
    struct prompt prompt = {0};
    struct bytes front = repeated("(", 30000);
    char *text = malloc(2 * front.size + 1);
    assert_non_null(text);
    memcpy(text, front.data, front.size);
    text[front.size] = 'a';
    memset(text + front.size + 1, ')', front.size);
    struct bytes all = {text, 2 * front.size + 1};
    assert_int_equal(prompt_parse(&prompt, all, false, NULL), STATUS_OK);
    assert_int_equal(prompt.count, 1);
    assert_int_equal(prompt.items[0].text.size, 1);
    assert_true(isinf(prompt.items[0].weight));
    prompt_clear(&prompt);
    free(text);
    bytes_free(front);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_are_those_of_python),
        cmocka_unit_test(segments_are_those_of_the_reference),
        cmocka_unit_test(well_known_prompts_have_their_weights),
        cmocka_unit_test(disabled_weights_leave_one_plain_text),
        cmocka_unit_test(no_nesting_takes_long),
        cmocka_unit_test(deep_nesting_multiplies_all_the_way),
    };
    return cmocka_run_group_tests_name("prompt", tests, NULL, NULL);
}
