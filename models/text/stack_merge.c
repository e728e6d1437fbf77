// stack_merge.c - copies of the tensors that a stack touches, and encoders that read them.
//
//     patches    (encoder, tensor, entry of the stack, module), sorted: those of a tensor side by
//                side, in the stack's order
//     copies     a tensor after the other in pages of their own; written here once, then sealed
//     networks   variants of the model's encoders over the copies; the rest they share
//
// Who is touched follows from the entries alone, so that the bytes are known before they are taken.

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "models/text/array.h"
#include "models/text/text_stack.h"

#define COPY_ALIGNMENT 64u  // bytes

// A module of an entry, before sorting.
struct candidate {
    const struct lora_module *module;
    float strength;
    uint32_t order;  // in the stack
};

// A tensor that is touched.
struct merge_target {
    enum model_part part;
    const struct tensor *base;
    uint32_t patches_begin;  // in the plan's patches
    uint32_t patches_count;  // of those
    uint64_t offset;         // of its copy
};

struct merge_plan {
    const struct text_model *model;  // whose tensors
    struct {
        struct candidate *items;  // in the stack's order, then sorted
        uint32_t count;           // in use
        uint32_t capacity;        // there is room for
    } candidates;                 // modules that count
    struct lora_patch *patches;   // [candidates.count], sorted
    struct {
        struct merge_target *items;  // sorted by part and name
        uint32_t count;              // in use
        uint32_t capacity;           // there is room for
    } targets;                       // tensors
    uint64_t bytes;                  // of all copies
    uint64_t vectors_bytes;          // that the device takes for vectors, at most
};

static int compare_candidates(const void *left, const void *right)
{
    const struct candidate *a = left;
    const struct candidate *b = right;
    if (a->module->part != b->module->part) return a->module->part < b->module->part ? -1 : 1;
    int names = strcmp(a->module->target, b->module->target);
    if (names != 0) return names;
    return (a->order > b->order) - (a->order < b->order);
}

static bool gather(struct merge_plan *self, const struct text_stack_entry *entries, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t modules_count = 0;
        const struct lora_module *modules = lora_modules(entries[i].adapter->lora, &modules_count);
        uint64_t needed = (uint64_t)self->candidates.count + modules_count;
        if (!ARRAY_RESERVE(&self->candidates, needed)) return false;
        for (uint32_t j = 0; j < modules_count; j++) {
            float strength = entries[i].strength[modules[j].part];
            if (!adapter_module_counts(&modules[j], strength)) continue;
            if (!adapter_module_is_read(self->model, &modules[j])) continue;
            uint32_t order = self->candidates.count++;
            self->candidates.items[order] = (struct candidate){&modules[j], strength, order};
        }
    }
    return true;
}

// A device keeps a vector once more as floats, with those that it is stacked with.
static uint64_t vector_bytes(const struct tensor *base)
{
    return pages_round(base->dims[0] * sizeof(float) * WEIGHT_PARTS_MAX);
}

// Adds a candidate's patch to the last target, or to a new one.
static bool add_patch(struct merge_plan *self, uint32_t index)
{
    const struct lora_module *module = self->candidates.items[index].module;
    self->patches[index] =
        (struct lora_patch){.module = module, .strength = self->candidates.items[index].strength};
    uint32_t count = self->targets.count;
    struct merge_target *last = count > 0 ? &self->targets.items[count - 1] : NULL;
    if (last != NULL && last->part == module->part &&
        strcmp(last->base->name, module->target) == 0) {
        last->patches_count += 1;
        return true;
    }
    if (!ARRAY_RESERVE(&self->targets, (uint64_t)count + 1)) return false;
    const struct tensor_table *tensors = self->model->networks[module->part]->tensors;
    const struct tensor *base = tensor_table_find(tensors, module->target);
    assert(base != NULL);
    assert(self->targets.items != NULL);
    self->targets.items[self->targets.count++] = (struct merge_target){.part = module->part,
                                                                       .base = base,
                                                                       .patches_begin = index,
                                                                       .patches_count = 1,
                                                                       .offset = self->bytes};
    self->bytes += round_up(base->bytes, COPY_ALIGNMENT);
    if (base->rank == 1) self->vectors_bytes += vector_bytes(base);
    return true;
}

