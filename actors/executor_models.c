// executor_models.c - which files a name stands for, which networks are loaded, and what goes
// first.
//
// Networks stay loaded after the last worker retired, until the memory is wanted elsewhere; then
// those that nobody used for the longest time go.

#include "actors/executor_state.h"

#include <assert.h>
#include <string.h>

#include "actors/event.h"

struct model_entry *executor_find_model(struct executor *self, const char *name)
{
    for (uint32_t i = 0; i < EXECUTOR_MODELS_MAX; i++) {
        if (strcmp(self->models[i].definition.name, name) == 0) return &self->models[i];
    }
    return NULL;
}

uint32_t executor_users(const struct executor *self, const char *model, luna_Group group)
{
    uint32_t users = 0;
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        const struct worker_entry *worker = &self->workers[i];
        if (worker->id == 0 || strcmp(worker->service.model, model) != 0) continue;
        users += group == luna_Group_GROUP_NONE || worker->service.group == group;
    }
    return users;
}

uint64_t executor_model_bytes(const struct model_entry *model)
{
    uint64_t bytes = 0;
    for (int group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
        if (model->loaded[group] != NULL) bytes += model->loaded[group]->bytes;
    }
    return bytes;
}

// Tells the registry how a model stands on this device.
void executor_tell_model(struct executor *self, const struct model_entry *model,
                         const struct error *error)
{
    luna_Letter letter = {.which_letter = luna_Letter_model_loaded_tag};
    luna_ModelLoaded *loaded = &letter.letter.model_loaded;
    memcpy(loaded->name, model->definition.name, sizeof loaded->name);
    text_set(loaded->device, sizeof loaded->device, self->arguments.device);
    loaded->bytes = executor_model_bytes(model);
    loaded->has_vae = model->loaded[luna_Group_VAE] != NULL;
    loaded->has_text = model->loaded[luna_Group_TEXT] != NULL;
    memcpy(loaded->hash_vae, model->hash_vae, sizeof loaded->hash_vae);
    memcpy(loaded->hash_text, model->hash_text, sizeof loaded->hash_text);
    loaded->users = executor_users(self, model->definition.name, luna_Group_GROUP_NONE);
    if (error != NULL) {
        loaded->code = (luna_Code)error->status;
        text_set(loaded->message, sizeof loaded->message, error->message);
    }
    executor_tell(self, WATCH_REGISTRY, &letter);
}

static bool is_wanted(const struct executor *self, const struct loaded *loaded)
{
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        if (self->workers[i].loaded == loaded) return true;
    }
    for (uint32_t i = 0; i < EXECUTOR_MODELS_MAX; i++) {
        if (self->models[i].loaded[loaded->group] == loaded) return true;
    }
    return false;
}

void executor_release(struct executor *self, struct loaded *loaded)
{
    if (is_wanted(self, loaded) || !executor_stacks_forget_model(self->stacks, loaded)) return;
    ledger_weights(&self->ledger, loaded->bytes, 0);
    loaded_destroy(&loaded);
    executor_forget_memory(self);
}

// The name does not stand for the networks any more: workers that run them finish what they hold.
static void unload(struct executor *self, struct model_entry *model, luna_Group group)
{
    struct loaded *loaded = model->loaded[group];
    if (loaded == NULL) return;
    model->loaded[group] = NULL;
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        if (self->workers[i].loaded == loaded) executor_retire(self, self->workers[i].id);
    }
    executor_release(self, loaded);
    executor_tell_model(self, model, NULL);
}

// Unloads the least recently used networks that no worker uses, but for one; false when there are
// none.
static bool evict_one(struct executor *self, const struct loaded *but)
{
    struct model_entry *oldest = NULL;
    luna_Group oldest_group = luna_Group_GROUP_NONE;
    for (uint32_t i = 0; i < EXECUTOR_MODELS_MAX; i++) {
        struct model_entry *model = &self->models[i];
        for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
            if (model->loaded[group] == NULL || model->loaded[group] == but ||
                executor_users(self, model->definition.name, group) > 0)
                continue;
            if (oldest != NULL && model->used_ns[group] >= oldest->used_ns[oldest_group]) continue;
            oldest = model;
            oldest_group = group;
        }
    }
    if (oldest == NULL) return false;
    log_event(self->context->log, LOG_INFO, "model.evicted", "model=%s bytes=%lu",
              oldest->definition.name, (unsigned long)oldest->loaded[oldest_group]->bytes);
    unload(self, oldest, oldest_group);
    return true;
}

bool executor_evict_one(struct executor *self)
{
    return executor_stacks_evict_one(self->stacks) || evict_one(self, NULL);
}

uint64_t executor_idle_bytes(const struct executor *self)
{
    assert(self != NULL);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < EXECUTOR_MODELS_MAX; i++) {
        const struct model_entry *model = &self->models[i];
        for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
            bool idle = model->loaded[group] != NULL &&
                        executor_users(self, model->definition.name, group) == 0;
            if (idle) bytes += model->loaded[group]->bytes;
        }
    }
    return bytes;
}

