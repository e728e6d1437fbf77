// lora_stacks.c - the stack of a request: which contents, how strong, and that they stay.
//
// What counts for nothing (disabled, or strength 0 on every encoder) is not even looked up. The
// answer comes when every entry is known; the contents are held until the router says that the
// request is over, which may be before the answer.

#include "actors/lora_state.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "actors/post.h"
#include "base/text.h"

// ---- the answer

static void fill_entry(const struct lora_stack_entry *entry, luna_StackEntry *out)
{
    const struct lora_content *content = entry->content;
    if (content == NULL) return;
    const struct hash *hash = &content->facts.encoder_hash;
    out->encoder_hash.size = sizeof hash->value;
    memcpy(out->encoder_hash.bytes, hash->value, sizeof hash->value);
    out->strength_l = entry->strength_l;
    out->strength_g = entry->strength_g;
    out->bytes = entry->bytes;
    out->keys_other = entry->keys_other;
    out->one_shot = entry->one_shot;
}

static void answer(struct lora_store *self, uint64_t job, const struct lora_stack *stack,
                   const struct error *error)
{
    luna_Letter letter = {.which_letter = luna_Letter_stack_resolved_tag};
    luna_StackResolved *resolved = &letter.letter.stack_resolved;
    resolved->job = job;
    resolved->code = (luna_Code)error->status;
    if (error->status != STATUS_OK) {
        text_set(resolved->message, sizeof resolved->message, error->message);
        resolved->retry_after_ms = error->retry_after_ms;
    } else {
        assert(stack != NULL);
        resolved->entries_count = (pb_size_t)stack->count;
        for (uint32_t i = 0; i < stack->count; i++) {
            fill_entry(&stack->entries[i], &resolved->entries[i]);
        }
    }
    if (post_letter(self->router, &letter, NULL) != STATUS_OK) {
        log_event(self->context->log, LOG_ERROR, "stack.lost", "job=%lu", (unsigned long)job);
    }
    loop_socket_touch(self->watch_router);
}

// ---- stacks

static struct lora_stack *find_stack(struct lora_store *self, uint64_t job, uint32_t *index)
{
    for (uint32_t i = 0; i < self->stacks_count; i++) {
        if (self->stacks[i]->job != job) continue;
        *index = i;
        return self->stacks[i];
    }
    return NULL;
}

static void free_stack(struct lora_store *self, struct lora_stack *stack)
{
    assert(stack->pending == 0);
    uint32_t index = 0;
    struct lora_stack *found = find_stack(self, stack->job, &index);
    assert(found == stack);
    (void)found;
    self->stacks_count -= 1;
    self->stacks[index] = self->stacks[self->stacks_count];
    for (uint32_t i = 0; i < stack->count; i++) {
        if (stack->entries[i].content != NULL) lora_store_release(self, stack->entries[i].content);
    }
    free(stack);
    lora_store_changed(self);
}

static void settle(struct lora_store *self, struct lora_stack *stack)
{
    if (stack->pending > 0) return;
    if (stack->released) {
        free_stack(self, stack);
    } else {
        answer(self, stack->job, stack, &stack->error);
    }
}

static void fail_entry(struct lora_stack *stack, uint32_t index, const struct error *error)
{
    bool first = stack->error.status == STATUS_OK || index < stack->error_index;
    if (!first) return;
    stack->error = *error;
    stack->error_index = index;
}

static void set_entry(struct lora_store *self, struct lora_stack *stack, uint32_t index,
                      struct lora_content *content, const struct lora_facts *facts)
{
    struct lora_stack_entry *entry = &stack->entries[index];
    assert(entry->content == NULL);
    const struct lora_description *description = &facts->description;
    entry->content = content;
    entry->bytes = description->bytes_encoder;
    // Tensors of no bytes (a rank of 0) are for an executor to refuse, which knows the model.
    if (entry->bytes == 0 && description->keys_encoder > 0) entry->bytes = 1;
    entry->keys_other = description->keys_other;
    lora_table_hold(self->table, content);
}

