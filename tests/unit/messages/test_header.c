// test_header.c - what a header may say, and what is answered to one that may not.

#include "messages/codec.h"

#include <stdlib.h>

#include <pb_encode.h>

#include "tests/test.h"
#include "tests/unit/messages/requests.h"

// Encodes with nanopb alone, so that a test can send what our encoder refuses.
static struct bytes raw(const luna_Header *header, uint8_t *buffer, size_t capacity)
{
    pb_ostream_t stream = pb_ostream_from_buffer(buffer, capacity);
    assert_true(pb_encode(&stream, luna_Header_fields, header));
    return bytes_of(buffer, stream.bytes_written);
}

static enum status decode(const luna_Header *header, luna_Header *out, struct error *error)
{
    uint8_t buffer[CODEC_HEADER_BYTES_MAX];
    return codec_decode_header(raw(header, buffer, sizeof buffer), out, error);
}

// Expects the header to be refused, on its way in and on its way out, with a message that has the
// words in it.
static void assert_refused(const luna_Header *header, enum status wanted, const char *words)
{
    luna_Header out = luna_Header_init_zero;
    struct error error = {0};
    assert_int_equal(decode(header, &out, &error), wanted);
    assert_int_equal(error.status, wanted);
    if (strstr(error.message, words) == NULL) fail_msg("\"%s\" lacks \"%s\"", error.message, words);
    assert_int_equal(out.major, 0);  // untouched

    uint8_t buffer[CODEC_HEADER_BYTES_MAX];
    struct codec_buffer encoded = {buffer, sizeof buffer, 0};
    assert_int_equal(codec_encode_header(header, &encoded, &error), wanted);
    assert_int_equal(encoded.size, 0);
}

static void assert_accepted(const luna_Header *header)
{
    luna_Header out = luna_Header_init_zero;
    struct error error = {0};
    if (decode(header, &out, &error) != STATUS_OK) fail_msg("refused: %s", error.message);
}

static void a_header_comes_back_as_it_was_sent(void **state)
{
    (void)state;
    luna_Header in = latent_request();
    strcpy(in.model, "sd1.5");
    in.has_timeout_ms = true;
    in.timeout_ms = 5000;
    in.priority = -7;
    in.want_progress = true;
    luna_Tensor *room = &in.tensors[in.tensors_count++];
    strcpy(room->name, "image");
    room->room = true;
    room->where = luna_Where_SHARED;
    room->bytes = 49152;
    room->has_shared = true;
    room->shared = (luna_SharedRef){1, 2, 3, 4096};

    uint8_t buffer[CODEC_HEADER_BYTES_MAX];
    struct codec_buffer encoded = {buffer, sizeof buffer, 0};
    luna_Header out;
    struct error error = {0};
    assert_int_equal(codec_encode_header(&in, &encoded, &error), STATUS_OK);
    assert_int_equal(codec_decode_header(bytes_of(buffer, encoded.size), &out, &error), STATUS_OK);
    assert_memory_equal(out.id.bytes, in.id.bytes, CODEC_ID_BYTES);
    assert_string_equal(out.model, "sd1.5");
    assert_int_equal(out.timeout_ms, 5000);
    assert_int_equal(out.priority, -7);
    assert_true(out.want_progress);
    assert_int_equal(out.tensors_count, 2);
    assert_int_equal(out.tensors[0].dims[1], 4);
    assert_int_equal(out.tensors[1].shared.offset, 4096);
    assert_true(out.tensors[1].room);
}

static void a_request_without_a_timeout_gets_two_minutes_and_zero_stays_zero(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    luna_Header out;
    assert_int_equal(decode(&header, &out, NULL), STATUS_OK);
    assert_true(out.has_timeout_ms);
    assert_int_equal(out.timeout_ms, 120000);
    header.has_timeout_ms = true;
    assert_int_equal(decode(&header, &out, NULL), STATUS_OK);
    assert_int_equal(out.timeout_ms, 0);
}

static void another_major_is_told_the_supported_range(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    header.major = 2;
    assert_refused(&header, STATUS_FAILED_PRECONDITION, "protocol 2.0 is not supported, only 1.0");
    header.major = 0;
    assert_refused(&header, STATUS_FAILED_PRECONDITION, "protocol 0.0");
}

