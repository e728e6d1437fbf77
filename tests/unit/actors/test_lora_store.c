// test_lora_store.c - what the LoRA store promises to the router: stacks, files, one-shots. This
// program is its own child that reads torch files.

#include "actors/torch_child.h"
#include "tests/unit/actors/lora_kit.h"

// ---- stacks

static void a_stack_is_resolved_by_name_and_its_factors_are_multiplied(void **state)
{
    struct kit *self = *state;
    luna_EncodeText body = luna_EncodeText_init_zero;
    kit_make_file(self, "style.safetensors", 1.0f, 4);
    kit_entry(&body, "style", 0.5f);
    body.loras[0].has_strength_g = true;
    body.loras[0].strength_g = -2.0f;
    body.loras[0].has_scaling = true;
    body.loras[0].scaling = 4.0f;
    body.has_lora_multiplier = true;
    body.lora_multiplier = 0.25f;
    body.has_lora_scaling = true;
    body.lora_scaling = 3.0f;
    luna_StackResolved resolved = kit_stack(self, &body, NULL, 0);
    assert_int_equal(resolved.code, luna_Code_OK);
    assert_int_equal(resolved.entries_count, 1);
    assert_int_equal(resolved.entries[0].encoder_hash.size, 32);
    assert_true(resolved.entries[0].strength_l == 1.5f);
    assert_true(resolved.entries[0].strength_g == -6.0f);
    assert_int_equal(resolved.entries[0].bytes, 2 * 4 * 64 * 4);
    assert_int_equal(resolved.entries[0].keys_other, 1);
    assert_false(resolved.entries[0].one_shot);
    kit_release(self, resolved.job);
    const luna_LoraStats stats = kit_stats(self);
    assert_int_equal(stats.totals.misses, 1);
    assert_int_equal(stats.totals.hits, 0);
    assert_int_equal(stats.loads, 1);
    assert_int_equal(stats.totals.bytes, 2 * 4 * 64 * 4);
}

static void what_counts_for_nothing_is_not_even_looked_up(void **state)
{
    struct kit *self = *state;
    luna_EncodeText body = luna_EncodeText_init_zero;
    kit_entry(&body, "nobody", 1.0f);
    body.loras[0].disabled = true;
    kit_entry(&body, "nobody", 0.0f);
    luna_StackResolved resolved = kit_stack(self, &body, NULL, 0);
    assert_int_equal(resolved.code, luna_Code_OK);
    assert_int_equal(resolved.entries_count, 2);
    assert_int_equal(resolved.entries[0].encoder_hash.size, 0);
    assert_int_equal(resolved.entries[1].encoder_hash.size, 0);
    kit_release(self, resolved.job);
}

