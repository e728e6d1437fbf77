// What a core leaves to the next one: which models clients registered.

#include "actors/model_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "actors/event.h"
#include "tests/test.h"

struct fixture {
    char folder[64];                      // a new folder
    char path[96];                        // of the store in it
    struct model_store_entry written[3];  // see setup
    struct model_store_entry read[4];     // by the last read
    uint32_t count;                       // of them
    struct error error;                   // of the last call that failed
};

static int setup(void **state)
{
    struct fixture *self = calloc(1, sizeof *self);
    assert_non_null(self);
    snprintf(self->folder, sizeof self->folder, "%s/luna-store-XXXXXX", P_tmpdir);
    assert_non_null(mkdtemp(self->folder));
    snprintf(self->path, sizeof self->path, "%s/%s", self->folder, MODEL_STORE_NAME);
    for (uint32_t i = 0; i < 3; i++) {
        struct model_store_entry *entry = &self->written[i];
        snprintf(entry->name, sizeof entry->name, "model-%u", i);
        entry->order.files_count = i + 1;
        for (uint32_t k = 0; k <= i; k++) {
            snprintf(entry->order.files[k], sizeof entry->order.files[k], "folder %u/%u.pt", i, k);
        }
    }
    text_set(self->written[1].order.embeddings, sizeof self->written[1].order.embeddings, "words");
    *state = self;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *self = *state;
    char beside[128];
    snprintf(beside, sizeof beside, "%s.new", self->path);
    unlink(beside);
    unlink(self->path);
    rmdir(self->folder);
    free(self);
    return 0;
}

static enum status read_all(struct fixture *self)
{
    return model_store_read(self->path, self->read, 4, &self->count, &self->error);
}

static void what_was_written_is_read_again(void **state)
{
    struct fixture *self = *state;
    assert_int_equal(model_store_write(self->path, self->written, 3, &self->error), STATUS_OK);
    assert_int_equal(read_all(self), STATUS_OK);
    assert_int_equal(self->count, 3);
    assert_memory_equal(self->read, self->written, sizeof self->written);
}

static void no_file_holds_no_models(void **state)
{
    struct fixture *self = *state;
    assert_int_equal(read_all(self), STATUS_OK);
    assert_int_equal(self->count, 0);
}

static void the_file_is_ours_alone_and_replaced_as_a_whole(void **state)
{
    struct fixture *self = *state;
    struct stat facts;
    assert_int_equal(model_store_write(self->path, self->written, 3, &self->error), STATUS_OK);
    assert_int_equal(model_store_write(self->path, self->written, 1, &self->error), STATUS_OK);
    assert_int_equal(stat(self->path, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0600);
    assert_int_equal(read_all(self), STATUS_OK);
    assert_int_equal(self->count, 1);
}

static void what_a_writer_that_died_left_beside_is_in_nobodys_way(void **state)
{
    struct fixture *self = *state;
    char beside[128];
    snprintf(beside, sizeof beside, "%s.new", self->path);
    FILE *file = fopen(beside, "w");
    assert_non_null(file);
    fputs("half", file);
    fclose(file);
    assert_int_equal(model_store_write(self->path, self->written, 2, &self->error), STATUS_OK);
    assert_int_equal(read_all(self), STATUS_OK);
    assert_int_equal(self->count, 2);
    assert_int_equal(access(beside, F_OK), -1);
}

static void more_than_fit_are_left_aside(void **state)
{
    struct fixture *self = *state;
    assert_int_equal(model_store_write(self->path, self->written, 3, &self->error), STATUS_OK);
    assert_int_equal(model_store_read(self->path, self->read, 2, &self->count, &self->error),
                     STATUS_OK);
    assert_int_equal(self->count, 2);
}

static void a_file_cut_anywhere_gives_what_stands_in_front(void **state)
{
    struct fixture *self = *state;
    struct stat facts;
    assert_int_equal(model_store_write(self->path, self->written, 1, &self->error), STATUS_OK);
    assert_int_equal(stat(self->path, &facts), 0);
    off_t first = facts.st_size;
    assert_int_equal(model_store_write(self->path, self->written, 2, &self->error), STATUS_OK);
    assert_int_equal(stat(self->path, &facts), 0);
    for (off_t size = facts.st_size - 1; size > first; size--) {
        assert_int_equal(truncate(self->path, size), 0);
        assert_int_equal(read_all(self), STATUS_INVALID_ARGUMENT);
        assert_int_equal(self->count, 1);
    }
}

static void a_file_of_anything_else_is_refused(void **state)
{
    struct fixture *self = *state;
    const char *const contents[] = {"x", "\xff\xff\xff\xff", "\x04\0\0\0abcd", "\0\0\0\0"};
    const size_t sizes[] = {1, 4, 8, 4};
    for (size_t i = 0; i < 4; i++) {
        FILE *file = fopen(self->path, "w");
        assert_non_null(file);
        assert_int_equal(fwrite(contents[i], 1, sizes[i], file), sizes[i]);
        fclose(file);
        assert_int_equal(read_all(self), STATUS_INVALID_ARGUMENT);
        assert_int_equal(self->count, 0);
    }
}

static void a_folder_that_is_gone_is_an_error_that_says_so(void **state)
{
    struct fixture *self = *state;
    char path[128];
    snprintf(path, sizeof path, "%s/away/models", self->folder);
    assert_int_equal(model_store_write(path, self->written, 1, &self->error), STATUS_INTERNAL);
    assert_non_null(strstr(self->error.message, "No such file"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_was_written_is_read_again),
        TEST(no_file_holds_no_models),
        TEST(the_file_is_ours_alone_and_replaced_as_a_whole),
        TEST(what_a_writer_that_died_left_beside_is_in_nobodys_way),
        TEST(more_than_fit_are_left_aside),
        TEST(a_file_cut_anywhere_gives_what_stands_in_front),
        TEST(a_file_of_anything_else_is_refused),
        TEST(a_folder_that_is_gone_is_an_error_that_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
