// loader.c - an executor's I/O thread: opens files, puts weights on the device, hashes in the
// background.
//
// Reading gigabytes takes seconds, so the executor's own thread never does it. Letters come over
// one inproc pair and are answered in order; between them, hashes are computed, and a new letter
// interrupts the hashing of the moment, which starts again afterwards.

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <sodium.h>

#include "actors/executor.h"
#include "actors/pair.h"

#define HASHES_MAX 64u

struct loader {
    const struct actor_context *context;  // as actor.h gives it
    struct loader_arguments arguments;    // as the executor gave them
    struct pair pair;                     // to the executor
    struct loop_timer *idle;              // hashing happens on it
    struct loader_letter *hashes;         // ring of HASHES_MAX models to hash
    uint32_t hashes_first, hashes_count;  // live part of it
};

void loaded_destroy(struct loaded **self_p)
{
    assert(self_p != NULL);
    struct loaded *self = *self_p;
    if (self == NULL) return;
    vae_destroy(&self->vae);
    text_model_destroy(&self->text);
    text_embeddings_close(&self->embeddings);
    for (int part = 0; part < MODEL_PART_COUNT; part++) tensor_table_release(&self->tables[part]);
    free(self);
    *self_p = NULL;
}

enum status loaded_check(const struct loaded *self, struct error *error)
{
    assert(self != NULL);
    enum status status = STATUS_OK;
    for (int part = 0; status == STATUS_OK && part < MODEL_PART_COUNT; part++) {
        if (self->tables[part] == NULL) continue;
        status = tensor_table_check_unchanged(self->tables[part], error);
    }
    return status;
}

static void list_tables(const struct model *model, struct tensor_table *out[MODEL_PART_COUNT])
{
    for (int part = 0; part < MODEL_PART_COUNT; part++)
        out[part] = model_tensors(model, (enum model_part)part);
}

static void share_tables(struct loaded *loaded, const struct model *model)
{
    for (int part = 0; part < MODEL_PART_COUNT; part++) {
        bool is_own = (part == MODEL_VAE) == (loaded->group == luna_Group_VAE);
        struct tensor_table *table = model_tensors(model, (enum model_part)part);
        if (is_own && table != NULL) loaded->tables[part] = tensor_table_share(table);
    }
}

static enum status open_definition(const struct loader *self,
                                   const luna_ModelDefinition *definition, struct model **out,
                                   struct error *error)
{
    const char *paths[8];
    for (uint32_t i = 0; i < definition->files_count; i++) paths[i] = definition->files[i];
    return model_open(out, paths, definition->files_count, self->arguments.torch, error);
}

static enum status create_networks(const struct loader *self,
                                   const luna_ModelDefinition *definition,
                                   const struct model *model, struct loaded *loaded,
                                   struct error *error)
{
    const struct model_description *description = model_describe(model);
    struct device *device = self->arguments.devices[loaded->group];
    loaded->description = *description;
    if (loaded->group == luna_Group_VAE) {
        enum status status = vae_create(&loaded->vae, device, model_tensors(model, MODEL_VAE),
                                        &description->vae, error);
        if (status == STATUS_OK) loaded->bytes = vae_bytes(loaded->vae);
        return status;
    }
    if (definition->embeddings[0] != '\0') {
        enum status status = text_embeddings_open(&loaded->embeddings, definition->embeddings,
                                                  self->arguments.torch, error);
        if (status != STATUS_OK) return status;
    }
    struct tensor_table *tables[MODEL_PART_COUNT];
    list_tables(model, tables);
    enum status status =
        text_model_create(&loaded->text, device, tables, description, loaded->embeddings, error);
    if (status == STATUS_OK) loaded->bytes = text_model_bytes(loaded->text);
    return status;
}

static enum status load(const struct loader *self, const luna_ModelDefinition *definition,
                        luna_Group group, struct loaded **out, struct error *error)
{
    struct model *model = NULL;
    struct loaded *loaded = calloc(1, sizeof *loaded);
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    if (loaded == NULL) {
        error_set(error, status, "no memory to load model \"%s\"", definition->name);
        goto done;
    }
    loaded->group = group;
    status = open_definition(self, definition, &model, error);
    if (status == STATUS_OK) share_tables(loaded, model);
    if (status == STATUS_OK) status = create_networks(self, definition, model, loaded, error);
    if (status != STATUS_OK) {
        error_prefix(error, "model \"%s\"", definition->name);
        goto done;
    }
    *out = loaded;
    loaded = NULL;

done:
    model_close(&model);
    loaded_destroy(&loaded);
    return status;
}

// What load is going to hold; reads the files' headers alone.
static enum status plan(const struct loader *self, const struct loader_letter *letter,
                        uint64_t *out, struct error *error)
{
    struct model *model = NULL;
    enum status status = open_definition(self, &letter->definition, &model, error);
    if (status == STATUS_OK) {
        const struct model_description *description = model_describe(model);
        struct device *device = self->arguments.devices[letter->group];
        struct tensor_table *tables[MODEL_PART_COUNT];
        list_tables(model, tables);
        if (letter->group == luna_Group_VAE) {
            status = vae_weights_plan(out, device, tables[MODEL_VAE], &description->vae, error);
        } else {
            status = text_model_plan(out, device, tables, description, error);
        }
    }
    if (status != STATUS_OK) error_prefix(error, "model \"%s\"", letter->definition.name);
    model_close(&model);
    return status;
}

