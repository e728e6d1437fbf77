// text_kit.h - golden files and hostile texts for the tests of models/text.

#ifndef TESTS_UNIT_MODELS_TEXT_KIT_H
#define TESTS_UNIT_MODELS_TEXT_KIT_H

#include "tests/test.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

#include "base/bytes.h"

#define TEXT_GOLDEN LUNA_SOURCE_DIR "/tests/golden/text/"

// Loads a golden file that is a list with something in it.
static inline json_t *golden_list(const char *name)
{
    char path[512];
    json_error_t error;
    snprintf(path, sizeof path, TEXT_GOLDEN "%s", name);
    json_t *list = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (list == NULL) fail_msg("%s: line %d: %s", path, error.line, error.text);
    assert_true(json_is_array(list));
    assert_true(json_array_size(list) > 0);
    return list;
}

static inline struct bytes json_bytes(const json_t *string)
{
    assert_true(json_is_string(string));
    return (struct bytes){json_string_value(string), json_string_length(string)};
}

static inline struct bytes text_of(const char *string)
{
    return (struct bytes){string, strlen(string)};
}

// `count` repetitions of a string; the caller frees data.
static inline struct bytes repeated(const char *string, size_t count)
{
    size_t length = strlen(string);
    char *data = malloc(length * count + 1);
    assert_non_null(data);
    for (size_t i = 0; i < count; i++) memcpy(data + i * length, string, length + 1);
    return (struct bytes){data, length * count};
}

static inline void bytes_free(struct bytes bytes)
{
    union {
        const void *constant;
        void *data;
    } owned = {.constant = bytes.data};
    free(owned.data);
}

// Processor time in milliseconds.
static inline double cpu_ms(void)
{
    return (double)clock() * 1e3 / CLOCKS_PER_SEC;
}

#endif  // TESTS_UNIT_MODELS_TEXT_KIT_H
