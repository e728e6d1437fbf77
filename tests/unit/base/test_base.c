// test_base.c - errors that can be shown, UTF-8, hexadecimal, checked sums, clocks.

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/pages.h"
#include "base/text.h"
#include "tests/test.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

static void an_error_has_status_and_sentence(void **state)
{
    (void)state;
    struct error error = {.retry_after_ms = 5};
    assert_int_equal(error_set(&error, STATUS_NOT_FOUND, "no model \"%s\"", "x"), STATUS_NOT_FOUND);
    assert_int_equal(error.status, STATUS_NOT_FOUND);
    assert_int_equal(error.retry_after_ms, 0);
    assert_string_equal(error.message, "no model \"x\"");
    assert_int_equal(error_prefix(&error, "file %d", 7), STATUS_NOT_FOUND);
    assert_string_equal(error.message, "file 7: no model \"x\"");
    assert_int_equal(error_set(NULL, STATUS_INTERNAL, "nobody reads this"), STATUS_INTERNAL);
}

static void what_cannot_be_printed_is_escaped(void **state)
{
    (void)state;
    struct error error = {0};
    error_set(&error, STATUS_INTERNAL, "%s",
              "a\nb\x1b\x7f\xc3\xa4\xff\xc0\xaf\xed\xa0\x80\xc2\x9b");
    assert_string_equal(error.message,
                        "a\\x0ab\\x1b\\x7f\xc3\xa4\\xff\\xc0\\xaf\\xed\\xa0\\x80\\xc2\\x9b");
    assert_true(utf8_valid((struct bytes){error.message, strlen(error.message)}));
}

static void long_errors_are_cut_at_a_characters_border(void **state)
{
    (void)state;
    // Whatever lies at the end: one byte, an escape of four, a character of three.
    const char *const units[] = {"x", "\n", "\xe2\x82\xac"};
    for (size_t unit = 0; unit < 3; unit++) {
        for (size_t shift = 0; shift < 8; shift++) {
            char text[2000] = "";
            struct error error = {0};
            memset(text, 'a', shift);
            text[shift] = '\0';
            while (strlen(text) + 4 < 1500) strcat(text, units[unit]);
            error_set(&error, STATUS_INTERNAL, "%s", text);
            size_t length = strlen(error.message);
            assert_in_range(length, ERROR_MESSAGE_BYTES - 8, ERROR_MESSAGE_BYTES - 1);
            assert_string_equal(error.message + length - 3, "...");
            assert_true(utf8_valid((struct bytes){error.message, length}));
            error_prefix(&error, "%s", text);
            assert_true(strlen(error.message) < ERROR_MESSAGE_BYTES);
        }
    }
}

static void a_text_that_just_fits_is_not_cut(void **state)
{
    (void)state;
    char out[8];
    text_copy_printable(out, sizeof out, "1234567");
    assert_string_equal(out, "1234567");
    text_copy_printable(out, sizeof out, "12345678");
    assert_string_equal(out, "1234...");
    text_copy_printable(out, sizeof out, "123\n");
    assert_string_equal(out, "123\\x0a");
    text_copy_printable(out, 4, "1234");
    assert_string_equal(out, "...");
    text_copy_printable(out, 4, "");
    assert_string_equal(out, "");
}

// The code point's UTF-8 form by its definition, also of points that have none.
static size_t encode(uint32_t point, uint8_t out[4])
{
    if (point < 0x80) {
        out[0] = (uint8_t)point;
        return 1;
    }
    size_t length = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    const uint8_t leads[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = length - 1; i > 0; i--, point >>= 6) out[i] = (uint8_t)(0x80 | (point & 63));
    out[0] = (uint8_t)(leads[length] | point);
    return length;
}

static void every_code_point_is_valid_and_nothing_else(void **state)
{
    (void)state;
    for (uint32_t point = 0; point < 0x120000; point++) {
        uint8_t text[4];
        size_t length = encode(point, text);
        bool expected = point < 0x110000 && (point < 0xd800 || point > 0xdfff);
        assert_int_equal(utf8_valid((struct bytes){text, length}), expected);
        if (length > 1) assert_false(utf8_valid((struct bytes){text, length - 1}));
    }
    const char *const wrong[] = {
        "\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xf8\x88\x80\x80\x80",
        "\xff", "a\xc3"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_false(utf8_valid((struct bytes){wrong[i], strlen(wrong[i])}));
    }
    assert_true(utf8_valid((struct bytes){NULL, 0}));
}

