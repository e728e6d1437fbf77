// device.c - the public calls on devices, weights and lanes: check, then hand to the class.

#include "kernels/device.h"

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "kernels/arena_plan.h"

#define CUDA_LIBRARY "libluna_cuda.so"

// ---------------------------------------------------------------------------------------------
// Devices

enum status device_open(struct device **out, const struct device_options *options,
                        struct error *error)
{
    assert(out != NULL);
    assert(options != NULL);
    static const struct {
        const char *name;
        enum status (*open)(struct device **out, const struct device_options *options,
                            struct error *error);
    } classes[] = {{"cpu", cpu_device_open},
                   {"cpu:plain", cpu_device_open},
                   {"cpu:wide", cpu_device_open},
                   {"cpu:avx512", cpu_device_open},
                   {"reference", reference_device_open}};
    static const struct {
        const char *prefix;
        const char *library;
    } modules[] = {{"cuda:", CUDA_LIBRARY}, {"emulated", "libluna_emulated.so"}};
    if (options->name == NULL) {
        return error_set(error, STATUS_NOT_FOUND, "a device needs a name");
    }
    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++) {
        if (strcmp(options->name, classes[i].name) != 0) continue;
        if (options->precision_fast) {
            return error_set(error, STATUS_UNIMPLEMENTED,
                             "device \"%s\" has no fast precision, it is always faithful",
                             options->name);
        }
        return classes[i].open(out, options, error);
    }
    for (size_t i = 0; i < sizeof modules / sizeof modules[0]; i++) {
        if (strncmp(options->name, modules[i].prefix, strlen(modules[i].prefix)) != 0) continue;
        return module_device_open(out, modules[i].library, options, error);
    }
    return error_set(error, STATUS_NOT_FOUND, "there is no device \"%s\"", options->name);
}

void device_close(struct device **device_p)
{
    assert(device_p != NULL);
    struct device *self = *device_p;
    if (self == NULL) return;
    assert(atomic_load(&self->users) == 0);  // every lane and weight came home
    self->class->close(self);
    *device_p = NULL;
}

const struct device_info *device_info(const struct device *device)
{
    assert(device != NULL);
    return &device->info;
}

bool device_has_memory(const struct device *device)
{
    assert(device != NULL);
    return device->class->memory != NULL;
}

enum status device_memory(const struct device *device, struct device_memory *out,
                          struct error *error)
{
    assert(device != NULL);
    assert(out != NULL);
    if (device->class->memory != NULL) return device->class->memory(device, out, error);
    return error_set(error, STATUS_UNIMPLEMENTED, "device \"%s\" has no memory of its own",
                     device->info.name);
}

enum status device_lend(struct device *device, uint64_t bytes, struct device_loan *out,
                        struct error *error)
{
    assert(device != NULL);
    assert(out != NULL);
    assert(bytes > 0);
    assert(bytes % DEVICE_LOAN_UNIT_BYTES == 0);
    if (device->class->lend == NULL) {
        return error_set(error, STATUS_UNIMPLEMENTED, "device \"%s\" has no memory to lend",
                         device->info.name);
    }
    enum status status = device->class->lend(device, bytes, out, error);
    if (status == STATUS_OK) atomic_fetch_add(&device->users, 1);
    return status;
}

void device_take_back(struct device *device, struct device_loan *loan)
{
    assert(device != NULL);
    assert(loan != NULL);
    assert(loan->memory != NULL);
    device->class->take_back(device, loan);
    *loan = (struct device_loan){.memory = NULL};
    uint32_t before = atomic_fetch_sub(&device->users, 1);
    assert(before > 0);
}

enum status device_probe(struct device_probe *out, struct error *error)
{
    assert(out != NULL);
    return module_probe(out, CUDA_LIBRARY, error);
}

// ---------------------------------------------------------------------------------------------
// Weights

static uint32_t dims_count(enum weight_form form)
{
    if (form == WEIGHT_VECTOR) return 1;
    return form == WEIGHT_CONVOLUTION ? 4 : 2;
}

static enum status check_dims(const struct weight_source *source, struct error *error)
{
    uint64_t elements = source->parts_count;
    bool good = true;
    for (uint32_t i = 0; i < dims_count(source->form); i++) {
        good = good && source->dims[i] > 0;
        good = good && checked_multiply(elements, source->dims[i], &elements);
    }
    good = good && elements <= ARENA_BYTES_MAX / sizeof(float);
    good = good && (uint64_t)source->dims[0] * source->parts_count <= UINT32_MAX;
    if (source->form == WEIGHT_CONVOLUTION) {
        good = good && source->dims[2] == source->dims[3];
        good = good && (source->dims[2] == 1 || source->dims[2] == 3);
    }
    if (good) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "weight of form %u cannot have dimensions [%u, %u, %u, %u] in %u parts",
                     (unsigned)source->form, source->dims[0], source->dims[1], source->dims[2],
                     source->dims[3], source->parts_count);
}

