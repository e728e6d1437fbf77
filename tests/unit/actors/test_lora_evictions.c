// test_lora_evictions.c - what goes from the LoRA store and what stays, and who is told; and
// everything at once.

#include "tests/unit/actors/lora_kit.h"

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
    luna_LoraPut begin = kit_begin_of(file);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(above_the_threshold_the_least_recently_used_goes_by_itself),
        KIT_TEST(a_pinned_one_stays_and_can_be_evicted_by_nobody),
        KIT_TEST(one_that_is_evicted_in_use_goes_with_its_last_request),
        KIT_TEST(a_stack_that_is_released_before_its_answer_holds_nothing),
        cmocka_unit_test(one_that_nobody_used_for_its_time_to_live_goes),
        KIT_TEST(executors_are_told_what_to_drop_once_nobody_has_it),
        KIT_TEST(whatever_happens_at_once_everybody_is_answered_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
