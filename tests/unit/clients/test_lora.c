// test_lora.c - adapters up and down, against a daemon that does as it is told.

#include "clients/c/lora.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/text.h"
#include "tests/test.h"
#include "tests/unit/clients/fake_daemon.h"

#define PIECE FAKE_CHUNK_BYTES
#define FILE_BYTES (2u * PIECE + 1000u)
#define HASH "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define OTHER "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100"

static const struct bytes nothing = {NULL, 0};

// What the daemon has, and what it was asked; one test at a time looks at it.
struct shelf {
    uint8_t stored[FILE_BYTES];  // an upload so far, or what comes down
    uint64_t received;           // of it
    uint64_t upload;             // that runs; counts up
    uint32_t begins, chunks, commits, aborts, gets;
    bool known;         // BEGIN: it is here
    bool forgets;       // the first upload is lost at its second chunk
    bool refuses;       // chunks
    bool replaces;      // the file is another one after the first piece
    char name[64];      // with the commit
    char asked[2][80];  // references of the first two GETs
};

static struct shelf *shelf;
static uint8_t content[FILE_BYTES];

static void reply_lora(struct fake_request *request, luna_LoraReply *reply, struct bytes file)
{
    luna_Header header;
    codec_start_reply(&request->header, &header);
    if (file.data != NULL) {
        luna_Tensor *tensor = &header.tensors[header.tensors_count++];
        *tensor = (luna_Tensor){.name = "file", .dtype = luna_Dtype_U8, .dims_count = 1};
        tensor->dims[0] = tensor->bytes = file.size;
    }
    fake_reply(request, &header, luna_LoraReply_fields, reply, file);
}

static void take_chunk(struct fake_request *request, const luna_LoraPut *put, luna_LoraReply *reply)
{
    shelf->chunks++;
    if (shelf->refuses) {
        fake_fail(request, luna_Code_INVALID_ARGUMENT, "no chunks here", 0);
        return;
    }
    if (shelf->forgets && shelf->begins == 1 && put->offset > 0) {
        fake_fail(request, luna_Code_NOT_FOUND, "no such upload", 0);
        return;
    }
    assert_int_equal(put->upload, shelf->upload);
    assert_int_equal(put->offset, shelf->received);
    assert_true(request->payloads[0].size <= PIECE);
    memcpy(shelf->stored + put->offset, request->payloads[0].data,
           (size_t)request->payloads[0].size);
    shelf->received += request->payloads[0].size;
    reply_lora(request, reply, nothing);
}

static void answer_put(struct fake_request *request)
{
    luna_LoraPut put;
    luna_LoraReply reply = luna_LoraReply_init_zero;
    assert_int_equal(codec_decode(luna_LoraPut_fields, request->body, &put, NULL), STATUS_OK);
    strcpy(reply.lora.hash, HASH);
    reply.has_lora = true;
    reply.lora.bytes = FILE_BYTES;
    switch (put.step) {
    case luna_LoraPutStep_PUT_BEGIN:
        assert_string_equal(put.hash, HASH);
        assert_int_equal(put.bytes, FILE_BYTES);
        shelf->begins++;
        shelf->received = 0;
        reply.known = shelf->known;
        reply.upload = ++shelf->upload;
        reply_lora(request, &reply, nothing);
        return;
    case luna_LoraPutStep_PUT_CHUNK:
        take_chunk(request, &put, &reply);
        return;
    case luna_LoraPutStep_PUT_COMMIT:
        shelf->commits++;
        text_set(shelf->name, sizeof shelf->name, put.name);
        reply.known = true;
        reply_lora(request, &reply, nothing);
        return;
    default:
        shelf->aborts++;
        reply_lora(request, &reply, nothing);
    }
}

