// registry_asks.c - what clients ask of the registry: register, load, unload, list.
//
// Registering waits for the lane, loading and unloading for an executor; the answer is given when
// those have spoken. A client that has given up is the router's business: a late answer is dropped
// there.

#include "actors/registry_state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "actors/event.h"

#define PAGE_MODELS 32u

static enum status ask_register(struct registry *self, const struct ask *ask,
                                const luna_ModelRegister *request, struct error *error)
{
    if (!ask->admin) {
        return error_set(error, STATUS_PERMISSION_DENIED, "registering models is for admins");
    }
    if (!codec_name_valid(request->name)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "\"%s\" is no name for a model",
                         request->name);
    }
    if (request->files_count == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "model \"%s\" needs at least one file",
                         request->name);
    }
    struct lane_order order = {.files_count = request->files_count};
    for (uint32_t i = 0; i < request->files_count; i++) {
        text_set(order.files[i], sizeof order.files[i], request->files[i]);
    }
    text_set(order.embeddings, sizeof order.embeddings, request->embeddings);
    struct opening *opening = NULL;
    enum status status = registry_start_opening(self, request->name, &order, &opening, error);
    if (status != STATUS_OK) return status;
    opening->is_client = true;
    opening->asked = true;
    opening->ask = *ask;
    return STATUS_OK;
}

static enum status find_opened(struct registry *self, const char *name, struct entry **out,
                               struct error *error)
{
    struct entry *entry = registry_find(self, name);
    if (entry == NULL) {
        return error_set(error, STATUS_NOT_FOUND, "model \"%s\" is not known here", name);
    }
    if (!entry->opened) {
        return error_set(error, STATUS_FAILED_PRECONDITION, "model \"%s\" cannot be opened: %s",
                         name, entry->model.message);
    }
    *out = entry;
    return STATUS_OK;
}

// A model that no device holds is opened again first, for its files may have been replaced or put
// right.
static enum status ask_load(struct registry *self, const struct ask *ask, const char *name,
                            struct error *error)
{
    struct entry *entry = registry_find(self, name);
    if (entry == NULL) {
        return error_set(error, STATUS_NOT_FOUND, "model \"%s\" is not known here", name);
    }
    if (registry_is_loaded(entry)) return registry_load(self, ask, entry, error);
    struct opening *opening = NULL;
    enum status status = registry_start_opening(self, name, &entry->order, &opening, error);
    if (status != STATUS_OK) return status;
    opening->is_client = entry->is_client;
    opening->asked = true;
    opening->loads = true;
    opening->ask = *ask;
    return STATUS_OK;
}

static enum status ask_unload(struct registry *self, const struct ask *ask, const char *name,
                              struct error *error)
{
    struct entry *entry = NULL;
    enum status status = STATUS_OK;
    if (!ask->admin) {
        return error_set(error, STATUS_PERMISSION_DENIED, "unloading models is for admins");
    }
    status = find_opened(self, name, &entry, error);
    if (status != STATUS_OK) return status;
    assert(entry != NULL);
    if (!registry_is_loaded(entry)) {
        registry_answer(self, ask, entry, NULL);
        return STATUS_OK;
    }
    const luna_Model model = registry_public_model(entry);
    if (model.users > 0) {
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "%u workers use model \"%s\"; they retire when they have been idle",
                         model.users, name);
    }
    return registry_unload(self, ask, entry, error);
}

static enum status ask_list(struct registry *self, const struct ask *ask, uint32_t offset,
                            struct error *error)
{
    luna_ModelListReply *reply = calloc(1, sizeof *reply);
    if (reply == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a list");
    reply->total = self->count;
    for (uint32_t i = offset; i < self->count && reply->models_count < PAGE_MODELS; i++) {
        reply->models[reply->models_count] = registry_public_model(&self->models[i]);
        reply->models_count += 1;
    }
    ask_answer(self->router, ask, luna_ModelListReply_fields, reply, NULL);
    free(reply);
    return STATUS_OK;
}

void registry_on_ask(struct registry *self, const luna_Ask *letter, const struct message *frames)
{
    struct ask ask;
    struct error error = {0};
    union codec_request request;
    enum status status = ask_read(letter, frames, &ask, &request, &error);
    if (status == STATUS_OK) {
        switch (ask.header.operation) {
        case luna_Operation_MODEL_REGISTER:
            status = ask_register(self, &ask, &request.model_register, &error);
            break;
        case luna_Operation_MODEL_LOAD:
            status = ask_load(self, &ask, request.model_name.name, &error);
            break;
        case luna_Operation_MODEL_UNLOAD:
            status = ask_unload(self, &ask, request.model_name.name, &error);
            break;
        case luna_Operation_MODEL_LIST:
            status = ask_list(self, &ask, request.page.offset, &error);
            break;
        default:
            status = error_set(&error, STATUS_UNIMPLEMENTED, "the registry knows models only");
        }
    }
    if (status != STATUS_OK) registry_answer(self, &ask, NULL, &error);
}
