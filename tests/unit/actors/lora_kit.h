// lora_kit.h - a LoRA store that runs, with the test in the router's, the monitor's and an
// executor's place, and adapters made of numbers.

#ifndef TESTS_UNIT_ACTORS_LORA_KIT_H
#define TESTS_UNIT_ACTORS_LORA_KIT_H

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include "actors/packet.h"
#include "actors/post.h"
#include "actors/topology.h"
#include "messages/codec.h"
#include "messages/letter.h"
#include "models/files/tensors.h"
#include "runtime/actor.h"
#include "runtime/channel.h"
#include "runtime/socket.h"
#include "tests/test.h"

#define KIT_WAIT_MS 20000

struct kit {
    char top[64];           // holds everything
    char loras[80];         // the directory of adapters
    char store_path[96];    // lora.sock
    struct config *config;  // of the store
    struct clock clock;     // of the store
    void *zmq;              // context
    void *router;           // PAIR
    void *events;           // PULL
    struct actor *auth;     // lets executors in
    struct actor *store;    // runs
    uint64_t jobs;          // the last number given out
    char evicted[4096];     // messages of lora.evicted, a line each
    uint32_t puts;          // events lora.put
};

// What the store answered.
struct kit_answer {
    luna_Letter letter;     // Answer, StackResolved
    luna_Header header;     // of an Answer
    struct message frames;  // of an Answer: header, body, payloads
};

static inline void kit_path(const struct kit *self, const char *name, char out[256])
{
    snprintf(out, 256, "%s/%s", self->loras, name);
}

static inline void kit_start(struct kit *self, const char *const *sets, uint32_t count)
{
    static const struct log silent = {.actor = "test", .level = LOG_ERROR, .descriptor = 2};
    static char *const no_environment[] = {NULL};
    char directories[128];
    char etc[80];
    const char *all[16];
    struct error error = {0};
    memset(self, 0, sizeof *self);
    snprintf(self->top, sizeof self->top, "%s/luna-test-XXXXXX", P_tmpdir);
    assert_non_null(mkdtemp(self->top));
    snprintf(self->loras, sizeof self->loras, "%s/loras", self->top);
    assert_int_equal(mkdir(self->loras, 0700), 0);
    snprintf(directories, sizeof directories, "lora.directories=%s", self->loras);
    snprintf(etc, sizeof etc, "%s/etc", self->top);
    all[0] = directories;
    for (uint32_t i = 0; i < count; i++) all[i + 1] = sets[i];
    const struct config_sources sources = {
        .etc = etc, .environment = no_environment, .sets = all, .set_count = count + 1};
    if (config_load(&self->config, &sources, &error) != STATUS_OK) fail_msg("%s", error.message);
    self->clock = clock_manual(1000000000u);
    assert_int_equal(socket_context_create(&self->zmq, 0, &error), STATUS_OK);
    assert_int_equal(socket_open(&self->router, self->zmq, EDGE_ROUTER_STORE, &error), STATUS_OK);
    assert_int_equal(socket_bind(self->router, ADDRESS_ROUTER_LORAS, &error), STATUS_OK);
    assert_int_equal(socket_open(&self->events, self->zmq, EDGE_EVENTS_SINK, &error), STATUS_OK);
    assert_int_equal(socket_bind(self->events, ADDRESS_EVENTS, &error), STATUS_OK);
    snprintf(self->store_path, sizeof self->store_path, "%s/lora.sock", self->top);
    const struct core_arguments arguments = {.config = self->config,
                                             .private_directory = self->top,
                                             .lease_path = "",
                                             .loras_path = self->store_path};
    const struct actor_host host = {.zmq = self->zmq, .clock = &self->clock, .log = &silent};
    if (actor_start(&self->auth, &auth_kind, &host, &arguments, &error) != STATUS_OK) {
        fail_msg("%s", error.message);
    }
    if (actor_start(&self->store, &lora_store_kind, &host, &arguments, &error) != STATUS_OK) {
        fail_msg("%s", error.message);
    }
}

