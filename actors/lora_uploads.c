// lora_uploads.c - adapters that clients put: whole in one message, or begun, sent in chunks, and
// committed.
//
// An upload has its room reserved from the beginning, so that a commit never finds the store full.
// Its chunks are written by one lane, in order; several may be under way. It goes when it is
// committed, aborted, has failed or has rested for too long, and its memory goes with the last
// order that is about it.

#include "actors/lora_state.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/text.h"

// ---- names

// A name that a file of the directories has is not for users to take.
static enum status check_name(struct lora_store *self, const struct lora_ask *ask,
                              const struct hash *hash, bool *is_files, struct error *error)
{
    const char *name = ask->request.lora_put.name;
    struct lora_file *file = NULL;
    *is_files = false;
    bool found = lora_files_find(self->files, name, LORA_FILES_PATH, &file, NULL) != STATUS_OK;
    bool by_path = found || file != NULL;
    if (!by_path) {
        found = lora_files_find(self->files, name, LORA_FILES_NAME, &file, NULL) != STATUS_OK;
    }
    *is_files = file != NULL && file->has_hash && hash_equal(&file->hash, hash);
    if (*is_files || (!found && file == NULL)) return STATUS_OK;
    if (by_path) {
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "LoRA \"%s\" is a file of the directories with another content", name);
    }
    if (ask->ask.admin) return STATUS_OK;
    return error_set(error, STATUS_PERMISSION_DENIED,
                     "LoRA \"%s\" is a file of the directories; only admins may give its name to "
                     "another content",
                     name);
}

// The content that a name moves away from goes when nothing else names it.
static void drop_unnamed(struct lora_store *self, struct lora_content *content)
{
    if (content->aliases > 0 || content->files > 0 || content->pins_count > 0) return;
    content->uploaded = false;
    if (content->resident) {
        lora_store_doom(self, content, "its name has another content now");
    } else {
        lora_table_forget(self->table, content);
    }
}

static enum status name_content(struct lora_store *self, const struct lora_ask *ask,
                                struct lora_content *content, struct error *error)
{
    const char *name = ask->request.lora_put.name;
    bool is_files = false;
    if (name[0] == '\0') return STATUS_OK;
    enum status status = check_name(self, ask, &content->facts.hash, &is_files, error);
    if (status != STATUS_OK || is_files) return status;
    const struct lora_alias *alias = lora_table_find_name(self->table, name);
    struct lora_content *before = alias != NULL ? alias->content : NULL;
    status = lora_table_name(self->table, name, ask->user, ask->ask.admin, content, error);
    if (status == STATUS_OK && before != NULL && before != content) drop_unnamed(self, before);
    return status;
}

// Whether the name can be given before any byte has come.
static enum status check_name_early(struct lora_store *self, const struct lora_ask *ask,
                                    struct error *error)
{
    const luna_LoraPut *put = &ask->request.lora_put;
    struct hash hash = {.value = {0}};
    bool is_files = false;
    if (put->name[0] == '\0') return STATUS_OK;
    hash_from_hex(put->hash, &hash);
    const struct lora_alias *alias = lora_table_find_name(self->table, put->name);
    bool moves = alias != NULL && !hash_equal(&alias->content->facts.hash, &hash);
    if (moves && alias->owner != ask->user && !ask->ask.admin) {
        return error_set(error, STATUS_PERMISSION_DENIED,
                         "LoRA \"%s\" is another user's and has another content", put->name);
    }
    return check_name(self, ask, &hash, &is_files, error);
}

// ---- answers

