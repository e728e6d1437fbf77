// lora_lane.c - one order after the other; lora_lane.h holds the contract.
//
// Uploads and one-shots lie in memory of ours (memfd) that is sealed once it is complete: from then
// on nobody, not even we, can write it. A torch file's tensors of the text encoders are copied into
// such memory as safetensors, so that executors read one format and start no children. Torch files
// are listed by a child process with limits.

#include "actors/lora_lane.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "actors/pair.h"
#include "actors/pool_map.h"
#include "actors/topology.h"
#include "actors/torch_child.h"
#include "base/text.h"

#define SEALS (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct lora_lane {
    const struct actor_context *context;   // as actor.h gives it
    struct lora_lane_arguments arguments;  // as the store gave them
    struct torch_reader reader;            // child process
    struct pool_map *pools;                // of clients' shared memory
    struct pair pair;                      // orders and results
};

void lora_lane_address(char out[64], uint32_t index)
{
    assert(index < LORA_LANES);
    snprintf(out, 64, "inproc://lora-lane-%u", index);
}

// ---- results

static void result_free(void *data, void *hint)
{
    (void)hint;
    struct lora_result *self = data;
    if (self->file >= 0) close(self->file);
    if (self->encoder >= 0) close(self->encoder);
    lora_scan_free(&self->scan);
    free(self->data);
    free(self);
}

struct lora_result *lora_lane_result(struct message *message)
{
    assert(message->count == 1);
    assert(zmq_msg_size(&message->frames[0]) == sizeof(struct lora_result));
    return zmq_msg_data(&message->frames[0]);
}

static bool should_stop(void *context)
{
    const struct lora_lane *self = context;
    return atomic_load_explicit(self->arguments.stop, memory_order_relaxed);
}

// ---- memory of ours

static enum status write_all(int descriptor, const void *data, uint64_t bytes, uint64_t offset,
                             struct error *error)
{
    const uint8_t *at = data;
    while (bytes > 0) {
        ssize_t written = pwrite(descriptor, at, bytes, (off_t)offset);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) {
            return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a LoRA's file: %s",
                             strerror(errno));
        }
        at += written;
        offset += (uint64_t)written;
        bytes -= (uint64_t)written;
    }
    return STATUS_OK;
}

static enum status seal(int descriptor, struct error *error)
{
    if (fcntl(descriptor, F_ADD_SEALS, SEALS) == 0) return STATUS_OK;
    return error_set(error, STATUS_INTERNAL, "a LoRA's memory cannot be sealed: %s",
                     strerror(errno));
}

static enum status make_memory(int *out, struct error *error)
{
    int descriptor = memfd_create("luna-lora", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (descriptor < 0) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a LoRA's file: %s",
                         strerror(errno));
    }
    *out = descriptor;
    return STATUS_OK;
}

static enum status write_table(int descriptor, const struct tensor_table *table,
                               struct error *error)
{
    uint32_t count = table != NULL ? tensor_table_count(table) : 0;
    struct tensor_write *writes = calloc(count + 1u, sizeof *writes);
    if (writes == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a LoRA's tensors");
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct tensor *tensor = tensor_table_at(table, i);
        assert(!tensor->transposed);
        writes[i] = (struct tensor_write){.name = tensor->name,
                                          .dtype = tensor->dtype,
                                          .rank = tensor->rank,
                                          .data = tensor->data};
        memcpy(writes[i].dims, tensor->dims, sizeof writes[i].dims);
    }
    enum status status = safetensors_write(descriptor, writes, count, NULL, error);
    free(writes);
    return status;
}

// The encoders' tensors of a torch file, as a sealed safetensors file.
static enum status copy_encoder(int *out, struct tensor_table *table, struct error *error)
{
    int descriptor = -1;
    struct tensor_table *encoder = NULL;
    enum status status = lora_encoder_tensors(&encoder, table, error);
    // Reading a mapping of a file that became shorter would be the end of the process.
    if (status == STATUS_OK && !tensor_table_unchanged(table)) {
        status = error_set(error, STATUS_FAILED_PRECONDITION, "the file changed while it was read");
    }
    if (status == STATUS_OK) status = make_memory(&descriptor, error);
    if (status == STATUS_OK) status = write_table(descriptor, encoder, error);
    if (status == STATUS_OK) status = seal(descriptor, error);
    if (status == STATUS_OK) {
        *out = descriptor;
    } else if (descriptor >= 0) {
        close(descriptor);
    }
    tensor_table_release(&encoder);
    return status;
}

// ---- reading a file

static enum status hash_table(struct lora_lane *self, const struct tensor_table *table,
                              struct hash *out, struct error *error)
{
    enum status status = tensor_table_hash(table, should_stop, self, out);
    if (status == STATUS_OK) return STATUS_OK;
    return error_set(error, status, "%s",
                     status == STATUS_FAILED_PRECONDITION ? "the file changed while it was read"
                                                          : "the file could not be hashed");
}

