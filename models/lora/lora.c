// lora.c - an adapter understood for a model: which keys mean which tensors, by which formula.
//
// Stems come sorted by tensor and naming. For each tensor (a weight, or the bias beside it) the
// last one that has a formula is a candidate; when the next tensor begins, the candidates are
// checked against the encoder's shapes and become modules, and their keys are marked as used.

#include "models/lora/lora.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "models/lora/fit.h"

struct lora {
    struct tensor_table *table;          // shared; NULL for an adapter without tensors
    struct lora_module *modules;         // sorted by part and target
    char (*targets)[LORA_TARGET_BYTES];  // of modules, in the order in which they were found
    uint32_t count;                      // of modules
    uint32_t *unused;                    // indices in the table, ascending
    uint32_t unused_count;               // of unused
};

// The last formula for a tensor so far.
struct candidate {
    bool found;            // whether there is any
    struct stem stem;      // whose it is
    struct choice choice;  // which
};

struct reading {
    struct lora *lora;
    const struct model_description *model;
    bool *used;               // by index in the table
    struct candidate weight;  // of the tensor at hand
    struct candidate bias;    // beside it
    struct error *error;
};

const char *lora_family_name(enum lora_family family)
{
    static const char *const names[] = {
        [LORA_LOW_RANK] = "lora", [LORA_LOHA] = "loha", [LORA_LOKR] = "lokr",
        [LORA_GLORA] = "glora",   [LORA_DORA] = "dora", [LORA_OFT] = "oft",
        [LORA_BOFT] = "boft",     [LORA_DIFF] = "diff", [LORA_SET] = "set",
    };
    _Static_assert(sizeof names / sizeof names[0] == LORA_FAMILY_COUNT, "every family has a name");
    assert(family < LORA_FAMILY_COUNT);
    return names[family];
}

// ---------------------------------------------------------------------------------------------
// Reading

static void mark_used(struct reading *self, const struct candidate *candidate)
{
    for (int i = 0; i < SLOT_COUNT; i++) {
        if ((candidate->choice.used >> i & 1) != 0) self->used[candidate->stem.indices[i]] = true;
    }
}

// Makes a candidate a module if the encoder has the tensor.
static enum status add_module(struct reading *self, struct candidate *candidate, bool bias)
{
    if (!candidate->found) return STATUS_OK;
    candidate->found = false;
    const struct stem *stem = &candidate->stem;
    const struct clip_config *config = &self->model->clip[stem->part];
    struct lora_shape shape;
    if (!lora_place_shape(stem->place, stem->layer, bias, config, &shape)) return STATUS_OK;

    struct lora *lora = self->lora;
    char *target = lora->targets[lora->count];
    lora_place_name(stem->place, stem->layer, bias, target);
    bool linear = stem->place <= PLACE_PROJECTION && !bias;
    struct lora_module module = {.part = stem->part,
                                 .target = target,
                                 .linear = linear ? (enum lora_linear)stem->place : LORA_NO_LINEAR,
                                 .layer = stem->layer};
    enum status status =
        choice_fit(&candidate->choice, &shape, target, stem->part, &module, self->error);
    if (status != STATUS_OK) return status;
    lora->modules[lora->count++] = module;
    mark_used(self, candidate);
    return STATUS_OK;
}

static enum status add_modules(struct reading *self)
{
    enum status status = add_module(self, &self->weight, false);
    return status == STATUS_OK ? add_module(self, &self->bias, true) : status;
}

static enum status choose(struct reading *self, const struct stem *stem)
{
    bool weight = false;
    bool bias = false;
    struct choice choice;
    enum status status = stem_choose_weight(stem, &choice, &weight, self->error);
    if (status != STATUS_OK) return status;
    if (weight) self->weight = (struct candidate){true, *stem, choice};
    status = stem_choose_bias(stem, &choice, &bias, self->error);
    if (status != STATUS_OK) return status;
    if (bias) self->bias = (struct candidate){true, *stem, choice};
    return STATUS_OK;
}

static bool same_tensor(const struct stem *a, const struct stem *b)
{
    return a->part == b->part && a->layer == b->layer && a->place == b->place;
}

