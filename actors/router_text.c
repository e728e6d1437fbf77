// router_text.c - what a text request needs before it is queued: its stack, and a look whether its
// answer is known.
//
//     request --> pinned --> is the answer known? --no--> queue
//                    |                  ^
//                    +-- ResolveStack --+  (only then is it known which adapters it means)
//
// The cache of encodings knows a model by a number of the router's own. It gets another one, and
// loses its answers, when its content may have changed: it was unloaded somewhere (what is loaded
// next time are the files of that time), or its hash is another one. So an answer is only kept when
// the number is still the one that the request came under.
//
// Answers that may be kept come in frames, whatever room the client offers: the router cannot see
// what a worker writes into shared memory, and text answers are small.

#include "actors/router_state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "actors/conditioning_key.h"
#include "actors/post.h"

bool router_encodes(const luna_Header *header)
{
    return header->operation == luna_Operation_ENCODE_TEXT ||
           header->operation == luna_Operation_ENCODE_TOKENS;
}

// ---- models

static uint64_t number_of(const struct router *self, const char *model)
{
    for (uint32_t i = 0; i < self->models_count; i++) {
        if (strcmp(self->models[i].model.name, model) == 0) return self->model_numbers[i];
    }
    return 0;
}

static bool is_on(const luna_Model *model, const char *device)
{
    for (uint32_t i = 0; i < model->loaded_on_count; i++) {
        if (strcmp(model->loaded_on[i], device) == 0) return true;
    }
    return false;
}

static bool may_have_changed(const luna_Model *before, const luna_Model *now)
{
    for (uint32_t i = 0; i < before->loaded_on_count; i++) {
        if (!is_on(now, before->loaded_on[i])) return true;
    }
    return before->hash_text[0] != '\0' && strcmp(before->hash_text, now->hash_text) != 0;
}

static void give_number(struct router *self, uint32_t index)
{
    self->model_number_last += 1;
    self->model_numbers[index] = self->model_number_last;
}

void router_see_model(struct router *self, uint32_t index, const luna_ModelNotice *notice)
{
    assert(index <= self->models_count);
    assert(index < ROUTER_MODELS_MAX);
    if (index == self->models_count) {
        self->models_count += 1;
        give_number(self, index);
    } else if (may_have_changed(&self->models[index].model, &notice->model)) {
        conditioning_cache_forget(self->conditioning, self->model_numbers[index]);
        give_number(self, index);
    }
    self->models[index] = *notice;
}

void router_lose_model(struct router *self, uint32_t index)
{
    assert(index < self->models_count);
    conditioning_cache_forget(self->conditioning, self->model_numbers[index]);
    self->models_count -= 1;
    self->models[index] = self->models[self->models_count];
    self->model_numbers[index] = self->model_numbers[self->models_count];
}

// ---- answers that are known

// Takes the room for answers out of a header; true when there was some.
static bool strip_rooms(luna_Header *header)
{
    uint32_t kept = 0;
    uint32_t count = header->tensors_count;
    for (uint32_t i = 0; i < count; i++) {
        if (header->tensors[i].room) continue;
        if (kept != i) header->tensors[kept] = header->tensors[i];
        kept += 1;
    }
    header->tensors_count = (pb_size_t)kept;
    return kept != count;
}

// Copies a message; one of its frames becomes other bytes.
static enum status replace_frame(struct message *self, uint32_t index, struct bytes bytes)
{
    struct message copy;
    message_init(&copy);
    enum status status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < self->count; i++) {
        status = i == index ? message_append(&copy, bytes) : message_append_shared(&copy, self, i);
    }
    if (status != STATUS_OK) {
        message_clear(&copy);
        return status;
    }
    message_clear(self);
    message_move(self, &copy);
    return STATUS_OK;
}

uint64_t router_plan_keeping(struct router *self, struct request *request,
                             const luna_EncodeText *body, const char *model)
{
    if (self->config->cache_conditioning_mb == 0) return 0;
    for (; request->first > 0; request->first--) message_drop_first(request->message);
    if (!conditioning_may_keep(&request->header, body, request->message)) return 0;
    luna_Header header = request->header;
    if (strip_rooms(&header)) {
        uint8_t buffer[CODEC_HEADER_BYTES_MAX];
        struct codec_buffer encoded = {.data = buffer, .capacity = sizeof buffer};
        if (codec_encode_header(&header, &encoded, NULL) != STATUS_OK) return 0;
        const struct bytes bytes = {.data = buffer, .size = encoded.size};
        if (replace_frame(request->message, 0, bytes) != STATUS_OK) return 0;
        request->header = header;
    }
    return number_of(self, model);
}

