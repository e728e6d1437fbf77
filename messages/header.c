// header.c - the rules of a header, checked by one function for what is read and what is written.
//
// peek and check are apart because a header that breaks a rule still has to be answered: peek takes
// the few fields that an answer needs from as much of the bytes as can be read, and never fails.

#include "messages/codec.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include <pb_decode.h>

#include "base/checked.h"
#include "messages/stream.h"

_Static_assert(sizeof((luna_Header){0}.message) == ERROR_MESSAGE_BYTES, "an error fits a header");
_Static_assert(sizeof((luna_Header){0}.id.bytes) == CODEC_ID_BYTES, "an id fits a header");
_Static_assert(sizeof((luna_Header){0}.tensors) / sizeof(luna_Tensor) == CODEC_TENSORS_MAX,
               "as many tensors as payloads");

// Reads the fields by which a header can be answered, as far as the bytes go.
static bool peek_field(pb_istream_t *stream, uint32_t tag, pb_wire_type_t wire, luna_Header *out)
{
    if (tag == luna_Header_id_tag && wire == PB_WT_STRING) {
        pb_istream_t inside;
        if (!pb_make_string_substream(stream, &inside)) return false;
        if (inside.bytes_left == CODEC_ID_BYTES) {
            if (!pb_read(&inside, out->id.bytes, CODEC_ID_BYTES)) return false;
            out->id.size = CODEC_ID_BYTES;
        }
        return pb_close_string_substream(stream, &inside);
    }
    if (wire != PB_WT_VARINT) return pb_skip_field(stream, wire);
    uint64_t value = 0;
    if (!pb_decode_varint(stream, &value)) return false;
    if (tag == luna_Header_major_tag) out->major = (uint32_t)value;
    if (tag == luna_Header_minor_tag) out->minor = (uint32_t)value;
    if (tag == luna_Header_kind_tag && value <= _luna_Kind_MAX) out->kind = (luna_Kind)value;
    if (tag == luna_Header_operation_tag && value <= _luna_Operation_MAX) {
        out->operation = (luna_Operation)value;
    }
    return true;
}

bool codec_peek_header(struct bytes frame, luna_Header *out)
{
    assert(out != NULL);
    luna_Header header = luna_Header_init_zero;
    pb_istream_t stream = codec_stream(frame);
    while (true) {
        uint32_t tag = 0;
        pb_wire_type_t wire = PB_WT_VARINT;
        bool end = false;
        if (!pb_decode_tag(&stream, &wire, &tag, &end)) break;
        if (!peek_field(&stream, tag, wire, &header)) break;
    }
    bool has_id = header.id.size == CODEC_ID_BYTES;
    header.id.size = CODEC_ID_BYTES;
    *out = header;
    return has_id;
}

static enum status check_version(const luna_Header *header, struct error *error)
{
    if (header->major == CODEC_MAJOR) return STATUS_OK;
    return error_set(error, STATUS_FAILED_PRECONDITION,
                     "protocol %" PRIu32 ".%" PRIu32 " is not supported, only %u.0 to %u.%u",
                     header->major, header->minor, CODEC_MAJOR, CODEC_MAJOR, CODEC_MINOR);
}

static bool takes_device_memory(luna_Operation operation)
{
    return operation == luna_Operation_ENCODE_IMAGE || operation == luna_Operation_DECODE_LATENT;
}

static enum status check_place(const luna_Header *header, const luna_Tensor *tensor,
                               struct error *error)
{
    uint64_t end = 0;
    if (tensor->where == luna_Where_FRAME) {
        if (!tensor->has_shared) return STATUS_OK;
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%s\" is in a frame and in shared memory", tensor->name);
    }
    if (tensor->where != luna_Where_SHARED && tensor->where != luna_Where_DEVICE) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "tensor \"%s\" is in place %d, not 0 to 2",
                         tensor->name, (int)tensor->where);
    }
    if (tensor->where == luna_Where_DEVICE && !takes_device_memory(header->operation)) {
        return error_set(error, STATUS_UNIMPLEMENTED,
                         "tensor \"%s\" is in device memory, which images and latents alone may be",
                         tensor->name);
    }
    if (!tensor->has_shared) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%s\" is in %s memory but does not say where", tensor->name,
                         tensor->where == luna_Where_SHARED ? "shared" : "device");
    }
    if (!checked_add(tensor->shared.offset, tensor->bytes, &end)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%s\" of %" PRIu64 " bytes cannot start at %" PRIu64,
                         tensor->name, tensor->bytes, tensor->shared.offset);
    }
    return STATUS_OK;
}

