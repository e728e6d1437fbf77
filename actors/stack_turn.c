// stack_turn.c - how far each question can be taken now. The design is in stack_desk.h.
//
// Nothing that a call in the middle of a turn does can free what a question holds: it has a use of
// each.

#include "actors/stack_desk_state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

// ---- answers

// True for an entry that changes something.
static bool counts(const struct want *want, uint32_t entry)
{
    const luna_StackEntry *asked = &want->entries[entry];
    bool some = asked->strength_l != 0.0f || asked->strength_g != 0.0f;
    return want->adapters[entry] != NULL && some;
}

void stack_desk_grant(struct stack_desk *self, struct want *want)
{
    struct stack_grant answer = {.worker = want->worker,
                                 .job = want->job,
                                 .entry = UINT32_MAX,
                                 .stack = want->functional,
                                 .count = want->count};
    if (want->merged != NULL) {
        const struct merged_copy *copy = want->merged->value;
        answer.stack = copy->stack;
        answer.merged = true;
    }
    uint32_t place = 0;
    for (uint32_t i = 0; i < want->count; i++) {
        if (want->adapters[i] != NULL) answer.adapters[i] = want->adapters[i]->value;
        answer.places[i] = counts(want, i) ? place++ : UINT32_MAX;
    }
    want->state = WANT_GRANTED;
    self->calls->grant(self->context, &answer);
}

void stack_desk_refuse(struct stack_desk *self, struct want *want, uint32_t entry,
                       const struct error *error, uint64_t needs_bytes)
{
    assert(error->status != STATUS_OK);
    struct stack_grant answer = {.worker = want->worker,
                                 .job = want->job,
                                 .error = *error,
                                 .needs_bytes = needs_bytes,
                                 .entry = entry,
                                 .count = want->count};
    stack_desk_remove(self, want);
    self->calls->grant(self->context, &answer);
}

static void lack_memory(struct stack_desk *self, struct want *want, uint32_t entry, uint64_t bytes)
{
    struct error error;
    error_set(&error, STATUS_RESOURCE_EXHAUSTED, "%lu MiB of memory are not free for it",
              (unsigned long)(bytes >> 20));
    error.retry_after_ms = 1000;
    stack_desk_refuse(self, want, entry, &error, bytes > 0 ? bytes : 1);
}

// ---- adapters

static void start_fetch(struct stack_desk *self, struct want *want, uint32_t entry)
{
    struct resident *adapter = want->adapters[entry];
    uint64_t bytes = want->entries[entry].bytes;
    residents_make_room(self->adapters, bytes, self->limits.adapter_bytes);
    if (!self->calls->admit(self->context, bytes)) {
        lack_memory(self, want, entry, bytes);
        return;
    }
    adapter->state = RESIDENT_MAKING;
    adapter->mark = self->wants_seen;
    residents_weigh(self->adapters, adapter, bytes);
    residents_hold(self->adapters, adapter);
    self->fetching = adapter;
    stack_desk_tell_books(self);
    struct stack_fetch order = {.model = want->model};
    memcpy(order.hash.value, adapter->key, sizeof order.hash.value);
    self->calls->fetch(self->context, &order);
}

// True when every adapter of the question is there and as it was when it was read.
static bool has_adapters(struct stack_desk *self, struct want *want)
{
    for (uint32_t i = 0; i < want->count; i++) {
        if (want->adapters[i] == NULL || want->adapters[i]->state == RESIDENT_READY) continue;
        if (want->adapters[i]->state == RESIDENT_WANTED && self->fetching == NULL)
            start_fetch(self, want, i);
        return false;
    }
    for (uint32_t i = 0; i < want->count; i++) {
        if (want->adapters[i] == NULL || self->calls->unchanged(want->adapters[i]->value)) continue;
        struct error error;
        error_set(&error, STATUS_FAILED_PRECONDITION, "its file was changed while it was in use");
        residents_doom(self->adapters, want->adapters[i]);
        stack_desk_refuse(self, want, i, &error, 0);
        return false;
    }
    return true;
}

// ---- stacks

// The entries that count, as models/text wants them.
static void fill_order(const struct want *want, struct stack_merge *order)
{
    order->model = want->model;
    order->count = 0;
    for (uint32_t i = 0; i < want->count; i++) {
        if (!counts(want, i)) continue;
        struct text_stack_entry *entry = &order->entries[order->count];
        *entry = (struct text_stack_entry){.adapter = want->adapters[i]->value};
        entry->strength[MODEL_CLIP_L] = want->entries[i].strength_l;
        entry->strength[MODEL_CLIP_H] = want->entries[i].strength_l;
        entry->strength[MODEL_CLIP_G] = want->entries[i].strength_g;
        order->count += 1;
    }
}

static struct bytes fill_key(const struct want *want, struct key_part key[STACK_MAX])
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < want->count; i++) {
        if (!counts(want, i)) continue;
        key[count] = (struct key_part){.strength_l = want->entries[i].strength_l,
                                       .strength_g = want->entries[i].strength_g};
        memcpy(key[count].hash, want->adapters[i]->key, sizeof key[count].hash);
        count += 1;
    }
    return (struct bytes){.data = key, .size = count * sizeof key[0]};
}