// What a job asks for, read again from its frames.
struct asked {
    luna_Header header;
    union codec_request body;
};

static enum status read_asked(const struct job *job, struct asked *out)
{
    enum status status = codec_decode_header(message_frame(&job->frames, 0), &out->header, NULL);
    if (status != STATUS_OK) return status;
    return codec_decode_request(&out->header, message_frame(&job->frames, 1), &out->body, NULL);
}

static enum status make_key(const struct router *self, const struct job *job, void **out,
                            uint64_t *bytes)
{
    struct asked asked;
    enum status status = read_asked(job, &asked);
    if (status != STATUS_OK) return status;
    const struct conditioning_request request = {.model = job->keep_model,
                                                 .merged = self->config->lora.merged,
                                                 .header = &asked.header,
                                                 .body = &asked.body.encode_text,
                                                 .frames = &job->frames,
                                                 .stack = job->stack};
    return conditioning_key_make(&request, out, bytes);
}

static enum status append_encoded(struct message *frames, struct codec_buffer *encoded)
{
    return message_append(frames, (struct bytes){.data = encoded->data, .size = encoded->size});
}

// Makes the answer to a job of one that is known: the same payloads, its own id and times.
static enum status make_answer(struct router *self, const struct job *job, struct message *known,
                               struct message *out)
{
    assert(known->count >= 2);
    luna_Header header;
    luna_TextReply reply;
    uint8_t header_bytes[CODEC_HEADER_BYTES_MAX];
    uint8_t body_bytes[luna_TextReply_size];
    struct codec_buffer header_buffer = {.data = header_bytes, .capacity = sizeof header_bytes};
    struct codec_buffer body_buffer = {.data = body_bytes, .capacity = sizeof body_bytes};
    enum status status = codec_decode_header(message_frame(known, 0), &header, NULL);
    if (status == STATUS_OK)
        status = codec_decode(luna_TextReply_fields, message_frame(known, 1), &reply, NULL);
    if (status != STATUS_OK) return status;
    memcpy(header.id.bytes, job->id, JOB_ID_BYTES);
    reply.cached = true;
    reply.queue_ms = (uint32_t)((router_now(self) - job->arrived_ns) / 1000000u);
    reply.execute_ms = 0;
    status = codec_encode_header(&header, &header_buffer, NULL);
    if (status == STATUS_OK)
        status = codec_encode(luna_TextReply_fields, &reply, &body_buffer, NULL);
    if (status == STATUS_OK) status = append_encoded(out, &header_buffer);
    if (status == STATUS_OK) status = append_encoded(out, &body_buffer);
    for (uint32_t i = 2; status == STATUS_OK && i < known->count; i++) {
        status = message_append_shared(out, known, i);
    }
    return status;
}

bool router_answer_known(struct router *self, struct job *job)
{
    assert(job->state != JOB_RUNNING);
    if (job->keep_model == 0) return false;
    void *key = NULL;
    uint64_t key_bytes = 0;
    if (make_key(self, job, &key, &key_bytes) != STATUS_OK) return false;
    struct message *known =
        conditioning_cache_find(self->conditioning, (struct bytes){.data = key, .size = key_bytes});
    free(key);
    if (known == NULL) return false;
    struct message answer;
    message_init(&answer);
    bool made = make_answer(self, job, known, &answer) == STATUS_OK;
    if (made) {
        self->services[job->entry.service].requests_total += 1;
        reply_cache_put(self->replies, job->user, job->id, job->digest, &answer, router_now(self));
        router_count_payloads(self, &job->frames);
        router_count_payloads(self, &answer);
        router_event(self, "request.done", job, NULL, 0);
        router_finish(self, job, &answer);
    }
    message_clear(&answer);
    return made;
}

void router_keep_answer(struct router *self, const struct job *job, struct message *answer)
{
    if (job->keep_model == 0) return;
    if (job->keep_model != number_of(self, self->services[job->entry.service].model)) return;
    luna_Header header;
    if (codec_decode_header(message_frame(answer, 0), &header, NULL) != STATUS_OK) return;
    if (answer->count != 2u + header.tensors_count) return;  // not all of it is in frames
    if (codec_find_tensor(&header, CODEC_TRACE_TENSOR, NULL) != NULL) return;
    void *key = NULL;
    uint64_t key_bytes = 0;
    if (make_key(self, job, &key, &key_bytes) != STATUS_OK) return;
    conditioning_cache_put(self->conditioning, (struct bytes){.data = key, .size = key_bytes},
                           job->keep_model, answer);
    free(key);
}

