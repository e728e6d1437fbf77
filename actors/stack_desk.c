// stack_desk.c - questions in order of arrival, two tables of residents, two orders at most.
//
// Whatever happens ends in turn(), which looks at every question that has no answer yet, oldest
// first, and takes it as far as it goes. Nothing that a call in the middle of it does can free what
// a question holds: it has a use of each.

#include "actors/stack_desk.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "actors/residents.h"

enum want_state {
    WANT_ADAPTERS,  // some are not there
    WANT_LINE,      // needs a merged copy
    WANT_MERGING,   // it is being made
    WANT_GRANTED,   // the job has its stack
};

// A question and what it holds.
struct want {
    struct want *next;                     // in order of arrival
    uint64_t number;                       // grows
    uint64_t worker, job;                  // whose
    const struct text_model *model;        // see struct stack_question
    enum want_state state;                 // see above
    struct resident *adapters[STACK_MAX];  // one use each; NULL where nothing is to be fetched
    struct resident *merged;               // one use; NULL before
    struct text_stack *functional;         // owned; NULL for a merged one
    uint32_t count;                        // of entries
    luna_StackEntry entries[];             // as asked
};

// The value of a resident of the table of copies.
struct merged_copy {
    struct text_stack *stack;  // owned
    struct stack_desk *desk;   // whose adapters it holds
    uint32_t count;            // of parts
    struct resident *parts[];  // one use each
};

// One adapter of a merged copy, in the key of the copy.
struct key_part {
    uint8_t hash[32];
    float strength_l, strength_g;
};
_Static_assert(sizeof(struct key_part) == 40, "no padding in a key");

struct stack_desk {
    struct stack_limits limits;            // fixed at creation
    const struct stack_desk_calls *calls;  // the owner's
    void *context;                         // handed to them
    struct want *wants;                    // oldest first
    uint64_t wants_seen;                   // number of the last one
    struct residents *adapters;            // values: struct text_adapter
    struct residents *copies;              // values: struct merged_copy
    struct resident *fetching;             // the order that is out; one use
    struct resident *merging;              // likewise
    struct merged_copy *unborn;            // of merging: the parts it holds already
    bool stop_sent;                        // of merging
    bool turning;                          // turn() is on the stack
};

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

static void drop_copy(struct merged_copy *copy)
{
    struct stack_desk *desk = copy->desk;
    if (copy->stack != NULL) desk->calls->end_stack(copy->stack);
    for (uint32_t i = 0; i < copy->count; i++) residents_release(desk->adapters, copy->parts[i]);
    free(copy);
}

