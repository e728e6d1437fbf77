// program.c - building: check an operation, ask the device for its workspace, plan, append.
//
// Errors stick. The first one is kept in the program, every later call does nothing and hands out
// VALUE_NONE, and program_finish tells it. Nothing here touches tensor memory.

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/arena_plan.h"
#include "kernels/operation.h"

enum status program_create(struct program **out, const struct device *device, struct error *error)
{
    assert(out != NULL);
    assert(device != NULL);
    enum status status = STATUS_OK;
    struct program *self = calloc(1, sizeof *self);
    if (self == NULL) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a program");
        goto done;
    }
    self->device = device;
    status = arena_plan_create(&self->plan, error);
    if (status != STATUS_OK) goto done;
    *out = self;
    self = NULL;

done:
    program_destroy(&self);
    return status;
}

void program_destroy(struct program **program_p)
{
    assert(program_p != NULL);
    struct program *self = *program_p;
    if (self == NULL) return;
    arena_plan_destroy(&self->plan);
    for (uint32_t i = 0; i < self->low_ranks_count; i++) free(self->low_ranks[i]);
    free(self->low_ranks);
    free(self->operations);
    free(self);
    *program_p = NULL;
}

// True when building goes on: no error so far.
static bool is_building(const struct program *self)
{
    assert(self != NULL);
    assert(!self->finished);
    return self->error.status == STATUS_OK;
}

static void fail_memory(struct program *self)
{
    error_set(&self->error, STATUS_RESOURCE_EXHAUSTED,
              "no memory for a program of more than %u operations", self->operations_count);
}

// ---------------------------------------------------------------------------------------------
// Values

struct value program_bytes(struct program *program, uint64_t bytes)
{
    struct value value = {.place = VALUE_NONE};
    if (!is_building(program)) return value;
    if (bytes == 0) {
        error_set(&program->error, STATUS_INVALID_ARGUMENT, "a value of 0 bytes");
        return value;
    }
    uint64_t offset = 0;
    if (arena_plan_take(program->plan, bytes, &offset, &program->error) != STATUS_OK) return value;
    return (struct value){.place = VALUE_ARENA, .offset = offset, .bytes = bytes};
}

// True when a tensor of these dimensions has no zero among them and can be counted.
static bool check_dims(struct program *self, const char *what, const uint32_t dims[4])
{
    uint64_t pixels = 0;
    uint64_t wide[3] = {dims[0], dims[1], dims[2]};
    bool countable = checked_product(wide, 3, &pixels) && pixels <= OPERATION_ROWS_MAX;
    if (countable && pixels > 0 && dims[3] > 0) return true;
    error_set(&self->error, STATUS_INVALID_ARGUMENT,
              "%s [%u, %u, %u, %u]: each must be at least 1, the first three at most %u together",
              what, dims[0], dims[1], dims[2], dims[3], OPERATION_ROWS_MAX);
    return false;
}

struct value program_tensor(struct program *program, uint32_t n, uint32_t h, uint32_t w, uint32_t c)
{
    const uint32_t dims[4] = {n, h, w, c};
    struct value none = {.place = VALUE_NONE};
    if (!is_building(program) || !check_dims(program, "tensor", dims)) return none;
    // At most 2^31 x 2^32 elements were let through, of at most 4 bytes each.
    uint64_t elements = 0;
    if (!checked_multiply((uint64_t)n * h * w, c, &elements) ||
        !checked_multiply(elements, program->device->info.activation_bytes, &elements)) {
        error_set(&program->error, STATUS_INVALID_ARGUMENT,
                  "tensor [%u, %u, %u, %u] has too many bytes to count", n, h, w, c);
        return none;
    }
    return program_bytes(program, elements);
}

struct value program_statistics(struct program *program, uint32_t n, uint32_t h, uint32_t w,
                                uint32_t k)
{
    const uint32_t dims[4] = {n, h, w, k};
    struct value none = {.place = VALUE_NONE};
    if (!is_building(program) || !check_dims(program, "statistics", dims)) return none;
    const struct device *device = program->device;
    return program_bytes(program, device->class->statistics_bytes(device, n, h, w, k));
}

struct value program_slot(struct program *program, uint32_t slot, uint64_t bytes)
{
    struct value none = {.place = VALUE_NONE};
    if (!is_building(program)) return none;
    if (slot >= PROGRAM_SLOTS_MAX || bytes == 0 || bytes > ARENA_BYTES_MAX) {
        error_set(&program->error, STATUS_INVALID_ARGUMENT,
                  "slot %u of %llu bytes: slots are numbered below %u and have 1 to %llu bytes",
                  slot, (unsigned long long)bytes, PROGRAM_SLOTS_MAX,
                  (unsigned long long)ARENA_BYTES_MAX);
        return none;
    }
    if (slot >= program->slots_count) program->slots_count = slot + 1;
    if (bytes > program->slot_bytes[slot]) program->slot_bytes[slot] = bytes;
    return (struct value){.place = VALUE_SLOT, .slot = slot, .bytes = bytes};
}

void program_release(struct program *program, struct value value)
{
    if (!is_building(program) || value.place != VALUE_ARENA) return;
    arena_plan_give(program->plan, value.offset);
}

// ---------------------------------------------------------------------------------------------
// Operations

