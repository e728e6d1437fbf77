// test_faults.c - what a GPU may do to a program, on the emulated device: no memory at the n-th
// allocation, and a device that breaks. The emulator reads its settings once, so each case is a
// child process of its own.

#include <poll.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/driver.h"
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
// that failed with RESOURCE_EXHAUSTED and left everything usable, 0 when none did, 9 otherwise. A
// lane that cannot have the larger arena has the old one again.
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
        if (lane_collect(lane, &error) == STATUS_UNAVAILABLE && lane_marks(lane) == 0) ended++;
        if (strstr(error.message, "attend") == NULL) return 9;
    }
    struct device_memory memory;
    if (device_memory(device, &memory, NULL) == STATUS_UNAVAILABLE) ended++;
    if (lane_reserve(lane, 2 * lane_arena_bytes(lane), NULL) == STATUS_UNAVAILABLE) ended++;
    lane_destroy(&lane);
    program_destroy(&program);
    device_close(&device);
    return ended;
}

static void a_kernel_that_fails_breaks_the_device_and_says_which(void **state)
{
    (void)state;
    assert_int_equal(in_child("LUNA_EMULATION_BREAK_AT", "2", break_the_device), 4);
}

static void hold(const char *folder, const char *name, unsigned long long bytes)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    if (file == NULL) _exit(9);
    fprintf(file, "%llu", bytes);
    fclose(file);
}

// The device's memory as it stands with a weight and an arena, beside somebody who holds some.
// Returns how many of the facts were right.
static int look_at_memory(void)
{
    const char *folder = getenv("LUNA_EMULATION_FAULTS");
    struct device *device = device_or_null();
    struct lane *lane = NULL;
    struct device_memory memory;
    int right = 0;
    if (device == NULL || lane_create(&lane, device, NULL) != STATUS_OK) return 9;
    if (lane_reserve(lane, 1 << 20, NULL) != STATUS_OK) return 9;
    if (device_memory(device, &memory, NULL) != STATUS_OK) return 9;
    right += memory.used_bytes == 1 << 20;
    right += memory.free_bytes == memory.total_bytes - (1 << 20);
    hold(folder, "hog", memory.total_bytes - (3 << 20));
    if (device_memory(device, &memory, NULL) != STATUS_OK) return 9;
    right += memory.free_bytes == 2 << 20;
    right += lane_reserve(lane, 4 << 20, NULL) == STATUS_RESOURCE_EXHAUSTED;
    right += lane_reserve(lane, 3 << 20, NULL) == STATUS_OK;  // the old arena makes room
    hold(folder, "hog", 0);
    hold(folder, "refuse", 1 << 20);
    right += lane_reserve(lane, 4 << 20, NULL) == STATUS_RESOURCE_EXHAUSTED;
    right += lane_arena_bytes(lane) == 3 << 20 && lane_reserve(lane, 4 << 20, NULL) == STATUS_OK;
    lane_destroy(&lane);
    if (device_memory(device, &memory, NULL) != STATUS_OK) return 9;
    right += memory.used_bytes == 0 && memory.free_bytes == memory.total_bytes;
    device_close(&device);
    return right;
}

static void memory_is_what_the_driver_says_with_everybody_beside_us(void **state)
{
    (void)state;
    char folder[] = P_tmpdir "/luna-faults-XXXXXX";
    assert_non_null(mkdtemp(folder));
    assert_int_equal(in_child("LUNA_EMULATION_FAULTS", folder, look_at_memory), 8);
    char path[64];
    snprintf(path, sizeof path, "%s/hog", folder);
    unlink(path);
    assert_int_equal(rmdir(folder), 0);
}

static bool has_ended(const struct lane *lane)
{
    struct pollfd entry = {.fd = lane_descriptor(lane), .events = POLLIN};
    return poll(&entry, 1, 0) == 1;
}

// A driver that does not answer keeps neither whoever asked for memory nor who runs beside it.
// Returns how many of the facts were right.
static int grow_beside_a_run(void)
{
    const char *folder = getenv("LUNA_EMULATION_FAULTS");
    char path[256];
    struct device *device = device_or_null();
    struct program *program = NULL;
    struct lane *lanes[2] = {NULL, NULL};
    int right = 0;
    if (device == NULL || program_create(&program, device, NULL) != STATUS_OK) return 9;
    struct value value = program_tensor(program, 1, 1, 1, 64);
    program_clear(program, &(struct clear){.output = value, .bytes = value.bytes});
    if (program_finish(program, NULL) != STATUS_OK) return 9;
    for (int i = 0; i < 2; i++) {
        if (lane_create(&lanes[i], device, NULL) != STATUS_OK) return 9;
    }
    if (lane_reserve(lanes[0], 4096, NULL) != STATUS_OK) return 9;
    hold(folder, "stall", 1 << 20);
    lane_grow(lanes[1], 1 << 20);
    lane_run(lanes[0], program, NULL, 0);
    right += lane_collect(lanes[0], NULL) == STATUS_OK;
    right += !has_ended(lanes[1]) && lane_arena_bytes(lanes[1]) == 0;
    lane_cancel(lanes[1]);  // a growth goes on
    snprintf(path, sizeof path, "%s/stall", folder);
    unlink(path);
    right += lane_collect(lanes[1], NULL) == STATUS_OK;
    right += lane_arena_bytes(lanes[1]) == 1 << 20 && !has_ended(lanes[1]);
    lane_run(lanes[1], program, NULL, 0);
    right += lane_collect(lanes[1], NULL) == STATUS_OK;
    lane_grow(lanes[1], 2 << 20);
    for (int i = 0; i < 2; i++) lane_destroy(&lanes[i]);  // one of them grows
    program_destroy(&program);
    device_close(&device);
    return right;
}