static enum status hash_encoder(struct lora_lane *self, struct tensor_table *table,
                                struct hash *out, struct error *error)
{
    struct tensor_table *encoder = NULL;
    enum status status = lora_encoder_tensors(&encoder, table, error);
    if (status == STATUS_OK && encoder == NULL) {
        status = tensor_table_from_tensors(&encoder, NULL, 0, NULL, 0, error);
    }
    if (status == STATUS_OK) status = hash_table(self, encoder, out, error);
    tensor_table_release(&encoder);
    return status;
}

static enum status hash_both(struct lora_lane *self, struct tensor_table *table, bool encoder_only,
                             struct lora_facts *facts, struct error *error)
{
    enum status status = hash_encoder(self, table, &facts->encoder_hash, error);
    if (status != STATUS_OK || encoder_only) return status;
    facts->has_hash = true;
    if (facts->description.keys_other == 0) {  // both are over the same tensors
        facts->hash = facts->encoder_hash;
        return STATUS_OK;
    }
    return hash_table(self, table, &facts->hash, error);
}

static bool is_torch(int descriptor)
{
    uint8_t magic[4] = {0};
    return pread(descriptor, magic, sizeof magic, 0) == (ssize_t)sizeof magic &&
           memcmp(magic, "PK\x03\x04", sizeof magic) == 0;
}

// Describes and hashes what the descriptor holds; with known, only makes what a torch file needs.
static enum status read_file(struct lora_lane *self, int descriptor, const struct lora_order *order,
                             struct lora_result *out, struct error *error)
{
    struct tensor_table *table = NULL;
    struct lora_facts facts = {.torch = is_torch(descriptor)};
    struct stat info;
    if (fstat(descriptor, &info) != 0) {
        return error_set(error, STATUS_INTERNAL, "fstat: %s", strerror(errno));
    }
    facts.file_bytes = (uint64_t)info.st_size;
    enum status status =
        tensor_table_open_descriptor(&table, descriptor, order->name, &self->reader, error);
    if (status != STATUS_OK) return status;
    // A description reads scalars through the mapping; hashing, which follows, does not.
    if (!tensor_table_unchanged(table)) {
        status = error_set(error, STATUS_FAILED_PRECONDITION, "the file changed while it was read");
    }
    if (status == STATUS_OK) status = lora_describe(table, &facts.description, error);
    if (status == STATUS_OK && !order->known) {
        status = hash_both(self, table, order->encoder_only, &facts, error);
    }
    if (status == STATUS_OK && facts.torch) status = copy_encoder(&out->encoder, table, error);
    if (status == STATUS_OK) {
        out->facts = order->known ? order->facts : facts;
    } else {
        error_prefix(error, "LoRA \"%.100s\"", order->name);
    }
    tensor_table_release(&table);
    return status;
}

static enum status load(struct lora_lane *self, struct lora_order *order, struct lora_result *out)
{
    struct error *error = &out->error;
    enum status status =
        lora_scan_open(&out->file, &out->identity, order->directory, order->name, error);
    if (status != STATUS_OK) return status;
    order->known = order->known && lora_identity_equal(&out->identity, &order->identity);
    if (order->known && !order->facts.torch) {
        out->facts = order->facts;
        return STATUS_OK;
    }
    status = read_file(self, out->file, order, out, error);
    struct lora_identity now;
    if (status == STATUS_OK && (lora_scan_identify(out->file, &now) != STATUS_OK ||
                                !lora_identity_equal(&now, &out->identity))) {
        status = error_set(error, STATUS_FAILED_PRECONDITION,
                           "LoRA \"%.100s\" changed while it was read", order->name);
    }
    return status;
}

// ---- uploads

// The bytes that the order is about: of its second frame, or in a client's pool.
static enum status find_source(struct lora_lane *self, const struct lora_order *order,
                               const struct message *message, struct bytes *out,
                               struct error *error)
{
    if (!order->shared) {
        assert(message->count == 2);
        *out = message_frame(message, 1);
        return STATUS_OK;
    }
    void *data = NULL;
    enum status status =
        pool_map_find(self->pools, order->pool, order->pool_offset, order->bytes, &data, error);
    if (status == STATUS_OK) *out = (struct bytes){.data = data, .size = order->bytes};
    return status;
}

static enum status write_chunk(struct lora_lane *self, const struct lora_order *order,
                               const struct message *message, struct error *error)
{
    struct bytes source;
    enum status status = find_source(self, order, message, &source, error);
    if (status != STATUS_OK) return status;
    return write_all(order->descriptor, source.data, source.size, order->offset, error);
}

static enum status finish(struct lora_lane *self, const struct lora_order *order,
                          struct lora_result *out)
{
    enum status status = seal(order->descriptor, &out->error);
    return status != STATUS_OK ? status
                               : read_file(self, order->descriptor, order, out, &out->error);
}

