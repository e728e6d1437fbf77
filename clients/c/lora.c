// lora.c - adapters up and down.
//
//     up      BEGIN(hash, bytes) -> known?  else CHUNK(offset) ... COMMIT(name)
//     down    a descriptor over the adapter socket, or GET(offset) ... as many as it takes
//
// A transfer is a sequence of calls under one deadline. Between the pieces of a download the
// content is held by its hash, not by its name: a name may be given to another file at any time.

#include "clients/c/lora.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "clients/c/client.h"
#include "clients/c/packet.h"

#define MS UINT64_C(1000000)     // nanoseconds
#define PIECE_BYTES (8u << 20)   // where the daemon names no size
#define COPY_BYTES (1u << 20)    // from a descriptor to another
#define ABORT_TIMEOUT_MS 200u    // for telling that an upload is given up
#define ATTACH_TIMEOUT_MS 2000u  // for asking where the adapter socket is

struct transfer {
    struct luna_client *client;           // that makes the calls
    const struct luna_transfer *options;  // the caller's
    uint64_t deadline_ns;                 // of all calls
    uint8_t *piece;                       // of piece_bytes
    uint32_t piece_bytes;                 // that one request or answer carries at most
    uint64_t done, total;                 // bytes moved, bytes in all
};

static enum status start(struct transfer *self, struct luna_client *client,
                         const struct luna_transfer *options, struct error *error)
{
    static const struct luna_transfer defaults = {0};
    if (options == NULL) options = &defaults;
    uint32_t timeout_ms = options->timeout_ms > 0 ? options->timeout_ms : CODEC_TIMEOUT_MS_DEFAULT;
    uint32_t piece_bytes = luna_client_hello(client)->chunk_bytes;
    *self = (struct transfer){.client = client,
                              .options = options,
                              .deadline_ns = clock_ns(clock_system()) + timeout_ms * MS,
                              .piece_bytes = piece_bytes > 0 ? piece_bytes : PIECE_BYTES};
    self->piece = malloc(self->piece_bytes);
    if (self->piece == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    return STATUS_OK;
}

static void moved_bytes(struct transfer *self, uint64_t bytes)
{
    self->done += bytes;
    if (self->options->on_bytes != NULL) {
        self->options->on_bytes(self->options->context, self->done, self->total);
    }
}

// One call with the time that is left.
static enum status call(struct transfer *self, struct luna_request *request,
                        struct luna_answer **out, struct error *error)
{
    uint64_t now = clock_ns(clock_system());
    if (now >= self->deadline_ns) {
        return error_set(error, STATUS_DEADLINE_EXCEEDED,
                         "%" PRIu64 " of %" PRIu64 " bytes went in time", self->done, self->total);
    }
    request->timeout_ms = (uint32_t)((self->deadline_ns - now + MS - 1) / MS);
    request->stop = self->options->stop;
    return luna_client_call(self->client, request, out, error);
}

// ---- up

// One step of an upload; *reply is what it answered.
static enum status put_step(struct transfer *self, const luna_LoraPut *body, uint64_t bytes,
                            luna_LoraReply *reply, struct error *error)
{
    const struct luna_tensor input = {
        .name = "file", .dtype = DTYPE_U8, .rank = 1, .dims = {bytes}, .data = self->piece};
    struct luna_request request = {.operation = luna_Operation_LORA_PUT,
                                   .body = body,
                                   .inputs = &input,
                                   .inputs_count = bytes > 0};
    struct luna_answer *answer = NULL;
    enum status status = call(self, &request, &answer, error);
    if (status != STATUS_OK) return status;
    assert(answer != NULL);
    *reply = *(const luna_LoraReply *)answer->body;
    luna_answer_destroy(&answer);
    return STATUS_OK;
}

// Reads the next piece of a file.
static enum status read_piece(struct transfer *self, const struct luna_lora_file *file,
                              uint64_t *bytes, struct error *error)
{
    uint64_t left = self->total - self->done;
    uint64_t wanted = left < self->piece_bytes ? left : self->piece_bytes;
    for (uint64_t have = 0; have < wanted;) {
        ssize_t got = pread(file->descriptor, self->piece + have, (size_t)(wanted - have),
                            (off_t)(self->done + have));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            return error_set(error, STATUS_FAILED_PRECONDITION,
                             "the file ended at %" PRIu64 " of %" PRIu64 " bytes",
                             self->done + have, self->total);
        }
        have += (uint64_t)got;
    }
    *bytes = wanted;
    return STATUS_OK;
}

