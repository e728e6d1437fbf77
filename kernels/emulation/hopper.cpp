// hopper.cpp - what compute capability 9.0 adds: barriers that count arrivals and bytes, bulk
// copies, products of warpgroups, registers that move between warpgroups.
//
// What is asynchronous on the device is remembered when it is issued. A bulk copy lands at once, or
// as late as it can: when no thread can run, or at some wait. A product is done at once, or at the
// wait for its group: its operands are read from registers and shared memory only then, and the
// registers of its sums are NaN meanwhile. That nobody wrote to them in between is checked at the
// wait; what reads them, and what touches the shared memory that a product reads or a copy writes,
// the race detector sees.
//
// The four warps of a warpgroup may run apart, but each must do the same: every warp's steps are
// compared with those of the first that came there.

#include <algorithm>

#include "kernels/emulation/fiber.h"

namespace emulation
{

// ---------------------------------------------------------------------------------------------
// Barriers

namespace
{

constexpr int64_t BYTES_MAX = (1 << 20) - 1;  // that a phase may wait for
constexpr unsigned COUNTERS_MAX = 64;

uint32_t offset_of(const uint64_t *at, const char *kind, site where)
{
    uint32_t address = shared_address(at, where.file, where.line);
    shared_memory(address, 8, kind, where);
    return address - SHARED_BASE;
}

unsigned find_counter(const uint64_t *at, const char *kind, site where)
{
    const std::vector<counter> &counters = current->owner->counters;
    uint32_t offset = offset_of(at, kind, where);
    for (unsigned i = 0; i < counters.size(); i++) {
        if (counters[i].offset != offset) continue;
        if (races().access != nullptr) races().access(current, offset, 8, false, where);
        return i;
    }
    fault(format("%s at %s: there is no mbarrier, or not yet", kind, place(where).bytes));
}

void change_counter(unsigned index, unsigned arrivals, int64_t bytes, site where)
{
    block *block = current->owner;
    counter &counter = block->counters[index];
    counter.bytes += bytes;
    if (counter.bytes > BYTES_MAX || counter.bytes < -BYTES_MAX) {
        fault(format("mbarrier at %s: %lld bytes are expected, more than it can count",
                     place(where).bytes, static_cast<long long>(counter.bytes)));
    }
    if (arrivals > counter.missing) {
        fault(format("mbarrier.arrive at %s: all %u of the phase have arrived, bytes are missing",
                     place(where).bytes, counter.count));
    }
    counter.missing -= arrivals;
    if (counter.missing > 0 || counter.bytes != 0) return;
    counter.missing = counter.count;
    counter.phase++;
    if (races().end_phase != nullptr) races().end_phase(index);
    wake_all(block, fiber_state::in_counter, static_cast<int>(index));
}

}  // namespace

void counter_create(uint64_t *at, uint32_t count, const char *site_file, int site_line)
{
    site where{site_file, site_line};
    block *block = current->owner;
    uint32_t offset = offset_of(at, "mbarrier.init", where);
    for (const counter &other : block->counters) {
        if (other.offset == offset) {
            fault(format("mbarrier.init at %s: there is one already", place(where).bytes));
        }
    }
    if (count == 0 || count > BYTES_MAX || block->counters.size() == COUNTERS_MAX) {
        fault(format("mbarrier.init at %s: %u arrivals, %zu other barriers", place(where).bytes,
                     count, block->counters.size()));
    }
    if (races().access != nullptr) races().access(current, offset, 8, true, where);
    block->counters.push_back({offset, count, count, 0, 0, current->index, false});
}

void counter_arrive(uint64_t *at, uint32_t expected_bytes, const char *site_file, int site_line)
{
    site where{site_file, site_line};
    unsigned index = find_counter(at, "mbarrier.arrive", where);
    if (races().arrive != nullptr) races().arrive(current, index);
    change_counter(index, 1, expected_bytes, where);
}

// ---------------------------------------------------------------------------------------------
// Bulk copies

namespace
{

void land(block *block, size_t which)
{
    bulk_copy copy = block->bulk_copies[which];
    block->bulk_copies.erase(block->bulk_copies.begin() + static_cast<ptrdiff_t>(which));
    memcpy(shared_range(copy.to, copy.bytes, "cp.async.bulk", copy.at), copy.from, copy.bytes);
    if (races().end_store != nullptr) {
        races().end_store(copy.counter, copy.to - SHARED_BASE, copy.bytes, copy.at);
    }
    change_counter(copy.counter, 0, -static_cast<int64_t>(copy.bytes), copy.at);
}

}  // namespace

bool land_oldest(block *block)
{
    if (block->bulk_copies.empty()) return false;
    land(block, 0);
    return true;
}

void counter_wait(uint64_t *at, uint32_t parity, const char *site_file, int site_line)
{
    site where{site_file, site_line};
    block *block = current->owner;
    unsigned index = find_counter(at, "mbarrier.try_wait", where);
    if (parity > 1) fault(format("mbarrier.try_wait at %s: parity %u", place(where).bytes, parity));
    if (settings().seed >= 2 && !block->bulk_copies.empty() && roll(block) % 4 == 0) {
        land(block, roll(block) % block->bulk_copies.size());
    }
    while (block->counters[index].phase % 2 == parity) {
        sleep_in(fiber_state::in_counter, static_cast<int>(index), "mbarrier.try_wait", where);
    }
    if (races().leave != nullptr) races().leave(current, index);
}

void fence_async(site at)
{
    static_cast<void>(at);
    for (counter &counter : current->owner->counters) {
        if (counter.maker == current->index) counter.is_fenced = true;
    }
    if (races().fence != nullptr) races().fence(current);
}

void copy_bulk(void *to, const void *from, uint32_t bytes, uint64_t *counter, const char *site_file,
               int site_line)
{
    site where{site_file, site_line};
    block *block = current->owner;
    uint32_t address = shared_address(to, site_file, site_line);
    unsigned index = find_counter(counter, "cp.async.bulk", where);
    counts().copies++;
    if (address % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0 || bytes % 16 != 0) {
        fault(format("cp.async.bulk at %s: %u bytes to +0x%x: not all in multiples of 16",
                     place(where).bytes, bytes, address - SHARED_BASE));
    }
    if (bytes == 0 || !is_device_memory(from, bytes)) {
        fault(format("cp.async.bulk at %s: the source is outside of device memory",
                     place(where).bytes));
    }
    if (!block->counters[index].is_fenced) {
        fault(format("cp.async.bulk at %s: no fence.proxy.async behind the mbarrier's init",
                     place(where).bytes));
    }
    shared_range(address, bytes, "cp.async.bulk", where);
    if (races().begin_async != nullptr) {
        races().begin_async(current, address - SHARED_BASE, bytes, true, where);
    }
    block->bulk_copies.push_back({address, from, bytes, index, where});
    if (lands_early()) land(block, block->bulk_copies.size() - 1);
}

// ---------------------------------------------------------------------------------------------
// Warpgroups

namespace
{

bool same(const group_step &a, const group_step &b)
{
    return strcmp(a.kind, b.kind) == 0 && a.what == b.what && a.more == b.more;
}

// The next step of the running warp; called once for the warp.
void take_step(const group_step &step)
{
    block *block = current->owner;
    warp &warp = block->warps[current->warp];
    std::vector<group_step> &steps = block->group_steps[current->warp / 4];
    if (block->warps_count < current->warp / 4 * 4 + 4) {
        fault(
            format("%s at %s: this warpgroup has no four warps", step.kind, place(step.at).bytes));
    }
    if (warp.steps == steps.size()) steps.push_back(step);
    const group_step &other = steps[warp.steps++];
    if (!same(step, other)) {
        fault(format("%s at %s: another warp of the warpgroup did %s at %s, or with other operands",
                     step.kind, place(step.at).bytes, other.kind, place(other.at).bytes));
    }
}

struct register_part {
    unsigned count;
    bool takes;
    site at;
};

unsigned registers_of(const block *block)
{
    unsigned sum = 0;
    for (const warp &warp : block->warps) sum += warp.registers * 32;
    return sum;
}

void execute_set_registers(void **arguments, uint32_t mask)
{
    static_cast<void>(mask);
    const auto *part = static_cast<register_part *>(arguments[0]);
    block *block = current->owner;
    warp &warp = block->warps[current->warp];
    bool is_wrong_way = part->takes ? part->count < warp.registers : part->count > warp.registers;
    if (part->count % 8 != 0 || part->count < 24 || part->count > 256 || is_wrong_way) {
        fault(format("setmaxnreg at %s: from %u to %u registers", place(part->at).bytes,
                     warp.registers, part->count));
    }
    take_step({"setmaxnreg", part->count, part->takes, part->at});
    if (part->takes) return;
    warp.registers = part->count;
    wake_all(block, fiber_state::in_registers, 0);
}

}  // namespace

void set_registers(unsigned count, bool takes, const char *site_file, int site_line)
{
    register_part part{count, takes, {site_file, site_line}};
    block *block = current->owner;
    warp &warp = block->warps[current->warp];
    meet("setmaxnreg", ~0u, &part, part.at, execute_set_registers);
    while (warp.registers < count) {
        if (registers_of(block) + (count - warp.registers) * 32 <= 65536) {
            warp.registers = count;
            break;
        }
        sleep_in(fiber_state::in_registers, 0, "setmaxnreg", part.at);
    }
}

// ---------------------------------------------------------------------------------------------
// Products

namespace
{

typedef float eight __attribute__((vector_size(32)));

constexpr unsigned COLUMNS_MAX = 160;    // of what gpu_hopper.h has
constexpr uint32_t ATOM_BYTES = 512;     // eight rows of 64 bytes, the pattern of the swizzle
constexpr uint32_t POISON = 0x7fc0dead;  // a NaN in the registers of sums

struct product_part {
    group_product product;
    site at;
};

// Element k of column n lies there; the swizzle exchanges units of 16 bytes by bits of the address.
uint32_t column_at(uint64_t columns, unsigned n, unsigned k)
{
    uint32_t first = static_cast<uint32_t>(columns & 0x3fff) << 4;
    uint32_t address = first + n / 8 * ATOM_BYTES + n % 8 * 64 + k / 8 * 16;
    return (address ^ (address >> 7 & 3) << 4) + k % 8 * 2;
}

// The one form that our kernels use: 64-byte swizzle, rows of 64 bytes, groups of eight 512 apart.
void check_columns(const group_product &product, site at)
{
    uint32_t first = static_cast<uint32_t>(product.columns & 0x3fff) << 4;
    uint32_t stride = static_cast<uint32_t>(product.columns >> 32 & 0x3fff) << 4;
    bool is_known =
        product.columns >> 62 == 2 && stride == ATOM_BYTES && (product.columns >> 49 & 7) == 0;
    if (!is_known || first % ATOM_BYTES > 32 || first % 32 != 0) {
        fault(format("wgmma at %s: descriptor %016llx is none of 64-byte rows in their swizzle",
                     place(at).bytes, static_cast<unsigned long long>(product.columns)));
    }
    shared_range(first / ATOM_BYTES * ATOM_BYTES, product.n * 64, "wgmma", at);
}

template <class Visit> void each_unit(const group_product &product, Visit visit)
{
    for (unsigned n = 0; n < product.n; n++) {
        visit(column_at(product.columns, n, 0) - SHARED_BASE);
        visit(column_at(product.columns, n, 8) - SHARED_BASE);
    }
}

// Row and column of value i of a lane's sums.
unsigned row_of(unsigned lane, unsigned i)
{
    return lane / 4 + i / 2 % 2 * 8;
}

unsigned column_of(unsigned lane, unsigned i)
{
    return i / 4 * 8 + lane % 4 * 2 + i % 2;
}

void show(accumulator *sums, bool are_values)
{
    unsigned count = sums->n / 2;
    for (unsigned lane = 0; lane < 32; lane++) {
        for (unsigned i = 0; i < count; i++) {
            float value;
            memcpy(&value, &POISON, sizeof value);
            if (are_values) value = sums->values[row_of(lane, i) * sums->n + column_of(lane, i)];
            sums->shown[lane * count + i] = value;
        }
        memcpy(sums->registers[lane], &sums->shown[lane * count], count * sizeof(float));
    }
}

void check_shown(const accumulator &sums, site at)
{
    unsigned count = sums.n / 2;
    for (unsigned lane = 0; lane < 32; lane++) {
        if (memcmp(sums.registers[lane], &sums.shown[lane * count], count * sizeof(float)) != 0) {
            fault(format("wgmma at %s: its sums were written before the wait at %s",
                         place(sums.at).bytes, place(at).bytes));
        }
    }
}

accumulator *find_sums(warp *warp, const float *registers)
{
    for (accumulator &sums : warp->accumulators) {
        if (sums.registers[0] == registers) return &sums;
    }
    return nullptr;
}

// The sums of a product that begins: those that others add to already, or what registers hold.
void add_to_sums(warp *warp, const product &product)
{
    accumulator *known = find_sums(warp, product.lanes[0].d);
    if (known != nullptr && known->n != product.lanes[0].n) {
        fault(format("wgmma at %s: other columns than the product at %s that adds to the same",
                     place(product.at).bytes, place(known->at).bytes));
    }
    if (known != nullptr) {
        known->products++;
        return;
    }
    accumulator sums{};
    sums.n = product.lanes[0].n;
    sums.products = 1;
    sums.at = product.at;
    sums.values.resize(size_t{16} * sums.n);
    sums.shown.resize(size_t{16} * sums.n);
    for (unsigned lane = 0; lane < 32; lane++) {
        sums.registers[lane] = product.lanes[lane].d;
        for (unsigned i = 0; i < sums.n / 2; i++) {
            sums.values[row_of(lane, i) * sums.n + column_of(lane, i)] = product.lanes[lane].d[i];
        }
    }
    show(&sums, false);
    warp->accumulators.push_back(std::move(sums));
}

float widen(uint32_t bits, bool is_bf16)
{
    if (is_bf16) return __bfloat162float({static_cast<uint16_t>(bits)});
    return __half2float({static_cast<uint16_t>(bits)});
}

void read_columns(const group_product &product, float (*b)[COLUMNS_MAX])
{
    const char *shared = current->owner->shared;
    for (unsigned n = 0; n < product.n; n++) {
        for (unsigned unit = 0; unit < 16; unit += 8) {
            uint16_t elements[8];
            memcpy(elements, shared + column_at(product.columns, n, unit) - SHARED_BASE, 16);
            for (unsigned k = 0; k < 8; k++) b[unit + k][n] = widen(elements[k], product.is_bf16);
        }
    }
}

void read_rows(const product &product, float a[16][16])
{
    for (unsigned lane = 0; lane < 32; lane++) {
        for (unsigned r = 0; r < 4; r++) {
            uint32_t bits = product.lanes[lane].a[r];
            float *at = &a[lane / 4 + 8 * (r & 1)][lane % 4 * 2 + 8 * (r >> 1)];
            at[0] = widen(bits & 0xffff, product.lanes[lane].is_bf16);
            at[1] = widen(bits >> 16, product.lanes[lane].is_bf16);
        }
    }
}

// Sums in order of k, as in tensor_core.cpp.
void execute(warp *warp, product *product)
{
    const group_product &first = product->lanes[0];
    accumulator *sums = find_sums(warp, first.d);
    float a[16][16];
    float b[16][COLUMNS_MAX];
    counts().multiplications++;
    read_rows(*product, a);
    read_columns(first, b);
    for (unsigned m = 0; m < 16; m++) {
        for (unsigned n = 0; n < first.n; n += 8) {
            eight sum;
            memcpy(&sum, &sums->values[m * first.n + n], sizeof sum);
            for (unsigned k = 0; k < 16; k++) {
                eight row;
                memcpy(&row, &b[k][n], sizeof row);
                sum += a[m][k] * row;
            }
            memcpy(&sums->values[m * first.n + n], &sum, sizeof sum);
        }
    }
    product->is_done = true;
}

// All that is under way, in order.
void execute_all(warp *warp)
{
    for (auto &group : warp->groups) {
        for (product &product : group) {
            if (!product.is_done) execute(warp, &product);
        }
    }
    for (product &product : warp->open_group) {
        if (!product.is_done) execute(warp, &product);
    }
    for (accumulator &sums : warp->accumulators) {
        check_shown(sums, sums.at);
        show(&sums, true);
    }
}

void start_product(void **arguments, uint32_t mask)
{
    static_cast<void>(mask);
    block *block = current->owner;
    warp &warp = block->warps[current->warp];
    const auto *first = static_cast<product_part *>(arguments[0]);
    product made{};
    made.at = first->at;
    for (unsigned lane = 0; lane < 32; lane++) {
        made.lanes[lane] = static_cast<product_part *>(arguments[lane])->product;
        memcpy(made.operands[lane], made.lanes[lane].a, sizeof made.operands[lane]);
        if (made.lanes[lane].columns != first->product.columns) {
            fault(format("wgmma at %s: the lanes' descriptors differ", place(made.at).bytes));
        }
    }
    take_step({"wgmma", first->product.columns, first->product.n, made.at});
    if (!warp.is_fenced) {
        fault(format("wgmma at %s: no wgmma.fence since its registers were loaded or the last "
                     "group was committed",
                     place(made.at).bytes));
    }
    check_columns(first->product, made.at);
    if (races().begin_async != nullptr) {
        each_unit(first->product, [&made](uint32_t offset) {
            races().begin_async(current, offset, 16, false, made.at);
        });
    }
    add_to_sums(&warp, made);
    warp.open_group.push_back(made);
    if (lands_early()) execute_all(&warp);
}

void finish_product(warp *warp, product *product, site at)
{
    for (unsigned lane = 0; lane < 32; lane++) {
        const group_product &mine = product->lanes[lane];
        if (memcmp(product->operands[lane], mine.a, sizeof product->operands[lane]) != 0) {
            fault(format("wgmma at %s: its operands were written before the wait at %s",
                         place(product->at).bytes, place(at).bytes));
        }
    }
    if (!product->is_done) execute(warp, product);
    if (races().end_load != nullptr) {
        each_unit(product->lanes[0],
                  [&at](uint32_t offset) { races().end_load(current, offset, 16, at); });
    }
    accumulator *sums = find_sums(warp, product->lanes[0].d);
    if (--sums->products > 0) return;
    check_shown(*sums, at);
    show(sums, true);
    warp->accumulators.erase(warp->accumulators.begin() + (sums - warp->accumulators.data()));
}

struct wait_part {
    unsigned groups_left;
    site at;
};

void execute_wait(void **arguments, uint32_t mask)
{
    static_cast<void>(mask);
    const auto *part = static_cast<wait_part *>(arguments[0]);
    warp &warp = current->owner->warps[current->warp];
    while (warp.groups.size() > part->groups_left) {
        for (product &product : warp.groups.front()) finish_product(&warp, &product, part->at);
        warp.groups.erase(warp.groups.begin());
    }
}

}  // namespace

void group_multiply(const group_product &product, site at)
{
    product_part part{product, at};
    meet("wgmma.mma_async", ~0u, &part, at, start_product);
}

void group_fence(site at)
{
    meet("wgmma.fence", ~0u, nullptr, at,
         [](void **, uint32_t) { current->owner->warps[current->warp].is_fenced = true; });
}

void group_commit(site at)
{
    meet("wgmma.commit_group", ~0u, nullptr, at, [](void **, uint32_t) {
        warp &warp = current->owner->warps[current->warp];
        warp.is_fenced = false;
        warp.groups.push_back(std::move(warp.open_group));
        warp.open_group.clear();
    });
}

void group_wait(unsigned groups_left, site at)
{
    wait_part part{groups_left, at};
    meet("wgmma.wait_group", ~0u, &part, at, execute_wait);
}

void check_exit_of_groups(const fiber *fiber, bool is_last)
{
    const block *block = fiber->owner;
    const warp &mine = block->warps[fiber->warp];
    bool is_waited = mine.open_group.empty();
    for (const auto &group : mine.groups) is_waited = is_waited && group.empty();
    if (!is_waited) fault(format("exit with wgmma that was never waited for"));
    if (!is_last) return;
    if (!block->bulk_copies.empty()) {
        fault(format("the block ends with the cp.async.bulk at %s in flight",
                     place(block->bulk_copies[0].at).bytes));
    }
    for (unsigned i = 0; i < block->warps_count; i++) {
        const std::vector<group_step> &steps = block->group_steps[i / 4];
        if (block->warps[i].steps == steps.size()) continue;
        const group_step &missed = steps[block->warps[i].steps];
        fault(format("warp %u ended without the %s at %s of its warpgroup", i, missed.kind,
                     place(missed.at).bytes));
    }
}

}  // namespace emulation
