// answer.c - an answer as the caller sees it, over the frames and leases that it stands on.

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "clients/c/client.h"

// Enough for the struct of any body that answers.
union any_body {
    luna_ImageReply image;
    luna_TextReply text;
    luna_LoraReply lora;
    luna_LoraListReply loras;
    luna_LoraScanReply scan;
    luna_LoraStats lora_stats;
    luna_ModelReply model;
    luna_ModelListReply models;
    luna_Status status;
    luna_PingReply ping;
    luna_Limits limits;
    luna_AttachReply attach;
    luna_Empty empty;
};

// Finds a tensor's bytes in the room that was offered for it.
static const void *in_room(const struct client_answer *self, const luna_Tensor *tensor)
{
    uint64_t end = 0;
    for (uint32_t i = 0; i < self->leases_count; i++) {
        const struct client_lease *lease = &self->leases[i];
        if (lease->pool != tensor->shared.pool || lease->slot != tensor->shared.slot) continue;
        if (lease->generation != tensor->shared.generation) continue;
        if (!checked_add(tensor->shared.offset, tensor->bytes, &end)) return NULL;
        return end <= lease->bytes ? lease->data + tensor->shared.offset : NULL;
    }
    return NULL;
}

static enum status fill_tensors(struct client_answer *self, struct error *error)
{
    struct luna_answer *answer = &self->answer;
    uint32_t payload = 2;
    for (uint32_t i = 0; i < answer->header.tensors_count; i++) {
        const luna_Tensor *tensor = &answer->header.tensors[i];
        struct luna_tensor *out = &answer->tensors[answer->tensors_count++];
        out->name = tensor->name;
        out->dtype = (enum dtype)tensor->dtype;
        out->rank = tensor->dims_count;
        memcpy(out->dims, tensor->dims, sizeof out->dims);
        out->bytes = tensor->bytes;
        out->data = tensor->where == luna_Where_FRAME
                        ? zmq_msg_data(&self->frames.frames[payload++])
                        : in_room(self, tensor);
        if (out->data != NULL) continue;
        return error_set(error, STATUS_INTERNAL, "the answer's tensor \"%s\" is in no room of ours",
                         tensor->name);
    }
    return STATUS_OK;
}

static enum status read_answer(struct client_answer *self, struct error *error)
{
    uint64_t sizes[CLIENT_FRAMES_MAX];
    const pb_msgdesc_t *type = codec_reply_type(self->answer.header.operation);
    uint32_t count = self->frames.count;
    for (uint32_t i = 2; i < count; i++) sizes[i - 2] = zmq_msg_size(&self->frames.frames[i]);
    uint32_t payloads = count > 2 ? count - 2 : 0;
    struct bytes body = count > 1 ? client_frame(&self->frames, 1) : (struct bytes){NULL, 0};

    enum status status = STATUS_OK;
    if (type == NULL) {
        status = error_set(error, STATUS_INTERNAL, "an answer to no operation that is known");
    }
    if (status == STATUS_OK) {
        status = codec_check_frames(&self->answer.header, sizes, payloads, UINT64_MAX, error);
    }
    if (status == STATUS_OK) status = codec_decode(type, body, self->body, error);
    if (status == STATUS_OK) return fill_tensors(self, error);
    if (error != NULL) error->status = STATUS_INTERNAL;  // theirs, not the caller's
    error_prefix(error, "answer");
    return STATUS_INTERNAL;
}

enum status client_answer_create(struct luna_answer **out, struct luna_client *client,
                                 const luna_Header *header, struct client_frames *frames,
                                 struct client_lease rooms[CODEC_TENSORS_MAX], struct error *error)
{
    assert(out != NULL);
    assert(frames->count > 0);
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    struct client_answer *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, status, "out of memory");
    self->client = client;
    self->answer.header = *header;
    self->body = calloc(1, sizeof(union any_body));
    if (self->body == NULL) {
        free(self);
        return error_set(error, status, "out of memory");
    }
    self->answer.body = self->body;
    client_frames_move(&self->frames, frames);
    for (uint32_t i = 0; i < CODEC_TENSORS_MAX; i++) {
        if (rooms[i].bytes == 0) continue;
        self->leases[self->leases_count++] = rooms[i];
        rooms[i].bytes = 0;
    }

    struct luna_answer *answer = &self->answer;
    status = read_answer(self, error);
    if (status != STATUS_OK) goto done;
    *out = answer;
    answer = NULL;

done:
    luna_answer_destroy(&answer);
    return status;
}

void luna_answer_destroy(struct luna_answer **self_p)
{
    assert(self_p != NULL);
    if (*self_p == NULL) return;
    struct client_answer *self = (struct client_answer *)*self_p;
    for (uint32_t i = 0; i < self->leases_count; i++) {
        client_leases_release(self->client->leases, &self->leases[i]);
    }
    client_frames_clear(&self->frames);
    free(self->body);
    free(self);
    *self_p = NULL;
}

const struct luna_tensor *luna_answer_tensor(const struct luna_answer *self, const char *name)
{
    assert(self != NULL);
    assert(name != NULL);
    for (uint32_t i = 0; i < self->tensors_count; i++) {
        if (strcmp(self->tensors[i].name, name) == 0) return &self->tensors[i];
    }
    return NULL;
}

struct luna_tensor luna_text(const char *name, const char *text)
{
    assert(name != NULL);
    assert(text != NULL);
    uint64_t bytes = strlen(text);
    return (struct luna_tensor){
        .name = name, .dtype = DTYPE_U8, .rank = 1, .dims = {bytes}, .data = text, .bytes = bytes};
}