static void an_unknown_name_is_told_with_those_that_are_near(void **state)
{
    struct kit *self = *state;
    kit_make_file(self, "watercolor.safetensors", 1.0f, 4);
    luna_StackResolved resolved = kit_resolve(self, "watercolour");
    assert_int_equal(resolved.code, luna_Code_NOT_FOUND);
    assert_string_equal(resolved.message,
                        "LoRA \"watercolour\" is not known here; there is \"watercolor\"");
    kit_release(self, resolved.job);
    resolved =
        kit_resolve(self, "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
    assert_int_equal(resolved.code, luna_Code_NOT_FOUND);
    kit_release(self, resolved.job);
}

static void more_than_stack_max_is_refused_with_both_numbers(void **state)
{
    struct kit *self = *state;
    luna_EncodeText body = luna_EncodeText_init_zero;
    for (int i = 0; i < 9; i++) kit_entry(&body, "style", 1.0f);
    luna_StackResolved resolved = kit_stack(self, &body, NULL, 0);
    assert_int_equal(resolved.code, luna_Code_INVALID_ARGUMENT);
    assert_string_equal(resolved.message, "the stack has 9 LoRAs, at most 8 are taken (stack_max)");
    kit_release(self, resolved.job);
}

static void many_who_want_a_file_load_it_once(void **state)
{
    struct kit *self = *state;
    kit_make_file(self, "style.safetensors", 1.0f, 4);
    luna_EncodeText body = luna_EncodeText_init_zero;
    for (int i = 0; i < 3; i++) kit_entry(&body, "style", 1.0f);
    for (int i = 0; i < 20; i++) kit_post_stack(self, &body, NULL, 0);
    for (int i = 0; i < 20; i++) {
        struct kit_answer answer;
        kit_receive(self, &answer);
        assert_int_equal(answer.letter.letter.stack_resolved.code, luna_Code_OK);
        assert_int_equal(answer.letter.letter.stack_resolved.entries_count, 3);
        kit_release(self, answer.letter.letter.stack_resolved.job);
    }
    assert_int_equal(kit_stats(self).loads, 1);
}

static void a_file_that_changes_under_its_name_is_a_new_entry(void **state)
{
    struct kit *self = *state;
    kit_make_file(self, "style.safetensors", 1.0f, 4);
    luna_StackResolved before = kit_resolve(self, "style");
    assert_int_equal(before.code, luna_Code_OK);
    kit_make_file(self, "style.safetensors", 2.0f, 4);
    luna_StackResolved after = kit_resolve(self, "style");
    assert_int_equal(after.code, luna_Code_OK);
    assert_memory_not_equal(before.entries[0].encoder_hash.bytes,
                            after.entries[0].encoder_hash.bytes, 32);
    // Who began with the old one keeps it.
    int old = kit_fetch(self, &before.entries[0]);
    assert_true(old >= 0);
    close(old);
    kit_release(self, before.job);
    kit_wait_evicted(self, "");
    assert_int_equal(kit_fetch(self, &before.entries[0]), -1);
    kit_release(self, after.job);
}

static void a_file_that_is_written_in_place_is_read_again(void **state)
{
    struct kit *self = *state;
    char path[256];
    kit_path(self, "style.safetensors", path);
    kit_make_file(self, "style.safetensors", 1.0f, 4);
    luna_StackResolved before = kit_resolve(self, "style");
    kit_release(self, before.job);
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    kit_write_adapter(fileno(file), 3.0f, 4, 16);
    // Still open for writing: no change was told, but the time of it is another.
    luna_StackResolved after = kit_resolve(self, "style");
    assert_int_equal(after.code, luna_Code_OK);
    assert_memory_not_equal(before.entries[0].encoder_hash.bytes,
                            after.entries[0].encoder_hash.bytes, 32);
    fclose(file);
    kit_release(self, after.job);
}

static void a_file_that_is_gone_is_unknown(void **state)
{
    struct kit *self = *state;
    char path[256];
    kit_make_file(self, "style.safetensors", 1.0f, 4);
    luna_StackResolved resolved = kit_resolve(self, "style");
    assert_int_equal(resolved.code, luna_Code_OK);
    kit_release(self, resolved.job);
    kit_path(self, "style.safetensors", path);
    assert_int_equal(unlink(path), 0);
    resolved = kit_resolve(self, "style");
    assert_int_equal(resolved.code, luna_Code_NOT_FOUND);
    kit_release(self, resolved.job);
    kit_wait_evicted(self, "its file is gone");
    assert_int_equal(kit_stats(self).totals.entries, 0);
}

static void bad_files_are_named_and_change_nothing(void **state)
{
    struct kit *self = *state;
    char path[256];
    const char *const names[] = {"empty.safetensors", "junk.safetensors", "junk.pt"};
    const char *const contents[] = {"", "this is no adapter", "PK\003\004 nor is this"};
    for (int i = 0; i < 3; i++) {
        kit_path(self, names[i], path);
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fputs(contents[i], file);
        fclose(file);
        luna_StackResolved resolved = kit_resolve(self, names[i]);
        assert_int_equal(resolved.code, luna_Code_INVALID_ARGUMENT);
        assert_non_null(strstr(resolved.message, names[i]));
        kit_release(self, resolved.job);
    }
    assert_int_equal(kit_stats(self).totals.entries, 0);
}

// ---- torch

static void a_torch_file_has_the_same_hashes_and_comes_to_executors_as_safetensors(void **state)
{
    struct kit *self = *state;
    kit_copy_golden(self, "adapter.safetensors");
    kit_copy_golden(self, "adapter.pt");
    luna_StackResolved torch = kit_resolve(self, "adapter.pt");
    assert_string_equal(torch.message, "");
    int descriptor = kit_fetch(self, &torch.entries[0]);
    assert_true(descriptor >= 0);
    struct tensor_table *table = NULL;
    assert_int_equal(tensor_table_open_descriptor(&table, descriptor, "adapter", NULL, NULL),
                     STATUS_OK);
    assert_int_equal(tensor_table_count(table), 3);
    struct hash hash;
    assert_int_equal(tensor_table_hash(table, NULL, NULL, &hash), STATUS_OK);
    assert_memory_equal(hash.value, torch.entries[0].encoder_hash.bytes, 32);
    assert_int_equal(torch.entries[0].keys_other, 3);
    tensor_table_release(&table);
    luna_StackResolved other = kit_resolve(self, "adapter.safetensors");
    assert_memory_equal(other.entries[0].encoder_hash.bytes, torch.entries[0].encoder_hash.bytes,
                        32);
    luna_LoraReply a, b;
    assert_int_equal(kit_name(self, 1000, luna_Operation_LORA_HAS, "adapter.pt", &a), STATUS_OK);
    assert_int_equal(kit_name(self, 1000, luna_Operation_LORA_HAS, "adapter.safetensors", &b),
                     STATUS_OK);
    assert_string_equal(a.lora.hash, b.lora.hash);
    assert_int_equal(kit_stats(self).totals.entries, 1);
    kit_release(self, torch.job);
    kit_release(self, other.job);
    close(descriptor);
}

// ---- one-shots

static void a_one_shot_is_sealed_shared_by_its_content_and_gone_with_its_request(void **state)
{
    struct kit *self = *state;
    luna_EncodeText body = luna_EncodeText_init_zero;
    struct bytes file = kit_adapter_bytes(5.0f, 4, 16);
    kit_entry(&body, "", 1.0f);
    snprintf(body.loras[0].tensor, sizeof body.loras[0].tensor, "lora.0");
    luna_StackResolved first = kit_stack(self, &body, &file, 1);
    luna_StackResolved second = kit_stack(self, &body, &file, 1);
    assert_string_equal(first.message, "");
    assert_true(first.entries[0].one_shot);
    assert_int_equal(kit_stats(self).totals.entries, 1);
    assert_int_equal(kit_stats(self).one_shots, 2);
    kit_release(self, first.job);
    int descriptor = kit_fetch(self, &second.entries[0]);
    assert_true(descriptor >= 0);
    assert_true(pwrite(descriptor, "x", 1, 0) < 0);
    assert_ptr_equal(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, descriptor, 0), MAP_FAILED);
    close(descriptor);
    kit_release(self, second.job);
    assert_int_equal(kit_stats(self).totals.entries, 0);
    assert_int_equal(kit_fetch(self, &second.entries[0]), -1);
    kit_free(file);
}

