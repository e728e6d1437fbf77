// test_primitives.cpp - the emulator itself: fragments as CUTLASS and the PTX manual lay them out,
// copies that land late and early, and a report for every breach that it must see.

#include "tests/emulation/primitives.h"

namespace
{

// ---------------------------------------------------------------------------------------------
// Fragments

// CuTe: the offset of a lane's value in a column-major tile, from CUTLASS's mma_traits_sm80.
unsigned tile_a(unsigned lane, unsigned value)
{
    return lane % 4 * 32 + lane / 4 + value % 2 * 16 + value / 2 % 2 * 8 + value / 4 * 128;
}

unsigned tile_b(unsigned lane, unsigned value)
{
    return lane % 4 * 16 + lane / 4 + value % 2 * 8 + value / 2 * 64;
}

unsigned tile_c(unsigned lane, unsigned value)
{
    return lane % 4 * 32 + lane / 4 + value % 2 * 16 + value / 2 * 8;
}

struct tiles {
    const float *a, *b;  // [16, 16], [8, 16], column-major
    float *c;            // [16, 8]
};

template <class T> GPU_KERNEL void multiply_tiles(const struct tiles tiles)
{
    unsigned lane = threadIdx.x;
    uint32_t a[4];
    uint32_t b[2];
    float d[4];
    for (unsigned r = 0; r < 4; r++) {
        a[r] = gpu::narrow_pair<T>(tiles.a[tile_a(lane, 2 * r)], tiles.a[tile_a(lane, 2 * r + 1)]);
        d[r] = tiles.c[tile_c(lane, r)];
    }
    for (unsigned r = 0; r < 2; r++) {
        b[r] = gpu::narrow_pair<T>(tiles.b[tile_b(lane, 2 * r)], tiles.b[tile_b(lane, 2 * r + 1)]);
    }
    gpu::multiply<T>(d, a, b);
    for (unsigned r = 0; r < 4; r++) tiles.c[tile_c(lane, r)] = d[r];
}

template <class T> void check_multiply()
{
    std::vector<float> a(256), b(128), c(128), want(128);
    for (unsigned i = 0; i < 256; i++)
        a[i] = static_cast<float>(static_cast<int>(i * 37 % 61) - 30) / 4;
    for (unsigned i = 0; i < 128; i++)
        b[i] = static_cast<float>(static_cast<int>(i * 29 % 53) - 26) / 8;
    for (unsigned i = 0; i < 128; i++) c[i] = static_cast<float>(i);
    for (unsigned m = 0; m < 16; m++) {
        for (unsigned n = 0; n < 8; n++) {
            want[m + 16 * n] = c[m + 16 * n];
            for (unsigned k = 0; k < 16; k++) want[m + 16 * n] += a[m + 16 * k] * b[n + 8 * k];
        }
    }
    struct gpu_stream stream = {};
    float *left = upload(a);
    float *right = upload(b);
    struct tiles tiles = {left, right, upload(c)};
    GPU_LAUNCH(&stream, multiply_tiles<T>, 1, 32, 0, tiles);
    must_run(stream);
    assert_true(take(tiles.c, 128) == want);
    emulation::release(left);
    emulation::release(right);
}

void fragments_of_a_product_lie_as_in_cutlass(void **state)
{
    static_cast<void>(state);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emulation::settings().seed = seed;
        check_multiply<__nv_bfloat16>();
        check_multiply<__half>();
    }
}

// Every element of the four matrices is its own number.
template <bool TRANSPOSED> GPU_KERNEL void load_matrices(uint32_t *out)
{
    GPU_DYNAMIC_SHARED(shared, uint16_t);
    unsigned lane = threadIdx.x;
    for (unsigned i = lane; i < 256; i += 32) shared[i] = static_cast<uint16_t>(i);
    __syncthreads();
    uint32_t registers[4];
    uint32_t address = gpu::shared_address(shared + lane * 8);
    if (TRANSPOSED) {
        gpu::load_matrix4_transposed(registers, address);
    } else {
        gpu::load_matrix4(registers, address);
    }
    for (unsigned i = 0; i < 4; i++) out[lane * 4 + i] = registers[i];
}

