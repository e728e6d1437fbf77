// memory.cpp - shared memory of the running block, device memory, and copies between them.
//
// What nobody has written is 0xff in every byte: a NaN in each of the float types. A copy in flight
// is remembered by the thread that issued it. Its bytes land at once or at that thread's wait, as
// the seed says, never before and never after.

#include <algorithm>
#include <cstdlib>

#include "kernels/emulation/fiber.h"

namespace emulation
{

// ---------------------------------------------------------------------------------------------
// Shared memory

void add_piece(block *block, uint32_t offset, size_t bytes, const void *key)
{
    block->pieces.push_back({offset, static_cast<uint32_t>(bytes), key});
    EMULATION_OPEN(block->shared + offset, bytes);
    memset(block->shared + offset, 0xff, bytes);
}

void *shared_array(const void *key, const char *name, size_t bytes, const char *site_file,
                   int site_line)
{
    block *block = current->owner;
    uint32_t offset = 0;
    for (const piece &piece : block->pieces) {
        if (piece.key == key) return block->shared + piece.offset;
        if (piece.offset >= SHARED_DYNAMIC) continue;
        // A gap behind every array, so that AddressSanitizer sees what runs over its end.
        offset = std::max(offset, (piece.offset + piece.bytes + 15u) / 16u * 16u + 32u);
    }
    if (offset + bytes > STATIC_SHARED_MAX) {
        fault(format("%s at %s: more than 48 KiB of static shared memory", name,
                     place(site{site_file, site_line}).bytes));
    }
    add_piece(block, offset, bytes, key);
    return block->shared + offset;
}

void *shared_dynamic(const char *site_file, int site_line)
{
    if (current->owner->launch->shared_bytes == 0) {
        fault(format("%s: launched without dynamic shared memory",
                     place(site{site_file, site_line}).bytes));
    }
    return current->owner->shared + SHARED_DYNAMIC;
}

uint32_t shared_address(const void *at, const char *site_file, int site_line)
{
    ptrdiff_t offset = static_cast<const char *>(at) - current->owner->shared;
    if (offset < 0 || offset > static_cast<ptrdiff_t>(SHARED_BYTES)) {
        fault(
            format("%s: not a pointer to shared memory", place(site{site_file, site_line}).bytes));
    }
    return SHARED_BASE + static_cast<uint32_t>(offset);
}

char *shared_range(uint32_t address, uint32_t bytes, const char *kind, site at)
{
    block *block = current->owner;
    uint32_t offset = address - SHARED_BASE;
    for (const piece &piece : block->pieces) {
        if (offset >= piece.offset && offset + bytes <= piece.offset + piece.bytes) {
            return block->shared + offset;
        }
    }
    fault(format("%s at %s: shared address %d is outside every shared array (the dynamic part has "
                 "%zu bytes)",
                 kind, place(at).bytes, static_cast<int>(offset - SHARED_DYNAMIC),
                 block->launch->shared_bytes));
}

char *shared_memory(uint32_t address, unsigned size, const char *kind, site at)
{
    if (address % size != 0) {
        fault(format("%s at %s: shared address +0x%x is not aligned to %u bytes", kind,
                     place(at).bytes, address - SHARED_BASE, size));
    }
    return shared_range(address, size, kind, at);
}

// ---------------------------------------------------------------------------------------------
// Device memory

namespace
{

struct device_memory {
    std::vector<allocation> live;  // ordered by address
    uint64_t bytes = 0;
    uint64_t calls = 0;
};

device_memory &device()
{
    static device_memory made;
    return made;
}

std::vector<allocation>::iterator find_behind(const void *at)
{
    return std::upper_bound(
        device().live.begin(), device().live.end(), static_cast<const char *>(at),
        [](const char *address, const allocation &item) { return address < item.memory; });
}

}  // namespace

const std::vector<allocation> &allocations()
{
    return device().live;
}

void *allocate(uint64_t bytes)
{
    device_memory &self = device();
    void *memory = nullptr;
    if (++self.calls == settings().fail_at || bytes > settings().device_bytes - self.bytes) {
        return nullptr;
    }
    if (posix_memalign(&memory, 256, bytes) != 0) return nullptr;
    memset(memory, 0xff, bytes);
    EMULATION_SHUT(memory, bytes);
    self.live.insert(find_behind(memory), {static_cast<char *>(memory), bytes});
    self.bytes += bytes;
    return memory;
}

void release(void *memory)
{
    if (memory == nullptr) return;
    auto behind = find_behind(memory);
    if (behind == device().live.begin() || (behind - 1)->memory != memory) abort();
    auto found = behind - 1;
    EMULATION_OPEN(memory, found->bytes);
    device().bytes -= found->bytes;
    device().live.erase(found);
    free(memory);
}

uint64_t allocated_bytes()
{
    return device().bytes;
}

void open_memory()
{
    for (const allocation &item : device().live) EMULATION_OPEN(item.memory, item.bytes);
}

void shut_memory()
{
    for (const allocation &item : device().live) EMULATION_SHUT(item.memory, item.bytes);
}

bool is_device_memory(const void *at, uint64_t bytes)
{
    auto behind = find_behind(at);
    if (behind == device().live.begin()) return false;
    const allocation &item = *(behind - 1);
    return static_cast<const char *>(at) + bytes <= item.memory + item.bytes;
}

// ---------------------------------------------------------------------------------------------
// cp.async

namespace
{

void land(copy &copy, site at)
{
    if (copy.landed) return;
    copy.landed = true;
    char *to = shared_memory(copy.to, copy.size, "cp.async", at);
    memcpy(to, copy.from, copy.bytes);
    memset(to + copy.bytes, 0, copy.size - copy.bytes);
}

}  // namespace

bool lands_early()
{
    uint64_t seed = settings().seed;
    return seed == 1 || (seed >= 2 && (roll(current->owner) & 1) != 0);
}

void copy_async(uint32_t to, const void *from, unsigned size, unsigned bytes, const char *site_file,
                int site_line)
{
    site at{site_file, site_line};
    counts().copies++;
    if (bytes > size) fault(format("cp.async at %s: %u of %u bytes", place(at).bytes, bytes, size));
    if (reinterpret_cast<uintptr_t>(from) % size != 0) {
        fault(
            format("cp.async at %s: the source is not aligned to %u bytes", place(at).bytes, size));
    }
    if (bytes > 0 && !is_device_memory(from, bytes)) {
        fault(format("cp.async at %s: the source is outside of device memory", place(at).bytes));
    }
    copy made{to, from, static_cast<uint8_t>(size), static_cast<uint8_t>(bytes), false};
    shared_memory(to, size, "cp.async", at);
    if (races().access != nullptr) {
        races().access(current, to - SHARED_BASE, size, true, at);
        races().in_flight(to - SHARED_BASE, size, 1);
    }
    if (lands_early()) land(made, at);
    current->open_group.push_back(made);
}

void copy_commit()
{
    current->groups.push_back(std::move(current->open_group));
    current->open_group.clear();
}

void copy_wait(unsigned groups_left, const char *site_file, int site_line)
{
    fiber *fiber = current;
    site at{site_file, site_line};
    size_t count = fiber->groups.size() > groups_left ? fiber->groups.size() - groups_left : 0;
    for (size_t i = 0; i < count; i++) {
        for (copy &copy : fiber->groups[i]) {
            land(copy, at);
            if (races().access == nullptr) continue;
            races().in_flight(copy.to - SHARED_BASE, copy.size, -1);
            races().access(fiber, copy.to - SHARED_BASE, copy.size, true, at);
        }
    }
    fiber->groups.erase(fiber->groups.begin(),
                        fiber->groups.begin() + static_cast<ptrdiff_t>(count));
}

}  // namespace emulation
