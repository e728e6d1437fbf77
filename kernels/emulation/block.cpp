// block.cpp - runs the blocks of a launch: fibers, their order, barriers and warp operations.
//
// A switch of fibers saves six registers and changes the stack, which takes some ten nanoseconds;
// swapcontext would make a system call each time. A fault jumps to the host's stack and never comes
// back to the fibers, so nothing on their stacks may own memory.

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "kernels/emulation/fiber.h"

namespace emulation
{

thread_local fiber *current = nullptr;
thread_local const position *here = nullptr;

namespace
{

uint64_t number_from_environment(const char *name, uint64_t otherwise)
{
    const char *value = getenv(name);
    return value == nullptr ? otherwise : strtoull(value, nullptr, 10);
}

options options_from_environment()
{
    options made{};
    made.seed = number_from_environment("LUNA_EMULATION_SEED", 0);
    made.worst_approximation = number_from_environment("LUNA_EMULATION_WORST", 0) != 0;
    made.device_bytes = number_from_environment("LUNA_EMULATION_BYTES", UINT64_C(8) << 30);
    made.fail_at = number_from_environment("LUNA_EMULATION_FAIL_AT", 0);
    made.break_at = number_from_environment("LUNA_EMULATION_BREAK_AT", 0);
    made.conflicts_max = number_from_environment("LUNA_EMULATION_CONFLICTS", UINT64_MAX);
    made.seen = getenv("LUNA_EMULATION_SEEN");
    return made;
}

// What outlives a launch.
struct machine {
    options given = options_from_environment();
    counters counted{};
    struct watcher watching {
    };
    bool has_failed = false;
    char message[4096] = "";
    race_hooks hooks{};
    char *stacks = nullptr;
    size_t stacks_count = 0;
    uint64_t launches = 0;
    std::vector<const void *> seen;  // kernels that are in the file of what ran
    char *shared = nullptr;
};

machine &self()
{
    static machine made;
    return made;
}

}  // namespace

options &settings()
{
    return self().given;
}

counters &counts()
{
    return self().counted;
}

const char *report()
{
    return self().message;
}

void watch(watcher watcher)
{
    self().watching = watcher;
}

race_hooks &races()
{
    return self().hooks;
}

// ---------------------------------------------------------------------------------------------
// Reports

text format(const char *pattern, ...)  // NOLINT(cert-dcl50-cpp): checked as printf is
{
    text made;
    va_list arguments;
    va_start(arguments, pattern);
    vsnprintf(made.bytes, sizeof made.bytes, pattern, arguments);
    va_end(arguments);
    return made;
}

text place(site at)
{
    const char *slash = at.file == nullptr ? nullptr : strrchr(at.file, '/');
    const char *name = slash == nullptr ? at.file : slash + 1;
    return format("%s:%d", name == nullptr ? "?" : name, at.line);
}

namespace
{

void set_report(const block *block, const char *who, const char *message)
{
    machine &machine = self();
    if (machine.has_failed) return;
    machine.has_failed = true;
    snprintf(machine.message, sizeof machine.message, "%s, block (%u, %u, %u)%s, seed %llu: %s",
             block->launch->name, block->index.x, block->index.y, block->index.z, who,
             static_cast<unsigned long long>(machine.given.seed), message);
}

// ---------------------------------------------------------------------------------------------
// Switching

// Saves the registers that a call must keep, stores the stack pointer, takes the other one.
__attribute__((naked, noinline, noipa)) void switch_stacks([[maybe_unused]] void **save,
                                                           [[maybe_unused]] void *to)
{
    asm("pushq %rbp\n"
        "pushq %rbx\n"
        "pushq %r12\n"
        "pushq %r13\n"
        "pushq %r14\n"
        "pushq %r15\n"
        "movq %rsp, (%rdi)\n"
        "movq %rsi, %rsp\n"
        "popq %r15\n"
        "popq %r14\n"
        "popq %r13\n"
        "popq %r12\n"
        "popq %rbx\n"
        "popq %rbp\n"
        "ret");
}

// NULL is the host thread's own stack.
void jump(fiber *from, fiber *to, bool never_back)
{
    block *owner = from != nullptr ? from->owner : to->owner;
    void **saved = from != nullptr ? &from->stack_pointer : &owner->host_stack_pointer;
#if EMULATION_ASAN
    void **fake = from != nullptr ? &from->fake_stack : &owner->host_fake_stack;
    __sanitizer_start_switch_fiber(never_back ? nullptr : fake,
                                   to != nullptr ? to->stack : owner->host_stack,
                                   to != nullptr ? STACK_BYTES : owner->host_stack_bytes);
#else
    static_cast<void>(never_back);
#endif
    current = to;
    here = to != nullptr ? &to->place : nullptr;
    switch_stacks(saved, to != nullptr ? to->stack_pointer : owner->host_stack_pointer);
#if EMULATION_ASAN
    __sanitizer_finish_switch_fiber(from != nullptr ? from->fake_stack : owner->host_fake_stack,
                                    nullptr, nullptr);
#endif
}

[[noreturn]] void leave_launch(fiber *from)
{
    jump(from, nullptr, true);
    __builtin_unreachable();
}

// How many threads wait for what, the first of each kind by its number.
text who_waits(const block *block)
{
    struct group {
        site at;
        const char *what;
        unsigned count, first;
    } groups[8] = {};
    unsigned groups_count = 0;
    for (const fiber &fiber : block->fibers) {
        const char *what = fiber.state == fiber_state::done    ? "exited"
                           : fiber.state == fiber_state::ready ? "running"
                                                               : fiber.waits_for;
        unsigned i = 0;
        while (i < groups_count &&
               (strcmp(groups[i].what, what) != 0 || groups[i].at.line != fiber.at.line)) {
            i++;
        }
        if (i == 8) continue;
        if (i == groups_count) groups[groups_count++] = {fiber.at, what, 0, fiber.index};
        groups[i].count++;
    }
    text made = format("%s", "");
    for (unsigned i = 0; i < groups_count; i++) {
        size_t used = strlen(made.bytes);
        snprintf(made.bytes + used, sizeof made.bytes - used, "%s%u in %s at %s (first: thread %u)",
                 i == 0 ? "" : ", ", groups[i].count, groups[i].what, place(groups[i].at).bytes,
                 groups[i].first);
    }
    return made;
}

// ---------------------------------------------------------------------------------------------
// Who runs next

// The next ready fiber in the block's order; NULL when there is none.
fiber *next_ready(block *block)
{
    if (block->ready == 0) return nullptr;
    for (;;) {
        unsigned warp_index = block->warp_order[block->warp_at];
        warp &warp = block->warps[warp_index];
        while (block->lane_at < 32 && warp.ready != 0) {
            unsigned lane = block->lane_order[block->lane_at++];
            if ((warp.ready >> lane & 1) != 0) return &block->fibers[warp_index * 32 + lane];
        }
        block->lane_at = 0;
        bool stays = block->mode == 0 || (block->mode == 2 && (roll(block) & 3) != 0);
        if (warp.ready != 0 && stays) continue;
        if (block->mode == 2) {
            block->warp_at = roll(block) % block->warps_count;
        } else if (++block->warp_at == block->warps_count) {
            block->warp_at = 0;
        }
    }
}

void permute(block *block)
{
    if (self().given.seed < 2) return;
    for (unsigned i = block->warps_count; i > 1; i--) {
        std::swap(block->warp_order[i - 1], block->warp_order[roll(block) % i]);
    }
    for (unsigned i = 32; i > 1; i--) {
        std::swap(block->lane_order[i - 1], block->lane_order[roll(block) % i]);
    }
    block->mode = roll(block) % 3;
}

void wake(fiber *fiber)
{
    fiber->state = fiber_state::ready;
    fiber->owner->warps[fiber->warp].ready |= 1u << fiber->lane;
    fiber->owner->ready++;
}

// Runs others until somebody wakes this fiber; a fiber that is done never comes back.
void sleep_until_woken(fiber *fiber)
{
    block *block = fiber->owner;
    bool is_done = fiber->state == fiber_state::done;
    block->warps[fiber->warp].ready &= ~(1u << fiber->lane);
    block->ready--;
    struct fiber *next = next_ready(block);
    while (next == nullptr && block->alive > 0 && land_oldest(block)) next = next_ready(block);
    if (next == nullptr && block->alive > 0) {
        fault(format("deadlock, nobody can run: %s", who_waits(block).bytes));
    }
    if (next == nullptr) leave_launch(fiber);
    if (next != fiber) jump(fiber, next, is_done);
}

bool same_site(site a, site b)
{
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

}  // namespace

uint32_t roll(block *block)
{
    block->dice ^= block->dice << 13;
    block->dice ^= block->dice >> 7;
    block->dice ^= block->dice << 17;
    return static_cast<uint32_t>(block->dice >> 16);
}

void fault(const text &message)
{
    fiber *fiber = current;
    uint3 thread = fiber->place.thread;
    text who = format(", thread (%u, %u, %u), warp %u, lane %u", thread.x, thread.y, thread.z,
                      fiber->warp, fiber->lane);
    set_report(fiber->owner, who.bytes, message.bytes);
    leave_launch(fiber);
}

void sleep_in(fiber_state state, int number, const char *waits_for, site at)
{
    fiber *fiber = current;
    fiber->state = state;
    fiber->barrier = number;
    fiber->at = at;
    fiber->waits_for = waits_for;
    sleep_until_woken(fiber);
}

void wake_all(block *block, fiber_state state, int number)
{
    for (fiber &fiber : block->fibers) {
        if (fiber.state == state && fiber.barrier == number) wake(&fiber);
    }
}

// ---------------------------------------------------------------------------------------------
// Barriers

namespace
{

void open_barrier(block *block, int number)
{
    bool whole = block->barriers[number].expected == 0;
    block->barriers[number].arrived = 0;
    if (!whole && races().sync_some != nullptr) races().sync_some(block, number);
    if (whole) {
        if (races().sync_block != nullptr) races().sync_block(block);
        block->epoch++;
        permute(block);
        block->lane_at = 0;
        block->warp_at = 0;
    }
    wake_all(block, fiber_state::in_barrier, number);
}

}  // namespace

void barrier(int number, unsigned count, const char *site_file, int site_line)
{
    fiber *fiber = current;
    block *block = fiber->owner;
    barrier_state &state = block->barriers[number];
    site at{site_file, site_line};
    if (count % 32 != 0) {
        fault(format("barrier %d at %s: %u threads are no whole warps", number, place(at).bytes,
                     count));
    }
    if (count == 0 && block->alive < block->threads) {
        fault(format("barrier at %s after %u threads have exited: %s", place(at).bytes,
                     block->threads - block->alive, who_waits(block).bytes));
    }
    if (state.arrived == 0) {
        state = {0, count, fiber->index, at};
    } else if (!same_site(state.at, at)) {
        fault(format("divergent barrier %d: this thread is at %s, thread %u waits at %s", number,
                     place(at).bytes, state.first, place(state.at).bytes));
    } else if (state.expected != count) {
        fault(format("barrier %d at %s: the counts of threads differ", number, place(at).bytes));
    }
    if (++state.arrived == (count == 0 ? block->alive : count)) {
        open_barrier(block, number);
        if (self().given.seed == 0) return;  // the last to come simply runs on
        struct fiber *next = next_ready(block);
        if (next != fiber) jump(fiber, next, false);
        return;
    }
    sleep_in(fiber_state::in_barrier, number, "barrier", at);
}

// ---------------------------------------------------------------------------------------------
// Warp operations

namespace
{

// The pending operation of exactly these lanes, or a free place for it.
rendezvous *find_rendezvous(warp &warp, const char *kind, uint32_t mask, site at)
{
    rendezvous *free_one = nullptr;
    rendezvous *found = nullptr;
    for (rendezvous &pending : warp.pending) {
        if (pending.arrived == 0) {
            if (free_one == nullptr) free_one = &pending;
        } else if (pending.mask == mask) {
            found = &pending;
        } else if ((pending.mask & mask) != 0) {
            fault(format("%s at %s with mask %08x while other lanes wait in %s at %s with mask "
                         "%08x",
                         kind, place(at).bytes, mask, pending.kind, place(pending.at).bytes,
                         pending.mask));
        }
    }
    if (found != nullptr) return found;
    if (free_one == nullptr) fault(format("too many warp operations are pending in one warp"));
    free_one->mask = mask;
    free_one->kind = kind;
    free_one->at = at;
    return free_one;
}

}  // namespace

void meet(const char *kind, uint32_t mask, void *argument, site at, warp_body body)
{
    fiber *fiber = current;
    block *block = fiber->owner;
    warp &warp = block->warps[fiber->warp];
    uint32_t mine = 1u << fiber->lane;
    if ((mask & mine) == 0) {
        fault(format("%s at %s: the calling lane is not in its mask %08x", kind, place(at).bytes,
                     mask));
    }
    if (mask != ~0u && (mask & ~warp.exist) != 0) {
        fault(format("%s at %s: mask %08x names lanes that do not exist", kind, place(at).bytes,
                     mask));
    }
    rendezvous *meeting = find_rendezvous(warp, kind, mask & warp.exist, at);
    if (strcmp(meeting->kind, kind) != 0 || !same_site(meeting->at, at)) {
        fault(format("warp divergence: this lane is in %s at %s, lanes %08x wait in %s at %s", kind,
                     place(at).bytes, meeting->arrived, meeting->kind, place(meeting->at).bytes));
    }
    meeting->arguments[fiber->lane] = argument;
    meeting->arrived |= mine;
    if (meeting->arrived != meeting->mask) {
        fiber->state = fiber_state::in_warp;
        fiber->at = at;
        fiber->waits_for = kind;
        sleep_until_woken(fiber);
        return;
    }
    meeting->arrived = 0;
    body(meeting->arguments, meeting->mask);
    for (uint32_t rest = meeting->mask & ~mine; rest != 0; rest &= rest - 1) {
        wake(&block->fibers[fiber->warp * 32 + static_cast<unsigned>(__builtin_ctz(rest))]);
    }
}

void sync_warp(uint32_t mask, const char *site_file, int site_line)
{
    meet("__syncwarp", mask, nullptr, site{site_file, site_line}, [](void **, uint32_t lanes) {
        if (races().sync_lanes != nullptr) races().sync_lanes(current->warp, lanes);
    });
}

// ---------------------------------------------------------------------------------------------
// A block's life

namespace
{

void check_exit(const fiber *fiber)
{
    for (const auto &group : fiber->groups) {
        if (!group.empty()) fault(format("exit with cp.async that was never waited for"));
    }
    if (!fiber->open_group.empty()) fault(format("exit with cp.async that was never committed"));
    for (const barrier_state &state : fiber->owner->barriers) {
        if (state.arrived > 0 && state.expected == 0) {
            fault(format("this thread exited while %u threads (first: thread %u) wait at the "
                         "barrier at %s",
                         state.arrived, state.first, place(state.at).bytes));
        }
    }
}

void fiber_main()
{
    block *block = current->owner;
#if EMULATION_ASAN
    const void *bottom = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (block->host_stack == nullptr) {
        block->host_stack = bottom;
        block->host_stack_bytes = bytes;
    }
#endif
    block->body(block->context);
    fiber *fiber = current;
    check_exit(fiber);
    check_exit_of_groups(fiber, block->alive == 1);
    fiber->state = fiber_state::done;
    block->alive--;
    sleep_until_woken(fiber);
    __builtin_unreachable();
}

char *map_or_abort(size_t bytes)
{
    void *mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) abort();  // a test machine without address space
    return static_cast<char *>(mapped);
}

constexpr size_t PAGE_BYTES = 4096;

// One stack for each of count fibers, a guard page below each.
char *stacks_for(size_t count)
{
    machine &machine = self();
    if (count <= machine.stacks_count) return machine.stacks;
    size_t step = STACK_BYTES + PAGE_BYTES;
    if (machine.stacks != nullptr) {
        EMULATION_OPEN(machine.stacks, machine.stacks_count * step);
        munmap(machine.stacks, machine.stacks_count * step);
    }
    machine.stacks = map_or_abort(count * step);
    machine.stacks_count = count;
    for (size_t i = 0; i < count; i++) mprotect(machine.stacks + i * step, PAGE_BYTES, PROT_NONE);
    return machine.stacks;
}

// The first switch pops six registers and returns to fiber_main. Tops are staggered, because equal
// page offsets would share sets of the cache.
void prepare_fiber(block *block, unsigned index, char *stack)
{
    fiber &fiber = block->fibers[index];
    dim3 dim = block->launch->block;
    fiber.owner = block;
    fiber.index = index;
    fiber.lane = index & 31;
    fiber.warp = index >> 5;
    fiber.place.thread = {index % dim.x, index / dim.x % dim.y, index / dim.x / dim.y};
    fiber.place.block = block->index;
    fiber.place.block_dim = dim;
    fiber.place.grid = block->launch->grid;
    fiber.stack = stack;
    fiber.fake_stack = nullptr;
    fiber.at = {};
    fiber.groups.clear();
    fiber.open_group.clear();
    EMULATION_OPEN(stack, STACK_BYTES);
    void **top = reinterpret_cast<void **>(stack + STACK_BYTES - index * 192 % 8192);
    *--top = nullptr;
    *--top = reinterpret_cast<void *>(&fiber_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_pointer = top;
    block->warps[fiber.warp].exist |= 1u << fiber.lane;
    wake(&fiber);
}

void set_order(block *block)
{
    uint64_t seed = self().given.seed;
    uint64_t where = block->index.x * 1000003ull + block->index.y * 10007ull + block->index.z * 101;
    block->dice = UINT64_C(0x9e3779b97f4a7c15) * (seed + 1) + where;
    roll(block);
    for (unsigned i = 0; i < block->warps_count; i++) {
        block->warp_order[i] = seed == 1 ? block->warps_count - 1 - i : i;
    }
    for (unsigned i = 0; i < 32; i++) block->lane_order[i] = seed == 1 ? 31 - i : i;
    block->mode = 0;
    permute(block);
}

void run_block(block *block, uint3 index)
{
    block->index = index;
    block->alive = block->threads;
    block->ready = 0;
    block->warp_at = 0;
    block->lane_at = 0;
    block->epoch++;
    set_order(block);
    for (barrier_state &state : block->barriers) state = {};
    unsigned registers = std::min(65536 / block->threads / 8 * 8, 255u);
    for (warp &warp : block->warps) {
        warp = {};
        warp.registers = registers;
    }
    machine &machine = self();
    if (machine.shared == nullptr) machine.shared = map_or_abort(SHARED_BYTES);
    block->shared = machine.shared;
    EMULATION_SHUT(block->shared, SHARED_BYTES);
    block->pieces.clear();
    if (block->launch->shared_bytes > 0) {
        add_piece(block, SHARED_DYNAMIC, block->launch->shared_bytes, nullptr);
    }
    block->counters.clear();
    block->bulk_copies.clear();
    block->group_steps.assign((block->warps_count + 3) / 4, {});
    if (races().begin_block != nullptr) races().begin_block(block->threads);
    char *stacks = stacks_for(block->threads);
    for (unsigned i = 0; i < block->threads; i++) {
        prepare_fiber(block, i, stacks + i * (STACK_BYTES + PAGE_BYTES) + PAGE_BYTES);
    }
    jump(nullptr, next_ready(block), false);
    EMULATION_OPEN(block->shared, SHARED_BYTES);
    machine.counted.blocks++;
}

// The numbers of all blocks in the order in which they run.
std::vector<uint64_t> order_of_blocks(uint64_t count)
{
    uint64_t seed = self().given.seed;
    std::vector<uint64_t> order(count);
    for (uint64_t i = 0; i < count; i++) order[i] = seed == 1 ? count - 1 - i : i;
    uint64_t state = seed * UINT64_C(0x9e3779b97f4a7c15);
    for (uint64_t i = count; seed >= 2 && i > 1; i--) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        std::swap(order[i - 1], order[(state >> 33) % i]);
    }
    return order;
}

// The most dynamic shared memory of a block: what sm_86, 89 and 120 have; a kernel with wgmma in
// its name is compute capability 9.0's alone.
size_t shared_bytes_max(const shape &shape)
{
    return (strstr(shape.name, "wgmma") != nullptr ? size_t{227} : size_t{99}) << 10;
}

bool may_launch(const shape &shape)
{
    const dim3 &grid = shape.grid;
    const dim3 &block = shape.block;
    bool fits = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.y <= 65535 && grid.z <= 65535;
    fits = fits && grid.x <= 0x7fffffffu && block.x > 0 && block.y > 0 && block.z > 0;
    fits = fits && block.z <= 64 && uint64_t{block.x} * block.y * block.z <= 1024;
    fits = fits && shape.shared_bytes <= shared_bytes_max(shape);
    if (!fits) {
        snprintf(self().message, sizeof self().message,
                 "%s: a device refuses grid (%u, %u, %u), block (%u, %u, %u), %zu bytes of shared "
                 "memory",
                 shape.name, grid.x, grid.y, grid.z, block.x, block.y, block.z, shape.shared_bytes);
    }
    return fits;
}

// Appends "LIBRARY OFFSET" of a kernel's code to the file of what ran, once in a process;
// tests/emulation/kernels.py finds its name.
void note_kernel(const shape &shape)
{
    machine &machine = self();
    if (machine.given.seen == nullptr) return;
    const auto &seen = machine.seen;
    if (std::find(seen.begin(), seen.end(), shape.kernel) != seen.end()) return;
    Dl_info found = {};
    FILE *file = fopen(machine.given.seen, "ae");
    if (file == nullptr || dladdr(shape.kernel, &found) == 0) {
        fprintf(stderr, "%s cannot be noted in %s\n", shape.name, machine.given.seen);
        abort();
    }
    machine.seen.push_back(shape.kernel);
    size_t offset = static_cast<size_t>(static_cast<const char *>(shape.kernel) -
                                        static_cast<const char *>(found.dli_fbase));
    fprintf(file, "%s %zx\n", found.dli_fname, offset);
    fclose(file);
}

// Conflicts of banks cost time and change no value: they fail a launch only where that is asked
// for.
void check_conflicts(const shape &shape, uint64_t conflicts)
{
    machine &machine = self();
    if (machine.has_failed || conflicts <= machine.given.conflicts_max) return;
    machine.has_failed = true;
    snprintf(machine.message, sizeof machine.message,
             "%s: ldmatrix had %llu bank conflicts, %llu are allowed", shape.name,
             static_cast<unsigned long long>(conflicts),
             static_cast<unsigned long long>(machine.given.conflicts_max));
}

}  // namespace

bool run(const shape &shape, void (*body)(void *context), void *context)
{
    machine &machine = self();
    machine.has_failed = false;
    machine.message[0] = '\0';
    if (!may_launch(shape)) return false;
    if (++machine.launches == machine.given.break_at) {
        snprintf(machine.message, sizeof machine.message, "%s: launch %llu was to fail", shape.name,
                 static_cast<unsigned long long>(machine.launches));
        return false;
    }
    note_kernel(shape);
    uint64_t conflicts_before = machine.counted.bank_conflicts;
    block block{};
    block.launch = &shape;
    block.threads = shape.block.x * shape.block.y * shape.block.z;
    block.warps_count = (block.threads + 31) / 32;
    block.fibers.resize(block.threads);
    block.warps.resize(block.warps_count);
    block.warp_order.resize(block.warps_count);
    block.body = body;
    block.context = context;
    open_memory();
    if (races().begin_launch != nullptr) races().begin_launch();
    const dim3 &grid = shape.grid;
    for (uint64_t number : order_of_blocks(uint64_t{grid.x} * grid.y * grid.z)) {
        run_block(&block, {static_cast<unsigned>(number % grid.x),
                           static_cast<unsigned>(number / grid.x % grid.y),
                           static_cast<unsigned>(number / grid.x / grid.y)});
        if (machine.has_failed) break;
        const watcher &watching = machine.watching;
        if (watching.go_on != nullptr && !watching.go_on(watching.context)) break;
    }
    shut_memory();
    check_conflicts(shape, machine.counted.bank_conflicts - conflicts_before);
    return !machine.has_failed;
}

}  // namespace emulation
