// stack_desk.c - questions in order of arrival, two tables of residents, two orders at most.
//
// Whatever happens ends in stack_desk_turn (stack_turn.c).

#include "actors/stack_desk_state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void stack_desk_check(const struct stack_desk *self)
{
    assert(self != NULL);
    residents_check(self->adapters);
    residents_check(self->copies);
    assert((self->merging == NULL) == (self->unborn == NULL));
    uint64_t number = 0;
    for (const struct want *want = self->wants; want != NULL; want = want->next) {
        assert(want->number > number);
        number = want->number;
        assert(want->functional == NULL || want->merged == NULL);
        assert(want->state != WANT_ADAPTERS || want->merged == NULL);
        for (uint32_t i = 0; i < want->count; i++) {
            const struct resident *adapter = want->adapters[i];
            assert(adapter == NULL || adapter->uses > 0);
            assert(adapter == NULL || want->state == WANT_ADAPTERS ||
                   adapter->state == RESIDENT_READY);
        }
    }
    assert(number <= self->wants_seen);
}

// ---- life

static void end_adapter(void *context, void *value)
{
    struct stack_desk *self = context;
    self->calls->end_adapter(value);
}

void stack_desk_drop_copy(struct merged_copy *copy)
{
    struct stack_desk *desk = copy->desk;
    if (copy->stack != NULL) desk->calls->end_stack(copy->stack);
    for (uint32_t i = 0; i < copy->count; i++) residents_release(desk->adapters, copy->parts[i]);
    free(copy);
}

static void end_copy(void *context, void *value)
{
    (void)context;
    stack_desk_drop_copy(value);
}

enum status stack_desk_create(struct stack_desk **out, const struct stack_limits *limits,
                              const struct stack_desk_calls *calls, void *context,
                              struct error *error)
{
    assert(out != NULL);
    assert(calls != NULL);
    struct stack_desk *self = calloc(1, sizeof *self);
    if (self == NULL)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a desk of stacks");
    self->limits = *limits;
    self->calls = calls;
    self->context = context;
    enum status status = residents_create(&self->adapters, end_adapter, self, error);
    if (status == STATUS_OK) status = residents_create(&self->copies, end_copy, self, error);
    if (status != STATUS_OK) {
        stack_desk_destroy(&self);
        return status;
    }
    *out = self;
    return STATUS_OK;
}

void stack_desk_tell_books(struct stack_desk *self)
{
    self->calls->book(self->context, residents_bytes(self->adapters),
                      residents_bytes(self->copies));
}

// Lets go of everything that a question holds.
static void end_want(struct stack_desk *self, struct want *want)
{
    if (want->functional != NULL) self->calls->end_stack(want->functional);
    if (want->merged != NULL) residents_release(self->copies, want->merged);
    for (uint32_t i = 0; i < want->count; i++) {
        if (want->adapters[i] != NULL) residents_release(self->adapters, want->adapters[i]);
    }
    free(want);
}

void stack_desk_destroy(struct stack_desk **self_p)
{
    assert(self_p != NULL);
    struct stack_desk *self = *self_p;
    if (self == NULL) return;
    while (self->wants != NULL) {
        struct want *want = self->wants;
        self->wants = want->next;
        end_want(self, want);
    }
    if (self->merging != NULL) {  // the orders' own uses
        self->merging->state = RESIDENT_WANTED;
        residents_release(self->copies, self->merging);
        stack_desk_drop_copy(self->unborn);
    }
    if (self->fetching != NULL) {
        self->fetching->state = RESIDENT_WANTED;
        residents_release(self->adapters, self->fetching);
    }
    residents_destroy(&self->copies);
    residents_destroy(&self->adapters);
    free(self);
    *self_p = NULL;
}

void stack_desk_remove(struct stack_desk *self, struct want *want)
{
    struct want **link = &self->wants;
    while (*link != want) link = &(*link)->next;
    *link = want->next;
    end_want(self, want);
}

// The entry of a question that holds this adapter first.
static uint32_t entry_of(const struct want *want, const struct resident *adapter)
{
    uint32_t i = 0;
    while (i < want->count && want->adapters[i] != adapter) i += 1;
    return i < want->count ? i : UINT32_MAX;
}

// ---- questions

