// lora_asks.c - what clients ask about adapters; uploads have a file of their own.

#include "actors/lora_state.h"

#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "actors/post.h"
#include "base/text.h"

#define PAGE_LORAS 16u  // of a list

// ---- what clients see

static void describe_content(const struct lora_store *self, const struct lora_content *content,
                             luna_Lora *out)
{
    static const char *const encoders[MODEL_PART_COUNT] = {
        [MODEL_CLIP_L] = "l", [MODEL_CLIP_H] = "h", [MODEL_CLIP_G] = "g"};
    const struct lora_facts *facts = &content->facts;
    const struct lora_description *description = &facts->description;
    uint64_t now_ns = lora_store_now(self);
    if (facts->has_hash) hash_to_hex(&facts->hash, out->hash);
    hash_to_hex(&facts->encoder_hash, out->encoder_hash);
    out->bytes = facts->file_bytes;
    out->memory_bytes = content->memory_bytes;
    text_set(out->format, sizeof out->format, facts->torch ? "torch" : "safetensors");
    out->rank = description->rank;
    out->modules = description->modules;
    const char *family = description->mixed         ? "mixed"
                         : description->modules > 0 ? lora_family_name(description->family)
                                                    : "";
    text_set(out->family, sizeof out->family, family);
    for (int part = 0; part < MODEL_PART_COUNT; part++) {
        if (!description->encoders[part] || encoders[part] == NULL) continue;
        text_set(out->encoders[out->encoders_count], sizeof out->encoders[0], encoders[part]);
        out->encoders_count += 1;
    }
    out->uses = content->uses;
    out->hits = content->hits;
    out->load_ms = content->load_ms;
    out->age_seconds = (double)(now_ns - content->first_ns) / 1e9;
    out->idle_seconds = (double)(now_ns - content->used_ns) / 1e9;
    out->pins = lora_content_pins(content);
    out->pinned = out->pins > 0;
    out->resident = content->resident;
    out->uploaded = content->uploaded;
}

static const char *alias_of(const struct lora_store *self, const struct lora_content *content)
{
    for (uint32_t i = 0; i < lora_table_names(self->table); i++) {
        const struct lora_alias *alias = lora_table_name_at(self->table, i);
        if (alias->content == content) return alias->name;
    }
    return "";
}

void lora_asks_describe(struct lora_store *self, const struct lora_target *target, const char *name,
                        luna_Lora *out)
{
    assert(target->file != NULL || target->content != NULL);
    *out = (luna_Lora)luna_Lora_init_zero;
    const struct lora_file *file = target->file;
    if (target->content != NULL) describe_content(self, target->content, out);
    if (file != NULL) {
        lora_files_name(self->files, file, out->name);
        text_set(out->path, sizeof out->path, file->path);
        out->bytes = file->identity.size;
    }
    if (name == NULL && file == NULL) name = alias_of(self, target->content);
    if (name != NULL) text_set(out->name, sizeof out->name, name);
}

void lora_asks_fill_totals(const struct lora_store *self, const struct lora_counts *counts,
                           luna_LoraTotals *out)
{
    const uint64_t lookups = counts->hits + counts->misses;
    *out = (luna_LoraTotals){.entries = counts->entries,
                             .bytes = counts->bytes,
                             .limit_bytes = self->config->lora.memory_limit_mb << 20,
                             .hits = counts->hits,
                             .misses = counts->misses,
                             .evictions = counts->evictions};
    if (lookups > 0) out->hit_ratio = (double)counts->hits / (double)lookups;
}

// ---- answers

static void send_reply(struct lora_store *self, const struct lora_ask *ask,
                       const pb_msgdesc_t *type, const void *body, const struct error *error)
{
    enum status status = ask_answer(self->router, &ask->ask, type, body, error);
    if (status != STATUS_OK) {
        log_event(self->context->log, LOG_ERROR, "answer.lost", "why=%s", status_name(status));
    }
    loop_socket_touch(self->watch_router);
}

