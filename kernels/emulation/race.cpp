// race.cpp - every load and store of a kernel checked against every other, whatever the schedule.
//
// The kernels are compiled with -fsanitize=thread, but the library is linked without it: the
// compiler then calls __tsan_read and __tsan_write for every access, and those are the functions
// below instead of the sanitizer's. The rule: two accesses to the same bytes, one of them a store,
// by different threads must have a block barrier between them, or __syncwarp within a warp; blocks
// of one launch are never ordered. Nothing may touch bytes that a cp.async is about to write, and
// nothing may load shared bytes that nobody has written.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "kernels/emulation/fiber.h"

namespace emulation
{

namespace
{

// The last time that somebody touched a granule.
struct touch {
    const void *from;  // a file's name, or the address of the instruction when line is 0
    int line;
    uint32_t block, epoch;
    uint16_t thread, warp_epoch;
};

struct cell {
    touch store, load, other_load;
    uint32_t stamp;  // the block (shared) or launch (device) that the touches belong to
};

constexpr unsigned GRANULE = 2;  // bytes: the smallest element that threads store side by side

struct shadow {
    const char *memory;  // of the allocation
    uint64_t bytes;
    cell *cells;
};

struct detector {
    cell *shared = nullptr;              // of the running block
    uint8_t *in_flight = nullptr;        // copies, by granule
    uint16_t warp_epochs[32] = {};       // __syncwarp of each warp
    std::vector<struct shadow> shadows;  // of device memory
    uint32_t block = 0;                  // running number
    uint32_t launch = 0;
    bool is_busy = false;
};

detector &self()
{
    static detector made;
    return made;
}

void *map_zeros(size_t bytes)
{
    void *mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) abort();  // a test machine without address space
    return mapped;
}

text source_of(const touch &touch)
{
    if (touch.line > 0) return place(site{static_cast<const char *>(touch.from), touch.line});
    return format("instruction %p", touch.from);
}

void clash(const char *space, uint64_t offset, const touch &mine, bool i_store, const touch &other,
           bool other_stores)
{
    fault(format("race in %s memory at byte %llu: %s at %s and %s by thread %u%s at %s without "
                 "synchronisation between them",
                 space, static_cast<unsigned long long>(offset), i_store ? "store" : "load",
                 source_of(mine).bytes, other_stores ? "store" : "load", other.thread,
                 other.block == mine.block ? "" : " of another block", source_of(other).bytes));
}

bool is_ordered(const touch &before, const touch &now)
{
    if (before.from == nullptr) return true;
    if (before.block != now.block) return false;
    if (before.thread == now.thread || before.epoch != now.epoch) return true;
    return before.thread / 32 == now.thread / 32 && before.warp_epoch != now.warp_epoch;
}

// Two loads are remembered, of two warps if possible.
void remember_load(cell &cell, const touch &now)
{
    const touch &first = cell.load;
    const touch &second = cell.other_load;
    bool replaces =
        first.from == nullptr ||
        (first.block == now.block && (first.thread == now.thread || first.epoch != now.epoch));
    if (replaces) {
        cell.load = now;
    } else if (second.from == nullptr || second.epoch != now.epoch || second.block != now.block ||
               second.thread / 32 == first.thread / 32) {
        cell.other_load = now;
    }
}

void check(cell &cell, const touch &now, bool is_store, const char *space, uint64_t offset)
{
    if (!is_ordered(cell.store, now)) clash(space, offset, now, is_store, cell.store, true);
    if (!is_store) {
        remember_load(cell, now);
        return;
    }
    if (!is_ordered(cell.load, now)) clash(space, offset, now, true, cell.load, false);
    if (!is_ordered(cell.other_load, now)) clash(space, offset, now, true, cell.other_load, false);
    cell.store = now;
}

touch touch_by(const fiber *who)
{
    touch now{};
    now.block = self().block;
    now.epoch = who->owner->epoch;
    now.thread = static_cast<uint16_t>(who->index);
    now.warp_epoch = self().warp_epochs[who->warp];
    return now;
}

void touch_shared(uint32_t offset, unsigned bytes, bool is_store, const touch &now)
{
    for (uint32_t i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; i++) {
        cell &cell = self().shared[i];
        uint64_t byte = uint64_t{i} * GRANULE;
        if (byte >= SHARED_DYNAMIC) byte -= SHARED_DYNAMIC;
        if (cell.stamp != now.block) cell = {};
        cell.stamp = now.block;
        if (self().in_flight[i] != 0) {
            fault(format("%s at %s touches shared byte %llu while a cp.async into it is in flight",
                         is_store ? "store" : "load", source_of(now).bytes,
                         static_cast<unsigned long long>(byte)));
        }
        if (!is_store && cell.store.from == nullptr) {
            fault(format("load at %s of shared byte %llu that nobody has written",
                         source_of(now).bytes, static_cast<unsigned long long>(byte)));
        }
        check(cell, now, is_store, "shared", byte);
    }
}

void touch_device(const char *at, unsigned bytes, bool is_store, const touch &now)
{
    for (const struct shadow &shadow : self().shadows) {
        if (at < shadow.memory || at + bytes > shadow.memory + shadow.bytes) continue;
        uint64_t offset = static_cast<uint64_t>(at - shadow.memory);
        for (uint64_t i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; i++) {
            cell &cell = shadow.cells[i];
            if (cell.stamp != self().launch) cell = {};
            cell.stamp = self().launch;
            check(cell, now, is_store, "device", i * GRANULE);
        }
        return;
    }
}

void access(fiber *who, uint32_t offset, unsigned bytes, bool is_store, site at)
{
    touch now = touch_by(who);
    now.from = at.file;
    now.line = at.line;
    touch_shared(offset, bytes, is_store, now);
}

void change_in_flight(uint32_t offset, unsigned bytes, int change)
{
    for (uint32_t i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; i++) {
        self().in_flight[i] = static_cast<uint8_t>(self().in_flight[i] + change);
    }
}

void begin_block()
{
    detector &detector = self();
    detector.is_busy = false;
    detector.block++;
    memset(detector.in_flight, 0, SHARED_BYTES / GRANULE);
    memset(detector.warp_epochs, 0, sizeof detector.warp_epochs);
}

uint64_t cells_bytes(uint64_t bytes)
{
    return (bytes / GRANULE + 1) * sizeof(cell);
}

// A shadow for every allocation that has none, none for those that are gone.
void begin_launch()
{
    detector &detector = self();
    std::vector<struct shadow> kept;
    for (const allocation &item : allocations()) {
        struct shadow shadow {
            item.memory, item.bytes, nullptr
        };
        for (struct shadow &old : detector.shadows) {
            if (old.memory != item.memory || old.bytes != item.bytes) continue;
            shadow.cells = old.cells;
            old.cells = nullptr;
        }
        if (shadow.cells == nullptr) {
            shadow.cells = static_cast<cell *>(map_zeros(cells_bytes(item.bytes)));
        }
        kept.push_back(shadow);
    }
    for (const struct shadow &old : detector.shadows) {
        if (old.cells != nullptr) munmap(old.cells, cells_bytes(old.bytes));
    }
    detector.shadows = kept;
    detector.launch++;
}

void sync_warp_of(unsigned warp)
{
    self().warp_epochs[warp]++;
}

// Runs before any kernel, when the library is loaded.
struct installer {
    installer() noexcept
    {
        self().shared = static_cast<cell *>(map_zeros(cells_bytes(SHARED_BYTES)));
        self().in_flight = static_cast<uint8_t *>(map_zeros(SHARED_BYTES / GRANULE + 1));
        races() = {access, change_in_flight, begin_block, begin_launch, sync_warp_of};
    }
};
const installer installed;

// An access that the compiler announced.
void announce(void *at, unsigned bytes, bool is_store, const void *instruction)
{
    fiber *who = current;
    const char *address = static_cast<const char *>(at);
    if (who == nullptr || self().is_busy) return;
    if (address >= who->stack && address < who->stack + STACK_BYTES) return;
    ptrdiff_t offset = address - who->owner->shared;
    self().is_busy = true;
    touch now = touch_by(who);
    now.from = instruction;
    if (offset >= 0 && offset < static_cast<ptrdiff_t>(SHARED_BYTES)) {
        touch_shared(static_cast<uint32_t>(offset), bytes, is_store, now);
    } else {
        touch_device(address, bytes, is_store, now);
    }
    self().is_busy = false;
}

}  // namespace

}  // namespace emulation