static void another_major_is_told_so_even_when_its_fields_are_not_ours(void **state)
{
    (void)state;
    const uint8_t future[] = {0x08, 0x03, 0x1a, 0x02, 'o', 'k'};  // kind as a string
    luna_Header out;
    struct error error = {0};
    assert_int_equal(codec_decode_header(bytes_of(future, sizeof future), &out, &error),
                     STATUS_FAILED_PRECONDITION);
}

static void a_newer_minor_with_unknown_fields_is_accepted(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    header.minor = 9;
    uint8_t buffer[CODEC_HEADER_BYTES_MAX + 32];
    struct bytes frame = raw(&header, buffer, CODEC_HEADER_BYTES_MAX);
    const uint8_t unknown[] = {0xf8, 0x3f, 0x2a,                                 // 1023: varint
                               0xfa, 0x3f, 0x03, 0xff, 0x00, 0xfe,               // bytes, not UTF-8
                               0xfd, 0x3f, 1,    2,    3,    4,                  // fixed 32
                               0xf9, 0x3f, 1,    2,    3,    4,    5, 6, 7, 8};  // fixed 64
    memcpy(buffer + frame.size, unknown, sizeof unknown);
    luna_Header out;
    assert_int_equal(codec_decode_header(bytes_of(buffer, frame.size + sizeof unknown), &out, NULL),
                     STATUS_OK);
    assert_int_equal(out.minor, 9);
}

static void an_empty_frame_is_no_header(void **state)
{
    (void)state;
    luna_Header out;
    struct error error = {0};
    assert_int_equal(codec_decode_header(bytes_of(NULL, 0), &out, &error),
                     STATUS_FAILED_PRECONDITION);
    assert_false(codec_peek_header(bytes_of(NULL, 0), &out));
    assert_int_equal(out.id.size, CODEC_ID_BYTES);
}

static void kind_id_operation_priority_and_hop_have_ranges(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    header.kind = luna_Kind_KIND_NONE;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "kind 0");
    header.kind = (luna_Kind)4;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "kind 4");

    header = latent_request();
    header.id.size = 15;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "the id has 15 bytes, not 16");
    header.id.size = 0;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "the id has 0 bytes");

    header = latent_request();
    header.operation = luna_Operation_OPERATION_NONE;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "no operation");
    header.operation = (luna_Operation)999;
    assert_refused(&header, STATUS_UNIMPLEMENTED, "operation 999");

    header = latent_request();
    header.priority = 101;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "priority 101");
    header.priority = -101;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "priority -101");
    header.priority = -100;
    assert_accepted(&header);
    header.priority = 100;
    assert_accepted(&header);

    header.hop = 1;
    assert_accepted(&header);
    header.hop = 2;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "hop 2");
}

static void an_answer_needs_a_known_code_but_no_operation(void **state)
{
    (void)state;
    luna_Header header = request_of(luna_Operation_OPERATION_NONE);
    header.kind = luna_Kind_REPLY;
    header.code = luna_Code_NOT_FOUND;
    assert_accepted(&header);
    header.code = (luna_Code)2;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "code 2");
    header.code = (luna_Code)77;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "code 77");
}

static void names_are_letters_digits_and_some_signs_inside(void **state)
{
    (void)state;
    const char *const good[] = {"a", "sdxl", "sd1.5", "A-b_c.9", "l.ids"};
    const char *const bad[] = {"", ".a", "a.", "-a", "a b", "a/b", "../a", "\xc3\xa4", "a\n"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(codec_name_valid(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_false(codec_name_valid(bad[i]));
    char longest[65] = {0};
    memset(longest, 'x', 63);
    assert_true(codec_name_valid(longest));
    longest[63] = 'x';
    assert_false(codec_name_valid(longest));

    luna_Header header = latent_request();
    strcpy(header.model, "../etc");
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "../etc");
    header = latent_request();
    strcpy(header.tensors[0].name, "a b");
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "a b");
    header.tensors[0].name[0] = '\0';
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "tensor 0");
}