// Promises the memory that loading takes, after idle networks made room where that helps.
static enum status admit(struct executor *self, struct model_entry *model, luna_Group group,
                         struct error *error)
{
    uint64_t plan = model->wanted_bytes[group];
    uint64_t margin = self->margin_bytes;
    executor_read_memory(self);
    uint64_t available = ledger_free(&self->ledger);
    uint64_t idle = executor_idle_bytes(self) + self->ledger.stack_bytes;
    bool hopeful = available + idle >= plan + margin;
    while (hopeful && available < plan + margin && executor_evict_one(self)) {
        executor_read_memory(self);
        available = ledger_free(&self->ledger);
    }
    if (available < plan + margin) {
        error_set(error, STATUS_RESOURCE_EXHAUSTED,
                  "model \"%s\" is not loaded on %s: %lu MB free, %lu MB needed and %lu MB margin",
                  model->definition.name, self->arguments.device, (unsigned long)(available >> 20),
                  (unsigned long)(plan >> 20), (unsigned long)(margin >> 20));
        return STATUS_RESOURCE_EXHAUSTED;
    }
    bool reserved = ledger_reserve(&self->ledger, 0, plan);
    assert(reserved);
    model->promised_bytes[group] = plan;
    return STATUS_OK;
}

static void end_promise(struct executor *self, struct model_entry *model, luna_Group group)
{
    ledger_reserve(&self->ledger, model->promised_bytes[group], 0);
    model->promised_bytes[group] = 0;
    model->loading[group] = false;
    executor_forget_memory(self);
}

// What a network is going to hold the device says first, from the headers of its files.
enum status executor_ask_loader(struct executor *self, struct model_entry *model, luna_Group group,
                                struct error *error)
{
    if (model->loading[group]) return STATUS_OK;
    struct loader_letter letter = {.definition = model->definition,
                                   .group = group,
                                   .is_plan = model->planned_bytes[group] == 0};
    enum status status = letter.is_plan ? STATUS_OK : admit(self, model, group, error);
    if (status != STATUS_OK) return status;
    status = pair_send(&self->loader_pair, &letter, sizeof letter);
    model->loading[group] = true;
    if (status == STATUS_OK) return STATUS_OK;
    end_promise(self, model, group);
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "too many models are to be loaded on %s",
                     self->arguments.device);
}

void executor_define_model(struct executor *self, const luna_ModelDefinition *definition)
{
    struct model_entry *model = executor_find_model(self, definition->name);
    if (model != NULL && model->definition.generation == definition->generation) return;
    if (model == NULL) model = executor_find_model(self, "");
    if (model == NULL) {
        log_event(self->context->log, LOG_ERROR, "model.refused", "model=%s limit=%u",
                  definition->name, EXECUTOR_MODELS_MAX);
        return;
    }
    // Other files under a known name.
    for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
        unload(self, model, group);
        model->planned_bytes[group] = 0;
        model->wanted_bytes[group] = 0;
    }
    model->definition = *definition;
    model->hash_vae[0] = '\0';
    model->hash_text[0] = '\0';
    // Those that the scaler wanted before the registry told what the name stands for.
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        const struct worker_entry *worker = &self->workers[i];
        bool waits = worker->id != 0 && worker->actor == NULL &&
                     strcmp(worker->service.model, definition->name) == 0;
        struct error error;
        if (waits && executor_ask_loader(self, model, worker->service.group, &error) != STATUS_OK) {
            executor_fail_waiting(self, definition->name, worker->service.group, &error);
        }
    }
}

void executor_unload_model(struct executor *self, const char *name)
{
    struct model_entry *model = executor_find_model(self, name);
    if (model == NULL || name[0] == '\0') return;
    for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
        if (executor_users(self, name, group) == 0) unload(self, model, group);
    }
    executor_tell_model(self, model, NULL);
    executor_report(self);
}

// A name that more models than fit stand before.
static void refuse_load(struct executor *self, const char *name)
{
    struct model_entry unknown = {.loading = {false}};
    struct error error;
    text_set(unknown.definition.name, sizeof unknown.definition.name, name);
    error_set(&error, STATUS_RESOURCE_EXHAUSTED, "device %s has %u models, no more fit",
              self->arguments.device, EXECUTOR_MODELS_MAX);
    executor_tell_model(self, &unknown, &error);
}

void executor_load_model(struct executor *self, const luna_LoadModel *letter)
{
    if (letter->name[0] == '\0') return;
    struct model_entry *model = executor_find_model(self, letter->name);
    if (model == NULL) {
        refuse_load(self, letter->name);
        return;
    }
    bool all = true;
    for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
        bool wanted = group == luna_Group_VAE ? letter->vae : letter->text;
        if (!wanted || model->loaded[group] != NULL) continue;
        all = false;
        struct error error;
        if (executor_ask_loader(self, model, group, &error) == STATUS_OK) continue;
        executor_tell_model(self, model, &error);
        return;
    }
    if (all) executor_tell_model(self, model, NULL);
}