static void on_found(struct lora_store *self, struct lora_want *want,
                     const struct lora_target *target, const struct error *error)
{
    struct lora_stack *stack = want->context;
    assert(stack->pending > 0);
    if (target == NULL) {
        fail_entry(stack, want->index, error);
    } else {
        assert(target->content->resident);
        set_entry(self, stack, want->index, target->content, &target->content->facts);
        lora_table_use(self->table, target->content, !target->loaded, lora_store_now(self));
    }
    stack->pending -= 1;
    settle(self, stack);
}

void lora_stacks_on_take(struct lora_store *self, const struct lora_flight *flight,
                         struct lora_result *result)
{
    struct lora_stack *stack = flight->stack;
    struct lora_content *content = NULL;
    struct error error = result->error;
    const struct lora_facts facts = result->facts;
    assert(stack->pending > 0);
    lora_table_unreserve(self->table, flight->reserved);
    if (error.status == STATUS_OK) {
        const struct lora_adoption how = {.in_memory = true, .one_shot = true, .name = "one-shot"};
        lora_store_adopt(self, result, &how, &content, &error);
    }
    if (content != NULL) {
        set_entry(self, stack, flight->index, content, &facts);
        content->used_ns = lora_store_now(self);
        lora_table_use_one_shot(self->table);
    } else {
        fail_entry(stack, flight->index, &error);
    }
    stack->pending -= 1;
    settle(self, stack);
}

// ---- resolving

// A request whose stack is being looked up.
struct resolving {
    struct lora_store *store;         // who looks
    struct lora_stack *stack;         // what comes of it
    const luna_ResolveStack *letter;  // of the router
    const luna_Header *header;        // of the request
    const luna_EncodeText *body;      // of the request
    struct message *frames;           // of the request
};

static enum status start_one_shot(const struct resolving *self, uint32_t index, struct error *error)
{
    const luna_LoraEntry *entry = &self->body->loras[index];
    const luna_Tensor *tensor = codec_find_tensor(self->header, entry->tensor, NULL);
    assert(tensor != NULL);
    const char *name = entry->reference[0] != '\0' ? entry->reference : entry->tensor;
    enum status status = lora_store_make_room(self->store, name, tensor->bytes, error);
    if (status != STATUS_OK) return status;
    struct lora_order order = {
        .kind = LORA_TAKE, .descriptor = -1, .second = -1, .encoder_only = true};
    text_set(order.name, sizeof order.name, name);
    const struct lora_cargo cargo = {.header = self->header,
                                     .tensor = entry->tensor,
                                     .frames = self->frames,
                                     .pool_offsets = self->letter->pool_offsets,
                                     .pool_offsets_count = self->letter->pool_offsets_count};
    struct lora_flight *flight = NULL;
    status = lora_store_order(self->store, &order, &cargo, &flight, error);
    if (status != STATUS_OK) return status;
    flight->stack = self->stack;
    flight->index = index;
    flight->reserved = tensor->bytes;
    lora_table_reserve(self->store->table, tensor->bytes);
    return STATUS_OK;
}

// The product of all factors of an entry on an encoder.
static float strength_of(const luna_EncodeText *body, const luna_LoraEntry *entry, float strength)
{
    return strength * entry->scaling * body->lora_multiplier * body->lora_scaling;
}

static enum status fill_strengths(const luna_EncodeText *body, struct lora_stack *stack,
                                  struct error *error)
{
    for (uint32_t i = 0; i < stack->count; i++) {
        const luna_LoraEntry *entry = &body->loras[i];
        struct lora_stack_entry *out = &stack->entries[i];
        out->strength_l = strength_of(body, entry, entry->strength_l);
        out->strength_g = strength_of(body, entry, entry->strength_g);
        out->one_shot = entry->tensor[0] != '\0';
        if (isfinite(out->strength_l) && isfinite(out->strength_g)) continue;
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "the factors of LoRA \"%.128s\" multiply to %g and %g", entry->reference,
                         (double)out->strength_l, (double)out->strength_g);
    }
    return STATUS_OK;
}

