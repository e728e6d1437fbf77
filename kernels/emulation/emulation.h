// emulation.h - CUDA kernels on the processor: one fiber per thread, every rendezvous checked.
//
// A kernel is ordinary C++ here. Its threads are fibers; the blocks of a launch run one after
// another, and inside a block a fiber runs until it waits. Where it may wait is where a GPU orders
// threads: block barriers, warp operations, copies that are in flight. At each of them it is
// checked that those who must take part do, at the same place of the source, and the first breach
// ends the launch with a report that names file, line, block, thread and seed.
//
// The seed says what a GPU leaves open:
//
//     0    warps and lanes in ascending order, asynchronous copies land as late as they may
//     1    in descending order, copies land at once
//     2..  warps, lanes, blocks and landings shuffled
//
// Late landing hides what reuses a buffer too early, early landing hides a missing wait: a suite
// runs several seeds. Shared memory is NaN until it is written. With AddressSanitizer every access
// to shared and device memory is checked; compiled for races (race.h), every pair of accesses.
//
// Not emulated: warps in lockstep, other streams, rounding and speed of a device.

#ifndef KERNELS_EMULATION_EMULATION_H
#define KERNELS_EMULATION_EMULATION_H

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/emulation/dialect.h"

namespace emulation
{

// A place in the source of a kernel: two calls are the same rendezvous when their places are equal.
struct site {
    const char *file;
    int line;
};

// The last parameters of whatever waits or is checked: the caller's place, filled in by itself.
#define EMULATION_SITE const char *site_file = __builtin_FILE(), int site_line = __builtin_LINE()
#define EMULATION_HERE (::emulation::site{site_file, site_line})

// ---------------------------------------------------------------------------------------------
// What a run is given, and what it counts

struct options {
    uint64_t seed;             // see above; $LUNA_EMULATION_SEED
    bool worst_approximation;  // approximate functions err by their bound; $LUNA_EMULATION_WORST
    uint64_t device_bytes;     // memory of the device; $LUNA_EMULATION_BYTES
    uint64_t fail_at;          // the n-th allocation fails; 0: none; $LUNA_EMULATION_FAIL_AT
    uint64_t break_at;         // the n-th launch fails; 0: none; $LUNA_EMULATION_BREAK_AT
    uint64_t conflicts_max;    // more bank conflicts fail a launch; $LUNA_EMULATION_CONFLICTS
    const char *seen;          // file that names what ran; NULL: none; $LUNA_EMULATION_SEEN
};

struct counters {
    uint64_t blocks;           // that ran to their end
    uint64_t multiplications;  // mma of a warp, and a warp's part of wgmma
    uint64_t matrix_phases;    // groups of eight rows that ldmatrix read
    uint64_t bank_conflicts;   // extra turns that they took
    uint64_t copies;           // cp.async, and cp.async.bulk
};

// Both live as long as the program; they are read and written between launches, by one thread.
options &settings();
counters &counts();

// Runs body(context) once for every thread. Returns true, or false after a fault that report()
// tells. At most one launch at a time.
struct shape {
    const char *name;     // of the kernel, for reports
    dim3 grid, block;     //
    size_t shared_bytes;  // dynamic
    const void *kernel;   // its code
};
bool run(const shape &shape, void (*body)(void *context), void *context);

// The report of the last launch that failed, or "".
const char *report();

// What a launch calls between two blocks; when it answers false, the launch ends there, quietly.
struct watcher {
    bool (*go_on)(void *context);
    void *context;
};
void watch(watcher watcher);

template <class... P, class... A>
bool launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
            A &&...values)
{
    struct call {
        void (*kernel)(P...);
        std::tuple<std::decay_t<P>...> values;
    } call{kernel, std::tuple<std::decay_t<P>...>(std::forward<A>(values)...)};
    auto body = [](void *context) {
        auto *self = static_cast<struct call *>(context);
        std::apply(self->kernel, self->values);
    };
    const void *code = reinterpret_cast<const void *>(kernel);
    return run(shape{name, grid, block, shared_bytes, code}, body, &call);
}

// ---------------------------------------------------------------------------------------------
// Where a fiber is

struct position {
    uint3 thread, block;   // threadIdx, blockIdx
    dim3 block_dim, grid;  // blockDim, gridDim
};
extern thread_local const position *here;

// ---------------------------------------------------------------------------------------------
// Rendezvous

// Waits for the whole block (count 0) or for count threads at the barrier of this number.
void barrier(int number, unsigned count, EMULATION_SITE);

// Waits for the lanes of the mask; the last to come executes for all. arguments[lane] is what that
// lane passed.
using warp_body = void (*)(void **arguments, uint32_t mask);
void meet(const char *kind, uint32_t mask, void *argument, site at, warp_body body);

// __syncwarp.
void sync_warp(uint32_t mask, EMULATION_SITE);

enum class shuffle_kind { index, up, down, exchange };

// One lane's part of a shuffle: its value as bits, whose value it wants, and what it got.
struct shuffle_part {
    shuffle_kind kind;
    uint64_t value;
    int source, width;
    uint64_t result;
};
void shuffle(const char *name, uint32_t mask, shuffle_part *part, site at);

template <class T>
T shuffle_of(shuffle_kind kind, const char *name, uint32_t mask, T value, int source, int width,
             site at)
{
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
    shuffle_part part{kind, 0, source, width, 0};
    memcpy(&part.value, &value, sizeof value);
    shuffle(name, mask, &part, at);
    memcpy(&value, &part.result, sizeof value);
    return value;
}

// Bit i of the result is lane i's predicate.
uint32_t ballot(uint32_t mask, bool predicate, EMULATION_SITE);

// ---------------------------------------------------------------------------------------------
// Memory

template <class T> struct type_of {
    using type = T;
};

