// registry_loads.c - which device holds which networks of a model, and who waits for that.
//
// What an executor told last is the truth: which networks it holds now. A load is done when every
// network that was wanted is held, and fails when an executor says why, or dies.

#include <assert.h>
#include <string.h>

#include "actors/event.h"
#include "actors/registry_state.h"

#define RETRY_AFTER_MS 5000u  // when memory lacks: an idle worker may have retired by then

bool presence_is_loaded(const struct presence *presence)
{
    return presence->has_vae || presence->has_text;
}

bool presence_is_loading(const struct presence *presence)
{
    return presence->wants_vae || presence->wants_text;
}

bool registry_is_loaded(const struct entry *entry)
{
    for (uint32_t i = 0; i < entry->presences_count; i++) {
        if (presence_is_loaded(&entry->presences[i])) return true;
    }
    return false;
}

static bool is_loading(const struct entry *entry)
{
    for (uint32_t i = 0; i < entry->presences_count; i++) {
        if (presence_is_loading(&entry->presences[i])) return true;
    }
    return false;
}

static struct presence *find_presence(struct entry *entry, const char *device)
{
    for (uint32_t i = 0; i < entry->presences_count; i++) {
        if (strcmp(entry->presences[i].device, device) == 0) return &entry->presences[i];
    }
    return NULL;
}

// NULL when there are more devices than any daemon has.
static struct presence *take_presence(struct entry *entry, const char *device)
{
    struct presence *presence = find_presence(entry, device);
    if (presence != NULL || entry->presences_count == DEVICE_TABLE_MAX) return presence;
    presence = &entry->presences[entry->presences_count];
    entry->presences_count += 1;
    *presence = (struct presence){.users = 0};
    text_set(presence->device, sizeof presence->device, device);
    return presence;
}

static void drop_presence(struct entry *entry, struct presence *presence)
{
    assert(entry->presences_count > 0);
    entry->presences_count -= 1;
    *presence = entry->presences[entry->presences_count];
}

// ---- those who wait

static enum status add_wait(struct registry *self, const struct ask *ask, const char *name,
                            bool unload, struct error *error)
{
    for (uint32_t i = 0; i < REGISTRY_WAITS_MAX; i++) {
        struct wait *wait = &self->waits[i];
        if (wait->used) continue;
        *wait = (struct wait){.used = true, .unload = unload, .ask = *ask};
        text_set(wait->name, sizeof wait->name, name);
        return STATUS_OK;
    }
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "%u clients wait for models already",
                     REGISTRY_WAITS_MAX);
}

// Answers everybody who waits for the model to be loaded (unloaded).
static void answer_waits(struct registry *self, const struct entry *entry, bool unload,
                         const struct error *error)
{
    for (uint32_t i = 0; i < REGISTRY_WAITS_MAX; i++) {
        struct wait *wait = &self->waits[i];
        if (!wait->used || wait->unload != unload) continue;
        if (strcmp(wait->name, entry->model.name) != 0) continue;
        wait->used = false;
        registry_answer(self, &wait->ask, entry, error);
    }
}

// Tells the router what has become of a model, and those who wait for it after that: what they ask
// next finds a router that knows. failure is NULL, or why the load that some wait for failed.
static void tell_and_answer(struct registry *self, const struct entry *entry,
                            const struct error *failure)
{
    registry_tell_notice(self, entry);
    if (failure != NULL) answer_waits(self, entry, false, failure);
    bool loaded = registry_is_loaded(entry);
    if (!loaded) answer_waits(self, entry, true, NULL);
    if (loaded && !is_loading(entry)) answer_waits(self, entry, false, NULL);
}

// ---- loading

static bool has_network(const struct entry *entry, bool is_vae)
{
    for (uint32_t i = 0; i < entry->presences_count; i++) {
        const struct presence *presence = &entry->presences[i];
        bool has = is_vae ? presence->has_vae || presence->wants_vae
                          : presence->has_text || presence->wants_text;
        if (has) return true;
    }
    return false;
}

// The device of that service with the most free memory, as the policy would choose; NULL when none
// is there.
static struct device_entry *find_place(struct registry *self, bool is_vae)
{
    struct device_entry *best = NULL;
    for (uint32_t i = 0; i < self->devices.count; i++) {
        struct device_entry *device = &self->devices.entries[i];
        if (!device_serves(&self->config->service, device->report.name, is_vae)) continue;
        if (best != NULL && device->report.memory_free_bytes <= best->report.memory_free_bytes) {
            continue;
        }
        best = device;
    }
    return best;
}

static enum status want(struct registry *self, struct entry *entry, bool is_vae,
                        struct error *error)
{
    if (has_network(entry, is_vae)) return STATUS_OK;
    const struct device_entry *device = find_place(self, is_vae);
    struct presence *presence = device != NULL ? take_presence(entry, device->report.name) : NULL;
    if (presence == NULL) {
        error_set(error, STATUS_UNAVAILABLE, "no executor is there to load model \"%s\"",
                  entry->model.name);
        error->retry_after_ms = 500;
        return STATUS_UNAVAILABLE;
    }
    if (is_vae)
        presence->wants_vae = true;
    else
        presence->wants_text = true;
    luna_Letter letter = {.which_letter = luna_Letter_load_model_tag};
    text_set(letter.letter.load_model.name, sizeof letter.letter.load_model.name,
             entry->model.name);
    letter.letter.load_model.vae = is_vae;
    letter.letter.load_model.text = !is_vae;
    registry_post_to_executor(self, device_entry_connection(device), &letter);
    return STATUS_OK;
}