void matrices_are_loaded_by_rows_or_by_columns(void **state)
{
    static_cast<void>(state);
    for (unsigned transposed = 0; transposed < 2; transposed++) {
        struct gpu_stream stream = {};
        auto *out = device_array<uint32_t>(128);
        auto kernel = transposed == 1 ? load_matrices<true> : load_matrices<false>;
        GPU_LAUNCH(&stream, kernel, 1, 32, 512, out);
        must_run(stream);
        std::vector<uint32_t> got = take(out, 128);
        for (unsigned i = 0; i < 256; i++) {
            unsigned lane = i / 8;
            unsigned matrix = i / 2 % 4;
            unsigned row = transposed == 1 ? lane % 4 * 2 + i % 2 : lane / 4;
            unsigned column = transposed == 1 ? lane / 4 : lane % 4 * 2 + i % 2;
            uint32_t element = got[lane * 4 + matrix] >> (16 * (i % 2)) & 0xffff;
            assert_int_equal(element, matrix * 64 + row * 8 + column);
        }
    }
}

GPU_KERNEL void exchange(int *out)
{
    int thread = static_cast<int>(threadIdx.x);
    int *mine = out + 5 * threadIdx.x;
    mine[0] = __shfl_xor_sync(~0u, thread, 5);
    mine[1] = __shfl_up_sync(~0u, thread, 1);
    mine[2] = __shfl_down_sync(~0u, thread, 2, 8);
    mine[3] = __shfl_sync(~0u, thread, 3, 4);
    mine[4] = static_cast<int>(__ballot_sync(~0u, thread % 3 == 0));
}

void shuffles_and_ballots_move_what_they_should(void **state)
{
    static_cast<void>(state);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emulation::settings().seed = seed;
        struct gpu_stream stream = {};
        int *out = device_array<int>(320);
        GPU_LAUNCH(&stream, exchange, 1, 64, 0, out);
        must_run(stream);
        std::vector<int> got = take(out, 320);
        for (int t = 0; t < 64; t++) {
            const int *mine = &got[static_cast<size_t>(5 * t)];
            assert_int_equal(mine[0], t ^ 5);
            assert_int_equal(mine[1], t % 32 == 0 ? t : t - 1);
            assert_int_equal(mine[2], t % 8 < 6 ? t + 2 : t);
            assert_int_equal(mine[3], t / 4 * 4 + 3);
            uint32_t ballot = 0;
            for (int i = 0; i < 32; i++) ballot |= (t / 32 * 32 + i) % 3 == 0 ? 1u << i : 0u;
            assert_int_equal(static_cast<uint32_t>(mine[4]), ballot);
        }
    }
}

// Eight rows of 128 bytes begin in the same bank, eight of 16 bytes in eight different ones.
GPU_KERNEL void load_rows_apart(uint32_t pitch, uint32_t *out)
{
    GPU_DYNAMIC_SHARED(shared, uint32_t);
    unsigned t = threadIdx.x;
    for (unsigned i = t; i < 1024; i += 32) shared[i] = i;
    __syncthreads();
    uint32_t registers[4];
    gpu::load_matrix4(registers, gpu::shared_address(shared) + t * pitch);
    out[t] = registers[0];
}

void bank_conflicts_fail_a_launch_where_so_many_are_not_allowed(void **state)
{
    static_cast<void>(state);
    emulation::options before = emulation::settings();
    auto *out = device_array<uint32_t>(32);
    for (uint64_t allowed : {UINT64_C(0), UINT64_C(27), UINT64_C(28), UINT64_MAX}) {
        emulation::settings().conflicts_max = allowed;
        struct gpu_stream apart = {};
        GPU_LAUNCH(&apart, load_rows_apart, 1, 32, 4096, 128u, out);
        assert_int_equal(apart.has_failed, allowed < 28);
        if (apart.has_failed)
            assert_non_null(strstr(apart.report, "ldmatrix had 28 bank conflicts"));
        struct gpu_stream close = {};
        GPU_LAUNCH(&close, load_rows_apart, 1, 32, 4096, 16u, out);
        must_run(close);
    }
    emulation::release(out);
    emulation::settings() = before;
}