// The block's array that belongs to this declaration; the first thread that comes makes it.
void *shared_array(const void *key, const char *name, size_t bytes, EMULATION_SITE);
void *shared_dynamic(EMULATION_SITE);

// The address of shared memory as a kernel's PTX sees it.
uint32_t shared_address(const void *at, EMULATION_SITE);

// Device memory: NaN at first, between red zones; NULL when there is none left.
void *allocate(uint64_t bytes);
void release(void *memory);
uint64_t allocated_bytes();

// For the host: makes device memory addressable between two launches, and shuts it again.
void open_memory();
void shut_memory();

// True when the bytes lie in one allocation.
bool is_device_memory(const void *at, uint64_t bytes);

// cp.async: size bytes to shared memory, the last ones zero where fewer come from the source.
void copy_async(uint32_t to, const void *from, unsigned size, unsigned bytes, EMULATION_SITE);
void copy_commit();
void copy_wait(unsigned groups_left, EMULATION_SITE);

// ---------------------------------------------------------------------------------------------
// Tensor cores

// matrices 1, 2 or 4 of 8x8 elements of 16 bits.
void load_matrix(unsigned matrices, bool transposed, uint32_t *registers, uint32_t address,
                 EMULATION_SITE);

// d += a b for m16n8k16 with sums in float32, in order of k.
void multiply_bf16(float *d, const uint32_t *a, const uint32_t *b, EMULATION_SITE);
void multiply_f16(float *d, const uint32_t *a, const uint32_t *b, EMULATION_SITE);

// An approximate function's result: exact, or off by its documented relative bound.
float approximate(float exact, float bound);

// ---------------------------------------------------------------------------------------------
// What compute capability 9.0 adds, see gpu_hopper.h

// Barriers in shared memory (mbarrier): a phase ends when count threads have arrived and the bytes
// that were expected are there.
void counter_create(uint64_t *at, uint32_t count, EMULATION_SITE);
void counter_arrive(uint64_t *at, uint32_t expected_bytes, EMULATION_SITE);
void counter_wait(uint64_t *at, uint32_t parity, EMULATION_SITE);

// fence.proxy.async
void fence_async(site at);

// cp.async.bulk: lands at once, when nobody else can run, or between, as the seed says.
void copy_bulk(void *to, const void *from, uint32_t bytes, uint64_t *counter, EMULATION_SITE);

// setmaxnreg: takes wait until other warpgroups have given.
void set_registers(unsigned count, bool takes, EMULATION_SITE);

// A lane's part of wgmma.mma_async with a in registers: d [16 of a warp, n] += a [16, 16] b [16,
// n].
struct group_product {
    float *d;           // n / 2
    const uint32_t *a;  // 4
    uint64_t columns;   // descriptor of b
    unsigned n;
    bool is_bf16;
};

// Products happen at once or at the wait for their group, as the seed says; until then their sums
// are NaN, and neither sums nor operands may be touched.
void group_multiply(const group_product &product, site at);
void group_fence(site at);
void group_commit(site at);
void group_wait(unsigned groups_left, site at);

// ---------------------------------------------------------------------------------------------
// Atomic operations: fibers do not interrupt each other, so a plain update is one.

template <class T> T atomic_add(T *at, T value)
{
    T before;
    __atomic_load(at, &before, __ATOMIC_RELAXED);
    T after = before + value;
    __atomic_store(at, &after, __ATOMIC_RELAXED);
    return before;
}

inline uint32_t atomic_or(uint32_t *at, uint32_t value)
{
    uint32_t before = __atomic_load_n(at, __ATOMIC_RELAXED);
    __atomic_store_n(at, before | value, __ATOMIC_RELAXED);
    return before;
}

}  // namespace emulation

// ---------------------------------------------------------------------------------------------
// CUDA's names for it

#define threadIdx (::emulation::here->thread)
#define blockIdx (::emulation::here->block)
#define blockDim (::emulation::here->block_dim)
#define gridDim (::emulation::here->grid)

inline void __syncthreads(EMULATION_SITE)
{
    emulation::barrier(0, 0, site_file, site_line);
}

inline void __syncwarp(uint32_t mask = ~0u, EMULATION_SITE)
{
    emulation::sync_warp(mask, site_file, site_line);
}

template <class T> T __shfl_sync(uint32_t mask, T value, int source, int width = 32, EMULATION_SITE)
{
    return emulation::shuffle_of(emulation::shuffle_kind::index, "__shfl_sync", mask, value, source,
                                 width, EMULATION_HERE);
}

template <class T>
T __shfl_up_sync(uint32_t mask, T value, int source, int width = 32, EMULATION_SITE)
{
    return emulation::shuffle_of(emulation::shuffle_kind::up, "__shfl_up_sync", mask, value, source,
                                 width, EMULATION_HERE);
}

template <class T>
T __shfl_down_sync(uint32_t mask, T value, int source, int width = 32, EMULATION_SITE)
{
    return emulation::shuffle_of(emulation::shuffle_kind::down, "__shfl_down_sync", mask, value,
                                 source, width, EMULATION_HERE);
}

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int source, int width = 32, EMULATION_SITE)
{
    return emulation::shuffle_of(emulation::shuffle_kind::exchange, "__shfl_xor_sync", mask, value,
                                 source, width, EMULATION_HERE);
}

inline uint32_t __ballot_sync(uint32_t mask, bool predicate, EMULATION_SITE)
{
    return emulation::ballot(mask, predicate, site_file, site_line);
}

template <class T> T atomicAdd(T *at, T value)
{
    return emulation::atomic_add(at, value);
}

inline uint32_t atomicOr(uint32_t *at, uint32_t value)
{
    return emulation::atomic_or(at, value);
}

#endif  // KERNELS_EMULATION_EMULATION_H