void lora_asks_answer(struct lora_store *self, struct lora_ask *ask, const luna_LoraReply *reply,
                      const struct error *error)
{
    assert(reply != NULL || error != NULL);
    send_reply(self, ask, luna_LoraReply_fields, reply, error);
    free(ask);
}

static void answer_target(struct lora_store *self, struct lora_ask *ask,
                          const struct lora_target *target)
{
    luna_LoraReply reply = luna_LoraReply_init_zero;
    reply.has_lora = true;
    lora_asks_describe(self, target, NULL, &reply.lora);
    lora_asks_answer(self, ask, &reply, NULL);
}

// ---- HAS, PIN, UNPIN, EVICT

static enum status pin(struct lora_store *self, const struct lora_ask *ask,
                       const struct lora_target *target, struct error *error)
{
    assert(target->content != NULL && target->content->resident);
    return lora_table_pin(self->table, target->content, ask->user, error);
}

static enum status unpin(struct lora_store *self, const struct lora_ask *ask,
                         const struct lora_target *target, struct error *error)
{
    struct lora_content *content = target->content;
    if (content == NULL || !lora_table_unpin(self->table, content, ask->user)) {
        return error_set(error, STATUS_NOT_FOUND, "LoRA \"%.128s\" has no pin of yours",
                         ask->request.lora_name.reference);
    }
    lora_store_changed(self);
    return STATUS_OK;
}

static enum status check_evict(const struct lora_store *self, const struct lora_ask *ask,
                               const struct lora_target *target, const struct lora_alias *alias,
                               struct error *error)
{
    const char *reference = ask->request.lora_name.reference;
    const struct lora_content *content = target->content;
    uint32_t owner = alias != NULL ? alias->owner : content != NULL ? content->owner : UINT32_MAX;
    bool own = alias != NULL || (content != NULL && content->uploaded && content->files == 0);
    if (!ask->ask.admin && !(own && owner == ask->user)) {
        return error_set(error, STATUS_PERMISSION_DENIED,
                         "LoRA \"%.128s\" is not your own upload; evicting others is for admins",
                         reference);
    }
    for (uint32_t i = 0; !ask->ask.admin && i < lora_table_names(self->table); i++) {
        const struct lora_alias *other = lora_table_name_at(self->table, i);
        if (alias != NULL || other->content != content || other->owner == ask->user) continue;
        return error_set(error, STATUS_PERMISSION_DENIED,
                         "LoRA \"%.128s\" is also another user's; evict it by your own name for it",
                         reference);
    }
    if (content == NULL || content->pins_count == 0) return STATUS_OK;
    return error_set(error, STATUS_FAILED_PRECONDITION, "LoRA \"%.128s\" has %u pins of %u users",
                     reference, lora_content_pins(content), content->pins_count);
}

// The name goes at once, the content with its last name and its last request.
static enum status evict(struct lora_store *self, struct lora_ask *ask,
                         const struct lora_target *target, struct error *error)
{
    const char *reference = ask->request.lora_name.reference;
    struct lora_content *content = target->content;
    const struct lora_alias *alias = lora_table_find_name(self->table, reference);
    if (alias != NULL && alias->content != content) alias = NULL;
    enum status status = check_evict(self, ask, target, alias, error);
    if (status != STATUS_OK) return status;
    luna_LoraReply reply = luna_LoraReply_init_zero;
    reply.has_lora = true;
    lora_asks_describe(self, target, NULL, &reply.lora);
    if (alias != NULL) {
        lora_table_unname(self->table, reference);
    } else if (content != NULL) {
        lora_table_unname_all(self->table, content);
    }
    bool last = content != NULL && content->aliases == 0;
    if (last) content->uploaded = content->uploaded && content->files > 0;
    if (last && content->resident) {
        char why[96];
        snprintf(why, sizeof why, "evicted by uid %u", ask->user);
        lora_store_doom(self, content, why);
    } else if (last) {
        lora_table_forget(self->table, content);
    }
    if (last) reply.lora.resident = false;
    lora_asks_answer(self, ask, &reply, NULL);
    return STATUS_OK;
}

