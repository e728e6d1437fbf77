// What the LoRA store promises to the router, to executors and to clients. This program is its own
// child that reads torch files.

#include "actors/lora_state.h"
#include "actors/torch_child.h"
#include "tests/unit/actors/lora_kit.h"

static const struct bytes no_file = {.data = NULL, .size = 0};

static int setup(void **state)
{
    const char *const sets[] = {"lora.memory_limit_mb=4", "lora.entries_max=6"};
    struct kit *self = calloc(1, sizeof *self);
    assert_non_null(self);
    kit_start(self, sets, 2);
    *state = self;
    return 0;
}

static int teardown(void **state)
{
    kit_stop(*state);
    free(*state);
    return 0;
}

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

static void copy_golden(const struct kit *self, const char *name)
{
    char command[512];
    snprintf(command, sizeof command, "cp %s/tests/golden/lora/%s %s/", LUNA_SOURCE_DIR, name,
             self->loras);
    assert_int_equal(system(command), 0);
}

static void a_torch_file_has_the_same_hashes_and_comes_to_executors_as_safetensors(void **state)
{
    struct kit *self = *state;
    copy_golden(self, "adapter.safetensors");
    copy_golden(self, "adapter.pt");
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

// ---- uploads

static void upload_all(struct kit *self, const luna_LoraPut *begin, struct bytes file,
                       const char *name, luna_LoraReply *reply)
{
    luna_LoraPut put = *begin;
    assert_int_equal(kit_put(self, 1000, &put, no_file, reply, NULL), STATUS_OK);
    put = (luna_LoraPut){.step = luna_LoraPutStep_PUT_CHUNK, .upload = reply->upload};
    for (uint64_t at = 0; at < file.size; at = put.offset) {
        uint64_t bytes = file.size - at < 1000 ? file.size - at : 1000;
        const struct bytes chunk = {(const uint8_t *)file.data + at, bytes};
        assert_int_equal(kit_put(self, 1000, &put, chunk, reply, NULL), STATUS_OK);
        assert_int_equal(reply->received_bytes, at + bytes);
        put.offset += bytes;
    }
    put.step = luna_LoraPutStep_PUT_COMMIT;
    snprintf(put.name, sizeof put.name, "%s", name);
    assert_int_equal(kit_put(self, 1000, &put, no_file, reply, NULL), STATUS_OK);
}

static luna_LoraPut begin_of(struct bytes file)
{
    luna_LoraPut put = {.step = luna_LoraPutStep_PUT_BEGIN, .bytes = file.size};
    kit_hash(file, put.hash);
    return put;
}

static void an_upload_in_chunks_is_known_by_name_and_hash_and_moves_no_bytes_twice(void **state)
{
    struct kit *self = *state;
    luna_LoraReply reply;
    struct bytes file = kit_adapter_bytes(5.0f, 8, 300);
    luna_LoraPut begin = begin_of(file);
    upload_all(self, &begin, file, "mine", &reply);
    assert_false(reply.known);
    assert_string_equal(reply.lora.name, "mine");
    assert_string_equal(reply.lora.hash, begin.hash);
    assert_int_equal(reply.lora.rank, 8);
    assert_int_equal(reply.lora.bytes, file.size);
    assert_int_equal(reply.lora.memory_bytes, file.size);
    assert_true(reply.lora.uploaded);
    assert_string_equal(reply.lora.encoders[0], "l");
    snprintf(begin.name, sizeof begin.name, "again");
    assert_int_equal(kit_put(self, 1001, &begin, no_file, &reply, NULL), STATUS_OK);
    assert_true(reply.known);
    assert_int_equal(reply.upload, 0);
    assert_int_equal(kit_stats(self).uploads, 1);
    assert_int_equal(kit_name(self, 7, luna_Operation_LORA_HAS, "again", &reply), STATUS_OK);
    assert_int_equal(kit_name(self, 7, luna_Operation_LORA_HAS, begin.hash, &reply), STATUS_OK);
    assert_int_equal(kit_name(self, 7, luna_Operation_LORA_HAS, "other", &reply), STATUS_NOT_FOUND);
    kit_free(file);
}

static void chunks_come_in_order_and_an_upload_is_ones_own(void **state)
{
    struct kit *self = *state;
    luna_LoraReply reply;
    char message[384];
    struct bytes file = kit_adapter_bytes(5.0f, 4, 0);
    luna_LoraPut put = begin_of(file);
    assert_int_equal(kit_put(self, 1000, &put, no_file, &reply, NULL), STATUS_OK);
    put = (luna_LoraPut){.step = luna_LoraPutStep_PUT_CHUNK, .upload = reply.upload, .offset = 7};
    const struct bytes chunk = {file.data, 100};
    assert_int_equal(kit_put(self, 1000, &put, chunk, &reply, message), STATUS_INVALID_ARGUMENT);
    assert_string_equal(message, "a chunk at 7; the next one begins at 0");
    put.offset = 0;
    assert_int_equal(kit_put(self, 1001, &put, chunk, &reply, message), STATUS_NOT_FOUND);
    assert_int_equal(kit_put(self, 1000, &put, chunk, &reply, NULL), STATUS_OK);
    put.step = luna_LoraPutStep_PUT_COMMIT;
    assert_int_equal(kit_put(self, 1000, &put, no_file, &reply, message), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(message, "100 of "));
    put.step = luna_LoraPutStep_PUT_CHUNK;
    put.offset = 100;
    char *too_much = calloc(1, file.size);
    assert_int_equal(
        kit_put(self, 1000, &put, (struct bytes){too_much, file.size}, &reply, message),
        STATUS_INVALID_ARGUMENT);
    free(too_much);
    put.step = luna_LoraPutStep_PUT_ABORT;
    assert_int_equal(kit_put(self, 1000, &put, no_file, &reply, NULL), STATUS_OK);
    assert_int_equal(kit_put(self, 1000, &put, no_file, &reply, NULL), STATUS_NOT_FOUND);
    assert_int_equal(kit_stats(self).totals.entries, 0);
    kit_free(file);
}

static void a_content_that_is_not_the_hashs_is_refused_with_both(void **state)
{
    struct kit *self = *state;
    luna_LoraReply reply;
    char message[384];
    char hash[HASH_HEX_BYTES];
    struct bytes file = kit_adapter_bytes(5.0f, 4, 0);
    struct bytes other = kit_adapter_bytes(6.0f, 4, 0);
    luna_LoraPut put = begin_of(other);
    kit_hash(file, hash);
    put.step = luna_LoraPutStep_PUT_WHOLE;
    assert_int_equal(kit_put(self, 1000, &put, file, &reply, message), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(message, hash));
    assert_non_null(strstr(message, put.hash));
    put.step = luna_LoraPutStep_PUT_BEGIN;
    assert_int_equal(kit_put(self, 1000, &put, no_file, &reply, NULL), STATUS_OK);
    put = (luna_LoraPut){.step = luna_LoraPutStep_PUT_CHUNK, .upload = reply.upload};
    assert_int_equal(kit_put(self, 1000, &put, file, &reply, NULL), STATUS_OK);
    put.step = luna_LoraPutStep_PUT_COMMIT;
    assert_int_equal(kit_put(self, 1000, &put, no_file, &reply, message), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(message, hash));
    assert_int_equal(kit_put(self, 1000, &put, no_file, &reply, message), STATUS_NOT_FOUND);
    const luna_LoraStats stats = kit_stats(self);
    assert_int_equal(stats.totals.entries, 0);
    assert_int_equal(stats.uploads, 0);
    kit_free(file);
    kit_free(other);
}

static void an_upload_that_rests_is_dropped_after_a_minute(void **state)
{
    struct kit *self = *state;
    luna_LoraReply reply;
    struct bytes file = kit_adapter_bytes(5.0f, 4, 0);
    luna_LoraPut put = begin_of(file);
    assert_int_equal(kit_put(self, 1000, &put, no_file, &reply, NULL), STATUS_OK);
    put = (luna_LoraPut){.step = luna_LoraPutStep_PUT_CHUNK, .upload = reply.upload};
    clock_advance(&self->clock, UINT64_C(59000000000));
    assert_int_equal(kit_put(self, 1000, &put, (struct bytes){file.data, 10}, &reply, NULL),
                     STATUS_OK);
    clock_advance(&self->clock, UINT64_C(59000000000));
    put.offset = 10;
    assert_int_equal(kit_put(self, 1000, &put, (struct bytes){file.data, 10}, &reply, NULL),
                     STATUS_OK);
    clock_advance(&self->clock, UINT64_C(60000000000));
    put.offset = 20;
    enum status status = STATUS_OK;
    for (int i = 0; i < 2000 && status != STATUS_NOT_FOUND; i++) {
        // Wrong on purpose: a chunk that counted would wake the upload.
        put.offset = 21;
        status = kit_put(self, 1000, &put, (struct bytes){file.data, 10}, &reply, NULL);
        zmq_poll(NULL, 0, 5);
    }
    assert_int_equal(status, STATUS_NOT_FOUND);
    kit_free(file);
}

static void a_user_has_so_many_uploads_open_and_no_more(void **state)
{
    struct kit *self = *state;
    luna_LoraReply reply;
    luna_LoraPut put = {.step = luna_LoraPutStep_PUT_BEGIN, .bytes = 10};
    enum status status = STATUS_OK;
    uint32_t begun = 0;
    while (status == STATUS_OK && begun < 100) {
        snprintf(put.hash, sizeof put.hash, "%064x", begun + 1);
        status = kit_put(self, 1000, &put, no_file, &reply, NULL);
        begun += status == STATUS_OK;
    }
    // The store of this test takes six entries, so its room ends first.
    assert_int_equal(status, STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(begun, 6);
}

static void one_that_is_larger_than_the_store_evicts_nothing(void **state)
{
    struct kit *self = *state;
    luna_LoraReply reply;
    char message[384];
    struct bytes file = kit_adapter_bytes(5.0f, 4, 0);
    luna_LoraPut put = {.step = luna_LoraPutStep_PUT_WHOLE, .name = "small"};
    assert_int_equal(kit_put(self, 1000, &put, file, &reply, NULL), STATUS_OK);
    put = begin_of(file);
    memset(put.hash, 'a', 64);
    put.bytes = (4u << 20) + 1;
    assert_int_equal(kit_put(self, 1000, &put, no_file, &reply, message),
                     STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(message, "4194305 bytes, the store holds at most 4194304"));
    assert_int_equal(kit_stats(self).totals.entries, 1);
    assert_int_equal(kit_stats(self).totals.evictions, 0);
    kit_free(file);
}

// ---- who goes

static void above_the_threshold_the_least_recently_used_goes_by_itself(void **state)
{
    struct kit *self = *state;
    luna_LoraReply reply;
    for (int i = 0; i < 4; i++) {
        struct bytes file = kit_adapter_bytes((float)i, 4, 220000);  // 880 KB; four are 84 %
        luna_LoraPut put = {.step = luna_LoraPutStep_PUT_WHOLE};
        snprintf(put.name, sizeof put.name, "put-%d", i);
        clock_advance(&self->clock, 1000000);
        assert_int_equal(kit_put(self, 1000, &put, file, &reply, NULL), STATUS_OK);
        kit_free(file);
    }
    kit_wait_evicted(self, "LoRA \"put-0\"");
    assert_non_null(strstr(self->evicted, "least recently used above the threshold"));
    assert_int_equal(kit_name(self, 1, luna_Operation_LORA_HAS, "put-0", &reply), STATUS_NOT_FOUND);
    assert_int_equal(kit_name(self, 1, luna_Operation_LORA_HAS, "put-1", &reply), STATUS_OK);
    assert_int_equal(kit_stats(self).totals.entries, 3);
}

static void a_pinned_one_stays_and_can_be_evicted_by_nobody(void **state)
{
    struct kit *self = *state;
    luna_LoraReply reply;
    kit_make_file(self, "style.safetensors", 1.0f, 4);
    assert_int_equal(kit_name(self, 1000, luna_Operation_LORA_PIN, "style", &reply), STATUS_OK);
    assert_true(reply.lora.resident);
    assert_int_equal(reply.lora.pins, 1);
    assert_int_equal(kit_name(self, 0, luna_Operation_LORA_EVICT, "style", &reply),
                     STATUS_FAILED_PRECONDITION);
    assert_int_equal(kit_name(self, 1001, luna_Operation_LORA_UNPIN, "style", &reply),
                     STATUS_NOT_FOUND);
    for (int i = 0; i < 10; i++) {
        char name[32];
        snprintf(name, sizeof name, "other-%d.safetensors", i);
        kit_make_file(self, name, 10.0f + (float)i, 4);
        clock_advance(&self->clock, 1000000);
        luna_StackResolved resolved = kit_resolve(self, name);
        assert_int_equal(resolved.code, luna_Code_OK);
        kit_release(self, resolved.job);
    }
    assert_int_equal(kit_stats(self).totals.entries, 6);
    assert_int_equal(kit_name(self, 1, luna_Operation_LORA_HAS, "style", &reply), STATUS_OK);
    assert_true(reply.lora.resident && reply.lora.pinned);
    assert_int_equal(kit_name(self, 1000, luna_Operation_LORA_UNPIN, "style", &reply), STATUS_OK);
    assert_int_equal(reply.lora.pins, 0);
}

static void one_that_is_evicted_in_use_goes_with_its_last_request(void **state)
{
    struct kit *self = *state;
    luna_LoraReply reply;
    struct bytes file = kit_adapter_bytes(5.0f, 4, 0);
    luna_LoraPut put = {.step = luna_LoraPutStep_PUT_WHOLE, .name = "mine"};
    assert_int_equal(kit_put(self, 1000, &put, file, &reply, NULL), STATUS_OK);
    luna_StackResolved first = kit_resolve(self, "mine");
    luna_StackResolved second = kit_resolve(self, reply.lora.hash);
    assert_int_equal(second.code, luna_Code_OK);
    assert_int_equal(kit_name(self, 1001, luna_Operation_LORA_EVICT, "mine", &reply),
                     STATUS_PERMISSION_DENIED);
    assert_int_equal(kit_name(self, 1000, luna_Operation_LORA_EVICT, "mine", &reply), STATUS_OK);
    luna_StackResolved after = kit_resolve(self, "mine");
    assert_int_equal(after.code, luna_Code_NOT_FOUND);
    kit_release(self, after.job);
    kit_release(self, first.job);
    int descriptor = kit_fetch(self, &second.entries[0]);
    assert_true(descriptor >= 0);
    close(descriptor);
    // Put again meanwhile: it stays after all.
    luna_LoraPut begin = begin_of(file);
    snprintf(begin.name, sizeof begin.name, "mine");
    assert_int_equal(kit_put(self, 1000, &begin, no_file, &reply, NULL), STATUS_OK);
    assert_true(reply.known);
    kit_release(self, second.job);
    after = kit_resolve(self, "mine");
    assert_int_equal(after.code, luna_Code_OK);
    assert_int_equal(kit_name(self, 1000, luna_Operation_LORA_EVICT, "mine", &reply), STATUS_OK);
    kit_release(self, after.job);
    kit_wait_evicted(self, "its last request ended");
    assert_int_equal(kit_fetch(self, &after.entries[0]), -1);
    assert_int_equal(kit_stats(self).totals.entries, 0);
    kit_free(file);
}

static void a_stack_that_is_released_before_its_answer_holds_nothing(void **state)
{
    struct kit *self = *state;
    luna_EncodeText body = luna_EncodeText_init_zero;
    kit_make_file(self, "style.safetensors", 1.0f, 4);
    kit_entry(&body, "style", 1.0f);
    uint64_t job = kit_post_stack(self, &body, NULL, 0);
    kit_release(self, job);
    luna_StackResolved resolved =
        kit_resolve(self, "style");  // the first answer counts for nothing
    assert_int_equal(resolved.code, luna_Code_OK);
    kit_release(self, resolved.job);
    luna_LoraReply reply;
    assert_int_equal(kit_name(self, 0, luna_Operation_LORA_EVICT, "style", &reply), STATUS_OK);
    assert_int_equal(kit_stats(self).totals.entries, 0);
}

static void one_that_nobody_used_for_its_time_to_live_goes(void **state)
{
    (void)state;
    const char *const sets[] = {"lora.time_to_live_s=30"};
    struct kit self;
    kit_start(&self, sets, 1);
    kit_make_file(&self, "style.safetensors", 1.0f, 4);
    luna_StackResolved resolved = kit_resolve(&self, "style");
    clock_advance(&self.clock, UINT64_C(31000000000));
    assert_int_equal(kit_stats(&self).totals.entries, 1);
    kit_release(&self, resolved.job);
    kit_wait_evicted(&self, "not used for its time to live");
    assert_int_equal(kit_stats(&self).totals.entries, 0);
    kit_stop(&self);
}

// ---- what clients see

static void a_list_has_pages_sorted_by_name(void **state)
{
    struct kit *self = *state;
    luna_LoraScanReply scan;
    luna_LoraListReply *list = calloc(1, sizeof *list);
    struct kit_answer answer;
    const luna_Empty empty = {0};
    for (int i = 0; i < 20; i++) {
        char name[32];
        snprintf(name, sizeof name, "style-%02d.safetensors", 19 - i);
        kit_make_file(self, name, (float)i, 4);
    }
    assert_int_equal(kit_ask(self, 1000, luna_Operation_LORA_SCAN, &empty, no_file, &scan, &answer),
                     STATUS_PERMISSION_DENIED);
    message_clear(&answer.frames);
    assert_int_equal(kit_ask(self, 0, luna_Operation_LORA_SCAN, &empty, no_file, &scan, &answer),
                     STATUS_OK);
    message_clear(&answer.frames);
    assert_int_equal(scan.found, 20);
    luna_Page page = {.offset = 0};
    assert_int_equal(kit_ask(self, 1, luna_Operation_LORA_LIST, &page, no_file, list, &answer),
                     STATUS_OK);
    message_clear(&answer.frames);
    assert_int_equal(list->total, 20);
    assert_int_equal(list->loras_count, 16);
    assert_string_equal(list->loras[0].name, "style-00");
    assert_string_equal(list->loras[0].path, "style-00.safetensors");
    assert_string_equal(list->loras[0].hash, "");
    assert_false(list->loras[0].resident);
    page.offset = 16;
    assert_int_equal(kit_ask(self, 1, luna_Operation_LORA_LIST, &page, no_file, list, &answer),
                     STATUS_OK);
    message_clear(&answer.frames);
    assert_int_equal(list->loras_count, 4);
    assert_string_equal(list->loras[3].name, "style-19");
    free(list);
}

static void a_file_comes_back_in_ranges(void **state)
{
    struct kit *self = *state;
    struct bytes file = kit_adapter_bytes(5.0f, 4, 100);
    luna_LoraPut put = {.step = luna_LoraPutStep_PUT_WHOLE, .name = "mine"};
    luna_LoraReply reply;
    assert_int_equal(kit_put(self, 1000, &put, file, &reply, NULL), STATUS_OK);
    luna_LoraGet get = {.reference = "mine", .offset = 0, .bytes = 700};
    uint64_t got = 0;
    while (true) {
        struct kit_answer answer;
        get.offset = got;
        assert_int_equal(kit_ask(self, 1, luna_Operation_LORA_GET, &get, no_file, &reply, &answer),
                         STATUS_OK);
        assert_int_equal(reply.lora.bytes, file.size);
        assert_int_equal(answer.header.tensors_count, 1);
        struct bytes part = message_frame(&answer.frames, 2);
        assert_memory_equal(part.data, (const uint8_t *)file.data + got, part.size);
        got += part.size;
        message_clear(&answer.frames);
        if (part.size < 700) break;
    }
    assert_int_equal(got, file.size);
    struct kit_answer answer;
    get.offset = file.size + 1;
    assert_int_equal(kit_ask(self, 1, luna_Operation_LORA_GET, &get, no_file, &reply, &answer),
                     STATUS_INVALID_ARGUMENT);
    message_clear(&answer.frames);
    kit_free(file);
}

static void a_local_client_gets_a_descriptor_of_the_whole_file(void **state)
{
    struct kit *self = *state;
    struct stat info;
    int descriptor = -1;
    copy_golden(self, "adapter.pt");
    luna_AdapterReply reply = kit_adapter(self, "adapter", &descriptor);
    assert_int_equal(reply.code, luna_Code_OK);
    assert_true(descriptor >= 0);
    assert_int_equal(fstat(descriptor, &info), 0);
    assert_int_equal(info.st_size, reply.bytes);
    assert_string_equal(reply.lora.format, "torch");
    assert_true(write(descriptor, "x", 1) < 0);
    close(descriptor);
    reply = kit_adapter(self, "nothing", &descriptor);
    assert_int_equal(reply.code, luna_Code_NOT_FOUND);
    assert_int_equal(descriptor, -1);
    reply = kit_adapter(self, "../adapter.pt", &descriptor);
    assert_int_equal(reply.code, luna_Code_INVALID_ARGUMENT);
}

static void executors_are_told_what_to_drop_once_nobody_has_it(void **state)
{
    struct kit *self = *state;
    struct error error = {0};
    char endpoint[SOCKET_ENDPOINT_BYTES];
    void *executor = NULL;
    assert_int_equal(socket_open(&executor, self->zmq, EDGE_STORE_PEER, &error), STATUS_OK);
    socket_ipc_endpoint(endpoint, sizeof endpoint, self->top, SOCKET_LORA_STORE);
    assert_int_equal(socket_connect(executor, endpoint, &error), STATUS_OK);
    luna_Letter letter = {.which_letter = luna_Letter_adapter_counts_tag};
    snprintf(letter.letter.adapter_counts.device, 32, "cpu");
    letter.letter.adapter_counts.merged_bytes = 77;
    assert_int_equal(post_letter(executor, &letter, NULL), STATUS_OK);
    for (int i = 0; i < 2000 && kit_stats(self).merged_bytes != 77; i++) zmq_poll(NULL, 0, 5);
    kit_make_file(self, "style.safetensors", 1.0f, 4);
    luna_StackResolved resolved = kit_resolve(self, "style");
    kit_release(self, resolved.job);
    luna_LoraReply reply;
    assert_int_equal(kit_name(self, 0, luna_Operation_LORA_EVICT, "style", &reply), STATUS_OK);
    zmq_pollitem_t item = {.socket = executor, .events = ZMQ_POLLIN};
    assert_int_equal(zmq_poll(&item, 1, KIT_WAIT_MS), 1);
    struct message message;
    message_init(&message);
    assert_int_equal(message_receive(&message, executor), STATUS_OK);
    assert_true(post_read(&message, &letter));
    assert_int_equal(letter.which_letter, luna_Letter_drop_adapter_tag);
    assert_memory_equal(letter.letter.drop_adapter.encoder_hash.bytes,
                        resolved.entries[0].encoder_hash.bytes, 32);
    message_clear(&message);
    socket_close(&executor);
}

static void a_files_name_is_not_for_users_to_take(void **state)
{
    struct kit *self = *state;
    luna_LoraReply reply;
    char message[384];
    kit_make_file(self, "style.safetensors", 1.0f, 4);
    luna_StackResolved resolved = kit_resolve(self, "style");
    kit_release(self, resolved.job);
    struct bytes other = kit_adapter_bytes(9.0f, 4, 16);
    struct bytes same = kit_adapter_bytes(1.0f, 4, 16);
    luna_LoraPut put = {.step = luna_LoraPutStep_PUT_WHOLE, .name = "style"};
    assert_int_equal(kit_put(self, 1000, &put, other, &reply, message), STATUS_PERMISSION_DENIED);
    assert_int_equal(kit_stats(self).totals.entries, 1);
    assert_int_equal(kit_put(self, 1000, &put, same, &reply, message), STATUS_OK);
    assert_true(reply.known);
    // The content of a file makes only an alias.
    put = begin_of(same);
    snprintf(put.name, sizeof put.name, "alias");
    assert_int_equal(kit_put(self, 1000, &put, no_file, &reply, message), STATUS_OK);
    assert_true(reply.known);
    resolved = kit_resolve(self, "alias");
    assert_int_equal(resolved.code, luna_Code_OK);
    kit_release(self, resolved.job);
    assert_int_equal(kit_stats(self).totals.entries, 1);
    kit_free(other);
    kit_free(same);
}

// ---- everything at once

// What a test that does everything at once has asked and not heard yet.
struct crowd {
    uint32_t random;       // state of the generator
    uint32_t open;         // questions without an answer
    uint32_t early;        // stacks that were released before their answer
    uint32_t early_heard;  // of these, those that were answered all the same
    uint64_t early_jobs[4096];
};

static uint32_t draw(struct crowd *crowd, uint32_t below)
{
    crowd->random = crowd->random * 1664525u + 1013904223u;
    return (crowd->random >> 16) % below;
}

static void ask_stack(struct kit *self, struct crowd *crowd, const char *name, struct bytes file)
{
    luna_EncodeText *text = calloc(1, sizeof *text);
    assert_non_null(text);
    bool one_shot = draw(crowd, 4) == 0;
    kit_entry(text, name, 1.0f);
    if (one_shot) {
        kit_entry(text, "", 1.0f);
        snprintf(text->loras[1].tensor, sizeof text->loras[1].tensor, "lora.0");
    }
    uint64_t job = kit_post_stack(self, text, &file, one_shot);
    free(text);
    if (draw(crowd, 8) == 0 && crowd->early < 4096) {
        kit_release(self, job);  // the client went away
        crowd->early_jobs[crowd->early++] = job;
    } else {
        crowd->open += 1;
    }
}

static void do_anything(struct kit *self, struct crowd *crowd, int step,
                        const struct bytes files[4])
{
    const uint32_t which = draw(crowd, 4);
    const uint32_t user = 1000 + draw(crowd, 16);
    const luna_Empty empty = {0};
    luna_LoraName name = luna_LoraName_init_zero;
    luna_LoraPut put = {.step = luna_LoraPutStep_PUT_WHOLE};
    char file[32];
    snprintf(name.reference, sizeof name.reference, "n%u", which);
    snprintf(put.name, sizeof put.name, "n%u", which);
    snprintf(file, sizeof file, "f%u.safetensors", which);
    crowd->open += 1;
    switch (draw(crowd, 16)) {
    case 0:
        kit_make_file(self, file, (float)step, 4);
        crowd->open -= 1;
        return;
    case 1:
    case 2:
        kit_post_ask(self, 0, luna_Operation_LORA_EVICT, &name, no_file);
        return;
    case 3:
    case 4:
        kit_post_ask(self, 0, luna_Operation_LORA_PUT, &put, files[which]);
        return;
    case 5:
        kit_post_ask(self, user, luna_Operation_LORA_PIN, &name, no_file);
        return;
    case 6:
        kit_post_ask(self, user, luna_Operation_LORA_UNPIN, &name, no_file);
        return;
    case 7:
        kit_post_ask(self, 0, luna_Operation_LORA_SCAN, &empty, no_file);
        return;
    default:
        crowd->open -= 1;
        file[2] = '\0';
        ask_stack(self, crowd, draw(crowd, 2) == 0 ? name.reference : file, files[which]);
    }
}

static void hear_one(struct kit *self, struct crowd *crowd)
{
    struct kit_answer answer;
    kit_receive(self, &answer);
    message_clear(&answer.frames);
    if (answer.letter.which_letter == luna_Letter_stack_resolved_tag) {
        const luna_StackResolved *resolved = &answer.letter.letter.stack_resolved;
        for (uint32_t i = 0; i < crowd->early; i++) {
            if (crowd->early_jobs[i] != resolved->job) continue;
            crowd->early_heard += 1;  // it was known at once, before the release came
            return;
        }
        if (resolved->code == luna_Code_OK) {
            int descriptor = kit_fetch(self, &resolved->entries[0]);
            assert_true(descriptor >= 0);  // held, whatever was evicted meanwhile
            close(descriptor);
        }
        kit_release(self, resolved->job);
    }
    assert_true(crowd->open > 0);
    crowd->open -= 1;
}

// Sixteen clients resolve, put, evict, pin and scan while files come and go: every question has
// exactly one answer, what is held is there, and in the end nothing is held.
static void whatever_happens_at_once_everybody_is_answered_once(void **state)
{
    struct kit *self = *state;
    struct bytes files[4];
    struct crowd *crowd = calloc(1, sizeof *crowd);
    assert_non_null(crowd);
    crowd->random = 99;
    for (int i = 0; i < 4; i++) files[i] = kit_adapter_bytes((float)(50 + i), 4, 5000);
    for (int step = 0; step < 2000; step++) {
        do_anything(self, crowd, step, files);
        while (crowd->open > 16) hear_one(self, crowd);
        kit_read_events(self);
        self->evicted[0] = '\0';
    }
    while (crowd->open > 0) hear_one(self, crowd);
    luna_LoraReply reply;
    for (int i = 0; i < 4; i++) {
        char name[16];
        snprintf(name, sizeof name, "n%d", i);
        for (uint32_t user = 1000; user < 1016; user++) {
            while (kit_name(self, user, luna_Operation_LORA_UNPIN, name, &reply) == STATUS_OK) {
            }
        }
        kit_name(self, 0, luna_Operation_LORA_EVICT, name, &reply);
        snprintf(name, sizeof name, "f%d", i);
        kit_name(self, 0, luna_Operation_LORA_EVICT, name, &reply);
    }
    const luna_LoraStats stats = kit_stats(self);
    assert_int_equal(stats.totals.entries, 0);
    assert_int_equal(stats.totals.bytes, 0);
    assert_int_equal(stats.pinned, 0);
    for (int i = 0; i < 4; i++) kit_free(files[i]);
    free(crowd);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], TORCH_CHILD_WORD) == 0) return torch_child_main();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_stack_is_resolved_by_name_and_its_factors_are_multiplied,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(what_counts_for_nothing_is_not_even_looked_up, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(an_unknown_name_is_told_with_those_that_are_near, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(more_than_stack_max_is_refused_with_both_numbers, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(many_who_want_a_file_load_it_once, setup, teardown),
        cmocka_unit_test_setup_teardown(a_file_that_changes_under_its_name_is_a_new_entry, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_file_that_is_written_in_place_is_read_again, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_file_that_is_gone_is_unknown, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_files_are_named_and_change_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(
            a_torch_file_has_the_same_hashes_and_comes_to_executors_as_safetensors, setup,
            teardown),
        cmocka_unit_test_setup_teardown(
            a_one_shot_is_sealed_shared_by_its_content_and_gone_with_its_request, setup, teardown),
        cmocka_unit_test_setup_teardown(a_one_shot_that_is_none_is_refused_and_leaves_nothing,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(a_thousand_one_shots_leave_no_descriptors, setup, teardown),
        cmocka_unit_test_setup_teardown(
            an_upload_in_chunks_is_known_by_name_and_hash_and_moves_no_bytes_twice, setup,
            teardown),
        cmocka_unit_test_setup_teardown(chunks_come_in_order_and_an_upload_is_ones_own, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_content_that_is_not_the_hashs_is_refused_with_both, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(an_upload_that_rests_is_dropped_after_a_minute, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_user_has_so_many_uploads_open_and_no_more, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(one_that_is_larger_than_the_store_evicts_nothing, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(above_the_threshold_the_least_recently_used_goes_by_itself,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(a_pinned_one_stays_and_can_be_evicted_by_nobody, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(one_that_is_evicted_in_use_goes_with_its_last_request,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(a_stack_that_is_released_before_its_answer_holds_nothing,
                                        setup, teardown),
        cmocka_unit_test(one_that_nobody_used_for_its_time_to_live_goes),
        cmocka_unit_test_setup_teardown(a_list_has_pages_sorted_by_name, setup, teardown),
        cmocka_unit_test_setup_teardown(a_file_comes_back_in_ranges, setup, teardown),
        cmocka_unit_test_setup_teardown(a_local_client_gets_a_descriptor_of_the_whole_file, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(executors_are_told_what_to_drop_once_nobody_has_it, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_files_name_is_not_for_users_to_take, setup, teardown),
        cmocka_unit_test_setup_teardown(whatever_happens_at_once_everybody_is_answered_once, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