static void a_string_that_is_not_utf8_or_holds_a_nul_or_is_too_long_is_malformed(void **state)
{
    (void)state;
    static const struct {
        uint8_t model[4];
        uint8_t size;
    } bad[] = {{{0xff}, 1}, {{'a', 0, 'b'}, 3}, {{0xed, 0xa0, 0x80}, 3}, {{0xc3}, 1}};
    luna_Header header = latent_request();
    uint8_t buffer[CODEC_HEADER_BYTES_MAX + 128];
    uint64_t size = raw(&header, buffer, CODEC_HEADER_BYTES_MAX).size;
    luna_Header out;
    struct error error = {0};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        buffer[size] = 0x32;  // field 6, length-delimited
        buffer[size + 1] = bad[i].size;
        memcpy(buffer + size + 2, bad[i].model, bad[i].size);
        struct bytes frame = bytes_of(buffer, size + 2 + bad[i].size);
        assert_int_equal(codec_decode_header(frame, &out, &error), STATUS_INVALID_ARGUMENT);
        assert_true(codec_peek_header(frame, &out));
        assert_int_equal(out.id.bytes[15], 15);
    }
    buffer[size] = 0x32;
    buffer[size + 1] = 64;
    memset(buffer + size + 2, 'x', 64);
    assert_int_equal(codec_decode_header(bytes_of(buffer, size + 66), &out, &error),
                     STATUS_INVALID_ARGUMENT);
    buffer[size + 1] = 63;
    assert_int_equal(codec_decode_header(bytes_of(buffer, size + 65), &out, &error), STATUS_OK);
}

static void a_bad_string_inside_a_tensor_is_found_too(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    uint8_t buffer[CODEC_HEADER_BYTES_MAX];
    struct bytes frame = raw(&header, buffer, sizeof buffer);
    uint8_t *name = memmem(buffer, frame.size, "latent", 6);
    assert_non_null(name);
    luna_Header out;
    name[3] = '\0';  // "lat" for C
    assert_int_equal(codec_decode_header(frame, &out, NULL), STATUS_INVALID_ARGUMENT);
    name[3] = 0x80;
    assert_int_equal(codec_decode_header(frame, &out, NULL), STATUS_INVALID_ARGUMENT);
}

static void a_tensor_has_a_known_type_and_dimensions_that_make_its_bytes(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    header.tensors[0].bytes++;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "1025 bytes, its dimensions make 1024");
    header = latent_request();
    header.tensors[0].dtype = luna_Dtype_DTYPE_NONE;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "element type 0");
    header.tensors[0].dtype = (luna_Dtype)8;  // known to files, not to messages
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "element type 8");
    header = latent_request();
    header.tensors[0].dims[2] = 0;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "dimension 2 = 0");
    header = latent_request();
    header.tensors[0].dims_count = 0;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "no dimensions");
    header = latent_request();
    header.tensors[0].dims[0] = UINT64_C(1) << 40;
    header.tensors[0].dims[1] = UINT64_C(1) << 40;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "more than 2^64 bytes");
    header = latent_request();
    header.tensors[0].dims_count = 1;
    header.tensors[0].dims[0] = UINT64_C(1) << 62;  // times 4 bytes
    header.tensors[0].bytes = 0;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "more than 2^64 bytes");
}

static void an_empty_text_is_a_tensor_of_no_bytes(void **state)
{
    (void)state;
    luna_Header header = request_of(luna_Operation_ENCODE_TEXT);
    luna_Tensor *text = add_tensor(&header, "prompt", luna_Dtype_U8, (uint64_t[]){1, 0, 0, 0});
    text->dims[0] = 0;
    text->bytes = 0;
    assert_accepted(&header);
    text->dtype = luna_Dtype_F32;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "dimension 0 = 0");
}

static void a_name_is_there_once_as_input_and_once_as_room(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    header.tensors[1] = header.tensors[0];
    header.tensors_count = 2;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "\"latent\" is there twice");
    header.tensors[1].room = true;
    header.tensors[1].where = luna_Where_SHARED;
    header.tensors[1].has_shared = true;
    assert_accepted(&header);
}

static void shared_memory_says_where_and_frames_do_not(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    luna_Tensor *tensor = &header.tensors[0];
    tensor->has_shared = true;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "in a frame and in shared memory");
    tensor->where = luna_Where_SHARED;
    assert_accepted(&header);
    tensor->shared.offset = UINT64_MAX - 1023;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "cannot start at 18446744073709550592");
    tensor->shared.offset--;
    assert_accepted(&header);
    tensor->has_shared = false;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "does not say where");
    tensor->where = (luna_Where)3;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "place 3");
}