// ---- GET

static enum status start_read(struct lora_store *self, struct lora_ask *ask,
                              struct lora_content *content, struct error *error)
{
    const luna_LoraGet *get = &ask->request.lora_get;
    const uint64_t size = content->facts.file_bytes;
    if (get->offset > size) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "offset %llu is behind the end of LoRA \"%.128s\" of %llu bytes",
                         (unsigned long long)get->offset, get->reference, (unsigned long long)size);
    }
    uint64_t bytes = size - get->offset;
    if (get->bytes > 0 && get->bytes < bytes) bytes = get->bytes;
    if (bytes > LORA_CHUNK_BYTES) bytes = LORA_CHUNK_BYTES;
    // A duplicate: the content's own may be replaced by that of a newer file meanwhile.
    int descriptor = fcntl(content->file, F_DUPFD_CLOEXEC, 0);
    if (descriptor < 0) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no descriptor for LoRA \"%.128s\"",
                         get->reference);
    }
    struct lora_order order = {.kind = LORA_READ,
                               .descriptor = descriptor,
                               .second = -1,
                               .check_identity = !content->in_memory,
                               .identity = content->identity,
                               .offset = get->offset,
                               .bytes = bytes};
    struct lora_flight *flight = NULL;
    text_set(order.name, sizeof order.name, get->reference);
    enum status status = lora_store_order(self, &order, NULL, &flight, error);
    if (status != STATUS_OK) {
        close(descriptor);
        return status;
    }
    flight->ask = ask;
    ask->content = content;
    lora_table_hold(self->table, content);
    content->used_ns = lora_store_now(self);
    return STATUS_OK;
}

static void free_data(void *data, void *hint)
{
    (void)hint;
    free(data);
}

void lora_asks_on_read(struct lora_store *self, struct lora_ask *ask, struct lora_result *result)
{
    struct lora_content *content = ask->content;
    struct error error = result->error;
    luna_LoraReply reply = luna_LoraReply_init_zero;
    const struct lora_target target = {.content = content};
    reply.has_lora = true;
    lora_asks_describe(self, &target, NULL, &reply.lora);
    struct message payload;
    message_init(&payload);
    if (error.status == STATUS_OK &&
        message_append_owned(&payload, result->data, result->data_bytes, free_data, NULL) !=
            STATUS_OK) {
        error_set(&error, STATUS_RESOURCE_EXHAUSTED, "no memory for a range of a file");
    }
    lora_store_release(self, content);
    if (error.status != STATUS_OK) {
        lora_asks_answer(self, ask, NULL, &error);
        return;
    }
    result->data = NULL;
    luna_Tensor tensor = {.name = "file",
                          .dtype = luna_Dtype_U8,
                          .dims_count = 1,
                          .dims = {result->data_bytes},
                          .bytes = result->data_bytes};
    ask_answer_tensor(self->router, &ask->ask, luna_LoraReply_fields, &reply, &tensor, &payload);
    loop_socket_touch(self->watch_router);
    free(ask);
}

// ---- what a reference is needed for

static void on_found(struct lora_store *self, struct lora_want *want,
                     const struct lora_target *target, const struct error *failed)
{
    struct lora_ask *ask = want->context;
    struct error error = {0};
    enum status status = STATUS_OK;
    if (target == NULL) {
        lora_asks_answer(self, ask, NULL, failed);
        return;
    }
    switch (ask->ask.header.operation) {
    case luna_Operation_LORA_GET:
        status = start_read(self, ask, target->content, &error);
        break;
    case luna_Operation_LORA_EVICT:
        status = evict(self, ask, target, &error);
        break;
    case luna_Operation_LORA_PIN:
        status = pin(self, ask, target, &error);
        if (status == STATUS_OK) answer_target(self, ask, target);
        break;
    case luna_Operation_LORA_UNPIN:
        status = unpin(self, ask, target, &error);
        if (status == STATUS_OK) answer_target(self, ask, target);
        break;
    default:
        answer_target(self, ask, target);
    }
    if (status != STATUS_OK) lora_asks_answer(self, ask, NULL, &error);
}

