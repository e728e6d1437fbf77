// What the walk over the directories of adapters finds, and what people may call it.

#include "actors/lora_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/test.h"

struct fixture {
    char top[64];              // holds everything
    char directories[2][96];   // top/a, top/b
    const char *names[2];      // the same
    struct lora_files *files;  // of both
    uint64_t scans;            // taken
    struct lora_scan scan;     // of the last walk, before it was taken
    struct lora_files_change change;
    struct error error;  // of the last call that failed
};

static void make_folder(struct fixture *self, const char *path)
{
    char whole[256];
    snprintf(whole, sizeof whole, "%s/%s", self->top, path);
    assert_int_equal(mkdir(whole, 0700), 0);
}

static void make_file(struct fixture *self, const char *path, const char *content)
{
    char whole[1200];
    snprintf(whole, sizeof whole, "%s/%s", self->top, path);
    FILE *file = fopen(whole, "w");
    assert_non_null(file);
    fputs(content, file);
    fclose(file);
}

static void make_link(struct fixture *self, const char *path, const char *target)
{
    char whole[256];
    snprintf(whole, sizeof whole, "%s/%s", self->top, path);
    assert_int_equal(symlink(target, whole), 0);
}

static void walk(struct fixture *self)
{
    struct lora_scan scan;
    assert_int_equal(lora_scan_walk(&scan, self->names, 2, -1, &self->error), STATUS_OK);
    self->scan = scan;
    self->scan.found = NULL;
    self->scans += 1;
    assert_int_equal(lora_files_take(self->files, &scan, self->scans, &self->change, &self->error),
                     STATUS_OK);
}

static int setup(void **state)
{
    struct fixture *self = calloc(1, sizeof *self);
    assert_non_null(self);
    snprintf(self->top, sizeof self->top, "%s/luna-test-XXXXXX", P_tmpdir);
    assert_non_null(mkdtemp(self->top));
    make_folder(self, "a");
    make_folder(self, "b");
    make_folder(self, "a/deep");
    make_folder(self, "a/deep/er");
    for (int i = 0; i < 2; i++) {
        memcpy(self->directories[i], self->top, strlen(self->top));
        memcpy(self->directories[i] + strlen(self->top), i == 0 ? "/a" : "/b", 3);
        self->names[i] = self->directories[i];
    }
    assert_int_equal(lora_files_create(&self->files, self->names, 2, &self->error), STATUS_OK);
    *state = self;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *self = *state;
    char command[128];
    lora_files_destroy(&self->files);
    snprintf(command, sizeof command, "rm -r %s", self->top);
    assert_int_equal(system(command), 0);
    free(self);
    return 0;
}

// The path that a reference comes to at a level; "" for none, "?" for an error.
static const char *find_at(struct fixture *self, const char *reference, enum lora_files_level level)
{
    struct lora_file *file = NULL;
    if (lora_files_find(self->files, reference, level, &file, &self->error) != STATUS_OK) {
        return "?";
    }
    return file != NULL ? file->path : "";
}

static const char *find(struct fixture *self, const char *reference)
{
    const char *path = find_at(self, reference, LORA_FILES_PATH);
    return path[0] != '\0' ? path : find_at(self, reference, LORA_FILES_NAME);
}

static void files_are_found_in_folders_of_folders_by_their_suffix(void **state)
{
    struct fixture *self = *state;
    make_file(self, "a/one.safetensors", "1");
    make_file(self, "a/deep/two.PT", "2");
    make_file(self, "a/deep/er/three.ckpt", "3");
    make_file(self, "b/four.bin", "4");
    make_file(self, "b/five.pth", "5");
    make_file(self, "b/notes.txt", "no");
    make_file(self, "b/.hidden.safetensors", "no");
    walk(self);
    assert_int_equal(lora_files_count(self->files), 5);
    assert_int_equal(self->change.added, 5);
    assert_int_equal(self->scan.refused, 0);
    assert_string_equal(find(self, "three"), "deep/er/three.ckpt");
    assert_string_equal(find(self, "notes"), "");
}

static void a_reference_is_a_path_a_name_or_a_stem(void **state)
{
    struct fixture *self = *state;
    char path[256];
    make_file(self, "a/deep/style.safetensors", "1");
    walk(self);
    snprintf(path, sizeof path, "%s/a/deep/style.safetensors", self->top);
    assert_string_equal(find_at(self, path, LORA_FILES_PATH), "deep/style.safetensors");
    assert_string_equal(find_at(self, "deep/style.safetensors", LORA_FILES_PATH),
                        "deep/style.safetensors");
    assert_string_equal(find_at(self, "style.safetensors", LORA_FILES_PATH), "");
    assert_string_equal(find_at(self, "style.safetensors", LORA_FILES_NAME),
                        "deep/style.safetensors");
    assert_string_equal(find_at(self, "style", LORA_FILES_NAME), "deep/style.safetensors");
    assert_string_equal(find(self, "styl"), "");
    assert_string_equal(find(self, "Style"), "");
    assert_string_equal(find(self, "deep/style"), "");
    snprintf(path, sizeof path, "%s/b/deep/style.safetensors", self->top);
    assert_string_equal(find(self, path), "");
}

