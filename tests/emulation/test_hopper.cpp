// test_hopper.cpp - what the emulator has of compute capability 9.0: a product of a warpgroup
// against plain loops, a pipeline of bulk copies, and a report for every breach that it must see,
// some of them by the race detector alone.

#include "kernels/cuda/gpu_hopper.h"
#include "kernels/cuda/tiles.h"
#include "tests/emulation/primitives.h"

namespace
{

// ---------------------------------------------------------------------------------------------
// A product

constexpr unsigned ROWS = 64, DEPTH = 32;

struct product {
    const float *a, *b;  // [64, 32], [n, 32]
    float *c;            // [64, n]
};

// b as a block of packed weights: 64-byte rows, units of 8 exchanged.
template <class T> __device__ void store_columns(unsigned char *shared, const float *b, unsigned n)
{
    for (unsigned i = threadIdx.x; i < n * DEPTH; i += blockDim.x) {
        uint32_t at = gpu::unit_offset(i / DEPTH, i % DEPTH / 8) + i % 8 * 2;
        T element = gpu::narrow<T>(b[i]);
        memcpy(shared + at, &element, 2);
    }
}

// Registers of a as the manual lays them out: row lane / 4 + 8 (r & 1) of the warp's 16, column
// 2 (lane % 4) + 8 (r >> 1).
template <class T> __device__ void load_rows(uint32_t registers[4], const float *a, unsigned first)
{
    unsigned lane = threadIdx.x % 32;
    unsigned row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    for (unsigned r = 0; r < 4; r++) {
        const float *from = a + (row + 8 * (r & 1)) * DEPTH + first + lane % 4 * 2 + 8 * (r >> 1);
        registers[r] = gpu::narrow_pair<T>(from[0], from[1]);
    }
}

template <class T, unsigned N> GPU_KERNEL void multiply_group(const struct product all)
{
    GPU_SWIZZLED_SHARED(shared, unsigned char);
    uint32_t a[2][4];
    float sums[N / 8][4] = {};
    unsigned lane = threadIdx.x % 32;
    store_columns<T>(shared, all.b, N);
    load_rows<T>(a[0], all.a, 0);
    load_rows<T>(a[1], all.a, 16);
    gpu::fence_async();
    __syncthreads();
    gpu::group_fence();
    for (unsigned step = 0; step < 2; step++) {
        uint64_t columns = gpu::columns_at(gpu::shared_address(shared) + step * 32);
        gpu::group_multiply<T, N>(sums[0], a[step], columns);
    }
    gpu::group_commit();
    gpu::group_wait<0>();
    for (unsigned i = 0; i < N / 2; i++) {
        unsigned row = threadIdx.x / 32 * 16 + lane / 4 + i / 2 % 2 * 8;
        all.c[row * N + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i / 4][i % 4];
    }
}

template <class T, unsigned N> void check_product()
{
    std::vector<float> a(ROWS * DEPTH), b(N * DEPTH), want(ROWS * N);
    for (unsigned i = 0; i < a.size(); i++) {
        a[i] = static_cast<float>(static_cast<int>(i * 37 % 61) - 30) / 4;
    }
    for (unsigned i = 0; i < b.size(); i++) {
        b[i] = static_cast<float>(static_cast<int>(i * 29 % 53) - 26) / 8;
    }
    for (unsigned i = 0; i < want.size(); i++) {
        for (unsigned k = 0; k < DEPTH; k++) want[i] += a[i / N * DEPTH + k] * b[i % N * DEPTH + k];
    }
    struct gpu_stream stream = {};
    float *left = upload(a);
    float *right = upload(b);
    struct product all = {left, right, device_array<float>(ROWS * N)};
    auto kernel = multiply_group<T, N>;
    GPU_LAUNCH(&stream, kernel, 1, 128, N * 64, all);
    must_run(stream);
    assert_true(take(all.c, ROWS * N) == want);
    emulation::release(left);
    emulation::release(right);
}

void products_of_a_warpgroup_are_right(void **state)
{
    static_cast<void>(state);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emulation::settings().seed = seed;
        check_product<__nv_bfloat16, 128>();
        check_product<__half, 128>();
        check_product<__nv_bfloat16, 64>();
        check_product<__half, 16>();
    }
}

