// device_reference.c - the device "reference": one thread, the caller's, inside lane_run.
//
// lane_run computes and then makes the descriptor readable, so to a driver it looks like any other
// lane that happens to be ready at once. lane_cancel may come from another thread meanwhile; the
// flag is looked at between items.

#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "kernels/host_arena.h"
#include "kernels/reference/reference.h"

struct reference_lane {
    struct lane base;           // what every lane has
    struct host_arena arena;    // of the running program
    enum status status;         // how the last run or growth ended
    const char *why;            // it failed
    _Atomic bool is_cancelled;  // asked to stop since the run began
    _Atomic uint64_t progress;  // items done since the lane was made
    _Atomic uint32_t marks;     // passed by the running or last program
};

uint32_t reference_launches(const struct operation *op, struct cpu_launch out[CPU_LAUNCHES_MAX])
{
    assert(op != NULL);
    switch ((int)op->kind) {
    case OPERATION_MARK:
        return 0;
    case OPERATION_CONVOLUTION:
        return reference_convolution_launches(op, out);
    case OPERATION_LINEAR:
    case OPERATION_ATTENTION:
    case OPERATION_LAYER_NORM:
    case OPERATION_EMBEDDING:
    case OPERATION_GATHER:
        return reference_matrix_launches(op, out);
    default:
        return reference_image_launches(op, out);
    }
}

uint64_t reference_workspace_bytes(const struct device *device, const struct operation *op)
{
    (void)device;
    (void)op;
    return 0;
}

// ---------------------------------------------------------------------------------------------
// Lanes

static void lane_destroy_reference(struct lane *lane)
{
    struct reference_lane *self = (struct reference_lane *)lane;
    host_arena_release(&self->arena);
    if (self->base.descriptor >= 0) close(self->base.descriptor);
    free(self);
}

static enum status lane_create_reference(struct lane **out, struct device *device,
                                         struct error *error)
{
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    struct reference_lane *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, status, "no memory for a lane");
    self->base.device = device;
    self->base.descriptor = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (self->base.descriptor < 0) {
        error_set(error, status, "no file descriptor is left for a lane");
        lane_destroy_reference(&self->base);
        return status;
    }
    *out = &self->base;
    return STATUS_OK;
}

static void tell_end(const struct reference_lane *self)
{
    uint64_t one = 1;
    ssize_t written = write(self->base.descriptor, &one, sizeof one);
    assert(written == sizeof one);
}

static void lane_grow_reference(struct lane *lane, uint64_t bytes)
{
    struct reference_lane *self = (struct reference_lane *)lane;
    self->status = host_arena_grow(&self->arena, bytes, NULL);
    self->why = "no memory for an arena";
    self->base.arena_bytes = self->arena.bytes;
    tell_end(self);
}

static void lane_release_reference(struct lane *lane)
{
    struct reference_lane *self = (struct reference_lane *)lane;
    host_arena_release(&self->arena);
    self->base.arena_bytes = 0;
}

// Runs the items of one launch; CANCELLED when somebody asked for it, RESOURCE_EXHAUSTED without
// memory for scratch.
static enum status run_launch(struct reference_lane *self, const struct operation *op,
                              const struct cpu_run *run, const struct cpu_launch *launch)
{
    enum status status = STATUS_OK;
    void *scratch = malloc(launch->scratch_bytes + 1);
    if (scratch == NULL) return STATUS_RESOURCE_EXHAUSTED;
    for (uint32_t item = 0; item < launch->items && status == STATUS_OK; item++) {
        launch->run(op, run, item, scratch);
        atomic_fetch_add(&self->progress, 1);
        if (atomic_load(&self->is_cancelled)) status = STATUS_CANCELLED;
    }
    free(scratch);
    return status;
}

static void lane_run_reference(struct lane *lane, const struct program *program,
                               void *const *bindings, uint32_t bindings_count)
{
    (void)bindings_count;
    struct reference_lane *self = (struct reference_lane *)lane;
    struct cpu_run run = {.arena = self->arena.data, .bindings = bindings};
    atomic_store(&self->is_cancelled, false);
    atomic_store(&self->marks, 0);
    self->status = STATUS_OK;
    self->why = "no memory for scratch";
    for (uint32_t i = 0; i < program->operations_count && self->status == STATUS_OK; i++) {
        const struct operation *op = &program->operations[i];
        struct cpu_launch launches[CPU_LAUNCHES_MAX];
        uint32_t count = reference_launches(op, launches);
        for (uint32_t j = 0; j < count && self->status == STATUS_OK; j++) {
            self->status = run_launch(self, op, &run, &launches[j]);
        }
        if (op->kind == OPERATION_MARK) atomic_fetch_add(&self->marks, 1);
    }
    tell_end(self);
}

static enum status lane_collect_reference(struct lane *lane, struct error *error)
{
    struct reference_lane *self = (struct reference_lane *)lane;
    uint64_t count = 0;
    ssize_t got = read(self->base.descriptor, &count, sizeof count);
    assert(got == sizeof count);
    assert(count == 1);
    if (self->status == STATUS_CANCELLED) {
        return error_set(error, self->status, "the run was cancelled");
    }
    if (self->status != STATUS_OK) return error_set(error, self->status, "%s", self->why);
    return STATUS_OK;
}

static void lane_cancel_reference(struct lane *lane)
{
    atomic_store(&((struct reference_lane *)lane)->is_cancelled, true);
}

static uint64_t lane_progress_reference(const struct lane *lane)
{
    return atomic_load(&((const struct reference_lane *)lane)->progress);
}

static uint32_t lane_marks_reference(const struct lane *lane)
{
    return atomic_load(&((const struct reference_lane *)lane)->marks);
}

// ---------------------------------------------------------------------------------------------
// The device

static void close_reference(struct device *device)
{
    free(device);
}

static const struct device_class reference_class = {
    .name = "reference",
    .statistics_bytes = reference_statistics_bytes,
    .workspace_bytes = reference_workspace_bytes,
    .weight_plan = reference_weight_plan,
    .weight_create = reference_weight_create,
    .weight_destroy = reference_weight_destroy,
    .lane_create = lane_create_reference,
    .lane_destroy = lane_destroy_reference,
    .lane_grow = lane_grow_reference,
    .lane_release = lane_release_reference,
    .lane_run = lane_run_reference,
    .lane_collect = lane_collect_reference,
    .lane_cancel = lane_cancel_reference,
    .lane_progress = lane_progress_reference,
    .lane_marks = lane_marks_reference,
    .close = close_reference,
};

enum status reference_device_open(struct device **out, const struct device_options *options,
                                  struct error *error)
{
    assert(out != NULL);
    assert(options != NULL);
    struct device *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a device");
    self->class = &reference_class;
    self->info = (struct device_info){.threads = 1, .activation_bytes = sizeof(float)};
    snprintf(self->info.name, sizeof self->info.name, "%s", options->name);
    snprintf(self->info.label, sizeof self->info.label, "plain C in float64, the oracle");
    *out = self;
    return STATUS_OK;
}