// Names the content and answers; returns whether the name could be given.
static bool answer_content(struct lora_store *self, struct lora_ask *ask,
                           struct lora_content *content, bool known)
{
    const char *name = ask->request.lora_put.name;
    luna_LoraReply reply = luna_LoraReply_init_zero;
    const struct lora_target target = {.content = content};
    struct error error = {0};
    if (name_content(self, ask, content, &error) != STATUS_OK) {
        lora_asks_answer(self, ask, NULL, &error);
        return false;
    }
    reply.has_lora = true;
    reply.known = known;
    lora_asks_describe(self, &target, name[0] != '\0' ? name : NULL, &reply.lora);
    if (!known) {
        char message[256];
        snprintf(message, sizeof message, "LoRA \"%.100s\" of %llu bytes was put by uid %u",
                 reply.lora.name[0] != '\0' ? reply.lora.name : reply.lora.hash,
                 (unsigned long long)reply.lora.bytes, ask->user);
        lora_store_event(self, "lora.put", message, "bytes", (double)reply.lora.bytes, 0.0);
    }
    lora_asks_answer(self, ask, &reply, NULL);
    return true;
}

static enum status check_hash(const struct lora_result *result, const char *wanted,
                              struct error *error)
{
    char found[HASH_HEX_BYTES];
    struct hash hash;
    if (!hash_from_hex(wanted, &hash) || hash_equal(&hash, &result->facts.hash)) return STATUS_OK;
    hash_to_hex(&result->facts.hash, found);
    return error_set(error, STATUS_INVALID_ARGUMENT, "the content's hash is %s, not %s as was said",
                     found, wanted);
}

// What a lane has read becomes a content with a name; the ask is answered.
static void take_content(struct lora_store *self, struct lora_ask *ask, const char *wanted,
                         struct lora_result *result)
{
    const luna_LoraPut *put = &ask->request.lora_put;
    struct lora_content *content = NULL;
    struct error error = result->error;
    const struct lora_adoption how = {.in_memory = true,
                                      .uploaded = true,
                                      .user = ask->user,
                                      .name = put->name[0] != '\0' ? put->name : "upload"};
    enum status status = error.status;
    if (status == STATUS_OK) status = check_hash(result, wanted, &error);
    bool is_new =
        status == STATUS_OK && lora_table_find_exact(self->table, &result->facts.hash) == NULL;
    if (status == STATUS_OK) status = lora_store_adopt(self, result, &how, &content, &error);
    if (status != STATUS_OK) {
        lora_asks_answer(self, ask, NULL, &error);
        return;
    }
    assert(content != NULL);
    // A name that was refused leaves nothing behind.
    bool named = answer_content(self, ask, content, !is_new);
    if (!named && is_new) drop_unnamed(self, content);
    lora_store_changed(self);
}

// ---- whole files

// The tensor that comes with LORA_PUT.
static const luna_Tensor *find_cargo(const struct lora_ask *ask, const luna_Ask *letter,
                                     struct message *frames, struct lora_cargo *out)
{
    *out = (struct lora_cargo){.header = &ask->ask.header,
                               .tensor = "file",
                               .frames = frames,
                               .pool_offsets = letter->pool_offsets,
                               .pool_offsets_count = letter->pool_offsets_count};
    const luna_Tensor *tensor = codec_find_tensor(out->header, out->tensor, NULL);
    assert(tensor != NULL);
    return tensor;
}

static enum status start_whole(struct lora_store *self, struct lora_ask *ask,
                               const luna_Ask *letter, struct message *frames, struct error *error)
{
    const luna_LoraPut *put = &ask->request.lora_put;
    struct lora_cargo cargo;
    const luna_Tensor *tensor = find_cargo(ask, letter, frames, &cargo);
    const char *name = put->name[0] != '\0' ? put->name : "upload";
    enum status status = put->hash[0] != '\0' ? check_name_early(self, ask, error) : STATUS_OK;
    if (status == STATUS_OK) status = lora_store_make_room(self, name, tensor->bytes, error);
    if (status != STATUS_OK) return status;
    struct lora_order order = {.kind = LORA_TAKE, .descriptor = -1, .second = -1};
    text_set(order.name, sizeof order.name, name);
    struct lora_flight *flight = NULL;
    status = lora_store_order(self, &order, &cargo, &flight, error);
    if (status != STATUS_OK) return status;
    flight->ask = ask;
    ask->reserved = tensor->bytes;
    lora_table_reserve(self->table, tensor->bytes);
    return STATUS_OK;
}