static enum status check_room(const luna_Header *header, const luna_Tensor *tensor,
                              struct error *error)
{
    if (header->kind != luna_Kind_REQUEST) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%s\" is room, which only a request offers", tensor->name);
    }
    if (tensor->where == luna_Where_FRAME || tensor->bytes == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "room for tensor \"%s\" is not shared memory of some bytes", tensor->name);
    }
    return STATUS_OK;
}

static enum status check_size(const luna_Tensor *tensor, struct error *error)
{
    uint32_t element = dtype_bytes((enum dtype)tensor->dtype);
    if (tensor->dtype < luna_Dtype_F32 || tensor->dtype > _luna_Dtype_MAX || element == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%s\" has element type %d, known are 1 to %d", tensor->name,
                         (int)tensor->dtype, (int)_luna_Dtype_MAX);
    }
    if (tensor->dims_count == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "tensor \"%s\" has no dimensions",
                         tensor->name);
    }
    bool text = tensor->dtype == luna_Dtype_U8 && tensor->dims_count == 1;
    for (uint32_t i = 0; i < tensor->dims_count; i++) {
        if (tensor->dims[i] > 0 || text) continue;
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%s\" has dimension %" PRIu32 " = 0", tensor->name, i);
    }
    uint64_t bytes = 0;
    if (!checked_product(tensor->dims, tensor->dims_count, &bytes) ||
        !checked_multiply(bytes, element, &bytes)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "tensor \"%s\" has more than 2^64 bytes",
                         tensor->name);
    }
    if (bytes != tensor->bytes) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%s\" says %" PRIu64 " bytes, its dimensions make %" PRIu64,
                         tensor->name, tensor->bytes, bytes);
    }
    return STATUS_OK;
}

static enum status check_tensor(const luna_Header *header, uint32_t index, struct error *error)
{
    const luna_Tensor *tensor = &header->tensors[index];
    if (!codec_name_valid(tensor->name)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor %" PRIu32 " has the name \"%s\"; letters, digits and . _ - inside",
                         index, tensor->name);
    }
    for (uint32_t i = 0; i < index; i++) {
        const luna_Tensor *earlier = &header->tensors[i];
        if (earlier->room != tensor->room || strcmp(earlier->name, tensor->name) != 0) continue;
        return error_set(error, STATUS_INVALID_ARGUMENT, "tensor \"%s\" is there twice",
                         tensor->name);
    }
    enum status status = check_place(header, tensor, error);
    if (status != STATUS_OK) return status;
    return tensor->room ? check_room(header, tensor, error) : check_size(tensor, error);
}

static enum status check_request(const luna_Header *header, struct error *error)
{
    if (header->operation == luna_Operation_OPERATION_NONE) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "the request names no operation");
    }
    if (codec_operation_name(header->operation) == NULL) {
        return error_set(error, STATUS_UNIMPLEMENTED, "operation %d is not known here",
                         (int)header->operation);
    }
    if (header->priority < -CODEC_PRIORITY_MAX || header->priority > CODEC_PRIORITY_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "priority %" PRIi32 " is not within -%d to %d", header->priority,
                         CODEC_PRIORITY_MAX, CODEC_PRIORITY_MAX);
    }
    if (header->hop > 1) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "hop %" PRIu32 " is above 1", header->hop);
    }
    return STATUS_OK;
}

