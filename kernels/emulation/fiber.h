// fiber.h - what the parts of the emulator know of each other: fibers, warps, the running block.

#ifndef KERNELS_EMULATION_FIBER_H
#define KERNELS_EMULATION_FIBER_H

#include <string>
#include <vector>

#include "kernels/emulation/emulation.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMULATION_ASAN 1
#define EMULATION_SHUT(at, bytes) __asan_poison_memory_region(at, bytes)
#define EMULATION_OPEN(at, bytes) __asan_unpoison_memory_region(at, bytes)
#else
#define EMULATION_ASAN 0
#define EMULATION_SHUT(at, bytes) (static_cast<void>(at), static_cast<void>(bytes))
#define EMULATION_OPEN(at, bytes) (static_cast<void>(at), static_cast<void>(bytes))
#endif

namespace emulation
{

enum class fiber_state : uint8_t { ready, in_warp, in_barrier, in_counter, in_registers, done };

// A cp.async between its issue and the wait of the thread that issued it.
struct copy {
    uint32_t to;       // emulated shared address
    const void *from;  // device memory
    uint8_t size;      // bytes that are written: 4, 8 or 16
    uint8_t bytes;     // of them from the source, the rest zero
    bool landed;
};

struct block;

struct fiber {
    void *stack_pointer;  // while it does not run
    void *fake_stack;     // AddressSanitizer's, while it does not run
    char *stack;          // lowest byte
    struct block *owner;
    position place;  // threadIdx and the like
    unsigned index, lane, warp;
    fiber_state state;
    int barrier;  // number, while in_barrier or in_counter
    site at;      // where it waits
    const char *waits_for;
    std::vector<std::vector<copy>> groups;  // committed, oldest first
    std::vector<copy> open_group;
};

// A warp operation that some of its lanes have reached.
struct rendezvous {
    uint32_t mask, arrived;
    const char *kind;
    site at;
    void *arguments[32];
};

// A warp's part of a wgmma between its issue and the wait for its group.
struct product {
    group_product lanes[32];
    uint32_t operands[32][4];  // a of each lane at the issue
    bool is_done;
    site at;
};

// Sums that products under way add to. Their registers show `shown` meanwhile: NaN, or the sums of
// products that were done early.
struct accumulator {
    float *registers[32];       // of each lane
    unsigned n;                 // columns
    unsigned products;          // under way
    std::vector<float> values;  // [16, n]
    std::vector<float> shown;   // [32, n / 2]
    site at;                    // of the first product
};

struct warp {
    uint32_t ready, exist;                     // lanes
    rendezvous pending[4];                     // disjoint masks may be at different operations
    bool is_fenced;                            // wgmma.fence since registers were loaded
    unsigned registers;                        // of a thread
    size_t steps;                              // of its warpgroup that it has done
    std::vector<std::vector<product>> groups;  // committed, oldest first
    std::vector<product> open_group;
    std::vector<accumulator> accumulators;
};

// What all warps of a warpgroup must do in the same order.
struct group_step {
    const char *kind;
    uint64_t what, more;
    site at;
};

// An mbarrier.
struct counter {
    uint32_t offset;          // of its 8 bytes in shared memory
    uint32_t count, missing;  // arrivals of a phase, and those of this one that are missing
    int64_t bytes;            // expected and not there; negative where they came first
    uint64_t phase;           // that is on
    unsigned maker;           // thread
    bool is_fenced;           // the async proxy may use it
};

// A cp.async.bulk before it lands.
struct bulk_copy {
    uint32_t to;       // emulated shared address
    const void *from;  // device memory
    uint32_t bytes;
    unsigned counter;  // index
    site at;
};

struct barrier_state {
    unsigned arrived, expected, first;  // expected 0: the whole block
    site at;
};

// One array in shared memory.
struct piece {
    uint32_t offset, bytes;
    const void *key;  // of the declaration; NULL for the dynamic part
};

struct block {
    const shape *launch;
    uint3 index;
    unsigned threads, warps_count, alive, ready;
    std::vector<fiber> fibers;
    std::vector<warp> warps;
    std::vector<unsigned> warp_order;
    unsigned lane_order[32];
    unsigned warp_at, lane_at;  // where the scheduler stands in these orders
    unsigned mode;              // 0: a warp runs on to the next barrier; 1: in turns; 2: at random
    barrier_state barriers[16];
    uint64_t dice;
    uint32_t epoch;  // barriers of the block so far, for races
    char *shared;    // SHARED_BYTES, static arrays first, the dynamic part at half
    std::vector<piece> pieces;
    std::vector<counter> counters;
    std::vector<bulk_copy> bulk_copies;                // not landed, oldest first
    std::vector<std::vector<group_step>> group_steps;  // of each warpgroup
    void *host_stack_pointer, *host_fake_stack;
    const void *host_stack;  // for AddressSanitizer
    size_t host_stack_bytes;
    void (*body)(void *context);
    void *context;
};

// Emulated shared memory does not begin at address 0, static and dynamic parts lie apart, and all
// addresses fit the 18 bits that a descriptor has for them.
constexpr uint32_t SHARED_BASE = 0x400;
constexpr uint32_t SHARED_BYTES = 255u << 10;
constexpr uint32_t SHARED_DYNAMIC = 64u << 10;
constexpr unsigned STATIC_SHARED_MAX = 48u << 10;
constexpr size_t STACK_BYTES = EMULATION_ASAN ? 256u << 10 : 64u << 10;

// The fiber that runs; NULL outside of kernels.
extern thread_local fiber *current;

// The next random number of this block.
uint32_t roll(block *block);

// Formats without the heap: what is built on a fiber's stack is never destroyed after a fault.
struct text {
    char bytes[1024];
};
text format(const char *pattern, ...) __attribute__((format(printf, 1, 2)));
text place(site at);

// Ends the launch with a report about the running fiber. The other fibers are abandoned.
[[noreturn]] void fault(const text &message);

// Memory of the running block at an emulated address, size bytes and aligned to size; faults
// otherwise.
char *shared_memory(uint32_t address, unsigned size, const char *kind, site at);

// The same for any number of bytes, whatever their alignment.
char *shared_range(uint32_t address, uint32_t bytes, const char *kind, site at);

// True when what is started now is to be done at once.
bool lands_early();

// Waits in this state until wake_all of the same number; the caller looks again what it waits for.
void sleep_in(fiber_state state, int number, const char *waits_for, site at);
void wake_all(block *block, fiber_state state, int number);

// When nobody can run: lands the oldest bulk copy. False when there is none.
bool land_oldest(block *block);

// Faults when a lane leaves something of hopper.cpp unfinished behind; is_last of its block.
void check_exit_of_groups(const fiber *fiber, bool is_last);

// Opens bytes of shared memory, all NaN.
void add_piece(block *block, uint32_t offset, size_t bytes, const void *key);

// Checks of races.h; nothing in a build without it.
struct race_hooks {
    void (*access)(fiber *who, uint32_t offset, unsigned bytes, bool is_store, site at);
    void (*in_flight)(uint32_t offset, unsigned bytes, int change);
    void (*begin_block)(unsigned threads);
    void (*begin_launch)();
    void (*sync_lanes)(unsigned warp, uint32_t mask);
    void (*sync_block)(const block *block);
    void (*sync_some)(const block *block, int barrier);  // those that wait there and who runs
    // An mbarrier passes on what those know that arrive.
    void (*arrive)(fiber *who, unsigned counter);
    void (*end_phase)(unsigned counter);
    void (*leave)(fiber *who, unsigned counter);
    // The async proxy: its stores are known through an mbarrier, its loads end at a wait.
    void (*fence)(fiber *who);
    void (*begin_async)(fiber *who, uint32_t offset, unsigned bytes, bool is_store, site at);
    void (*end_load)(fiber *who, uint32_t offset, unsigned bytes, site at);
    void (*end_store)(unsigned counter, uint32_t offset, unsigned bytes, site at);
};
race_hooks &races();

// Device memory, for the race detector: its shadow goes with the allocation.
struct allocation {
    char *memory;
    uint64_t bytes;
};
const std::vector<allocation> &allocations();

}  // namespace emulation

#endif  // KERNELS_EMULATION_FIBER_H