static enum status check_upsample(const struct weight_source *source, struct error *error)
{
    bool is_window = source->form == WEIGHT_CONVOLUTION && source->dims[2] == 3;
    if (!source->upsample || is_window) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "weight of form %u, [%u, %u, %u, %u], cannot be of an upsampling convolution",
                     (unsigned)source->form, source->dims[0], source->dims[1], source->dims[2],
                     source->dims[3]);
}

static enum status check_source(const struct weight_source *source, struct error *error)
{
    if ((unsigned)source->form > WEIGHT_TABLE) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "there is no weight of form %u",
                         (unsigned)source->form);
    }
    if (!dtype_is_real(source->dtype)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "weight of type %s, must be F32, F16 or BF16", dtype_name(source->dtype));
    }
    uint32_t parts_max = source->form == WEIGHT_TABLE ? 1 : WEIGHT_PARTS_MAX;
    if (source->parts_count < 1 || source->parts_count > parts_max) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "weight in %u parts, must be 1 to %u",
                         source->parts_count, parts_max);
    }
    enum status status = check_dims(source, error);
    return status == STATUS_OK ? check_upsample(source, error) : status;
}

enum status weight_plan(const struct device *device, const struct weight_source *source,
                        uint64_t *out, struct error *error)
{
    assert(device != NULL);
    assert(source != NULL);
    assert(out != NULL);
    enum status status = check_source(source, error);
    if (status == STATUS_OK) *out = device->class->weight_plan(device, source);
    return status;
}

enum status weight_create(struct weight **out, struct device *device,
                          const struct weight_source *source, struct error *error)
{
    assert(out != NULL);
    assert(device != NULL);
    assert(source != NULL);
    enum status status = check_source(source, error);
    if (status != STATUS_OK) return status;
    for (uint32_t i = 0; i < source->parts_count; i++) {
        if (source->parts[i] == NULL) {
            return error_set(error, STATUS_INVALID_ARGUMENT, "part %u of a weight is missing", i);
        }
    }
    struct weight *self = NULL;
    status = device->class->weight_create(&self, device, source, error);
    if (status != STATUS_OK) return status;
    self->device = device;
    self->form = source->form;
    self->dtype = source->dtype;
    self->upsample = source->upsample;
    for (uint32_t i = 0; i < 4; i++) {
        self->dims[i] = i < dims_count(source->form) ? source->dims[i] : 1;
    }
    self->dims[0] *= source->parts_count;
    self->serial = atomic_fetch_add(&device->weights_made, 1) + 1;
    atomic_fetch_add(&device->users, 1);
    *out = self;
    return STATUS_OK;
}

void weight_destroy(struct weight **weight_p)
{
    assert(weight_p != NULL);
    struct weight *self = *weight_p;
    if (self == NULL) return;
    struct device *device = self->device;
    device->class->weight_destroy(self);
    uint32_t before = atomic_fetch_sub(&device->users, 1);
    assert(before > 0);
    *weight_p = NULL;
}

uint64_t weight_bytes(const struct weight *weight)
{
    assert(weight != NULL);
    return weight->bytes;
}

// ---------------------------------------------------------------------------------------------
// Lanes

enum status lane_create(struct lane **out, struct device *device, struct error *error)
{
    assert(out != NULL);
    assert(device != NULL);
    struct lane *self = NULL;
    enum status status = device->class->lane_create(&self, device, error);
    if (status != STATUS_OK) return status;
    assert(self->device == device);
    assert(self->arena_bytes == 0);
    atomic_fetch_add(&device->users, 1);
    *out = self;
    return STATUS_OK;
}

void lane_destroy(struct lane **lane_p)
{
    assert(lane_p != NULL);
    struct lane *self = *lane_p;
    if (self == NULL) return;
    struct device *device = self->device;
    if (self->running) {
        lane_cancel(self);
        lane_collect(self, NULL);  // how it ended is of no interest to a lane that goes away
    }
    lane_release(self);
    device->class->lane_destroy(self);
    uint32_t before = atomic_fetch_sub(&device->users, 1);
    assert(before > 0);
    *lane_p = NULL;
}

void lane_grow(struct lane *lane, uint64_t bytes)
{
    assert(lane != NULL);
    assert(!lane->running);
    assert(bytes > lane->arena_bytes);
    lane->running = true;
    lane->device->class->lane_grow(lane, bytes);
}

enum status lane_reserve(struct lane *lane, uint64_t bytes, struct error *error)
{
    assert(lane != NULL);
    assert(!lane->running);
    if (bytes <= lane->arena_bytes) return STATUS_OK;
    lane_grow(lane, bytes);
    enum status status = lane_collect(lane, error);
    assert(status != STATUS_OK || lane->arena_bytes >= bytes);
    return status;
}

