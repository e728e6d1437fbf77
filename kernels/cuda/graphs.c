// graphs.c - when a program's launches are recorded, and when the record stands in their place.
//
//     program --key--> never seen: plain launches, its hash is remembered
//                      seen:       recorded, then run as a graph
//                      recorded:   run as a graph
//
// A key holds whatever the launches depend on (graph_key.h): rows and chunks of the batch, the
// weights, the stacks of adapters beside them. A stack that comes once never costs a recording;
// one that stays has its graph as the bare model has. The addresses in a graph are those of the
// arena, which moves only when it grows or goes: then all graphs go. Weights that were evicted
// leave graphs that no program has the key of; they fall off as the least recently used.
//
// A graph copies from and to pinned memory of the lane, because what a run binds lies elsewhere
// each time: inputs are brought there before, results from there afterwards.
//
// A graph is one piece: it is not cancelled between its launches, its marks pass at its end. So a
// program is recorded only if it is short on any card, and a run that is traced takes plain
// launches. Launches that were recorded are those that would have been made, so the bytes are the
// same. What fails about a graph costs a plain run, never an answer.

#include "kernels/cuda/graphs.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>

#include "base/checked.h"

#define STAGING_BYTES (UINT64_C(16) << 20)  // sixteen rows of SDXL
#define SLOT_ALIGNMENT 256u                 // of each in it
#define WORK_MAX UINT64_C(1000000000000)    // floating-point operations: below 100 ms
#define FAILURES_MAX 3u                     // then graphs are left alone

// ---------------------------------------------------------------------------------------------
// Slots

// Where the slots of a program lie in the staging memory; false when they do not fit.
static bool lay_out(const struct graphs *self, const struct program *program,
                    void *staged[PROGRAM_SLOTS_MAX])
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < program->slots_count; i++) {
        staged[i] = (uint8_t *)self->staging + at;
        if (program->slot_bytes[i] > STAGING_BYTES) return false;
        at += round_up(program->slot_bytes[i], SLOT_ALIGNMENT);
        if (at > STAGING_BYTES) return false;
    }
    return true;
}

// Bytes of a slot that an operation reads or writes.
struct part {
    const struct value *value;  // in a slot, or VALUE_NONE
    uint64_t bytes;             // from its offset on
};

static void bring(void *const *to, void *const *from, struct part part)
{
    if (part.value->place != VALUE_SLOT) return;
    uint32_t slot = part.value->slot;
    assert(part.bytes <= part.value->bytes);
    memcpy((uint8_t *)to[slot] + part.value->offset,
           (const uint8_t *)from[slot] + part.value->offset, part.bytes);
}

static void bring_inputs(const struct program *program, void *const *to, void *const *from)
{
    for (uint32_t i = 0; i < program->operations_count; i++) {
        const struct operation *op = &program->operations[i];
        if (op->kind == OPERATION_EMBEDDING) {
            const struct embedding *embedding = &op->embedding;
            uint64_t vectors = (uint64_t)embedding->vectors_count * embedding->width;
            bring(to, from, (struct part){&embedding->ids, embedding->rows * sizeof(int32_t)});
            bring(to, from, (struct part){&embedding->vectors, vectors * sizeof(float)});
        } else if (op->kind == OPERATION_GATHER) {
            const struct gather *gather = &op->gather;
            bring(to, from, (struct part){&gather->indices, gather->count * sizeof(int32_t)});
        }
    }
}

static void bring_outputs(const struct program *program, void *const *to, void *const *from)
{
    for (uint32_t i = 0; i < program->operations_count; i++) {
        const struct operation *op = &program->operations[i];
        if (op->kind != OPERATION_STORE) continue;
        bring(to, from, (struct part){&op->store.output, op->store.count * sizeof(float)});
    }
}

// ---------------------------------------------------------------------------------------------
// The graphs

// Whether the program was asked for lately; it is from now on.
static bool was_seen(struct graphs *self)
{
    for (uint32_t i = 0; i < GRAPHS_SEEN_MAX; i++) {
        if (self->seen[i] == self->key.hash) return true;
    }
    self->seen[self->seen_next] = self->key.hash;
    self->seen_next = (self->seen_next + 1) % GRAPHS_SEEN_MAX;
    return false;
}

static struct recorded_graph *find(struct graphs *self)
{
    for (uint32_t i = 0; i < GRAPHS_MAX; i++) {
        struct recorded_graph *item = &self->items[i];
        if (item->graph != NULL && graph_key_is(&item->key, &self->key)) return item;
    }
    return NULL;
}

