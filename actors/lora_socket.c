// lora_socket.c - descriptors of adapters over AF_UNIX.
//
//     executor --adapters.sock--> by encoder hash: safetensors of the encoders' tensors at least
//     client   --lora.sock------> by name or hash: the whole file
//
// Memory of ours is sealed and files are open for reading only, so that whoever gets a descriptor
// can map it and cannot write it. A client's connection has one request at a time: the next is read
// when the answer was sent.

#include "actors/lora_state.h"

#include <stdio.h>
#include <string.h>

#include "actors/packet.h"
#include "base/text.h"
#include "messages/letter.h"
#include "messages/loras.h"
#include "runtime/socket.h"

// ---- executors

static bool serve_executor(void *state, struct door_guest *guest, struct bytes packet)
{
    struct lora_store *self = state;
    luna_Letter letter;
    struct hash hash;
    if (letter_decode(packet, &letter, NULL) != STATUS_OK) return false;
    if (letter.which_letter != luna_Letter_adapter_fetch_tag) return false;
    if (letter.letter.adapter_fetch.encoder_hash.size != sizeof hash.value) return false;
    memcpy(hash.value, letter.letter.adapter_fetch.encoder_hash.bytes, sizeof hash.value);
    struct lora_content *content = lora_table_find_encoder(self->table, &hash);
    letter = (luna_Letter){.which_letter = luna_Letter_adapter_fetched_tag};
    luna_AdapterFetched *fetched = &letter.letter.adapter_fetched;
    int descriptor = -1;
    if (content != NULL) {
        descriptor = content->encoder >= 0 ? content->encoder : content->file;
        struct lora_identity identity = {.size = 0};
        lora_scan_identify(descriptor, &identity);
        fetched->bytes = identity.size;
    } else {
        fetched->code = luna_Code_NOT_FOUND;
        text_set(fetched->message, sizeof fetched->message, "the adapter is not resident any more");
    }
    return packet_send_letter(guest->socket, &letter, descriptor) == STATUS_OK;
}

// ---- clients

static bool send_error(struct door_guest *guest, const struct error *error)
{
    luna_AdapterReply reply = {.code = (luna_Code)error->status};
    text_set(reply.message, sizeof reply.message, error->message);
    return door_reply(guest, luna_AdapterReply_fields, &reply, -1) == STATUS_OK;
}

static void on_found(struct lora_store *self, struct lora_want *want,
                     const struct lora_target *target, const struct error *error)
{
    struct door_guest *guest = door_find(&self->door, want->index, want->key);
    if (guest == NULL) return;
    bool sent = false;
    if (target == NULL) {
        sent = send_error(guest, error);
    } else {
        luna_AdapterReply reply = {.has_lora = true, .bytes = target->content->facts.file_bytes};
        target->content->used_ns = lora_store_now(self);
        lora_asks_describe(self, target, NULL, &reply.lora);
        sent =
            door_reply(guest, luna_AdapterReply_fields, &reply, target->content->file) == STATUS_OK;
    }
    if (sent) {
        door_resume(guest);
    } else {
        door_dismiss(guest);
    }
}

static bool serve_client(void *state, struct door_guest *guest, struct bytes packet)
{
    struct lora_store *self = state;
    luna_AdapterRequest request = luna_AdapterRequest_init_zero;
    struct error error = {0};
    enum status status = codec_decode(luna_AdapterRequest_fields, packet, &request, &error);
    if (status == STATUS_OK) status = codec_check_lora_reference(request.reference, &error);
    if (status != STATUS_OK) return send_error(guest, &error);
    struct lora_want want = {.load = true,
                             .exact = true,
                             .done = on_found,
                             .key = guest->number,
                             .index = door_place(guest)};
    text_set(want.reference, sizeof want.reference, request.reference);
    // Not read until it is answered.
    door_pause(guest);
    lora_want_start(self, &want);
    return true;
}

// ---- life

void lora_socket_init(struct lora_store *self)
{
    const struct door_actor actor = {.state = self,
                                     .serve_client = serve_client,
                                     .serve_own = serve_executor,
                                     .refused = "adapters.refused"};
    door_init(&self->door, self->context, &actor);
}

enum status lora_socket_listen(struct lora_store *self, struct error *error)
{
    char executors_path[SOCKET_ENDPOINT_BYTES];
    snprintf(executors_path, sizeof executors_path, "%s/%s", self->core.private_directory,
             SOCKET_ADAPTERS);
    return door_open(&self->door, self->core.loras_path, executors_path, error);
}