static void an_arena_that_is_long_in_coming_keeps_nobody(void **state)
{
    (void)state;
    char folder[] = P_tmpdir "/luna-faults-XXXXXX";
    assert_non_null(mkdtemp(folder));
    assert_int_equal(in_child("LUNA_EMULATION_FAULTS", folder, grow_beside_a_run), 5);
    assert_int_equal(rmdir(folder), 0);
}

// A program of so many operations of one launch each, and a mark, of none.
static struct program *make_clears(struct device *device, uint32_t count)
{
    struct program *program = NULL;
    if (program_create(&program, device, NULL) != STATUS_OK) return NULL;
    struct value value = program_tensor(program, 1, 1, 1, 64);
    for (uint32_t i = 0; i < count; i++) {
        program_clear(program, &(struct clear){.output = value, .bytes = value.bytes});
    }
    program_mark(program);
    if (program_finish(program, NULL) != STATUS_OK) program_destroy(&program);
    return program;
}

// A run that is traced, between two that are not: the times of its operations, and of the one
// launch in each. Returns how many of the facts were right.
static int trace_a_run(void)
{
    struct device *device = device_or_null();
    struct program *program = device == NULL ? NULL : make_clears(device, 3);
    struct lane *lane = NULL;
    struct lane_launch launches[5];
    uint64_t times[5] = {0};
    int right = 0;
    if (program == NULL || lane_create(&lane, device, NULL) != STATUS_OK) return 9;
    if (lane_reserve(lane, program_peak_bytes(program), NULL) != STATUS_OK) return 9;
    for (int run = 0; run < 3; run++) {
        if (lane_trace(lane, run == 1, NULL) != STATUS_OK) return 9;
        lane_run(lane, program, NULL, 0);
        if (lane_collect(lane, NULL) != STATUS_OK) return 9;
        right += lane_times(lane, times, 4) == (run == 1 ? 4u : 0u);
        right += lane_launches(lane, launches, 5) == (run == 1 ? 3u : 0u);
        if (run != 1) continue;
        for (int i = 0; i < 4; i++) right += times[i] > 0 && times[i] <= times[i + 1];
        for (uint32_t i = 0; i < 3; i++) {
            right += strcmp(launches[i].name, "zero") == 0 && launches[i].operation == i;
            right += launches[i].begin_ns == times[i] && launches[i].end_ns == times[i + 1];
        }
        right += times[3] < times[4] ? 0 : 1;  // the mark did nothing
        right += lane_times(lane, times, 2) == 2 && lane_launches(lane, launches, 2) == 2;
    }
    struct operation_facts facts = program_operation(program, 0);
    right += program_operations_count(program) == 4 && strcmp(facts.name, "clear") == 0;
    right += facts.live_bytes == 64 * sizeof(float);
    lane_destroy(&lane);
    program_destroy(&program);
    device_close(&device);
    return right;
}

static void a_traced_run_tells_when_each_operation_and_launch_ended(void **state)
{
    (void)state;
    assert_int_equal(in_child("LUNA_EMULATION_SEED", "0", trace_a_run), 20);
}

// More launches than are kept, twice: what is known is the beginning of the run. Then one that is
// cancelled, of which nothing is. Returns how many of the facts were right.
static int trace_a_long_run(void)
{
    const uint32_t count = GPU_SPANS_MAX + 8;
    struct device *device = device_or_null();
    struct program *program = device == NULL ? NULL : make_clears(device, count);
    struct lane *lane = NULL;
    struct lane_launch *launches = calloc(count, sizeof *launches);
    uint64_t *times = calloc(count + 1, sizeof *times);
    int right = 0;
    if (program == NULL || lane_create(&lane, device, NULL) != STATUS_OK) return 9;
    if (launches == NULL || times == NULL) return 9;
    if (lane_reserve(lane, program_peak_bytes(program), NULL) != STATUS_OK) return 9;
    if (lane_trace(lane, true, NULL) != STATUS_OK) return 9;
    for (int run = 0; run < 2; run++) {
        lane_run(lane, program, NULL, 0);
        if (lane_collect(lane, NULL) != STATUS_OK) return 9;
        right += lane_times(lane, times, count) == GPU_SPANS_MAX;
        right += lane_launches(lane, launches, count) == GPU_SPANS_MAX;
        right += launches[GPU_SPANS_MAX - 1].operation == GPU_SPANS_MAX - 1;
        right += launches[GPU_SPANS_MAX - 1].end_ns == times[GPU_SPANS_MAX];
    }
    lane_run(lane, program, NULL, 0);
    lane_cancel(lane);
    if (lane_collect(lane, NULL) == STATUS_CANCELLED) {
        right += lane_times(lane, times, count) == 0;
        right += lane_launches(lane, launches, count) == 0;
    }
    lane_destroy(&lane);
    program_destroy(&program);
    device_close(&device);
    free(launches);
    free(times);
    return right;
}

