// test_faults.c - what a GPU may do to a program, on the emulated device: no memory at the n-th
// allocation, and a device that breaks. The emulator reads its settings once, so each case is a
// child process of its own.

#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/kernels/kit.h"

// Runs body in a child with one setting; returns how it ended.
static int in_child(const char *name, const char *value, int (*body)(void))
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv(name, value, 1);
        _exit(body());
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static struct device *device_or_null(void)
{
    struct device *device = NULL;
    struct device_options options = {.name = "emulated"};
    return device_open(&device, &options, NULL) == STATUS_OK ? device : NULL;
}

// A weight, then an arena, then a larger one: three allocations. Returns the number of the first
// that failed with RESOURCE_EXHAUSTED and left everything usable, 0 when none did, 9 otherwise.
static int allocate_three(void)
{
    struct device *device = device_or_null();
    struct weight *weight = NULL;
    struct lane *lane = NULL;
    float one = 1;
    int failed = 0;
    if (device == NULL || lane_create(&lane, device, NULL) != STATUS_OK) return 9;
    struct weight_source source = {
        .form = WEIGHT_VECTOR, .dtype = DTYPE_F32, .dims = {1}, .parts_count = 1, .parts = {&one}};
    enum status status = weight_create(&weight, device, &source, NULL);
    if (status == STATUS_RESOURCE_EXHAUSTED) failed = 1;
    for (int i = 0; i < 2; i++) {
        uint64_t before = lane_arena_bytes(lane);
        status = lane_reserve(lane, 1000u << i, NULL);
        if (status == STATUS_OK) continue;
        if (status != STATUS_RESOURCE_EXHAUSTED || lane_arena_bytes(lane) != before) return 9;
        failed = 2 + i;
        if (lane_reserve(lane, 1000u << i, NULL) != STATUS_OK) return 9;  // there is room again
    }
    weight_destroy(&weight);
    lane_destroy(&lane);
    device_close(&device);
    return failed;
}

static void memory_that_lacks_at_any_allocation_is_an_answer(void **state)
{
    (void)state;
    assert_int_equal(in_child("LUNA_EMULATION_FAIL_AT", "1", allocate_three), 1);
    assert_int_equal(in_child("LUNA_EMULATION_FAIL_AT", "2", allocate_three), 2);
    assert_int_equal(in_child("LUNA_EMULATION_FAIL_AT", "3", allocate_three), 3);
    assert_int_equal(in_child("LUNA_EMULATION_FAIL_AT", "4", allocate_three), 0);
}

static int reserve_a_megabyte(void)
{
    struct device *device = device_or_null();
    struct lane *lane = NULL;
    if (device == NULL || lane_create(&lane, device, NULL) != STATUS_OK) return 9;
    int refused = lane_reserve(lane, 1 << 20, NULL) == STATUS_RESOURCE_EXHAUSTED;
    lane_destroy(&lane);
    device_close(&device);
    return refused;
}

static void a_device_has_so_much_memory_and_no_more(void **state)
{
    (void)state;
    assert_int_equal(in_child("LUNA_EMULATION_BYTES", "1000000", reserve_a_megabyte), 1);
    assert_int_equal(in_child("LUNA_EMULATION_BYTES", "1100000", reserve_a_megabyte), 0);
}

// A run of three launches, the second of which fails: the device is broken for good.
static int break_the_device(void)
{
    struct device *device = device_or_null();
    struct program *program = NULL;
    struct lane *lane = NULL;
    struct error error = {.status = STATUS_OK};
    if (device == NULL || lane_create(&lane, device, NULL) != STATUS_OK) return 9;
    if (program_create(&program, device, NULL) != STATUS_OK) return 9;
    struct attention op = {.batch = 1, .tokens = 1, .heads = 1, .head_width = 1, .scale = 1};
    op.q_stride = op.k_stride = op.v_stride = 1;
    op.q = op.k = op.v = program_tensor(program, 1, 1, 1, 1);
    op.output = program_tensor(program, 1, 1, 1, 1);
    for (int i = 0; i < 3; i++) {
        program_attention(program, &op);
        program_mark(program);
    }
    if (program_finish(program, &error) != STATUS_OK) return 9;
    if (lane_reserve(lane, program_peak_bytes(program), NULL) != STATUS_OK) return 9;
    int ended = 0;
    for (int run = 0; run < 2; run++) {
        lane_run(lane, program, NULL, 0);
        if (lane_collect(lane, &error) == STATUS_INTERNAL && lane_marks(lane) == 0) ended++;
        if (strstr(error.message, "attend") == NULL) return 9;
    }
    if (lane_reserve(lane, 2 * lane_arena_bytes(lane), NULL) == STATUS_INTERNAL) ended++;
    lane_destroy(&lane);
    program_destroy(&program);
    device_close(&device);
    return ended;
}

static void a_kernel_that_fails_breaks_the_device_and_says_which(void **state)
{
    (void)state;
    assert_int_equal(in_child("LUNA_EMULATION_BREAK_AT", "2", break_the_device), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_that_lacks_at_any_allocation_is_an_answer),
        cmocka_unit_test(a_device_has_so_much_memory_and_no_more),
        cmocka_unit_test(a_kernel_that_fails_breaks_the_device_and_says_which),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