// Takes loaded networks in. What took more than it was planned to, and more than there is, goes
// again.
static enum status take_in(struct executor *self, struct model_entry *model, struct loaded *loaded,
                           struct error *error)
{
    luna_Group group = loaded->group;
    assert(model->loaded[group] == NULL);
    model->loaded[group] = loaded;
    model->wanted_bytes[group] = loaded->bytes;
    model->used_ns[group] = executor_now(self);
    ledger_weights(&self->ledger, 0, loaded->bytes);
    executor_forget_memory(self);
    while (ledger_is_overdrawn(&self->ledger) &&
           (executor_stacks_evict_one(self->stacks) || evict_one(self, loaded))) {
    }
    if (!ledger_is_overdrawn(&self->ledger)) return STATUS_OK;
    error_set(error, STATUS_RESOURCE_EXHAUSTED,
              "model \"%s\" takes %lu MB on %s, more than its limit of %lu MB leaves",
              model->definition.name, (unsigned long)(loaded->bytes >> 20), self->arguments.device,
              (unsigned long)(self->ledger.limit_bytes >> 20));
    model->loaded[group] = NULL;
    executor_release(self, loaded);
    return STATUS_RESOURCE_EXHAUSTED;
}

static void start_waiting(struct executor *self, struct model_entry *model, luna_Group group)
{
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        struct worker_entry *worker = &self->workers[i];
        bool waits = worker->id != 0 && worker->actor == NULL && worker->service.group == group &&
                     strcmp(worker->service.model, model->definition.name) == 0;
        if (waits) executor_start_worker(self, worker, model);
    }
}

// The name got other files while the old ones were loaded, or its plan is there, or memory lacked.
static void load_again(struct executor *self, struct model_entry *model, luna_Group group)
{
    struct error error;
    if (executor_ask_loader(self, model, group, &error) == STATUS_OK) return;
    executor_tell_model(self, model, &error);
    executor_fail_waiting(self, model->definition.name, group, &error);
}

static void on_hash(struct executor *self, struct model_entry *model,
                    const struct loader_letter *letter)
{
    memcpy(model->hash_vae, letter->hash_vae, sizeof model->hash_vae);
    memcpy(model->hash_text, letter->hash_text, sizeof model->hash_text);
    executor_tell_model(self, model, NULL);
}

// The device had less than was promised: the next try asks for a quarter more, up to twice the
// plan, and what is idle goes for it.
static void raise_plan(struct model_entry *model, luna_Group group, uint64_t promised_bytes)
{
    uint64_t most = 2 * model->planned_bytes[group];
    uint64_t more = promised_bytes + promised_bytes / 4;
    model->wanted_bytes[group] = more < most ? more : most;
}

// The device has said what a network is going to hold, or the files say that there is none.
static void on_plan(struct executor *self, struct model_entry *model,
                    const struct loader_letter *letter)
{
    model->loading[letter->group] = false;
    bool is_current = model->definition.generation == letter->definition.generation;
    if (is_current && letter->error.status != STATUS_OK) {
        executor_tell_model(self, model, &letter->error);
        executor_fail_waiting(self, letter->definition.name, letter->group, &letter->error);
        return;
    }
    if (is_current) {
        model->planned_bytes[letter->group] = letter->plan_bytes;
        model->wanted_bytes[letter->group] = letter->plan_bytes;
    }
    load_again(self, model, letter->group);
}

void executor_on_loader(void *state)
{
    struct executor *self = state;
    struct loader_letter letter;
    if (!pair_receive(&self->loader_pair, &letter, sizeof letter)) return;

    struct model_entry *model = executor_find_model(self, letter.definition.name);
    assert(model != NULL);  // entries are not given up
    bool current = model->definition.generation == letter.definition.generation;
    if (letter.is_hash) {
        if (current) on_hash(self, model, &letter);
        return;
    }
    if (letter.is_plan) {
        on_plan(self, model, &letter);
        return;
    }
    uint64_t promised_bytes = model->promised_bytes[letter.group];
    end_promise(self, model, letter.group);
    executor_read_memory(self);  // ends the process when loading broke the device
    if (!current) {
        loaded_destroy(&letter.loaded);
        load_again(self, model, letter.group);
        return;
    }
    struct error error = letter.error;
    bool good = letter.loaded != NULL && take_in(self, model, letter.loaded, &error) == STATUS_OK;
    bool lacks = letter.loaded == NULL && error.status == STATUS_RESOURCE_EXHAUSTED;
    if (lacks) raise_plan(model, letter.group, promised_bytes);
    if (lacks && !model->is_second_try[letter.group]) {
        model->is_second_try[letter.group] = true;
        load_again(self, model, letter.group);
        return;
    }
    model->is_second_try[letter.group] = false;
    executor_tell_model(self, model, good ? NULL : &error);
    if (good)
        start_waiting(self, model, letter.group);
    else
        executor_fail_waiting(self, letter.definition.name, letter.group, &error);
    executor_report(self);
}