static inline void kit_stop(struct kit *self)
{
    char command[96];
    actor_stop(&self->store);
    actor_stop(&self->auth);
    socket_close(&self->router);
    socket_close(&self->events);
    socket_context_destroy(&self->zmq);
    config_destroy(&self->config);
    snprintf(command, sizeof command, "rm -r %s", self->top);
    assert_int_equal(system(command), 0);
}

// A small store for a test.
static inline int kit_setup(void **state)
{
    const char *const sets[] = {"lora.memory_limit_mb=4", "lora.entries_max=6"};
    struct kit *self = calloc(1, sizeof *self);
    assert_non_null(self);
    kit_start(self, sets, 2);
    *state = self;
    return 0;
}

static inline int kit_teardown(void **state)
{
    kit_stop(*state);
    free(*state);
    return 0;
}

#define KIT_TEST(name) cmocka_unit_test_setup_teardown(name, kit_setup, kit_teardown)

// Takes what the monitor would have got.
static inline void kit_read_events(struct kit *self)
{
    while (true) {
        struct message message;
        luna_Letter letter;
        message_init(&message);
        if (message_receive(&message, self->events) != STATUS_OK) return;
        if (post_read(&message, &letter) && letter.which_letter == luna_Letter_event_tag) {
            const luna_Event *event = &letter.letter.event;
            size_t used = strlen(self->evicted);
            self->puts += strcmp(event->topic, "lora.put") == 0;
            if (strcmp(event->topic, "lora.evicted") == 0) {
                snprintf(self->evicted + used, sizeof self->evicted - used, "%s\n", event->message);
            }
        }
        message_clear(&message);
    }
}

// Waits for an event whose message holds these words.
static inline void kit_wait_evicted(struct kit *self, const char *words)
{
    for (int i = 0; i < KIT_WAIT_MS / 10; i++) {
        kit_read_events(self);
        if (strstr(self->evicted, words) != NULL) return;
        zmq_pollitem_t item = {.socket = self->events, .events = ZMQ_POLLIN};
        zmq_poll(&item, 1, 10);
    }
    fail_msg("no eviction of \"%s\"; there were:\n%s", words, self->evicted);
}

static inline void kit_receive(struct kit *self, struct kit_answer *out)
{
    zmq_pollitem_t item = {.socket = self->router, .events = ZMQ_POLLIN};
    message_init(&out->frames);
    while (message_receive(&out->frames, self->router) != STATUS_OK) {
        if (zmq_poll(&item, 1, KIT_WAIT_MS) <= 0) fail_msg("the store does not answer");
    }
    assert_true(post_read(&out->frames, &out->letter));
    struct error error = {0};
    if (out->letter.which_letter != luna_Letter_answer_tag) return;
    if (codec_decode_header(message_frame(&out->frames, 0), &out->header, &error) != STATUS_OK) {
        fail_msg("%s", error.message);
    }
}

// ---- requests

static const struct bytes no_file = {.data = NULL, .size = 0};

static inline luna_Header kit_header(luna_Operation operation)
{
    luna_Header header = luna_Header_init_zero;
    header.major = CODEC_MAJOR;
    header.kind = luna_Kind_REQUEST;
    header.operation = operation;
    header.id.size = CODEC_ID_BYTES;
    return header;
}

static inline void kit_add_tensor(luna_Header *header, const char *name, uint64_t bytes)
{
    luna_Tensor *tensor = &header->tensors[header->tensors_count++];
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    tensor->dtype = luna_Dtype_U8;
    tensor->dims_count = 1;
    tensor->dims[0] = bytes;
    tensor->bytes = bytes;
}

static inline void kit_send(struct kit *self, luna_Letter *letter, const luna_Header *header,
                            const void *body, const struct bytes *payloads, uint32_t count)
{
    uint8_t *buffer = malloc(CODEC_BODY_BYTES_MAX);
    struct codec_buffer encoded = {.data = buffer, .capacity = CODEC_BODY_BYTES_MAX};
    struct message frames;
    assert_non_null(buffer);
    message_init(&frames);
    assert_int_equal(codec_encode_header(header, &encoded, NULL), STATUS_OK);
    message_append(&frames, (struct bytes){buffer, encoded.size});
    encoded = (struct codec_buffer){.data = buffer, .capacity = CODEC_BODY_BYTES_MAX};
    assert_int_equal(codec_encode(codec_request_type(header->operation), body, &encoded, NULL),
                     STATUS_OK);
    message_append(&frames, (struct bytes){buffer, encoded.size});
    for (uint32_t i = 0; i < count; i++) message_append(&frames, payloads[i]);
    assert_int_equal(post_letter(self->router, letter, &frames), STATUS_OK);
    free(buffer);
}