static enum status check_header(const luna_Header *header, struct error *error)
{
    enum status status = check_version(header, error);
    if (status != STATUS_OK) return status;
    if (header->kind == luna_Kind_KIND_NONE || header->kind > _luna_Kind_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "kind %d is none of 1 to %d",
                         (int)header->kind, (int)_luna_Kind_MAX);
    }
    if (header->id.size != CODEC_ID_BYTES) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "the id has %u bytes, not %u",
                         (unsigned)header->id.size, CODEC_ID_BYTES);
    }
    if (header->kind == luna_Kind_REQUEST) {
        status = check_request(header, error);
        if (status != STATUS_OK) return status;
    } else if (strcmp(status_name((enum status)header->code), "UNKNOWN") == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "code %d is not known", (int)header->code);
    }
    if (header->model[0] != '\0' && !codec_name_valid(header->model)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "model name \"%s\"; letters, digits and . _ - inside", header->model);
    }
    for (uint32_t i = 0; i < header->tensors_count; i++) {
        status = check_tensor(header, i, error);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

enum status codec_decode_header(struct bytes frame, luna_Header *out, struct error *error)
{
    assert(out != NULL);
    assert(frame.data != NULL || frame.size == 0);

    // Another major may mean other fields: its version is told before the rest is read.
    luna_Header header;
    codec_peek_header(frame, &header);
    enum status status = STATUS_OK;
    if (header.major > CODEC_MAJOR) status = check_version(&header, error);
    if (status == STATUS_OK) status = codec_decode(luna_Header_fields, frame, &header, error);
    if (status == STATUS_OK) status = check_header(&header, error);
    if (status != STATUS_OK) return status;
    if (header.kind == luna_Kind_REQUEST && !header.has_timeout_ms) {
        header.has_timeout_ms = true;
        header.timeout_ms = CODEC_TIMEOUT_MS_DEFAULT;
    }
    *out = header;
    return STATUS_OK;
}

enum status codec_encode_header(const luna_Header *header, struct codec_buffer *out,
                                struct error *error)
{
    assert(header != NULL);
    enum status status = check_header(header, error);
    return status != STATUS_OK ? status : codec_encode(luna_Header_fields, header, out, error);
}

enum status codec_check_frames(const luna_Header *header, const uint64_t *sizes, uint32_t count,
                               uint64_t message_bytes_max, struct error *error)
{
    assert(header != NULL);
    assert(sizes != NULL || count == 0);
    uint32_t announced = 0;
    uint64_t total = 0;
    for (uint32_t i = 0; i < header->tensors_count; i++) {
        const luna_Tensor *tensor = &header->tensors[i];
        if (tensor->where != luna_Where_FRAME) continue;
        if (announced < count && sizes[announced] != tensor->bytes) {
            return error_set(error, STATUS_INVALID_ARGUMENT,
                             "tensor \"%s\" says %" PRIu64 " bytes, its frame has %" PRIu64,
                             tensor->name, tensor->bytes, sizes[announced]);
        }
        if (!checked_add(total, tensor->bytes, &total) || total > message_bytes_max) {
            return error_set(error, STATUS_INVALID_ARGUMENT,
                             "the tensors have more than %" PRIu64 " bytes", message_bytes_max);
        }
        announced++;
    }
    if (announced != count) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "%" PRIu32 " tensors in frames, but %" PRIu32 " payload frames", announced,
                         count);
    }
    return STATUS_OK;
}

const luna_Tensor *codec_find_tensor(const luna_Header *header, const char *name, uint32_t *payload)
{
    assert(header != NULL);
    assert(name != NULL);
    uint32_t frame = 0;
    for (uint32_t i = 0; i < header->tensors_count; i++) {
        const luna_Tensor *tensor = &header->tensors[i];
        bool in_frame = tensor->where == luna_Where_FRAME;
        if (!tensor->room && strcmp(tensor->name, name) == 0) {
            if (payload != NULL) *payload = in_frame ? frame : UINT32_MAX;
            return tensor;
        }
        frame += in_frame;
    }
    return NULL;
}

const luna_Tensor *codec_find_room(const luna_Header *header, const char *name)
{
    assert(header != NULL);
    assert(name != NULL);
    for (uint32_t i = 0; i < header->tensors_count; i++) {
        const luna_Tensor *tensor = &header->tensors[i];
        if (tensor->room && strcmp(tensor->name, name) == 0) return tensor;
    }
    return NULL;
}

void codec_start_reply(const luna_Header *request, luna_Header *out)
{
    assert(request != NULL);
    assert(out != NULL);
    luna_Header header = luna_Header_init_zero;
    header.major = CODEC_MAJOR;
    header.minor = CODEC_MINOR;
    header.kind = luna_Kind_REPLY;
    header.id = request->id;
    header.operation = request->operation;
    memcpy(header.model, request->model, sizeof header.model);
    *out = header;
}

void codec_set_error(luna_Header *answer, const struct error *error)
{
    assert(answer != NULL);
    assert(error != NULL);
    answer->code = (luna_Code)error->status;
    answer->retry_after_ms = error->retry_after_ms;
    memcpy(answer->message, error->message, sizeof answer->message);
}

enum status codec_get_error(const luna_Header *answer, struct error *error)
{
    assert(answer != NULL);
    if (error != NULL) {
        error->status = (enum status)answer->code;
        error->retry_after_ms = answer->retry_after_ms;
        memcpy(error->message, answer->message, sizeof error->message);
    }
    return (enum status)answer->code;
}