static enum status read_request(const struct lora_store *self, const struct message *frames,
                                luna_Header *header, union codec_request *request,
                                struct error *error)
{
    if (frames->count < 2) {
        return error_set(error, STATUS_INTERNAL, "the router handed on %u frames, not 2",
                         frames->count);
    }
    enum status status = codec_decode_header(message_frame(frames, 0), header, error);
    if (status == STATUS_OK) {
        status = codec_decode_request(header, message_frame(frames, 1), request, error);
    }
    if (status != STATUS_OK) return status;
    uint32_t count = request->encode_text.loras_count;
    uint32_t count_max = self->config->lora.stack_max;
    if (count <= count_max) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "the stack has %u LoRAs, at most %u are taken (stack_max)", count, count_max);
}

static void start_entries(const struct resolving *self)
{
    struct lora_stack *stack = self->stack;
    stack->pending = 1;  // so that it is not settled before all have begun
    for (uint32_t i = 0; i < stack->count; i++) {
        const luna_LoraEntry *entry = &self->body->loras[i];
        const struct lora_stack_entry *out = &stack->entries[i];
        struct error error = {0};
        bool is_nothing = out->strength_l == 0.0f && out->strength_g == 0.0f;
        if (entry->disabled || is_nothing) continue;
        stack->pending += 1;
        if (!out->one_shot) {
            struct lora_want want = {.load = true, .done = on_found, .context = stack, .index = i};
            text_set(want.reference, sizeof want.reference, entry->reference);
            lora_want_start(self->store, &want);
        } else if (start_one_shot(self, i, &error) != STATUS_OK) {
            fail_entry(stack, i, &error);
            stack->pending -= 1;
        }
    }
    stack->pending -= 1;
    settle(self->store, stack);
}

void lora_stacks_on_resolve(struct lora_store *self, const luna_ResolveStack *letter,
                            struct message *frames)
{
    luna_Header header;
    struct error error = {0};
    union codec_request *request = calloc(1, sizeof *request);
    struct lora_stack *stack = calloc(1, sizeof *stack);
    uint32_t index = 0;
    enum status status = STATUS_OK;
    if (request == NULL || stack == NULL || self->stacks_count == LORA_STACKS_MAX) {
        status = error_set(&error, STATUS_RESOURCE_EXHAUSTED,
                           "%u requests with LoRAs are under way already", self->stacks_count);
        error.retry_after_ms = 100;
        goto done;
    }
    if (find_stack(self, letter->job, &index) != NULL) {
        status = error_set(&error, STATUS_INTERNAL, "the job has a stack already");
        goto done;
    }
    status = read_request(self, frames, &header, request, &error);
    if (status == STATUS_OK) {
        stack->job = letter->job;
        stack->count = request->encode_text.loras_count;
        status = fill_strengths(&request->encode_text, stack, &error);
    }
    if (status != STATUS_OK) goto done;
    self->stacks[self->stacks_count] = stack;
    self->stacks_count += 1;
    start_entries(&(struct resolving){.store = self,
                                      .stack = stack,
                                      .letter = letter,
                                      .header = &header,
                                      .body = &request->encode_text,
                                      .frames = frames});
    stack = NULL;

done:
    if (status != STATUS_OK) answer(self, letter->job, NULL, &error);
    free(stack);
    free(request);
}

void lora_stacks_on_release(struct lora_store *self, uint64_t job)
{
    uint32_t index = 0;
    struct lora_stack *stack = find_stack(self, job, &index);
    if (stack == NULL) return;
    stack->released = true;
    settle(self, stack);
}