static void plan_clear(struct merge_plan *self)
{
    free(self->candidates.items);
    free(self->patches);
    free(self->targets.items);
    *self = (struct merge_plan){0};
}

// False when memory ran out. The plan is to be cleared in any case.
static bool plan_make(struct merge_plan *self, const struct text_model *model,
                      const struct text_stack_entry *entries, uint32_t count)
{
    *self = (struct merge_plan){.model = model};
    if (!gather(self, entries, count)) return false;
    if (self->candidates.count == 0) return true;
    qsort(self->candidates.items, self->candidates.count, sizeof *self->candidates.items,
          compare_candidates);
    self->patches = calloc(self->candidates.count, sizeof *self->patches);
    if (self->patches == NULL) return false;
    for (uint32_t i = 0; i < self->candidates.count; i++) {
        if (!add_patch(self, i)) return false;
    }
    self->bytes = pages_round(self->bytes);
    return true;
}

uint64_t text_stack_merged_bytes(const struct text_model *model,
                                 const struct text_stack_entry *entries, uint32_t count)
{
    assert(model != NULL);
    struct merge_plan plan;
    bool good = plan_make(&plan, model, entries, count);
    uint64_t bytes = good ? plan.bytes + plan.vectors_bytes : UINT64_MAX;
    plan_clear(&plan);
    return bytes;
}

static enum status no_memory(struct error *error, uint64_t bytes)
{
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no %llu bytes for merged tensors: %s",
                     (unsigned long long)bytes, strerror(errno));
}

// Writes the copies, and lets nobody write them again.
static enum status write_copies(struct text_stack *self, const struct merge_plan *plan,
                                const struct lora_stop *stop, struct error *error)
{
    enum status status = pages_take(&self->copies, plan->bytes, error);
    if (status != STATUS_OK) return status;
    uint8_t *data = self->copies.data;
    self->vectors_bytes = plan->vectors_bytes;
    for (uint32_t i = 0; i < plan->targets.count; i++) {
        const struct merge_target *target = &plan->targets.items[i];
        if (stop->should_stop != NULL && stop->should_stop(stop->context)) {
            return error_set(error, STATUS_CANCELLED, "merging was cancelled");
        }
        status = lora_merge(target->base, plan->patches + target->patches_begin,
                            target->patches_count, stop, data + target->offset, error);
        if (status != STATUS_OK) return status;
    }
    return pages_seal(&self->copies, plan->bytes, error);
}

// Makes the variant of one encoder; none when it has no target.
static enum status vary_part(struct text_stack *self, const struct merge_plan *plan,
                             enum model_part part, struct tensor *room, struct error *error)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < plan->targets.count; i++) {
        const struct merge_target *target = &plan->targets.items[i];
        if (target->part != part) continue;
        room[count] = *target->base;
        room[count].data = (uint8_t *)self->copies.data + target->offset;
        room[count].transposed = false;
        count += 1;
    }
    if (count == 0) return STATUS_OK;
    struct tensor_table *touched = NULL;
    enum status status = tensor_table_from_tensors(&touched, room, count, NULL, 0, error);
    if (status != STATUS_OK) return status;
    status = text_network_vary(&self->networks[part], self->model->networks[part],
                               self->model->device, touched, error);
    tensor_table_release(&touched);
    return status;
}

static enum status merge_plan_run(struct text_stack *self, const struct merge_plan *plan,
                                  const struct lora_stop *stop, struct error *error)
{
    enum status status = write_copies(self, plan, stop, error);
    if (status != STATUS_OK) return status;
    struct tensor *room = calloc(plan->targets.count, sizeof *room);
    if (room == NULL) return no_memory(error, plan->bytes);
    for (uint32_t part = 0; status == STATUS_OK && part < MODEL_PART_COUNT; part++) {
        status = vary_part(self, plan, (enum model_part)part, room, error);
    }
    free(room);
    return status;
}

enum status text_stack_merge(struct text_stack *self, const struct text_stack_entry *entries,
                             const struct lora_stop *stop, struct error *error)
{
    assert(self->copies.data == NULL);
    struct merge_plan plan;
    enum status status = STATUS_OK;
    if (!plan_make(&plan, self->model, entries, self->count)) {
        status = no_memory(error, sizeof plan);
    } else if (plan.targets.count > 0) {
        status = merge_plan_run(self, &plan, stop, error);
    }
    plan_clear(&plan);
    return status;
}
