// executor_stacks.c - between the desk (stack_desk.h), the threads that fetch and merge
// (stack_lane.h), the ledger, the workers and the LoRA store.
//
// Nothing here takes long: a functional stack is a list of pointers. Adapters and copies are shared
// by pointer with the workers of this process; what a job holds is counted by the desk until the
// worker gives it back.

#include "actors/executor_stacks.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "actors/executor_state.h"
#include "actors/post.h"
#include "actors/stack_lane.h"
#include "base/text.h"
#include "runtime/socket.h"

#define WAITING_MODELS 2u  // as many as orders can be out

// A thread and the way to it.
struct lane {
    struct actor *actor;  // of stack_lane_kind
    struct pair pair;     // to it
};

struct executor_stacks {
    struct executor *executor;               // that it is a part of
    struct stack_desk *desk;                 // who gets what
    struct lane fetcher, merger;             // threads
    void *store;                             // DEALER to the LoRA store
    struct loop_socket *watch_store;         // of store
    struct loaded *leaving[WAITING_MODELS];  // networks that go when an order is over
    luna_AdapterCounts told;                 // to the store
};

// ---- orders

static void order(struct lane *lane, const struct stack_letter *letter)
{
    enum status status = pair_send(&lane->pair, letter, sizeof *letter);
    assert(status == STATUS_OK);  // one at a time on an edge inside the process
    (void)status;
}

static void on_fetch(void *context, const struct stack_fetch *wanted)
{
    struct executor_stacks *self = context;
    const struct stack_letter letter = {.kind = STACK_FETCH, .fetch = *wanted};
    order(&self->fetcher, &letter);
}

static void on_merge(void *context, const struct stack_merge *wanted)
{
    struct executor_stacks *self = context;
    const struct stack_letter letter = {.kind = STACK_MERGE, .merge = *wanted};
    order(&self->merger, &letter);
}

static void on_stop_merge(void *context)
{
    struct executor_stacks *self = context;
    const struct stack_letter letter = {.kind = STACK_STOP};
    order(&self->merger, &letter);
}

// ---- memory

static bool on_admit(void *context, uint64_t bytes)
{
    const struct executor_stacks *self = context;
    struct executor *executor = self->executor;
    executor_read_memory(executor);
    while (ledger_free(&executor->ledger) < bytes && executor_evict_one(executor)) {
        executor_read_memory(executor);
    }
    return ledger_free(&executor->ledger) >= bytes;
}

static void on_book(void *context, uint64_t adapter_bytes, uint64_t merged_bytes)
{
    struct executor_stacks *self = context;
    struct executor *executor = self->executor;
    uint64_t before = executor->ledger.stack_bytes;
    ledger_stacks(&executor->ledger, adapter_bytes + merged_bytes);
    if (executor->ledger.stack_bytes < before) executor_forget_memory(executor);
    bool is_told =
        adapter_bytes == self->told.adapter_bytes && merged_bytes == self->told.merged_bytes;
    if (!is_told) executor_stacks_report(self);
}

// ---- what models do

static bool is_unchanged(const struct text_adapter *adapter)
{
    return lora_unchanged(text_adapter_lora(adapter));
}

static enum status apply(struct text_stack **out, const struct stack_merge *wanted,
                         struct error *error)
{
    const struct text_stack_options options = {.merged = false};
    return text_stack_create(out, wanted->model, wanted->entries, wanted->count, &options, error);
}

static void end_adapter(struct text_adapter *adapter)
{
    text_adapter_destroy(&adapter);
}

static void end_stack(struct text_stack *stack)
{
    text_stack_destroy(&stack);
}

// ---- workers

static void on_grant(void *context, const struct stack_grant *grant)
{
    struct executor_stacks *self = context;
    const struct executor_letter letter = {.kind = EXECUTOR_STACK, .worker = grant->worker};
    const struct bytes frame = {.data = grant, .size = sizeof *grant};
    executor_answer_worker(self->executor, &letter, &frame);
}