static void append(struct program *self, const struct operation *op)
{
    if (self->operations_count == self->operations_capacity) {
        uint32_t capacity = self->operations_capacity == 0 ? 64 : 2 * self->operations_capacity;
        struct operation *operations = NULL;
        if (capacity > self->operations_capacity) {
            operations = realloc(self->operations, (uint64_t)capacity * sizeof *operations);
        }
        if (operations == NULL) {
            fail_memory(self);
            return;
        }
        self->operations = operations;
        self->operations_capacity = capacity;
    }
    struct operation *last = &self->operations[self->operations_count++];
    *last = *op;
    last->live_bytes = arena_plan_live_bytes(self->plan);
    uint64_t cost = operation_cost(op);
    if (!checked_add(self->floating_point_operations, cost, &self->floating_point_operations)) {
        self->floating_point_operations = UINT64_MAX;
    }
}

static void check_and_append(struct program *self, struct operation *op)
{
    if (!is_building(self)) return;
    if (operation_check(self, op, &self->error) != STATUS_OK) return;
    uint64_t bytes = self->device->class->workspace_bytes(self->device, op);
    if (bytes > 0) {
        op->workspace = program_bytes(self, bytes);
        program_release(self, self->held);
        self->held = (struct value){.place = VALUE_NONE};
    }
    if (is_building(self)) append(self, op);
    if (op->kind == OPERATION_LINEAR && self->device->class->holds_workspace) {
        self->held = op->workspace;
    } else {
        program_release(self, op->workspace);
    }
}

// Copies the adapters of a linear into the program, which owns them from then on.
static void copy_low_ranks(struct program *self, struct linear *linear)
{
    if (!is_building(self) || linear->low_rank_count == 0 || linear->low_rank == NULL) return;
    uint32_t count = self->low_ranks_count;
    struct low_rank *copy = calloc(linear->low_rank_count, sizeof *copy);
    struct low_rank **all = realloc(self->low_ranks, (count + 1ull) * sizeof(struct low_rank *));
    if (all != NULL) self->low_ranks = all;
    if (copy == NULL || all == NULL) {
        free(copy);
        fail_memory(self);
        return;
    }
    memcpy(copy, linear->low_rank, linear->low_rank_count * sizeof *copy);
    self->low_ranks[self->low_ranks_count++] = copy;
    linear->low_rank = copy;
}

void program_linear(struct program *program, const struct linear *op)
{
    assert(op != NULL);
    struct operation operation = {.kind = OPERATION_LINEAR, .linear = *op};
    copy_low_ranks(program, &operation.linear);
    check_and_append(program, &operation);
}

void program_convolution(struct program *program, const struct convolution *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_CONVOLUTION,  //
                                                  .convolution = *op});
}

void program_attention(struct program *program, const struct attention *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_ATTENTION, .attention = *op});
}

void program_layer_norm(struct program *program, const struct layer_norm *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_LAYER_NORM, .layer_norm = *op});
}

void program_embedding(struct program *program, const struct embedding *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_EMBEDDING, .embedding = *op});
}

void program_gather(struct program *program, const struct gather *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_GATHER, .gather = *op});
}

void program_store(struct program *program, const struct store *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_STORE, .store = *op});
}

void program_pixels_load(struct program *program, const struct pixels_load *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_PIXELS_LOAD,  //
                                                  .pixels_load = *op});
}

void program_pixels_store(struct program *program, const struct pixels_store *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_PIXELS_STORE,  //
                                                  .pixels_store = *op});
}

void program_latent_load(struct program *program, const struct latent_load *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_LATENT_LOAD,  //
                                                  .latent_load = *op});
}

void program_latent_store(struct program *program, const struct latent_store *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_LATENT_STORE,  //
                                                  .latent_store = *op});
}

void program_words_store(struct program *program, const struct words_store *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_WORDS_STORE,  //
                                                  .words_store = *op});
}

void program_clear(struct program *program, const struct clear *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_CLEAR, .clear = *op});
}

void program_blend(struct program *program, const struct blend *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_BLEND, .blend = *op});
}

void program_blend_end(struct program *program, const struct blend_end *op)
{
    assert(op != NULL);
    check_and_append(program, &(struct operation){.kind = OPERATION_BLEND_END, .blend_end = *op});
}

void program_mark(struct program *program)
{
    if (!is_building(program)) return;
    append(program, &(struct operation){.kind = OPERATION_MARK});
    program->marks_count++;
}

// ---------------------------------------------------------------------------------------------
// The end of building

enum status program_finish(struct program *program, struct error *error)
{
    assert(program != NULL);
    assert(!program->finished);
    program->peak_bytes = arena_plan_peak_bytes(program->plan);
    arena_plan_destroy(&program->plan);
    program->finished = true;
    if (program->error.status != STATUS_OK && error != NULL) *error = program->error;
    return program->error.status;
}

uint64_t program_peak_bytes(const struct program *program)
{
    assert(program != NULL);
    assert(program->finished);
    return program->peak_bytes;
}

uint32_t program_operations_count(const struct program *program)
{
    assert(program != NULL);
    assert(program->finished);
    return program->operations_count;
}

struct operation_facts program_operation(const struct program *program, uint32_t index)
{
    assert(program != NULL);
    assert(index < program->operations_count);
    const struct operation *op = &program->operations[index];
    struct operation_facts facts = {.live_bytes = op->live_bytes,
                                    .floating_point_operations = operation_cost(op)};
    operation_describe(op, facts.name, sizeof facts.name);
    return facts;
}

uint32_t program_marks(const struct program *program)
{
    assert(program != NULL);
    return program->marks_count;
}

uint64_t program_operations(const struct program *program)
{
    assert(program != NULL);
    return program->floating_point_operations;
}