// ---------------------------------------------------------------------------------------------
// Copies

// Reads before the first wait, on purpose.
GPU_KERNEL void copy_and_look(const uint32_t *from, uint32_t *out)
{
    GPU_DYNAMIC_SHARED(shared, uint32_t);
    unsigned t = threadIdx.x;
    gpu::copy_async16(gpu::shared_address(shared + t * 4), from + t * 4, t == 31 ? 8 : 16);
    gpu::copy_commit();
    out[t * 2] = shared[t * 4];
    gpu::copy_wait<0>();
    out[t * 2 + 1] = shared[t * 4 + 3];
}

void copies_land_at_the_wait_or_at_once_as_the_seed_says(void **state)
{
    static_cast<void>(state);
    for (uint64_t seed = 0; seed < 2; seed++) {
        emulation::settings().seed = seed;
        struct gpu_stream stream = {};
        std::vector<uint32_t> values(128);
        for (uint32_t i = 0; i < 128; i++) values[i] = i + 1;
        uint32_t *from = upload(values);
        auto *out = device_array<uint32_t>(64);
        GPU_LAUNCH(&stream, copy_and_look, 1, 32, 512, static_cast<const uint32_t *>(from), out);
        std::vector<uint32_t> got = take(out, 64);
        emulation::release(from);
        if (HAS_RACES) {
            assert_non_null(strstr(stream.report, "in flight"));
            continue;
        }
        must_run(stream);
        for (uint32_t t = 0; t < 32; t++) {
            assert_int_equal(got[t * 2], seed == 0 ? UINT32_MAX : t * 4 + 1);
            assert_int_equal(got[t * 2 + 1], t == 31 ? 0 : t * 4 + 4);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Breaches

GPU_KERNEL void breach(int what, float *out)
{
    GPU_DYNAMIC_SHARED(shared, float);
    unsigned t = threadIdx.x;
    uint32_t registers[4];
    for (unsigned i = t; i < 256; i += 64) shared[i] = 0;
    __syncthreads();
    uint32_t address = gpu::shared_address(shared);
    if (what == 0 && t < 40) __syncthreads();
    if (what == 1 && t < 32) {
        __syncthreads();
    } else if (what == 1) {
        __syncthreads();
    }
    if (what == 2 && t % 32 < 4) out[t] = __shfl_xor_sync(~0u, 1.0f, 1);
    if (what == 3 && t % 2 == 1) {
        out[t] = static_cast<float>(__ballot_sync(~0u, true));
    } else if (what == 3) {
        out[t] = __shfl_sync(~0u, 1.0f, 0);
    }
    if (what == 4) gpu::load_matrix4(registers, address + t * 16 + 8);
    if (what == 5) gpu::load_matrix4(registers, address + t * 32);
    if (what == 6) gpu::copy_async16(address + t * 16, out + t * 4, 16);
    if (what == 7) gpu::copy_async16(address + t * 16, out + 4096, 16);
    if (what == 8) {
        gpu::copy_async16(address + t * 16, out + t * 4, 16);
        gpu::copy_commit();
    }
    if (what == 9) out[t] = __shfl_sync(0xffu, 1.0f, 0);
    if (what == 10 && t >= 32) return;
    if (what == 10) __syncthreads();
    if (what == 11) gpu::copy_async16(address + t * 16, out + t * 4 + 1, 16);
}

void every_breach_is_reported_with_its_place(void **state)
{
    static_cast<void>(state);
    static const char *const reports[] = {"barrier at test_primitives.cpp",
                                          "divergent barrier 0",
                                          "deadlock",
                                          "warp divergence",
                                          "is not aligned to 16 bytes",
                                          "outside every shared array",
                                          "never committed",
                                          "outside of device memory",
                                          "never waited for",
                                          "not in its mask",
                                          "exited",
                                          "the source is not aligned"};
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emulation::settings().seed = seed;
        for (int what = 0; what < 12; what++) {
            struct gpu_stream stream = {};
            float *out = device_array<float>(512);
            GPU_LAUNCH(&stream, breach, 1, 64, 1024, what, out);
            emulation::release(out);
            if (strstr(stream.report, reports[what]) == nullptr) {
                fail_msg("breach %d, seed %llu: \"%s\"", what,
                         static_cast<unsigned long long>(seed), stream.report);
            }
        }
    }
}

void what_no_device_launches_is_refused(void **state)
{
    static_cast<void>(state);
    float *out = device_array<float>(512);
    struct gpu_stream many = {};
    GPU_LAUNCH(&many, breach, 1, 2048, 1024, -1, out);
    assert_non_null(strstr(many.report, "refuses"));
    struct gpu_stream none = {};
    GPU_LAUNCH(&none, breach, dim3(0), 64, 1024, -1, out);
    assert_non_null(strstr(none.report, "refuses"));
    struct gpu_stream large = {};
    GPU_LAUNCH(&large, breach, 1, 64, 100 << 10, -1, out);
    assert_non_null(strstr(large.report, "refuses"));
    emulation::release(out);
}

#ifdef LUNA_TEST_RACES
// ---------------------------------------------------------------------------------------------
// Races that no order of fibers turns into a wrong value

GPU_KERNEL void neighbours(int what, float *out)
{
    GPU_SHARED(shared, float[64]);
    unsigned t = threadIdx.x;
    shared[t] = static_cast<float>(t);
    if ((what & 1) != 0) __syncwarp();
    float value = shared[t ^ 1];
    __syncthreads();
    if ((what & 2) != 0) {
        atomicAdd(out, value);
    } else if (t == 0) {
        out[0] = value;
    }
}

void a_race_is_reported_whatever_the_order(void **state)
{
    static_cast<void>(state);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emulation::settings().seed = seed;
        float *out = upload(std::vector<float>{0});
        struct gpu_stream unsynchronised = {};
        GPU_LAUNCH(&unsynchronised, neighbours, 1, 64, 0, 2, out);
        bool seen = strstr(unsynchronised.report, "race in shared") != nullptr ||
                    strstr(unsynchronised.report, "nobody has written") != nullptr;
        assert_true(seen);
        struct gpu_stream blocks = {};
        GPU_LAUNCH(&blocks, neighbours, 2, 64, 0, 1, out);
        assert_non_null(strstr(blocks.report, "of another block"));
        struct gpu_stream sound = {};
        GPU_LAUNCH(&sound, neighbours, 2, 64, 0, 3, out);
        must_run(sound);
        emulation::release(out);
    }
}
#endif

// ---------------------------------------------------------------------------------------------
// Memory

void memory_ends_where_the_settings_say(void **state)
{
    static_cast<void>(state);
    emulation::options before = emulation::settings();
    emulation::settings().device_bytes = 1000;
    void *first = emulation::allocate(600);
    assert_non_null(first);
    assert_null(emulation::allocate(600));
    assert_true(emulation::is_device_memory(first, 600));
    assert_false(emulation::is_device_memory(first, 601));
    emulation::release(first);
    assert_int_equal(emulation::allocated_bytes(), 0);
    emulation::settings() = before;
}

}  // namespace

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fragments_of_a_product_lie_as_in_cutlass),
        cmocka_unit_test(matrices_are_loaded_by_rows_or_by_columns),
        cmocka_unit_test(bank_conflicts_fail_a_launch_where_so_many_are_not_allowed),
        cmocka_unit_test(shuffles_and_ballots_move_what_they_should),
        cmocka_unit_test(copies_land_at_the_wait_or_at_once_as_the_seed_says),
        cmocka_unit_test(every_breach_is_reported_with_its_place),
        cmocka_unit_test(what_no_device_launches_is_refused),
#ifdef LUNA_TEST_RACES
        cmocka_unit_test(a_race_is_reported_whatever_the_order),
#endif
        cmocka_unit_test(memory_ends_where_the_settings_say),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