enum status registry_load(struct registry *self, const struct ask *ask, struct entry *entry,
                          struct error *error)
{
    assert(entry->opened);
    enum status status = STATUS_OK;
    if (entry->model.offers_vae) status = want(self, entry, true, error);
    if (status == STATUS_OK && entry->model.offers_text) status = want(self, entry, false, error);
    if (status == STATUS_OK && is_loading(entry)) {
        status = add_wait(self, ask, entry->model.name, false, error);
    } else if (status == STATUS_OK) {
        registry_answer(self, ask, entry, NULL);
    }
    registry_tell_notice(self, entry);
    return status;
}

enum status registry_unload(struct registry *self, const struct ask *ask, struct entry *entry,
                            struct error *error)
{
    enum status status = add_wait(self, ask, entry->model.name, true, error);
    if (status != STATUS_OK) return status;
    luna_Letter letter = {.which_letter = luna_Letter_unload_model_tag};
    text_set(letter.letter.unload_model.name, sizeof letter.letter.unload_model.name,
             entry->model.name);
    for (uint32_t i = 0; i < self->devices.count; i++) {
        registry_post_to_executor(self, device_entry_connection(&self->devices.entries[i]),
                                  &letter);
    }
    return STATUS_OK;
}

// ---- what executors tell

static void tell_change(struct registry *self, const struct entry *entry, const char *device,
                        bool is_loaded, uint64_t bytes)
{
    struct error told = {.status = STATUS_OK};
    if (is_loaded) {
        snprintf(told.message, sizeof told.message, "model \"%s\" is loaded on %s, %llu MB",
                 entry->model.name, device, (unsigned long long)(bytes >> 20));
    } else {
        snprintf(told.message, sizeof told.message, "model \"%s\" is not loaded on %s any more",
                 entry->model.name, device);
    }
    registry_tell_event(self, is_loaded ? "model.loaded" : "model.unloaded", entry, device, &told);
}

static void on_failed(struct registry *self, struct entry *entry, struct presence *presence,
                      const luna_ModelLoaded *loaded, struct error *error)
{
    error_set(error, (enum status)loaded->code, "%s", loaded->message);
    if (error->status == STATUS_RESOURCE_EXHAUSTED) error->retry_after_ms = RETRY_AFTER_MS;
    presence->wants_vae = false;
    presence->wants_text = false;
    text_set(entry->model.message, sizeof entry->model.message, loaded->message);
    registry_tell_event(self, "error", entry, loaded->device, error);
}

void registry_on_loaded(struct registry *self, const luna_ModelLoaded *loaded)
{
    struct entry *entry = registry_find(self, loaded->name);
    struct presence *presence = entry != NULL ? take_presence(entry, loaded->device) : NULL;
    if (presence == NULL) return;
    if (loaded->hash_vae[0] != '\0') {
        text_set(entry->model.hash_vae, sizeof entry->model.hash_vae, loaded->hash_vae);
    }
    if (loaded->hash_text[0] != '\0') {
        text_set(entry->model.hash_text, sizeof entry->model.hash_text, loaded->hash_text);
    }
    bool before = presence_is_loaded(presence);
    presence->has_vae = loaded->has_vae;
    presence->has_text = loaded->has_text;
    presence->users = loaded->users;
    if (loaded->has_vae) presence->wants_vae = false;
    if (loaded->has_text) presence->wants_text = false;
    bool after = presence_is_loaded(presence);
    if (before != after) tell_change(self, entry, loaded->device, after, loaded->bytes);
    struct error error = {.status = STATUS_OK};
    entry->model.message[0] = '\0';
    if (loaded->code != luna_Code_OK) on_failed(self, entry, presence, loaded, &error);
    if (!after && !presence_is_loading(presence)) drop_presence(entry, presence);
    tell_and_answer(self, entry, error.status != STATUS_OK ? &error : NULL);
}

void registry_forget_device(struct registry *self, const char *device)
{
    for (uint32_t i = 0; i < self->count; i++) {
        struct entry *entry = &self->models[i];
        struct presence *presence = find_presence(entry, device);
        if (presence == NULL) continue;
        bool loads = presence_is_loading(presence);
        if (presence_is_loaded(presence)) tell_change(self, entry, device, false, 0);
        drop_presence(entry, presence);
        struct error error;
        error_set(&error, STATUS_UNAVAILABLE, "the executor of %s died while it loaded \"%s\"",
                  device, entry->model.name);
        error.retry_after_ms = 1000;
        tell_and_answer(self, entry, loads ? &error : NULL);
    }
}