// Sends an ask of user 1000, or an admin with user 0; returns its number.
static inline uint64_t kit_post_ask(struct kit *self, uint32_t user, luna_Operation operation,
                                    const void *body, struct bytes file)
{
    luna_Letter letter = {.which_letter = luna_Letter_ask_tag};
    luna_Header header = kit_header(operation);
    if (file.size > 0) kit_add_tensor(&header, "file", file.size);
    self->jobs += 1;
    letter.letter.ask.job = self->jobs;
    letter.letter.ask.user = user;
    letter.letter.ask.admin = user == 0;
    kit_send(self, &letter, &header, body, &file, file.size > 0);
    return self->jobs;
}

// The same, and waits; reads the answer's body when it is OK.
static inline enum status kit_ask(struct kit *self, uint32_t user, luna_Operation operation,
                                  const void *body, struct bytes file, void *reply,
                                  struct kit_answer *answer)
{
    uint64_t job = kit_post_ask(self, user, operation, body, file);
    kit_receive(self, answer);
    assert_int_equal(answer->letter.which_letter, luna_Letter_answer_tag);
    assert_true(answer->letter.letter.answer.job == job);
    if (answer->header.code == luna_Code_OK && reply != NULL) {
        assert_int_equal(codec_decode(codec_reply_type(operation),
                                      message_frame(&answer->frames, 1), reply, NULL),
                         STATUS_OK);
    }
    return (enum status)answer->header.code;
}

// The same for those with a LoraName.
static inline enum status kit_name(struct kit *self, uint32_t user, luna_Operation operation,
                                   const char *reference, luna_LoraReply *reply)
{
    luna_LoraName body = luna_LoraName_init_zero;
    struct kit_answer answer;
    snprintf(body.reference, sizeof body.reference, "%s", reference);
    enum status status =
        kit_ask(self, user, operation, &body, (struct bytes){NULL, 0}, reply, &answer);
    message_clear(&answer.frames);
    return status;
}

static inline enum status kit_put(struct kit *self, uint32_t user, const luna_LoraPut *body,
                                  struct bytes file, luna_LoraReply *reply, char message[384])
{
    struct kit_answer answer;
    enum status status = kit_ask(self, user, luna_Operation_LORA_PUT, body, file, reply, &answer);
    if (message != NULL) snprintf(message, 384, "%s", answer.header.message);
    message_clear(&answer.frames);
    return status;
}

static inline luna_LoraStats kit_stats(struct kit *self)
{
    luna_LoraStats stats;
    const luna_Empty empty = {0};
    struct kit_answer answer;
    assert_int_equal(kit_ask(self, 0, luna_Operation_LORA_STATS, &empty, (struct bytes){NULL, 0},
                             &stats, &answer),
                     STATUS_OK);
    message_clear(&answer.frames);
    return stats;
}

// ---- stacks

static inline void kit_entry(luna_EncodeText *body, const char *reference, float strength)
{
    luna_LoraEntry *entry = &body->loras[body->loras_count++];
    snprintf(entry->reference, sizeof entry->reference, "%s", reference);
    entry->strength = strength;
}

// Sends a stack; one-shots are its payloads, called lora.0 and so on. Returns the job.
static inline uint64_t kit_post_stack(struct kit *self, luna_EncodeText *body,
                                      const struct bytes *one_shots, uint32_t count)
{
    luna_Letter letter = {.which_letter = luna_Letter_resolve_stack_tag};
    luna_Header header = kit_header(luna_Operation_ENCODE_TEXT);
    struct bytes payloads[4] = {{"a cat", 5}};
    kit_add_tensor(&header, "prompt", 5);
    for (uint32_t i = 0; i < count; i++) {
        char name[16];
        snprintf(name, sizeof name, "lora.%u", i);
        kit_add_tensor(&header, name, one_shots[i].size);
        payloads[i + 1] = one_shots[i];
    }
    self->jobs += 1;
    letter.letter.resolve_stack.job = self->jobs;
    letter.letter.resolve_stack.user = 1000;
    kit_send(self, &letter, &header, body, payloads, count + 1);
    return self->jobs;
}