void lora_uploads_on_take(struct lora_store *self, struct lora_ask *ask, struct lora_result *result)
{
    lora_table_unreserve(self->table, ask->reserved);
    take_content(self, ask, ask->request.lora_put.hash, result);
}

// ---- uploads in chunks

static struct lora_upload *find_upload(struct lora_store *self, uint64_t id)
{
    for (uint32_t i = 0; i < LORA_UPLOADS_MAX; i++) {
        if (self->uploads[i].id == id) return &self->uploads[i];
    }
    return NULL;
}

static void free_upload(struct lora_store *self, struct lora_upload *upload)
{
    assert(upload->busy == 0);
    lora_table_unreserve(self->table, upload->bytes);
    lora_store_close(self, upload->descriptor, -1);
    *upload = (struct lora_upload){.descriptor = -1};
    lora_store_changed(self);
}

static void close_upload(struct lora_store *self, struct lora_upload *upload)
{
    upload->closing = true;
    if (upload->busy == 0) free_upload(self, upload);
}

void lora_uploads_drop(struct lora_store *self, bool all)
{
    const uint64_t now_ns = lora_store_now(self);
    for (uint32_t i = 0; i < LORA_UPLOADS_MAX; i++) {
        struct lora_upload *upload = &self->uploads[i];
        if (upload->id == 0) continue;
        if (all) {  // the lanes have ended, and with them the table of what is left
            close(upload->descriptor);
            *upload = (struct lora_upload){.descriptor = -1};
            continue;
        }
        bool rests = now_ns - upload->used_ns >= LORA_UPLOAD_REST_MS * UINT64_C(1000000);
        if (!rests || upload->closing || upload->busy > 0) continue;
        log_event(self->context->log, LOG_INFO, "upload.dropped", "received=%llu of=%llu uid=%u",
                  (unsigned long long)upload->received, (unsigned long long)upload->bytes,
                  upload->user);
        free_upload(self, upload);
    }
}

static enum status unused_upload(struct lora_store *self, uint32_t user, struct lora_upload **out,
                                 struct error *error)
{
    uint32_t of_user = 0;
    struct lora_upload *unused = NULL;
    for (uint32_t i = 0; i < LORA_UPLOADS_MAX; i++) {
        struct lora_upload *upload = &self->uploads[i];
        of_user += upload->id != 0 && upload->user == user;
        if (upload->id == 0 && unused == NULL) unused = upload;
    }
    if (unused == NULL || of_user >= LORA_UPLOADS_OF_USER_MAX) {
        error_set(error, STATUS_RESOURCE_EXHAUSTED, "you have %u uploads open, at most %u fit",
                  of_user, unused == NULL ? of_user : LORA_UPLOADS_OF_USER_MAX);
        error->retry_after_ms = 1000;
        return STATUS_RESOURCE_EXHAUSTED;
    }
    *out = unused;
    return STATUS_OK;
}

static enum status make_upload(struct lora_store *self, const struct lora_ask *ask,
                               const struct hash *hash, struct lora_upload **out,
                               struct error *error)
{
    const luna_LoraPut *put = &ask->request.lora_put;
    struct lora_upload *upload = NULL;
    uint64_t id = 0;
    enum status status = unused_upload(self, ask->user, &upload, error);
    if (status == STATUS_OK) {
        status = lora_store_make_room(self, put->name[0] != '\0' ? put->name : put->hash,
                                      put->bytes, error);
    }
    if (status != STATUS_OK) return status;
    while (id == 0 || find_upload(self, id) != NULL) {
        if (getrandom(&id, sizeof id, 0) != sizeof id) {
            return error_set(error, STATUS_INTERNAL, "getrandom: %s", strerror(errno));
        }
    }
    int descriptor = memfd_create("luna-lora", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (descriptor < 0) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for an upload: %s",
                         strerror(errno));
    }
    lora_table_reserve(self->table, put->bytes);
    *upload = (struct lora_upload){.id = id,
                                   .user = ask->user,
                                   .hash = *hash,
                                   .bytes = put->bytes,
                                   .descriptor = descriptor,
                                   .lane = (uint32_t)(id % LORA_LANES),
                                   .used_ns = lora_store_now(self)};
    *out = upload;
    return STATUS_OK;
}

