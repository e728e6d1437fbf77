// files.h - what the tests of model files share: temporary files and the golden expectations.

#ifndef TESTS_UNIT_MODELS_FILES_H
#define TESTS_UNIT_MODELS_FILES_H

#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "models/files/tensors.h"

#define GOLDEN LUNA_SOURCE_DIR "/tests/golden/files/"

// Makes a temporary file; path gets its name. The caller unlinks it and closes the descriptor.
static inline int make_file(char path[64])
{
    snprintf(path, 64, "%s/luna-test-XXXXXX", P_tmpdir);
    int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    return descriptor;
}

static inline json_t *load_expected(void)
{
    json_t *expected = json_load_file(GOLDEN "expected.json", 0, NULL);
    assert_non_null(expected);
    return expected;
}

// Compares names, dtypes, dims and the content hash of a table with what Python wrote.
static inline void assert_table(const struct tensor_table *table, const json_t *expected)
{
    const json_t *tensors = json_object_get(expected, "tensors");
    assert_int_equal(tensor_table_count(table), json_object_size(tensors));
    for (uint32_t i = 0; i < tensor_table_count(table); i++) {
        const struct tensor *tensor = tensor_table_at(table, i);
        const json_t *entry = json_object_get(tensors, tensor->name);
        assert_non_null(entry);
        assert_string_equal(dtype_name(tensor->dtype),
                            json_string_value(json_object_get(entry, "dtype")));
        const json_t *dims = json_object_get(entry, "dims");
        assert_int_equal(tensor->rank, json_array_size(dims));
        for (uint32_t j = 0; j < tensor->rank; j++) {
            assert_int_equal(tensor->dims[j], json_integer_value(json_array_get(dims, j)));
        }
    }
    struct hash hash;
    char hex[HASH_HEX_BYTES];
    assert_int_equal(tensor_table_hash(table, NULL, NULL, &hash), STATUS_OK);
    hash_to_hex(&hash, hex);
    assert_string_equal(hex, json_string_value(json_object_get(expected, "hash")));
}

#endif  // TESTS_UNIT_MODELS_FILES_H
