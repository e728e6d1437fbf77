// executor_models.c - which files a name stands for, which networks are loaded, and what goes
// first.
//
// Networks stay loaded after the last worker retired, until the memory is wanted elsewhere; then
// those that nobody used for the longest time go.

#include "actors/executor_state.h"

#include <assert.h>
#include <string.h>

#include "actors/event.h"
#include "runtime/message.h"

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
    loaded->unloaded =
        model->loaded[luna_Group_VAE] == NULL && model->loaded[luna_Group_TEXT] == NULL;
    memcpy(loaded->hash_vae, model->hash_vae, sizeof loaded->hash_vae);
    memcpy(loaded->hash_text, model->hash_text, sizeof loaded->hash_text);
    loaded->users = executor_users(self, model->definition.name, luna_Group_GROUP_NONE);
    if (error != NULL) {
        loaded->code = (luna_Code)error->status;
        text_set(loaded->message, sizeof loaded->message, error->message);
    }
    executor_tell(self, WATCH_REGISTRY, &letter);
}

static void unload(struct executor *self, struct model_entry *model, luna_Group group)
{
    assert(executor_users(self, model->definition.name, group) == 0);
    if (model->loaded[group] == NULL) return;
    ledger_weights(&self->ledger, model->loaded[group]->bytes, 0);
    loaded_destroy(&model->loaded[group]);
    executor_read_memory(self);
    executor_tell_model(self, model, NULL);
}

// Unloads the least recently used networks that no worker uses; false when there are none.
bool executor_evict_one(struct executor *self)
{
    struct model_entry *oldest = NULL;
    luna_Group oldest_group = luna_Group_GROUP_NONE;
    for (uint32_t i = 0; i < EXECUTOR_MODELS_MAX; i++) {
        struct model_entry *model = &self->models[i];
        for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
            if (model->loaded[group] == NULL ||
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

void executor_ask_loader(struct executor *self, struct model_entry *model, luna_Group group)
{
    if (model->loading[group]) return;
    struct loader_letter letter = {.definition = model->definition, .group = group};
    struct message message;
    message_init(&message);
    enum status status =
        message_append(&message, (struct bytes){.data = &letter, .size = sizeof letter});
    if (status == STATUS_OK) status = message_send(&message, self->loader_pair);
    message_clear(&message);
    loop_socket_touch(self->watches[WATCH_LOADER]);
    model->loading[group] = status == STATUS_OK;
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
    // Other files under a known name: workers of the old ones finish with what they hold.
    for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
        if (model->loaded[group] != NULL && executor_users(self, definition->name, group) == 0) {
            unload(self, model, group);
        }
    }
    model->definition = *definition;
    model->hash_vae[0] = '\0';
    model->hash_text[0] = '\0';
    // Those that the scaler wanted before the registry told what the name stands for.
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        const struct worker_entry *worker = &self->workers[i];
        bool waits = worker->id != 0 && worker->actor == NULL &&
                     strcmp(worker->service.model, definition->name) == 0;
        if (waits) executor_ask_loader(self, model, worker->service.group);
    }
}

void executor_unload_model(struct executor *self, const char *name)
{
    struct model_entry *model = executor_find_model(self, name);
    if (model == NULL || name[0] == '\0') return;
    for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
        if (executor_users(self, name, group) == 0) unload(self, model, group);
    }
    executor_report(self);
}

void executor_load_model(struct executor *self, const char *name)
{
    struct model_entry *model = executor_find_model(self, name);
    if (model == NULL || name[0] == '\0') return;
    for (luna_Group group = luna_Group_VAE; group <= luna_Group_TEXT; group++) {
        bool offers =
            group == luna_Group_VAE ? model->definition.offers_vae : model->definition.offers_text;
        if (offers && model->loaded[group] == NULL) executor_ask_loader(self, model, group);
    }
}

void executor_on_loader(void *state)
{
    struct executor *self = state;
    struct message message;
    struct loader_letter letter;
    message_init(&message);
    if (message_receive(&message, self->loader_pair) != STATUS_OK) return;
    struct bytes frame = message_frame(&message, 0);
    assert(frame.size == sizeof letter);
    memcpy(&letter, frame.data, sizeof letter);
    message_clear(&message);

    struct model_entry *model = executor_find_model(self, letter.definition.name);
    bool current = model != NULL && model->definition.generation == letter.definition.generation;
    if (letter.is_hash) {
        if (!current) return;
        memcpy(model->hash_vae, letter.hash_vae, sizeof model->hash_vae);
        memcpy(model->hash_text, letter.hash_text, sizeof model->hash_text);
        executor_tell_model(self, model, NULL);
        return;
    }
    if (model != NULL) model->loading[letter.group] = false;
    if (!current) {  // the name got other files meanwhile: load those
        loaded_destroy(&letter.loaded);
        if (model != NULL && executor_users(self, letter.definition.name, letter.group) > 0) {
            executor_ask_loader(self, model, letter.group);
        }
        return;
    }
    if (letter.loaded != NULL) {
        model->loaded[letter.group] = letter.loaded;
        ledger_weights(&self->ledger, 0, letter.loaded->bytes);
        executor_read_memory(self);
        bool more = model->loading[luna_Group_VAE] || model->loading[luna_Group_TEXT];
        if (!more) executor_tell_model(self, model, NULL);
    } else {
        executor_tell_model(self, model, &letter.error);
    }
    for (uint32_t i = 0; i < EXECUTOR_WORKERS_MAX; i++) {
        struct worker_entry *worker = &self->workers[i];
        bool waits = worker->id != 0 && worker->actor == NULL &&
                     worker->service.group == letter.group &&
                     strcmp(worker->service.model, letter.definition.name) == 0;
        if (!waits) continue;
        if (letter.loaded != NULL)
            executor_start_worker(self, worker, model);
        else
            executor_fail_worker(self, worker, &letter.error);
    }
    executor_report(self);
}