static void start_want(struct lora_store *self, struct lora_ask *ask, const char *reference,
                       bool load)
{
    bool exact = ask->ask.header.operation == luna_Operation_LORA_GET;
    struct lora_want want = {.load = load, .exact = exact, .done = on_found, .context = ask};
    text_set(want.reference, sizeof want.reference, reference);
    lora_want_start(self, &want);
}

// ---- LIST

// A line of the list, before it is filled.
struct row {
    char name[LORA_NAME_BYTES];  // sorts
    struct lora_target target;   // what it is about
};

static int compare_rows(const void *a, const void *b)
{
    const struct row *left = a;
    const struct row *right = b;
    int order = strcmp(left->name, right->name);
    if (order != 0 || left->target.file == NULL || right->target.file == NULL) return order;
    return strcmp(left->target.file->path, right->target.file->path);
}

static struct row *add_row(struct row *rows, uint32_t *count, struct lora_file *file,
                           struct lora_content *content)
{
    struct row *row = &rows[*count];
    *count += 1;
    *row = (struct row){.target = {.file = file, .content = content}};
    return row;
}

// Files, aliases, and uploads that nobody named.
static uint32_t fill_rows(struct lora_store *self, struct row *rows)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < lora_files_count(self->files); i++) {
        struct lora_file *file = lora_files_at(self->files, i);
        struct lora_content *content =
            file->has_hash ? lora_table_find_exact(self->table, &file->hash) : NULL;
        lora_files_name(self->files, file, add_row(rows, &count, file, content)->name);
    }
    for (uint32_t i = 0; i < lora_table_names(self->table); i++) {
        const struct lora_alias *alias = lora_table_name_at(self->table, i);
        struct row *row = add_row(rows, &count, NULL, alias->content);
        text_set(row->name, sizeof row->name, alias->name);
    }
    for (uint32_t i = 0; i < lora_table_count(self->table); i++) {
        struct lora_content *content = lora_table_at(self->table, i);
        bool nameless = content->uploaded && content->aliases == 0 && content->files == 0;
        if (nameless && !content->doomed) add_row(rows, &count, NULL, content);
    }
    return count;
}

static enum status answer_list(struct lora_store *self, struct lora_ask *ask, struct error *error)
{
    const uint32_t rows_max = lora_files_count(self->files) + lora_table_names(self->table) +
                              lora_table_count(self->table);
    luna_LoraListReply *reply = calloc(1, sizeof *reply);
    struct row *rows = calloc(rows_max + 1u, sizeof *rows);
    enum status status = STATUS_OK;
    if (reply == NULL || rows == NULL) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a list");
    } else {
        reply->total = fill_rows(self, rows);
        qsort(rows, reply->total, sizeof *rows, compare_rows);
        uint32_t first = ask->request.page.offset;
        for (uint32_t i = first; i < reply->total && reply->loras_count < PAGE_LORAS; i++) {
            lora_asks_describe(self, &rows[i].target, rows[i].name,
                               &reply->loras[reply->loras_count]);
            reply->loras_count += 1;
        }
        send_reply(self, ask, luna_LoraListReply_fields, reply, NULL);
        free(ask);
    }
    free(rows);
    free(reply);
    return status;
}

// ---- SCAN, STATS

static enum status start_scan(struct lora_store *self, struct lora_ask *ask, struct error *error)
{
    for (uint32_t i = 0; i < LORA_SCAN_ASKS_MAX; i++) {
        if (self->scan_asks[i] != NULL) continue;
        self->scan_ask_numbers[i] = lora_want_scan(self);
        self->scan_asks[i] = ask;
        return STATUS_OK;
    }
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "%u clients wait for a scan already",
                     LORA_SCAN_ASKS_MAX);
}

