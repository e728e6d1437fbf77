// device_gpu.c - opening a GPU, and its class. Names are "cuda:0" or "emulated"; behind a further
// colon stands the storage type of a fast device, "cuda:0:f16", bf16 where it is not said.

#include "kernels/cuda/device_gpu.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/module.h"

uint64_t gpu_statistics_bytes(const struct device *device, uint32_t n, uint32_t h, uint32_t w,
                              uint32_t k)
{
    (void)device;
    (void)h;
    (void)w;
    return (uint64_t)n * k * sizeof(struct gpu_moments);
}

static void close_gpu(struct device *device)
{
    struct gpu_device *self = (struct gpu_device *)device;
    gpu_close(&self->card);
    free(self);
}

static const struct device_class gpu_class = {
    .name = "gpu",
    .statistics_bytes = gpu_statistics_bytes,
    .workspace_bytes = gpu_workspace_bytes,
    .weight_create = gpu_weight_create,
    .weight_destroy = gpu_weight_destroy,
    .lane_create = gpu_lane_create,
    .lane_destroy = gpu_lane_destroy,
    .lane_reserve = gpu_lane_reserve,
    .lane_release = gpu_lane_release,
    .lane_run = gpu_lane_run,
    .lane_collect = gpu_lane_collect,
    .lane_cancel = gpu_lane_cancel,
    .lane_progress = gpu_lane_progress,
    .lane_marks = gpu_lane_marks,
    .close = close_gpu,
};

// What a device's name says.
struct gpu_name {
    uint32_t number;       // of the card
    enum dtype fast_type;  // f16 or bf16
};

static enum status read_name(struct gpu_name *out, const char *name, struct error *error)
{
    struct gpu_name read = {.fast_type = DTYPE_BF16};
    size_t length = strlen(gpu_driver_name);
    const char *rest = name + length;
    bool good = strncmp(name, gpu_driver_name, length) == 0;
    if (good && gpu_driver_name[length - 1] == ':') {
        char *end = NULL;
        unsigned long number = strtoul(rest, &end, 10);
        good = *rest >= '0' && *rest <= '9' && number <= 1000;
        read.number = (uint32_t)number;
        rest = end;
    }
    if (good && strcmp(rest, ":f16") == 0) {
        read.fast_type = DTYPE_F16;
    } else if (good && strcmp(rest, ":bf16") != 0) {
        good = *rest == '\0';
    }
    if (!good) return error_set(error, STATUS_NOT_FOUND, "there is no device \"%s\"", name);
    *out = read;
    return STATUS_OK;
}

static enum status open_gpu(struct device **out, const struct device_options *options,
                            struct error *error)
{
    assert(out != NULL);
    assert(options != NULL);
    struct gpu_name name = {.number = 0};
    enum status status = read_name(&name, options->name, error);
    if (status != STATUS_OK) return status;
    struct gpu_device *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a device");
    status = gpu_open(&self->card, name.number, error);
    if (status != STATUS_OK) goto done;
    self->base.class = &gpu_class;
    self->storage = options->precision_fast ? name.fast_type : DTYPE_F32;
    self->base.info.activation_bytes = dtype_bytes(self->storage);
    snprintf(self->base.info.name, sizeof self->base.info.name, "%s", options->name);
    snprintf(self->base.info.label, sizeof self->base.info.label, "%s", gpu_label(self->card));
    *out = &self->base;
    self = NULL;

done:
    free(self);
    return status;
}

__attribute__((visibility("default"))) const struct gpu_module *luna_gpu_module(void)
{
    static const struct gpu_module module = {.version = LUNA_VERSION,
                                             .operation_bytes = sizeof(struct operation),
                                             .device_bytes = sizeof(struct device_class),
                                             .open = open_gpu};
    return &module;
}
