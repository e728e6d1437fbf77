// test_lane.c - lanes of every device, and the pool of threads under those of the CPU.

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "kernels/cpu/compute.h"
#include "kernels/cpu/pool.h"
#include "tests/unit/kernels/kit.h"

// DRIVEN is the device whose lanes are driven hard; the others compute inside lane_run or are
// alike.
#ifdef LUNA_TEST_GPU
#define DRIVEN LUNA_TEST_GPU
static const char *const device_names[] = {LUNA_TEST_GPU, LUNA_TEST_GPU ":f16"};
#else
#define DRIVEN "cpu"
static const char *const device_names[] = {"reference", "cpu", "cpu:plain"};
#endif
#define DEVICES (sizeof device_names / sizeof device_names[0])

static uint64_t now_ms(void)
{
    return clock_ms(clock_system());
}

static struct program *new_program(struct device *device)
{
    struct error error = {.status = STATUS_OK};
    struct program *program = NULL;
    must(program_create(&program, device, &error), &error);
    return program;
}

static void finish(struct program *program)
{
    struct error error = {.status = STATUS_OK};
    must(program_finish(program, &error), &error);
}

static struct lane *new_lane(struct device *device, const struct program *program)
{
    struct error error = {.status = STATUS_OK};
    struct lane *lane = NULL;
    must(lane_create(&lane, device, &error), &error);
    must(lane_reserve(lane, program_peak_bytes(program), &error), &error);
    return lane;
}

// A card clears at terabytes a second.
#ifdef LUNA_TEST_CARD
#define CLEAR_BYTES (UINT64_C(256) << 20)
#else
#define CLEAR_BYTES (UINT64_C(4) << 20)
#endif

// Clears so many bytes over and over, with a mark after each time.
static struct program *program_of_clears(struct device *device, uint32_t times)
{
    struct program *program = new_program(device);
    struct value value = program_bytes(program, CLEAR_BYTES);
    for (uint32_t i = 0; i < times; i++) {
        program_clear(program, &(struct clear){.output = value, .bytes = CLEAR_BYTES});
        program_mark(program);
    }
    finish(program);
    return program;
}

// Long enough that no test sees its end: 200 GB of memory traffic, on a card 13 TB.
static struct program *program_without_end(struct device *device)
{
    return program_of_clears(device, 50000);
}

static void wait_for_marks(const struct lane *lane, uint32_t marks)
{
    while (lane_marks(lane) < marks) sched_yield();
}

static void wait_until_readable(int descriptor)
{
    struct pollfd entry = {.fd = descriptor, .events = POLLIN};
    assert_int_equal(poll(&entry, 1, 60000), 1);
}

// ---------------------------------------------------------------------------------------------
// Lanes of every device

static void an_arena_grows_keeps_and_goes(void **state)
{
    (void)state;
    for (size_t i = 0; i < DEVICES; i++) {
        struct device *device = open_device(device_names[i], 1);
        struct lane *lane = NULL;
        struct error error = {.status = STATUS_OK};
        must(lane_create(&lane, device, &error), &error);
        assert_int_equal(lane_arena_bytes(lane), 0);
        must(lane_reserve(lane, 100000, &error), &error);
        uint64_t bytes = lane_arena_bytes(lane);
        assert_true(bytes >= 100000);
        must(lane_reserve(lane, 5, &error), &error);
        assert_int_equal(lane_arena_bytes(lane), bytes);
        assert_int_equal(lane_reserve(lane, UINT64_C(1) << 46, &error), STATUS_RESOURCE_EXHAUSTED);
        assert_int_equal(lane_arena_bytes(lane), bytes);
        must(lane_reserve(lane, 10000000, &error), &error);
        assert_true(lane_arena_bytes(lane) >= 10000000);
        lane_release(lane);
        assert_int_equal(lane_arena_bytes(lane), 0);
        lane_destroy(&lane);
        assert_null(lane);
        device_close(&device);
        assert_null(device);
    }
}

