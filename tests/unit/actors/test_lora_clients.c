// test_lora_clients.c - what the LoRA store promises to clients: uploads, lists, files. This
// program is its own child that reads torch files.

#include "actors/torch_child.h"
#include "tests/unit/actors/lora_kit.h"

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

static void an_upload_in_chunks_is_known_by_name_and_hash_and_moves_no_bytes_twice(void **state)
{
    struct kit *self = *state;
    luna_LoraReply reply;
    struct bytes file = kit_adapter_bytes(5.0f, 8, 300);
    luna_LoraPut begin = kit_begin_of(file);
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
    luna_LoraPut put = kit_begin_of(file);
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
    luna_LoraPut put = kit_begin_of(other);
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
    luna_LoraPut put = kit_begin_of(file);
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
    put = kit_begin_of(file);
    memset(put.hash, 'a', 64);
    put.bytes = (4u << 20) + 1;
    assert_int_equal(kit_put(self, 1000, &put, no_file, &reply, message),
                     STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(message, "4194305 bytes, the store holds at most 4194304"));
    assert_int_equal(kit_stats(self).totals.entries, 1);
    assert_int_equal(kit_stats(self).totals.evictions, 0);
    kit_free(file);
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
    kit_copy_golden(self, "adapter.pt");
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
    put = kit_begin_of(same);
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

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], TORCH_CHILD_WORD) == 0) return torch_child_main();
    const struct CMUnitTest tests[] = {
        KIT_TEST(an_upload_in_chunks_is_known_by_name_and_hash_and_moves_no_bytes_twice),
        KIT_TEST(chunks_come_in_order_and_an_upload_is_ones_own),
        KIT_TEST(a_content_that_is_not_the_hashs_is_refused_with_both),
        KIT_TEST(an_upload_that_rests_is_dropped_after_a_minute),
        KIT_TEST(a_user_has_so_many_uploads_open_and_no_more),
        KIT_TEST(one_that_is_larger_than_the_store_evicts_nothing),
        KIT_TEST(a_list_has_pages_sorted_by_name),
        KIT_TEST(a_file_comes_back_in_ranges),
        KIT_TEST(a_local_client_gets_a_descriptor_of_the_whole_file),
        KIT_TEST(a_files_name_is_not_for_users_to_take),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