// ---------------------------------------------------------------------------------------------
// A pipeline: one thread copies, a warp adds up, in a ring of two places

constexpr unsigned PLACES = 2, ROUNDS = 7;

GPU_KERNEL void add_rounds(const uint32_t *from, uint32_t *out)
{
    GPU_SHARED(full, uint64_t[PLACES]);
    GPU_SHARED(empty, uint64_t[PLACES]);
    GPU_DYNAMIC_SHARED(shared, uint32_t);
    unsigned t = threadIdx.x;
    for (unsigned i = 0; t == 0 && i < PLACES; i++) {
        gpu::counter_create(&full[i], 1);
        gpu::counter_create(&empty[i], 32);
    }
    gpu::fence_async();
    __syncthreads();
    uint32_t sum = 0;
    for (unsigned round = 0; t == 32 && round < ROUNDS; round++) {
        unsigned place = round % PLACES;
        gpu::counter_wait(&empty[place], (round / PLACES + 1) % 2);
        gpu::counter_arrive_expect(&full[place], 128);
        gpu::copy_bulk(shared + 32 * place, from + 32 * round, 128, &full[place]);
    }
    for (unsigned round = 0; t < 32 && round < ROUNDS; round++) {
        unsigned place = round % PLACES;
        gpu::counter_wait(&full[place], round / PLACES % 2);
        sum += shared[32 * place + (t + round) % 32];
        gpu::counter_arrive(&empty[place]);
    }
    if (t < 32) out[t] = sum;
}