static inline luna_StackResolved kit_stack(struct kit *self, luna_EncodeText *body,
                                           const struct bytes *one_shots, uint32_t count)
{
    luna_StackResolved resolved = luna_StackResolved_init_zero;
    uint64_t job = kit_post_stack(self, body, one_shots, count);
    // The store may have been quicker than a release: then an older answer comes before.
    while (resolved.job != job) {
        struct kit_answer answer;
        kit_receive(self, &answer);
        assert_int_equal(answer.letter.which_letter, luna_Letter_stack_resolved_tag);
        assert_true(answer.letter.letter.stack_resolved.job <= job);
        resolved = answer.letter.letter.stack_resolved;
        message_clear(&answer.frames);
    }
    return resolved;
}

// A stack of one by name.
static inline luna_StackResolved kit_resolve(struct kit *self, const char *reference)
{
    static luna_EncodeText body;
    body = (luna_EncodeText)luna_EncodeText_init_zero;
    kit_entry(&body, reference, 1.0f);
    return kit_stack(self, &body, NULL, 0);
}

static inline void kit_release(struct kit *self, uint64_t job)
{
    luna_Letter letter = {.which_letter = luna_Letter_release_stack_tag};
    letter.letter.release_stack.job = job;
    assert_int_equal(post_letter(self->router, &letter, NULL), STATUS_OK);
}

// ---- the sockets with descriptors

static inline int kit_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int channel = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_true(channel >= 0);
    assert_int_equal(connect(channel, (const struct sockaddr *)&address, sizeof address), 0);
    return channel;
}

static inline void kit_read_packet(int channel, uint8_t *buffer, size_t capacity, size_t *size,
                                   int *descriptor)
{
    struct channel_descriptors passed = {.count = 0};
    struct pollfd entry = {.fd = channel, .events = POLLIN};
    assert_int_equal(poll(&entry, 1, KIT_WAIT_MS), 1);
    assert_int_equal(channel_receive(channel, buffer, capacity, size, &passed), STATUS_OK);
    *descriptor = passed.count > 0 ? passed.descriptors[0] : -1;
}

// Fetches as an executor does; -1 when there is none.
static inline int kit_fetch(struct kit *self, const luna_StackEntry *entry)
{
    char path[96];
    uint8_t buffer[LETTER_BYTES_MAX];
    size_t size = 0;
    int descriptor = -1;
    luna_Letter letter = {.which_letter = luna_Letter_adapter_fetch_tag};
    snprintf(path, sizeof path, "%s/%s", self->top, SOCKET_ADAPTERS);
    int channel = kit_connect(path);
    letter.letter.adapter_fetch.encoder_hash.size = entry->encoder_hash.size;
    memcpy(letter.letter.adapter_fetch.encoder_hash.bytes, entry->encoder_hash.bytes, 32);
    assert_int_equal(packet_send_letter(channel, &letter, -1), STATUS_OK);
    kit_read_packet(channel, buffer, sizeof buffer, &size, &descriptor);
    assert_int_equal(letter_decode((struct bytes){buffer, size}, &letter, NULL), STATUS_OK);
    assert_int_equal(letter.which_letter, luna_Letter_adapter_fetched_tag);
    assert_true((letter.letter.adapter_fetched.code == luna_Code_OK) == (descriptor >= 0));
    close(channel);
    return descriptor;
}