static void drop(struct graphs *self, struct recorded_graph *item)
{
    assert(atomic_load(&self->launches) >= item->launches);
    atomic_fetch_sub(&self->launches, item->launches);
    item->launches = 0;
    gpu_graph_destroy(&item->graph);
    graph_key_clear(&item->key);
}

static struct recorded_graph *oldest_of(struct graphs *self)
{
    struct recorded_graph *oldest = NULL;
    for (uint32_t i = 0; i < GRAPHS_MAX; i++) {
        struct recorded_graph *item = &self->items[i];
        if (item->graph != NULL && (oldest == NULL || item->used < oldest->used)) oldest = item;
    }
    return oldest;
}

// A free place, once the least recently used graphs have gone that are in the way of so many
// launches.
static struct recorded_graph *make_place(struct graphs *self, uint32_t launches)
{
    assert(launches <= GRAPHS_LAUNCHES_MAX);
    for (;;) {
        struct recorded_graph *place = NULL;
        for (uint32_t i = 0; i < GRAPHS_MAX && place == NULL; i++) {
            if (self->items[i].graph == NULL) place = &self->items[i];
        }
        uint64_t all = atomic_load(&self->launches) + launches;
        if (place != NULL && all <= GRAPHS_LAUNCHES_MAX) return place;
        drop(self, oldest_of(self));
    }
}

// Records the launches of a program over the staging memory; NULL when that fails.
static struct recorded_graph *record(struct graphs *self, const struct gpu_run *run,
                                     const struct program *program, void *const *staged)
{
    struct gpu_run recording = *run;
    struct gpu_graph *graph = NULL;
    recording.bindings = staged;
    if (!gpu_graph_begin(run->stream)) return NULL;
    for (uint32_t i = 0; i < program->operations_count; i++) {
        recording.operation = &program->operations[i];
        gpu_enqueue(&recording);
    }
    if (gpu_graph_end(run->stream, &graph, NULL) != STATUS_OK) return NULL;
    uint32_t launches = gpu_graph_size(graph);
    if (launches > GRAPHS_LAUNCHES_MAX) {
        gpu_graph_destroy(&graph);
        return NULL;
    }
    struct recorded_graph *item = make_place(self, launches);
    *item = (struct recorded_graph){.key = self->key, .graph = graph, .launches = launches};
    atomic_fetch_add(&self->launches, launches);
    self->key = (struct graph_key){.words = NULL};
    atomic_fetch_add(&self->recorded, 1);
    return item;
}

// The graph of a program that comes again; NULL for one that does not, or has none.
static struct recorded_graph *find_or_record(struct graphs *self, const struct gpu_run *run,
                                             const struct program *program, void **staged)
{
    struct recorded_graph *item = find(self);
    if (item == NULL && !was_seen(self)) return NULL;
    bool is_staged = self->staging != NULL ||
                     gpu_pin(self->card, STAGING_BYTES, &self->staging, NULL) == STATUS_OK;
    bool fits = is_staged && lay_out(self, program, staged);
    if (item == NULL && fits) item = record(self, run, program, staged);
    if (item == NULL && (fits || !is_staged)) self->failures += 1;
    return item;
}

bool graphs_run(struct graphs *self, const struct gpu_run *run, const struct program *program)
{
    assert(self != NULL);
    assert(run->stream != NULL);
    void *staged[PROGRAM_SLOTS_MAX] = {NULL};
    if (self->is_off || self->failures >= FAILURES_MAX) return false;
    if (program->floating_point_operations > WORK_MAX) return false;
    if (!graph_key_write(&self->key, program)) return false;
    struct recorded_graph *item = find_or_record(self, run, program, staged);
    if (item == NULL) return false;
    bring_inputs(program, staged, run->bindings);
    if (!gpu_graph_launch(run->stream, item->graph)) {
        drop(self, item);
        self->failures += 1;
        return false;
    }
    item->used = ++self->clock;
    self->failures = 0;
    atomic_fetch_add(&self->replayed, 1);
    return true;
}

void graphs_deliver(const struct graphs *self, const struct gpu_run *run,
                    const struct program *program)
{
    assert(self->staging != NULL);
    void *staged[PROGRAM_SLOTS_MAX] = {NULL};
    bool fits = lay_out(self, program, staged);
    assert(fits);
    bring_outputs(program, run->bindings, staged);
}

void graphs_clear(struct graphs *self)
{
    assert(self != NULL);
    for (uint32_t i = 0; i < GRAPHS_MAX; i++) drop(self, &self->items[i]);
}

void graphs_end(struct graphs *self)
{
    assert(self != NULL);
    graphs_clear(self);
    graph_key_clear(&self->key);
    gpu_unpin(self->card, self->staging);
    self->staging = NULL;
}