static void the_end_of_a_growth_is_told_as_that_of_a_run(void **state)
{
    (void)state;
    for (size_t i = 0; i < DEVICES; i++) {
        struct device *device = open_device(device_names[i], 1);
        struct program *program = new_program(device);
        struct value value = program_tensor(program, 1, 1, 1, 64);
        program_clear(program, &(struct clear){.output = value, .bytes = value.bytes});
        finish(program);
        struct lane *lane = NULL;
        struct error error = {.status = STATUS_OK};
        must(lane_create(&lane, device, &error), &error);
        for (uint64_t bytes = 4096; bytes <= UINT64_C(1) << 20; bytes *= 16) {
            lane_grow(lane, bytes);
            wait_until_readable(lane_descriptor(lane));
            must(lane_collect(lane, &error), &error);
            assert_false(is_readable(lane_descriptor(lane)));
            assert_true(lane_arena_bytes(lane) >= bytes);
            lane_run(lane, program, NULL, 0);
            must(lane_collect(lane, &error), &error);
        }
        uint64_t before = lane_arena_bytes(lane);
        lane_grow(lane, UINT64_C(1) << 46);
        wait_until_readable(lane_descriptor(lane));
        assert_int_equal(lane_collect(lane, &error), STATUS_RESOURCE_EXHAUSTED);
        assert_true(strlen(error.message) > 0);
        assert_int_equal(lane_arena_bytes(lane), before);
        lane_run(lane, program, NULL, 0);
        lane_cancel(lane);
        lane_collect(lane, NULL);  // cancelled or not
        lane_grow(lane, 2 * before);
        must(lane_collect(lane, &error), &error);
        lane_grow(lane, 4 * before);
        lane_destroy(&lane);  // waits for what grows
        program_destroy(&program);
        device_close(&device);
    }
}

static void an_empty_program_ends(void **state)
{
    (void)state;
    for (size_t i = 0; i < DEVICES; i++) {
        struct device *device = open_device(device_names[i], 2);
        struct program *program = new_program(device);
        finish(program);
        struct lane *lane = new_lane(device, program);
        assert_false(is_readable(lane_descriptor(lane)));
        lane_run(lane, program, NULL, 0);
        wait_until_readable(lane_descriptor(lane));
        assert_int_equal(lane_collect(lane, NULL), STATUS_OK);
        assert_false(is_readable(lane_descriptor(lane)));
        lane_destroy(&lane);
        program_destroy(&program);
        device_close(&device);
    }
}

static void marks_and_progress_count_every_run(void **state)
{
    (void)state;
    for (size_t i = 0; i < DEVICES; i++) {
        struct device *device = open_device(device_names[i], 2);
        struct program *program = program_of_clears(device, 7);
        struct lane *lane = new_lane(device, program);
        uint64_t progress = lane_progress(lane);
        for (int run = 0; run < 3; run++) {
            run_to_end(lane, program, NULL, 0);
            assert_int_equal(lane_marks(lane), 7);
            assert_true(lane_progress(lane) >= progress + 7);
            progress = lane_progress(lane);
        }
        lane_destroy(&lane);
        program_destroy(&program);
        device_close(&device);
    }
}

static void many_programs_follow_each_other(void **state)
{
    (void)state;
    struct device *device = open_device(DRIVEN, 2);
    struct program *program = new_program(device);
    struct value x = program_tensor(program, 1, 1, 1, 3);
    struct value in = program_slot(program, 0, 3 * sizeof(float));
    struct value out = program_slot(program, 1, 3 * sizeof(float));
    program_latent_load(program, &(struct latent_load){.source = in,
                                                       .dtype = DTYPE_F32,
                                                       .channels = 3,
                                                       .window = {1, 1, 0, 0, 1, 1},
                                                       .output = x});
    program_store(program, &(struct store){.input = x, .output = out, .count = 3});
    finish(program);
    struct lane *lane = new_lane(device, program);
    for (int i = 0; i < 3000; i++) {
        float from[3] = {(float)i, (float)-i, 0.5f};
        float to[3] = {0};
        lane_run(lane, program, (void *[]){from, to}, 2);
        if (i % 2 == 0) wait_until_readable(lane_descriptor(lane));
        assert_int_equal(lane_collect(lane, NULL), STATUS_OK);
        assert_memory_equal(from, to, sizeof from);
    }
    lane_destroy(&lane);
    program_destroy(&program);
    device_close(&device);
}

