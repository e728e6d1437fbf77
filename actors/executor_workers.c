// executor_workers.c - a worker's life on this device, and the memory of its arena.

#include "actors/executor_state.h"

#include <assert.h>
#include <string.h>
#include <unistd.h>

#include "actors/event.h"
#include "runtime/message.h"

// What loading the networks of a service takes here, or took; 0 where the device was not asked yet.
static uint64_t weights_bytes(struct executor *self, const luna_Service *service)
{
    const struct model_entry *model = executor_find_model(self, service->model);
    return model != NULL ? model->wanted_bytes[service->group] : 0;
}

static void tell_worker_down(struct executor *self, const struct worker_entry *worker,
                             const struct error *error, const char *reason)
{
    luna_Letter letter = {.which_letter = luna_Letter_worker_down_tag};
    luna_WorkerDown *down = &letter.letter.worker_down;
    down->worker = worker->id;
    down->has_service = true;
    down->service = worker->service;
    text_set(down->device, sizeof down->device, self->arguments.device);
    text_set(down->reason, sizeof down->reason, error != NULL ? error->message : reason);
    down->failed_to_start = error != NULL;
    down->code = error != NULL ? (luna_Code)error->status : luna_Code_OK;
    if (error != NULL) down->weights_bytes = weights_bytes(self, &worker->service);
    executor_tell(self, WATCH_SCALER, &letter);
}

void executor_tell_worker_up(struct executor *self, const struct worker_entry *worker)
{
    luna_Letter letter = {.which_letter = luna_Letter_worker_up_tag};
    letter.letter.worker_up.worker = worker->id;
    letter.letter.worker_up.has_service = true;
    letter.letter.worker_up.service = worker->service;
    letter.letter.worker_up.weights_bytes = weights_bytes(self, &worker->service);
    text_set(letter.letter.worker_up.device, sizeof letter.letter.worker_up.device,
             self->arguments.device);
    executor_tell(self, WATCH_SCALER, &letter);
}

static void remove_worker(struct executor *self, struct worker_entry *worker)
{
    struct loaded *loaded = worker->loaded;
    actor_stop(&worker->actor);
    executor_stacks_forget_worker(self->stacks, worker->id);
    ledger_reserve(&self->ledger, worker->reserved_bytes, 0);
    memset(worker, 0, sizeof *worker);
    executor_forget_memory(self);
    if (loaded != NULL) executor_release(self, loaded);
}

void executor_stop_workers(struct executor *self)
{
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        if (self->workers[i].id != 0) remove_worker(self, &self->workers[i]);
    }
}

void executor_fail_worker(struct executor *self, struct worker_entry *worker,
                          const struct error *error)
{
    log_event(self->context->log, LOG_ERROR, "worker.failed", "worker=%lu model=%s why=%s",
              (unsigned long)worker->id, worker->service.model, error->message);
    tell_worker_down(self, worker, error, NULL);
    remove_worker(self, worker);
}

void executor_fail_waiting(struct executor *self, const char *model, luna_Group group,
                           const struct error *error)
{
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        struct worker_entry *worker = &self->workers[i];
        bool waits = worker->id != 0 && worker->actor == NULL && worker->service.group == group &&
                     strcmp(worker->service.model, model) == 0;
        if (waits) executor_fail_worker(self, worker, error);
    }
}

void executor_start_worker(struct executor *self, struct worker_entry *worker,
                           struct model_entry *model)
{
    const struct worker_arguments arguments = {
        .executor = &self->arguments,
        .device = self->devices[worker->service.group],
        .device_name = self->arguments.device,
        .id = worker->id,
        .model = worker->service.model,
        .loaded = model->loaded[worker->service.group],
    };
    assert(arguments.loaded != NULL);
    const struct actor_kind *kind =
        worker->service.group == luna_Group_VAE ? &vae_worker_kind : &clip_worker_kind;
    struct error error;
    worker->loaded = model->loaded[worker->service.group];
    if (actor_start(&worker->actor, kind, &self->host, &arguments, &error) != STATUS_OK) {
        executor_fail_worker(self, worker, &error);
        return;
    }
    model->used_ns[worker->service.group] = executor_now(self);
    executor_tell_worker_up(self, worker);
    executor_tell_model(self, model, NULL);
}