static void a_one_shot_that_is_none_is_refused_and_leaves_nothing(void **state)
{
    struct kit *self = *state;
    luna_EncodeText body = luna_EncodeText_init_zero;
    const struct bytes file = {"not an adapter at all", 21};
    kit_entry(&body, "mine", 1.0f);
    snprintf(body.loras[0].tensor, sizeof body.loras[0].tensor, "lora.0");
    luna_StackResolved resolved = kit_stack(self, &body, &file, 1);
    assert_int_equal(resolved.code, luna_Code_INVALID_ARGUMENT);
    assert_non_null(strstr(resolved.message, "\"mine\""));
    kit_release(self, resolved.job);
    const luna_LoraStats stats = kit_stats(self);
    assert_int_equal(stats.totals.entries, 0);
    assert_int_equal(stats.totals.bytes, 0);
}

static void a_thousand_one_shots_leave_no_descriptors(void **state)
{
    struct kit *self = *state;
    luna_EncodeText body = luna_EncodeText_init_zero;
    kit_entry(&body, "", 1.0f);
    snprintf(body.loras[0].tensor, sizeof body.loras[0].tensor, "lora.0");
    int lowest = 0;
    for (int i = 0; i < 1000; i++) {
        struct bytes file = kit_adapter_bytes((float)i, 4, 16);
        luna_StackResolved resolved = kit_stack(self, &body, &file, 1);
        assert_int_equal(resolved.code, luna_Code_OK);
        kit_release(self, resolved.job);
        kit_free(file);
        int probe = dup(0);
        if (i == 10) lowest = probe;
        close(probe);
        if (i > 10) assert_true(probe < lowest + 8);
    }
    assert_int_equal(kit_stats(self).one_shots, 1000);
    assert_int_equal(kit_stats(self).totals.entries, 0);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], TORCH_CHILD_WORD) == 0) return torch_child_main();
    const struct CMUnitTest tests[] = {
        KIT_TEST(a_stack_is_resolved_by_name_and_its_factors_are_multiplied),
        KIT_TEST(what_counts_for_nothing_is_not_even_looked_up),
        KIT_TEST(an_unknown_name_is_told_with_those_that_are_near),
        KIT_TEST(more_than_stack_max_is_refused_with_both_numbers),
        KIT_TEST(many_who_want_a_file_load_it_once),
        KIT_TEST(a_file_that_changes_under_its_name_is_a_new_entry),
        KIT_TEST(a_file_that_is_written_in_place_is_read_again),
        KIT_TEST(a_file_that_is_gone_is_unknown),
        KIT_TEST(bad_files_are_named_and_change_nothing),
        KIT_TEST(a_torch_file_has_the_same_hashes_and_comes_to_executors_as_safetensors),
        KIT_TEST(a_one_shot_is_sealed_shared_by_its_content_and_gone_with_its_request),
        KIT_TEST(a_one_shot_that_is_none_is_refused_and_leaves_nothing),
        KIT_TEST(a_thousand_one_shots_leave_no_descriptors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
