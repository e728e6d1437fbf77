// device_cpu.c - the devices "cpu" and "cpu:...": a pool of threads, and lanes that hand it jobs.
//
//     cpu           the best compilation of the kernels that the processor has and that was proven
//     cpu:plain     the portable one, which "cpu" falls back to where AVX2, FMA or F16C is missing,
//                   so that people and tests can see what that machine would do
//     cpu:wide      the one of AVX-512, lowered to AVX2: for tests
//     cpu:avx512    the one of AVX-512
//
// All are one class, they differ in the function that turns operations into launches.

#include <assert.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels/cpu/compute.h"
#include "kernels/cpu/pool.h"
#include "kernels/host_arena.h"

// The most compute threads of a device: as many as cpu_set_t has bits.
#define THREADS_MAX 1024u

struct cpu_device {
    struct device base;       // what every device has
    struct pool *pool;        // its threads
    pool_launches *launches;  // of its compilation
};

struct cpu_lane {
    struct lane base;                   // what every lane has
    struct host_arena arena;            // of the running program
    struct pool_job job;                // the run
    void *bindings[PROGRAM_SLOTS_MAX];  // copied from lane_run
    struct error error;                 // why the run could not begin, or the arena not grow
};

static struct cpu_device *device_of(const struct lane *lane)
{
    return (struct cpu_device *)lane->device;
}

// ---------------------------------------------------------------------------------------------
// Operations

static uint32_t portable_launches(const struct operation *op,
                                  struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    return cpu_launches(&cpu_compute_portable, op, out);
}

#if defined(__x86_64__)

static uint32_t avx2_launches(const struct operation *op, struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    return cpu_launches(&cpu_compute_avx2, op, out);
}

static uint32_t wide_launches(const struct operation *op, struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    return cpu_launches(&cpu_compute_wide, op, out);
}

static uint32_t avx512_launches(const struct operation *op, struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    return cpu_launches(&cpu_compute_avx512, op, out);
}

#endif

// How a device of that name turns operations into launches; NULL where the processor cannot.
static pool_launches *find_launches(const char *name)
{
    if (strcmp(name, "cpu:plain") == 0) return portable_launches;
#if defined(__x86_64__)
    if (strcmp(name, "cpu:avx512") == 0) return cpu_has_avx512() ? avx512_launches : NULL;
    bool has_avx2 = cpu_compute_best() == &cpu_compute_avx2;
    if (strcmp(name, "cpu:wide") == 0) return has_avx2 ? wide_launches : NULL;
    if (has_avx2) return avx2_launches;
#endif
    return strcmp(name, "cpu") == 0 ? portable_launches : NULL;
}

// What is behind it, for people.
static const char *describe_launches(pool_launches *launches)
{
#if defined(__x86_64__)
    if (launches == avx2_launches) return "AVX2";
    if (launches == wide_launches) return "AVX2 as AVX-512";
    if (launches == avx512_launches) return "AVX-512";
#endif
    assert(launches == portable_launches);
    return "portable (slow: no AVX2, FMA, F16C)";
}

// ---------------------------------------------------------------------------------------------
// Lanes

static void lane_destroy_cpu(struct lane *lane)
{
    struct cpu_lane *self = (struct cpu_lane *)lane;
    assert(!self->job.is_running);
    host_arena_release(&self->arena);
    if (self->base.descriptor >= 0) close(self->base.descriptor);
    free(self);
}

static enum status lane_create_cpu(struct lane **out, struct device *device, struct error *error)
{
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    struct cpu_lane *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, status, "no memory for a lane");
    self->base.device = device;
    self->base.descriptor = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (self->base.descriptor < 0) {
        error_set(error, status, "no file descriptor is left for a lane");
        lane_destroy_cpu(&self->base);
        return status;
    }
    self->job.descriptor = self->base.descriptor;
    *out = &self->base;
    return STATUS_OK;
}

// What never reached the pool has ended.
static void tell_end(const struct cpu_lane *self)
{
    uint64_t one = 1;
    ssize_t written = write(self->base.descriptor, &one, sizeof one);
    assert(written == sizeof one);
}

// Mapping takes microseconds: it is done at once, only its end is told as that of a run.
static void lane_grow_cpu(struct lane *lane, uint64_t bytes)
{
    struct cpu_lane *self = (struct cpu_lane *)lane;
    self->error.status = STATUS_OK;
    self->job.status = STATUS_OK;
    self->error.status = host_arena_grow(&self->arena, bytes, &self->error);
    self->base.arena_bytes = self->arena.bytes;
    tell_end(self);
}

static void lane_release_cpu(struct lane *lane)
{
    struct cpu_lane *self = (struct cpu_lane *)lane;
    host_arena_release(&self->arena);
    self->base.arena_bytes = 0;
}