static void end_copy(void *context, void *value)
{
    (void)context;
    drop_copy(value);
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

static void tell_books(struct stack_desk *self)
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
        drop_copy(self->unborn);
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

// ---- grants

// True for an entry that changes something.
static bool counts(const struct want *want, uint32_t entry)
{
    const luna_StackEntry *asked = &want->entries[entry];
    bool some = asked->strength_l != 0.0f || asked->strength_g != 0.0f;
    return want->adapters[entry] != NULL && some;
}

static void grant(struct stack_desk *self, struct want *want)
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

static void remove_want(struct stack_desk *self, struct want *want)
{
    struct want **link = &self->wants;
    while (*link != want) link = &(*link)->next;
    *link = want->next;
    end_want(self, want);
}

// Answers a question with an error and forgets it.
static void refuse(struct stack_desk *self, struct want *want, uint32_t entry,
                   const struct error *error, uint64_t needs_bytes)
{
    assert(error->status != STATUS_OK);
    struct stack_grant answer = {.worker = want->worker,
                                 .job = want->job,
                                 .error = *error,
                                 .needs_bytes = needs_bytes,
                                 .entry = entry,
                                 .count = want->count};
    remove_want(self, want);
    self->calls->grant(self->context, &answer);
}

static void lack_memory(struct stack_desk *self, struct want *want, uint32_t entry, uint64_t bytes)
{
    struct error error;
    error_set(&error, STATUS_RESOURCE_EXHAUSTED, "%lu MiB of memory are not free for it",
              (unsigned long)(bytes >> 20));
    error.retry_after_ms = 1000;
    refuse(self, want, entry, &error, bytes > 0 ? bytes : 1);
}

// ---- adapters

// Makes room below the limit, as far as it goes without taking from anybody.
static void make_room(struct residents *table, uint64_t bytes, uint64_t bytes_max)
{
    while (residents_bytes(table) + bytes > bytes_max && residents_evict_one(table)) continue;
}

// The entry of a question that holds this adapter first.
static uint32_t entry_of(const struct want *want, const struct resident *adapter)
{
    uint32_t i = 0;
    while (i < want->count && want->adapters[i] != adapter) i += 1;
    return i < want->count ? i : UINT32_MAX;
}

static void start_fetch(struct stack_desk *self, struct want *want, uint32_t entry)
{
    struct resident *adapter = want->adapters[entry];
    uint64_t bytes = want->entries[entry].bytes;
    make_room(self->adapters, bytes, self->limits.adapter_bytes);
    if (!self->calls->admit(self->context, bytes)) {
        lack_memory(self, want, entry, bytes);
        return;
    }
    adapter->state = RESIDENT_MAKING;
    adapter->mark = self->wants_seen;
    residents_weigh(self->adapters, adapter, bytes);
    residents_hold(self->adapters, adapter);
    self->fetching = adapter;
    tell_books(self);
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
        refuse(self, want, i, &error, 0);
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
        if (self->unborn != NULL) drop_copy(self->unborn);
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
    tell_books(self);
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
        refuse(self, want, UINT32_MAX, &error, 0);
        return true;
    }
    make_room(self->copies, bytes, self->limits.merged_bytes);
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
        grant(self, want);
    else
        want->state = WANT_MERGING;
    return true;
}

static void apply(struct stack_desk *self, struct want *want, const struct stack_merge *order)
{
    struct error error;
    if (self->calls->apply(&want->functional, order, &error) == STATUS_OK)
        grant(self, want);
    else
        refuse(self, want, UINT32_MAX, &error, 0);
}

// All adapters are there: which way?
static void choose_way(struct stack_desk *self, struct want *want)
{
    struct stack_merge order;
    fill_order(want, &order);
    if (order.count == 0)
        grant(self, want);
    else if (self->limits.merged || self->calls->must_merge(order.entries, order.count))
        want->state = WANT_LINE;
    else
        apply(self, want, &order);
}

static void turn(struct stack_desk *self)
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
    tell_books(self);
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
    turn(self);
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
    remove_want(self, want);
    stop_unwanted(self);
    turn(self);
}

void stack_desk_forget_worker(struct stack_desk *self, uint64_t worker)
{
    assert(self != NULL);
    struct want *next = NULL;
    for (struct want *want = self->wants; want != NULL; want = next) {
        next = want->next;
        if (want->worker == worker) remove_want(self, want);
    }
    stop_unwanted(self);
    turn(self);
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
        refuse(self, want, entry, error, 0);
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
    make_room(self->adapters, 0, self->limits.adapter_bytes);
    turn(self);
}

// Those who wait for a copy that will not be: refused, or (it was only stopped) in line again.
static void fail_merge(struct stack_desk *self, struct resident *copy, const struct error *error)
{
    struct want *next = NULL;
    for (struct want *want = self->wants; want != NULL; want = next) {
        next = want->next;
        if (want->merged != copy) continue;
        if (error->status != STATUS_CANCELLED) {
            refuse(self, want, UINT32_MAX, error, 0);
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
        if (want->merged == copy && want->state == WANT_MERGING) grant(self, want);
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
        drop_copy(value);
    }
    residents_release(self->copies, copy);  // the order's own use
    turn(self);
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
    turn(self);
}

bool stack_desk_evict_one(struct stack_desk *self)
{
    assert(self != NULL);
    bool gone = residents_evict_one(self->copies) || residents_evict_one(self->adapters);
    if (gone) tell_books(self);
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
    tell_books(self);
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
