// test_shared_memory.c - the size of shared memory stays, and strangers' descriptors are checked.

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/shared_memory.h"
#include "tests/test.h"

#define MEGABYTE (1u << 20)

static void two_mappings_show_the_same_bytes(void **state)
{
    (void)state;
    struct shared_memory ours = {.descriptor = -1};
    struct shared_memory theirs = {.descriptor = -1};
    assert_int_equal(shared_memory_create(&ours, "test", MEGABYTE, NULL), STATUS_OK);
    assert_true(fcntl(ours.descriptor, F_GETFD) & FD_CLOEXEC);
    int copy = dup(ours.descriptor);
    assert_int_equal(shared_memory_map(&theirs, copy, MEGABYTE, MEGABYTE, true, NULL), STATUS_OK);
    assert_ptr_not_equal(ours.address, theirs.address);
    memcpy(shared_memory_range(&ours, MEGABYTE - 5, 5), "hello", 5);
    assert_memory_equal(shared_memory_range(&theirs, MEGABYTE - 5, 5), "hello", 5);
    shared_memory_destroy(&ours);
    assert_int_equal(ours.descriptor, -1);
    assert_memory_equal(shared_memory_range(&theirs, MEGABYTE - 5, 5), "hello", 5);
    shared_memory_destroy(&theirs);
    assert_false(is_open(copy));
    shared_memory_destroy(&theirs);
}

static void nobody_can_change_the_size(void **state)
{
    (void)state;
    struct shared_memory memory = {.descriptor = -1};
    assert_int_equal(shared_memory_create(&memory, "test", MEGABYTE, NULL), STATUS_OK);
    assert_int_equal(ftruncate(memory.descriptor, 0), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(memory.descriptor, 2 * MEGABYTE), -1);
    assert_int_equal(fcntl(memory.descriptor, F_ADD_SEALS, F_SEAL_WRITE), -1);
    shared_memory_destroy(&memory);
}

static void ranges_outside_are_not_given(void **state)
{
    (void)state;
    struct shared_memory memory = {.descriptor = -1};
    assert_int_equal(shared_memory_create(&memory, "test", 4096, NULL), STATUS_OK);
    assert_ptr_equal(shared_memory_range(&memory, 0, 4096), memory.address);
    assert_non_null(shared_memory_range(&memory, 4096, 0));
    assert_null(shared_memory_range(&memory, 0, 4097));
    assert_null(shared_memory_range(&memory, 4097, 0));
    assert_null(shared_memory_range(&memory, 4095, 2));
    assert_null(shared_memory_range(&memory, UINT64_MAX, 2));
    assert_null(shared_memory_range(&memory, 2, UINT64_MAX));
    shared_memory_destroy(&memory);
}

static void a_read_only_descriptor_cannot_be_mapped_for_writing(void **state)
{
    (void)state;
    struct shared_memory memory = {.descriptor = -1};
    struct shared_memory reader = {.descriptor = -1};
    int descriptor = -1;
    assert_int_equal(shared_memory_create(&memory, "test", 4096, NULL), STATUS_OK);
    assert_int_equal(shared_memory_read_only(&memory, &descriptor, NULL), STATUS_OK);
    assert_int_equal(shared_memory_map(&reader, descriptor, 0, 4096, true, NULL),
                     STATUS_PERMISSION_DENIED);
    assert_true(is_open(descriptor));
    assert_int_equal(write(descriptor, "x", 1), -1);
    assert_int_equal(shared_memory_map(&reader, descriptor, 0, 4096, false, NULL), STATUS_OK);
    memcpy(memory.address, "read", 4);
    assert_memory_equal(reader.address, "read", 4);
    shared_memory_destroy(&reader);
    shared_memory_destroy(&memory);
}

static void assert_foreign(int descriptor, uint64_t expected, uint64_t max, enum status status)
{
    struct shared_memory memory = {.descriptor = -1};
    struct error error = {0};
    assert_true(descriptor >= 0);
    assert_int_equal(shared_memory_map(&memory, descriptor, expected, max, true, &error), status);
    assert_int_equal(error.status, status);
    assert_null(memory.address);
    assert_true(is_open(descriptor));
}

static void foreign_descriptors_that_could_hurt_are_refused(void **state)
{
    (void)state;
    int unsealed = memfd_create("unsealed", MFD_ALLOW_SEALING);
    int half = memfd_create("half", MFD_ALLOW_SEALING);
    int empty = memfd_create("empty", MFD_ALLOW_SEALING);
    char path[] = P_tmpdir "/luna-memory-XXXXXX";
    int file = mkstemp(path);
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(ftruncate(unsealed, 4096), 0);
    assert_int_equal(ftruncate(half, 4096), 0);
    assert_int_equal(ftruncate(file, 4096), 0);
    assert_int_equal(fcntl(half, F_ADD_SEALS, F_SEAL_GROW), 0);
    assert_int_equal(fcntl(empty, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK), 0);
    assert_foreign(unsealed, 0, MEGABYTE, STATUS_INVALID_ARGUMENT);
    assert_foreign(half, 0, MEGABYTE, STATUS_INVALID_ARGUMENT);
    assert_foreign(empty, 0, MEGABYTE, STATUS_INVALID_ARGUMENT);
    assert_foreign(file, 0, MEGABYTE, STATUS_INVALID_ARGUMENT);
    assert_foreign(ends[0], 0, MEGABYTE, STATUS_INVALID_ARGUMENT);
    assert_int_equal(fcntl(half, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    assert_foreign(half, 8192, MEGABYTE, STATUS_INVALID_ARGUMENT);
    assert_foreign(half, 0, 4095, STATUS_INVALID_ARGUMENT);
    struct shared_memory memory = {.descriptor = -1};
    assert_int_equal(shared_memory_map(&memory, half, 4096, 4096, true, NULL), STATUS_OK);
    shared_memory_destroy(&memory);
    unlink(path);
    close(file);
    close(unsealed);
    close(empty);
    close(ends[0]);
    close(ends[1]);
}

static void what_cannot_be_had_is_said(void **state)
{
    (void)state;
    struct shared_memory memory = {.descriptor = -1};
    struct error error = {0};
    assert_int_equal(shared_memory_create(&memory, "test", UINT64_MAX, &error),
                     STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(shared_memory_create(&memory, "test", 1ull << 60, &error),
                     STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(memory.descriptor, -1);
    assert_non_null(strstr(error.message, "1152921504606846976"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_mappings_show_the_same_bytes),
        cmocka_unit_test(nobody_can_change_the_size),
        cmocka_unit_test(ranges_outside_are_not_given),
        cmocka_unit_test(a_read_only_descriptor_cannot_be_mapped_for_writing),
        cmocka_unit_test(foreign_descriptors_that_could_hurt_are_refused),
        cmocka_unit_test(what_cannot_be_had_is_said),
    };
    return cmocka_run_group_tests_name("shared_memory", tests, NULL, NULL);
}
