// registry_lane.c - finds files, reads their headers, and forgets them; registry_lane.h holds the
// contract.
//
// Torch files are read by a child process with limits, so this thread may wait for seconds.

#include "actors/registry_lane.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "actors/event.h"
#include "actors/pair.h"
#include "actors/topology.h"
#include "actors/torch_child.h"
#include "models/model.h"

struct registry_lane {
    const struct actor_context *context;  // as actor.h gives it
    const struct config *config;          // of the daemon
    struct torch_reader reader;           // child process
    struct pair pair;                     // orders and results
};

static enum status find_files(const struct registry_lane *self, const struct lane_order *order,
                              struct lane_result *out)
{
    const struct config_list *folders = &self->config->models.directories;
    for (uint32_t i = 0; i < order->files_count; i++) {
        enum status status = model_path_find(folders->items, folders->count, order->files[i], false,
                                             &out->files[i], &out->error);
        if (status != STATUS_OK) return status;
    }
    if (order->embeddings[0] == '\0') return STATUS_OK;
    if (!order->embeddings_anywhere) {
        return model_path_find(folders->items, folders->count, order->embeddings, true,
                               &out->embeddings, &out->error);
    }
    char *real = realpath(order->embeddings, NULL);
    bool fits = real != NULL && strlen(real) < sizeof out->embeddings.path;
    if (fits) text_set(out->embeddings.path, sizeof out->embeddings.path, real);
    free(real);
    return fits ? STATUS_OK
                : error_set(&out->error, STATUS_NOT_FOUND, "no folder of embeddings \"%s\"",
                            order->embeddings);
}

static void describe(const struct model_description *description, struct lane_result *out)
{
    const bool *has = description->has;
    for (int part = 0; part < MODEL_PART_COUNT; part++) {
        if (!has[part]) continue;
        if (part == MODEL_VAE) {
            out->weights_vae_bytes += description->bytes[part];
        } else {
            out->weights_text_bytes += description->bytes[part];
        }
    }
    out->model.offers_vae = has[MODEL_VAE];
    out->model.offers_text = description->text != TEXT_NONE;
    out->model.bytes = out->weights_vae_bytes + out->weights_text_bytes;
    text_set(out->model.kind, sizeof out->model.kind, description->kind);
}

static void execute(const struct registry_lane *self, const struct lane_order *order,
                    struct lane_result *out)
{
    assert(order->files_count >= 1);
    assert(order->files_count <= REGISTRY_FILES_MAX);
    memset(out, 0, sizeof *out);
    out->ticket = order->ticket;
    if (find_files(self, order, out) != STATUS_OK) return;
    const char *paths[REGISTRY_FILES_MAX];
    for (uint32_t i = 0; i < order->files_count; i++) paths[i] = out->files[i].path;
    struct model *model = NULL;
    if (model_open(&model, paths, order->files_count, &self->reader, &out->error) != STATUS_OK) {
        return;
    }
    describe(model_describe(model), out);
    model_close(&model);
}

static void on_orders(void *state)
{
    struct registry_lane *self = state;
    struct lane_order order;
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        if (!pair_receive(&self->pair, &order, sizeof order)) return;
        struct lane_result result;
        execute(self, &order, &result);
        enum status status = pair_send(&self->pair, &result, sizeof result);
        if (status == STATUS_OK) continue;
        log_event(self->context->log, LOG_ERROR, "lane.lost", "why=%s", status_name(status));
    }
}

static void lane_destroy(void *state)
{
    struct registry_lane *self = state;
    if (self == NULL) return;
    pair_close(&self->pair);
    free(self);
}

static enum status lane_create(void **state, const struct actor_context *context,
                               const void *arguments, struct error *error)
{
    assert(state != NULL);
    assert(arguments != NULL);
    struct registry_lane *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the registry's lane");
    }
    self->context = context;
    self->config = ((const struct core_arguments *)arguments)->config;
    torch_child_reader(&self->reader);
    const struct pair_end end = {
        .address = REGISTRY_LANE_ADDRESS, .on_readable = on_orders, .state = self};
    enum status status = pair_open(&self->pair, context, &end, error);
    if (status != STATUS_OK) {
        lane_destroy(self);
        return status;
    }
    *state = self;
    return STATUS_OK;
}

const struct actor_kind registry_lane_kind = {"registry-lane", lane_create, lane_destroy, NULL};
