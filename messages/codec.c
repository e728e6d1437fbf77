// codec.c - any message of the schema to bytes and back.
//
// Reading takes two walks over the bytes. The first is nanopb's, into a struct of fixed size: no
// allocation, no recursion beyond the schema, every limit of luna.options enforced. The second,
// strings_valid, follows the same descriptors once more and looks only at strings, because the
// struct no longer tells "AB" from "AB\0CD". What a message means is checked on the struct, in
// header.c and body.c.

#include "messages/codec.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include <pb_common.h>
#include <pb_decode.h>
#include <pb_encode.h>

#include "messages/stream.h"

// The longest string of the schema and its NUL; a longer one was refused by nanopb.
#define STRING_BYTES_MAX 512u

#define SAME_CODE(name)                                                                            \
    _Static_assert((int)luna_Code_##name == (int)STATUS_##name, "status.h and luna.proto agree")
SAME_CODE(OK);
SAME_CODE(CANCELLED);
SAME_CODE(INVALID_ARGUMENT);
SAME_CODE(DEADLINE_EXCEEDED);
SAME_CODE(NOT_FOUND);
SAME_CODE(PERMISSION_DENIED);
SAME_CODE(RESOURCE_EXHAUSTED);
SAME_CODE(FAILED_PRECONDITION);
SAME_CODE(UNIMPLEMENTED);
SAME_CODE(INTERNAL);
SAME_CODE(UNAVAILABLE);
SAME_CODE(UNAUTHENTICATED);

#define SAME_DTYPE(name)                                                                           \
    _Static_assert((int)luna_Dtype_##name == (int)DTYPE_##name, "dtype.h and luna.proto agree")
_Static_assert((int)luna_Dtype_DTYPE_NONE == (int)DTYPE_NONE, "dtype.h and luna.proto agree");
SAME_DTYPE(F32);
SAME_DTYPE(F16);
SAME_DTYPE(BF16);
SAME_DTYPE(U8);
SAME_DTYPE(I32);
SAME_DTYPE(I64);
SAME_DTYPE(F64);

// Looks at one length-delimited field: a string of ours, a message that may hold some, or neither.
// message is any struct of the type; only its address is used.
static bool strings_valid(pb_istream_t *stream, const pb_msgdesc_t *type, void *message)
{
    while (true) {
        uint32_t tag = 0;
        pb_wire_type_t wire = PB_WT_VARINT;
        bool end = false;
        if (!pb_decode_tag(stream, &wire, &tag, &end)) return end;

        pb_field_iter_t field;
        bool known = pb_field_iter_begin(&field, type, message) && pb_field_iter_find(&field, tag);
        bool string = known && PB_LTYPE(field.type) == PB_LTYPE_STRING;
        bool submessage = known && PB_LTYPE_IS_SUBMSG(field.type);
        if (wire != PB_WT_STRING || (!string && !submessage)) {
            if (!pb_skip_field(stream, wire)) return false;
            continue;
        }

        pb_istream_t inside;
        if (!pb_make_string_substream(stream, &inside)) return false;
        if (submessage) {
            if (!strings_valid(&inside, field.submsg_desc, field.pData)) return false;
        } else {
            uint8_t text[STRING_BYTES_MAX];
            size_t size = inside.bytes_left;
            if (size > sizeof text || !pb_read(&inside, text, size)) return false;
            if (memchr(text, '\0', size) != NULL) return false;
            if (!utf8_valid((struct bytes){text, size})) return false;
        }
        if (!pb_close_string_substream(stream, &inside)) return false;
    }
}

// How often a field comes in a message.
static uint32_t count_field(pb_istream_t stream, uint32_t tag)
{
    uint32_t count = 0;
    uint32_t found = 0;
    pb_wire_type_t wire = PB_WT_VARINT;
    bool end = false;
    while (pb_decode_tag(&stream, &wire, &found, &end) && pb_skip_field(&stream, wire)) {
        count += found == tag;
    }
    return count;
}

// Says which limit a message broke that nanopb refused, with both numbers; false when it was none.
static bool explain(pb_istream_t stream, const pb_msgdesc_t *type, void *message,
                    struct error *error)
{
    const pb_istream_t whole = stream;
    uint32_t tag = 0;
    pb_wire_type_t wire = PB_WT_VARINT;
    bool end = false;
    while (pb_decode_tag(&stream, &wire, &tag, &end)) {
        pb_field_iter_t field;
        bool known = pb_field_iter_begin(&field, type, message) && pb_field_iter_find(&field, tag);
        bool repeated = known && PB_HTYPE(field.type) == PB_HTYPE_REPEATED;
        uint32_t count = repeated ? count_field(whole, tag) : 0;
        if (repeated && count > field.array_size) {
            error_set(error, STATUS_INVALID_ARGUMENT,
                      "malformed message: field %" PRIu32 " comes %" PRIu32
                      " times, at most %u are read",
                      tag, count, (unsigned)field.array_size);
            return true;
        }
        pb_istream_t inside;
        if (wire != PB_WT_STRING) {
            if (!pb_skip_field(&stream, wire)) return false;
            continue;
        }
        if (!pb_make_string_substream(&stream, &inside)) return false;
        if (known && PB_LTYPE_IS_SUBMSG(field.type)) {
            if (explain(inside, field.submsg_desc, field.pData, error)) return true;
        } else if (known && PB_LTYPE(field.type) == PB_LTYPE_STRING &&
                   inside.bytes_left >= field.data_size) {
            error_set(error, STATUS_INVALID_ARGUMENT,
                      "malformed message: field %" PRIu32 " is a text of %zu bytes, at most %u "
                      "are read",
                      tag, inside.bytes_left, (unsigned)field.data_size - 1);
            return true;
        }
        if (!pb_close_string_substream(&stream, &inside)) return false;
    }
    return false;
}

enum status codec_decode(const pb_msgdesc_t *type, struct bytes frame, void *out,
                         struct error *error)
{
    assert(type != NULL);
    assert(out != NULL);
    if (frame.size > CODEC_FRAME_BYTES_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "malformed message: %" PRIu64 " bytes, at most %u are read", frame.size,
                         CODEC_FRAME_BYTES_MAX);
    }
    pb_istream_t stream = codec_stream(frame);
    if (!pb_decode(&stream, type, out)) {
        if (explain(codec_stream(frame), type, out, error)) return STATUS_INVALID_ARGUMENT;
        return error_set(error, STATUS_INVALID_ARGUMENT, "malformed message: %s",
                         PB_GET_ERROR(&stream));
    }
    stream = codec_stream(frame);
    if (!strings_valid(&stream, type, out)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "malformed message: a string is not UTF-8 or holds a NUL");
    }
    return STATUS_OK;
}

