// What the child that reads torch files promises. This program is its own child.

#include "actors/torch_child.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "models/files/torch_zip.h"
#include "tests/test.h"

static int file_of(const void *bytes, size_t size)
{
    int descriptor = memfd_create("torch", MFD_CLOEXEC);
    assert_true(descriptor >= 0);
    assert_int_equal(write(descriptor, bytes, size), (ssize_t)size);
    return descriptor;
}

static void what_is_no_torch_file_is_refused_with_the_readers_words(void **state)
{
    (void)state;
    struct torch_reader reader;
    struct bytes listing = {.data = NULL, .size = 7};
    struct error error = {0};
    int file = file_of("this is no zip", 14);
    torch_child_reader(&reader);
    assert_int_equal(reader.list(reader.context, file, &listing, &error), STATUS_INVALID_ARGUMENT);
    assert_int_equal(listing.size, 7);
    assert_true(error.message[0] != '\0');
    assert_true(is_open(file));
    close(file);
}

static void the_same_words_come_as_without_a_child(void **state)
{
    (void)state;
    struct torch_reader reader;
    struct bytes listing = {.data = NULL};
    struct error inside = {0};
    struct error outside = {0};
    uint8_t bytes[4096];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 31);
    memcpy(bytes, "PK\003\004", 4);
    int file = file_of(bytes, sizeof bytes);
    torch_child_reader(&reader);
    enum status with = reader.list(reader.context, file, &listing, &outside);
    enum status without = torch_zip_list(file, &listing, &inside);
    assert_int_equal(with, without);
    assert_int_not_equal(with, STATUS_OK);
    assert_string_equal(outside.message, inside.message);
    close(file);
}

static void no_descriptor_is_left_behind(void **state)
{
    (void)state;
    struct torch_reader reader;
    struct bytes listing = {.data = NULL};
    struct error error = {0};
    int file = file_of("nothing", 7);
    int before = dup(file);
    close(before);
    torch_child_reader(&reader);
    for (int i = 0; i < 3; i++) reader.list(reader.context, file, &listing, &error);
    int after = dup(file);
    assert_int_equal(after, before);
    close(after);
    close(file);
}

static void without_descriptors_it_is_an_error_and_no_crash(void **state)
{
    (void)state;
    struct torch_reader reader;
    struct bytes listing = {.data = NULL};
    struct error error = {0};
    int file = file_of("nothing", 7);
    torch_child_reader(&reader);
    rlim_t before = limit_descriptors((rlim_t)file + 1);
    assert_int_equal(reader.list(reader.context, file, &listing, &error), STATUS_INTERNAL);
    limit_descriptors(before);
    close(file);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], TORCH_CHILD_WORD) == 0) return torch_child_main();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_no_torch_file_is_refused_with_the_readers_words),
        cmocka_unit_test(the_same_words_come_as_without_a_child),
        cmocka_unit_test(no_descriptor_is_left_behind),
        cmocka_unit_test(without_descriptors_it_is_an_error_and_no_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