void router_tell_cache(struct router *self)
{
    const struct conditioning_counts counts = conditioning_cache_counts(self->conditioning);
    const luna_CacheCounts now = {.entries = counts.entries,
                                  .bytes = counts.bytes,
                                  .limit_bytes = counts.limit_bytes,
                                  .hits = counts.hits,
                                  .misses = counts.misses};
    if (memcmp(&now, &self->cache_counts, sizeof now) == 0) return;
    luna_Letter letter = {.which_letter = luna_Letter_cache_counts_tag};
    letter.letter.cache_counts = now;
    if (router_post(self, ROUTER_LORAS, &letter, NULL) != STATUS_OK) return;
    self->cache_counts = now;
    self->cache_told_ns = router_now(self);
}

// ---- stacks

void router_resolve(struct router *self, struct job *job)
{
    assert(job->loras > 0);
    assert(!job->resolve_sent);
    router_wait(self, job, JOB_RESOLVING);
    struct message frames;
    message_init(&frames);
    enum status status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < job->frames.count; i++) {
        status = message_append_shared(&frames, &job->frames, i);
    }
    luna_Letter letter = {.which_letter = luna_Letter_resolve_stack_tag};
    luna_ResolveStack *resolve = &letter.letter.resolve_stack;
    resolve->job = job->number;
    resolve->user = self->users[job->user].uid;
    resolve->pool_offsets_count = CODEC_TENSORS_MAX;
    memcpy(resolve->pool_offsets, job->pool_offsets, sizeof job->pool_offsets);
    if (status == STATUS_OK) status = router_post(self, ROUTER_LORAS, &letter, &frames);
    message_clear(&frames);
    if (status == STATUS_OK) {
        job->resolve_sent = true;
        return;
    }
    struct error error;
    error_set(&error, STATUS_RESOURCE_EXHAUSTED, "too many stacks are being looked up");
    error.retry_after_ms = 100;
    router_fail(self, job, &error);
}

// The store has its own copies now, so the files of one-shots are not carried on to a worker.
static enum status drop_files(struct router *self, struct job *job)
{
    struct asked asked;
    enum status status = read_asked(job, &asked);
    uint32_t payload = 0;
    for (uint32_t i = 0; status == STATUS_OK && i < asked.header.tensors_count; i++) {
        const luna_Tensor *tensor = &asked.header.tensors[i];
        bool is_adapter = conditioning_is_adapter(&asked.body.encode_text, tensor);
        if (is_adapter) router_count_tensor(self, tensor);
        if (tensor->room || tensor->where != luna_Where_FRAME) continue;
        payload += 1;
        if (!is_adapter) continue;
        const struct bytes nothing = {.data = NULL, .size = 0};
        status = replace_frame(&job->frames, 1 + payload, nothing);
    }
    uint64_t bytes = message_bytes(&job->frames);
    self->waiting_bytes -= job->bytes - bytes;
    job->bytes = bytes;
    job->entry.bytes = bytes;
    return status;
}

static enum status take_stack(struct router *self, struct job *job,
                              const luna_StackResolved *resolved, struct error *error)
{
    if (resolved->code != luna_Code_OK) {
        error_set(error, (enum status)resolved->code, "%s", resolved->message);
        error->retry_after_ms = resolved->retry_after_ms;
        return error->status;
    }
    if (resolved->entries_count != job->loras) {
        return error_set(error, STATUS_INTERNAL, "the LoRA store resolved %u LoRAs to %u",
                         (unsigned)job->loras, (unsigned)resolved->entries_count);
    }
    job->stack = malloc(resolved->entries_count * sizeof *job->stack);
    if (job->stack == NULL || drop_files(self, job) != STATUS_OK) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a stack of %u LoRAs",
                         (unsigned)resolved->entries_count);
    }
    job->stack_count = resolved->entries_count;
    memcpy(job->stack, resolved->entries, job->stack_count * sizeof *job->stack);
    return STATUS_OK;
}

void router_on_resolved(struct router *self, const luna_StackResolved *resolved)
{
    struct job *job = job_table_find_number(self->jobs, resolved->job);
    if (job == NULL || job->state != JOB_RESOLVING) return;
    struct error error;
    if (take_stack(self, job, resolved, &error) != STATUS_OK) {
        router_fail(self, job, &error);
        return;
    }
    if (!router_answer_known(self, job)) router_enqueue(self, job);
}

void router_release_stack(struct router *self, struct job *job)
{
    if (!job->resolve_sent) return;
    job->resolve_sent = false;
    luna_Letter letter = {.which_letter = luna_Letter_release_stack_tag};
    letter.letter.release_stack.job = job->number;
    if (router_post(self, ROUTER_LORAS, &letter, NULL) == STATUS_OK) return;
    log_event(self->context->log, LOG_ERROR, "release.lost", "job=%lu", (unsigned long)job->number);
}
