// Which files may be named, and that no name leads outside.

#include "actors/model_path.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/test.h"

//     root/secret.bin, root/models-evil/e.bin, root/more/c.bin
//     root/models/a.bin, sub/b.bin, pipe
//     root/models/inside -> sub/b.bin, out -> ../secret.bin, absolute -> root/secret.bin, away ->
//     ..
struct fixture {
    char root[128];          // a new folder with the tree above
    char models[160];        // root/models
    char more[160];          // root/more, with a slash at its end
    const char *folders[2];  // models, more
    struct model_file file;  // that was found last
    struct error error;      // of the last call that failed
};

static void put(const struct fixture *self, const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", self->root, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void make_folder(const struct fixture *self, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", self->root, name);
    assert_int_equal(mkdir(path, 0700), 0);
}

static void make_link(const struct fixture *self, const char *target, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", self->root, name);
    assert_int_equal(symlink(target, path), 0);
}

static int setup(void **state)
{
    struct fixture *self = calloc(1, sizeof *self);
    assert_non_null(self);
    const char *temporary = getenv("TMPDIR");
    snprintf(self->root, sizeof self->root, "%s/luna-paths-XXXXXX",
             temporary != NULL ? temporary : "/tmp");
    assert_non_null(mkdtemp(self->root));
    snprintf(self->models, sizeof self->models, "%s/models", self->root);
    snprintf(self->more, sizeof self->more, "%s/more/", self->root);
    self->folders[0] = self->models;
    self->folders[1] = self->more;
    make_folder(self, "models");
    make_folder(self, "models/sub");
    make_folder(self, "more");
    make_folder(self, "models-evil");
    put(self, "models/a.bin", "aaaa");
    put(self, "models/sub/b.bin", "b");
    put(self, "more/c.bin", "c");
    put(self, "secret.bin", "s");
    put(self, "models-evil/e.bin", "e");
    char secret[256];
    snprintf(secret, sizeof secret, "%s/secret.bin", self->root);
    make_link(self, "sub/b.bin", "models/inside");
    make_link(self, "../secret.bin", "models/out");
    make_link(self, secret, "models/absolute");
    make_link(self, "..", "models/away");
    char pipe_path[256];
    snprintf(pipe_path, sizeof pipe_path, "%s/models/pipe", self->root);
    assert_int_equal(mkfifo(pipe_path, 0600), 0);
    *state = self;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *self = *state;
    const char *names[] = {
        "models/a.bin", "models/sub/b.bin",  "models/inside", "models/out", "models/absolute",
        "models/away",  "models/pipe",       "models/sub",    "models",     "more/c.bin",
        "more",         "models-evil/e.bin", "models-evil",   "secret.bin", ""};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%s", self->root, names[i]);
        assert_int_equal(remove(path), 0);
    }
    free(self);
    return 0;
}

static enum status find(struct fixture *self, const char *name)
{
    return model_path_find(self->folders, 2, name, false, &self->file, &self->error);
}

static void a_relative_name_is_found_in_any_folder(void **state)
{
    struct fixture *self = *state;
    assert_int_equal(find(self, "a.bin"), STATUS_OK);
    assert_int_equal(self->file.size, 4);
    assert_int_equal(find(self, "sub/b.bin"), STATUS_OK);
    assert_int_equal(find(self, "c.bin"), STATUS_OK);
    assert_non_null(strstr(self->file.path, "/more/c.bin"));
    assert_int_equal(self->file.path[0], '/');
}

static void an_absolute_name_below_a_folder_is_found(void **state)
{
    struct fixture *self = *state;
    char path[256];
    snprintf(path, sizeof path, "%s/models/sub/b.bin", self->root);
    assert_int_equal(find(self, path), STATUS_OK);
    snprintf(path, sizeof path, "%s/more//c.bin", self->root);
    assert_int_equal(find(self, path), STATUS_OK);
}

static void links_that_stay_inside_are_followed_to_the_file(void **state)
{
    struct fixture *self = *state;
    assert_int_equal(find(self, "inside"), STATUS_OK);
    assert_non_null(strstr(self->file.path, "/models/sub/b.bin"));
    assert_int_equal(find(self, "sub/../a.bin"), STATUS_OK);
}

static void no_name_leads_outside(void **state)
{
    struct fixture *self = *state;
    const char *names[] = {"../secret.bin",        "out",         "absolute", "away/secret.bin",
                           "sub/../../secret.bin", "/etc/passwd", "",         ".."};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        assert_int_equal(find(self, names[i]), STATUS_NOT_FOUND);
    }
    char path[256];
    snprintf(path, sizeof path, "%s/secret.bin", self->root);
    assert_int_equal(find(self, path), STATUS_NOT_FOUND);
    snprintf(path, sizeof path, "%s/models/../secret.bin", self->root);
    assert_int_equal(find(self, path), STATUS_NOT_FOUND);
    snprintf(path, sizeof path, "%s/models-evil/e.bin", self->root);
    assert_int_equal(find(self, path), STATUS_NOT_FOUND);
}

static void missing_and_forbidden_are_told_alike(void **state)
{
    struct fixture *self = *state;
    assert_int_equal(find(self, "../none.bin"), STATUS_NOT_FOUND);
    char missing[ERROR_MESSAGE_BYTES];
    snprintf(missing, sizeof missing, "%s", strrchr(self->error.message, '"'));
    assert_int_equal(find(self, "../secret.bin"), STATUS_NOT_FOUND);
    assert_string_equal(strrchr(self->error.message, '"'), missing);
}

static void what_is_no_plain_file_is_refused_without_waiting(void **state)
{
    struct fixture *self = *state;
    assert_int_equal(find(self, "sub"), STATUS_INVALID_ARGUMENT);
    assert_int_equal(find(self, "pipe"), STATUS_INVALID_ARGUMENT);
    assert_int_equal(model_path_find(self->folders, 2, "sub", true, &self->file, &self->error),
                     STATUS_OK);
    assert_int_equal(model_path_find(self->folders, 2, "a.bin", true, &self->file, &self->error),
                     STATUS_NOT_FOUND);
}

static void without_folders_nothing_is_found(void **state)
{
    struct fixture *self = *state;
    assert_int_equal(model_path_find(NULL, 0, "a.bin", false, &self->file, &self->error),
                     STATUS_NOT_FOUND);
}

static void a_file_that_was_written_again_is_another(void **state)
{
    struct fixture *self = *state;
    assert_int_equal(find(self, "a.bin"), STATUS_OK);
    struct model_file before = self->file;
    assert_int_equal(find(self, "a.bin"), STATUS_OK);
    assert_true(model_file_equal(&before, &self->file));
    put(self, "models/a.bin", "longer");
    assert_int_equal(find(self, "a.bin"), STATUS_OK);
    assert_false(model_file_equal(&before, &self->file));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_relative_name_is_found_in_any_folder),
        TEST(an_absolute_name_below_a_folder_is_found),
        TEST(links_that_stay_inside_are_followed_to_the_file),
        TEST(no_name_leads_outside),
        TEST(missing_and_forbidden_are_told_alike),
        TEST(what_is_no_plain_file_is_refused_without_waiting),
        TEST(without_folders_nothing_is_found),
        TEST(a_file_that_was_written_again_is_another),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
