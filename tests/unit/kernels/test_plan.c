// test_plan.c - what a program says it needs is what it gets and what it uses: no byte more is
// handed out, none behind it can be touched, and the process does not grow by more.

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/device.h"
#include "kernels/host_arena.h"
#include "tests/unit/kernels/kit.h"

// What a lane's run may take beside its arena: scratch of the threads, page tables, huge pages.
#define BESIDE_BYTES ((uint64_t)64 << 20)

enum { SIZE = 96, CHANNELS = 128 };

// The tensors of a network's block, and the highest byte that was handed out for one.
struct block {
    struct rig rig;        // builds it
    uint64_t highest;      // the end of the highest value so far
    struct value x, wide;  // [1, SIZE, SIZE, CHANNELS], and twice as high and wide
};

static struct value note(struct block *self, struct value value)
{
    assert_int_equal(value.place, VALUE_ARENA);
    uint64_t end = (value.offset + value.bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT;
    if (end * ARENA_ALIGNMENT > self->highest) self->highest = end * ARENA_ALIGNMENT;
    return value;
}

static struct value tensor(struct block *self, uint32_t side)
{
    return note(self, program_tensor(self->rig.program, 1, side, side, CHANNELS));
}

static struct value statistics(struct block *self, uint32_t side)
{
    return note(self, program_statistics(self->rig.program, 1, side, side, CHANNELS));
}

static void append(struct block *self, struct convolution op)
{
    op.n = 1;
    op.c = op.k = CHANNELS;
    op.stride = 1;
    op.weight = self->rig.weights[op.upsample ? 2 : 0];
    if (op.norm.statistics.place != VALUE_NONE) {
        op.norm.gamma = op.norm.beta = self->rig.weights[1];
        op.norm.groups = 32;
        op.norm.epsilon = 1e-6f;
        op.norm.silu = true;
    }
    program_convolution(self->rig.program, &op);
}

// x -> x + convolution(norm(convolution(norm(x)))) -> twice as high and wide
static void block_create(struct block *self, struct device *device)
{
    struct dice dice = {seed_of_run()};
    uint64_t taps = (uint64_t)CHANNELS * CHANNELS * 9;
    *self = (struct block){.highest = 0};
    struct error error = {.status = STATUS_OK};
    self->rig.device = device;
    must(program_create(&self->rig.program, device, &error), &error);
    float *values = rig_own(&self->rig, dice_array(&dice, taps, 0, 0.03f));
    struct weight_source source = {.form = WEIGHT_CONVOLUTION,
                                   .dtype = DTYPE_F16,
                                   .dims = {CHANNELS, CHANNELS, 3, 3},
                                   .parts_count = 1};
    rig_weight(&self->rig, source, values, taps);
    rig_vector(&self->rig, values, CHANNELS);
    source.upsample = true;
    rig_weight(&self->rig, source, values, taps);

    self->x = tensor(self, SIZE);
    program_clear(self->rig.program, &(struct clear){self->x, self->x.bytes});
    struct value y = tensor(self, SIZE);
    struct value moments = statistics(self, SIZE);
    append(self, (struct convolution){
                     .input = self->x, .h = SIZE, .w = SIZE, .output = y, .statistics = moments});
    struct value more = statistics(self, SIZE);
    struct convolution second = {.input = y, .h = SIZE, .w = SIZE, .output = self->x};
    second.norm.statistics = moments;
    second.residual = self->x;
    second.statistics = more;
    append(self, second);
    program_release(self->rig.program, y);
    program_release(self->rig.program, moments);
    self->wide = tensor(self, 2 * SIZE);
    append(self,
           (struct convolution){
               .input = self->x, .h = SIZE, .w = SIZE, .output = self->wide, .upsample = true});
    must(program_finish(self->rig.program, &error), &error);
}

static const char *const devices[] = {"reference", "cpu", "cpu:plain"};

static void the_plan_is_the_highest_byte_that_was_handed_out(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++) {
        struct device *device = open_device(devices[i], 1);
        struct block block;
        block_create(&block, device);
        const struct program *program = block.rig.program;
        for (uint32_t at = 0; at < program->operations_count; at++) {
            const struct value *workspace = &program->operations[at].workspace;
            if (workspace->place != VALUE_NONE) note(&block, *workspace);
        }
        assert_int_equal(program_peak_bytes(program), block.highest);
        rig_end(&block.rig);
        device_close(&device);
    }
}

static void a_page_that_nobody_may_touch_stands_behind_an_arena(void **state)
{
    (void)state;
    struct host_arena arena = {.data = NULL};
    struct error error = {.status = STATUS_OK};
    const uint64_t sizes[] = {5000, 100000, 5000000};
    for (size_t i = 0; i < 3; i++) {
        must(host_arena_grow(&arena, sizes[i], &error), &error);
        arena.data[0] = (uint8_t)(i + 1);
        arena.data[arena.bytes - 1] = 7;
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            // Whatever handles such a fault in a test is not asked.
            signal(SIGSEGV, SIG_DFL);
            ((volatile uint8_t *)arena.data)[arena.bytes] = 1;
            _exit(0);
        }
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), SIGSEGV);
        assert_int_equal(arena.data[0], i + 1);
    }
    host_arena_release(&arena);
}

// ---------------------------------------------------------------------------------------------
// Resident memory

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED true
#else
#define IS_SANITIZED false
#endif

// A line of /proc/self/status, in bytes.
static uint64_t status_bytes(const char *name)
{
    char line[256];
    unsigned long long kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, name, strlen(name)) == 0) sscanf(line + strlen(name), ": %llu", &kib);
    }
    fclose(file);
    assert_true(kib > 0);
    return kib * 1024;
}

static void a_run_takes_no_more_memory_than_its_plan_and_a_little(void **state)
{
    (void)state;
    if (IS_SANITIZED) skip();  // a sanitizer keeps books on all memory, in memory
    struct device *device = open_device("cpu", 2);
    struct block block;
    block_create(&block, device);
    struct error error = {.status = STATUS_OK};
    struct lane *lane = NULL;
    must(lane_create(&lane, device, &error), &error);
    FILE *reset = fopen("/proc/self/clear_refs", "w");
    assert_non_null(reset);
    fputs("5", reset);  // the peak begins anew
    fclose(reset);
    uint64_t before = status_bytes("VmRSS");
    run_to_end(lane, block.rig.program, NULL, 0);
    uint64_t rise = status_bytes("VmHWM") - before;
    uint64_t plan = program_peak_bytes(block.rig.program);
    print_message("plan %.1f MiB, rise %.1f MiB\n", (double)plan / 0x1p20, (double)rise / 0x1p20);
    assert_true(rise <= plan + BESIDE_BYTES);
    // A plan that nobody comes near would be a promise of little worth.
    assert_true(rise >= plan / 2);
    lane_destroy(&lane);
    rig_end(&block.rig);
    device_close(&device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_plan_is_the_highest_byte_that_was_handed_out),
        cmocka_unit_test(a_page_that_nobody_may_touch_stands_behind_an_arena),
        cmocka_unit_test(a_run_takes_no_more_memory_than_its_plan_and_a_little),
    };
    return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
