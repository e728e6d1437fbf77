// ask.c - reads and answers what the router hands on; ask.h holds the contract.

#include "actors/ask.h"

#include <assert.h>
#include <stdlib.h>

#include "actors/post.h"

enum status ask_read(const luna_Ask *letter, const struct message *frames, struct ask *out,
                     union codec_request *request, struct error *error)
{
    assert(letter != NULL);
    assert(frames != NULL);
    *out = (struct ask){.job = letter->job, .admin = letter->admin};
    if (frames->count < 2) {
        return error_set(error, STATUS_INTERNAL, "the router handed on %u frames, not 2",
                         frames->count);
    }
    enum status status = codec_decode_header(message_frame(frames, 0), &out->header, error);
    if (status != STATUS_OK) return status;
    return codec_decode_request(&out->header, message_frame(frames, 1), request, error);
}

static enum status append_encoded(struct message *frames, const pb_msgdesc_t *type,
                                  const void *body)
{
    uint8_t *data = malloc(CODEC_BODY_BYTES_MAX);
    struct codec_buffer encoded = {.data = data, .capacity = CODEC_BODY_BYTES_MAX};
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    if (data != NULL) status = codec_encode(type, body, &encoded, NULL);
    if (status == STATUS_OK) {
        status = message_append(frames, (struct bytes){.data = data, .size = encoded.size});
    }
    free(data);
    return status;
}

// Sends an answer; payload (may be NULL) holds the frames of the header's tensors.
static enum status send_answer(void *socket, const struct ask *ask, const luna_Header *header,
                               const pb_msgdesc_t *type, const void *body, struct message *payload)
{
    uint8_t buffer[CODEC_HEADER_BYTES_MAX];
    struct codec_buffer encoded = {.data = buffer, .capacity = sizeof buffer};
    struct message frames;
    message_init(&frames);
    enum status status = codec_encode_header(header, &encoded, NULL);
    if (status == STATUS_OK) {
        status = message_append(&frames, (struct bytes){.data = buffer, .size = encoded.size});
    }
    if (status == STATUS_OK) {
        status = header->code == luna_Code_OK
                     ? append_encoded(&frames, type, body)
                     : message_append(&frames, (struct bytes){.data = "", .size = 0});
    }
    for (uint32_t i = 0; status == STATUS_OK && payload != NULL && i < payload->count; i++) {
        status = message_append_shared(&frames, payload, i);
    }
    luna_Letter letter = {.which_letter = luna_Letter_answer_tag};
    letter.letter.answer.job = ask->job;
    if (status == STATUS_OK) status = post_letter(socket, &letter, &frames);
    message_clear(&frames);
    return status;
}

enum status ask_answer(void *socket, const struct ask *ask, const pb_msgdesc_t *type,
                       const void *body, const struct error *error)
{
    assert(socket != NULL);
    assert(error != NULL || (type != NULL && body != NULL));
    luna_Header header;
    codec_start_reply(&ask->header, &header);
    if (error != NULL) codec_set_error(&header, error);
    return send_answer(socket, ask, &header, type, body, NULL);
}

enum status ask_answer_tensor(void *socket, const struct ask *ask, const pb_msgdesc_t *type,
                              const void *body, const luna_Tensor *tensor, struct message *payload)
{
    assert(socket != NULL);
    assert(payload->count == 1);
    luna_Header header;
    codec_start_reply(&ask->header, &header);
    header.tensors_count = 1;
    header.tensors[0] = *tensor;
    enum status status = send_answer(socket, ask, &header, type, body, payload);
    message_clear(payload);
    return status;
}