// The copy that will be: it holds its adapters from now on.
static struct merged_copy *start_copy(struct stack_desk *self, const struct want *want)
{
    struct merged_copy *copy = malloc(sizeof *copy + want->count * sizeof copy->parts[0]);
    if (copy == NULL) return NULL;
    *copy = (struct merged_copy){.desk = self};
    for (uint32_t i = 0; i < want->count; i++) {
        if (!counts(want, i)) continue;
        copy->parts[copy->count] = want->adapters[i];
        copy->count += 1;
        residents_hold(self->adapters, want->adapters[i]);
    }
    return copy;
}

static bool is_one_shot(const struct want *want)
{
    for (uint32_t i = 0; i < want->count; i++) {
        if (want->entries[i].one_shot && counts(want, i)) return true;
    }
    return false;
}

static void start_merge(struct stack_desk *self, struct want *want, struct bytes key,
                        const struct stack_merge *order, uint64_t bytes)
{
    self->unborn = start_copy(self, want);
    struct resident *copy =
        self->unborn != NULL ? residents_add(self->copies, want->model, key) : NULL;
    if (copy == NULL) {
        if (self->unborn != NULL) stack_desk_drop_copy(self->unborn);
        self->unborn = NULL;
        lack_memory(self, want, UINT32_MAX, bytes);
        return;
    }
    copy->state = RESIDENT_MAKING;
    copy->keep = !is_one_shot(want);
    residents_weigh(self->copies, copy, bytes);
    residents_hold(self->copies, copy);  // the order's own use
    self->merging = copy;
    self->stop_sent = false;
    want->merged = copy;
    want->state = WANT_MERGING;
    stack_desk_tell_books(self);
    self->calls->merge(self->context, order);
}

// The first in line: makes its copy, if there is room for it. False: it waits, and so do those
// behind it.
static bool make_copy(struct stack_desk *self, struct want *want, struct bytes key)
{
    struct stack_merge order;
    struct error error;
    if (self->merging != NULL) return false;
    fill_order(want, &order);
    uint64_t bytes = self->calls->merged_bytes(order.model, order.entries, order.count);
    if (bytes > self->limits.merged_bytes) {
        error_set(&error, STATUS_RESOURCE_EXHAUSTED,
                  "the merged copy of this stack has %lu bytes, lora.merged_limit_mb allows %lu",
                  (unsigned long)bytes, (unsigned long)self->limits.merged_bytes);
        stack_desk_refuse(self, want, UINT32_MAX, &error, 0);
        return true;
    }
    residents_make_room(self->copies, bytes, self->limits.merged_bytes);
    if (residents_bytes(self->copies) + bytes > self->limits.merged_bytes) return false;
    if (self->calls->admit(self->context, bytes))
        start_merge(self, want, key, &order, bytes);
    else
        lack_memory(self, want, UINT32_MAX, bytes);
    return true;
}

// Takes a question that needs a merged copy one step on. blocked: somebody before it waits for
// room.
static bool stand_in_line(struct stack_desk *self, struct want *want, bool blocked)
{
    struct key_part parts[STACK_MAX];
    const struct bytes key = fill_key(want, parts);
    struct resident *copy = residents_find(self->copies, want->model, key);
    if (copy == NULL || blocked) return !blocked && make_copy(self, want, key);
    residents_hold(self->copies, copy);
    copy->keep |= !is_one_shot(want);
    want->merged = copy;
    if (copy->state == RESIDENT_READY)
        stack_desk_grant(self, want);
    else
        want->state = WANT_MERGING;
    return true;
}

static void apply(struct stack_desk *self, struct want *want, const struct stack_merge *order)
{
    struct error error;
    if (self->calls->apply(&want->functional, order, &error) == STATUS_OK)
        stack_desk_grant(self, want);
    else
        stack_desk_refuse(self, want, UINT32_MAX, &error, 0);
}

// All adapters are there: which way?
static void choose_way(struct stack_desk *self, struct want *want)
{
    struct stack_merge order;
    fill_order(want, &order);
    if (order.count == 0)
        stack_desk_grant(self, want);
    else if (self->limits.merged || self->calls->must_merge(order.entries, order.count))
        want->state = WANT_LINE;
    else
        apply(self, want, &order);
}

void stack_desk_turn(struct stack_desk *self)
{
    if (self->turning) return;
    self->turning = true;
    bool blocked = false;
    struct want *next = NULL;
    for (struct want *want = self->wants; want != NULL; want = next) {
        next = want->next;
        if (want->state == WANT_ADAPTERS && has_adapters(self, want)) choose_way(self, want);
    }
    for (struct want *want = self->wants; want != NULL; want = next) {
        next = want->next;
        if (want->state != WANT_LINE) continue;
        bool busy = self->merging != NULL;  // then it waits for that, and takes no room from others
        if (!stand_in_line(self, want, blocked)) blocked |= !busy;
    }
    self->turning = false;
    stack_desk_tell_books(self);
}