static enum status begin(struct lora_store *self, struct lora_ask *ask, struct error *error)
{
    struct hash hash;
    struct lora_upload *upload = NULL;
    bool is_hash = hash_from_hex(ask->request.lora_put.hash, &hash);
    assert(is_hash);
    (void)is_hash;
    enum status status = check_name_early(self, ask, error);
    if (status != STATUS_OK) return status;
    struct lora_content *content = lora_table_find_exact(self->table, &hash);
    if (content != NULL && !content->one_shot && (content->resident || content->files > 0)) {
        // Also one that was evicted and still runs: it stays after all.
        if (content->files == 0) content->uploaded = true;
        if (content->doomed) content->owner = ask->user;
        content->doomed = false;
        answer_content(self, ask, content, true);
        return STATUS_OK;
    }
    status = make_upload(self, ask, &hash, &upload, error);
    if (status != STATUS_OK) return status;
    assert(upload != NULL);
    const luna_LoraReply reply = {.upload = upload->id};
    lora_asks_answer(self, ask, &reply, NULL);
    return STATUS_OK;
}

static enum status find_own(struct lora_store *self, const struct lora_ask *ask,
                            struct lora_upload **out, struct error *error)
{
    const uint64_t id = ask->request.lora_put.upload;
    struct lora_upload *upload = find_upload(self, id);
    if (upload == NULL || upload->user != ask->user || upload->closing) {
        return error_set(error, STATUS_NOT_FOUND,
                         "no upload %llu of yours is open; one that rests for %u s is dropped",
                         (unsigned long long)id, LORA_UPLOAD_REST_MS / 1000);
    }
    *out = upload;
    return STATUS_OK;
}

static enum status check_chunk(const struct lora_upload *upload, uint64_t offset, uint64_t bytes,
                               struct error *error)
{
    if (bytes > LORA_CHUNK_BYTES) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "a chunk of %llu bytes, at most %u are taken", (unsigned long long)bytes,
                         LORA_CHUNK_BYTES);
    }
    if (offset != upload->received) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "a chunk at %llu; the next one begins at %llu", (unsigned long long)offset,
                         (unsigned long long)upload->received);
    }
    if (bytes > upload->bytes - upload->received) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "%llu bytes at %llu do not fit an upload of %llu",
                         (unsigned long long)bytes, (unsigned long long)offset,
                         (unsigned long long)upload->bytes);
    }
    return STATUS_OK;
}

static enum status write_chunk(struct lora_store *self, struct lora_ask *ask,
                               const luna_Ask *letter, struct message *frames, struct error *error)
{
    const luna_LoraPut *put = &ask->request.lora_put;
    struct lora_upload *upload = NULL;
    struct lora_cargo cargo;
    const luna_Tensor *tensor = find_cargo(ask, letter, frames, &cargo);
    enum status status = find_own(self, ask, &upload, error);
    if (status != STATUS_OK) return status;
    assert(upload != NULL);
    status = check_chunk(upload, put->offset, tensor->bytes, error);
    if (status != STATUS_OK) return status;
    struct lora_order order = {.kind = LORA_WRITE,
                               .has_lane = true,
                               .lane = upload->lane,
                               .descriptor = upload->descriptor,
                               .second = -1,
                               .offset = put->offset};
    struct lora_flight *flight = NULL;
    status = lora_store_order(self, &order, &cargo, &flight, error);
    if (status != STATUS_OK) return status;
    flight->ask = ask;
    ask->upload = upload->id;
    upload->busy += 1;
    upload->received += tensor->bytes;
    upload->used_ns = lora_store_now(self);
    return STATUS_OK;
}