static void answer_get(struct fake_request *request)
{
    luna_LoraGet get;
    luna_LoraReply reply = luna_LoraReply_init_zero;
    assert_int_equal(codec_decode(luna_LoraGet_fields, request->body, &get, NULL), STATUS_OK);
    if (shelf->gets < 2) text_set(shelf->asked[shelf->gets], 80, get.reference);
    strcpy(reply.lora.hash, shelf->replaces && shelf->gets > 0 ? OTHER : HASH);
    shelf->gets++;
    reply.has_lora = true;
    reply.lora.bytes = FILE_BYTES;
    uint64_t left = FILE_BYTES - get.offset;
    struct bytes file = {content + get.offset, left < PIECE ? left : PIECE};
    reply_lora(request, &reply, file);
}

static void answer(struct fake_request *request)
{
    if (request->header.operation == luna_Operation_LORA_PUT) answer_put(request);
    if (request->header.operation == luna_Operation_LORA_GET) answer_get(request);
}

struct setting {
    struct fake_daemon fake;     // that answers
    struct luna_client *client;  // connected
    int file;                    // holds content
    int out;                     // empty
};

static int memory_file(const void *data, size_t bytes)
{
    int descriptor = memfd_create("adapter", MFD_CLOEXEC);
    assert_true(descriptor >= 0);
    if (bytes > 0) assert_int_equal(write(descriptor, data, bytes), (ssize_t)bytes);
    return descriptor;
}

static int set_up(void **state)
{
    struct setting *self = calloc(1, sizeof *self);
    struct error error = {0};
    shelf = calloc(1, sizeof *shelf);
    assert_non_null(self);
    assert_non_null(shelf);
    for (uint32_t i = 0; i < FILE_BYTES; i++) content[i] = (uint8_t)(i * 2654435761u >> 24);
    fake_daemon_start(&self->fake, answer, true);
    const struct luna_client_options options = {.endpoint = self->fake.endpoint};
    assert_int_equal(luna_client_create(&self->client, &options, &error), STATUS_OK);
    self->file = memory_file(content, sizeof content);
    self->out = memory_file(NULL, 0);
    *state = self;
    return 0;
}

static int tear_down(void **state)
{
    struct setting *self = *state;
    luna_client_destroy(&self->client);
    fake_daemon_stop(&self->fake);
    close(self->file);
    close(self->out);
    free(self);
    free(shelf);
    return 0;
}

static enum status put_file(struct setting *self, const struct luna_lora_file *file,
                            const struct luna_transfer *transfer, luna_Lora *lora, bool *moved,
                            struct error *error)
{
    fake_in_order(&self->fake);
    enum status status = luna_lora_put(self->client, file, transfer, lora, moved, error);
    fake_in_order(&self->fake);
    return status;
}

static enum status get(struct setting *self, const char *reference, int out,
                       const struct luna_transfer *transfer, luna_Lora *lora, struct error *error)
{
    fake_in_order(&self->fake);
    enum status status = luna_lora_get(self->client, reference, out, transfer, lora, error);
    fake_in_order(&self->fake);
    return status;
}

static enum status put(struct setting *self, const struct luna_transfer *transfer, bool *moved,
                       struct error *error)
{
    luna_Lora lora;
    const struct luna_lora_file file = {
        .descriptor = self->file, .bytes = FILE_BYTES, .hash = HASH, .name = "style"};
    return put_file(self, &file, transfer, &lora, moved, error);
}

static void assert_came_down(struct setting *self)
{
    static uint8_t came[FILE_BYTES + 1];
    assert_int_equal(pread(self->out, came, sizeof came, 0), FILE_BYTES);
    assert_memory_equal(came, content, FILE_BYTES);
}

// ---- up

static void count_bytes(void *context, uint64_t done, uint64_t total)
{
    assert_int_equal(total, FILE_BYTES);
    assert_true(done > *(uint64_t *)context);
    *(uint64_t *)context = done;
}