void lane_release(struct lane *lane)
{
    assert(lane != NULL);
    assert(!lane->running);
    if (lane->arena_bytes > 0) lane->device->class->lane_release(lane);
    assert(lane->arena_bytes == 0);
}

uint64_t lane_arena_bytes(const struct lane *lane)
{
    assert(lane != NULL);
    return lane->arena_bytes;
}

// True when every id of a list in host memory is from minimum to maximum.
static bool ids_are_within(const void *ids, uint64_t count, int64_t minimum, int64_t maximum)
{
    for (uint64_t i = 0; i < count; i++) {
        int32_t id = (int32_t)load_u32((const uint8_t *)ids + i * sizeof id);
        if (id < minimum || id > maximum) return false;
    }
    return true;
}

static const uint8_t *bound(void *const *bindings, const struct value *value)
{
    return (const uint8_t *)bindings[value->slot] + value->offset;
}

// The ids of an operation are the one thing that is data and address at once.
static bool ids_are_good(const struct operation *op, void *const *bindings)
{
    if (op->kind == OPERATION_EMBEDDING) {
        const struct embedding *embedding = &op->embedding;
        return ids_are_within(bound(bindings, &embedding->ids), embedding->rows,
                              -(int64_t)embedding->vectors_count,
                              (int64_t)embedding->table->dims[0] - 1);
    }
    if (op->kind == OPERATION_GATHER) {
        const struct gather *gather = &op->gather;
        return ids_are_within(bound(bindings, &gather->indices), gather->count, 0,
                              (int64_t)gather->rows - 1);
    }
    return true;
}

void lane_run(struct lane *lane, const struct program *program, void *const *bindings,
              uint32_t bindings_count)
{
    assert(lane != NULL);
    assert(!lane->running);
    assert(program != NULL);
    assert(program->finished);
    assert(program->error.status == STATUS_OK);
    assert(program->device == lane->device);
    assert(program->peak_bytes <= lane->arena_bytes);
    assert(program->slots_count <= bindings_count);
    for (uint32_t i = 0; i < program->slots_count; i++) {
        assert(program->slot_bytes[i] == 0 || bindings[i] != NULL);
    }
    for (uint32_t i = 0; i < program->operations_count; i++) {
        assert(ids_are_good(&program->operations[i], bindings));
    }
    lane->running = true;
    lane->device->class->lane_run(lane, program, bindings, bindings_count);
}

int lane_descriptor(const struct lane *lane)
{
    assert(lane != NULL);
    assert(lane->descriptor >= 0);
    return lane->descriptor;
}

enum status lane_collect(struct lane *lane, struct error *error)
{
    assert(lane != NULL);
    assert(lane->running);
    enum status status = lane->device->class->lane_collect(lane, error);
    lane->running = false;
    return status;
}

void lane_cancel(struct lane *lane)
{
    assert(lane != NULL);
    lane->device->class->lane_cancel(lane);
}

void lane_favour(struct lane *lane, bool favoured)
{
    assert(lane != NULL);
    if (lane->device->class->lane_favour == NULL) return;
    lane->device->class->lane_favour(lane, favoured);
}

enum status lane_trace(struct lane *lane, bool is_kept, struct error *error)
{
    assert(lane != NULL);
    assert(!lane->running);
    if (lane->device->class->lane_trace != NULL) {
        return lane->device->class->lane_trace(lane, is_kept, error);
    }
    return error_set(error, STATUS_UNIMPLEMENTED, "device \"%s\" does not time its operations",
                     lane->device->info.name);
}

uint32_t lane_times(const struct lane *lane, uint64_t *out, uint32_t count)
{
    assert(lane != NULL);
    assert(!lane->running);
    assert(out != NULL);
    if (lane->device->class->lane_times == NULL) return 0;
    return lane->device->class->lane_times(lane, out, count);
}

uint32_t lane_launches(const struct lane *lane, struct lane_launch *out, uint32_t count)
{
    assert(lane != NULL);
    assert(!lane->running);
    assert(out != NULL);
    if (lane->device->class->lane_launches == NULL) return 0;
    return lane->device->class->lane_launches(lane, out, count);
}

struct lane_graphs lane_graphs(const struct lane *lane)
{
    assert(lane != NULL);
    if (lane->device->class->lane_graphs != NULL) return lane->device->class->lane_graphs(lane);
    return (struct lane_graphs){.recorded = 0};
}

uint64_t lane_progress(const struct lane *lane)
{
    assert(lane != NULL);
    return lane->device->class->lane_progress(lane);
}

uint32_t lane_marks(const struct lane *lane)
{
    assert(lane != NULL);
    return lane->device->class->lane_marks(lane);
}