static enum status take(struct lora_lane *self, struct lora_order *order,
                        const struct message *message, struct lora_result *out)
{
    enum status status = make_memory(&out->file, &out->error);
    if (status != STATUS_OK) return status;
    order->descriptor = out->file;
    order->offset = 0;
    status = write_chunk(self, order, message, &out->error);
    return status != STATUS_OK ? status : finish(self, order, out);
}

static enum status read_range(const struct lora_order *order, struct lora_result *out)
{
    struct lora_identity now;
    struct error *error = &out->error;
    out->data = malloc(order->bytes > 0 ? order->bytes : 1);
    if (out->data == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for %llu bytes of a file",
                         (unsigned long long)order->bytes);
    }
    uint64_t done = 0;
    while (done < order->bytes) {
        ssize_t got = pread(order->descriptor, (uint8_t *)out->data + done, order->bytes - done,
                            (off_t)(order->offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return error_set(error, STATUS_INTERNAL, "read: %s", strerror(errno));
        if (got == 0) break;
        done += (uint64_t)got;
    }
    bool changed =
        order->check_identity && (lora_scan_identify(order->descriptor, &now) != STATUS_OK ||
                                  !lora_identity_equal(&now, &order->identity));
    if (changed || done < order->bytes) {
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "LoRA \"%.100s\" changed while it was read", order->name);
    }
    out->data_bytes = done;
    return STATUS_OK;
}

// ---- orders

static enum status execute(struct lora_lane *self, struct lora_order *order,
                           const struct message *message, struct lora_result *out)
{
    const struct config_list *directories = &self->arguments.core->config->lora.directories;
    switch (order->kind) {
    case LORA_SCAN:
        return lora_scan_walk(&out->scan, directories->items, directories->count,
                              self->arguments.inotify, &out->error);
    case LORA_LOAD:
        return load(self, order, out);
    case LORA_WRITE:
        return write_chunk(self, order, message, &out->error);
    case LORA_FINISH:
        return finish(self, order, out);
    case LORA_TAKE:
        return take(self, order, message, out);
    case LORA_READ: {
        enum status status = read_range(order, out);
        close(order->descriptor);
        return status;
    }
    case LORA_CLOSE:
        if (order->descriptor >= 0) close(order->descriptor);
        if (order->second >= 0) close(order->second);
        return STATUS_OK;
    }
    assert(!"an order of no kind");
    return STATUS_INTERNAL;
}

static void answer(struct lora_lane *self, struct lora_result *result)
{
    struct message message;
    message_init(&message);
    enum status status = message_append_owned(&message, result, sizeof *result, result_free, NULL);
    if (status != STATUS_OK) result_free(result, NULL);
    if (status == STATUS_OK) status = message_send(&message, self->pair.socket);
    if (status != STATUS_OK) {
        log_event(self->context->log, LOG_ERROR, "lane.lost", "why=%s", status_name(status));
    }
    message_clear(&message);
}

static void on_order(struct lora_lane *self, const struct message *message)
{
    struct lora_order order;
    assert(message_frame(message, 0).size == sizeof order);
    memcpy(&order, message_frame(message, 0).data, sizeof order);
    struct lora_result *result = calloc(1, sizeof *result);
    if (result == NULL) {
        log_event(self->context->log, LOG_ERROR, "lane.lost", "why=no memory");
        return;
    }
    *result =
        (struct lora_result){.kind = order.kind, .ticket = order.ticket, .file = -1, .encoder = -1};
    const struct clock *clock = loop_clock(self->context->loop);
    uint64_t begun_ns = clock_ns(clock);
    enum status status = execute(self, &order, message, result);
    assert(status == result->error.status);
    result->load_ms = (double)(clock_ns(clock) - begun_ns) / 1e6;
    answer(self, result);
}

static void on_orders(void *state)
{
    struct lora_lane *self = state;
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        struct message message;
        message_init(&message);
        if (message_receive(&message, self->pair.socket) != STATUS_OK) return;
        on_order(self, &message);
        message_clear(&message);
    }
}

static void lane_destroy(void *state)
{
    struct lora_lane *self = state;
    if (self == NULL) return;
    pair_close(&self->pair);
    pool_map_destroy(&self->pools);
    free(self);
}

static enum status lane_create(void **state, const struct actor_context *context,
                               const void *arguments, struct error *error)
{
    assert(state != NULL);
    assert(arguments != NULL);
    struct lora_lane *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a lane of the store");
    }
    self->context = context;
    self->arguments = *(const struct lora_lane_arguments *)arguments;
    torch_child_reader(&self->reader);
    char address[64];
    lora_lane_address(address, self->arguments.index);
    enum status status =
        pool_map_create(&self->pools, self->arguments.core->private_directory, error);
    const struct pair_end end = {.address = address, .on_readable = on_orders, .state = self};
    if (status == STATUS_OK) status = pair_open(&self->pair, context, &end, error);
    if (status != STATUS_OK) {
        lane_destroy(self);
        return status;
    }
    *state = self;
    return STATUS_OK;
}

const struct actor_kind lora_lane_kind = {"lora-lane", lane_create, lane_destroy, NULL};