void executor_spawn(struct executor *self, const luna_Spawn *letter)
{
    const luna_Service *service = &letter->service;
    self->margin_bytes = letter->margin_bytes;
    struct worker_entry *worker = NULL;
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX && worker == NULL; i++) {
        if (self->workers[i].id == 0) worker = &self->workers[i];
    }
    self->workers_started += 1;
    struct worker_entry unborn = {.id = self->arguments.epoch << 16 |
                                        (self->workers_started & 0xffffu)};
    unborn.service = *service;
    struct model_entry *model = executor_find_model(self, service->model);
    struct error error;
    assert(service->model[0] != '\0');
    if (worker == NULL) {
        error_set(&error, STATUS_RESOURCE_EXHAUSTED, "device %s has %u workers, no more fit",
                  self->arguments.device, EXECUTOR_WORKERS_MAX);
        tell_worker_down(self, &unborn, &error, NULL);
        return;
    }
    *worker = unborn;
    worker->spawned_ns = executor_now(self);
    if (model == NULL) return;  // the registry's letter is under way, on another socket
    if (model->loaded[service->group] != NULL)
        executor_start_worker(self, worker, model);
    else if (executor_ask_loader(self, model, service->group, &error) != STATUS_OK)
        executor_fail_worker(self, worker, &error);
}

// Workers whose model nobody defines.
void executor_expire_workers(struct executor *self)
{
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        struct worker_entry *worker = &self->workers[i];
        bool waits = worker->id != 0 && worker->actor == NULL &&
                     executor_find_model(self, worker->service.model) == NULL;
        if (!waits ||
            executor_now(self) - worker->spawned_ns < EXECUTOR_DEFINITION_MS * 1000000ull) {
            continue;
        }
        struct error error;
        error_set(&error, STATUS_UNAVAILABLE, "device %s has not heard of model \"%s\" yet",
                  self->arguments.device, worker->service.model);
        executor_fail_worker(self, worker, &error);
    }
}

static struct worker_entry *find_worker(struct executor *self, uint64_t id)
{
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX && id != 0; i++) {
        if (self->workers[i].id == id) return &self->workers[i];
    }
    return NULL;
}

void executor_retire(struct executor *self, uint64_t id)
{
    struct worker_entry *worker = find_worker(self, id);
    if (worker == NULL || worker->actor == NULL || worker->retiring) return;
    worker->retiring = true;
    actor_drain(worker->actor);
}

static void on_retired(struct executor *self, struct worker_entry *worker)
{
    struct model_entry *model = executor_find_model(self, worker->service.model);
    if (model != NULL) model->used_ns[worker->service.group] = executor_now(self);
    tell_worker_down(self, worker, NULL, "retired");
    remove_worker(self, worker);
    if (model != NULL) executor_tell_model(self, model, NULL);
    executor_report(self);
}

// What is idle goes for an arena only where that can suffice; copies in use are taken for idle
// here. Who is refused is offered what there would be without idle networks: smaller tiles may want
// that.
static void on_reserve(struct executor *self, struct worker_entry *worker,
                       struct executor_letter *letter)
{
    executor_read_memory(self);
    uint64_t before = worker->reserved_bytes;
    uint64_t more = letter->bytes > before ? letter->bytes - before : 0;
    uint64_t idle = executor_idle_bytes(self);
    bool hopeful = more <= ledger_offer(&self->ledger, idle + self->ledger.stack_bytes);
    while (hopeful && more > ledger_free(&self->ledger) && executor_evict_one(self)) {
        executor_read_memory(self);
    }
    bool granted = hopeful && ledger_reserve(&self->ledger, before, letter->bytes);
    letter->kind = EXECUTOR_RESERVED;
    letter->granted = granted;
    letter->capacity = ledger_capacity(&self->ledger, worker->loaded->bytes);
    if (granted)
        worker->reserved_bytes = letter->bytes;
    else
        letter->bytes = before + ledger_offer(&self->ledger, executor_idle_bytes(self));
}