static void device_memory_is_for_images_and_latents(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    luna_Tensor *tensor = &header.tensors[0];
    tensor->where = luna_Where_DEVICE;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "in device memory but does not say where");
    tensor->has_shared = true;
    assert_accepted(&header);
    tensor->shared.offset = UINT64_MAX;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "cannot start at 18446744073709551615");
    tensor->shared.offset = 0;
    luna_Tensor *room = &header.tensors[header.tensors_count++];
    strcpy(room->name, "image");
    room->room = true;
    room->where = luna_Where_DEVICE;
    room->has_shared = true;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "of some bytes");
    room->bytes = 100;
    assert_accepted(&header);
    header.operation = luna_Operation_LORA_PUT;
    assert_refused(&header, STATUS_UNIMPLEMENTED, "images and latents alone");
}

static void room_is_shared_memory_that_a_request_offers(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    luna_Tensor *room = &header.tensors[header.tensors_count++];
    strcpy(room->name, "image");
    room->room = true;
    room->bytes = 100;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "not shared memory");
    room->where = luna_Where_SHARED;
    room->has_shared = true;
    assert_accepted(&header);
    room->bytes = 0;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "of some bytes");
    room->bytes = 100;
    header.kind = luna_Kind_REPLY;
    assert_refused(&header, STATUS_INVALID_ARGUMENT, "which only a request offers");
}

static void a_header_cut_anywhere_is_refused_or_complete(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    strcpy(header.model, "sdxl");
    uint8_t buffer[CODEC_HEADER_BYTES_MAX];
    struct bytes frame = raw(&header, buffer, sizeof buffer);
    uint32_t accepted = 0;
    for (uint64_t size = 0; size < frame.size; size++) {
        uint8_t *cut = malloc(size + 1);  // so that a sanitizer sees a read behind the end
        assert_non_null(cut);
        memcpy(cut, buffer, size);
        luna_Header out;
        struct error error = {0};
        enum status status = codec_decode_header(bytes_of(cut, size), &out, &error);
        accepted += status == STATUS_OK;
        assert_true(status == STATUS_OK || error.message[0] != '\0');
        codec_peek_header(bytes_of(cut, size), &out);
        free(cut);
    }
    // Complete without: its model, its tensor; the fields before are needed.
    assert_int_equal(accepted, 2);
}

static void wrong_wire_types_and_endless_numbers_are_malformed(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    uint8_t buffer[CODEC_HEADER_BYTES_MAX + 32];
    uint64_t size = raw(&header, buffer, CODEC_HEADER_BYTES_MAX).size;
    static const struct {
        uint8_t bytes[13];
        uint8_t count;
    } bad[] = {
        {{0x0d, 1, 0, 0, 0}, 5},  // major, fixed
        {{0x20, 1}, 2},           // id, varint
        {{0x30, 1}, 2},           // model, varint
        {{0x42, 1, 1}, 3},        // priority, bytes
        {{0x0b}, 1},              // a group
        {{0x00}, 1},              // tag 0
        {{0x38, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1}, 12},  // 11 bytes
        {{0x38, 0xff, 0xff, 0xff, 0xff, 0x1f}, 6},  // above 32 bits
        {{0x62, 0xff, 0xff, 0xff, 0xff, 0x0f}, 6},  // beyond the end
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        memcpy(buffer + size, bad[i].bytes, bad[i].count);
        luna_Header out;
        struct bytes frame = bytes_of(buffer, size + bad[i].count);
        if (codec_decode_header(frame, &out, NULL) != STATUS_INVALID_ARGUMENT) {
            fail_msg("case %zu was not refused", i);
        }
        assert_true(codec_peek_header(frame, &out));
        assert_int_equal(out.operation, luna_Operation_DECODE_LATENT);
    }
}

static void a_number_of_ten_bytes_is_read(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    uint8_t buffer[CODEC_HEADER_BYTES_MAX + 16];
    uint64_t size = raw(&header, buffer, CODEC_HEADER_BYTES_MAX).size;
    const uint8_t priority[] = {0x40, 0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1};
    memcpy(buffer + size, priority, sizeof priority);
    luna_Header out;
    assert_int_equal(codec_decode_header(bytes_of(buffer, size + sizeof priority), &out, NULL),
                     STATUS_OK);
    assert_int_equal(out.priority, -5);
}

