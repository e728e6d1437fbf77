// launch.h - how an operation becomes work for the pool of a CPU device.
//
// An operation is a short list of launches. A launch is a number of items that may run in any order
// on any threads; the next launch begins when all items of the one before have ended. What an item
// computes, and in which order it sums, depends on the operation's shapes and weights alone, so the
// bytes do not depend on the number of threads. An item takes well under 100 ms: between items the
// pool looks at the cancel flag, counts progress, and serves the other lanes.

#ifndef KERNELS_CPU_LAUNCH_H
#define KERNELS_CPU_LAUNCH_H

#include "base/pages.h"
#include "kernels/device.h"

// What an item may read beside its operation.
struct cpu_run {
    uint8_t *arena;         // of the lane
    void *const *bindings;  // memory of the program's slots
};

struct cpu_launch {
    uint32_t items;          // how many; 0 is allowed and does nothing
    uint64_t scratch_bytes;  // private memory of the thread that runs an item, 64-byte aligned, not
                             // cleared
    void (*run)(const struct operation *op, const struct cpu_run *run, uint32_t item,
                void *scratch);
};

// The most launches of one operation.
#define CPU_LAUNCHES_MAX 10u

// The address of a value in this run; NULL for VALUE_NONE.
static inline void *cpu_address(const struct cpu_run *run, const struct value *value)
{
    if (value->place == VALUE_ARENA) return run->arena + value->offset;
    if (value->place == VALUE_SLOT) return (uint8_t *)run->bindings[value->slot] + value->offset;
    return 0;
}

// Sets the word of a load or a store that has found what is not finite, see kernels.h. Items do so
// at once, all to 1.
static inline void cpu_note(const struct cpu_run *run, const struct value *not_finite, bool found)
{
    if (!found || not_finite->place == VALUE_NONE) return;
    __atomic_store_n((uint32_t *)cpu_address(run, not_finite), 1, __ATOMIC_RELAXED);
}

// Bytes of arena that the operation's launches share, and those of a convolution's statistics.
// Thread:    any.
uint64_t cpu_workspace_bytes(const struct device *device, const struct operation *op);
uint64_t cpu_statistics_bytes(const struct device *device, uint32_t n, uint32_t h, uint32_t w,
                              uint32_t k);

// A weight as this device keeps it.
struct cpu_weight {
    struct weight base;
    const void *parts[WEIGHT_PARTS_MAX];  // as given; the file's bytes
    uint32_t parts_count;                 // how many
    struct pages vector;                  // of a vector: a copy of the parts as float32
};

// See weight_plan, weight_create and weight_destroy of kernels.h.
uint64_t cpu_weight_plan(const struct device *device, const struct weight_source *source);
enum status cpu_weight_create(struct weight **out, struct device *device,
                              const struct weight_source *source, struct error *error);
void cpu_weight_destroy(struct weight *weight);

#endif  // KERNELS_CPU_LAUNCH_H