static void a_file_goes_up_in_pieces_and_gets_its_name_with_the_last(void **state)
{
    struct setting *self = *state;
    struct error error = {0};
    bool moved = false;
    uint64_t told = 0;
    const struct luna_transfer transfer = {.on_bytes = count_bytes, .context = &told};
    assert_int_equal(put(self, &transfer, &moved, &error), STATUS_OK);
    assert_true(moved);
    assert_int_equal(told, FILE_BYTES);
    assert_int_equal(shelf->chunks, 3);
    assert_memory_equal(shelf->stored, content, FILE_BYTES);
    assert_int_equal(shelf->commits, 1);
    assert_int_equal(shelf->aborts, 0);
    assert_string_equal(shelf->name, "style");
}

static void what_the_daemon_has_moves_no_bytes(void **state)
{
    struct setting *self = *state;
    struct error error = {0};
    bool moved = true;
    shelf->known = true;
    assert_int_equal(put(self, NULL, &moved, &error), STATUS_OK);
    assert_false(moved);
    assert_int_equal(shelf->begins, 1);
    assert_int_equal(shelf->chunks + shelf->commits, 0);
}

static void an_upload_that_the_daemon_lost_is_begun_once_more(void **state)
{
    struct setting *self = *state;
    struct error error = {0};
    shelf->forgets = true;
    assert_int_equal(put(self, NULL, NULL, &error), STATUS_OK);
    assert_int_equal(shelf->begins, 2);
    assert_int_equal(shelf->commits, 1);
    assert_memory_equal(shelf->stored, content, FILE_BYTES);
}

static void a_refused_upload_is_taken_back(void **state)
{
    struct setting *self = *state;
    struct error error = {0};
    shelf->refuses = true;
    assert_int_equal(put(self, NULL, NULL, &error), STATUS_INVALID_ARGUMENT);
    assert_string_equal(error.message, "no chunks here");
    assert_int_equal(shelf->begins, 1);
    assert_int_equal(shelf->aborts, 1);
}

static void a_file_that_became_shorter_is_taken_back_and_said(void **state)
{
    struct setting *self = *state;
    struct error error = {0};
    assert_int_equal(ftruncate(self->file, FILE_BYTES - 1), 0);
    assert_int_equal(put(self, NULL, NULL, &error), STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(error.message, "ended"));
    assert_int_equal(shelf->aborts, 1);
    assert_int_equal(shelf->commits, 0);
}

static void a_name_that_is_too_long_is_not_sent(void **state)
{
    struct setting *self = *state;
    struct error error = {0};
    luna_Lora lora;
    char name[300];
    memset(name, 'n', sizeof name);
    name[299] = '\0';
    const struct luna_lora_file file = {
        .descriptor = self->file, .bytes = FILE_BYTES, .hash = HASH, .name = name};
    assert_int_equal(put_file(self, &file, NULL, &lora, NULL, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "299"));
    assert_int_equal(shelf->begins, 0);
}

// ---- down

static void a_file_comes_down_in_pieces_held_by_its_hash(void **state)
{
    struct setting *self = *state;
    struct error error = {0};
    luna_Lora lora;
    assert_int_equal(get(self, "style", self->out, NULL, &lora, &error), STATUS_OK);
    assert_came_down(self);
    assert_int_equal(shelf->gets, 3);
    assert_string_equal(shelf->asked[0], "style");
    assert_string_equal(shelf->asked[1], HASH);
    assert_string_equal(lora.hash, HASH);
}

static void a_file_that_is_replaced_meanwhile_is_an_error(void **state)
{
    struct setting *self = *state;
    struct error error = {0};
    luna_Lora lora;
    shelf->replaces = true;
    assert_int_equal(get(self, "style", self->out, NULL, &lora, &error),
                     STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(error.message, "replaced"));
}

static void a_file_that_cannot_be_written_is_an_error(void **state)
{
    struct setting *self = *state;
    struct error error = {0};
    luna_Lora lora;
    int pair[2];
    assert_int_equal(pipe(pair), 0);
    assert_int_equal(get(self, "style", pair[0], NULL, &lora, &error),  // the end to read
                     STATUS_INTERNAL);
    assert_non_null(strstr(error.message, "writing"));
    close(pair[0]);
    close(pair[1]);
}