// Asks as a local client does.
static inline luna_AdapterReply kit_adapter(struct kit *self, const char *reference,
                                            int *descriptor)
{
    luna_AdapterRequest request = luna_AdapterRequest_init_zero;
    luna_AdapterReply reply;
    uint8_t buffer[luna_AdapterReply_size + luna_AdapterRequest_size];
    struct codec_buffer encoded = {.data = buffer, .capacity = sizeof buffer};
    size_t size = 0;
    snprintf(request.reference, sizeof request.reference, "%s", reference);
    assert_int_equal(codec_encode(luna_AdapterRequest_fields, &request, &encoded, NULL), STATUS_OK);
    int channel = kit_connect(self->store_path);
    assert_int_equal(channel_send(channel, (struct bytes){buffer, encoded.size}, NULL), STATUS_OK);
    kit_read_packet(channel, buffer, sizeof buffer, &size, descriptor);
    assert_int_equal(
        codec_decode(luna_AdapterReply_fields, (struct bytes){buffer, size}, &reply, NULL),
        STATUS_OK);
    close(channel);
    return reply;
}

// ---- adapters

// Writes an adapter of rank r for one linear of CLIP-L, with as many floats for the UNet; the
// contents differ by seed.
static inline void kit_write_adapter(int descriptor, float seed, uint32_t rank,
                                     uint64_t unet_floats)
{
    struct error error = {0};
    const uint64_t floats = rank * UINT64_C(64);
    float *data = calloc(floats + unet_floats + 1, sizeof *data);
    assert_non_null(data);
    for (uint64_t i = 0; i < floats; i++) data[i] = seed + (float)i;
    data[floats] = seed;
    const struct tensor_write tensors[] = {
        {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
         DTYPE_F32,
         2,
         {rank, 64},
         data},
        {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
         DTYPE_F32,
         2,
         {64, rank},
         data},
        {"lora_unet_down_blocks_0_to_q.lora_up.weight",
         DTYPE_F32,
         2,
         {unet_floats, 1},
         data + floats},
    };
    assert_int_equal(safetensors_write(descriptor, tensors, unet_floats > 0 ? 3 : 2, NULL, &error),
                     STATUS_OK);
    free(data);
}

static inline void kit_make_file(const struct kit *self, const char *name, float seed,
                                 uint32_t rank)
{
    char path[256];
    char part[300];
    kit_path(self, name, path);
    snprintf(part, sizeof part, "%s.part", path);
    FILE *file = fopen(part, "w");
    assert_non_null(file);
    kit_write_adapter(fileno(file), seed, rank, 16);
    fclose(file);
    assert_int_equal(rename(part, path), 0);
}

// The same as bytes, which the caller frees.
static inline struct bytes kit_adapter_bytes(float seed, uint32_t rank, uint64_t unet_floats)
{
    struct stat info;
    int descriptor = memfd_create("adapter", MFD_CLOEXEC);
    assert_true(descriptor >= 0);
    kit_write_adapter(descriptor, seed, rank, unet_floats);
    assert_int_equal(fstat(descriptor, &info), 0);
    void *data = malloc((size_t)info.st_size);
    assert_non_null(data);
    assert_int_equal(pread(descriptor, data, (size_t)info.st_size, 0), info.st_size);
    close(descriptor);
    return (struct bytes){data, (uint64_t)info.st_size};
}

static inline void kit_free(struct bytes bytes)
{
    union {
        const void *data;
        void *owned;
    } release = {.data = bytes.data};
    free(release.owned);
}

// The hash over all tensors of a file's bytes, in hexadecimal.
static inline void kit_hash(struct bytes file, char out[HASH_HEX_BYTES])
{
    struct tensor_table *table = NULL;
    struct hash hash;
    assert_int_equal(tensor_table_from_bytes(&table, file, NULL), STATUS_OK);
    assert_int_equal(tensor_table_hash(table, NULL, NULL, &hash), STATUS_OK);
    hash_to_hex(&hash, out);
    tensor_table_release(&table);
}

// An upload of the file that is about to begin.
static inline luna_LoraPut kit_begin_of(struct bytes file)
{
    luna_LoraPut put = {.step = luna_LoraPutStep_PUT_BEGIN, .bytes = file.size};
    kit_hash(file, put.hash);
    return put;
}

// Puts one of the adapters that Python made into the directory.
static inline void kit_copy_golden(const struct kit *self, const char *name)
{
    char command[512];
    snprintf(command, sizeof command, "cp %s/tests/golden/lora/%s %s/", LUNA_SOURCE_DIR, name,
             self->loras);
    assert_int_equal(system(command), 0);
}

#endif  // TESTS_UNIT_ACTORS_LORA_KIT_H
