// test_golden.c - messages that Python's protobuf wrote (tests/golden/make_messages.py), read and
// written again.

#include "messages/codec.h"

#include <stdio.h>
#include <stdlib.h>

#include "messages/letter.h"
#include "tests/test.h"
#include "tests/unit/messages/requests.h"

#define VECTOR_BYTES_MAX 4096u
#define STRUCT_BYTES_MAX 65536u  // of any message here, decoded

_Static_assert(STRUCT_BYTES_MAX >= sizeof(luna_Status), "a status fits");
_Static_assert(STRUCT_BYTES_MAX >= sizeof(luna_EncodeText), "a text fits");

static struct bytes read_vector(const char *name, uint8_t buffer[VECTOR_BYTES_MAX])
{
    char path[512];
    snprintf(path, sizeof path, "%s/tests/golden/messages/%s.bin", LUNA_SOURCE_DIR, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail_msg("%s is missing", path);
    size_t size = fread(buffer, 1, VECTOR_BYTES_MAX, file);
    fclose(file);
    return bytes_of(buffer, size);
}

static void what_python_wrote_is_written_back_byte_for_byte(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        const pb_msgdesc_t *type;
    } vectors[] = {
        {"header.request", luna_Header_fields},
        {"header.reply", luna_Header_fields},
        {"header.progress", luna_Header_fields},
        {"header.packed", luna_Header_fields},
        {"encode_text.full", luna_EncodeText_fields},
        {"encode_image.zeros", luna_EncodeImage_fields},
        {"status.full", luna_Status_fields},
        {"event.full", luna_Event_fields},
        {"letter.worker_down", luna_Letter_fields},
        {"letter.stop_all", luna_Letter_fields},
        {"lease_reply.full", luna_LeaseReply_fields},
        {"empty.empty", luna_Empty_fields},
        {"letter.stack_resolved", luna_Letter_fields},
        {"lora_reply.full", luna_LoraReply_fields},
        {"lora_list.full", luna_LoraListReply_fields},
        {"adapter_reply.full", luna_AdapterReply_fields},
    };
    void *message = calloc(1, STRUCT_BYTES_MAX);
    assert_non_null(message);
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        uint8_t theirs[VECTOR_BYTES_MAX], ours[VECTOR_BYTES_MAX];
        struct bytes frame = read_vector(vectors[i].name, theirs);
        struct codec_buffer encoded = {ours, sizeof ours, 0};
        assert_int_equal(codec_decode(vectors[i].type, frame, message, NULL), STATUS_OK);
        assert_int_equal(codec_encode(vectors[i].type, message, &encoded, NULL), STATUS_OK);
        if (encoded.size != frame.size) fail_msg("%s has another length", vectors[i].name);
        assert_memory_equal(ours, theirs, frame.size);
    }
    free(message);
}

static void a_request_of_python_means_what_it_says(void **state)
{
    (void)state;
    uint8_t buffer[VECTOR_BYTES_MAX];
    luna_Header header;
    struct error error = {0};
    struct bytes frame = read_vector("header.request", buffer);
    assert_int_equal(codec_decode_header(frame, &header, &error), STATUS_OK);
    assert_int_equal(header.operation, luna_Operation_DECODE_LATENT);
    assert_string_equal(header.model, "sdxl");
    assert_true(header.has_timeout_ms);
    assert_int_equal(header.timeout_ms, 0);  // present and zero
    assert_int_equal(header.priority, -100);
    assert_true(header.tensors[0].dims[3] == UINT64_C(1) << 33);
    assert_true(header.tensors[1].room);
    assert_true(header.tensors[1].shared.offset == UINT64_C(1) << 40);
}

static void an_answer_of_python_keeps_its_unicode(void **state)
{
    (void)state;
    uint8_t buffer[VECTOR_BYTES_MAX];
    luna_Header header;
    struct error error = {0};
    struct bytes frame = read_vector("header.reply", buffer);
    assert_int_equal(codec_decode_header(frame, &header, &error), STATUS_OK);
    assert_int_equal(codec_get_error(&header, &error), STATUS_RESOURCE_EXHAUSTED);
    assert_string_equal(error.message, "größer als 文字 🦊");
    assert_int_equal(error.retry_after_ms, 1500);
}

static void dimensions_may_come_packed_or_one_by_one(void **state)
{
    (void)state;
    uint8_t buffer[VECTOR_BYTES_MAX];
    luna_Header packed, unpacked;
    assert_int_equal(codec_decode_header(read_vector("header.packed", buffer), &packed, NULL),
                     STATUS_OK);
    assert_int_equal(codec_decode_header(read_vector("header.unpacked", buffer), &unpacked, NULL),
                     STATUS_OK);
    assert_int_equal(unpacked.tensors[0].dims_count, 4);
    assert_memory_equal(unpacked.tensors[0].dims, packed.tensors[0].dims, 4 * sizeof(uint64_t));
}

static void zeros_that_python_set_are_not_defaults(void **state)
{
    (void)state;
    uint8_t buffer[VECTOR_BYTES_MAX];
    struct bytes frame = read_vector("encode_image.zeros", buffer);
    luna_EncodeImage body;
    assert_int_equal(codec_decode(luna_EncodeImage_fields, frame, &body, NULL), STATUS_OK);
    assert_true(body.has_tile && body.has_overlap && body.has_passes);
    assert_int_equal(body.tile, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_python_wrote_is_written_back_byte_for_byte),
        cmocka_unit_test(a_request_of_python_means_what_it_says),
        cmocka_unit_test(an_answer_of_python_keeps_its_unicode),
        cmocka_unit_test(dimensions_may_come_packed_or_one_by_one),
        cmocka_unit_test(zeros_that_python_set_are_not_defaults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