// The adapter socket: one connection, one packet, one answer with the file's descriptor.
struct adapter_socket {
    char path[80];     // bound
    int listener;      // at it
    int file;          // to hand over
    luna_Code code;    // of the answer
    pthread_t thread;  // that serves
};

static void *serve_adapter(void *argument)
{
    struct adapter_socket *self = argument;
    uint8_t packet[CODEC_FRAME_BYTES_MAX];
    luna_AdapterRequest request;
    int session = accept(self->listener, NULL, NULL);
    ssize_t size = recv(session, packet, sizeof packet, 0);
    assert_true(size > 0);
    const struct bytes frame = {packet, (uint64_t)size};
    assert_int_equal(codec_decode(luna_AdapterRequest_fields, frame, &request, NULL), STATUS_OK);
    assert_string_equal(request.reference, "style");

    luna_AdapterReply reply = luna_AdapterReply_init_zero;
    reply.code = self->code;
    reply.bytes = FILE_BYTES;
    reply.has_lora = true;
    strcpy(reply.lora.hash, HASH);
    struct codec_buffer encoded = {packet, sizeof packet, 0};
    assert_int_equal(codec_encode(luna_AdapterReply_fields, &reply, &encoded, NULL), STATUS_OK);
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec part = {packet, (size_t)encoded.size};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    struct cmsghdr *extra = CMSG_FIRSTHDR(&message);
    extra->cmsg_level = SOL_SOCKET;
    extra->cmsg_type = SCM_RIGHTS;
    extra->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(extra), &self->file, sizeof(int));
    if (self->code != luna_Code_OK) message.msg_controllen = 0;
    if (self->code != luna_Code_OK) message.msg_control = NULL;
    assert_true(sendmsg(session, &message, MSG_NOSIGNAL) > 0);
    close(session);
    return NULL;
}

static void start_adapters(struct adapter_socket *self, struct setting *setting, luna_Code code)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    self->file = setting->file;
    self->code = code;
    snprintf(self->path, sizeof self->path, "%s/adapters.sock", setting->fake.folder);
    strcpy(address.sun_path, self->path);
    self->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(self->listener, (const struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(self->listener, 1), 0);
    setting->fake.adapters = self->path;
    assert_int_equal(pthread_create(&self->thread, NULL, serve_adapter, self), 0);
}

static void stop_adapters(struct adapter_socket *self)
{
    pthread_join(self->thread, NULL);
    close(self->listener);
    unlink(self->path);
}

static void on_the_same_machine_the_file_is_handed_over(void **state)
{
    struct setting *self = *state;
    struct adapter_socket adapters;
    struct error error = {0};
    luna_Lora lora;
    start_adapters(&adapters, self, luna_Code_OK);
    assert_int_equal(get(self, "style", self->out, NULL, &lora, &error), STATUS_OK);
    stop_adapters(&adapters);
    assert_came_down(self);
    assert_int_equal(shelf->gets, 0);
    assert_string_equal(lora.hash, HASH);
}

static void what_is_not_handed_over_comes_in_pieces(void **state)
{
    struct setting *self = *state;
    struct adapter_socket adapters;
    struct error error = {0};
    luna_Lora lora;
    start_adapters(&adapters, self, luna_Code_UNAVAILABLE);
    assert_int_equal(get(self, "style", self->out, NULL, &lora, &error), STATUS_OK);
    stop_adapters(&adapters);
    assert_came_down(self);
    assert_int_equal(shelf->gets, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_file_goes_up_in_pieces_and_gets_its_name_with_the_last,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_the_daemon_has_moves_no_bytes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_upload_that_the_daemon_lost_is_begun_once_more, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_refused_upload_is_taken_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_file_that_became_shorter_is_taken_back_and_said, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_name_that_is_too_long_is_not_sent, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_file_comes_down_in_pieces_held_by_its_hash, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_file_that_is_replaced_meanwhile_is_an_error, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_file_that_cannot_be_written_is_an_error, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(on_the_same_machine_the_file_is_handed_over, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(what_is_not_handed_over_comes_in_pieces, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