static void cancelling_ends_a_run_within_100_ms(void **state)
{
    (void)state;
    for (uint32_t threads = 1; threads <= 4; threads *= 2) {
        struct device *device = open_device(DRIVEN, threads);
        struct program *program = program_without_end(device);
        struct lane *lane = new_lane(device, program);
        struct error error = {.status = STATUS_OK};
        lane_run(lane, program, NULL, 0);
        wait_for_marks(lane, 3);
        assert_false(is_readable(lane_descriptor(lane)));
        uint64_t begin_ms = now_ms();
        lane_cancel(lane);
        wait_until_readable(lane_descriptor(lane));
        assert_true(now_ms() - begin_ms <= 100);
        assert_int_equal(lane_collect(lane, &error), STATUS_CANCELLED);
        assert_int_equal(error.status, STATUS_CANCELLED);
        lane_destroy(&lane);
        program_destroy(&program);
        device_close(&device);
    }
}

#ifndef LUNA_TEST_GPU
static void *cancel_from_afar(void *argument)
{
    wait_for_marks(argument, 3);
    lane_cancel(argument);
    return NULL;
}

static void the_reference_is_cancelled_from_another_thread(void **state)
{
    (void)state;
    struct device *device = open_device("reference", 1);
    struct program *program = program_without_end(device);
    struct lane *lane = new_lane(device, program);
    pthread_t other;
    assert_int_equal(pthread_create(&other, NULL, cancel_from_afar, lane), 0);
    lane_run(lane, program, NULL, 0);
    pthread_join(other, NULL);
    assert_int_equal(lane_collect(lane, NULL), STATUS_CANCELLED);
    lane_destroy(&lane);
    program_destroy(&program);
    device_close(&device);
}
#endif

static void cancelling_an_idle_lane_does_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < DEVICES; i++) {
        struct device *device = open_device(device_names[i], 2);
        struct program *program = program_of_clears(device, 5);
        struct lane *lane = new_lane(device, program);
        lane_cancel(lane);
        run_to_end(lane, program, NULL, 0);
        lane_cancel(lane);
        assert_false(is_readable(lane_descriptor(lane)));
        run_to_end(lane, program, NULL, 0);
        lane_destroy(&lane);
        program_destroy(&program);
        device_close(&device);
    }
}

static void a_lane_can_run_again_after_a_cancelled_run(void **state)
{
    (void)state;
    struct device *device = open_device(DRIVEN, 2);
    struct program *endless = program_without_end(device);
    struct program *brief = program_of_clears(device, 4);
    struct lane *lane = new_lane(device, endless);
    for (int i = 0; i < 20; i++) {
        lane_run(lane, endless, NULL, 0);
        if (i % 2 == 0) wait_for_marks(lane, 1);
        lane_cancel(lane);
        assert_int_equal(lane_collect(lane, NULL), STATUS_CANCELLED);
        run_to_end(lane, brief, NULL, 0);
        assert_int_equal(lane_marks(lane), 4);
    }
    lane_destroy(&lane);
    program_destroy(&brief);
    program_destroy(&endless);
    device_close(&device);
}

static void destroying_a_lane_ends_what_it_runs(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct device *device = open_device(DRIVEN, 2);
        struct program *program = program_without_end(device);
        struct lane *lane = new_lane(device, program);
        lane_run(lane, program, NULL, 0);
        if (i % 2 == 0) wait_for_marks(lane, 2);
        lane_destroy(&lane);
        program_destroy(&program);
        device_close(&device);
    }
}

