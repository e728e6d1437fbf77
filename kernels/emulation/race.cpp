// race.cpp - every load and store of a kernel checked against every other, whatever the schedule.
//
// The kernels are compiled with -fsanitize=thread, but the library is linked without it: the
// compiler then calls __tsan_read and __tsan_write for every access, and those are the functions
// below instead of the sanitizer's. The rule: two accesses to the same bytes, one of them a store,
// by different threads must be ordered, by a block barrier or by a chain of what passes knowledge
// on: __syncwarp, barriers of some threads, mbarriers. Blocks of one launch are never ordered.
// Nothing may touch bytes that a copy is about to write, nothing may write bytes that a wgmma is
// about to read, and nothing may load shared bytes that nobody has written.
//
// Who knows what is kept as vector clocks: a thread counts its ticks, one for each time that it
// passes its knowledge on, and has for every other the tick up to which it knows what that one did.
// What a bulk copy writes is done by its mbarrier, an agent with ticks of its own, so that even the
// thread that issued the copy has to wait. The async proxy sees what was stored by ordinary stores
// only from before a fence of the thread that stored it.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
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
    uint32_t block, epoch;
    uint32_t tick;          // of the thread
    uint16_t thread, line;  // the thread may be an agent
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

constexpr unsigned THREADS_MAX = 1024;
constexpr unsigned AGENTS_MAX = 64;  // mbarriers: threads from THREADS_MAX on
constexpr unsigned ALL_MAX = THREADS_MAX + AGENTS_MAX;

// What somebody knows: everyone's tick.
struct knowledge {
    uint32_t ticks[ALL_MAX];
};

struct passage {
    knowledge gathered;  // of those that arrived in the phase that is on
    knowledge complete;  // of those of the phases before
};

// A fence.proxy.async.
struct proxy_fence {
    uint32_t tick, epoch;  // of its thread, of the block
};