static void two_files_of_one_name_are_an_error_that_lists_both(void **state)
{
    struct fixture *self = *state;
    make_file(self, "a/style.safetensors", "1");
    make_file(self, "b/style.safetensors", "2");
    make_file(self, "a/deep/other.pt", "3");
    make_file(self, "b/other.bin", "4");
    walk(self);
    assert_string_equal(find(self, "style.safetensors"), "?");
    assert_int_equal(self->error.status, STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(self->error.message, "/a/style.safetensors\""));
    assert_non_null(strstr(self->error.message, "/b/style.safetensors\""));
    assert_string_equal(find(self, "style"), "?");
    assert_string_equal(find(self, "other"), "?");
    assert_string_equal(find(self, "other.pt"), "deep/other.pt");
    char path[256];
    snprintf(path, sizeof path, "%s/b/style.safetensors", self->top);
    assert_string_equal(find(self, path), "style.safetensors");
}

static void the_name_of_a_file_is_the_shortest_that_finds_it(void **state)
{
    struct fixture *self = *state;
    make_file(self, "a/alone.safetensors", "1");
    make_file(self, "a/deep/twice.safetensors", "2");
    make_file(self, "b/twice.pt", "3");
    make_file(self, "a/deep/same.pt", "4");
    make_file(self, "b/same.pt", "5");
    walk(self);
    char name[LORA_NAME_BYTES];
    const char *const wanted[] = {"alone", "deep/same.pt", "twice.safetensors", "same.pt",
                                  "twice.pt"};
    for (uint32_t i = 0; i < 5; i++) {
        lora_files_name(self->files, lora_files_at(self->files, i), name);
        assert_string_equal(name, wanted[i]);
        assert_string_equal(find(self, name), lora_files_at(self->files, i)->path);
    }
}

static void no_link_leads_out(void **state)
{
    struct fixture *self = *state;
    char outside[128];
    make_file(self, "secret.safetensors", "secret");
    make_folder(self, "elsewhere");
    make_file(self, "elsewhere/far.safetensors", "far");
    make_file(self, "a/deep/near.safetensors", "near");
    make_link(self, "a/up.safetensors", "../secret.safetensors");
    snprintf(outside, sizeof outside, "%s/secret.safetensors", self->top);
    make_link(self, "a/absolute.safetensors", outside);
    make_link(self, "a/folder", "../elsewhere");
    make_link(self, "a/inside.safetensors", "deep/near.safetensors");
    make_link(self, "a/loop", ".");
    make_link(self, "a/broken.safetensors", "nowhere.safetensors");
    walk(self);
    assert_int_equal(lora_files_count(self->files), 2);
    assert_string_equal(find(self, "inside"), "inside.safetensors");
    assert_string_equal(find(self, "near"), "deep/near.safetensors");
    assert_int_equal(self->scan.refused, 4);
    int descriptor = -1;
    struct lora_identity identity;
    const char *const out[] = {
        "up.safetensors", "absolute.safetensors", "folder/far.safetensors", "../secret.safetensors",
        outside,          "nothing.safetensors"};
    for (size_t i = 0; i < sizeof out / sizeof out[0]; i++) {
        assert_int_equal(
            lora_scan_open(&descriptor, &identity, self->names[0], out[i], &self->error),
            STATUS_NOT_FOUND);
    }
    assert_int_equal(descriptor, -1);
    assert_int_equal(
        lora_scan_open(&descriptor, &identity, self->names[0], "inside.safetensors", &self->error),
        STATUS_OK);
    assert_int_equal(identity.size, 4);
    close(descriptor);
}

static void what_cannot_be_a_file_holds_nobody_up(void **state)
{
    struct fixture *self = *state;
    char path[256];
    snprintf(path, sizeof path, "%s/a/pipe.safetensors", self->top);
    assert_int_equal(mkfifo(path, 0600), 0);
    make_folder(self, "a/folder.safetensors");
    make_file(self, "a/bad\nname.safetensors", "1");
    walk(self);
    assert_int_equal(lora_files_count(self->files), 0);
    assert_int_equal(self->scan.refused, 2);
    int descriptor = -1;
    struct lora_identity identity;
    assert_int_equal(
        lora_scan_open(&descriptor, &identity, self->names[0], "pipe.safetensors", &self->error),
        STATUS_INVALID_ARGUMENT);
}