// Tells that nothing more will come; whether the daemon hears it is not waited for.
static void give_up(struct transfer *self, uint64_t upload)
{
    struct luna_answer *answer = NULL;
    const luna_LoraPut body = {.step = luna_LoraPutStep_PUT_ABORT, .upload = upload};
    const struct luna_request request = {
        .operation = luna_Operation_LORA_PUT, .body = &body, .timeout_ms = ABORT_TIMEOUT_MS};
    if (luna_client_call(self->client, &request, &answer, NULL) == STATUS_OK) {
        luna_answer_destroy(&answer);
    }
}

static enum status put_pieces(struct transfer *self, const struct luna_lora_file *file,
                              const luna_LoraPut *begin, luna_LoraReply *reply, struct error *error)
{
    enum status status = STATUS_OK;
    uint64_t upload = reply->upload;
    uint64_t bytes = 0;
    while (self->done < self->total) {
        status = read_piece(self, file, &bytes, error);
        if (status != STATUS_OK) goto done;
        const luna_LoraPut chunk = {
            .step = luna_LoraPutStep_PUT_CHUNK, .upload = upload, .offset = self->done};
        status = put_step(self, &chunk, bytes, reply, error);
        if (status != STATUS_OK) goto done;
        moved_bytes(self, bytes);
    }
    luna_LoraPut commit = *begin;
    commit.step = luna_LoraPutStep_PUT_COMMIT;
    commit.upload = upload;
    status = put_step(self, &commit, 0, reply, error);

done:
    if (status != STATUS_OK && status != STATUS_NOT_FOUND) give_up(self, upload);
    return status;
}

static enum status put_once(struct transfer *self, const struct luna_lora_file *file,
                            luna_LoraReply *reply, struct error *error)
{
    luna_LoraPut begin = {.step = luna_LoraPutStep_PUT_BEGIN, .bytes = file->bytes};
    const char *name = file->name != NULL ? file->name : "";
    if (strlen(name) >= sizeof begin.name) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "the name has %zu bytes, at most %zu",
                         strlen(name), sizeof begin.name - 1);
    }
    text_set(begin.name, sizeof begin.name, name);
    text_set(begin.hash, sizeof begin.hash, file->hash);
    self->done = 0;
    self->total = file->bytes;
    enum status status = put_step(self, &begin, 0, reply, error);
    if (status != STATUS_OK || reply->known) return status;
    return put_pieces(self, file, &begin, reply, error);
}

enum status luna_lora_put(struct luna_client *self, const struct luna_lora_file *file,
                          const struct luna_transfer *transfer, luna_Lora *out, bool *moved,
                          struct error *error)
{
    assert(self != NULL);
    assert(file != NULL && file->bytes > 0);
    assert(file->hash != NULL && strlen(file->hash) == HASH_HEX_BYTES - 1);
    struct transfer state;
    luna_LoraReply reply = luna_LoraReply_init_zero;
    enum status status = start(&state, self, transfer, error);
    if (status != STATUS_OK) return status;
    status = put_once(&state, file, &reply, error);
    if (status == STATUS_NOT_FOUND) status = put_once(&state, file, &reply, error);
    free(state.piece);
    if (status != STATUS_OK) return status;
    *out = reply.lora;
    if (moved != NULL) *moved = state.done > 0;
    return STATUS_OK;
}

// ---- down

static enum status write_all(int descriptor, const uint8_t *data, uint64_t bytes,
                             struct error *error)
{
    while (bytes > 0) {
        ssize_t written = write(descriptor, data, (size_t)bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) {
            return error_set(error, STATUS_INTERNAL, "writing the file: %s", strerror(errno));
        }
        data += written;
        bytes -= (uint64_t)written;
    }
    return STATUS_OK;
}

// The adapter socket's path, if there is one.
static bool find_socket(struct transfer *self, char path[sizeof((luna_AttachReply *)0)->adapters])
{
    struct luna_answer *answer = NULL;
    struct luna_request request = {.operation = luna_Operation_ATTACH,
                                   .timeout_ms = ATTACH_TIMEOUT_MS};
    if (!self->client->may_lease) return false;
    if (luna_client_call(self->client, &request, &answer, NULL) != STATUS_OK) return false;
    const luna_AttachReply *reply = answer->body;
    text_set(path, sizeof reply->adapters, reply->adapters);
    luna_answer_destroy(&answer);
    return path[0] != '\0';
}