void lora_asks_on_scan(struct lora_store *self)
{
    const luna_LoraScanReply reply = {.found = self->last_scan.found,
                                      .added = self->last_scan.added,
                                      .removed = self->last_scan.removed,
                                      .refused = self->last_scan.refused,
                                      .scan_ms = self->last_scan.ms};
    for (uint32_t i = 0; i < LORA_SCAN_ASKS_MAX; i++) {
        struct lora_ask *ask = self->scan_asks[i];
        if (ask == NULL || self->scan_ask_numbers[i] > self->scans_taken) continue;
        self->scan_asks[i] = NULL;
        send_reply(self, ask, luna_LoraScanReply_fields, &reply, NULL);
        free(ask);
    }
}

static void answer_stats(struct lora_store *self, struct lora_ask *ask)
{
    const struct lora_counts counts = lora_table_counts(self->table);
    luna_LoraStats stats = {.has_totals = true,
                            .files = lora_files_count(self->files),
                            .uploads = counts.uploads,
                            .one_shots = counts.one_shots,
                            .loads = counts.loads,
                            .load_ms_p50 = counts.load_ms_p50,
                            .load_ms_p99 = counts.load_ms_p99,
                            .pinned = counts.pinned,
                            .entries_max = self->config->lora.entries_max,
                            .conditioning_entries = self->cache.entries,
                            .conditioning_bytes = self->cache.bytes,
                            .conditioning_limit_bytes = self->cache.limit_bytes,
                            .conditioning_hits = self->cache.hits,
                            .conditioning_misses = self->cache.misses};
    const uint64_t lookups = self->cache.hits + self->cache.misses;
    if (lookups > 0) stats.conditioning_hit_ratio = (double)self->cache.hits / (double)lookups;
    for (uint32_t i = 0; i < LORA_EXECUTORS_MAX; i++) {
        stats.merged_entries += self->executors[i].counts.merged_entries;
        stats.merged_bytes += self->executors[i].counts.merged_bytes;
        stats.adapter_bytes += self->executors[i].counts.adapter_bytes;
    }
    lora_asks_fill_totals(self, &counts, &stats.totals);
    send_reply(self, ask, luna_LoraStats_fields, &stats, NULL);
    free(ask);
}

// ---- asks

static enum status dispatch(struct lora_store *self, struct lora_ask *ask, const luna_Ask *letter,
                            struct message *frames, struct error *error)
{
    switch (ask->ask.header.operation) {
    case luna_Operation_LORA_PUT:
        lora_uploads_on_put(self, ask, letter, frames);
        return STATUS_OK;
    case luna_Operation_LORA_GET:
        start_want(self, ask, ask->request.lora_get.reference, true);
        return STATUS_OK;
    case luna_Operation_LORA_PIN:
        start_want(self, ask, ask->request.lora_name.reference, true);
        return STATUS_OK;
    case luna_Operation_LORA_HAS:
    case luna_Operation_LORA_UNPIN:
    case luna_Operation_LORA_EVICT:
        start_want(self, ask, ask->request.lora_name.reference, false);
        return STATUS_OK;
    case luna_Operation_LORA_LIST:
        return answer_list(self, ask, error);
    case luna_Operation_LORA_SCAN:
        if (ask->ask.admin) return start_scan(self, ask, error);
        return error_set(error, STATUS_PERMISSION_DENIED, "scanning is for admins");
    case luna_Operation_LORA_STATS:
        answer_stats(self, ask);
        return STATUS_OK;
    default:
        return error_set(error, STATUS_UNIMPLEMENTED, "the LoRA store knows LoRAs only");
    }
}

void lora_asks_on_ask(struct lora_store *self, const luna_Ask *letter, struct message *frames)
{
    struct error error = {0};
    struct lora_ask *ask = calloc(1, sizeof *ask);
    if (ask == NULL) {
        log_event(self->context->log, LOG_ERROR, "ask.lost", "why=no memory");
        return;
    }
    enum status status = ask_read(letter, frames, &ask->ask, &ask->request, &error);
    ask->user = letter->user;
    if (status == STATUS_OK) status = dispatch(self, ask, letter, frames, &error);
    if (status != STATUS_OK) lora_asks_answer(self, ask, NULL, &error);
}