// Jobs that wait while a copy is being made are no sign of a worker that hangs.
static void tell_progress(struct executor_stacks *self)
{
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        const struct worker_entry *worker = &self->executor->workers[i];
        if (worker->id == 0 || !stack_desk_waits(self->desk, worker->id)) continue;
        const struct executor_letter letter = {.kind = EXECUTOR_STACK_PROGRESS,
                                               .worker = worker->id};
        executor_answer_worker(self->executor, &letter, NULL);
    }
}

void executor_stacks_ask(struct executor_stacks *self, const struct stack_question *question)
{
    assert(self != NULL);
    assert(question->model != NULL);
    if (stack_desk_ask(self->desk, question) == STATUS_OK) return;
    struct stack_grant refusal = {
        .worker = question->worker, .job = question->job, .entry = UINT32_MAX};
    error_set(&refusal.error, STATUS_RESOURCE_EXHAUSTED, "no memory for a stack of %u LoRAs",
              question->count);
    on_grant(self, &refusal);
}

void executor_stacks_give_back(struct executor_stacks *self, uint64_t worker, uint64_t job)
{
    assert(self != NULL);
    stack_desk_give_back(self->desk, worker, job);
}

void executor_stacks_forget_worker(struct executor_stacks *self, uint64_t worker)
{
    assert(self != NULL);
    stack_desk_forget_worker(self->desk, worker);
}

bool executor_stacks_evict_one(struct executor_stacks *self)
{
    return self != NULL && stack_desk_evict_one(self->desk);
}

// ---- models

bool executor_stacks_forget_model(struct executor_stacks *self, struct loaded *loaded)
{
    if (self == NULL || loaded->text == NULL) return true;
    if (stack_desk_forget_model(self->desk, loaded->text)) return true;
    for (uint32_t i = 0; i < WAITING_MODELS; i++) {
        if (self->leaving[i] == loaded) return false;
    }
    for (uint32_t i = 0; i < WAITING_MODELS; i++) {
        if (self->leaving[i] != NULL) continue;
        self->leaving[i] = loaded;
        return false;
    }
    assert(!"more networks are left than orders are out");
    return false;
}

// An order is over: networks that waited for it may go.
static void release_leaving(struct executor_stacks *self)
{
    for (uint32_t i = 0; i < WAITING_MODELS; i++) {
        struct loaded *loaded = self->leaving[i];
        self->leaving[i] = NULL;
        if (loaded != NULL) executor_release(self->executor, loaded);
    }
}

// ---- answers

static void take_answer(struct executor_stacks *self, struct stack_letter *letter)
{
    const struct error *error = letter->error.status != STATUS_OK ? &letter->error : NULL;
    switch (letter->kind) {
    case STACK_FETCH:
        stack_desk_fetched(self->desk, letter->adapter, letter->bytes, error);
        release_leaving(self);
        break;
    case STACK_MERGE:
        stack_desk_merged(self->desk, letter->stack, letter->bytes, error);
        release_leaving(self);
        break;
    case STACK_PROGRESS:
        tell_progress(self);
        break;
    case STACK_STOP:
        break;
    }
}

static void read_lane(struct executor_stacks *self, struct lane *lane)
{
    struct stack_letter letter;
    while (pair_receive(&lane->pair, &letter, sizeof letter)) take_answer(self, &letter);
}

static void on_fetcher(void *state)
{
    struct executor_stacks *self = state;
    read_lane(self, &self->fetcher);
}

static void on_merger(void *state)
{
    struct executor_stacks *self = state;
    read_lane(self, &self->merger);
}

static void on_store_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    (void)frames;
    struct executor_stacks *self = state;
    const luna_DropAdapter *drop = &letter->letter.drop_adapter;
    struct hash hash;
    if (letter->which_letter == luna_Letter_who_tag) executor_stacks_report(self);
    if (letter->which_letter != luna_Letter_drop_adapter_tag) return;
    if (drop->encoder_hash.size != sizeof hash.value) return;
    memcpy(hash.value, drop->encoder_hash.bytes, sizeof hash.value);
    stack_desk_drop(self->desk, &hash);
}

static void on_store(void *state)
{
    struct executor_stacks *self = state;
    post_each(self->store, on_store_letter, self);
}