static void a_hash_survives_its_hexadecimal_form(void **state)
{
    (void)state;
    struct hash hash, back = {{0}};
    char text[HASH_HEX_BYTES];
    for (unsigned i = 0; i < sizeof hash.value; i++) hash.value[i] = (uint8_t)(i * 37 + 5);
    hash_to_hex(&hash, text);
    assert_int_equal(strlen(text), 64);
    assert_memory_equal(text, "052a4f74", 8);
    assert_true(hash_from_hex(text, &back));
    assert_true(hash_equal(&hash, &back));
    back.value[31] ^= 1;
    assert_false(hash_equal(&hash, &back));
    struct hash untouched = back;
    for (size_t i = 0; i < 64; i += 9) {
        char saved = text[i];
        const char wrong[] = {'g', ' ', '\0', '/', ':', '@', '`'};
        for (size_t j = 0; j < sizeof wrong; j++) {
            text[i] = wrong[j];
            assert_false(hash_from_hex(text, &back));
        }
        text[i] = saved;
    }
    assert_false(hash_from_hex("", &back));
    assert_memory_equal(&back, &untouched, sizeof back);
    char longer[HASH_HEX_BYTES + 1];
    memcpy(longer, text, 64);
    memcpy(longer + 64, "0", 2);
    assert_false(hash_from_hex(longer, &back));
    text[0] = '0';
    text[3] = 'A';
    assert_true(hash_from_hex(text, &back));
    assert_int_equal(back.value[1], 0x2a);
}

static void numbers_are_little_endian_at_any_address(void **state)
{
    (void)state;
    uint8_t bytes[16] = {0};
    store_u64(bytes + 1, 0x0123456789abcdefull);
    assert_int_equal(bytes[1], 0xef);
    assert_int_equal(bytes[8], 0x01);
    assert_true(load_u64(bytes + 1) == 0x0123456789abcdefull);
    assert_int_equal(load_u16(bytes + 1), 0xcdef);
    store_u32(bytes + 3, 0xdeadbeef);
    assert_true(load_u32(bytes + 3) == 0xdeadbeef);
}

static void sums_that_overflow_are_refused_and_leave_the_result(void **state)
{
    (void)state;
    uint64_t out = 7;
    const uint64_t dims[] = {1u << 31, 1u << 31, 4};
    assert_false(checked_add(UINT64_MAX, 1, &out));
    assert_false(checked_multiply(1ull << 32, 1ull << 32, &out));
    assert_false(checked_product(dims, 3, &out));
    assert_int_equal(out, 7);
    assert_true(checked_product(dims, 2, &out));
    assert_true(out == 1ull << 62);
    assert_true(checked_product(dims, 0, &out));
    assert_int_equal(out, 1);
    assert_true(checked_add(UINT64_MAX, 0, &out));
    assert_int_equal(round_up(0, 64), 0);
    assert_int_equal(round_up(65, 64), 128);
}

static void sealed_pages_can_be_read_and_not_written(void **state)
{
    (void)state;
    struct error error = {0};
    struct pages pages = {.data = NULL};
    pages_release(&pages);
    assert_int_equal(pages_take(&pages, 100, &error), STATUS_OK);
    assert_int_equal(pages.bytes, pages_round(1));
    memset(pages.data, 7, 100);
    assert_int_equal(pages_seal(&pages, 100, &error), STATUS_OK);
    assert_int_equal(((const uint8_t *)pages.data)[99], 7);
#ifdef __SANITIZE_ADDRESS__
    assert_false(__asan_address_is_poisoned((char *)pages.data + 127));
    assert_true(__asan_address_is_poisoned((char *)pages.data + 128));
#endif
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);  // whatever handles it in a test is not asked
        *(volatile uint8_t *)pages.data = 1;
        _exit(0);
    }
    int how = 0;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFSIGNALED(how));
    assert_int_equal(WTERMSIG(how), SIGSEGV);
    pages_release(&pages);
    assert_null(pages.data);
    assert_int_equal(pages_take(&pages, UINT64_C(1) << 60, &error), STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(error.message, "1152921504606846976"));
    assert_null(pages.data);
}

static void a_manual_clock_stands_until_it_is_moved(void **state)
{
    (void)state;
    struct clock clock = clock_manual(1500000);
    assert_int_equal(clock_ns(&clock), 1500000);
    assert_int_equal(clock_ms(&clock), 1);
    clock_advance(&clock, 500000);
    assert_int_equal(clock_ms(&clock), 2);
    uint64_t before = clock_ns(clock_system());
    uint64_t after = clock_ns(clock_system());
    assert_true(after >= before);
    assert_true(before > 0);
}

static void every_status_has_a_name(void **state)
{
    (void)state;
    assert_string_equal(status_name(STATUS_OK), "OK");
    assert_string_equal(status_name(STATUS_RESOURCE_EXHAUSTED), "RESOURCE_EXHAUSTED");
    assert_string_equal(status_name(STATUS_UNAUTHENTICATED), "UNAUTHENTICATED");
    assert_string_equal(status_name((enum status)2), "UNKNOWN");
    assert_string_equal(status_name((enum status)99), "UNKNOWN");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_error_has_status_and_sentence),
        cmocka_unit_test(what_cannot_be_printed_is_escaped),
        cmocka_unit_test(long_errors_are_cut_at_a_characters_border),
        cmocka_unit_test(a_text_that_just_fits_is_not_cut),
        cmocka_unit_test(every_code_point_is_valid_and_nothing_else),
        cmocka_unit_test(a_hash_survives_its_hexadecimal_form),
        cmocka_unit_test(numbers_are_little_endian_at_any_address),
        cmocka_unit_test(sums_that_overflow_are_refused_and_leave_the_result),
        cmocka_unit_test(sealed_pages_can_be_read_and_not_written),
        cmocka_unit_test(a_manual_clock_stands_until_it_is_moved),
        cmocka_unit_test(every_status_has_a_name),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
