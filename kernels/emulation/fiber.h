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

enum class fiber_state : uint8_t { ready, in_warp, in_barrier, done };

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
    int barrier;  // number, while in_barrier
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

struct warp {
    uint32_t ready, exist;  // lanes
    rendezvous pending[4];  // disjoint masks may be at different operations
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
    void *host_stack_pointer, *host_fake_stack;
    const void *host_stack;  // for AddressSanitizer
    size_t host_stack_bytes;
    void (*body)(void *context);
    void *context;
};

// Emulated shared memory does not begin at address 0, and static and dynamic parts lie far apart.
constexpr uint32_t SHARED_BASE = 0x400;
constexpr uint32_t SHARED_BYTES = 512u << 10;
constexpr uint32_t SHARED_DYNAMIC = 256u << 10;
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

// Opens bytes of shared memory, all NaN.
void add_piece(block *block, uint32_t offset, size_t bytes, const void *key);

// Checks of races.h; nothing in a build without it.
struct race_hooks {
    void (*access)(fiber *who, uint32_t offset, unsigned bytes, bool is_store, site at);
    void (*in_flight)(uint32_t offset, unsigned bytes, int change);
    void (*begin_block)();
    void (*begin_launch)();
    void (*sync_warp)(unsigned warp);
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
