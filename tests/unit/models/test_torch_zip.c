// Torch files as torch.save writes them, and as an attacker would.

#include "tests/unit/models/files.h"

#include <sys/stat.h>

#include "models/files/torch_zip.h"

static void files_of_torch_save_read_as_python_has_them(void **state)
{
    (void)state;
    json_t *expected = load_expected();
    struct torch_reader reader = torch_reader_in_process();
    const char *name = NULL;
    json_t *entry = NULL;
    json_object_foreach(json_object_get(expected, "tables"), name, entry)
    {
        char path[512];
        struct error error = {0};
        struct tensor_table *table = NULL;
        snprintf(path, sizeof path, GOLDEN "%s", name);
        if (tensor_table_open(&table, path, &reader, &error) != STATUS_OK) {
            fail_msg("%s: %s", name, error.message);
        }
        assert_table(table, entry);
        tensor_table_release(&table);
    }
    json_decref(expected);
}

static void hostile_files_are_refused_with_the_reason(void **state)
{
    (void)state;
    json_t *expected = load_expected();
    struct torch_reader reader = torch_reader_in_process();
    const char *name = NULL;
    json_t *reason = NULL;
    assert_true(json_object_size(json_object_get(expected, "errors")) > 40);
    json_object_foreach(json_object_get(expected, "errors"), name, reason)
    {
        char path[512];
        struct error error = {0};
        struct tensor_table *table = NULL;
        snprintf(path, sizeof path, GOLDEN "%s", name);
        assert_int_equal(tensor_table_open(&table, path, &reader, &error), STATUS_INVALID_ARGUMENT);
        assert_null(table);
        if (strstr(error.message, json_string_value(reason)) == NULL) {
            fail_msg("%s: \"%s\" does not say \"%s\"", name, error.message,
                     json_string_value(reason));
        }
    }
    json_decref(expected);
}

static void a_file_cut_anywhere_is_refused(void **state)
{
    (void)state;
    static uint8_t whole[4096];
    FILE *file = fopen(GOLDEN "good.pt", "rb");
    assert_non_null(file);
    size_t bytes = fread(whole, 1, sizeof whole, file);
    fclose(file);
    assert_true(bytes > 300 && bytes < sizeof whole);
    for (size_t cut = 0; cut < bytes; cut++) {
        char path[64];
        struct bytes listing = {NULL, 0};
        int descriptor = make_file(path);
        assert_int_equal(write(descriptor, whole, cut), cut);
        assert_int_equal(torch_zip_list(descriptor, &listing, NULL), STATUS_INVALID_ARGUMENT);
        close(descriptor);
        unlink(path);
    }
}

// A reader whose child answers what the context holds.
static enum status lie(void *context, int descriptor, struct bytes *listing, struct error *error)
{
    (void)descriptor;
    (void)error;
    const struct bytes *answer = context;
    void *copy = malloc(answer->size + 1);
    assert_non_null(copy);
    memcpy(copy, answer->data, answer->size);
    *listing = (struct bytes){copy, answer->size};
    return STATUS_OK;
}

static enum status open_with_listing(const uint8_t *listing, uint64_t bytes)
{
    struct bytes answer = {listing, bytes};
    struct torch_reader reader = {.list = lie, .context = &answer};
    struct tensor_table *table = NULL;
    enum status status = tensor_table_open(&table, GOLDEN "good.pt", &reader, NULL);
    tensor_table_release(&table);
    return status;
}

static uint64_t golden_bytes(const char *name)
{
    char path[512];
    struct stat facts;
    snprintf(path, sizeof path, GOLDEN "%s", name);
    assert_int_equal(stat(path, &facts), 0);
    return (uint64_t)facts.st_size;
}

static void a_child_that_lies_is_not_believed(void **state)
{
    (void)state;
    uint8_t listing[64] = {0};
    const uint64_t bytes = 8 + 4 + 1 + 4 + 4 + 8 + 8 + 8;
    store_u32(listing, TORCH_LISTING_MAGIC);
    store_u32(listing + 4, 1);
    store_u32(listing + 8, 1);
    listing[12] = 'w';
    store_u32(listing + 13, DTYPE_F32);
    store_u32(listing + 17, 1);
    store_u64(listing + 21, 4);   // dims
    store_u64(listing + 29, 64);  // offset
    store_u64(listing + 37, 16);  // bytes
    assert_int_equal(open_with_listing(listing, bytes), STATUS_OK);

    for (uint64_t cut = 0; cut < bytes; cut++) {
        assert_int_equal(open_with_listing(listing, cut), STATUS_INVALID_ARGUMENT);
    }
    assert_int_equal(open_with_listing(listing, bytes + 1), STATUS_INVALID_ARGUMENT);
    store_u64(listing + 29, UINT64_MAX - 8);
    assert_int_equal(open_with_listing(listing, bytes), STATUS_INVALID_ARGUMENT);
    const uint64_t file_bytes = golden_bytes("good.pt");
    store_u64(listing + 29, file_bytes - 16);
    assert_int_equal(open_with_listing(listing, bytes), STATUS_OK);
    store_u64(listing + 29, file_bytes - 15);
    assert_int_equal(open_with_listing(listing, bytes), STATUS_INVALID_ARGUMENT);
    store_u64(listing + 29, 64);
    store_u64(listing + 37, 12);
    assert_int_equal(open_with_listing(listing, bytes), STATUS_INVALID_ARGUMENT);
    store_u64(listing + 37, 16);
    store_u32(listing + 13, DTYPE_COUNT);
    assert_int_equal(open_with_listing(listing, bytes), STATUS_INVALID_ARGUMENT);
    store_u32(listing + 13, DTYPE_F32);
    listing[12] = '\n';
    assert_int_equal(open_with_listing(listing, bytes), STATUS_INVALID_ARGUMENT);
}

static void without_a_reader_torch_files_are_refused(void **state)
{
    (void)state;
    struct error error = {0};
    struct tensor_table *table = NULL;
    assert_int_equal(tensor_table_open(&table, GOLDEN "good.pt", NULL, &error),
                     STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "safetensors"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_of_torch_save_read_as_python_has_them),
        cmocka_unit_test(hostile_files_are_refused_with_the_reason),
        cmocka_unit_test(a_file_cut_anywhere_is_refused),
        cmocka_unit_test(a_child_that_lies_is_not_believed),
        cmocka_unit_test(without_a_reader_torch_files_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
