// stack.c - an ordered list of adapters becomes, for each linear of each encoder, the list of
// low-rank products beside it; stack_merge.c does it the other way.
//
// The lists of an encoder are one array, sorted by linear as a counting sort does it, so that the
// adapters of a linear stay in the stack's order: that is the order in which they are added.

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/text_job.h"
#include "models/text/text_stack.h"

static enum status no_memory(struct error *error)
{
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a stack of adapters");
}

static uint32_t linear_index(const struct text_network *network, const struct lora_module *module)
{
    assert(module->linear != LORA_NO_LINEAR);
    if (module->linear == LORA_PROJECTION) return network->config.layers * TEXT_LAYER_LINEARS;
    assert(module->layer < network->config.layers);
    return module->layer * TEXT_LAYER_LINEARS + (uint32_t)module->linear;
}

// True when a module of an entry adds something to what an encoder computes.
static bool has_path(const struct text_model *model, const struct lora_module *module,
                     const struct text_stack_entry *entry, enum model_part part)
{
    return module->part == part && adapter_module_counts(module, entry->strength[part]) &&
           adapter_module_is_read(model, module);
}

// The most paths beside one operation.
static uint32_t count_most(const struct text_paths *paths, uint32_t linears)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < linears; i++) {
        bool is_query = i % TEXT_LAYER_LINEARS == LORA_Q && i + 1 < linears;
        uint32_t end = is_query ? i + (uint32_t)LORA_V + 1 : i + 1;
        uint32_t count = paths->begins[end] - paths->begins[i];
        if (count > most) most = count;
    }
    return most;
}

// Counts the paths of each linear into begins[linear + 1]; returns how many there are.
static uint32_t count_paths(const struct text_stack *self, const struct text_stack_entry *entries,
                            enum model_part part, uint32_t *begins)
{
    uint32_t total = 0;
    for (uint32_t i = 0; i < self->count; i++) {
        const struct text_adapter *adapter = entries[i].adapter;
        for (uint32_t j = 0; j < adapter->factors_count; j++) {
            const struct lora_module *module = adapter->factors[j].module;
            if (!has_path(self->model, module, &entries[i], part)) continue;
            begins[linear_index(self->model->networks[part], module) + 1] += 1;
            total += 1;
        }
    }
    return total;
}

// Puts every path to its linear; next[linear] is where the next one goes.
static void place_paths(const struct text_stack *self, const struct text_stack_entry *entries,
                        enum model_part part, uint32_t *next, struct text_path *items)
{
    for (uint32_t i = 0; i < self->count; i++) {
        const struct text_adapter *adapter = entries[i].adapter;
        for (uint32_t j = 0; j < adapter->factors_count; j++) {
            const struct adapter_factors *factors = &adapter->factors[j];
            if (!has_path(self->model, factors->module, &entries[i], part)) continue;
            uint32_t linear = linear_index(self->model->networks[part], factors->module);
            items[next[linear]++] =
                (struct text_path){.down = factors->down,
                                   .up = factors->up,
                                   .rank = factors->module->rank,
                                   .scale = entries[i].strength[part] * factors->module->factor};
        }
    }
}

static enum status make_paths(struct text_stack *self, const struct text_stack_entry *entries,
                              enum model_part part, struct error *error)
{
    uint32_t linears = self->model->networks[part]->config.layers * TEXT_LAYER_LINEARS + 1;
    struct text_paths *paths = &self->paths[part];
    uint32_t *next = malloc(linears * sizeof *next);
    paths->begins = calloc(linears + 1ull, sizeof *paths->begins);
    if (next == NULL || paths->begins == NULL) {
        free(next);
        return no_memory(error);
    }
    uint32_t total = count_paths(self, entries, part, paths->begins);
    for (uint32_t i = 0; i < linears; i++) paths->begins[i + 1] += paths->begins[i];
    memcpy(next, paths->begins, linears * sizeof *next);
    paths->most = count_most(paths, linears);
    if (total > 0) paths->items = calloc(total, sizeof *paths->items);
    bool good = total == 0 || paths->items != NULL;
    if (good) place_paths(self, entries, part, next, paths->items);
    free(next);
    return good ? STATUS_OK : no_memory(error);
}

// How many tensors an entry changes.
static uint32_t count_modules(const struct text_stack_entry *entry)
{
    uint32_t count = 0;
    uint32_t changed = 0;
    const struct lora_module *modules = lora_modules(entry->adapter->lora, &count);
    for (uint32_t i = 0; i < count; i++) {
        if (adapter_module_counts(&modules[i], entry->strength[modules[i].part])) changed += 1;
    }
    return changed;
}

bool text_stack_must_merge(const struct text_stack_entry *entries, uint32_t count)
{
    assert(entries != NULL || count == 0);
    for (uint32_t i = 0; i < count; i++) {
        if (count_modules(&entries[i]) > 0 && !lora_is_low_rank(entries[i].adapter->lora)) {
            return true;
        }
    }
    return false;
}

static enum status fill(struct text_stack *self, const struct text_stack_entry *entries,
                        const struct text_stack_options *options, struct error *error)
{
    for (uint32_t i = 0; i < self->count; i++) {
        assert(entries[i].adapter->model == self->model);
        self->modules[i] = count_modules(&entries[i]);
    }
    if (options->merged) return text_stack_merge(self, entries, &options->stop, error);
    for (uint32_t part = 0; part < MODEL_PART_COUNT; part++) {
        if (self->model->networks[part] == NULL) continue;
        enum status status = make_paths(self, entries, (enum model_part)part, error);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

enum status text_stack_create(struct text_stack **out, const struct text_model *model,
                              const struct text_stack_entry *entries, uint32_t count,
                              const struct text_stack_options *options, struct error *error)
{
    assert(out != NULL);
    assert(model != NULL);
    assert(options != NULL);
    assert(options->merged || !text_stack_must_merge(entries, count));
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    struct text_stack *self = calloc(1, sizeof *self);
    if (self == NULL) return no_memory(error);
    self->model = model;
    self->count = count;
    self->modules = calloc(count + 1ull, sizeof *self->modules);
    status = self->modules != NULL ? fill(self, entries, options, error) : no_memory(error);
    if (status == STATUS_OK) {
        *out = self;
        self = NULL;
    }
    text_stack_destroy(&self);
    return status;
}

void text_stack_destroy(struct text_stack **self_p)
{
    assert(self_p != NULL);
    struct text_stack *self = *self_p;
    if (self == NULL) return;
    for (uint32_t part = 0; part < MODEL_PART_COUNT; part++) {
        text_network_destroy(&self->networks[part]);
        free(self->paths[part].items);
        free(self->paths[part].begins);
    }
    pages_release(&self->copies);
    free(self->modules);
    free(self);
    *self_p = NULL;
}

uint32_t text_stack_modules(const struct text_stack *self, uint32_t entry)
{
    assert(self != NULL);
    assert(entry < self->count);
    return self->modules[entry];
}

uint64_t text_stack_bytes(const struct text_stack *self)
{
    assert(self != NULL);
    return self->copies.bytes + self->vectors_bytes;
}

struct text_way text_stack_way(const struct text_stack *self, enum model_part part)
{
    assert((unsigned)part < MODEL_PART_COUNT);
    if (self == NULL) return (struct text_way){.network = NULL};
    const struct text_paths *paths = &self->paths[part];
    return (struct text_way){.network = self->networks[part],
                             .paths = paths->items != NULL ? paths : NULL};
}

void text_job_apply(struct text_job *job, const struct text_stack *stack)
{
    assert(job != NULL);
    job->stack = stack;
}