static void too_many_tensors_or_dimensions_or_bytes_are_malformed(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    uint8_t buffer[CODEC_HEADER_BYTES_MAX + 512];
    uint64_t size = raw(&header, buffer, CODEC_HEADER_BYTES_MAX).size;
    luna_Header out;
    struct error error = {0};
    for (uint32_t i = 0; i < 8; i++) {  // and one that is there already
        const uint8_t tensor[] = {0x62, 0x03, 0x0a, 0x01, (uint8_t)('a' + i)};
        memcpy(buffer + size, tensor, sizeof tensor);
        size += sizeof tensor;
    }
    assert_int_equal(codec_decode_header(bytes_of(buffer, size), &out, &error),
                     STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "malformed"));

    uint8_t dims[] = {0x62, 11, 0x1a, 9, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    header = request_of(luna_Operation_PING);
    size = raw(&header, buffer, CODEC_HEADER_BYTES_MAX).size;
    memcpy(buffer + size, dims, sizeof dims);
    assert_int_equal(codec_decode_header(bytes_of(buffer, size + sizeof dims), &out, &error),
                     STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "malformed"));

    uint8_t *large = calloc(1, CODEC_FRAME_BYTES_MAX + 1);
    assert_non_null(large);
    memcpy(large, buffer, size);
    assert_int_equal(codec_decode_header(bytes_of(large, CODEC_FRAME_BYTES_MAX + 1), &out, &error),
                     STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "65536 bytes"));
    free(large);
}

static void frames_are_as_many_and_as_large_as_announced(void **state)
{
    (void)state;
    luna_Header header = latent_request();
    luna_Tensor *other = add_tensor(&header, "mask", luna_Dtype_U8, (uint64_t[]){10, 0, 0, 0});
    struct error error = {0};
    const uint64_t right[] = {1024, 10, 0};
    assert_int_equal(codec_check_frames(&header, right, 2, 1034, &error), STATUS_OK);
    assert_int_equal(codec_check_frames(&header, right, 2, 1033, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "more than 1033 bytes"));
    assert_int_equal(codec_check_frames(&header, right, 1, 2000, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "2 tensors in frames, but 1 payload frames"));
    assert_int_equal(codec_check_frames(&header, right, 3, 2000, &error), STATUS_INVALID_ARGUMENT);
    const uint64_t wrong[] = {1024, 11};
    assert_int_equal(codec_check_frames(&header, wrong, 2, 2000, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "\"mask\" says 10 bytes, its frame has 11"));
    other->where = luna_Where_SHARED;
    assert_int_equal(codec_check_frames(&header, right, 1, 2000, &error), STATUS_OK);
}

static void tensors_are_found_with_their_payload(void **state)
{
    (void)state;
    luna_Header header = request_of(luna_Operation_ENCODE_TEXT);
    add_tensor(&header, "a", luna_Dtype_U8, (uint64_t[]){1, 0, 0, 0})->where = luna_Where_SHARED;
    add_tensor(&header, "b", luna_Dtype_U8, (uint64_t[]){1, 0, 0, 0});
    add_tensor(&header, "c", luna_Dtype_U8, (uint64_t[]){1, 0, 0, 0})->room = true;
    header.tensors[2].where = luna_Where_SHARED;
    add_tensor(&header, "d", luna_Dtype_U8, (uint64_t[]){1, 0, 0, 0});
    uint32_t payload = 0;
    assert_ptr_equal(codec_find_tensor(&header, "a", &payload), &header.tensors[0]);
    assert_int_equal(payload, UINT32_MAX);
    assert_ptr_equal(codec_find_tensor(&header, "b", &payload), &header.tensors[1]);
    assert_int_equal(payload, 0);
    assert_ptr_equal(codec_find_tensor(&header, "d", &payload), &header.tensors[3]);
    assert_int_equal(payload, 1);
    assert_null(codec_find_tensor(&header, "c", NULL));
    assert_null(codec_find_tensor(&header, "e", NULL));
    assert_ptr_equal(codec_find_room(&header, "c"), &header.tensors[2]);
    assert_null(codec_find_room(&header, "a"));
}

static void an_error_travels_in_an_answer(void **state)
{
    (void)state;
    luna_Header request = latent_request();
    strcpy(request.model, "sdxl");
    luna_Header answer;
    codec_start_reply(&request, &answer);
    struct error error = {0};
    error_set(&error, STATUS_RESOURCE_EXHAUSTED, "queue of %d is full", 256);
    error.retry_after_ms = 250;
    codec_set_error(&answer, &error);

    luna_Header out;
    struct error told = {0};
    assert_int_equal(decode(&answer, &out, NULL), STATUS_OK);
    assert_int_equal(out.kind, luna_Kind_REPLY);
    assert_int_equal(out.tensors_count, 0);
    assert_memory_equal(out.id.bytes, request.id.bytes, CODEC_ID_BYTES);
    assert_int_equal(codec_get_error(&out, &told), STATUS_RESOURCE_EXHAUSTED);
    assert_string_equal(told.message, "queue of 256 is full");
    assert_int_equal(told.retry_after_ms, 250);
}