#ifndef LUNA_TEST_GPU
static void two_lanes_share_the_pool(void **state)
{
    (void)state;
    for (uint32_t threads = 1; threads <= 3; threads++) {
        struct device *device = open_device("cpu", threads);
        struct program *program = program_without_end(device);
        struct lane *first = new_lane(device, program);
        struct lane *second = new_lane(device, program);
        lane_run(first, program, NULL, 0);
        wait_for_marks(first, 50);
        lane_run(second, program, NULL, 0);
        wait_for_marks(second, 50);
        // From here both have work all the time.
        uint32_t first_before = lane_marks(first);
        uint32_t second_before = lane_marks(second);
        wait_for_marks(second, second_before + 500);
        uint32_t first_did = lane_marks(first) - first_before;
        // A loaded machine may keep one thread from its core for a while; starving looks different.
        if (first_did < 50 || first_did > 5000) {
            fail_msg("%u threads: one lane did %u steps, the other 500", threads, first_did);
        }
        lane_cancel(first);
        assert_int_equal(lane_collect(first, NULL), STATUS_CANCELLED);
        uint32_t alone = lane_marks(second);
        wait_for_marks(second, alone + 50);
        lane_destroy(&first);
        lane_destroy(&second);
        program_destroy(&program);
        device_close(&device);
    }
}

static void a_favoured_lane_goes_before_the_others(void **state)
{
    (void)state;
    struct device *device = open_device("cpu", 1);
    struct program *program = program_without_end(device);
    struct lane *plain = new_lane(device, program);
    struct lane *favoured = new_lane(device, program);
    lane_run(plain, program, NULL, 0);
    wait_for_marks(plain, 5);
    lane_favour(favoured, true);
    lane_run(favoured, program, NULL, 0);
    wait_for_marks(favoured, 5);
    uint32_t before = lane_marks(plain);
    wait_for_marks(favoured, 205);
    assert_in_range(lane_marks(plain) - before, 0, 1);  // what was begun is finished
    lane_favour(favoured, false);
    wait_for_marks(plain, before + 50);
    lane_destroy(&plain);
    lane_destroy(&favoured);
    program_destroy(&program);
    device_close(&device);
}
#endif

static void *drive(void *argument)
{
    struct device *device = argument;
    struct program *program = program_of_clears(device, 20);
    struct lane *lane = new_lane(device, program);
    for (int i = 0; i < 50; i++) run_to_end(lane, program, NULL, 0);
    lane_destroy(&lane);
    program_destroy(&program);
    return NULL;
}

static void lanes_may_be_driven_by_different_threads(void **state)
{
    (void)state;
    struct device *device = open_device(DRIVEN, 2);
    pthread_t drivers[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&drivers[i], NULL, drive, device), 0);
    for (int i = 0; i < 4; i++) pthread_join(drivers[i], NULL);
    device_close(&device);
}

static void a_device_says_what_it_is(void **state)
{
    (void)state;
    for (size_t i = 0; i < DEVICES; i++) {
        struct device *device = open_device(device_names[i], 3);
        const struct device_info *info = device_info(device);
        assert_string_equal(info->name, device_names[i]);
        assert_int_equal(info->activation_bytes, 4);
        uint32_t threads = strcmp(DRIVEN, "cpu") != 0 ? 0 : i == 0 ? 1 : 3;
        assert_int_equal(info->threads, threads);
        assert_true(strlen(info->label) > 0);
        device_close(&device);
    }
    struct device *device = open_device("cpu", 0);
    assert_true(device_info(device)->threads >= 1);
    device_close(&device);
    // Where the vector instructions are missing, the name says what that means.
    device = open_device("cpu:plain", 1);
    assert_non_null(strstr(device_info(device)->label, "slow"));
    device_close(&device);
    struct device_options options = {.name = "cpu:avx512", .threads = 1};
    enum status status = device_open(&device, &options, NULL);
    assert_int_equal(status, cpu_has_avx512() ? STATUS_OK : STATUS_UNAVAILABLE);
    if (status == STATUS_OK) device_close(&device);
}