// The type's descriptor wants an address for its fields; the encoded bytes are what is looked at.
static bool encoded_strings_valid(const pb_msgdesc_t *type, const void *message, struct bytes frame)
{
    pb_istream_t stream = codec_stream(frame);
    union {
        const void *in;
        void *out;
    } address = {.in = message};  // never written through
    return strings_valid(&stream, type, address.out);
}

enum status codec_encode(const pb_msgdesc_t *type, const void *message, struct codec_buffer *out,
                         struct error *error)
{
    assert(type != NULL);
    assert(message != NULL);
    assert(out != NULL && out->data != NULL);
    pb_ostream_t stream = pb_ostream_from_buffer(out->data, (size_t)out->capacity);
    if (!pb_encode(&stream, type, message)) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                         "a message does not fit %" PRIu64 " bytes: %s", out->capacity,
                         PB_GET_ERROR(&stream));
    }
    if (!encoded_strings_valid(type, message, (struct bytes){out->data, stream.bytes_written})) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "a string is not UTF-8");
    }
    out->size = stream.bytes_written;
    return STATUS_OK;
}

bool codec_name_valid(const char *name)
{
    assert(name != NULL);
    size_t length = strlen(name);
    if (length == 0 || length > 63) return false;
    for (size_t i = 0; i < length; i++) {
        char c = name[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        bool inside = i > 0 && i + 1 < length && (c == '.' || c == '_' || c == '-');
        if (!plain && !inside) return false;
    }
    return true;
}