// Takes a use of every adapter of a question.
static enum status hold_adapters(struct stack_desk *self, struct want *want)
{
    for (uint32_t i = 0; i < want->count; i++) {
        const luna_StackEntry *entry = &want->entries[i];
        if (entry->encoder_hash.size != sizeof(struct hash) || entry->bytes == 0) continue;
        const struct bytes key = {.data = entry->encoder_hash.bytes, .size = sizeof(struct hash)};
        struct resident *adapter = residents_find(self->adapters, want->model, key);
        if (adapter == NULL)
            adapter = residents_add(self->adapters, want->model, key);
        else
            residents_hold(self->adapters, adapter);
        if (adapter == NULL) return STATUS_RESOURCE_EXHAUSTED;
        adapter->keep |= !entry->one_shot;
        want->adapters[i] = adapter;
    }
    return STATUS_OK;
}

enum status stack_desk_ask(struct stack_desk *self, const struct stack_question *question)
{
    assert(self != NULL);
    assert(question->count <= STACK_MAX);
    const uint64_t entries_bytes = question->count * sizeof question->entries[0];
    struct want *want = malloc(sizeof *want + entries_bytes);
    if (want == NULL) return STATUS_RESOURCE_EXHAUSTED;
    self->wants_seen += 1;
    *want = (struct want){.number = self->wants_seen,
                          .worker = question->worker,
                          .job = question->job,
                          .model = question->model,
                          .count = question->count};
    memcpy(want->entries, question->entries, entries_bytes);
    if (hold_adapters(self, want) != STATUS_OK) {
        end_want(self, want);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    struct want **link = &self->wants;
    while (*link != NULL) link = &(*link)->next;
    *link = want;
    stack_desk_turn(self);
    return STATUS_OK;
}

// A merge that nobody waits for any more is stopped; the one use that is left is the order's own.
static void stop_unwanted(struct stack_desk *self)
{
    if (self->merging == NULL || self->merging->uses > 1 || self->stop_sent) return;
    self->stop_sent = true;
    self->calls->stop_merge(self->context);
}

void stack_desk_give_back(struct stack_desk *self, uint64_t worker, uint64_t job)
{
    assert(self != NULL);
    struct want *want = self->wants;
    while (want != NULL && (want->worker != worker || want->job != job)) want = want->next;
    if (want == NULL) return;
    stack_desk_remove(self, want);
    stop_unwanted(self);
    stack_desk_turn(self);
}

void stack_desk_forget_worker(struct stack_desk *self, uint64_t worker)
{
    assert(self != NULL);
    struct want *next = NULL;
    for (struct want *want = self->wants; want != NULL; want = next) {
        next = want->next;
        if (want->worker == worker) stack_desk_remove(self, want);
    }
    stop_unwanted(self);
    stack_desk_turn(self);
}

bool stack_desk_waits(const struct stack_desk *self, uint64_t worker)
{
    assert(self != NULL);
    for (const struct want *want = self->wants; want != NULL; want = want->next) {
        if (want->worker == worker && want->state != WANT_GRANTED) return true;
    }
    return false;
}

// ---- answers to orders

// Those who asked before the order was given are refused; who came later may have better luck.
static void fail_fetch(struct stack_desk *self, struct resident *adapter, const struct error *error)
{
    struct want *next = NULL;
    for (struct want *want = self->wants; want != NULL; want = next) {
        next = want->next;
        uint32_t entry = entry_of(want, adapter);
        if (entry == UINT32_MAX || want->number > adapter->mark) continue;
        stack_desk_refuse(self, want, entry, error, 0);
    }
}

void stack_desk_fetched(struct stack_desk *self, struct text_adapter *value, uint64_t bytes,
                        const struct error *error)
{
    assert(self != NULL);
    assert(self->fetching != NULL);
    struct resident *adapter = self->fetching;
    self->fetching = NULL;
    if (value != NULL) {
        residents_ready(self->adapters, adapter, value, bytes);
    } else {
        adapter->state = RESIDENT_WANTED;
        residents_weigh(self->adapters, adapter, 0);
        fail_fetch(self, adapter, error);
    }
    residents_release(self->adapters, adapter);  // the order's own use
    residents_make_room(self->adapters, 0, self->limits.adapter_bytes);
    stack_desk_turn(self);
}

// Those who wait for a copy that will not be: refused, or (it was only stopped) in line again.
static void fail_merge(struct stack_desk *self, struct resident *copy, const struct error *error)
{
    struct want *next = NULL;
    for (struct want *want = self->wants; want != NULL; want = next) {
        next = want->next;
        if (want->merged != copy) continue;
        if (error->status != STATUS_CANCELLED) {
            stack_desk_refuse(self, want, UINT32_MAX, error, 0);
            continue;
        }
        want->merged = NULL;
        want->state = WANT_LINE;
        residents_release(self->copies, copy);
    }
}

static void grant_merged(struct stack_desk *self, const struct resident *copy)
{
    for (struct want *want = self->wants; want != NULL; want = want->next) {
        if (want->merged == copy && want->state == WANT_MERGING) stack_desk_grant(self, want);
    }
}

void stack_desk_merged(struct stack_desk *self, struct text_stack *stack, uint64_t bytes,
                       const struct error *error)
{
    assert(self != NULL);
    assert(self->merging != NULL);
    struct resident *copy = self->merging;
    struct merged_copy *value = self->unborn;
    self->merging = NULL;
    self->unborn = NULL;
    if (stack != NULL) {
        value->stack = stack;
        residents_ready(self->copies, copy, value, bytes);
        grant_merged(self, copy);
    } else {
        copy->doomed = true;
        copy->state = RESIDENT_WANTED;
        residents_weigh(self->copies, copy, 0);
        fail_merge(self, copy, error);
        stack_desk_drop_copy(value);
    }
    residents_release(self->copies, copy);  // the order's own use
    stack_desk_turn(self);
}

// ---- what goes

static bool has_part(const struct resident *copy, const struct hash *hash)
{
    for (uint64_t at = 0; at < copy->key_bytes; at += sizeof(struct key_part)) {
        if (memcmp(copy->key + at, hash->value, sizeof hash->value) == 0) return true;
    }
    return false;
}

void stack_desk_drop(struct stack_desk *self, const struct hash *hash)
{
    assert(self != NULL);
    struct resident *older = NULL;
    for (struct resident *at = residents_newest(self->copies); at != NULL; at = older) {
        older = at->older;
        if (has_part(at, hash)) residents_doom(self->copies, at);
    }
    for (struct resident *at = residents_newest(self->adapters); at != NULL; at = older) {
        older = at->older;
        if (memcmp(at->key, hash->value, sizeof hash->value) == 0)
            residents_doom(self->adapters, at);
    }
    stack_desk_turn(self);
}

bool stack_desk_evict_one(struct stack_desk *self)
{
    assert(self != NULL);
    bool gone = residents_evict_one(self->copies) || residents_evict_one(self->adapters);
    if (gone) stack_desk_tell_books(self);
    return gone;
}

static bool is_idle(struct residents *table, const struct text_model *model)
{
    for (const struct resident *at = residents_newest(table); at != NULL; at = at->older) {
        if (at->model == model && (at->uses > 0 || at->state == RESIDENT_MAKING)) return false;
    }
    return true;
}

static void doom_all(struct residents *table, const struct text_model *model)
{
    struct resident *older = NULL;
    for (struct resident *at = residents_newest(table); at != NULL; at = older) {
        older = at->older;
        if (at->model == model) residents_doom(table, at);
    }
}

bool stack_desk_forget_model(struct stack_desk *self, const struct text_model *model)
{
    assert(self != NULL);
    for (const struct want *want = self->wants; want != NULL; want = want->next) {
        if (want->model == model) return false;
    }
    if (!is_idle(self->copies, model)) return false;
    doom_all(self->copies, model);  // which lets go of adapters
    if (!is_idle(self->adapters, model)) return false;
    doom_all(self->adapters, model);
    stack_desk_tell_books(self);
    return true;
}

struct stack_counts stack_desk_counts(const struct stack_desk *self)
{
    assert(self != NULL);
    return (struct stack_counts){.adapters = residents_count(self->adapters),
                                 .adapter_bytes = residents_bytes(self->adapters),
                                 .merged = residents_count(self->copies),
                                 .merged_bytes = residents_bytes(self->copies)};
}