// Gets the file's descriptor; -1 when it has to come in pieces, which then say why.
static int open_local(struct transfer *self, const char *reference, luna_Lora *out)
{
    char path[sizeof((luna_AttachReply *)0)->adapters];
    luna_AdapterRequest request = luna_AdapterRequest_init_zero;
    luna_AdapterReply reply = luna_AdapterReply_init_zero;
    struct client_packet packet = {.request_type = luna_AdapterRequest_fields,
                                   .request = &request,
                                   .reply_type = luna_AdapterReply_fields,
                                   .reply = &reply,
                                   .descriptor = -1};
    int session = -1;
    text_set(request.reference, sizeof request.reference, reference);
    if (!find_socket(self, path)) return -1;
    if (client_packet_connect(&session, path, NULL) != STATUS_OK) return -1;
    bool answered = client_packet_exchange(session, &packet);
    close(session);
    if (!answered) return -1;
    if (reply.code != luna_Code_OK && packet.descriptor >= 0) {
        close(packet.descriptor);
        packet.descriptor = -1;
    }
    if (packet.descriptor < 0) return -1;
    self->total = reply.bytes;
    *out = reply.lora;
    return packet.descriptor;
}

// The file lies on this machine: copied from one descriptor to the other.
static enum status copy_local(struct transfer *self, int from, int to, struct error *error)
{
    const struct luna_lora_file file = {.descriptor = from};
    uint64_t bytes = 0;
    if (self->piece_bytes > COPY_BYTES) self->piece_bytes = COPY_BYTES;
    while (self->done < self->total) {
        if (self->options->stop != NULL && *self->options->stop != 0) {
            return error_set(error, STATUS_CANCELLED, "interrupted");
        }
        enum status status = read_piece(self, &file, &bytes, error);
        if (status == STATUS_OK) status = write_all(to, self->piece, bytes, error);
        if (status != STATUS_OK) return status;
        moved_bytes(self, bytes);
    }
    return STATUS_OK;
}

// Checks a piece against what the first one said.
static enum status check_piece(struct transfer *self, const luna_Lora *first, const luna_Lora *lora,
                               const struct luna_tensor *file, struct error *error)
{
    bool same = lora->bytes == first->bytes && strcmp(lora->hash, first->hash) == 0;
    if (self->done > 0 && !same) {
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "the adapter was replaced while it was read");
    }
    if (file == NULL || file->dtype != DTYPE_U8 || file->bytes == 0 ||
        file->bytes > lora->bytes - self->done) {
        return error_set(error, STATUS_INTERNAL,
                         "the answer holds no bytes of the adapter at %" PRIu64, self->done);
    }
    return STATUS_OK;
}

static enum status get_piece(struct transfer *self, const char *reference, int descriptor,
                             luna_Lora *lora, struct error *error)
{
    struct luna_answer *answer = NULL;
    luna_LoraGet body = {.offset = self->done};
    const struct luna_room room = {.name = "file", .bytes = self->piece_bytes};
    struct luna_request request = {
        .operation = luna_Operation_LORA_GET, .body = &body, .rooms = &room, .rooms_count = 1};
    text_set(body.reference, sizeof body.reference, reference);
    enum status status = call(self, &request, &answer, error);
    if (status != STATUS_OK) return status;
    assert(answer != NULL);

    const luna_LoraReply *reply = answer->body;
    const struct luna_tensor *file = luna_answer_tensor(answer, "file");
    status = check_piece(self, lora, &reply->lora, file, error);
    if (status != STATUS_OK) goto done;
    *lora = reply->lora;
    self->total = lora->bytes;
    status = write_all(descriptor, file->data, file->bytes, error);
    if (status == STATUS_OK) moved_bytes(self, file->bytes);

done:
    luna_answer_destroy(&answer);
    return status;
}

static enum status get_pieces(struct transfer *self, const char *reference, int descriptor,
                              luna_Lora *lora, struct error *error)
{
    enum status status = STATUS_OK;
    do {
        const char *held = self->done > 0 && lora->hash[0] != '\0' ? lora->hash : reference;
        char asked[sizeof lora->name];
        text_set(asked, sizeof asked, held);  // lora is written by what is asked for
        status = get_piece(self, asked, descriptor, lora, error);
    } while (status == STATUS_OK && self->done < self->total);
    return status;
}

enum status luna_lora_get(struct luna_client *self, const char *reference, int descriptor,
                          const struct luna_transfer *transfer, luna_Lora *out, struct error *error)
{
    assert(self != NULL);
    assert(reference != NULL);
    assert(descriptor >= 0);
    struct transfer state;
    luna_Lora lora = luna_Lora_init_zero;
    if (strlen(reference) >= sizeof((luna_LoraGet *)0)->reference) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "the reference has %zu bytes, at most 255",
                         strlen(reference));
    }
    enum status status = start(&state, self, transfer, error);
    if (status != STATUS_OK) return status;
    int local = open_local(&state, reference, &lora);
    if (local >= 0) {
        status = copy_local(&state, local, descriptor, error);
        close(local);
    } else {
        status = get_pieces(&state, reference, descriptor, &lora, error);
    }
    free(state.piece);
    if (status != STATUS_OK) return status;
    *out = lora;
    return STATUS_OK;
}