#ifndef LUNA_TEST_GPU
// ---------------------------------------------------------------------------------------------
// The pool alone, with launches that look at each other

struct witness {
    pthread_barrier_t barrier;  // for as many threads as the pool has
    _Atomic uint32_t done;      // items of the first launch that have ended
    _Atomic uint32_t late;      // items of the second launch that saw all of the first
    _Atomic uint32_t seen[64];  // how often each item of the second launch ran
};

static void run_meeting(const struct operation *op, const struct cpu_run *run, uint32_t item,
                        void *scratch)
{
    (void)op;
    struct witness *witness = run->bindings[0];
    memset(scratch, (int)item, 100000);
    assert_int_equal((uintptr_t)scratch % 64, 0);
    pthread_barrier_wait(&witness->barrier);
    atomic_fetch_add(&witness->done, 1);
}

static void run_after(const struct operation *op, const struct cpu_run *run, uint32_t item,
                      void *scratch)
{
    (void)op;
    (void)scratch;
    struct witness *witness = run->bindings[0];
    if (atomic_load(&witness->done) == 4) atomic_fetch_add(&witness->late, 1);
    atomic_fetch_add(&witness->seen[item], 1);
}

static uint32_t meeting_launches(const struct operation *op,
                                 struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    (void)op;
    out[0] = (struct cpu_launch){.items = 0, .run = run_after};
    out[1] = (struct cpu_launch){.items = 4, .scratch_bytes = 100000, .run = run_meeting};
    out[2] = (struct cpu_launch){.items = 0, .run = run_after};
    out[3] = (struct cpu_launch){.items = 64, .run = run_after};
    out[4] = (struct cpu_launch){.items = 0, .run = run_after};
    return 5;
}

// Hangs, and so fails by the test's time limit, if the four items do not run at the same time.
static void a_lane_alone_uses_all_threads_and_its_launches_follow_each_other(void **state)
{
    (void)state;
    struct device *device = open_device("cpu", 1);
    struct program *program = program_of_clears(device, 1);
    struct lane *lane = new_lane(device, program);  // for its descriptor
    struct pool *pool = NULL;
    assert_int_equal(pool_create(&pool, 4, NULL), STATUS_OK);
    for (int round = 0; round < 50; round++) {
        struct witness witness = {.done = 0};
        void *bindings[1] = {&witness};
        pthread_barrier_init(&witness.barrier, NULL, 4);
        struct pool_job job = {.program = program,
                               .launches = meeting_launches,
                               .run = {.bindings = bindings},
                               .descriptor = lane_descriptor(lane)};
        assert_int_equal(pool_prepare(pool, program, meeting_launches, NULL), STATUS_OK);
        pool_start(pool, &job);
        assert_int_equal(pool_end(pool, &job), STATUS_OK);
        assert_int_equal(witness.done, 4);
        assert_int_equal(witness.late, 64);
        for (int i = 0; i < 64; i++) assert_int_equal(witness.seen[i], 1);
        assert_int_equal(job.marks, 1);
        pthread_barrier_destroy(&witness.barrier);
    }
    pool_destroy(&pool);
    assert_null(pool);
    lane_destroy(&lane);
    program_destroy(&program);
    device_close(&device);
}
#endif

#define SIDE 16u
#define PICTURE_BYTES (3ull * SIDE * SIDE)