// ---------------------------------------------------------------------------------------------
// What instrumented code calls

// NOLINTBEGIN: the names are the compiler's.
#define ACCESS(name, bytes, is_store)                                                              \
    void name(void *at)                                                                            \
    {                                                                                              \
        emulation::announce(at, bytes, is_store, __builtin_return_address(0));                     \
    }
#define ACCESSES(bytes)                                                                            \
    ACCESS(__tsan_read##bytes, bytes, false)                                                       \
    ACCESS(__tsan_write##bytes, bytes, true)                                                       \
    ACCESS(__tsan_unaligned_read##bytes, bytes, false)                                             \
    ACCESS(__tsan_unaligned_write##bytes, bytes, true)                                             \
    ACCESS(__tsan_volatile_read##bytes, bytes, false)                                              \
    ACCESS(__tsan_volatile_write##bytes, bytes, true)
// Atomic operations are ordered with each other, so they are not announced.
#define ATOMICS(bits, type)                                                                        \
    type __tsan_atomic##bits##_load(const volatile type *at, int)                                  \
    {                                                                                              \
        return *at;                                                                                \
    }                                                                                              \
    void __tsan_atomic##bits##_store(volatile type *at, type value, int)                           \
    {                                                                                              \
        *at = value;                                                                               \
    }

extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
void __tsan_init()
{
}
void __tsan_func_entry(void *)
{
}
void __tsan_func_exit()
{
}
void __tsan_read_range(void *at, unsigned long bytes)
{
    if (bytes > 0) {
        emulation::announce(at, static_cast<unsigned>(bytes), false, __builtin_return_address(0));
    }
}
void __tsan_write_range(void *at, unsigned long bytes)
{
    if (bytes > 0) {
        emulation::announce(at, static_cast<unsigned>(bytes), true, __builtin_return_address(0));
    }
}
}
// NOLINTEND