void executor_stacks_report(struct executor_stacks *self)
{
    assert(self != NULL);
    const struct stack_counts counts = stack_desk_counts(self->desk);
    luna_Letter letter = {.which_letter = luna_Letter_adapter_counts_tag};
    luna_AdapterCounts *told = &letter.letter.adapter_counts;
    text_set(told->device, sizeof told->device, self->executor->arguments.device);
    told->adapter_bytes = counts.adapter_bytes;
    told->merged_entries = counts.merged;
    told->merged_bytes = counts.merged_bytes;
    self->told = *told;
    if (self->store == NULL) return;
    post_letter(self->store, &letter, NULL);  // without a core there is nobody to tell
    if (self->watch_store != NULL) loop_socket_touch(self->watch_store);
}

// ---- life

static enum status open_lane(struct executor_stacks *self, struct lane *lane, const char *address,
                             void (*on_answer)(void *state), struct error *error)
{
    struct executor *executor = self->executor;
    const struct stack_lane_arguments arguments = {
        .private_directory = executor->arguments.private_directory, .address = address};
    const struct pair_end end = {
        .address = address, .binds = true, .on_readable = on_answer, .state = self};
    enum status status = pair_open(&lane->pair, executor->context, &end, error);
    if (status == STATUS_OK) {
        status = actor_start(&lane->actor, &stack_lane_kind, &executor->host, &arguments, error);
    }
    return status;
}

static enum status open_store(struct executor_stacks *self, struct error *error)
{
    struct executor *executor = self->executor;
    char endpoint[SOCKET_ENDPOINT_BYTES];
    enum status status = socket_open(&self->store, executor->context->zmq, EDGE_STORE_PEER, error);
    if (status != STATUS_OK) return status;
    socket_ipc_endpoint(endpoint, sizeof endpoint, executor->arguments.private_directory,
                        SOCKET_LORA_STORE);
    status = socket_connect(self->store, endpoint, error);
    if (status != STATUS_OK) return status;
    return loop_add_socket(executor->context->loop, self->store, false, on_store, self,
                           &self->watch_store, error);
}

static const struct stack_desk_calls calls = {.fetch = on_fetch,
                                              .merge = on_merge,
                                              .stop_merge = on_stop_merge,
                                              .grant = on_grant,
                                              .admit = on_admit,
                                              .book = on_book,
                                              .unchanged = is_unchanged,
                                              .must_merge = text_stack_must_merge,
                                              .merged_bytes = text_stack_merged_bytes,
                                              .apply = apply,
                                              .end_adapter = end_adapter,
                                              .end_stack = end_stack};

enum status executor_stacks_create(struct executor_stacks **out, struct executor *executor,
                                   struct error *error)
{
    assert(out != NULL);
    assert(executor != NULL);
    const struct config_lora *config = &executor->arguments.config->lora;
    const struct stack_limits limits = {.adapter_bytes = config->memory_limit_mb << 20,
                                        .merged_bytes = config->merged_limit_mb << 20,
                                        .merged = config->merged};
    struct executor_stacks *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for stacks");
    self->executor = executor;
    enum status status = stack_desk_create(&self->desk, &limits, &calls, self, error);
    if (status == STATUS_OK)
        status = open_lane(self, &self->fetcher, STACK_FETCH_ADDRESS, on_fetcher, error);
    if (status == STATUS_OK)
        status = open_lane(self, &self->merger, STACK_MERGE_ADDRESS, on_merger, error);
    if (status == STATUS_OK) status = open_store(self, error);
    if (status != STATUS_OK) {
        executor_stacks_destroy(&self);
        return status;
    }
    *out = self;
    return STATUS_OK;
}

void executor_stacks_destroy(struct executor_stacks **self_p)
{
    assert(self_p != NULL);
    struct executor_stacks *self = *self_p;
    if (self == NULL) return;
    if (self->merger.actor != NULL) on_stop_merge(self);
    actor_stop(&self->merger.actor);
    actor_stop(&self->fetcher.actor);
    // Answers that nobody read carry what they made.
    read_lane(self, &self->fetcher);
    read_lane(self, &self->merger);
    release_leaving(self);
    stack_desk_destroy(&self->desk);
    pair_close(&self->fetcher.pair);
    pair_close(&self->merger.pair);
    loop_socket_remove(&self->watch_store);
    socket_close(&self->store);
    free(self);
    *self_p = NULL;
}