// Pixels from slot 0 to slot 1, 8 bits wide: through the device, and exact.
static struct program *program_of_copy(struct device *device)
{
    struct program *program = new_program(device);
    struct value x = program_tensor(program, 1, SIDE, SIDE, 3);
    program_pixels_load(program,
                        &(struct pixels_load){.source = program_slot(program, 0, PICTURE_BYTES),
                                              .dtype = DTYPE_U8,
                                              .channels = 3,
                                              .window = {SIDE, SIDE, 0, 0, SIDE, SIDE},
                                              .output = x});
    program_pixels_store(program,
                         &(struct pixels_store){.input = x,
                                                .clamp = true,
                                                .h = SIDE,
                                                .w = SIDE,
                                                .output = program_slot(program, 1, PICTURE_BYTES),
                                                .dtype = DTYPE_U8});
    finish(program);
    return program;
}

static void copy(struct lane *lane, const struct program *program, void *from, void *to)
{
    void *bindings[2] = {from, to};
    struct error error = {.status = STATUS_OK};
    lane_run(lane, program, bindings, 2);
    must(lane_collect(lane, &error), &error);
}

static void a_program_reads_and_writes_a_loan(void **state)
{
    (void)state;
    struct device *device = open_device(DRIVEN, 1);
    struct device_loan loan = {.memory = NULL};
    struct error error = {.status = STATUS_OK};
    enum status status = device_lend(device, DEVICE_LOAN_UNIT_BYTES, &loan, &error);
    if (status == STATUS_UNIMPLEMENTED) {  // the processor, and systems without CUDA IPC
        print_message("%s\n", error.message);
        device_close(&device);
        return;
    }
    must(status, &error);
    struct device_memory memory;
    must(device_memory(device, &memory, &error), &error);
    assert_int_equal(memory.used_bytes, DEVICE_LOAN_UNIT_BYTES);
    struct program *program = program_of_copy(device);
    struct lane *lane = new_lane(device, program);
    uint8_t picture[PICTURE_BYTES], found[PICTURE_BYTES];
    for (uint32_t i = 0; i < PICTURE_BYTES; i++) picture[i] = (uint8_t)(i * 7);
    uint8_t *far = (uint8_t *)loan.memory + DEVICE_LOAN_UNIT_BYTES - PICTURE_BYTES;
    memset(found, 0xff, sizeof found);
    copy(lane, program, far, found);
    for (uint32_t i = 0; i < PICTURE_BYTES; i++) assert_int_equal(found[i], 0);
    copy(lane, program, picture, loan.memory);
    copy(lane, program, loan.memory, far);  // never by the host
    copy(lane, program, far, found);
    assert_memory_equal(found, picture, sizeof found);
    lane_destroy(&lane);
    program_destroy(&program);
    device_take_back(device, &loan);
    assert_null(loan.memory);
    must(device_memory(device, &memory, &error), &error);
    assert_int_equal(memory.used_bytes, 0);
    device_close(&device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_arena_grows_keeps_and_goes),
        cmocka_unit_test(the_end_of_a_growth_is_told_as_that_of_a_run),
        cmocka_unit_test(an_empty_program_ends),
        cmocka_unit_test(marks_and_progress_count_every_run),
        cmocka_unit_test(many_programs_follow_each_other),
        cmocka_unit_test(cancelling_ends_a_run_within_100_ms),
        cmocka_unit_test(cancelling_an_idle_lane_does_nothing),
        cmocka_unit_test(a_lane_can_run_again_after_a_cancelled_run),
        cmocka_unit_test(destroying_a_lane_ends_what_it_runs),
        cmocka_unit_test(lanes_may_be_driven_by_different_threads),
        cmocka_unit_test(a_device_says_what_it_is),
        cmocka_unit_test(a_program_reads_and_writes_a_loan),
#ifndef LUNA_TEST_GPU
        cmocka_unit_test(the_reference_is_cancelled_from_another_thread),
        cmocka_unit_test(two_lanes_share_the_pool),
        cmocka_unit_test(a_favoured_lane_goes_before_the_others),
        cmocka_unit_test(a_lane_alone_uses_all_threads_and_its_launches_follow_each_other),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