static enum status read_stems(struct reading *self)
{
    struct stems stems;
    struct stem stem;
    struct stem last = {.part = MODEL_PART_COUNT};
    enum status status = stems_begin(&stems, self->lora->table, self->model->has, self->error);
    while (status == STATUS_OK && stems_next(&stems, &stem)) {
        if (!same_tensor(&stem, &last)) status = add_modules(self);
        if (status == STATUS_OK) status = choose(self, &stem);
        last = stem;
    }
    if (status == STATUS_OK) status = add_modules(self);
    stems_end(&stems);
    return status;
}

static int compare_modules(const void *a, const void *b)
{
    const struct lora_module *left = a;
    const struct lora_module *right = b;
    if (left->part != right->part) return left->part < right->part ? -1 : 1;
    return strcmp(left->target, right->target);
}

static void list_unused(struct reading *self)
{
    struct lora *lora = self->lora;
    for (uint32_t i = 0; i < tensor_table_count(lora->table); i++) {
        bool is_ours = lora_key_is_encoder(tensor_table_at(lora->table, i)->name);
        if (is_ours && !self->used[i]) lora->unused[lora->unused_count++] = i;
    }
}

static enum status read_table(struct lora *self, const struct model_description *model,
                              struct error *error)
{
    uint32_t count = tensor_table_count(self->table);
    struct reading reading = {.lora = self, .model = model, .error = error};
    self->modules = calloc(count + 1u, sizeof *self->modules);
    self->targets = calloc(count + 1u, sizeof *self->targets);
    self->unused = calloc(count + 1u, sizeof *self->unused);
    reading.used = calloc(count + 1u, sizeof *reading.used);
    enum status status = STATUS_OK;
    if (self->modules == NULL || self->targets == NULL || self->unused == NULL ||
        reading.used == NULL) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED,
                           "no memory for an adapter of %u tensors", count);
        goto done;
    }
    status = read_stems(&reading);
    if (status != STATUS_OK) goto done;
    qsort(self->modules, self->count, sizeof *self->modules, compare_modules);
    list_unused(&reading);

done:
    free(reading.used);
    return status;
}

enum status lora_create(struct lora **out, struct tensor_table *encoder_tensors,
                        const struct model_description *model, struct error *error)
{
    assert(out != NULL);
    assert(model != NULL);
    struct lora *self = calloc(1, sizeof *self);
    enum status status = STATUS_OK;
    if (self == NULL) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for an adapter");
        goto done;
    }
    if (encoder_tensors != NULL) {
        self->table = tensor_table_share(encoder_tensors);
        status = read_table(self, model, error);
        if (status != STATUS_OK) goto done;
    }
    *out = self;
    self = NULL;

done:
    lora_destroy(&self);
    return status;
}

void lora_destroy(struct lora **self_p)
{
    assert(self_p != NULL);
    struct lora *self = *self_p;
    *self_p = NULL;
    if (self == NULL) return;
    tensor_table_release(&self->table);
    free(self->unused);
    free(self->targets);
    free(self->modules);
    free(self);
}

// ---------------------------------------------------------------------------------------------
// What was read

const struct lora_module *lora_modules(const struct lora *self, uint32_t *count)
{
    assert(self != NULL);
    assert(count != NULL);
    *count = self->count;
    return self->modules;
}

uint32_t lora_unused_count(const struct lora *self)
{
    assert(self != NULL);
    return self->unused_count;
}

const char *lora_unused_key(const struct lora *self, uint32_t index)
{
    assert(self != NULL);
    assert(index < self->unused_count);
    return tensor_table_at(self->table, self->unused[index])->name;
}

bool lora_is_low_rank(const struct lora *self)
{
    assert(self != NULL);
    for (uint32_t i = 0; i < self->count; i++) {
        const struct lora_module *module = &self->modules[i];
        if (module->family != LORA_LOW_RANK || module->linear == LORA_NO_LINEAR) return false;
    }
    return true;
}

bool lora_unchanged(const struct lora *self)
{
    assert(self != NULL);
    return self->table == NULL || tensor_table_unchanged(self->table);
}
