// fuzz_codec.c - any bytes as header, request, letter or answer; what is accepted must survive
// being written and read again.
//
// The first byte says what the rest is. A request is a header behind two bytes that hold its
// length, then its body.

#include <stdlib.h>
#include <string.h>

#include "messages/codec.h"
#include "messages/letter.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Ends the program, so that the fuzzer keeps the input.
static void require(bool truth)
{
    if (!truth) abort();
}

// Writes message, reads it and writes it again: both times the same bytes.
static void require_stable(const pb_msgdesc_t *type, const void *message, size_t message_bytes)
{
    uint8_t *first = malloc(2 * (size_t)CODEC_FRAME_BYTES_MAX);
    void *again = calloc(1, message_bytes);
    require(first != NULL && again != NULL);
    struct codec_buffer one = {first, CODEC_FRAME_BYTES_MAX, 0};
    struct codec_buffer two = {first + CODEC_FRAME_BYTES_MAX, CODEC_FRAME_BYTES_MAX, 0};
    require(codec_encode(type, message, &one, NULL) == STATUS_OK);
    require(codec_decode(type, (struct bytes){one.data, one.size}, again, NULL) == STATUS_OK);
    require(codec_encode(type, again, &two, NULL) == STATUS_OK);
    require(one.size == two.size && memcmp(one.data, two.data, one.size) == 0);
    free(again);
    free(first);
}

static bool try_header(struct bytes frame, luna_Header *out)
{
    luna_Header peeked;
    codec_peek_header(frame, &peeked);
    require(peeked.id.size == CODEC_ID_BYTES);
    struct error error = {0};
    if (codec_decode_header(frame, out, &error) != STATUS_OK) {
        require(error.status != STATUS_OK && error.message[0] != '\0');
        return false;
    }
    require(memcmp(peeked.id.bytes, out->id.bytes, CODEC_ID_BYTES) == 0);
    uint8_t buffer[CODEC_HEADER_BYTES_MAX];
    struct codec_buffer encoded = {buffer, sizeof buffer, 0};
    require(codec_encode_header(out, &encoded, &error) == STATUS_OK);
    require_stable(luna_Header_fields, out, sizeof *out);
    return true;
}

static void try_request(const uint8_t *data, size_t size)
{
    if (size < 2 || load_u16(data) > size - 2) return;
    uint64_t header_bytes = load_u16(data);
    luna_Header header;
    if (!try_header((struct bytes){data + 2, header_bytes}, &header)) return;
    if (header.kind != luna_Kind_REQUEST) return;
    union codec_request *request = calloc(1, sizeof *request);
    require(request != NULL);
    struct bytes body = {data + 2 + header_bytes, size - 2 - header_bytes};
    struct error error = {0};
    const struct codec_limits limits = {65536, 67108864};
    if (codec_decode_request(&header, body, request, &error) == STATUS_OK) {
        codec_check_limits(&header, &limits, &error);
        require_stable(codec_request_type(header.operation), request, sizeof *request);
    } else {
        require(error.message[0] != '\0');
    }
    free(request);
}

static void try_letter(struct bytes frame)
{
    luna_Letter letter;
    if (letter_decode(frame, &letter, NULL) != STATUS_OK) return;
    uint8_t buffer[LETTER_BYTES_MAX];
    struct codec_buffer encoded = {buffer, sizeof buffer, 0};
    require(letter_encode(&letter, &encoded, NULL) == STATUS_OK);
    require_stable(luna_Letter_fields, &letter, sizeof letter);
}

// What a client reads.
static void try_answer(const pb_msgdesc_t *type, struct bytes frame)
{
    _Static_assert(sizeof(luna_TextReply) <= sizeof(luna_ModelListReply) + sizeof(luna_Status) &&
                       sizeof(luna_LoraListReply) <= sizeof(luna_ModelListReply),
                   "any answer fits");
    luna_ModelListReply *largest = calloc(1, sizeof *largest + sizeof(luna_Status));
    require(largest != NULL);
    if (codec_decode(type, frame, largest, NULL) == STATUS_OK) {
        require_stable(type, largest, sizeof *largest + sizeof(luna_Status));
    }
    free(largest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const pb_msgdesc_t *const answers[] = {
        luna_ImageReply_fields,    luna_TextReply_fields,     luna_ModelListReply_fields,
        luna_Status_fields,        luna_PingReply_fields,     luna_LeaseReply_fields,
        luna_LeaseRequest_fields,  luna_Event_fields,         luna_LoraReply_fields,
        luna_LoraListReply_fields, luna_LoraScanReply_fields, luna_LoraStats_fields,
        luna_AdapterReply_fields,
    };
    if (size == 0) return 0;
    struct bytes rest = {data + 1, size - 1};
    luna_Header header;
    switch (data[0]) {
    case 0:
        try_header(rest, &header);
        break;
    case 1:
        try_request(data + 1, size - 1);
        break;
    case 2:
        try_letter(rest);
        break;
    default:
        try_answer(answers[data[0] % (sizeof answers / sizeof answers[0])], rest);
        break;
    }
    return 0;
}