static void of_a_run_too_long_to_be_kept_the_beginning_is_known(void **state)
{
    (void)state;
    assert_int_equal(in_child("LUNA_EMULATION_SEED", "0", trace_a_long_run), 10);
}

// A convolution whose launch fails, so that the report names its kernel.
static int name_the_convolution(void)
{
    const struct device_options options = {.name = "emulated", .precision_fast = true};
    struct device *device = NULL;
    struct program *program = NULL;
    struct weight *weight = NULL;
    struct lane *lane = NULL;
    struct error error = {.status = STATUS_OK};
    float one = 1;
    setenv("LUNA_EMULATION_BREAK_AT", "1", 1);
    enum status status = device_open(&device, &options, &error);
    if (status == STATUS_INVALID_ARGUMENT) return 3;
    if (status != STATUS_OK || lane_create(&lane, device, NULL) != STATUS_OK) return 9;
    if (program_create(&program, device, NULL) != STATUS_OK) return 9;
    struct weight_source source = {.form = WEIGHT_CONVOLUTION,
                                   .dtype = DTYPE_F32,
                                   .dims = {1, 1, 1, 1},
                                   .parts_count = 1,
                                   .parts = {&one}};
    if (weight_create(&weight, device, &source, NULL) != STATUS_OK) return 9;
    struct convolution op = {.n = 1, .h = 1, .w = 1, .c = 1, .k = 1, .stride = 1, .weight = weight};
    op.input = program_tensor(program, 1, 1, 1, 1);
    op.output = program_tensor(program, 1, 1, 1, 1);
    program_convolution(program, &op);
    if (program_finish(program, NULL) != STATUS_OK) return 9;
    if (lane_reserve(lane, program_peak_bytes(program), NULL) != STATUS_OK) return 9;
    lane_run(lane, program, NULL, 0);
    if (lane_collect(lane, &error) != STATUS_UNAVAILABLE) return 9;
    int named = strstr(error.message, "convolution_mma") != NULL     ? 1
                : strstr(error.message, "convolution_wgmma") != NULL ? 2
                                                                     : 9;
    lane_destroy(&lane);
    program_destroy(&program);
    weight_destroy(&weight);
    device_close(&device);
    return named;
}

static void which_kernel_convolves_is_chosen_by_name_or_refused(void **state)
{
    (void)state;
    unsetenv("LUNA_CUDA_CONVOLUTION");
    assert_int_equal(in_child("LUNA_EMULATION_SEED", "0", name_the_convolution), 1);
    assert_int_equal(in_child("LUNA_CUDA_CONVOLUTION", "mma", name_the_convolution), 1);
    assert_int_equal(in_child("LUNA_CUDA_CONVOLUTION", "wgmma", name_the_convolution), 2);
    assert_int_equal(in_child("LUNA_CUDA_CONVOLUTION", "auto", name_the_convolution), 2);
    assert_int_equal(in_child("LUNA_CUDA_CONVOLUTION", "mmu", name_the_convolution), 3);
}

static int name_the_convolution_of_8_9(void)
{
    setenv("LUNA_EMULATION_CAPABILITY", "8.9", 1);
    return name_the_convolution();
}

// So one environment does for a machine whose cards differ.
static void auto_convolves_on_a_card_that_wgmma_is_refused_for(void **state)
{
    (void)state;
    assert_int_equal(in_child("LUNA_CUDA_CONVOLUTION", "auto", name_the_convolution_of_8_9), 1);
    assert_int_equal(in_child("LUNA_CUDA_CONVOLUTION", "mma", name_the_convolution_of_8_9), 1);
    assert_int_equal(in_child("LUNA_CUDA_CONVOLUTION", "wgmma", name_the_convolution_of_8_9), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_that_lacks_at_any_allocation_is_an_answer),
        cmocka_unit_test(a_device_has_so_much_memory_and_no_more),
        cmocka_unit_test(memory_is_what_the_driver_says_with_everybody_beside_us),
        cmocka_unit_test(an_arena_that_is_long_in_coming_keeps_nobody),
        cmocka_unit_test(a_traced_run_tells_when_each_operation_and_launch_ended),
        cmocka_unit_test(of_a_run_too_long_to_be_kept_the_beginning_is_known),
        cmocka_unit_test(a_kernel_that_fails_breaks_the_device_and_says_which),
        cmocka_unit_test(which_kernel_convolves_is_chosen_by_name_or_refused),
        cmocka_unit_test(auto_convolves_on_a_card_that_wgmma_is_refused_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