void a_ring_of_bulk_copies_carries_everything_once(void **state)
{
    static_cast<void>(state);
    std::vector<uint32_t> values(32 * ROUNDS);
    for (uint32_t i = 0; i < values.size(); i++) values[i] = i * i;
    for (uint64_t seed = 0; seed < 2 * SEEDS; seed++) {
        emulation::settings().seed = seed;
        struct gpu_stream stream = {};
        uint32_t *from = upload(values);
        auto *out = device_array<uint32_t>(32);
        GPU_LAUNCH(&stream, add_rounds, 1, 64, 256, static_cast<const uint32_t *>(from), out);
        must_run(stream);
        std::vector<uint32_t> got = take(out, 32);
        emulation::release(from);
        for (uint32_t t = 0; t < 32; t++) {
            uint32_t want = 0;
            for (uint32_t i = 0; i < ROUNDS; i++) want += values[32 * i + (t + i) % 32];
            assert_int_equal(got[t], want);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Breaches

enum breach {
    NO_FENCE_BEHIND_INIT,
    NO_INIT,
    TWO_INITS,
    TOO_MANY_ARRIVALS,
    BYTES_THAT_NEVER_COME,
    A_PHASE_THAT_NEVER_ENDS,
    COPY_OF_8_BYTES,
    COPY_FROM_NOWHERE,
    COPY_TO_NOWHERE,
    COPY_THAT_NOBODY_WAITS_FOR,
    NO_GROUP_FENCE,
    SUMS_WRITTEN,
    OPERANDS_WRITTEN,
    NO_GROUP_WAIT,
    UNKNOWN_DESCRIPTOR,
    DESCRIPTOR_BEYOND,
    WARPS_APART,
    A_WARP_LESS,
    REGISTERS_FOR_NOBODY,
    REGISTERS_IN_TENS,
    PARTS_OF_WARPS,
    BREACHES
};

const char *const reports[BREACHES] = {"no fence.proxy.async behind the mbarrier's init",
                                       "there is no mbarrier",
                                       "there is one already",
                                       "have arrived, bytes are missing",
                                       "deadlock",
                                       "deadlock",
                                       "not all in multiples of 16",
                                       "outside of device memory",
                                       "outside every shared array",
                                       "in flight",
                                       "no wgmma.fence",
                                       "its sums were written",
                                       "its operands were written",
                                       "never waited for",
                                       "descriptor",
                                       "outside every shared array",
                                       "another warp of the warpgroup",
                                       "ended without the wgmma",
                                       "setmaxnreg",
                                       "setmaxnreg",
                                       "no whole warps"};

struct breach_parts {
    uint64_t *counter;
    unsigned char *shared;
    const float *memory;
};

__device__ void breach_copies(int what, const struct breach_parts &parts)
{
    uint64_t *counter = parts.counter;
    if (threadIdx.x != 0) return;
    if (what != NO_INIT) gpu::counter_create(counter, 1);
    if (what == TWO_INITS) gpu::counter_create(counter, 1);
    if (what != NO_FENCE_BEHIND_INIT) gpu::fence_async();
    uint32_t bytes = what == COPY_OF_8_BYTES ? 8 : 128;
    uint32_t expected = what == BYTES_THAT_NEVER_COME ? 2 * bytes : bytes;
    if (what != A_PHASE_THAT_NEVER_ENDS) gpu::counter_arrive_expect(counter, expected);
    if (what == TOO_MANY_ARRIVALS) gpu::counter_arrive(counter);
    const float *from = parts.memory + (what == COPY_FROM_NOWHERE ? 1 << 20 : 0);
    gpu::copy_bulk(parts.shared + (what == COPY_TO_NOWHERE ? 8192 : 0), from, bytes, counter);
    if (what != COPY_THAT_NOBODY_WAITS_FOR) gpu::counter_wait(counter, 0);
}

__device__ void breach_products(int what, const struct breach_parts &parts)
{
    uint32_t a[4] = {};
    float sums[8] = {};
    uint64_t columns = gpu::columns_at(gpu::shared_address(parts.shared));
    if (what == UNKNOWN_DESCRIPTOR) columns ^= 3ull << 62;
    if (what == DESCRIPTOR_BEYOND) columns += 8192 >> 4;
    if (what == WARPS_APART) columns += threadIdx.x / 32 == 2 ? 2 : 0;
    if (what != NO_GROUP_FENCE) gpu::group_fence();
    if (what != A_WARP_LESS || threadIdx.x / 32 != 3) {
        gpu::group_multiply<__nv_bfloat16, 16>(sums, a, columns);
    }
    gpu::group_commit();
    if (what == SUMS_WRITTEN) sums[3] = 1;
    if (what == OPERANDS_WRITTEN) a[2] = 1;
    if (what != NO_GROUP_WAIT) gpu::group_wait<0>();
}

GPU_KERNEL void commit(int what, const float *memory)
{
    GPU_SHARED(counter, uint64_t[1]);
    GPU_SWIZZLED_SHARED(shared, unsigned char);
    for (unsigned i = threadIdx.x; i < 256; i += 128) reinterpret_cast<uint32_t *>(shared)[i] = 0;
    gpu::fence_async();
    __syncthreads();
    struct breach_parts parts = {counter, shared, memory};
    if (what < NO_GROUP_FENCE) {
        breach_copies(what, parts);
    } else if (what < REGISTERS_FOR_NOBODY) {
        breach_products(what, parts);
    }
    if (what == REGISTERS_FOR_NOBODY) gpu::registers_give<256>();
    if (what == REGISTERS_IN_TENS) gpu::registers_give<100>();
    if (what == PARTS_OF_WARPS && threadIdx.x < 48) gpu::part_barrier<1, 48>::wait();
}

void every_breach_is_reported(void **state)
{
    static_cast<void>(state);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emulation::settings().seed = seed;
        for (int what = 0; what < BREACHES; what++) {
            // A copy that came at once has left nothing to see.
            if (what == COPY_THAT_NOBODY_WAITS_FOR && seed > 0) continue;
            // What stands on the stack is written under the eyes of the race detector.
            bool is_seen_sooner = HAS_RACES && (what == SUMS_WRITTEN || what == OPERANDS_WRITTEN);
            const char *report = is_seen_sooner ? "store at instruction" : reports[what];
            struct gpu_stream stream = {};
            float *memory = device_array<float>(512);
            GPU_LAUNCH(&stream, commit, 1, 128, 1024, what, static_cast<const float *>(memory));
            emulation::release(memory);
            if (strstr(stream.report, report) == nullptr) {
                fail_msg("breach %d, seed %llu: \"%s\"", what,
                         static_cast<unsigned long long>(seed), stream.report);
            }
        }
    }
}

// Registers that three warpgroups share: two take what one gives, whoever comes first.
GPU_KERNEL void share_registers(int gives, uint32_t *out)
{
    if (threadIdx.x >= 256) {
        if (gives != 0) gpu::registers_give<56>();
    } else {
        gpu::registers_take<224>();
        out[threadIdx.x] = 1;
    }
}

void registers_are_taken_when_somebody_gives_them(void **state)
{
    static_cast<void>(state);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emulation::settings().seed = seed;
        auto *out = device_array<uint32_t>(256);
        struct gpu_stream sound = {};
        GPU_LAUNCH(&sound, share_registers, 1, 384, 0, 1, out);
        must_run(sound);
        struct gpu_stream greedy = {};
        GPU_LAUNCH(&greedy, share_registers, 1, 384, 0, 0, out);
        assert_non_null(strstr(greedy.report, "deadlock"));
        emulation::release(out);
    }
}

// ---------------------------------------------------------------------------------------------
// Sums under way

// Reads them before the wait, on purpose.
GPU_KERNEL void look_at_sums(float *out)
{
    GPU_SWIZZLED_SHARED(shared, unsigned char);
    uint32_t a[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};  // ones
    float sums[8] = {};
    for (unsigned i = threadIdx.x; i < 256; i += 128) {
        reinterpret_cast<uint32_t *>(shared)[i] = 0x3f803f80;
    }
    gpu::fence_async();
    __syncthreads();
    gpu::group_fence();
    gpu::group_multiply<__nv_bfloat16, 16>(sums, a, gpu::columns_at(gpu::shared_address(shared)));
    gpu::group_commit();
    out[threadIdx.x] = sums[0];
    gpu::group_wait<0>();
    out[128 + threadIdx.x] = sums[0];
}

void sums_are_there_at_the_wait_or_at_once_as_the_seed_says(void **state)
{
    static_cast<void>(state);
    for (uint64_t seed = 0; seed < 2; seed++) {
        emulation::settings().seed = seed;
        struct gpu_stream stream = {};
        auto *out = device_array<float>(256);
        GPU_LAUNCH(&stream, look_at_sums, 1, 128, 1024, out);
        std::vector<float> got = take(out, 256);
        if (HAS_RACES) {
            assert_non_null(strstr(stream.report, "of sums that the wgmma"));
            continue;
        }
        must_run(stream);
        assert_true(seed == 0 ? isnan(got[5]) : got[5] == 16);
        assert_true(got[128 + 5] == 16);
    }
}

#ifdef LUNA_TEST_RACES
// ---------------------------------------------------------------------------------------------
// What no order of fibers turns into a wrong value, but for the races' detector

enum race {
    SOUND,
    NO_PROXY_FENCE,       // stores, a barrier, a product that reads them
    FENCE_OF_ANOTHER,     // by one thread that did not store
    NO_WAIT_FOR_BYTES,    // a load of what a bulk copy brings
    STORE_UNDER_PRODUCT,  // into what a product reads
    COPY_UNDER_PRODUCT,   // likewise, by a bulk copy
    NO_SYNCWARP,          // before a lane arrives for its warp
    RACES
};

const char *const race_reports[RACES] = {"",
                                         "without fence.proxy.async",
                                         "without fence.proxy.async",
                                         "a cp.async into it is in flight",
                                         "while a wgmma reads it",
                                         "while a wgmma reads it",
                                         "race in shared"};

__device__ void race_products(int what, const struct breach_parts &parts)
{
    uint32_t a[4] = {};
    float sums[8] = {};
    auto *words = reinterpret_cast<uint32_t *>(parts.shared);
    for (unsigned i = threadIdx.x; i < 256; i += 128) words[i] = 0;
    bool fences = what != NO_PROXY_FENCE && (what != FENCE_OF_ANOTHER || threadIdx.x == 0);
    if (fences) gpu::fence_async();
    __syncthreads();
    gpu::group_fence();
    gpu::group_multiply<__nv_bfloat16, 16>(sums, a,
                                           gpu::columns_at(gpu::shared_address(parts.shared)));
    gpu::group_commit();
    if (what == STORE_UNDER_PRODUCT) words[threadIdx.x / 4 * 16 + threadIdx.x % 4] = 0;
    if (what == COPY_UNDER_PRODUCT && threadIdx.x == 0) {
        gpu::counter_arrive_expect(parts.counter, 128);
        gpu::copy_bulk(parts.shared, parts.memory, 128, parts.counter);
        gpu::counter_wait(parts.counter, 0);
    }
    gpu::group_wait<0>();
}

// Warp 0 stores, lane 0 tells warp 1; a copy comes back through another barrier.
__device__ void race_warps(int what, const struct breach_parts &parts, uint32_t *out)
{
    auto *words = reinterpret_cast<uint32_t *>(parts.shared);
    unsigned t = threadIdx.x;
    if (t < 32) {
        words[t] = t;
        if (what != NO_SYNCWARP) __syncwarp();
        if (t == 0) gpu::counter_arrive(parts.counter);
    } else if (t < 64) {
        gpu::counter_wait(parts.counter, 0);
        out[t] = words[t % 32];
        if (t == 32) {
            gpu::counter_arrive_expect(parts.counter + 1, 128);
            gpu::copy_bulk(words + 64, parts.memory, 128, parts.counter + 1);
        }
        if (what != NO_WAIT_FOR_BYTES) gpu::counter_wait(parts.counter + 1, 0);
        out[t] += words[64 + t % 32];
    }
}

GPU_KERNEL void race_on(int what, const float *memory, uint32_t *out)
{
    GPU_SHARED(counters, uint64_t[2]);
    GPU_SWIZZLED_SHARED(shared, unsigned char);
    if (threadIdx.x == 0) {
        gpu::counter_create(&counters[0], 1);
        gpu::counter_create(&counters[1], 1);
        gpu::fence_async();
    }
    __syncthreads();
    struct breach_parts parts = {counters, shared, memory};
    if (what == SOUND || what == NO_WAIT_FOR_BYTES || what == NO_SYNCWARP) {
        race_warps(what, parts, out);
    }
    __syncthreads();
    if (what != NO_WAIT_FOR_BYTES && what != NO_SYNCWARP) race_products(what, parts);
}

void a_race_with_the_async_proxy_is_reported_whatever_the_order(void **state)
{
    static_cast<void>(state);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emulation::settings().seed = seed;
        for (int what = 0; what < RACES; what++) {
            struct gpu_stream stream = {};
            float *memory = device_array<float>(512);
            auto *out = device_array<uint32_t>(128);
            GPU_LAUNCH(&stream, race_on, 1, 128, 1024, what, static_cast<const float *>(memory),
                       out);
            emulation::release(memory);
            emulation::release(out);
            bool is_seen = what == SOUND ? !stream.has_failed
                                         : strstr(stream.report, race_reports[what]) != nullptr;
            // Bytes that are not under way are there already, and nobody told; or not begun with.
            if (what == NO_WAIT_FOR_BYTES) {
                is_seen = is_seen || strstr(stream.report, "race in shared") != nullptr ||
                          strstr(stream.report, "nobody has written") != nullptr;
            }
            if (!is_seen) {
                fail_msg("race %d, seed %llu: \"%s\"", what, static_cast<unsigned long long>(seed),
                         stream.report);
            }
        }
    }
}
#endif

}  // namespace

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_a_warpgroup_are_right),
        cmocka_unit_test(a_ring_of_bulk_copies_carries_everything_once),
        cmocka_unit_test(every_breach_is_reported),
        cmocka_unit_test(registers_are_taken_when_somebody_gives_them),
        cmocka_unit_test(sums_are_there_at_the_wait_or_at_once_as_the_seed_says),
#ifdef LUNA_TEST_RACES
        cmocka_unit_test(a_race_with_the_async_proxy_is_reported_whatever_the_order),
#endif
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