void executor_answer_worker(struct executor *self, const struct executor_letter *letter,
                            const struct bytes *frame)
{
    const struct worker_entry *worker = find_worker(self, letter->worker);
    if (worker == NULL || worker->connection_bytes == 0) return;
    const struct bytes parts[] = {{.data = worker->connection, .size = worker->connection_bytes},
                                  {.data = letter, .size = sizeof *letter}};
    struct message answer;
    message_init(&answer);
    enum status status = message_append(&answer, parts[0]);
    if (status == STATUS_OK) status = message_append(&answer, parts[1]);
    if (status == STATUS_OK && frame != NULL) status = message_append(&answer, *frame);
    if (status == STATUS_OK) status = message_send(&answer, self->workers_router);
    message_clear(&answer);
    loop_socket_touch(self->watches[WATCH_WORKERS]);
    if (status == STATUS_OK) return;
    log_event(self->context->log, LOG_ERROR, "letter.dropped", "worker=%lu kind=%d status=%s",
              (unsigned long)letter->worker, (int)letter->kind, status_name(status));
}

// The device had less than the ledger: for a while nothing as large is promised, and what is idle
// goes, so that what is left is more than before.
static void on_fell_short(struct executor *self, struct worker_entry *worker,
                          struct executor_letter *letter)
{
    uint64_t wanted_bytes = letter->bytes;
    log_event(self->context->log, LOG_WARNING, "promise.broken",
              "device=%s worker=%lu bytes=%lu free=%lu", self->arguments.device,
              (unsigned long)worker->id, (unsigned long)wanted_bytes,
              (unsigned long)ledger_free(&self->ledger));
    ledger_reserve(&self->ledger, worker->reserved_bytes, letter->capacity);
    worker->reserved_bytes = letter->capacity;
    ledger_distrust(&self->ledger, wanted_bytes);
    self->distrusted_ns = executor_now(self);
    executor_evict_one(self);
    executor_forget_memory(self);
    executor_read_memory(self);
    letter->kind = EXECUTOR_RESERVED;
    letter->granted = false;
    letter->bytes = worker->reserved_bytes + ledger_offer(&self->ledger, 0);
    letter->capacity = ledger_capacity(&self->ledger, worker->loaded->bytes);
    executor_answer_worker(self, letter, NULL);
    executor_report(self);
}

static void on_want_stack(struct executor *self, const struct worker_entry *worker,
                          const struct message *message)
{
    struct stack_question question;
    if (message->count != 3 || message_frame(message, 2).size != sizeof question) return;
    memcpy(&question, message_frame(message, 2).data, sizeof question);
    assert(question.worker == worker->id);
    executor_stacks_ask(self->stacks, &question);
}

static void on_worker_letter(struct executor *self, struct message *message)
{
    struct executor_letter letter;
    if (message->count < 2 || message_frame(message, 1).size != sizeof letter) return;
    memcpy(&letter, message_frame(message, 1).data, sizeof letter);
    struct worker_entry *worker = find_worker(self, letter.worker);
    const struct bytes connection = message_frame(message, 0);
    if (worker == NULL || connection.size > sizeof worker->connection) return;
    memcpy(worker->connection, connection.data, connection.size);
    worker->connection_bytes = (uint32_t)connection.size;
    switch (letter.kind) {
    case EXECUTOR_RESERVE:
        on_reserve(self, worker, &letter);
        executor_answer_worker(self, &letter, NULL);
        executor_report(self);
        return;
    case EXECUTOR_WANT_STACK:
        on_want_stack(self, worker, message);
        return;
    case EXECUTOR_GIVE_BACK:
        executor_stacks_give_back(self->stacks, worker->id, letter.job);
        return;
    case EXECUTOR_RETIRED:
        on_retired(self, worker);
        return;
    case EXECUTOR_BROKEN:
        executor_end_broken(self, "a run failed for good");
    case EXECUTOR_FELL_SHORT:
        on_fell_short(self, worker, &letter);
        return;
    case EXECUTOR_BORROW:
        executor_loans_borrow(self->loans, &letter);
        executor_answer_worker(self, &letter, NULL);
        return;
    case EXECUTOR_RETURN:
        executor_loans_return(self->loans, letter.pool);
        return;
    case EXECUTOR_LENT:
    case EXECUTOR_RESERVED:
    case EXECUTOR_STACK:
    case EXECUTOR_STACK_PROGRESS:
        return;
    }
}

void executor_on_workers(void *state)
{
    struct executor *self = state;
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        struct message message;
        message_init(&message);
        if (message_receive(&message, self->workers_router) != STATUS_OK) return;
        on_worker_letter(self, &message);
        message_clear(&message);
    }
}