static void the_longest_header_fits_its_bound(void **state)
{
    (void)state;
    luna_Header header = request_of(luna_Operation_DECODE_LATENT);
    header.kind = luna_Kind_REPLY;
    header.minor = header.hop = header.retry_after_ms = UINT32_MAX;
    header.progress_done = header.progress_total = header.timeout_ms = UINT32_MAX;
    header.has_timeout_ms = header.want_progress = header.may_tile = true;
    header.priority = INT32_MIN;
    header.code = luna_Code_UNAUTHENTICATED;
    memset(header.model, 'm', sizeof header.model - 1);
    memset(header.message, 'e', sizeof header.message - 1);
    for (uint32_t i = 0; i < CODEC_TENSORS_MAX; i++) {
        luna_Tensor *tensor = &header.tensors[header.tensors_count++];
        memset(tensor->name, (int)('a' + i), sizeof tensor->name - 1);
        tensor->dtype = luna_Dtype_U8;
        for (uint32_t d = 0; d < 8; d++) tensor->dims[tensor->dims_count++] = 1;
        tensor->dims[0] = tensor->bytes = UINT64_MAX;
        tensor->where = luna_Where_SHARED;
        tensor->has_shared = true;
        tensor->shared = (luna_SharedRef){UINT32_MAX, UINT32_MAX, UINT32_MAX, 0};
    }
    uint8_t buffer[CODEC_HEADER_BYTES_MAX];
    struct codec_buffer encoded = {buffer, sizeof buffer, 0};
    struct error error = {0};
    assert_int_equal(codec_encode_header(&header, &encoded, &error), STATUS_OK);
    assert_in_range(encoded.size, CODEC_HEADER_BYTES_MAX / 4, CODEC_HEADER_BYTES_MAX);
    luna_Header out;
    assert_int_equal(codec_decode_header(bytes_of(buffer, encoded.size), &out, &error), STATUS_OK);

    encoded.capacity = encoded.size - 1;
    encoded.size = 0;
    assert_int_equal(codec_encode_header(&header, &encoded, &error), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(encoded.size, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_header_comes_back_as_it_was_sent),
        cmocka_unit_test(a_request_without_a_timeout_gets_two_minutes_and_zero_stays_zero),
        cmocka_unit_test(another_major_is_told_the_supported_range),
        cmocka_unit_test(another_major_is_told_so_even_when_its_fields_are_not_ours),
        cmocka_unit_test(a_newer_minor_with_unknown_fields_is_accepted),
        cmocka_unit_test(an_empty_frame_is_no_header),
        cmocka_unit_test(kind_id_operation_priority_and_hop_have_ranges),
        cmocka_unit_test(an_answer_needs_a_known_code_but_no_operation),
        cmocka_unit_test(names_are_letters_digits_and_some_signs_inside),
        cmocka_unit_test(a_string_that_is_not_utf8_or_holds_a_nul_or_is_too_long_is_malformed),
        cmocka_unit_test(a_bad_string_inside_a_tensor_is_found_too),
        cmocka_unit_test(a_tensor_has_a_known_type_and_dimensions_that_make_its_bytes),
        cmocka_unit_test(an_empty_text_is_a_tensor_of_no_bytes),
        cmocka_unit_test(a_name_is_there_once_as_input_and_once_as_room),
        cmocka_unit_test(shared_memory_says_where_and_frames_do_not),
        cmocka_unit_test(device_memory_is_for_images_and_latents),
        cmocka_unit_test(room_is_shared_memory_that_a_request_offers),
        cmocka_unit_test(a_header_cut_anywhere_is_refused_or_complete),
        cmocka_unit_test(wrong_wire_types_and_endless_numbers_are_malformed),
        cmocka_unit_test(a_number_of_ten_bytes_is_read),
        cmocka_unit_test(too_many_tensors_or_dimensions_or_bytes_are_malformed),
        cmocka_unit_test(frames_are_as_many_and_as_large_as_announced),
        cmocka_unit_test(tensors_are_found_with_their_payload),
        cmocka_unit_test(an_error_travels_in_an_answer),
        cmocka_unit_test(the_longest_header_fits_its_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