static void answer(struct loader *self, const struct loader_letter *letter)
{
    pair_send(&self->pair, letter, sizeof *letter);
}

// ---- hashing

static bool somebody_asks(void *context)
{
    const struct loader *self = context;
    return pair_has_message(&self->pair);
}

// The content id of a model's text is that of its encoders together: one encoder's own hash, or the
// hash over the hashes of several in the order l, h, g.
static enum status hash_text(const struct loader *self, const struct model *model,
                             char out[HASH_HEX_BYTES])
{
    struct hash hashes[MODEL_PART_COUNT];
    uint32_t count = 0;
    for (int part = MODEL_CLIP_L; part < MODEL_PART_COUNT; part++) {
        if (!model_describe(model)->has[part]) continue;
        enum status status = model_hash(model, (enum model_part)part, somebody_asks,
                                        (void *)(uintptr_t)self, &hashes[count]);
        if (status != STATUS_OK) return status;
        count += 1;
    }
    if (count == 0) return STATUS_OK;
    struct hash whole = hashes[0];
    if (count > 1) {
        crypto_generichash(whole.value, sizeof whole.value, hashes[0].value,
                           count * sizeof hashes[0], NULL, 0);
    }
    hash_to_hex(&whole, out);
    return STATUS_OK;
}

static enum status hash_model(const struct loader *self, struct loader_letter *letter)
{
    struct model *model = NULL;
    struct hash hash;
    enum status status = open_definition(self, &letter->definition, &model, &letter->error);
    if (status == STATUS_OK && model_describe(model)->has[MODEL_VAE]) {
        status = model_hash(model, MODEL_VAE, somebody_asks, (void *)(uintptr_t)self, &hash);
        if (status == STATUS_OK) hash_to_hex(&hash, letter->hash_vae);
    }
    if (status == STATUS_OK) status = hash_text(self, model, letter->hash_text);
    model_close(&model);
    return status;
}

static void on_idle(void *state)
{
    struct loader *self = state;
    if (self->hashes_count == 0) return;
    struct loader_letter *letter = &self->hashes[self->hashes_first];
    enum status status = hash_model(self, letter);
    if (status == STATUS_CANCELLED) {
        loop_timer_restart(self->idle, 100);
        loop_socket_touch(self->pair.watch);
        return;
    }
    if (status == STATUS_OK) {
        letter->is_hash = true;
        answer(self, letter);
    }
    self->hashes_first = (self->hashes_first + 1) % HASHES_MAX;
    self->hashes_count -= 1;
    if (self->hashes_count > 0) loop_timer_restart(self->idle, 0);
}

static void hash_later(struct loader *self, const struct loader_letter *letter)
{
    for (uint32_t i = 0; i < self->hashes_count; i++) {
        const struct loader_letter *known = &self->hashes[(self->hashes_first + i) % HASHES_MAX];
        if (strcmp(known->definition.name, letter->definition.name) == 0) return;
    }
    if (self->hashes_count == HASHES_MAX) return;
    self->hashes[(self->hashes_first + self->hashes_count) % HASHES_MAX] = *letter;
    self->hashes_count += 1;
    loop_timer_restart(self->idle, 1000);
}

static void on_letter(void *state)
{
    struct loader *self = state;
    struct loader_letter letter;
    if (!pair_receive(&self->pair, &letter, sizeof letter)) return;
    enum status status = letter.is_plan ? plan(self, &letter, &letter.plan_bytes, &letter.error)
                                        : load(self, &letter.definition, letter.group,
                                               &letter.loaded, &letter.error);
    if (status == STATUS_OK) letter.error.status = STATUS_OK;
    answer(self, &letter);
    if (letter.loaded != NULL) hash_later(self, &letter);
}

// ---- life

static void loader_destroy(void *state)
{
    struct loader *self = state;
    if (self == NULL) return;
    loop_timer_remove(&self->idle);
    pair_close(&self->pair);
    free(self->hashes);
    free(self);
}

static enum status loader_create(void **state, const struct actor_context *context,
                                 const void *arguments, struct error *error)
{
    assert(state != NULL);
    assert(arguments != NULL);
    struct loader *self = calloc(1, sizeof *self);
    if (self != NULL) self->hashes = calloc(HASHES_MAX, sizeof *self->hashes);
    if (self == NULL || self->hashes == NULL) {
        free(self);
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the loader");
    }
    self->context = context;
    self->arguments = *(const struct loader_arguments *)arguments;
    // Loading and hashing yield to the compute threads.
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 5);
    const struct pair_end end = {
        .address = LOADER_ADDRESS, .on_readable = on_letter, .state = self};
    enum status status = pair_open(&self->pair, context, &end, error);
    if (status == STATUS_OK)
        status = loop_add_timer(context->loop, 1000, 0, on_idle, self, &self->idle, error);
    if (status != STATUS_OK) {
        loader_destroy(self);
        return status;
    }
    *state = self;
    return STATUS_OK;
}

const struct actor_kind loader_kind = {"loader", loader_create, loader_destroy, NULL};