static enum status commit(struct lora_store *self, struct lora_ask *ask, struct error *error)
{
    const luna_LoraPut *put = &ask->request.lora_put;
    struct lora_upload *upload = NULL;
    enum status status = find_own(self, ask, &upload, error);
    if (status != STATUS_OK) return status;
    assert(upload != NULL);
    if (upload->received < upload->bytes) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%llu of %llu bytes have come",
                         (unsigned long long)upload->received, (unsigned long long)upload->bytes);
    }
    struct lora_order order = {.kind = LORA_FINISH,
                               .has_lane = true,
                               .lane = upload->lane,
                               .descriptor = upload->descriptor,
                               .second = -1};
    text_set(order.name, sizeof order.name, put->name[0] != '\0' ? put->name : "upload");
    struct lora_flight *flight = NULL;
    status = lora_store_order(self, &order, NULL, &flight, error);
    if (status != STATUS_OK) return status;
    flight->ask = ask;
    ask->upload = upload->id;
    upload->busy += 1;
    upload->closing = true;
    return STATUS_OK;
}

// The upload that an order was about, which the lane does not have any more.
static struct lora_upload *come_back(struct lora_store *self, const struct lora_ask *ask)
{
    struct lora_upload *upload = find_upload(self, ask->upload);
    assert(upload != NULL);
    assert(upload->busy > 0);
    upload->busy -= 1;
    upload->used_ns = lora_store_now(self);
    return upload;
}

void lora_uploads_on_write(struct lora_store *self, struct lora_ask *ask,
                           struct lora_result *result)
{
    struct lora_upload *upload = come_back(self, ask);
    const luna_LoraReply reply = {.upload = upload->id, .received_bytes = upload->received};
    bool failed = result->error.status != STATUS_OK;
    if (failed || (upload->closing && upload->busy == 0)) close_upload(self, upload);
    lora_asks_answer(self, ask, &reply, failed ? &result->error : NULL);
}

void lora_uploads_on_finish(struct lora_store *self, struct lora_ask *ask,
                            struct lora_result *result)
{
    struct lora_upload *upload = come_back(self, ask);
    char wanted[HASH_HEX_BYTES];
    hash_to_hex(&upload->hash, wanted);
    assert(upload->busy == 0);
    if (result->error.status == STATUS_OK) {
        result->file = upload->descriptor;
        upload->descriptor = -1;
    }
    free_upload(self, upload);
    take_content(self, ask, wanted, result);
}

static enum status abort_upload(struct lora_store *self, struct lora_ask *ask, struct error *error)
{
    struct lora_upload *upload = NULL;
    enum status status = find_own(self, ask, &upload, error);
    if (status != STATUS_OK) return status;
    assert(upload != NULL);
    const luna_LoraReply reply = {.upload = upload->id, .received_bytes = upload->received};
    close_upload(self, upload);
    lora_asks_answer(self, ask, &reply, NULL);
    return STATUS_OK;
}

void lora_uploads_on_put(struct lora_store *self, struct lora_ask *ask, const luna_Ask *letter,
                         struct message *frames)
{
    struct error error = {0};
    enum status status = STATUS_OK;
    switch (ask->request.lora_put.step) {
    case luna_LoraPutStep_PUT_WHOLE:
        status = start_whole(self, ask, letter, frames, &error);
        break;
    case luna_LoraPutStep_PUT_BEGIN:
        status = begin(self, ask, &error);
        break;
    case luna_LoraPutStep_PUT_CHUNK:
        status = write_chunk(self, ask, letter, frames, &error);
        break;
    case luna_LoraPutStep_PUT_COMMIT:
        status = commit(self, ask, &error);
        break;
    case luna_LoraPutStep_PUT_ABORT:
        status = abort_upload(self, ask, &error);
        break;
    }
    if (status != STATUS_OK) lora_asks_answer(self, ask, NULL, &error);
}