static void lane_run_cpu(struct lane *lane, const struct program *program, void *const *bindings,
                         uint32_t bindings_count)
{
    struct cpu_lane *self = (struct cpu_lane *)lane;
    struct cpu_device *device = device_of(lane);
    assert(program->slots_count <= bindings_count);
    for (uint32_t i = 0; i < program->slots_count; i++) self->bindings[i] = bindings[i];
    self->error.status = STATUS_OK;
    enum status status = pool_prepare(device->pool, program, device->launches, &self->error);
    if (status != STATUS_OK) {
        tell_end(self);
        return;
    }
    self->job.program = program;
    self->job.launches = device->launches;
    self->job.run = (struct cpu_run){.arena = self->arena.data, .bindings = self->bindings};
    pool_start(device->pool, &self->job);
}

static enum status lane_collect_cpu(struct lane *lane, struct error *error)
{
    struct cpu_lane *self = (struct cpu_lane *)lane;
    enum status status = pool_end(device_of(lane)->pool, &self->job);
    if (self->error.status != STATUS_OK) {
        if (error != NULL) *error = self->error;
        return self->error.status;
    }
    if (status == STATUS_CANCELLED) return error_set(error, status, "the run was cancelled");
    return status;
}

static void lane_cancel_cpu(struct lane *lane)
{
    pool_cancel(device_of(lane)->pool, &((struct cpu_lane *)lane)->job);
}

static void lane_favour_cpu(struct lane *lane, bool favoured)
{
    pool_favour(device_of(lane)->pool, &((struct cpu_lane *)lane)->job, favoured);
}

static uint64_t lane_progress_cpu(const struct lane *lane)
{
    return atomic_load(&((const struct cpu_lane *)lane)->job.progress);
}

static uint32_t lane_marks_cpu(const struct lane *lane)
{
    return atomic_load(&((const struct cpu_lane *)lane)->job.marks);
}

// ---------------------------------------------------------------------------------------------
// The device

static void close_cpu(struct device *device)
{
    struct cpu_device *self = (struct cpu_device *)device;
    pool_destroy(&self->pool);
    free(self);
}

static const struct device_class cpu_class = {
    .name = "cpu",
    .statistics_bytes = cpu_statistics_bytes,
    .workspace_bytes = cpu_workspace_bytes,
    .weight_plan = cpu_weight_plan,
    .weight_create = cpu_weight_create,
    .weight_destroy = cpu_weight_destroy,
    .lane_create = lane_create_cpu,
    .lane_destroy = lane_destroy_cpu,
    .lane_grow = lane_grow_cpu,
    .lane_release = lane_release_cpu,
    .lane_run = lane_run_cpu,
    .lane_collect = lane_collect_cpu,
    .lane_cancel = lane_cancel_cpu,
    .lane_favour = lane_favour_cpu,
    .lane_progress = lane_progress_cpu,
    .lane_marks = lane_marks_cpu,
    .close = close_cpu,
};

// The cores that this process may use: its affinity, which taskset and cpusets set.
static uint32_t cores_allowed(void)
{
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores) != 0) return 1;
    int count = CPU_COUNT(&cores);
    return count < 1 ? 1 : (uint32_t)count;
}

// The processor's own name, "AMD EPYC 7763 64-Core Processor", without the blanks around it.
static void processor_name(char out[48])
{
    snprintf(out, 48, "unknown processor");
#if defined(__x86_64__)
    union {
        uint32_t registers[12];
        char text[49];
    } brand = {.text = ""};
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t *four = &brand.registers[4 * i];
        if (!__get_cpuid(0x80000002u + i, &four[0], &four[1], &four[2], &four[3])) return;
    }
    brand.text[48] = '\0';
    const char *begin = brand.text + strspn(brand.text, " ");
    size_t length = strlen(begin);
    while (length > 0 && begin[length - 1] == ' ') length--;
    if (length > 0) snprintf(out, 48, "%.*s", (int)length, begin);
#endif
}

static void write_info(struct device_info *info, const struct device_options *options,
                       pool_launches *launches)
{
    char processor[48];
    processor_name(processor);
    info->threads = options->threads != 0 ? options->threads : cores_allowed();
    info->activation_bytes = sizeof(float);
    snprintf(info->name, sizeof info->name, "%s", options->name);
    snprintf(info->label, sizeof info->label, "%s, %.40s", processor, describe_launches(launches));
}

enum status cpu_device_open(struct device **out, const struct device_options *options,
                            struct error *error)
{
    assert(out != NULL);
    assert(options != NULL);
    if (options->threads > THREADS_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%u threads, at most %u are possible",
                         options->threads, THREADS_MAX);
    }
    pool_launches *launches = find_launches(options->name);
    if (launches == NULL) {
        return error_set(error, STATUS_UNAVAILABLE, "this processor cannot run device \"%s\"",
                         options->name);
    }
    struct cpu_device *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a device");
    self->base.class = &cpu_class;
    write_info(&self->base.info, options, launches);
    self->launches = launches;
    enum status status = pool_create(&self->pool, self->base.info.threads, error);
    if (status != STATUS_OK) {
        free(self);
        return status;
    }
    *out = &self->base;
    return STATUS_OK;
}