struct detector {
    cell *shared = nullptr;                        // of the running block
    uint8_t *in_flight = nullptr;                  // copies, by granule
    uint8_t *in_use = nullptr;                     // loads of wgmma, by granule
    knowledge *threads = nullptr;                  // of each thread
    passage *passages = nullptr;                   // of each mbarrier
    uint32_t agents[AGENTS_MAX] = {};              // their ticks
    std::vector<std::vector<proxy_fence>> fences;  // of each thread
    std::vector<struct shadow> shadows;            // of device memory
    uint32_t block = 0;                            // running number
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

bool is_agent(unsigned thread)
{
    return thread >= THREADS_MAX;
}

bool is_ordered(const touch &before, const touch &now)
{
    if (before.from == nullptr) return true;
    if (before.block != now.block) return false;
    if (before.thread == now.thread) return true;
    if (!is_agent(before.thread) && before.epoch != now.epoch) return true;
    return self().threads[now.thread].ticks[before.thread] >= before.tick;
}

// Two loads are remembered, of two warps if possible. One that is known here tells nothing more.
void remember_load(cell &cell, const touch &now)
{
    const touch &first = cell.load;
    const touch &second = cell.other_load;
    bool replaces = first.from == nullptr || (first.block == now.block && is_ordered(first, now));
    if (replaces) {
        cell.load = now;
    } else if (second.from == nullptr || second.block != now.block || is_ordered(second, now) ||
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
    now.tick = self().threads[who->index].ticks[who->index];
    return now;
}

touch touch_at(const fiber *who, site at)
{
    touch now = touch_by(who);
    now.from = at.file;
    now.line = static_cast<uint16_t>(at.line);
    return now;
}

uint64_t byte_of(uint32_t granule)
{
    uint64_t byte = uint64_t{granule} * GRANULE;
    return byte >= SHARED_DYNAMIC ? byte - SHARED_DYNAMIC : byte;
}

cell &cell_of(uint32_t granule, const touch &now)
{
    cell &cell = self().shared[granule];
    if (cell.stamp != now.block) cell = {};
    cell.stamp = now.block;
    return cell;
}

void touch_shared(uint32_t offset, unsigned bytes, bool is_store, const touch &now)
{
    for (uint32_t i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; i++) {
        cell &cell = cell_of(i, now);
        uint64_t byte = byte_of(i);
        if (self().in_flight[i] != 0) {
            fault(format("%s at %s touches shared byte %llu while a cp.async into it is in flight",
                         is_store ? "store" : "load", source_of(now).bytes,
                         static_cast<unsigned long long>(byte)));
        }
        if (is_store && self().in_use[i] != 0) {
            fault(format("store at %s to shared byte %llu while a wgmma reads it",
                         source_of(now).bytes, static_cast<unsigned long long>(byte)));
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
    touch_shared(offset, bytes, is_store, touch_at(who, at));
}

void change_in_flight(uint32_t offset, unsigned bytes, int change)
{
    for (uint32_t i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; i++) {
        self().in_flight[i] = static_cast<uint8_t>(self().in_flight[i] + change);
    }
}

void begin_block(unsigned threads)
{
    detector &detector = self();
    detector.is_busy = false;
    detector.block++;
    memset(detector.in_flight, 0, SHARED_BYTES / GRANULE);
    memset(detector.in_use, 0, SHARED_BYTES / GRANULE);
    memset(detector.threads, 0, threads * sizeof(knowledge));
    memset(detector.passages, 0, AGENTS_MAX * sizeof(passage));
    for (unsigned i = 0; i < threads; i++) detector.threads[i].ticks[i] = 1;
    for (uint32_t &tick : detector.agents) tick = 1;
    detector.fences.assign(threads, {});
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

// ---------------------------------------------------------------------------------------------
// Passing knowledge on

void add(knowledge *to, const knowledge &from)
{
    for (unsigned i = 0; i < ALL_MAX; i++) to->ticks[i] = std::max(to->ticks[i], from.ticks[i]);
}

// What a thread knows, for others; what it does from now on is none of it.
void pass_on(const fiber *who, knowledge *to)
{
    knowledge &mine = self().threads[who->index];
    add(to, mine);
    mine.ticks[who->index]++;
}

template <class Takes> void join(const block *block, Takes takes)
{
    knowledge all{};
    for (const fiber &fiber : block->fibers) {
        if (takes(fiber)) pass_on(&fiber, &all);
    }
    for (const fiber &fiber : block->fibers) {
        if (takes(fiber)) add(&self().threads[fiber.index], all);
    }
}

void sync_lanes(unsigned warp, uint32_t mask)
{
    join(current->owner, [warp, mask](const fiber &fiber) {
        return fiber.warp == warp && (mask >> fiber.lane & 1) != 0;
    });
}

void sync_some(const block *block, int barrier)
{
    join(block, [barrier](const fiber &fiber) {
        bool waits = fiber.state == fiber_state::in_barrier && fiber.barrier == barrier;
        return waits || &fiber == current;
    });
}

// Threads need no ticks across a block barrier, they have epochs; what they know of agents they
// share.
void sync_block(const block *block)
{
    for (unsigned i = THREADS_MAX; i < THREADS_MAX + block->counters.size(); i++) {
        uint32_t known = 0;
        for (unsigned t = 0; t < block->threads; t++) {
            known = std::max(known, self().threads[t].ticks[i]);
        }
        for (unsigned t = 0; t < block->threads; t++) self().threads[t].ticks[i] = known;
    }
}

void arrive(fiber *who, unsigned counter)
{
    pass_on(who, &self().passages[counter].gathered);
}

void end_phase(unsigned counter)
{
    passage &passage = self().passages[counter];
    add(&passage.complete, passage.gathered);
    passage.gathered = {};
}

void leave(fiber *who, unsigned counter)
{
    add(&self().threads[who->index], self().passages[counter].complete);
}

// ---------------------------------------------------------------------------------------------
// The async proxy

void fence(fiber *who)
{
    uint32_t &tick = self().threads[who->index].ticks[who->index];
    self().fences[who->index].push_back({tick, who->owner->epoch});
    tick++;
}

// True when the thread that stored has made its fence since, and it is known here.
bool is_fenced(const touch &store, const touch &now)
{
    if (store.from == nullptr || is_agent(store.thread)) return true;
    uint32_t known = self().threads[now.thread].ticks[store.thread];
    for (const proxy_fence &fence : self().fences[store.thread]) {
        bool is_known = fence.epoch != now.epoch || fence.tick < known;
        if (store.tick <= fence.tick && is_known) return true;
    }
    return false;
}

void begin_async(fiber *who, uint32_t offset, unsigned bytes, bool is_store, site at)
{
    touch now = touch_at(who, at);
    for (uint32_t i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; i++) {
        const touch before = cell_of(i, now).store;
        if (!is_fenced(before, now)) {
            fault(format("%s at %s of shared byte %llu, which thread %u stored at %s without "
                         "fence.proxy.async",
                         is_store ? "bulk copy" : "wgmma", source_of(now).bytes,
                         static_cast<unsigned long long>(byte_of(i)), before.thread,
                         source_of(before).bytes));
        }
    }
    touch_shared(offset, bytes, is_store, now);
    uint8_t *uses = is_store ? self().in_flight : self().in_use;
    for (uint32_t i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; i++) uses[i]++;
}

void end_load(fiber *who, uint32_t offset, unsigned bytes, site at)
{
    touch now = touch_at(who, at);
    for (uint32_t i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; i++) {
        self().in_use[i]--;
        remember_load(cell_of(i, now), now);
    }
}

void end_store(unsigned counter, uint32_t offset, unsigned bytes, site at)
{
    uint32_t &tick = self().agents[counter];
    touch now{at.file,
              self().block,
              0,
              tick,
              static_cast<uint16_t>(THREADS_MAX + counter),
              static_cast<uint16_t>(at.line)};
    for (uint32_t i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; i++) {
        self().in_flight[i]--;
        cell_of(i, now).store = now;
    }
    self().passages[counter].gathered.ticks[now.thread] = tick;
    tick++;
}

// Registers are on the fiber's stack: those of sums may not be touched while a wgmma adds to them,
// those of operands not be written.
void check_registers(const fiber *who, const char *at, unsigned bytes, bool is_store,
                     const void *instruction)
{
    auto overlaps = [at, bytes](const void *from, size_t count) {
        const char *begin = static_cast<const char *>(from);
        return at < begin + count && begin < at + bytes;
    };
    const warp &warp = who->owner->warps[who->warp];
    for (const accumulator &sums : warp.accumulators) {
        if (!overlaps(sums.registers[who->lane], sums.n / 2 * sizeof(float))) continue;
        fault(format("%s at instruction %p of sums that the wgmma at %s adds to",
                     is_store ? "store" : "load", instruction, place(sums.at).bytes));
    }
    for (const auto &group : warp.groups) {
        for (const product &product : group) {
            if (!is_store || !overlaps(product.lanes[who->lane].a, 16)) continue;
            fault(format("store at instruction %p to operands that the wgmma at %s reads",
                         instruction, place(product.at).bytes));
        }
    }
}

// Runs before any kernel, when the library is loaded.
struct installer {
    installer() noexcept
    {
        self().shared = static_cast<cell *>(map_zeros(cells_bytes(SHARED_BYTES)));
        self().in_flight = static_cast<uint8_t *>(map_zeros(SHARED_BYTES / GRANULE + 1));
        self().in_use = static_cast<uint8_t *>(map_zeros(SHARED_BYTES / GRANULE + 1));
        self().threads = static_cast<knowledge *>(map_zeros(THREADS_MAX * sizeof(knowledge)));
        self().passages = static_cast<passage *>(map_zeros(AGENTS_MAX * sizeof(passage)));
        races() = {access,     change_in_flight, begin_block, begin_launch, sync_lanes,
                   sync_block, sync_some,        arrive,      end_phase,    leave,
                   fence,      begin_async,      end_load,    end_store};
    }
};
const installer installed;

// An access that the compiler announced.
void announce(void *at, unsigned bytes, bool is_store, const void *instruction)
{
    fiber *who = current;
    const char *address = static_cast<const char *>(at);
    if (who == nullptr || self().is_busy) return;
    if (address >= who->stack && address < who->stack + STACK_BYTES) {
        check_registers(who, address, bytes, is_store, instruction);
        return;
    }
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