static void a_directory_that_is_not_there_has_no_files(void **state)
{
    struct fixture *self = *state;
    const char *const names[] = {"/nonexistent/luna"};
    struct lora_scan scan;
    assert_int_equal(lora_scan_walk(&scan, names, 1, -1, &self->error), STATUS_OK);
    assert_int_equal(scan.count, 0);
    lora_scan_free(&scan);
}

static void a_hash_stays_with_the_file_whatever_it_is_called(void **state)
{
    struct fixture *self = *state;
    char from[256];
    char to[256];
    make_file(self, "a/one.safetensors", "1");
    walk(self);
    struct lora_file *file = lora_files_at(self->files, 0);
    file->has_hash = true;
    memset(file->hash.value, 7, sizeof file->hash.value);
    walk(self);
    assert_true(lora_files_at(self->files, 0)->has_hash);
    assert_int_equal(self->change.added + self->change.removed, 0);
    snprintf(from, sizeof from, "%s/a/one.safetensors", self->top);
    snprintf(to, sizeof to, "%s/b/two.safetensors", self->top);
    assert_int_equal(rename(from, to), 0);
    walk(self);
    assert_int_equal(self->change.added, 1);
    assert_int_equal(self->change.removed, 1);
    assert_true(lora_files_at(self->files, 0)->has_hash);
    assert_string_equal(find(self, "two"), "two.safetensors");
    make_file(self, "b/two.safetensors", "another content");
    walk(self);
    assert_false(lora_files_at(self->files, 0)->has_hash);
}

static void what_changed_is_dirty_until_the_scan_that_follows(void **state)
{
    struct fixture *self = *state;
    make_file(self, "a/one.safetensors", "1");
    walk(self);
    struct lora_file *file = lora_files_at(self->files, 0);
    file->watch = 3;
    lora_files_changed(self->files, 4, "one.safetensors", 5);
    lora_files_changed(self->files, 3, "two.safetensors", 5);
    assert_int_equal(file->dirty, 0);
    lora_files_changed(self->files, 3, "one.safetensors", 5);
    assert_int_equal(file->dirty, 5);
    self->scans = 3;
    walk(self);  // the fourth, which may have looked before the change
    assert_int_equal(lora_files_at(self->files, 0)->dirty, 5);
    walk(self);
    assert_int_equal(lora_files_at(self->files, 0)->dirty, 0);
}

static void folders_are_watched(void **state)
{
    struct fixture *self = *state;
    int inotify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    struct lora_scan scan;
    assert_true(inotify >= 0);
    make_file(self, "a/deep/one.safetensors", "1");
    assert_int_equal(lora_scan_walk(&scan, self->names, 2, inotify, &self->error), STATUS_OK);
    assert_int_equal(scan.unwatched, 0);
    assert_int_equal(scan.count, 1);
    assert_true(scan.found[0].watch >= 0);
    assert_false(is_readable(inotify));
    make_file(self, "a/deep/er/two.safetensors", "2");
    assert_true(is_readable(inotify));
    lora_scan_free(&scan);
    close(inotify);
}

static void mistyped_names_are_near_those_that_are_there(void **state)
{
    struct fixture *self = *state;
    char near[128];
    make_file(self, "a/watercolor.safetensors", "1");
    make_file(self, "a/pixel.safetensors", "2");
    walk(self);
    lora_files_resembling(self->files, "watercolour", near, sizeof near);
    assert_string_equal(near, "\"watercolor\"");
    lora_files_resembling(self->files, "Pixle.safetensors", near, sizeof near);
    assert_string_equal(near, "\"pixel\"");
    lora_files_resembling(self->files, "impressionist", near, sizeof near);
    assert_string_equal(near, "");
    assert_false(lora_names_resemble("", 0, "abc", 3));
    assert_true(lora_names_resemble("style", 5, "style_v2_final", 14));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(files_are_found_in_folders_of_folders_by_their_suffix,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(a_reference_is_a_path_a_name_or_a_stem, setup, teardown),
        cmocka_unit_test_setup_teardown(two_files_of_one_name_are_an_error_that_lists_both, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(the_name_of_a_file_is_the_shortest_that_finds_it, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(no_link_leads_out, setup, teardown),
        cmocka_unit_test_setup_teardown(what_cannot_be_a_file_holds_nobody_up, setup, teardown),
        cmocka_unit_test_setup_teardown(a_directory_that_is_not_there_has_no_files, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_hash_stays_with_the_file_whatever_it_is_called, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(what_changed_is_dirty_until_the_scan_that_follows, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(folders_are_watched, setup, teardown),
        cmocka_unit_test_setup_teardown(mistyped_names_are_near_those_that_are_there, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
